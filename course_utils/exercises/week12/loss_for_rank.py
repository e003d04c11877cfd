"""The loss of one rank that makes the mean of DDP the gradient of the large batch."""

import torch
from torch.nn import functional as F

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise


@exercise(objectives=("dist.large_batch",))
def loss_for_rank(
    logits: torch.Tensor,
    targets: torch.Tensor,
    global_count: int,
    world_size: int,
) -> torch.Tensor:
    """The 0-dim loss this rank has to backpropagate.

    DDP averages gradients over world_size ranks. The average is to be the gradient of the mean
    cross-entropy over all counted targets of all ranks, however they are spread.

    logits (n, C) and targets (n,), int64, belong to this rank. A target of -100 is ignored: it
    counts nowhere. global_count >= 1 is the number of counted targets on all ranks together. Logits
    may be large.

    n may be 0, or all targets of this rank ignored. The loss is then a zero that is connected to
    logits, so that backward runs and gives them a gradient of zeros. The dtype is that of logits.
    """
    total = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    return total * (world_size / global_count)


def shard(draw, rows, classes, *, ignored=0, dtype=torch.float32, scale=1):
    """Logits and targets of one rank; the first `ignored` targets, in random order, are -100."""
    targets = draw.integers(0, classes - 1, rows)
    targets[draw.permutation(rows)[:ignored]] = -100
    return (scale * draw.normal(rows, classes, dtype=dtype)).requires_grad_(), targets


def looked_at(implementation, draw, logits, targets, global_count, world_size):
    """The loss, the gradient that arrives at the logits, and what was put there already."""
    loss = attempt(implementation, logits, targets, global_count, world_size)
    upstream = draw.tensor(draw.number(1.5, 3), dtype=logits.dtype)
    return {
        "1. loss": loss,
        "2. gradient of logits": gradients(loss, logits, upstream),
        "3. logits.grad after the call": logits.grad,
    }


@loss_for_rank.case
def a_shard_smaller_than_the_others(implementation, draw):
    rows, classes = draw.sizes(2, 3, 7)
    logits, targets = shard(draw, rows, classes)
    return looked_at(implementation, draw, logits, targets, 2 * rows + draw.whole(3, 9), 2)


@loss_for_rank.case
def ignored_targets(implementation, draw):
    rows, classes = draw.sizes(2, 5, 8)
    logits, targets = shard(draw, rows, classes, ignored=draw.whole(1, 3))
    return looked_at(implementation, draw, logits, targets, rows + draw.whole(8, 12), 3)


@loss_for_rank.case
def three_ranks_and_their_mean(implementation, draw):
    classes = draw.whole(3, 5)
    rows = draw.sizes(3, 3, 9)
    shards = [shard(draw, n, classes, ignored=draw.whole(0, 1), dtype=torch.float64) for n in rows]
    count = sum(int((targets != -100).sum()) for _, targets in shards)
    ranks = [looked_at(implementation, draw, *part, count, 3) for part in shards]
    losses = [rank["1. loss"] for rank in ranks]
    single = all(isinstance(loss, torch.Tensor) and loss.numel() == 1 for loss in losses)
    return {"ranks": ranks, "mean of the losses": sum(losses).item() / 3 if single else "unknown"}


@loss_for_rank.case
def all_targets_ignored(implementation, draw):
    rows, classes = draw.sizes(2, 2, 6)
    logits, targets = shard(draw, rows, classes, ignored=rows, scale=100)
    with torch.no_grad():
        logits[0, 0] = 100 + draw.number(10, 90)  # larger than exp can bear in float32
    return looked_at(implementation, draw, logits, targets, draw.whole(5, 9), 2)


@loss_for_rank.case
def a_rank_without_rows(implementation, draw):
    logits, targets = shard(draw, 0, draw.whole(2, 5), dtype=torch.float64)
    return looked_at(implementation, draw, logits, targets, draw.whole(5, 9), draw.whole(2, 4))


@loss_for_rank.case
def this_rank_holds_all_counted_targets(implementation, draw):
    rows, classes = draw.sizes(2, 4, 8)
    logits, targets = shard(draw, rows, classes, ignored=2)
    return looked_at(implementation, draw, logits, targets, rows - 2, draw.whole(2, 4))


@loss_for_rank.case
def a_world_of_one_rank_and_large_logits(implementation, draw):
    rows, classes = draw.sizes(2, 4, 8)
    logits, targets = shard(draw, rows, classes, ignored=2, scale=300)
    return looked_at(implementation, draw, logits, targets, rows - 2, 1)


def summed(logits, targets):
    """The sum of the cross-entropies of the counted rows."""
    return F.cross_entropy(logits, targets, reduction="sum")


def counted(targets):
    """The number of counted targets."""
    return int((targets != -100).sum())


@loss_for_rank.misconception(
    "You return the mean over this rank's own rows. DDP's mean of such means gives the rows of "
    "small shards too much weight, and an empty shard is NaN."
)
def local_mean(logits, targets, global_count, world_size):
    return F.cross_entropy(logits, targets)


@loss_for_rank.misconception(
    "The mean over this rank's rows is made safe against shards without any, and it is still a "
    "local mean: small shards get too much weight. The divisor belongs to all ranks together."
)
def local_mean_without_nan(logits, targets, global_count, world_size):
    return summed(logits, targets) / max(counted(targets), 1)


