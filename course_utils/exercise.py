"""An exercise: one module that holds task, reference, cases, misconceptions and hints.

The decorators here only record. `course_utils.run` runs the cases, `course_utils.judge` compares.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError

EXERCISES = Path(__file__).parent / "exercises"


class UnknownExercise(CourseError, LookupError):
    """No exercise has this name; the message names the closest ones."""


@dataclass(frozen=True)
class Case:
    """A situation that tells right from wrong: `function(implementation, draw)` returns what is worth comparing.

    tolerance: (relative, absolute) for this case alone; None takes the tolerance of each dtype.
    random: what a call does to its arguments may differ from the reference by chance, such as drawn weights, so only
    what the case returns is compared.
    """

    function: Callable[..., Any]
    tolerance: tuple[float, float] | None = None
    random: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def title(self) -> str:
        """The name in words, as students read it."""
        return self.name.replace("_", " ")


@dataclass(frozen=True)
class Misconception:
    """A plausible wrong implementation and the sentence that explains what its author may be thinking."""

    implementation: Callable[..., Any]
    explanation: str

    @property
    def name(self) -> str:
        return self.implementation.__name__


@dataclass(eq=False)
class Exercise:
    """Task, reference, cases, misconceptions and hints of one exercise. Made by the decorator `exercise`."""

    reference: Callable[..., Any]
    objectives: tuple[str, ...] = ()
    forbids: tuple[Callable[..., Any], ...] = ()
    cases: list[Case] = field(default_factory=list)
    misconceptions: list[Misconception] = field(default_factory=list)
    hint_texts: tuple[str, ...] = ()
    broken_version: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return self.reference.__name__

    @property
    def week(self) -> str:
        """The package that holds the module, such as "week01"."""
        return self.reference.__module__.split(".")[-2]

    @property
    def is_class(self) -> bool:
        return inspect.isclass(self.reference)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.reference(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<exercise {self.name}>"

    def case(
        self,
        function: Callable[..., Any] | None = None,
        *,
        tolerance: tuple[float, float] | None = None,
        random: bool = False,
    ):
        """Record a case: `@storage_index.case`, or with the options of `Case`, `@storage_index.case(random=True)`."""

        def record(function: Callable[..., Any]) -> Callable[..., Any]:
            self.cases.append(Case(function, tolerance, random))
            return function

        return record(function) if function is not None else record

    def misconception(self, explanation: str):
        """Record a wrong implementation, a function or class of any name, and the explanation students read."""

        def record(implementation: Callable[..., Any]) -> Callable[..., Any]:
            self.misconceptions.append(Misconception(implementation, explanation))
            return implementation

        return record

    def broken(self, implementation: Callable[..., Any]) -> Callable[..., Any]:
        """Record the version that students get to repair; it makes the exercise a bug hunt."""
        self.broken_version = implementation
        return implementation

    def hints(self, *texts: str) -> None:
        """Record the hints, the gentlest first."""
        self.hint_texts = texts


def exercise(
    reference: Callable[..., Any] | None = None,
    *,
    objectives: tuple[str, ...] = (),
    forbids: tuple[Callable[..., Any], ...] = (),
):
    """Turn a documented function or class into an `Exercise`; its body is the reference solution.

    objectives: identifiers from the week's TOML file that the exercise assesses.
    forbids: functions that an answer must do without, such as `(F.cross_entropy,)`.
    """

    def make(reference: Callable[..., Any]) -> Exercise:
        return Exercise(reference, objectives, forbids)

    return make(reference) if reference is not None else make


def week_order(week: str) -> tuple[bool, str]:
    """A key to sort weeks by: week01, week02, …, then the capstone."""
    return not week.startswith("week"), week


@cache
def exercise_weeks() -> dict[str, str]:
    """Every exercise's name and its week, from the files in `exercises/`, in order of week and name; capstone last."""
    files = sorted(EXERCISES.glob("*/*.py"), key=lambda file: (*week_order(file.parent.name), file.stem.lower()))
    return {file.stem: file.parent.name for file in files if not file.stem.startswith("_")}


def load_exercise(name: str) -> Exercise:
    """The exercise of that name.

    Raises UnknownExercise for a name without a module, TypeError for a module that defines no exercise of its name.
    """
    week = exercise_weeks().get(name)
    if week is None:
        close = get_close_matches(name, exercise_weeks(), n=3)
        suggestion = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UnknownExercise(f"There is no exercise called {name}.{suggestion} `course list` names them all.")
    module = import_module(f"course_utils.exercises.{week}.{name}")
    found = getattr(module, name, None)
    if not isinstance(found, Exercise):
        raise TypeError(f"exercises/{week}/{name}.py must define {name} with the decorator @exercise.")
    return found
