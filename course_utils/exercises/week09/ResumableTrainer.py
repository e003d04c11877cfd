"""A resume that is equal bit for bit: everything that a step of training changes."""

import copy
import io
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.observe import difference, observe


@exercise(objectives=("ckpt.bit_exact_resume", "ckpt.contents", "repro.rng_state"))
class ResumableTrainer:
    """A trainer that resumes bit for bit.

    Each epoch visits x and y in an order of its own: one torch.randperm(len(x), generator=g), where
    g is a CPU torch.Generator of the trainer's own, seeded once with seed; several trainers may be
    at work in one program. Batches are consecutive slices of the order; the last one may be shorter
    and is used too.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler,
        x: torch.Tensor,
        y: torch.Tensor,
        batch_size: int,
        loss_fn: Callable,
        seed: int,
    ):
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.loss_fn = loss_fn
        self.generator = torch.Generator().manual_seed(seed)
        self.order = None  # of the epoch under way; None between epochs
        self.position = 0  # in that order

    def run(self, n_steps: int) -> list[float]:
        """Train so many batches in train mode; return the loss of each before its step.

        scheduler.step() is called once after the last batch of an epoch, in the same call.
        """
        self.model.train()
        losses = []
        for _ in range(n_steps):
            if self.order is None:
                self.order = torch.randperm(len(self.x), generator=self.generator)
                self.position = 0
            batch = self.order[self.position : self.position + self.batch_size].to(self.x.device)
            self.position += self.batch_size
            loss = self.loss_fn(self.model(self.x[batch]), self.y[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            if self.position >= len(self.x):
                self.scheduler.step()
                self.order = None
        return losses

    def state_dict(self) -> dict:
        """Everything a resume needs, as an independent snapshot: later steps do not change it.

        That includes the position inside the epoch, the data generator, and torch's global
        generators (CPU, and CUDA if it is there). After torch.save it can be loaded with
        torch.load(file).
        """
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.order,
            "position": self.position,
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        return copy.deepcopy(state)  # state_dicts hold the live tensors

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where the snapshot was taken.

        The trainer is built with freshly initialized objects of the same kind, and may have run
        before. The same snapshot can be loaded any number of times, directly or after torch.save
        and torch.load; state stays unchanged.
        """
        state = copy.deepcopy(state)  # optimizer and scheduler keep what they are given
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.order, self.position = state["order"], state["position"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])


SAMPLES, FEATURES = 5, 6


