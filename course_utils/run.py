"""Run an answer through the cases of its exercise and report what was seen, leaving the process as it was."""

from __future__ import annotations

import _signal  # `signal.signal` takes 30 µs to look the former handler up among its enums
import contextlib
import io
import linecache
import os
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from course_utils.draw import Draw
from course_utils.exercise import Case, Exercise
from course_utils.forbid import ForbiddenCall, Watch
from course_utils.observe import EXACT, SCALARS, SeenError, SeenItems, SeenOther, alike, difference, observe

SECONDS = 5.0
KEPT_OUTPUT = 2_000
KEPT_CALLS = 200
LIBRARIES = (os.path.dirname(__file__), os.path.dirname(contextlib.__file__), "<frozen")


class TimeLimit(BaseException):
    """A case ran longer than it may. Not an Exception, so that an answer's `except Exception` lets it pass."""


class Call(NamedTuple):
    """One call of the answer: arguments as they went in, what came back, arguments as they were afterwards.

    names: "" for a positional argument. result: an exception where one was raised, and `lines` where it came from;
    of an object that the answer's class made, its name alone, since cases look at what it does.
    given: the live arguments, in the process that made the call; None elsewhere.
    """

    label: str
    names: tuple[str, ...]
    before: SeenItems
    result: Any
    after: SeenItems
    lines: tuple[str, ...]
    given: tuple[Any, ...] | None = None


@dataclass
class CaseRun:
    """What was seen of one case. Everything is frozen, plain data.

    observation: what the case returned, None when it did not come to that. arguments: the mutable arguments after the
    case. raised: the exception that ended the case; `lines` its traceback inside the answer, empty when the answer's
    own code was not in it. stopped: "" or "timed out". forbidden: name of a forbidden function that was called.
    left: sentences on settings of torch that were not put back. calls: filled only when asked for.
    """

    case: str
    observation: Any = None
    arguments: Any = None
    raised: SeenError | None = None
    lines: tuple[str, ...] = ()
    stopped: str = ""
    forbidden: str = ""
    left: tuple[str, ...] = ()
    output: str = ""
    calls: tuple[Call, ...] = ()

    @cached_property
    def argument_tolerance(self) -> tuple[float, float] | None:
        """How exactly another run's arguments have to equal these: to the last bit where no call changed any."""
        kept = self.calls and not any(difference(call.before, call.after, EXACT) for call in self.calls)
        return EXACT if kept else None


def run_cases(
    exercise: Exercise,
    implementation: Callable[..., Any],
    seed: int,
    device: str = "cpu",
    *,
    detail: bool = False,
    refuse: bool = False,
) -> list[CaseRun]:
    """Run every case with the implementation in an `Undisturbed` process; see `Undisturbed.run_cases`."""
    with Undisturbed(seed, device) as process:
        return process.run_cases(exercise, implementation, detail=detail, refuse=refuse)


def _run_case(case: Case, recorder: Recorder, draw: Draw, clock: Clock, *, bounded: bool) -> CaseRun:
    run = CaseRun(case.name)
    try:
        clock.armed = bounded
        seen = case.function(recorder, draw)
        clock.armed = False
        run.observation = observe(seen)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        clock.armed = False
        _note_failure(run, error)
    finally:
        clock.armed = False
    run.arguments = None if case.random else observe(recorder.arguments())
    if recorder.calls:
        run.calls = tuple(recorder.calls)
    return run


def _note_failure(run: CaseRun, error: BaseException) -> None:
    run.lines = answer_lines(error)
    if isinstance(error, TimeLimit):
        run.stopped = str(error)
    elif not isinstance(error, ForbiddenCall):
        run.raised = observe(error)


def answer_lines(error: BaseException) -> tuple[str, ...]:
    """The lines of the answer that the exception passed through, outermost first, at most six."""
    lines = []
    for frame, number in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if not code.co_filename.startswith(LIBRARIES) and "site-packages" not in code.co_filename:
            text = linecache.getline(code.co_filename, number, frame.f_globals).strip()
            lines.append(f"line {number}, in {code.co_name}: {text}")
    return tuple(lines if len(lines) <= 6 else [*lines[:3], f"… {len(lines) - 6} more …", *lines[-3:]])


