"""A logarithm of a sigmoid whose value and gradient are right at every size of input."""

import torch
import torch.nn.functional as F

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise
from course_utils.exercises.week02._function_calls import two_calls


@exercise(
    objectives=("autograd.stable_gradients", "autograd.custom_function"),
    forbids=(
        F.logsigmoid,
        F.softplus,
        F.binary_cross_entropy_with_logits,
        torch.binary_cross_entropy_with_logits,
        F.soft_margin_loss,
    ),
)
class StableLogSigmoid(torch.autograd.Function):
    """log(1 / (1 + exp(-x))), used as StableLogSigmoid.apply(x).

    Forward: finite for |x| up to 1e4, with a relative error below 1e-4 wherever the value is a
    normal number, also where it is tiny (at large x). x is float32 or float64, of any shape and
    strides; the result has its shape and dtype.
    Backward: grad_output times the exact derivative, with a relative error below 1e-4 wherever the
    derivative is a normal number. At x = 20 in float32 it is 2.06e-9. (A normal number is one that
    is not so tiny that digits are lost: in float32 above 1.2e-38, in float64 above 2.2e-308.)

    Calls share nothing: several may run before the first backward. When x is edited in place after
    forward, backward is right or raises, and never goes by the new values. Neither x nor
    grad_output is modified.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.clamp(max=0) - torch.log1p(torch.exp(-x.abs()))

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(-x)


def logarithm(seen):
    """The logarithm of a tensor's size, in float64: equal distances are equal relative errors."""
    return seen.detach().double().abs().log()


def forth_and_back(implementation, x, upstream):
    """Value and gradient, relatively; and the incoming gradient as it is afterwards."""
    y = implementation.apply(x)
    found = gradients(y, x, upstream)
    slopes = found if isinstance(found, str) else attempt(lambda: logarithm(found[0] / upstream))
    return {
        "dtype of the value": str(y.dtype),
        "log of -value": logarithm(y),
        "sign of the value": y.detach().sign(),
        "log of the derivative": slopes,
        "sign of the gradient": found
        if isinstance(found, str)
        else attempt(lambda: found[0].sign()),
        "grad_output afterwards": upstream,
    }


def incoming(draw, *shape, dtype=torch.float32):
    """Gradients of both signs, none of them near 0."""
    size = draw.uniform(*shape, low=0.5, high=4, dtype=dtype)
    return size * (1 - 2 * draw.integers(0, 1, *shape))


RELATIVE = (0.0, 1e-4)


@StableLogSigmoid.case(tolerance=RELATIVE)
def from_far_below_zero_to_far_above(implementation, draw):
    places = draw.tensor([-1e4, -200.0, -90.0, -20.0, -6.0, 0.0, 12.0, 20.0, 30.0, 60.0, 80.0, 1e4])
    x = (places * draw.uniform(12, low=0.9, high=1.0))[draw.permutation(12)].requires_grad_()
    return forth_and_back(implementation, x, incoming(draw, 12))


@StableLogSigmoid.case(tolerance=RELATIVE)
def far_out_in_float64(implementation, draw):
    places = draw.tensor([-1e4, -700.0, 40.0, 300.0, 700.0], dtype=torch.float64)
    x = places * draw.uniform(5, low=0.9, high=1.0, dtype=torch.float64)
    upstream = incoming(draw, 5, dtype=torch.float64)
    return forth_and_back(implementation, x.requires_grad_(), upstream)


@StableLogSigmoid.case
def a_transposed_input(implementation, draw):
    rows, columns, depth = draw.sizes(3, high=4)
    x = (2 * draw.normal(rows, columns, depth)).permute(2, 0, 1).requires_grad_()
    y = implementation.apply(x)
    return [y, gradients(y, x, incoming(draw, columns, depth, rows).permute(1, 2, 0))]


@StableLogSigmoid.case
def two_calls_before_one_backward(implementation, draw):
    return two_calls(implementation.apply, *draw.normal(3, 2))


@StableLogSigmoid.case
def what_gradcheck_says(implementation, draw):
    x = draw.normal(1, dtype=torch.float64, requires_grad=True)
    return attempt(torch.autograd.gradcheck, implementation.apply, (x,), check_undefined_grad=False)