class Net(nn.Module):
    """One of everything that a resume can forget, and no more: a weight, running means, dropout."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 1))
        self.register_buffer("mean", torch.zeros(FEATURES))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        centered = x - (x.mean(0) if self.training else self.mean)
        return F.dropout(centered, 0.5, self.training) @ self.weight


class Runs:
    """Trainers of one kind over the same data: 5 samples, batches of 3 and 2 unless told.

    The cases are `random` since their calls train the models that the constructor is given; they
    look at models and data themselves.
    """

    def __init__(self, implementation, draw, batch_size=3):
        self.implementation, self.draw, self.batch_size = implementation, draw, batch_size
        self.x, self.y = draw.normal(SAMPLES, FEATURES), draw.normal(SAMPLES, 1)
        self.data = self.x.clone(), self.y.clone()
        self.seed, self.lr = draw.whole(0, 10**6), draw.number(0.03, 0.08)
        self.models = []

    def fresh(self, training=True):
        """A trainer whose model, optimizer and schedule are new."""
        model = Net().to(self.draw.device).train(training)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9, foreach=False)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
        self.models.append((model, optimizer))
        return self.implementation(
            model, optimizer, scheduler, self.x, self.y, self.batch_size, F.mse_loss, self.seed
        )

    def rates(self):
        """100 times the learning rate of every trainer now."""
        return [100 * optimizer.param_groups[0]["lr"] for _, optimizer in self.models]

    def afterwards(self):
        """All models but for gradients and mode, which are free; whether the data is as it was."""
        for model, optimizer in self.models:
            model.train().zero_grad()
            optimizer.zero_grad()
        untouched = all(torch.equal(a, b) for a, b in zip(self.data, (self.x, self.y), strict=True))
        return {"models": [model for model, _ in self.models], "data unchanged": untouched}

    def equal(self):
        """Whether the first and the last model are equal to the last bit."""
        first, last = (model.state_dict() for model, _ in (self.models[0], self.models[-1]))
        return all(torch.equal(value, last[name]) for name, value in first.items())


def pieces(model, optimizer):
    """What a resume has to bring back, by name: a message says which piece is another one."""
    return {
        "model": observe(model.state_dict()),
        "optimizer's state": observe(optimizer.state_dict()["state"]),
        "torch's global generator": observe(torch.get_rng_state()),
    }


def as_at_the_cut(before, after):
    """For each piece whether it is, to the last bit, what it was."""
    return {name: difference(before[name], after[name], (0, 0)) is None for name in before}


def through_a_file(state):
    """The state after torch.save and torch.load."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def resume(implementation, draw, before, after=1, *, file=False, batch_size=3):
    """Stop after so many steps, go on, and resume another trainer from the snapshot."""
    runs = Runs(implementation, draw, batch_size)
    first = runs.fresh()
    seen = {"1. before the cut": first.run(before)}
    second = runs.fresh()  # made in between, which must not disturb the first
    state, at_the_cut = first.state_dict(), pieces(*runs.models[0])
    straight = first.run(after)
    seen["2. uninterrupted"] = straight
    given = attempt(through_a_file, state) if file else state
    if isinstance(given, Exception):
        return seen | {"3. torch.load": given, "7. afterwards": runs.afterwards()}
    torch.rand(draw.whole(1, 5)), torch.rand(3, device=draw.device)
    second.load_state_dict(given)
    seen["3. loaded, as at the cut"] = as_at_the_cut(at_the_cut, pieces(*runs.models[1]))
    resumed = second.run(after)
    seen["4. losses after it"] = resumed
    seen["5. rates * 100"] = runs.rates()
    seen["6. equal bit for bit (losses, model)"] = [resumed == straight, runs.equal()]
    return seen | {"7. afterwards": runs.afterwards()}


@ResumableTrainer.case(random=True)
def without_interruption(implementation, draw):
    runs = Runs(implementation, draw)
    trainer = runs.fresh(training=False)
    seen = {}
    for call, steps in enumerate((1, 0, 1, 1), start=1):
        losses = trainer.run(steps)
        seen[f"{call}. run({steps}): "] = {"losses": losses, "rates * 100": runs.rates()}
        runs.models[0][0].eval()  # somebody evaluates in between
    return seen | {"5. afterwards": runs.afterwards()}


@ResumableTrainer.case(random=True)
def resumed_at_the_end_of_an_epoch_of_one_batch(implementation, draw):
    return resume(implementation, draw, 1, batch_size=SAMPLES + draw.whole(0, 5))


@ResumableTrainer.case(random=True)
def resumed_inside_the_second_epoch_from_a_file(implementation, draw):
    return resume(implementation, draw, 3, 2, file=True)


@ResumableTrainer.case(random=True)
def resumed_twice_inside_an_epoch_and_once_at_its_end(implementation, draw):
    runs = Runs(implementation, draw)
    trainer = runs.fresh()
    trainer.run(1)
    inside = trainer.state_dict()
    frozen = observe(inside)
    straight = trainer.run(1)
    at_the_end = trainer.state_dict()
    straight += trainer.run(1)
    seen = []
    for state, steps in ((inside, 2), (inside, 2), (at_the_end, 1)):
        trainer.load_state_dict(state)  # the same trainer, now inside the second epoch
        seen.append({"losses": trainer.run(steps), "rates * 100": runs.rates()})
    losses = [resumed["losses"] for resumed in seen]
    return {
        "1. straight": straight,
        "2. resumed inside the first epoch: ": seen[0],
        "3. and once more: ": seen[1],
        "4. resumed at its end: ": seen[2],
        "5. equal bit for bit": [
            straight == losses[0],
            straight == losses[1],
            straight[1:] == losses[2],
        ],
        "6. the snapshot is unchanged": difference(observe(inside), frozen, (0, 0)) is None,
        "7. afterwards": runs.afterwards(),
    }


