"""A loss that is made of a gradient, and has to be differentiable itself."""

from collections.abc import Callable

import torch

from course_utils.cases import gradients
from course_utils.exercise import exercise


@exercise(objectives=("autograd.higher_order", "autograd.vjp"))
def gradient_penalty(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Mean over rows of (||d f(x_i) / d x_i||_2 - 1)**2, differentiable in the parameters of `f`.

    `f` treats rows independently and maps (N, D), with N >= 1, to (N,) or (N, 1). `x` may be plain
    data, may require grad, and may be the result of other operations. Return a scalar.

    requires_grad and .grad of `x` and the .grad of the parameters stay untouched, and the penalty
    has no gradient path to `x`. A row where the slope is zero contributes exactly 1, and a gradient
    of zero (not NaN) to the parameters.
    """
    points = x.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(f(points).sum(), points, create_graph=True)
    return ((torch.linalg.vector_norm(slopes, dim=1) - 1) ** 2).mean()


def make_critic(draw, inputs, dtype=torch.float32, column=False):
    """A small network from (N, inputs) to (N,) or (N, 1), and its parameters."""
    hidden = draw.whole(2, 4)
    w1 = draw.normal(hidden, inputs, dtype=dtype, requires_grad=True)
    b1 = draw.normal(hidden, dtype=dtype, requires_grad=True)
    w2 = draw.normal(hidden, dtype=dtype, requires_grad=True)

    def f(x):
        y = torch.tanh(x @ w1.T + b1) @ w2
        return y[:, None] if column else y

    return f, [w1, b1, w2]


@gradient_penalty.case
def several_rows_and_a_flat_result(implementation, draw):
    inputs = draw.whole(2, 3)
    f, parameters = make_critic(draw, inputs)
    penalty = implementation(f, draw.normal(4, inputs))
    return {
        "penalty": penalty,
        "its gradients": gradients(penalty, parameters),
        "grads of the parameters": [p.grad for p in parameters],
    }


@gradient_penalty.case
def a_column_as_result_in_float64(implementation, draw):
    inputs = draw.whole(2, 3)
    f, parameters = make_critic(draw, inputs, torch.float64, column=True)
    penalty = implementation(f, draw.normal(5, inputs, dtype=torch.float64))
    return {"penalty": penalty, "its gradients": gradients(penalty, parameters)}


@gradient_penalty.case
def a_single_row_that_requires_grad(implementation, draw):
    inputs = draw.whole(2, 3)
    f, parameters = make_critic(draw, inputs, column=draw.choice((False, True)))
    parameters[0].grad = before = draw.normal(*parameters[0].shape)
    x = draw.normal(1, inputs, requires_grad=True)
    penalty = implementation(f, x)
    return {
        "penalty": penalty,
        "its gradients": gradients(penalty, [*parameters, x]),
        "x.grad": x.grad,
        "a parameter's grad": before,
    }


@gradient_penalty.case
def a_single_column_that_was_computed(implementation, draw):
    f, parameters = make_critic(draw, 1)
    source = draw.normal(5, 1, requires_grad=True)
    x = source * 1.5
    penalty = implementation(f, x)
    return {
        "penalty": penalty,
        "its gradients, also for x and what made x": gradients(penalty, [*parameters, x, source]),
        "grad of what made x": source.grad,
    }


@gradient_penalty.case
def rows_without_slope(implementation, draw):
    # relu of numbers below zero: the first rows have slope exactly 0. The other rows have a slope
    # that a hasty test might take for none.
    side = draw.tensor([[-1.0], [-1.0], [1.0], [1.0]], dtype=torch.float64)
    slopes = {
        "entries that cancel": [1.0, -2.0, 1.0],
        "an entry of zero": [1.0, -3.0, 0.0],
        "a very small slope": [1e-9, -3e-9, 1e-9],
    }
    seen = {}
    for name, slope in slopes.items():
        weight = draw.number(1.5, 2.5) * draw.tensor(slope, dtype=torch.float64)
        x = draw.uniform(4, 3, low=0.1, high=1, dtype=torch.float64) * side * weight.sign()
        weight.requires_grad_()
        penalty = implementation(lambda points, w=weight: torch.relu(points @ w), x)
        seen[f"{name}: penalty"] = penalty
        seen[f"{name}: its gradient"] = gradients(penalty, weight)
    return seen


@gradient_penalty.case
def weights_that_are_all_zero(implementation, draw):
    weight = torch.zeros(3, dtype=torch.float64, device=draw.device, requires_grad=True)
    x = draw.normal(2, 3, dtype=torch.float64)
    penalty = implementation(lambda points: points @ weight, x)
    return {"penalty": penalty, "its gradient": gradients(penalty, weight)}


def slopes_of(f, x, **options):
    """The gradient of each row, for a leaf of its own."""
    points = x.detach().requires_grad_()
    options = {"create_graph": True} | options
    return torch.autograd.grad(f(points).sum(), points, **options)[0]


@gradient_penalty.misconception(
    "The penalty has no graph, so the parameters cannot learn from it. Either the slopes were "
    "never recorded: without create_graph they are constants, and retain_graph keeps only the "
    "graph of the forward pass. Or they were recorded and then cut, by detach or under no_grad."
)
def retain_graph(f, x):
    slopes = slopes_of(f, x, create_graph=False, retain_graph=True)
    return ((slopes.norm(dim=1) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "You took the slopes from the gradient's numbers: detach, data or a second leaf cut the "
    "penalty from the parameters, and switching requires_grad on does not bring them back."
)
def slopes_cut_off(f, x):
    slopes = slopes_of(f, x).detach().requires_grad_()
    return ((slopes.norm(dim=1) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "Differentiating the mean divides every slope by N. Rows are independent, so use the sum."
)
def mean_target(f, x):
    slopes = slopes_of(f, x) / len(x)
    return ((slopes.norm(dim=1) - 1) ** 2).mean()


@gradient_penalty.misconception("You took one norm over all rows. Each row has a slope of its own.")
def whole_batch_norm(f, x):
    return (slopes_of(f, x).norm() - 1) ** 2


@gradient_penalty.misconception(
    "Your norm runs down the columns, over the rows of the batch. The slope of a row has D entries."
)
def norm_over_the_batch(f, x):
    return ((slopes_of(f, x).norm(dim=0) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "You left out the root: the squared length of the slope is compared with 1."
)
def squared_norm(f, x):
    return (((slopes_of(f, x) ** 2).sum(dim=1) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "You compared each entry of the slope with 1, or added up sizes. What should be 1 is the "
    "Euclidean length of the whole row."
)
def sum_of_sizes(f, x):
    return ((slopes_of(f, x).abs().sum(dim=1) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "Your penalty pulls the slopes to 0. The difference from 1 is what is squared."
)
def target_zero(f, x):
    return (slopes_of(f, x).norm(dim=1) ** 2).mean()


@gradient_penalty.misconception(
    "You took the absolute difference from 1. It is the square that is asked for."
)
def absolute_difference(f, x):
    return (slopes_of(f, x).norm(dim=1) - 1).abs().mean()


@gradient_penalty.misconception(
    "Something small under the root, added or as a lower limit, makes the value at a zero slope "
    "0.999998 instead of 1. No epsilon is needed: there is a norm that knows this corner."
)
def epsilon_in_the_root(f, x):
    return ((((slopes_of(f, x) ** 2).sum(dim=1) + 1e-12).sqrt() - 1) ** 2).mean()


@gradient_penalty.misconception(
    "Something small under the root, added or as a lower limit, makes the value at a zero slope "
    "0.9998 instead of 1. No epsilon is needed: there is a norm that knows this corner."
)
def larger_epsilon_in_the_root(f, x):
    return ((((slopes_of(f, x) ** 2).sum(dim=1) + 1e-8).sqrt() - 1) ** 2).mean()


@gradient_penalty.misconception(
    "You punish slopes above 1 only. Here a slope below 1 counts as well, and no slope at all "
    "counts 1."
)
def one_sided(f, x):
    return ((slopes_of(f, x).norm(dim=1) - 1).clamp(min=0) ** 2).mean()


@gradient_penalty.misconception(
    "You left the rows without slope out. They contribute 1 each, and the mean runs over all N "
    "rows."
)
def drops_rows_without_slope(f, x):
    lengths = slopes_of(f, x).norm(dim=1)
    return ((lengths[lengths > 0] - 1) ** 2).mean()


@gradient_penalty.misconception(
    "You averaged the lengths first and compared the average with 1, so that long and short "
    "slopes cancel. Square each row's own difference, then take the mean."
)
def mean_before_square(f, x):
    return (slopes_of(f, x).norm(dim=1).mean() - 1) ** 2


@gradient_penalty.misconception(
    "You took rows with a small slope for rows without one, so that their parameters receive no "
    "gradient or too little of it. Only a slope of exactly zero is the special case."
)
def small_slopes_count_as_none(f, x):
    lengths = slopes_of(f, x).norm(dim=1)
    return ((torch.where(lengths < 1e-6, 0.0, lengths) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "You told rows without slope by the sum of the entries, and (1, -1) adds up to 0 as well. The "
    "slope is zero where all its entries are."
)
def no_slope_by_the_sum(f, x):
    slopes = slopes_of(f, x)
    return ((torch.where(slopes.sum(dim=1) == 0, 0.0, slopes.norm(dim=1)) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "You took one entry of zero for a row without slope. The slope is zero where all its entries "
    "are."
)
def no_slope_by_one_entry(f, x):
    slopes = slopes_of(f, x)
    return ((torch.where((slopes == 0).any(dim=1), 0.0, slopes.norm(dim=1)) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "squeeze() removes every dimension of size 1. When x has a single column, the rows became the "
    "last dimension, and the norm ran over all of them."
)
def squeezes_the_slopes(f, x):
    return ((slopes_of(f, x).squeeze().norm(dim=-1) - 1) ** 2).mean()


@gradient_penalty.misconception("You added the rows up. The penalty is their mean.")
def sum_over_rows(f, x):
    return ((slopes_of(f, x).norm(dim=1) - 1) ** 2).sum()


@gradient_penalty.misconception(
    "backward() wrote into the parameters' .grad. Ask for the gradient of x only."
)
def fills_grad(f, x):
    points = x.detach().requires_grad_()
    f(points).sum().backward(create_graph=True)
    return ((points.grad.norm(dim=1) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "You switched on requires_grad of the caller's tensor. Use a leaf of your own."
)
def flags_input(f, x):
    if not x.requires_grad:
        x.requires_grad_()
    return gradient_penalty.reference(f, x)


@gradient_penalty.misconception(
    "When x already requires grad you used it as it is, so the penalty has a gradient for x and "
    "for whatever made x. Always cut it off first."
)
def path_to_x(f, x):
    points = x if x.requires_grad else x.detach().requires_grad_()
    (slopes,) = torch.autograd.grad(f(points).sum(), points, create_graph=True)
    return ((slopes.norm(dim=1) - 1) ** 2).mean()


@gradient_penalty.misconception(
    "The root has an infinite slope at 0, and infinity times 0 is NaN: a row without slope spoils"
    " every gradient. A norm function takes care of that; a root of your own needs help."
)
def root_at_zero(f, x):
    return (((slopes_of(f, x) ** 2).sum(dim=1).sqrt() - 1) ** 2).mean()


@gradient_penalty.misconception(
    "You handed grad a vector of N ones as incoming gradient. It has to have the shape of f's "
    "result, which may be (N, 1)."
)
def assumes_a_flat_result(f, x):
    points = x.detach().requires_grad_()
    ones = torch.ones(len(x), dtype=x.dtype, device=x.device)
    (slopes,) = torch.autograd.grad(f(points), points, ones, create_graph=True)
    return ((slopes.norm(dim=1) - 1) ** 2).mean()


gradient_penalty.hints(
    "Row i of x influences only entry i of f(x). What, then, is the gradient of the sum of all "
    "entries?",
    "The slopes must have a grad_fn themselves. Which flag records the backward pass?",
    "Test with weights that are all 0. Which way of taking a length has gradient 0 there, and not"
    " NaN?",
)
