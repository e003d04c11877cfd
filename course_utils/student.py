"""What notebooks call: check, failing_call, hint, solution, passing, progress, expect_error."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from course_utils.errors import CourseError
from course_utils.exercise import Exercise, UnknownExercise, exercise_weeks, load_exercise, week_order
from course_utils.feedback import Part, show, show_object
from course_utils.judge import ERROR, NOT_ATTEMPTED, PASSED, Verdict, grade
from course_utils.settings import course_device, course_seed
from course_utils.source import is_untouched, solution_source
from course_utils.standing import Progress
from course_utils.weeks import load_week

Answer = TypeVar("Answer", bound=Callable[..., Any])

_checks: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
_hints_shown: defaultdict[str, int] = defaultdict(int)
_failing_arguments: dict[str, tuple[Any, ...] | None] = {}  # by exercise; None: its last check showed no call
_last_checked: dict[str, Any] = {}  # by exercise
_SAME_CODE = "This is the code of your last check. If you changed it since, run its cell; it must run without error."
_SAME_STUB = "If you did that already: the cell must run without error, and what it defines must have the name `{}`."


class AnswerRejected(AssertionError):
    """Raised by `check(..., strict=True)` for an answer that does not pass; the message is the verdict."""


def check(answer: Callable[..., Any] | str, *, strict: bool = False) -> Verdict:
    """Grade an answer and show the verdict.

    answer: a function or class named like an exercise, or the exercise's name. Each check draws fresh inputs, the
    same in every session; COURSE_SEED shifts them. Never raises for a wrong answer, unless `strict`: then
    AnswerRejected. Raises CourseError when COURSE_DEVICE asks for a device that is not there.
    """
    names = sys._getframe(1).f_globals
    verdict = _verdict(answer, names)
    _failing_arguments[verdict.exercise] = verdict.arguments
    tried = names.get(answer) if isinstance(answer, str) else answer
    again = verdict.outcome != PASSED and callable(tried) and _last_checked.get(verdict.exercise) is tried
    _last_checked[verdict.exercise] = tried
    note = _SAME_STUB.format(verdict.exercise) if verdict.outcome == NOT_ATTEMPTED else _SAME_CODE
    show([*verdict.parts, *([Part("next", note)] if again else [])], verdict.outcome)
    if strict and verdict.outcome != PASSED:
        raise AnswerRejected(verdict.message)
    return verdict


def _verdict(answer: Any, names: Mapping[str, Any]) -> Verdict:
    try:
        name = answer if isinstance(answer, str) else _name_of(answer, "check")
        exercise = load_exercise(name)
    except (UnknownExercise, _NotAnAnswer) as problem:
        return _explained("check", ERROR, str(problem))
    if isinstance(answer, str):
        if name not in names:
            return _explained(
                name,
                NOT_ATTEMPTED,
                f"Nothing here is called {name} yet: run the cell that defines it first.",
            )
        answer = names[name]
    problem = problem_with(exercise, answer)
    if problem:
        return _explained(name, ERROR, problem)
    return grade(exercise, answer, next_seed(name), course_device())


def next_seed(name: str) -> int:
    """A new seed for each check of an exercise: 1000 · COURSE_SEED, then one more each time."""
    return 1000 * course_seed() + next(_checks[name])


def _explained(name: str, outcome: str, sentence: str) -> Verdict:
    return Verdict(name, outcome, [Part("headline", f"{name}: {outcome}"), Part("text", sentence)])


class _NotAnAnswer(TypeError):
    pass


def _name_of(answer: Any, asked: str) -> str:
    """The name of an answer; asked: the function that it was given to. Raises _NotAnAnswer for anything else."""
    if isinstance(answer, Exercise):
        raise _NotAnAnswer(f"This is the course's own {answer.name}. Give `{asked}` the one you wrote.")
    name = getattr(answer, "__name__", None)
    if name == "<lambda>":
        raise _NotAnAnswer("A lambda has no name to find its exercise by. Write it with `def` and the exercise's name.")
    if callable(answer) and isinstance(name, str):
        return name
    kind = type(answer).__name__
    if kind in exercise_weeks():
        raise _NotAnAnswer(f"You gave `{asked}` an object made by {kind}. Give it the class itself: `{asked}({kind})`.")
    raise _NotAnAnswer(
        f"`{asked}` takes the function or class you wrote{', or its name in quotes' if asked != 'passing' else ''}; "
        f"you gave it {'an' if kind[0] in 'aeiou' else 'a'} {kind}. "
        "If this is what your function returned, leave out the parentheses."
    )


def problem_with(exercise: Exercise, answer: Any) -> str:
    """A sentence about an answer that cannot be run at all, or nothing."""
    name = exercise.name
    if isinstance(answer, Exercise):
        return f"This is the course's own {name}. Give `check` the one you wrote."
    if exercise.is_class != inspect.isclass(answer) or not callable(answer):
        wanted, got = ("class", "a function") if exercise.is_class else ("function", "a class")
        got = got if callable(answer) else f"the value {answer!r:.60}"
        return f"{name} should be a {wanted}, and here it is {got}."
    if exercise.is_class:
        missing = [m for m in _public_methods(exercise.reference) if not hasattr(answer, m)]
        if not missing or is_untouched(exercise, answer):
            return ""
        return f"The class {name} still needs the method {' and '.join(missing)}."
    return _parameter_problem(exercise, answer)


def _public_methods(reference: type) -> list[str]:
    return [m for m, value in vars(reference).items() if not m.startswith("_") and callable(getattr(reference, m))]


def _parameter_problem(exercise: Exercise, answer: Any) -> str:
    mine, wanted = getattr(answer, "__code__", None), exercise.reference.__code__
    count = wanted.co_argcount
    if mine and mine.co_argcount == count and mine.co_varnames[:count] == wanted.co_varnames[:count]:
        return ""
    try:
        signature = inspect.signature(answer)
    except (TypeError, ValueError):
        return ""
    parameters = inspect.signature(exercise.reference).parameters
    try:
        signature.bind(*parameters)
        for position in range(len(parameters) + 1):
            names = list(parameters)
            signature.bind(*names[:position], **dict.fromkeys(names[position:]))
    except TypeError:
        task = ", ".join(parameters)
        bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
        return (
            f"Your {exercise.name} takes {inspect.Signature(bare)}; "
            f"the task calls {exercise.name}({task}), with these names."
        )
    return ""


def hint(answer: Callable[..., Any] | str) -> None:
    """Show one more hint each time, the gentlest first."""
    exercise = _exercise_of(answer, "hint")
    if exercise is None:
        return
    hints, name = exercise.hint_texts, exercise.name
    _hints_shown[name] = shown = min(_hints_shown[name] + 1, len(hints))
    parts = [Part("headline", f"{name}: hint {shown} of {len(hints)}")]
    parts += [Part("text", f"{number}. {text}") for number, text in enumerate(hints[:shown], start=1)]
    more = (
        f"`hint({name})` again shows one more."
        if shown < len(hints)
        else f"These are all. `solution({name})` shows the course's answer when you want to compare."
    )
    show([*parts, Part("next", more)])


def solution(answer: Callable[..., Any] | str) -> None:
    """Show the reference answer."""
    exercise = _exercise_of(answer, "solution")
    if exercise is not None:
        headline = Part("headline", f"{exercise.name}: one correct answer")
        show([headline, Part("code", solution_source(exercise))])


def _exercise_of(answer: Any, asked: str) -> Exercise | None:
    try:
        return load_exercise(answer if isinstance(answer, str) else _name_of(answer, asked))
    except (UnknownExercise, _NotAnAnswer) as problem:
        show([Part("text", str(problem))])
        return None


def failing_call(answer: Callable[..., Any] | str) -> tuple[Any, ...]:
    """The arguments of the call that the last check of this exercise showed: `f(*failing_call(f))` makes it again.

    An argument that the answer changed is as the answer left it. Raises CourseError when that check showed no call.
    """
    name = answer if isinstance(answer, str) else _name_of(answer, "failing_call")
    arguments = _failing_arguments.get(name)
    if arguments is None:
        when = "No check of {} has shown a failing call"
        if name in _failing_arguments:
            when = "The last check of {} showed no failing call to repeat"
        raise CourseError(f"{when.format(name)}; check({name}) shows one when an answer fails.")
    return arguments


def passing(answer: Answer) -> Answer:
    """The given function or class once it passes its check, and the course's own until then, saying so.

    Raises UnknownExercise for a name that is no exercise, TypeError for something that cannot be an answer.
    """
    if isinstance(answer, str):
        raise TypeError(f"`passing` takes the function or class itself: passing({answer}).")
    exercise = load_exercise(_name_of(answer, "passing"))
    problem = problem_with(exercise, answer)
    if not problem and grade(exercise, answer, next_seed(exercise.name), course_device()).outcome == PASSED:
        return answer
    print(f"{exercise.name} does not pass its check yet; the course's own version stands in for it here.")
    return exercise.reference


def progress() -> None:
    """Show where you stand: every exercise of the weeks this notebook defines answers for, graded now."""
    names = sys._getframe(1).f_globals
    order = list(names)  # the order in which the notebook defined them
    weeks = sorted({week for name, week in exercise_weeks().items() if name in names}, key=week_order)
    if not weeks:
        show([Part("text", "None of the course's exercises is defined here yet: run the cells above first.")])
    for week in weeks:
        exercises = [load_exercise(name) for name, home in exercise_weeks().items() if home == week]
        exercises.sort(key=lambda exercise: order.index(exercise.name) if exercise.name in names else len(order))
        outcomes = {exercise.name: _verdict(exercise.name, names).outcome for exercise in exercises}
        show_object(Progress(load_week(week), exercises, outcomes))


@contextmanager
def expect_error(kind: type[BaseException], match: str = "") -> Iterator[None]:
    """Show an error that is meant to happen.

    Prints its type and first line. Raises AssertionError when no error comes, one of another type, or one whose
    message does not contain the regular expression `match`.
    """
    try:
        yield
    except kind as error:
        if not re.search(match, str(error)):
            raise AssertionError(f"The message was expected to match {match!r} and reads: {error}") from error
        first_line = str(error).strip().split("\n")[0]
        print(f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__)
    except Exception as error:
        raise AssertionError(f"{kind.__name__} was expected, and {type(error).__name__} came: {error}") from error
    else:
        raise AssertionError(f"{kind.__name__} was expected here, and nothing was raised.")
