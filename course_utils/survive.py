"""The kill test: a training program is killed in mid-epoch and in mid-write, resumed, and compared bit for bit.

    python -m course_utils.survive work/capstone_survivable_run.ipynb --seed 3

judges what a notebook or percent script defines. From a notebook, `kill_test` does the same with live definitions.
The program runs as in `python -m course_utils.survive_run`, each time in a process of its own.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from course_utils.assembled import assemble
from course_utils.errors import CourseError
from course_utils.settings import course_device
from course_utils.submission import Cell, contents, definitions, read_cells
from course_utils.survive_run import BATCH, PIECES, VAL_FRACTION, result_digests

SECONDS = 120.0  # for everything; children that are not done by then are ended
SECONDS_TO_DIE = 10.0
SECONDS_FOR_A_CUT = 3.0  # how long a write may take until it stands still
PAUSE = 0.003
ROWS = 1797
BATCHES = math.ceil((ROWS - int(ROWS * VAL_FRACTION)) / BATCH)  # of an epoch
PER_EPOCH = BATCHES + 1  # saves: one after each batch, one after the validation
WIDTH = 100


@dataclass(frozen=True)
class Kill:
    """One kill: how many saves were complete, in which moment it came, and how the process ended.

    moment: "forward" or "write". written: for a write, the bytes on disk when it stopped, and how many the last
    complete checkpoint has.
    """

    saves: int
    moment: str
    exit_code: int
    written: tuple[int, int] | None = None

    @property
    def place(self) -> str:
        """The moment in words."""
        where = place(self.saves)
        if self.moment == "forward":
            return f"in the forward pass of {where}"
        cut = f", {self.written[0]:,} of {self.written[1]:,} bytes written" if self.written else ""
        return f"while the checkpoint after {where} was being written{cut}"


def place(saves: int) -> str:
    """What is computed when so many saves are complete: a batch of an epoch, or its validation."""
    epoch, done = divmod(saves, PER_EPOCH)
    return f"batch {done + 1} of epoch {epoch + 1}" if done < BATCHES else f"the validation of epoch {epoch + 1}"


@dataclass
class Report:
    """What the kill test found.

    survived: nobody can tell that the run was killed. straight, resumed: results of the run that was left alone and
    of the last resumed process (best_model, history, epochs), None where a run did not come to its end. gaps: number
    of saves → largest difference of a weight or buffer as that batch begins, for every batch that both runs trained.
    kills: in order. findings: what differs and where to look, a sentence each.
    """

    survived: bool
    findings: list[str]
    kills: list[Kill] = field(default_factory=list)
    straight: dict[str, Any] | None = None
    resumed: dict[str, Any] | None = None
    gaps: dict[int, float] = field(default_factory=dict)
    batches: int = 0
    program: str = ""

    def __str__(self) -> str:
        lines = []
        if self.straight:
            epochs = self.straight["epochs"]
            lines.append(f"Left alone: {epochs} epochs, {self.batches} batches.")
        for number, kill in enumerate(self.kills, start=1):
            lines.append(f"Process {number}: killed {kill.place} (exit code {kill.exit_code}).")
        if self.resumed:
            lines.append(f"Process {len(self.kills) + 1}: resumed and came to its end.")
            one, two = result_digests(self.straight), result_digests(self.resumed)
            for name in one:
                equal = "equal" if one[name] == two[name] else "different"
                lines.append(f"SHA-256 of {name:8} {one[name][:16]}… and {two[name][:16]}…: {equal}")
        lines.append("The run survived." if self.survived else "The run did not survive.")
        lines += self.findings
        return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def kill_test(
    *,
    survivable_fit: Callable[..., Any] | None = None,
    split_digits: Callable[..., Any] | None = None,
    CheckpointFile: type | None = None,
    make: Callable[[], Any] | None = None,
    kills: int = 3,
    seed: int = 0,
    device: str | None = None,
    seconds: float = SECONDS,
) -> Report:
    """Assemble a program from the pieces, kill it `kills` times, resume it each time, and say what became of it.

    What is left out is the course's own. The second kill comes in the middle of writing a checkpoint, the others in
    the middle of an epoch; `seed` chooses the batches. Nothing outlives the call, neither process nor file. Raises
    CourseError when a piece cannot become part of a program, OSError where processes cannot be forked (Windows).
    """
    given = dict(zip(PIECES, (split_digits, CheckpointFile, make, survivable_fit), strict=True))
    return judge_program(assemble_program(given), kills=kills, seed=seed, device=device, seconds=seconds)


def assemble_program(pieces: Mapping[str, Callable[..., Any] | None]) -> str:
    """The program's text; for a piece that is None the child takes the course's own."""
    unknown = sorted(set(pieces) - set(PIECES))
    if unknown:
        raise CourseError(f"{', '.join(unknown)}: the pieces of the program are {', '.join(PIECES)}.")
    return assemble({name: piece for name, piece in pieces.items() if piece is not None})


def judge_program(
    program: str, *, kills: int = 3, seed: int = 0, device: str | None = None, seconds: float = SECONDS
) -> Report:
    """The kill test of a program given as text."""
    if not hasattr(os, "fork"):
        raise OSError("The kill test forks processes, which Windows cannot do. Use WSL or a hosted notebook.")
    deadline, device = time.monotonic() + seconds, device or course_device()
    with (
        tempfile.TemporaryDirectory(prefix="course-") as folder,
        _Stage(Path(folder), program, device, deadline) as stage,
    ):
        report = stage.play(kills, random.Random(seed))
    report.program = program
    return report


# --- the processes ----------------------------------------------------------------------------------------------------


class _Trouble(Exception):
    """A process did something other than being killed or coming to its end; the message is a finding."""


class _Server:
    """The process that has imported torch and forks one run after the other, in a session of their own."""

    def __init__(self, folder: Path, program: str, device: str) -> None:
        self.folder, self.device, self.log = folder, device, folder / "server.log"
        self.program = folder / "program.py"
        self.program.write_text(program, encoding="utf-8")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        packages = [str(Path(__file__).resolve().parent.parent), *filter(None, sys.path)]
        settings = {"PYTHONPATH": os.pathsep.join(packages), "OMP_NUM_THREADS": "1", "COURSE_DEVICE": self.device}
        settings |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTHONHASHSEED": "0"}
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "course_utils.survive_run", "--serve"],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.folder, env=os.environ | settings,
                start_new_session=True,
            )  # fmt: skip

    def order(self, **order: Any) -> None:
        """Let it fork a run."""
        order |= {"program": str(self.program), "device": self.device}
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Kill it and everything that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(OSError):
            self.process.stdin.close()
        self.process.wait()


class _Child:
    """One run of the program, and what it wrote down."""

    def __init__(self, server: _Server, name: str, checkpoint: Path, **order: Any) -> None:
        folder = server.folder
        self.trace, self.result, self.log = (folder / f"{name}.{end}" for end in ("trace", "result", "log"))
        self._ended = folder / f"{name}.ended"
        self.server, self.checkpoint = server, checkpoint
        self.events: list[dict[str, Any]] = []
        self._read = 0
        files = {"checkpoint": checkpoint, "trace": self.trace, "result": self.result, "log": self.log}
        server.order(**order, ended=str(self._ended), **{name: str(file) for name, file in files.items()})

    def poll(self) -> int | None:
        """Its exit code once it has ended; also when the server is gone."""
        with suppress(OSError, ValueError):
            return int(self._ended.read_text(encoding="utf-8"))
        return self.server.process.poll()

    def kill(self) -> int:
        """Send it SIGKILL; the exit code."""
        with suppress(ProcessLookupError, StopIteration):
            os.kill(next(event["pid"] for event in self.events if "pid" in event), signal.SIGKILL)
        give_up = time.monotonic() + SECONDS_TO_DIE
        while (code := self.poll()) is None:
            if time.monotonic() > give_up:
                raise _Trouble("A process that got SIGKILL did not end.")
            time.sleep(PAUSE)
        return code

    def last_words(self) -> str:
        """The last line that it printed, or the server where there is no such file."""
        for file in (self.log, self.server.log):
            with suppress(OSError):
                if lines := file.read_text(encoding="utf-8", errors="replace").strip().splitlines():
                    return lines[-1]
        return ""

    def news(self) -> list[dict[str, Any]]:
        """The events since the last look."""
        if not self.trace.exists():
            return []
        with open(self.trace, "rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        fresh = [json.loads(line) for line in whole.splitlines()]
        self.events += fresh
        return fresh

    def weights(self) -> tuple[np.ndarray, list[int]]:
        """What the model was as each batch began, a row each, and the number of saves before it."""
        keys = [event["batch"] for event in self.events if "batch" in event]
        file = self.trace.with_suffix(".weights")
        values = np.fromfile(file) if file.exists() else np.zeros(0)
        size = sum(math.prod(shape) for _, shape, _ in self.layout())
        rows = values[: len(values) // size * size].reshape(-1, size) if size else values.reshape(0, 0)
        return rows[: len(keys)], keys[: len(rows)]

    def layout(self) -> list[tuple[str, list[int], bool]]:
        """Weights and buffers in the order in which they were written down: name, shape, whether it holds floats."""
        return next((event["layout"] for event in self.events if "layout" in event), [])


class _Stage:
    """The folder, the clock and all processes of one test; leaving it ends every process."""

    def __init__(self, folder: Path, program: str, device: str, deadline: float) -> None:
        self.folder, self.deadline = folder, deadline
        self.place = folder / "run"
        self.place.mkdir()
        self.server = _Server(folder, program, device)

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def play(self, kills: int, draw: random.Random) -> Report:
        """The run that is left alone, the kills, the comparison."""
        checkpoint = self.place / "last.pt"
        straight = _Child(self.server, "alone", self.folder / "alone.pt")
        chain: list[_Child] = []
        found: list[Kill] = []
        try:
            self._until(straight, "end")
            total = sum("saved" in event for event in straight.events)
            _refuse_other_saves(total)
            saves = 0
            for stop, moment in choose_kills(total, kills, draw):
                order = {"resume": bool(chain), "saves": saves, "stop": stop, "moment": moment}
                chain.append(_Child(self.server, f"process{len(chain) + 1}", checkpoint, **order))
                if self._until(chain[-1], "here", "end") == "end":
                    break
                found.append(self._kill(chain[-1], moment))
                saves = found[-1].saves
            else:
                order = {"resume": bool(chain), "saves": saves}
                chain.append(_Child(self.server, f"process{len(chain) + 1}", checkpoint, **order))
                self._until(chain[-1], "end")
        except _Trouble as trouble:
            return Report(False, [str(trouble)], found, _result(straight), None)
        return compare(straight, chain, found)

    def _until(self, child: _Child, *wanted: str) -> str:
        """Wait for one of these events. Raises _Trouble when the child fails, forgets, or takes too long."""
        while True:
            code = child.poll()
            for event in child.news():
                if event.get("loaded") is False:
                    raise _Trouble(
                        "After the kill CheckpointFile.load returned None: there was no checkpoint. At every moment a "
                        "complete one has to be under the good name; look at CheckpointFile.save."
                    )
                if "error" in event:
                    raise _Trouble(self._what_failed(child, event))
                for name in wanted:
                    if name in event:
                        return name
            if code is not None:
                words = child.last_words()
                said = f" Its last line was: {words}" if words else ""
                raise _Trouble(
                    f"A process of the program ended by itself in {self._doing(child)} with exit code {code}.{said}"
                )
            if time.monotonic() > self.deadline:
                raise _Trouble(
                    f"The program was not done in time; it was in {self._doing(child)}, after "
                    f"{sum('saved' in event for event in child.events)} saves."
                )
            time.sleep(PAUSE)

    @staticmethod
    def _doing(child: _Child) -> str:
        return next((event["doing"] for event in reversed(child.events) if "doing" in event), "its imports")

    def _what_failed(self, child: _Child, event: dict[str, Any]) -> str:
        doing = self._doing(child)
        lines = "".join(f" ({line})" for line in event.get("lines", [])[-1:])
        text = f"{doing} raised {event['error']}{lines}."
        if doing == "CheckpointFile.load":
            size = _size(child.checkpoint)
            text += (
                f" The checkpoint that the kill left has {size:,} bytes and is not whole: it was written in place. "
                if size is not None
                else " There is no checkpoint where it should be. "
            )
            text += "Write to another name in the same folder, and move it over when it is whole: os.replace."
        elif "loaded" in {name for seen in child.events for name in seen}:
            text += " That was in a resumed process: print what the checkpoint holds."
        return text

    def _kill(self, child: _Child, moment: str) -> Kill:
        """Send SIGKILL, for a write when so many bytes are on disk as were allowed."""
        saves = max([event["saved"] for event in child.events if "saved" in event], default=None)
        if saves is None:
            saves = next((event["batch"] for event in child.events if "batch" in event), 0)
        written = None
        if moment == "write":
            cut = next(event["cut"] for event in reversed(child.events) if "cut" in event)
            whole = _size(child.checkpoint) or 0
            give_up = min(self.deadline, time.monotonic() + SECONDS_FOR_A_CUT)
            while time.monotonic() < give_up and child.poll() is None:
                if cut in map(_size, _files(self.place)) or any(
                    "here" in event and event["here"] == "written" for event in child.news()
                ):
                    break
                time.sleep(PAUSE)
            if cut in map(_size, _files(self.place)):
                written = cut, max(whole, 2 * cut)
        return Kill(saves, moment, child.kill(), written)


def _files(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [file for file in folder.rglob("*") if file.is_file()]
    return []


def _size(file: Path) -> int | None:
    """Bytes of a file, None where there is none: the program may remove or rename it at any moment."""
    with suppress(OSError):
        return file.stat().st_size
    return None


def choose_kills(total: int, kills: int, draw: random.Random) -> list[tuple[int, str]]:
    """When to kill: (save, moment), one in each part of the run, the last of several in the last epoch, all mid-epoch.

    A kill in a forward comes when `save` saves are complete, one in a write while that save is being made.
    """
    epochs = total // PER_EPOCH
    chosen = []
    for number in range(kills):
        first = epochs - 1 if number == kills - 1 > 0 else epochs * number // kills
        last = max(first, epochs * (number + 1) // kills - 1)
        epoch = draw.randint(first, last)
        batch = draw.randint(3, BATCHES - 3)
        chosen.append((epoch * PER_EPOCH + batch, "write" if number == 1 else "forward"))
    return sorted(chosen)


def _refuse_other_saves(total: int) -> None:
    if not total or total % PER_EPOCH:
        raise _Trouble(
            f"Left alone, the program called save {total} times. With {BATCHES} batches and one validation an epoch it "
            f"should be a multiple of {PER_EPOCH}: save after each batch, and after each validation."
        )


# --- comparing --------------------------------------------------------------------------------------------------------


def _result(child: _Child) -> dict[str, Any] | None:
    return torch.load(child.result, weights_only=True) if child.result.exists() else None


def compare(straight: _Child, chain: Sequence[_Child], kills: list[Kill]) -> Report:
    """The run that was left alone beside the one that was killed, step by step and in its result."""
    one, two = _result(straight), _result(chain[-1])
    expected = _steps(straight)
    found: dict[int, tuple[int, dict[str, Any], np.ndarray]] = {}  # of the last process that trained the batch
    for number, child in enumerate(chain):
        for key, (event, values) in _steps(child).items():
            found[key] = number, event, values
    masks = [np.full(math.prod(shape), is_float) for _, shape, is_float in straight.layout()]
    floats = np.concatenate(masks) if masks else np.zeros(0, bool)
    gaps = {key: _gap(expected[key][1], found[key][2], floats) for key in expected if key in found}
    report = Report(False, [], kills, one, two, gaps, len(expected))
    report.findings = _findings(straight, expected, found, one, two)
    report.survived = not report.findings
    if report.survived:
        report.findings = [
            f"Each of its {len(expected)} batches began with the same rows, weights, moments, rate and random state. "
            "Nobody can tell that it was killed."
        ]
    return report


def _steps(child: _Child) -> dict[int, tuple[dict[str, Any], np.ndarray]]:
    """For each number of saves the batch that began then."""
    values, keys = child.weights()
    events = [event for event in child.events if "batch" in event]
    return {key: (event, row) for key, event, row in zip(keys, events, values, strict=False)}


def _gap(one: np.ndarray, two: np.ndarray, floats: np.ndarray) -> float:
    """The largest difference; BatchNorm's whole-number counter counts only where nothing else differs."""
    if one.shape != two.shape:
        return math.inf
    if one.tobytes() == two.tobytes():
        return 0.0
    differences = np.abs(one - two)
    largest = float(np.max(differences[floats], initial=0.0)) or float(np.max(differences))
    return largest if math.isfinite(largest) else math.inf


