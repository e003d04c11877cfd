"""Grade a class: each submission runs in a process of its own, and is judged here, where no submission runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from course_utils.diagnose import is_right
from course_utils.errors import CourseError
from course_utils.exercise import Exercise, exercise_weeks, load_exercise
from course_utils.judge import ERROR, NOT_ATTEMPTED, Verdict, judge, not_attempted
from course_utils.results import Graded, Row
from course_utils.run import CaseRun, Undisturbed, course_seed
from course_utils.source import solution_source
from course_utils.submission import Cell, contents, read_cells
from course_utils.worker import decode_run
from course_utils.workers import Report, Workers


@dataclass
class Submission:
    """A file to grade: its name in the report, its code cells, and the exercises that get a row.

    digest: of the file's content. problem: a sentence when it cannot be graded at all.
    """

    name: str
    path: Path
    digest: str
    cells: list[Cell] = field(default_factory=list)
    exercises: list[str] = field(default_factory=list)
    problem: str = ""


def grade_class(
    files: Iterable[tuple[Path, str]],
    *,
    week: str = "",
    device: str = "cpu",
    jobs: int = 2,
    seconds: float = 10.0,
    seed: int | None = None,
) -> Iterator[Graded]:
    """Grade the submissions, `jobs` at a time, and yield them in order.

    files: paths with the names they get, as `find_files` gives them. week: grade this week alone. seconds: how long one
    exercise may take. The same submission gives the same rows, whatever is graded beside it.
    """
    files = list(files)
    with_seed = class_seed() if seed is None else seed
    process = RememberingProcess(with_seed, device)
    weeks = {week} if week else weeks_named(files)
    workers = Workers(jobs, weeks, seed=with_seed, device=device, seconds=seconds)
    pool = ThreadPoolExecutor(2 * jobs)

    def run(file: tuple[Path, str]) -> tuple[Submission, dict[str, Report]]:
        return run_submission(open_submission(*file, week), workers)

    try:
        for submission, reports in _in_order(pool, run, files, 2 * jobs):
            yield judge_submission(submission, reports, process)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        workers.close()  # which ends what the pool's threads are waiting for
        pool.shutdown()


def class_seed() -> int:
    """The seed of the draws that grade a class: far from those of `check`, and moved by COURSE_SEED."""
    return 1000 * course_seed() + 500


def _in_order(pool: Executor, function: Callable[[Any], Any], items: list[Any], ahead: int) -> Iterator[Any]:
    """The function's results in order, computed in the pool, never further ahead than that."""
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


# --- submissions ------------------------------------------------------------------------------------------------------


