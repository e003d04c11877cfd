"""A training run that a kill at any moment cannot change."""

import copy
import io
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.observe import difference, observe


@exercise(objectives=("cap.state", "cap.early", "cap.position"))
def survivable_fit(
    make: Callable,
    train: tuple,
    val: tuple,
    batch_size: int,
    max_epochs: int,
    patience: int,
    seed: int,
    save: Callable,
    resume: dict | None = None,
) -> dict:
    """Train so that a kill after any save(...) loses nothing.

    Begin with torch.manual_seed(seed) and then model, optimizer, scheduler = make(), also on
    resume. train and val are pairs (x, y) on one device; max_epochs and patience are at least 1.

    Epoch e (from 0) visits the training rows in the order torch.randperm(n, generator=g), g a CPU
    generator seeded with seed + e, in slices of batch_size, the ragged last one included. Per
    batch, in training mode: clear the gradients, mean cross-entropy, backward, clip the norm of
    all gradients to 1.0, optimizer.step(), scheduler.step(), then save(state).

    After the last batch: the loss over all of val at once (eval mode, no gradients), as a float,
    is appended to the history. If it is strictly lower than the best so far (any number is, at
    first), keep a copy of the weights and set a counter to 0, else add 1 to the counter. Then
    save(state) again. The run ends after max_epochs epochs or when the counter reaches patience.

    The state is yours, with two conditions. It is made of tensors, numbers, booleans, strings, None
    and lists, tuples and dicts of them only, since it goes through torch.save and
    torch.load(weights_only=True). And it is independent: the run that goes on does not change it,
    nor does a run that is resumed from it. resume is such a state: the outcome must equal, bit for
    bit, that of the uninterrupted run, dropout included, and only the remaining saves happen.

    Return {"best_model": state dict, "history": list of floats, "epochs": epochs run in all}.
    """
    torch.manual_seed(seed)
    model, optimizer, scheduler = make()
    (x, y), (x_val, y_val) = train, val
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    run = {"epoch": 0, "batch": 0, "history": [], "best": math.inf, "waited": 0, "weights": None}

    def snapshot():
        state = {name: part.state_dict() for name, part in parts.items()} | {"run": run}
        state["rng"] = torch.get_rng_state()
        state["cuda_rng"] = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        return copy.deepcopy(state)  # a state_dict holds the live tensors

    if resume is not None:
        resume = copy.deepcopy(resume)  # optimizers keep the tensors they are given
        for name, part in parts.items():
            part.load_state_dict(resume[name])
        run = resume["run"]
        torch.set_rng_state(resume["rng"])
        if x.is_cuda:
            torch.cuda.set_rng_state(resume["cuda_rng"], x.device)

    while run["epoch"] < max_epochs and run["waited"] < patience:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + run["epoch"]))
        model.train()
        for picks in order.to(x.device).split(batch_size)[run["batch"] :]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[picks]), y[picks]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            run["batch"] += 1
            save(snapshot())
        model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(model(x_val), y_val).item()
        run["history"].append(loss)
        if loss < run["best"]:
            run["best"], run["waited"] = loss, 0
            run["weights"] = copy.deepcopy(model.state_dict())
        else:
            run["waited"] += 1
        run["epoch"], run["batch"] = run["epoch"] + 1, 0
        save(snapshot())
    return {"best_model": run["weights"], "history": run["history"], "epochs": run["epoch"]}


FEATURES, CLASSES = 4, 3


class Endless(BaseException):
    """The run makes far too many saves; no `except Exception` catches it."""


class Net(nn.Module):
    """One of everything that a resume can forget, and no more: a weight, BatchNorm, dropout."""

    def __init__(self, dropout):
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES, affine=False)
        self.weight = nn.Parameter(torch.randn(FEATURES, CLASSES))
        self.dropout = dropout

    def forward(self, x):
        return F.dropout(self.norm(x), self.dropout, self.training) @ self.weight


