"""Comparing a transformed function with the one it came from."""

import math
from collections.abc import Callable

import torch

from course_utils.exercise import exercise


@exercise(objectives=("compile.compare",))
def outputs_agree(
    reference: Callable[[torch.Tensor], torch.Tensor],
    candidate: Callable[[torch.Tensor], torch.Tensor],
    inputs: list[torch.Tensor],
    rtol: float,
    atol: float,
) -> dict:
    """Compare candidate(x) = c with reference(x) = r: {"ok": bool, "max_abs": float, "worst": int}.

    Both give one floating-point tensor; there is at least one input. Each function is called once
    per input, under no_grad, and gets its own clone of it.

    An input passes if shapes and dtypes are equal and |c - r| <= atol + rtol * |r| for every
    element, with differences in float64. NaN in the same place and infinities of equal sign count
    as equal (difference 0). Any other pair that is not finite has an infinite difference and never
    passes; neither does another shape or dtype, whose difference is infinite as well.

    ok: whether all inputs pass. max_abs: the largest difference of all; an empty output counts as
    0. worst: index of the first input that has it.
    """
    ok, differences = True, []
    for x in inputs:
        with torch.no_grad():
            r, c = reference(x.clone()), candidate(x.clone())
        if r.shape != c.shape or r.dtype != c.dtype:
            ok = False
            differences.append(math.inf)
            continue
        r, c = r.double(), c.double()
        equal = (r == c) | (r.isnan() & c.isnan())
        finite = r.isfinite() & c.isfinite()
        difference = (c - r).abs().where(finite, math.inf).where(~equal, 0.0)
        close = equal | (finite & (difference <= atol + rtol * r.abs()))
        ok = ok and bool(close.all())
        differences.append(difference.max().item() if difference.numel() else 0.0)
    worst = max(range(len(inputs)), key=differences.__getitem__)
    return {"ok": ok, "max_abs": differences[worst], "worst": worst}


def shifted(*shifts):
    """A reference that gives x, and candidates that give x plus something: one verdict for each."""

    def verdicts(implementation, inputs, rtol, atol):
        return [
            implementation(lambda x: x * 1, lambda x, s=s: x + s, inputs, rtol, atol)
            for s in shifts
        ]

    return verdicts


@outputs_agree.case
def tolerances_just_met_and_just_missed(implementation, draw):
    x = draw.tensor([[8.0, -2.0], [0.5, 4.0]], dtype=torch.float64) * draw.whole(1, 3)
    absolute = shifted(0.009, -0.011)(implementation, [x], 0.0, 0.01)
    one = draw.tensor([2.0, -2.0], dtype=torch.float64)
    return [absolute, shifted(-0.025, 0.035)(implementation, [one], 0.01, 0.01)]


@outputs_agree.case
def a_tolerance_that_belongs_to_the_reference(implementation, draw):
    x = draw.uniform(*draw.sizes(2), low=1, high=2)
    large = draw.number(1.15, 1.2)
    both = (lambda x: x * 1), (lambda x: x * large)
    ratio = 1 - 1 / large  # the difference in units of the larger one
    rtol = (ratio + large - 1) / 2
    return [implementation(*pair, [x], rtol, 0.0) for pair in (both, both[::-1])]


@outputs_agree.case
def a_candidate_that_edits_its_input(implementation, draw):
    inputs = [draw.normal(*draw.sizes(2)) for _ in range(2)]
    first = implementation(lambda x: x * 2, lambda x: x.mul_(2), inputs, 1e-5, 1e-6)
    return [first, implementation(lambda x: x.add_(1), lambda x: x + 1, inputs, 1e-5, 1e-6)]


@outputs_agree.case
def another_shape(implementation, draw):
    x = draw.normal(draw.whole(2, 6), 1)
    flat = implementation(lambda x: x + 1, lambda x: (x + 1).flatten(), [x], 1e-5, 1e-6)
    one = torch.full_like(x, 3.0)
    return [flat, implementation(lambda x: x + 1, lambda x: (x + 1)[:1], [one], 1e-5, 1e-6)]


@outputs_agree.case
def another_dtype(implementation, draw):
    inputs = [draw.normal(*draw.sizes(2)) for _ in range(2)]
    return implementation(lambda x: x * 2, lambda x: x.double() * 2, inputs, 1e-5, 1e-6)


@outputs_agree.case
def half_precision(implementation, draw):
    x = draw.tensor([2048.0, 60000.0, -60000.0], dtype=torch.float16)
    wrong = implementation(lambda x: x * 1, lambda x: -x, [x], 0.0, 10.0 + draw.whole(1, 9))
    pair = lambda x: x * 1, lambda x: x + 2
    bounds = (0.0, 2.0), (0.9999 / 1024, 0.0)  # of the second, half precision makes 2 as well
    return [wrong, *(implementation(*pair, [x[:1]], *bound) for bound in bounds)]


