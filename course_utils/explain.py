"""What students read about an answer: what happened, with their own values, why, and what to look at next."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from course_utils.diagnose import Diagnosis, Mismatch
from course_utils.exercise import Exercise
from course_utils.feedback import Part
from course_utils.observe import NAMED_TUPLE, Difference, SeenError, SeenItems, SeenOther, SeenTensor, difference, short
from course_utils.run import Call

HARD_TO_READ = 100
NOT_TO_BE_READ = 1_000_000


class Rejection(NamedTuple):
    """The parts of the message; whether the answer crashed rather than being wrong; arguments of the call shown."""

    parts: list[Part]
    crashed: bool
    arguments: tuple[Any, ...] | None


def left_alone(exercise: Exercise) -> list[Part]:
    """About a stub that was left as it is."""
    what = "still the version you were given" if exercise.broken_version else "waiting for your code"
    task = "find what is wrong with it" if exercise.broken_version else "replace `raise NotImplementedError`"
    return [
        Part("headline", f"{exercise.name}: not attempted"),
        Part("text", f"`{exercise.name}` is {what}. Once you {task}, run its cell and then this one."),
        Part("next", f"If you want a nudge, `hint({exercise.name})` gives one."),
    ]


def accepted(exercise: Exercise, output: str) -> list[Part]:
    """About a right answer; `output` is what it printed."""
    count = len(exercise.cases)
    return [Part("headline", f"{exercise.name}: passed, {count} of {count} cases"), *_printed(output)]


def unstable(exercise: Exercise) -> list[Part]:
    """About an answer that was wrong at first and right when the same cases ran again."""
    text = (
        "Your answer was wrong at first and right when the same cases ran again, so it keeps something "
        "between calls: a global variable, a cache, a default argument that is a list or a tensor."
    )
    return [Part("headline", f"{exercise.name}: failed"), Part("text", text)]


def unjudged(exercise: Exercise, error: str) -> list[Part]:
    """About an answer that cannot be judged because the course's own does not run in this process."""
    text = "Your answer was not judged: the course's own does not run here, so something outside both is broken."
    after = "Next: restart the kernel and check again. If it happens once more, `course doctor` says what is missing."
    return [
        Part("headline", f"{exercise.name}: error"),
        Part("text", text),
        Part("facts", error),
        Part("next", after),
    ]


def rejected(exercise: Exercise, mismatches: list[Mismatch], passed: int, diagnosis: Diagnosis | None) -> Rejection:
    """About a wrong answer: the misconception or a general reason, the most telling call, its output, what next."""
    explained = [m for m in mismatches if diagnosis and m.run.case in diagnosis.cases]
    worst, calls = _most_telling(explained or mismatches)
    crashed = diagnosis is None and _crashed(worst, calls)
    word = "error" if crashed else "failed"
    parts = [Part("headline", f"{exercise.name}: {word}, {passed} of {len(exercise.cases)} cases pass")]
    if diagnosis:
        start = "" if diagnosis.explains_all else "One thing that is wrong: "
        parts.append(Part("why", start + diagnosis.misconception.explanation))
    elif reason := _general_reason(worst, calls):
        parts.append(Part("why", reason))
    parts.append(Part("text", f"It shows in the case “{worst.case.title}”:"))
    parts.append(Part("facts", "\n".join(_facts(exercise, worst, calls))))
    parts += _printed_somewhere(worst, mismatches)
    arguments = calls[0].given if calls else None
    if any(isinstance(argument, Iterator) for argument in arguments or ()):
        arguments = None  # a generator, say, is used up and cannot be given to the answer again
    parts.append(Part("next", _next_step(exercise, calls[0] if arguments is not None else None)))
    return Rejection(parts, crashed, arguments)


def _printed(output: str, where: str = "", most: int = 8) -> list[Part]:
    lines = output.strip().split("\n")
    shown = "\n".join(line[:200] for line in lines[:most]) + ("\n…" if len(lines) > most else "")
    return [Part("text", f"Your code printed{where}:"), Part("facts", shown)] if output.strip() else []


def _printed_somewhere(worst: Mismatch, mismatches: list[Mismatch]) -> list[Part]:
    """What the answer printed in the case that is shown, or else in another one, with its name."""
    for mismatch in (worst, *mismatches):
        if mismatch.run.output.strip():
            return _printed(mismatch.run.output, f" in the case “{mismatch.case.title}”")
    return []


