"""A gradient from function values alone: central differences."""

from collections.abc import Callable

import torch
from torch.autograd import functional

from course_utils.exercise import exercise


@exercise(
    objectives=("autograd.numeric_check",),
    forbids=(
        torch.Tensor.backward,
        torch.autograd.backward,
        torch.autograd.grad,
        functional.jacobian,
        functional.hessian,
        functional.vjp,
        functional.jvp,
        functional.vhp,
        functional.hvp,
        torch.func.grad,
        torch.func.grad_and_value,
        torch.func.vjp,
        torch.func.jvp,
        torch.func.jacrev,
        torch.func.jacfwd,
        torch.func.hessian,
        torch.func.linearize,
    ),
)
def numerical_gradient(
    f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """Gradient of the scalar function `f` at `x`, measured by central differences.

    Entry k is (f(x + eps e_k) - f(x - eps e_k)) / (2 eps): coordinate k steps to both sides while
    all others stay where they are. `eps` is an absolute step, the same for every coordinate.

    `f` takes a float64 tensor of the shape of `x` and returns a 0-d tensor. Evaluate it in float64
    whatever the dtype of `x`. `f` may hand back a part of its argument, or the argument itself. `x`
    is floating point, of any shape including 0-d and empty, and of any strides; it may require
    grad. Return a tensor with the shape and dtype of `x`, without a graph. Neither the values of
    `x` nor its flags change.
    """
    point = x.detach().to(torch.float64)
    slopes = []
    for k in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=torch.float64, device=x.device)
        step[k] = eps
        step = step.reshape(x.shape)
        slopes.append((f(point + step) - f(point - step)).item() / (2 * eps))
    return torch.tensor(slopes, dtype=x.dtype, device=x.device).reshape(x.shape)


@numerical_gradient.case
def a_cubic_with_large_steps(implementation, draw):
    scale = draw.uniform(2, low=1, high=2, dtype=torch.float64)
    x = draw.uniform(2, low=2, high=6, dtype=torch.float64)

    def cubic(point):
        return (scale * point**3).sum()

    return [implementation(cubic, x, 0.1), implementation(cubic, x, eps=0.05)]


@numerical_gradient.case
def the_default_step_at_the_flat_point_of_a_cubic(implementation, draw):
    # The true slope is 0 here; what is left is scale * eps ** 2, which tells every step size apart.
    scale = 1e10 * draw.uniform(2, low=1, high=2, dtype=torch.float64)
    x = 300 * draw.normal(2, dtype=torch.float64)
    center = x.clone()

    def cubic(point):
        return (scale * (point - center) ** 3).sum()

    return implementation(cubic, x)


@numerical_gradient.case
def coordinates_that_influence_each_other(implementation, draw):
    rows, columns = draw.sizes(2, high=3)
    left = draw.normal(rows, dtype=torch.float64)
    right = draw.normal(columns, dtype=torch.float64)

    def f(point):
        return (left @ point).exp() @ right

    return implementation(f, draw.normal(rows, columns, dtype=torch.float64), 0.1)


@numerical_gradient.case
def a_float32_input(implementation, draw):
    scale = draw.number(1.0, 2.0)
    seen = set()

    def f(point):
        seen.add((str(point.dtype), tuple(point.shape)))
        return (scale * point).sin().sum() + 10

    # What f was given is observed too: its dtype and shape, not how often it was called.
    return [implementation(f, draw.normal(2, 1), 1e-5), sorted(seen)]


@numerical_gradient.case
def a_transposed_and_an_expanded_input(implementation, draw):
    rows, columns = draw.sizes(2, high=3)
    weight = draw.normal(columns, rows, dtype=torch.float64)

    def f(point):
        return (weight * point.exp()).sum()

    transposed = draw.normal(rows, columns, dtype=torch.float64).T
    expanded = draw.normal(1, dtype=torch.float64).expand(2)
    return [
        implementation(f, transposed, 0.1),
        implementation(lambda p: p[0] * p[1], expanded, 0.1),
    ]


@numerical_gradient.case
def a_tensor_without_dimensions(implementation, draw):
    return implementation(lambda point: point.exp(), draw.normal(dtype=torch.float64), 0.2)


@numerical_gradient.case
def a_tensor_without_entries(implementation, draw):
    return implementation(lambda point: point.sum(), draw.normal(0, 3), 0.1)


@numerical_gradient.case
def functions_that_hand_back_what_they_were_given(implementation, draw):
    row = draw.normal(3, dtype=torch.float64)
    return [
        implementation(lambda point: point[1], row, 0.1),
        implementation(lambda point: point, draw.normal(dtype=torch.float64), 0.1),
    ]


