"""Freezing for good: flags, gradients and statistics."""

from collections.abc import Sequence

from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("module.freezing", "module.train_eval"))
def freeze_submodules(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Freeze the named sub-modules, with everything below them.

    names are names as in model.named_modules(), also of modules without parameters. Frozen means:
    requires_grad is False on the same Parameter objects as before, .grad is None, and the module
    and all its descendants are in eval mode, until somebody calls train() again. A parameter that a
    named module shares with another module is frozen too. All else stays as it is: modes, gradients
    and flags of the other parts; a parameter that was frozen before stays frozen.

    Return the names of the parameters of model that still require grad, in the order of
    model.named_parameters(). An unknown name raises KeyError, and then nothing has been changed.
    Without names nothing changes.
    """
    modules = dict(model.named_modules())
    parts = [modules[name] for name in names]
    for part in parts:
        part.eval()
        for parameter in part.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


class Dense(nn.Module):
    """A linear layer with drawn weights."""

    def __init__(self, draw, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(draw.normal(outputs, inputs))
        self.bias = nn.Parameter(draw.normal(outputs))

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class Net(nn.Module):
    """An encoder with batch norm and dropout, two layers whose names begin alike, an own gain."""

    def __init__(self, draw, width):
        super().__init__()
        block = nn.Sequential(nn.BatchNorm1d(width, device=draw.device), nn.Dropout(0.5))
        self.encoder = nn.Sequential(Dense(draw, width, width), block)
        self.fc1 = Dense(draw, width, 2)
        self.fc10 = Dense(draw, width, 3)
        self.gain = nn.Parameter(draw.normal(1))
        block[0].running_mean.copy_(draw.normal(width))

    def forward(self, x):
        return self.fc1(self.encoder(x) * self.gain), self.fc10(x)


def net(draw, with_gradients=False):
    """A network in training mode, perhaps with gradients waiting."""
    model = Net(draw, draw.whole(2, 4))
    if with_gradients:
        for parameter in model.parameters():
            parameter.grad = draw.normal(*parameter.shape)
    return model


def identities(model):
    """The identity of every parameter."""
    return [id(parameter) for parameter in model.parameters()]


@freeze_submodules.case
def two_layers_whose_names_begin_alike(implementation, draw):
    return implementation(net(draw), ["fc1"])


@freeze_submodules.case
def an_encoder_with_batch_norm_and_dropout_inside(implementation, draw):
    model = net(draw)
    before = identities(model)
    trainable = implementation(model, ["encoder"])
    return {
        "result": trainable,
        "the same Parameter objects": identities(model) == before,
        "training": {name: part.training for name, part in model.named_modules()},
    }


@freeze_submodules.case
def running_statistics_after_a_batch(implementation, draw):
    model = net(draw)
    implementation(model, ["encoder"])
    norm = model.encoder[1][0]
    model(draw.normal(4, norm.num_features) + 3)
    frozen = {"running_mean": norm.running_mean.clone(), "batches": int(norm.num_batches_tracked)}
    model.train()
    output, _ = model(draw.normal(4, norm.num_features) + 3)
    return frozen | {
        "batches after train() and one more": int(norm.num_batches_tracked),
        "probability of the dropout": model.encoder[1][1].p,
        "the head still records gradients": output.requires_grad,
    }


@freeze_submodules.case
def gradients_that_are_waiting(implementation, draw):
    return implementation(net(draw, with_gradients=True), ["encoder.1", "fc10"])


@freeze_submodules.case
def a_dropout_and_a_batch_norm_by_name(implementation, draw):
    return implementation(net(draw), ("encoder.1.1", "encoder.1.0"))


@freeze_submodules.case
def a_part_that_was_frozen_and_one_in_evaluation_mode(implementation, draw):
    model = net(draw)
    model.fc1.weight.requires_grad_(False)
    model.encoder[1][0].eval()
    model.fc10.bias.requires_grad_(False)
    model.fc10.bias.grad = draw.normal(3)
    return implementation(model, ["fc10"])


@freeze_submodules.case
def a_weight_that_two_layers_share(implementation, draw):
    model = net(draw, with_gradients=True)
    model.head = Dense(draw, 2, 2)
    model.head.weight = model.encoder[0].weight
    first = attempt(implementation, model, ["fc1"])
    return {"1. after fc1": first, "2. after head": attempt(implementation, model, ["head"])}


@freeze_submodules.case
def a_model_in_evaluation_mode(implementation, draw):
    return implementation(net(draw).eval(), ["encoder.1"])


@freeze_submodules.case
def the_whole_model(implementation, draw):
    return implementation(net(draw), [""])


@freeze_submodules.case
def no_names(implementation, draw):
    return implementation(net(draw, with_gradients=True), [])


@freeze_submodules.case
def an_unknown_name(implementation, draw):
    model = net(draw)
    names = "head", "fc", "encoder.9", "fc1.weight"
    return {f"for the name {name}": attempt(implementation, model, [name]) for name in names}


@freeze_submodules.case
def an_unknown_name_after_a_known_one(implementation, draw):
    return attempt(implementation, net(draw, with_gradients=True), ["fc1", "head"])


def find(model, names):
    """The named modules, or KeyError."""
    modules = dict(model.named_modules())
    return [modules[name] for name in names]


def freeze(parts):
    """Switch off gradients and modes of these modules."""
    for part in parts:
        part.eval()
        part.requires_grad_(False)
        part.zero_grad()


def trainable(model):
    """Names of the parameters that require grad."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


@freeze_submodules.misconception(
    "fc10 begins with fc1 but is another module. Compare whole parts of the names, or take the "
    "modules themselves and go down from there."
)
def prefix_match(model, names):
    find(model, names)
    for name, part in model.named_modules():
        if any(name.startswith(wanted) for wanted in names):
            freeze([part])
    return trainable(model)


@freeze_submodules.misconception(
    'The name "" is the model itself, and every other name lies below it, although none of them '
    "begins with a dot. Take the modules themselves and go down from there."
)
def prefix_with_a_dot(model, names):
    find(model, names)
    for name, part in model.named_modules():
        if any(name == wanted or name.startswith(f"{wanted}.") for wanted in names if wanted):
            freeze([part])
    if "" in names:
        model.eval()
    return trainable(model)


@freeze_submodules.misconception(
    "You went by the names of parameters. A shared parameter is listed under one name only, and "
    "that may belong to another module. Ask the named module itself for its parameters."
)
def names_of_parameters(model, names):
    parts = find(model, names)
    for wanted, part in zip(names, parts, strict=True):
        part.eval()
        for name, parameter in model.named_parameters():
            if not wanted or name.startswith(f"{wanted}."):
                parameter.requires_grad_(False)
                parameter.grad = None
    return trainable(model)


@freeze_submodules.misconception(
    "A parameter that two modules share is in your list under both names. "
    "model.named_parameters() names it once."
)
def shared_names_twice(model, names):
    freeze(find(model, names))
    everything = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in everything if parameter.requires_grad]