class Scripted(nn.Module):
    """A model whose validation follows a script: the higher an epoch's number, the lower its loss.

    It has one batch per epoch and counts them in a buffer; only the weight is trained.
    """

    def __init__(self, script):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, CLASSES))
        self.register_buffer("trained", torch.zeros(1, dtype=torch.long))
        self.script = script

    def forward(self, x):
        if self.training:
            self.trained += 1
            return x @ self.weight
        epoch = min(int(self.trained) or 1, len(self.script)) - 1
        return F.one_hot(torch.zeros_like(x[:, 0]).long(), CLASSES) * self.script[epoch]


class Rig:
    """What a run needs, and runs of the answer with it."""

    def __init__(self, implementation, draw, *, rows=5, batch_size=3, epochs=2, script=None,
                 patience=9):  # fmt: skip
        self.implementation, self.draw, self.script = implementation, draw, script
        size = 5.0 if script else 1.0
        self.train = size * draw.normal(rows, FEATURES), draw.integers(0, CLASSES - 1, rows)
        y_val = draw.integers(0, CLASSES - 1, 4)
        self.val = draw.normal(4, FEATURES), 0 * y_val if script else y_val
        self.plan = batch_size, epochs, patience, draw.whole(1, 10**6)
        self.lr, self.dropout = draw.number(0.05, 0.1), draw.number(0.4, 0.6)
        self.data = [tensor.clone() for tensor in (*self.train, *self.val)]
        self.rates, self.weights = [], {}

    def make(self):
        """Model, optimizer and scheduler, new; the weights are drawn from the global generator."""
        if self.script:
            model = Scripted(self.script).to(self.draw.device)
            optimizer = torch.optim.SGD(model.parameters(), self.lr, momentum=0.9, foreach=False)
        else:
            model = Net(self.dropout).to(self.draw.device)
            optimizer = torch.optim.AdamW(model.parameters(), self.lr, foreach=False)
        self.model, self.optimizer = model, optimizer
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)

    def run(self, resume=None, *, keep=(), memory=False):
        """What comes back, how many saves there were, and the states whose numbers are in keep.

        memory: keep the states themselves; else they go through torch.save at once, as those of a
        process that is killed after it.
        """
        saves, states = 0, {}

        def save(state):
            nonlocal saves
            saves += 1
            self.rates.append(100 * self.optimizer.param_groups[0]["lr"])
            if saves in keep:
                states[saves] = state if memory else written(state)
                self.weights[saves] = self.model.weight.detach().clone()
            if saves > 60:
                raise Endless

        torch.rand(self.draw.whole(1, 9))  # another process has drawn other numbers
        options = {} if resume is None else {"resume": resume}
        batch_size, epochs, patience, seed = self.plan
        try:
            result = attempt(
                self.implementation, self.make, self.train, self.val, batch_size, epochs, patience,
                seed, save, **options,
            )  # fmt: skip
        except Endless:
            result = "stopped after 60 saves"
        return result, saves, states

    def resumed(self, states, number, straight, *, edit=False, **options):
        """What is seen of a run from the state of that number, and the states that it saves.

        edit: another weight is written into the state first.
        """
        if number not in states:
            return "there was no such save", {}
        state = states[number]
        state = attempt(read, state) if isinstance(state, bytes) else state
        if edit:
            shift(state, self.weights[number])
        if isinstance(state, Exception):
            return state, {}
        result, saves, later = self.run(state, **options)
        seen = {"1. saves left": saves, "2. result": result, "3. equal": equal(result, straight)}
        return seen, later

    def killed(self, moments):
        """The uninterrupted run, and what is seen after kills; moments: words for each save."""
        straight, saves, states = self.run(keep=moments)
        seen = {"0. not interrupted": [saves, straight]}
        for number, words in moments.items():
            seen[f"killed after save {number:2}, {words}"], _ = self.resumed(
                states, number, straight
            )
        return seen

    def unchanged(self):
        """Whether the data is as it was."""
        return all(map(torch.equal, self.data, (*self.train, *self.val)))


