"""Partly fitting weights: copy what fits, and say what happened to every name."""

import torch
from torch import nn

from course_utils.exercise import exercise
from course_utils.observe import observe


@exercise(objectives=("ckpt.partial",))
def load_partial(
    model: nn.Module, state_dict: dict[str, torch.Tensor], prefix: str = ""
) -> dict[str, list[str]]:
    """Copy the fitting entries of state_dict into model, and report.

    A key that starts with prefix is renamed: the prefix is removed once, at its start. Other keys
    keep their names. No two keys get the same name.

    An entry fits if the model's own state_dict has that name with the same shape; a weight that two
    layers share has two. It is copied in place, cast to the model's dtype and device: parameters
    stay the same objects, with their dtype and requires_grad. state_dict is not modified, and the
    model shares no memory with it.

    Return {"loaded": ..., "mismatched": ..., "unexpected": ..., "missing": ...}, four sorted lists
    of names. "loaded" and "mismatched" (the name is known, the shape is another; nothing is copied)
    hold names of the model, "missing" its names that were not offered at all. "unexpected" holds
    the keys, as they stand in state_dict, whose names the model does not have. No misfit raises.
    """
    own = model.state_dict()  # these tensors are the model's own memory
    report = {"loaded": [], "mismatched": [], "unexpected": []}
    offered = {key.removeprefix(prefix): key for key in state_dict}
    for name, key in offered.items():
        if name not in own:
            report["unexpected"].append(key)
        elif own[name].shape != state_dict[key].shape:
            report["mismatched"].append(name)
        else:
            own[name].copy_(state_dict[key])
            report["loaded"].append(name)
    report["missing"] = [name for name in own if name not in offered]
    return {kind: sorted(names) for kind, names in report.items()}


