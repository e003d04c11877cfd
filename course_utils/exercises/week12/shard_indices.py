"""Which rows of the data belong to one rank, in one epoch."""

import math
import random

import torch
from torch.utils.data import DistributedSampler

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("dist.shard",), forbids=(DistributedSampler,))
def shard_indices(
    n: int,
    world_size: int,
    rank: int,
    epoch: int,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
) -> list[int]:
    """The indices that DistributedSampler would give this rank, as a list of Python ints.

    n >= 1 is the number of rows. With shuffle their order is torch.randperm(n), drawn from a CPU
    generator seeded with seed + epoch; without, it is 0, 1, …, n-1.

    drop_last=False: pad the order to ceil(n / world_size) * world_size entries by repeating it from
    its start, as often as needed. drop_last=True: keep its first n // world_size * world_size
    entries. Then rank r gets positions r, r + world_size, r + 2 * world_size, …

    ValueError for a rank outside 0, …, world_size - 1. torch's global random state is not touched.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}; ranks go from 0 to {world_size - 1}")
    if shuffle:
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(n, generator=generator).tolist()
    else:
        order = list(range(n))
    rounds = n // world_size if drop_last else math.ceil(n / world_size)
    return [order[position % n] for position in range(rank, rounds * world_size, world_size)]


def all_ranks(implementation, n, world_size, epoch, *rest, **flags):
    """The shard of every rank."""
    return [
        attempt(implementation, n, world_size, rank, epoch, *rest, **flags)
        for rank in range(world_size)
    ]


@shard_indices.case
def more_rows_than_ranks_in_order(implementation, draw):
    more = 4 * draw.whole(0, 3)
    return all_ranks(implementation, 10 + more, 4, draw.whole(0, 3), shuffle=False)


@shard_indices.case
def more_rows_than_ranks_shuffled(implementation, draw):
    more, seed = 4 * draw.whole(0, 3), draw.whole(1, 1000)
    return [all_ranks(implementation, 10 + more, 4, epoch, seed) for epoch in (0, 3)]


@shard_indices.case
def rows_that_divide_evenly(implementation, draw):
    n, seed = 3 * draw.whole(3, 5), draw.whole(1, 1000)
    flags = {"seed": seed, "drop_last": draw.choice((False, True))}
    return [
        all_ranks(implementation, n, 3, 3, seed),
        all_ranks(implementation, n, 3, 0, shuffle=False, drop_last=True),
        attempt(implementation, n, 3, draw.whole(0, 2), 1, **flags),
    ]


@shard_indices.case
def the_last_rows_are_dropped(implementation, draw):
    world_size = draw.whole(3, 5)
    n, seed = world_size * draw.whole(2, 3) + world_size - 1, draw.whole(1, 1000)
    return [
        all_ranks(implementation, n, world_size, 3, seed, drop_last=True),
        all_ranks(implementation, n, world_size, 0, shuffle=False, drop_last=True),
    ]


@shard_indices.case
def fewer_rows_than_ranks(implementation, draw):
    extra = draw.whole(0, 4)  # the order is repeated more than once
    return [
        all_ranks(implementation, 2, 5 + extra, 0, shuffle=False),
        all_ranks(implementation, 2, 5 + extra, 3, draw.whole(1, 1000)),
    ]


@shard_indices.case
def one_row_for_three_ranks(implementation, draw):
    seed = draw.whole(1, 1000)
    return [
        all_ranks(implementation, 1, 3, 0, seed),
        all_ranks(implementation, 1, 3, 3, seed, True, True),
    ]


@shard_indices.case
def a_single_rank_gets_everything(implementation, draw):
    n, seed = draw.whole(6, 9), draw.whole(1, 1000)
    return [
        attempt(implementation, n, 1, 0, 3, seed),
        attempt(implementation, n, 1, 0, 3, seed, False, True),
        attempt(implementation, n, 1, 0, 0),
    ]


@shard_indices.case
def every_epoch_and_seed_has_its_order(implementation, draw):
    n, rank, seed = draw.whole(14, 20), draw.whole(0, 1), draw.whole(10, 1000)
    return [
        attempt(implementation, n, 2, rank, epoch, seed=start, shuffle=True)
        for epoch, start in ((0, seed), (1, seed), (2, seed), (1, seed + 1), (0, 0), (5, 0))
    ]


@shard_indices.case
def ranks_that_do_not_exist(implementation, draw):
    n, world_size = draw.whole(8, 12), draw.whole(2, 4)
    return [
        attempt(implementation, n, world_size, -1, 0),
        attempt(implementation, n, world_size, world_size, 0),
        attempt(implementation, n, world_size, world_size, 3, shuffle=False, drop_last=True),
        attempt(implementation, n, world_size, -world_size, 0, shuffle=False),
        attempt(implementation, n, 1, 1, 0),
        attempt(implementation, 1, world_size, world_size, 0, drop_last=True),
    ]


@shard_indices.case
def random_numbers_drawn_before_and_after(implementation, draw):
    before = torch.rand(2)
    n, seed = draw.whole(5, 9), draw.whole(1, 1000)
    return {
        "1. shards": [implementation(n, 2, 1, 0, seed, shuffle) for shuffle in (True, False)],
        "2. random numbers of the caller": torch.cat([before, torch.rand(2)]),
    }


def sharded(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False, *, order=None,
            fit=None, deal=None):  # fmt: skip
    """The answer in parts that can be exchanged.

    order(n, seed + epoch) permutes, fit(order, world_size) pads, deal(order, world_size, rank)
    picks.
    """
    if not 0 <= rank < world_size:
        raise ValueError(rank)
    rows = (order or permuted)(n, seed + epoch) if shuffle else list(range(n))
    kept = n // world_size * world_size
    rows = rows[:kept] if drop_last else (fit or padded)(rows, world_size)
    return deal(rows, world_size, rank) if deal else rows[rank::world_size]


def permuted(n, seed):
    """The order of one epoch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def padded(rows, world_size):
    """Repeated from the start up to a multiple of the world size."""
    total = math.ceil(len(rows) / world_size) * world_size
    return [rows[position % len(rows)] for position in range(total)]