def equal(a, b):
    """Whether two outcomes are the same to the last bit, in words."""
    same = difference(observe(a), observe(b), (0.0, 0.0)) is None
    return "to the last bit" if same else "not to the last bit"


def shift(state, weight):
    """Add to every tensor in the state that holds exactly this weight."""
    if isinstance(state, torch.Tensor):
        if state.numel() == weight.numel() and torch.equal(state.flatten(), weight.flatten()):
            state.detach().add_(0.5)
    elif isinstance(state, dict | list | tuple):
        for item in state.values() if isinstance(state, dict) else state:
            shift(item, weight)


def foreign(state):
    """The kind of something in the state that is neither number nor text, tensor nor container."""
    if isinstance(state, dict):
        state = [*state, *state.values()]
    if isinstance(state, list | tuple):
        return next(filter(None, map(foreign, state)), "")
    plain = torch.Tensor, int, float, str, type(None)
    kept = isinstance(state, plain) and not isinstance(
        state, np.generic
    )  # a NumPy float is a float
    return "" if kept else type(state).__name__


def written(state):
    """The state in a file, or the error."""
    if kind := foreign(state):
        return TypeError(f"the state holds an object of type {kind}")
    file = io.BytesIO()
    error = attempt(torch.save, state, file)
    return error if isinstance(error, Exception) else file.getvalue()


def read(data):
    """The state from the file."""
    return torch.load(io.BytesIO(data), weights_only=True)


# The cases are `random` since a state is the answer's own: only what they return is compared.


@survivable_fit.case(random=True)
def not_interrupted(implementation, draw):
    rig = Rig(implementation, draw)
    result, saves, _ = rig.run()
    return {"1. result": result, "2. saves": saves, "3. 100 * rates": rig.rates,
            "4. data unchanged": rig.unchanged()}  # fmt: skip


@survivable_fit.case(random=True)
def killed_inside_the_first_epoch_and_again_in_the_second(implementation, draw):
    rig = Rig(implementation, draw, rows=8)
    straight, _, states = rig.run(keep=(2,))
    once, states = rig.resumed(states, 2, straight, keep=(3,))
    twice, _ = rig.resumed(states, 3, straight)
    return {"1. not interrupted": straight, "2. killed once": once, "3. killed twice": twice}


@survivable_fit.case(random=True)
def killed_around_a_validation_and_at_the_end(implementation, draw):
    moments = {1: "the last batch's", 2: "the validation's", 4: "the last"}
    return Rig(implementation, draw, rows=3).killed(moments)


# Validation by epoch: better, best, worse, as good as the best. Patience is over: the rest is for
# answers that go on.
SCRIPT = 1.0, 3.0, 1.0, 3.0, 2.0, 2.5, 1.0, 0.5


@survivable_fit.case(random=True)
def an_early_stop(implementation, draw):
    rig = Rig(
        implementation, draw, rows=2, batch_size=2, epochs=8, script=SCRIPT, patience=2
    )  # fmt: skip
    return rig.killed({6: "an epoch before the stop", 8: "the last"})


@survivable_fit.case(random=True)
def states_that_are_kept_while_the_run_goes_on(implementation, draw):
    rig = Rig(implementation, draw, rows=3)
    straight, _, states = rig.run(keep=(1,), memory=True)
    frozen = observe(states)
    seen = [rig.resumed(states, 1, straight)[0] for _ in range(2)]
    unchanged = difference(observe(states), frozen, (0.0, 0.0)) is None
    return {"1. not interrupted": straight, "2. resumed": seen, "3. states unchanged": unchanged}


@survivable_fit.case(random=True)
def a_state_whose_weights_were_edited(implementation, draw):
    rig = Rig(implementation, draw, rows=3)
    straight, _, states = rig.run(keep=(1,))
    return rig.resumed(states, 1, straight, edit=True)[0]


