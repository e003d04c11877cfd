"""A sampler whose order can be rebuilt from three numbers."""

import torch
from torch.utils.data import DataLoader

from course_utils.exercise import exercise
from course_utils.exercises.week06._loading import GlobalGenerator, some


@exercise(objectives=("data.sampler", "data.shuffle"), forbids=(torch.manual_seed, torch.seed))
class ResumableSampler(torch.utils.data.Sampler):
    """Hand out shuffled indices, and continue exactly where a saved state says.

    It starts at epoch 0 with cursor 0. The order of an epoch is
    torch.randperm(num_samples, generator=G), where G is a fresh CPU generator seeded with
    seed + epoch. num_samples is at least 1.

    Iterating yields, as Python ints, the rest of the current epoch, from the cursor on. Handing out
    an index adds 1 to the cursor before the caller gets it; handing out the last one sets epoch + 1
    and cursor 0 instead, and that iteration ends. len is the number of indices left in the current
    epoch.

    state_dict() returns {"seed": ..., "epoch": ..., "cursor": ...}, three ints that do not change
    when the sampler goes on. load_state_dict(state) sets all three; the given state never changes.
    torch's global generator is never touched: no torch.manual_seed, no torch.seed. (G's own method
    manual_seed is fine.)
    """

    def __init__(self, num_samples, seed=0):
        self.num_samples = num_samples
        self.seed, self.epoch, self.cursor = seed, 0, 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        for index in order[self.cursor :]:
            self.cursor += 1
            if self.cursor == self.num_samples:
                self.epoch, self.cursor = self.epoch + 1, 0
            yield index

    def __len__(self):
        return self.num_samples - self.cursor

    def state_dict(self):
        return {"seed": self.seed, "epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state):
        self.seed, self.epoch, self.cursor = state["seed"], state["epoch"], state["cursor"]


def state(sampler):
    """The state, as it is now."""
    return dict(sampler.state_dict())


@ResumableSampler.case
def three_epochs(implementation, draw):
    count = draw.whole(6, 9)
    sampler = implementation(count, draw.whole(1, 50))
    return [some(sampler, count + 3) for _ in range(3)]


@ResumableSampler.case
def no_seed_given(implementation, draw):
    count = draw.whole(6, 9)
    sampler = implementation(count)
    return [some(sampler, count + 3), some(sampler, count + 3), state(sampler)]


@ResumableSampler.case
def stopped_and_continued_in_a_fresh_sampler(implementation, draw):
    count, seed = draw.whole(6, 9), draw.whole(1, 50)
    first = implementation(count, seed)
    seen = {"1. before": some(first, draw.whole(2, 4))}
    second = implementation(count, seed + draw.whole(3, 9))
    second.load_state_dict(first.state_dict())
    seen["2. length and rest after loading"] = [len(second), some(second, count + 3)]
    return seen | {"3. next epoch": some(second, count + 3), "4. then": state(second)}


@ResumableSampler.case
def stopped_in_the_second_epoch(implementation, draw):
    count, seed = draw.whole(6, 9), draw.whole(1, 50)
    first = implementation(count, seed)
    some(first, count + 3)
    some(first, draw.whole(1, 3))
    second = implementation(count, seed)
    second.load_state_dict(first.state_dict())
    return [state(second), some(second, count + 3), some(second, count + 3)]


@ResumableSampler.case
def a_state_written_by_hand(implementation, draw):
    count = draw.whole(6, 9)
    given = {"seed": draw.whole(1, 50), "epoch": draw.whole(2, 5), "cursor": draw.whole(1, 3)}
    sampler = implementation(count)
    some(sampler, 2)
    sampler.load_state_dict(given)
    seen = [state(sampler), len(sampler), some(sampler, count + 3), state(sampler)]
    return [*seen, given, some(sampler, 3)]


@ResumableSampler.case
def back_to_zero(implementation, draw):
    count = draw.whole(6, 9)
    sampler = implementation(count, draw.whole(1, 50))
    seen = []
    for _ in range(2):  # from the middle of epoch 0, then from that of epoch 1
        some(sampler, 2)
        sampler.load_state_dict({"seed": 0, "epoch": 0, "cursor": 0})
        seen.append({"1. state": state(sampler), "2. indices": some(sampler, count + 3)})
    return seen


@ResumableSampler.case
def state_and_length_after_each_index(implementation, draw):
    count = draw.whole(3, 5)
    sampler = implementation(count, seed=draw.whole(1, 50))
    seen = [(state(sampler), len(sampler))]
    for index in some_steps(sampler, count):
        seen.append((index, state(sampler), len(sampler)))
    return seen


def some_steps(sampler, most):
    """The first indices one by one, without asking for one more."""
    iterator = iter(sampler)
    for _ in range(most):
        yield next(iterator, "nothing more")


@ResumableSampler.case
def right_after_the_last_index(implementation, draw):
    count, seed = draw.whole(3, 6), draw.whole(1, 50)
    first = implementation(count, seed)
    last = list(some_steps(first, count))[-1]
    second = implementation(count)
    second.load_state_dict(first.state_dict())
    return [last, state(second), some(second, count + 3)]


@ResumableSampler.case
def an_iteration_that_is_broken_off(implementation, draw):
    count = draw.whole(6, 9)
    sampler = implementation(count, draw.whole(1, 50))
    return [some(sampler, 2), some(sampler, 3), some(sampler, count + 3), state(sampler)]


@ResumableSampler.case
def one_sample(implementation, draw):
    sampler = implementation(1, draw.whole(1, 50))
    seen = [len(sampler)]
    for _ in range(2):
        seen += [some(sampler, 3), state(sampler), len(sampler)]
    return seen


@ResumableSampler.case
def a_state_that_is_kept_while_the_sampler_goes_on(implementation, draw):
    sampler = implementation(draw.whole(6, 9), draw.whole(1, 50))
    some(sampler, 2)
    kept = sampler.state_dict()
    some(sampler, 2)
    other = implementation(draw.whole(6, 9))
    other.load_state_dict(kept)
    some(other, 1)
    return {"kept": kept, "now": state(sampler)}


@ResumableSampler.case
def the_global_generator(implementation, draw):
    count, noted = draw.whole(4, 7), GlobalGenerator()
    sampler = implementation(count, draw.whole(1, 50))
    seen = [some(sampler, count + 3), noted.state()]
    torch.randn(3)  # somebody else draws from it
    return [*seen, some(sampler, count + 3)]


@ResumableSampler.case
def through_a_DataLoader(implementation, draw):
    count = draw.whole(6, 9)
    sampler = implementation(count, draw.whole(1, 50))
    data = 10 * torch.arange(count)
    loader = DataLoader(data, batch_size=2, sampler=sampler, generator=torch.Generator())
    first = some(loader, 2)
    return {"two batches": first, "then": state(sampler), "the rest": some(loader, count)}


class Parts(torch.utils.data.Sampler):
    """The sampler in parts that can be exchanged."""

    def __init__(self, num_samples, seed=0):
        self.num_samples = num_samples
        self.seed, self.epoch, self.cursor = seed, 0, 0

    def order(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.num_samples, generator=generator).tolist()

    def __iter__(self):
        for index in self.order()[self.cursor :]:
            self.advance()
            yield index

    def advance(self):
        self.cursor += 1
        if self.cursor >= self.num_samples:
            self.epoch, self.cursor = self.epoch + 1, 0

    def __len__(self):
        return self.num_samples - self.cursor

    def state_dict(self):
        return {"seed": self.seed, "epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state):
        self.seed, self.epoch, self.cursor = state["seed"], state["epoch"], state["cursor"]


@ResumableSampler.misconception(
    "Each iteration starts the epoch again. After a resume the early samples are seen twice and "
    "the late ones less often; skip what was handed out."
)
class resume_starts_the_epoch_again(Parts):
    def __iter__(self):
        self.cursor = 0
        return super().__iter__()


@ResumableSampler.misconception(
    "The cursor never moves: you hand out the order, and nobody counts. Then there is nothing to "
    "save, and every epoch is the first."
)
class cursor_never_moves(Parts):
    def advance(self):
        pass


@ResumableSampler.misconception(
    "You count the whole epoch as handed out when the iteration starts. Who saves in the middle "
    "then skips what was never used; count one index at a time."
)
class counts_the_epoch_at_once(Parts):
    def __iter__(self):
        rest = self.order()[self.cursor :]
        self.epoch, self.cursor = self.epoch + 1, 0
        return iter(rest)


@ResumableSampler.misconception(
    "The order is the same in every epoch. Without the epoch in the seed it never changes."
)
class same_order_every_epoch(Parts):
    def order(self):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(self.num_samples, generator=generator).tolist()


@ResumableSampler.misconception(
    "You seed the global generator. Dropout and initialization would then change with the order "
    "of the data, and the other way round; own a generator."
)
class seeds_the_global_generator(Parts):
    def order(self):
        torch.default_generator.manual_seed(self.seed + self.epoch)
        return torch.randperm(self.num_samples).tolist()


@ResumableSampler.misconception(
    "The cursor moves on after the yield. A generator is paused at its yield, so the count lags by "
    "one whenever somebody saves."
)
class cursor_advances_after_the_yield(Parts):
    def __iter__(self):
        for index in self.order()[self.cursor :]:
            yield index
            self.advance()


@ResumableSampler.misconception(
    "One generator runs on from epoch to epoch. Its hidden state is not among the three saved "
    "numbers, so the order cannot be rebuilt from them."
)
class a_private_generator_that_keeps_running(Parts):
    def __init__(self, num_samples, seed=0):
        super().__init__(num_samples, seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = -1, []

    def order(self):
        if self.drawn[0] != self.epoch:
            drawn = torch.randperm(self.num_samples, generator=self.generator).tolist()
            self.drawn = self.epoch, drawn
        return self.drawn[1]


@ResumableSampler.misconception(
    "The epoch ends in your code when the loop is over, one step after the last index was handed "
    "out. Saved in between, the state stands at the end of an epoch with nothing left in it."
)
class epoch_ends_after_the_loop(Parts):
    def __iter__(self):
        for index in self.order()[self.cursor :]:
            self.cursor += 1
            yield index
        self.epoch, self.cursor = self.epoch + 1, 0


@ResumableSampler.misconception(
    "The cursor starts again after the last index, the epoch does not count up. The next order is "
    "then the old one."
)
class epoch_never_counted(Parts):
    def advance(self):
        self.cursor = (self.cursor + 1) % self.num_samples


@ResumableSampler.misconception(
    "Handing out the last index does not move you to the next epoch: the cursor stays at the end, "
    "and every later iteration is empty."
)
class stays_at_the_end(Parts):
    def advance(self):
        self.cursor += 1


@ResumableSampler.misconception(
    "Your order is drawn anew for what is left. The rest of an epoch is the rest of its one order, "
    "else some samples come twice and others not at all."
)
class draws_the_rest_anew(Parts):
    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        left = self.num_samples - self.cursor
        for index in torch.randperm(left, generator=generator).tolist():
            self.advance()
            yield index


@ResumableSampler.misconception(
    "len is always num_samples. After a resume fewer indices are left in the epoch, and a progress "
    "bar or a scheduler counts on that number."
)
class length_of_a_whole_epoch(Parts):
    def __len__(self):
        return self.num_samples


@ResumableSampler.misconception(
    "Loading leaves the seed as it was. A sampler made with another seed then continues in another "
    "order."
)
class seed_not_loaded(Parts):
    def load_state_dict(self, state):
        self.epoch, self.cursor = state["epoch"], state["cursor"]


@ResumableSampler.misconception(
    "A number in the state that is 0 is not loaded, since 0 counts as false: `or` then takes the "
    "old number. 0 is a seed, an epoch and a cursor like any other."
)
class zeros_not_loaded(Parts):
    def load_state_dict(self, state):
        for name in ("seed", "epoch", "cursor"):
            setattr(self, name, state[name] or getattr(self, name))


@ResumableSampler.misconception(
    "You keep the order of each epoch and find it by the epoch alone. After a state with another "
    "seed is loaded, the order that you kept is the wrong one."
)
class orders_kept_by_epoch(Parts):
    def order(self):
        return vars(self).setdefault("orders", {}).setdefault(self.epoch, super().order())


@ResumableSampler.misconception(
    "You keep one order and draw it anew when the epoch changes. Loading may bring another seed "
    "for the same epoch, and the order that you kept is then the wrong one."
)
class an_order_kept_until_the_epoch_changes(Parts):
    kept = None, []

    def order(self):
        if self.kept[0] != self.epoch:
            self.kept = self.epoch, super().order()
        return self.kept[1]


@ResumableSampler.misconception(
    "state_dict gives out the dictionary that the sampler itself works with. It changes while you "
    "hold it; what is saved must be a copy."
)
class gives_out_the_live_state(Parts):
    def state_dict(self):
        live = vars(self).setdefault("live", {})
        live.update(super().state_dict())
        return live

    def advance(self):
        super().advance()
        self.state_dict()


@ResumableSampler.misconception(
    "load_state_dict keeps the dictionary it was given and goes on counting in it. The caller's "
    "saved state changes with every index; take the three numbers out of it."
)
class counts_in_the_loaded_state(Parts):
    loaded = None

    def advance(self):
        super().advance()
        if self.loaded is not None:
            self.loaded.update(self.state_dict())

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.loaded = state


@ResumableSampler.misconception(
    "load_state_dict takes the numbers out of the dictionary and leaves it empty. The state is the "
    "caller's, who may load it a second time; only look at it."
)
class empties_the_loaded_state(Parts):
    def load_state_dict(self, state):
        self.seed, self.epoch = state.pop("seed"), state.pop("epoch")
        self.cursor = state.pop("cursor")


@ResumableSampler.misconception(
    "Your indices are tensors. Hand out Python ints, as torch's own samplers do: lists, dicts and "
    "NumPy arrays want those."
)
class yields_tensors(Parts):
    def order(self):
        return torch.tensor(super().order())


@ResumableSampler.misconception("There is no shuffling: the indices come in their natural order.")
class no_shuffling(Parts):
    def order(self):
        return list(range(self.num_samples))


@ResumableSampler.misconception(
    "Only the rest of the epoch is right: your iteration runs on into the next epoch. It ends with "
    "the last index of the current one."
)
class runs_into_the_next_epoch(Parts):
    def __iter__(self):
        while True:
            yield from super().__iter__()


ResumableSampler.hints(
    "Derive the order when you need it; do not store it. From which two numbers?",
    "A generator function stands still at its yield. What must be true at that moment?",
    "Write down epoch and cursor right after the last index was handed out, before anything else "
    "is asked for.",
)
