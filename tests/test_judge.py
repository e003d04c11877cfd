"""What a verdict says: the outcome, the misconception, the call that shows it, in text and in HTML."""

import contextlib
import html
import linecache
import re
import signal
import time
from textwrap import dedent

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import course_utils.run
from course_utils.cases import attempt
from course_utils.exercise import exercise, load_exercise
from course_utils.feedback import SIGNS, Part, as_html, as_text, inline_html
from course_utils.judge import ERROR, FAILED, NOT_ATTEMPTED, OUTCOMES, PASSED, Verdict, grade
from course_utils.run import Undisturbed

needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this platform")
STORAGE_INDEX = load_exercise("storage_index")


@exercise
def mix(first: torch.Tensor, second: torch.Tensor, share: float = 0.5) -> torch.Tensor:
    """`share` of the first and the rest of the second."""
    return share * first + (1 - share) * second


@mix.case
def equal_shares(implementation, draw):
    return implementation(draw.normal(2, 3), draw.normal(2, 3))


@mix.case
def a_share_that_is_given(implementation, draw):
    return implementation(draw.normal(4), draw.normal(4), share=draw.number(0.1, 0.4))


@mix.case
def sizes_that_do_not_fit(implementation, draw):
    try:
        return implementation(draw.normal(2), draw.normal(3))
    except RuntimeError as error:
        return error


@mix.misconception("The given `share` has no effect: the halves are fixed.")
def halves(first, second, share=0.5):
    return 0.5 * first + 0.5 * second


@mix.misconception("The shares are the wrong way round.")
def swapped(first, second, share=0.5):
    return share * second + (1 - share) * first


@mix.misconception("You added the second in full.")
def adds_all(first, second, share=0.5):
    return share * first + second


mix.hints("What is left when a share is taken?", "Try a share of 1.")


@exercise
def add(first, second):
    """The sum."""
    return first + second


@add.case
def some(implementation, draw):
    return [implementation([1] * size, [2]) for size in (5, 4)]


@add.case
def small(implementation, draw):
    return implementation([1], [2])


@exercise
def double_in_place(values):
    """Doubles the values where they are."""
    values *= 2


@double_in_place.case
def a_vector(implementation, draw):
    return implementation(draw.normal(3))


@exercise
def move_into(target, source):
    """Copies the first element; a source that does not have exactly one raises."""
    if len(source) != 1:
        raise ValueError
    target[:1] = source


@move_into.case
def from_one(implementation, draw):
    target = draw.normal(3)
    implementation(target, draw.normal(1))
    return target


@move_into.case
def from_two(implementation, draw):
    return attempt(implementation, draw.normal(3), draw.normal(2))


@exercise
def count_all(batches):
    """The number of elements."""
    return sum(map(len, batches))


@count_all.case
def a_generator(implementation, draw):
    sizes = (1, 2)
    return implementation(draw.normal(size) for size in sizes)


@count_all.case
def a_list(implementation, draw):
    return implementation([draw.normal(100), draw.normal(200)])


@exercise
def total(values):
    """The sum."""
    return values.sum()


@total.case
def an_array(implementation, draw):
    return implementation(np.arange(3.0))


@exercise
def inverse(number):
    """One over the number."""
    return 1 / number


@inverse.case
def of_two(implementation, draw):
    return implementation(2)


@inverse.case
def of_three(implementation, draw):
    return implementation(3)


@inverse.misconception("It raises.")
def divides_by_zero(number):
    return 1 / (number - 2)


@exercise
class Counter:
    """Counts."""

    def __init__(self):
        self.total = 0

    def add(self, number):
        self.total += number
        return self


@Counter.case
def two_numbers(implementation, draw):
    return {"total": implementation().add(1).add(2).total}


def written(source, name="storage_index", **names):
    """The function that a notebook cell defines, with source lines for tracebacks."""
    source = dedent(source).lstrip("\n")
    linecache.cache["<cell 7>"] = (len(source), None, source.splitlines(keepends=True), "<cell 7>")
    exec(compile(source, "<cell 7>", "exec"), names)
    return names[name]


def graded(source, **names):
    """The verdict on an answer to `storage_index`."""
    return grade(STORAGE_INDEX, written(source, **names), 0)


# --- the four outcomes --------------------------------------------------------------------------------------------


