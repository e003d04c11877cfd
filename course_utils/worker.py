"""The processes that run submissions. They report what was seen, as JSON lines, and never judge.

`python -m course_utils.worker` runs one submission, given as JSON on standard input. With `--serve` and the numbers of
sockets it is a fork server: it imports and prepares everything once, forks itself for each socket, and that process
forks one worker for each submission that comes in. The server has no reference in memory by then.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from course_utils.exercise import Exercise, exercise_weeks, load_exercise
from course_utils.integrity import Deeds, Originals
from course_utils.observe import decode, encode
from course_utils.run import Call, CaseRun, Clock, Undisturbed
from course_utils.source import compiled_stub, is_untouched
from course_utils.student import problem_with
from course_utils.submission import Cell, run_definitions
from course_utils.workers import ENDED, FRAME, KILL, LINES


def main() -> None:
    """Serve, or run one task from standard input."""
    if sys.argv[1:2] == ["--serve"]:
        serve([int(number) for number in sys.argv[3:]], set(sys.argv[2].split(",")))
        return
    task = json.loads(sys.stdin.readline())
    pipe, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    run_task(task, pipe, None, Deeds())
    _end()


def run_task(task: dict[str, Any], pipe_number: int, originals: Originals | None, deeds: Deeds) -> None:
    """Run the exercises of the task, writing a line before and after each to the pipe."""
    prepare({exercise_weeks()[name] for name in task["exercises"]})
    originals = originals or Originals()
    sys.dont_write_bytecode = True  # an answer's import would write into the course, which is flagged
    with os.fdopen(pipe_number, "w", encoding="utf-8") as pipe:
        cells = [Cell(number, source) for number, source in task["cells"]]
        namespace, failures = _define(cells, task)
        _write(pipe, {"flags": _flags(originals, deeds)})
        for name in task["exercises"]:
            _write(pipe, {"begins": name})
            report = _report(name, namespace, failures, task)
            flags = _flags(originals, deeds) if name in namespace else []
            _write(pipe, {"exercise": name, **report, "flags": flags})


def _define(cells: list[Cell], task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The names that the submission defines. An endless loop in a class body is stopped and costs that class."""
    clock = Clock(task["seconds"])
    clock.install()
    try:
        return run_definitions(cells, task["file"], clock)
    finally:
        clock.remove()


def _flags(originals: Originals, deeds: Deeds) -> list[str]:
    return [f"changes {name}" for name in originals.restore()[:5]] + deeds.take()


def _report(name: str, namespace: dict[str, Any], failures: dict[str, str], task: dict[str, Any]) -> dict[str, Any]:
    if name not in namespace:
        return {"problem": failures.get(name, "")}
    exercise, answer = load_exercise(name), namespace[name]
    if problem := problem_with(exercise, answer):
        return {"problem": problem}
    if is_untouched(exercise, answer):
        return {"untouched": True}
    with Undisturbed(task["seed"], task["device"], task["seconds"]) as process:
        runs = process.run_cases(exercise, answer, detail=True, refuse=True)
    return {"runs": [encode_run(run) for run in runs]}


def _write(pipe: TextIO, line: dict[str, Any]) -> None:
    pipe.write(json.dumps(line) + "\n")
    pipe.flush()


def _end() -> NoReturn:
    os._exit(0)  # threads and exit handlers of the submission have no say


# --- an exercise without its reference --------------------------------------------------------------------------------


_prepared: set[str] = set()


def prepare(weeks: set[str]) -> None:
    """Load the exercises of the weeks, run each once so that torch is warm, then remove what knows the answers."""
    weeks = weeks - _prepared
    _prepared.update(weeks)
    for name, week in exercise_weeks().items():
        if week in weeks:
            exercise = load_exercise(name)
            with Undisturbed(0) as process:
                process.run_cases(exercise, exercise.reference, detail=True, refuse=True)
            hollow(exercise)
    if weeks:
        gc.collect()


def hollow(exercise: Exercise) -> None:
    """Take reference, misconceptions and hints out of the exercise and its module; the stub takes their place.

    What is left can run cases, and holds nothing that an answer could copy.
    """
    module = inspect.getmodule(exercise.reference)
    known = [m.implementation for m in exercise.misconceptions] + [exercise.broken_version]
    for name, value in list(vars(module).items()):
        if any(value is implementation for implementation in known):
            delattr(module, name)
    exercise.misconceptions.clear()
    exercise.hint_texts = ()
    exercise.reference = compiled_stub(exercise)


# --- the fork server --------------------------------------------------------------------------------------------------


