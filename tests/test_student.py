"""The functions that notebooks call: each answer and each slip gets a clear sentence."""

import functools
import re

import pytest
import torch

from course_utils import check, expect_error, failing_call, hint, passing, progress, solution, student
from course_utils.errors import CourseError
from course_utils.exercise import UnknownExercise, exercise_weeks, load_exercise
from course_utils.standing import Progress
from course_utils.student import AnswerRejected
from course_utils.weeks import load_week

SUGGESTED = "There is no exercise called storage_indx. Did you mean storage_index?"


@pytest.fixture(autouse=True)
def a_fresh_session(monkeypatch):
    """Counters as in a new kernel."""
    student._checks.clear()
    student._hints_shown.clear()
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.delenv("COURSE_SEED", raising=False)


def storage_index(shape, stride, storage_offset, index):
    """My answer."""
    if len(index) != len(shape) or any(not -s <= i < s for s, i in zip(shape, index, strict=True)):
        raise IndexError
    return storage_offset + sum(d * (i % s) for s, d, i in zip(shape, stride, index, strict=True))


def forgetful(shape, stride, storage_offset, index):
    return storage_index(shape, stride, 0, index)


forgetful.__name__ = "storage_index"


def sentence(capsys):
    """What was shown, after its headline."""
    _, *rest = capsys.readouterr().out.rstrip("\n").split("\n")
    return "\n".join(rest)


# --- check --------------------------------------------------------------------------------------------------------


def test_check_shows_and_returns_the_verdict_on_a_right_answer(capsys):
    verdict = check(storage_index)
    assert verdict.outcome == "passed"
    count = len(load_exercise("storage_index").cases)
    assert capsys.readouterr().out == f"storage_index: passed, {count} of {count} cases\n"


def test_check_never_raises_for_a_wrong_answer(capsys):
    verdict = check(forgetful)
    assert (verdict.outcome, verdict.misconception) == ("failed", "forgets_offset")
    assert "a view starts at storage_offset" in capsys.readouterr().out


def test_check_finds_an_answer_by_the_exercises_name(capsys):
    assert check("storage_index").outcome == "passed"


def test_check_of_a_name_that_is_not_defined_yet(capsys, sample_course):
    assert check("double").outcome == "not attempted"
    assert sentence(capsys) == "Nothing here is called double yet: run the cell that defines it first."


def test_strict_check_raises_with_the_verdict(capsys):
    with pytest.raises(AnswerRejected, match="storage_index: failed"):
        check(forgetful, strict=True)
    assert check(storage_index, strict=True).outcome == "passed"


def test_check_of_an_unfinished_stub(capsys):
    def storage_index(shape, stride, storage_offset, index):
        raise NotImplementedError

    assert check(storage_index).outcome == "not attempted"


def test_check_of_something_with_an_unknown_name_suggests_the_nearest(capsys):
    def storage_indx(shape):
        return shape

    for answer in (storage_indx, "storage_indx"):
        assert check(answer).outcome == "error"
        assert sentence(capsys).startswith(SUGGESTED)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x, "A lambda has no name to find its exercise by. Write it with `def` and the exercise's name."),
        (
            5,
            "`check` takes the function or class you wrote, or its name in quotes; you gave it an int. "
            "If this is what your function returned, leave out the parentheses.",
        ),
        (torch.ones(2), "you gave it a Tensor."),
        (None, "you gave it a NoneType."),
        (functools.partial(storage_index, (2,)), "you gave it a partial."),
        (load_exercise("storage_index"), "This is the course's own storage_index. Give `check` the one you wrote."),
    ],
    ids=["lambda", "int", "tensor", "none", "partial", "exercise"],
)
def test_check_of_something_that_cannot_be_an_answer(capsys, answer, words):
    assert check(answer).outcome == "error"
    assert words in sentence(capsys)


def test_check_of_an_object_instead_of_its_class(capsys, sample_course):
    class Tally:
        def add(self, text):
            return 0

    assert check(Tally()).outcome == "error"
    assert sentence(capsys) == "You gave `check` an object made by Tally. Give it the class itself: `check(Tally)`."


def test_check_of_the_wrong_kind(capsys, sample_course):
    class double:
        pass

    def Tally():
        pass

    check(double)
    assert sentence(capsys) == "double should be a function, and here it is a class."
    check(Tally)
    assert sentence(capsys) == "Tally should be a class, and here it is a function."


def test_check_by_name_of_a_value_that_is_no_function(capsys, sample_course, monkeypatch):
    monkeypatch.setitem(globals(), "double", 3)
    check("double")
    assert sentence(capsys) == "double should be a function, and here it is the value 3."


def test_check_of_a_class_without_a_method(capsys, sample_course):
    class Tally:
        def __init__(self, start=0):
            self.total = start

    check(Tally)
    assert sentence(capsys) == "The class Tally still needs the method add."