@outputs_agree.case
def logarithms_of_zero_and_below(implementation, draw):
    x = draw.tensor([draw.number(2, 3), 0.0, -draw.number(1, 2), 1.0])
    return implementation(torch.log, lambda x: torch.log2(x) * math.log(2), [x], 1e-4, 1e-5)


@outputs_agree.case
def infinities_and_nan_that_do_not_match(implementation, draw):
    inf, nan, one = math.inf, math.nan, draw.number(1, 2)
    pairs = [(inf, one), (one, inf), (inf, -inf), (nan, one), (one, nan), (inf, nan), (inf, inf)]

    def constant(value):
        return lambda x: torch.full_like(x, value)

    x = draw.normal(3)
    return [
        implementation(constant(r), constant(c), [x], rtol, 0.1)
        for r, c in pairs
        for rtol in (0.0, 0.1)
    ]


@outputs_agree.case
def a_fault_in_one_of_several_inputs(implementation, draw):
    inputs = [draw.uniform(size, low=1, high=2) for size in draw.sizes(4)]
    bad = draw.whole(1, 2)
    inputs[bad][0] = -1.0
    return implementation(lambda x: x * 1, lambda x: x.clamp(min=0), inputs, 1e-5, 1e-6)


@outputs_agree.case
def a_large_difference_that_passes_and_a_small_one_that_fails(implementation, draw):
    inputs = [draw.tensor([1e4]), draw.tensor([draw.number(1, 2)]), draw.tensor([1e4])]
    return implementation(lambda x: x * 1, lambda x: x + 0.5, inputs, 1e-3, 1e-3)


@outputs_agree.case
def an_empty_tensor(implementation, draw):
    empty, x = draw.normal(0, draw.whole(2, 5)), draw.normal(*draw.sizes(2))
    alone = implementation(torch.exp, torch.exp, [empty], 0.0, 0.0)
    return [alone, implementation(lambda x: x * 1, lambda x: x + 1, [empty, x], 0.0, 0.5)]


@outputs_agree.case
def ties(implementation, draw):
    x = draw.uniform(draw.whole(2, 5), low=1, high=2).round()
    return implementation(lambda x: x * 1, lambda x: x + x, [0 * x[:1], x, x, x], 0.0, 2.0)


@outputs_agree.case
def how_the_functions_are_called(implementation, draw):
    calls = {"reference": [], "candidate": []}

    def watched(name):
        def function(x):
            calls[name].append([torch.is_grad_enabled(), x.requires_grad])
            return (x * 2)[:2] if name == "candidate" else x * 2

        return function

    inputs = [draw.normal(3, requires_grad=True), draw.normal(2)]
    verdict = implementation(watched("reference"), watched("candidate"), inputs, 1e-5, 1e-6)
    return [verdict, calls]


def apart(r, c):
    """Differences as the contract wants them, and whether two elements are equal, or finite."""
    r, c = r.double(), c.double()
    equal = (r == c) | (r.isnan() & c.isnan())
    finite = r.isfinite() & c.isfinite()
    return (c - r).abs().where(finite, math.inf).where(~equal, 0.0), equal, finite


def bound(r, rtol, atol, difference, equal, finite):
    """Which elements pass."""
    return equal | (finite & (difference <= atol + rtol * r.double().abs()))


def agree(
    reference, candidate, inputs, rtol, atol,
    *, call=None, fits=None, apart=apart, close=bound, empty=0.0, last=False,
):  # fmt: skip
    """The reference in parts that can be exchanged."""

    def cloned(x):
        with torch.no_grad():
            return reference(x.clone()), candidate(x.clone())

    fits = fits or (lambda r, c: r.shape == c.shape and r.dtype == c.dtype)
    ok, differences = True, []
    for x in inputs:
        r, c = (call or cloned)(x)
        if not fits(r, c):
            ok = False
            differences.append(math.inf)
            continue
        difference, equal, finite = apart(r, c)
        ok = ok and bool(close(r, rtol, atol, difference, equal, finite).all())
        differences.append(difference.max().item() if difference.numel() else empty)
    largest = max(differences)
    places = [i for i, d in enumerate(differences) if d == largest] or [0]
    return {"ok": ok, "max_abs": largest, "worst": places[-1 if last else 0]}


@outputs_agree.misconception(
    "You ask for equality to the last bit. Fused kernels round in another order; equality fails "
    "for code that is right."
)
def bitwise(reference, candidate, inputs, rtol, atol):
    def close(r, rtol, atol, difference, equal, finite):
        return equal

    return agree(reference, candidate, inputs, rtol, atol, close=close)


