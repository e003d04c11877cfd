"""A bug hunt: data-parallel training of several replicas, in one process."""

# ruff: noqa: B007 - the epoch that nobody looks at is one of the bugs

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DistributedSampler

from course_utils.cases import same_storage
from course_utils.exercise import exercise
from course_utils.exercises.week07._loops import give_gradients, without_gradients


@exercise(objectives=("dist.ddp_semantics", "dist.shard", "dist.large_batch"))
def simulate_ddp(
    replicas: list[nn.Module],
    x: torch.Tensor,
    y: torch.Tensor,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> list[float]:
    """Train the replicas as the ranks of a DDP job would; return one loss for each step.

    Start: parameters and buffers of rank 0, the first replica, are copied to all others. Gradients
    from before play no role.

    Data: x (n, …) and y (n,), int64 classes. In each epoch a rank has the rows that its
    DistributedSampler gives it: shuffled, with this seed and this epoch. It takes them in
    consecutive slices of batch_size; the last one may be shorter and is used too.

    Step: each rank computes the mean cross-entropy of its slice and the gradient of that; the
    gradients are averaged over all ranks; every rank takes the same step of plain SGD with rate lr.
    The loss of a step is the mean of the losses of all ranks, before the update, as a float.

    Forward changes no buffer, and all parameters are used. The modes stay as they are; what .grad
    holds afterwards is free.
    """
    world_size = len(replicas)
    for replica in replicas[1:]:
        replica.load_state_dict(replicas[0].state_dict())
    optimizers = [torch.optim.SGD(replica.parameters(), lr=lr) for replica in replicas]
    samplers = [DistributedSampler(x, world_size, rank, seed=seed) for rank in range(world_size)]
    history = []
    for epoch in range(epochs):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shards = [list(sampler) for sampler in samplers]
        for start in range(0, len(shards[0]), batch_size):
            losses = []
            for replica, shard in zip(replicas, shards, strict=True):
                rows = shard[start : start + batch_size]
                loss = F.cross_entropy(replica(x[rows]), y[rows])
                replica.zero_grad()
                loss.backward()
                losses.append(loss.item())
            for group in zip(*(replica.parameters() for replica in replicas), strict=True):
                mean = sum(parameter.grad for parameter in group) / world_size
                for parameter in group:
                    parameter.grad = mean.clone()
            for optimizer in optimizers:
                optimizer.step()
            history.append(sum(losses) / world_size)
    return history


class Classifier(nn.Module):
    """A linear layer, where wanted after buffers are subtracted and multiplied with."""

    def __init__(self, draw, inputs, buffers, number):
        super().__init__()
        self.weight = nn.Parameter(0.5 * draw.normal(3, inputs))  # cheaper than nn.Linear's start
        self.bias = nn.Parameter(0.5 * draw.normal(3))
        self.register_buffer("center", draw.normal(inputs) if buffers else None)
        self.register_buffer("times", draw.tensor(number, dtype=torch.int64) if buffers else None)

    def forward(self, x):
        x = x if self.center is None else (x - self.center) * self.times
        return F.linear(x, self.weight, self.bias)


def train(implementation, draw, world_size, rows, *, epochs=1, batch_size=2, buffers=False,
          stale=False, seed=None):  # fmt: skip
    """What came back, all replicas afterwards, without their gradients, and which share memory."""
    inputs = draw.whole(2, 4)
    replicas = [Classifier(draw, inputs, buffers, 1 + rank) for rank in range(world_size)]
    for replica in replicas:
        replica.train(draw.choice((True, False)))
    if stale:
        for replica in replicas:
            give_gradients(draw, replica)
    x, y = draw.normal(rows, inputs), draw.integers(0, 2, rows)
    lr, seed = draw.number(0.3, 0.6), draw.whole(1, 1000) if seed is None else seed
    given, replicas = replicas, list(replicas)  # what is looked at are the models themselves
    result = implementation(given, x, y, epochs, batch_size, lr, seed)
    weights = [next(replica.parameters()) for replica in replicas]
    return {
        "1. losses": result,
        "2. replicas that share their weights": [
            number
            for number, weight in enumerate(weights)
            if any(same_storage(weight, other) for other in weights[:number])
        ],
        "3. replicas": [without_gradients(replica) for replica in replicas],
    }


@simulate_ddp.case(random=True)
def two_replicas_with_weights_of_their_own(implementation, draw):
    return train(implementation, draw, 2, 8, batch_size=4)


@simulate_ddp.case(random=True)
def three_replicas_and_slices_longer_than_their_padded_shards(implementation, draw):
    return train(implementation, draw, 3, draw.whole(7, 8), batch_size=draw.whole(4, 9))


@simulate_ddp.case(random=True)
def one_replica_with_gradients_from_before(implementation, draw):
    return train(implementation, draw, 1, 5, batch_size=3, stale=True)


@simulate_ddp.case(random=True)
def two_replicas_and_a_short_last_slice(implementation, draw):
    return train(implementation, draw, 2, draw.whole(5, 6), stale=True)


@simulate_ddp.case(random=True)
def several_epochs_and_seed_0(implementation, draw):
    return train(implementation, draw, 2, 6, epochs=2, seed=0)


@simulate_ddp.case(random=True)
def buffers_that_differ(implementation, draw):
    return train(implementation, draw, 2, 6, batch_size=3, buffers=True)


@simulate_ddp.case(random=True)
def no_epoch_at_all(implementation, draw):
    return train(implementation, draw, 2, 4, epochs=0, buffers=True)


def simulate(replicas, x, y, epochs, batch_size, lr, seed, *, start="broadcast", set_epoch=True,
             shard=None, seeds=None, tail=True, clear="before", divisor=None, exchange="all",
             steppers="all", report=None, after=False, mode=None, **options):  # fmt: skip
    """The answer in parts that can be exchanged.

    start: "broadcast", "share", "parameters" alone, "floats", or "nothing". shard(rank),
    seeds(seed, rank), options: of the sampler. tail: whether the short last slice is used. clear:
    "before", "after" the step, "first" for the first rank alone, "never". divisor(world size,
    rows). exchange: "all", "none", or "first" for the first rank's gradients. after: losses are
    those after the update. mode: of training, where the answer sets one.
    """
    world_size = len(replicas)
    for replica in replicas:
        replica.train(replica.training if mode is None else mode)
    for replica in replicas[1:]:
        if start == "broadcast":
            replica.load_state_dict(replicas[0].state_dict())
        elif start == "parameters":
            for mine, first in zip(replica.parameters(), replicas[0].parameters(), strict=True):
                mine.data.copy_(first.data)
        elif start == "floats":
            for mine, first in zip(replica.state_dict().values(), replicas[0].state_dict().values(),
                                   strict=True):  # fmt: skip
                if first.is_floating_point():
                    mine.copy_(first)
        elif start == "share":
            for mine, first in zip([*replica.parameters(), *replica.buffers()],
                                   [*replicas[0].parameters(), *replicas[0].buffers()],
                                   strict=True):  # fmt: skip
                mine.data = first.data
    optimizers = [torch.optim.SGD(replica.parameters(), lr=lr) for replica in replicas]
    samplers = [
        DistributedSampler(
            x,
            world_size,
            shard(rank) if shard else rank,
            seed=seeds(seed, rank) if seeds else seed,
            **options,
        )
        for rank in range(world_size)
    ]
    history = []
    for epoch in range(epochs):
        for sampler in samplers:
            sampler.set_epoch(epoch if set_epoch else 0)
        shards = [list(sampler) for sampler in samplers]
        end = len(shards[0]) if tail else len(shards[0]) // batch_size * batch_size
        for begin in range(0, end, batch_size):
            slices = [rows[begin : begin + batch_size] for rows in shards]

            def loss_of(rank, slices=slices):
                return F.cross_entropy(replicas[rank](x[slices[rank]]), y[slices[rank]])

            losses = []
            for rank, replica in enumerate(replicas):
                if clear == "before" or (clear == "first" and rank == 0):
                    replica.zero_grad()
                loss = loss_of(rank)
                loss.backward()
                losses.append(loss.item())
            for group in zip(*(replica.parameters() for replica in replicas), strict=True):
                count = divisor(world_size, len(slices[0])) if divisor else world_size
                mean = sum(parameter.grad for parameter in group) / count
                for parameter in group:
                    if exchange != "none":
                        parameter.grad = (mean if exchange == "all" else group[0].grad).clone()
            for optimizer in optimizers if steppers == "all" else optimizers[:1]:
                optimizer.step()
            if clear == "after":
                for optimizer in optimizers:
                    optimizer.zero_grad()
            if after:
                with torch.no_grad():
                    losses = [loss_of(rank).item() for rank in range(world_size)]
            history.append((report or mean_of)(losses))
    return history


def mean_of(losses):
    """The mean."""
    return sum(losses) / len(losses)


@simulate_ddp.misconception(
    "The replicas start from weights of their own. Equal gradients keep equal weights equal; "
    "different ones stay different. DDP copies rank 0's to all before the first step."
)
def no_broadcast(*args):
    return simulate(*args, start="nothing")


@simulate_ddp.misconception(
    "The parameters of rank 0 are copied, its buffers are not. A forward that uses them computes "
    "something else on each rank."
)
def buffers_not_broadcast(*args):
    return simulate(*args, start="parameters")


@simulate_ddp.misconception(
    "Only what is floating point is copied from rank 0. A buffer of integers is part of the model, "
    "too."
)
def integers_not_broadcast(*args):
    return simulate(*args, start="floats")


@simulate_ddp.misconception(
    "The replicas share the memory of rank 0's weights instead of having copies, so every rank's "
    "step moves all of them: world_size steps for one. Copy the values into each replica's own "
    "tensors."
)
def weights_shared(*args):
    return simulate(*args, start="share")


@simulate_ddp.misconception(
    "You train copies of the first replica. The replicas that were given never learn: it is they "
    "that take the weights of rank 0 and the steps."
)
def copies_trained(replicas, *args):
    return simulate([copy.deepcopy(replicas[0]) for _ in replicas], *args)


@simulate_ddp.misconception(
    "You put copies of the first replica into the list, in place of the others. The models that "
    "the caller made are no longer in it and never learn: it is they that take the weights of "
    "rank 0 and the steps."
)
def entries_replaced(replicas, *args):
    replicas[1:] = [copy.deepcopy(replicas[0]) for _ in replicas[1:]]
    return simulate(replicas, *args)


@simulate_ddp.misconception(
    "The training is right, and the replicas are in training mode afterwards, whatever they were "
    "in. Leave the modes alone."
)
def set_to_training(*args):
    return simulate(*args, mode=True)


@simulate_ddp.misconception(
    "The seed does not reach the samplers. They shuffle with seed 0 plus the epoch, whatever seed "
    "was given."
)
def seed_ignored(*args):
    return simulate(*args, seeds=lambda seed, rank: 0)


@simulate_ddp.misconception(
    "A seed of 0 is taken for no seed, and replaced by another one. 0 is a seed like any other."
)
def seed_0_replaced(*args):
    return simulate(*args, seeds=lambda seed, rank: seed or 1)


@simulate_ddp.misconception(
    "The samplers do not shuffle. DistributedSampler does unless it is told otherwise, and here "
    "the order is to be shuffled."
)
def not_shuffled(*args):
    return simulate(*args, shuffle=False)


@simulate_ddp.misconception(
    "The samplers drop rows that do not fill a round. By default DistributedSampler pads instead, "
    "and here no row is to be left out."
)
def sampler_drops_rows(*args):
    return simulate(*args, drop_last=True)


@simulate_ddp.misconception("The gradients are summed. The step is world_size times too long.")
def sum_not_mean(*args):
    return simulate(*args, divisor=lambda world_size, rows: 1)


@simulate_ddp.misconception(
    "No sampler is told the epoch, so all epochs use the order of epoch 0, and each rank sees the "
    "same rows for the whole run."
)
def epoch_never_set(*args):
    return simulate(*args, set_epoch=False)


@simulate_ddp.misconception(
    "All ranks train on the same shard. Every sampler must get the rank that it is for."
)
def same_shard(*args):
    return simulate(*args, shard=lambda rank: 0)


@simulate_ddp.misconception(
    "Each rank shuffles with a seed of its own. Their shares of different orders overlap, and "
    "some rows are never seen. One order is dealt to all: same seed, different rank."
)
def seed_per_rank(*args):
    return simulate(*args, seeds=lambda seed, rank: seed + rank)


@simulate_ddp.misconception(
    "Gradients are cleared after each step only, so what was there before the call goes into the "
    "first one."
)
def stale_gradients(*args):
    return simulate(*args, clear="after")


@simulate_ddp.misconception(
    "Gradients are cleared on the first rank alone. Each rank has a model and gradients of its "
    "own, and has to clear them."
)
def cleared_on_rank_0_only(*args):
    return simulate(*args, clear="first")


@simulate_ddp.misconception(
    "Before the first step gradients are cleared on the first rank alone. What the other ranks "
    "held from before goes into the first mean."
)
def stale_on_other_ranks(replicas, *args):
    replicas[0].zero_grad()
    return simulate(replicas, *args, clear="after")


@simulate_ddp.misconception("Gradients are never cleared. Each step uses the sum of all before it.")
def never_cleared(*args):
    return simulate(*args, clear="never")


@simulate_ddp.misconception(
    "The short slice at the end of each shard is never used. Count the rows: some are missing in "
    "every epoch, or all of them where a shard is shorter than batch_size."
)
def tail_dropped(*args):
    return simulate(*args, tail=False)


@simulate_ddp.misconception(
    "The training is right. The losses are those of rank 0 alone, which has seen one share of the "
    "rows; report the mean over ranks."
)
def losses_of_rank_0(*args):
    return simulate(*args, report=lambda losses: losses[0])


@simulate_ddp.misconception(
    "The training is right. You report the sum of the ranks' losses; asked is their mean."
)
def losses_summed(*args):
    return simulate(*args, report=sum)


@simulate_ddp.misconception(
    "The training is right. The losses are those after the update; asked are the ones from which "
    "the gradients were computed."
)
def losses_after_the_update(*args):
    return simulate(*args, after=True)


@simulate_ddp.misconception(
    "Nothing is exchanged: each rank steps with the gradient of its own rows, and the replicas "
    "drift apart."
)
def gradients_not_exchanged(*args):
    return simulate(*args, exchange="none")


@simulate_ddp.misconception(
    "All ranks step with the gradient of rank 0. The replicas stay equal, and the rows of the "
    "other ranks are never learned from."
)
def gradients_of_rank_0(*args):
    return simulate(*args, exchange="first")


@simulate_ddp.misconception(
    "Only the first replica takes steps. Every rank has an optimizer and takes the same step; look "
    "also whether each still has its gradient when its turn comes."
)
def only_rank_0_steps(*args):
    return simulate(*args, steppers="first")


@simulate_ddp.broken
def broken_simulate_ddp(replicas, x, y, epochs, batch_size, lr, seed):
    world_size = len(replicas)
    optimizers = [torch.optim.SGD(replica.parameters(), lr=lr) for replica in replicas]
    samplers = [DistributedSampler(x, world_size, rank, seed=seed) for rank in range(world_size)]
    history = []
    for epoch in range(epochs):
        shards = [list(sampler) for sampler in samplers]
        for i in range(len(shards[0]) // batch_size):
            losses = []
            for replica, shard in zip(replicas, shards, strict=True):
                rows = shard[i * batch_size : (i + 1) * batch_size]
                loss = F.cross_entropy(replica(x[rows]), y[rows])
                loss.backward()
                losses.append(loss.item())
            for group in zip(*(replica.parameters() for replica in replicas), strict=True):
                total = sum(parameter.grad for parameter in group)
                for parameter in group:
                    parameter.grad = total
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            history.append(losses[0])
    return history


simulate_ddp.hints(
    "Compare the replicas after the run. If they differ, when did they begin to?",
    "Print the indices of two epochs, and count the rows that are used in one. Are all of them "
    "there?",
    "What does DDP do to the gradients of all ranks? And whose losses are in the list?",
)
