"""A stream that is divided among the workers of all ranks."""

import itertools

import torch
from torch.utils.data import DataLoader

from course_utils.exercise import exercise
from course_utils.exercises.week06._loading import some, worker


@exercise(objectives=("data.iterable", "data.workers"))
class ShardedStream(torch.utils.data.IterableDataset):
    """Stream the items of a sequence so that every worker of every rank gets its own share.

    items: anything with a length that can be indexed with ints from 0 to len(items) - 1; nothing
    more is promised. There are world_size processes, numbered by rank, and each runs a loader with
    n workers, numbered by w: ask torch.utils.data.get_worker_info() each time an iteration starts.
    Without an answer, in the main process, w is 0 and n is 1.

    Iteration yields items[s], items[s + S], items[s + 2 * S], ... as far as the items reach, where
    s = rank * n + w and S = world_size * n. Reading an item may be slow: an iteration reads each of
    these once, when it is asked for, and no other one. The stream can be iterated again and again,
    also twice at the same time.
    """

    def __init__(self, items, rank=0, world_size=1):
        self.items = items
        self.rank = rank
        self.world_size = world_size

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        w, n = (info.id, info.num_workers) if info is not None else (0, 1)
        for position in range(self.rank * n + w, len(self.items), self.world_size * n):
            yield self.items[position]


class Shelf:
    """A sequence that promises a length and ints as indices; it notes which were asked for.

    room: up to there it answers beyond its length too, as nothing says that it must not.
    """

    def __init__(self, books, room=0):
        self._books = list(books)
        self._room = max(room, len(self._books))
        self.asked = []

    def __len__(self):
        return len(self._books)

    def __getitem__(self, position):
        if not isinstance(position, int):
            raise TypeError("this sequence is indexed with ints")
        if not 0 <= position < self._room:
            raise IndexError(position)
        self.asked.append(position)
        return self._books[position] if position < len(self) else -position


def numbers(draw, count):
    """Distinct numbers that do not tell their position; one of them is 0."""
    return (7 * draw.permutation(count)).tolist()


def shards(implementation, items, workers, ranks):
    """What each worker of each rank delivers, in order; workers = 0 is the main process alone."""
    seen = {}
    for rank in range(ranks):
        stream = implementation(items, rank, ranks) if ranks > 1 else implementation(items)
        for number in range(max(workers, 1)):
            name = f"rank {rank}, worker {number}" if workers else f"rank {rank}"
            seen[name] = delivered(stream, number, workers, len(items) + 3)
    return seen


def delivered(stream, number, workers, most):
    """What one worker, or the main process, gets from the stream."""
    if not workers:
        return some(stream, most)
    with worker(number, workers, stream):
        return some(stream, most)


@ShardedStream.case
def one_process(implementation, draw):
    return shards(implementation, [*numbers(draw, 8), None, 1], 0, 1)


@ShardedStream.case
def three_workers(implementation, draw):
    return shards(implementation, numbers(draw, 13), 3, 1)


@ShardedStream.case
def two_ranks_without_workers(implementation, draw):
    return shards(implementation, numbers(draw, 13), 0, 2)


@ShardedStream.case
def two_ranks_with_three_workers_each(implementation, draw):
    return shards(implementation, numbers(draw, 13), 3, 2)


@ShardedStream.case
def two_ranks_with_three_workers_and_ten_items(implementation, draw):
    return shards(implementation, numbers(draw, 10), 3, 2)


@ShardedStream.case
def fewer_items_than_shards(implementation, draw):
    return shards(implementation, numbers(draw, 1), 3, 2)


@ShardedStream.case
def no_items(implementation, draw):
    return [shards(implementation, [], workers, ranks) for workers in (0, 3) for ranks in (1, 2)]


@ShardedStream.case
def several_passes(implementation, draw):
    stream = implementation(numbers(draw, draw.whole(6, 9)))
    whole = [some(stream, 12), some(stream, 12)]
    broken_off = some(stream, 2)
    return [*whole, broken_off, some(stream, 12), delivered(stream, 1, 2, 12)]


@ShardedStream.case
def the_number_of_workers_changes(implementation, draw):
    stream = implementation(numbers(draw, 11))
    seen = {}
    for workers in (2, 3, 0):
        seen[f"{workers} workers"] = [
            delivered(stream, number, workers, 14) for number in range(max(workers, 1))
        ]
    return seen


@ShardedStream.case
def made_inside_a_worker(implementation, draw):
    with worker(1, 2):
        stream = implementation(numbers(draw, 7))
        inside = some(stream, 10)
    return {"in that worker": inside, "in the main process": some(stream, 10)}


@ShardedStream.case
def a_sequence_with_a_length_and_ints_alone(implementation, draw):
    return shards(implementation, Shelf(numbers(draw, 9)), 2, 2)


