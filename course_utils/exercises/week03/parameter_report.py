"""Counting what a model holds: shared, frozen, buffered."""

import torch
from torch import nn

from course_utils.exercise import exercise


@exercise(objectives=("module.counting", "module.state_dict"))
def parameter_report(module: nn.Module) -> dict[str, int]:
    """Count the numbers that a module and everything below it hold.

    Return {"total": …, "trainable": …, "frozen": …, "buffers": …}, each a number of elements.

    trainable counts the parameters whose requires_grad is True, frozen the others, total both.
    A parameter counts once, also when several names or modules share it. buffers counts all
    buffers, each once, also those that are not persistent or hold integers. What is shared is the
    tensor object: a tensor and a view of it count as two. Plain tensor attributes count nowhere.
    The mode has no influence. The module is not changed.
    """
    parameters = list(module.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    buffers = sum(b.numel() for b in module.buffers())
    return {
        "total": total,
        "trainable": trainable,
        "frozen": total - trainable,
        "buffers": buffers,
    }


@parameter_report.case
def two_layers(implementation, draw):
    inputs, hidden, outputs = draw.sizes(3)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    return implementation(model)


@parameter_report.case
def a_parameter_of_its_own_beside_nested_modules(implementation, draw):
    inputs, hidden, outputs = draw.sizes(3)
    heads = nn.Linear(hidden, outputs), nn.Linear(hidden, outputs)
    model = nn.Sequential(nn.Sequential(nn.Linear(inputs, hidden)), *heads)
    model.scale = nn.Parameter(draw.normal(*draw.sizes(2)))
    return implementation(model)


@parameter_report.case
def a_convolution_and_batch_normalization_in_evaluation_mode(implementation, draw):
    inputs, outputs, height, width = draw.sizes(4)
    layers = nn.Conv2d(inputs, outputs, (height, width)), nn.BatchNorm2d(outputs)
    return implementation(nn.Sequential(*layers).eval())


@parameter_report.case
def buffers_that_are_not_saved(implementation, draw):
    model = nn.Linear(*draw.sizes(2), bias=False)
    model.register_buffer("table", draw.normal(*draw.sizes(2)), persistent=False)
    model.register_buffer("steps", draw.integers(0, 9, draw.whole(2, 9)), persistent=False)
    model.register_buffer("not_made_yet", None, persistent=False)
    return implementation(model)


@parameter_report.case
def a_buffer_under_two_names(implementation, draw):
    model = nn.Sequential(nn.Linear(*draw.sizes(2)), nn.ReLU())
    mask = draw.normal(draw.whole(3, 9))
    for part in model:
        part.register_buffer("mask", mask)
    return implementation(model)


@parameter_report.case
def tensors_and_views_of_them(implementation, draw):
    model = nn.Module()
    numbers, table = draw.normal(draw.whole(5, 9)), draw.normal(draw.whole(5, 9))
    model.whole, model.start = nn.Parameter(numbers), nn.Parameter(numbers[: draw.whole(2, 4)])
    model.register_buffer("table", table)
    model.register_buffer("beginning", table[: draw.whole(2, 4)])
    return implementation(model)


@parameter_report.case
def plain_tensor_attributes(implementation, draw):
    model = nn.Linear(*draw.sizes(2))
    model.table = draw.normal(draw.whole(3, 9))
    model.gain = draw.normal(draw.whole(3, 9), requires_grad=True)
    return implementation(model)


@parameter_report.case
def tied_weights(implementation, draw):
    words, width = draw.sizes(2)
    model = nn.Sequential(nn.Embedding(words, width), nn.Linear(width, words))
    model[1].weight = model[0].weight
    return implementation(model)


@parameter_report.case
def a_module_used_twice(implementation, draw):
    width = draw.whole(3, 9)
    layer = nn.Linear(width, width)
    return implementation(nn.Sequential(layer, nn.ReLU(), layer))


@parameter_report.case
def two_layers_of_equal_values(implementation, draw):
    width, value = draw.whole(3, 9), draw.number(0.1, 0.9)
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return implementation(model)


@parameter_report.case
def frozen_after_a_backward_and_trainable_before_one(implementation, draw):
    inputs, hidden, outputs = draw.sizes(3)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Linear(hidden, outputs))
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    return implementation(model)


