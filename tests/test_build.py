"""From lessons to notebooks: the same bytes every time, and everything the build refuses."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import forget_samples, write
from nbformat.v4 import new_output

import course_utils.build
from course_utils.build import build, course_root, images_without_alt, output_problems, problems, read_lessons
from course_utils.cli import main
from course_utils.errors import CourseError
from course_utils.exercise import exercise_weeks, load_exercise
from course_utils.lesson import read_lesson
from course_utils.weeks import week_names

NAME = "week90_samples.ipynb"


@pytest.fixture
def not_executed(monkeypatch):
    """Instead of running the cells, count them."""

    def count(notebook, name):
        for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
            cell.execution_count = number
            pretend_to_pass(cell)

    monkeypatch.setattr(course_utils.build, "execute", count)


def pretend_to_pass(cell):
    """Give a check cell the output of a passed check."""
    if cell.id.endswith("-check"):
        cell.outputs = [shown(text_plain=f"{cell.id.removesuffix('-check')}: passed, 2 of 2 cases")]


def edited(root, old, new, file="lessons/week90_samples.md"):
    """Replace a part of a file of the sample course."""
    text = (root / file).read_text(encoding="utf-8")
    assert old in text
    (root / file).write_text(text.replace(old, new), encoding="utf-8")
    forget_samples()


def found(root):
    """What the build refuses."""
    return list(problems(read_lessons(root)))


# --- what is written ----------------------------------------------------------------------------------------------


def test_a_correct_course_has_no_problems(sample_course):
    assert found(sample_course) == []


def test_the_students_notebook_has_task_stub_check_and_hint(sample_course):
    notebook = read_lesson(sample_course / "lessons" / "week90_samples.md").notebook(solved=False)
    cells = {cell.id: cell for cell in notebook.cells}
    assert cells["double-task"].source == "### Exercise: `double`\n\n*Afterwards you can double numbers.*"
    assert cells["double-answer"].source.endswith('new tensor."""\n    raise NotImplementedError')
    assert cells["double-check"].source == "check(double)"
    assert "What is three and three?" in cells["double-hint"].source
    assert "Add the values to themselves." not in cells["double-hint"].source
    assert cells["last_item-task"].source.startswith("### Bug hunt: `last_item`")
    assert "return items[count - 2]" in cells["last_item-answer"].source


def test_the_solved_notebook_has_the_references(sample_course):
    notebook = read_lesson(sample_course / "lessons" / "week90_samples.md").notebook(solved=True)
    cells = {cell.id: cell for cell in notebook.cells}
    assert "return doubled.add_(values)" in cells["double-answer"].source
    assert "return items[-1]" in cells["last_item-answer"].source


def test_objectives_are_listed_as_sentences(sample_course):
    notebook = read_lesson(sample_course / "lessons" / "week90_samples.md").notebook(solved=False)
    assert "- Double numbers.\n- Count words.\n- Answer a question." in [cell.source for cell in notebook.cells]


def test_building_twice_gives_the_same_bytes(sample_course, not_executed):
    files = [f"notebooks/{NAME}", f"solutions/{NAME}"]
    assert build(sample_course) == files
    first = [(sample_course / file).read_bytes() for file in files]
    forget_samples()
    build(sample_course)
    assert [(sample_course / file).read_bytes() for file in files] == first


def test_the_notebooks_are_valid_and_carry_no_machine_facts(sample_course, not_executed):
    build(sample_course)
    for folder in ("notebooks", "solutions"):
        notebook = nbformat.read(sample_course / folder / NAME, as_version=4)
        nbformat.validate(notebook)
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_a_cells_id_stays_while_its_text_does(sample_course):
    file = sample_course / "lessons" / "week90_samples.md"
    before = {cell.source: cell.id for cell in read_lesson(file).notebook(solved=False).cells}
    edited(sample_course, "Now write it.", "Now write it, please.")
    after = {cell.source: cell.id for cell in read_lesson(file).notebook(solved=False).cells}
    same = before.keys() & after.keys()
    assert len(same) == len(before) - 1
    assert all(before[source] == after[source] for source in same)