@loss_for_rank.misconception(
    "Your loss is this rank's share of the global mean. DDP divides by the world size afterwards, "
    "so the gradient arrives too small by that factor."
)
def world_size_missing(logits, targets, global_count, world_size):
    return summed(logits, targets) / global_count


@loss_for_rank.misconception(
    "You divide by this rank's own count, scaled by the world size. The divisor must be the same "
    "on all ranks: the global count."
)
def local_count(logits, targets, global_count, world_size):
    return summed(logits, targets) * world_size / max(counted(targets), 1)


@loss_for_rank.misconception(
    "With nothing to count you return a constant. It has no graph, or one that does not lead to "
    "logits: this rank takes no part in the all-reduce, and the others hang. A zero made from "
    "logits has one."
)
def early_return(logits, targets, global_count, world_size):
    if not counted(targets):
        return logits.new_zeros(())
    return summed(logits, targets) * world_size / global_count


@loss_for_rank.misconception(
    "With nothing to count you return torch.tensor(0.0). It is float32, and above all it has "
    "no graph: this rank takes no part in the all-reduce, and the others hang. A zero made from "
    "logits has one."
)
def constant_zero(logits, targets, global_count, world_size):
    if not counted(targets):
        return torch.tensor(0.0, device=logits.device)
    return summed(logits, targets) * world_size / global_count


@loss_for_rank.misconception(
    "A rank without rows is looked after with torch.tensor(0.0). That has no graph: this rank "
    "takes no part in the all-reduce, and the others hang. A zero made from logits has one."
)
def constant_zero_without_rows(logits, targets, global_count, world_size):
    if not len(targets):
        return torch.tensor(0.0, device=logits.device)
    return summed(logits, targets) * world_size / global_count


@loss_for_rank.misconception(
    "You take exp of the logits as they are. Large ones overflow to inf, and the loss becomes NaN "
    "or inf. Use a function that begins with logits and takes care of that."
)
def exponentials_overflow(logits, targets, global_count, world_size):
    rows = targets != -100
    exponentials = logits[rows].exp()
    own = exponentials.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
    total = -(own / exponentials.sum(dim=1)).log().sum()
    return total * world_size / global_count


@loss_for_rank.misconception(
    "With nothing to count you multiply something made with exp by 0. Large logits make it inf, "
    "and inf times 0 is NaN. Make the zero from numbers that stay finite."
)
def zero_times_infinity(logits, targets, global_count, world_size):
    if not counted(targets):
        return logits.exp().sum() * 0
    return summed(logits, targets) * world_size / global_count


@loss_for_rank.misconception(
    "With nothing to count you return a fresh zero that requires a gradient. It is a leaf of its "
    "own, so backward runs and nothing reaches logits. The zero has to be made from logits."
)
def zero_that_is_a_leaf(logits, targets, global_count, world_size):
    if not counted(targets):
        return logits.new_zeros((), requires_grad=True)
    return summed(logits, targets) * world_size / global_count


@loss_for_rank.misconception(
    "You begin with the local mean and weight it by the local count. Where that count is 0 the "
    "mean is NaN, and NaN times 0 stays NaN. Begin with the sum."
)
def weighted_mean_is_nan(logits, targets, global_count, world_size):
    return F.cross_entropy(logits, targets) * counted(targets) * world_size / global_count


@loss_for_rank.misconception(
    "You weight the local mean by the number of rows. Ignored rows are among them; the mean was "
    "over counted rows only."
)
def weighted_by_all_rows(logits, targets, global_count, world_size):
    mean = summed(logits, targets) / max(counted(targets), 1)
    return mean * len(targets) * world_size / global_count


@loss_for_rank.misconception(
    "Ignored rows get into the loss: a target of -100 means that the row counts nowhere, neither "
    "in the sum nor in the gradient."
)
def ignored_rows_count(logits, targets, global_count, world_size):
    return summed(logits, targets.clamp(min=0)) * world_size / global_count


@loss_for_rank.misconception(
    "World size and global count are the wrong way around: you divide by one and multiply with "
    "the other where it should be the reverse, or divide by both."
)
def divided_by_both(logits, targets, global_count, world_size):
    return summed(logits, targets) / (global_count * world_size)


@loss_for_rank.misconception(
    "The sum is not divided by the global count. The gradient grows with the number of rows; "
    "asked is that of the global mean."
)
def sum_not_divided(logits, targets, global_count, world_size):
    return summed(logits, targets) * world_size


@loss_for_rank.misconception(
    "The value is right, and the loss has no graph: it was detached, or went through a Python "
    "number. Nothing can be backpropagated."
)
def without_graph(logits, targets, global_count, world_size):
    return (summed(logits, targets) * world_size / global_count).detach()


@loss_for_rank.misconception("The loss is always float32. Its dtype is to be that of logits.")
def always_float32(logits, targets, global_count, world_size):
    return (summed(logits, targets) * world_size / global_count).float()


@loss_for_rank.misconception(
    "You call backward yourself. The function only makes the loss; the caller's backward would "
    "then add the same gradient a second time."
)
def calls_backward(logits, targets, global_count, world_size):
    loss = summed(logits, targets) * world_size / global_count
    loss.backward(retain_graph=True)
    return loss


loss_for_rank.hints(
    "Begin with the sum over this rank's counted rows, not with their mean.",
    "Write down the gradient of the global mean as a sum over ranks. Then undo what DDP does to "
    "yours.",
    "A sum over nothing is a fine zero: look at what reduction='sum' gives for no rows, and at "
    "its graph.",
)
