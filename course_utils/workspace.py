"""A student's own copies of the notebooks, in `work/`: started once, updated without losing a line."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course_utils.errors import CourseError
from course_utils.exercise import exercise_weeks, week_order
from course_utils.lesson import GENERATED, digest, week_of


def start(root: Path) -> list[str]:
    """Copy the notebooks that `work/` does not have yet; what is there stays as it is. Returns a sentence for each."""
    sentences = []
    for source in course_notebooks(root):
        target = root / "work" / source.name
        if target.exists():
            sentences.append(f"work/{source.name} is there already and stays as it is.")
            continue
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        sentences.append(f"work/{source.name} is new.")
    return sentences


def update(root: Path) -> list[str]:
    """Bring new versions of the notebooks to `work/`, carry the answers over by exercise name, keep a backup.

    Returns a sentence for each notebook. A copy that cannot be read is left alone, and the sentence says so.
    """
    sentences = []
    for source in course_notebooks(root):
        target = root / "work" / source.name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
            sentences.append(f"work/{source.name} is new.")
        else:
            sentences.append(_update_one(source, target))
    return sentences


def course_notebooks(root: Path) -> list[Path]:
    """The students' notebooks of the course, the capstone last. Raises CourseError when there are none."""
    files = sorted((root / "notebooks").glob("*.ipynb"), key=lambda file: week_order(file.stem))
    if not files:
        raise CourseError("There are no notebooks/*.ipynb; `make build` writes them from the lessons.")
    return files


def own_notebooks(root: Path, weeks: Collection[str] = ()) -> list[Path]:
    """The student's copies in `work/`, of all weeks or of some, without backups.

    Raises CourseError when there are none, or none of one of the weeks.
    """
    files = [root / "work" / source.name for source in course_notebooks(root)]
    found = [file for file in files if file.exists() and (not weeks or week_of(file) in weeks)]
    for week in weeks:
        if week not in map(week_of, found):
            raise CourseError(f"There is no notebook of {week} in work/; `course start` puts those of all weeks there.")
    if not found:
        raise CourseError("There are no notebooks in work/; `course start` puts them there.")
    return found


def _update_one(source: Path, target: Path) -> str:
    try:
        mine = nbformat.read(target, as_version=4)
    except Exception:
        return (
            f"work/{target.name} cannot be read as a notebook, so it is left alone; move it away to get a fresh copy."
        )
    merged = nbformat.read(source, as_version=4)
    answers, left_out = merge(mine, merged)
    if _sources(mine) == _sources(merged):
        return f"work/{target.name} is up to date."
    backup = _free_name(target)
    shutil.copyfile(target, backup)
    partial = target.with_suffix(".partial")
    nbformat.write(merged, partial)
    partial.replace(target)
    dropped = (
        f" {left_out} cells you had changed are gone from the new version and stand only there." if left_out else ""
    )
    carried = f"your answers carried over: {', '.join(answers) or 'none yet'}"
    told = f"work/{target.name} is updated, {carried}. Your former copy is work/{backup.name}.{dropped}"
    return f"{told} Run the cells again to see their outputs."


def _free_name(target: Path) -> Path:
    stamp = f"{target.stem}.backup-{datetime.now():%Y%m%d-%H%M%S}"
    names = (f"{stamp}{suffix}.ipynb" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(target.with_name(name) for name in names if not target.with_name(name).exists())


def merge(mine: NotebookNode, fresh: NotebookNode) -> tuple[list[str], int]:
    """Bring what a student wrote in `mine` into `fresh`, in place.

    Answers go into the cell of the same exercise, cells the student added stay behind the cell they stood behind, and
    changed cells that still exist keep the change. Returns the names of the answers, and the number of changed cells
    that have no place any more.
    """
    places = {cell.id: cell for cell in fresh.cells}
    own_answers = {name: source for name, source in _answers(mine).items() if f"{name}-answer" in places}
    for name, source in own_answers.items():
        places[f"{name}-answer"].source = source
    given = set(_sources(fresh)) | set(own_answers.values())
    left_out, anchor = 0, None
    for cell in mine.cells:
        if cell.id in places:
            anchor = cell.id
            if _is_changed(cell) and not cell.id.endswith("-answer"):
                places[cell.id].source = cell.source
        elif GENERATED.match(cell.id):
            left_out += _is_changed(cell) and cell.source not in given
        elif cell.source not in given:
            position = 1 + max((i for i, c in enumerate(fresh.cells) if c.id == anchor), default=-1)
            fresh.cells.insert(position, cell)
            anchor = cell.id
    return list(own_answers), left_out


def _answers(notebook: NotebookNode) -> dict[str, str]:
    """Exercise name → what the student wrote for it, stubs left as they were not counted."""
    answers: dict[str, str] = {}
    ids = {cell.id for cell in notebook.cells}
    for cell in notebook.cells:
        for name in _defines(cell):
            stub = cell.metadata.get("course", {}).get("stub")
            is_home = cell.id == f"{name}-answer" or f"{name}-answer" not in ids
            if is_home and digest(cell.source) != stub:
                answers[name] = cell.source
    return answers


def _is_changed(cell: NotebookNode) -> bool:
    """Whether a cell that the course made no longer says what the course wrote there."""
    given = cell.metadata.get("course", {})
    if digest(cell.source) in (given.get("stub"), given.get("text")):
        return False
    return bool(given) or not cell.id.startswith(digest(f"{cell.cell_type}\n{cell.source}"))


def _defines(cell: NotebookNode) -> Iterator[str]:
    """The exercises that a cell defines; a cell that does not parse counts by the text of its definitions."""
    if cell.cell_type != "code":
        return
    try:
        names = {n.name for n in ast.parse(cell.source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    except SyntaxError:
        names = {n for n in exercise_weeks() if f"def {n}(" in cell.source or f"class {n}" in cell.source}
    yield from (name for name in exercise_weeks() if name in names)


def _sources(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells]
