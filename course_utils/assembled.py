"""Functions and classes of a running notebook as the text of a program: what they use comes along.

Taken are imports, definitions and plain constants, as grading takes them; anything else is refused by name.
"""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import linecache
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from course_utils.errors import CourseError
from course_utils.exercise import Exercise

CONSTANTS = (int, float, str, bytes, bool, complex, type(None))
HOMES = (torch, F, math, np)  # where to look for functions that do not say where they come from


def assemble(pieces: Mapping[str, Callable[..., Any]]) -> str:
    """The text of a program that defines the pieces under these names.

    Raises CourseError when a piece uses something that cannot be written down, such as a tensor made in another cell.
    """
    book = _Book()
    for name, thing in pieces.items():
        book.add(name, thing)
    parts = ["\n".join(sorted(set(book.imports))), "\n".join(book.constants), *book.definitions]
    return "\n\n\n".join(part for part in parts if part) + "\n"


class _Book:
    def __init__(self) -> None:
        self.imports: list[str] = []
        self.constants: list[str] = []
        self.definitions: list[str] = []
        self._seen: set[str] = set()

    def add(self, name: str, thing: Callable[..., Any]) -> None:
        """The definition, after everything that it uses."""
        if name in self._seen:
            return
        self._seen.add(name)
        thing = thing.reference if isinstance(thing, Exercise) else thing
        text, names = _source(name, thing)
        if thing.__name__ != name:
            text += f"\n\n{name} = {thing.__name__}"
        plain = inspect.unwrap(thing)
        if getattr(plain, "__closure__", None):
            inner = ", ".join(plain.__code__.co_freevars)
            raise CourseError(f"{name} uses {inner} from the function around it. Define it at the top level of a cell.")
        for used in _names_used(text):
            if used in names and used not in self._seen and used != thing.__name__:
                self._use(name, used, names[used], names)
        self.definitions.append(text)

    def _use(self, user: str, name: str, value: Any, names: Mapping[str, Any]) -> None:
        if isinstance(value, ModuleType):
            self._note(name, self.imports, f"import {value.__name__}" + _renamed(value.__name__, name))
        elif isinstance(value, FunctionType | type) and value.__module__ == names.get("__name__"):
            self.add(name, value)
        elif home := _home(value):
            self._note(name, self.imports, f"from {home[0]} import {home[1]}" + _renamed(home[1], name))
        elif (text := _literal(value)) is not None:
            if "torch." in text:
                self.imports.append("import torch")
            self._note(name, self.constants, f"{name} = {text}")
        else:
            kind = type(value).__name__
            raise CourseError(
                f"{user} uses {name}, {'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind} from another place. "
                "A program in a new process has only imports, definitions and plain constants: pass it as an argument, "
                "or make it inside."
            )

    def _note(self, name: str, lines: list[str], line: str) -> None:
        self._seen.add(name)
        lines.append(line)


def _source(name: str, thing: Callable[..., Any]) -> tuple[str, Mapping[str, Any]]:
    """The text of a definition, and the names that it was written among."""
    plain = inspect.unwrap(thing)
    code, names = _code_of(plain)
    if code is None:
        raise CourseError(f"{name} has no text that could become a part of a program; define it in a cell.")
    lines = linecache.getlines(code.co_filename, dict(names))
    kind = ast.ClassDef if isinstance(plain, type) else (ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:
        tree = ast.parse("")
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, kind)
        and node.name == plain.__name__
        and min([node.lineno, *(d.lineno for d in node.decorator_list)]) <= code.co_firstlineno <= node.end_lineno
    ]
    if not found:
        raise CourseError(f"The text of {name} is not to be had; run the cell that defines it again.")
    node = found[-1]
    start = node.lineno
    if node.decorator_list and not isinstance(names.get(name), Exercise):
        start = min(decorator.lineno for decorator in node.decorator_list)
    return textwrap.dedent("".join(lines[start - 1 : node.end_lineno])).rstrip("\n"), names


def _code_of(thing: Any) -> tuple[CodeType | None, Mapping[str, Any]]:
    """The code of a function, or of a method that a class defines, and its globals."""
    if isinstance(thing, FunctionType):
        return thing.__code__, thing.__globals__
    for value in vars(thing).values() if isinstance(thing, type) else ():
        function = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", value)))
        if isinstance(function, FunctionType) and function.__qualname__.startswith(thing.__qualname__ + "."):
            return function.__code__, function.__globals__
    return None, {}


def _names_used(text: str) -> Iterator[str]:
    """Names that the text looks up outside itself, in the order of use."""
    code = compile(text, "<program>", "exec", dont_inherit=True)
    own = set()
    pending, found = [code], dict[str, None]()
    while pending:
        current = pending.pop(0)
        for instruction in dis.get_instructions(current):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                found[instruction.argval] = None
            elif instruction.opname == "STORE_NAME" and current is code:
                own.add(instruction.argval)
        pending += [constant for constant in current.co_consts if isinstance(constant, CodeType)]
    yield from (name for name in found if name not in own and not hasattr(builtins, name))


def _renamed(own: str, name: str) -> str:
    return "" if own == name else f" as {name}"


def _home(value: Any) -> tuple[str, str] | None:
    """The module and name from which the value can be imported."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    name = name or getattr(value, "__name__", None)
    if not isinstance(name, str) or not name.isidentifier():
        return None
    known = isinstance(module, str) and module in sys.modules and module != "__main__"
    if known and getattr(import_module(module), name, None) is value:
        return module, name
    for home in HOMES:
        if getattr(home, name, None) is value:
            return home.__name__, name
    return None


def _literal(value: Any) -> str | None:
    """The value as an expression, for plain constants; else None."""
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if isinstance(value, torch.dtype):
        return repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if type(value) in CONSTANTS:
        return repr(value)
    if type(value) in (tuple, list, set, dict) and len(value) <= 1000:
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        if all(type(item) in CONSTANTS and _literal(item) == repr(item) for item in inner):
            return repr(value)
    return None
