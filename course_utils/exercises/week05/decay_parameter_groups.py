"""Who decays: a question about modules and dimensions, not about names."""

from collections.abc import Iterable

import torch
from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("optim.groups",))
def decay_parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two parameter groups for torch.optim: first what decays, then what does not.

    Return [{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]
    where "params" are lists of the model's own parameters, in any order; either may be empty.

    Every trainable parameter (requires_grad) is in the groups exactly once, also one that several
    modules share. Frozen parameters are in neither.

    Second group: parameters with fewer than 2 dimensions, and, whatever their shape, the direct
    parameters of LayerNorm, GroupNorm, RMSNorm, BatchNorm1d, 2d, 3d and InstanceNorm1d, 2d, 3d and
    of their subclasses, at any depth of the model. First group: all others. Normalizations share
    parameters with each other only. The model is not modified.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    norms += (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norms += (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    spared = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, norms)
        for parameter in module.parameters(recurse=False)
    }
    decays, stays = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            spare = parameter.ndim < 2 or id(parameter) in spared
            (stays if spare else decays).append(parameter)
    return [
        {"params": decays, "weight_decay": weight_decay},
        {"params": stays, "weight_decay": 0.0},
    ]


NORMS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def by_names(implementation, draw, model):
    """The groups for a model, their parameters as one text of names, and the model afterwards.

    With random=True a case shows these names in place of the tensors of the call.
    """
    model.to(draw.device)
    groups = implementation(model, draw.number(0.05, 0.5))
    names = {id(p): name for name, p in model.named_parameters()}
    named = [in_words(group, names) for group in groups] if isinstance(groups, list) else groups
    return {"groups": named, "model": model}


def in_words(group, names):
    """A group whose params are one text, such as "list: 0.bias, 0.weight", in order of name."""
    if not isinstance(group, dict) or not isinstance(group.get("params"), Iterable):
        return group
    params = group["params"]
    found = sorted(names.get(id(p), f"another {type(p).__name__}") for p in params)
    group = group | {"params": f"{type(params).__name__}: {', '.join(found) or 'empty'}"}
    if group.get("weight_decay") == 0:
        group["weight_decay"] = 0.0  # 0 will do
    return group


class NormFree(nn.Linear):
    """A Linear whose class says norm."""


class Gated(nn.LayerNorm):
    """A LayerNorm by inheritance, with a Linear inside that is none."""

    def __init__(self, *shape):
        super().__init__(shape)
        self.gate = nn.Linear(*shape)


class Classifier(nn.Module):
    """Names that mislead: the normalization is called 1, and normal_head is a Linear."""

    def __init__(self, width):
        super().__init__()
        self.unnormalize = nn.Linear(2, width, bias=False)
        self.body = nn.Sequential(nn.Linear(width, 3), nn.LayerNorm((2, 3)), nn.Tanh())
        self.normal_head = NormFree(3, 2)


@decay_parameter_groups.case(random=True)
def a_plain_network(implementation, draw):
    first, second = draw.sizes(2)
    model = nn.Sequential(nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2))
    return by_names(implementation, draw, model)


@decay_parameter_groups.case(random=True)
def names_that_mislead(implementation, draw):
    return by_names(implementation, draw, Classifier(draw.whole(2, 4)))


@decay_parameter_groups.case(random=True)
def a_norm_with_two_dimensions_deep_inside(implementation, draw):
    block = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.LayerNorm((2, 3)), nn.Tanh()))
    return by_names(implementation, draw, nn.ModuleDict({"block": block}))


@decay_parameter_groups.case(random=True)
def every_kind_of_norm_with_weights_of_two_dimensions(implementation, draw):
    sizes = [((2, 3),), (2, 4), ((2, 3),)] + [(2,)] * 3 + [(2, 1e-5, 0.1, True)] * 3
    norms = [norm(*size) for norm, size in zip(NORMS, sizes, strict=True)]
    for norm in norms:
        norm.weight = nn.Parameter(torch.ones(2, 1))
    return by_names(implementation, draw, nn.ModuleList(norms))


@decay_parameter_groups.case(random=True)
def a_tied_embedding(implementation, draw):
    words, width = draw.sizes(2)
    model = nn.ModuleDict({"embed": nn.Embedding(words, width), "out": nn.Linear(width, words)})
    model["out"].weight = model["embed"].weight
    return by_names(implementation, draw, model)


@decay_parameter_groups.case(random=True)
def two_norms_that_share_a_weight(implementation, draw):
    model = nn.Sequential(nn.LayerNorm((2, 3)), nn.Linear(3, 3), nn.LayerNorm((2, 3)))
    model[2].weight = model[0].weight
    return by_names(implementation, draw, model)


