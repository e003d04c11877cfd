"""An exponential moving average of weights, which belongs into the checkpoint."""

import copy
import io

import torch
from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.observe import observe


@exercise(objectives=("ckpt.ema", "ckpt.state_dict"))
class WeightEMA:
    """Exponential moving average of a model's weights.

    decay must satisfy 0 <= decay < 1, else ValueError. The shadow starts as an independent copy of
    the model's state, all that is in its state_dict. There is no bias correction and no warm-up.

    Attributes: decay, and updates, an int, the number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay has to lie in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.shadow = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def update(self, model: nn.Module) -> None:
        """Take in the model as it is now, after a step of the optimizer.

        For every parameter, frozen ones too, under all of its names: shadow = decay * shadow
        + (1 - decay) * value. Every persistent buffer is copied. No graph is recorded and the model
        is unchanged.
        """
        averaged = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for name, value in model.state_dict().items():  # these tensors carry no graph
            if name in averaged:
                self.shadow[name].mul_(self.decay).add_(value, alpha=1 - self.decay)
            else:
                self.shadow[name].copy_(value)
        self.updates += 1

    def copy_to(self, model: nn.Module) -> None:
        """Write the shadow into the model, in place.

        The parameters stay the same objects in the same memory, with the same requires_grad. Later
        changes of the shadow do not reach the model, nor the other way round.
        """
        model.load_state_dict(self.shadow)

    def state_dict(self) -> dict:
        """{"decay": float, "updates": int, "shadow": {name: tensor}}.

        The names are those of the model's state_dict. The tensors are independent copies without
        grad. After torch.save it can be loaded with torch.load(file).
        """
        shadow = {name: t.clone() for name, t in self.shadow.items()}
        return {"decay": self.decay, "updates": self.updates, "shadow": shadow}

    def load_state_dict(self, state: dict) -> None:
        """Take all three over, the tensors by copy."""
        self.decay = state["decay"]
        self.updates = state["updates"]
        self.shadow = {name: t.clone() for name, t in state["shadow"].items()}


class Net(nn.Module):
    """A layer, BatchNorm's float and int buffers, a buffer of its own, and one not persistent."""

    def __init__(self, inputs, dtype=torch.float32):
        super().__init__()
        self.layer = nn.Linear(inputs, 2, dtype=dtype)
        self.norm = nn.BatchNorm1d(2, dtype=dtype)
        self.register_buffer("offset", torch.zeros(2, dtype=dtype))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


class Tied(nn.Module):
    """Two layers that share a weight and a buffer: the state_dict has each under two names."""

    def __init__(self, inputs):
        super().__init__()
        self.first = nn.Linear(inputs, inputs, bias=False)
        self.second = nn.Linear(inputs, inputs)
        self.second.weight = self.first.weight
        for layer, mean in zip((self.first, self.second), [torch.zeros(2)] * 2, strict=True):
            layer.register_buffer("mean", mean)


def make(draw, dtype=torch.float32):
    """A model on the device, its entries drawn."""
    return change(draw, Net(draw.whole(2, 4), dtype).to(draw.device))


