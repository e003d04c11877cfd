"""Judge an answer: run it, compare it with the reference, and come to a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from course_utils.diagnose import diagnose, find_mismatches, is_right
from course_utils.exercise import Exercise
from course_utils.explain import accepted, left_alone, rejected, unjudged, unstable
from course_utils.feedback import Part, as_html, as_text
from course_utils.observe import short
from course_utils.run import CaseRun, Undisturbed
from course_utils.source import is_untouched

PASSED, FAILED, NOT_ATTEMPTED, ERROR = "passed", "failed", "not attempted", "error"
OUTCOMES = (PASSED, FAILED, NOT_ATTEMPTED, ERROR)


@dataclass
class Verdict:
    """How an answer was judged: one of the four outcomes, and what the student reads.

    misconception: name of the recognized one, or None. arguments: those of the failing call that is shown, live, where
    the answer ran in this process.
    """

    exercise: str
    outcome: str
    parts: list[Part]
    misconception: str | None = None
    arguments: tuple[Any, ...] | None = field(default=None, repr=False)

    @property
    def message(self) -> str:
        """The verdict as plain text."""
        return as_text(self.parts)

    def html(self) -> str:
        """The verdict as an HTML fragment with the same words."""
        return as_html(self.parts, self.outcome)

    def __repr__(self) -> str:
        return f"<{self.exercise}: {self.outcome}>"

    def _ipython_display_(self) -> None:
        """Stay silent as the value of a cell: whoever made the verdict has shown it."""


def grade(exercise: Exercise, answer: Callable[..., Any], seed: int, device: str = "cpu") -> Verdict:
    """Run the answer in this process and judge it."""
    with Undisturbed(seed, device) as process:
        if process.agrees(exercise, answer):
            return _passed(exercise, process.output.take())
        if is_untouched(exercise, answer):
            return not_attempted(exercise)
        process.output.take()
        runs = process.run_cases(exercise, answer, detail=True, refuse=True)
        reference = process.run_cases(exercise, exercise.reference, detail=True)
        if any(run.raised for run in reference) or not is_right(exercise, runs, reference):
            return judge(exercise, runs, reference, process)
        # Either its results change after they were returned, which is no fault, or it was wrong only at first.
        if not process.agrees(exercise, answer):
            return _passed(exercise, "".join(run.output for run in runs))
    return Verdict(exercise.name, FAILED, unstable(exercise))


def judge(exercise: Exercise, runs: Sequence[CaseRun], reference: Sequence[CaseRun], process: Undisturbed) -> Verdict:
    """Judge what was seen of an answer, in `process` or in another one, against the reference on the same draws.

    reference: its runs in `process`, with their calls.
    """
    if any(run.raised for run in reference):
        return _without_reference(exercise, reference)
    mismatches = find_mismatches(exercise, runs, reference)
    if not mismatches and len(runs) == len(exercise.cases):
        return _passed(exercise)
    passed = len(runs) - len(mismatches)
    if not passed and any(map(_is_unfinished, runs)):
        return not_attempted(exercise)
    diagnosis = None if runs[-1].stopped else diagnose(exercise, runs, mismatches, process)
    rejection = rejected(exercise, mismatches, passed, diagnosis)
    outcome = ERROR if rejection.crashed else FAILED
    misconception = diagnosis and diagnosis.misconception.name
    return Verdict(exercise.name, outcome, rejection.parts, misconception, rejection.arguments)


def _without_reference(exercise: Exercise, reference: Sequence[CaseRun]) -> Verdict:
    """The verdict where the course's own answer does not run: nothing can be said about another."""
    error = next(short(run.raised, 300) for run in reference if run.raised)
    return Verdict(exercise.name, ERROR, unjudged(exercise, error))


def _is_unfinished(run: CaseRun) -> bool:
    """Whether the answer itself, not something it called, raised NotImplementedError."""
    tracebacks = [run.lines, *(call.lines for call in run.calls)]
    return any(lines and "raise NotImplementedError" in lines[-1] for lines in tracebacks)


def not_attempted(exercise: Exercise) -> Verdict:
    """The verdict on a stub that was left as it is."""
    return Verdict(exercise.name, NOT_ATTEMPTED, left_alone(exercise))


def _passed(exercise: Exercise, output: str = "") -> Verdict:
    return Verdict(exercise.name, PASSED, accepted(exercise, output))
