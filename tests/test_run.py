"""Running an answer: the process stays as it was, what runs away is stopped, what is forbidden is seen."""

import contextlib
import io
import os
import random
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.errors import CourseError
from course_utils.exercise import exercise
from course_utils.run import KEPT_OUTPUT, SECONDS, Undisturbed, run_cases
from course_utils.settings import course_device, course_seed

needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this platform")


def asking(*arguments, cases=1, **options):
    """An exercise whose cases call the answer once with the arguments and return what comes back."""

    def answer(*arguments):
        """The task."""
        return arguments

    made = exercise(**options)(answer) if options else exercise(answer)
    for number in range(cases):

        def one_call(implementation, draw):
            return implementation(*arguments)

        one_call.__name__ = f"case_{number}"
        made.case(one_call)
    return made


def run_one(answer, *arguments, seconds=SECONDS, refuse=False, **options):
    """What was seen of an answer in a single case."""
    with Undisturbed(0, seconds=seconds) as process:
        return process.run_cases(asking(*arguments, **options), answer, refuse=refuse)[0]


# --- nothing stays behind -----------------------------------------------------------------------------------------


def state():
    """Everything an answer may change in the process, in a comparable form."""
    return {
        "python random": random.getstate(),
        "numpy random": str(np.random.get_state()),
        "torch random": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "threads": torch.get_num_threads(),
        "anomaly": torch.is_anomaly_enabled(),
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "recursion": sys.getrecursionlimit(),
        "folder": os.getcwd(),
        "streams": (sys.stdout, sys.stderr),
        "alarm": signal.getsignal(signal.SIGALRM) if hasattr(signal, "SIGALRM") else None,
        "trace": sys.gettrace(),
    }


def change_everything():
    random.seed(1)
    random.random()
    np.random.seed(2)
    np.random.rand(3)
    torch.manual_seed(3)
    torch.rand(4)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = True
    torch.set_num_threads(2)
    torch.autograd.set_detect_anomaly(True)
    warnings.simplefilter("error")
    warnings.showwarning = print
    sys.setrecursionlimit(321)
    os.chdir(os.sep)
    sys.stdout = sys.stderr = io.StringIO()
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def test_everything_an_answer_changes_is_put_back():
    before = state()
    run_one(lambda: change_everything())
    assert state() == before


def test_everything_is_put_back_after_an_answer_that_raises():
    def answer():
        change_everything()
        raise ValueError

    before = state()
    assert run_one(answer).raised.lineage[0] == "ValueError"
    assert state() == before


@needs_timers
def test_everything_is_put_back_after_an_answer_that_is_stopped():
    def answer():
        random.seed(5)
        torch.set_grad_enabled(False)
        while True:
            pass

    before = state()
    assert run_one(answer, seconds=0.1).stopped == "stopped after 0.1 s"
    assert state() == before


def test_what_the_caller_had_set_is_put_back_rather_than_the_defaults(monkeypatch):
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    try:
        before = state()
        seen = run_one(lambda: (torch.ones(1, requires_grad=True) * 2, torch.are_deterministic_algorithms_enabled()))
        tensor, deterministic = seen.observation.items
        assert (tensor.dtype, tensor.requires_grad, deterministic) == ("torch.float32", True, False)
        assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(False)


def test_an_answer_left_in_inference_mode_costs_only_itself():
    def answer():
        torch.inference_mode().__enter__()

    run_one(answer)
    assert torch.is_inference_mode_enabled() is False


def test_the_callers_random_numbers_go_on_as_if_nothing_had_run():
    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    alone = [draws(), draws()]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    beside = [draws()]
    run_one(lambda: draws())
    assert [*beside, draws()] == alone


def test_every_case_starts_under_the_same_conditions():
    def answer():
        seen = float(torch.rand(())), torch.get_default_dtype(), torch.is_grad_enabled(), str(torch.empty(0).device)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        warnings.simplefilter("error")
        return seen

    first, second = run_cases(asking(cases=2), answer, 7)
    assert first.observation == second.observation