def serve(sockets: list[int], weeks: set[str]) -> None:
    """Prepare everything, then fork one slot for each socket and wait until all have ended."""
    from course_utils import confine, explorers, plots, study  # noqa: F401  what lessons import; slow the first time

    confine.leave_network()
    prepare(weeks)
    originals = Originals()
    gc.freeze()
    for number in sockets:
        if os.fork() == 0:
            for other in sockets:
                if other != number:
                    os.close(other)
            with suppress(KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
                _Slot(socket.socket(fileno=number), originals).serve()
            os._exit(0)
    for number in sockets:
        os.close(number)
    with suppress(ChildProcessError, KeyboardInterrupt):
        while True:
            os.wait()


class _Slot:
    """Runs the submissions that come through its socket, one after the other, each in a process of its own."""

    def __init__(self, connection: socket.socket, originals: Originals) -> None:
        from course_utils import confine

        self._socket, self._originals, self._confine = connection, originals, confine
        confine.adopt_orphans()
        self._send(LINES, b'{"ready": true}\n')

    def serve(self) -> None:
        """Until the socket is closed: read a task, run it, say how it ended."""
        with self._socket.makefile("rb") as lines:
            for line in lines:
                task = json.loads(line.lstrip(KILL))  # one meant for the last worker may come after its end
                scratch = Path(tempfile.mkdtemp(prefix="course-", dir=task["scratch"]))
                try:
                    status = self._run(task, scratch)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
                self._send(ENDED, str(status).encode())

    def _run(self, task: dict[str, Any], scratch: Path) -> int:
        """Run the task in a worker until it ends or the socket says to kill it; returns the worker's exit code."""
        reading, writing = os.pipe()
        worker = os.fork()
        if worker == 0:
            self._work(task, scratch, writing)
        os.close(writing)
        ended = os.pidfd_open(worker)
        try:
            sources = [reading, ended, self._socket]
            while ended in sources:
                ready, _, _ = select.select(sources, [], [])
                if self._socket in ready:
                    if self._socket.recv(1) != KILL:
                        raise BrokenPipeError  # nobody listens any more
                    os.kill(worker, signal.SIGKILL)
                elif reading in ready and not self._relay(reading):
                    sources.remove(reading)
                elif ended in ready and (reading not in ready or reading not in sources):
                    sources.remove(ended)
        finally:
            os.kill(worker, signal.SIGKILL)
            os.close(reading)
            os.close(ended)
            status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
            self._end_orphans()
        return status

    def _relay(self, reading: int) -> bytes:
        data = os.read(reading, 2**20)
        if data:
            self._send(LINES, data)
        return data

    def _send(self, kind: bytes, data: bytes) -> None:
        self._socket.sendall(FRAME.pack(kind, len(data)) + data)

    def _end_orphans(self) -> None:
        """Kill whatever the worker left behind; where processes are refused there is nothing."""
        with suppress(ChildProcessError):
            while True:
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                for child in map(int, children):
                    os.kill(child, signal.SIGKILL)
                os.waitpid(-1, 0)

    def _work(self, task: dict[str, Any], scratch: Path, writing: int) -> NoReturn:
        try:
            os.setsid()
            self._confine.end_with_parent()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(null, stream)
            os.dup2(writing, 3)
            os.closerange(4, 1024)
            os.chdir(scratch)
            kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "OMP_NUM_THREADS")}
            os.environ.clear()
            os.environ.update(kept, HOME=str(scratch), TMPDIR=str(scratch), COURSE_DEVICE=task["device"])
            tempfile.tempdir = None
            self._confine.limit_resources(int(20 * task["seconds"]) + 60, task["device"])
            self._confine.confine(scratch)
            run_task(task, 3, self._originals, Deeds())
        except BaseException:
            os._exit(70)
        _end()


# --- runs as JSON -----------------------------------------------------------------------------------------------------

_PLAIN = ("case", "lines", "stopped", "forbidden", "left", "output")
_SEEN = ("observation", "arguments", "raised")


def encode_run(run: CaseRun) -> dict[str, Any]:
    """A CaseRun as JSON values."""
    data: dict[str, Any] = {name: getattr(run, name) for name in _PLAIN}
    data |= {name: encode(getattr(run, name)) for name in _SEEN}
    data["calls"] = [_encode_call(call) for call in run.calls]
    return data


def _encode_call(call: Call) -> list[Any]:
    before, after = encode(call.before), encode(call.after)
    return [call.label, call.names, before, encode(call.result), None if after == before else after, call.lines]


def _decode_call(data: list[Any]) -> Call:
    label, names, before, result, after, lines = data
    given = decode(before)
    left = given if after is None else decode(after)
    return Call(str(label), tuple(names), given, decode(result), left, tuple(map(str, lines)))


def decode_run(data: dict[str, Any], *, calls: bool = True) -> CaseRun:
    """The CaseRun that `encode_run` wrote, its calls only if asked for.

    Raises ValueError, TypeError or KeyError on anything else.
    """
    return CaseRun(
        case=str(data["case"]),
        lines=tuple(map(str, data["lines"])),
        stopped=str(data["stopped"]),
        forbidden=str(data["forbidden"]),
        left=tuple(map(str, data["left"])),
        output=str(data["output"]),
        calls=tuple(map(_decode_call, data["calls"])) if calls else (),
        **{name: decode(data[name]) for name in _SEEN},
    )


if __name__ == "__main__":
    main()