def _findings(
    straight: _Child,
    expected: dict[int, tuple[dict[str, Any], np.ndarray]],
    found: dict[int, tuple[int, dict[str, Any], np.ndarray]],
    one: dict[str, Any],
    two: dict[str, Any],
) -> list[str]:
    """What differs first and where to look; nothing when the runs are the same."""
    for key in sorted(expected):
        if key not in found:
            return [f"No process trained {place(key)}: that batch was left out."]
        event, values = expected[key]
        number, other, other_values = found[key]
        clues = _clues(straight, expected, event, values, other, other_values)
        if clues:
            first = f"The first difference: {place(key)}, in process {number + 1}. As it begins:"
            same = result_digests(one) == result_digests(two)
            end = ["The result is the same all the same: what is wrong here costs time, not bits."] if same else []
            return [first, *(f"- {clue}" for clue in clues), *end]
    beyond = sorted(set(found) - set(expected))
    if beyond:
        return [
            f"The resumed run did not stop where the other did: it went on with {place(beyond[0])}, after "
            f"{one['epochs']} epochs. The counter of early stopping, or the best loss so far, belongs in the state."
        ]
    return _result_findings(one, two)


def _result_findings(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Differences of the results of two runs whose steps were the same."""
    findings = []
    if one["history"] != two["history"]:
        findings.append(
            f"The history has {len(two['history'])} losses instead of {len(one['history'])}"
            if len(two["history"]) != len(one["history"])
            else "The history has other losses"
        )
    if one["epochs"] != two["epochs"]:
        findings.append(f"epochs is {two['epochs']} instead of {one['epochs']}")
    if result_digests(one)["weights"] != result_digests(two)["weights"]:
        names = [name for name, value in one["best_model"].items() if not _same(value, two["best_model"].get(name))]
        first = f", {names[0]} first" if names else ""
        findings.append(f"best_model has other weights{first}")
    if not findings:
        return []
    return [
        "Every batch was the same; what is kept beside the steps was not. " + "; ".join(findings) + ".",
        "Look at what the state holds of history, best loss, best weights, and the counter.",
    ]


def _same(one: torch.Tensor, two: torch.Tensor | None) -> bool:
    return two is not None and one.dtype == two.dtype and torch.equal(one, two)


def _clues(
    straight: _Child,
    expected: dict[int, tuple[dict[str, Any], np.ndarray]],
    event: dict[str, Any],
    values: np.ndarray,
    other: dict[str, Any],
    other_values: np.ndarray,
) -> list[str]:
    """What a batch of the two runs began with, where it differs: a clause each, with where to look."""
    clues = []
    if event["rows"] != other["rows"]:
        twin = next((key for key, (seen, _) in expected.items() if seen["rows"] == other["rows"]), None)
        what = f"those of {place(twin)}" if twin is not None else "in an order that the other run never had"
        clues.append(
            f"its rows are {what}. Look at the position in the state: the epoch, the batches done, and an order made "
            "from seed + epoch."
        )
    if values.tobytes() != other_values.tobytes():
        clues.append(_weights_clue(straight, expected, values, other_values))
    if event["moments"] != other["moments"]:
        steps, others = int(event["steps"]), int(other["steps"])
        counted = f"they have seen {others} steps instead of {steps}" if steps != others else "with the same step count"
        clues.append(f"the optimizer's moments differ, {counted}. Look at the optimizer's state dict.")
    if event["rate"] != other["rate"]:
        clues.append(
            f"the learning rate is {other['rate']:.6g} instead of {event['rate']:.6g}. Look at the scheduler's state, "
            "and at the optimizer's, which holds the rate itself."
        )
    if event["random"] != other["random"]:
        clues.append("the random state is another one. Restore it last: building a model draws numbers.")
    return clues


def _weights_clue(
    straight: _Child,
    expected: dict[int, tuple[dict[str, Any], np.ndarray]],
    values: np.ndarray,
    other: np.ndarray,
) -> str:
    if values.shape != other.shape:
        return "the model has other parameters or buffers: make() built another one."
    twin = next((key for key, (_, seen) in expected.items() if seen.tobytes() == other.tobytes()), None)
    position = int(np.flatnonzero(_different(values, other))[0])
    numbers = f"is {other[position]:.6g} instead of {values[position]:.6g}"
    for name, shape, _ in straight.layout():
        size = math.prod(shape)
        if position < size:
            spot = f"[{', '.join(map(str, np.unravel_index(position, shape)))}]" if shape else ""
            clue = f"{name}{spot} {numbers}"
            break
        position -= size
    if twin is not None:
        return f"{clue}: all weights are those of {place(twin)}. Look at how the model's state is saved and loaded."
    buffers = "running_" in clue or "num_batches" in clue
    return clue + (
        ", and all parameters are right. Look at the buffers, and at evaluations in training mode."
        if buffers
        else ". The step before was another one."
    )


def _different(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return one.view(np.int64) != two.view(np.int64)


# --- the command line -------------------------------------------------------------------------------------------------


def program_of(file: Path) -> str:
    """A submission's imports, definitions and constants. Raises CourseError where pieces are missing."""
    cells = read_cells(file)
    for cell in cells:
        if problem := contents(cell.source).problem:
            raise CourseError(f"{file.name}: code cell {cell.number} has {problem}.")
    kept = [(cell, statement) for cell in cells for statement in definitions(cell.source)]
    text = "\n\n".join(
        "\n".join(cell.source.split("\n")[_first_line(statement) - 1 : statement.end_lineno])
        for cell, statement in _usable(kept)
    )
    missing = [name for name in PIECES if name != "make" and f" {name}(" not in text and f"class {name}" not in text]
    if missing:
        raise CourseError(f"{file.name} does not define {', '.join(missing)}.")
    return text + "\n"


def _usable(kept: Sequence[tuple[Cell, ast.stmt]]) -> Iterator[tuple[Cell, ast.stmt]]:
    """Without the assignments that use a name which no statement before them binds: it came from a call."""
    known = {"device", *dir(builtins)}
    for cell, statement in kept:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            used = {node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)}
            if not used <= known:
                continue
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            known |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            known.add(statement.name)
        else:
            known |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        yield cell, statement


def _first_line(statement: Any) -> int:
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge a submission; 0 when its run survives, 1 when not, 2 when there is nothing to judge."""
    parser = argparse.ArgumentParser(description="Kill a submission's training run, resume it, and compare.")
    parser.add_argument("file", type=Path, help="a notebook or percent script of the capstone")
    parser.add_argument("--seed", type=int, default=None, help="chooses the moments of the kills; random without it")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args(arguments)
    seed = random.randrange(10_000) if options.seed is None else options.seed
    try:
        report = judge_program(program_of(options.file), kills=options.kills, seed=seed, seconds=options.seconds)
    except CourseError as error:
        print(error)
        return 2
    print(f"{options.file.name}, seed {seed}")
    print(report)
    return 0 if report.survived else 1


if __name__ == "__main__":
    sys.exit(main())