@ShardedStream.case
def which_items_are_read(implementation, draw):
    books, seen = numbers(draw, 12), {}
    for rank, number in ((0, 1), (1, 0)):
        shelf = Shelf(books)
        stream = implementation(shelf, rank, 2)
        first = delivered(stream, number, 2, 1)
        early = sorted(shelf.asked)
        got = delivered(stream, number, 2, 12)
        seen[f"rank {rank}, worker {number}"] = {
            "1. got": [first, got],
            "2. positions": sorted(shelf.asked),
            "3. positions when one was asked for": early,
        }
    return seen


@ShardedStream.case
def items_that_answer_beyond_their_length(implementation, draw):
    return shards(implementation, Shelf(numbers(draw, 5), room=12), 0, 2)


@ShardedStream.case
def two_streams_side_by_side(implementation, draw):
    left, right = implementation(numbers(draw, 7)), implementation(numbers(draw, 9), 1, 2)
    return {"1. left": some(left, 9), "2. right": some(right, 9)}


@ShardedStream.case
def two_iterations_at_once(implementation, draw):
    stream = implementation(numbers(draw, draw.whole(6, 9)), 1, 2)
    first, second = iter(stream), iter(stream)
    return [
        [next(iterator, "nothing more") for iterator in (first, second, first)],
        some(second, 9),
    ]


@ShardedStream.case
def through_a_DataLoader(implementation, draw):
    items = numbers(draw, draw.whole(9, 12))
    loader = DataLoader(implementation(items, rank=1, world_size=2), batch_size=2)
    return some(loader, len(items))


class Parts(torch.utils.data.IterableDataset):
    """The stream in parts that can be exchanged."""

    def __init__(self, items, rank=0, world_size=1):
        self.items, self.rank, self.world_size = items, rank, world_size

    def worker(self):
        info = torch.utils.data.get_worker_info()
        return (info.id, info.num_workers) if info else (0, 1)

    def shard(self):
        """The number of this shard, and how many there are."""
        w, n = self.worker()
        return self.rank * n + w, self.world_size * n

    def positions(self):
        start, step = self.shard()
        return range(start, len(self.items), step)

    def __iter__(self):
        return (self.items[position] for position in self.positions())


@ShardedStream.misconception(
    "Your stream ignores the workers. Every worker runs the whole iteration, so two workers "
    "deliver each item twice."
)
class ignores_the_workers(Parts):
    def worker(self):
        return 0, 1


@ShardedStream.misconception(
    "Everybody gets everything: every worker of every rank delivers all items. Each should step "
    "over those of the others."
)
class everything_for_everybody(Parts):
    def shard(self):
        return 0, 1


@ShardedStream.misconception(
    "You ask for the worker in the constructor. That runs in the main process, where there is no "
    "answer; the copies in the workers keep it. Ask when the iteration starts."
)
class asks_in_the_constructor(Parts):
    def __init__(self, items, rank=0, world_size=1):
        super().__init__(items, rank, world_size)
        self.asked = super().worker()

    def worker(self):
        return self.asked


@ShardedStream.misconception(
    "You ask for the worker once and remember the answer. A later iteration may run with another "
    "number of workers; ask each time."
)
class remembers_the_first_answer(Parts):
    asked = None

    def worker(self):
        self.asked = self.asked or super().worker()
        return self.asked


@ShardedStream.misconception("Your stream ignores the rank: every process reads the same items.")
class ignores_the_rank(Parts):
    def shard(self):
        return self.worker()


@ShardedStream.misconception(
    "You divide the items into blocks with integer division, and what is left over belongs to "
    "nobody."
)
class blocks_that_lose_the_remainder(Parts):
    def positions(self):
        shard, shards = self.shard()
        size = len(self.items) // shards
        return range(shard * size, (shard + 1) * size)


