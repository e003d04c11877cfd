"""A bug hunt: blocks and gains that nobody finds, and one block in place of many."""

import copy

import torch
from torch import nn

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise
from course_utils.exercises.week03._modules import dtypes, named_part, place, registered


@exercise(objectives=("module.registration", "module.composition"))
class ResidualStack(nn.Module):
    """depth blocks in a row, each of which adds to what it gets. x has shape (N, width).

    Block i computes x + gain_i * relu(linear_i(x)), where linear_i is an nn.Linear with bias from
    width to width and gain_i a trainable number. The blocks are applied in order; with depth 0 the
    result has the values of x.

    The state dict has the keys layers.i.weight, layers.i.bias and gains.i for i = 0, 1, …; every
    gain has shape (1,) and starts at 0.1. All layers and gains are independent of each other; each
    layer starts with random values of its own. x is not modified.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        gains = [nn.Parameter(torch.full((1,), 0.1)) for _ in range(depth)]
        self.gains = nn.ParameterList(gains)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, gain in zip(self.layers, self.gains, strict=True):
            x = x + gain * torch.relu(layer(x))
        return x


def names_of(depth):
    """The keys of the state dict, block by block."""
    kinds = "layers.{}.weight", "layers.{}.bias", "gains.{}"
    return [kind.format(i) for i in range(depth) for kind in kinds]


def stack(implementation, draw, width, depth, dtype=torch.float32):
    """A stack in which every layer and every gain has values of its own."""
    values = {}
    for i in range(depth):
        values[f"layers.{i}.weight"] = draw.normal(width, width, dtype=dtype)
        values[f"layers.{i}.bias"] = draw.normal(width, dtype=dtype)
        values[f"gains.{i}"] = draw.normal(1, dtype=dtype)
    return place(implementation(width, depth).to(draw.device, dtype), values)


def value_of(model, name):
    """The values of a parameter at this time."""
    return named_part(model, name).detach().clone()


def equal_pairs(model, kind, depth):
    """The pairs of layers whose weights or biases have the same values, in words."""
    values = [named_part(model, f"layers.{i}.{kind}") for i in range(depth)]
    pairs = [(i, j) for j in range(depth) for i in range(j) if torch.equal(values[i], values[j])]
    return ", ".join(f"{i} and {j}" for i, j in pairs) or "none"


def starts_differ(model, another):
    """Whether the first layers of two stacks have different weights."""
    first, second = (named_part(stack, "layers.0.weight") for stack in (model, another))
    return not torch.equal(first, second)


@ResidualStack.case
def what_is_registered_and_how_the_gains_start(implementation, draw):
    width, depth = draw.sizes(2, low=3, high=6)
    model, another = implementation(width, depth), implementation(width, depth)
    return registered(model) | {
        "starts: gains": [attempt(value_of, model, f"gains.{i}") for i in range(depth)],
        "starts: layers with equal weights": attempt(equal_pairs, model, "weight", depth),
        "starts: layers with equal biases": attempt(equal_pairs, model, "bias", depth),
        "starts: another stack has other weights": attempt(starts_differ, model, another),
    }


@ResidualStack.case
def two_blocks_with_values_of_their_own(implementation, draw):
    width, rows = draw.sizes(2)
    model = stack(implementation, draw, width, 2)
    x = draw.normal(rows, width)
    return {"output": model(x), "the input afterwards": x}


@ResidualStack.case
def one_block(implementation, draw):
    width, rows = draw.sizes(2)
    x = draw.normal(rows, width)
    return {"output": stack(implementation, draw, width, 1)(x), "the input afterwards": x}


@ResidualStack.case
def a_stack_without_blocks(implementation, draw):
    x = draw.normal(*draw.sizes(2))
    model = implementation(x.shape[1], 0)
    return {"output": model(x), "keys of the state dict": list(model.state_dict())}


@ResidualStack.case
def gradients_of_the_input_and_of_every_parameter(implementation, draw):
    width, rows = draw.sizes(2)
    model = stack(implementation, draw, width, 3)
    x = draw.normal(rows, width, requires_grad=True)
    parameters = {name: named_part(model, name) for name in names_of(3)}
    output = attempt(model, x)
    found = gradients(output, [x, *parameters.values()], draw.normal(rows, width))
    if not isinstance(found, tuple):
        return {"output": output, "gradients": found}
    return {f"gradient of {n}": g for n, g in zip(["x", *parameters], found, strict=True)}


@ResidualStack.case
def a_state_dict_loaded_into_a_fresh_stack(implementation, draw):
    width, rows = draw.sizes(2)
    fresh = implementation(width, 2).to(draw.device)
    place(fresh, {name: torch.full((), 0.25) for name in names_of(2)})
    shapes = (width, width), (width,), (1,)
    state = {n: draw.normal(*shapes[i % 3]) for i, n in enumerate(names_of(2))}
    loaded = attempt(fresh.load_state_dict, state, strict=False)
    seen = loaded if isinstance(loaded, Exception) else loaded._asdict()
    return {"loading": seen, "output": fresh(draw.normal(rows, width))}


@ResidualStack.case
def after_a_cast_to_float64(implementation, draw):
    width, rows = draw.sizes(2)
    model = implementation(width, 2)
    place(model, {name: torch.full((), 0.25) for name in names_of(2)})
    model.to(draw.device).double()
    output = attempt(model, draw.normal(rows, width, dtype=torch.float64))
    return {"dtypes": dtypes(model), "output": output}


@ResidualStack.misconception(
    "The layers sit in a plain Python container, such as a list. A module does not look into it: "
    "these layers are missing from parameters() and from the state dict, and no cast or move "
    "reaches them."
)
class plain_list_layers(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        del self.layers
        self.layers = [nn.Linear(width, width) for _ in range(depth)]


@ResidualStack.misconception(
    "The gains sit in a Python list, where neither an optimizer nor the state dict finds them, "
    "Parameters or not. Parameters have a container of their own, as modules have."
)
class plain_list_gains(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        del self.gains
        self.gains = [nn.Parameter(torch.full((1,), 0.1)) for _ in range(depth)]


@ResidualStack.misconception(
    "Layers and gains are in Python lists, and a module does not look into lists. The blocks are "
    "now independent of each other, but parameters() and the state dict are empty."
)
class two_plain_lists(plain_list_gains):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        del self.layers
        self.layers = [nn.Linear(width, width) for _ in range(depth)]


@ResidualStack.misconception(
    "All blocks share one layer. Multiplying a list repeats the same object: there are as many "
    "names as blocks, and one weight behind them. Compare the identity of two layers."
)
class repeated_layer(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        self.layers = nn.ModuleList([nn.Linear(width, width)] * depth)


@ResidualStack.misconception(
    "Two things are left. The layers are registered now, but all of them are one object, because "
    "multiplying a list repeats what is in it. And the gains still sit in a Python list."
)
class repeated_layer_and_listed_gains(plain_list_gains):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        self.layers = nn.ModuleList([nn.Linear(width, width)] * depth)


@ResidualStack.misconception(
    "Two things are left. The gains are registered now; the layers still sit in a Python list, "
    "and since the list was multiplied all of them are one object."
)
class repeated_layer_in_a_list(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        del self.layers
        self.layers = [nn.Linear(width, width)] * depth


@ResidualStack.misconception(
    "All blocks share one gain: the same Parameter stands in the list several times. Each block "
    "has a gain of its own."
)
class repeated_gain(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        self.gains = nn.ParameterList([nn.Parameter(torch.full((1,), 0.1))] * depth)


@ResidualStack.misconception(
    "The gains are buffers: saved and moved, but not trained. They should learn."
)
class gains_not_trained(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        self.gains = nn.Module()
        for i in range(depth):
            self.gains.register_buffer(str(i), torch.full((1,), 0.1))

    def forward(self, x):
        for layer, gain in zip(self.layers, self.gains.buffers(), strict=True):
            x = x + gain * torch.relu(layer(x))
        return x


@ResidualStack.misconception(
    "The gains are Parameters whose requires_grad is off, so they stay at 0.1 for ever. They "
    "should learn."
)
class gains_frozen(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        self.gains.requires_grad_(False)


@ResidualStack.misconception(
    "Layers start with the same weights, although they are objects of their own. A copy of a "
    "layer takes the values along, and a seed that is set anew repeats them. Make a new layer for "
    "each block."
)
class copied_layer(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        layer = nn.Linear(width, width)
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(depth)])


@ResidualStack.misconception(
    "Every stack starts with the same weights: a seed is set on the way. That seed is the global "
    "one, so runs of different seeds become the same run, and all that draws afterwards repeats "
    "itself too. Leave the random state as it comes."
)
class seeds_itself(ResidualStack.reference):
    def __init__(self, width, depth):
        torch.manual_seed(0)
        super().__init__(width, depth)


@ResidualStack.misconception(
    "Each gain has shape (). The task asks for (1,), and the state dict would not fit."
)
class gains_without_dimension(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        self.gains = nn.ParameterList([nn.Parameter(torch.tensor(0.1)) for _ in range(depth)])


@ResidualStack.misconception(
    "The gains start at 1. They start at 0.1, so that each block changes little at first."
)
class gains_start_at_one(ResidualStack.reference):
    def __init__(self, width, depth):
        super().__init__(width, depth)
        self.gains = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(depth)])


@ResidualStack.misconception(
    "What goes into a block is gone from what comes out. The result of the layer has to be added "
    "to the block's input."
)
class no_skip(ResidualStack.reference):
    def forward(self, x):
        for layer, gain in zip(self.layers, self.gains, strict=True):
            x = gain * torch.relu(layer(x))
        return x


@ResidualStack.misconception(
    "+= writes the sum into the tensor it was given, and that tensor belongs to the caller. Build "
    "a new one."
)
class in_place_add(ResidualStack.reference):
    def forward(self, x):
        for layer, gain in zip(self.layers, self.gains, strict=True):
            x += gain * torch.relu(layer(x))
        return x


@ResidualStack.misconception(
    "Every block starts from the input of the whole stack. Each should continue with what the one "
    "before it returned."
)
class blocks_side_by_side(ResidualStack.reference):
    def forward(self, x):
        total = x
        for layer, gain in zip(self.layers, self.gains, strict=True):
            total = total + gain * torch.relu(layer(x))
        return total


@ResidualStack.misconception(
    "Only the last block counts: each result overwrites the one before, and every block starts "
    "from x itself. Without blocks there is no result at all."
)
class last_block_only(ResidualStack.reference):
    def forward(self, x):
        for layer, gain in zip(self.layers, self.gains, strict=True):
            result = x + gain * torch.relu(layer(x))
        return result


@ResidualStack.misconception(
    "relu is applied to gain times layer. A negative gain then changes which units pass; relu "
    "belongs to the layer's output alone."
)
class gain_inside_relu(ResidualStack.reference):
    def forward(self, x):
        for layer, gain in zip(self.layers, self.gains, strict=True):
            x = x + torch.relu(gain * layer(x))
        return x


@ResidualStack.broken
class BrokenResidualStack(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.layers = [nn.Linear(width, width)] * depth
        self.gains = [nn.Parameter(torch.full((1,), 0.1)) for _ in range(depth)]

    def forward(self, x):
        for layer, gain in zip(self.layers, self.gains, strict=True):
            x = x + gain * torch.relu(layer(x))
        return x


ResidualStack.hints(
    "Print len(list(model.parameters())) and list(model.state_dict()). How many do you expect?",
    "There is a container for modules and one for parameters, so that they are found.",
    "For a stack of depth 2: what does `model.layers[0] is model.layers[1]` say?",
)
