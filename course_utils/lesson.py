"""A lesson turned into cells: Markdown as it stands, and each placeholder replaced by what it stands for."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils.errors import CourseError
from course_utils.exercise import Exercise, load_exercise
from course_utils.source import solution_source, stub_source
from course_utils.weeks import Week, load_week

PLACEHOLDER = re.compile(r"^\{(exercise|objectives)\}[ \t]*(\S*)[ \t]*$", re.MULTILINE)
GENERATED = re.compile(r"([0-9a-f]{10}-\d+|\w+-(task|answer|check|hint))$")  # ids of cells that lessons make
MOST_NAMES = 5
SETUP = """\
# In a clone of the course this cell does nothing. Elsewhere, on Colab for example, it installs
# the course's package from SOURCE: a Git address (git+https://…), a folder, or a wheel.
import importlib.util
import subprocess
import sys

SOURCE = {source}

if importlib.util.find_spec("course_utils") is None:
    if not SOURCE:
        raise ModuleNotFoundError(
            "The course's package is not installed here. In this cell, which may be folded away, "
            "write into SOURCE where it comes from, and run the cell again."
        )
    command = [sys.executable, "-m", "pip", "install", "--quiet", SOURCE]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        raise ModuleNotFoundError(f"pip could not install {{SOURCE}}:\\n{{installed.stderr[-2000:]}}")
    importlib.invalidate_caches()
"""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Lesson:
    """A lesson file: its week, its cells as read, and the exercises it places, in order."""

    file: Path
    week: Week
    cells: tuple[NotebookNode, ...]
    exercise_names: tuple[str, ...]

    @property
    def notebook_name(self) -> str:
        """File name of the notebooks made from it."""
        return f"{self.file.stem}.ipynb"

    def notebook(self, *, solved: bool) -> NotebookNode:
        """The students' notebook, or with `solved` the one with reference answers, not executed."""
        cells = [cell for source in self.cells for cell in self._expand(source, solved)]
        first_code = next((place for place, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
        cells.insert(first_code, _setup_cell(self.file.parent.parent))
        _give_ids(cells)
        return new_notebook(cells=cells, metadata=METADATA, nbformat_minor=5)

    def _expand(self, source: NotebookNode, solved: bool) -> Iterator[NotebookNode]:
        if source.cell_type != "markdown":
            yield new_code_cell(source.source, metadata=_tags(source))
            return
        position = 0
        for match in PLACEHOLDER.finditer(source.source):
            yield from _markdown(source.source[position : match.start()])
            if match[1] == "exercise":
                yield from _exercise_cells(load_exercise(match[2]), self.week, solved)
            else:
                yield from _markdown("\n".join(f"- {_sentence(text)}" for text in self.week.objectives.values()))
            position = match.end()
        yield from _markdown(source.source[position:])


def read_lesson(file: Path) -> Lesson:
    """Read a lesson. Raises CourseError when it is no MyST Markdown of this course, WeekError for its week's file."""
    text = file.read_text(encoding="utf-8")
    if not text.startswith("---\n"):
        raise CourseError(f"lessons/{file.name}: the front matter with format_name: myst is missing.")
    notebook = jupytext.reads(text, fmt="md:myst")
    names = [
        match[2]
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for match in PLACEHOLDER.finditer(cell.source)
        if match[1] == "exercise"
    ]
    return Lesson(file, load_week(week_of(file)), tuple(notebook.cells), tuple(names))


def week_of(file: Path) -> str:
    """The week that a lesson's or a notebook's file name begins with."""
    return file.stem.split("_")[0]


def _setup_cell(root: Path) -> NotebookNode:
    """The cell that makes a notebook run outside a clone, folded away; SOURCE as pyproject.toml gives it."""
    file = root / "pyproject.toml"
    settings = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    source = settings.get("tool", {}).get("course", {}).get("source", "")
    code = SETUP.format(source=json.dumps(source, ensure_ascii=False)).rstrip("\n")
    return new_code_cell(code, metadata={"jupyter": {"source_hidden": True}, "tags": ["setup"]})


def _tags(cell: NotebookNode) -> dict[str, list[str]]:
    return {"tags": list(cell.metadata.tags)} if cell.metadata.get("tags") else {}


def _markdown(text: str) -> Iterator[NotebookNode]:
    if text.strip():
        yield new_markdown_cell(text.strip("\n"))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _exercise_cells(exercise: Exercise, week: Week, solved: bool) -> Iterator[NotebookNode]:
    """Task, stub or solution, check, and a hint to unfold."""
    name = exercise.name
    stub = stub_source(exercise).rstrip("\n")
    answer = solution_source(exercise).rstrip("\n") if solved else stub
    yield new_markdown_cell(task := _task(exercise, week), id=f"{name}-task", metadata=_made(task))
    yield new_code_cell(answer, id=f"{name}-answer", metadata={"course": {"exercise": name, "stub": digest(stub)}})
    yield new_code_cell(check := f"check({name})", id=f"{name}-check", metadata=_made(check))
    first = "".join(exercise.hint_texts[:1])
    more = f"For more, run `hint({name})` in a cell of its own; each call shows one more."
    hint = f"<details>\n<summary>A hint for {name}</summary>\n\n{first}\n\n{more}\n\n</details>"
    yield new_markdown_cell(hint, id=f"{name}-hint", metadata=_made(hint))


def _made(text: str) -> dict[str, dict[str, str]]:
    """Metadata by which `course update` sees whether a student wrote in the cell."""
    return {"course": {"text": digest(text)}}


def _task(exercise: Exercise, week: Week) -> str:
    kind = "Bug hunt" if exercise.broken_version else "Exercise"
    lines = [f"### {kind}: `{exercise.name}`", ""]
    abilities = "; ".join(week.objectives.get(o, o).rstrip(".") for o in exercise.objectives)
    lines.append(f"*Afterwards you can {abilities}.*")
    if exercise.broken_version:
        lines += [
            "",
            "This version runs and is wrong. Its docstring says what it should do. Find out why, then mend it.",
        ]
    if exercise.forbids:
        names = list(dict.fromkeys(f"`{function.__name__}`" for function in exercise.forbids))
        relatives = " and their relatives" if len(names) > MOST_NAMES else ""
        lines += ["", f"Do it without {', '.join(names[:MOST_NAMES])}{relatives}."]
    return "\n".join(lines)


def _give_ids(cells: list[NotebookNode]) -> None:
    """Ids that stay the same as long as a cell's text does: the exercise's name and part, else a digest of the text."""
    seen: Counter[str] = Counter()
    for cell in cells:
        if not re.match(r"\w+-(task|answer|check|hint)$", cell.id):
            text = digest(f"{cell.cell_type}\n{cell.source}")
            seen[text] += 1
            cell.id = f"{text}-{seen[text]}"


def digest(text: str) -> str:
    """Ten hexadecimal digits that stand for the text."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]
