"""Read a submission, a notebook or a percent script: its imports, definitions and constants, which grading runs."""

from __future__ import annotations

import ast
import hashlib
import json
import linecache
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from course_utils.errors import CourseError
from course_utils.integrity import PLACE
from course_utils.run import Clock

FEWEST_NODES = 40
LARGEST_BYTES = 100 * 2**20

# Modules that a right answer has no use for; an answer that imports one is graded and shown to a person.
SUSPICIOUS = ("inspect", "gc", "ctypes", "pickle", "marshal", "course_utils.exercises", "course_utils.judge",
              "course_utils.run", "course_utils.observe", "course_utils.source", "course_utils.worker")  # fmt: skip

_CONSTANT = (
    ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.UnaryOp, ast.BinOp, ast.Name, ast.Attribute,
    ast.operator, ast.unaryop, ast.expr_context,
)  # fmt: skip


_MAGIC = re.compile(r"\s*([\w, ]+=\s*)?[%!]|\s*\?|[^#'\"]*\?\s*$")  # %time f(), files = !ls, ?f, f?


class Cell(NamedTuple):
    """A code cell: where it stands in its file (counted from 1 among code cells) and its Python text."""

    number: int
    source: str


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
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        ast.parse(source)
        return source
    return "\n".join("" if _MAGIC.match(line) else line for line in source.split("\n"))


def definitions(cells: list[Cell]) -> tuple[list[tuple[Cell, ast.stmt]], dict[int, str]]:
    """The statements that grading runs, in order, and for each cell with a syntax error a sentence about it."""
    kept: list[tuple[Cell, ast.stmt]] = []
    problems: dict[int, str] = {}
    for cell in cells:
        try:
            statements = ast.parse(cell.source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None)
            problems[cell.number] = (
                f"code cell {cell.number} has a syntax error{f' in line {line}' if line else ''}: {error.args[0]}"
            )
            continue
        kept += [(cell, statement) for statement in statements if is_kept(statement)]
    return kept, problems


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


def defined_names(cells: list[Cell]) -> set[str]:
    """Names that the kept statements bind at top level."""
    names: set[str] = set()
    for _, statement in definitions(cells)[0]:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            names.add(statement.name)
        elif isinstance(statement, ast.Assign):
            names.update(target.id for target in statement.targets if isinstance(target, ast.Name))
    return names


def suspicious_imports(cells: list[Cell]) -> list[str]:
    """Flags, one for each import anywhere in the submission that an answer has no use for."""
    flags = []
    for cell in cells:
        try:
            tree = ast.parse(cell.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            flags += [f"imports {m}" for m in modules if m in SUSPICIOUS or m.startswith("course_utils.exercises.")]
    return list(dict.fromkeys(flags))


def fingerprints(cells: list[Cell], names: set[str]) -> dict[str, str]:
    """For each of the names that the cells define, a digest of its code without comments, docstrings and layout.

    Code too short to be a person's own has none.
    """
    found: dict[str, str] = {}
    for _, statement in definitions(cells)[0]:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and statement.name in names:
            for node in ast.walk(statement):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
                    node.body = node.body[1:]
            if sum(1 for _ in ast.walk(statement)) >= FEWEST_NODES:
                found[statement.name] = hashlib.sha256(ast.dump(statement).encode()).hexdigest()[:16]
    return found


def run_definitions(cells: list[Cell], file_name: str, clock: Clock) -> tuple[dict[str, Any], dict[str, str]]:
    """Execute the kept statements one by one in a fresh namespace; also return a sentence for each name that failed.

    clock: stops a statement that does not end; all statements together have its time.
    """
    namespace: dict[str, Any] = {"__name__": "__submission__"}
    failures: dict[str, str] = {}
    clock.start()
    for cell, statement in definitions(cells)[0]:
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


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