class Parts:
    """The answer in parts that can be exchanged; `without` names what a snapshot lacks."""

    without = ()

    def __init__(self, model, optimizer, scheduler, x, y, batch_size, loss_fn, seed):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.x, self.y, self.batch_size = x, y, batch_size
        self.loss_fn, self.seed = loss_fn, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.order, self.cursor, self.epoch = None, 0, 0

    def run(self, n_steps):
        self.prepare()
        return [self.step() for _ in range(n_steps)]

    def prepare(self):
        self.model.train()

    def step(self):
        if self.order is None:
            self.start_epoch()
        batch = self.order[self.cursor : self.cursor + self.batch_size].to(self.x.device)
        loss = self.train(self.x[batch], self.y[batch])
        self.cursor += self.batch_size
        if self.is_over():
            self.end_epoch()
        return loss

    def train(self, x, y):
        self.optimizer.zero_grad()
        loss = self.loss_fn(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def start_epoch(self):
        self.order, self.cursor = self.draw_order(), 0

    def draw_order(self):
        return torch.randperm(len(self.x), generator=self.generator)

    def is_over(self):
        return self.cursor >= len(self.x)

    def end_epoch(self):
        self.scheduler.step()
        self.order, self.epoch = None, self.epoch + 1

    def pieces(self):
        pieces = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.order,
            "cursor": self.cursor,
            "epoch": self.epoch,
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        return {name: piece for name, piece in pieces.items() if name not in self.without}

    def state_dict(self):
        return copy.deepcopy(self.pieces())

    def load_state_dict(self, state):
        self.put(copy.deepcopy(state))

    def put(self, state):
        for name in ("model", "optimizer", "scheduler"):
            if name in state:
                self.put_object(name, state[name])
        self.order, self.cursor = state.get("order"), state.get("cursor", 0)
        self.epoch = state["epoch"]
        if "generator" in state:
            self.generator.set_state(state["generator"])
        self.put_global(state)

    def put_object(self, name, state):
        getattr(self, name).load_state_dict(state)

    def put_global(self, state):
        if "rng" in state:
            torch.set_rng_state(state["rng"])
        if state.get("cuda"):
            torch.cuda.set_rng_state_all(state["cuda"])


@ResumableTrainer.misconception(
    "The optimizer's state is missing. The fresh one has no moments and another rate: the first "
    "steps after the resume jump."
)
class optimizer_missing(Parts):
    without = ("optimizer",)


@ResumableTrainer.misconception(
    "The scheduler's state is missing. The schedule starts over while the optimizer has the old "
    "rate, and the next change of rate is wrong."
)
class scheduler_missing(Parts):
    without = ("scheduler",)


@ResumableTrainer.misconception(
    "You rebuild the scheduler by stepping it. Each step also moves the rate that the optimizer "
    "has just been given back. Load its state."
)
class scheduler_rebuilt_by_steps(Parts):
    without = ("scheduler",)

    def put(self, state):
        super().put(state)
        for _ in range(self.epoch):
            self.scheduler.step()


@ResumableTrainer.misconception(
    "The state of torch's global generator is missing. Dropout draws from it: the masks differ "
    "from the first batch on."
)
class rng_missing(Parts):
    without = ("rng", "cuda")


@ResumableTrainer.misconception(
    "You keep the seed of torch's global generator. It says where the sequence began, not where it "
    "is: the dropout masks after a resume are those of the very beginning."
)
class initial_seed_stored(Parts):
    without = ("cuda",)

    def pieces(self):
        return super().pieces() | {"rng": torch.initial_seed()}

    def put_global(self, state):
        torch.manual_seed(state["rng"])


@ResumableTrainer.misconception(
    "The position in the epoch is missing, and its order. The interrupted epoch is given up and "
    "another one begins: some samples are seen twice, others not at all."
)
class position_missing(Parts):
    without = ("order", "cursor")


@ResumableTrainer.misconception(
    "What is left of the epoch stands in the snapshot as the list that training itself uses up. "
    "Later steps empty it, and a resume then begins another epoch. Copy lists as well."
)
class live_list_of_batches(Parts):
    def __init__(self, *settings):
        super().__init__(*settings)
        self.batches = []

    def step(self):
        if not self.batches:
            self.batches = list(self.draw_order().split(self.batch_size))
        batch = self.batches.pop(0).to(self.x.device)
        loss = self.train(self.x[batch], self.y[batch])
        if not self.batches:
            self.end_epoch()
        return loss

    def state_dict(self):
        return super().state_dict() | {"batches": self.batches}

    def put(self, state):
        super().put(state)
        self.batches = state["batches"]


@ResumableTrainer.misconception(
    "A snapshot from the end of an epoch holds no order, and loading it leaves the trainer the one "
    "it stood in. It may have run before: what it had has to go, too."
)
class keeps_its_order_when_the_snapshot_has_none(Parts):
    def put(self, state):
        before = self.order
        super().put(state)
        if self.order is None:
            self.order = before


@ResumableTrainer.misconception(
    "The order is kept and the place in it is not. The interrupted epoch starts again, and its "
    "first samples are seen twice."
)
class cursor_missing(Parts):
    without = ("cursor",)


@ResumableTrainer.misconception(
    "You keep the cursor and draw the order anew, from a generator that has passed it. The rest of "
    "the epoch is the rest of another order. Keep the order, or the generator's state from before "
    "it was drawn."
)
class order_drawn_again(Parts):
    without = ("order",)

    def put(self, state):
        super().put(state)
        if not self.is_over() and self.cursor:
            self.order = self.draw_order()


@ResumableTrainer.misconception(
    "The data generator is missing. The epoch under way is finished as it should be, and the next "
    "orders are those of the first epochs again."
)
class data_generator_missing(Parts):
    without = ("generator",)


@ResumableTrainer.misconception(
    "The snapshot holds the live tensors of model and optimizer. It moves with the training, so "
    "that a resume from it goes to the wrong place. Copy."
)
class live_references(Parts):
    def state_dict(self):
        return self.pieces()


@ResumableTrainer.misconception(
    "A state_dict of the model was copied, that of the optimizer was not. Its moments are the live "
    "ones, and the snapshot moves with them."
)
class live_optimizer_state(Parts):
    def state_dict(self):
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}


