"""What this machine has and lacks for the course."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator

NEEDED = (
    "torch",
    "numpy",
    "matplotlib",
    "ipywidgets",
    "jupyterlab",
    "jupytext",
    "nbformat",
    "nbclient",
)
OPTIONAL = {
    "pytest": 'make test needs it: pip install -e ".[dev]" -c constraints.txt',
    "nbval": 'make test needs it: pip install -e ".[dev]" -c constraints.txt',
    "playwright": 'the browser tests need it: pip install -e ".[dev]" -c constraints.txt',
}


def report() -> tuple[list[str], list[str]]:
    """Lines about versions, device and threads, and lines about what is missing and how to get it."""
    facts = [
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
        *_versions(),
    ]
    missing = [f"{name} is missing: pip install -e . -c constraints.txt" for name in NEEDED if not _has(name)]
    notes = [f"{name} is missing; {how}" for name, how in OPTIONAL.items() if not _has(name)]
    if _has("torch"):
        try:
            facts += _torch_facts()
        except (ImportError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            missing.append(f"torch does not load ({reason}): pip install --force-reinstall torch -c constraints.txt")
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("cl")):
        notes.append("no C++ compiler: torch.compile's default backend will fall back; Debian: apt-get install g++")
    return facts + [f"note: {note}" for note in notes], missing


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _versions() -> Iterator[str]:
    for name in (*NEEDED, *OPTIONAL):
        if _has(name):
            yield f"{name} {importlib.metadata.version(name)}"


def _torch_facts() -> Iterator[str]:
    import torch

    if torch.cuda.is_available():
        yield f"device: cuda, {torch.cuda.get_device_name(0)}"
    else:
        yield "device: cpu; torch sees no CUDA device"
    threads = os.environ.get("OMP_NUM_THREADS", "not set; 1 is fastest for small tensors")
    yield f"threads: {torch.get_num_threads()} (OMP_NUM_THREADS is {threads})"
    wanted = os.environ.get("COURSE_DEVICE")
    yield f"COURSE_DEVICE is {wanted or 'not set: cuda where there is one'}"