def test_only_the_weeks_asked_for_are_written(sample_course, not_executed):
    assert build(sample_course, weeks=["week90"]) == [f"notebooks/{NAME}", f"solutions/{NAME}"]
    with pytest.raises(CourseError, match=r"^There is no lesson for week91\.$"):
        build(sample_course, weeks=["week91"])


def test_an_unfinished_week_holds_up_only_itself(sample_course, not_executed):
    write(sample_course / "lessons" / "week91_unfinished.md", "Nothing yet.")
    write(sample_course / "course_utils" / "exercises" / "week91" / "triple.py", "")
    assert build(sample_course, weeks=["week90"]) == [f"notebooks/{NAME}", f"solutions/{NAME}"]
    assert build(sample_course, weeks=["week90"], check=True) == []
    with pytest.raises(CourseError, match=r"^lessons/week91_unfinished\.md: the front matter"):
        build(sample_course)


def test_nothing_is_written_when_something_is_refused(sample_course, not_executed):
    edited(sample_course, "{exercise} double", "")
    with pytest.raises(CourseError):
        build(sample_course)
    assert not (sample_course / "notebooks").exists()


# --- what is refused ----------------------------------------------------------------------------------------------

LESSON_FILE = "lessons/week90_samples.md"
LONG = "x = 1  # " + "a" * 100


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{exercise} double",
            "{exercise} double\n\n{exercise} doubel",
            "lessons/week90_samples.md: there is no exercise called 'doubel'; see `course list`.",
        ),
        (
            "{exercise} double",
            "{exercise} double\n\n{exercise} double",
            "double is placed 2 times in lessons/; an exercise stands in one place.",
        ),
        (
            "{exercise} double",
            "",
            "exercises/week90/double.py is placed in no lesson; add a line `{exercise} double`.",
        ),
        (
            "Now write it.",
            "Now write it. ![](picture.png)",
            "lessons/week90_samples.md, cell “## 1. Doubling”: a picture without alt text; say in words what it shows.",
        ),
        (
            "Now write it.",
            'Now write it. <img src="a.png" alt="">',
            "lessons/week90_samples.md, cell “## 1. Doubling”: a picture without alt text; say in words what it shows.",
        ),
        (
            "import torch",
            LONG,
            f"lessons/week90_samples.md, cell “{LONG[:50]}”: 109 characters, 100 are allowed: {LONG[:60]}…",
        ),
        (
            "import torch",
            "doubled = values.clone()\nreturn doubled.add_(values)",
            "lessons/week90_samples.md: a cell gives away the solution of double: "
            "'doubled = values.clone()\\nreturn doubled.add_(values)\\n\\nfrom c'…",
        ),
        (
            "And now words.",
            "So `x`:\n\n    doubled = values.clone()\n    return doubled.add_(values)",
            "lessons/week90_samples.md: a cell gives away the solution of double: "
            "'So `x`:\\n\\n    doubled = values.clone()\\n    return doubled.add'…",
        ),
    ],
    ids=["unknown", "twice", "nowhere", "image", "html image", "long line", "leak in code", "leak in text"],
)
def test_a_lesson_is_refused_with_a_message_that_names_the_place(sample_course, old, new, message):
    edited(sample_course, old, new)
    assert message in found(sample_course)


@pytest.mark.parametrize(
    "text",
    ["![a red square](picture.png)", '<img src="a.png" alt="a red square">', "x = values.clone()"],
)
def test_a_lesson_with_alt_texts_and_single_lines_in_common_is_accepted(sample_course, text):
    edited(sample_course, "Now write it.", text)
    assert found(sample_course) == []


@pytest.mark.parametrize("code", ["def triple(values):\n    return 3 * values", "class triple: ...", "x = triple = 3"])
def test_a_lesson_that_takes_the_name_of_another_weeks_exercise_is_refused(sample_course, code):
    write(sample_course / "course_utils" / "exercises" / "week91" / "triple.py", "")
    edited(sample_course, "import torch", code)
    assert f"{LESSON_FILE}: triple is the name of an exercise of week91; call it something else." in found(
        sample_course
    )
    edited(sample_course, "triple", "thrice")
    assert not any("is the name of" in problem for problem in found(sample_course))


