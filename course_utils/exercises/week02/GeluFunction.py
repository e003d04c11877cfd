"""GELU with a backward of its own that can be differentiated again."""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise
from course_utils.exercises.week02._function_calls import two_calls


@exercise(
    objectives=("autograd.custom_function", "autograd.higher_order"),
    forbids=(F.gelu, torch.ops.aten.gelu),
)
class GeluFunction(torch.autograd.Function):
    """x * Phi(x), used as GeluFunction.apply(x).

    Phi is the exact distribution function of the standard normal distribution; for it, torch.erf is
    at hand. x is float32 or float64 and of any shape; the result has its shape and dtype.

    Backward is exact for any grad_output and can be differentiated once more: with
    create_graph=True the second derivative is right as well.

    Calls share nothing: several may run before the first backward. When x is edited in place after
    forward, backward is right or raises, and never goes by the new values. Neither x nor
    grad_output is modified.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        below = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return grad_output * (below + x * density)


def places(draw, dtype):
    """A few places on both sides: near ±6 and ±2.7, 0, and two at random."""
    fixed = draw.tensor([-6.0, -2.7, 0.0, 2.7, 6.0], dtype=dtype)
    near = fixed * draw.uniform(5, low=0.95, high=1.0, dtype=dtype)
    return torch.cat([near, draw.normal(2, dtype=dtype)])[draw.permutation(7)]


def second(output, x, weight):
    """Gradient of the weighted sum of the gradient of a scalar, or the error on the way."""
    (slope,) = torch.autograd.grad(output, x, create_graph=True)
    return attempt(gradients, (slope * weight).sum(), x)


@GeluFunction.case
def float32_on_both_sides(implementation, draw):
    x = places(draw, torch.float32).requires_grad_()
    upstream = 3 * draw.normal(7)
    y = implementation.apply(x)
    found = gradients(y, x, upstream)
    return {"value": y, "gradient": found, "grad_output afterwards": upstream}


@GeluFunction.case(tolerance=(1e-12, 1e-13))
def float64_and_a_transposed_input(implementation, draw):
    rows = draw.whole(2, 4)
    scale = draw.uniform(rows, 1, low=0.95, high=1, dtype=torch.float64)
    x = (scale * places(draw, torch.float64)).T.requires_grad_()
    y = implementation.apply(x)
    return {"value": y, "gradient": gradients(y, x, draw.normal(7, rows, dtype=torch.float64))}


@GeluFunction.case
def second_derivative_of_a_weighted_sum_of_squares(implementation, draw):
    # The square makes grad_output depend on x, so that both factors of backward count.
    x, inner, outer = draw.normal(3, 5, dtype=torch.float64)
    x = (2 * x).requires_grad_()
    y = implementation.apply(x)
    return second((y * y * inner).sum(), x, outer)


@GeluFunction.case
def two_calls_before_one_backward(implementation, draw):
    return two_calls(implementation.apply, *draw.normal(3, 2))


@GeluFunction.case
def what_gradcheck_says(implementation, draw):
    x = draw.normal(1, dtype=torch.float64, requires_grad=True)
    return attempt(torch.autograd.gradcheck, implementation.apply, (x,), check_undefined_grad=False)


def distribution(x):
    """Phi."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def density(x):
    """The derivative of Phi."""
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


