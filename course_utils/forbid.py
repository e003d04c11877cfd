"""Calls that an exercise asks its answers to do without, seen as they happen."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]


class ForbiddenCall(BaseException):
    """The answer called a function that its exercise asks it to do without."""


class Watch:
    """Refuses functions while an answer runs; `called` names those it tried.

    Wherever a forbidden function can be looked up, a stand-in takes its place; that costs nothing per operation.
    thorough: also watch through a TorchFunctionMode, which sees torch's functions on every route, and slows each
    torch operation by about 2 µs. The mode is on as well for an answer that holds a forbidden function in its
    defaults or closure.
    always: watch all the time, for a class, whose methods and backward run outside the calls a case makes; a function
    is watched only while it is called, so that cases may use what answers may not.
    """

    def __init__(self, functions: tuple[Function, ...], always: bool, answer: Any, *, thorough: bool) -> None:
        self.called: list[str] = []
        self.active = self._always = always
        self.per_call = bool(functions) and not always
        self._functions = functions
        self._names = _names_of(answer) if functions else {}
        needs_mode = functions and (thorough or _holds(answer, functions))
        self._mode = _Mode(self) if needs_mode else None
        self._stack = ExitStack()

    def __enter__(self) -> Watch:
        for holder, name, function in _places(self._functions):
            self._stand_in(holder, name, function)
        forbidden = {id(function): function for function in self._functions}
        for name in [name for name, value in self._names.items() if id(value) in forbidden]:
            self._stack.callback(self._names.__setitem__, name, self._names[name])
            self._names[name] = self._refusal(forbidden[id(self._names[name])])
        if self._mode and self._always:
            self._stack.enter_context(self._mode)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _stand_in(self, holder: Any, name: str, function: Function) -> None:
        if name in vars(holder):
            self._stack.callback(setattr, holder, name, vars(holder)[name])
        else:
            self._stack.callback(delattr, holder, name)
        setattr(holder, name, self._refusal(function))

    def _refusal(self, function: Function) -> Function:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return self.refuse(function) if self.active else function(*args, **kwargs)

        return stand_in

    def refuse(self, function: Function) -> None:
        """Note the call and end it. Raises ForbiddenCall."""
        self.called.append(function.__name__)
        raise ForbiddenCall(function.__name__)

    def around(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the answer, watched."""
        if not self.per_call:
            return function(*args, **kwargs)
        self.active = True
        try:
            if self._mode is None:
                return function(*args, **kwargs)
            with self._mode:
                return function(*args, **kwargs)
        finally:
            self.active = False

    def forbids(self, function: Any) -> bool:
        """Whether the function is one of those to do without."""
        return function in self._functions


class _Mode(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.watch.forbids(func):
            self.watch.refuse(func)
        return func(*args, **(kwargs or {}))


@cache
def _places(functions: tuple[Function, ...]) -> list[tuple[Any, str, Function]]:
    """Where the functions are looked up: (namespace, name there, function)."""
    spaces: list[Any] = [
        torch, torch.nn.functional, torch._C._nn, torch.special, torch.linalg, torch.autograd,
        torch.autograd.functional, torch.func, torch.ops.aten, np,
    ]  # fmt: skip
    for function in functions:
        home = str(getattr(function, "__module__", None) or "")
        packages = itertools.accumulate(home.split("."), "{}.{}".format)
        spaces += [sys.modules[package] for package in packages if package in sys.modules]
    forbidden = {id(function): function for function in functions}
    places = [
        (space, name, forbidden[id(value)])
        for space in {id(space): space for space in spaces}.values()
        for name, value in vars(space).items()
        if id(value) in forbidden
    ]
    methods = [(f, getattr(f, "__name__", "")) for f in functions]
    return places + [(torch.Tensor, name, f) for f, name in methods if getattr(torch.Tensor, name, None) is f]


def _functions_in(answer: Any) -> Iterator[FunctionType]:
    members = vars(answer).values() if isinstance(answer, type) else (answer,)
    for member in members:
        function = getattr(member, "__func__", member)
        if isinstance(function, FunctionType):
            yield function


def _names_of(answer: Any) -> dict[str, Any]:
    """The global names that the answer's code sees."""
    return next((function.__globals__ for function in _functions_in(answer)), {})


def _holds(answer: Any, functions: tuple[Function, ...]) -> bool:
    """Whether a default or a closure of the answer holds one of the functions."""
    held: list[Any] = []
    for function in _functions_in(answer):
        held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # a name that is not bound yet
                held.append(cell.cell_contents)
    return any(value is function for value in held for function in functions)
