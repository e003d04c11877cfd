"""A loss that is quadratic near zero and linear far away."""

import torch
from torch.nn import functional as F

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise


@exercise(
    objectives=("losses.regression", "losses.scalar"),
    forbids=(F.huber_loss, F.smooth_l1_loss),
)
def huber_from_scratch(
    pred: torch.Tensor, target: torch.Tensor, delta: float = 1.0, reduction: str = "mean"
) -> torch.Tensor:
    """Huber loss. With e = pred - target it is 0.5 * e**2 where |e| <= delta, and
    delta * (|e| - 0.5 * delta) elsewhere.

    pred and target have the same shape and the same floating dtype, which is that of the result.
    reduction is "none", "sum" or "mean" (over all elements). The result is differentiable, and the
    size of the gradient for a single error is at most delta.

    Raise ValueError if delta <= 0, if the shapes differ (nothing is broadcast), or if the
    reduction is unknown. The inputs are not modified.
    """
    if delta <= 0:
        raise ValueError(f"delta has to be positive, not {delta}")
    if pred.shape != target.shape:
        raise ValueError(f"pred {tuple(pred.shape)}, target {tuple(target.shape)}")
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f'reduction is {reduction!r}; it can be "none", "sum" or "mean"')
    size = (pred - target).abs()
    losses = torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta))
    return losses if reduction == "none" else getattr(losses, reduction)()


