"""Judge what the workers saw of a submission, in a process where no submission runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from course_utils.diagnose import is_right
from course_utils.exercise import Case, Exercise, exercise_weeks, load_exercise
from course_utils.judge import ERROR, NOT_ATTEMPTED, Verdict, judge, not_attempted
from course_utils.results import Graded, Row
from course_utils.run import CaseRun, Undisturbed
from course_utils.source import solution_source
from course_utils.submission import Submission, contents, read_cells
from course_utils.worker import decode_run
from course_utils.workers import Report


class RememberingProcess(Undisturbed):
    """Runs each of the course's own implementations once and remembers what was seen: the draws never change.

    It also remembers verdicts: many answers of a class are seen alike.
    """

    def __init__(self, seed: int, device: str) -> None:
        super().__init__(seed, device)
        self._seen: dict[tuple[Any, bool], list[CaseRun]] = {}
        self.judged = lru_cache(maxsize=1_000)(self._judge)

    def run_cases(
        self,
        exercise: Exercise,
        implementation: Callable[..., Any],
        *,
        detail: bool = False,
        refuse: bool = False,
        cases: Sequence[Case] | None = None,
    ) -> list[CaseRun]:
        """What `Undisturbed.run_cases` gives; never for an answer, so `refuse` has no say."""
        key = implementation, detail
        if key not in self._seen:
            self._seen[key] = super().run_cases(exercise, implementation, detail=detail)
        names = [case.name for case in (exercise.cases if cases is None else cases)]
        return [run for run in self._seen[key] if run.case in names]

    def _judge(self, name: str, line: bytes) -> Verdict:
        """The verdict on what a worker wrote; the calls, most of that, are decoded only where something is wrong."""
        exercise, runs = load_exercise(name), json.loads(line)["runs"]
        seen = [decode_run(run, calls=False) for run in runs]
        reference = self.run_cases(exercise, exercise.reference, detail=True)
        if not is_right(exercise, seen, reference):
            seen = [decode_run(run) for run in runs]
        return judge(exercise, seen, reference, self)


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
    expected = {module for name in submission.exercises for module in _lesson_imports(exercise_weeks()[name])}
    imported = [module for cell in submission.cells for module in contents(cell.source).imports]
    imports = dict.fromkeys(f"imports {module}" for module in imported if module not in expected)
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


@cache
def _lesson_imports(week: str) -> frozenset[str]:
    """Of the modules that get a flag, those which the week's own notebook imports, where the notebooks are at hand."""
    files = (Path(__file__).parent.parent / "notebooks").glob(f"{week}_*.ipynb")
    return frozenset(m for file in files for cell in read_cells(file) for m in contents(cell.source).imports)


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
