"""Graders, plots and explorers of the course.

`from course_utils import check, hint, solution, passing, progress, expect_error, cards, quiz, plots, explorers`.
Names load on first use: importing the package costs next to nothing beside importing torch.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module

_HOMES = {
    "course_device": "settings",
    "check": "student",
    "failing_call": "student",
    "hint": "student",
    "solution": "student",
    "passing": "student",
    "progress": "student",
    "expect_error": "student",
    "cards": "study",
    "quiz": "study",
    "plots": "",
    "explorers": "",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'course_utils' has no attribute {name!r}")
    home = f"course_utils.{_HOMES[name] or name}"
    if home not in sys.modules:
        import_module(home)
        # What torch and the course loaded stays until the end. Left to the garbage collector, it is searched again and
        # again: 0.1 s and more each time, in the middle of a check or of a moving explorer.
        gc.freeze()
    return getattr(sys.modules[home], name) if _HOMES[name] else sys.modules[home]


def __dir__() -> list[str]:
    return __all__
