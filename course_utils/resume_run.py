"""A small training run that can be stopped and resumed in another process, as a program.

    python -m course_utils.resume_run --steps 20 --save half.pt
    python -m course_utils.resume_run --steps 20 --load half.pt --save whole.pt

It has one of everything that a resume can forget: dropout, batch norm, an optimizer with moments, a schedule, a
gradient scaler under float16 autocast, and a shuffled order with its position inside the epoch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES, BATCH = 44, 8  # six batches an epoch, the last of four samples
PIECES = ("model", "optimizer", "scheduler", "scaler", "order", "rng")


class Run:
    """Model, data and everything around them; the same seed builds the same run in every process."""

    def __init__(self, device: str = "cpu", seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.device = torch.device(device)
        self.x = torch.randn(SAMPLES, 10).to(device)
        self.y = (self.x[:, 0] * self.x[:, 1] > 0).long()
        self.model = nn.Sequential(
            nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2)
        ).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=60)
        # The first scale is far too large on purpose: the run skips steps until the scaler has found a good one.
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**22, growth_interval=7)
        self.generator = torch.Generator().manual_seed(seed)
        self.order: Tensor | None = None  # the permutation of this epoch; None: the next batch begins an epoch
        self.cursor = 0

    def step(self) -> float:
        """Train on one batch and return its loss."""
        if self.order is None:
            self.order, self.cursor = torch.randperm(SAMPLES, generator=self.generator), 0
        picks = self.order[self.cursor : self.cursor + BATCH].to(self.device)
        self.model.train()
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.float16):
            loss = F.cross_entropy(self.model(self.x[picks]), self.y[picks])
        self.scaler.scale(loss).backward()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # a skipped step is no step of the schedule
            self.scheduler.step()
        self.cursor += BATCH
        if self.cursor >= SAMPLES:
            self.order = None
        return loss.item()

    def train(self, steps: int) -> list[float]:
        """The losses of so many batches, from wherever the run stands."""
        return [self.step() for _ in range(steps)]

    def state_dict(self) -> dict:
        """All pieces of the run's state. The tensors are live: save them before the next step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "order": {
                "generator": self.generator.get_state(),
                "permutation": self.order,
                "cursor": self.cursor,
            },
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }

    def load_state_dict(self, state: dict, leave_out: Sequence[str] = ()) -> None:
        """Continue where `state` was taken. Pieces in `leave_out` stay as a fresh run has them."""
        for piece in ("model", "optimizer", "scheduler", "scaler"):
            if piece not in leave_out:
                getattr(self, piece).load_state_dict(state[piece])
        if "order" not in leave_out:
            self.generator.set_state(state["order"]["generator"])
            self.order, self.cursor = state["order"]["permutation"], state["order"]["cursor"]
        if "rng" not in leave_out:
            torch.set_rng_state(state["rng"]["cpu"])
            if state["rng"]["cuda"]:
                torch.cuda.set_rng_state_all(state["rng"]["cuda"])


def first_difference(state: object, other: object, place: str = "state") -> str:
    """Where two nested states differ first, bit for bit; an empty text where they do not."""
    if type(state) is not type(other):
        return place
    if isinstance(state, Tensor):
        same = state.dtype == other.dtype and torch.equal(state.cpu(), other.cpu())
        return "" if same else place
    if isinstance(state, dict):
        if list(state) != list(other):
            return place
        parts = [(f"{place}.{key}", state[key], other[key]) for key in state]
    elif isinstance(state, list | tuple):
        if len(state) != len(other):
            return place
        parts = [(f"{place}.{number}", *pair) for number, pair in enumerate(zip(state, other, strict=True))]
    else:
        same = state == other or (isinstance(state, float) and math.isnan(state) and math.isnan(other))
        return "" if same else place
    return next(filter(None, (first_difference(a, b, name) for name, a, b in parts)), "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the run, load, train, save, as the command line says."""
    parser = argparse.ArgumentParser(description="A training run that can be stopped and resumed.")
    parser.add_argument("--steps", type=int, required=True, help="batches to train")
    parser.add_argument("--load", help="checkpoint to continue from")
    parser.add_argument("--save", help="where to write the checkpoint")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    run = Run(options.device)
    losses = []
    if options.load:
        # To the CPU: generator states belong there, and load_state_dict moves the rest to where it belongs.
        checkpoint = torch.load(options.load, map_location="cpu")
        run.load_state_dict(checkpoint["run"])
        losses = checkpoint["losses"]
    losses = losses + run.train(options.steps)
    if options.save:
        torch.save({"run": run.state_dict(), "losses": losses}, options.save)


if __name__ == "__main__":
    main()
