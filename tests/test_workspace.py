"""A student's copies in work/: started once, updated without losing what was written."""

import re

import nbformat
import pytest
from conftest import forget_samples
from nbformat.v4 import new_code_cell, new_markdown_cell

from course_utils.build import as_text
from course_utils.errors import CourseError
from course_utils.lesson import read_lesson
from course_utils.workspace import start, update

NAME = "week90_samples.ipynb"
MINE = "def double(values):\n    return 2 * values"


@pytest.fixture
def course(sample_course):
    """The sample course, its student notebook built and copied to work/."""
    publish(sample_course)
    start(sample_course)
    return sample_course


def publish(root):
    """Write the students' notebook as the lesson now says."""
    forget_samples()
    notebook = read_lesson(root / "lessons" / "week90_samples.md").notebook(solved=False)
    (root / "notebooks").mkdir(exist_ok=True)
    (root / "notebooks" / NAME).write_text(as_text(notebook), encoding="utf-8")


def new_version(root, old="Now write it.", new="Now write it, in one line.", file="lessons/week90_samples.md"):
    """Publish a notebook in which something changed."""
    text = (root / file).read_text(encoding="utf-8")
    assert old in text
    (root / file).write_text(text.replace(old, new), encoding="utf-8")
    publish(root)


def read(root, name=NAME):
    """A notebook in work/."""
    return nbformat.read(root / "work" / name, as_version=4)


def write(root, notebook):
    """Save a notebook in work/ as Jupyter does."""
    nbformat.write(notebook, root / "work" / NAME)


def changed(root, identifier, source):
    """Write into a cell of the copy; a colon stands before text to look for instead of an id."""
    notebook = read(root)
    cell = next(cell for cell in notebook.cells if cell.id == identifier or identifier in f":{cell.source}")
    cell.source = source
    write(root, notebook)
    return cell.id


def added(root, position, *cells):
    """Insert cells into the copy."""
    notebook = read(root)
    notebook.cells[position:position] = cells
    write(root, notebook)


def sources(root):
    """The texts of the copy's cells."""
    return [cell.source for cell in read(root).cells]


def source_of(root, identifier):
    """The text of one cell."""
    return next(cell.source for cell in read(root).cells if cell.id == identifier)


def backups(root):
    """The backups that lie beside the copy."""
    return sorted(file.name for file in (root / "work").glob("*.backup-*.ipynb"))


# --- start --------------------------------------------------------------------------------------------------------


def test_start_copies_the_notebooks(sample_course):
    publish(sample_course)
    assert start(sample_course) == [f"work/{NAME} is new."]
    copies = [(sample_course / folder / NAME).read_bytes() for folder in ("work", "notebooks")]
    assert copies[0] == copies[1]


def test_start_never_overwrites(course):
    (course / "work" / NAME).write_text("mine", encoding="utf-8")
    assert start(course) == [f"work/{NAME} is there already and stays as it is."]
    assert (course / "work" / NAME).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("command", [start, update])
def test_without_notebooks_the_message_says_how_to_get_them(sample_course, command):
    with pytest.raises(CourseError, match=r"no notebooks/\*\.ipynb; `make build` writes them"):
        command(sample_course)


# --- update -------------------------------------------------------------------------------------------------------


def test_update_copies_what_is_not_there_yet(sample_course):
    publish(sample_course)
    assert update(sample_course) == [f"work/{NAME} is new."]
    assert sources(sample_course)[0].startswith("# Week 90")


def test_update_without_news_changes_nothing(course):
    changed(course, "double-answer", MINE)
    before = (course / "work" / NAME).read_bytes()
    assert update(course) == [f"work/{NAME} is up to date."]
    assert (course / "work" / NAME).read_bytes() == before
    assert backups(course) == []


def test_update_carries_answers_over_and_says_which(course):
    changed(course, "double-answer", MINE)
    new_version(course)
    [sentence] = update(course)
    assert sentence.startswith(f"work/{NAME} is updated, your answers carried over: double. Your former copy is work/")
    assert sentence.endswith(" Run the cells again to see their outputs.")
    assert source_of(course, "double-answer") == MINE
    assert any("in one line" in source for source in sources(course))


def test_update_keeps_a_named_backup_with_everything_that_was_there(course):
    changed(course, "double-answer", MINE)
    before = (course / "work" / NAME).read_bytes()
    new_version(course)
    [sentence] = update(course)
    [backup] = backups(course)
    assert re.fullmatch(r"week90_samples\.backup-\d{8}-\d{6}\.ipynb", backup)
    assert f"Your former copy is work/{backup}." in sentence
    assert (course / "work" / backup).read_bytes() == before


def test_two_updates_within_a_second_keep_two_backups(course):
    new_version(course)
    update(course)
    new_version(course, "And now words.", "And now for words.")
    update(course)
    assert len(backups(course)) == 2


def test_update_is_idempotent(course):
    changed(course, "double-answer", MINE)
    changed(course, ":print(torch", "print(torch.ones(3).sum().item())")
    added(course, 0, new_code_cell("top = 1"))
    added(course, 5, new_markdown_cell("My note."), new_code_cell("mine = 2"))
    added(course, 99, new_code_cell("end = 3"))
    new_version(course)
    update(course)
    after = (course / "work" / NAME).read_bytes()
    assert update(course) == [f"work/{NAME} is up to date."]
    assert (course / "work" / NAME).read_bytes() == after