class Fit:
    """The answer in parts that can be exchanged; `without` names what a state lacks."""

    without = ()

    def __init__(self, make, train, val, batch_size, max_epochs, patience, seed, save, resume=None):
        self.make, self.seed, self.batch_size = make, seed, batch_size
        (self.x, self.y), (self.x_val, self.y_val) = train, val
        self.max_epochs, self.patience, self.save, self.resume = max_epochs, patience, save, resume
        self.epoch = self.batch = self.waited = 0
        self.best, self.weights, self.history = math.inf, None, []

    def run(self):
        self.build()
        if self.resume is not None:
            self.restore(self.taken(self.resume))
        while self.goes_on():
            self.train_epoch()
            self.validate()
            self.epoch, self.batch = self.epoch + 1, 0
            self.save(self.snapshot())
        return self.result()

    def result(self):
        return {"best_model": self.weights, "history": self.history, "epochs": self.epoch}

    def build(self):
        torch.manual_seed(self.seed)
        self.model, self.optimizer, self.scheduler = self.make()

    def goes_on(self):
        return self.epoch < self.max_epochs and self.waited < self.patience

    def batches(self):
        return self.order().to(self.x.device).split(self.batch_size)

    def order(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(len(self.x), generator=generator)

    def train_epoch(self):
        self.model.train()
        for picks in self.batches()[self.batch :]:
            self.step(picks)
            self.after_step()

    def step(self, picks):
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x[picks]), self.y[picks]).backward()
        self.clip()
        self.optimizer.step()

    def clip(self):
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def after_step(self):
        self.scheduler.step()
        self.batch += 1
        self.save(self.snapshot())

    def validate(self):
        loss = self.validation_loss()
        self.history.append(loss)
        if self.is_better(loss):
            self.best, self.waited, self.weights = loss, 0, self.best_weights()
        else:
            self.waited += 1

    def validation_loss(self):
        self.model.eval()
        with torch.no_grad():
            return F.cross_entropy(self.model(self.x_val), self.y_val).item()

    def is_better(self, loss):
        return loss < self.best

    def best_weights(self):
        return copy.deepcopy(self.model.state_dict())

    def pieces(self):
        pieces = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.x.device) if self.x.is_cuda else None,
        }
        for name in ("epoch", "batch", "waited", "best", "weights", "history"):
            pieces[name] = getattr(self, name)
        return {name: piece for name, piece in pieces.items() if name not in self.without}

    def snapshot(self):
        return copy.deepcopy(self.pieces())

    def taken(self, state):
        return copy.deepcopy(state)

    def restore(self, state):
        self.load_model(state["model"])
        for name in ("optimizer", "scheduler"):
            if name in state:
                getattr(self, name).load_state_dict(state[name])
        for name in ("epoch", "batch", "waited", "best", "weights", "history"):
            if name in state:
                setattr(self, name, state[name])
        self.restore_rng(state)

    def load_model(self, state):
        self.model.load_state_dict(state)

    def restore_rng(self, state):
        if "rng" in state:
            torch.set_rng_state(state["rng"])
            if self.x.is_cuda:
                torch.cuda.set_rng_state(state["cuda"], self.x.device)


def answer(parts):
    """The run of these parts as a function of the class's name."""

    def fit(*args, **options):
        return parts(*args, **options).run()

    fit.__name__ = parts.__name__
    return fit


@survivable_fit.misconception(
    "The optimizer is not restored. Adam's moments start at zero again: other steps from the first "
    "batch on. The loss goes on falling, which is why nobody sees it."
)
@answer
class optimizer_not_restored(Fit):
    without = ("optimizer",)


@survivable_fit.misconception(
    "The scheduler is not restored. The learning rate starts its curve anew, or goes on by the "
    "wrong rule."
)
@answer
class scheduler_not_restored(Fit):
    without = ("scheduler",)


@survivable_fit.misconception(
    "The random state is not restored. The dropout masks after the resume are others than those of "
    "the uninterrupted run."
)
@answer
class random_state_not_restored(Fit):
    without = ("rng", "cuda")


