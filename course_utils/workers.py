"""The processes that run submissions, seen from the side that judges: start them, feed them, end them, collect.

Nothing of a submission is executed here.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

if TYPE_CHECKING:
    from course_utils.submission import Cell

FRAME = struct.Struct(">cI")  # what a slot sends: b"." and a worker's raw output, or b"=" and how the worker ended
LINES, ENDED = b".", b"="
KILL = b"k"

SECONDS_TO_START = 60.0
SECONDS_TO_END = 10.0
LARGEST_REPORT = 64 * 2**20


@dataclass
class Report:
    """What the worker wrote about an exercise, how long it took, what it noticed, and why there is nothing if so.

    line: `data` as it came.
    """

    data: dict[str, Any] | None
    seconds: float
    died: str = ""
    flags: list[str] = field(default_factory=list)
    line: bytes = b""


class Workers:
    """Runs submissions, `jobs` at a time, each in a process that ends with it; see `course_utils.worker`.

    On Linux a fork server prepares everything once. Elsewhere each process starts from nothing, which takes seconds.
    """

    def __init__(self, jobs: int, weeks: set[str], *, seed: int, device: str, seconds: float) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="course-")
        self._settings = {"seed": seed, "device": device, "seconds": seconds, "scratch": self._scratch.name}
        self._free: queue.Queue[Slot] = queue.Queue()
        make = _ForkedSlot.start if hasattr(os, "pidfd_open") else _SpawnedSlot.start
        self._slots = make(jobs, weeks, self._scratch.name)
        for slot in self._slots:
            self._free.put(slot)

    def run(self, file: str, cells: list[Cell], exercises: list[str]) -> dict[str, Report]:
        """What was seen of each exercise. When one of them ends its process, the rest goes on in a new one."""
        reports: dict[str, Report] = {}
        slot = self._free.get()
        try:
            while remaining := [name for name in exercises if name not in reports]:
                task = {"file": file, "cells": cells, "exercises": remaining}
                reports.update(collect(slot, {**task, **self._settings}))
                if remaining[0] not in reports:
                    break
        finally:
            self._free.put(slot)
        return reports

    def close(self) -> None:
        """End all processes and remove their files."""
        for slot in self._slots:
            slot.end()
        for slot in self._slots:
            slot.close()
        self._scratch.cleanup()


def collect(slot: Slot, task: dict[str, Any]) -> dict[str, Report]:
    """Read a worker's lines until it ends; the exercise it was at when it ended gets a report that says so."""
    exercises, seconds = task["exercises"], task["seconds"]
    reports: dict[str, Report] = {}
    flags: list[str] = []
    current, started, room = "", time.monotonic(), LARGEST_REPORT
    for line in slot.lines(task, seconds):
        room -= len(line)
        if room < 0:
            continue
        try:
            data = json.loads(line)
            noticed = [str(flag)[:200] for flag in data.get("flags", ())][:20]
        except (ValueError, RecursionError, AttributeError, TypeError):
            room = 0  # nothing that follows can be trusted
            slot.kill()
            continue
        if data.get("begins") in exercises:
            current, started = data["begins"], time.monotonic()
            slot.extend(2 * seconds + 5)
        elif data.get("exercise") == current and current:
            reports[current] = Report(data, time.monotonic() - started, flags=flags + noticed, line=line)
            current = ""
        elif not reports:
            flags += noticed
    if current or not reports:
        seconds = time.monotonic() - started
        for name in [current] if current else exercises:  # before the first begins, all of them share the reason
            reports[name] = Report(None, seconds, slot.reason(), flags)
    return reports


class Slot:
    """A place for one worker at a time."""

    late = False
    _exit_code: int | None = None

    def lines(self, task: dict[str, Any], seconds: float) -> Iterator[bytes]:
        """Run a task and yield the lines its worker writes, as they come. seconds: how long one exercise may take."""
        raise NotImplementedError

    def kill(self) -> None:
        """End the worker that is running."""
        raise NotImplementedError

    def extend(self, seconds: float) -> None:
        """Give the worker that long from now."""
        self._deadline = time.monotonic() + seconds

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _expire(self) -> None:
        self.late = True
        self.kill()

    def reason(self) -> str:
        """Why the last worker ended, in words."""
        if self.late:
            return "it did not come to an end in its time and was stopped"
        code = self._exit_code
        if code is None:
            return "the process that ran it was lost"
        return f"it was killed by signal {-code}" if code < 0 else f"it ended the whole process (exit code {code})"