def find_files(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """The submissions below the paths, each with its name in the report, in order.

    Raises CourseError when a path does not exist, or none holds a notebook or script.
    """
    found: list[tuple[Path, str]] = []
    for path in paths:
        if not path.exists():
            raise CourseError(f"{path}: there is no such file or folder.")
        if path.is_file():
            found.append((path, path.name))
            continue
        files = sorted(file for file in path.rglob("*") if file.suffix in (".ipynb", ".py") and file.is_file())
        for file in files:
            relative = file.relative_to(path)
            if not any(part.startswith((".", "__")) for part in relative.parts):
                found.append((file, relative.as_posix()))
    if not found:
        raise CourseError("There is no .ipynb or .py file in what you gave; name files, or a folder that holds them.")
    return found


def open_submission(path: Path, name: str, week: str = "") -> Submission:
    """Read a submission and decide which exercises it is graded on.

    Those of `week`, or without one those of every week it touches, by what it defines or by a file name such as
    week01_anything.
    """
    known = exercise_weeks()
    weeks = {week} if week else {path.stem.split("_")[0]} & set(known.values())
    submission = Submission(name, path, file_digest(path))
    try:
        submission.cells = read_cells(path)
    except CourseError as error:
        submission.problem = str(error)
    if not week:
        names = {name for cell in submission.cells for name in contents(cell.source).names}
        weeks |= {known[name] for name in names & known.keys()}
    submission.exercises = [exercise for exercise, of in known.items() if of in weeks]
    if not submission.exercises and not submission.problem:
        submission.problem = f"{path.name} defines none of the course's exercises."
    return submission


def file_digest(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weeks_named(files: Iterable[tuple[Path, str]]) -> set[str]:
    """The weeks of all exercises that the files seem to define; a quick look, to know what to prepare."""
    known, names = exercise_weeks(), set[str]()
    for path, _ in files:
        with suppress(OSError):
            names |= {name.decode() for name in re.findall(rb"\b(?:def|class)\s+(\w+)", path.read_bytes())}
    return {known[name] for name in names & known.keys()}


def run_submission(submission: Submission, workers: Workers) -> tuple[Submission, dict[str, Report]]:
    """The submission, and what was seen of each of its exercises."""
    if submission.problem:
        return submission, {}
    cells = [cell for cell in submission.cells if contents(cell.source).is_run]
    return submission, workers.run(submission.path.name, cells, submission.exercises)


# --- judging ----------------------------------------------------------------------------------------------------------


class RememberingProcess(Undisturbed):
    """Runs each of the course's own implementations once and remembers what was seen: the draws never change.

    It also remembers verdicts: many answers of a class are seen alike.
    """

    def __init__(self, seed: int, device: str) -> None:
        super().__init__(seed, device)
        self._seen: dict[tuple[Any, bool], list[CaseRun]] = {}
        self.judged = lru_cache(maxsize=1_000)(self._judge)

    def run_cases(
        self, exercise: Exercise, implementation: Callable[..., Any], *, detail: bool = False, refuse: bool = False
    ) -> list[CaseRun]:
        """What `Undisturbed.run_cases` gives; never for an answer, so `refuse` has no say."""
        key = implementation, detail
        if key not in self._seen:
            self._seen[key] = super().run_cases(exercise, implementation, detail=detail)
        return self._seen[key]

    def _judge(self, name: str, line: bytes) -> Verdict:
        """The verdict on what a worker wrote; the calls, most of that, are decoded only where something is wrong."""
        exercise, runs = load_exercise(name), json.loads(line)["runs"]
        seen = [decode_run(run, calls=False) for run in runs]
        if not is_right(exercise, seen, self.run_cases(exercise, exercise.reference, detail=True)):
            seen = [decode_run(run) for run in runs]
        return judge(exercise, seen, self)


def judge_submission(submission: Submission, reports: dict[str, Report], process: RememberingProcess) -> Graded:
    """The rows of one submission, from what its workers reported."""
    if submission.problem:
        names = submission.exercises or [""]
        rows = [Row(submission.name, name, ERROR, message=submission.problem) for name in names]
        return Graded(submission.name, submission.digest, rows, {})
    with process:
        rows = _judge_exercises(submission, reports, process)
    digests = {name: digest for cell in submission.cells for name, digest in contents(cell.source).digests.items()}
    attempted = [row.exercise for row in rows if row.outcome != NOT_ATTEMPTED]
    answers = {name: digests[name] for name in attempted if name in digests}
    for row in rows:
        if row.exercise in answers and answers[row.exercise] == _digest_of_solution(row.exercise):
            row.flags.append("the course's own solution, word for word")
    return Graded(submission.name, submission.digest, rows, answers)


@cache
def _digest_of_solution(name: str) -> str:
    return contents(solution_source(load_exercise(name))).digests.get(name, "")


def _judge_exercises(submission: Submission, reports: dict[str, Report], process: RememberingProcess) -> list[Row]:
    imports = dict.fromkeys(f"imports {m}" for cell in submission.cells for m in contents(cell.source).imports)
    unreadable = [cell for cell in submission.cells if contents(cell.source).problem]
    rows = []
    for name in submission.exercises:
        row = _judge_exercise(submission.name, name, reports.get(name), process)
        broken = [cell for cell in unreadable if f"def {name}" in cell.source or f"class {name}" in cell.source]
        if row.outcome == NOT_ATTEMPTED and broken:
            row.outcome = ERROR
            row.message = f"code cell {broken[-1].number} has {contents(broken[-1].source).problem}"
        report = reports.get(name)
        row.flags = list(dict.fromkeys([*imports, *(report.flags if report else [])]))
        rows.append(row)
    return rows


def _judge_exercise(submission: str, name: str, report: Report | None, process: RememberingProcess) -> Row:
    row = Row(submission, name, ERROR, seconds=round(report.seconds, 3) if report else 0.0)
    if report is None or report.data is None:
        row.message = f"{name} could not be graded: {report.died if report else 'its process did not start'}."
        return row
    data = report.data
    if data.get("untouched"):
        row.outcome, row.message = NOT_ATTEMPTED, not_attempted(load_exercise(name)).message
    elif "problem" in data:
        row.outcome = ERROR if data["problem"] else NOT_ATTEMPTED
        row.message = str(data["problem"]) or f"{name} is not defined in this submission."
    else:
        try:
            verdict = process.judged(name, report.line)
        except Exception as error:  # the process can write anything, and nothing it writes may end the batch
            row.message = f"{name} could not be graded: its process reported something unreadable ({error})."
            return row
        row.outcome, row.misconception, row.message = (
            verdict.outcome,
            verdict.misconception,
            verdict.message,
        )
    return row
