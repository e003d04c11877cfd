"""Kill a process while it writes a file, at a chosen byte or just before the move, to see what is left on disk."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable

PATIENCE = 20.0  # seconds after which a writer that hangs is ended

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


def killed_writer(
    write: Callable[..., object],
    *arguments: object,
    after_bytes: int | None = None,
    before_move: bool = False,
) -> str:
    """Call write(*arguments) in a process of its own that dies on the way; say how it ended.

    after_bytes: the operating system kills the process when a file would grow beyond that many bytes, in the middle of
    whatever it is doing, as it would be when the disk is full or the power fails. before_move: the process is killed
    (SIGKILL, which nothing can catch) when it calls os.replace. Returns "killed" or "finished". The caller's own
    process, files and limits stay as they are, apart from what the writer wrote. Raises OSError where processes cannot
    be forked (Windows), RuntimeError when the writer raised or hung.
    """
    if resource is None:
        raise OSError("This demonstration forks a process, which Windows cannot do. Use WSL or a hosted notebook.")
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # The child runs one function and dies; it never touches the locks of the other threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        _write_and_die(write, arguments, after_bytes, before_move)
    status = _wait(process)
    if os.WIFSIGNALED(status):
        return "killed"
    if os.WEXITSTATUS(status):
        raise RuntimeError("The writer ended with an error of its own, not by being killed.")
    return "finished"


def _write_and_die(write: Callable, arguments: tuple, after_bytes: int | None, before_move: bool) -> None:
    """The child's whole life. It must never return into the caller's program, hence os._exit."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if after_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; by default it kills
            resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, after_bytes))
        if before_move:
            os.replace = os.rename = _die  # type: ignore[assignment]
        write(*arguments)
        status = 0
    finally:
        os._exit(status)


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(process: int) -> int:
    """The status of a child; a child that hangs is killed."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise RuntimeError(f"The writer hung for {PATIENCE:.0f} seconds and was ended.")