@ResumableTrainer.misconception(
    "Loading hands the snapshot's tensors to the optimizer, which goes on writing into them. The "
    "second resume starts from changed moments. Give it copies."
)
class loads_without_copying(Parts):
    def load_state_dict(self, state):
        self.put(state)


@ResumableTrainer.misconception(
    "Parameters are saved and buffers are not. Running statistics are part of the model, though "
    "training does not look at them."
)
class buffers_missing(Parts):
    def state_dict(self):
        state = super().state_dict()
        return state | {"model": {n: state["model"][n] for n, _ in self.model.named_parameters()}}

    def put_object(self, name, state):
        getattr(self, name).load_state_dict(state, *([False] if name == "model" else []))


@ResumableTrainer.misconception(
    "torch.load refuses your snapshot by default: something in it is neither a tensor nor plain "
    "data, such as a NumPy array or a whole object. Keep tensors, numbers and state dicts."
)
class order_as_a_numpy_array(Parts):
    def state_dict(self):
        state = super().state_dict()
        return state | {"order": None if self.order is None else self.order.numpy()}

    def load_state_dict(self, state):
        order = state["order"]
        self.put(copy.deepcopy(state | {"order": None}))
        self.order = None if order is None else torch.tensor(order)


@ResumableTrainer.misconception(
    "The order is drawn from torch's global generator. Data and dropout then depend on one "
    "another; the task asks for a generator of its own."
)
class order_from_the_global_generator(Parts):
    def draw_order(self):
        return torch.randperm(len(self.x))


