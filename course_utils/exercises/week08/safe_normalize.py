"""A bug hunt: rows of length one, in formats with little range."""

import torch

from course_utils.cases import gradients
from course_utils.exercise import exercise


@exercise(objectives=("amp.half_safe_code", "amp.rounding_loss"))
def safe_normalize(x: torch.Tensor, dim: int = -1, eps: float = 1e-8) -> torch.Tensor:
    """x / max(||x||, eps), with the Euclidean norm along dim, correct for 16-bit inputs too.

    x has any float dtype; the result has the same shape and dtype, and x is not modified. For
    float16 and bfloat16 all intermediate values are float32 (or wider) and only the result is
    rounded; float64 stays float64 throughout. Rows of zeros give zeros, however small eps is.

    For float32 and float64 the gradient is that of the formula, and finite everywhere: for rows
    with a norm below eps, the denominator is the constant eps.

    It is called outside autocast.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    norm = torch.linalg.vector_norm(wide, dim=dim, keepdim=True)
    return (wide / torch.where(norm > eps, norm, eps)).to(x.dtype)


HALF = (1.5e-3, 1e-6)  # one spacing of float16 is at most 2**-10 of the number
BRAIN = (1.2e-2, 1e-6)  # and one of bfloat16 2**-7


def rows(draw, dtype, columns):
    """Rows of very different scale, the last of zeros, in random order."""
    scales = draw.tensor([1.0, 300.0, 3e-4, 1e-6, 0.0])[draw.permutation(5)]
    signs = draw.normal(5, columns).sign()
    return (scales[:, None] * signs * draw.uniform(5, columns, low=0.5, high=1.5)).to(dtype)


@safe_normalize.case(tolerance=HALF)
def float16_rows_of_every_scale(implementation, draw):
    return implementation(rows(draw, torch.float16, draw.whole(3, 7)))


@safe_normalize.case(tolerance=BRAIN)
def bfloat16_rows_of_every_scale(implementation, draw):
    return implementation(rows(draw, torch.bfloat16, draw.whole(3, 7)))


@safe_normalize.case
def float32_rows_of_every_scale(implementation, draw):
    return implementation(rows(draw, torch.float32, draw.whole(3, 7)))


@safe_normalize.case(tolerance=(1e-12, 1e-13))
def float64_to_twelve_digits(implementation, draw):
    return implementation(draw.normal(*draw.sizes(2), dtype=torch.float64))


@safe_normalize.case(tolerance=(1e-3, 0.0))
def bfloat16_to_the_last_bit(implementation, draw):
    x = draw.normal(20, draw.whole(3, 7)).bfloat16()
    exact = x.double() / x.double().norm(dim=-1, keepdim=True)
    fraction, _ = torch.frexp(exact)
    steps = 256 * fraction  # in units of the spacing; halfway between two numbers, either is right
    clear = (steps - steps.round()).abs() < 0.4
    return torch.where(clear, implementation(x), 0)


@safe_normalize.case(tolerance=HALF)
def long_float16_rows_of_tiny_numbers(implementation, draw):
    return implementation((1e-4 * (1 + draw.uniform(2, draw.whole(40, 60)))).half())


@safe_normalize.case(tolerance=HALF)
def along_the_first_and_the_middle_dimension(implementation, draw):
    x = 300 * draw.normal(*draw.sizes(3)).half()
    return [implementation(x, 0), implementation(x, dim=1)]


@safe_normalize.case(tolerance=BRAIN)
def a_transposed_input_and_a_single_row(implementation, draw):
    x = draw.normal(*draw.sizes(2)).bfloat16()
    return [implementation(x.T, dim=0), implementation(x[0])]


@safe_normalize.case
def norms_below_eps(implementation, draw):
    signs = draw.normal(4, 3).sign()
    short = signs * draw.uniform(4, 3, low=0.3, high=0.5)
    return {
        "the default eps": implementation(1e-8 * short),
        "a large eps": implementation(0.1 * short, eps=draw.number(0.5, 2)),
        "zeros, eps=1e-23": implementation(0 * short, eps=1e-23),
    }


@safe_normalize.case(tolerance=HALF)
def an_eps_that_matters_in_float16(implementation, draw):
    short = draw.uniform(2, 3, low=0.3, high=0.5)
    x = (draw.tensor([[2e-7], [1.0]]) * short).half()
    return implementation(x, -1, 1e-6)


@safe_normalize.case
def gradients_of_float32_rows(implementation, draw):
    x = draw.normal(4, draw.whole(2, 5))
    x[0], x[1] = 300 * x[0], 0.03 * x[1]
    x.requires_grad_()
    return gradients(implementation(x), x, 10 * draw.normal(*x.shape))


@safe_normalize.case
def gradients_of_a_row_of_zeros(implementation, draw):
    eps = draw.number(0.1, 0.3)
    x = draw.normal(3, 4, dtype=torch.float64)
    x[1] = 0
    x[2] = 0.1 * eps * x[2].sign()
    x.requires_grad_()
    found = gradients(implementation(x, eps=eps), x, draw.normal(3, 4, dtype=torch.float64))
    zeros = torch.zeros(2, 3, device=draw.device, requires_grad=True)
    upstream = draw.normal(2, 3)
    return [found, gradients(implementation(zeros), zeros, 1e-8 * upstream)]


def widened(x):
    """x in float32 where it comes in 16 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def length(x, dim):
    """The norm along dim, kept as a dimension."""
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True)


