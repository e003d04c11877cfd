"""Find and read submissions (notebooks, percent scripts): imports, definitions, constants, which grading runs.

Torch is not imported here: the processes that run submissions start while it loads.
"""

from __future__ import annotations

import ast
import hashlib
import json
import linecache
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from course_utils.errors import CourseError
from course_utils.exercise import exercise_weeks

if TYPE_CHECKING:
    from course_utils.run import Clock

PLACE = ", code cell "  # in the file name of everything a submission compiles

FEWEST_NODES = 40
LARGEST_BYTES = 100 * 2**20
LARGEST_KEPT = 20_000  # characters

# Modules that a right answer has no use for; an answer that imports one is graded and shown to a person.
SUSPICIOUS = ("inspect", "gc", "ctypes", "pickle", "marshal", "course_utils.exercises", "course_utils.judge",
              "course_utils.run", "course_utils.observe", "course_utils.source", "course_utils.worker")  # fmt: skip

_CONSTANT = (
    ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.UnaryOp, ast.BinOp, ast.Name, ast.Attribute,
    ast.operator, ast.unaryop, ast.expr_context,
)  # fmt: skip


_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
_MAGIC = re.compile(r"\s*([\w, ]+=\s*)?[%!]|\s*\?|[^#'\"]*\?\s*$")  # %time f(), files = !ls, ?f, f?


class Cell(NamedTuple):
    """A code cell: where it stands in its file (counted from 1 among code cells) and its Python text."""

    number: int
    source: str


@dataclass
class Submission:
    """A file to grade: its name in the report, its code cells, and the exercises that get a row.

    digest: of the file's content. problem: a sentence when it cannot be graded. cells_to_run: those that bind names.
    """

    name: str
    path: Path
    digest: str
    cells: list[Cell] = field(default_factory=list)
    exercises: list[str] = field(default_factory=list)
    problem: str = ""
    cells_to_run: list[Cell] = field(default_factory=list)