def test_random_numbers_depend_on_the_seed_alone():
    def answer():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    one, again, other = (run_cases(asking(), answer, seed)[0].observation for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_a_case_begins_alone_as_it_does_among_the_others():
    def answer():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    numbers = asking(cases=2)
    with Undisturbed(7) as process:
        first, second = process.run_cases(numbers, answer)
        (alone,) = process.run_cases(numbers, answer, cases=numbers.cases[1:])
    assert alone.case == second.case == "case_1"
    assert alone.observation == second.observation == first.observation


def test_warnings_of_an_answer_are_not_shown(recwarn):
    run_one(lambda: warnings.warn("careful", stacklevel=1))
    assert list(recwarn) == []


@needs_timers
def test_the_callers_alarm_still_rings():
    rung = []
    former = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        run_one(lambda: None)
        remaining = signal.setitimer(signal.ITIMER_REAL, 0.01)[0]
        time.sleep(0.05)
        assert 0 < remaining <= 0.3
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_an_interrupt_by_the_person_gets_through_and_leaves_nothing_behind():
    def answer():
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    before = state()
    with pytest.raises(KeyboardInterrupt):
        run_one(answer)
    assert state() == before


# --- what runs away -----------------------------------------------------------------------------------------------


def forever():
    while True:
        pass


def forever_despite_except_exception():
    while True:
        try:
            time.sleep(0.001)
        except Exception:
            continue


def forever_despite_a_bare_except():
    while True:
        try:
            sum(range(100))
        except:  # noqa: E722
            continue


def forever_despite_suppress():
    while True:
        with contextlib.suppress(BaseException):
            sum(range(100))


def forever_in_a_helper_despite_a_bare_except():
    def wait():
        while True:
            time.sleep(0.001)

    while True:
        try:
            wait()
        except BaseException:
            continue


@needs_timers
@pytest.mark.parametrize(
    "answer",
    [
        forever,
        forever_despite_except_exception,
        forever_despite_a_bare_except,
        forever_despite_suppress,
        forever_in_a_helper_despite_a_bare_except,
    ],
)
def test_an_endless_loop_is_stopped(answer):
    before = sys.gettrace()
    started = time.monotonic()
    run = run_one(answer, seconds=0.1)
    assert run.stopped == "stopped after 0.1 s"
    assert run.raised is None
    assert time.monotonic() - started < 3
    assert sys.gettrace() is before


@needs_timers
def test_a_debuggers_trace_function_is_put_back_after_an_answer_that_would_not_stop():
    def debugger(frame, event, argument):
        return None

    former = sys.gettrace()
    sys.settrace(debugger)
    try:
        run_one(forever_despite_a_bare_except, seconds=0.1)
        assert sys.gettrace() is debugger
    finally:
        sys.settrace(former)


@needs_timers
def test_a_stopped_case_names_the_line_where_it_was():
    assert "in forever: " in run_one(forever, seconds=0.1).lines[-1]


@needs_timers
def test_after_a_case_that_was_stopped_the_rest_is_not_run():
    with Undisturbed(0, seconds=0.1) as process:
        runs = process.run_cases(asking(cases=3), forever)
    assert [run.case for run in runs] == ["case_0"]


@needs_timers
def test_the_next_run_has_its_full_time_again():
    with Undisturbed(0, seconds=0.2) as process:
        process.run_cases(asking(), forever)
        run = process.run_cases(asking(), lambda: time.sleep(0.1))[0]
    assert run.stopped == ""


def test_in_another_thread_the_answer_runs_without_a_clock():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(run_one(lambda: 5).observation))
    thread.start()
    thread.join()
    assert seen == [5]


def test_endless_recursion_is_an_exception_with_a_short_traceback():
    def answer():
        return answer()

    run = run_one(answer)
    assert run.raised.lineage[0] == "RecursionError"
    assert len(run.lines) == 7
    assert "more …" in run.lines[3]


def test_an_endless_generator_is_seen_as_a_generator():
    def answer():
        while True:
            yield 1

    assert run_one(answer).observation.kind == "a generator"


def test_what_a_generator_raises_in_the_case_is_noted():
    def answer():
        yield 1
        raise ValueError("late")

    @exercise
    def numbers():
        """The task."""

    @numbers.case
    def all_of_them(implementation, draw):
        return list(implementation())

    run = run_cases(numbers, answer, 0)[0]
    assert run.raised.message == "late"
    assert "raise ValueError" in run.lines[-1]


