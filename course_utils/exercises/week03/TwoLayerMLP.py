"""A small network with a Parameter, a buffer and a layer that has a mode."""

import torch
from torch import nn

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise
from course_utils.exercises.week03._modules import dtypes, named_part, place, registered


@exercise(objectives=("module.registration", "module.parameters_buffers", "module.train_eval"))
class TwoLayerMLP(nn.Module):
    """fc2(dropout(relu(fc1(x)))) * scale + shift, for x of shape (..., in_features).

    fc1 and fc2 are nn.Linear layers with these attribute names: in_features to hidden, hidden to
    out_features. scale is trainable, has shape (1,) and starts at 1. shift is not trainable and no
    parameter, has shape (out_features,), starts at 0, and is saved and moved with the model.

    Dropout with probability p, which may be 0, acts on the hidden layer, drawn anew in each call.
    The mode of the module alone decides: it drops in training mode, also under no_grad, and never
    in evaluation mode. The state dict has exactly the keys fc1.weight, fc1.bias, fc2.weight,
    fc2.bias, scale and shift. x is not modified and need not be contiguous.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, p: float = 0.3):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, out_features)
        self.dropout = nn.Dropout(p)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.dropout(torch.relu(self.fc1(x)))
        return self.fc2(hidden) * self.scale + self.shift


NAMES = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "scale", "shift")
WIDE = 32


def known_values(draw, inputs, hidden, outputs, dtype=torch.float32):
    """Values for everything in the network; scale and shift are not where they start."""
    shapes = (hidden, inputs), (hidden,), (outputs, hidden), (outputs,), (1,), (outputs,)
    values = {n: draw.normal(*s, dtype=dtype) for n, s in zip(NAMES, shapes, strict=True)}
    return values | {"scale": draw.uniform(1, low=1.5, high=2.5, dtype=dtype)}


def network(implementation, draw, *sizes, **options):
    """A network in evaluation mode with known values."""
    model = implementation(*sizes, **options).to(draw.device)
    return place(model, known_values(draw, *sizes)).eval()


def dropped(model, draw):
    """What dropout does to hidden units that are all 2: output = (hidden + 0.25) * 3 + 0.5."""
    one, none = torch.eye(WIDE), torch.zeros(WIDE)
    values = one, none + 1, one, none + 0.25, none[:1] + 3, none + 0.5
    place(model, dict(zip(NAMES, values, strict=True)))
    output = model(torch.ones(128, WIDE, device=draw.device))
    return output, output != 1.25


def near(value, target, within):
    """The target where the value lies within that distance of it, else the value."""
    return target if abs(value - target) < within else value


@TwoLayerMLP.case
def what_is_registered_and_how_it_starts(implementation, draw):
    model = implementation(*draw.sizes(3)).to(draw.device)
    start = {name: named_part(model, name) for name in ("scale", "shift")}
    layers = {name: type(named_part(model, name)).__name__ for name in ("fc1", "fc2")}
    return registered(model) | {"layers": layers, "start": start}


@TwoLayerMLP.case
def two_evaluations_of_one_batch(implementation, draw):
    inputs, outputs, batch = draw.sizes(3)
    model = network(implementation, draw, inputs, 20, outputs)
    x = draw.normal(batch, inputs)
    output = model(x)
    return {
        "both evaluations agree": attempt(torch.equal, output, model(x)),
        "output": output,
        "the input afterwards": x,
    }


@TwoLayerMLP.case
def three_dimensional_and_one_dimensional_input(implementation, draw):
    inputs, hidden, outputs, steps = draw.sizes(4)
    model = network(implementation, draw, inputs, hidden, outputs)
    return {
        "output for three dimensions": model(draw.normal(2, steps, inputs)),
        "output for a transposed input": attempt(
            model, draw.normal(steps, 2, inputs).transpose(0, 1)
        ),
        "output for one dimension": model(draw.normal(inputs)),
    }


@TwoLayerMLP.case
def gradients_of_everything_in_evaluation_mode(implementation, draw):
    inputs, hidden, outputs, batch = draw.sizes(4)
    model = network(implementation, draw, inputs, hidden, outputs)
    x = draw.normal(batch, inputs, requires_grad=True)
    parameters = {name: named_part(model, name) for name in NAMES[:-1]}
    found = gradients(model(x), [x, *parameters.values()], draw.normal(batch, outputs))
    if isinstance(found, str):
        return found
    return {f"gradient of {n}": g for n, g in zip(["x", *parameters], found, strict=True)}


@TwoLayerMLP.case
def a_state_dict_loaded_into_a_fresh_network(implementation, draw):
    sizes = draw.sizes(3)
    state = network(implementation, draw, *sizes).state_dict()
    fresh = implementation(*sizes).to(draw.device).eval()
    loaded = attempt(fresh.load_state_dict, state)
    error = loaded if isinstance(loaded, Exception) else None
    return {"error while loading": error, "output": fresh(draw.normal(2, sizes[0]))}


@TwoLayerMLP.case
def after_a_cast_to_float64(implementation, draw):
    sizes = draw.sizes(3)
    model = network(implementation, draw, *sizes).double()
    output = attempt(model, draw.normal(2, sizes[0], dtype=torch.float64))
    shift = named_part(model, "shift")
    return {"state_dict dtypes": dtypes(model), "dtype of shift": shift.dtype, "output": output}


@TwoLayerMLP.case
def dropout_in_training_mode(implementation, draw):
    p = draw.choice([0.15, 0.5, 0.6])
    model = implementation(WIDE, WIDE, WIDE, p).to(draw.device).eval().train()
    output, kept = dropped(model, draw)
    with torch.no_grad():
        _, again = dropped(model, draw)
    in_row = kept.sum(1)
    return {
        "smallest and largest output": torch.stack(output.aminmax()),
        "dropped share of hidden units": near(1 - kept.float().mean().item(), p, 0.06),
        "drops the same in every row": torch.equal(kept[0].expand_as(kept), kept),
        "drops the same in the next call": torch.equal(kept, again),
        "drops under no_grad": not again.all().item(),
        "drops whole rows": bool(((in_row == 0) | (in_row == WIDE)).all()),
        "shift afterwards": named_part(model, "shift").clone(),
    }


@TwoLayerMLP.case
def the_dropout_probability_0_and_when_none_is_given(implementation, draw):
    model = implementation(WIDE, WIDE, WIDE).to(draw.device)
    _, kept = dropped(model, draw)
    _, all_kept = dropped(implementation(WIDE, WIDE, WIDE, 0.0).to(draw.device), draw)
    return {
        "dropped share of hidden units": near(1 - kept.float().mean().item(), 0.3, 0.06),
        "dropped share where p is 0": 1 - all_kept.float().mean().item(),
    }


class WithoutParts(nn.Module):
    """The network with scale and shift left to the class that builds on it."""

    def __init__(self, in_features, hidden, out_features, p=0.3):
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, out_features)
        self.dropout = nn.Dropout(p)
        self.make_scale_and_shift(out_features)

    def make_scale_and_shift(self, out_features):
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(out_features))

    def forward(self, x):
        return self.fc2(self.dropout(torch.relu(self.fc1(x)))) * self.scale + self.shift


@TwoLayerMLP.misconception(
    "scale is a plain tensor. That it requires a gradient does not register it: parameters(), and "
    "so the optimizer, never sees it, and the state dict leaves it out. What type of tensor does a "
    "module recognize when you assign it?"
)
class scale_not_parameter(WithoutParts):
    def make_scale_and_shift(self, out_features):
        self.scale = torch.ones(1, requires_grad=True)
        self.register_buffer("shift", torch.zeros(out_features))


@TwoLayerMLP.misconception(
    "shift is a plain tensor attribute. It stays behind when the model is cast, moved or saved: a "
    "loaded copy starts at zero again. A tensor that belongs to the model and is not trained has a "
    "drawer of its own."
)
class shift_plain_attribute(WithoutParts):
    def make_scale_and_shift(self, out_features):
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = torch.zeros(out_features)


@TwoLayerMLP.misconception(
    "scale and shift are both plain tensors. The module has registered neither: no optimizer finds "
    "scale, and neither is cast, moved or saved. One of them should be trained and one should not, "
    "and there is a kind of attribute for each."
)
class neither_registered(WithoutParts):
    def make_scale_and_shift(self, out_features):
        self.scale = torch.ones(1, requires_grad=True)
        self.shift = torch.zeros(out_features)


@TwoLayerMLP.misconception(
    "shift became a Parameter that requires a gradient, so an optimizer would change it. It is "
    "to be saved and moved, not trained."
)
class shift_trainable(WithoutParts):
    def make_scale_and_shift(self, out_features):
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(out_features))


@TwoLayerMLP.misconception(
    "shift is a Parameter whose gradient is switched off. Freezing is a decision that a later "
    "requires_grad_(True) on the model undoes, and parameters() still hands shift to every "
    "optimizer. What is never trained belongs in the other drawer."
)
class shift_frozen_parameter(WithoutParts):
    def make_scale_and_shift(self, out_features):
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(out_features), requires_grad=False)


@TwoLayerMLP.misconception(
    "shift is a buffer that is left out of the state dict (persistent=False). It moves with the "
    "model, but a loaded copy starts at zero again."
)
class shift_not_saved(WithoutParts):
    def make_scale_and_shift(self, out_features):
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(out_features), persistent=False)


@TwoLayerMLP.misconception(
    "Two evaluations of the same batch differ: dropout is active in evaluation mode too. How does "
    "it learn of the mode? The functional form drops unless it is told; a layer made inside "
    "forward, or kept in a Python list, never hears of eval()."
)
class dropout_ignores_mode(WithoutParts):
    def __init__(self, in_features, hidden, out_features, p=0.3):
        super().__init__(in_features, hidden, out_features, p)
        self.p = p

    def forward(self, x):
        hidden = nn.functional.dropout(torch.relu(self.fc1(x)), self.p)
        return self.fc2(hidden) * self.scale + self.shift


@TwoLayerMLP.misconception(
    "Under no_grad nothing was dropped. Whether gradients are recorded and which mode the module "
    "is in are two questions; only the mode decides here."
)
class looks_at_grad_mode(WithoutParts):
    def forward(self, x):
        active = self.training and torch.is_grad_enabled()
        hidden = nn.functional.dropout(torch.relu(self.fc1(x)), self.dropout.p, active)
        return self.fc2(hidden) * self.scale + self.shift


@TwoLayerMLP.misconception(
    "Every call drops the same units: the mask was drawn once and kept. Dropout draws anew in each "
    "call, so that no unit is missing for good."
)
class mask_kept(WithoutParts):
    def forward(self, x):
        hidden = torch.relu(self.fc1(x))
        if self.training:
            if getattr(self, "mask", hidden[:0]).shape != hidden.shape:
                self.mask = self.dropout(torch.ones_like(hidden))
            hidden = hidden * self.mask
        return self.fc2(hidden) * self.scale + self.shift


@TwoLayerMLP.misconception(
    "A probability of 0 was taken for none given, and units are dropped all the same. In a "
    "condition 0 counts as False, as None does."
)
class zero_taken_for_none_given(WithoutParts):
    def __init__(self, in_features, hidden, out_features, p=0.3):
        super().__init__(in_features, hidden, out_features, p or 0.3)


@TwoLayerMLP.misconception(
    "scale multiplies the shift too. It belongs to the output of fc2 only; the shift is added "
    "afterwards."
)
class scales_the_shift(WithoutParts):
    def forward(self, x):
        return (self.fc2(self.dropout(torch.relu(self.fc1(x)))) + self.shift) * self.scale


@TwoLayerMLP.misconception(
    "Between the two layers nothing bends: without relu two linear layers are one linear layer."
)
class no_relu(WithoutParts):
    def forward(self, x):
        return self.fc2(self.dropout(self.fc1(x))) * self.scale + self.shift


@TwoLayerMLP.misconception(
    "Dropout acts on the output of fc2. There it erases parts of the answer; the task asks for "
    "dropout on the hidden layer, before fc2."
)
class drops_the_output(WithoutParts):
    def forward(self, x):
        return self.dropout(self.fc2(torch.relu(self.fc1(x)))) * self.scale + self.shift


@TwoLayerMLP.misconception(
    "Dropout acts on the input x. The hidden layer is what should lose units, so dropout comes "
    "after relu."
)
class drops_the_input(WithoutParts):
    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(self.dropout(x)))) * self.scale + self.shift


@TwoLayerMLP.misconception(
    "The dropout probability is the same whatever p says. Hand the argument on to the layer."
)
class ignores_p(WithoutParts):
    def __init__(self, in_features, hidden, out_features, p=0.3):
        super().__init__(in_features, hidden, out_features, 0.3)


@TwoLayerMLP.misconception(
    "p is the probability to drop a unit; yours is the probability to keep it."
)
class p_is_kept_share(WithoutParts):
    def __init__(self, in_features, hidden, out_features, p=0.3):
        super().__init__(in_features, hidden, out_features, 1 - p)


@TwoLayerMLP.misconception(
    "The dropped units are zero, but the survivors kept their size, so the sum that fc2 sees is "
    "smaller in training than in evaluation. Survivors grow by 1 / (1 - p)."
)
class survivors_not_scaled(WithoutParts):
    def forward(self, x):
        hidden = torch.relu(self.fc1(x))
        if self.training:
            hidden = hidden * (torch.rand_like(hidden) >= self.dropout.p)
        return self.fc2(hidden) * self.scale + self.shift


@TwoLayerMLP.misconception(
    "scale has one entry for each output. It is a single number for all of them, of shape (1,)."
)
class scale_per_output(WithoutParts):
    def make_scale_and_shift(self, out_features):
        self.scale = nn.Parameter(torch.ones(out_features))
        self.register_buffer("shift", torch.zeros(out_features))


TwoLayerMLP.hints(
    "Print list(model.state_dict()) and [name for name, _ in model.named_parameters()].",
    "A tensor can be a Parameter, a buffer or a plain attribute. Which is scale, and which shift?",
    "Evaluate twice on the same input, and once more after .double(). What should agree?",
)