def at_least(norm, eps):
    """The norm, or eps where that is more."""
    return torch.where(norm > eps, norm, eps)


@safe_normalize.misconception(
    "Your squares are computed in the dtype of the input. 300 squared is above 65504, so float16 "
    "has inf there, and the square of 3e-4 keeps hardly a digit. Widen before you square."
)
def squares_in_the_dtype_of_the_input(x, dim=-1, eps=1e-8):
    if x.dtype not in (torch.float16, torch.bfloat16):
        return safe_normalize.reference(x, dim, eps)
    norm = (x * x).float().sum(dim, keepdim=True).sqrt()
    return (x.float() / at_least(norm, eps)).to(x.dtype)


@safe_normalize.misconception(
    "You widen float16 only. bfloat16 does not overflow, and it has just eight digits in base two: "
    "squares, sum and root are each rounded, and the last digit comes out wrong."
)
def bfloat16_left_alone(x, dim=-1, eps=1e-8):
    if x.dtype is not torch.bfloat16:
        return safe_normalize.reference(x, dim, eps)
    norm = (x * x).sum(dim, keepdim=True).sqrt()
    return x / norm.clamp_min(eps)


@safe_normalize.misconception(
    "Your denominator has the dtype of the input, so 16 bits where the input has: it is rounded "
    "before you divide, and in float16 an eps of 1e-8 is exactly 0. Stay in float32 until the "
    "quotient is there."
)
def eps_in_the_dtype_of_the_input(x, dim=-1, eps=1e-8):
    norm = length(widened(x), dim).to(x.dtype)
    return x / norm.clamp_min(eps) if x.dtype != torch.float64 else x / at_least(norm, eps)


@safe_normalize.misconception(
    "The result stays in float32. Callers rely on the dtype they passed; round once, at the end."
)
def result_stays_float32(x, dim=-1, eps=1e-8):
    return safe_normalize.reference(widened(x), dim, eps)


@safe_normalize.misconception(
    "You replace NaN afterwards. That hides the row of zeros, and it leaves rows whose norm "
    "overflowed at zero; the quotient has to be right in the first place."
)
def nan_replaced_afterwards(x, dim=-1, eps=1e-8):
    norm = (x * x).sum(dim, keepdim=True).sqrt()
    return (x / at_least(norm, eps).to(x.dtype)).nan_to_num(0.0)


@safe_normalize.misconception(
    "You add eps to the norm. Short rows come out too short; the task asks for a lower limit of "
    "the denominator, which leaves longer rows alone."
)
def the_sum_with_eps(x, dim=-1, eps=1e-8):
    wide = widened(x)
    return (wide / (length(wide, dim) + eps)).to(x.dtype)


@safe_normalize.misconception(
    "The numbers are right, and the gradient of a row of zeros is NaN: the slope of sqrt at 0 is "
    "infinite, and 0 times inf is NaN. A limit after the root is too late; look at what is safe "
    "at 0."
)
def root_of_zero_in_the_graph(x, dim=-1, eps=1e-8):
    wide = widened(x)
    norm = (wide * wide).sum(dim, keepdim=True).sqrt()
    return (wide / norm.clamp_min(eps)).to(x.dtype)