def test_an_objective_that_nothing_assesses_is_refused(sample_course):
    edited(sample_course, "[objectives]", '[objectives]\n"sample.new" = "fly."', "course_utils/weeks/week90.toml")
    assert found(sample_course) == ["weeks/week90.toml: no exercise or quiz question assesses 'sample.new'."]


def test_an_exercise_with_an_objective_the_week_does_not_have_is_refused(sample_course):
    edited(sample_course, '"sample.double"', '"sample.duoble"', "course_utils/exercises/week90/double.py")
    assert found(sample_course) == [
        "exercises/week90/double.py: weeks/week90.toml has no objective 'sample.duoble'.",
        "weeks/week90.toml: no exercise or quiz question assesses 'sample.double'.",
    ]


def test_a_long_line_of_a_solution_is_refused(sample_course):
    edited(sample_course, "values.clone()", f"values.clone()  # {'a' * 90}", "course_utils/exercises/week90/double.py")
    [message] = found(sample_course)
    assert "”: 122 characters, 100 are allowed: doubled = values.clone()  # aaa" in message


def test_a_week_without_a_lesson_and_an_exercise_in_another_weeks_lesson_are_refused(sample_course):
    week = sample_course / "course_utils" / "weeks" / "week90.toml"
    (week.parent / "week91.toml").write_text(week.read_text(encoding="utf-8"), encoding="utf-8")
    assert found(sample_course) == ["weeks/week91.toml has no lesson."]
    lesson = (sample_course / LESSON_FILE).read_text(encoding="utf-8")
    write(sample_course / "lessons" / "week91_more.md", lesson)
    assert "lessons/week91_more.md: double belongs to week90." in found(sample_course)


def test_a_lesson_without_front_matter_is_refused(sample_course):
    write(sample_course / LESSON_FILE, "# Week 90\n")
    with pytest.raises(CourseError, match=r"^lessons/week90_samples.md: the front matter with format_name: myst is"):
        read_lessons(sample_course)


def test_a_folder_without_lessons_is_refused(tmp_path):
    with pytest.raises(CourseError, match=r"^There are no lessons/\*\.md below"):
        read_lessons(tmp_path)


# --- what is refused in the executed solutions ----------------------------------------------------------------------


def executed(root, *outputs):
    """The solved sample notebook as if it had run, with outputs in its last cell."""
    notebook = read_lesson(root / LESSON_FILE).notebook(solved=True)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
            pretend_to_pass(cell)
    notebook.cells[-1].outputs = list(outputs)
    return notebook


def shown(**data):
    """An output that displays data; underscores stand for slashes."""
    return new_output("display_data", data={kind.replace("_", "/"): text for kind, text in data.items()})


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (shown(image_png="AAAA"), "shows a figure without alt text; show a plots.Figure."),
        (shown(text_html='<img src="a">'), "shows a figure without alt text; show a plots.Figure."),
        (new_output("error", ename="ValueError", evalue="no", traceback=[]), "raises ValueError: no"),
    ],
    ids=["image", "html", "error"],
)
def test_an_output_of_a_solution_is_refused(sample_course, output, message):
    place = "cell “print(torch.ones(2).sum().item())”"
    assert list(output_problems(executed(sample_course, output))) == [f"{place} {message}"]


def test_text_and_figures_with_alt_text_are_accepted(sample_course):
    fine = [new_output("stream", text="2.0"), shown(text_html='<img alt="a red square" src="a">')]
    assert list(output_problems(executed(sample_course, *fine))) == []


def test_a_cell_that_did_not_run_and_widget_state_are_refused(sample_course):
    notebook = executed(sample_course)
    notebook.cells[-1].execution_count = None
    notebook.metadata["widgets"] = {}
    assert list(output_problems(notebook)) == [
        "widget state is stored in its metadata.",
        "cell “print(torch.ones(2).sum().item())” was not executed.",
    ]


def test_images_without_alt_are_found_among_others():
    text = '<img src="a" alt="words"> <img alt=\'\' src="b"> <img src="c"/>'
    assert images_without_alt(text) == ["<img alt='' src=\"b\">", '<img src="c"/>']


# --- check --------------------------------------------------------------------------------------------------------


def refused(root):
    """What `build --check` says, line by line."""
    with pytest.raises(CourseError) as caught:
        build(root, check=True)
    return str(caught.value).split("\n")


