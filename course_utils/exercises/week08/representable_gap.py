"""The spacing of floating-point numbers, from the format alone."""

import math

import numpy as np
import torch

from course_utils.exercise import exercise


@exercise(
    objectives=("amp.formats",),
    forbids=(
        torch.nextafter, torch.Tensor.nextafter, torch.Tensor.nextafter_, np.spacing, np.nextafter,
    ),
)  # fmt: skip
def representable_gap(x: torch.Tensor) -> torch.Tensor:
    """Spacing of x's own floating-point format at each element.

    x is float16, bfloat16 or float32, of any shape and layout; it may be empty and may require
    grad. The result has the same shape and dtype.

    For finite x it is the distance from |x| to the next larger magnitude that the format can
    represent; for the largest finite number, the distance to the next smaller one. At 0 and for
    subnormal numbers it is the smallest subnormal number. For inf and NaN it is NaN.

    No graph is recorded and x is not modified. Do without nextafter and without NumPy's spacing;
    torch.finfo is allowed.
    """
    info = torch.finfo(x.dtype)
    magnitude = x.detach().double().abs().clamp(info.tiny, info.max)
    fraction, _ = torch.frexp(magnitude)  # between 1/2 and 1: magnitude = fraction * 2**exponent
    power_of_two = magnitude / (2 * fraction)  # the largest one that is not above magnitude
    gap = info.eps * power_of_two
    return torch.where(x.isfinite(), gap, math.nan).to(x.dtype)


FORMATS = (torch.float16, torch.bfloat16, torch.float32)
EXACT = (1e-3, 0.0)  # a gap is a power of two: another answer is off by a factor


def in_each_format(implementation, values):
    """The gaps at values(info, ...), a list of numbers, in the three formats."""
    return {str(dtype): implementation(values(torch.finfo(dtype)).to(dtype)) for dtype in FORMATS}


def mixed(draw, count):
    """Numbers of both signs whose magnitudes lie between 2**-10 and 2**12."""
    return draw.normal(count, dtype=torch.float64).sign() * 2 ** draw.uniform(
        count, low=-10, high=12, dtype=torch.float64
    )


@representable_gap.case(tolerance=EXACT)
def numbers_of_all_sizes(implementation, draw):
    values = mixed(draw, draw.whole(9, 14))
    return in_each_format(implementation, lambda info: values)


@representable_gap.case(tolerance=EXACT)
def around_one_and_two(implementation, draw):
    values = draw.tensor([1.0, -1.0, 1.5, 1.99, -1.75, 2.0, -3.0, 0.99, 0.5])
    return in_each_format(implementation, lambda info: values)


@representable_gap.case(tolerance=EXACT)
def powers_of_two_and_the_numbers_just_below(implementation, draw):
    power = 2.0 ** draw.integers(-9, 12, 4, dtype=torch.float64)
    at_2048 = draw.tensor([2047.0, 2048.0, 2049.0, -1023.5], dtype=torch.float64)

    def values(info):
        return torch.cat([power, power * (1 - info.eps / 2), -power * (1 + info.eps), at_2048])

    return in_each_format(implementation, values)


@representable_gap.case(tolerance=EXACT)
def zero_and_subnormal_numbers(implementation, draw):
    share = draw.uniform(3, low=0.1, high=0.9, dtype=torch.float64)

    def values(info):
        smallest = info.tiny * info.eps
        few = [0.0, -0.0, smallest, -3 * smallest, info.tiny / 2, info.tiny, -2 * info.tiny]
        return torch.cat([draw.tensor(few, dtype=torch.float64), share * info.tiny])

    return in_each_format(implementation, values)


@representable_gap.case(tolerance=EXACT)
def the_largest_numbers(implementation, draw):
    def values(info):
        return draw.tensor([info.max, -info.max, info.max * (1 - info.eps), info.max / 2],
                           dtype=torch.float64)  # fmt: skip

    return in_each_format(implementation, values)


@representable_gap.case(tolerance=EXACT)
def infinities_and_NaN(implementation, draw):
    values = draw.tensor([math.inf, draw.number(1, 9), -math.inf, math.nan, draw.number(-90, -9)])
    return in_each_format(implementation, lambda info: values)


@representable_gap.case(tolerance=EXACT)
def a_transposed_grid_and_one_number(implementation, draw):
    rows, columns = draw.sizes(2)
    grid = mixed(draw, rows * columns).reshape(rows, columns).half().T
    return [implementation(grid), implementation(mixed(draw, 1)[0].bfloat16())]


@representable_gap.case(tolerance=EXACT)
def an_input_that_requires_grad(implementation, draw):
    return implementation(mixed(draw, draw.whole(3, 5)).float().requires_grad_())


@representable_gap.case
def no_elements(implementation, draw):
    return implementation(torch.empty(0, draw.whole(2, 5), dtype=torch.float16, device=draw.device))