@shard_indices.misconception(
    "You cut the order into contiguous blocks. The sampler deals the indices out like cards: rank "
    "r gets every world_size-th one. With blocks all the padding would fall to the last ranks."
)
def contiguous_blocks(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    def deal(rows, world_size, rank):
        share = len(rows) // world_size
        return rows[rank * share : (rank + 1) * share]

    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last, deal=deal)


@shard_indices.misconception(
    "Nothing is padded, so the ranks hold different numbers of rows. A rank with fewer batches is "
    "done early and leaves the others waiting in the all-reduce."
)
def no_padding(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    def fit(rows, world_size):
        return rows

    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last, fit=fit)


@shard_indices.misconception(
    "You pad with one slice from the start of the order. It is too short when there are fewer "
    "rows than places to fill: then the order has to be repeated several times."
)
def padded_once(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    def fit(rows, world_size):
        return rows + rows[: -len(rows) % world_size]

    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last, fit=fit)


@shard_indices.misconception(
    "The padding does not come from the start of the order. The sampler begins again with the "
    "first index of this epoch's order, then the second, and so on."
)
def padded_with_the_last(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    def fit(rows, world_size):
        return rows + rows[-1:] * (-len(rows) % world_size)

    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last, fit=fit)


@shard_indices.misconception(
    "You pad with the rows 0, 1, 2, … themselves. After a shuffle the order starts with other "
    "rows; the sampler repeats the order, not the numbering."
)
def padded_with_the_first_rows(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    def fit(rows, world_size):
        more = -len(rows) % world_size
        return rows + [row % len(rows) for row in range(more)]

    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last, fit=fit)


