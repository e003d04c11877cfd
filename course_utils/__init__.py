"""Graders, plots and explorers of the course.

`from course_utils import check, hint, solution, passing, progress, expect_error, cards, quiz, plots, explorers`.
Names load on first use: importing the package costs next to nothing beside importing torch.
"""

from __future__ import annotations

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
    home = _HOMES[name]
    if not home:
        return import_module(f"course_utils.{name}")
    return getattr(import_module(f"course_utils.{home}"), name)


def __dir__() -> list[str]:
    return __all__