# --- what the implementation is asked ----------------------------------------------------------------------------


class Recorder:
    """Stands for the implementation in a case and remembers how it was called.

    Calling it, or its `apply` where it is an autograd Function, is recorded; every other attribute is the
    implementation's own.
    """

    def __init__(self, implementation: Any, label: str, watch: Watch, detail: bool = False) -> None:
        self._implementation, self._label, self._watch, self._detail = implementation, label, watch, detail
        self._mutable: dict[int, Any] = {}
        self.calls: list[Call] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._remember(args)
        if kwargs:
            self._remember(tuple(kwargs.values()))
        if self._detail:
            return self._record(self._label, self._implementation, args, kwargs)
        if self._watch.per_call:
            return self._watch.around(self._implementation, args, kwargs)
        return self._implementation(*args, **kwargs)

    def apply(self, *args: Any) -> Any:
        """`implementation.apply(*args)`, recorded."""
        self._remember(args)
        if self._detail:
            return self._record(f"{self._label}.apply", self._implementation.apply, args, {})
        return self._implementation.apply(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._implementation, name)

    def _record(
        self,
        label: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if len(self.calls) >= KEPT_CALLS:
            return self._watch.around(function, args, kwargs)
        before = observe((*args, *kwargs.values()))
        result: Any = None
        lines: tuple[str, ...] = ()
        try:
            returned = self._watch.around(function, args, kwargs)
            made = isinstance(self._implementation, type) and label == self._label
            result = SeenOther(f"a {label}") if made else observe(returned)
            return returned
        except BaseException as error:
            result, lines = observe(error), answer_lines(error)
            raise
        finally:
            names = ("",) * len(args) + tuple(kwargs)
            given = (*args, *kwargs.values())
            self.calls.append(Call(label, names, before, result, observe(given), lines, given))

    def _remember(self, values: tuple[Any, ...]) -> None:
        for value in values:
            kind = type(value)
            if kind is tuple:
                self._remember(value)
            elif kind not in SCALARS and _is_mutable(kind):
                self._mutable[id(value)] = value

    def arguments(self) -> list[Any]:
        """The mutable arguments of all calls; an answer that changed one differs here afterwards."""
        return list(self._mutable.values())


@cache
def _is_mutable(kind: type) -> bool:
    return issubclass(kind, (torch.Tensor, list, dict, set, np.ndarray, nn.Module))


# --- leaving the process as it was --------------------------------------------------------------------------------


class Undisturbed:
    """A process in which answers may run: what they change is put back at the end, what they print is kept.

    Conditions before each case: grad mode on, autocast off, float32 and the CPU as defaults, nothing deterministic
    forced, warnings ignored, the generators of torch, NumPy and Python seeded.
    seconds: how long one run of all cases may take, where the platform has interval timers.
    """

    def __init__(self, seed: int, device: str = "cpu", seconds: float = SECONDS) -> None:
        self.seed, self.device = seed, device
        self.clock, self.output = Clock(seconds), _Output()

    def __enter__(self) -> Undisturbed:
        self._python, self._torch = random.getstate(), torch.get_rng_state()
        self._numpy = np.random.get_bit_generator()
        np.random.set_bit_generator(_NUMPY_GENERATOR)
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._grad, self._dtype = torch.is_grad_enabled(), torch.get_default_dtype()
        self._device = torch.empty(0).device  # torch.get_default_device fails in torch 2.7 once a default was unset
        self._flags = _determinism()
        self._threads, self._anomaly = torch.get_num_threads(), torch.is_anomaly_enabled()
        self._filters, self._show = list(warnings.filters), warnings.showwarning
        self._recursion, self._folder = sys.getrecursionlimit(), os.getcwd()
        self._streams = sys.stdout, sys.stderr
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = self.output  # type: ignore[assignment]
        self.clock.install()
        return self

    def __exit__(self, *exception: object) -> None:
        self.clock.remove()
        sys.stdout, sys.stderr = self._streams
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        np.random.set_bit_generator(self._numpy)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        _settle(self._grad, self._dtype, self._device, self._flags)
        torch.set_num_threads(self._threads)
        torch.set_anomaly_enabled(self._anomaly)
        warnings.filters[:] = self._filters
        warnings._filters_mutated()  # type: ignore[attr-defined]
        warnings.showwarning = self._show
        sys.setrecursionlimit(self._recursion)
        os.chdir(self._folder)

    def run_cases(
        self,
        exercise: Exercise,
        implementation: Callable[..., Any],
        *,
        detail: bool = False,
        refuse: bool = False,
        cases: Sequence[Case] | None = None,
    ) -> list[CaseRun]:
        """Run every case with the implementation, in order, and freeze what was seen.

        After a case that timed out, the rest is not run; the reference has all the time it needs.
        detail: also record every call with its arguments before and after. refuse: stop at the functions the exercise
        forbids. cases: these alone; each begins as it does among the others.
        """
        runs: list[CaseRun] = []
        bounded = implementation is not exercise.reference
        with self._watch(exercise, implementation, refuse, thorough=True) as watch:
            for case, draw in self._cases(exercise.cases if cases is None else cases):
                recorder = Recorder(implementation, exercise.name, watch, detail)
                run = _run_case(case, recorder, draw, self.clock, bounded=bounded)
                run.left = tuple(_left_changed())
                run.output, run.forbidden = self.output.take(), watch.called[0] if watch.called else ""
                watch.called.clear()
                runs.append(run)
                if run.stopped:
                    break
        return runs

    def agrees(self, exercise: Exercise, answer: Callable[..., Any]) -> bool:
        """Whether the answer is seen as the reference is in every case: what `run_cases` on both would find.

        The quick way for right answers: live values are compared, nothing is frozen or recorded. In doubt False.
        """
        self._set_conditions()
        right = self._live(exercise, exercise.reference, refuse=False)  # first, since what it imports takes time
        mine = self._live(exercise, answer, refuse=True) if right is not None else None
        if mine is None or right is None:
            return False
        return all(
            (alike(a, b) or difference(observe(a), observe(b), case.tolerance) is None)
            and (alike(mine_args, right_args) or difference(observe(mine_args), observe(right_args), EXACT) is None)
            for case, (a, mine_args), (b, right_args) in zip(exercise.cases, mine, right, strict=True)
        )

    def _live(self, exercise: Exercise, implementation: Any, refuse: bool) -> list[Any] | None:
        """Each case's result with the arguments as they are afterwards.

        None when an error ended a case, or when a setting was left changed, which may have changed the cases after it.
        """
        results = []
        try:
            with self._watch(exercise, implementation, refuse, thorough=False) as watch:
                for case, draw in self._cases(exercise.cases, settled=True):
                    recorder = Recorder(implementation, exercise.name, watch)
                    self.clock.armed = implementation is not exercise.reference
                    seen = case.function(recorder, draw)
                    self.clock.armed = False
                    results.append([seen, None if case.random else recorder.arguments()])
        except KeyboardInterrupt:
            raise
        except BaseException:
            return None
        finally:
            self.clock.armed = False
        return None if watch.called or any(_left_changed()) else results

    def _watch(self, exercise: Exercise, implementation: Any, refuse: bool, *, thorough: bool) -> Watch:
        return Watch(exercise.forbids if refuse else (), exercise.is_class, implementation, thorough=thorough)

    def _cases(self, cases: Sequence[Case], *, settled: bool = False) -> Iterator[tuple[Case, Draw]]:
        """The cases, each with its draw and with all generators seeded, while the clock runs.

        settled: the conditions are as they should be, and are not put back before every case.
        """
        self.clock.start()
        try:
            for case in cases:
                if not settled:
                    self._set_conditions()
                self._seed()
                draw = Draw(self.seed, case.name, self.device)
                try:
                    yield case, draw
                finally:
                    draw.close()
        finally:
            self.clock.stop()

    def _seed(self) -> None:
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.default_generator.manual_seed(self.seed)
        if self.device == "cuda":
            torch.cuda.manual_seed_all(self.seed)

    def _set_conditions(self) -> None:
        _settle(True, torch.float32, "cpu", (False, False, False, False))
        warnings.filters[:] = _IGNORE_ALL
        warnings._filters_mutated()  # type: ignore[attr-defined]


_NUMPY_GENERATOR = np.random.MT19937(0)  # stands in for the caller's, which is then left alone
_IGNORE_ALL = [("ignore", None, Warning, None, 0)]


def _settle(grad: bool, dtype: torch.dtype, device: torch.device | str, flags: tuple[bool, bool, bool, bool]) -> None:
    torch.set_grad_enabled(grad)
    probe = torch.empty(0)
    if probe.dtype is not dtype:
        torch.set_default_dtype(dtype)
    if probe.device != torch.device(device):
        torch.set_default_device(None if str(device) == "cpu" else device)
    if _determinism() != flags:
        torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags[2:]
    for device_type in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device_type):
            torch.set_autocast_enabled(device_type, False)


