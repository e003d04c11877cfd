"""Lessons and exercises → `notebooks/` and `solutions/`, and everything the build refuses."""

from __future__ import annotations

import ast
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from course_utils.errors import CourseError
from course_utils.exercise import exercise_weeks, load_exercise
from course_utils.lesson import Lesson, read_lesson, week_of
from course_utils.source import solution_source, stub_source
from course_utils.weeks import week_names

LINE_LENGTH = 100
SECONDS_PER_CELL = 120


def build(root: Path, *, check: bool = False, weeks: Collection[str] = ()) -> list[str]:
    """Write the notebooks and the executed solutions of all weeks, or of those given; return what was written.

    weeks: look at these alone, so that an unfinished week does not hold up another.
    check: write nothing; raise CourseError when a committed file differs from what the lessons say.
    Raises CourseError with every problem found, one a line, and then writes nothing.
    """
    lessons = read_lessons(root, weeks)
    refuse_if(problems(lessons, weeks))
    if check:
        refuse_if(stale_files(root, lessons, weeks))
        return []
    written = []
    for lesson in lessons:
        student, solved = lesson.notebook(solved=False), lesson.notebook(solved=True)
        execute(solved, lesson.notebook_name)
        refuse_if(f"solutions/{lesson.notebook_name}: {p}" for p in output_problems(solved))
        for folder, notebook in (("notebooks", student), ("solutions", solved)):
            file = root / folder / lesson.notebook_name
            file.parent.mkdir(exist_ok=True)
            file.write_text(as_text(notebook), encoding="utf-8", newline="\n")
            written.append(f"{folder}/{lesson.notebook_name}")
    return written


def read_lessons(root: Path, weeks: Collection[str] = ()) -> list[Lesson]:
    """All lessons in order, or those of some weeks. Raises CourseError when there are none, or none for a week."""
    files = sorted((root / "lessons").glob("*.md"))
    if not files:
        raise CourseError(f"There are no lessons/*.md below {root.name}; run this in a clone of the course.")
    refuse_if(f"There is no lesson for {week}." for week in sorted(set(weeks) - set(map(week_of, files))))
    return [read_lesson(file) for file in files if not weeks or week_of(file) in weeks]


def refuse_if(found: Iterable[str]) -> None:
    """Raise CourseError with all problems, if there are any."""
    if lines := list(dict.fromkeys(found)):
        raise CourseError("\n".join(lines))


def as_text(notebook: NotebookNode) -> str:
    """The notebook as it is stored."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


# --- what the build refuses ------------------------------------------------------------------------------------------


def problems(lessons: list[Lesson], weeks: Collection[str] = ()) -> Iterator[str]:
    """Everything wrong with lessons, exercises and weeks taken together, a sentence each with its place.

    weeks: those whose lessons were read; nothing for all of them.
    """
    yield from placement_problems(lessons, weeks)
    for lesson in lessons:
        known = {name for name in lesson.exercise_names if name in exercise_weeks()}
        if len(known) == len(lesson.exercise_names):
            yield from objective_problems(lesson)
            yield from cell_problems(lesson)
            yield from name_problems(lesson)
            yield from leak_problems(lesson)


def placement_problems(lessons: list[Lesson], weeks: Collection[str]) -> Iterator[str]:
    """Exercises that are unknown, placed twice, placed nowhere, or placed in another week's lesson."""
    known = exercise_weeks()
    placed = Counter(name for lesson in lessons for name in lesson.exercise_names)
    for lesson in lessons:
        for name in lesson.exercise_names:
            if name not in known:
                yield f"lessons/{lesson.file.name}: there is no exercise called {name!r}; see `course list`."
            elif known[name] != lesson.week.name:
                yield f"lessons/{lesson.file.name}: {name} belongs to {known[name]}."
    for name, count in placed.items():
        if count > 1:
            yield f"{name} is placed {count} times in lessons/; an exercise stands in one place."
    for name, week in known.items():
        if name not in placed and (not weeks or week in weeks):
            yield f"exercises/{week}/{name}.py is placed in no lesson; add a line `{{exercise}} {name}`."
    for week in sorted(set(weeks or week_names()) - {lesson.week.name for lesson in lessons}):
        yield f"weeks/{week}.toml has no lesson."


def objective_problems(lesson: Lesson) -> Iterator[str]:
    """Objectives that nothing assesses, and exercises that name an objective the week does not have."""
    week = lesson.week
    assessed = {objective for question in week.quiz for objective in question.objectives}
    for name in lesson.exercise_names:
        if not load_exercise(name).hint_texts:
            yield f'exercises/{week.name}/{name}.py: there are no hints; add {name}.hints("…", "…").'
        objectives = load_exercise(name).objectives
        assessed.update(objectives)
        for objective in sorted(set(objectives) - set(week.objectives)):
            yield f"exercises/{week.name}/{name}.py: weeks/{week.name}.toml has no objective {objective!r}."
    for objective in week.objectives:
        if objective not in assessed:
            yield f"weeks/{week.name}.toml: no exercise or quiz question assesses {objective!r}."


def cell_problems(lesson: Lesson) -> Iterator[str]:
    """Code lines that are too long, and pictures in the text without alt text."""
    for solved in (False, True):
        for cell in lesson.notebook(solved=solved).cells:
            place = f"lessons/{lesson.file.name}, cell “{cell.source.strip().split(chr(10))[0][:50]}”"
            if cell.cell_type == "code":
                for line in cell.source.split("\n"):
                    if len(line) > LINE_LENGTH:
                        start = line.strip()[:60]
                        yield f"{place}: {len(line)} characters, {LINE_LENGTH} are allowed: {start}…"
            elif re.search(r"!\[\s*\]\(", cell.source) or images_without_alt(cell.source):
                yield f"{place}: a picture without alt text; say in words what it shows."