@huber_from_scratch.case
def the_default_delta_and_mean(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    return implementation(2 * draw.normal(rows, columns), 2 * draw.normal(rows, columns))


@huber_from_scratch.case
def several_deltas(implementation, draw):
    n = draw.whole(5, 8)
    pred, target = 2 * draw.normal(n), 2 * draw.normal(n)
    return [implementation(pred, target, delta, reduction="none") for delta in (0.25, 0.3, 2, 50.0)]


@huber_from_scratch.case
def all_three_reductions(implementation, draw):
    rows, columns = draw.sizes(2)
    pred, target = 2 * draw.normal(rows, columns), 2 * draw.normal(rows, columns)
    delta = draw.number(0.4, 2.0)
    names = "none", "sum", "mean"
    return {name: attempt(implementation, pred, target, delta, name) for name in names}


@huber_from_scratch.case
def errors_of_0_and_exactly_delta(implementation, draw):
    delta = draw.choice((0.25, 0.5, 2.0))  # exact in binary, and so are the errors
    target = draw.integers(-3, 3, 6).float()
    pred = (target + delta * draw.tensor([0.0, 1.0, -1.0, 2.0, -2.0, 0.5])).requires_grad_()
    result = implementation(pred, target, delta, "none")
    upstream = draw.uniform(6, low=0.5, high=2)
    return {"losses": result, "gradient": gradients(result, pred, upstream)}


@huber_from_scratch.case
def negative_errors_and_their_gradients(implementation, draw):
    n = draw.whole(5, 8)
    target = draw.normal(n)
    pred = (target - draw.uniform(n, low=0.05, high=6)).requires_grad_()
    result = implementation(pred, target, delta=draw.number(0.3, 1.5))
    return {"loss": result, "gradient": gradients(result, pred, draw.uniform(low=1, high=3))}


@huber_from_scratch.case
def one_outlier_of_10_000(implementation, draw):
    target = draw.normal(2, 3)
    pred = target + 0.5 * draw.normal(2, 3)
    pred[1, 0] += draw.choice((-1e4, 1e4))
    pred.requires_grad_()
    result = implementation(pred, target, draw.number(0.4, 3), "none")
    return {"losses": result, "gradient": gradients(result, pred, draw.normal(2, 3))}


@huber_from_scratch.case(tolerance=(1e-9, 1e-10))
def transposed_float64_tables(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    pred = 2 * draw.normal(rows, columns, dtype=torch.float64)
    target = 2 * draw.normal(columns, rows, dtype=torch.float64)
    return [implementation(pred.T, target, 1.5, reduction=name) for name in ("none", "sum")]


@huber_from_scratch.case
def float16_with_an_error_of_300(implementation, draw):
    pred, target = draw.normal(6).half(), draw.normal(6).half()
    pred[2] = draw.choice((-300.0, 300.0))
    return implementation(pred, target, 0.5)


@huber_from_scratch.case
def gradients_for_both_inputs(implementation, draw):
    n = draw.whole(5, 8)
    pred, target = (draw.normal(n, requires_grad=True) for _ in range(2))
    result = implementation(pred, target, 0.5, "sum")
    return {"gradients": gradients(result, (pred, target), draw.uniform(low=1, high=3))}


@huber_from_scratch.case
def a_delta_that_is_not_positive(implementation, draw):
    pred, target = draw.normal(4), draw.normal(4)
    return [attempt(implementation, pred, target, delta) for delta in (0.0, -1.0)]


@huber_from_scratch.case
def shapes_that_differ(implementation, draw):
    n, m = draw.sizes(2)
    shapes = ((n, 1), (n,)), ((n, m), (m,)), ((n,), ()), ((n, m), (m, n))
    return [attempt(implementation, draw.normal(*a), draw.normal(*b)) for a, b in shapes]


@huber_from_scratch.case
def unknown_reductions(implementation, draw):
    pred, target = draw.normal(4), draw.normal(4)
    return [
        attempt(implementation, pred, target, reduction=name)
        for name in ("avg", "batchmean", "MEAN")
    ]


# The wrong answers are the reference with one step replaced.


def error_of(pred, target, delta, reduction):
    """The error, after the checks of the reference."""
    if delta <= 0 or pred.shape != target.shape or reduction not in ("none", "sum", "mean"):
        raise ValueError("delta, shapes or reduction")
    return pred - target


def reduced(losses, reduction):
    """What the reference makes of its losses."""
    return losses if reduction == "none" else getattr(losses, reduction)()


@huber_from_scratch.misconception(
    "That is Smooth L1, which is Huber divided by delta. The two agree only where delta is 1."
)
def smooth_l1_scaling(pred, target, delta=1.0, reduction="mean"):
    return huber_from_scratch.reference(pred, target, delta, reduction) / delta


@huber_from_scratch.misconception(
    "The two pieces have to meet at |e| = delta. Without subtracting half of delta the loss jumps "
    "there."
)
def linear_part_without_the_offset(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    return reduced(torch.where(e.abs() <= delta, 0.5 * e.square(), delta * e.abs()), reduction)


@huber_from_scratch.misconception(
    "The offset of the linear piece is half of delta, not a half. With a delta other than 1 the "
    "two pieces do not meet."
)
def offset_of_one_half(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    losses = torch.where(e.abs() <= delta, 0.5 * e.square(), delta * (e.abs() - 0.5))
    return reduced(losses, reduction)


@huber_from_scratch.misconception(
    "The smaller of the two pieces is the linear one, everywhere: it touches the parabola at delta "
    "and goes below 0 for small errors. Choose by the magnitude of the error."
)
def takes_the_smaller_piece(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    losses = torch.minimum(0.5 * e.square(), delta * (e.abs() - 0.5 * delta))
    return reduced(losses, reduction)


@huber_from_scratch.misconception(
    "The loss stays quadratic for every error: this is half of MSE, and an outlier pulls as hard "
    "as it is far away."
)
def never_linear(pred, target, delta=1.0, reduction="mean"):
    return reduced(0.5 * error_of(pred, target, delta, reduction).square(), reduction)


@huber_from_scratch.misconception(
    "The mean divides by the number of rows. It is a mean over all elements."
)
def divides_by_the_rows(pred, target, delta=1.0, reduction="mean"):
    losses = huber_from_scratch.reference(pred, target, delta, "none")
    if reduction == "mean":
        return losses.sum() / len(losses)
    return huber_from_scratch.reference(pred, target, delta, reduction)


@huber_from_scratch.misconception(
    "The quadratic piece is half the square, so that its slope at delta is delta. Without the half "
    "it is too steep there, and the pieces do not meet."
)
def missing_one_half(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    losses = torch.where(e.abs() <= delta, e.square(), delta * (e.abs() - 0.5 * delta))
    return reduced(losses, reduction)


@huber_from_scratch.misconception(
    "Everything is twice too large, loss and gradient: you started from e² instead of half of it. "
    "The slope should stop at delta."
)
def twice_the_loss(pred, target, delta=1.0, reduction="mean"):
    return 2 * huber_from_scratch.reference(pred, target, delta, reduction)


@huber_from_scratch.misconception(
    "Large negative errors pass the test e <= delta and stay quadratic. Compare magnitudes."
)
def compares_the_signed_error(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    losses = torch.where(e <= delta, 0.5 * e.square(), delta * (e.abs() - 0.5 * delta))
    return reduced(losses, reduction)


@huber_from_scratch.misconception(
    "The linear piece uses the signed error, so a large negative error gives a negative loss. It "
    "is the magnitude that counts in both pieces."
)
def linear_in_the_signed_error(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    losses = torch.where(e.abs() <= delta, 0.5 * e.square(), delta * (e - 0.5 * delta))
    return reduced(losses, reduction)


@huber_from_scratch.misconception(
    "Beyond delta the clamped error is constant, so an outlier gets the gradient 0 instead of "
    "delta: it is forgotten where it should pull."
)
def clamps_the_error_and_squares(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    return reduced(0.5 * e.clamp(-delta, delta).square(), reduction)


@huber_from_scratch.misconception(
    "The pieces are exchanged: quadratic is for the small errors, linear for the large ones."
)
def exchanges_the_pieces(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    losses = torch.where(e.abs() > delta, 0.5 * e.square(), delta * (e.abs() - 0.5 * delta))
    return reduced(losses, reduction)


@huber_from_scratch.misconception(
    "One branch was chosen for the whole tensor, from its largest or its mean error. Every element "
    "chooses for itself."
)
def one_branch_for_all(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    if (e.abs() <= delta).all():
        return reduced(0.5 * e.square(), reduction)
    return reduced(delta * (e.abs() - 0.5 * delta), reduction)


@huber_from_scratch.misconception(
    "delta has no effect: the border is at 1, whatever the caller asks for."
)
def fixed_delta(pred, target, delta=1.0, reduction="mean"):
    error_of(pred, target, delta, reduction)
    return huber_from_scratch.reference(pred, target, 1.0, reduction)


@huber_from_scratch.misconception(
    "This is a smooth relative of the loss, delta² · (√(1 + (e/delta)²) − 1). It bends slowly; "
    "Huber is exactly quadratic up to delta and exactly linear beyond."
)
def pseudo_huber(pred, target, delta=1.0, reduction="mean"):
    e = error_of(pred, target, delta, reduction)
    return reduced(delta**2 * (torch.sqrt(1 + (e / delta).square()) - 1), reduction)


@huber_from_scratch.misconception(
    "Shapes were left to broadcasting: (N, 1) against (N,) became an (N, N) table. Compare the "
    "shapes and raise."
)
def broadcasts(pred, target, delta=1.0, reduction="mean"):
    e = pred - target
    return huber_from_scratch.reference(e, torch.zeros_like(e), delta, reduction)


@huber_from_scratch.misconception(
    "A delta of 0 or below went through. It makes a loss that is 0 or negative everywhere; refuse "
    "it with ValueError."
)
def any_delta(pred, target, delta=1.0, reduction="mean"):
    size = error_of(pred, target, 1.0, reduction).abs()
    losses = torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta))
    return reduced(losses, reduction)


@huber_from_scratch.misconception(
    "A reduction you do not know is taken for another one, or for any method a tensor has. A "
    "typing error in the caller's code then goes unnoticed; raise ValueError."
)
def accepts_any_reduction(pred, target, delta=1.0, reduction="mean"):
    known = reduction if reduction in ("none", "sum", "mean") else "mean"
    return huber_from_scratch.reference(pred, target, delta, known)


@huber_from_scratch.misconception(
    "The arguments are checked nowhere. Look at delta, the shapes and the reduction before any "
    "arithmetic, and raise ValueError."
)
def checks_nothing(pred, target, delta=1.0, reduction="mean"):
    e = pred - target
    losses = torch.where(e.abs() <= delta, 0.5 * e.square(), delta * (e.abs() - 0.5 * delta))
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


@huber_from_scratch.misconception(
    "You changed the prediction you were given: -= and functions whose name ends in _ write into "
    "it. Subtract into a new tensor."
)
def edits_the_input(pred, target, delta=1.0, reduction="mean"):
    result = huber_from_scratch.reference(pred, target, delta, reduction)
    with torch.no_grad():
        pred -= target
    return result


huber_from_scratch.hints(
    "Draw both pieces on paper, and check value and slope where they meet.",
    "Which piece an element gets depends on the magnitude of its own error.",
    "Refuse bad arguments first, before any arithmetic.",
)
