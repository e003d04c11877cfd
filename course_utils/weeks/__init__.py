"""What a week has beside its lesson and exercises: title, objectives, study cards and quiz, one TOML file each."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.exercise import week_order

FOLDER = Path(__file__).parent


class WeekError(CourseError, ValueError):
    """A week's TOML file is missing or says something impossible; the message names file and place."""


@dataclass(frozen=True)
class Card:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Option:
    """One answer to a quiz question and why it is right or wrong."""

    text: str
    right: bool
    why: str


@dataclass(frozen=True)
class Question:
    """A quiz question, the objectives it assesses, and its options, exactly one of them right."""

    question: str
    objectives: tuple[str, ...]
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Week:
    """A week: `name` such as "week01", objectives by identifier, cards, quiz."""

    name: str
    title: str
    promise: str
    objectives: dict[str, str]
    cards: tuple[Card, ...]
    quiz: tuple[Question, ...]


def week_names() -> list[str]:
    """The weeks there are, in order."""
    return sorted((file.stem for file in FOLDER.glob("*.toml")), key=week_order)


@cache
def load_week(name: str) -> Week:
    """The week of that name. Raises WeekError for an unknown week and for a file that breaks a rule."""
    file = FOLDER / f"{name}.toml"
    if not file.is_file():
        raise WeekError(f"There is no week called {name!r}; there are {', '.join(week_names())}.")
    try:
        week = _parse(name, tomllib.loads(file.read_text(encoding="utf-8")))
        for number, question in enumerate(week.quiz, start=1):
            _validate(week, number, question)
    except WeekError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeekError(f"weeks/{file.name}: {type(error).__name__}: {error}") from error
    return week


def _parse(name: str, data: dict[str, Any]) -> Week:
    return Week(
        name=name,
        title=data["title"],
        promise=data["promise"],
        objectives=dict(data["objectives"]),
        cards=tuple(Card(**card) for card in data["cards"]),
        quiz=tuple(
            Question(
                q["question"],
                tuple(q["objectives"]),
                tuple(Option(**option) for option in q["options"]),
            )
            for q in data["quiz"]
        ),
    )


def _validate(week: Week, number: int, question: Question) -> None:
    place = f"weeks/{week.name}.toml, quiz question {number}"
    if sum(option.right for option in question.options) != 1:
        raise WeekError(f"{place}: exactly one option has to be right.")
    if not all(option.why.strip() for option in question.options):
        raise WeekError(f"{place}: every option needs a `why`.")
    unknown = [objective for objective in question.objectives if objective not in week.objectives]
    if unknown or not question.objectives:
        raise WeekError(f"{place}: {unknown or 'no objective named'}; the week has {', '.join(week.objectives)}.")
