"""Initialization in place: the scale of each kind of layer, from one generator."""

import copy
import math

import torch
from torch import nn

from course_utils.exercise import exercise


@exercise(objectives=("module.init_scale", "module.init_practice"))
def init_weights_(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Initialize a model again, in place and on all levels, and return it.

    The model may be a single layer.

    Random numbers come only from generator, which is on the device of the parameters.

    nn.Linear and nn.Conv2d: weights normal with mean 0 and standard deviation sqrt(2 / fan_in),
    bias 0 where there is one. fan_in is in_features for a linear layer and
    in_channels / groups * kernel height * kernel width for a convolution.
    nn.Embedding: weights normal with mean 0 and standard deviation 0.02; the padding row, if there
    is one, 0.
    nn.LayerNorm, nn.BatchNorm1d and nn.BatchNorm2d: weight 1 and bias 0 where they have them.
    Subclasses of all these are initialized like them, also where they have sub-modules.

    All other parameters and all buffers stay as they are, and so do modes and gradients. The
    Parameter objects stay the same, with their requires_grad; frozen weights and biases are
    initialized like the others. No weights are tied.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.02, generator=generator)
                if module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0
            elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
                if module.weight is not None:
                    module.weight.fill_(1)
                if module.bias is not None:
                    module.bias.zero_()
    return model


def generator_for(draw):
    """A seeded generator on the device under test."""
    return torch.Generator(draw.device).manual_seed(draw.whole(0, 10**6))