class Saves(torch.autograd.Function):
    """What the wrong answers have in common: value and derivative as they should be."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(max=0) - torch.log1p(torch.exp(-x.abs()))

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(-x)


@StableLogSigmoid.misconception(
    "sigmoid underflows to 0 for very negative x, and the log of that is -inf; for large x it is "
    "1 and all that made the value differ from 0 is lost. Never form the sigmoid on the way."
)
class log_of_sigmoid(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.log(torch.sigmoid(x))


@StableLogSigmoid.misconception(
    "Both halves go through sigmoid(x), which is 0 far below zero, where its logarithm is -inf, "
    "and 1 from about 17 on in float32, where log(sigmoid(x)) and 1 − sigmoid(x) are both exactly"
    " 0. Neither needs that sigmoid."
)
class sigmoid_on_both_ways(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.log(torch.sigmoid(x))

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (1 - torch.sigmoid(x))


@StableLogSigmoid.misconception(
    "You kept the logarithm from -inf by clamping or adding something small to the sigmoid. The "
    "value is finite now and wrong: at x = -200 it should be -200."
)
class adds_something_small(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.log(torch.sigmoid(x) + 1e-12)


@StableLogSigmoid.misconception(
    "1 − sigmoid(x) cancels: from about 17 on it is exactly 0 in float32. The derivative is "
    "another sigmoid, without a difference."
)
class one_minus_sigmoid(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (1 - torch.sigmoid(x))


@StableLogSigmoid.misconception(
    "Values are right, gradients NaN: you let autograd differentiate a torch.where, and it "
    "differentiates both branches. In the one not taken exp overflows, and 0 times inf is NaN."
)
class where_without_function(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = torch.where(x >= 0, -torch.log1p(torch.exp(-x)), x - torch.log1p(torch.exp(x)))
            return torch.autograd.grad(y, x, grad_output)[0]


@StableLogSigmoid.misconception(
    "exp overflows on one side of zero. Choose the form whose exponent is never positive."
)
class single_branch(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return -torch.log1p(torch.exp(-x))


@StableLogSigmoid.misconception(
    "The derivative comes out as inf divided by inf, which is NaN: exp overflows where its "
    "exponent is large and positive."
)
class derivative_overflows(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (torch.exp(-x) / (1 + torch.exp(-x)))


@StableLogSigmoid.misconception(
    "At large x your value is exactly 0, and should be small but not 0. Either 1 + exp(-|x|) or a "
    "sigmoid is rounded to 1 before its logarithm is taken (there is a logarithm made for numbers "
    "near 1), or two nearly equal numbers are subtracted, or a limit of yours sets the 0."
)
class log_without_log1p(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(max=0) - torch.log(1 + torch.exp(-x.abs()))


@StableLogSigmoid.misconception(
    "For negative x your value misses x itself: log1p(exp(-|x|)) is only what has to be taken "
    "away from the smaller of x and 0."
)
class forgets_x(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return -torch.log1p(torch.exp(-x.abs()))


@StableLogSigmoid.misconception(
    "The value has the wrong sign. A sigmoid is below 1, so its logarithm is negative."
)
class wrong_sign(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (-x).clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


@StableLogSigmoid.misconception(
    "Your derivative is sigmoid(x). It has to fall, from 1 far below zero to 0 far above."
)
class derivative_mirrored(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(x)


@StableLogSigmoid.misconception(
    "You returned the derivative of sigmoid. The function here is its logarithm."
)
class derivative_of_sigmoid(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(x) * torch.sigmoid(-x)


@StableLogSigmoid.misconception(
    "You returned the local derivative. Multiply by what arrives from above."
)
class ignores_incoming(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return torch.sigmoid(-x)


@StableLogSigmoid.misconception(
    "You clamped x to a range that exp can take. Outside of it the value no longer follows x."
)
class clamps_x(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        x = x.clamp(-85, 85)
        return -torch.log1p(torch.exp(-x))


@StableLogSigmoid.misconception(
    "You multiplied grad_output in place. That tensor belongs to somebody else, who may still use"
    " it; make a new one."
)
class edits_grad_output(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output.mul_(torch.sigmoid(-x))


@StableLogSigmoid.misconception(
    "You computed in float32. A float64 input must give a float64 result, with values float32 "
    "cannot hold."
)
class computes_in_float32(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x.clamp(max=0) - torch.log1p(torch.exp(-x.float().abs()))).to(x.dtype)


@StableLogSigmoid.misconception(
    "What backward needs lies outside of ctx, on the class or in a global, so a second forward "
    "overwrites it before the first backward has run. Keep it on the ctx of the call."
)
class state_outside_ctx(Saves):
    latest = None

    @staticmethod
    def forward(ctx, x):
        state_outside_ctx.latest = x.detach().clone()
        return Saves.forward(ctx, x)

    @staticmethod
    def backward(ctx, grad_output):
        x = state_outside_ctx.latest
        return grad_output * torch.sigmoid(-x)


@StableLogSigmoid.misconception(
    "x hangs on ctx as a plain attribute, or was saved through .data. When somebody edits it in "
    "place before backward, nobody notices and the gradient is silently wrong. Tensors from "
    "forward belong where their version is checked."
)
class x_as_a_plain_attribute(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return Saves.forward(ctx, x)

    @staticmethod
    def backward(ctx, grad_output):
        x = ctx.x
        return grad_output * torch.sigmoid(-x)


@StableLogSigmoid.misconception(
    "The gradient has the wrong sign. log(sigmoid(x)) rises everywhere, so its derivative is "
    "positive."
)
class derivative_with_wrong_sign(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return -grad_output * torch.sigmoid(-x)


@StableLogSigmoid.misconception(
    "Your derivative depends on the size of x alone. That is right on one side of zero; on the "
    "other it comes out near 0 where it should be near 1."
)
class derivative_of_the_size(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(-x.abs())


StableLogSigmoid.hints(
    "Which of exp(x) and exp(-x) overflows, and on which side of zero? exp(-|x|) never does, and "
    "log1p takes it well.",
    "Compare -log1p(exp(-|x|)) with the right value at x = -3. What has to be added for negative "
    "x?",
    "Differentiate log(1 / (1 + exp(-x))) on paper. What comes out can be written with one "
    "sigmoid and no difference.",
)