def test_the_four_outcomes_have_these_words():
    assert OUTCOMES == ("passed", "failed", "not attempted", "error")


def test_a_right_answer_passes_on_all_cases():
    verdict = grade(mix, lambda first, second, share=0.5: torch.lerp(second, first, share), 0)
    assert (verdict.outcome, verdict.misconception, verdict.arguments) == (PASSED, None, None)
    assert verdict.message == "mix: passed, 3 of 3 cases"


def test_a_wrong_answer_fails_and_says_in_how_many_cases():
    verdict = grade(mix, lambda first, second, share=0.5: first - second, 0)
    assert verdict.outcome == FAILED
    assert verdict.message.startswith("mix: failed, 1 of 3 cases pass\n")


def test_a_stub_is_not_attempted_and_the_message_names_the_next_step():
    verdict = graded("""
        def storage_index(shape, stride, storage_offset, index):
            # still thinking
            raise NotImplementedError
    """)
    assert verdict.outcome == NOT_ATTEMPTED
    assert verdict.message == (
        "storage_index: not attempted\n"
        "`storage_index` is waiting for your code. Once you replace `raise NotImplementedError`, run its cell and "
        "then this one.\n"
        "If you want a nudge, `hint(storage_index)` gives one."
    )


def test_a_begun_answer_that_still_raises_not_implemented_is_not_attempted():
    verdict = graded("""
        def storage_index(shape, stride, storage_offset, index):
            position = storage_offset
            raise NotImplementedError("later")
    """)
    assert verdict.outcome == NOT_ATTEMPTED


def test_an_answer_that_raises_is_an_error_with_its_own_lines_only():
    verdict = graded("""
        def storage_index(shape, stride, storage_offset, index):
            return position_of(shape)

        def position_of(shape):
            return shape[99]
    """)
    assert verdict.outcome == ERROR
    assert "line 2, in storage_index: return position_of(shape)\n    line 5, in position_of: return shape[99]" in (
        verdict.message
    )
    assert "IndexError: tuple index out of range" in verdict.message
    assert "course_utils" not in verdict.message
    assert "implementation" not in verdict.message


def test_lines_inside_torch_are_left_out():
    verdict = graded(
        """
        def storage_index(shape, stride, storage_offset, index):
            return F.cross_entropy(torch.ones(2, 3), torch.ones(5))
        """,
        torch=torch,
        F=F,
    )
    assert re.findall(r"line \d+, in (\w+)", verdict.message) == ["storage_index"]


def test_an_exception_where_one_is_expected_and_another_comes_is_failed_not_error():
    verdict = graded("""
        def storage_index(shape, stride, storage_offset, index):
            if len(index) != len(shape) or any(not -s <= i < s for s, i in zip(shape, index)):
                raise ValueError("out of range")
            return storage_offset + sum(d * (i % s) for s, d, i in zip(shape, stride, index))
    """)
    assert verdict.outcome == FAILED
    assert "came back: ValueError: out of range" in verdict.message
    assert "expected:  IndexError" in verdict.message


def test_an_endless_loop_is_an_error_that_says_where_it_was(monkeypatch):
    monkeypatch.setattr(course_utils.run.Undisturbed.__init__, "__defaults__", ("cpu", 0.1))
    verdict = graded("""
        def storage_index(shape, stride, storage_offset, index):
            while True:
                shape
    """)
    assert verdict.outcome == ERROR
    assert "stopped after 0.1 s; a loop may never end\n    line " in verdict.message
    assert "in storage_index" in verdict.message


def test_a_forbidden_call_is_named():
    verdict = graded(
        """
        def storage_index(shape, stride, storage_offset, index):
            return int(torch.arange(999).as_strided(shape, stride, storage_offset)[index])
        """,
        torch=torch,
    )
    assert verdict.outcome == FAILED
    assert "it calls as_strided, which this exercise asks you to do without" in verdict.message


@exercise(forbids=(torch.softmax,))
def shares(values):
    """Positive numbers that add up to one."""
    powers = values.exp()
    return powers / powers.sum()


@shares.case
def a_few(implementation, draw):
    return implementation(draw.normal(4))


def test_a_right_result_does_not_excuse_a_forbidden_call_that_was_caught():
    def answer(values):
        with contextlib.suppress(BaseException):
            torch.softmax(values, 0)
        return values.exp() / values.exp().sum()

    verdict = grade(shares, answer, 0)
    assert verdict.outcome == FAILED
    assert "it calls softmax, which this exercise asks you to do without" in verdict.message