def filled(draw, *modules):
    """The modules in a row, with drawn numbers in every parameter."""
    model = nn.Sequential(*modules).to(draw.device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(draw.normal(*parameter.shape))
    return model


def run(implementation, model, generator):
    """Call it, and say what it returned: the model itself, or something of which type."""
    result = implementation(model, generator)
    return {"returns": "the model itself" if result is model else type(result).__name__}


def near(value, target, within):
    """The target where the value lies within that distance of it, else the value."""
    return target if abs(value - target) < within else value


def distribution(values, std):
    """Mean, standard deviation in units of the right one, and the share beyond two of its own."""
    ratio = values.std().item() / std
    beyond = (values.abs() > 2 * values.std()).float().mean().item()
    return {
        "1. standard deviation / right one": near(ratio, 1.0, 0.08),
        "2. mean / standard deviation": near(values.mean().item() / std, 0.0, 0.1),
        "3. share beyond 2 standard deviations": near(beyond, 0.0455, 0.02),
    }


def fates(before, model):
    """For each tensor, with the kind of its module, whether it has the values that it had."""
    seen = {}
    for name, value in model.state_dict().items():
        kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
        same = torch.equal(before[name], value)
        seen[f"{name} of {kind}"] = "as it was" if same else "changed"
    return seen


def copied(state):
    """Copies of the tensors."""
    return {name: value.detach().clone() for name, value in state.items()}


@init_weights_.case(random=True)
def a_wide_linear_layer_as_the_model(implementation, draw):
    model = filled(draw, nn.Linear(64, 96))[0]
    seen = run(implementation, model, generator_for(draw))
    seen |= distribution(model.weight.detach(), math.sqrt(2 / 64))
    seen["bias"] = model.bias.detach().clone()
    return seen


@init_weights_.case(random=True)
def a_grouped_convolution(implementation, draw):
    model = filled(draw, nn.Conv2d(32, 64, (3, 5), groups=4))
    seen = run(implementation, model, generator_for(draw))
    seen |= distribution(model[0].weight.detach(), math.sqrt(2 / (32 / 4 * 3 * 5)))
    seen["bias"] = model[0].bias.detach().clone()
    return seen


@init_weights_.case(random=True)
def embeddings_with_and_without_a_padding_row(implementation, draw):
    padding = draw.whole(1, 99)
    layers = nn.Embedding(100, 64, padding_idx=padding), nn.Embedding(3, 4)
    model = filled(draw, *layers, nn.Embedding(3, 4, padding_idx=0))
    seen = run(implementation, model, generator_for(draw))
    padded, plain, first = (layer.weight.detach() for layer in model)
    seen |= distribution(padded[torch.arange(100) != padding], 0.02)
    seen["padding row"] = padded[padding].clone()
    seen["padding row with the index 0"] = first[0].clone()
    seen["rows of zeros without padding"] = int((plain == 0).all(1).sum())
    return seen


@init_weights_.case
def normalization_layers(implementation, draw):
    layers = nn.LayerNorm(3), nn.BatchNorm1d(4), nn.BatchNorm2d(2)
    model = filled(draw, *layers)
    for layer in layers[1:]:
        layer.running_mean.copy_(draw.normal(layer.num_features))
        layer.num_batches_tracked.fill_(7)
    seen = run(implementation, model, generator_for(draw))
    seen |= copied(model.state_dict())
    return seen


@init_weights_.case(random=True)
def layers_without_bias_and_norms_without_parameters(implementation, draw):
    inputs, outputs = draw.sizes(2)
    layers = (
        nn.Linear(inputs, outputs, bias=False),
        nn.LayerNorm(outputs, elementwise_affine=False),
        nn.LayerNorm(outputs, bias=False),
        nn.BatchNorm1d(outputs, affine=False),
        nn.Conv2d(2, 3, 2, bias=False),
    )
    model = filled(draw, *layers)
    before = copied(model.state_dict())
    seen = run(implementation, model, generator_for(draw))
    seen["tensors"] = fates(before, model)
    return seen


class Scaled(nn.Linear):
    """A subclass of nn.Linear with a parameter of its own."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.gain = nn.Parameter(torch.ones(outputs, inputs))


class Words(nn.Embedding):
    """A subclass of nn.Embedding."""


class Rows(nn.LayerNorm):
    """A subclass of nn.LayerNorm."""


@init_weights_.case(random=True)
def subclasses_deeper_levels_and_what_should_stay(implementation, draw):
    inner = nn.Sequential(Scaled(3, 2), nn.Linear(2, 4), nn.LayerNorm(4))
    inner[1].add_module("activation", nn.ReLU())
    others = nn.Conv1d(2, 3, 2), nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm3d(2), nn.GroupNorm(1, 3)
    model = filled(draw, inner, *others, nn.PReLU(), Words(4, 3), Rows(3))
    model.register_parameter("table", nn.Parameter(draw.normal(4, 5)))
    model.register_buffer("mask", draw.normal(3, 3))
    before = copied(model.state_dict())
    seen = run(implementation, model, generator_for(draw))
    seen["tensors"] = fates(before, model)
    return seen


@init_weights_.case(random=True)
def frozen_parameters_and_the_same_objects(implementation, draw):
    layers = nn.Linear(3, 4), nn.Embedding(5, 2), nn.BatchNorm1d(2), nn.LayerNorm(2)
    model = filled(draw, *layers, nn.Linear(2, 3))
    model[:3].requires_grad_(False)
    model[1:3].eval()
    waiting = {name: draw.normal(*p.shape) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = waiting[name]
    objects, before = [id(p) for p in model.parameters()], copied(model.state_dict())
    seen = run(implementation, model, generator_for(draw))
    seen |= {
        "tensors": fates(before, model),
        "the same Parameter objects": [id(p) for p in model.parameters()] == objects,
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "training mode": [module.training for module in model],
        "the gradient that was waiting is there": {
            name: p.grad is waiting[name] for name, p in model.named_parameters()
        },
    }
    return seen


@init_weights_.case(random=True)
def where_the_random_numbers_come_from(implementation, draw):
    model = filled(draw, nn.Linear(3, 4), nn.Linear(3, 4), nn.Embedding(4, 3), nn.Conv2d(2, 3, 2))
    seed, weights = draw.whole(0, 10**6), []
    generator = torch.Generator(draw.device)
    global_state = torch.get_rng_state()
    for start in (seed, seed, seed + 1, None):
        if start is not None:
            generator.manual_seed(start)
        implementation(model, generator)
        weights.append([layer.weight.detach().clone() for layer in model])
    first, again, other, later = weights
    seen = {
        "same seed, same weights, layer by layer": list(map(torch.equal, first, again)),
        "other seed, other weights": not any(map(torch.equal, first, other)),
        "second call with one generator, other weights": not any(map(torch.equal, other, later)),
        "two equal layers differ": not torch.equal(first[0], first[1]),
        "global random state untouched": torch.equal(torch.get_rng_state(), global_state),
    }
    return seen


NORMS = nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d


def kaiming(weight):
    """The right standard deviation of a Linear or Conv2d."""
    return math.sqrt(2 / weight[0].numel())


def normal(weight, std, generator):
    """Normal numbers in place."""
    weight.normal_(0, std, generator=generator)


@torch.no_grad()
def initialize(
    model, generator, std=kaiming, fill=normal, modules=None, is_a=isinstance, bias=True,
    padding=True, embedding_std=lambda weight: 0.02, norms=True,
):  # fmt: skip
    """The reference in parts that can be exchanged."""
    for module in model.modules() if modules is None else modules:
        if is_a(module, (nn.Linear, nn.Conv2d)):
            fill(module.weight, std(module.weight), generator)
            if bias and module.bias is not None:
                module.bias.zero_()
        elif is_a(module, (nn.Embedding,)):
            fill(module.weight, embedding_std(module.weight), generator)
            if padding and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
        elif norms and is_a(module, NORMS):
            if module.weight is not None:
                module.weight.fill_(1)
            if module.bias is not None:
                module.bias.zero_()
    return model


@init_weights_.misconception(
    "You counted the outputs. Each row of a weight makes one output, which is a sum over the "
    "inputs: how many numbers are added up, the fan-in, is what sets the scale."
)
def fan_out(model, generator):
    def std(weight):
        return math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel()))

    return initialize(model, generator, std)


@init_weights_.misconception(
    "2 / fan_in is the variance; what normal_ and its relatives ask for is the standard "
    "deviation, its root."
)
def variance_for_std(model, generator):
    return initialize(model, generator, lambda weight: kaiming(weight) ** 2)


@init_weights_.misconception(
    "This is Xavier's scale: it averages fan-in and fan-out and misses the factor that makes up "
    "for ReLU. Deep stacks shrink with it."
)
def xavier_scale(model, generator):
    def std(weight):
        return math.sqrt(2 / ((weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()))

    return initialize(model, generator, std)


@init_weights_.misconception(
    "The standard deviation is sqrt(1 / fan_in). The 2 makes up for the half of the signal that "
    "ReLU removes."
)
def without_the_two(model, generator):
    return initialize(model, generator, lambda weight: math.sqrt(1 / weight[0].numel()))


@init_weights_.misconception(
    "The fan-in of the convolution counts the channels only. One output sees in_channels / groups "
    "times as many numbers as the kernel has places."
)
def kernel_forgotten(model, generator):
    return initialize(model, generator, lambda weight: math.sqrt(2 / weight.shape[1]))


@init_weights_.misconception(
    "The fan-in of the convolution counts the channels of all groups. An output sees those of its "
    "own group; what does the shape of the weight say?"
)
def groups_forgotten(model, generator):
    groups = {m.weight: m.groups for m in model.modules() if isinstance(m, nn.Conv2d)}
    return initialize(model, generator, lambda w: kaiming(w) / math.sqrt(groups.get(w, 1)))


@init_weights_.misconception(
    "The scale is right, but the numbers are uniform: none lies beyond 1.73 standard deviations. "
    "The task asks for a normal distribution."
)
def uniform_numbers(model, generator):
    def fill(weight, std, generator):
        weight.uniform_(-std * math.sqrt(3), std * math.sqrt(3), generator=generator)

    return initialize(model, generator, fill=fill)


@init_weights_.misconception(
    "A layer without a bias has None there. A norm may lack its bias alone, or weight and bias. "
    "Look before you fill."
)
def assumes_bias(model, generator):
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm1d)):
            nn.init.zeros_(module.bias)
    return initialize(model, generator)


@init_weights_.misconception(
    "You drew from the global random state: the generator that was passed in has no effect, and "
    "everybody else's random numbers have shifted."
)
def global_generator(model, generator):
    return initialize(model, None)


@init_weights_.misconception(
    "The convolutions draw from the global random state, the other layers from the generator. "
    "Every function that draws needs the generator."
)
def convolutions_from_the_global_state(model, generator):
    def fill(weight, std, generator):
        normal(weight, std, None if weight.ndim == 4 else generator)

    return initialize(model, generator, fill=fill)


@init_weights_.misconception(
    "The embeddings draw from the global random state, the other layers from the generator. "
    "Every function that draws needs the generator."
)
def embeddings_from_the_global_state(model, generator):
    initialize(model, generator)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            initialize(model, None, modules=[module])
    return model


@init_weights_.misconception(
    "You seeded the global random state, and everybody else's random numbers have changed with it. "
    "Functions that draw take a generator."
)
def seeds_the_global_state(model, generator):
    torch.manual_seed(torch.randint(2**31, (), generator=generator, device=generator.device))
    return initialize(model, None)


@init_weights_.misconception(
    "The generator is seeded anew on the way, so layers of equal shape get equal weights and every "
    "call gives the same. Draw from it as it comes."
)
def seeds_for_every_layer(model, generator):
    def fill(weight, std, generator):
        normal(weight, std, generator.manual_seed(generator.initial_seed()))

    return initialize(model, generator, fill=fill)


@init_weights_.misconception("The biases keep the values they had. They start at 0.")
def biases_left(model, generator):
    return initialize(model, generator, bias=False)


@init_weights_.misconception(
    "The padding row got random numbers like the others. It stands for no word, and since it never "
    "gets a gradient it would keep them forever."
)
def padding_row_filled(model, generator):
    return initialize(model, generator, padding=False)


@init_weights_.misconception(
    "A padding row with the index 0 got random numbers. In a condition 0 counts as False, as None "
    "does; but here one is a row, and the other says that there is none."
)
def padding_index_zero_taken_for_none(model, generator):
    initialize(model, generator, padding=False)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx:
                module.weight[module.padding_idx] = 0
    return model


@init_weights_.misconception(
    "An embedding without a padding row became 0 all over: its padding_idx is None, and indexing "
    "with None selects everything. Ask before you clear."
)
def assumes_a_padding_row(model, generator):
    initialize(model, generator)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight[module.padding_idx] = 0
    return model


@init_weights_.misconception(
    "The embedding was scaled by a fan-in. It sums nothing: it picks a row. The task gives its "
    "standard deviation as a number."
)
def embedding_by_fan_in(model, generator):
    return initialize(model, generator, embedding_std=kaiming)


@init_weights_.misconception(
    "The normalization layers were passed over: their weight should be 1 and their bias 0 again."
)
def norms_passed_over(model, generator):
    return initialize(model, generator, norms=False)


@init_weights_.misconception(
    "The running statistics were reset. They are buffers, and all buffers stay as they are."
)
def statistics_reset(model, generator):
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.reset_running_stats()
    return initialize(model, generator)


@init_weights_.misconception(
    "Only the first level of the model was visited. Layers inside containers inside the model "
    "belong to it too."
)
def first_level_only(model, generator):
    return initialize(model, generator, modules=model.children())


@init_weights_.misconception(
    "The model itself was passed over: you started with what is inside it. A model may be a single "
    "layer."
)
def model_itself_left_out(model, generator):
    return initialize(model, generator, modules=list(model.modules())[1:])


@init_weights_.misconception(
    "Layers that have sub-modules were passed over. A layer may own a weight and have something "
    "below it as well."
)
def leaves_only(model, generator):
    return initialize(
        model, generator, modules=[m for m in model.modules() if not list(m.children())]
    )


@init_weights_.misconception(
    "Subclasses were passed over: you compared types for being the same. Is there a question that "
    "a subclass answers with yes as well?"
)
def exact_types_only(model, generator):
    return initialize(model, generator, is_a=lambda module, kinds: type(module) in kinds)


@init_weights_.misconception(
    "Every parameter with the shape of a matrix was drawn anew, whatever it belongs to. Go by the "
    "kind of module: the other parameters stay as they are."
)
@torch.no_grad()
def goes_by_shape(model, generator):
    own = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter not in own:
            normal(parameter, kaiming(parameter), generator)
    return initialize(model, generator)


@init_weights_.misconception(
    "Frozen weights were passed over. requires_grad says what an optimizer may change; "
    "initialization comes before that and includes them."
)
def frozen_left_out(model, generator):
    def fill(weight, std, generator):
        if weight.requires_grad:
            normal(weight, std, generator)

    return initialize(model, generator, fill=fill)


@init_weights_.misconception(
    "Relatives of the layers in the task, such as BatchNorm3d or another convolution, were "
    "initialized as well. Only the layers that it names change."
)
def relatives_too(model, generator):
    initialize(model, generator)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model


@init_weights_.misconception(
    "The model was put into training mode. Parts of it may be in eval mode on purpose; "
    "initialization does not ask for a mode."
)
def mode_switched(model, generator):
    return initialize(model.train(), generator)


@init_weights_.misconception(
    "The gradients were cleared. They are not part of the initialization and stay as they are."
)
def gradients_cleared(model, generator):
    model.zero_grad()
    return initialize(model, generator)


@init_weights_.misconception(
    "The weights are new Parameter objects. An optimizer built before holds the old ones, and "
    "frozen weights are trainable again. Fill the Parameter that is there."
)
def new_objects(model, generator):
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            module.weight = nn.Parameter(torch.empty_like(module.weight))
    return initialize(model, generator)


@init_weights_.misconception(
    "You initialized a copy of the model and returned that. The model that was passed in, which an "
    "optimizer may hold already, is as it was."
)
def works_on_a_copy(model, generator):
    return initialize(copy.deepcopy(model), generator)


@init_weights_.misconception(
    "The model is initialized, but you returned nothing. Return the model, so that calls can be "
    "written in a row."
)
def returns_nothing(model, generator):
    initialize(model, generator)


init_weights_.hints(
    "Which iterator visits a module and everything below it, on all levels?",
    "How many numbers are added up for one output? The shape of the weight without its first size.",
    "Editing a leaf that requires a gradient in place needs a guard. What keeps autograd away?",
)
