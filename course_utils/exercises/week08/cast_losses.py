"""What a cast to a narrower format would destroy."""

import math

import torch

from course_utils.exercise import exercise


@exercise(objectives=("amp.rounding_loss", "amp.formats"))
def cast_losses(t: torch.Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """What would a cast of t to `dtype`, a narrower float dtype, destroy?

    Return (underflow, overflow), two Python floats: the fraction of the finite nonzero elements
    of t that become exactly zero, and the fraction of the finite elements of t that become
    infinite. A fraction of nothing is 0.0. Elements that are inf or NaN already count nowhere.

    t is float32 or float64, of any shape; it may be empty and may require grad. It is not
    modified.
    """
    t = t.detach()
    cast = t.to(dtype)
    finite = t.isfinite()
    nonzero = finite & (t != 0)
    flushed = (nonzero & (cast == 0)).sum().item()
    overflowed = (finite & cast.isinf()).sum().item()
    return flushed / max(1, nonzero.sum().item()), overflowed / max(1, finite.sum().item())


def with_others(draw, *edges, dtype=torch.float32):
    """The given numbers among a random number of harmless ones, in random order."""
    others = 0.5 + draw.uniform(draw.whole(3, 20), dtype=dtype)
    values = torch.cat([draw.tensor(edges, dtype=dtype), others])
    return values[draw.permutation(len(values))]


@cast_losses.case
def small_numbers_and_float16(implementation, draw):
    half = 2.0**-25  # half the smallest subnormal of float16, and a tie: it becomes 0
    around = (half, -half, 2.98e-08, 2.9803e-08, -2.9803e-08, 5e-08, 6e-08, 1e-06)
    return implementation(with_others(draw, *around, -3e-05, 6.1e-05, 1e-12), torch.float16)


@cast_losses.case
def large_numbers_and_float16(implementation, draw):
    around = (65504.0, 65505.0, -65519.0, 65519.0, 65520.0, 70000.0, 3e38)
    return implementation(with_others(draw, *around), torch.float16)


@cast_losses.case
def large_negative_numbers_and_float16(implementation, draw):
    return implementation(with_others(draw, -65519.0, -65520.0, -1e6), torch.float16)


@cast_losses.case
def both_ends_of_bfloat16(implementation, draw):
    around = (1e-41, -4.5e-41, 4.7e-41, -1e-40, 1e-30, 70000.0, 3.39e38, 3.395e38, -3.4e38)
    return implementation(with_others(draw, *around), torch.bfloat16)


@cast_losses.case
def from_float64_to_float32(implementation, draw):
    around = (1e-300, -6e-46, 8e-46, 1e-40, 1e-38, 3.40282356e38, -3.4028236e38, 1e300)
    return implementation(with_others(draw, *around, dtype=torch.float64), torch.float32)


@cast_losses.case
def zeros_among_the_numbers(implementation, draw):
    zeros = [0.0, -0.0] * draw.whole(1, 4)
    return implementation(with_others(draw, *zeros, 1e-9, -1e5), torch.float16)


@cast_losses.case
def infinities_and_NaN_among_the_numbers(implementation, draw):
    others = [math.inf, -math.inf, math.nan] * draw.whole(1, 3)
    return implementation(with_others(draw, *others, -1e-9, 1e-10, 1e5), torch.float16)


@cast_losses.case
def nothing_to_count(implementation, draw):
    zeros = torch.zeros(draw.whole(2, 5), device=draw.device)
    bad = draw.tensor([math.nan, math.inf])
    return [implementation(t, torch.float16) for t in (zeros[:0], zeros, bad)]


@cast_losses.case
def nothing_to_lose(implementation, draw):
    return implementation(with_others(draw, 1e-4, -6e4), torch.float16)


@cast_losses.case
def a_transposed_grid_that_requires_grad(implementation, draw):
    rows, columns = draw.sizes(2, low=4)
    grid = 10 ** draw.uniform(rows, columns, low=-14, high=9)
    grid[0, 0], grid[1, 0] = 1e-20, 1e20
    return implementation(grid.requires_grad_().T, torch.float16)


def losses(t, dtype, *, lost=None, over=None, nonzero=None, finite=None, share=None):
    """The reference in parts: masks of what is lost and of what counts, and the division."""
    t = t.detach()
    cast, isfinite = t.to(dtype), t.isfinite()
    finite = isfinite if finite is None else finite(t)
    nonzero = isfinite & (t != 0) if nonzero is None else nonzero(t)
    lost = isfinite & (t != 0) & (cast == 0) if lost is None else lost(t, cast)
    over = isfinite & cast.isinf() if over is None else over(t, cast)
    divide = share or (lambda part, whole: part / max(1, whole))
    pairs = (lost, nonzero), (over, finite)
    return tuple(divide(part.sum().item(), whole.sum().item()) for part, whole in pairs)


@cast_losses.misconception(
    "You count everything below the smallest normal number as lost. Subnormal numbers go on below "
    "it, with fewer and fewer digits; to zero goes what is at most half the smallest of them."
)
def smallest_normal_as_threshold(t, dtype):
    tiny = torch.finfo(dtype).tiny
    return losses(t, dtype, lost=lambda t, cast: (t != 0) & (t.abs() < tiny))


@cast_losses.misconception(
    "You count everything below the smallest subnormal number as lost. What is more than half of "
    "it is rounded up to it."
)
def smallest_subnormal_as_threshold(t, dtype):
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps
    return losses(t, dtype, lost=lambda t, cast: (t != 0) & (t.double().abs() < smallest))


@cast_losses.misconception(
    "You count everything above the largest finite number as infinite. Values up to half a spacing "
    "above it are rounded back down."
)
def largest_finite_as_threshold(t, dtype):
    largest = torch.finfo(dtype).max
    return losses(t, dtype, over=lambda t, cast: t.isfinite() & (t.abs() > largest))


@cast_losses.misconception(
    "Both limits of finfo serve as thresholds in your code. A cast rounds: below tiny there are "
    "subnormal numbers, and a little above max the way leads back down. Let the cast decide."
)
def finfo_as_thresholds(t, dtype):
    info = torch.finfo(dtype)
    return losses(
        t, dtype, lost=lambda t, cast: (t != 0) & (t.abs() < info.tiny),
        over=lambda t, cast: t.isfinite() & (t.abs() > info.max),
    )  # fmt: skip


@cast_losses.misconception(
    "Zeros that were zero before are counted as lost. An exact zero loses nothing: leave it out of "
    "both numbers of the fraction."
)
def zeros_counted(t, dtype):
    return losses(t, dtype, lost=lambda t, cast: cast == 0, nonzero=torch.isfinite)


@cast_losses.misconception(
    "You divide the lost ones by all finite elements. The fraction is of those that could be lost: "
    "zeros do not belong to them."
)
def zeros_in_the_denominator(t, dtype):
    return losses(t, dtype, nonzero=torch.isfinite)


@cast_losses.misconception(
    "You leave zeros out of the second fraction too. It is a fraction of all finite elements, and "
    "zero is finite."
)
def zeros_left_out_of_both(t, dtype):
    return losses(t, dtype, finite=lambda t: t.isfinite() & (t != 0))


@cast_losses.misconception(
    "Infinities that were there before are counted. The cast did not cause them; they belong "
    "neither to the lost nor to the whole."
)
def existing_infinities_counted(t, dtype):
    return losses(
        t, dtype, over=lambda t, cast: cast.isinf(), finite=lambda t: ~t.isnan(),
        nonzero=lambda t: ~t.isnan() & (t != 0),
    )  # fmt: skip


@cast_losses.misconception(
    "Elements that were inf or NaN already are part of what you divide by. They count nowhere, so "
    "take them out of the denominators too."
)
def non_finite_in_the_denominators(t, dtype):
    return losses(t, dtype, finite=torch.ones_like, nonzero=lambda t: t != 0)


@cast_losses.misconception("Negative numbers overflow to -inf, and you look for +inf only.")
def only_positive_overflow(t, dtype):
    return losses(t, dtype, over=lambda t, cast: t.isfinite() & (cast == math.inf))


@cast_losses.misconception(
    "Where nothing counts, your fraction is 0/0. The task asks for 0.0 there: an empty tensor, all "
    "zeros, nothing finite."
)
def nothing_divided_by_nothing(t, dtype):
    return losses(t, dtype, share=lambda part, whole: part / whole if whole else math.nan)


@cast_losses.misconception(
    "With nothing to count you divide by zero, and Python raises. A fraction of nothing is 0.0 "
    "here: an empty tensor, all zeros, nothing finite."
)
def division_by_zero_raises(t, dtype):
    return losses(t, dtype, share=lambda part, whole: part / whole)


@cast_losses.misconception("You return counts. Asked for are fractions, between 0 and 1.")
def counts_instead_of_fractions(t, dtype):
    return losses(t, dtype, share=lambda part, whole: float(part))


@cast_losses.misconception(
    "You return tensors. The caller prints and compares these numbers; make them Python floats."
)
def tensors_returned(t, dtype):
    return tuple(t.new_tensor(share) for share in cast_losses.reference(t, dtype))


@cast_losses.misconception("The two fractions are swapped: underflow comes first.")
def swapped(t, dtype):
    return cast_losses.reference(t, dtype)[::-1]


@cast_losses.misconception("You cast to float16, whatever dtype is asked for. Use the argument.")
def always_float16(t, dtype):
    return cast_losses.reference(t, torch.float16)


@cast_losses.misconception(
    "You turn t into float32 first. What float64 can hold and float32 cannot is lost before you "
    "look; cast from the dtype that t has."
)
def by_way_of_float32(t, dtype):
    return cast_losses.reference(t.float(), dtype)


@cast_losses.misconception(
    "Your fractions are right, and t is not what it was: inf and NaN were overwritten in place. "
    "Select with masks, and leave the input alone."
)
def cleans_up_the_input(t, dtype):
    result = cast_losses.reference(t, dtype)
    t.data.nan_to_num_(0.0, 0.0, 0.0)
    return result


cast_losses.hints(
    "Which thresholds would you need, for each pair of dtypes? There is something that knows them "
    "already, and rounds exactly as the cast does.",
    "Two masks on the original say who counts. Then look at the same places of the cast.",
    "What is the fraction of an empty tensor, and who divides by what?",
)