@pytest.mark.parametrize(
    "parameters",
    ["shape, stride, index", "a, b, c, d", "shape, stride, storage_offset", "", "*args", "shape, *, index"],
)
def test_check_of_the_wrong_parameters(capsys, parameters):
    names = {}
    exec(f"def storage_index({parameters}):\n    return 1", names)
    assert check(names["storage_index"]).outcome == "error"
    assert sentence(capsys) == (
        f"Your storage_index takes ({parameters}); "
        "the task calls storage_index(shape, stride, storage_offset, index), with these names."
    )


@pytest.mark.parametrize(
    "parameters",
    [
        "shape, stride, storage_offset, index, verbose=False",
        "*args, **kwargs",
        "shape, stride, storage_offset, *, index",
    ],
)
def test_other_parameters_are_accepted_when_the_tasks_calls_fit(capsys, parameters):
    names = {}
    exec(f"def storage_index({parameters}):\n    return 1", names)
    problem = student.problem_with(load_exercise("storage_index"), names["storage_index"])
    assert (problem == "") == ("*, index" not in parameters)


def test_a_decorated_answer_is_checked_like_any_other(capsys):
    @functools.wraps(storage_index)
    def wrapped(*args, **kwargs):
        return storage_index(*args, **kwargs)

    assert check(wrapped).outcome == "passed"
    assert check(torch.no_grad()(storage_index)).outcome == "passed"


def test_each_check_draws_fresh_inputs_and_a_new_session_repeats_them(capsys):
    seeds = [student.next_seed("storage_index") for _ in range(3)]
    student._checks.clear()
    assert seeds == [0, 1, 2]
    assert student.next_seed("storage_index") == 0


def test_course_seed_shifts_the_draws(monkeypatch):
    monkeypatch.setenv("COURSE_SEED", "7")
    assert [student.next_seed("a"), student.next_seed("a"), student.next_seed("b")] == [7000, 7001, 7000]


def test_a_course_seed_that_is_no_number_gives_one_clear_error(monkeypatch):
    monkeypatch.setenv("COURSE_SEED", "seven")
    with pytest.raises(CourseError, match="COURSE_SEED is 'seven'"):
        check(storage_index)


def test_cuda_without_a_gpu_gives_one_clear_error(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CourseError, match=r"torch sees no CUDA device\. Unset it or set it to cpu"):
        check(storage_index)


# --- hint, solution -----------------------------------------------------------------------------------------------


def test_each_hint_shows_one_more_and_then_says_that_these_are_all(capsys):
    shown = []
    for _ in range(4):
        hint(storage_index)
        shown.append(capsys.readouterr().out.rstrip("\n").split("\n"))
    assert [lines[0] for lines in shown] == [f"storage_index: hint {n} of 3" for n in (1, 2, 3, 3)]
    assert [len(lines) for lines in shown] == [3, 4, 5, 5]
    assert shown[0][2] == "`hint(storage_index)` again shows one more."
    assert shown[2][4].startswith("These are all. `solution(storage_index)` shows the course's answer")


def test_a_hint_can_be_asked_for_by_name_and_before_anything_is_written(capsys):
    hint("storage_index")
    assert capsys.readouterr().out.startswith("storage_index: hint 1 of 3\n")


def test_solution_shows_the_reference_without_its_decorator(capsys):
    solution(storage_index)
    shown = capsys.readouterr().out
    assert shown.startswith("storage_index: one correct answer\n    def storage_index(\n")
    assert "@exercise" not in shown
    assert "position += step" in shown


@pytest.mark.parametrize("function", [hint, solution])
def test_hint_and_solution_of_something_else_say_so(capsys, function):
    function("storage_indx")
    assert capsys.readouterr().out.startswith(SUGGESTED)
    function(5)
    asked = function.__name__
    assert capsys.readouterr().out.startswith(f"`{asked}` takes the function or class you wrote, or its name in quotes")


# --- passing ------------------------------------------------------------------------------------------------------


def test_passing_gives_back_an_answer_that_passes(capsys):
    assert passing(storage_index) is storage_index
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("parameters", ["shape, stride, storage_offset, index", "shape"])
def test_passing_falls_back_to_the_courses_own_and_says_so(capsys, parameters):
    names = {}
    exec(f"def storage_index({parameters}):\n    return 1", names)
    assert passing(names["storage_index"]) is load_exercise("storage_index").reference
    assert capsys.readouterr().out == (
        "storage_index does not pass its check yet; the course's own version stands in for it here.\n"
    )


def test_passing_of_an_unknown_name_or_a_value_raises():
    def storage_indx():
        pass

    with pytest.raises(UnknownExercise, match="Did you mean storage_index"):
        passing(storage_indx)
    with pytest.raises(TypeError, match=r"^`passing` takes the function or class you wrote; you gave it an int"):
        passing(5)
    with pytest.raises(TypeError, match=r"takes the function or class itself: passing\(storage_index\)"):
        passing("storage_index")


