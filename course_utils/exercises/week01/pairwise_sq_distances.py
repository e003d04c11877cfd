"""Every pair of rows: new axes instead of loops, and a formula that keeps its digits."""

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise


@exercise(
    objectives=("tensor.broadcasting", "tensor.numeric_accuracy"),
    forbids=(torch.cdist, torch.pairwise_distance, F.pairwise_distance, torch.pdist, F.pdist),
)
def pairwise_sq_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared distance of every row of x to every row of y.

    out[i, j] is the sum over d of (x[i, d] - y[j, d])**2. x: (N, D), y: (M, D), both floating
    point. N, M and D may be 0; D = 0 gives zeros. Return a tensor of shape (N, M) in the promoted
    dtype of x and y, differentiable in both.

    Raise ValueError when the column counts differ, also when one of them is 1. The result has to
    stay accurate for points that are far from 0 and differ by about 1: to a relative 1e-4 for
    float32 points around 1000, to 1e-6 for float64 points around a million. Write no Python loop
    over rows, and do without cdist and pairwise_distance.
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} columns and y has {y.shape[1]}")
    return (x[:, None, :] - y[None, :, :]).square().sum(dim=-1)


class Operations(TorchFunctionMode):
    """Counts the torch operations that run inside its block."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # Reading an attribute such as .shape is no operation; the recording of calls reads many.
        self.count += func.__name__ != "__get__"
        return func(*args, **(kwargs or {}))


@pairwise_sq_distances.case
def more_points_on_one_side(implementation, draw):
    n, m, d = draw.sizes(3, high=4)
    return implementation(draw.normal(n, d), draw.normal(m, d))


@pairwise_sq_distances.case
def as_many_points_on_both_sides(implementation, draw):
    n, d = draw.sizes(2, high=4)
    return implementation(draw.normal(n, d), draw.normal(n, d))


@pairwise_sq_distances.case
def points_around_1000(implementation, draw):
    n, m, d = draw.sizes(3, low=3, high=5)
    return implementation(draw.normal(n, d) + 1000, draw.normal(m, d) + 1000)


def on_a_line(draw, around, grid):
    """x and y with one coordinate near `around`, a little apart; `grid` divides their squares.

    If the grid is twice as coarse as the numbers there, x² + y² - 2xy is far off, and by the same
    amount in whatever order it is computed.
    """
    center = around * draw.number(0.97, 0.99)
    dtype = torch.float32 if around == 1000 else torch.float64
    starts = draw.choice(((0, 3), (3, 0)))
    for count, start in zip(draw.sizes(2, low=3, high=5), starts, strict=True):
        points = center + start + 2 * draw.uniform(16 * count, dtype=dtype)
        yield points[points.square() % grid == 0][:count, None]


@pairwise_sq_distances.case
def points_on_a_line_around_1000(implementation, draw):
    return implementation(*on_a_line(draw, 1000, 2**-3))


@pairwise_sq_distances.case
def float64_points_on_a_line_around_a_million(implementation, draw):
    return implementation(*on_a_line(draw, 1e6, 2**-12))


@pairwise_sq_distances.case
def a_single_point(implementation, draw):
    m, d = draw.sizes(2)
    x, y = draw.normal(1, d), draw.normal(m, d)
    return attempt(implementation, x, y), attempt(implementation, y, x)


@pairwise_sq_distances.case
def no_points(implementation, draw):
    m, d = draw.sizes(2)
    x, y = draw.normal(0, d), draw.normal(m, d)
    return attempt(implementation, x, y), attempt(implementation, y, x)


@pairwise_sq_distances.case
def points_without_coordinates(implementation, draw):
    n, m = draw.sizes(2)
    return implementation(draw.normal(n, 0), draw.normal(m, 0))


@pairwise_sq_distances.case
def column_counts_that_differ(implementation, draw):
    n, m, d, e = draw.sizes(4)
    return attempt(implementation, draw.normal(n, d), draw.normal(m, e))


@pairwise_sq_distances.case
def one_column_against_several(implementation, draw):
    n, m, d = draw.sizes(3)
    x, y = draw.normal(n, 1), draw.normal(m, d)
    return attempt(implementation, x, y), attempt(implementation, y, x)


@pairwise_sq_distances.case
def float32_against_float64(implementation, draw):
    n, m, d = draw.sizes(3)
    return implementation(draw.normal(n, d), draw.normal(m, d, dtype=torch.float64))


@pairwise_sq_distances.case
def transposed_points(implementation, draw):
    n, m, d = draw.sizes(3)
    return implementation(draw.normal(d, n).T, draw.normal(m, d))


@pairwise_sq_distances.case
def the_gradients(implementation, draw):
    n, m, d = draw.sizes(3)
    x, y = draw.normal(n, d, requires_grad=True), draw.normal(m, d, requires_grad=True)
    result = implementation(x, y)
    return {"gradients": gradients(result, (x, y), draw.normal(n, m))}


@pairwise_sq_distances.case
def many_points_in_a_few_operations(implementation, draw):
    x, y = draw.normal(draw.whole(60, 70), 2), draw.normal(draw.whole(50, 59), 2)
    with Operations() as operations:
        attempt(implementation, x, y)
    return {"at least one operation per row": operations.count >= 50}


@pairwise_sq_distances.misconception(
    "The expansion |x|² + |y|² - 2xy subtracts two huge numbers that share most of their digits. "
    "For points around 1000 they are near a million, where float32 goes up in steps of 0.0625: "
    "what is left is mostly rounding. float64 has the same trouble further out. Subtract first, "
    "then square."
)
def expanded_square(x, y):
    pairwise_sq_distances.reference(x[:0], y[:0])
    x, y = x.to(torch.promote_types(x.dtype, y.dtype)), y.to(torch.promote_types(x.dtype, y.dtype))
    return x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.mT


@pairwise_sq_distances.misconception(
    "x - y pairs row i with row i only. Give each operand an axis of its own, so that every "
    "row meets every row."
)
def no_new_axes(x, y):
    pairwise_sq_distances.reference(x[:0], y[:0])
    return (x - y).square().sum(dim=-1)


@pairwise_sq_distances.misconception(
    "You summed over one of the axes that count points. The axis of the coordinates is the "
    "one that has to disappear."
)
def wrong_reduction_axis(x, y):
    pairwise_sq_distances.reference(x[:0], y[:0])
    return (x[:, None] - y).square().sum(dim=1)


@pairwise_sq_distances.misconception(
    "The square root was not asked for. Besides, its gradient is infinite where two points "
    "coincide."
)
def takes_root(x, y):
    return pairwise_sq_distances.reference(x, y).sqrt()


@pairwise_sq_distances.misconception(
    "You left the column counts to broadcasting. It stretches one column against many without "
    "complaint, and for other counts the error is not the one that was asked for; compare the "
    "counts yourself."
)
def broadcasts_features(x, y):
    return (x[:, None] - y).square().sum(dim=-1)


@pairwise_sq_distances.misconception(
    "The result is the right table turned on its side: rows belong to x and columns to y."
)
def transposed_result(x, y):
    return pairwise_sq_distances.reference(y, x)


@pairwise_sq_distances.misconception(
    "You averaged over the coordinates. The squares are added up, so two more coordinates "
    "make a distance larger."
)
def averages_coordinates(x, y):
    pairwise_sq_distances.reference(x[:0], y[:0])
    return (x[:, None] - y).square().mean(dim=-1)


@pairwise_sq_distances.misconception(
    "The values are right, and they were computed row by row. Each row costs a round through "
    "Python and several small operations; broadcasting handles all pairs in one."
)
def loops_over_rows(x, y):
    if len(x) == 0 or x.shape[1] != y.shape[1]:
        return pairwise_sq_distances.reference(x, y)
    return torch.stack([(row - y).square().sum(dim=-1) for row in x])


@pairwise_sq_distances.misconception(
    "The values are right, and no gradient comes back to x and y: you worked on detached values."
)
def leaves_autograd(x, y):
    return pairwise_sq_distances.reference(x.detach(), y.detach())


@pairwise_sq_distances.misconception(
    "The result took the dtype of one operand. For float32 against float64 the promoted dtype "
    "is float64, whichever comes first."
)
def dtype_of_x(x, y):
    return pairwise_sq_distances.reference(x, y.to(x.dtype))


@pairwise_sq_distances.misconception(
    "Everything came out as float32. Points in float64 give distances in float64, and so do "
    "float32 against float64."
)
def always_float32(x, y):
    return pairwise_sq_distances.reference(x.float(), y.float())


@pairwise_sq_distances.misconception(
    "squeeze() without a dim removes every dimension of size 1, so a single point loses its "
    "axis. The result is (N, M), also for N = 1 or M = 1."
)
def squeezes_everything(x, y):
    return pairwise_sq_distances.reference(x, y).squeeze()


@pairwise_sq_distances.misconception(
    "You added up absolute differences. A squared distance adds up squares."
)
def absolute_differences(x, y):
    pairwise_sq_distances.reference(x[:0], y[:0])
    return (x[:, None] - y).abs().sum(dim=-1)


pairwise_sq_distances.hints(
    "Which shapes of x and y would broadcast to (N, M, D)?",
    "`None` in an index adds an axis of size 1.",
    "Try your function on x + 1000 and y + 1000: the answer must not move.",
)