@pytest.mark.parametrize(
    ("leave", "words"),
    [
        (lambda: torch.set_grad_enabled(False), "gradient recording is off"),
        (lambda: torch.set_default_dtype(torch.float64), "the default dtype is torch.float64"),
        (lambda: torch.set_default_device("meta"), "the default device is meta"),
        (
            lambda: torch.use_deterministic_algorithms(True, warn_only=True),
            "torch.use_deterministic_algorithms is on",
        ),
    ],
)
def test_a_right_result_does_not_excuse_a_setting_left_changed(leave, words):
    def answer(values):
        powers = values.exp()
        shares = powers / powers.sum()
        leave()
        return shares

    verdict = grade(shares, answer, 0)
    assert verdict.outcome == FAILED
    assert "leaves a setting of torch other than it found it" in verdict.message
    assert f"afterwards: {words}\n    expected:   as it was" in verdict.message


@exercise
def broken_here(values):
    """Needs something that is not there."""
    raise ImportError("no such thing")


@broken_here.case
def a_call(implementation, draw):
    return implementation(draw.normal(2))


@exercise
def slow(seconds):
    """Waits the first time, as an import does."""
    time.sleep(seconds)
    return 1


@slow.case
def a_moment(implementation, draw):
    return implementation(0.3)


def test_where_the_reference_does_not_run_no_answer_passes():
    for answer in (broken_here.reference, lambda values: values):
        verdict = grade(broken_here, answer, 0)
        assert verdict.outcome == ERROR
        assert "the course's own does not run here" in verdict.message
        assert "ImportError: no such thing" in verdict.message


@needs_timers
def test_the_reference_has_all_the_time_it_needs_and_an_answer_does_not():
    def hasty(seconds):
        return 1

    def endless(seconds):
        while True:
            pass

    with Undisturbed(0, seconds=0.1) as process:
        assert process.agrees(slow, hasty)
        assert not process.agrees(slow, endless)
        assert [run.stopped for run in process.run_cases(slow, slow.reference)] == [""]
        assert [run.stopped for run in process.run_cases(slow, endless)] == ["stopped after 0.1 s"]


# --- diagnosis ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misconception", mix.misconceptions, ids=lambda m: m.name)
def test_a_misconception_is_named_exactly(misconception):
    verdict = grade(mix, misconception.implementation, 3)
    assert (verdict.outcome, verdict.misconception) == (FAILED, misconception.name)
    assert verdict.message.split("\n")[1] == misconception.explanation


def test_a_misconception_is_recognized_in_another_style():
    verdict = grade(mix, lambda first, second, share=0.5: torch.lerp(first, second, share), 0)
    assert verdict.misconception == "swapped"


def test_an_answer_with_one_known_mistake_among_others_gets_a_partial_diagnosis():
    def answer(first, second, share=0.5):
        return halves(first, second) if first.dim() == 1 else first + second + 1

    verdict = grade(mix, answer, 0)
    assert verdict.misconception == "halves"
    assert (
        verdict.message.split("\n")[1]
        == "One thing that is wrong: The given `share` has no effect: the halves are fixed."
    )
    assert "It shows in the case “a share that is given”:" in verdict.message


def test_an_answer_like_no_misconception_is_not_diagnosed():
    verdict = grade(mix, lambda first, second, share=0.5: first * second, 0)
    assert verdict.misconception is None
    assert verdict.message.split("\n")[1].startswith("It shows in the case")


def test_an_exception_alone_does_not_make_a_diagnosis():
    def answer(number):
        return 1 / 0

    assert grade(inverse, answer, 0).misconception is None


def test_misconceptions_run_no_more_cases_than_the_diagnosis_takes(monkeypatch):
    ran, run_cases = [], Undisturbed.run_cases

    def noting(self, exercise, implementation, *, cases=None, **options):
        ran.extend((implementation.__name__, case.name) for case in cases or ())
        return run_cases(self, exercise, implementation, cases=cases, **options)

    monkeypatch.setattr(Undisturbed, "run_cases", noting)
    grade(mix, swapped, 0)
    assert ran == [
        ("halves", "a_share_that_is_given"),
        *(("swapped", case) for case in ("a_share_that_is_given", "equal_shares", "sizes_that_do_not_fit")),
    ]
    ran.clear()
    grade(mix, lambda first, second, share=0.5: 1 / 0, 0)  # exceptions do not vote
    assert ran == [(wrong.name, "equal_shares") for wrong in mix.misconceptions]


