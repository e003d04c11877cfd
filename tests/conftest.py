"""A tiny course for tests that need files: three exercises, one lesson, one week, none of them the real course's."""

import importlib
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns
from textwrap import dedent

import pytest

import course_utils.exercise
import course_utils.exercises
import course_utils.run
import course_utils.weeks
import course_utils.workers

DOUBLE = '''
    """Twice as much."""

    import torch

    from course_utils.exercise import exercise


    @exercise(objectives=("sample.double",))
    def double(values: torch.Tensor) -> torch.Tensor:
        """Twice the values, in a new tensor."""
        doubled = values.clone()
        return doubled.add_(values)


    @double.case
    def some_numbers(implementation, draw):
        return implementation(draw.normal(3, 2))


    @double.misconception("You squared the values. Twice a number is the number plus itself.")
    def squares(values):
        return values * values


    double.hints("What is three and three?", "Add the values to themselves.")
'''

TALLY = '''
    """Counting words."""

    from course_utils.exercise import exercise


    @exercise(objectives=("sample.count",))
    class Tally:
        """Counts words.

        total: how many words were added.
        """

        def __init__(self, start: int = 0) -> None:
            """Begin at `start`."""
            self.total = start

        def add(self, text: str) -> int:
            """Add the words of a text; returns the new total."""
            self.total += self._count(text)
            return self.total

        @property
        def is_empty(self) -> bool:
            """Whether nothing was added."""
            return self.total == 0

        def _count(self, text: str) -> int:
            return len(text.split())


    @Tally.case
    def two_texts(implementation, draw):
        tally = implementation()
        return [tally.is_empty, tally.add("a b"), tally.add("c"), tally.is_empty]


    @Tally.misconception("You counted letters. The task asks for words.")
    class Letters(Tally.reference):
        def _count(self, text):
            return len(text)


    Tally.hints("Split the text at its spaces.", "Keep the total between calls.")
'''

LAST_ITEM = '''
    """A bug hunt."""

    from course_utils.exercise import exercise


    @exercise(objectives=("sample.count",))
    def last_item(items: list) -> object:
        """The last item of a list that is not empty."""
        return items[-1]


    @last_item.case
    def a_few_items(implementation, draw):
        return implementation(list(draw.sizes(4, low=1, high=9)))


    @last_item.misconception("Counting starts at 0, so the index of the last item is one less than the length.")
    def one_too_few(items):
        return items[len(items) - 2]


    @last_item.broken
    def starts_at_one(items):
        """Not shown to students."""
        count = len(items)  # looks right
        return items[count - 2]


    last_item.hints("Try a list with two items.", "Which index has the last of three?")
'''

WEEK = """
    title = "Samples"
    promise = "After this week you can test a course."

    [objectives]
    "sample.double" = "double numbers."
    "sample.count" = "count words."
    "sample.quiz" = "answer a question."

    [[cards]]
    question = "What is `2 < 3`?"
    answer = "It is `True`."

    [[quiz]]
    question = "How many bits has a byte?"
    objectives = ["sample.quiz"]

    [[quiz.options]]
    text = "`7`"
    right = false
    why = "One more."

    [[quiz.options]]
    text = "`8`"
    right = true
    why = "That is what a byte is."
"""

LESSON = """
    ---
    jupytext:
      text_representation:
        extension: .md
        format_name: myst
    kernelspec:
      display_name: Python 3
      language: python
      name: python3
    ---

    # Week 90: Samples

    After this week you can:

    {objectives}

    ```{code-cell} ipython3
    import torch

    from course_utils import check
    ```

    ## 1. Doubling

    Now write it.

    {exercise} double

    +++

    And now words.

    {exercise} Tally

    {exercise} last_item

    ```{code-cell} ipython3
    print(torch.ones(2).sum().item())
    ```
"""

FILES = {
    "exercises/week90/__init__.py": "",
    "exercises/week90/double.py": DOUBLE,
    "exercises/week90/Tally.py": TALLY,
    "exercises/week90/last_item.py": LAST_ITEM,
    "weeks/week90.toml": WEEK,
}


def write(file: Path, text: str) -> Path:
    """Write a file and its folders; the text may be indented."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return file


def forget_samples() -> None:
    """Make the package look at its files again."""
    for name in [name for name in sys.modules if name.startswith("course_utils.exercises.week9")]:
        del sys.modules[name]
    course_utils.exercise.exercise_weeks.cache_clear()
    course_utils.weeks.load_week.cache_clear()
    importlib.invalidate_caches()


SLOW_STARTS = ("test_site.py", "test_survive.py", "test_two_ranks.py")


def pytest_collection_modifyitems(items):
    """Grader tests go exercise after exercise: what an implementation did is remembered from test to test.

    Files whose tests share a slow start come first. Later a second worker would steal some and start once more.
    """
    graders = [item for item in items if item.path.name == "test_graders.py"]
    others = [item for item in items if item.path.name != "test_graders.py"]
    others.sort(key=lambda item: item.path.name not in SLOW_STARTS)
    items[:] = [*others, *sorted(graders, key=lambda item: item.callspec.params["exercise"].name)]


@pytest.fixture
def sample_course(tmp_path, monkeypatch):
    """The root of a course that consists of `double`, `Tally` and `last_item`; the package knows nothing else."""
    root = tmp_path / "course"
    package = root / "course_utils"
    for name, text in FILES.items():
        write(package / name, text)
    write(root / "lessons" / "week90_samples.md", LESSON)
    monkeypatch.setattr(course_utils.exercise, "EXERCISES", package / "exercises")
    monkeypatch.setattr(course_utils.exercises, "__path__", [str(package / "exercises")])
    monkeypatch.setattr(course_utils.weeks, "FOLDER", package / "weeks")
    monkeypatch.setattr(course_utils.run, "LIBRARIES", (*course_utils.run.LIBRARIES, str(package)))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file rewritten within a second is read again
    forget_samples()
    yield root
    forget_samples()


@pytest.fixture
def copied_course(sample_course, monkeypatch):
    """The sample course with the package beside it, for processes that import it from there."""
    package = Path(course_utils.__file__).parent
    unwanted = ignore_patterns("exercises", "weeks", "__pycache__")
    copytree(package, sample_course / "course_utils", ignore=unwanted, dirs_exist_ok=True)
    for name in ("exercises/__init__.py", "weeks/__init__.py"):
        (sample_course / "course_utils" / name).write_bytes((package / name).read_bytes())
    monkeypatch.setenv("PYTHONPATH", str(sample_course))
    monkeypatch.setattr(course_utils.workers, "__file__", str(sample_course / "course_utils" / "workers.py"))
    return sample_course