def test_check_accepts_what_was_built_and_writes_nothing(sample_course, not_executed):
    build(sample_course)
    before = {file: file.stat().st_mtime_ns for file in sample_course.rglob("*.ipynb")}
    assert build(sample_course, check=True) == []
    assert {file: file.stat().st_mtime_ns for file in sample_course.rglob("*.ipynb")} == before


def test_the_notebooks_of_this_course_are_what_its_lessons_say():
    assert build(Path(__file__).parent.parent, check=True) == []


def test_check_refuses_missing_notebooks(sample_course):
    assert refused(sample_course) == [
        f"notebooks/{NAME} is missing; `make build` writes it.",
        f"solutions/{NAME} is missing; `make build` writes it.",
    ]
    assert not (sample_course / "notebooks").exists()


def test_check_refuses_notebooks_that_differ_from_the_lesson(sample_course, not_executed):
    build(sample_course)
    edited(sample_course, "Now write it.", "Now write it down.")
    assert refused(sample_course) == [
        f"notebooks/{NAME} differs from its lesson; `make build` writes it.",
        f"solutions/{NAME} differs from its lesson; `make build` writes it.",
    ]


def test_check_refuses_a_notebook_that_was_edited_by_hand(sample_course, not_executed):
    build(sample_course)
    edited(sample_course, "raise NotImplementedError", "pass", f"notebooks/{NAME}")
    assert refused(sample_course) == [f"notebooks/{NAME} differs from its lesson; `make build` writes it."]


def test_check_refuses_a_solution_that_was_not_executed(sample_course, monkeypatch):
    monkeypatch.setattr(course_utils.build, "execute", lambda notebook, name: None)
    monkeypatch.setattr(course_utils.build, "output_problems", lambda notebook: [])
    build(sample_course)
    monkeypatch.setattr(course_utils.build, "output_problems", output_problems)
    lines = refused(sample_course)
    assert f"solutions/{NAME}: cell “check(double)” was not executed." in lines
    assert all(line.endswith("was not executed.") for line in lines)


def test_check_refuses_a_notebook_without_a_lesson(sample_course, not_executed):
    build(sample_course)
    (sample_course / "notebooks" / "old.ipynb").write_text("{}", encoding="utf-8")
    assert refused(sample_course) == ["notebooks/old.ipynb has no lesson; delete it or write lessons/old.md."]


def test_check_refuses_a_notebook_that_cannot_be_read(sample_course, not_executed):
    build(sample_course)
    (sample_course / "notebooks" / NAME).write_text('{"cells": [', encoding="utf-8")
    assert refused(sample_course) == [f"notebooks/{NAME} cannot be read as a notebook; `make build` writes it."]


# --- a new exercise, in a copy of the course, by the command --------------------------------------------------------

TRIPLE = '''
    """Three times as much."""

    from course_utils.exercise import exercise


    @exercise(objectives=("sample.double",))
    def triple(values):
        """Three times the values."""
        three_times = 3 * values
        return three_times


    @triple.case
    def some_numbers(implementation, draw):
        return implementation(draw.normal(3))


    @triple.misconception("You doubled.")
    def doubles(values):
        return 2 * values


    triple.hints("How often?", "Three times.")
'''


def test_a_new_exercise_is_one_module_and_one_line_in_the_lesson(copied_course, monkeypatch, capsys):
    """The whole way: refused without the line; with it built, executed by a kernel that sees the copy, accepted."""
    write(copied_course / "course_utils" / "exercises" / "week90" / "triple.py", TRIPLE)

    monkeypatch.chdir(copied_course)
    forget_samples()

    assert main(["build", "--check"]) == 1
    refusal = "course: exercises/week90/triple.py is placed in no lesson; add a line `{exercise} triple`.\n"
    assert capsys.readouterr() == ("", refusal)

    edited(copied_course, "{exercise} double", "{exercise} double\n\n{exercise} triple")
    assert main(["build"]) == 0
    assert capsys.readouterr() == (f"notebooks/{NAME}\nsolutions/{NAME}\n", "")
    solved = nbformat.read(copied_course / "solutions" / NAME, as_version=4)
    outputs = {cell.id: cell.outputs for cell in solved.cells if cell.cell_type == "code"}
    assert "triple: passed, 1 of 1 cases" in outputs["triple-check"][0].data["text/plain"]
    assert outputs[solved.cells[-1].id][0].text == "2.0\n"

    assert main(["build", "--check"]) == 0
    assert capsys.readouterr() == ("Every notebook is what its lesson says.\n", "")


