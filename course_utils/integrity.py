"""What an answer did besides answering: functions of torch it replaced, files and call stacks it read. For flags."""

from __future__ import annotations

import builtins
import inspect
import math
import os
import random
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.util import source_from_cache
from operator import is_
from types import BuiltinFunctionType, FrameType, FunctionType, MethodDescriptorType
from typing import Any

import numpy as np
import torch

from course_utils.submission import PLACE

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_WITH_ANSWERS = ("course_utils/exercises", "lessons", "solutions", "tests")
_REPLACEABLE = (FunctionType, BuiltinFunctionType, MethodDescriptorType, type, staticmethod, classmethod, property)
_STACKS = ("sys._getframe", "sys._current_frames")
_COLLECTOR = ("gc.get_objects", "gc.get_referrers", "gc.get_referents")
_STANDARD_LIBRARY = (os.path.dirname(os.__file__) + os.sep, "<frozen")
_LOOKS_FOR_OTHERS = (inspect.__file__, traceback.__file__)  # much of the library looks at stacks for its own ends


class Originals:
    """The functions and classes that answers and grader use, as they were when this was made."""

    def __init__(self) -> None:
        spaces: list[Any] = [torch, torch.nn, torch.nn.functional, torch.linalg, torch.special, torch.optim,
                             torch.autograd, torch.testing, torch.random, np, math, random, builtins]  # fmt: skip
        spaces += [module for name, module in list(sys.modules.items()) if re.fullmatch(r"course_utils(\.\w+)?", name)]
        found = {id(value): value for space in spaces for value in vars(space).values() if isinstance(value, type)}
        spaces += [
            kind
            for kind in found.values()
            if kind.__module__.startswith(("torch", "course_utils")) and type(kind) is not type(torch.FloatTensor)
        ]
        self._spaces = []
        for space in {id(space): space for space in spaces}.values():
            own = {name: value for name, value in vars(space).items() if isinstance(value, _REPLACEABLE)}
            self._spaces.append((space, frozenset(vars(space)), tuple(own), tuple(own.values())))

    def restore(self) -> list[str]:
        """Put back what was replaced or removed; returns the names, such as "torch.allclose", in alphabetical order."""
        changed = []
        for space, all_names, names, values in self._spaces:
            now = vars(space)
            if not all(map(is_, map(now.get, names), values)):
                replaced = [(n, value) for n, value in zip(names, values, strict=True) if now.get(n) is not value]
                for name, value in replaced:
                    setattr(space, name, value)
                changed += [(space, name) for name, _ in replaced]
            if isinstance(space, type) and len(now) != len(all_names):
                for name in set(now) - all_names:
                    if any(name in vars(base) for base in space.__mro__[1:]):  # in place of what was inherited
                        delattr(space, name)
                        changed.append((space, name))
        return sorted({f"{space.__name__}.{name}" for space, name in changed})


class Deeds:
    """Notes what a submission's code does that an answer has no use for, by Python's audit events.

    Once made it listens until the process ends.
    """

    def __init__(self) -> None:
        self._noted, self._busy = set[str](), False
        self._getframe = sys._getframe
        sys.addaudithook(self._hear)

    def take(self) -> list[str]:
        """Sentences on what was noted since the last time, in alphabetical order."""
        noted, self._noted = sorted(self._noted), set()
        return noted

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or event not in _EVENTS:
            return
        self._busy = True
        try:
            through = _LOOKS_FOR_OTHERS if event in _STACKS else _STANDARD_LIBRARY
            if self._from_submission(self._getframe(1), through) and (deed := _EVENTS[event](self, arguments)):
                self._noted.add(deed)
        except Exception:  # an audit hook that raises would stop the call
            self._noted.add(f"did something odd ({event})")
        finally:
            self._busy = False

    def _from_submission(self, frame: FrameType | None, through: tuple[str, ...]) -> bool:
        """Whether the submission's code made the call, itself or through files whose path begins like those."""
        while frame is not None:
            file = frame.f_code.co_filename
            if PLACE in file:
                return True
            if not file.startswith(through) or "site-packages" in file:
                return False
            frame = frame.f_back
        return False

    def _opened(self, arguments: tuple[Any, ...]) -> str:
        file, _, flags = arguments
        if not isinstance(file, (str, bytes)):
            return ""
        path = os.path.realpath(os.fsdecode(file))
        with suppress(ValueError):  # compiled code stands for its source
            path = source_from_cache(path)
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        folders = (ROOT,) if writes else [os.path.join(ROOT, folder) for folder in _WITH_ANSWERS]
        if not any(path.startswith(folder + os.sep) for folder in folders):
            return ""
        return f"{'writes' if writes else 'reads'} the course's file {os.path.relpath(path, ROOT)}"

    def _imported(self, arguments: tuple[Any, ...]) -> str:
        name = str(arguments[0])
        return f"imports {name}" if name.startswith("course_utils.") and "exercises" in name else ""


_EVENTS: dict[str, Callable[[Deeds, tuple[Any, ...]], str]] = {
    "open": Deeds._opened,
    "import": Deeds._imported,
    "ctypes.dlopen": lambda deeds, arguments: "loads a library with ctypes",
    "subprocess.Popen": lambda deeds, arguments: "starts a process",
    "os.fork": lambda deeds, arguments: "starts a process",
    "os.exec": lambda deeds, arguments: "starts a process",
    "os.posix_spawn": lambda deeds, arguments: "starts a process",
    "os.system": lambda deeds, arguments: "starts a process",
    "os.kill": lambda deeds, arguments: "sends a signal",
    "socket.connect": lambda deeds, arguments: "opens a network connection",
    **dict.fromkeys(_STACKS, lambda deeds, arguments: "looks at call stacks"),
    **dict.fromkeys(_COLLECTOR, lambda deeds, arguments: "searches the garbage collector"),
}
