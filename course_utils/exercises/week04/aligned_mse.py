"""A regression loss that compares each prediction with its own target, whatever the layout."""

import torch
from torch.nn import functional as F

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise


@exercise(objectives=("losses.broadcast_bug", "losses.regression"))
def aligned_mse(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of N scalar predictions.

    pred: floating point, of shape (N,) or (N, 1). target: floating point or integer, of shape
    (N,) or (N, 1). Any mixture of the two shapes is welcome; N >= 1.

    Return the mean over the N samples: a tensor of shape (), in pred's dtype, differentiable with
    respect to pred. Raise ValueError if either shape has another form, or if the two N differ.
    The inputs are not modified.
    """
    for tensor in (pred, target):
        if tensor.ndim != 1 and tensor.shape[1:] != (1,):
            raise ValueError(f"expected shape (N,) or (N, 1), got {tuple(tensor.shape)}")
    if len(pred) != len(target):
        raise ValueError(f"{len(pred)} predictions for {len(target)} targets")
    error = pred.reshape(-1) - target.reshape(-1).to(pred.dtype)
    return error.square().mean()


@aligned_mse.case
def flat_predictions_and_flat_targets(implementation, draw):
    n = draw.whole(3, 6)
    return implementation(draw.normal(n), draw.normal(n))


@aligned_mse.case
def a_column_of_predictions_and_flat_targets(implementation, draw):
    n = draw.whole(3, 6)
    return implementation(draw.normal(n, 1), draw.normal(n))


@aligned_mse.case
def flat_predictions_and_a_column_of_targets(implementation, draw):
    n = draw.whole(3, 6)
    return implementation(draw.normal(n), draw.normal(n, 1))


@aligned_mse.case
def two_columns(implementation, draw):
    n = draw.whole(3, 6)
    return implementation(draw.normal(n, 1), draw.normal(n, 1))


@aligned_mse.case
def a_single_sample(implementation, draw):
    column, flat = draw.normal(1, 1), draw.normal(1)
    return [
        attempt(implementation, pred, target)
        for pred, target in ((column, flat + 2), (flat, column - 2), (column, 3 * column + 1))
    ]


@aligned_mse.case
def whole_number_targets(implementation, draw):
    n = draw.whole(3, 6)
    return implementation(3 * draw.normal(n, 1), draw.integers(-5, 5, n))


@aligned_mse.case
def other_dtypes(implementation, draw):
    n = draw.whole(3, 6)
    values = {dtype: 2 * draw.normal(n, dtype=dtype) for dtype in (torch.float32, torch.float64)}
    single, double = values.values()
    return {
        "float32 predictions, float64 targets": attempt(implementation, single, double),
        "float64 predictions, float32 targets": attempt(implementation, double, single),
        "float16 predictions, whole numbers": attempt(
            implementation, single.half(), draw.integers(-3, 3, n)
        ),
    }


@aligned_mse.case
def gradients_for_a_column_cut_from_a_table(implementation, draw):
    n = draw.whole(3, 6)
    table = draw.normal(n, 3, requires_grad=True)
    result = implementation(table[:, 1:2], draw.normal(n))
    return {"loss": result, "gradient": gradients(result, table, draw.normal())}


@aligned_mse.case
def different_numbers_of_samples(implementation, draw):
    n, m = draw.sizes(2)
    shapes = ((n,), (m,)), ((n, 1), (m, 1)), ((n, 1), (1,)), ((1,), (m, 1)), ((1, 1), (m,))
    return [attempt(implementation, draw.normal(*a), draw.normal(*b)) for a, b in shapes]


@aligned_mse.case
def shapes_that_are_not_one_number_per_sample(implementation, draw):
    rows, columns = draw.sizes(2, high=4)
    n = rows * columns
    shapes = (
        ((n,), (rows, columns)),
        ((rows, columns), (n, 1)),
        ((1, n), (n,)),
        ((n,), (1, n)),
        ((1, n), (1, n)),
        ((n, 2), (n, 2)),
        ((n, 1, 1), (n,)),
        ((n,), (n, 1, 1)),
        ((), ()),
        ((1,), ()),
    )
    return [attempt(implementation, draw.normal(*a), draw.normal(*b)) for a, b in shapes]


def refuse_bad_shapes(pred, target):
    """What the answer raises for shapes it does not take; the wrong answers share it."""
    aligned_mse.reference(pred.detach(), target)


@aligned_mse.misconception(
    "(N, 1) minus (N,) is an (N, N) table of every prediction against every target. Its mean is "
    "smallest when each prediction is the mean of all targets, whatever x was."
)
def broadcasts(pred, target):
    return torch.mean((pred - target.to(pred.dtype)).square())


@aligned_mse.misconception(
    "Bad shapes are refused now, but a column against a flat tensor still broadcasts to an (N, N) "
    "table. Print the shape of the difference for a (4, 1) and a (4,)."
)
def checks_and_broadcasts(pred, target):
    refuse_bad_shapes(pred, target)
    return torch.mean((pred - target.to(pred.dtype)).square())


@aligned_mse.misconception(
    "The prediction is flat now, and a (N, 1) target still broadcasts against it. Bring both to "
    "the same form."
)
def squeezes_only_the_prediction(pred, target):
    refuse_bad_shapes(pred, target)
    return (pred.reshape(-1) - target.to(pred.dtype)).square().mean()


@aligned_mse.misconception(
    "Flattening makes unrelated shapes look alike: a (2, 3) target is not six answers to six "
    "questions. Decide which shapes to refuse before you change any."
)
def flattens_anything(pred, target):
    flat_pred, flat_target = pred.reshape(-1), target.reshape(-1).to(pred.dtype)
    if flat_pred.shape != flat_target.shape:
        raise ValueError("the numbers of samples differ")
    return (flat_pred - flat_target).square().mean()


@aligned_mse.misconception(
    "Both inputs are flattened and nothing is checked, so different numbers of samples are "
    "stretched against each other or fail in another way, and a (2, 3) target passes for six "
    "answers. Refuse such shapes with ValueError first."
)
def flattens_and_checks_nothing(pred, target):
    return (pred.reshape(-1) - target.reshape(-1).to(pred.dtype)).square().mean()


@aligned_mse.misconception(
    "The target always gets an axis, whatever it had. A flat prediction then broadcasts against a "
    "column; the mending has to look at both arguments."
)
def always_adds_an_axis_to_the_target(pred, target):
    refuse_bad_shapes(pred, target)
    return (pred - target.reshape(-1, 1).to(pred.dtype)).square().mean()


@aligned_mse.misconception(
    "squeeze() without a dimension removes every axis of size 1, the batch axis too when there is "
    "one sample. Name the axis that may go."
)
def squeezes_every_axis(pred, target):
    flat_pred, flat_target = pred.squeeze(), target.squeeze().to(pred.dtype)
    if flat_pred.ndim != 1 or flat_target.ndim != 1 or flat_pred.shape != flat_target.shape:
        raise ValueError("expected (N,) or (N, 1)")
    return (flat_pred - flat_target).square().mean()


@aligned_mse.misconception(
    "squeeze() without a dimension removes every axis of size 1, also those that make a shape "
    "wrong: (1, N), (N, 1, 1) and (1,) against () passed. Check the shapes as they came in."
)
def squeezes_before_checking(pred, target):
    flat_pred, flat_target = pred.squeeze(), target.squeeze().to(pred.dtype)
    if flat_pred.ndim > 1 or flat_pred.shape != flat_target.shape:
        raise ValueError("expected (N,) or (N, 1)")
    return (flat_pred - flat_target).square().mean()


@aligned_mse.misconception(
    "A row of shape (1, N) was let through. An axis of size 1 somewhere is not enough: look at "
    "which axis it is."
)
def takes_a_row_for_a_column(pred, target):
    for tensor in (pred, target):
        if tensor.ndim != 1 and (tensor.ndim != 2 or 1 not in tensor.shape):
            raise ValueError("expected a column")
    if len(pred) != len(target):
        raise ValueError("the numbers of samples differ")
    return (pred.reshape(-1) - target.reshape(-1).to(pred.dtype)).square().mean()


@aligned_mse.misconception(
    "The prediction was converted to the target's dtype. For whole-number targets that cuts off "
    "everything after the point, and the gradient with it; convert the target."
)
def converts_the_prediction(pred, target):
    refuse_bad_shapes(pred, target)
    error = pred.reshape(-1).to(target.dtype) - target.reshape(-1)
    return error.square().to(pred.dtype).mean()


@aligned_mse.misconception(
    "The loss came out in the dtype of the target where that is the wider one. It should have "
    "the prediction's."
)
def takes_the_wider_dtype(pred, target):
    refuse_bad_shapes(pred, target)
    return (pred.reshape(-1) - target.reshape(-1)).square().mean()


@aligned_mse.misconception(
    "The right number without a graph: .item(), .detach(), float() or torch.tensor(...) cut the "
    "path to the prediction, so nothing can be trained with it."
)
def cuts_the_graph(pred, target):
    return aligned_mse.reference(pred.detach(), target)


@aligned_mse.misconception(
    "You changed the tensor you were given: -= and functions whose name ends in _ write into it. "
    "Build a new one."
)
def edits_the_input(pred, target):
    refuse_bad_shapes(pred, target)
    if pred.requires_grad:
        return aligned_mse.reference(pred, target)
    pred -= target.reshape(pred.shape).to(pred.dtype)
    return pred.square().mean()


@aligned_mse.misconception(
    "The squares are added up. The mean divides by the number of samples, so that the gradient "
    "does not grow with the batch."
)
def sums(pred, target):
    return aligned_mse.reference(pred, target) * len(pred)


@aligned_mse.misconception(
    "The errors are not squared: you took their absolute values. That is the L1 loss."
)
def absolute_errors(pred, target):
    refuse_bad_shapes(pred, target)
    return F.l1_loss(pred.reshape(-1), target.reshape(-1).to(pred.dtype))


@aligned_mse.misconception(
    "You took the root of the mean. That is a fine number for a report, in the units of the "
    "target, but it is not the mean squared error."
)
def takes_the_root(pred, target):
    return aligned_mse.reference(pred, target).sqrt()


@aligned_mse.broken
def broken_aligned_mse(pred, target):
    return ((pred - target) ** 2).mean()


aligned_mse.hints(
    "Print the shape of the difference for a (4, 1) prediction and a (4,) target.",
    "Bring both tensors to one form, in the same way. Which form, and what does N = 1 do to it?",
    "Decide what to refuse before doing arithmetic: afterwards the shapes no longer tell.",
)