def test_a_cell_that_raises_is_refused_with_its_text_and_nothing_is_written(sample_course):
    edited(sample_course, "import torch\n\nfrom course_utils import check", "check = print\n1 / 0")
    with pytest.raises(CourseError, match=rf"^solutions/{NAME} does not run to its end\.\n[\s\S]*ZeroDivisionError"):
        build(sample_course)
    assert not (sample_course / "notebooks").exists()


# --- the clone ----------------------------------------------------------------------------------------------------


def test_the_clone_is_found_from_any_folder_inside(sample_course):
    assert course_root(sample_course / "lessons") == sample_course.resolve()


def test_outside_a_clone_the_folder_of_the_package_is_taken(tmp_path):
    assert course_root(tmp_path) == Path(course_utils.build.__file__).resolve().parent.parent


def test_without_any_clone_the_message_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.setattr(course_utils.build, "__file__", str(tmp_path / "site-packages" / "course_utils" / "build.py"))
    with pytest.raises(CourseError, match=r"^This is not a clone of the course"):
        course_root(tmp_path)


def test_the_sample_course_hides_the_real_one_only_for_its_test():
    assert "week01" in week_names()
    assert "storage_index" in exercise_weeks()


def test_a_solution_that_does_not_pass_in_its_notebook_is_refused(sample_course):
    """A reference may use a name that its module imports and the notebook does not."""
    notebook = executed(sample_course)
    check = next(cell for cell in notebook.cells if cell.id == "double-check")
    check.outputs = [shown(text_plain="double: error, 0 of 2 cases pass")]
    (problem,) = output_problems(notebook)
    assert problem.startswith("cell “check(double)”: the solution does not pass with what the notebook imports.")
    assert problem.endswith("double: error, 0 of 2 cases pass")


def test_an_exercise_without_hints_is_refused(sample_course, monkeypatch):
    lesson = read_lesson(sample_course / LESSON_FILE)
    monkeypatch.setattr(load_exercise("double"), "hint_texts", ())
    assert 'double.py: there are no hints; add double.hints("…", "…").' in " ".join(problems([lesson]))


# --- the cell that makes a notebook run outside a clone ---------------------------------------------------------------


def setup_cell(root: Path):
    notebook = read_lesson(root / LESSON_FILE).notebook(solved=False)
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


def with_source(root: Path, source: str) -> str:
    (root / "pyproject.toml").write_text(f'[tool.course]\nsource = "{source}"\n', encoding="utf-8")
    return setup_cell(root).source


@pytest.fixture
def pip(monkeypatch):
    """Nothing is installed, and pip only notes what it is asked for. `pip.returncode` is what it answers."""
    answer = SimpleNamespace(asked=[], returncode=0, stderr="no such address")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: answer.asked.append(command) or answer)
    return answer


def test_the_first_code_cell_installs_the_package_from_the_courses_source(sample_course, pip):
    exec(with_source(sample_course, "git+https://example.org/course.git"), {})
    assert pip.asked == [[sys.executable, "-m", "pip", "install", "--quiet", "git+https://example.org/course.git"]]
    pip.returncode = 1
    with pytest.raises(ModuleNotFoundError, match="pip could not install the_folder:\nno such address"):
        exec(with_source(sample_course, "the_folder"), {})


def test_without_a_source_the_first_code_cell_says_what_to_write(sample_course, pip):
    with pytest.raises(ModuleNotFoundError, match="write into SOURCE where it comes from"):
        exec(setup_cell(sample_course).source, {})
    assert pip.asked == []


def test_in_a_clone_the_first_code_cell_does_nothing_and_is_folded_away(sample_course, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    cell = setup_cell(sample_course)
    exec(cell.source, {})
    assert cell.metadata["jupyter"]["source_hidden"] is True
