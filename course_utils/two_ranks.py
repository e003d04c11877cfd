"""Demonstrations that real ranks run: sampling, gradients, order, links.

    torchrun --standalone --nproc_per_node=2 -m course_utils.two_ranks gradients
    two_ranks.start("gradients")          # the same from a notebook: what each rank found, rank 0 first

gloo on the CPU; nccl where there is a GPU for every rank. The same file runs on both.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from course_utils.settings import course_device
from course_utils.torchrun import report, torchrun

DEMONSTRATIONS: dict[str, Callable[[int, int, torch.device], dict]] = {}
ROWS, EPOCHS, SEED = 10, 6, 3  # of the data in `sampling`
SIZES = tuple(4 * 4**power for power in range(12))  # bytes of the messages in `links`: 4 B to 16 MB
ROUNDS = 6


def start(*demonstrations: str, ranks: int = 2, seconds: float = 100) -> list[dict]:
    """Run demonstrations on so many processes of this machine; what each rank found, rank 0 first.

    Raises ValueError for an unknown demonstration, RanksFailed when a rank fails or time is up; no process is left.
    """
    for name in demonstrations:
        if name not in DEMONSTRATIONS:
            raise ValueError(f"There is no demonstration {name!r}; there are {', '.join(DEMONSTRATIONS)}.")
    return torchrun("course_utils.two_ranks", *demonstrations, ranks=ranks, seconds=seconds).reports


def demonstration(function: Callable) -> Callable:
    """Make a function of (rank, world size, device) available to `start`, under its name."""
    DEMONSTRATIONS[function.__name__] = function
    return function


def main() -> None:
    """What one rank does: join the group, run the demonstrations, report, leave together."""
    parser = argparse.ArgumentParser(description="Demonstrations of distributed training, started by torchrun.")
    parser.add_argument("demonstrations", nargs="+", choices=DEMONSTRATIONS)
    chosen = parser.parse_args().demonstrations
    # On a machine without a GPU for every rank two of them would share one, which nccl refuses.
    enough_gpus = course_device() == "cuda" and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if enough_gpus else torch.device("cpu")
    if enough_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if enough_gpus else "gloo", timeout=timedelta(seconds=60))
    try:
        found = {"backend": dist.get_backend()}
        for name in chosen:
            found |= DEMONSTRATIONS[name](dist.get_rank(), dist.get_world_size(), device)
        report(found)
        if dist.get_rank() == 0:
            print(json.dumps(found))
        dist.barrier()  # nobody leaves while another still needs a partner
    finally:
        gc.collect()  # a model wrapped in DDP that outlives the group can abort the process
        dist.destroy_process_group()


# ---- data ------------------------------------------------------------------------------------------------------------


@demonstration
def sampling(rank: int, world: int, device: torch.device) -> dict:
    """Train on ten rows three times: as it should be, without set_epoch, and without a DistributedSampler."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 2, generator=generator)
    y = x @ torch.tensor([1.0, -2.0]) + 0.5
    data = TensorDataset(torch.arange(ROWS), x, y)
    found = {}
    for name in ("set_epoch", "no set_epoch", "no sampler"):
        torch.manual_seed(100 + rank)  # each rank draws its own numbers; DDP sends rank 0's weights to all
        sharded = DistributedSampler(data, world, rank, seed=SEED)
        sampler = RandomSampler(data) if name == "no sampler" else sharded
        loader = DataLoader(data, batch_size=1, sampler=sampler)
        model = DDP(nn.Linear(2, 1).to(device))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses, orders = [], []
        for epoch in range(EPOCHS):
            if name == "set_epoch":
                sharded.set_epoch(epoch)
            total, order = 0.0, []
            for rows, inputs, targets in loader:
                optimizer.zero_grad()
                loss = F.mse_loss(model(inputs.to(device)).squeeze(1), targets.to(device))
                loss.backward()
                optimizer.step()
                total, order = total + loss.item(), [*order, *rows.tolist()]
            losses.append(total / len(order))
            orders.append(order)
        found[name] = {"losses": losses, "orders": orders}
        del model
    return found


