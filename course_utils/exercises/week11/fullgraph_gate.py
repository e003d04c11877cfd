"""A branch on a tensor's value, rewritten so that the whole function is one graph."""

import contextlib
import io

import torch

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise
from course_utils.exercises.week11._capture import CountingBackend, fresh_compilations, plain


@exercise(objectives=("compile.breaks",))
def fullgraph_gate(x: torch.Tensor, scale: float) -> torch.Tensor:
    """scale * x / s where s > 1, else scale * x, with s = sum of |x| over the whole tensor.

    x has any shape and any float dtype, and the result has the same. The function must be captured
    by torch.compile(..., backend="eager", fullgraph=True) as a single graph that serves both cases.

    Gradients include the part that goes through s, and are finite at x = 0, where the gradient is
    scale; at s = 1 exactly only the value counts. Nothing is printed and x is left as it is.
    """
    total = x.abs().sum()
    return scale * x / total.clamp(min=1)


def with_sum(draw, total, *shape, dtype=torch.float32):
    """Numbers of both signs whose magnitudes add up to about `total`."""
    x = draw.normal(*shape, dtype=dtype) + 0.1
    return x * (total / x.abs().sum())


def seen(implementation, draw, x, scale):
    """The result, its gradient for a random incoming one, and what was printed."""
    leaf = x.clone().requires_grad_()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        output = attempt(implementation, leaf, scale)
    upstream = draw.normal(*x.shape, dtype=x.dtype)
    slope = attempt(gradients, output, leaf, upstream)
    return {"output": output, "gradient": slope, "printed": bool(printed.getvalue())}


@fullgraph_gate.case
def a_sum_above_one(implementation, draw):
    x = with_sum(draw, draw.number(3, 6), *draw.sizes(2))
    return seen(implementation, draw, x, draw.number(2, 3))


@fullgraph_gate.case
def a_sum_below_one(implementation, draw):
    x = with_sum(draw, draw.number(0.4, 0.8), *draw.sizes(2)).T
    return seen(implementation, draw, x, draw.number(2, 3))


@fullgraph_gate.case
def all_zeros(implementation, draw):
    return seen(implementation, draw, 0 * draw.normal(*draw.sizes(2)), draw.number(2, 3))


@fullgraph_gate.case(tolerance=(1e-10, 1e-10))
def one_dimension_of_float64(implementation, draw):
    sums = draw.number(1.2, 2), draw.number(0.2, 0.9)
    inputs = [with_sum(draw, s, draw.whole(3, 6), dtype=torch.float64) for s in sums]
    return [seen(implementation, draw, x, -1.5) for x in inputs]


@fullgraph_gate.case
def large_entries_that_cancel(implementation, draw):
    x = with_sum(draw, draw.number(30, 60), 3, 4)
    x = torch.cat([x, -x]).reshape(2, 3, 4)
    return seen(implementation, draw, x, draw.number(2, 3))


@fullgraph_gate.case
def no_dimensions(implementation, draw):
    small = draw.tensor(-draw.number(0.2, 0.9), dtype=torch.float16)
    numbers = draw.tensor(-draw.number(2, 3)), small
    return [seen(implementation, draw, x, draw.number(2, 3)) for x in numbers]


@fullgraph_gate.case
def compiled_as_one_graph_for_both_sides(implementation, draw):
    shape, scale = draw.sizes(2), 2.5
    backend = CountingBackend()
    with fresh_compilations():
        compiled = torch.compile(plain(implementation), backend=backend, fullgraph=True)
        inputs = [with_sum(draw, total, *shape) for total in (4.0, 0.5)]
        outputs = [attempt(compiled, x, scale) for x in inputs]
    return {"sum above 1": outputs[0], "sum below 1": outputs[1], "graphs": backend.graphs}


@fullgraph_gate.misconception(
    "There is still a Python branch on s. Its value is not known while the graph is captured, so "
    "the choice itself has to be tensor arithmetic."
)
def python_branch(x, scale):
    total = x.abs().sum()
    if total > 1:
        return scale * x / total
    return scale * x


@fullgraph_gate.misconception(
    "The branch is gone and the print is still there. A print is a side effect, and Dynamo cannot "
    "put it into a graph."
)
def print_left(x, scale):
    total = x.abs().sum()
    print("total", total)
    return scale * x / total.clamp(min=1)