@freeze_submodules.misconception(
    "Parameters that were frozen already were passed over, and one of them had a gradient waiting. "
    "An optimizer asks for .grad, not for the flag."
)
def frozen_passed_over(model, names):
    for part in find(model, names):
        part.eval()
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                parameter.grad = None
    return trainable(model)


@freeze_submodules.misconception(
    "You replaced train() of the frozen part, so that it can never be woken again. The part should "
    "be in eval mode; its methods stay as they are."
)
def train_replaced(model, names):
    parts = find(model, names)
    freeze(parts)
    for part in parts:
        part.train = lambda mode=True, part=part: part
    return trainable(model)


@freeze_submodules.misconception(
    "You switched off requires_grad, and that alone. A gradient that was there before still moves "
    "the weight at the next step, and in training mode running statistics follow the data and "
    "dropout drops."
)
def only_the_flags(model, names):
    for part in find(model, names):
        part.requires_grad_(False)
    return trainable(model)


@freeze_submodules.misconception(
    "eval() was taken for freezing. It changes how dropout and batch norm behave; gradients are "
    "still computed, and an optimizer still moves the weights."
)
def only_the_mode(model, names):
    for part in find(model, names):
        part.eval()
    return trainable(model)


@freeze_submodules.misconception(
    "The frozen parts are still in training mode. Running statistics are not parameters: there "
    "they follow the data, and dropout still drops."
)
def bn_still_moves(model, names):
    for part in find(model, names):
        part.requires_grad_(False)
        part.zero_grad()
    return trainable(model)


@freeze_submodules.misconception(
    "A gradient is left on the frozen parameters. At the next step the optimizer finds it and "
    "moves the weight all the same."
)
def stale_gradients(model, names):
    for part in find(model, names):
        part.eval()
        part.requires_grad_(False)
    return trainable(model)