def _next_step(exercise: Exercise, call: Call | None) -> str:
    ask = f"`hint({exercise.name})`"
    if call is None:
        return f"Next: {ask} may help."
    again = f"`{call.label}(*failing_call({exercise.name}))`"
    return f"Next: {again} makes this call again in a cell of its own; {ask} gives a nudge."


def _crashed(mismatch: Mismatch, calls: tuple[Call, Call] | None) -> bool:
    """Whether the answer's own code was stopped or raised where the reference does not."""
    if mismatch.run.stopped or mismatch.run.forbidden:
        return bool(mismatch.run.stopped)
    if calls:
        return bool(calls[0].lines) and not isinstance(calls[1].result, SeenError)
    return bool(mismatch.run.lines) and mismatch.right.raised is None


# --- which call to show ------------------------------------------------------------------------------------------


def _most_telling(mismatches: list[Mismatch]) -> tuple[Mismatch, tuple[Call, Call] | None]:
    """The mismatch to show and, where one exists, the smallest call that went differently from the reference's.

    Calls that should raise come last: what an answer makes of good arguments says more about it.
    """
    best: tuple[tuple[bool, int], Mismatch, tuple[Call, Call]] | None = None
    for mismatch in mismatches:
        if mismatch.run.stopped or mismatch.run.forbidden:
            return mismatch, None
        if mismatch.case.random:
            continue
        for mine, right in zip(mismatch.run.calls, mismatch.right.calls, strict=False):
            if _result_difference(mismatch, mine, right) or _argument_difference(mismatch, mine, right):
                size = isinstance(right.result, SeenError), _size(mine.before)
                if best is None or size < best[0]:
                    best = (size, mismatch, (mine, right))
                break
    return (best[1], best[2]) if best else (mismatches[0], None)


def _result_difference(mismatch: Mismatch, mine: Call, right: Call) -> Difference | None:
    return difference(mine.result, right.result, mismatch.case.tolerance)


def _argument_difference(mismatch: Mismatch, mine: Call, right: Call) -> Difference | None:
    return difference(mine.after, right.after, mismatch.right.argument_tolerance or mismatch.case.tolerance)


def _size(seen: Any) -> int:
    """How much there is to read in an argument; empty and 0-d ones explain little and come last."""
    if isinstance(seen, SeenTensor):
        return 2 + seen.values.numel() if seen.values.numel() and seen.shape else HARD_TO_READ
    if isinstance(seen, SeenItems):
        return 1 + sum(map(_size, seen.items)) if seen.items else HARD_TO_READ
    return NOT_TO_BE_READ if seen == SeenOther("a generator") else 1


# --- why, where no misconception is recognized ----------------------------------------------------------------------


def _general_reason(mismatch: Mismatch, calls: tuple[Call, Call] | None) -> str:
    """A sentence about a mistake that any exercise can meet, or nothing."""
    if _only_settings_differ(mismatch):
        return (
            "Your answer leaves a setting of torch other than it found it, and all code that runs later meets it. "
            "A `with` block puts a setting back, whatever happens inside."
        )
    if calls is None:
        run, found = mismatch.run, mismatch.observed
        if run.raised and not run.lines and not mismatch.right.raised:
            return (
                "Your code ran without an error. The check then used what it made, as the task describes it, and met "
                "the error below: something that the task asks for is missing, or of another kind."
            )
        return _reason_for(found) if found and not run.raised else ""
    got, expected = calls[0].result, calls[1].result
    if isinstance(expected, SeenError) and _result_difference(mismatch, *calls):
        did = f"raised {got.lineage[0]}" if isinstance(got, SeenError) else "returned something"
        return f"For these arguments the task asks for {expected.lineage[0]}; your answer {did}."
    if got is None and expected is not None:
        return "Your answer returned None. Is there a `return` at the end of every path through it?"
    if got == SeenOther("a generator"):
        return "Your answer returned a generator, which has computed nothing yet: a `yield` stands in it somewhere."
    if isinstance(got, SeenError):
        return ""
    if _kind(got) != _kind(expected):
        return f"The task asks for {_kind(expected)}; {_kind(got)} came back."
    found = _result_difference(mismatch, *calls)
    return _reason_for(found) if found else ""


def _only_settings_differ(mismatch: Mismatch) -> bool:
    changed = mismatch.changed
    return mismatch.observed is None and changed is not None and changed.aspect == "settings"