@survivable_fit.misconception(
    "The random state is restored before make() is called. Building the model draws its first "
    "weights and moves the generator on; restore it last."
)
@answer
class random_state_restored_too_early(Fit):
    def run(self):
        state, self.resume = self.resume, None
        if state is None:
            return super().run()
        Fit.restore_rng(self, state)
        self.model, self.optimizer, self.scheduler = self.make()
        self.restore(self.taken(state))
        self.build = lambda: None
        return super().run()

    def restore_rng(self, state):
        pass


@survivable_fit.misconception(
    "The interrupted epoch starts from its front. Half an epoch is trained twice, and optimizer "
    "and scheduler run ahead."
)
@answer
class epoch_restarted(Fit):
    without = ("batch",)


@survivable_fit.misconception(
    "The interrupted epoch is given up: a resume goes on with the next one. The rest of its "
    "batches are never seen."
)
@answer
class rest_of_the_epoch_skipped(Fit):
    def restore(self, state):
        super().restore(state)
        if self.batch:
            self.epoch, self.batch = self.epoch + 1, 0


@survivable_fit.misconception(
    "A resume after the last batch of an epoch goes straight on with the next epoch. Its "
    "validation is missing from the history; the kill came before it."
)
@answer
class validation_skipped(Fit):
    def restore(self, state):
        super().restore(state)
        if self.batch == len(self.batches()):
            self.epoch, self.batch = self.epoch + 1, 0


@survivable_fit.misconception(
    "The batch is counted after the save. The state says one batch less than the weights have "
    "seen, and that batch is trained twice."
)
@answer
class counted_after_the_save(Fit):
    def after_step(self):
        self.scheduler.step()
        self.save(self.snapshot())
        self.batch += 1


@survivable_fit.misconception(
    "You save before the scheduler's step. The state is one step of the schedule behind its "
    "weights; save when everything that belongs to the batch is done."
)
@answer
class saved_before_the_scheduler(Fit):
    def after_step(self):
        self.batch += 1
        self.save(self.snapshot())
        self.scheduler.step()


@survivable_fit.misconception(
    "You save at the end of an epoch only. A kill inside it costs all its batches; the task asks "
    "for a save after each."
)
@answer
class saved_at_the_ends_of_epochs_only(Fit):
    def after_step(self):
        self.scheduler.step()
        self.batch += 1


@survivable_fit.misconception(
    "There is no save after the validation. A kill during the next batch then loses its result; "
    "the task asks for a save there, too."
)
@answer
class no_save_after_the_validation(Fit):
    def run(self):
        self.build()
        if self.resume is not None:
            self.restore(self.taken(self.resume))
        while self.goes_on():
            self.train_epoch()
            self.validate()
            self.epoch, self.batch = self.epoch + 1, 0
        return self.result()


@survivable_fit.misconception(
    "Your state holds the live tensors: state_dict shares memory with the model, and the saved "
    "state goes on changing while the run does. Written at once it looks right; kept, it moves."
)
@answer
class snapshot_by_reference(Fit):
    def snapshot(self):
        return self.pieces()


@survivable_fit.misconception(
    "Only the outer dict is copied. The tensors in it are the live ones, and the saved state goes "
    "on changing; the copy has to be deep."
)
@answer
class shallow_copy(Fit):
    def snapshot(self):
        pieces = self.pieces()
        return {
            name: list(piece) if name == "history" else copy.copy(piece)
            for name, piece in pieces.items()
        }


@survivable_fit.misconception(
    "The resumed run works with the tensors and lists of the state that it was given, so that it "
    "changes them: an optimizer keeps what it loads. A second resume from the same state goes "
    "wrong; copy on the way in as well."
)
@answer
class state_changed_by_the_resume(Fit):
    def taken(self, state):
        return state


@survivable_fit.misconception(
    "The counter of epochs without improvement is not restored. The resumed run waits too long "
    "before it stops: the stop counter is state."
)
@answer
class patience_forgotten(Fit):
    without = ("waited",)