def name_problems(lesson: Lesson) -> Iterator[str]:
    """Names of other weeks' exercises that the lesson's own code defines: `progress` would take them for answers."""
    for cell in lesson.cells:
        statements = ast.parse(cell.source).body if cell.cell_type == "code" else []
        targets = [target for statement in statements for target in getattr(statement, "targets", [])]
        for name in [getattr(node, "name", getattr(node, "id", "")) for node in [*statements, *targets]]:
            week = exercise_weeks().get(name, lesson.week.name)
            if week != lesson.week.name:
                place = f"lessons/{lesson.file.name}"
                yield f"{place}: {name} is the name of an exercise of {week}; call it something else."


def images_without_alt(html: str) -> list[str]:
    """The `<img>` elements whose alt text is missing or empty."""
    return [tag for tag in re.findall(r"<img\b[^>]*>", html) if not re.search(r"\balt=[\"'][^\"']*\w", tag)]


def leak_problems(lesson: Lesson) -> Iterator[str]:
    """Cells of the student's notebook that hold two thirds of the lines that a solution adds to its stub."""
    cells = lesson.notebook(solved=False).cells
    for name in lesson.exercise_names:
        exercise = load_exercise(name)
        given = {line.strip() for line in stub_source(exercise).split("\n")}
        lines = [line for line in body_lines(solution_source(exercise)) if line not in given]
        for cell in cells:
            found = {line.strip() for line in cell.source.split("\n")}
            if lines and 3 * sum(line in found for line in lines) >= 2 * len(lines):
                yield f"lessons/{lesson.file.name}: a cell gives away the solution of {name}: {cell.source[:60]!r}…"


def body_lines(source: str) -> list[str]:
    """The stripped lines of a definition's body that say something: no docstring, comments, or short lines."""
    definition = ast.parse(source).body[0]
    start = definition.body[1 if ast.get_docstring(definition) else 0].lineno - 1
    lines = [line.strip() for line in source.split("\n")[start:]]
    return [line for line in lines if len(line) > 12 and not line.startswith(("#", "def ", "@", '"""'))]


def stale_files(root: Path, lessons: list[Lesson], weeks: Collection[str]) -> Iterator[str]:
    """Committed notebooks that differ from what the lessons say, were not executed, or have no lesson."""
    repair = "`make build` writes it."
    for lesson in lessons:
        for folder, solved in (("notebooks", False), ("solutions", True)):
            file = root / folder / lesson.notebook_name
            if not file.is_file():
                yield f"{folder}/{file.name} is missing; {repair}"
                continue
            try:
                stored = nbformat.read(file, as_version=4)
            except Exception:
                yield f"{folder}/{file.name} cannot be read as a notebook; {repair}"
                continue
            if solved:
                yield from (f"solutions/{file.name}: {problem}" for problem in output_problems(stored))
                stored = without_outputs(stored)
            if as_text(stored) != as_text(lesson.notebook(solved=solved)):
                yield f"{folder}/{file.name} differs from its lesson; {repair}"
    names = {lesson.notebook_name for lesson in lessons}
    for folder in ("notebooks", "solutions"):
        for file in sorted((root / folder).glob("*.ipynb")):
            if file.name not in names and (not weeks or week_of(file) in weeks):
                yield f"{folder}/{file.name} has no lesson; delete it or write lessons/{file.stem}.md."


def without_outputs(notebook: NotebookNode) -> NotebookNode:
    """A copy as it was before it was executed."""
    bare = nbformat.from_dict(notebook)
    for cell in bare.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return bare


def output_problems(notebook: NotebookNode) -> Iterator[str]:
    """What may not stand in an executed solution: unexecuted cells, errors, widget state, pictures without alt text."""
    if "widgets" in notebook.metadata:
        yield "widget state is stored in its metadata."
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        place = f"cell “{cell.source.strip().split(chr(10))[0][:50]}”"
        if cell.execution_count is None:
            yield f"{place} was not executed."
        shown = "\n".join(str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs)
        if cell.execution_count is not None and cell.id.endswith("-check") and ": passed, " not in shown:
            yield f"{place}: the solution does not pass with what the notebook imports. {shown}"
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error":
                yield f"{place} raises {output.ename}: {output.evalue}"
            if any(kind.startswith("image/") for kind in data) or images_without_alt(str(data.get("text/html", ""))):
                yield f"{place} shows a figure without alt text; show a plots.Figure."


# --- executing --------------------------------------------------------------------------------------------------------


def execute(notebook: NotebookNode, name: str) -> None:
    """Run all cells in place on the CPU with one thread. Raises CourseError with the cell that failed."""
    settings = {"COURSE_DEVICE": "cpu", "COURSE_SEED": "0", "OMP_NUM_THREADS": "1"}
    former = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        with tempfile.TemporaryDirectory() as folder:
            client = NotebookClient(
                notebook,
                timeout=SECONDS_PER_CELL,
                kernel_name="python3",
                resources={"metadata": {"path": folder}},
                record_timing=False,
                coalesce_streams=True,
                store_widget_state=False,
            )
            client.execute()
    except CellExecutionError as error:
        raise CourseError(f"solutions/{name} does not run to its end.\n{error}") from error
    finally:
        for key, value in former.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}


def course_root(start: Path | None = None) -> Path:
    """The clone of the course: the folder with `lessons/` at or above `start`, else the one this package lies in.

    Raises CourseError when neither is a clone.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "lessons").is_dir() and (folder / "course_utils").is_dir():
            return folder
    raise CourseError("This is not a clone of the course: no folder here or above has lessons/. Change to the clone.")