@decay_parameter_groups.case(random=True)
def a_subclass_of_a_norm(implementation, draw):
    model = nn.Sequential(nn.Linear(3, 3), Gated(*draw.sizes(2)))
    return by_names(implementation, draw, model)


@decay_parameter_groups.case(random=True)
def the_same_model_twice(implementation, draw):
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    return [by_names(implementation, draw, model) for _ in range(2)]


@decay_parameter_groups.case(random=True)
def frozen_parameters(implementation, draw):
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    return by_names(implementation, draw, model)


@decay_parameter_groups.case(random=True)
def parameters_of_the_model_itself(implementation, draw):
    model = nn.Conv2d(2, 3, 2)
    model.scale = nn.Parameter(torch.ones(()))
    model.mixing = nn.Parameter(torch.ones(1, 2))
    return by_names(implementation, draw, model)


@decay_parameter_groups.case(random=True)
def a_model_that_is_a_norm_and_one_without_parameters(implementation, draw):
    models = nn.LayerNorm((2, 3)), nn.Sequential(nn.ReLU(), nn.Flatten())
    return [by_names(implementation, draw, model) for model in models]


@decay_parameter_groups.case(random=True)
def a_step_of_AdamW_with_the_groups(implementation, draw):
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)).to(draw.device)
    groups = implementation(model, 0.5)
    optimizer = attempt(torch.optim.AdamW, groups, lr=0.1, weight_decay=0.9)
    if isinstance(optimizer, Exception):
        return optimizer
    for parameter in model.parameters():
        parameter.grad = draw.normal(*parameter.shape)
    optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def split(parameters, weight_decay, spare):
    """The two groups of these parameters; `spare` says which do not decay."""
    groups = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for parameter in parameters:
        groups[1 if spare(parameter) else 0]["params"].append(parameter)
    return groups


def trained(model):
    """Its trainable parameters."""
    return [p for p in model.parameters() if p.requires_grad]


def ids_in(modules):
    """The identities of the parameters that belong to the normalizations among the modules."""
    norms = [module for module in modules if isinstance(module, NORMS)]
    return {id(p) for norm in norms for p in norm.parameters(recurse=False)}


@decay_parameter_groups.misconception(
    "You went by name. Names are conventions: a norm inside a Sequential is called `1.weight`, and "
    "`normal_head` is no norm. Ask for the type of the module."
)
def by_name(model, weight_decay):
    names = {id(p): name for name, p in model.named_parameters()}

    def spare(p):
        return p.ndim < 2 or "norm" in names[id(p)]

    return split(trained(model), weight_decay, spare)


@decay_parameter_groups.misconception(
    "You looked for the words bias and norm in the names. A norm inside a Sequential is called "
    "`1.weight`, `normal_head` is no norm, and a vector need not be called bias. Ask for the type "
    "of the module and the number of dimensions."
)
def by_name_alone(model, weight_decay):
    names = {id(p): name for name, p in model.named_parameters()}

    def spare(p):
        return "bias" in names[id(p)] or "norm" in names[id(p)]

    return split(trained(model), weight_decay, spare)


@decay_parameter_groups.misconception(
    "Frozen parameters are in your groups. They never get a gradient; leave them out, so that the "
    "groups show what is trained."
)
def frozen_parameters_kept(model, weight_decay):
    spared = ids_in(model.modules())
    return split(model.parameters(), weight_decay, lambda p: p.ndim < 2 or id(p) in spared)


@decay_parameter_groups.misconception(
    "You spare only the biases. The scales of normalizations are to be spared as well: decaying "
    "them pulls the outputs of the layer toward zero. So are all other vectors."
)
def only_biases_spared(model, weight_decay):
    names = {id(p): name for name, p in model.named_parameters()}
    return split(trained(model), weight_decay, lambda p: names[id(p)].endswith("bias"))


@decay_parameter_groups.misconception(
    "You went by the number of dimensions alone. A LayerNorm over two dimensions has weights with "
    "two dimensions, and they are spared all the same: ask for the type of the module too."
)
def dimensions_alone(model, weight_decay):
    return split(trained(model), weight_decay, lambda p: p.ndim < 2)


@decay_parameter_groups.misconception(
    "You spare the parameters of normalizations and nothing else. Biases and other parameters with "
    "fewer than two dimensions do not decay either, wherever they are."
)
def normalizations_alone(model, weight_decay):
    spared = ids_in(model.modules())
    return split(trained(model), weight_decay, lambda p: id(p) in spared)


@decay_parameter_groups.misconception(
    "You list a tied parameter once per owner. A shared tensor has two owners but is one "
    "parameter, and belongs in the groups once."
)
def tied_parameters_listed_twice(model, weight_decay):
    spared = ids_in(model.modules())
    every = [p for module in model.modules() for p in module.parameters(recurse=False)]
    kept = [p for p in every if p.requires_grad]
    return split(kept, weight_decay, lambda p: p.ndim < 2 or id(p) in spared)


