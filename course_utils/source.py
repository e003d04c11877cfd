"""The text of an exercise's module, cut into what students get: the stub, the solution, the signature."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from course_utils.exercise import Exercise

Definition = ast.FunctionDef | ast.ClassDef


def solution_source(exercise: Exercise) -> str:
    """The reference as it stands in the exercise's module, without the decorator."""
    lines, tree = _module(exercise)
    node = _definition(tree, exercise.name)
    return textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])) + "\n"


def stub_source(exercise: Exercise) -> str:
    """What students start from: signature and docstring, then `raise NotImplementedError` or the broken body."""
    lines, tree = _module(exercise)
    node = _definition(tree, exercise.name)
    if exercise.broken_version is not None:
        broken = _definition(tree, exercise.broken_version.__name__)
        body = lines[_first_line_after_docstring(broken) - 1 : broken.end_lineno]
        gap = [""] if isinstance(node, ast.ClassDef) else []
        return "\n".join([*_head(lines, node), *gap, *body]) + "\n"
    if isinstance(node, ast.FunctionDef):
        return "\n".join([*_head(lines, node), "    raise NotImplementedError"]) + "\n"
    blocks = [_head(lines, node)]
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and _is_public(method.name):
            first = min([method.lineno, *(d.lineno for d in method.decorator_list)])
            head = lines[first - 1 : method.lineno - 1] + _head(lines, method)
            blocks.append([*head, "        raise NotImplementedError"])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def is_untouched(exercise: Exercise, answer: Any) -> bool:
    """Whether the answer's compiled code is that of the stub; layout, comments and docstring do not matter."""
    stub = compiled_stub(exercise)
    if isinstance(answer, type) != isinstance(stub, type):
        return False
    return _codes(stub) == _codes(answer)


@cache
def compiled_stub(exercise: Exercise) -> Any:
    """The stub as a function or class, with the names of the exercise's module."""
    namespace = dict(inspect.getmodule(exercise.reference).__dict__)
    exec(stub_source(exercise), namespace)
    return namespace[exercise.name]


def _codes(thing: Any) -> Any:
    if isinstance(thing, type):
        members = {name: getattr(value, "__func__", value) for name, value in vars(thing).items()}
        return {name: _codes(m) for name, m in members.items() if isinstance(m, FunctionType)}
    code = getattr(thing, "__code__", None)
    return _fingerprint(code, thing.__doc__) if code is not None else None


def _fingerprint(code: CodeType, docstring: str | None) -> tuple[Any, ...]:
    constants = [
        _fingerprint(constant, None) if isinstance(constant, CodeType) else repr(constant)
        for constant in code.co_consts
        if constant is None or constant != docstring
    ]
    return code.co_code, code.co_names, code.co_varnames, tuple(c for c in constants if c != "None")


@cache
def _module(exercise: Exercise) -> tuple[list[str], ast.Module]:
    text = Path(inspect.getfile(exercise.reference)).read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text)


def _definition(tree: ast.Module, name: str) -> Definition:
    for node in tree.body:
        if isinstance(node, Definition) and node.name == name:
            return node
    raise LookupError(f"{name} is not defined at the top level of its module")


def _is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def _has_docstring(node: Definition) -> bool:
    return ast.get_docstring(node, clean=False) is not None


def _head(lines: list[str], node: Definition) -> list[str]:
    """From the def or class line to the end of the docstring."""
    last = node.body[0].end_lineno if _has_docstring(node) else node.body[0].lineno - 1
    return lines[node.lineno - 1 : last]


def _first_line_after_docstring(node: Definition) -> int:
    body = node.body[1:] if _has_docstring(node) else node.body
    first = body[0]
    decorators = getattr(first, "decorator_list", [])
    return min([first.lineno, *(decorator.lineno for decorator in decorators)])