def _kind(seen: Any) -> str:
    """What a value is, with its article: "a tensor", "an int", "a tuple"."""
    if isinstance(seen, SeenOther):
        return seen.kind
    word = seen.kind if isinstance(seen, (SeenTensor, SeenItems)) else type(seen).__name__
    word = "tuple" if word.startswith(NAMED_TUPLE) else word
    return "None" if seen is None else f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _reason_for(found: Difference) -> str:
    place = f" at {found.path}" if found.path else ""
    if found.aspect == "requires_grad":
        if found.expected.endswith("True"):
            return (
                f"The result{place} is cut off from autograd: on the way something left the graph, such as `.item()`, "
                "`.detach()`, `no_grad`, or a new tensor made from numbers."
            )
        return f"The result{place} carries a graph, and the task asks for one without."
    if found.aspect in ("shape", "dtype", "device"):
        got, expected = (text.removeprefix(found.aspect + " ") for text in (found.got, found.expected))
        return f"The {found.aspect}{place} should be {expected}, and is {got}."
    if found.aspect == "length":
        return f"The result{place} should have {found.expected}, and has {found.got}."
    return ""


# --- the facts --------------------------------------------------------------------------------------------------------


def _facts(exercise: Exercise, mismatch: Mismatch, calls: tuple[Call, Call] | None) -> list[str]:
    """The call with its arguments, what came back, what was expected, where they first differ."""
    run = mismatch.run
    if run.forbidden:
        return [f"it calls {run.forbidden}, which this exercise asks you to do without"]
    last = calls[0] if calls else (run.calls[-1] if run.calls else None)
    lines = _call_lines(exercise, last) if last else []
    if run.stopped:
        return [*lines, f"{run.stopped}; a loop may never end", *run.lines]
    if calls:
        return lines + _call_differences(exercise, mismatch, *calls)
    if run.raised and run.lines:
        return [*lines, *run.lines, short(run.raised, 300)]
    found = mismatch.observed or mismatch.changed
    if _only_settings_differ(mismatch):
        return [*lines, f"afterwards: {found.got}", f"expected:   {found.expected}"]
    if mismatch.right.raised or run.raised:
        expected = short(mismatch.right.raised) if mismatch.right.raised else "no error"
        return [*lines, f"came back: {found.got}", f"expected:  {expected}"]
    looked_at = [f"looked at: {_readable(found.path)}"] if found.path else []
    return [*lines, *looked_at, f"came back: {found.got}", f"expected:  {found.expected}"]


def _readable(path: str) -> str:
    """A path such as ['gradient'][0] with its first key as plain words: gradient[0]."""
    if path.startswith("['"):
        key, _, rest = path[2:].partition("']")
        return key + rest
    return path


def _call_lines(exercise: Exercise, call: Call) -> list[str]:
    named = _argument_names(exercise, call)
    lines = [f"{call.label}({', '.join(named)})"]
    return lines + [f"    {name} = {short(value)}" for name, value in zip(named, call.before.items, strict=True)]


def _argument_names(exercise: Exercise, call: Call) -> list[str]:
    if call.label.endswith(".apply"):
        parameters = list(inspect.signature(exercise.reference.forward).parameters)[1:]
    else:
        parameters = list(inspect.signature(exercise.reference).parameters)
    return [
        name or (parameters[i] if i < len(parameters) else f"argument {i + 1}") for i, name in enumerate(call.names)
    ]


def _call_differences(exercise: Exercise, mismatch: Mismatch, mine: Call, right: Call) -> list[str]:
    found = _result_difference(mismatch, mine, right)
    if found is None:
        return _changed_argument(exercise, mine, right, _argument_difference(mismatch, mine, right))
    got, expected = short(mine.result, 240), short(right.result, 240)
    lines = [*mine.lines, f"came back: {got}", f"expected:  {expected}"]
    says_more = (got, expected) != (found.got, found.expected)
    if says_more and (found.path or got == expected or found.aspect not in ("value", "type")):
        at = f" at {found.path}" if found.path else ""
        lines.append(f"first difference{at}: {found.got}, expected {found.expected}")
    return lines


def _changed_argument(exercise: Exercise, mine: Call, right: Call, changed: Difference) -> list[str]:
    position, _, place = changed.path.removeprefix("[").partition("]")
    names = _argument_names(exercise, mine)
    if position.isdigit() and int(position) < len(names):
        name, before, after = names[int(position)], right.before.items[int(position)], right.after.items[int(position)]
    else:
        name, before, after = "an argument", right.before, right.after
    kept = difference(before, after) is None
    return [
        f"afterwards {name}{place} is: {changed.got}",
        f"it should {'still ' if kept else ''}be: {changed.expected}",
        "the caller's value was changed; work on a copy of your own"
        if kept
        else "this call should change it, and changed it differently",
    ]
