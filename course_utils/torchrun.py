"""Start a program on several ranks with torchrun, and be sure that no process is left when the call is over.

    torchrun("hello.py", ranks=2)                               # from a notebook
    torchrun --standalone --nproc_per_node=2 hello.py           # the same at a terminal

torchrun puts every rank into a session of its own, so killing torchrun, or its process group, leaves the ranks
running. Here each rank says who it is, and watches a pipe that closes when the caller is gone, however it went.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_RUN = 60.0
SECONDS_TO_END = 5.0  # for ranks that were asked to end, before they are killed
FOLDER = "COURSE_RANKS_FOLDER"  # where ranks and caller leave word for each other


@dataclass(frozen=True)
class Finished:
    """A run that ended well: the lines it printed, in the order they came, and what each rank reported (or None)."""

    lines: list[str]
    reports: list


class RanksFailed(RuntimeError):
    """A run that ended badly, in one line. `errors` is everything the processes wrote to stderr."""

    def __init__(self, message: str, errors: str = "") -> None:
        super().__init__(message)
        self.errors = errors


def torchrun(
    program: str | os.PathLike,
    *arguments: str,
    ranks: int = 2,
    seconds: float = SECONDS_TO_RUN,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a program (a .py file, or the name of a module) on `ranks` processes of this machine, to its end.

    The ranks meet on 127.0.0.1, whatever the machine's name resolves to, and compute with one thread each.
    environment: more environment variables. Raises RanksFailed with one line that says which rank failed and how, or
    that time was up; OSError on Windows. No process that was started here outlives the call, also when it is
    interrupted; if the caller itself is killed, the ranks end at once.
    """
    if not hasattr(os, "killpg"):
        raise OSError("This starts groups of processes, which Windows does not have. Use WSL or a hosted notebook.")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        command += [f"--nproc_per_node={ranks}", "-m", "course_utils.torchrun", os.fspath(program), *arguments]
        reading, lifeline = os.pipe()
        try:
            process = subprocess.Popen(
                command,
                stdin=reading,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=_environment(folder, environment or {}),
                start_new_session=True,
            )
        except BaseException:
            os.close(lifeline)
            raise
        finally:
            os.close(reading)
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise RanksFailed(f"The {ranks} ranks were not done after {seconds:g} seconds and were ended.") from None
        finally:
            os.close(lifeline)
            _end(process, Path(folder))
        if process.returncode:
            raise RanksFailed(_failure(Path(folder), errors, process.returncode), errors)
        return Finished(output.splitlines(), [_report(Path(folder), rank) for rank in range(ranks)])


def report(value: object) -> None:
    """Called by a rank: hand `value` (plain data) to whoever called `torchrun`. The last call counts."""
    if FOLDER in os.environ:
        _file("report").write_text(json.dumps(value), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """What each rank runs: the program, as if it had been started by itself, tied to the life of the caller."""
    program, *rest = sys.argv[1:] if arguments is None else arguments
    threading.Thread(target=_end_with_caller, daemon=True).start()
    process = _file("process")
    process.write_text(str(os.getpid()), encoding="utf-8")
    atexit.register(process.unlink, missing_ok=True)
    sys.argv = [program, *rest]
    # torchrun starts ranks with -u, which writes a line and its end apart; another rank's line could come between.
    sys.stdout.reconfigure(line_buffering=True, write_through=False)
    try:
        if program.endswith(".py"):
            sys.path.insert(0, str(Path(program).resolve().parent))
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        _file("failure").write_text(f"{type(error).__name__}: {first_line}", encoding="utf-8")
        raise


def _end_with_caller() -> None:
    """Wait until the other end of standard input is closed, which happens when the caller ends, and end too."""
    try:
        while os.read(0, 1024):
            pass
    finally:
        os._exit(1)


def _environment(folder: str, more: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment, without another torchrun's variables."""
    own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PYTHONUNBUFFERED")
    values = {name: value for name, value in os.environ.items() if name not in own}
    package = str(Path(__file__).resolve().parents[1])
    values["PYTHONPATH"] = os.pathsep.join(filter(None, [package, values.get("PYTHONPATH")]))
    values["OMP_NUM_THREADS"] = "1"
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        # gloo would ask for the address of the machine's name, which need not have one.
        values.setdefault("GLOO_SOCKET_IFNAME", loopback)
    return {**values, FOLDER: folder, **more}


def _file(kind: str) -> Path:
    return Path(os.environ[FOLDER]) / f"{kind}{os.environ['RANK']}"


def _report(folder: Path, rank: int) -> object:
    file = folder / f"report{rank}"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _failure(folder: Path, errors: str, status: int) -> str:
    """What happened first. Once one rank has failed the others fail as well, for want of a partner."""
    failures = sorted(folder.glob("failure*"), key=lambda file: file.stat().st_mtime_ns)
    if failures:
        return f"Rank {failures[0].name.removeprefix('failure')} failed: {failures[0].read_text(encoding='utf-8')}"
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "nothing on stderr")
    if "Signal" in errors:
        return "A rank was killed by a signal."
    return f"torchrun ended with status {status}, and no rank said why: {last.strip()}"


def _end(process: subprocess.Popen, folder: Path) -> None:
    """See to it that torchrun and all ranks are gone: ask, wait, kill."""
    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)  # torchrun passes it on to its ranks
    try:
        # The pipes end when nobody is left who could write into them: torchrun or a rank.
        process.communicate(timeout=SECONDS_TO_END)
    except (subprocess.TimeoutExpired, ValueError):  # ValueError: everything was read before
        pass
    finally:
        groups = [int(file.read_text(encoding="utf-8") or 0) for file in folder.glob("process*")]
        for group in filter(None, [*groups, 0 if process.poll() is not None else process.pid]):
            _signal(group, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()


def _signal(group: int, number: int) -> None:
    """Send a signal to a process group; none may be left to receive it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    main()