# --- the call that shows it ---------------------------------------------------------------------------------------


def test_the_smallest_failing_call_is_shown_with_its_arguments_and_both_results():
    verdict = grade(add, lambda first, second: first, 0)
    assert verdict.message == dedent("""\
        add: failed, 0 of 2 cases pass
        The result should have 2 items, and has 1 item.
        It shows in the case “small”:
            add(first, second)
                first = [1]
                second = [2]
            came back: [1]
            expected:  [1, 2]
            first difference: 1 item, expected 2 items
        Next: `add(*failing_call(add))` makes this call again in a cell of its own; `hint(add)` gives a nudge.""")
    assert verdict.arguments == ([1], [2])


def test_the_first_differing_place_is_told_where_the_results_are_large():
    def answer(first, second, share=0.5):
        result = share * first + (1 - share) * second
        result.view(-1)[-1] = 7
        return result

    verdict = grade(mix, answer, 0)
    assert re.search(r"first difference at \[3\]: 7\.0, expected -?\d", verdict.message)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.unsqueeze(0), "shape (1, 4), expected shape (4,)"),
        (lambda x: x.double(), "dtype torch.float64, expected dtype torch.float32"),
        (lambda x: x.requires_grad_(), "requires_grad True, expected requires_grad False"),
    ],
    ids=["shape", "dtype", "requires_grad"],
)
def test_what_differs_is_told_in_its_own_words(change, words):
    def answer(first, second, share=0.5):
        return change(share * first + (1 - share) * second)

    assert f"first difference: {words}" in grade(mix, answer, 0).message


def test_a_changed_argument_is_told_with_its_name():
    def answer(first, second, share=0.5):
        result = share * first + (1 - share) * second
        second.mul_(2)
        return result

    verdict = grade(mix, answer, 0)
    assert verdict.outcome == FAILED
    assert re.search(r"afterwards second(\[\d+\])* is: ", verdict.message)
    assert "the caller's value was changed; work on a copy of your own" in verdict.message


def test_an_argument_that_should_be_changed_and_is_not_is_told():
    verdict = grade(double_in_place, lambda values: None, 0)
    assert re.search(r"afterwards values(\[\d+\])* is: ", verdict.message)
    assert "this call should change it, and changed it differently" in verdict.message


def test_an_argument_that_should_stay_beside_one_that_changes_is_told():
    def answer(target, source):
        target[:1] = source
        source.zero_()

    verdict = grade(move_into, answer, 0)
    assert re.search(r"afterwards source(\[\d+\])* is: ", verdict.message)
    assert "the caller's value was changed; work on a copy of your own" in verdict.message


def test_the_right_error_after_a_change_is_told_by_the_change():
    def answer(target, source):
        target[:1] = source[:1]
        if len(source) != 1:
            raise ValueError

    verdict = grade(move_into, answer, 0)
    assert "afterwards target" in verdict.message and "the caller's value was changed" in verdict.message
    assert "the task asks for ValueError" not in verdict.message


def test_a_generator_is_shown_only_where_nothing_else_tells_and_cannot_be_given_again():
    verdict = grade(count_all, lambda batches: len(list(batches)), 0)
    assert "It shows in the case “a list”" in verdict.message and len(verdict.arguments) == 1
    verdict = grade(count_all, lambda batches: sum(map(len, batches)) if isinstance(batches, list) else 0, 0)
    assert "It shows in the case “a generator”" in verdict.message and verdict.arguments is None
    assert "failing_call" not in verdict.message


def test_what_the_check_does_not_find_is_not_taken_for_an_error_of_the_answers_code(monkeypatch):
    monkeypatch.setattr(course_utils.run, "LIBRARIES", (*course_utils.run.LIBRARIES, __file__))  # where the case is
    source = """
        class Counter:
            def __init__(self):
                self.sum = 0

            def add(self, number):
                return self
    """
    verdict = grade(Counter, written(source, "Counter"), 0)
    assert verdict.outcome == FAILED and "has no attribute 'total'" in verdict.message
    assert "something that the task asks for is missing, or of another kind" in verdict.message