def change(draw, model):
    """New values for every entry, in place, as after a step of training."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(draw.normal(*value.shape, dtype=value.dtype))
            else:
                value.copy_(draw.integers(100, 999, *value.shape))
    return model


def seen(ema):
    """The state as a snapshot, and the two attributes."""
    return observe({"state_dict": ema.state_dict(), "decay": ema.decay, "updates": ema.updates})


def fed(implementation, draw, model, decay, updates):
    """An average that has taken in the model after so many steps."""
    ema = implementation(model, decay)
    for _ in range(updates):
        ema.update(change(draw, model))
    return ema


@WeightEMA.case
def as_it_starts(implementation, draw):
    model = make(draw)
    ema = implementation(model, draw.number(0.3, 0.9))
    change(draw, model)
    return seen(ema)


@WeightEMA.case
def three_updates(implementation, draw):
    model, decay = make(draw), draw.choice([0.9, 0.75])
    ema, states = implementation(model, decay), []
    for _ in range(3):
        result = ema.update(change(draw, model))
        states.append([result, seen(ema)])
    return states


@WeightEMA.case
def decays_of_zero_and_of_one_half_in_turn(implementation, draw):
    models = [make(draw) for _ in range(2)]
    averages = [implementation(m, decay) for m, decay in zip(models, (0.0, 0.5), strict=True)]
    for _ in range(2):
        for average, model in zip(averages, models, strict=True):
            average.update(change(draw, model))
    return [seen(average) for average in averages]


@WeightEMA.case
def float64_and_a_decay_close_to_one(implementation, draw):
    model = make(draw, torch.float64)
    return seen(fed(implementation, draw, model, 0.999, 2))


@WeightEMA.case
def frozen_parameters(implementation, draw):
    model = make(draw)
    model.layer.requires_grad_(False)
    ema, other = fed(implementation, draw, model, 0.5, 2), make_like(model)
    ema.copy_to(other)
    return [seen(ema), other]


@WeightEMA.case
def a_weight_and_a_buffer_under_two_names(implementation, draw):
    model = change(draw, Tied(draw.whole(2, 3)).to(draw.device))
    return seen(fed(implementation, draw, model, 0.75, 2))


@WeightEMA.case
def copied_into_the_model(implementation, draw):
    model = make(draw)
    ema = fed(implementation, draw, model, 0.5, 2)
    change(draw, model)
    average = seen(ema)
    before = [(p, p.data_ptr()) for p in model.parameters()]
    result = ema.copy_to(model)
    after = [(p, p.data_ptr()) for p in model.parameters()]
    copied = observe(model)
    ema.update(change(draw, make_like(model)))
    still = observe(model)
    change(draw, model)
    return {
        "1. average": average,
        "2. returned": result,
        "3. model": copied,
        "4. same parameter objects": [a is b for (a, _), (b, _) in zip(before, after, strict=True)],
        "5. in the same memory": [a == b for (_, a), (_, b) in zip(before, after, strict=True)],
        "6. model after an update": still,
        "7. average": seen(ema),
    }


def make_like(model):
    """A model of the same kind."""
    return copy.deepcopy(model)


@WeightEMA.case
def a_snapshot_and_later_updates(implementation, draw):
    model = make(draw)
    ema = fed(implementation, draw, model, 0.5, 1)
    snapshot = ema.state_dict()
    ema.update(change(draw, model))
    return {"snapshot": observe(snapshot), "average": seen(ema)}


@WeightEMA.case
def a_round_trip_through_a_file(implementation, draw):
    model = make(draw)
    file = io.BytesIO()
    torch.save(fed(implementation, draw, model, 0.75, 2).state_dict(), file)
    file.seek(0)
    state = attempt(torch.load, file)
    if isinstance(state, Exception):
        return state
    other = implementation(change(draw, make_like(model)), 0.25)
    result = other.load_state_dict(state)
    loaded = seen(other)
    other.update(change(draw, model))
    return {"1. returned": result, "2. loaded": loaded, "3. after an update": seen(other)}


@WeightEMA.case
def the_loaded_dict_is_overwritten_later(implementation, draw):
    model = make(draw)
    state = fed(implementation, draw, model, 0.75, 1).state_dict()
    other = implementation(model, 0.5)
    other.load_state_dict(state)
    for value in state["shadow"].values():
        value.zero_()
    loaded = seen(other)
    other.update(change(draw, model))
    return {"1. loaded": loaded, "2. the dict after an update": state["shadow"]}


@WeightEMA.case
def a_decay_out_of_range(implementation, draw):
    model = make(draw)
    tries = [attempt(implementation, model, decay) for decay in (-0.1, 1.0, 1.5, -1, 0.0)]
    return [result if isinstance(result, Exception) else None for result in tries]


class Parts:
    """The answer in parts that can be exchanged."""

    def __init__(self, model, decay):
        self.check(decay)
        self.decay, self.updates = decay, 0
        self.shadow = self.start(model)

    def check(self, decay):
        if not 0 <= decay < 1:
            raise ValueError(decay)

    def start(self, model):
        return {name: value.clone() for name, value in model.state_dict().items()}

    def parameters(self, model):
        return dict(model.named_parameters(remove_duplicate=False))

    def update(self, model):
        parameters = self.parameters(model)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                take = self.average if name in parameters else self.take_buffer
                self.shadow[name] = take(self.shadow[name], value)
        self.updates += 1

    def average(self, shadow, value):
        return self.decay * shadow + (1 - self.decay) * value

    def take_buffer(self, shadow, value):
        return value.clone()

    def copy_to(self, model):
        model.load_state_dict(self.shadow)

    def state_dict(self):
        shadow = {name: value.clone() for name, value in self.shadow.items()}
        return {"decay": self.decay, "updates": self.updates, "shadow": shadow}

    def load_state_dict(self, state):
        self.decay, self.updates = state["decay"], state["updates"]
        self.shadow = {name: value.clone() for name, value in state["shadow"].items()}


@WeightEMA.misconception(
    "decay weighs the new value. With 0.999 the average would follow the weights almost at once; "
    "decay is what the old average keeps."
)
class decay_swapped(Parts):
    def average(self, shadow, value):
        return (1 - self.decay) * shadow + self.decay * value


@WeightEMA.misconception(
    "The shadow holds the model's own tensors. It moves with every step of training, and before "
    "the first update there is no average at all. A state_dict shares memory: copy."
)
class shadow_shares_live_tensors(Parts):
    def start(self, model):
        return dict(model.state_dict())


@WeightEMA.misconception(
    "The shadow is the model's memory and stays that: updates write into the weights themselves, "
    "so that the model is changed. A state_dict shares memory: copy."
)
class averages_into_the_model(Parts):
    def start(self, model):
        return dict(model.state_dict())

    def average(self, shadow, value):
        return shadow.mul_(self.decay).add_(value, alpha=1 - self.decay)

    def take_buffer(self, shadow, value):
        return shadow.copy_(value)


@WeightEMA.misconception(
    "Buffers stay as they were at the start. The averaged weights are then evaluated with the "
    "statistics of an untrained model."
)
class buffers_left_at_initial_values(Parts):
    def take_buffer(self, shadow, value):
        return shadow


@WeightEMA.misconception(
    "Buffers are averaged as well, whole numbers rounded. Running statistics are averages already, "
    "and a counter has none; the task copies them."
)
class buffers_averaged(Parts):
    def take_buffer(self, shadow, value):
        return self.average(shadow, value).to(value.dtype)


@WeightEMA.misconception(
    "Buffers of floating point are averaged and counters copied. Running statistics are averages "
    "already; the task copies every buffer."
)
class statistics_averaged(Parts):
    def take_buffer(self, shadow, value):
        return self.average(shadow, value) if value.is_floating_point() else value.clone()


@WeightEMA.misconception(
    "You know buffers by their names, or by their layer, and take BatchNorm's alone. Any module "
    "can register a buffer of its own, which is then averaged: ask the model what its entries are."
)
class buffers_known_by_their_names(Parts):
    def parameters(self, model):
        known = "running_mean", "running_var", "num_batches_tracked"
        return [name for name in model.state_dict() if not name.endswith(known)]


@WeightEMA.misconception(
    "A buffer that two layers share has two names in the state_dict, and named_buffers gives only "
    "one of them unless told otherwise. You take the second for a parameter and average it."
)
class second_name_of_a_buffer_averaged(Parts):
    def parameters(self, model):
        buffers = dict(model.named_buffers())
        return [name for name in model.state_dict() if name not in buffers]


@WeightEMA.misconception(
    "After an update the shadow's buffers are the model's own tensors. They move with the training "
    "that follows: copy their values."
)
class buffers_shared_with_the_model(Parts):
    def take_buffer(self, shadow, value):
        return value


@WeightEMA.misconception(
    "Buffers are not in the shadow. It starts as a copy of all that is in the model's state_dict."
)
class parameters_alone(Parts):
    def start(self, model):
        return {name: value.detach().clone() for name, value in self.parameters(model).items()}

    def update(self, model):
        for name, value in self.parameters(model).items():
            self.shadow[name] = self.average(self.shadow[name], value.detach())
        self.updates += 1

    def copy_to(self, model):
        model.load_state_dict(self.shadow, strict=False)


@WeightEMA.misconception(
    "Your update records a graph. The shadow drags every past step along, memory grows, and what "
    "you save requires grad."
)
class update_records_a_graph(Parts):
    def update(self, model):
        parameters = self.parameters(model)
        for name, value in model.state_dict(keep_vars=True).items():
            take = self.average if name in parameters else self.take_buffer
            self.shadow[name] = take(self.shadow[name], value)
        self.updates += 1


@WeightEMA.misconception(
    "Frozen parameters are left out of the average. They may be unfrozen later, and until then "
    "their average costs nothing: every parameter takes part."
)
class frozen_parameters_skipped(Parts):
    def update(self, model):
        frozen = {name for name, p in self.parameters(model).items() if not p.requires_grad}
        kept = {name: self.shadow[name] for name in frozen}
        super().update(model)
        self.shadow.update(kept)


@WeightEMA.misconception(
    "Frozen parameters are copied like buffers. The formula holds for every parameter, whether it "
    "requires grad or not."
)
class frozen_parameters_copied(Parts):
    def parameters(self, model):
        found = super().parameters(model)
        return {name: value for name, value in found.items() if value.requires_grad}


@WeightEMA.misconception(
    "A weight that two layers share has two names in the state_dict, and named_parameters gives "
    "only one of them unless told otherwise. You take the second for a buffer and copy it."
)
class second_name_of_a_weight_copied(Parts):
    def parameters(self, model):
        return dict(model.named_parameters())


@WeightEMA.misconception(
    "Non-persistent buffers are in the shadow too. They are not part of the model's state_dict."
)
class all_buffers_kept(Parts):
    def start(self, model):
        scratch = {n: b.clone() for n, b in model.named_buffers() if n not in model.state_dict()}
        return super().start(model) | scratch

    def copy_to(self, model):
        model.load_state_dict(self.shadow, strict=False)


@WeightEMA.misconception(
    "The decay grows with the number of updates. Such a warm-up is popular, and not what the task "
    "asks for: decay is the same at every update."
)
class decay_with_warm_up(Parts):
    def average(self, shadow, value):
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        return decay * shadow + (1 - decay) * value


@WeightEMA.misconception(
    "The first update copies the weights. Here the shadow starts as a copy when it is made, and "
    "the first update is like any other."
)
class first_update_copies(Parts):
    def average(self, shadow, value):
        return super().average(shadow, value) if self.updates else value.clone()


@WeightEMA.misconception(
    "The shadow starts at zero. Then it has to catch up first; it starts as a copy of the model."
)
class starts_at_zero(Parts):
    def start(self, model):
        return {name: torch.zeros_like(value) for name, value in model.state_dict().items()}


@WeightEMA.misconception("updates stays at 0: count each update.")
class updates_not_counted(Parts):
    def update(self, model):
        super().update(model)
        self.updates = 0


@WeightEMA.misconception(
    "copy_to makes the shadow's tensors the model's own. From then on one step of training moves "
    "the average, and an optimizer made before holds other parameters. Copy the values."
)
class copy_to_hands_the_shadow_over(Parts):
    def copy_to(self, model):
        model.load_state_dict(self.shadow, assign=True)


@WeightEMA.misconception(
    "copy_to gives the parameters other memory. They are the same objects, and yet what shares the "
    "old memory, such as a state_dict taken before, no longer follows them. Write in place."
)
class copy_to_exchanges_the_memory(Parts):
    def copy_to(self, model):
        for name, value in model.state_dict(keep_vars=True).items():
            value.data = self.shadow[name].clone()


@WeightEMA.misconception(
    "copy_to writes the parameters and not the buffers. The averaged weights then run with "
    "whatever statistics the model has."
)
class copy_to_without_buffers(Parts):
    def copy_to(self, model):
        model.load_state_dict({n: self.shadow[n] for n in self.parameters(model)}, strict=False)


@WeightEMA.misconception(
    "copy_to turns requires_grad on for every parameter. What was frozen stays frozen."
)
class copy_to_unfreezes(Parts):
    def copy_to(self, model):
        super().copy_to(model)
        model.requires_grad_(True)


@WeightEMA.misconception(
    "Your state_dict hands out the shadow itself. The snapshot moves with the next update: return "
    "copies."
)
class live_snapshot(Parts):
    def take_buffer(self, shadow, value):
        return shadow.copy_(value)

    def average(self, shadow, value):
        return shadow.mul_(self.decay).add_(value, alpha=1 - self.decay)

    def state_dict(self):
        return super().state_dict() | {"shadow": self.shadow}


@WeightEMA.misconception(
    "load_state_dict keeps the caller's tensors. Whoever changes the dict later changes the "
    "average, and the next update changes the dict."
)
class keeps_the_callers_tensors(Parts):
    def take_buffer(self, shadow, value):
        return shadow.copy_(value)

    def average(self, shadow, value):
        return shadow.mul_(self.decay).add_(value, alpha=1 - self.decay)

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.shadow = dict(state["shadow"])


@WeightEMA.misconception(
    "The shadow is loaded, and decay and updates are not. A resumed average has to go on as the "
    "saved one would have."
)
class loads_the_shadow_alone(Parts):
    def load_state_dict(self, state):
        before = self.decay, self.updates
        super().load_state_dict(state)
        self.decay, self.updates = before


@WeightEMA.misconception(
    "load_state_dict leaves updates as it was. The average goes on, and its number of updates "
    "starts over: take all three."
)
class updates_not_loaded(Parts):
    def load_state_dict(self, state):
        before = self.updates
        super().load_state_dict(state)
        self.updates = before


@WeightEMA.misconception(
    "decay is not checked. With 1 the average never moves, and beyond the range it runs away: "
    "raise ValueError."
)
class decay_not_checked(Parts):
    def check(self, decay):
        pass


@WeightEMA.misconception(
    "A decay of exactly 1 went through. The average would never move; the range ends before it."
)
class decay_of_one_accepted(Parts):
    def check(self, decay):
        if not 0 <= decay <= 1:
            raise ValueError(decay)


@WeightEMA.misconception(
    "A decay of 0 was refused. It is allowed: the shadow then is a copy of the latest weights."
)
class decay_of_zero_refused(Parts):
    def check(self, decay):
        if not 0 < decay < 1:
            raise ValueError(decay)


WeightEMA.hints(
    "Parameters and buffers are treated differently. How do you tell which one a name is?",
    "Nothing here belongs into a graph, and no two tensors may share memory.",
    "Who owns the tensors in your state_dict, and who those that load_state_dict was given?",
)