@pytest.mark.parametrize("leave", [sys.exit, exit, SystemExit])
def test_an_attempt_to_leave_the_process_is_an_exception(leave):
    def answer():
        raise SystemExit(3) if leave is SystemExit else leave(3)

    assert run_one(answer).raised.lineage[0] in ("SystemExit", "TypeError")


def test_an_exception_outside_exception_is_noted_too():
    class Odd(BaseException):
        pass

    def answer():
        raise Odd("so")

    assert run_one(answer).raised == (("Odd", "BaseException"), "so")


# --- output -------------------------------------------------------------------------------------------------------


def test_what_an_answer_prints_is_kept_and_not_shown(capsys):
    def answer():
        print("one")
        print("two", file=sys.stderr)
        sys.stdout.writelines(["three", "\n"])

    assert run_one(answer).output == "one\ntwo\nthree\n"
    assert capsys.readouterr() == ("", "")


def test_a_flood_of_output_is_shortened():
    def answer():
        for _ in range(1000):
            print("x" * 1000)

    run = run_one(answer)
    assert len(run.output) == KEPT_OUTPUT + 1
    assert run.output.endswith("…")


def test_output_that_just_fits_is_not_marked_as_cut():
    assert run_one(lambda: print("x" * KEPT_OUTPUT, end="")).output == "x" * KEPT_OUTPUT


def test_each_case_has_its_own_output():
    count = iter(range(9))
    runs = run_cases(asking(cases=2), lambda: print(next(count)), 0)
    assert [run.output for run in runs] == ["0\n", "1\n"]


# --- calls and arguments ------------------------------------------------------------------------------------------


def test_calls_are_recorded_with_arguments_before_and_after():
    def answer(items, scale):
        items.append(scale)
        return len(items)

    @exercise
    def grow(items, scale):
        """The task."""

    @grow.case
    def one(implementation, draw):
        return implementation([1], scale=2)

    call = run_cases(grow, answer, 0, detail=True)[0].calls[0]
    assert (call.label, call.names, call.result) == ("grow", ("", "scale"), 2)
    assert call.before.items[0].items == (1,)
    assert call.after.items[0].items == (1, 2)


def test_without_detail_no_call_is_recorded():
    assert run_cases(asking(), lambda: 1, 0)[0].calls == ()


def test_mutable_arguments_are_seen_as_they_are_afterwards():
    tensor, array, inside = torch.ones(2), np.ones(2), [1]

    def answer(tensor, array, nested, number):
        tensor += 1
        array += 1
        nested[0].append(2)

    run = run_one(answer, tensor, array, (inside,), 3)
    assert [item.values.tolist() for item in run.arguments.items[:2]] == [[2, 2], [2, 2]]
    assert run.arguments.items[2].items == (1, 2)


def test_the_forward_of_an_autograd_function_is_recorded_through_apply():
    class Twice(torch.autograd.Function):
        """The task."""

        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, upstream):
            return 2 * upstream

    made = exercise(Twice)
    made.case(lambda implementation, draw: implementation.apply(torch.ones(2)))
    call = run_cases(made, Twice, 0, detail=True)[0].calls[0]
    assert call.label == "Twice.apply"
    assert call.result.values.tolist() == [2, 2]


def test_a_folder_handed_out_by_draw_is_gone_afterwards():
    folders = []

    @exercise
    def save(folder):
        """The task."""

    @save.case
    def a_file(implementation, draw):
        folders.append(draw.folder())
        (folders[0] / "a.txt").write_text("a")
        raise RuntimeError

    run_cases(save, print, 0)
    assert [folder.exists() for folder in folders] == [False]


# --- forbidden calls ----------------------------------------------------------------------------------------------

LOGITS, TARGETS = torch.eye(3), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("forbidden", "answer"),
    [
        (F.cross_entropy, lambda: F.cross_entropy(LOGITS, TARGETS)),
        (F.cross_entropy, lambda: nn.CrossEntropyLoss()(LOGITS, TARGETS)),
        (F.cross_entropy, lambda: nn.functional.cross_entropy(LOGITS, TARGETS)),
        (torch.as_strided, lambda: torch.as_strided(LOGITS, (2,), (1,))),
        (torch.Tensor.as_strided, lambda: LOGITS.as_strided((2,), (1,))),
        (torch.Tensor.softmax, lambda: LOGITS.softmax(0)),
        (torch.Tensor.matmul, lambda: LOGITS @ LOGITS),
        (np.cov, lambda: np.cov(np.eye(3))),
        (np.einsum, lambda: np.einsum("ij->ji", np.eye(3))),
    ],
    ids=["function", "module", "by its full name", "torch", "method", "softmax", "operator", "numpy", "numpy c"],
)
def test_a_forbidden_call_is_seen_however_it_is_made(forbidden, answer):
    run = run_one(answer, refuse=True, forbids=(forbidden,))
    assert run.forbidden == forbidden.__name__
    assert run.raised is None
    assert run_one(answer, forbids=(forbidden,)).forbidden == ""