@survivable_fit.misconception(
    "The best validation loss is not restored. The first epoch after the resume counts as the "
    "best, however bad it is."
)
@answer
class best_loss_forgotten(Fit):
    without = ("best",)


@survivable_fit.misconception(
    "The best weights are not in the state. If no epoch after the resume is better, there is "
    "nothing to return: best weights are state, too."
)
@answer
class best_weights_forgotten(Fit):
    without = ("weights",)


@survivable_fit.misconception(
    "Early stopping begins anew after a resume: counter, best loss and best weights are missing "
    "from the state."
)
@answer
class early_stopping_forgotten(Fit):
    without = ("waited", "best", "weights")


@survivable_fit.misconception(
    "A resume trains everything again from the seed, or from what the process still remembers, and "
    "leaves out the saves that there were. The state is not used: all the work is done twice, and "
    "after a real kill nothing is remembered."
)
@answer
class trained_again_from_the_start(Fit):
    done, counted = 0, 0

    def restore(self, state):
        self.done, save = state["number"], self.save
        self.save = lambda state: save(state) if self.counted > self.done else None

    def snapshot(self):
        self.counted += 1
        return {"number": self.counted}


@survivable_fit.misconception(
    "The history begins anew with the resume. It belongs to the outcome, so to the state."
)
@answer
class history_forgotten(Fit):
    without = ("history",)


@survivable_fit.misconception(
    "The state holds the model's parameters and not its buffers. BatchNorm's statistics start "
    "anew, which only the evaluation shows."
)
@answer
class buffers_forgotten(Fit):
    def pieces(self):
        return super().pieces() | {"model": dict(self.model.named_parameters())}

    def load_model(self, state):
        self.model.load_state_dict(state, strict=False)


@survivable_fit.misconception(
    "Something in the state is an object, such as a number of NumPy, a Path, a model or an "
    "optimizer. torch.load(weights_only=True) refuses it; plain tensors, numbers and containers "
    "suffice."
)
@answer
class objects_in_the_state(Fit):
    def snapshot(self):
        return super().snapshot() | {"best": np.float64(self.best)}


@survivable_fit.misconception(
    "A finished run trains on when it is resumed. Look whether it is over before an epoch begins, "
    "and not only at the end of one."
)
@answer
class trains_on_after_the_end(Fit):
    def goes_on(self):
        first, self.begun = not hasattr(self, "begun"), True
        return first or super().goes_on()


@survivable_fit.misconception(
    "A run that had stopped early trains on when it is resumed. The counter has to be looked at "
    "before an epoch begins, and not only after a validation."
)
@answer
class trains_on_after_an_early_stop(Fit):
    def goes_on(self):
        first, self.begun = not hasattr(self, "begun"), True
        return self.epoch < self.max_epochs if first else super().goes_on()


@survivable_fit.misconception(
    "A loss that equals the best counts as better. Strictly lower is asked for, else a loss that "
    "stands still is never stopped."
)
@answer
class as_good_is_better(Fit):
    def is_better(self, loss):
        return loss <= self.best


@survivable_fit.misconception(
    "Each loss is compared with that of the epoch before. The best so far counts: a loss that "
    "creeps down from a bad epoch is no improvement."
)
@answer
class compared_with_the_last_epoch(Fit):
    def is_better(self, loss):
        return len(self.history) < 2 or loss < self.history[-2]


@survivable_fit.misconception(
    "The run waits one epoch too long. It ends when the counter reaches patience, not when it "
    "exceeds it."
)
@answer
class one_epoch_too_patient(Fit):
    def goes_on(self):
        return self.epoch < self.max_epochs and self.waited <= self.patience


@survivable_fit.misconception(
    "There is no early stop: all epochs are run, whatever the validation says."
)
@answer
class never_stops_early(Fit):
    def goes_on(self):
        return self.epoch < self.max_epochs


@survivable_fit.misconception(
    "The best weights are the live ones: a state_dict shares memory with the model, and they are "
    "trained on. Copy them."
)
@answer
class best_weights_by_reference(Fit):
    def best_weights(self):
        return self.model.state_dict()


