"""A step whose backward pretends that it was the identity."""

import torch

from course_utils.cases import gradients
from course_utils.exercise import exercise
from course_utils.exercises.week02._function_calls import two_calls


@exercise(objectives=("autograd.surrogate_gradients", "autograd.custom_function"))
class StraightThroughSign(torch.autograd.Function):
    """The sign of x with a straight-through gradient, used as StraightThroughSign.apply(x).

    Forward: +1 where x >= 0 (also at 0), -1 elsewhere, in the shape and dtype of x, which is
    floating point and has no NaN.
    Backward: grad_output where |x| <= 1 (both ends included), exactly 0 elsewhere. grad_output is
    finite and has the shape of x.

    Calls share nothing: several may run before the first backward. When x is edited in place after
    forward, backward is right or raises, and never goes by the new values. Neither x nor
    grad_output is modified.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad_output * (x.abs() <= 1)


def forth_and_back(implementation, x, upstream):
    """Value and gradient, and the incoming gradient as it is afterwards."""
    y = implementation.apply(x)
    return {
        "value": y,
        "gradient": gradients(y, x, upstream),
        "grad_output afterwards": upstream,
    }


@StraightThroughSign.case
def random_values_and_large_incoming_gradients(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    x = (1.5 * draw.normal(rows, columns)).requires_grad_()
    return forth_and_back(implementation, x, 5 * draw.normal(rows, columns))


@StraightThroughSign.case
def zero_the_ends_and_just_outside(implementation, draw):
    x = draw.tensor([0.0, -0.0, 1.0, -1.0, 1.0001, -1.0001, 1e-30, -1e-30, 1e4, -1e4])
    x = x[draw.permutation(10)].requires_grad_()
    return forth_and_back(implementation, x, draw.uniform(10, low=0.3, high=3.0))


@StraightThroughSign.case
def float64(implementation, draw):
    inside_and_outside = [1 - 1e-12, 1 + 1e-12, -1 + 1e-12, -1 - 1e-12, 1.0, -1e-300]
    x = draw.tensor(inside_and_outside, dtype=torch.float64)
    x = x[draw.permutation(6)].requires_grad_()
    return forth_and_back(implementation, x, -2 - draw.uniform(6, dtype=torch.float64))


@StraightThroughSign.case
def a_transposed_input(implementation, draw):
    rows, columns, depth = draw.sizes(3, high=4)
    x = draw.normal(rows, columns, depth).permute(2, 0, 1).requires_grad_()
    return forth_and_back(implementation, x, 3 * draw.normal(columns, depth, rows).permute(1, 2, 0))


@StraightThroughSign.case
def two_calls_before_one_backward(implementation, draw):
    inside, outside = draw.uniform(3, low=-1, high=1), draw.uniform(3, low=1.1, high=2)
    return two_calls(implementation.apply, inside, outside, draw.normal(3))


@StraightThroughSign.case
def between_other_operations(implementation, draw):
    weight, x = draw.normal(4, requires_grad=True), draw.uniform(4, low=-2, high=2)
    loss = (implementation.apply(weight * x) - 3) ** 2
    return gradients(loss.sum(), weight)


def signs(x):
    """The forward pass."""
    return StraightThroughSign.reference.apply(x.detach())


class Saves(torch.autograd.Function):
    """What the wrong answers have in common: the forward pass, with x saved."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return signs(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x.abs() <= 1)