@ShardedStream.misconception(
    "Each shard is a block of neighbors in your code. Nothing is lost, but the contract steps "
    "through the items, so that all shards move on together and the mix stays that of the whole."
)
class blocks_of_neighbors(Parts):
    def positions(self):
        shard, shards = self.shard()
        size = -(-len(self.items) // shards)
        return range(min(shard * size, len(self.items)), min((shard + 1) * size, len(self.items)))


@ShardedStream.misconception(
    "Your step is the number of workers of one rank. The ranks then step over the same items; the "
    "step is the number of all shards."
)
class step_of_one_rank(Parts):
    def positions(self):
        shard, _ = self.shard()
        return range(shard, len(self.items), self.worker()[1])


@ShardedStream.misconception(
    "Your step is the number of ranks. The workers of a rank then step over the same items; the "
    "step is the number of all shards."
)
class step_of_the_ranks(Parts):
    def positions(self):
        shard, _ = self.shard()
        return range(shard, len(self.items), self.world_size)


@ShardedStream.misconception(
    "Your shards start at rank + worker, so that some start at the same item and others at none. "
    "Count how many workers the ranks before have."
)
class adds_rank_and_worker(Parts):
    def shard(self):
        w, n = self.worker()
        return self.rank + w, self.world_size * n


@ShardedStream.misconception(
    "You number the shards the other way round: worker by worker, rank within worker. Nothing is "
    "lost, but it is another assignment than the contract's s = rank * n + w."
)
class ranks_within_workers(Parts):
    def shard(self):
        w, n = self.worker()
        return w * self.world_size + self.rank, self.world_size * n


@ShardedStream.misconception(
    "Your stream runs dry: the iterator is made once, and a second pass finds it used up. Make a "
    "new one each time an iteration starts."
)
class runs_dry(Parts):
    def __init__(self, items, rank=0, world_size=1):
        super().__init__(items, rank, world_size)
        self.made = {}

    def __iter__(self):
        return self.made.setdefault(self.worker(), super().__iter__())


@ShardedStream.misconception(
    "You cut all shards to the same length, so the last few items are lost."
)
class drops_the_tail(Parts):
    def positions(self):
        start, step = self.shard()
        return range(start, len(self.items) - len(self.items) % step, step)


@ShardedStream.misconception(
    "You fill the shards up to equal length by starting again at the front, so some items come "
    "twice. That is what a DistributedSampler does; a stream without loss or repetition does not."
)
class fills_up_from_the_front(Parts):
    def positions(self):
        start, step = self.shard()
        count = -(-len(self.items) // step)
        return [(start + k * step) % len(self.items) for k in range(count)]


@ShardedStream.misconception(
    "In the main process there is no worker, and get_worker_info answers None. Your code asks that "
    "None for its number."
)
class needs_a_worker(Parts):
    def worker(self):
        info = torch.utils.data.get_worker_info()
        return info.id, info.num_workers


@ShardedStream.misconception(
    "You take a slice of the items. They promise a length and ints as indices, no more; many data "
    "sources cannot be sliced."
)
class takes_a_slice(Parts):
    def __iter__(self):
        start, step = self.shard()
        return iter(self.items[start::step])


@ShardedStream.misconception(
    "You go through all the items and keep your own. Every worker then reads the whole data, which "
    "is the work that was to be shared. Count through the positions instead, and read at yours."
)
class reads_everything(Parts):
    def __iter__(self):
        start, step = self.shard()
        for position, item in enumerate(self.items):
            if position % step == start:
                yield item


@ShardedStream.misconception(
    "You leave out items that count as false, such as 0 or None. They are items like any other; "
    "only the positions say what belongs to a shard."
)
class leaves_out_what_counts_as_false(Parts):
    def __iter__(self):
        return (item for item in super().__iter__() if item)


@ShardedStream.misconception(
    "You leave out items that are None. None is an item like any other; only the positions say "
    "what belongs to a shard."
)
class leaves_out_None(Parts):
    def __iter__(self):
        return (item for item in super().__iter__() if item is not None)


@ShardedStream.misconception(
    "You read the whole shard before the first item is delivered. The loop waits for all of them, "
    "and all must fit into memory at once; read each when its turn comes."
)
class reads_its_shard_at_once(Parts):
    def __iter__(self):
        return iter(list(super().__iter__()))


@ShardedStream.misconception(
    "You read each item twice: once to look at it and once more to deliver it. Reading may be "
    "slow; keep what you read in a variable."
)
class reads_each_twice(Parts):
    def __iter__(self):
        for position in self.positions():
            if self.items[position] is not self:
                yield self.items[position]


@ShardedStream.misconception(
    "You read one item more than was asked for. Whoever stops early has waited for an item that "
    "nobody uses."
)
class reads_one_ahead(Parts):
    def __iter__(self):
        items = super().__iter__()
        waiting = list(itertools.islice(items, 1))
        for item in items:
            waiting.append(item)
            yield waiting.pop(0)
        yield from waiting


@ShardedStream.misconception(
    "You read on until an IndexError comes. The items promise a length and indices below it, and "
    "may answer beyond, as the Database of section 1 does. Stop at the length."
)
class reads_until_an_error(Parts):
    def __iter__(self):
        position, step = self.shard()
        while True:
            try:
                item = self.items[position]
            except IndexError:
                return
            yield item
            position += step


@ShardedStream.misconception(
    "The items are kept on the class, where all streams share them: the stream made last replaces "
    "the items of those before. Keep them on self."
)
class items_for_all_streams(Parts):
    def __init__(self, items, rank=0, world_size=1):
        type(self).items = items
        self.rank, self.world_size = rank, world_size


@ShardedStream.misconception(
    "The stream is its own iterator: its position is kept in the dataset, so a second iteration "
    "moves the first one as well. Let each iteration have a position of its own."
)
class is_its_own_iterator(Parts):
    def __iter__(self):
        self.rest = super().__iter__()
        return self

    def __next__(self):
        return next(self.rest)


@ShardedStream.misconception("You yield positions. Yield the items that stand there.")
class yields_positions(Parts):
    def __iter__(self):
        return iter(self.positions())


ShardedStream.hints(
    "Give every worker of every rank one number, counted through. How many such numbers are there?",
    "Start at that number and step by how many there are; then nothing is lost at the end.",
    "When does a dataset know in which worker it runs: when it is made, or when it is iterated?",
)