# --- progress -----------------------------------------------------------------------------------------------------

DONE = {
    "double": lambda values: 2 * values,
    "last_item": lambda items: items[len(items) - 2],
}
for name in DONE:
    DONE[name].__name__ = name
    DONE[name].__code__ = DONE[name].__code__.replace(co_name=name)


def test_progress_shows_every_exercise_of_the_week_and_the_next_step(capsys, sample_course, monkeypatch):
    for name, answer in DONE.items():
        monkeypatch.setitem(globals(), name, answer)
    progress()
    assert capsys.readouterr().out == (
        "Samples: 1 of 3 exercises pass, 1 of 2 objectives of the exercises are met.\n"
        "    ✓ double: passed\n"
        "    ✗ last_item: failed\n"
        "    ○ Tally: not attempted\n"
        "You can (✓: every exercise for it passes, ○: not yet):\n"
        "    ✓ double numbers\n"
        "    ○ count words\n"
        "Next: last_item is begun and does not pass yet; check(last_item) says why.\n"
    )


def test_exercises_are_listed_in_the_order_of_the_lesson():
    names = [name for name, week in exercise_weeks().items() if week == "week01"]
    shown = Progress(load_week("week01"), list(map(load_exercise, names)), dict.fromkeys(names, "not attempted"))
    assert [exercise.name for exercise in shown.exercises][:3] == ["storage_index", "shares_storage", "sliding_windows"]
    assert shown.next_step() == "Next: try storage_index."


def test_progress_without_any_answer_says_what_to_do(capsys, sample_course):
    progress()
    assert capsys.readouterr().out == (
        "None of the course's exercises is defined here yet: run the cells above first.\n"
    )


# --- expect_error -------------------------------------------------------------------------------------------------


def test_expect_error_shows_type_and_first_line(capsys):
    with expect_error(ValueError, match=r"too (much|many)"):
        raise ValueError("too many\nmore lines")
    assert capsys.readouterr().out == "ValueError: too many\n"


def test_expect_error_shows_the_type_alone_when_there_is_no_message(capsys):
    with expect_error(LookupError):
        raise KeyError
    assert capsys.readouterr().out == "KeyError\n"


def test_expect_error_fails_when_nothing_is_raised():
    with (
        pytest.raises(AssertionError, match=r"^ValueError was expected here, and nothing was raised"),
        expect_error(ValueError),
    ):
        pass


def test_expect_error_fails_for_an_error_of_another_type():
    with (
        pytest.raises(AssertionError, match=r"^ValueError was expected, and TypeError came: odd") as caught,
        expect_error(ValueError),
    ):
        raise TypeError("odd")
    assert isinstance(caught.value.__cause__, TypeError)


def test_expect_error_fails_for_another_message():
    with (
        pytest.raises(AssertionError, match=re.escape("expected to match 'wide' and reads: narrow")),
        expect_error(ValueError, match="wide"),
    ):
        raise ValueError("narrow")


def test_expect_error_lets_an_interrupt_through():
    with pytest.raises(KeyboardInterrupt), expect_error(ValueError):
        raise KeyboardInterrupt


def test_the_failing_call_can_be_made_again():
    def storage_index(shape, stride, storage_offset, index):
        return 0

    check(storage_index)
    arguments = failing_call(storage_index)
    assert failing_call("storage_index") == arguments
    assert len(arguments) == 4


def test_the_same_code_checked_again_is_told_so(capsys):
    def storage_index(shape, stride, storage_offset, index):
        return 0

    def seen(answer):
        check(answer)
        return "This is the code of your last check." in capsys.readouterr().out

    first = storage_index

    def storage_index(shape, stride, storage_offset, index):
        return 1

    assert [seen(answer) for answer in (first, first, storage_index, first)] == [False, True, False, False]


def test_the_same_stub_checked_again_is_told_what_its_cell_must_do(capsys):
    """Which is what a cell with a syntax error, or with a misspelled name, leaves behind."""

    def storage_index(shape, stride, storage_offset, index):
        raise NotImplementedError

    def seen():
        check(storage_index)
        return "what it defines must have the name `storage_index`" in capsys.readouterr().out

    assert [seen(), seen()] == [False, True]


def test_without_a_failing_call_there_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr("course_utils.student._failing_arguments", {})
    with pytest.raises(CourseError, match=r"^No check of storage_index has shown a failing call; check\(storage_index"):
        failing_call("storage_index")


def test_after_a_check_that_passes_there_is_no_failing_call():
    def storage_index(shape, stride, storage_offset, index):
        return 0

    check(storage_index)
    check(load_exercise("storage_index").reference)
    with pytest.raises(CourseError, match=r"^The last check of storage_index showed no failing call to repeat"):
        failing_call(storage_index)
