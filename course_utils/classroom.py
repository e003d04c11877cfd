"""Grade a class: each submission runs in a process of its own, and is judged here, where no submission runs."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from course_utils.diagnose import is_right
from course_utils.errors import CourseError
from course_utils.exercise import Exercise, exercise_weeks, load_exercise
from course_utils.judge import ERROR, NOT_ATTEMPTED, Verdict, judge, not_attempted
from course_utils.run import CaseRun, Undisturbed, course_seed
from course_utils.submission import Cell, defined_names, definitions, read_cells, suspicious_imports
from course_utils.worker import ENDED, FRAME, KILL, decode_run

SECONDS_TO_START = 60.0
SECONDS_TO_END = 10.0
LARGEST_REPORT = 64 * 2**20


@dataclass
class Row:
    """How one exercise of one submission was graded; `outcome` is one of the four words of `course_utils.judge`."""

    submission: str
    exercise: str
    outcome: str
    misconception: str | None = None
    message: str = ""
    seconds: float = 0.0
    flags: list[str] = field(default_factory=list)


@dataclass
class Submission:
    """A file to grade: its name in the report, its code cells, and the exercises that get a row."""

    name: str
    path: Path
    cells: list[Cell]
    exercises: list[str]
    problem: str = ""


def grade_class(
    paths: Iterable[Path],
    *,
    device: str = "cpu",
    jobs: int = 2,
    seconds: float = 10.0,
    seed: int | None = None,
) -> Iterator[list[Row]]:
    """Grade every submission below the paths, `jobs` at a time; yields the rows of one submission after the other.

    seconds: how long one exercise may take. The same submission gives the same rows, whatever is graded beside it.
    Raises CourseError when there is nothing to grade.
    """
    files = list(find_files(paths))
    if not files:
        raise CourseError("There is no .ipynb or .py file in what you gave; name files, or a folder that holds them.")
    seed = 1000 * course_seed() + 500 if seed is None else seed
    judge_process = RememberingProcess(seed, device)
    workers = Workers(jobs, weeks_named(files), seed=seed, device=device, seconds=seconds)
    pool = ThreadPoolExecutor(2 * jobs)

    def run(file: tuple[Path, str]) -> tuple[Submission, dict[str, Report]]:
        submission = open_submission(*file)
        return submission, workers.run(submission)

    try:
        for submission, reports in _in_order(pool, run, files, 2 * jobs):
            with judge_process:
                rows = judge_submission(submission, reports, judge_process)
            yield rows
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        workers.close()  # which ends what the pool's threads are waiting for
        pool.shutdown()


def weeks_named(files: Iterable[tuple[Path, str]]) -> set[str]:
    """The weeks of all exercises that the files seem to define; a quick look, to know what to prepare."""
    known, names = exercise_weeks(), set[str]()
    for path, _ in files:
        with suppress(OSError):
            names |= {name.decode() for name in re.findall(rb"\b(?:def|class)\s+(\w+)", path.read_bytes())}
    return {known[name] for name in names & known.keys()}


def _in_order(pool: Executor, function: Callable[[Any], Any], items: list[Any], ahead: int) -> Iterator[Any]:
    """The function's results in order, computed in the pool, never further ahead than that."""
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


class RememberingProcess(Undisturbed):
    """Runs each of the course's own implementations once and remembers what was seen: the draws never change."""

    def __init__(self, seed: int, device: str) -> None:
        super().__init__(seed, device)
        self._seen: dict[tuple[Any, bool], list[CaseRun]] = {}

    def run_cases(
        self, exercise: Exercise, implementation: Callable[..., Any], *, detail: bool = False, refuse: bool = False
    ) -> list[CaseRun]:
        key = implementation, detail
        if key not in self._seen:
            self._seen[key] = super().run_cases(exercise, implementation, detail=detail, refuse=refuse)
        return self._seen[key]