# ---- gradients -------------------------------------------------------------------------------------------------------


@demonstration
def gradients(rank: int, world: int, device: torch.device) -> dict:
    """What DDP does to weights, gradients and buffers, and where it does nothing. For two ranks."""
    return {
        **_broadcast(rank, device),
        **_large_batch(rank, world, device),
        **_batch_norm(rank, device),
        **_no_sync(rank, device),
        **_unused(device),
    }


def _net(device: torch.device, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(device)


def _eight_rows(device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)
    return x.to(device), y.to(device)


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def _same_everywhere(values: Tensor) -> bool:
    """Whether all ranks hold the same bits."""
    everybody = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, values)
    return all(torch.equal(everybody[0], other) for other in everybody)


def _broadcast(rank: int, device: torch.device) -> dict:
    model = _net(device, seed=rank)
    before = model[0].weight[0, 0].item()
    ddp = DDP(model)
    return {"weight": [before, model[0].weight[0, 0].item()], "keys": list(ddp.state_dict())}


def _large_batch(rank: int, world: int, device: torch.device) -> dict:
    x, y = _eight_rows(device)
    alone = _net(device)
    F.cross_entropy(alone(x), y).backward()
    large = _gradient(alone)

    def shared(split: tuple[int, int], repair: bool = False, bypass: bool = False) -> dict:
        rows = slice(0, split[0]) if rank == 0 else slice(split[0], None)
        ddp = DDP(_net(device))
        logits = ddp.module(x[rows]) if bypass else ddp(x[rows])
        if repair:
            count = torch.tensor(len(y[rows]), device=device)
            dist.all_reduce(count)  # now the number of rows of all ranks
            loss = F.cross_entropy(logits, y[rows], reduction="sum") * world / count
        else:
            loss = F.cross_entropy(logits, y[rows])
        loss.backward()
        mine = _gradient(ddp)
        difference = (mine - large).abs().max().item()
        return {"difference": difference, "same on all ranks": _same_everywhere(mine)}

    return {
        "largest entry": large.abs().max().item(),
        "4 + 4": shared((4, 4)),
        "6 + 2": shared((6, 2)),
        "6 + 2, repaired": shared((6, 2), repair=True),
        "4 + 4 through .module": shared((4, 4), bypass=True),
    }


def _batch_norm(rank: int, device: torch.device) -> dict:
    norm = nn.BatchNorm1d(1, momentum=1.0).to(device)  # momentum 1: the running mean is the last batch's mean
    seen = []
    norm.register_forward_pre_hook(lambda module, _: seen.append(module.running_mean.item()))
    ddp = DDP(norm)
    torch.manual_seed(0)
    x = (torch.randn(100, 1) * 0.3 + rank).to(device)  # rank 1's numbers are larger by 1
    for _ in range(2):
        ddp(x)
    return {"running mean": {"after a forward": norm.running_mean.item(), "as the next one begins": seen[1]}}