def find_files(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """The submissions below the paths, in order, each once, with names for the report: paths from the common folder.

    Raises CourseError when a path does not exist, or none holds a notebook or script.
    """
    found: dict[Path, None] = {}
    folders = []
    for given in paths:
        path = given.absolute()
        if not path.exists():
            raise CourseError(f"{given}: there is no such file or folder.")
        if path.is_file():
            folders.append(path.parent)
            found[path] = None
            continue
        folders.append(path)
        for file in sorted(file for file in path.rglob("*") if file.suffix in (".ipynb", ".py") and file.is_file()):
            if not any(part.startswith((".", "__")) for part in file.relative_to(path).parts):
                found[file] = None
    if not found:
        raise CourseError("There is no .ipynb or .py file in what you gave; name files, or a folder that holds them.")
    common = Path(os.path.commonpath(folders))
    return [(file, file.relative_to(common).as_posix()) for file in found]


def open_submission(path: Path, name: str, week: str = "") -> Submission:
    """Read a submission and decide which exercises it is graded on.

    Those of `week`, or without one those of every week it touches, by what it defines or by a file name such as
    week01_anything.
    """
    known = exercise_weeks()
    weeks = {week} if week else {path.stem.split("_")[0]} & set(known.values())
    submission = Submission(name, path, file_digest(path))
    try:
        submission.cells = read_cells(path)
        submission.cells_to_run = [cell for cell in submission.cells if contents(cell.source).is_run]
    except CourseError as error:
        submission.problem = str(error)
    if not week:
        names = {name for cell in submission.cells for name in contents(cell.source).names}
        weeks |= {known[name] for name in names & known.keys()}
    submission.exercises = [exercise for exercise, of in known.items() if of in weeks]
    if not submission.exercises and not submission.problem:
        submission.problem = f"{path.name} defines none of the course's exercises."
    return submission


def file_digest(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weeks_named(files: Iterable[tuple[Path, str]]) -> set[str]:
    """The weeks of all exercises that the files seem to define; a quick look, to know what to prepare."""
    known, names = exercise_weeks(), set[str]()
    for path, _ in files:
        with suppress(OSError):
            names |= {name.decode() for name in re.findall(rb"\b(?:def|class)\s+(\w+)", path.read_bytes())}
    return {known[name] for name in names & known.keys()}


def read_cells(path: Path) -> list[Cell]:
    """The code cells of a notebook or percent script; lines for IPython alone (`%`, `!`, `?`) become blank.

    Raises CourseError when the file is missing, too large, no notebook, or not UTF-8.
    """
    if not path.is_file():
        raise CourseError(f"{path.name}: there is no such file.")
    if path.stat().st_size > LARGEST_BYTES:
        raise CourseError(
            f"{path.name} is larger than {LARGEST_BYTES // 2**20} MB; clear its outputs and hand in again."
        )
    try:
        text = path.read_text(encoding="utf-8")
        sources = _notebook_cells(text) if path.suffix == ".ipynb" else _script_cells(text)
    except UnicodeDecodeError as error:
        raise CourseError(f"{path.name} is not UTF-8 text (byte {error.start}).") from error
    except Exception as error:
        kind = "notebook" if path.suffix == ".ipynb" else "script"
        raise CourseError(f"{path.name} cannot be read as a {kind}: it may be cut off or empty.") from error
    return [Cell(number, python_only(source)) for number, source in enumerate(sources, start=1)]


def _notebook_cells(text: str) -> list[str]:
    """The sources of the code cells. Read as JSON: nbformat's validation takes as long as grading."""
    notebook = json.loads(text)
    if notebook.get("nbformat") != 4:
        import nbformat  # slow to import

        notebook = nbformat.reads(text, as_version=4)
    sources = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [source if isinstance(source, str) else "".join(source) for source in sources]


def _script_cells(text: str) -> list[str]:
    """The code cells of a percent script."""
    import jupytext  # slow to import, and the process that runs answers does without

    return [cell.source for cell in jupytext.reads(text, fmt="py:percent").cells if cell.cell_type == "code"]


def python_only(source: str) -> str:
    """The source with magics and shell lines blanked, so that line numbers stay; Python is left as it is."""
    if source.lstrip().startswith("%%") and not re.match(r"\s*%%(time|capture)\b", source):
        return ""
    if not contents(source).problem:
        return source
    return "\n".join("" if _MAGIC.match(line) else line for line in source.split("\n"))


def definitions(source: str) -> list[ast.stmt]:
    """The statements of a cell that grading runs, in order. Raises SyntaxError and the like for one without them."""
    return [statement for statement in ast.parse(source).body if is_kept(statement)]


def is_kept(statement: ast.stmt) -> bool:
    """Imports, functions, classes, and assignments of constants (numbers, names, arithmetic, no calls)."""
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return True
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = all(isinstance(node, (ast.Name, ast.Tuple, ast.List, ast.Starred, ast.expr_context))
                    for target in targets for node in ast.walk(target))  # fmt: skip
        return names and all(isinstance(node, _CONSTANT) for node in ast.walk(statement.value))
    return False


class Contents(NamedTuple):
    """What grading has to know of a cell's text before it runs.

    names: what the statements that grading runs bind. is_run: whether there are any. imports: the modules that an
    answer has no use for. digests: for each function and class, one of its code without comments, docstrings and
    layout; code too short to be a person's own has none. problem: about a syntax error.
    """

    names: frozenset[str] = frozenset()
    is_run: bool = False
    imports: tuple[str, ...] = ()
    digests: Mapping[str, str] = {}
    problem: str = ""


def contents(source: str) -> Contents:
    """Look at a cell's text. The notebooks of a class share most cells; each of these is looked at once."""
    return _contents(source) if len(source) < LARGEST_KEPT else _contents.__wrapped__(source)


@lru_cache(maxsize=5_000)
def _contents(source: str) -> Contents:
    try:
        tree = ast.parse(source)
    except _UNREADABLE as error:
        line = getattr(error, "lineno", None)
        reason = error.args[0] if error.args else type(error).__name__
        return Contents(problem=f"a syntax error{f' in line {line}' if line else ''}: {reason}")
    kept = [statement for statement in tree.body if is_kept(statement)]
    names = frozenset(name for statement in kept for name in _bound(statement, imports=False))
    imports = dict.fromkeys(module for node in ast.walk(tree) for module in _suspicious_imports(node))
    digests = {}
    for statement in kept:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and (digest := _digest(statement)):
            digests[statement.name] = digest
    return Contents(names, bool(kept), tuple(imports), digests)


def _suspicious_imports(node: ast.AST) -> Iterator[str]:
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and node.module:
        modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    yield from (m for m in modules if m in SUSPICIOUS or m.startswith("course_utils.exercises."))


def _digest(definition: ast.FunctionDef | ast.ClassDef) -> str:
    """Of a definition, whose docstrings it takes away; "" for a short one."""
    for node in ast.walk(definition):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    if sum(1 for _ in ast.walk(definition)) < FEWEST_NODES:
        return ""
    return hashlib.sha256(ast.dump(definition).encode()).hexdigest()[:16]


def run_definitions(cells: list[Cell], file_name: str, clock: Clock) -> tuple[dict[str, Any], dict[str, str]]:
    """Execute the kept statements one by one in a fresh namespace; also return a sentence for each name that failed.

    clock: stops a statement that does not end; all statements together have its time.
    """
    namespace: dict[str, Any] = {"__name__": "__submission__"}
    failures: dict[str, str] = {}
    clock.start()
    for cell, statement in _statements(cells):
        place = f"{file_name}{PLACE}{cell.number}"
        linecache.cache[place] = (
            len(cell.source),
            None,
            cell.source.splitlines(keepends=True),
            place,
        )
        names = list(_bound(statement))
        try:
            code = compile(ast.Module([statement], []), place, "exec")
            clock.armed = True
            exec(code, namespace)
            clock.armed = False
        except BaseException as error:
            clock.armed = False
            for name in names:
                namespace.pop(name, None)
                failures[name] = f"{type(error).__name__} while defining {name} in code cell {cell.number}: {error}"
        else:
            for name in names:
                failures.pop(name, None)
    clock.stop()
    return namespace, failures


def _statements(cells: list[Cell]) -> Iterator[tuple[Cell, ast.stmt]]:
    for cell in cells:
        with suppress(*_UNREADABLE):
            yield from [(cell, statement) for statement in definitions(cell.source)]


def _bound(statement: ast.stmt, *, imports: bool = True) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
    elif imports and isinstance(statement, (ast.Import, ast.ImportFrom)):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