@safe_normalize.misconception(
    "You widen as it should be, add eps to the norm, and take a root at 0. Two things are left: "
    "eps is a lower limit, not a summand, and the gradient of sqrt at 0 is infinite."
)
def widened_and_nothing_else(x, dim=-1, eps=1e-8):
    wide = widened(x)
    return (wide / ((wide * wide).sum(dim, keepdim=True).sqrt() + eps)).to(x.dtype)


@safe_normalize.misconception(
    "eps stands under the root. The root of 1e-8 is 1e-4, so rows of that size come out much too "
    "short; the limit belongs to the norm."
)
def eps_under_the_root(x, dim=-1, eps=1e-8):
    wide = widened(x)
    return (wide / ((wide * wide).sum(dim, keepdim=True) + eps).sqrt()).to(x.dtype)


@safe_normalize.misconception(
    "The square of eps is added under the root. Where the norm is near eps the row comes out too "
    "short; the larger of the two is meant, not a sum of squares."
)
def eps_squared_under_the_root(x, dim=-1, eps=1e-8):
    wide = widened(x)
    return (wide / ((wide * wide).sum(dim, keepdim=True) + eps**2).sqrt()).to(x.dtype)


@safe_normalize.misconception(
    "You compare squares: that of the norm, and that of eps. For a small eps its square is exactly "
    "0 in float32, and a row of zeros gives 0 / 0; the limit belongs to the norm itself."
)
def squares_compared(x, dim=-1, eps=1e-8):
    wide = widened(x)
    return (wide / (wide * wide).sum(dim, keepdim=True).clamp_min(eps**2).sqrt()).to(x.dtype)


@safe_normalize.misconception(
    "Everything goes through float32 in your code, float64 too, and half its digits are gone. "
    "Widen what is narrow; leave the rest."
)
def float64_narrowed(x, dim=-1, eps=1e-8):
    return safe_normalize.reference(x.float(), dim, eps).to(x.dtype)


@safe_normalize.misconception(
    "The norm is detached. Then the gradient no longer knows that the length of the result is "
    "fixed; let it flow through the denominator too."
)
def norm_detached(x, dim=-1, eps=1e-8):
    wide = widened(x)
    return (wide / at_least(length(wide, dim).detach(), eps)).to(x.dtype)


@safe_normalize.misconception(
    "Your denominator may be smaller than eps: short rows come out longer than they should, and a "
    "row of zeros gives 0 / 0. Its lower limit is eps."
)
def no_eps(x, dim=-1, eps=1e-8):
    wide = widened(x)
    return (wide / length(wide, dim)).to(x.dtype)


@safe_normalize.misconception(
    "eps is 1e-8 in your code, whatever the caller passes. Use the argument."
)
def eps_fixed(x, dim=-1, eps=1e-8):
    return safe_normalize.reference(x, dim)


@safe_normalize.misconception(
    "You always normalize along the last dimension. Use the argument dim."
)
def dim_ignored(x, dim=-1, eps=1e-8):
    return safe_normalize.reference(x, -1, eps)


@safe_normalize.misconception(
    "The norm is taken over the whole tensor. Each row along dim has its own."
)
def norm_of_everything(x, dim=-1, eps=1e-8):
    wide = widened(x)
    return (wide / at_least(torch.linalg.vector_norm(wide), eps)).to(x.dtype)


@safe_normalize.misconception(
    "Rows shorter than eps become zero in your answer. Only a row of zeros does; a short one is "
    "divided by eps."
)
def short_rows_set_to_zero(x, dim=-1, eps=1e-8):
    norm = length(widened(x), dim)
    return safe_normalize.reference(x, dim, eps).masked_fill(norm <= eps, 0.0)


@safe_normalize.misconception(
    "The division was done in place, so the caller's x is normalized as well. Build a new tensor."
)
def divides_in_place(x, dim=-1, eps=1e-8):
    result = safe_normalize.reference(x, dim, eps)
    x.data.copy_(result.data)
    return result


@safe_normalize.broken
def broken_safe_normalize(x, dim=-1, eps=1e-8):
    norm = (x * x).sum(dim, keepdim=True).sqrt()
    return x / (norm + eps)


safe_normalize.hints(
    "Print x * x for x = 300 and for x = 3e-4 in float16. In which dtype should this be computed?",
    "Which constant becomes zero in float16? And is the formula of the task a sum?",
    "Call it on a row of zeros that requires grad, and look at the gradient. What is the slope of "
    "sqrt at 0?",
)
