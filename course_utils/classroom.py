"""Grade a class: each submission runs in a process of its own, and is judged here, where no submission runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.exercise import exercise_weeks, load_exercise
from course_utils.judge import ERROR, NOT_ATTEMPTED, judge, not_attempted
from course_utils.run import Undisturbed, course_seed
from course_utils.submission import Cell, defined_names, definitions, read_cells, suspicious_imports
from course_utils.worker import decode_run

SECONDS_TO_START = 60.0
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
    submissions = list(find_submissions(paths))
    if not submissions:
        raise CourseError("There is no .ipynb or .py file in what you gave; name files, or a folder that holds them.")
    seed = 1000 * course_seed() + 500 if seed is None else seed
    with ThreadPoolExecutor(jobs) as pool:
        reports = pool.map(lambda submission: run_submission(submission, seed, device, seconds), submissions)
        for submission, report in zip(submissions, reports, strict=True):
            with Undisturbed(seed, device) as process:
                rows = judge_submission(submission, report, process)
            yield rows


def write_json(rows: list[Row], file: Path) -> None:
    """Write `{"results": [...]}`, complete or not at all."""
    text = json.dumps({"results": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(file)


def find_submissions(paths: Iterable[Path]) -> Iterator[Submission]:
    """The submissions below the paths, in order of their names. Raises CourseError for a path that does not exist."""
    for path in paths:
        if not path.exists():
            raise CourseError(f"{path}: there is no such file or folder.")
        if path.is_file():
            yield open_submission(path, path.name)
            continue
        files = sorted(file for file in path.rglob("*") if file.suffix in (".ipynb", ".py") and file.is_file())
        for file in files:
            relative = file.relative_to(path)
            if not any(part.startswith((".", "__")) for part in relative.parts):
                yield open_submission(file, relative.as_posix())


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
    """What the worker wrote about an exercise, how long it took, and why there is nothing when there is nothing."""

    data: dict[str, Any] | None
    seconds: float
    died: str = ""


def run_submission(submission: Submission, seed: int, device: str, seconds: float) -> dict[str, Report]:
    """Run the exercises in a worker; when one kills it, go on with the rest in a new one."""
    reports: dict[str, Report] = {}
    if submission.problem:
        return reports
    while remaining := [name for name in submission.exercises if name not in reports]:
        reports.update(_run_worker(submission, remaining, seed, device, seconds))
        if remaining[0] not in reports:
            break
    return reports


def _run_worker(
    submission: Submission, exercises: list[str], seed: int, device: str, seconds: float
) -> dict[str, Report]:
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(prefix="course-") as scratch, os.fdopen(reading, "rb") as pipe:
        task = {
            "file": submission.path.name,
            "cells": submission.cells,
            "exercises": exercises,
            "seed": seed,
            "device": device,
            "seconds": seconds,
            "pipe": writing,
        }
        here = str(Path(__file__).resolve().parent.parent)
        worker = subprocess.Popen(
            [sys.executable, "-m", "course_utils.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=scratch,
            pass_fds=(writing,),
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": scratch, "PYTHONPATH": here},
        )
        os.close(writing)
        watch = _Watch(worker, SECONDS_TO_START)
        try:
            worker.stdin.write(json.dumps(task).encode())
            worker.stdin.close()
            return _collect(pipe, watch, exercises, seconds)
        except BrokenPipeError:
            return {exercises[0]: Report(None, 0.0, "the process that ran it did not start")}
        finally:
            watch.kill()
            worker.wait()


def _collect(pipe: Any, watch: _Watch, exercises: list[str], seconds: float) -> dict[str, Report]:
    """Read the worker's lines until it ends; the exercise it was at when it ended gets a report that says so."""
    reports: dict[str, Report] = {}
    current, started, room = "", time.monotonic(), LARGEST_REPORT
    while line := pipe.readline(room):
        room -= len(line)
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(data, dict):
            break
        if data.get("begins") in exercises:
            current, started = data["begins"], time.monotonic()
            watch.extend(2 * seconds + 5)
        elif data.get("exercise") == current:
            reports[current] = Report(data, time.monotonic() - started)
            current = ""
    if current or not reports:
        seconds = time.monotonic() - started
        for name in [current] if current else exercises:  # before the first begins, all of them share the reason
            reports[name] = Report(None, seconds, watch.reason())
    return reports


class _Watch:
    """Kills a worker and everything it started when its time is over."""

    def __init__(self, worker: subprocess.Popen[bytes], seconds: float) -> None:
        self.worker, self.late = worker, False
        self.extend(seconds)

    def extend(self, seconds: float) -> None:
        """Give it that long from now."""
        if hasattr(self, "_timer"):
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def _ring(self) -> None:
        self.late = True
        self.kill()

    def kill(self) -> None:
        """End the worker's whole process group."""
        self._timer.cancel()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.worker.pid, signal.SIGKILL)

    def reason(self) -> str:
        """Why the worker ended, in words."""
        if self.late:
            return "it did not come to an end in its time and was stopped"
        code = self.worker.wait()
        return f"it was killed by signal {-code}" if code < 0 else f"it ended the whole process (exit code {code})"


# --- judging ----------------------------------------------------------------------------------------------------------


def judge_submission(submission: Submission, reports: dict[str, Report], process: Undisturbed) -> list[Row]:
    """The rows of one submission, from what its workers reported."""
    if submission.problem:
        names = submission.exercises or [""]
        return [Row(submission.name, name, ERROR, message=submission.problem) for name in names]
    flags = suspicious_imports(submission.cells)
    _, syntax = definitions(submission.cells)
    rows = []
    for name in submission.exercises:
        row = _judge_exercise(submission.name, name, reports.get(name), process)
        broken = [sentence for number, sentence in syntax.items() if _mentions(submission.cells, number, name)]
        if row.outcome == NOT_ATTEMPTED and broken:
            row.outcome, row.message = ERROR, broken[-1]
        row.flags = list(flags)
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
            verdict = judge(exercise, [decode_run(run) for run in data["runs"]], process)
        except Exception as error:  # the process can write anything, and nothing it writes may end the batch
            row.message = f"{name} could not be graded: its process reported something unreadable ({error})."
            return row
        row.outcome, row.misconception, row.message = (
            verdict.outcome,
            verdict.misconception,
            verdict.message,
        )
    return row