@fullgraph_gate.misconception(
    "The print is gone, and the branch now asks for total.item(). A number that Python compares is "
    "as unknown at capture as the tensor was."
)
def branch_on_a_number(x, scale):
    total = x.abs().sum().item()
    return scale * x / total if total > 1 else scale * x


@fullgraph_gate.misconception(
    "At x = 0 your gradient is NaN. where differentiates both arms: 0 / 0 in the one that was not "
    "taken still gets into the gradient. Make the divisor safe before you divide."
)
def unsafe_where(x, scale):
    total = x.abs().sum()
    return torch.where(total > 1, scale * x / total, scale * x)


@fullgraph_gate.misconception(
    "s was cut out of the graph. It depends on x, and where it divides, its gradient belongs to "
    "the result."
)
def detached_total(x, scale):
    return scale * x / x.detach().abs().sum().clamp(min=1)


@fullgraph_gate.misconception(
    "s is the sum of x without its signs being dropped. Entries of opposite sign then cancel."
)
def signs_kept(x, scale):
    return scale * x / x.sum().clamp(min=1)


@fullgraph_gate.misconception(
    "You sum over the last dimension and get one s per row. s belongs to the whole tensor."
)
def sums_rows(x, scale):
    return scale * x / x.abs().sum(-1, keepdim=x.dim() > 0).clamp(min=1)


@fullgraph_gate.misconception(
    "You divide by s in every case. Where s is at most 1, x is only scaled."
)
def always_divides(x, scale):
    return scale * x / (x.abs().sum() + 1e-12)


@fullgraph_gate.misconception(
    "You add 1 to s, which avoids the division by 0 and changes all results. The divisor is s "
    "itself where s is above 1."
)
def one_added(x, scale):
    return scale * x / (1 + x.abs().sum())


@fullgraph_gate.misconception(
    "You add a small number to s before dividing. That shifts the result, and float64 shows it; "
    "where s is above 1, nothing has to be added."
)
def small_number_added(x, scale):
    total = x.abs().sum()
    return scale * x / torch.where(total > 1, total + 1e-8, 1.0)


@fullgraph_gate.misconception(
    "A constant was made with torch.tensor, in float32. With an x that has no dimensions it takes "
    "part in the dtype of the result; make it with the dtype of x, or use a Python number."
)
def constant_of_float32(x, scale):
    return scale * x / torch.maximum(x.abs().sum(), torch.tensor(1.0, device=x.device))


@fullgraph_gate.misconception(
    "Your code raises an error for an x that is transposed: view needs a layout that it does not "
    "have. The sum over the whole tensor needs no view."
)
def flattened_by_view(x, scale):
    return scale * x / x.view(-1).abs().sum().clamp(min=1)


@fullgraph_gate.misconception(
    "You bound every entry of x instead of the sum. It is the sum of all magnitudes that decides "
    "and divides."
)
def entries_clamped(x, scale):
    return scale * x / x.abs().clamp(min=1)


@fullgraph_gate.misconception(
    "scale is applied before s is taken. s is the sum of |x|, not of |scale * x|."
)
def scaled_first(x, scale):
    x = scale * x
    return x / x.abs().sum().clamp(min=1)


@fullgraph_gate.misconception(
    "x itself was divided or multiplied in place. The caller's tensor is left as it is."
)
def edits_x(x, scale):
    factor = scale / x.abs().sum().clamp(min=1)
    return x.data.mul_(factor.detach()) + 0 * x


@fullgraph_gate.misconception(
    "The result comes as float32 whatever x is. Constants and conversions take part in the dtype; "
    "keep that of x."
)
def always_float32(x, scale):
    x = x.float()
    return scale * x / x.abs().sum().clamp(min=1)


@fullgraph_gate.broken
def broken_fullgraph_gate(x, scale):
    total = x.abs().sum()  # works in eager mode; breaks the graph
    print("total", total)
    if total > 1:
        return scale * x / total
    return scale * x


fullgraph_gate.hints(
    "Both cases divide by something. What does the second one divide by?",
    "Look for a divisor that is s where s is above 1, and is never below 1.",
    "For the gradient at x = 0: no 0 / 0 may be computed anywhere, not even to be thrown away.",
)