class Saves(torch.autograd.Function):
    """What the wrong answers have in common: value and derivative as they should be."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * distribution(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (distribution(x) + x * density(x))


@GeluFunction.misconception(
    "This is the tanh approximation. It is off by up to 4.7e-4, and its derivative is not the "
    "exact one's."
)
class tanh_approximation(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        t = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
        return grad_output * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * inner)


@GeluFunction.misconception(
    "This is x · sigmoid(1.702 x), a rough approximation of GELU: off by up to 2e-2. The exact "
    "one is made of erf."
)
class sigmoid_approximation(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(1.702 * x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(1.702 * x)
        return grad_output * (s + 1.702 * x * s * (1 - s))


@GeluFunction.misconception(
    "x appears twice in x · Phi(x): besides Phi(x), the product rule brings x times the density."
)
class product_rule(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * distribution(x)


@GeluFunction.misconception(
    "You have x times the density and lost the other half: the product rule also brings Phi(x)."
)
class only_the_density(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * x * density(x)


@GeluFunction.misconception(
    "The density of the normal distribution has the factor 1/√(2π). Without it Phi would not end "
    "at 1."
)
class density_not_normalized(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (distribution(x) + x * torch.exp(-x * x / 2))


@GeluFunction.misconception("The exponent of the density is -x²/2; you left out the half.")
class exponent_without_half(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (distribution(x) + x * torch.exp(-x * x) / math.sqrt(2 * math.pi))


@GeluFunction.misconception(
    "Backward receives a gradient from above. The local slope alone is right only for a plain sum."
)
class ignores_incoming(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return distribution(x) + x * density(x)


@GeluFunction.misconception(
    "Phi(x) was computed in forward and saved. For autograd it is a constant, so the second "
    "derivative misses it; recompute it from x in backward."
)
class saved_phi(Saves):
    @staticmethod
    def forward(ctx, x):
        phi = distribution(x)
        ctx.save_for_backward(x, phi)
        return x * phi

    @staticmethod
    def backward(ctx, grad_output):
        x, phi = ctx.saved_tensors
        return grad_output * (phi + x * density(x))


@GeluFunction.misconception(
    "The slope was computed in forward and saved, or made of values without their history. For "
    "autograd it is a constant, so the second derivative misses it; recompute it from x in "
    "backward."
)
class saved_intermediate(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(distribution(x) + x * density(x))
        return x * distribution(x)

    @staticmethod
    def backward(ctx, grad_output):
        (slope,) = ctx.saved_tensors
        return grad_output * slope


@GeluFunction.misconception(
    "Backward is cut off from the graph: under no_grad, or behind detach, item or NumPy, nothing "
    "is recorded, and there is no second derivative to be had."
)
class backward_not_recorded(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return grad_output * (distribution(x) + x * density(x))


@GeluFunction.misconception(
    "once_differentiable makes a second derivative an error. Your backward consists of "
    "differentiable operations, so it needs no such guard."
)
class differentiable_only_once(Saves):
    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (distribution(x) + x * density(x))


@GeluFunction.misconception(
    "You cut grad_output from its graph. It may depend on x as well, and then the second "
    "derivative misses that part."
)
class incoming_detached(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output.detach() * (distribution(x) + x * density(x))


@GeluFunction.misconception("Phi(x) uses erf(x / √2); you gave erf the plain x.")
class missing_root_two(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 0.5 * (1 + torch.erf(x))

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (0.5 * (1 + torch.erf(x)) + x * torch.exp(-x * x) / math.sqrt(math.pi))


@GeluFunction.misconception(
    "You multiplied grad_output in place. That tensor belongs to somebody else, who may still use"
    " it; make a new one."
)
class edits_grad_output(Saves):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        slope = distribution(x) + x * density(x)
        return grad_output * slope if torch.is_grad_enabled() else grad_output.mul_(slope)


@GeluFunction.misconception(
    "You computed in float32. A float64 input must give float64, with its precision."
)
class computes_in_float32(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x * distribution(x)).float().to(x.dtype)


@GeluFunction.misconception(
    "What backward needs lies outside of ctx, on the class or in a global, so a second forward "
    "overwrites it before the first backward has run. Keep it on the ctx of the call."
)
class state_outside_ctx(Saves):
    latest = None

    @staticmethod
    def forward(ctx, x):
        state_outside_ctx.latest = x.detach().clone()
        return x * distribution(x)

    @staticmethod
    def backward(ctx, grad_output):
        x = state_outside_ctx.latest
        return grad_output * (distribution(x) + x * density(x))


@GeluFunction.misconception(
    "x hangs on ctx as a plain attribute, or was saved through .data. When somebody edits it in "
    "place before backward, nobody notices and the gradient is silently wrong. Tensors from "
    "forward belong where their version is checked."
)
class x_as_a_plain_attribute(Saves):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x * distribution(x)

    @staticmethod
    def backward(ctx, grad_output):
        x = ctx.x
        return grad_output * (distribution(x) + x * density(x))


@GeluFunction.misconception(
    "Your forward is the tanh approximation, off by up to 4.7e-4, and your backward belongs to the "
    "exact function. The exact one is made of erf."
)
class tanh_in_forward_only(Saves):
    @staticmethod
    def forward(ctx, x):
        return tanh_approximation.forward(ctx, x)


@GeluFunction.misconception(
    "Your backward is right, but in forward you gave erf the plain x: Phi(x) uses erf(x / √2)."
)
class missing_root_two_in_forward(Saves):
    @staticmethod
    def forward(ctx, x):
        return missing_root_two.forward(ctx, x)


GeluFunction.hints(
    "Save x, and only x: everything else can be computed from it again.",
    "x · Phi(x) is a product. The derivative of Phi is the density of the normal distribution.",
    "Write backward with differentiable operations of x and grad_output. Then autograd can go "
    "through it a second time.",
)