@freeze_submodules.misconception(
    "The gradients of the frozen parameters are zeros. For the optimizer a zero is a gradient: "
    "momentum and weight decay still move the weight. Where there is None it does nothing."
)
def zeroed_gradients(model, names):
    for part in find(model, names):
        part.eval()
        part.requires_grad_(False)
        part.zero_grad(set_to_none=False)
    return trainable(model)


@freeze_submodules.misconception(
    "The whole model went to eval mode. That switches off dropout and batch norm of the parts that "
    "are still to be trained."
)
def whole_model_eval(model, names):
    freeze(find(model, names))
    if names:
        model.eval()
    return trainable(model)


@freeze_submodules.misconception(
    "Other parts were put into training mode. You know which modules to freeze; the modes of the "
    "others are not yours to choose."
)
def others_to_training_mode(model, names):
    parts = find(model, names)
    model.train()
    freeze(parts)
    return trainable(model)


@freeze_submodules.misconception(
    "Only the named module's own parameters were frozen. A container such as Sequential owns none "
    "itself; what is below it belongs to it too."
)
def direct_only(model, names):
    for part in find(model, names):
        part.eval()
        for parameter in part.parameters(recurse=False):
            parameter.requires_grad_(False)
            parameter.grad = None
    return trainable(model)


@freeze_submodules.misconception(
    "The mode of the named module changed, those of its descendants did not: you set its flag "
    "by hand. eval() goes down the tree, and the batch norm below is what it is for."
)
def mode_of_the_top_only(model, names):
    for part in find(model, names):
        part.training = False
        part.requires_grad_(False)
        part.zero_grad()
    return trainable(model)


@freeze_submodules.misconception(
    "Batch norm went to eval mode and dropout did not. A frozen part should give the same output "
    "for the same input: all of it goes to eval mode."
)
def only_batch_norm_to_eval(model, names):
    for part in find(model, names):
        part.requires_grad_(False)
        part.zero_grad()
        for below in part.modules():
            if isinstance(below, nn.BatchNorm1d):
                below.eval()
    return trainable(model)


@freeze_submodules.misconception(
    "You set the flag of every parameter anew, and a parameter that was frozen before became "
    "trainable. Touch only what is to be frozen."
)
def unfreezes_the_rest(model, names):
    parts = find(model, names)
    model.requires_grad_(True)
    freeze(parts)
    return trainable(model)


@freeze_submodules.misconception(
    "When a name is unknown, the names before it have been frozen already. Look all of them up "
    "first and change something afterwards."
)
def changes_before_it_looks(model, names):
    modules = dict(model.named_modules())
    for name in names:
        freeze([modules[name]])
    return trainable(model)


@freeze_submodules.misconception(
    "An unknown name was passed over in silence. A typing mistake would leave a part trainable "
    "and nobody would know; raise KeyError."
)
def unknown_names_ignored(model, names):
    freeze([part for name, part in model.named_modules() if name in names])
    return trainable(model)


@freeze_submodules.misconception(
    "The name of a module without parameters raised KeyError. A dropout has none, and it is a "
    "sub-module with a mode; the names of parameters tell nothing about it."
)
def names_from_the_parameters(model, names):
    owners = {""}
    for name, _ in model.named_parameters():
        parts = name.split(".")[:-1]
        owners |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    for name in names:
        if name not in owners:
            raise KeyError(name)
    freeze(find(model, names))
    return trainable(model)


@freeze_submodules.misconception(
    "An unknown name raises an error of another kind. The task asks for KeyError; get_submodule "
    "raises AttributeError."
)
def another_error(model, names):
    freeze([model.get_submodule(name) for name in names])
    return trainable(model)


@freeze_submodules.misconception(
    "You returned the names of what is frozen. The task asks for the parameters that still "
    "require grad."
)
def returns_the_frozen(model, names):
    freeze(find(model, names))
    return [name for name, p in model.named_parameters() if not p.requires_grad]


@freeze_submodules.misconception(
    "The frozen parameters are new objects. An optimizer built before holds the old ones, and "
    "so does every module that shares them; change the flag of the Parameter that is there."
)
def new_parameter_objects(model, names):
    for part in find(model, names):
        part.eval()
        for below in part.modules():
            for name, parameter in list(below.named_parameters(recurse=False)):
                setattr(below, name, nn.Parameter(parameter.detach(), requires_grad=False))
    return trainable(model)


freeze_submodules.hints(
    "Find all modules first, and change something only when every name was found.",
    "Three things must stop: gradients that come, gradients that are there, statistics that move.",
    "Run a batch through the model afterwards and compare running_mean of the frozen batch norm.",
)