def test_a_changed_array_is_noticed_although_the_result_is_right():
    def answer(values):
        result = values.sum()
        values[:] = 0
        return result

    assert re.search(r"afterwards values(\[\d+\])* is: ", grade(total, answer, 0).message)


def test_a_keyword_argument_is_shown_by_its_name():
    verdict = grade(mix, lambda first, second, share=0.5: first if share != 0.5 else (first + second) / 2, 0)
    assert "mix(first, second, share)\n" in verdict.message
    assert re.search(r"        share = 0\.\d+\n", verdict.message)


def test_a_class_is_judged_by_what_the_case_looks_at():
    class Forgetful(Counter.reference):
        def add(self, number):
            self.total = number
            return self

    Forgetful.__name__ = "Counter"
    verdict = grade(Counter, Forgetful, 0)
    assert verdict.outcome == FAILED
    assert "looked at: total\n    came back: 2\n    expected:  3" in verdict.message


def test_printed_output_of_a_wrong_answer_is_shown_shortened():
    def answer(first, second, share=0.5):
        for number in range(20):
            print(f"step {number}")
        return first

    message = grade(mix, answer, 0).message
    assert "Your code printed in the case “a share that is given”:\n    step 0\n" in message
    assert "    step 7\n    …\n" in message
    assert "step 8" not in message


def test_printed_output_is_that_of_the_case_shown_or_names_its_own():
    def loud(first, second, share=0.5):
        print("shape", tuple(first.shape))
        return first

    message = grade(mix, loud, 0).message
    assert "in the case “a share that is given”:\n    mix(first, second, share)" in message
    assert "Your code printed in the case “a share that is given”:\n    shape (4,)\n" in message

    def loud_in_another(first, second, share=0.5):
        if first.dim() == 2:
            print("two axes")
        return first

    assert "Your code printed in the case “equal shares”:\n    two axes\n" in grade(mix, loud_in_another, 0).message


def test_printed_output_of_a_right_answer_is_shown_too():
    def answer(first, second, share=0.5):
        print("working")
        return torch.lerp(second, first, share)

    message = "mix: passed, 3 of 3 cases\nYour code printed:" + 3 * "\n    working"
    assert grade(mix, answer, 0).message == message


def test_an_answer_that_becomes_right_when_it_runs_again_is_told_that_it_keeps_something():
    calls = []

    def answer(first, second, share=0.5):
        calls.append(1)
        return first if len(calls) <= 3 else torch.lerp(second, first, share)

    verdict = grade(mix, answer, 0)
    assert verdict.outcome == FAILED
    assert "wrong at first and right when the same cases ran again" in verdict.message


# --- answers that try something -----------------------------------------------------------------------------------


class Agrees:
    """Equal to everything."""

    def __eq__(self, other):
        return True

    __hash__ = None


@pytest.mark.parametrize(
    "value",
    [Agrees(), None, "text", 10**5000, float("nan"), object(), (i for i in ()), torch.ones(0), [[]], NotImplemented],
    ids=lambda value: type(value).__name__,
)
def test_any_value_at_all_gets_a_verdict(value):
    verdict = grade(mix, lambda first, second, share=0.5: value, 0)
    assert verdict.outcome == FAILED


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, RecursionError, MemoryError, StopIteration, Warning])
def test_any_exception_at_all_gets_a_verdict(error):
    def answer(first, second, share=0.5):
        raise error("so")

    verdict = grade(mix, answer, 0)
    assert verdict.outcome == ERROR
    assert f"{error.__name__}: so" in verdict.message


def test_patched_comparisons_do_not_help(monkeypatch):
    def answer(first, second, share=0.5):
        monkeypatch.setattr(torch, "equal", lambda *args: True)
        monkeypatch.setattr(torch, "allclose", lambda *args, **kwargs: True)
        return {"nothing": "right"}

    assert grade(mix, answer, 0).outcome == FAILED


# --- the two forms of a message -----------------------------------------------------------------------------------


def words_of(fragment):
    """The words a person sees in an HTML fragment, without the outcome's sign."""
    visible = re.sub(r'<span aria-hidden="true">.*?</span>', "", fragment)
    return html.unescape(re.sub(r"<[^>]+>", " ", visible)).split()