@parameter_report.case
def a_recurrent_layer(implementation, draw):
    return implementation(nn.LSTM(*draw.sizes(2, high=5), num_layers=2))


@parameter_report.case
def no_parameters_at_all(implementation, draw):
    model = nn.Sequential(nn.ReLU(), nn.Flatten())
    model.register_buffer("steps", draw.integers(0, 9))
    return implementation(model)


def report(parameters, buffers, size=torch.Tensor.numel, trains=lambda p: p.requires_grad):
    """A report of these parameters and buffers, with other ideas of size and of trainable."""
    parameters = list(parameters)
    trainable = sum(size(p) for p in parameters if trains(p))
    total = sum(size(p) for p in parameters)
    counts = {"total": total, "trainable": trainable, "frozen": total - trainable}
    return counts | {"buffers": sum(size(b) for b in buffers)}


@parameter_report.misconception(
    "You counted the entries of the state dict as parameters. It holds buffers as well, and lists "
    "a shared tensor under each of its names; it is a list of what is saved, not of parameters."
)
def state_dict_count(module):
    counts = parameter_report.reference(module)
    total = sum(value.numel() for value in module.state_dict().values())
    return counts | {"total": total, "frozen": total - counts["trainable"]}


@parameter_report.misconception(
    "A parameter that two names share was counted twice. It is one set of numbers in memory, and "
    "an optimizer updates it once."
)
def double_counts_shared(module):
    return report((p for _, p in module.named_parameters(remove_duplicate=False)), module.buffers())


@parameter_report.misconception(
    "You asked each module for its own parameters and added up. A parameter that two modules "
    "share was met twice; collect the tensors first, each once, and count then."
)
def adds_up_module_by_module(module):
    parts = list(module.modules())
    parameters = [p for part in parts for p in part.parameters(recurse=False)]
    return report(parameters, [b for part in parts for b in part.buffers(recurse=False)])


@parameter_report.misconception(
    "You counted tensors. Each of them holds many numbers: its numel()."
)
def counts_tensors(module):
    return report(module.parameters(), module.buffers(), size=lambda tensor: 1)


@parameter_report.misconception(
    "Only what the module itself owns was counted. Most parameters belong to its sub-modules: look "
    "through the whole tree."
)
def top_level_only(module):
    return report(module.parameters(recurse=False), module.buffers(recurse=False))


@parameter_report.misconception(
    "What the module itself owns is missing: you went through its children. A module that has "
    "children, or none, may own parameters and buffers too."
)
def children_only(module):
    parameters = {id(p): p for child in module.children() for p in child.parameters()}
    buffers = {id(b): b for child in module.children() for b in child.buffers()}
    return report(parameters.values(), buffers.values())


@parameter_report.misconception(
    "trainable and frozen traded places: a parameter is trainable where requires_grad is True."
)
def flags_the_wrong_way_round(module):
    return report(module.parameters(), module.buffers(), trains=lambda p: not p.requires_grad)


@parameter_report.misconception(
    "Only the modules at the ends of the tree were counted. A module that has children may own "
    "parameters too."
)
def leaves_only(module):
    ends = [part for part in module.modules() if not list(part.children())]
    parameters = {id(p): p for part in ends for p in part.parameters()}
    buffers = {id(b): b for part in ends for b in part.buffers()}
    return report(parameters.values(), buffers.values())


@parameter_report.misconception(
    "You took the presence of a gradient for being trainable. Whether .grad is there depends on "
    "what ran before; the flag says what can be trained."
)
def grad_means_trainable(module):
    return report(module.parameters(), module.buffers(), trains=lambda p: p.grad is not None)


