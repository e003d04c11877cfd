"""Where an answer differs from the reference, and which misconception would differ in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import NamedTuple

from course_utils.exercise import Case, Exercise, Misconception
from course_utils.observe import Difference, difference
from course_utils.run import CaseRun, Undisturbed


@dataclass
class Mismatch:
    """A case in which the answer differs from the reference: in what it saw, in what the answer left changed."""

    case: Case
    run: CaseRun
    right: CaseRun
    observed: Difference | None
    changed: Difference | None


def is_right(exercise: Exercise, runs: Sequence[CaseRun], reference: Sequence[CaseRun]) -> bool:
    """Whether every case of the answer was seen as that of the reference."""
    return len(runs) == len(exercise.cases) and not find_mismatches(exercise, runs, reference)


def find_mismatches(exercise: Exercise, runs: Sequence[CaseRun], reference: Sequence[CaseRun]) -> list[Mismatch]:
    """The cases in which the answer was seen to differ from the reference, in order."""
    found = []
    for case, run, right in zip(exercise.cases, runs, reference, strict=False):
        observed, changed = _differences(run, right, case.tolerance)
        if observed or changed or run.stopped or run.forbidden:
            found.append(Mismatch(case, run, right, observed, changed))
    return found


def _differences(
    run: CaseRun, right: CaseRun, tolerance: tuple[float, float] | None
) -> tuple[Difference | None, Difference | None]:
    """The first difference in what was observed (an exception counts), and in what was left: arguments, settings."""
    if run.raised or right.raised:
        return difference(run.raised, right.raised), None
    changed = difference(run.arguments, right.arguments, right.argument_tolerance or tolerance)
    if changed is None and run.left != right.left:
        changed = Difference("", "settings", *("; ".join(left) or "as it was" for left in (run.left, right.left)))
    return difference(run.observation, right.observation, tolerance), changed


class Diagnosis(NamedTuple):
    """A recognized misconception, the failing cases it explains, and whether these are all."""

    misconception: Misconception
    cases: frozenset[str]
    explains_all: bool


def diagnose(
    exercise: Exercise, runs: Sequence[CaseRun], mismatches: Sequence[Mismatch], process: Undisturbed
) -> Diagnosis | None:
    """The misconception whose observations equal the answer's, on the same draws.

    First choice: equal on every case. Else the one that explains the most failing cases on its own, at least half of
    them: it equals the answer there, no other misconception does, and the case saw more than an exception.
    Misconceptions run as few cases as that takes: a student waits for it.
    """
    differing = [mismatch.case for mismatch in mismatches if mismatch.observed or mismatch.changed]
    wrong = [i for i, case in enumerate(exercise.cases) if case in differing]
    right = [i for i in range(min(len(runs), len(exercise.cases))) if i not in wrong]
    if not wrong:
        return None

    @cache
    def equal(misconception: Misconception, i: int) -> bool:
        case = exercise.cases[i]
        theirs = process.run_cases(exercise, misconception.implementation, cases=[case])
        return bool(theirs) and not any(_differences(runs[i], theirs[0], case.tolerance))

    for misconception in exercise.misconceptions:
        if all(equal(misconception, i) for i in (*wrong, *right)):
            return Diagnosis(misconception, frozenset(runs[i].case for i in wrong), True)
    voters = [i for i in wrong if not runs[i].raised]
    explained: dict[Misconception, list[str]] = {}
    for number, i in enumerate(voters, start=1):
        same = list(islice((m for m in exercise.misconceptions if equal(m, i)), 2))
        if len(same) == 1:
            explained.setdefault(same[0], []).append(runs[i].case)
        most = max(map(len, explained.values()), default=0)
        if 2 * (most + len(voters) - number) < len(wrong):
            return None
    if not explained:
        return None
    best = max(explained, key=lambda misconception: len(explained[misconception]))
    return Diagnosis(best, frozenset(explained[best]), False)