class Net(nn.Module):
    """A backbone with buffers, one of them not persistent, and a head; its names are not sorted."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.backbone = nn.Linear(inputs, 4)
        self.head = nn.Linear(4, classes)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def make(draw, inputs=3, classes=2):
    """A network whose every entry is drawn, counters included."""
    model = Net(inputs, classes).to(draw.device)
    model.load_state_dict(values(draw, model))
    return model


def values(draw, model, prefix=""):
    """New values for every entry of the model, under prefixed names."""
    return {
        prefix + name: draw.normal(*t.shape) if t.is_floating_point() else draw.integers(2, 99)
        for name, t in model.state_dict().items()
    }


def tried(implementation, model, state_dict, *prefix):
    """The report, the model afterwards, and which parameters are still the same objects."""
    before = dict(model.named_parameters())
    report = implementation(model, state_dict, *prefix)
    kept = {name: p is before.get(name) for name, p in model.named_parameters()}
    return {"1. report": report, "2. model": observe(model), "3. same parameters": kept}


@load_partial.case
def everything_fits(implementation, draw):
    model = make(draw)
    return tried(implementation, model, values(draw, model))


@load_partial.case
def all_keys_carry_the_prefix(implementation, draw):
    model, prefix = make(draw), draw.choice(["module.", "_orig_mod."])
    return tried(implementation, model, values(draw, model, prefix), prefix)


@load_partial.case
def half_of_the_keys_carry_it_and_values_are_float64(implementation, draw):
    model = make(draw)
    model.norm.weight.requires_grad_(False)
    offered = {
        ("student_" if place % 2 else "") + name: value.double()
        for place, (name, value) in enumerate(values(draw, model).items())
    }
    return tried(implementation, model, offered, "student_")


@load_partial.case
def a_new_head_with_missing_and_extra_keys(implementation, draw):
    model = make(draw, classes=draw.whole(2, 3))
    offered = values(draw, make(draw, classes=draw.whole(4, 6)), "module.")
    del offered["module.norm.running_mean"], offered["module.backbone.bias"]
    extra = {"module.pool.weight": draw.normal(2), "aux.bias": draw.normal(3)}
    return tried(implementation, model, {**extra, **offered}, "module.")


@load_partial.case
def a_transposed_weight(implementation, draw):
    model = make(draw)
    offered = values(draw, model)
    offered["backbone.weight"] = offered["backbone.weight"].T
    offered["module.head.bias"] = draw.normal(2)  # no prefix was given: an unknown name
    return tried(implementation, model, offered)


@load_partial.case
def shapes_that_could_be_stretched_or_squeezed(implementation, draw):
    model = make(draw, classes=1)
    offered = values(draw, model)
    offered["backbone.bias"], offered["norm.running_var"] = draw.normal(1), draw.normal()
    offered["head.weight"], offered["head.bias"] = draw.normal(4, 1), draw.normal()
    return tried(implementation, model, offered)


@load_partial.case
def names_that_contain_the_prefix_and_two_of_one_weight(implementation, draw):
    parts = {name: nn.Linear(2, 1, bias=name == "om") for name in ("om", "xom", "moo")}
    parts["moo"].weight = parts["xom"].weight
    model = nn.ModuleDict(parts).to(draw.device)
    offered = values(draw, model, "om.")  # such as om.om.bias
    offered["om.moo.weight"] = offered["xom.weight"] = offered.pop("om.xom.weight")
    offered["an.om.weight"] = offered.pop("om.om.weight")
    return tried(implementation, model, offered, "om.")


@load_partial.case
def a_buffer_that_is_not_persistent(implementation, draw):
    model = make(draw)
    return tried(implementation, model, {"scratch": draw.normal(2), "head.bias": draw.normal(2)})


@load_partial.case
def the_callers_dict_is_overwritten_later(implementation, draw):
    model = make(draw)
    offered = values(draw, model)
    result = implementation(model, offered)
    with torch.no_grad():
        for value in offered.values():
            value.zero_()
    return {"report": result, "model": model}


@load_partial.case
def nothing_is_offered(implementation, draw):
    return tried(implementation, make(draw), {}, "module.")


def removed_once(key, prefix):
    """The key without the prefix at its start."""
    return key.removeprefix(prefix)


def partial_parts(
    model, state_dict, prefix="", *, rename=removed_once, own=None, fits=None, put=None,
    unexpected=None,
):  # fmt: skip
    """The answer in parts that can be exchanged.

    rename(key, prefix) gives a name, own(model) the entries of the model by name; fits(mine, value)
    decides, put(mine, value) copies; unexpected(key, name) is what is reported.
    """
    mine = own(model) if own else model.state_dict()
    fits = fits or (lambda mine, value: mine.shape == value.shape)
    put = put or (lambda mine, value: mine.copy_(value))
    report = {"loaded": [], "mismatched": [], "unexpected": []}
    offered = {rename(key, prefix): key for key in state_dict}
    with torch.no_grad():
        for name, key in offered.items():
            if name not in mine:
                report["unexpected"].append(unexpected(key, name) if unexpected else key)
            elif fits(mine[name], state_dict[key]):
                put(mine[name], state_dict[key])
                report["loaded"].append(name)
            else:
                report["mismatched"].append(name)
    report["missing"] = [name for name in mine if name not in offered]
    return {kind: sorted(names) for kind, names in report.items()}


@load_partial.misconception(
    "load_state_dict with strict=False skips names, not shapes: another shape raises, when some "
    "tensors have been copied already, and it reports no mismatches. Decide for each name yourself."
)
def strict_false_alone(model, state_dict, prefix=""):
    renamed = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    result = model.load_state_dict(renamed, strict=False)
    unexpected = [key for key in state_dict if key.removeprefix(prefix) in result.unexpected_keys]
    loaded = [name for name in renamed if name in model.state_dict()]
    return {
        "loaded": sorted(loaded),
        "mismatched": [],
        "unexpected": sorted(unexpected),
        "missing": sorted(result.missing_keys),
    }


@load_partial.misconception(
    "Only what named_parameters gives is loaded: no buffers, and a shared weight under one name. A "
    "backbone without its running statistics behaves differently in eval mode."
)
def buffers_forgotten(model, state_dict, prefix=""):
    return partial_parts(model, state_dict, prefix, own=lambda m: dict(m.named_parameters()))


@load_partial.misconception(
    "A weight that two layers share has two names in the state_dict, and named_parameters gives "
    "only one of them unless told otherwise. You take the second for unexpected."
)
def second_names_unknown(model, state_dict, prefix=""):
    def own(model):
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        return {name: value for name, value in model.state_dict().items() if name in once}

    return partial_parts(model, state_dict, prefix, own=own)


@load_partial.misconception(
    "You took all buffers of the model. One that is not persistent is no part of its state: it is "
    "neither missing nor expected."
)
def all_buffers(model, state_dict, prefix=""):
    def own(model):
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}

    return partial_parts(model, state_dict, prefix, own=own)


@load_partial.misconception(
    "The prefix is replaced wherever it occurs. Names that contain it in the middle are damaged; "
    "remove it at the start only."
)
def prefix_replaced_anywhere(model, state_dict, prefix=""):
    return partial_parts(model, state_dict, prefix, rename=lambda key, p: key.replace(p, ""))


@load_partial.misconception(
    "The prefix is removed where it first occurs, which may be in the middle of a name. It is a "
    "prefix at the start alone."
)
def first_occurrence_removed(model, state_dict, prefix=""):
    return partial_parts(model, state_dict, prefix, rename=lambda key, p: key.replace(p, "", 1))


@load_partial.misconception(
    "lstrip takes a set of characters, not a prefix: it goes on as long as the next letter is one "
    "of them, and eats into the name."
)
def lstrip(model, state_dict, prefix=""):
    return partial_parts(model, state_dict, prefix, rename=lambda key, p: key.lstrip(p))


@load_partial.misconception(
    "The prefix is removed again and again. A name may begin with the same letters once more; "
    "remove it once."
)
def prefix_removed_repeatedly(model, state_dict, prefix=""):
    def rename(key, prefix):
        while prefix and key.startswith(prefix):
            key = key.removeprefix(prefix)
        return key

    return partial_parts(model, state_dict, prefix, rename=rename)


@load_partial.misconception(
    "As many characters as the prefix has are cut from every key. Keys that do not start with it "
    "keep their names."
)
def cuts_every_key(model, state_dict, prefix=""):
    return partial_parts(model, state_dict, prefix, rename=lambda key, p: key[len(p) :])


@load_partial.misconception(
    "Keys without the prefix are turned away as unexpected. They keep their names, and may fit."
)
def prefix_required(model, state_dict, prefix=""):
    def rename(key, prefix):
        return key.removeprefix(prefix) if key.startswith(prefix) else f"no prefix: {key}"

    return partial_parts(model, state_dict, prefix, rename=rename)


@load_partial.misconception(
    "The prefix is not removed: under these names the model knows nothing, and nothing is loaded."
)
def prefix_ignored(model, state_dict, prefix=""):
    return partial_parts(model, state_dict, prefix, rename=lambda key, p: key)


@load_partial.misconception(
    "You compare the number of elements. A transposed weight has as many and would be reshaped "
    "into nonsense: compare shapes."
)
def compares_element_counts(model, state_dict, prefix=""):
    return partial_parts(
        model, state_dict, prefix, fits=lambda mine, value: mine.numel() == value.numel(),
        put=lambda mine, value: mine.copy_(value.reshape(mine.shape)),
    )  # fmt: skip


@load_partial.misconception(
    "Dimensions of size 1 are dropped before shapes are compared. A row then fits a column: "
    "compare shapes as they are."
)
def drops_dimensions_of_one(model, state_dict, prefix=""):
    return partial_parts(
        model, state_dict, prefix,
        fits=lambda mine, value: mine.squeeze().shape == value.squeeze().shape,
        put=lambda mine, value: mine.copy_(value.reshape(mine.shape)),
    )  # fmt: skip


@load_partial.misconception(
    "You add a dot to a prefix that ends in none. The prefix is what was given, such as student_ "
    "or module., and nothing is added to it."
)
def dot_added_to_the_prefix(model, state_dict, prefix=""):
    def rename(key, prefix):
        return key.removeprefix(prefix if prefix.endswith(".") or not prefix else f"{prefix}.")

    return partial_parts(model, state_dict, prefix, rename=rename)


@load_partial.misconception(
    "You let the copy find out whether it fits. A copy broadcasts: one number fills a whole bias "
    "without an error. Compare shapes first."
)
def lets_the_copy_decide(model, state_dict, prefix=""):
    def fits(mine, value):
        try:
            mine.copy_(value)
        except RuntimeError:
            return False
        return True

    return partial_parts(model, state_dict, prefix, fits=fits)


@load_partial.misconception(
    "Names whose shape differs are reported as missing too. They were offered: the four lists "
    "share no name."
)
def mismatched_also_missing(model, state_dict, prefix=""):
    report = partial_parts(model, state_dict, prefix)
    return report | {"missing": sorted(report["missing"] + report["mismatched"])}


@load_partial.misconception(
    "Unexpected keys are reported without their prefix. Report them as they stand in the dict, so "
    "that they can be found there."
)
def unexpected_under_new_names(model, state_dict, prefix=""):
    return partial_parts(model, state_dict, prefix, unexpected=lambda key, name: name)


@load_partial.misconception(
    "Loaded names are reported with the prefix of the file. They are names of the model."
)
def loaded_under_old_names(model, state_dict, prefix=""):
    report = partial_parts(model, state_dict, prefix)
    loaded = [key for key in state_dict if key.removeprefix(prefix) in report["loaded"]]
    return report | {"loaded": sorted(loaded)}


@load_partial.misconception(
    "The lists stand in the order of the dicts. The task asks for sorted ones, so that two reports "
    "can be compared."
)
def lists_not_sorted(model, state_dict, prefix=""):
    report = partial_parts(model, state_dict, prefix)
    order = [key.removeprefix(prefix) for key in state_dict] + list(state_dict)
    own = list(model.state_dict())
    return {
        kind: sorted(names, key=(own if kind == "missing" else order).index)
        for kind, names in report.items()
    }


@load_partial.misconception(
    "The report is right and nothing was copied: the tensors of a new dict were exchanged, not "
    "the values in the model."
)
def copies_nothing(model, state_dict, prefix=""):
    return partial_parts(model, state_dict, prefix, put=lambda mine, value: None)


@load_partial.misconception(
    "The tensors of the dict became the model's own, with their dtype. Whoever changes the dict "
    "later changes the model. Copy the values."
)
def shares_memory_with_the_dict(model, state_dict, prefix=""):
    def put(mine, value):
        mine.set_(value) if mine.dtype is value.dtype else mine.copy_(value)

    return partial_parts(model, state_dict, prefix, put=put)


@load_partial.misconception(
    "New parameters were put into the model. An optimizer made before still holds the old ones, "
    "and dtype and requires_grad are those of the new ones. Copy into what is there."
)
def makes_new_parameters(model, state_dict, prefix=""):
    report = partial_parts(model, state_dict, prefix, put=lambda mine, value: None)
    renamed = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    for name in report["loaded"]:
        *path, last = name.split(".")
        part = model.get_submodule(".".join(path))
        value = renamed[name].clone()
        setattr(part, last, nn.Parameter(value) if last in part._parameters else value)
    return report


@load_partial.misconception(
    "The caller's dict was renamed or emptied. It is not yours: make a renamed view of your own."
)
def edits_the_callers_dict(model, state_dict, prefix=""):
    report = partial_parts(model, state_dict, prefix)
    for key in list(state_dict):
        state_dict[key.removeprefix(prefix)] = state_dict.pop(key)
        if key.removeprefix(prefix) in report["loaded"]:
            del state_dict[key.removeprefix(prefix)]
    return report


load_partial.hints(
    "Build the renamed view first: which name, and under which key does its tensor stand?",
    "Four classes, and each name or key belongs to exactly one of them.",
    "Mismatched is not missing. And a copy that works is no proof that the shapes were equal.",
)