@ResumableTrainer.misconception(
    "One generator serves all trainers. Each new one seeds it again, and the orders of those that "
    "are at work already start over. Make the generator in __init__."
)
class one_generator_for_all_trainers(Parts):
    shared = torch.Generator()

    def __init__(self, *settings):
        super().__init__(*settings)
        self.generator = self.shared.manual_seed(self.seed)


@ResumableTrainer.misconception(
    "The constructor seeds torch's global generator. It belongs to the whole program: dropout and "
    "all other code then draw other numbers. Seed the trainer's own generator."
)
class global_generator_seeded(Parts):
    def __init__(self, *settings):
        super().__init__(*settings)
        torch.manual_seed(self.seed)


@ResumableTrainer.misconception(
    "Gradients are never cleared: each step takes those of all steps before it along."
)
class gradients_pile_up(Parts):
    def train(self, x, y):
        loss = self.loss_fn(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()


@ResumableTrainer.misconception(
    "All epochs have the same order: it is drawn once and kept, or the generator is seeded anew "
    "for each of them. Seed once, and draw for each epoch."
)
class one_order_for_all_epochs(Parts):
    def draw_order(self):
        self.generator.manual_seed(self.seed)
        return super().draw_order()


@ResumableTrainer.misconception(
    "The short batch at the end of an epoch is left out. It is used too."
)
class short_batch_dropped(Parts):
    def is_over(self):
        return self.cursor + self.batch_size > max(len(self.x), self.batch_size)


@ResumableTrainer.misconception(
    "Every call of run starts a new epoch. Training goes on where the last call stopped, also in "
    "the middle of an epoch."
)
class epoch_starts_with_each_call(Parts):
    def prepare(self):
        super().prepare()
        self.order = None


@ResumableTrainer.misconception(
    "The scheduler steps after every batch. Its unit here is the epoch."
)
class scheduler_steps_per_batch(Parts):
    def train(self, x, y):
        loss = super().train(x, y)
        self.scheduler.step()
        return loss

    def end_epoch(self):
        self.order, self.epoch = None, self.epoch + 1


@ResumableTrainer.misconception(
    "The scheduler steps when the next epoch begins. It belongs to the end of the epoch, in the "
    "call that trained its last batch."
)
class scheduler_steps_too_late(Parts):
    def start_epoch(self):
        if self.epoch:
            self.scheduler.step()
        super().start_epoch()

    def end_epoch(self):
        self.order, self.epoch = None, self.epoch + 1


@ResumableTrainer.misconception(
    "The model trains in whatever mode it is in. In eval mode there is no dropout and BatchNorm "
    "uses its running statistics: switch to training."
)
class mode_not_set(Parts):
    def prepare(self):
        pass


@ResumableTrainer.misconception(
    "Training mode is set when the trainer is made, and not in run. Whoever evaluates between two "
    "calls leaves the model in eval mode, and training goes on without dropout."
)
class mode_set_once(Parts):
    def __init__(self, *settings):
        super().__init__(*settings)
        self.model.train()

    def prepare(self):
        pass


@ResumableTrainer.misconception(
    "Your losses are those after the step, from a second forward pass, which draws dropout masks "
    "of its own. The task asks for the loss that the step was computed from."
)
class losses_after_the_step(Parts):
    def train(self, x, y):
        super().train(x, y)
        return self.loss_fn(self.model(x), y).item()


ResumableTrainer.hints(
    "List every object whose state one step of training changes. Then one step of an epoch's end.",
    "Inside an epoch you need its order and the place in it, or the generator's state from before "
    "the order was drawn and the place.",
    "Resume twice from one snapshot, and let the first run go on in between. Are they equal?",
)