@outputs_agree.misconception(
    "Your tolerance grows with the candidate. It belongs to the reference: a candidate that is far "
    "too large must not widen its own bound. Mind the order of arguments where a function of torch "
    "compares for you."
)
def relative_to_the_candidate(reference, candidate, inputs, rtol, atol):
    def both(r, c):
        difference, equal, finite = apart(r, c)
        passes = equal | (finite & (difference <= atol + rtol * c.double().abs()))
        return difference, passes, finite

    def close(r, rtol, atol, difference, passes, finite):
        return passes

    return agree(reference, candidate, inputs, rtol, atol, apart=both, close=close)


@outputs_agree.misconception(
    "You compare on the first input alone. A fault may live in one shape or one range of values."
)
def first_input_only(reference, candidate, inputs, rtol, atol):
    return agree(reference, candidate, inputs[:1], rtol, atol)


@outputs_agree.misconception(
    "Both functions get the same tensor. One that works in place changes what the other sees, and "
    "the caller's input too."
)
def same_tensor(reference, candidate, inputs, rtol, atol):
    def call(x):
        with torch.no_grad():
            return reference(x), candidate(x)

    return agree(reference, candidate, inputs, rtol, atol, call=call)


@outputs_agree.misconception(
    "Shapes are not compared. (2, 1) minus (2,) is (2, 2) by broadcasting, and a result of another "
    "shape may even agree."
)
def broadcasting(reference, candidate, inputs, rtol, atol):
    return agree(reference, candidate, inputs, rtol, atol, fits=lambda r, c: r.dtype == c.dtype)


@outputs_agree.misconception(
    "Dtypes are not compared. A candidate that answers in float64 makes everything after it slower "
    "or fail, however close its numbers are."
)
def dtype_ignored(reference, candidate, inputs, rtol, atol):
    return agree(reference, candidate, inputs, rtol, atol, fits=lambda r, c: r.shape == c.shape)


@outputs_agree.misconception(
    "NaN makes your comparison fail where both have it. inf - inf is NaN as well: find the "
    "elements that are equal before you subtract."
)
def nan_never_equal(reference, candidate, inputs, rtol, atol):
    def plainly(r, c):
        r, c = r.double(), c.double()
        return (c - r).abs(), torch.zeros_like(r, dtype=torch.bool), torch.ones_like(r).bool()

    return agree(reference, candidate, inputs, rtol, atol, apart=plainly)


@outputs_agree.misconception(
    "NaN is handled, and infinities are not: inf - inf is NaN, though both functions agree there."
)
def infinities_subtracted(reference, candidate, inputs, rtol, atol):
    def subtracted(r, c):
        difference, _, finite = apart(r, c)
        nan = r.isnan() & c.isnan()
        return difference.where(finite | nan, (c.double() - r.double()).abs()), nan, finite

    return agree(reference, candidate, inputs, rtol, atol, apart=subtracted)


@outputs_agree.misconception(
    "Differences that are not finite were replaced by 0, so NaN and infinities pass where the "
    "reference has a number."
)
def not_finite_passed_over(reference, candidate, inputs, rtol, atol):
    def passing_over(r, c):
        difference, equal, finite = apart(r, c)
        return difference.where(finite, 0.0), equal | ~finite, finite

    return agree(reference, candidate, inputs, rtol, atol, apart=passing_over)


@outputs_agree.misconception(
    "Where the reference is infinite, your bound is infinite too, and every candidate passes. A "
    "pair of which one is not finite never does."
)
def infinite_bound(reference, candidate, inputs, rtol, atol):
    def close(r, rtol, atol, difference, equal, finite):
        return equal | (difference <= atol + rtol * r.double().abs())

    return agree(reference, candidate, inputs, rtol, atol, close=close)


@outputs_agree.misconception(
    "Differences are taken in the dtype of the outputs. In half precision they overflow and round; "
    "convert to float64 before you subtract."
)
def differences_in_the_own_dtype(reference, candidate, inputs, rtol, atol):
    def narrow(r, c):
        difference, equal, finite = apart(r, c)
        return (c - r).abs().double().where(finite & ~equal, difference), equal, finite

    return agree(reference, candidate, inputs, rtol, atol, apart=narrow)


@outputs_agree.misconception(
    "Closeness is judged in the dtype of the outputs, where the bound is rounded too. Hand float64 "
    "to whatever compares, torch.isclose and torch.allclose included."
)
def bound_in_the_own_dtype(reference, candidate, inputs, rtol, atol):
    def close(r, rtol, atol, difference, equal, finite):
        return equal | (finite & (difference <= (atol + rtol * r.abs()).double()))

    return agree(reference, candidate, inputs, rtol, atol, close=close)