def test_an_unfinished_stub_gets_the_new_stub(course):
    new_version(
        course,
        "Twice the values, in a new tensor.",
        "Twice the values.",
        "course_utils/exercises/week90/double.py",
    )
    [sentence] = update(course)
    assert "your answers carried over: none yet" in sentence
    assert '"""Twice the values."""' in source_of(course, "double-answer")


def test_an_answer_stays_when_the_task_changes(course):
    changed(course, "double-answer", MINE)
    new_version(
        course,
        "Twice the values, in a new tensor.",
        "Twice the values.",
        "course_utils/exercises/week90/double.py",
    )
    update(course)
    assert source_of(course, "double-answer") == MINE


def test_an_answer_that_does_not_parse_yet_is_carried_over(course):
    changed(course, "double-answer", "def double(values):\n    return 2 *")
    new_version(course)
    update(course)
    assert source_of(course, "double-answer") == "def double(values):\n    return 2 *"


def test_added_cells_stay_behind_the_cell_they_stood_behind(course):
    position = next(i for i, cell in enumerate(read(course).cells) if cell.id == "double-check") + 1
    added(course, position, new_code_cell("double(torch.ones(2))"), new_markdown_cell("Looks right."))
    new_version(course)
    update(course)
    now = sources(course)
    at = now.index("check(double)")
    assert now[at + 1 : at + 3] == ["double(torch.ones(2))", "Looks right."]


def test_cells_added_at_the_top_stay_at_the_top(course):
    added(course, 0, new_markdown_cell("Ada's copy"), new_code_cell("%matplotlib inline"))
    new_version(course)
    update(course)
    assert sources(course)[:2] == ["Ada's copy", "%matplotlib inline"]


def test_a_changed_cell_keeps_the_change_while_it_exists(course):
    identifier = changed(course, ":print(torch", "print(torch.ones(5).sum().item())")
    new_version(course)
    update(course)
    assert source_of(course, identifier) == "print(torch.ones(5).sum().item())"


@pytest.mark.parametrize("part", ["task", "check", "hint"])
def test_what_was_written_into_the_other_cells_of_an_exercise_stays(course, part):
    before = source_of(course, f"double-{part}")
    changed(course, f"double-{part}", before + "\nmine")
    new_version(course)
    update(course)
    assert source_of(course, f"double-{part}") == before + "\nmine"


def test_an_untouched_task_gets_its_new_text(course):
    new_version(course, '"double numbers."', '"double any number."', "course_utils/weeks/week90.toml")
    update(course)
    assert "double any number" in source_of(course, "double-task")


def test_a_changed_cell_that_is_gone_from_the_new_version_is_told(course):
    changed(course, ":print(torch", "print('mine')")
    new_version(course, "print(torch.ones(2).sum().item())", "print(torch.zeros(2).sum().item())")
    [sentence] = update(course)
    [backup] = backups(course)
    assert "1 cells you had changed are gone from the new version and stand only there." in sentence
    assert "print('mine')" in [cell.source for cell in read(course, backup).cells]


def test_an_answer_to_an_exercise_that_is_gone_is_told(course):
    changed(course, "double-answer", MINE)
    new_version(course, "{exercise} double", "")
    (course / "course_utils" / "exercises" / "week90" / "double.py").unlink()
    publish(course)
    [sentence] = update(course)
    assert "1 cells you had changed are gone" in sentence


def test_an_answer_to_an_exercise_of_another_notebook_does_not_stop_the_update(course):
    """A student may paste last week's function into this week's notebook."""
    new_version(course, "{exercise} double", "")
    update(course)
    added(course, 3, new_code_cell(MINE))
    new_version(course, "And now words.", "And now for words.")
    [sentence] = update(course)
    assert "your answers carried over: none yet" in sentence
    assert MINE in sources(course)


def test_an_answer_written_into_a_cell_of_its_own_stays_where_it_is(course):
    stub = source_of(course, "double-answer")
    added(course, 99, new_code_cell(MINE))
    new_version(course)
    update(course)
    assert source_of(course, "double-answer") == stub
    assert sources(course)[-1] == MINE


def test_an_answer_in_another_cell_moves_home_when_its_cell_was_deleted(course):
    notebook = read(course)
    notebook.cells = [cell for cell in notebook.cells if cell.id != "double-answer"]
    notebook.cells.append(new_code_cell(MINE))
    write(course, notebook)
    new_version(course)
    update(course)
    assert source_of(course, "double-answer") == MINE
    assert sources(course).count(MINE) == 1


@pytest.mark.parametrize("text", ['{"cells": [', "", "[]"], ids=["cut off", "empty", "no notebook"])
def test_a_broken_notebook_is_left_alone(course, text):
    (course / "work" / NAME).write_text(text, encoding="utf-8")
    new_version(course)
    assert update(course) == [
        f"work/{NAME} cannot be read as a notebook, so it is left alone; move it away to get a fresh copy."
    ]
    assert (course / "work" / NAME).read_text(encoding="utf-8") == text
    assert backups(course) == []


def test_the_updated_notebook_is_valid_and_its_ids_are_unique(course):
    changed(course, "double-answer", MINE)
    added(course, 4, new_code_cell("x = 1"))
    new_version(course)
    update(course)
    notebook = read(course)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_no_partial_file_is_left(course):
    new_version(course)
    update(course)
    assert [file.suffix for file in (course / "work").iterdir()] == [".ipynb", ".ipynb"]
