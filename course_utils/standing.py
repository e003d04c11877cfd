"""A picture in words of where a student stands in a week."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path

from course_utils.exercise import Exercise
from course_utils.feedback import SIGNS, code_html, inline_html
from course_utils.judge import NOT_ATTEMPTED, PASSED
from course_utils.weeks import Week

_CELL = "text-align: left; vertical-align: top; padding: 3px 14px 3px 0"  # VS Code and Colab style no tables


class Progress:
    """Exercises of a week with their outcomes, the objectives they meet, and what to do next, in the lesson's order.

    outcomes: exercise name → one of the four outcome words. An objective is met when every exercise that assesses it
    passes; objectives that only the quiz assesses are counted apart.
    """

    def __init__(self, week: Week, exercises: Sequence[Exercise], outcomes: Mapping[str, str]) -> None:
        self.week, self.exercises, self.outcomes = week, sorted(exercises, key=_place_in_lesson), outcomes

    def outcome(self, exercise: Exercise) -> str:
        """One of the four outcome words."""
        return self.outcomes[exercise.name]

    def objectives(self) -> dict[str, bool]:
        """Identifier → met or not, for the objectives that exercises assess."""
        met: dict[str, bool] = {}
        for exercise in self.exercises:
            for objective in exercise.objectives:
                met[objective] = met.get(objective, True) and self.outcome(exercise) == PASSED
        return met

    def headline(self) -> str:
        """How many exercises pass and how many objectives are met, in one sentence."""
        passed = sum(self.outcome(exercise) == PASSED for exercise in self.exercises)
        met = self.objectives()
        return (
            f"{self.week.title}: {passed} of {len(self.exercises)} exercises pass, "
            f"{sum(met.values())} of {len(met)} objectives of the exercises are met."
        )

    def next_step(self) -> str:
        """What to do next, in one sentence."""
        unfinished = [e for e in self.exercises if self.outcome(e) not in (PASSED, NOT_ATTEMPTED)]
        if unfinished:
            return f"Next: {unfinished[0].name} is begun and does not pass yet; check({unfinished[0].name}) says why."
        untouched = [e for e in self.exercises if self.outcome(e) == NOT_ATTEMPTED]
        if untouched:
            return f"Next: try {untouched[0].name}."
        return "Every exercise of this week passes. Take the quiz, then go on."

    def __repr__(self) -> str:
        rows = [f"    {SIGNS[self.outcome(e)]} {e.name}: {self.outcome(e)}" for e in self.exercises]
        met = self.objectives()
        map_ = [f"    {'✓' if met[o] else '○'} {self.week.objectives.get(o, o).rstrip('.')}" for o in met]
        return "\n".join(
            [self.headline(), *rows, "You can (✓: every exercise for it passes, ○: not yet):", *map_, self.next_step()]
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        met = self.objectives()
        rows = "".join(
            f"<tr><td style='{_CELL}; white-space: nowrap'>{SIGNS[self.outcome(e)]} {self.outcome(e)}</td>"
            f"<td style='{_CELL}'>{code_html(e.name)}</td>"
            f"<td style='{_CELL}'>{'; '.join(self._objective(o, met[o]) for o in e.objectives)}</td></tr>"
            for e in self.exercises
        )
        titles = ("Outcome", "Exercise", "You can (✓: every exercise for it passes)")
        head = "".join(f"<th scope='col' style='{_CELL}'>{title}</th>" for title in titles)
        html = (
            f"<div><p><strong>{escape(self.headline())}</strong></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p>{escape(self.next_step())}</p></div>"
        )
        return {"text/html": html, "text/plain": repr(self)}

    def _objective(self, objective: str, met: bool) -> str:
        text = inline_html(self.week.objectives.get(objective, objective).rstrip("."))
        return f"{text}{' ✓' if met else ''}"


def _place_in_lesson(exercise: Exercise) -> int:
    """Where the exercise stands in its week's notebook; the same for all where the notebooks are not at hand."""
    return _notebook(exercise.week).find(f'"{exercise.name}-answer"')


@cache
def _notebook(week: str) -> str:
    files = (Path(__file__).parent.parent / "notebooks").glob(f"{week}_*.ipynb")
    return "".join(file.read_text(encoding="utf-8") for file in files)
