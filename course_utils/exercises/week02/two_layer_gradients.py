"""The chain rule by hand, through two layers."""

import torch
from torch.autograd import functional

from course_utils.exercise import exercise


@exercise(
    objectives=("autograd.chain_rule",),
    forbids=(
        torch.Tensor.backward,
        torch.Tensor.requires_grad_,
        torch.autograd.backward,
        torch.autograd.grad,
        functional.jacobian,
        functional.vjp,
        functional.jvp,
        torch.func.grad,
        torch.func.grad_and_value,
        torch.func.vjp,
        torch.func.jvp,
        torch.func.jacrev,
        torch.func.jacfwd,
        torch.func.linearize,
    ),
)
def two_layer_gradients(
    x: torch.Tensor,
    w1: torch.Tensor,
    b1: torch.Tensor,
    w2: torch.Tensor,
    b2: torch.Tensor,
    target: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients (d_w1, d_b1, d_w2, d_b2) of a mean squared error, written out by hand.

    The prediction is y = relu(x w1ᵀ + b1) w2ᵀ + b2, and the loss is the mean of (y - target)**2
    over all N*K elements.

    x is (N, D), w1 (H, D), b1 (H,), w2 (K, H), b2 (K,) and target (N, K), all float32 or all
    float64; no tensor requires grad. The derivative of relu at exactly 0 is 0. Each result has the
    shape of its parameter. The inputs are not modified.
    """
    pre = x @ w1.T + b1
    hidden = pre.clamp(min=0)
    y = hidden @ w2.T + b2
    d_y = 2 * (y - target) / y.numel()
    d_pre = (d_y @ w2) * (pre > 0)
    return d_pre.T @ x, d_pre.sum(dim=0), d_y.T @ hidden, d_y.sum(dim=0)


def problem(draw, n, d, h, k, dtype=torch.float32):
    """x, w1, b1, w2, b2, target of these sizes, the target well away from the prediction."""
    shapes = ((n, d), (h, d), (h,), (k, h), (k,), (n, k))
    inputs = [draw.normal(*shape, dtype=dtype) for shape in shapes]
    inputs[2][0] += 5  # one hidden unit is on, so that there is something to see
    inputs[5] *= 4
    return inputs


@two_layer_gradients.case
def two_problems_of_the_same_size_with_a_single_row(implementation, draw):
    sizes = draw.sizes(3)
    return [implementation(*problem(draw, 1, *sizes)) for _ in "ab"]


@two_layer_gradients.case
def a_single_output(implementation, draw):
    return implementation(*problem(draw, *draw.sizes(3), 1))


@two_layer_gradients.case
def as_many_hidden_units_as_inputs_and_outputs(implementation, draw):
    rows, width = draw.sizes(2)
    return implementation(*problem(draw, rows, width, width, width))


@two_layer_gradients.case
def a_hidden_unit_at_exactly_zero(implementation, draw):
    inputs = problem(draw, *draw.sizes(4))
    _, w1, b1, w2, _, _ = inputs
    unit = draw.whole(1, len(b1) - 1)
    w1[unit], b1[unit] = 0, 0
    w2[:, unit] += 3
    return implementation(*inputs)


@two_layer_gradients.case
def float64_and_a_transposed_x(implementation, draw):
    n, d, h, k = draw.sizes(4)
    inputs = problem(draw, n, d, h, k, torch.float64)
    inputs[0] = draw.normal(d, n, dtype=torch.float64).T
    return implementation(*inputs)


@two_layer_gradients.misconception(
    "The loss is a mean: each residual counts 1/(N·K). Your gradients are too large by that factor."
)
def no_mean(x, w1, b1, w2, b2, target):
    return tuple(
        g * target.numel() for g in two_layer_gradients.reference(x, w1, b1, w2, b2, target)
    )


@two_layer_gradients.misconception(
    "You divided by N, but the mean runs over the K outputs as well."
)
def batch_mean_only(x, w1, b1, w2, b2, target):
    return tuple(
        g * target.shape[1] for g in two_layer_gradients.reference(x, w1, b1, w2, b2, target)
    )


@two_layer_gradients.misconception("You divided by K, but the mean runs over the N rows as well.")
def output_mean_only(x, w1, b1, w2, b2, target):
    return tuple(g * len(x) for g in two_layer_gradients.reference(x, w1, b1, w2, b2, target))


@two_layer_gradients.misconception(
    "The square brings down a factor of 2, and yours is gone: all gradients are half of what they"
    " should be."
)
def forgets_the_two(x, w1, b1, w2, b2, target):
    return tuple(g / 2 for g in two_layer_gradients.reference(x, w1, b1, w2, b2, target))


@two_layer_gradients.misconception(
    "Your gradients point the other way. The residual is y - target; with the difference turned "
    "around a step against the gradient makes the loss larger."
)
def residual_turned_around(x, w1, b1, w2, b2, target):
    return tuple(-g for g in two_layer_gradients.reference(x, w1, b1, w2, b2, target))


@two_layer_gradients.misconception(
    "A unit that was off passes nothing back: the gradient has to be masked where the "
    "pre-activation is not positive."
)
def no_relu_mask(x, w1, b1, w2, b2, target):
    hidden = (x @ w1.T + b1).relu()
    d_y = 2 * (hidden @ w2.T + b2 - target) / target.numel()
    d_pre = d_y @ w2
    return d_pre.T @ x, d_pre.sum(0), d_y.T @ hidden, d_y.sum(0)


@two_layer_gradients.misconception(
    "You applied relu to the gradient: negative gradients were dropped and units that were off "
    "let the positive ones pass. What decides is the sign of the pre-activation, in the forward "
    "pass."
)
def relu_of_the_gradient(x, w1, b1, w2, b2, target):
    hidden = (x @ w1.T + b1).relu()
    d_y = 2 * (hidden @ w2.T + b2 - target) / target.numel()
    d_pre = (d_y @ w2).relu()
    return d_pre.T @ x, d_pre.sum(0), d_y.T @ hidden, d_y.sum(0)


@two_layer_gradients.misconception(
    "A unit whose pre-activation is exactly 0 passed its gradient on. At 0 the derivative of relu"
    " counts as 0, so the mask needs > and not >=."
)
def passes_at_zero(x, w1, b1, w2, b2, target):
    pre = x @ w1.T + b1
    hidden = pre.relu()
    d_y = 2 * (hidden @ w2.T + b2 - target) / target.numel()
    d_pre = (d_y @ w2) * (pre >= 0)
    return d_pre.T @ x, d_pre.sum(0), d_y.T @ hidden, d_y.sum(0)


@two_layer_gradients.misconception(
    "Each gradient must have the shape of its parameter: output index first, input index second. "
    "Yours for the weights are transposed, which goes unnoticed when a layer is square."
)
def transposed_weights(x, w1, b1, w2, b2, target):
    d_w1, d_b1, d_w2, d_b2 = two_layer_gradients.reference(x, w1, b1, w2, b2, target)
    return d_w1.T, d_b1, d_w2.T, d_b2


@two_layer_gradients.misconception(
    "A bias is used by every row, so its gradient is the sum over rows. The 1/N of the mean is in"
    " the residual already; you divided by it twice."
)
def bias_mean(x, w1, b1, w2, b2, target):
    d_w1, d_b1, d_w2, d_b2 = two_layer_gradients.reference(x, w1, b1, w2, b2, target)
    return d_w1, d_b1 / len(x), d_w2, d_b2 / len(x)


@two_layer_gradients.misconception(
    "The gradients of the biases have a row too many: (1, H) is not the shape of b1."
)
def bias_keeps_a_dimension(x, w1, b1, w2, b2, target):
    d_w1, d_b1, d_w2, d_b2 = two_layer_gradients.reference(x, w1, b1, w2, b2, target)
    return d_w1, d_b1[None], d_w2, d_b2[None]


@two_layer_gradients.misconception(
    "For w2 you used the values before relu. What w2 multiplied in the forward pass was the "
    "output of relu."
)
def values_before_relu(x, w1, b1, w2, b2, target):
    pre = x @ w1.T + b1
    d_y = 2 * (pre.relu() @ w2.T + b2 - target) / target.numel()
    d_pre = (d_y @ w2) * (pre > 0)
    return d_pre.T @ x, d_pre.sum(0), d_y.T @ pre, d_y.sum(0)


@two_layer_gradients.misconception(
    "You computed the residual inside the caller's target: an operation whose name ends in an "
    "underscore, or -=, changed it. Make a new tensor."
)
def edits_target(x, w1, b1, w2, b2, target):
    results = two_layer_gradients.reference(x, w1, b1, w2, b2, target)
    target -= (x @ w1.T + b1).relu() @ w2.T + b2
    return results


two_layer_gradients.hints(
    "Start from the end: what is the derivative of the loss for one entry of y?",
    "Which tensor multiplied w2 in the forward pass? Which one multiplied w1?",
    "Write the shape beside every line; a product that does not fit tells you which side to "
    "transpose. Then compare with autograd in a cell of its own.",
)