@numerical_gradient.case
def an_input_and_weights_that_require_grad(implementation, draw):
    weight = draw.normal(2, dtype=torch.float64, requires_grad=True)
    leaf = draw.normal(2, dtype=torch.float64, requires_grad=True)

    def f(point):
        return (weight * point**2).sum()

    results = [implementation(f, leaf, 0.1), implementation(f, leaf * 2, 0.1)]
    return {"results": results, "x.grad": leaf.grad, "the weight's grad": weight.grad}


def measured(f, x, eps, slope):
    """Gradient of slope(value, point, k), where value(point) is f of a flat point."""
    with torch.no_grad():
        start = x.detach().double().reshape(-1).clone()
        slopes = [slope(lambda flat: f(flat.reshape(x.shape)), start, k) for k in range(x.numel())]
        slopes = [float(slope) for slope in slopes]
        return torch.tensor(slopes, dtype=x.dtype, device=x.device).reshape(x.shape)


def stepped(point, k, step):
    """A copy of the flat point with coordinate k moved."""
    moved = point.clone()
    moved[k] += step
    return moved


@numerical_gradient.misconception(
    "You compared f(x + eps) with f(x). The error of that shrinks like eps; stepping to both "
    "sides makes it shrink like eps squared."
)
def forward_difference(f, x, eps=1e-5):
    return measured(
        f, x, eps, lambda value, point, k: (value(stepped(point, k, eps)) - value(point)) / eps
    )


@numerical_gradient.misconception(
    "The two points you compare lie 2 eps apart. Dividing by eps doubles every entry."
)
def divides_by_eps(f, x, eps=1e-5):
    return 2 * numerical_gradient.reference(f, x, eps)


@numerical_gradient.misconception(
    "You stepped all coordinates together. That measures the slope in one direction, the sum of "
    "what you are after; move one coordinate at a time and leave the others where they are."
)
def moves_all(f, x, eps=1e-5):
    point = x.detach().double()
    slope = (f(point + eps) - f(point - eps)).item() / (2 * eps)
    return torch.full(x.shape, slope, dtype=x.dtype, device=x.device)


@numerical_gradient.misconception(
    "You evaluated f in the dtype of x. In float32 a step of 1e-5 drowns in rounding: the error "
    "is near 1e-3 or worse. Evaluate in float64 and convert only the result."
)
def float32_steps(f, x, eps=1e-5):
    result = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
    with torch.no_grad():
        for k in range(x.numel()):
            step = torch.zeros(x.numel(), dtype=x.dtype, device=x.device)
            step[k] = eps
            step = step.reshape(x.shape)
            result[k] = (f(x.detach() + step) - f(x.detach() - step)) / (2 * eps)
    return result.reshape(x.shape)


@numerical_gradient.misconception(
    "You stepped inside the caller's x, and it came back changed: detach and double make no copy "
    "of a tensor that is float64 already. Work on a copy of your own."
)
def edits_x(f, x, eps=1e-5):
    result = numerical_gradient.reference(f, x, eps)
    if x.numel():
        x.detach().double()[(-1,) * x.dim()] -= eps
    return result


@numerical_gradient.misconception(
    "You stepped inside the caller's x and back again. Detach and double make no copy of a tensor "
    "that is float64 already, and x + eps - 2 eps + eps is not always x: rounding leaves a trace. "
    "Work on a copy of your own."
)
def steps_inside_x(f, x, eps=1e-5):
    point = x.detach().double().contiguous()
    flat = point.view(-1)
    slopes = torch.zeros_like(flat)
    for k in range(len(flat)):
        flat[k] += eps
        up = f(point).item()
        flat[k] -= 2 * eps
        down = f(point).item()
        flat[k] += eps
        slopes[k] = (up - down) / (2 * eps)
    return slopes.view(x.shape).to(x.dtype)


@numerical_gradient.misconception(
    "What f gave you for the upper point was still a tensor when you moved on, and f may hand back "
    "a part of its argument: stepping inside the point then changes a value that you had measured "
    "already. Take the number at once, or make a new point for each step."
)
def steps_inside_the_point_before_reading(f, x, eps=1e-5):
    point = x.detach().double().clone(memory_format=torch.contiguous_format)
    flat = point.view(-1)
    slopes = torch.zeros_like(flat)
    with torch.no_grad():
        for k in range(len(flat)):
            here = flat[k].item()
            flat[k] = here + eps
            up = f(point)
            flat[k] = here - eps
            down = f(point)
            slopes[k] = (up - down) / (2 * eps)
            flat[k] = here
    return slopes.view(x.shape).to(x.dtype)