@StraightThroughSign.misconception(
    "Every gradient passes. Inputs far from the threshold still receive gradient and keep "
    "growing; block it where |x| > 1. If you did mask: by x itself, not by the output, which is "
    "always ±1."
)
class unmasked(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.clone()


@StraightThroughSign.misconception(
    "Clamping changes how large the gradient is. The straight-through estimator leaves its size "
    "alone and decides by the input whether it passes."
)
class clamps_gradient(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.clamp(-1, 1)


@StraightThroughSign.misconception(
    "You masked by the size of the incoming gradient. It is the input x that decides where the "
    "gradient passes, so x has to be remembered."
)
class masks_by_gradient(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * (grad_output.abs() <= 1)


@StraightThroughSign.misconception(
    "You masked and clamped. Where |x| <= 1 the gradient passes at its full size, also beyond ±1."
)
class masks_and_clamps(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output.clamp(-1, 1) * (x.abs() <= 1)


@StraightThroughSign.misconception(
    "sign(0) is 0, a third value. The output must be -1 or +1, and at 0 it is +1."
)
class sign_zero(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()


@StraightThroughSign.misconception(
    "At 0 your output is -1; there it is +1. That goes for -0.0 as well, which equals 0."
)
class minus_at_zero(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


@StraightThroughSign.misconception(
    "Your output is 0 where it should be -1: a comparison gives 0 and 1, and still has to be "
    "stretched and shifted."
)
class zero_or_one(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)


@StraightThroughSign.misconception(
    "float() means float32, and so do plain numbers in torch.where. A float64 input must give "
    "float64."
)
class dtype_lost(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return signs(x).float()


@StraightThroughSign.misconception(
    "The true derivative is 0 everywhere; then nothing upstream learns. The estimator pretends "
    "the step was the identity."
)
class true_derivative(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        return torch.zeros_like(grad_output)


@StraightThroughSign.misconception(
    "The ends belong to the range: at x = 1 and x = -1 the gradient passes, so the mask needs <= "
    "and not <."
)
class ends_excluded(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x.abs() < 1)


@StraightThroughSign.misconception(
    "Your mask has a margin, so that the gradient passes just outside of the ends as well. 1 and "
    "-1 are exact numbers in every floating dtype, and the comparison can be exact too."
)
class ends_with_a_margin(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x.abs() <= 1 + 1e-6)


@StraightThroughSign.misconception(
    "Your mask looks at one side only: inputs below -1 still receive gradient. It is the size of "
    "x that counts."
)
class one_sided_mask(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x <= 1)


@StraightThroughSign.misconception(
    "You returned the mask. Backward receives a gradient from above, and the mask decides where "
    "that passes."
)
class ignores_incoming(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return (x.abs() <= 1).to(x.dtype)


@StraightThroughSign.misconception(
    "You multiplied the gradient by the output ±1 as well, which turns it around for negative "
    "inputs. The identity passes it with its sign."
)
class flips_the_sign(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x.abs() <= 1) * signs(x)


@StraightThroughSign.misconception(
    "You wrote zeros into grad_output itself. That tensor belongs to somebody else, who may still"
    " use it; make a new one."
)
class edits_grad_output(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        grad_output[x.abs() > 1] = 0
        return grad_output


@StraightThroughSign.misconception(
    "You wrote the signs into x itself, and the caller's numbers are gone. Make a new tensor."
)
class edits_x(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        result = signs(x)
        x.copy_(result)
        return result


@StraightThroughSign.misconception(
    "What backward needs lies outside of ctx, on the class or in a global, so a second forward "
    "overwrites it before the first backward has run. Keep it on the ctx of the call."
)
class state_outside_ctx(Saves):
    latest = None

    @staticmethod
    def forward(ctx, x):
        state_outside_ctx.latest = x.detach().clone()
        return signs(x)

    @staticmethod
    def backward(ctx, grad_output):
        x = state_outside_ctx.latest
        return grad_output * (x.abs() <= 1)


@StraightThroughSign.misconception(
    "x hangs on ctx as a plain attribute, or was saved through .data. When somebody edits it in "
    "place before backward, nobody notices and the gradient is silently wrong. Tensors from "
    "forward belong where their version is checked."
)
class x_as_a_plain_attribute(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return signs(x)

    @staticmethod
    def backward(ctx, grad_output):
        x = ctx.x
        return grad_output * (x.abs() <= 1)


StraightThroughSign.hints(
    "What must backward know about the forward pass, and how does it get there?",
    "The backward pass multiplies by something that is 1 or 0 for each element.",
    "Try an incoming gradient of 5 at x = 0.5, and then at x = -3. What should come back?",
)