@pytest.mark.parametrize("catch", [Exception, BaseException])
def test_a_forbidden_call_is_seen_although_the_answer_catches_everything(catch):
    def answer():
        with contextlib.suppress(catch):
            F.cross_entropy(LOGITS, TARGETS)
        return 1

    assert run_one(answer, refuse=True, forbids=(F.cross_entropy,)).forbidden == "cross_entropy"


def test_a_forbidden_call_in_the_methods_of_a_class_is_seen():
    class Layer(nn.Module):
        """The task."""

        def forward(self, x):
            return x.softmax(0)

    made = exercise(forbids=(torch.Tensor.softmax,))(Layer)
    made.case(lambda implementation, draw: implementation().forward(LOGITS))
    assert run_cases(made, Layer, 0, refuse=True)[0].forbidden == "softmax"


def test_the_cases_own_calls_are_not_refused():
    made = exercise(forbids=(torch.Tensor.softmax,))(lambda x: x)
    made.case(lambda implementation, draw: implementation(draw.normal(3).softmax(0)).softmax(0))
    assert run_cases(made, lambda x: x, 0, refuse=True)[0].forbidden == ""


@pytest.mark.parametrize(
    "answer",
    [lambda: np.cov(np.eye(3)), lambda: F.cross_entropy(LOGITS, TARGETS), lambda: 1 / 0],
    ids=["numpy", "torch", "neither"],
)
def test_the_stand_ins_for_forbidden_functions_are_undone(answer):
    cov, cross_entropy = np.cov, F.cross_entropy
    run_one(answer, refuse=True, forbids=(np.cov, F.cross_entropy))
    assert (np.cov, F.cross_entropy) == (cov, cross_entropy)
    assert F.cross_entropy(LOGITS, TARGETS).isfinite()


my_cov = np.cov  # another name, as after `from numpy import cov as my_cov`


def test_a_forbidden_function_under_another_name_is_seen_and_the_name_is_given_back():
    run = run_one(lambda: my_cov(np.eye(3)), refuse=True, forbids=(np.cov,))
    assert run.forbidden == "cov"
    assert my_cov is np.cov


@needs_timers
def test_the_stand_ins_are_undone_after_an_answer_that_was_stopped():
    cov = np.cov
    assert run_one(forever, seconds=0.1, refuse=True, forbids=(np.cov,)).stopped
    assert np.cov is cov


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "device"), [("cpu", "cpu"), (" CPU ", "cpu")])
def test_course_device_chooses_the_device(monkeypatch, text, device):
    monkeypatch.setenv("COURSE_DEVICE", text)
    assert course_device() == device


def test_an_unknown_course_device_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "tpu")
    with pytest.raises(CourseError, match="COURSE_DEVICE is 'tpu'; it can be cpu or cuda"):
        course_device()


def test_cuda_without_a_device_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CourseError, match="COURSE_DEVICE is cuda, but torch sees no CUDA device"):
        course_device()


def test_without_course_device_cuda_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.delenv("COURSE_DEVICE", raising=False)
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert course_device() == device


@pytest.mark.parametrize(("text", "seed"), [("", 0), ("7", 7), (" 12 ", 12)])
def test_course_seed_is_a_whole_number(monkeypatch, text, seed):
    monkeypatch.setenv("COURSE_SEED", text)
    assert course_seed() == seed


@pytest.mark.parametrize("text", ["seven", "1.5", "-3"])
def test_any_other_course_seed_is_refused(monkeypatch, text):
    monkeypatch.setenv("COURSE_SEED", text)
    with pytest.raises(CourseError, match="it can be a whole number such as 7"):
        course_seed()