ANSWERS = {
    "passed": lambda first, second, share=0.5: torch.lerp(second, first, share),
    "failed": lambda first, second, share=0.5: "<b>" + "&" * 3,
    "error": lambda first, second, share=0.5: 1 / 0,
}


@pytest.mark.parametrize("outcome", ANSWERS)
def test_html_has_the_words_of_the_text_and_the_outcomes_sign_and_word(outcome):
    verdict = grade(mix, ANSWERS[outcome], 0)
    fragment = verdict.html()
    assert verdict.outcome == outcome
    assert words_of(fragment) == verdict.message.replace("`", " ").split()
    assert f'<span aria-hidden="true">{SIGNS[outcome]}</span> mix: {outcome}' in fragment


def test_html_escapes_what_an_answer_gives_back():
    fragment = grade(mix, ANSWERS["failed"], 0).html()
    assert "&lt;b&gt;&amp;&amp;&amp;" in fragment
    assert "<b>" not in fragment


def test_html_sets_no_text_color_so_that_every_theme_reads():
    fragment = grade(mix, ANSWERS["error"], 0).html()
    assert re.search(r"(?<![-\w])color:|background", fragment) is None


def test_every_outcome_has_a_sign_of_its_own():
    assert len({SIGNS[outcome] for outcome in OUTCOMES}) == 4


def test_parts_as_text_indent_facts_and_code():
    parts = [Part("headline", "a: failed"), Part("facts", "one\ntwo"), Part("next", "go on")]
    assert as_text(parts) == "a: failed\n    one\n    two\ngo on"


def test_code_between_backticks_becomes_code_and_other_signs_are_escaped():
    code = '<code style="font-family: var(--jp-code-font-family, monospace)">a &lt; b</code>'
    assert inline_html("use `a < b` & so") == f"use {code} &amp; so"


def test_a_message_without_an_outcome_has_no_sign():
    assert "aria-hidden" not in as_html([Part("headline", "a hint")])


def test_a_verdict_as_the_value_of_a_cell_stays_silent():
    verdict = Verdict("mix", PASSED, [Part("headline", "mix: passed")])
    assert verdict._ipython_display_() is None
    assert repr(verdict) == "<mix: passed>"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda first, second, share=0.5: None, "Your answer returned None."),
        (lambda first, second, share=0.5: (x for x in first), "Your answer returned a generator"),
        (lambda first, second, share=0.5: mix.reference(first, second, share).double(), "The dtype should be"),
        (lambda first, second, share=0.5: mix.reference(first, second, share)[None], "The shape should be"),
        (lambda first, second, share=0.5: mix.reference(first, second, share).requires_grad_(), "carries a graph"),
    ],
    ids=["None", "generator", "dtype", "shape", "graph"],
)
def test_a_mistake_that_any_exercise_can_meet_gets_a_reason(answer, reason):
    assert reason in grade(mix, answer, 0).message


def test_the_arguments_of_the_failing_call_can_be_used_again():
    verdict = grade(mix, lambda first, second, share=0.5: first, 0)
    assert len(mix.reference(*verdict.arguments)) == len(verdict.arguments[0])


def test_an_answer_that_is_wrong_only_at_first_does_not_pass():
    calls = []

    def answer(first, second):
        calls.append(0)
        return [] if len(calls) == 1 else add.reference(first, second)

    verdict = grade(add, answer, 0)
    assert verdict.outcome == FAILED
    assert "keeps something between calls" in verdict.message


def test_results_that_share_one_buffer_are_no_fault():
    buffer = torch.empty(1000)

    def answer(first, second, share=0.5):
        result = buffer[: first.numel()].view(first.shape)
        return result.copy_(mix.reference(first, second, share))

    assert grade(mix, answer, 0).outcome == PASSED


def test_an_argument_that_is_stepped_back_and_forth_counts_as_changed():
    """What the reference leaves alone has to be the same to the last bit: rounding gives such answers away."""

    def answer(first, second, share=0.5):
        first += 0.1
        first -= 0.1
        return mix.reference(first, second, share)

    verdict = grade(mix, answer, 0)
    assert verdict.outcome == FAILED
    assert "the caller's value was changed" in verdict.message


def test_a_list_where_a_tuple_is_asked_for_gets_a_reason():
    assert "The task asks for a list; a tuple came back." in grade(add, lambda first, second: (1,), 0).message
