"""A training run on the digits, assembled from an answer's definitions; it can be killed at any moment and resumed.

    python -m course_utils.survive_run program.py --checkpoint last.pt
    python -m course_utils.survive_run program.py --checkpoint last.pt --resume

`program.py` defines `split_digits`, `CheckpointFile`, `make` and `survivable_fit`; what it lacks is the course's own.
Every batch leaves a line in `--trace`: what the step was made from, so that two runs can be compared step by step.
`course_utils.survive` runs this program, kills it, and compares.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.datasets import WHITE, digits

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

BATCH, EPOCHS, PATIENCE, SEED, VAL_FRACTION = 64, 12, 2, 0, 0.2
PIECES = ("split_digits", "CheckpointFile", "make", "survivable_fit")
FIRST_CUT = 20_000  # bytes of the first checkpoint that are written when its write is interrupted


def digit_rows() -> Tensor:
    """The digits as a table of integers (1797, 65): 64 pixels in 0..16 and the label, row by row as in the file."""
    images, labels = digits()
    return torch.cat([(images.flatten(1) * WHITE).round().long(), labels[:, None]], dim=1)


class SmallCNN(nn.Module):
    """Two convolutions with batch norm, dropout, a linear layer: 6,186 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.dropout = nn.Dropout(0.25)
        self.head = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        return self.head(self.dropout(x.flatten(1)))


def course_make(device: str) -> Callable[[], tuple[nn.Module, torch.optim.Optimizer, Any]]:
    """A `make` for where the program has none: model, AdamW, and a one-cycle schedule over all epochs."""

    def make() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = SmallCNN().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        steps = EPOCHS * 23
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.015, total_steps=steps)
        return model, optimizer, scheduler

    return make


# --- what is written down about each batch ----------------------------------------------------------------------------


class Witness:
    """Writes down what every training step starts from: rows, weights, generator, learning rate, moments.

    saves: how many saves are complete, those of the killed processes before this one included. Lines and weights go
    straight to the operating system, so that a kill loses none.
    """

    def __init__(self, trace: Path | None, saves: int = 0) -> None:
        self.model: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.saves = saves
        self.stop_at = -1
        self._lines = self._open(trace)
        self._values = self._open(trace and trace.with_suffix(".weights"))
        self._laid_out = False

    @staticmethod
    def _open(path: Path | None) -> int | None:
        return None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, **event: Any) -> None:
        """One line for whoever watches."""
        if self._lines is not None:
            os.write(self._lines, (json.dumps(event) + "\n").encode())

    def watch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """From now on this is the model whose training steps count."""
        self.model, self.optimizer = model, optimizer

    def before_forward(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """The hook: torch calls it before every module's forward."""
        if module is not self.model or not module.training or not inputs or not isinstance(inputs[0], Tensor):
            return
        if self._lines is not None:
            self._note(inputs[0])
        if self.saves == self.stop_at:
            self.say(here="forward")
            wait_for_the_end()

    def _note(self, rows: Tensor) -> None:
        entries = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        if not self._laid_out:
            self.say(layout=[[name, list(value.shape), value.is_floating_point()] for name, value in entries.items()])
            self._laid_out = True
        values = torch.cat([value.detach().double().flatten().cpu() for value in entries.values()])
        os.write(self._values, values.numpy().tobytes())
        state = [value for slot in self.optimizer.state.values() for value in slot.values()]
        tensors = [value for value in state if isinstance(value, Tensor)]
        generators = [torch.get_rng_state()]
        if rows.is_cuda:
            generators.append(torch.cuda.get_rng_state(rows.device))
        steps = [float(slot["step"]) for slot in self.optimizer.state.values() if "step" in slot]
        self.say(
            batch=self.saves,
            rows=digest([rows]),
            random=digest(generators),
            moments=digest(tensors),
            steps=steps[0] if steps else 0.0,
            rate=self.optimizer.param_groups[0]["lr"],
        )


def digest(tensors: Sequence[Tensor]) -> str:
    """SHA-256 of the tensors' shapes, dtypes and bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{tuple(plain.shape)} {plain.dtype} ".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def result_digests(result: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the best weights, with their names, and of the history."""
    weights = hashlib.sha256()
    for name, value in result["best_model"].items():
        weights.update(f"{name} {digest([value])}\n".encode())
    history = b"".join(struct.pack("d", value) for value in result["history"])
    return {"weights": weights.hexdigest(), "history": hashlib.sha256(history).hexdigest()}


# --- stopping, so that the other process can kill ---------------------------------------------------------------------


def wait_for_the_end() -> None:
    """Stand still until the kill comes."""
    while True:
        time.sleep(60)


@contextmanager
def standing_still_beyond(size: int) -> Iterator[None]:
    """Within, a write that would make a file larger than `size` does not return: the process stands still in it.

    Where there are no such limits (Windows), nothing happens.
    """
    if resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system sends SIGXFSZ at the limit. Its handler is the C library's pause(): it runs inside the write and waits.
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    former = library.signal(signal.SIGXFSZ, ctypes.cast(library.pause, ctypes.c_void_p))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        library.signal(signal.SIGXFSZ, former)


# --- the run ----------------------------------------------------------------------------------------------------------


def train(
    program: dict[str, Any],
    path: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    witness: Witness | None = None,
    kill_in_write_of: int = -1,
) -> dict[str, Any]:
    """The whole program: split, build, resume if asked to, train, save after every step. Returns what the fit returns.

    kill_in_write_of: the number of the save in whose midst the process stands still.
    """
    witness = witness or Witness(None)
    from course_utils.exercise import load_exercise

    def piece(name: str) -> Any:
        if name in program:
            return program[name]
        return course_make(device) if name == "make" else load_exercise(name).reference

    witness.say(doing="split_digits")
    data = piece("split_digits")(digit_rows(), VAL_FRACTION, torch.Generator().manual_seed(SEED))
    train_set, val_set = ((data[f"x_{part}"].to(device), data[f"y_{part}"].to(device)) for part in ("train", "val"))
    witness.say(doing="CheckpointFile")
    file, make = piece("CheckpointFile")(path), piece("make")
    state = None
    if resume:
        witness.say(doing="CheckpointFile.load")
        state = file.load()
        witness.say(loaded=state is not None)

    def watched_make() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model, optimizer, scheduler = make()
        witness.watch(model, optimizer)
        return model, optimizer, scheduler

    def save(state: Any) -> None:
        witness.say(doing="CheckpointFile.save")
        if witness.saves + 1 == kill_in_write_of:
            cut = path.stat().st_size // 2 if path.exists() else FIRST_CUT
            witness.say(here="write", cut=cut)
            with standing_still_beyond(cut):
                file.save(state)
            witness.say(here="written")
            wait_for_the_end()
        file.save(state)
        witness.saves += 1
        witness.say(saved=witness.saves, doing="survivable_fit")

    witness.say(doing="survivable_fit")
    fit = piece("survivable_fit")
    return fit(watched_make, train_set, val_set, BATCH, EPOCHS, PATIENCE, SEED, save, state)


def read_program(path: Path, device: str) -> dict[str, Any]:
    """The names that the file defines; `device` is there already, as in the notebook."""
    names: dict[str, Any] = {"__name__": "program", "device": torch.device(device)}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), names)
    return names