@parameter_report.misconception(
    "Parameters in a module that is in evaluation mode were counted as frozen. The mode says how "
    "dropout and batch norm behave; whether a parameter can be trained is written on the parameter."
)
def mode_means_frozen(module):
    trains = {id(p): m.training for m in module.modules() for p in m.parameters(recurse=False)}
    parameters = list(module.parameters())
    return report(parameters, module.buffers(), trains=lambda p: p.requires_grad and trains[id(p)])


@parameter_report.misconception(
    "The parameters are right, but the buffers come from the state dict, which leaves out those "
    "that are not persistent and repeats what has two names. Is there an iterator like "
    "parameters() for them?"
)
def persistent_buffers_only(module):
    names = dict(module.named_parameters(remove_duplicate=False))
    state = module.state_dict()
    return report(module.parameters(), [state[name] for name in state if name not in names])


@parameter_report.misconception(
    "Buffers of whole numbers are missing. A counter is a buffer like any other."
)
def floating_buffers_only(module):
    return report(module.parameters(), [b for b in module.buffers() if b.is_floating_point()])


@parameter_report.misconception(
    "Buffers without dimensions are missing. A counter of shape () holds one number, and it counts."
)
def scalar_buffers_left_out(module):
    return report(module.parameters(), [b for b in module.buffers() if b.dim()])


@parameter_report.misconception(
    "Every tensor among the attributes was counted. A plain tensor is not registered: it is "
    "neither parameter nor buffer, even where it requires a gradient."
)
def counts_plain_tensors(module):
    plain = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor)
    ]
    gains = [value for value in plain if value.requires_grad]
    tables = [value for value in plain if not value.requires_grad]
    return report([*module.parameters(), *gains], [*module.buffers(), *tables])


@parameter_report.misconception(
    "total contains the buffers too. It is the number of parameters, trainable plus frozen."
)
def total_with_buffers(module):
    counts = parameter_report.reference(module)
    return counts | {"total": counts["total"] + counts["buffers"]}


@parameter_report.misconception(
    "Buffers were counted as frozen parameters. They are not parameters; they have a line of "
    "their own."
)
def buffers_are_frozen(module):
    counts = parameter_report.reference(module)
    frozen = counts["frozen"] + counts["buffers"]
    return counts | {"total": counts["trainable"] + frozen, "frozen": frozen}


@parameter_report.misconception(
    "You took two parameters with the same values for one. Two layers that start equal are still "
    "two: what is shared is the tensor, not its content."
)
def equal_values_are_one(module):
    different = []
    for parameter in module.parameters():
        if not any(torch.equal(parameter, other) for other in different):
            different.append(parameter)
    return report(different, module.buffers())


@parameter_report.misconception(
    "Two parameters whose last name and shape agree were taken for one. Both repeat from layer to "
    "layer; what tells whether two names share a tensor is the tensor object itself."
)
def same_name_and_shape_are_one(module):
    found = {(n.split(".")[-1], p.shape): p for n, p in module.named_parameters()}
    return report(found.values(), module.buffers())


@parameter_report.misconception(
    "You told tensors apart by where their memory begins. A view begins where its base does and is "
    "a tensor of its own; and on the meta device no tensor has memory at all. Compare the objects."
)
def same_address_is_one(module):
    parameters = {p.data_ptr(): p for p in module.parameters()}
    return report(parameters.values(), {b.data_ptr(): b for b in module.buffers()}.values())


@parameter_report.misconception(
    "Only parameters called weight and bias were counted. A "
    "layer may call its parameters anything: an LSTM has weight_ih_l0, others have scale."
)
def weight_and_bias_only(module):
    named = module.named_parameters()
    parameters = [p for name, p in named if name.split(".")[-1] in ("weight", "bias")]
    return report(parameters, module.buffers())


parameter_report.hints(
    "A module has several iterators over what it holds. Which of them already leaves out repeats?",
    "Is there one for buffers too? Compare it with the state dict of a model with BatchNorm1d.",
    "Try two layers that share one weight, and count by hand.",
)
