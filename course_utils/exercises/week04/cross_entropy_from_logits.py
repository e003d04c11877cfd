"""Cross-entropy with any number of axes and with positions that do not count."""

import torch
from torch.nn import functional as F

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise


@exercise(
    objectives=(
        "losses.cross_entropy",
        "losses.target_types",
        "losses.ignore_index",
        "losses.scalar",
    ),
    forbids=(F.cross_entropy, F.nll_loss),
)
def cross_entropy_from_logits(
    logits: torch.Tensor,
    target: torch.Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy of class-index targets, with the natural logarithm.

    logits: (N, C) or (N, C, d1, ...), floating point; at positions that are kept they are finite.
    target: int64, of shape (N,) or (N, d1, ...). Its values lie in [0, C) or equal ignore_index,
    which may itself lie in [0, C).

    reduction "none": a tensor shaped like target, exactly 0 at ignored positions. "sum": the sum,
    of shape (). "mean": the sum divided by the number of positions that are not ignored; nan when
    there are none. Any other reduction: ValueError. The result has the logits' dtype.

    Ignored positions contribute neither value nor gradient, even if some (not all) of their
    logits are -inf. Stay right for logits of magnitude 10,000. The inputs are not modified.
    """
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f'reduction is {reduction!r}; it can be "none", "sum" or "mean"')
    kept = target != ignore_index
    lookup = target.where(kept, 0).unsqueeze(1)
    log_p = logits.log_softmax(dim=1).gather(1, lookup).squeeze(1)
    losses = torch.where(kept, -log_p, 0)
    if reduction == "none":
        return losses
    return losses.sum() / kept.sum() if reduction == "mean" else losses.sum()


ALL = ("none", "sum", "mean")


def every_reduction(implementation, logits, target, *options):
    """The three results, by the name of the reduction; ignore_index as an option."""
    return {name: attempt(implementation, logits, target, *options, reduction=name) for name in ALL}


def with_padding(draw, classes, *shape, pad):
    """Targets whose rows end in padding of different lengths; the first row has none."""
    target = draw.integers(0, classes - 1, *shape)
    for row in range(1, shape[0]):
        target[row, ..., shape[-1] - draw.whole(1, shape[-1] - 1) :] = pad
    return target


@cross_entropy_from_logits.case
def a_table_with_the_defaults(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    target = draw.integers(0, classes - 1, n)
    target[draw.whole(0, n - 1)] = -100
    return implementation(2 * draw.normal(n, classes), target)


@cross_entropy_from_logits.case
def sequences_with_padding_at_the_end(implementation, draw):
    n, classes, steps = draw.sizes(3, low=3, high=5)
    target = with_padding(draw, classes, n, steps, pad=255)
    return every_reduction(implementation, 2 * draw.normal(n, classes, steps), target, 255)


@cross_entropy_from_logits.case(tolerance=(1e-9, 1e-10))
def as_many_positions_as_classes_in_float64(implementation, draw):
    n, classes = draw.sizes(2, low=3, high=5)
    target = with_padding(draw, classes, n, classes, pad=-100)
    logits = 2 * draw.normal(n, classes, classes, dtype=torch.float64)
    return [implementation(logits, target), implementation(logits, target, reduction="none")]


@cross_entropy_from_logits.case
def images_with_a_label_per_pixel(implementation, draw):
    n, classes, height, width = draw.sizes(4, high=5)
    target = with_padding(draw, classes, n, height, width, pad=-1)
    logits = 2 * draw.normal(n, width, classes, height).permute(0, 2, 3, 1)
    return [implementation(logits, target, -1, "none"), implementation(logits, target, -1)]


@cross_entropy_from_logits.case
def padding_with_a_number_that_is_also_a_class(implementation, draw):
    n, classes, steps = draw.sizes(3, low=3, high=5)
    pad = draw.whole(0, classes - 1)
    target = with_padding(draw, classes, n, steps, pad=pad)
    target[0, :2] = (pad + 1) % classes  # so that something is kept
    return implementation(draw.normal(n, classes, steps), target, ignore_index=pad)


@cross_entropy_from_logits.case
def nothing_but_ignored_positions(implementation, draw):
    n, classes = draw.sizes(2)
    pad = draw.choice((-100, 0, 255))
    target = torch.full((n,), pad, device=draw.device)
    logits = draw.normal(n, classes, dtype=torch.float64)
    return every_reduction(implementation, logits, target, pad)


@cross_entropy_from_logits.case
def minus_infinity_at_an_ignored_position(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    logits, target = draw.normal(n, classes), draw.integers(0, classes - 1, n)
    ignored = draw.whole(0, n - 1)
    target[ignored] = -100
    logits[ignored, :2] = -torch.inf
    logits.requires_grad_()
    result = implementation(logits, target)
    return {"loss": result, "gradient": gradients(result, logits, draw.normal())}


@cross_entropy_from_logits.case(tolerance=(1e-4, 4e-3))  # logits of 10,000 are known to 0.001
def logits_from_200_to_10_000(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    size = draw.tensor([[200.0], [1000.0], [1e4]]).repeat_interleave(n, 0)
    logits = (size * draw.uniform(3 * n, classes, low=-1)).requires_grad_()
    result = implementation(logits, draw.integers(0, classes - 1, 3 * n), reduction="none")
    return {"losses": result, "gradient": gradients(result, logits, draw.normal(3 * n))}


@cross_entropy_from_logits.case
def a_position_whose_loss_is_exactly_0(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    logits, target = draw.normal(n, classes), draw.integers(0, classes - 1, n)
    logits[0, target[0]] = draw.number(200, 500)
    target[-1] = -100
    return implementation(logits, target)


@cross_entropy_from_logits.case
def float16_logits(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    target = draw.integers(0, classes - 1, n)
    target[0] = -100
    return implementation((4 * draw.normal(n, classes)).half(), target)


@cross_entropy_from_logits.case
def axes_of_size_1(implementation, draw):
    n, classes = draw.sizes(2, low=3)
    logits, target = draw.normal(n, classes), draw.integers(0, classes - 1, n)

    def losses(logits, target):
        return attempt(implementation, logits, target, reduction="none")

    return {
        "one sample": losses(logits[:1], target[:1]),
        "one sequence": losses(logits.T.unsqueeze(0), target.unsqueeze(0)),
        "sequences of one step": losses(logits.unsqueeze(2), target.unsqueeze(1)),
    }


@cross_entropy_from_logits.case
def gradients_of_the_losses_one_by_one(implementation, draw):
    n, classes, steps = draw.sizes(3, low=3, high=5)
    logits = draw.normal(n, classes, steps, requires_grad=True)
    target = with_padding(draw, classes, n, steps, pad=-100)
    result = implementation(logits, target, reduction="none")
    return {"gradient": gradients(result, logits, draw.normal(n, steps))}


@cross_entropy_from_logits.case
def unknown_reductions(implementation, draw):
    logits, target = draw.normal(4, 3), draw.integers(0, 2, 4)
    names = "avg", "batchmean", "MEAN", ""
    return [attempt(implementation, logits, target, reduction=name) for name in names]


# The wrong answers are the reference with one step replaced.


def reduced(losses, kept, reduction, count=None):
    """What the reference makes of its losses; count: another denominator."""
    if reduction not in ALL:
        raise ValueError(reduction)
    if reduction == "none":
        return losses
    count = kept.sum() if count is None else count
    return losses.sum() / count if reduction == "mean" else losses.sum()


def looked_up(scores, index, axis=1):
    """gather as it is on the CPU; on a GPU a wrong index would end the process's use of it."""
    if ((index < 0) | (index >= scores.shape[axis])).any():
        raise RuntimeError("index out of bounds")
    return scores.gather(axis, index.unsqueeze(axis)).squeeze(axis)


def picked(scores, target, kept, axis=1):
    """Minus the score of each position's class, 0 where it is not kept."""
    return torch.where(kept, -looked_up(scores, target.where(kept, 0), axis), 0)


@cross_entropy_from_logits.misconception(
    "Padding was left in the denominator, so a batch with more padding reports a smaller loss. "
    "Count only what is kept."
)
def mean_over_every_position(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    losses = picked(logits.log_softmax(1), target, kept)
    return reduced(losses, kept, reduction, target.numel())


@cross_entropy_from_logits.misconception(
    "The mean divides by the batch size N. With more than two axes there are N · d1 · ... "
    "positions, and only those that are kept count."
)
def mean_over_the_batch(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    return reduced(picked(logits.log_softmax(1), target, kept), kept, reduction, len(target))


@cross_entropy_from_logits.misconception(
    "You normalized twice: the second softmax sees numbers between 0 and 1 and can never become "
    "confident. log_softmax takes the logits as they are."
)
def softmax_applied_first(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    return reduced(picked(logits.softmax(1).log_softmax(1), target, kept), kept, reduction)


@cross_entropy_from_logits.misconception(
    "For inputs with more than two axes the classes are axis 1. The last axis is a position, and "
    "a softmax over it compares positions."
)
def class_axis_last(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    return reduced(picked(logits.log_softmax(-1), target, kept, -1), kept, reduction)


@cross_entropy_from_logits.misconception(
    "The mean divides by the number of losses that are not 0. A kept position of which the model "
    "is certain has the loss 0 too, and it counts. Look at the targets to see what is ignored."
)
def counts_losses_that_are_not_0(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    losses = picked(logits.log_softmax(1), target, kept)
    return reduced(losses, kept, reduction, (losses != 0).sum())


@cross_entropy_from_logits.misconception(
    "The softmax ran over the last axis, which is right for (N, C) alone. With more axes the last "
    "one is a position; the classes stay in axis 1."
)
def softmax_over_the_last_axis(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    return reduced(picked(logits.log_softmax(-1), target, kept), kept, reduction)


@cross_entropy_from_logits.misconception(
    'With "none" the ignored positions were dropped. The result keeps the shape of target, with '
    "zeros there, so that callers can reshape and weight it."
)
def none_drops_ignored_positions(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    losses = picked(logits.log_softmax(1), target, kept)
    return losses[kept] if reduction == "none" else reduced(losses, kept, reduction)


@cross_entropy_from_logits.misconception(
    'With "none" the ignored positions kept a loss: that of the class you put in their place for '
    "the lookup. They have to be exactly 0."
)
def none_keeps_ignored_losses(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    if reduction == "none":
        lookup = target.where(kept, 0).unsqueeze(1)
        return -logits.log_softmax(1).gather(1, lookup).squeeze(1)
    return reduced(picked(logits.log_softmax(1), target, kept), kept, reduction)


@cross_entropy_from_logits.misconception(
    "The ignore value is no class: looking a log-probability up with it raises, or reads another "
    "class. Put a valid class in its place for the lookup, and mask afterwards."
)
def gathers_at_the_ignore_index(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    log_p = looked_up(logits.log_softmax(1), target)
    return reduced(torch.where(kept, -log_p, 0), kept, reduction)


@cross_entropy_from_logits.misconception(
    "A mask of zeros does not erase everything: 0 times inf is NaN, in the value and in the "
    "gradient. Select with `where` instead of multiplying."
)
def masks_by_multiplication(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    lookup = target.where(kept, 0).unsqueeze(1)
    log_p = logits.log_softmax(1).gather(1, lookup).squeeze(1)
    return reduced(-log_p * kept, kept, reduction)


@cross_entropy_from_logits.misconception(
    "The softmax was taken first and its logarithm afterwards. Large differences round to the "
    "probability 0, whose log is -inf; stay in log space."
)
def log_of_softmax(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    return reduced(picked(logits.softmax(1).log(), target, kept), kept, reduction)


@cross_entropy_from_logits.misconception(
    "squeeze() without a dimension removes every axis of size 1, the batch axis too when there is "
    "one sample. Name the axis that may go."
)
def squeezes_every_axis(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    lookup = target.where(kept, 0).unsqueeze(1)
    log_p = logits.log_softmax(1).gather(1, lookup).squeeze()
    return reduced(torch.where(kept.squeeze(), -log_p, 0), kept, reduction)


@cross_entropy_from_logits.misconception(
    "squeeze() without a dimension removes every axis of size 1. Where target is (N, 1), losses of "
    "shape (N,) meet a mask of shape (N, 1), and broadcasting makes (N, N) of them."
)
def squeezes_every_axis_and_broadcasts(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    lookup = target.where(kept, 0).unsqueeze(1)
    log_p = logits.log_softmax(1).gather(1, lookup).squeeze()
    return reduced(torch.where(kept, -log_p, 0), kept, reduction)


@cross_entropy_from_logits.misconception(
    "You ignored what is negative, or what is -100, and not what the caller names: ignore_index "
    "may be 255, or 0, and then a valid class is left out."
)
def ignores_negative_targets(logits, target, ignore_index=-100, reduction="mean"):
    kept = target >= 0
    return reduced(picked(logits.log_softmax(1), target, kept), kept, reduction)


@cross_entropy_from_logits.misconception(
    "Where everything is ignored you return 0. The contract says nan: there is no mean of "
    "nothing, and 0 would look like a perfect batch."
)
def zero_for_nothing(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    losses = picked(logits.log_softmax(1), target, kept)
    return reduced(losses, kept, reduction, kept.sum().clamp(min=1))


@cross_entropy_from_logits.misconception(
    "A reduction you do not know is taken for the mean. A typing error in the caller's code then "
    "goes unnoticed; it should raise ValueError."
)
def accepts_any_reduction(logits, target, ignore_index=-100, reduction="mean"):
    known = reduction if reduction in ALL else "mean"
    return cross_entropy_from_logits.reference(logits, target, ignore_index, known)


@cross_entropy_from_logits.misconception(
    "The sign is missing: log-probabilities are at most 0, and a loss has to fall when they rise."
)
def without_the_minus_sign(logits, target, ignore_index=-100, reduction="mean"):
    return -cross_entropy_from_logits.reference(logits, target, ignore_index, reduction)


@cross_entropy_from_logits.misconception(
    "The logits themselves were picked: without log-softmax the loss is unbounded below, and "
    "nothing pushes the wrong classes down."
)
def picks_raw_logits(logits, target, ignore_index=-100, reduction="mean"):
    kept = target != ignore_index
    return reduced(picked(logits, target, kept), kept, reduction)


@cross_entropy_from_logits.misconception(
    "You replaced the ignore value in the target you were given. Make the replaced copy a tensor "
    "of your own."
)
def edits_the_target(logits, target, ignore_index=-100, reduction="mean"):
    result = cross_entropy_from_logits.reference(logits, target, ignore_index, reduction)
    target[target == ignore_index] = 0
    return result


@cross_entropy_from_logits.misconception(
    "A result came out as float32 where it should not. Compute in a wider type where you like, and "
    "return the dtype of the logits."
)
def always_float32(logits, target, ignore_index=-100, reduction="mean"):
    return cross_entropy_from_logits.reference(logits.float(), target, ignore_index, reduction)


cross_entropy_from_logits.hints(
    "gather along axis 1 wants an index that has that axis too.",
    "What would a lookup do with -100? Give it a copy of the target that is safe to look up.",
    "Mask the result by selecting, not by multiplying: what is 0 times inf?",
)