def plain_result(result: Any) -> dict[str, Any]:
    """The result with its tensors on the CPU. Raises TypeError where it is not what `survivable_fit` promises."""
    if not isinstance(result, dict) or not {"best_model", "history", "epochs"} <= result.keys():
        raise TypeError("survivable_fit should return a dict with best_model, history and epochs.")
    weights = {name: value.detach().cpu().clone() for name, value in result["best_model"].items()}
    return {
        "best_model": weights,
        "history": [float(loss) for loss in result["history"]],
        "epochs": int(result["epochs"]),
    }


def run_once(
    program: Path,
    checkpoint: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    trace: Path | None = None,
    result: Path | None = None,
    saves: int = 0,
    stop: int = -1,
    moment: str = "",
) -> dict[str, Any] | None:
    """Run the program to its end, or to where it stands still: in the forward, or in the write, numbered `stop`.

    saves: how many are complete already. With a trace, an exception of the program becomes a line in it, and None
    comes back; without one it is raised.
    """
    torch.set_num_threads(1)
    if device != "cpu":
        torch.use_deterministic_algorithms(True)
    witness = Witness(trace, saves)
    witness.say(pid=os.getpid())
    witness.stop_at = stop if moment == "forward" else -1
    hook = nn.modules.module.register_module_forward_pre_hook(witness.before_forward)
    try:
        witness.say(doing="the definitions")
        names = read_program(program, device)
        write = stop if moment == "write" else -1
        found = train(names, checkpoint, resume=resume, device=device, witness=witness, kill_in_write_of=write)
        ended = plain_result(found)
    except Exception as error:
        if trace is None:
            raise
        lines = [
            f"line {frame.lineno}, in {frame.name}: {frame.line}"
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(program)
        ]
        message = str(error).strip().split("\n")[0]
        witness.say(error=f"{type(error).__name__}: {message}" if message else type(error).__name__, lines=lines[-2:])
        return None
    finally:
        hook.remove()
    if result is not None:
        torch.save(ended, result)
    witness.say(end=True)
    return ended


def serve(orders: Iterable[str]) -> None:
    """Run a program for each order, a JSON object a line, in a process forked for it.

    This process has imported torch and has done nothing with it, so each run starts from the same clean state without
    waiting for the imports. When a run is over, its exit code is written to the file that the order names.
    """
    _end_with_parent()
    # What torch imports when the first optimizer is made. No numbers are drawn, no threads started. Collecting garbage
    # would take a third of the time, and touch in every run what all of them share.
    gc.disable()
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1).zero_grad()
    gc.freeze()
    gc.enable()
    for line in orders:
        order = json.loads(line)
        ended, log = Path(order.pop("ended")), order.pop("log")
        child = os.fork()
        if child == 0:
            _run_forked(order, log)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ended.write_text(f"{code}\n", encoding="utf-8")


def _run_forked(order: dict[str, Any], log: str) -> NoReturn:
    """The forked process's whole life."""
    code = 1
    try:
        _end_with_parent()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        paths = {name: Path(order.pop(name)) for name in ("program", "checkpoint", "trace", "result")}
        code = 0 if run_once(**paths, **order) else 1
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with_parent() -> None:
    """On Linux this process is killed as soon as whoever started it is gone."""
    if sys.platform == "linux":
        with suppress(Exception):
            from course_utils.confine import end_with_parent

            end_with_parent()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program as the command line says."""
    parser = argparse.ArgumentParser(description="Train on the digits with an assembled program.")
    parser.add_argument("program", type=Path, nargs="?")
    parser.add_argument("--checkpoint", type=Path, help="written after every step")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(iter(sys.stdin.readline, ""))
        return
    if options.program is None or options.checkpoint is None:
        parser.error("a program and --checkpoint are needed, the file that is written after every step")
    result = run_once(options.program, options.checkpoint, resume=options.resume, device=options.device)
    last = f"{result['history'][-1]:.4f}" if result["history"] else "none"
    print(f"{result['epochs']} epochs, last validation loss {last}")
    print(*(f"{name}: {value}" for name, value in result_digests(result).items()), sep="\n")


if __name__ == "__main__":
    main()
