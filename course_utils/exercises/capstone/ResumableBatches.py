"""A data order with an address."""

import math
from collections.abc import Iterator

import torch

from course_utils.exercise import exercise
from course_utils.exercises.week06._loading import GlobalGenerator, some


@exercise(objectives=("cap.position",))
class ResumableBatches:
    """Batches of row numbers with an address: the epoch, and the position in it.

    len is the number of batches of a whole epoch; the last batch may be smaller and counts too. n
    and batch_size are at least 1. It starts in epoch 0 at position 0.
    """

    def __init__(self, n: int, batch_size: int, seed: int):
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the rest of the current epoch, from the position on.

        A batch is an int64 tensor on the CPU: a consecutive slice of torch.randperm(n, generator=g)
        where g is a fresh CPU generator seeded with seed + epoch. position counts the batches
        handed out in this epoch; one counts before its receiver gets it. When the iteration runs
        out, which is when one more batch is asked for after the last, the next epoch begins at
        position 0.

        torch's global generator is neither used nor changed.
        """
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.n, generator=generator)
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            yield order[start : start + self.batch_size]
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict:
        """{"epoch": int, "position": int} as of now; later iteration does not change it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there with the next iteration; state stays as it is.

        A position equal to len means that every batch of the epoch was handed out: the next
        iteration yields nothing and moves on to the next epoch.
        """
        self.epoch, self.position = state["epoch"], state["position"]


def address(batches):
    """Where they stand now."""
    return dict(batches.state_dict())


def take(batches, count):
    """The next batches one by one, with the address while each is held; asks for no more."""
    iterator, held = iter(batches), []
    for _ in range(count):
        batch = next(iterator, "nothing more")
        held.append([batch, address(batches)])
    return held


@ResumableBatches.case
def three_epochs_with_a_ragged_last_batch(implementation, draw):
    batches = implementation(10, 3, draw.whole(1, 10**6))
    seen = [len(batches), address(batches)]
    for _ in range(3):
        seen += [some(batches, 6), address(batches)]
    return seen


@ResumableBatches.case
def batches_that_fit_and_a_batch_larger_than_the_data(implementation, draw):
    seen = []
    for n, batch_size in ((8, 4), (3, 5)):
        batches = implementation(n, batch_size, draw.whole(1, 10**6))
        seen.append([len(batches), [[some(batches, 4), address(batches)] for _ in range(2)]])
    return seen


@ResumableBatches.case
def the_address_while_a_batch_is_held(implementation, draw):
    batches = implementation(10, 3, draw.whole(1, 10**6))
    return [take(batches, 4), len(batches)]


@ResumableBatches.case
def stopped_after_each_batch_of_the_first_epoch(implementation, draw):
    seed, seen = draw.whole(1, 10**6), {}
    for stop in range(5):
        first, second = (implementation(10, 3, seed) for _ in range(2))
        take(first, stop)
        second.load_state_dict(first.state_dict())
        seen[f"after {stop} of 4"] = [some(second, 6), address(second), some(second, 6)]
    return seen


@ResumableBatches.case
def stopped_in_the_second_epoch(implementation, draw):
    seed = draw.whole(1, 10**6)
    first, second = (implementation(8, 3, seed) for _ in range(2))
    some(first, 5)
    take(first, draw.whole(1, 2))
    take(second, 2)  # it has been at work before
    second.load_state_dict(first.state_dict())
    return [address(second), some(second, 5), address(second), some(second, 5)]


@ResumableBatches.case
def an_iteration_that_is_broken_off_and_begun_again(implementation, draw):
    batches = implementation(9, 2, draw.whole(1, 10**6))
    return [some(batches, 2), some(batches, 1), address(batches), some(batches, 7)]


@ResumableBatches.case
def a_snapshot_that_is_kept(implementation, draw):
    batches, seed = implementation(7, 2, 5), draw.whole(1, 10**6)
    take(batches, 1)
    kept = batches.state_dict()
    take(batches, 2)
    other = implementation(7, 2, seed)
    other.load_state_dict(kept)
    take(other, 1)
    return {"the snapshot": kept, "the others": [address(batches), address(other)]}


@ResumableBatches.case
def an_address_written_by_hand(implementation, draw):
    given = {"epoch": draw.whole(3, 9), "position": draw.whole(1, 2)}
    batches = implementation(8, 3, draw.whole(1, 10**6))
    batches.load_state_dict(given)
    return [address(batches), some(batches, 5), address(batches), given]


@ResumableBatches.case
def the_global_generator(implementation, draw):
    noted, batches = GlobalGenerator(), implementation(6, 4, draw.whole(1, 10**6))
    seen = [some(batches, 4), noted.state()]
    torch.rand(draw.whole(1, 5))  # somebody else draws from it
    return [*seen, some(batches, 4)]


class Parts:
    """The answer in parts that can be exchanged."""

    def __init__(self, n, batch_size, seed):
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.epoch, self.position = 0, 0

    def __len__(self):
        return -(-self.n // self.batch_size)

    def order(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.n, generator=generator)

    def slices(self):
        return self.order().split(self.batch_size)

    def __iter__(self):
        for batch in self.slices()[self.position :]:
            self.position += 1
            yield batch
        self.next_epoch()

    def next_epoch(self):
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state["position"]


@ResumableBatches.misconception(
    "Each iteration starts its epoch from the front. The batches before the kill are seen twice, "
    "and optimizer and scheduler run ahead of the data."
)
class epoch_started_again(Parts):
    def __iter__(self):
        self.position = 0
        return super().__iter__()


@ResumableBatches.misconception(
    "A batch counts only after its use, when the next one is asked for. A snapshot during batch k "
    "says k - 1, and that batch is repeated. A generator function stands still at its yield: "
    "what must be true there?"
)
class counted_too_late(Parts):
    def __iter__(self):
        for batch in self.slices()[self.position :]:
            yield batch
            self.position += 1
        self.next_epoch()


@ResumableBatches.misconception(
    "All batches of the epoch are made, and counted, as soon as an iteration begins. A snapshot in "
    "the middle says that the epoch is over; hand them out one at a time."
)
class counted_all_at_once(Parts):
    def __iter__(self):
        return iter(list(super().__iter__()))


@ResumableBatches.misconception("Every epoch has the same order. The epoch belongs into the seed.")
class same_order_every_epoch(Parts):
    def order(self):
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed))


@ResumableBatches.misconception(
    "The order comes from torch's global generator, without a seed. Another random draw anywhere "
    "changes the order, and nothing can build it again."
)
class global_state(Parts):
    def order(self):
        return torch.randperm(self.n)


@ResumableBatches.misconception(
    "You seed torch's global generator for the order. The order is right, and dropout, noise and "
    "the weights of new layers now follow from it, the same in every run. Own a generator."
)
class seeds_the_global_generator(Parts):
    def order(self):
        torch.manual_seed(self.seed + self.epoch)
        return torch.randperm(self.n)


@ResumableBatches.misconception(
    "One generator runs on from epoch to epoch. What it has drawn so far is not in the address, so "
    "that a fresh object cannot find the order of epoch 3. Seed a fresh one for each epoch."
)
class generator_that_runs_on(Parts):
    def __init__(self, n, batch_size, seed):
        super().__init__(n, batch_size, seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = -1, None

    def order(self):
        if self.drawn[0] != self.epoch:
            self.drawn = self.epoch, torch.randperm(self.n, generator=self.generator)
        return self.drawn[1]


@ResumableBatches.misconception(
    "The order is drawn once, when the object is made, and kept while the epochs pass. Draw it "
    "from seed and epoch when an iteration begins; then a loaded epoch has its own order, too."
)
class order_kept_until_the_epoch_ends(Parts):
    def __init__(self, n, batch_size, seed):
        super().__init__(n, batch_size, seed)
        self.drawn = super().order()

    def order(self):
        return self.drawn

    def next_epoch(self):
        super().next_epoch()
        self.drawn = super().order()


@ResumableBatches.misconception(
    "The last, smaller batch is dropped. Its rows are never seen in this epoch."
)
class ragged_batch_dropped(Parts):
    def __len__(self):
        return self.n // self.batch_size

    def slices(self):
        return super().slices()[: len(self)]


@ResumableBatches.misconception(
    "len leaves the smaller last batch out. All batches come, and a schedule that was planned with "
    "len is one step short in each epoch."
)
class length_rounded_down(Parts):
    def __len__(self):
        return self.n // self.batch_size


@ResumableBatches.misconception(
    "len is what is left of the epoch. Here it is that of a whole epoch, wherever you stand."
)
class length_of_the_rest(Parts):
    def __len__(self):
        return super().__len__() - self.position


@ResumableBatches.misconception(
    "position counts rows. The address that the task describes counts batches; read one way and "
    "written the other, a resume skips most of the epoch."
)
class position_in_rows(Parts):
    def __iter__(self):
        order = self.order()
        while self.position < self.n:
            start = self.position
            self.position = min(start + self.batch_size, self.n)
            yield order[start : self.position]
        self.next_epoch()


@ResumableBatches.misconception(
    "The next epoch begins as soon as the last batch is handed out, while it is still in use. A "
    "kill before the validation would then skip it; the epoch ends when one more is asked for."
)
class moves_on_with_the_last_batch(Parts):
    def __iter__(self):
        for batch in self.slices()[self.position :]:
            self.position += 1
            if self.position == len(self):
                self.next_epoch()
            yield batch


@ResumableBatches.misconception(
    "After the last batch your object stays where it is: the epoch does not count up, or only "
    "when somebody asks for it. Every later iteration is empty."
)
class stays_at_the_end(Parts):
    def next_epoch(self):
        pass


@ResumableBatches.misconception(
    "position is set back and epoch does not count up. Every epoch has the order of the first."
)
class epoch_never_counted(Parts):
    def next_epoch(self):
        self.position = 0


@ResumableBatches.misconception(
    "An address at the end of an epoch is moved on to the next one while it is loaded. The loop "
    "then trains an epoch where it should only have validated the finished one."
)
class full_epoch_skipped_while_loading(Parts):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        if self.position == len(self):
            self.next_epoch()


@ResumableBatches.misconception(
    "Iterating past a finished epoch goes straight on with the next. The loop around it cannot "
    "tell where an epoch ends."
)
class runs_into_the_next_epoch(Parts):
    def __iter__(self):
        while True:
            yield from super().__iter__()


@ResumableBatches.misconception(
    "The rest of an epoch is drawn anew after a resume. It must be the rest of the one order, else "
    "some rows come twice and others not at all."
)
class rest_drawn_anew(Parts):
    def slices(self):
        done = min(self.position * self.batch_size, self.n)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rest = torch.randperm(self.n - done, generator=generator)
        return [torch.empty(0)] * self.position + list(rest.split(self.batch_size))


@ResumableBatches.misconception(
    "state_dict hands out the dictionary that you count in. The snapshot goes on counting while "
    "it is kept; return a new one."
)
class live_snapshot(Parts):
    def state_dict(self):
        live = vars(self).setdefault("live", {})
        live.update(super().state_dict())
        return live

    def __iter__(self):
        for batch in super().__iter__():
            self.state_dict()
            yield batch


@ResumableBatches.misconception(
    "load_state_dict keeps the dictionary that it was given and counts in it. The caller's "
    "snapshot changes with the next batch; take the two numbers out."
)
class counts_in_the_loaded_state(Parts):
    loaded = None

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.loaded = state

    def __iter__(self):
        for batch in super().__iter__():
            if self.loaded is not None:
                self.loaded.update(self.state_dict())
            yield batch


@ResumableBatches.misconception(
    "load_state_dict takes the position and leaves the epoch as it was. The batches come from "
    "another epoch's order."
)
class epoch_not_loaded(Parts):
    def load_state_dict(self, state):
        self.position = state["position"]


@ResumableBatches.misconception(
    "Batches are lists of numbers. An int64 tensor indexes a tensor of rows in one step, on any "
    "device."
)
class batches_as_lists(Parts):
    def slices(self):
        return [batch.tolist() for batch in super().slices()]


@ResumableBatches.misconception(
    "There is no shuffling: the rows come in their natural order, in every epoch."
)
class no_shuffling(Parts):
    def order(self):
        return torch.arange(self.n)


ResumableBatches.hints(
    "A generator function stands still at its yield. Which number must be right at that moment?",
    "Do not store the order. From which two numbers can it be drawn again at any time?",
    "Write down epoch and position while the last batch is held, and again after the loop is over. "
    "And what does a loop over an epoch without a rest have to do?",
)
