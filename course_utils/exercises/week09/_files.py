"""What this week's cases share: a folder to work in, and what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from course_utils.draw import Draw


@contextmanager
def workplace(draw: Draw) -> Iterator[Path]:
    """Make a fresh folder the current one; yield it.

    Answers are then called with short relative paths, which read the same in every run. Nothing is
    forced out to the disk meanwhile: the files are gone after the case.
    """
    folder, before, fsync = draw.folder(), os.getcwd(), os.fsync
    os.chdir(folder)
    os.fsync = lambda descriptor: None
    try:
        yield folder
    finally:
        os.fsync = fsync
        os.chdir(before)


def listing(folder: str | Path = ".") -> list[str]:
    """Everything below the folder, by its path from there."""
    return sorted(file.relative_to(folder).as_posix() for file in Path(folder).rglob("*"))


def left_over(*expected: str) -> dict[str, object]:
    """How many things beside the expected ones lie here, and which of these are missing.

    Names of temporary files differ from answer to answer, so that others are only counted.
    """
    found = listing()
    others = [name for name in found if name not in expected]
    return {"other files": len(others), "missing": [n for n in expected if n not in found]}