def spacing(x, *, info=None, magnitude=None, power=None):
    """The reference, of which a part can be exchanged: magnitude and the power of two below it."""
    info = info or torch.finfo(x.dtype)
    wide = x.detach().double()
    size = wide.abs().clamp(info.tiny, info.max) if magnitude is None else magnitude(wide, info)
    below = size / (2 * torch.frexp(size).mantissa) if power is None else power(size)
    return torch.where(x.isfinite(), info.eps * below, math.nan).to(x.dtype)


@representable_gap.misconception(
    "You return the machine epsilon everywhere. It is the spacing at 1 only: the spacing doubles "
    "at each power of two, so at 1000 it is 512 times as large."
)
def machine_epsilon_everywhere(x):
    return spacing(x, power=torch.ones_like)


@representable_gap.misconception(
    "You multiply eps by |x| itself. Between two powers of two the spacing is constant; multiply "
    "by the power of two at or below |x|."
)
def eps_times_magnitude(x):
    return spacing(x, power=lambda size: size)


@representable_gap.misconception(
    "Below the smallest normal number your spacing goes on shrinking. Subnormal numbers are evenly "
    "spaced: the exponent stops falling there."
)
def no_floor_below_the_smallest_normal(x):
    def magnitude(wide, info):
        smallest = info.tiny * info.eps  # frexp needs something to work with at 0
        return wide.abs().clamp(smallest, info.max)

    return spacing(x, magnitude=magnitude)


@representable_gap.misconception(
    "At 0 you have no answer: it has no power of two below it. The next number above 0 is the "
    "smallest subnormal number, so that is the gap."
)
def nothing_at_zero(x):
    return torch.where(x.detach() == 0, 0 * x.detach(), representable_gap.reference(x))


@representable_gap.misconception(
    "Your numbers were computed for float32, whatever x is. Take the constants from the dtype of "
    "the input."
)
def float32_spacing_for_every_dtype(x):
    return spacing(x, info=torch.finfo(torch.float32))


@representable_gap.misconception(
    "You take the gap below |x|. At a power of two it is half the gap above, and the gap above was "
    "asked for."
)
def gap_to_the_next_smaller(x):
    info = torch.finfo(x.dtype)
    below = x.detach().double().abs() * (1 - info.eps / 4)

    def magnitude(wide, info):
        return below.clamp(info.tiny, info.max)

    return spacing(x, magnitude=magnitude)


@representable_gap.misconception(
    "Your logarithm was rounded in the dtype of x. For a number just below a power of two it comes "
    "out as a whole number, and the gap is twice too large. Work in a wider dtype."
)
def logarithm_in_the_dtype_of_x(x):
    info = torch.finfo(x.dtype)
    size = x.detach().abs().clamp(info.tiny, info.max)
    gap = info.eps * 2.0 ** size.log2().floor().double()
    return torch.where(x.isfinite(), gap, math.nan).to(x.dtype)


@representable_gap.misconception(
    "The gap of the largest finite number came out infinite: above it there is only inf. There the "
    "distance to the next smaller number is meant."
)
def infinite_at_the_largest(x):
    largest = x.detach().abs() == torch.finfo(x.dtype).max
    return representable_gap.reference(x).masked_fill(largest, math.inf)


@representable_gap.misconception(
    "You gave inf the gap of the largest finite number. It has no neighbors in the format; the "
    "task asks for NaN."
)
def infinity_like_the_largest(x):
    info = torch.finfo(x.dtype)
    return representable_gap.reference(x.detach().clamp(-info.max, info.max))


@representable_gap.misconception(
    "At inf you answered inf. Nothing in the format lies beyond it and no distance makes sense; "
    "the task asks for NaN."
)
def infinite_at_infinity(x):
    return representable_gap.reference(x).masked_fill(x.detach().isinf(), math.inf)


@representable_gap.misconception(
    "For negative numbers your gap is negative or NaN. It is a distance, measured at |x|."
)
def negative_numbers_go_wrong(x):
    return representable_gap.reference(x) * torch.where(x.detach() < 0, -1, 1)


@representable_gap.misconception(
    "The result is not in the dtype of x. Compute in a wider one, and return the dtype that came."
)
def result_in_a_wider_dtype(x):
    return representable_gap.reference(x).double()


@representable_gap.misconception(
    "The result carries a graph back to x. A gap is not a differentiable function of x; detach "
    "before you compute."
)
def result_with_a_graph(x):
    return representable_gap.reference(x) + 0 * x.nan_to_num(posinf=0, neginf=0)


@representable_gap.misconception(
    "Your code makes x positive in place. The caller still needs its signs."
)
def makes_x_positive(x):
    return representable_gap.reference(x.data.abs_())


@representable_gap.misconception(
    "All your gaps are twice too large. torch.frexp gives a fraction between 1/2 and 1, so its "
    "exponent is one more than that of the power of two below |x|."
)
def twice_too_large(x):
    return spacing(x, power=lambda size: size / torch.frexp(size).mantissa)


representable_gap.hints(
    "What is the spacing of float16 at 1? At 2, at 4, at 3? What decides it, and what does not?",
    "Take the number apart: torch.frexp, or the floor of log2 in a wider dtype, tells which power "
    "of two lies below |x|.",
    "From below, the magnitude that counts is limited: look up what finfo calls tiny, and try 0.",
)