@survivable_fit.misconception(
    "You return the weights of the last epoch. The best ones are asked for; after an early stop "
    "the last are worse by construction."
)
@answer
class last_weights_returned(Fit):
    def result(self):
        return super().result() | {"best_model": self.model.state_dict()}


@survivable_fit.misconception(
    "The validation runs in training mode. Dropout disturbs it and moves the random stream, and "
    "BatchNorm learns its statistics from validation data."
)
@answer
class validation_in_training_mode(Fit):
    def validation_loss(self):
        with torch.no_grad():
            return F.cross_entropy(self.model(self.x_val), self.y_val).item()


@survivable_fit.misconception(
    "After the first validation the model stays in eval mode. All later epochs train without "
    "dropout, and BatchNorm's statistics stand still."
)
@answer
class training_in_evaluation_mode(Fit):
    def train_epoch(self):
        train, self.model.train = self.model.train, lambda: None
        if self.epoch == 0:
            train()
        super().train_epoch()
        self.model.train = train


@survivable_fit.misconception(
    "The validation loss is the mean over batches of their means. A smaller last batch then counts "
    "as much as a full one; evaluate all of val at once."
)
@answer
class validation_in_batches(Fit):
    def validation_loss(self):
        self.model.eval()
        with torch.no_grad():
            parts = zip(
                self.x_val.split(self.batch_size), self.y_val.split(self.batch_size), strict=True
            )
            losses = [F.cross_entropy(self.model(x), y).item() for x, y in parts]
        return sum(losses) / len(losses)


@survivable_fit.misconception("Gradients are not clipped, or at another norm than 1.")
@answer
class not_clipped(Fit):
    def clip(self):
        pass


@survivable_fit.misconception("The last, smaller batch of an epoch is dropped.")
@answer
class ragged_batch_dropped(Fit):
    def batches(self):
        whole = [picks for picks in super().batches() if len(picks) == self.batch_size]
        return whole or super().batches()


@survivable_fit.misconception("The scheduler steps once an epoch. Here it steps after each batch.")
@answer
class scheduler_steps_per_epoch(Fit):
    def after_step(self):
        self.batch += 1
        if self.batch == len(self.batches()):
            self.scheduler.step()
        self.save(self.snapshot())


@survivable_fit.misconception(
    "The order of the rows comes from torch's global generator, which dropout and make() draw from "
    "as well. Inside an epoch nobody can draw it again; give it a generator of its own."
)
@answer
class order_from_the_global_generator(Fit):
    def order(self):
        return torch.randperm(len(self.x))


@survivable_fit.misconception("Every epoch has the same order. The epoch belongs into the seed.")
@answer
class same_order_every_epoch(Fit):
    def order(self):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(self.x), generator=generator)


@survivable_fit.misconception(
    "One generator for the order runs on from epoch to epoch. After a resume it stands at its "
    "beginning; seed a fresh one with seed + epoch."
)
@answer
class generator_that_runs_on(Fit):
    generator, drawn = None, (-1, None)

    def order(self):
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(self.seed)
        if self.drawn[0] != self.epoch:
            self.drawn = self.epoch, torch.randperm(len(self.x), generator=self.generator)
        return self.drawn[1]


@survivable_fit.misconception(
    "The seed is set after make(). The first weights are then drawn from whatever state the "
    "generator was in."
)
@answer
class seeded_after_make(Fit):
    def build(self):
        self.model, self.optimizer, self.scheduler = self.make()
        torch.manual_seed(self.seed)


survivable_fit.hints(
    "List everything that changes during one step, and everything that changes in a validation. "
    "That list is the state.",
    "Building a model draws random numbers. In which order do you build, load, and restore the "
    "random state?",
    "Who else holds the tensors that you put into the state, and those that you take out of it?",
    "Play a kill between the last batch of an epoch and its validation. What must a resumed run do "
    "first? And what if the run was over already?",
)