@shard_indices.misconception(
    "The epoch plays no role in your order. Without the epoch in the seed every epoch repeats the "
    "same order, which is what happens when nobody calls set_epoch."
)
def epoch_ignored(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    return sharded(n, world_size, rank, 0, seed, shuffle, drop_last)


@shard_indices.misconception(
    "The seed plays no role in your order: only the epoch does. The generator is seeded with the "
    "sum of both."
)
def seed_ignored(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    return sharded(n, world_size, rank, epoch, 0, shuffle, drop_last)


@shard_indices.misconception(
    "Each rank shuffles in its own way. Different permutations overlap: some rows are seen twice, "
    "others never. One permutation, known to all ranks, is what they share out."
)
def shuffle_per_rank(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    return sharded(n, world_size, rank, epoch, seed + rank, shuffle, drop_last)


@shard_indices.misconception(
    "You share out first and shuffle within the rank afterwards. Then a rank sees the same rows "
    "in every epoch, in another order. Permute all rows before they are dealt."
)
def shuffled_within_the_shard(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    rows = sharded(n, world_size, rank, epoch, seed, False, drop_last)
    return [rows[i] for i in permuted(len(rows), seed + epoch)] if shuffle else rows


@shard_indices.misconception(
    "The order comes from another source of random numbers than torch.randperm(n) with a "
    "generator seeded by seed + epoch. It must be that one, so that all ranks, and the sampler, "
    "agree."
)
def shuffled_by_python(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    def order(n, seed):
        return random.Random(seed).sample(range(n), n)

    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last, order=order)


@shard_indices.misconception(
    "The shards are right, and torch's global random state is not what it was: you seeded it. The "
    "next dropout mask or initial weight of your caller comes out different. Use a generator of "
    "your own."
)
def global_state_seeded(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    def order(n, seed):
        torch.manual_seed(seed)
        return torch.randperm(n, device="cpu").tolist()

    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last, order=order)


@shard_indices.misconception(
    "torch's global random state is seeded even where nothing is shuffled. The caller's next "
    "random numbers come out different. Use a generator of your own."
)
def global_state_seeded_without_shuffling(
    n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False
):
    if not shuffle:
        torch.manual_seed(seed + epoch)
    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last)


@shard_indices.misconception(
    "drop_last changes nothing: the order is padded all the same. With it the rows that do not "
    "fill a whole round are left out."
)
def drop_last_ignored(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    return sharded(n, world_size, rank, epoch, seed, shuffle)


@shard_indices.misconception(
    "drop_last only leaves out the padding, so the first ranks get one row more than the others. "
    "It also has to drop the rows of the incomplete round."
)
def drop_last_without_dropping(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    rows = sharded(n, 1, 0, epoch, seed, shuffle)
    if drop_last and 0 <= rank < world_size:
        return rows[rank::world_size]
    return sharded(n, world_size, rank, epoch, seed, shuffle)


@shard_indices.misconception(
    "drop_last takes a row from each rank even where all rounds are complete. Then there is "
    "nothing to drop."
)
def drop_last_always_drops(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    rows = sharded(n, world_size, rank, epoch, seed, shuffle)
    return rows[:-1] if drop_last else rows


@shard_indices.misconception(
    "With fewer rows than ranks your drop_last keeps a padded round all the same. No round is "
    "full then, and every rank is left with nothing."
)
def drop_last_keeps_one_round(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    drop_last = drop_last and n >= world_size
    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last)


@shard_indices.misconception(
    "Where no row is left you return before the rank is looked at. A rank that does not exist is "
    "an error in every case; check it first."
)
def empty_before_the_check(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    if drop_last and n < world_size:
        return []
    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last)


@shard_indices.misconception("shuffle=False is not looked at: your order is always permuted.")
def always_shuffled(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    return sharded(n, world_size, rank, epoch, seed, True, drop_last)


@shard_indices.misconception(
    "A rank that does not exist gets a shard all the same, be it empty; a negative one counts "
    "from the end. Such a rank is a mistake of the launch; say so with ValueError."
)
def rank_not_checked(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    return sharded(n, world_size, rank % world_size, epoch, seed, shuffle, drop_last)


@shard_indices.misconception(
    "The rank equal to world_size passes your test. There are world_size ranks, and the first is "
    "0, so the last is world_size - 1."
)
def ranks_counted_from_one(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    if rank == world_size:
        return sharded(n, world_size, 0, epoch, seed, shuffle, drop_last, deal=lambda r, w, k: [])
    return sharded(n, world_size, rank, epoch, seed, shuffle, drop_last)


@shard_indices.misconception(
    "The indices are right and come as a tensor, or as a list of tensors. Return a plain list of "
    "Python ints."
)
def list_of_tensors(n, world_size, rank, epoch, seed=0, shuffle=True, drop_last=False):
    rows = sharded(n, world_size, rank, epoch, seed, shuffle, drop_last)
    return list(torch.tensor(rows, dtype=torch.int64))


shard_indices.hints(
    "There is one order of all rows, the same on every rank. Make that first, without the rank.",
    "Then make its length a multiple of world_size, and take every world_size-th entry.",
    "What if there are fewer rows than ranks? A position past the end can be led back to the "
    "start with one arithmetic operator.",
)
