"""From an exercise's module to the stub and the solution, and whether a stub was touched."""

from textwrap import dedent

import pytest
from conftest import write

from course_utils.exercise import UnknownExercise, exercise_weeks, load_exercise
from course_utils.source import is_untouched, solution_source, stub_source


def defined(source, name):
    """What a cell with this source defines."""
    names = {}
    exec(dedent(source), names)
    return names[name]


def test_the_stub_of_a_function_keeps_signature_and_docstring(sample_course):
    assert stub_source(load_exercise("double")) == dedent('''\
        def double(values: torch.Tensor) -> torch.Tensor:
            """Twice the values, in a new tensor."""
            raise NotImplementedError
        ''')


def test_the_stub_of_a_class_keeps_its_docstring_and_public_methods_with_decorators(sample_course):
    assert stub_source(load_exercise("Tally")) == dedent('''\
        class Tally:
            """Counts words.

            total: how many words were added.
            """

            def __init__(self, start: int = 0) -> None:
                """Begin at `start`."""
                raise NotImplementedError

            def add(self, text: str) -> int:
                """Add the words of a text; returns the new total."""
                raise NotImplementedError

            @property
            def is_empty(self) -> bool:
                """Whether nothing was added."""
                raise NotImplementedError
        ''')


def test_the_stub_of_a_bug_hunt_is_the_broken_body_below_the_tasks_docstring(sample_course):
    assert stub_source(load_exercise("last_item")) == dedent('''\
        def last_item(items: list) -> object:
            """The last item of a list that is not empty."""
            count = len(items)  # looks right
            return items[count - 2]
        ''')


def test_the_solution_is_the_reference_without_its_decorator(sample_course):
    assert solution_source(load_exercise("double")) == dedent('''\
        def double(values: torch.Tensor) -> torch.Tensor:
            """Twice the values, in a new tensor."""
            doubled = values.clone()
            return doubled.add_(values)
        ''')


def test_the_solution_of_a_class_has_its_private_methods_too(sample_course):
    assert "    def _count(self, text: str) -> int:\n" in solution_source(load_exercise("Tally"))


@pytest.mark.parametrize(
    "source",
    [
        "def double(values):\n    raise NotImplementedError",
        "def double(values):\n    # first I will\n\n    raise NotImplementedError  # later",
        "def double(values):\n    '''My own words.'''\n    raise NotImplementedError",
        'def double(values: "Tensor") -> "Tensor":\n    """Twice\n\n    the values."""\n    raise NotImplementedError',
    ],
    ids=["no docstring", "comments", "another docstring", "annotations"],
)
def test_comments_layout_and_docstring_leave_a_stub_untouched(sample_course, source):
    assert is_untouched(load_exercise("double"), defined(source, "double")) is True


@pytest.mark.parametrize(
    "source",
    [
        "def double(values):\n    return values",
        "def double(values):\n    pass",
        "def double(values):\n    values\n    raise NotImplementedError('later')",
        "def double(numbers):\n    raise NotImplementedError",
        "class double:\n    pass",
    ],
    ids=["an answer", "pass", "begun", "another parameter", "another kind"],
)
def test_any_other_code_is_a_touched_stub(sample_course, source):
    assert is_untouched(load_exercise("double"), defined(source, "double")) is False


def test_a_class_is_untouched_until_one_of_its_methods_changes(sample_course):
    stub = stub_source(load_exercise("Tally"))
    begun = stub.replace("raise NotImplementedError", "self.total = start", 1)
    added = stub + "\n    def more(self):\n        return 1\n"
    assert is_untouched(load_exercise("Tally"), defined(stub, "Tally")) is True
    assert is_untouched(load_exercise("Tally"), defined(begun, "Tally")) is False
    assert is_untouched(load_exercise("Tally"), defined(added, "Tally")) is False


def test_an_untouched_bug_hunt_is_recognized_and_a_repaired_one_is_not(sample_course):
    stub = stub_source(load_exercise("last_item"))
    assert is_untouched(load_exercise("last_item"), defined(stub, "last_item")) is True
    repaired = stub.replace("- 2", "- 1")
    assert is_untouched(load_exercise("last_item"), defined(repaired, "last_item")) is False


def test_a_builtin_or_an_object_is_no_untouched_stub(sample_course):
    assert is_untouched(load_exercise("double"), len) is False


# --- finding exercises --------------------------------------------------------------------------------------------


def test_exercises_are_found_by_their_files_in_order_of_week_and_name(sample_course):
    assert list(exercise_weeks().items()) == [("double", "week90"), ("last_item", "week90"), ("Tally", "week90")]


def test_an_unknown_exercise_is_refused_with_the_closest_names(sample_course):
    with pytest.raises(UnknownExercise, match=r"no exercise called doubel\. Did you mean double\? `course list`"):
        load_exercise("doubel")
    with pytest.raises(UnknownExercise, match=r"no exercise called xyz\. `course list` names them all"):
        load_exercise("xyz")


def test_a_module_without_its_exercise_is_refused(sample_course):
    write(sample_course / "course_utils" / "exercises" / "week90" / "empty.py", "empty = 3\n")
    exercise_weeks.cache_clear()
    with pytest.raises(TypeError, match=r"exercises/week90/empty\.py must define empty with the decorator @exercise"):
        load_exercise("empty")


def test_an_exercise_knows_its_name_week_and_kind_and_can_be_called(sample_course):
    double, tally = load_exercise("double"), load_exercise("Tally")
    assert (double.name, double.week, double.is_class) == ("double", "week90", False)
    assert (tally.name, tally.is_class, tally().add("a b")) == ("Tally", True, 2)
    assert repr(double) == "<exercise double>"
    assert [case.title for case in tally.cases] == ["two texts"]
    assert [m.name for m in double.misconceptions] == ["squares"]