class _ForkedSlot(Slot):
    """Talks to one process of a fork server, and starts a server anew when that process is lost."""

    def __init__(self, weeks: set[str], scratch: str) -> None:
        self._weeks, self._scratch = weeks, scratch
        self._log = Path(scratch, f"server_{id(self)}.log")
        self._servers: list[subprocess.Popen[bytes]] = []
        self._closed = False
        self._exit_code: int | None = None

    @classmethod
    def start(cls, jobs: int, weeks: set[str], scratch: str) -> list[_ForkedSlot]:
        """The slots of one new server."""
        slots = [cls(weeks, scratch) for _ in range(jobs)]
        cls._serve(slots)
        return slots

    @staticmethod
    def _serve(slots: list[_ForkedSlot]) -> None:
        pairs = [socket.socketpair() for _ in slots]
        numbers = [theirs.fileno() for _, theirs in pairs]
        weeks = ",".join(sorted(slots[0]._weeks))
        with open(slots[0]._log, "wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "course_utils.worker", "--serve", weeks, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=slots[0]._scratch,
                pass_fds=numbers,
                start_new_session=True,
                env=_environment() | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},  # else a look at CUDA rules out forking
            )
        for slot, (ours, theirs) in zip(slots, pairs, strict=True):
            theirs.close()
            slot._socket, slot._ready = ours, False
            slot._servers.append(server)

    def lines(self, task: dict[str, Any], seconds: float) -> Iterator[bytes]:
        """Run a task and yield the lines its worker writes, as they come."""
        self.late, self._exit_code = False, None
        self.extend(seconds + SECONDS_TO_START)
        try:
            if not self._ready:
                self._frame()
                self._ready = True
            self._socket.sendall(json.dumps(task).encode() + b"\n")
            self.extend(2 * seconds + 5)
            yield from self._worker_lines()
        except OSError as error:
            self._socket.close()
            if self._closed:
                return
            if not self._ready:
                said = self._log.read_text(errors="replace").strip().split("\n")[-1]
                raise CourseError(f"The process that runs submissions did not start: {said}") from error
            self._serve([self])

    def _worker_lines(self) -> Iterator[bytes]:
        rest = b""
        while True:
            kind, data = self._frame()
            if kind == ENDED:
                self._exit_code = int(data)
                return
            *whole, rest = (rest + data).split(b"\n")
            yield from whole
            if len(rest) > LARGEST_REPORT:
                rest = b""
                self._expire()

    def _frame(self) -> tuple[bytes, bytes]:
        kind, length = FRAME.unpack(self._receive(FRAME.size))
        return kind, self._receive(length)

    def _receive(self, count: int) -> bytes:
        """Exactly that many bytes. Raises OSError when the other side is gone or stays silent after a kill."""
        data = bytearray()
        while len(data) < count:
            self._socket.settimeout(max(self._left(), 0.01))
            try:
                part = self._socket.recv(min(count - len(data), 2**20))
            except TimeoutError:
                if self._left() < -SECONDS_TO_END:
                    raise
                if not self.late:
                    self._expire()
                    self.extend(SECONDS_TO_END)
                continue
            if not part:
                raise ConnectionResetError
            data += part
        return bytes(data)

    def kill(self) -> None:
        with suppress(OSError):
            self._socket.sendall(KILL)

    def end(self) -> None:
        """End the slot and its worker."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Wait until the server has ended, which it does with its last slot."""
        self._socket.close()
        for server in self._servers:
            with suppress(subprocess.TimeoutExpired):
                server.wait(SECONDS_TO_END)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


class _SpawnedSlot(Slot):
    """Starts a Python of its own for every task, for platforms on which torch cannot fork."""

    _worker: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, jobs: int, weeks: set[str], scratch: str) -> list[_SpawnedSlot]:
        """As many as asked for."""
        return [cls() for _ in range(jobs)]

    def lines(self, task: dict[str, Any], seconds: float) -> Iterator[bytes]:
        """Run a task and yield the lines its worker writes, as they come."""
        self.late = False
        self.extend(2 * seconds + SECONDS_TO_START)
        with tempfile.TemporaryDirectory(prefix="course-", dir=task["scratch"]) as scratch:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "course_utils.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=scratch,
                start_new_session=True,
                env=_environment() | {"TMPDIR": scratch},
            )
            watch = threading.Thread(target=self._watch, args=(self._worker,), daemon=True)
            watch.start()
            try:
                with suppress(BrokenPipeError):
                    self._worker.stdin.write(json.dumps(task).encode() + b"\n")
                    self._worker.stdin.close()
                yield from iter(lambda: self._worker.stdout.readline(LARGEST_REPORT), b"")
            finally:
                self._worker.stdout.close()
                self.kill()
                self._worker.wait()
                watch.join()

    def _watch(self, worker: subprocess.Popen[bytes]) -> None:
        while worker.poll() is None:
            if self._left() < 0:
                self._expire()
            time.sleep(0.1)

    @property
    def _exit_code(self) -> int:
        return self._worker.wait()

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._worker.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._worker.kill()

    def end(self) -> None:
        """End the worker that is running, if one is."""
        if self._worker is not None:
            self.kill()

    def close(self) -> None:
        """Nothing waits between tasks."""


def _environment() -> dict[str, str]:
    """That of a worker: this one's, with one thread and this package found first."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
