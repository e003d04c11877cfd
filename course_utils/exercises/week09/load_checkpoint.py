"""A bug hunt: loading safely, and all or nothing."""

import os

import torch
from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week09._files import listing, workplace
from course_utils.observe import observe


@exercise(objectives=("ckpt.safe_load", "ckpt.all_or_nothing", "ckpt.device_map"))
def load_checkpoint(
    path: str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict:
    """Load {"model": ..., "optimizer": ..., other entries} safely, all or nothing.

    The first two are state dicts; "optimizer" may be absent. Return the other entries as a new
    dict, in which neither "model" nor "optimizer" occurs.

    Never execute code from the file: a file that asks for it raises pickle.UnpicklingError. Tensors
    are mapped to the device of the model's first parameter.

    Raise ValueError, leaving model and optimizer exactly as they were, if "model" is missing, if
    its names or any shape differ from the model's (the order of names does not matter), if an
    optimizer is given and "optimizer" is missing, or if the optimizer refuses its state (other
    sizes of its groups).

    Otherwise both are loaded in place: the model keeps its parameter objects, and the optimizer
    takes over the saved learning rates. Modes (train, eval) stay as they are.
    """
    device = next(model.parameters()).device
    checkpoint = torch.load(path, map_location=device, weights_only=True)
    if "model" not in checkpoint or (optimizer is not None and "optimizer" not in checkpoint):
        raise ValueError(f"the checkpoint holds only {sorted(checkpoint)}")
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    offered = {name: value.shape for name, value in checkpoint["model"].items()}
    if offered != wanted:  # dicts compare equal in any order
        differing = sorted(name for name, _ in offered.items() ^ wanted.items())
        raise ValueError(f"names or shapes differ: {differing}")
    if optimizer is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])  # refuses before it changes anything
    model.load_state_dict(checkpoint["model"])
    return {k: v for k, v in checkpoint.items() if k not in ("model", "optimizer")}


class Centered(nn.Module):
    """A part whose state is a buffer: what it subtracts."""

    def __init__(self, size):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))

    def forward(self, x):
        return x - self.mean


def make_model(draw, inputs, centered=2):
    """A weight and a buffer, no more, since a file's price is the number of its tensors."""
    return nn.Sequential(nn.Linear(inputs, 2, bias=False), Centered(centered)).to(draw.device)


def written(draw, inputs, *, optimizer=True, stepped=True, more=()):
    """A checkpoint with further entries; its optimizer, if any, has more in a second group."""
    shapes = {"0.weight": (2, inputs), "1.mean": (2,)}
    state = {name: draw.uniform(*shape, low=0.2, high=2) for name, shape in shapes.items()}
    rest = {"step": draw.whole(1, 999), "mean": draw.normal(3)}
    if not optimizer:
        return {"model": state, **rest}
    weights = list(make_model(draw, inputs).parameters())
    optimizer = make_optimizer(in_groups(weights, more) if more else weights, 0.05)
    if stepped:
        make_a_step(draw, optimizer)
    return {"model": state, "optimizer": optimizer.state_dict(), **rest}


def in_groups(*groups):
    """Groups of parameters as optimizers take them."""
    return [{"params": list(group)} for group in groups]