def _left_changed() -> Iterator[str]:
    """A sentence on each condition of a case that is not as it was set."""
    if not torch.is_grad_enabled():
        yield "gradient recording is off"
    probe = torch.empty(0)
    if probe.dtype is not torch.float32:
        yield f"the default dtype is {probe.dtype}"
    if not probe.is_cpu:
        yield f"the default device is {probe.device.type}"
    for device_type in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device_type):
            yield f"autocast is on for {device_type}"
    deterministic, warn_only, cudnn, benchmark = _determinism()
    if deterministic or warn_only:
        yield "torch.use_deterministic_algorithms is on"
    if cudnn:
        yield "torch.backends.cudnn.deterministic is True"
    if benchmark:
        yield "torch.backends.cudnn.benchmark is True"


def _determinism() -> tuple[bool, bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


class _Output(io.TextIOBase):
    """A text stream that keeps the beginning of what is written and drops the rest."""

    encoding = "utf-8"

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[str] = []
        self._room, self._cut = KEPT_OUTPUT, False

    def write(self, text: str) -> int:
        if self._room > 0 and text:
            self._kept.append(str(text)[: self._room])
        self._cut = self._cut or len(text) > self._room
        self._room -= min(self._room, len(text))
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered."""

    def isatty(self) -> bool:
        return False

    def take(self) -> str:
        """What was kept since the last time."""
        text = "".join(self._kept) + ("…" if self._cut else "")
        self._kept, self._room, self._cut = [], KEPT_OUTPUT, False
        return text


class Clock:
    """Raises TimeLimit in the running case when time is over, again and again until the case ends.

    Works where the platform has interval timers and in the main thread; elsewhere it never fires.
    `armed` is true only while an answer's code may be interrupted.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.armed = False
        self._rings = 0
        self._former_trace: tuple[Any, ...] = ()
        self.works = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()

    def install(self) -> None:
        """Take over the alarm signal."""
        if self.works:
            self._former_timer = signal.setitimer(signal.ITIMER_REAL, 0)
            self._former_handler = _signal.signal(signal.SIGALRM, self._ring)

    def remove(self) -> None:
        """Give the alarm signal back to whoever had it."""
        self.stop()
        if self.works:
            _signal.signal(signal.SIGALRM, self._former_handler)
            signal.setitimer(signal.ITIMER_REAL, *self._former_timer)

    def start(self) -> None:
        """Begin the time of one run; an answer that used it up once gets a second, to show where it was."""
        patience = min(self.seconds, 1.0) if self._rings else self.seconds
        self._rings = 0
        if self.works:
            signal.setitimer(signal.ITIMER_REAL, patience, 0.2)

    def stop(self) -> None:
        """End it."""
        if self.works:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self._former_trace:
            sys.settrace(self._former_trace[0])
            self._former_trace = ()

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self.armed:
            self._rings += 1
            if self._rings > 1:
                self._insist(frame)
            self._give_up()

    def _give_up(self) -> None:
        raise TimeLimit(f"stopped after {self.seconds:g} s")

    def _insist(self, frame: FrameType | None) -> None:
        """The answer caught the last TimeLimit with a bare `except:`; raise another in the lines that catch this."""

        def again(frame: FrameType, event: str, argument: object) -> Any:
            if event == "line" and self.armed:
                self._give_up()
            return again

        self._former_trace = self._former_trace or (sys.gettrace(),)
        sys.settrace(lambda *event: None)
        while frame is not None and frame.f_code.co_filename != __file__:
            frame.f_trace = again
            frame = frame.f_back