def write_json(rows: list[Row], file: Path) -> None:
    """Write `{"results": [...]}`, complete or not at all."""
    text = json.dumps({"results": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(file)


def find_files(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """The submissions below the paths, each with its name in the report, in order. Raises CourseError where none is."""
    for path in paths:
        if not path.exists():
            raise CourseError(f"{path}: there is no such file or folder.")
        if path.is_file():
            yield path, path.name
            continue
        files = sorted(file for file in path.rglob("*") if file.suffix in (".ipynb", ".py") and file.is_file())
        for file in files:
            relative = file.relative_to(path)
            if not any(part.startswith((".", "__")) for part in relative.parts):
                yield file, relative.as_posix()


def open_submission(path: Path, name: str) -> Submission:
    """Read a submission and decide which exercises it is graded on: those of every week it touches, by what it
    defines or by a file name such as week01_anything."""
    known = exercise_weeks()
    weeks = {path.stem.split("_")[0]} & set(known.values())
    try:
        cells = read_cells(path)
    except CourseError as error:
        return Submission(name, path, [], [e for e, week in known.items() if week in weeks], str(error))
    weeks |= {known[defined] for defined in defined_names(cells) if defined in known}
    exercises = [exercise for exercise, week in known.items() if week in weeks]
    problem = "" if exercises else f"{path.name} defines none of the course's exercises."
    return Submission(name, path, cells, exercises, problem)


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What the worker wrote about an exercise, how long it took, what it noticed, and why there is nothing if so."""

    data: dict[str, Any] | None
    seconds: float
    died: str = ""
    flags: list[str] = field(default_factory=list)


class Workers:
    """Runs submissions, `jobs` at a time, each in a process that ends with it; see `course_utils.worker`.

    On Linux a fork server prepares everything once. Elsewhere each process starts from nothing, which takes seconds.
    """

    def __init__(self, jobs: int, weeks: set[str], *, seed: int, device: str, seconds: float) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="course-")
        self._settings = {"seed": seed, "device": device, "seconds": seconds, "scratch": self._scratch.name}
        self._free: queue.Queue[_ForkedSlot | _SpawnedSlot] = queue.Queue()
        make = _ForkedSlot.start if hasattr(os, "pidfd_open") else _SpawnedSlot.start
        self._slots = make(jobs, weeks, self._scratch.name)
        for slot in self._slots:
            self._free.put(slot)

    def run(self, submission: Submission) -> dict[str, Report]:
        """What was seen of each exercise. When one of them ends its process, the rest goes on in a new one."""
        reports: dict[str, Report] = {}
        if submission.problem:
            return reports
        slot = self._free.get()
        try:
            while remaining := [name for name in submission.exercises if name not in reports]:
                task = {"file": submission.path.name, "cells": submission.cells, "exercises": remaining}
                reports.update(_collect(slot, {**task, **self._settings}))
                if remaining[0] not in reports:
                    break
        finally:
            self._free.put(slot)
        return reports

    def close(self) -> None:
        """End all processes and remove their files."""
        for slot in self._slots:
            slot.end()
        for slot in self._slots:
            slot.close()
        self._scratch.cleanup()


def _collect(slot: _ForkedSlot | _SpawnedSlot, task: dict[str, Any]) -> dict[str, Report]:
    """Read a worker's lines until it ends; the exercise it was at when it ended gets a report that says so."""
    exercises, seconds = task["exercises"], task["seconds"]
    reports: dict[str, Report] = {}
    flags: list[str] = []
    current, started, room = "", time.monotonic(), LARGEST_REPORT
    for line in slot.lines(task, seconds):
        room -= len(line)
        if room < 0:
            continue
        try:
            data = json.loads(line)
            noticed = [str(flag)[:200] for flag in data.get("flags", ())][:20]
        except (ValueError, RecursionError, AttributeError, TypeError):
            room = 0  # nothing that follows can be trusted
            slot.kill()
            continue
        if data.get("begins") in exercises:
            current, started = data["begins"], time.monotonic()
            slot.extend(2 * seconds + 5)
        elif data.get("exercise") == current and current:
            reports[current] = Report(data, time.monotonic() - started, flags=flags + noticed)
            current = ""
        elif not reports:
            flags += noticed
    if current or not reports:
        seconds = time.monotonic() - started
        for name in [current] if current else exercises:  # before the first begins, all of them share the reason
            reports[name] = Report(None, seconds, slot.reason(), flags)
    return reports


class _Slot:
    """A place for one worker at a time."""

    late = False

    def kill(self) -> None:
        """End the worker that is running."""
        raise NotImplementedError

    def extend(self, seconds: float) -> None:
        """Give the worker that long from now."""
        self._deadline = time.monotonic() + seconds

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _expire(self) -> None:
        self.late = True
        self.kill()

    def reason(self) -> str:
        """Why the last worker ended, in words."""
        if self.late:
            return "it did not come to an end in its time and was stopped"
        code = self._exit_code
        if code is None:
            return "the process that ran it was lost"
        return f"it was killed by signal {-code}" if code < 0 else f"it ended the whole process (exit code {code})"


class _ForkedSlot(_Slot):
    """Talks to one process of a fork server, and starts a server anew when that process is lost."""

    def __init__(self, weeks: set[str], scratch: str) -> None:
        self._weeks, self._scratch = weeks, scratch
        self._log = Path(scratch, f"server_{id(self)}.log")
        self._servers: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self._exit_code: int | None = None

    @classmethod
    def start(cls, jobs: int, weeks: set[str], scratch: str) -> list[_ForkedSlot]:
        """The slots of one new server."""
        slots = [cls(weeks, scratch) for _ in range(jobs)]
        cls._serve(slots)
        return slots

    @staticmethod
    def _serve(slots: list[_ForkedSlot]) -> None:
        pairs = [socket.socketpair() for _ in slots]
        numbers = [theirs.fileno() for _, theirs in pairs]
        weeks = ",".join(sorted(slots[0]._weeks))
        with open(slots[0]._log, "wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "course_utils.worker", "--serve", weeks, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=slots[0]._scratch,
                pass_fds=numbers,
                start_new_session=True,
                env=_environment() | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},  # else a look at CUDA rules out forking
            )
        for slot, (ours, theirs) in zip(slots, pairs, strict=True):
            theirs.close()
            slot._socket, slot._ready = ours, False
            slot._servers.append(server)

    def lines(self, task: dict[str, Any], seconds: float) -> Iterator[bytes]:
        """Run a task and yield the lines its worker writes, as they come."""
        self.late, self._exit_code = False, None
        self.extend(seconds + SECONDS_TO_START)
        try:
            if not self._ready:
                self._frame()
                self._ready = True
            self._socket.sendall(json.dumps(task).encode() + b"\n")
            self.extend(2 * seconds + 5)
            yield from self._worker_lines()
        except OSError as error:
            self._socket.close()
            if self._closed:
                return
            if not self._ready:
                said = self._log.read_text(errors="replace").strip().split("\n")[-1]
                raise CourseError(f"The process that runs submissions did not start: {said}") from error
            self._serve([self])

    def _worker_lines(self) -> Iterator[bytes]:
        rest = b""
        while True:
            kind, data = self._frame()
            if kind == ENDED:
                self._exit_code = int(data)
                return
            *whole, rest = (rest + data).split(b"\n")
            yield from whole
            if len(rest) > LARGEST_REPORT:
                rest = b""
                self._expire()

    def _frame(self) -> tuple[bytes, bytes]:
        kind, length = FRAME.unpack(self._receive(FRAME.size))
        return kind, self._receive(length)

    def _receive(self, count: int) -> bytes:
        """Exactly that many bytes. Raises OSError when the other side is gone or stays silent after a kill."""
        data = bytearray()
        while len(data) < count:
            self._socket.settimeout(max(self._left(), 0.01))
            try:
                part = self._socket.recv(min(count - len(data), 2**20))
            except TimeoutError:
                if self._left() < -SECONDS_TO_END:
                    raise
                if not self.late:
                    self._expire()
                    self.extend(SECONDS_TO_END)
                continue
            if not part:
                raise ConnectionResetError
            data += part
        return bytes(data)

    def kill(self) -> None:
        with suppress(OSError):
            self._socket.sendall(KILL)

    def end(self) -> None:
        """End the slot and its worker."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Wait until the server has ended, which it does with its last slot."""
        self._socket.close()
        for server in self._servers:
            with suppress(subprocess.TimeoutExpired):
                server.wait(SECONDS_TO_END)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


class _SpawnedSlot(_Slot):
    """Starts a Python of its own for every task, for platforms on which torch cannot fork."""

    _worker: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, jobs: int, weeks: set[str], scratch: str) -> list[_SpawnedSlot]:
        """As many as asked for."""
        return [cls() for _ in range(jobs)]

    def lines(self, task: dict[str, Any], seconds: float) -> Iterator[bytes]:
        """Run a task and yield the lines its worker writes, as they come."""
        self.late = False
        self.extend(2 * seconds + SECONDS_TO_START)
        with tempfile.TemporaryDirectory(prefix="course-", dir=task["scratch"]) as scratch:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "course_utils.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=scratch,
                start_new_session=True,
                env=_environment() | {"TMPDIR": scratch},
            )
            watch = threading.Thread(target=self._watch, args=(self._worker,), daemon=True)
            watch.start()
            try:
                with suppress(BrokenPipeError):
                    self._worker.stdin.write(json.dumps(task).encode() + b"\n")
                    self._worker.stdin.close()
                yield from iter(lambda: self._worker.stdout.readline(LARGEST_REPORT), b"")
            finally:
                self._worker.stdout.close()
                self.kill()
                self._worker.wait()
                watch.join()

    def _watch(self, worker: subprocess.Popen[bytes]) -> None:
        while worker.poll() is None:
            if self._left() < 0:
                self._expire()
            time.sleep(0.1)

    @property
    def _exit_code(self) -> int:
        return self._worker.wait()

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._worker.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._worker.kill()

    def end(self) -> None:
        """End the worker that is running, if one is."""
        if self._worker is not None:
            self.kill()

    def close(self) -> None:
        """Nothing waits between tasks."""