def make_optimizer(parameters, lr):
    """SGD with momentum: it has a state, and is cheap."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, foreach=False)


def make_a_step(draw, optimizer):
    """A step with drawn gradients, which are gone afterwards."""
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = draw.normal(*parameter.shape)
    optimizer.step()
    optimizer.zero_grad()


def tried(implementation, model, optimizer=None):
    """Load the checkpoint last.pt; the result, then model and optimizer as they are."""
    given = [model] if optimizer is None else [model, optimizer]
    after = {"1. result": attempt(implementation, "last.pt", *given), "2. model": model}
    if optimizer is not None:
        after["3. optimizer"] = optimizer.state_dict()
    return observe(after)


@load_checkpoint.case
def a_good_file_with_optimizer_then_one_more_step(implementation, draw):
    inputs = draw.whole(4, 5)
    model = make_model(draw, inputs)
    optimizer = make_optimizer(model.parameters(), 5.0)
    with workplace(draw):
        checkpoint = written(draw, inputs)
        names = reversed(checkpoint["model"])  # the order of names says nothing
        checkpoint["model"] = {name: checkpoint["model"][name] for name in names}
        torch.save(checkpoint, "last.pt")
        seen = tried(implementation, model, optimizer)
    make_a_step(draw, optimizer)
    return [seen, "one step later:", model]


@load_checkpoint.case
def before_the_first_step_and_modes_and_frozen_weights_stay(implementation, draw):
    inputs = draw.whole(4, 5)
    checkpoint = written(draw, inputs, stepped=False)  # the optimizer's state is still empty
    checkpoint["model"] = {name: t.double() for name, t in checkpoint["model"].items()}
    model = make_model(draw, inputs).eval()
    model[1].train()
    model[0].weight.requires_grad_(False)
    before = list(model.parameters())
    with workplace(draw):
        torch.save(checkpoint, "last.pt")
        seen = tried(implementation, model, make_optimizer(before, 0.5))
        rest = attempt(implementation, "last.pt", model)
    kept = [a is b for a, b in zip(before, model.parameters(), strict=True)]
    return [seen, {"no optimizer given": rest, "the same parameter objects": kept}]


@load_checkpoint.case
def models_and_optimizers_that_do_not_fit(implementation, draw):
    inputs = draw.whole(4, 5)
    kinds = "a shape", "a missing name", "an unknown name", "more parameters", "other groups"
    models = {kind: make_model(draw, inputs) for kind in kinds}
    models["a buffer's shape"] = make_model(draw, inputs, centered=3)
    first = models["a shape"][0]  # as many numbers, another shape
    first.weight = nn.Parameter(first.weight.detach().reshape(inputs, 2))
    models["a missing name"][1].register_buffer("scale", draw.uniform(2))
    del models["an unknown name"][1].mean
    a, b, c = (nn.Parameter(draw.normal(2)) for _ in range(3))
    seen = {}
    with workplace(draw):
        torch.save(written(draw, inputs, more=(a, b)), "last.pt")
        for kind, model in models.items():
            if kind in ("a shape", "more parameters", "other groups"):
                weight = first.weight if kind == "a shape" else model[0].weight
                groups = in_groups([weight], [a, b])
                if kind == "more parameters":
                    groups = in_groups([weight], [a, b, c])
                if kind == "other groups":  # as many of them, and as many parameters in all
                    groups = in_groups([weight, a], [b])
                optimizer = make_optimizer(groups, 0.5)
                make_a_step(draw, optimizer)
                seen[kind] = tried(implementation, model, optimizer)
            else:
                seen[kind] = tried(implementation, model)
    return seen


@load_checkpoint.case
def a_missing_entry_and_names_with_a_prefix(implementation, draw):
    inputs, seen = draw.whole(4, 5), {}
    checkpoint = written(draw, inputs)
    with workplace(draw):
        for name in ("model", "optimizer"):
            torch.save({key: checkpoint[key] for key in checkpoint if key != name}, "last.pt")
            model = make_model(draw, inputs)
            optimizer = make_optimizer(model.parameters(), 0.5)
            seen[f"without {name}"] = tried(implementation, model, optimizer)
        names = {f"module.{name}": value for name, value in checkpoint["model"].items()}
        torch.save(checkpoint | {"model": names}, "last.pt")
        seen["names with module."] = tried(implementation, make_model(draw, inputs))
    return seen


@load_checkpoint.case
def a_file_that_runs_code(implementation, draw):
    inputs = draw.whole(4, 5)
    with workplace(draw):
        torch.save(written(draw, inputs, optimizer=False) | {"config": Harmful()}, "last.pt")
        seen = tried(implementation, make_model(draw, inputs))
        return [seen, {"what lies in the folder now": listing()}]


@load_checkpoint.case
def a_model_on_the_meta_device(implementation, draw):
    model = make_model(draw, 4)
    with workplace(draw):
        torch.save(written(draw, 4, optimizer=False), "last.pt")
        rest = attempt(implementation, "last.pt", model.to("meta"))
    mean = rest.get("mean") if isinstance(rest, dict) else rest
    return {"device of mean": mean.device.type} if isinstance(mean, torch.Tensor) else rest


class Harmful:
    """Pickled, it asks whoever loads it to make a folder; it could ask for anything."""

    def __reduce__(self):
        return os.mkdir, ("made by the file",)


def load_parts(
    path, model, optimizer=None, *, weights_only=True, device=None, check=True, shape=None,
    names=None, load=None, load_optimizer=None, model_first=False,
):  # fmt: skip
    """The answer in parts that can be exchanged.

    shape(tensor) is what is compared for each of names(model); load(model, state) and
    load_optimizer(optimizer, state) put the states in place.
    """
    device = device or next(model.parameters()).device
    checkpoint = torch.load(path, map_location=device, weights_only=weights_only)
    if "model" not in checkpoint or (optimizer is not None and "optimizer" not in checkpoint):
        raise ValueError(sorted(checkpoint))
    if check:
        shape = shape or (lambda value: value.shape)
        wanted = {name: shape(value) for name, value in model.state_dict().items()}
        offered = {name: shape(value) for name, value in checkpoint["model"].items()}
        compared = names(model) if names else {*wanted, *offered}
        if any(wanted.get(name) != offered.get(name) for name in compared):
            raise ValueError("names or shapes differ")
    load = load or (lambda model, state: model.load_state_dict(state))
    load_optimizer = load_optimizer or (lambda optimizer, state: optimizer.load_state_dict(state))
    if model_first:
        load(model, checkpoint["model"])
    if optimizer is not None:
        load_optimizer(optimizer, checkpoint["optimizer"])
    if not model_first:
        load(model, checkpoint["model"])
    return {k: v for k, v in checkpoint.items() if k not in ("model", "optimizer")}


def load_what_fits(model, state):
    """load_state_dict without strictness."""
    model.load_state_dict(state, strict=False)


@load_checkpoint.broken
def broken_load_checkpoint(path, model, optimizer=None):
    """The version to repair."""
    ck = torch.load(path, weights_only=False)
    model.load_state_dict(ck["model"], strict=False)
    if optimizer is not None and "optimizer" in ck:
        optimizer.load_state_dict(ck["optimizer"])
    return ck


@load_checkpoint.misconception(
    "With weights_only=False loading executes whatever the file says. Here the file only made a "
    "folder; it could have done anything that you may do."
)
def weights_only_false(path, model, optimizer=None):
    return load_parts(path, model, optimizer, weights_only=False)


@load_checkpoint.misconception(
    "Unsafe files are recognized after they have run: you look at the contents, and by then the "
    "code in the file was executed. The refusal has to come from the loading itself."
)
def looks_after_loading(path, model, optimizer=None):
    torch.load(path, weights_only=False)
    return load_parts(path, model, optimizer)


@load_checkpoint.misconception(
    "You load with strict=False. Layers that are missing in the file keep their random weights "
    "without a word, and shapes raise half-way."
)
def strict_false(path, model, optimizer=None):
    def load(model, state):
        try:
            model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise ValueError(error) from error

    return load_parts(path, model, optimizer, check=False, load=load)


@load_checkpoint.misconception(
    "You let load_state_dict find out whether the state fits. It copies what fits before it "
    "complains about the rest, so that the model is half overwritten. Check first, then load."
)
def load_state_dict_as_validation(path, model, optimizer=None):
    def load(model, state):
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(error) from error

    return load_parts(path, model, optimizer, check=False, load=load, model_first=True)


@load_checkpoint.misconception(
    "You let load_state_dict find out whether the state fits, and after the optimizer was loaded. "
    "It copies what fits before it complains, and the optimizer is another one already."
)
def validation_after_the_optimizer(path, model, optimizer=None):
    def load(model, state):
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(error) from error

    return load_parts(path, model, optimizer, check=False, load=load)


@load_checkpoint.misconception(
    "A state that does not fit raises load_state_dict's RuntimeError, with the model half "
    "overwritten. The task asks for a ValueError, before anything is changed."
)
def runtime_error_goes_through(path, model, optimizer=None):
    return load_parts(path, model, optimizer, check=False, model_first=True)


@load_checkpoint.misconception(
    "The model was loaded before it was clear that the optimizer takes its state. If it refuses, "
    "you have half a resume."
)
def model_loaded_before_the_optimizer_is_checked(path, model, optimizer=None):
    return load_parts(path, model, optimizer, model_first=True)


@load_checkpoint.misconception(
    "You count the optimizer's groups, or its parameters, and load the model. With as many in "
    "other groups the optimizer refuses all the same, and the model is another one by then."
)
def counts_the_parameters(path, model, optimizer=None):
    def parameters(groups):
        return len(groups), sum(len(group["params"]) for group in groups)

    if optimizer is not None:
        saved = torch.load(path, weights_only=True).get("optimizer", {"param_groups": []})
        if parameters(saved["param_groups"]) != parameters(optimizer.param_groups):
            raise ValueError("another number of parameters")
    return load_parts(path, model, optimizer, model_first=True)


@load_checkpoint.misconception(
    "An optimizer whose state is empty is taken for a missing one. Before its first step it has "
    "none, and plain SGD never has. Ask whether the entry is there."
)
def refuses_an_empty_state(path, model, optimizer=None):
    saved = torch.load(path, map_location="cpu", weights_only=True).get("optimizer")
    if optimizer is not None and not (saved and saved["state"]):
        raise ValueError("no optimizer")
    return load_parts(path, model, optimizer)


@load_checkpoint.misconception(
    "Names that begin with module. are taken without it. Here names that differ are refused: who "
    "loads the file of another kind of model should know, and rename on purpose."
)
def prefix_removed(path, model, optimizer=None):
    checkpoint = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    if "model" in checkpoint:
        names = {k.removeprefix("module."): value for k, value in checkpoint["model"].items()}
        torch.save(checkpoint | {"model": names}, path)
    return load_parts(path, model, optimizer)


@load_checkpoint.misconception(
    "The optimizer is ignored. The run goes on with empty moments and the new learning rate."
)
def optimizer_ignored(path, model, optimizer=None):
    return load_parts(path, model, optimizer, load_optimizer=lambda optimizer, state: None)


@load_checkpoint.misconception(
    "An optimizer was given, the file has no state for it, and nothing was said: the run goes on "
    "with empty moments. That is a ValueError, before the model is touched."
)
def optimizer_loaded_only_if_there(path, model, optimizer=None):
    has_one = "optimizer" in torch.load(path, weights_only=True)
    return load_parts(path, model, optimizer if has_one else None)


@load_checkpoint.misconception(
    "The moments are loaded and the learning rate is the one of the new constructor. The saved "
    "rate belongs to the state of the run."
)
def keeps_the_new_learning_rate(path, model, optimizer=None):
    def load_optimizer(optimizer, state):
        rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    return load_parts(path, model, optimizer, load_optimizer=load_optimizer)


@load_checkpoint.misconception(
    "Names are compared, shapes are not. The first tensor of another shape raises while others are "
    "overwritten already."
)
def names_alone_compared(path, model, optimizer=None):
    def load(model, state):
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(error) from error

    return load_parts(path, model, optimizer, shape=lambda value: "any", load=load,
                      model_first=True)  # fmt: skip


@load_checkpoint.misconception(
    "You compare the number of elements. A transposed weight has as many and does not fit: compare "
    "shapes."
)
def compares_element_counts(path, model, optimizer=None):
    return load_parts(path, model, optimizer, shape=lambda value: value.numel())


@load_checkpoint.misconception(
    "Only parameters are compared. Buffers are part of the state: without its running statistics "
    "a model evaluates differently."
)
def buffers_not_compared(path, model, optimizer=None):
    def names(model):
        return [name for name, _ in model.named_parameters()]

    return load_parts(path, model, optimizer, names=names, load=load_what_fits)


@load_checkpoint.misconception(
    "Every name of the model is looked up in the file, and names that only the file has are let "
    "through. They are a sign that it belongs to another model."
)
def extra_names_accepted(path, model, optimizer=None):
    def names(model):
        return list(model.state_dict())

    return load_parts(path, model, optimizer, names=names, load=load_what_fits)


@load_checkpoint.misconception(
    "A missing entry raises KeyError. The task asks for ValueError, so that a caller can tell a "
    "checkpoint that does not fit from a bug."
)
def key_error_for_a_missing_entry(path, model, optimizer=None):
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint["model"]
    if optimizer is not None:
        checkpoint["optimizer"]
    return load_parts(path, model, optimizer)


@load_checkpoint.misconception(
    "The whole checkpoint comes back, with model and optimizer in it. The task asks for the other "
    "entries."
)
def returns_everything(path, model, optimizer=None):
    load_parts(path, model, optimizer)
    return torch.load(path, map_location=next(model.parameters()).device, weights_only=True)


@load_checkpoint.misconception(
    "Tensors do not go to the model's device. Without map_location they return to the one they "
    "were saved from, which may be absent, and a fixed one is right by chance. Ask the model."
)
def no_map_location(path, model, optimizer=None):
    def where_it_was(storage, location):
        return None

    return load_parts(path, model, optimizer, device=where_it_was)


@load_checkpoint.misconception(
    "The model's parameters were replaced by the tensors of the file, with the file's dtype. An "
    "optimizer made before still holds the old ones. Copy into the parameters that are there."
)
def replaces_the_parameters(path, model, optimizer=None):
    def load(model, state):
        model.load_state_dict(state, assign=True)

    return load_parts(path, model, optimizer, load=load)


@load_checkpoint.misconception(
    "The model was put into eval mode. Whether it is used for training or not is the caller's "
    "business; modes stay as they are."
)
def switches_to_eval(path, model, optimizer=None):
    rest = load_parts(path, model, optimizer)
    model.eval()
    return rest


@load_checkpoint.misconception(
    "The model was put into training mode. Modes stay as they are, also those of single parts."
)
def switches_to_train(path, model, optimizer=None):
    rest = load_parts(path, model, optimizer)
    model.train()
    return rest


load_checkpoint.hints(
    "Compare names and shapes yourself, before anything is loaded: all of them, both ways.",
    "Two loads follow. After that check, which of them can still fail?",
    "optimizer.load_state_dict compares the sizes of its groups before it changes anything.",
)