@outputs_agree.misconception(
    "worst is set only where an input fails. It belongs to the largest difference, and that one "
    "has an index also when all inputs pass."
)
def worst_only_of_failures(reference, candidate, inputs, rtol, atol):
    found = agree(reference, candidate, inputs, rtol, atol)
    return found | {"worst": 0} if found["ok"] else found


@outputs_agree.misconception(
    "You stop at the first input whose difference is infinite. The verdict is known by then, but "
    "each function is to be called once for every input."
)
def stops_at_infinity(reference, candidate, inputs, rtol, atol):
    for i in range(len(inputs)):
        if agree(reference, candidate, inputs[i : i + 1], rtol, atol)["max_abs"] == math.inf:
            return {"ok": False, "max_abs": math.inf, "worst": i}
    return agree(lambda x: reference(x), candidate, inputs, rtol, atol)


@outputs_agree.misconception("The relative tolerance is left out: only atol is compared with.")
def rtol_ignored(reference, candidate, inputs, rtol, atol):
    return agree(reference, candidate, inputs, 0.0, atol)


@outputs_agree.misconception(
    "Either tolerance is enough in your code, or the larger of them counts. They are added up: "
    "atol + rtol * |r|."
)
def larger_of_both(reference, candidate, inputs, rtol, atol):
    def close(r, rtol, atol, difference, equal, finite):
        return equal | (finite & (difference <= (rtol * r.double().abs()).clamp(min=atol)))

    return agree(reference, candidate, inputs, rtol, atol, close=close)


@outputs_agree.misconception(
    "A difference that is just as large as the bound fails in your code. The bound belongs to what "
    "passes; with both tolerances 0, equal numbers would not agree otherwise."
)
def bound_excluded(reference, candidate, inputs, rtol, atol):
    def close(r, rtol, atol, difference, equal, finite):
        return equal | (finite & (difference < atol + rtol * r.double().abs()))

    return agree(reference, candidate, inputs, rtol, atol, close=close)


@outputs_agree.misconception(
    "ok is judged by the largest difference alone. With a relative tolerance a large difference "
    "may pass and a small one fail; judge element by element."
)
def judged_by_the_largest(reference, candidate, inputs, rtol, atol):
    found = agree(reference, candidate, inputs, rtol, atol)
    return found | {"ok": agree(reference, candidate, [inputs[found["worst"]]], rtol, atol)["ok"]}


@outputs_agree.misconception(
    "Only the last input decides whether all is well. A later input that passes does not mend an "
    "earlier one."
)
def last_input_decides(reference, candidate, inputs, rtol, atol):
    found = agree(reference, candidate, inputs, rtol, atol)
    return found | {"ok": agree(reference, candidate, inputs[-1:], rtol, atol)["ok"]}


@outputs_agree.misconception(
    "An empty output fails or raises, since it has no largest element. It counts as a difference "
    "of 0."
)
def empty_raises(reference, candidate, inputs, rtol, atol):
    def call(x):
        with torch.no_grad():
            r, c = reference(x.clone()), candidate(x.clone())
        (r - c if r.shape == c.shape else c).max()
        return r, c

    return agree(reference, candidate, inputs, rtol, atol, call=call)


@outputs_agree.misconception(
    "Of equally bad inputs you name the last. The first one is asked for: strict or not is the "
    "question in the comparison."
)
def last_of_ties(reference, candidate, inputs, rtol, atol):
    return agree(reference, candidate, inputs, rtol, atol, last=True)


@outputs_agree.misconception(
    "The functions run with gradients enabled and build graphs that nobody needs. A comparison of "
    "outputs belongs under no_grad."
)
def gradients_enabled(reference, candidate, inputs, rtol, atol):
    def call(x):
        return reference(x.detach().clone()), candidate(x.detach().clone())

    return agree(reference, candidate, inputs, rtol, atol, call=call)


@outputs_agree.misconception(
    "ok or max_abs is a tensor. A verdict holds plain Python values, which can be printed and "
    "stored."
)
def verdict_of_tensors(reference, candidate, inputs, rtol, atol):
    found = agree(reference, candidate, inputs, rtol, atol)
    return found | {"max_abs": torch.tensor(found["max_abs"]), "ok": torch.tensor(found["ok"])}


outputs_agree.hints(
    "Compare shapes and dtypes before any value.",
    "What is inf - inf? And what is 0 * inf, where rtol is 0?",
    "Find the elements that are equal first. Of the others, those that are not both finite are "
    "infinitely far apart.",
)
