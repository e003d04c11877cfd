"""What the environment variables COURSE_DEVICE and COURSE_SEED say."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from course_utils.errors import CourseError


def course_device(wanted: str = "") -> str:
    """ "cpu" or "cuda": what is wanted, else what COURSE_DEVICE says, else cuda where there is one.

    Raises CourseError for another word, and when cuda is asked for and absent.
    """
    asked = "The device" if wanted else "COURSE_DEVICE"
    wanted = wanted or os.environ.get("COURSE_DEVICE", "").strip().lower()
    if wanted not in ("", "cpu", "cuda"):
        raise CourseError(f"{asked} is {wanted!r}; it can be cpu or cuda.")
    if wanted == "cuda" and not _has_cuda():
        raise CourseError(f"{asked} is cuda, but torch sees no CUDA device. Unset it or set it to cpu.")
    return wanted or ("cuda" if _has_cuda() else "cpu")


def _has_cuda() -> bool:
    if "torch" not in sys.modules:
        with suppress(PackageNotFoundError):
            if version("torch").endswith("+cpu"):  # known without the second that importing torch takes
                return False
    import torch

    return torch.cuda.is_available()


def course_seed() -> int:
    """The whole number in COURSE_SEED, 0 without one. Raises CourseError for anything else."""
    text = os.environ.get("COURSE_SEED", "").strip() or "0"
    if not text.isdecimal():
        raise CourseError(f"COURSE_SEED is {text!r}; it can be a whole number such as 7.")
    return int(text)


def class_seed() -> int:
    """The seed of the draws that grade a class: far from those of `check`, and moved by COURSE_SEED."""
    return 1000 * course_seed() + 500