@decay_parameter_groups.misconception(
    "You look for normalizations among the direct children of the model only. They may stand at "
    "any depth, and the model may be one itself."
)
def direct_children_only(model, weight_decay):
    spared = ids_in(model.children())
    return split(trained(model), weight_decay, lambda p: p.ndim < 2 or id(p) in spared)


@decay_parameter_groups.misconception(
    "Only LayerNorm counts as a normalization in your code. The task names nine classes; their "
    "weights need not have one dimension."
)
def layer_norm_only(model, weight_decay):
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    spared = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    return split(trained(model), weight_decay, lambda p: p.ndim < 2 or id(p) in spared)


@decay_parameter_groups.misconception(
    "You asked for the word Norm in the name of the class. A Linear may be called NormFree, and a "
    "subclass of LayerNorm anything. Ask with isinstance."
)
def by_the_name_of_the_class(model, weight_decay):
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    spared = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    return split(trained(model), weight_decay, lambda p: p.ndim < 2 or id(p) in spared)


@decay_parameter_groups.misconception(
    "A subclass of LayerNorm does not count as one in your code. `type(m) is ...` and `type(m) in "
    "...` ask for that class alone; isinstance asks for its subclasses as well."
)
def subclasses_missed(model, weight_decay):
    spared = ids_in(module for module in model.modules() if type(module) in NORMS)
    return split(trained(model), weight_decay, lambda p: p.ndim < 2 or id(p) in spared)


@decay_parameter_groups.misconception(
    "You spare all that is inside a normalization. A subclass may hold a Linear of its own, whose "
    "weight decays; only the direct parameters are spared. `parameters()` goes all the way down."
)
def everything_inside_a_norm_spared(model, weight_decay):
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    spared = {id(p) for norm in norms for p in norm.parameters()}
    return split(trained(model), weight_decay, lambda p: p.ndim < 2 or id(p) in spared)


@decay_parameter_groups.misconception(
    "Your function remembers from call to call which parameters it has listed, and at the second "
    "call for a model they are missing. What you have seen belongs inside the function."
)
def remembers_between_calls(model, weight_decay):
    groups = decay_parameter_groups.reference(model, weight_decay)
    for group in groups:
        group["params"] = [p for p in group["params"] if not hasattr(p, "listed")]
        for p in group["params"]:
            p.listed = True
    return groups


@decay_parameter_groups.misconception(
    "The two groups have changed places: the first one decays, the second does not."
)
def groups_exchanged(model, weight_decay):
    first, second = decay_parameter_groups.reference(model, weight_decay)
    return [first | {"params": second["params"]}, second | {"params": first["params"]}]


@decay_parameter_groups.misconception(
    "Your second group says nothing about its decay. A group inherits what it does not set, so it "
    "would decay by the optimizer's default, 0.01 for AdamW."
)
def second_group_inherits(model, weight_decay):
    first, second = decay_parameter_groups.reference(model, weight_decay)
    return [first, {"params": second["params"]}]


@decay_parameter_groups.misconception(
    'Your "params" are generators. They can be read once, so whoever looks at the groups before '
    "the optimizer does leaves it with nothing. Make lists."
)
def generators_for_lists(model, weight_decay):
    groups = decay_parameter_groups.reference(model, weight_decay)
    return [group | {"params": (p for p in group["params"])} for group in groups]


@decay_parameter_groups.misconception(
    "You left an empty group out. The task asks for two groups always, so that a caller knows "
    "which is which."
)
def empty_groups_left_out(model, weight_decay):
    groups = decay_parameter_groups.reference(model, weight_decay)
    return [group for group in groups if group["params"]]


@decay_parameter_groups.misconception(
    "You asked whether a parameter is `in` a list or set it against another with ==. Tensors are "
    "compared entry by entry, which gives an error or a wrong answer. Compare identities."
)
def compares_values(model, weight_decay):
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    spared = [p for norm in norms for p in norm.parameters(recurse=False)]
    return split(trained(model), weight_decay, lambda p: p in spared or p.ndim < 2)


@decay_parameter_groups.misconception(
    "The groups hold copies. An optimizer built from them trains tensors that the model never "
    "sees; pass the model's own parameters on."
)
def copies_of_the_parameters(model, weight_decay):
    groups = decay_parameter_groups.reference(model, weight_decay)
    return [g | {"params": [nn.Parameter(p.detach().clone()) for p in g["params"]]} for g in groups]


decay_parameter_groups.hints(
    "First collect the identities of the parameters that belong to normalizations, then sort all "
    "trainable parameters by that and by their dimensions.",
    "One of the model's own methods lists every parameter once, tied or not.",
    "A list can be read twice. What about what `parameters()` returns?",
)