@numerical_gradient.misconception(
    "An x without entries leaves your list of slopes empty, and stack and cat refuse an empty "
    "list. The gradient is then empty too, in the shape of x."
)
def stacks_an_empty_list(f, x, eps=1e-5):
    flat = numerical_gradient.reference(f, x, eps).reshape(-1)
    return torch.stack([*flat]).reshape(x.shape)


@numerical_gradient.misconception(
    "Your slopes have the wrong sign: what is subtracted is the value at the lower point."
)
def turned_around(f, x, eps=1e-5):
    return -numerical_gradient.reference(f, x, eps)


@numerical_gradient.misconception(
    "/ 2 * eps divides by 2 and then multiplies by eps: Python goes from left to right. Put the "
    "product in parentheses."
)
def multiplies_by_eps(f, x, eps=1e-5):
    return (numerical_gradient.reference(f, x.double(), eps) * eps**2).to(x.dtype)


@numerical_gradient.misconception(
    "You looped over the first dimension only and moved a whole row at once. x may have any number "
    "of dimensions, also none; each single entry is a coordinate."
)
def moves_a_row(f, x, eps=1e-5):
    point = x.detach().double()
    slopes = torch.zeros_like(point)
    for k in range(len(point)):
        step = torch.zeros_like(point)
        step[k] = eps
        slopes[k] = (f(point + step) - f(point - step)).item() / (2 * eps)
    return slopes.to(x.dtype)


@numerical_gradient.misconception(
    "The steps add up: when coordinate k is measured, those before it are still moved, up in one "
    "point and down in the other. Only one coordinate may differ from x at any time."
)
def steps_add_up(f, x, eps=1e-5):
    up, down = x.detach().double().clone().reshape(-1), x.detach().double().clone().reshape(-1)
    slopes = torch.zeros_like(up)
    for k in range(len(up)):
        up[k] += eps
        down[k] -= eps
        slopes[k] = (f(up.reshape(x.shape)) - f(down.reshape(x.shape))).item() / (2 * eps)
    return slopes.to(x.dtype).reshape(x.shape)


@numerical_gradient.misconception(
    "You moved coordinate k and never moved it back, so the next coordinate is measured from "
    "another point. Only one coordinate may differ from x at any time."
)
def stays_displaced(f, x, eps=1e-5):
    def slope(value, point, k):
        point[k] += eps
        up = value(point.clone())
        point[k] -= 2 * eps
        return (up - value(point.clone())) / (2 * eps)

    return measured(f, x, eps, slope)


@numerical_gradient.misconception(
    "You scaled the step with the size of the coordinate. Here eps is an absolute step, the same "
    "for every coordinate."
)
def relative_step(f, x, eps=1e-5):
    def slope(value, point, k):
        step = eps * max(1.0, abs(point[k].item()))
        return (value(stepped(point, k, step)) - value(stepped(point, k, -step))) / (2 * step)

    return measured(f, x, eps, slope)


@numerical_gradient.misconception(
    "Your result still hangs on a graph: x or a weight inside f requires grad, and the "
    "differences were recorded. Take the numbers only."
)
def keeps_graph(f, x, eps=1e-5):
    steps = eps * torch.eye(x.numel(), dtype=torch.float64, device=x.device)
    point = x.double()
    slopes = [
        (f(point + step.reshape(x.shape)) - f(point - step.reshape(x.shape))) / (2 * eps)
        for step in steps
    ]
    return torch.stack(slopes).to(x.dtype).reshape(x.shape) if slopes else torch.zeros_like(x)


@numerical_gradient.misconception(
    "The result has the dtype you computed in. Evaluate in float64, then convert the result to "
    "the dtype of x."
)
def returns_float64(f, x, eps=1e-5):
    return numerical_gradient.reference(f, x.double(), eps)


@numerical_gradient.misconception(
    "You handed f a flattened x. f may use rows and columns, so give it a tensor of the shape of "
    "x and flatten only your own bookkeeping."
)
def flattens_for_f(f, x, eps=1e-5):
    flat = x.detach().double().reshape(-1)
    gradient = numerical_gradient.reference(lambda point: f(point.reshape(-1)), flat, eps)
    return gradient.to(x.dtype).reshape(x.shape)


@numerical_gradient.misconception(
    "You measured with a step of your own: eps is the caller's choice, and 1e-5 only what it is "
    "when the caller says nothing."
)
def ignores_eps(f, x, eps=1e-5):
    return numerical_gradient.reference(f, x, 1e-4)


numerical_gradient.hints(
    "Begin with one coordinate: two evaluations of f, one difference, one division.",
    "Take float64 values of x first, without its history. A step is a tensor of zeros with one "
    "entry set.",
    "A transposed x cannot be flattened with view, and writing into a flattened copy of x does "
    "not write into x. Which way of stepping needs no flat x at all?",
)