def _environment() -> dict[str, str]:
    """That of a worker: this one's, with one thread and this package found first."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


# --- judging ----------------------------------------------------------------------------------------------------------


def judge_submission(submission: Submission, reports: dict[str, Report], process: Undisturbed) -> list[Row]:
    """The rows of one submission, from what its workers reported."""
    if submission.problem:
        names = submission.exercises or [""]
        return [Row(submission.name, name, ERROR, message=submission.problem) for name in names]
    imports = suspicious_imports(submission.cells)
    _, syntax = definitions(submission.cells)
    rows = []
    for name in submission.exercises:
        row = _judge_exercise(submission.name, name, reports.get(name), process)
        broken = [sentence for number, sentence in syntax.items() if _mentions(submission.cells, number, name)]
        if row.outcome == NOT_ATTEMPTED and broken:
            row.outcome, row.message = ERROR, broken[-1]
        report = reports.get(name)
        row.flags = list(dict.fromkeys([*imports, *(report.flags if report else [])]))
        rows.append(row)
    return rows


def _mentions(cells: list[Cell], number: int, name: str) -> bool:
    return any(
        cell.number == number and (f"def {name}" in cell.source or f"class {name}" in cell.source) for cell in cells
    )


def _judge_exercise(submission: str, name: str, report: Report | None, process: Undisturbed) -> Row:
    row = Row(submission, name, ERROR, seconds=round(report.seconds, 3) if report else 0.0)
    if report is None or report.data is None:
        row.message = f"{name} could not be graded: {report.died if report else 'its process did not start'}."
        return row
    exercise, data = load_exercise(name), report.data
    if data.get("untouched"):
        row.outcome, row.message = NOT_ATTEMPTED, not_attempted(exercise).message
    elif "problem" in data:
        row.outcome = ERROR if data["problem"] else NOT_ATTEMPTED
        row.message = str(data["problem"]) or f"{name} is not defined in this submission."
    else:
        try:
            verdict = _judge_runs(exercise, data["runs"], process)
        except Exception as error:  # the process can write anything, and nothing it writes may end the batch
            row.message = f"{name} could not be graded: its process reported something unreadable ({error})."
            return row
        row.outcome, row.misconception, row.message = (
            verdict.outcome,
            verdict.misconception,
            verdict.message,
        )
    return row


def _judge_runs(exercise: Exercise, runs: list[dict[str, Any]], process: Undisturbed) -> Verdict:
    """Judge encoded runs; their calls, most of what there is to decode, only where something is wrong."""
    seen = [decode_run(run, calls=False) for run in runs]
    if not is_right(exercise, seen, process.run_cases(exercise, exercise.reference, detail=True)):
        seen = [decode_run(run) for run in runs]
    return judge(exercise, seen, process)