def _no_sync(rank: int, device: torch.device) -> dict:
    x, y = _eight_rows(device)
    x, y = x[rank::2], y[rank::2]

    def synchronized(forward_inside: bool, backward_inside: bool) -> bool:
        ddp = DDP(_net(device))
        if forward_inside and backward_inside:
            with ddp.no_sync():
                F.cross_entropy(ddp(x), y).backward()
        elif forward_inside:
            with ddp.no_sync():
                loss = F.cross_entropy(ddp(x), y)
            loss.backward()
        else:
            loss = F.cross_entropy(ddp(x), y)
            with ddp.no_sync():
                loss.backward()
        return _same_everywhere(_gradient(ddp))

    def two_micro_batches() -> float:
        """Two rows inside no_sync, two outside; the difference from the batch of eight."""
        ddp, alone = DDP(_net(device)), _net(device)
        with ddp.no_sync():
            (F.cross_entropy(ddp(x[:2]), y[:2]) / 2).backward()
        (F.cross_entropy(ddp(x[2:]), y[2:]) / 2).backward()
        F.cross_entropy(alone(_eight_rows(device)[0]), _eight_rows(device)[1]).backward()
        return (_gradient(ddp) - _gradient(alone)).abs().max().item()

    return {
        "synchronized": {
            "forward and backward inside": synchronized(True, True),
            "only forward inside": synchronized(True, False),
            "only backward inside": synchronized(False, True),
        },
        "accumulated": two_micro_batches(),
    }


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def _unused(device: torch.device) -> dict:
    x, y = _eight_rows(device)

    def two_steps(**options: bool) -> str:
        ddp = DDP(_TwoHeads().to(device), **options)
        for number in (1, 2):
            try:
                F.cross_entropy(ddp(x), y).backward()
            except RuntimeError as error:
                return f"step {number}: {_first_sentence(error)}"
        return "two steps done"

    try:
        DDP(_net(device).requires_grad_(False))
        frozen = "accepted"
    except RuntimeError as error:
        frozen = _first_sentence(error)
    return {
        "unused parameters": two_steps(),
        "find_unused_parameters": two_steps(find_unused_parameters=True),
        "all frozen": frozen,
    }


def _first_sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).split('. ')[0].rstrip('.')}."


# ---- order -----------------------------------------------------------------------------------------------------------


@demonstration
def order(rank: int, world: int, device: torch.device) -> dict:
    """Collectives in different order, and one that a rank leaves out."""
    loss, accuracy = torch.tensor(2.0, device=device), torch.tensor(0.5, device=device)
    for value in (loss, accuracy) if rank == 0 else (accuracy, loss):
        dist.all_reduce(value)
    # gloo for both devices: nccl's watchdog would end the process. Its own group, since it is not to be used again.
    patience = dist.new_group(backend="gloo", timeout=timedelta(seconds=1))
    waited = "did not call it"
    if rank == 0:
        try:
            dist.all_reduce(torch.zeros(1), group=patience)
        except RuntimeError as error:
            waited = f"gave up: {type(error).__name__}"
    return {"loss": loss.item(), "accuracy": accuracy.item(), "all_reduce": waited}


# ---- links -----------------------------------------------------------------------------------------------------------


@demonstration
def links(rank: int, world: int, device: torch.device) -> dict:
    """Times in seconds: an all-reduce of each size, a training step alone, side by side, and with DDP."""

    def seconds(work: Callable[[], object], times: int) -> float:
        """Per call. All ranks begin together."""
        dist.barrier()
        _wait_for(device)
        begun = time.perf_counter()
        for _ in range(times):
            work()
        _wait_for(device)
        return (time.perf_counter() - begun) / times

    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(512, 512), nn.ReLU())]).to(device)
    ddp = DDP(model)
    x = torch.randn(64, 512).to(device)

    def step(network: nn.Module) -> None:
        network(x).square().mean().backward()

    def step_without_sync() -> None:
        with ddp.no_sync():
            step(ddp)

    buffers = {size: torch.zeros(size // 4, device=device) for size in SIZES}
    works: dict[object, tuple[Callable[[], object], int]] = {
        size: (lambda buffer=buffer: dist.all_reduce(buffer), 2 if size > 2**20 else 10)
        for size, buffer in buffers.items()
    }
    works["alone"] = ((lambda: step(model)) if rank == 0 else (lambda: None), 3)
    works["together"] = (step_without_sync, 3)
    works["with DDP"] = (lambda: step(ddp), 3)
    for work, _ in works.values():
        work()
    # The best of many rounds: whatever else the machine does can only add time.
    best = dict.fromkeys(works, math.inf)
    for _ in range(ROUNDS):
        for name, (work, times) in works.items():
            best[name] = min(best[name], seconds(work, times))
    return {
        "messages": [[size, best[size]] for size in SIZES],
        "gradient bytes": sum(4 * parameter.numel() for parameter in model.parameters()),
        **{name: best[name] for name in ("alone", "together", "with DDP")},
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
