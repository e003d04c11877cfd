"""Watching a model from outside, without leaving a trace."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules import module as module_internals

from course_utils.cases import attempt, gradients
from course_utils.exercise import exercise


@exercise(objectives=("module.hooks", "module.forward_call"))
def capture_activations(
    model: nn.Module, names: Sequence[str], x: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Run model(x) exactly once and return (output, {name: output of that sub-module}).

    names are names as in model.named_modules(); "" is the model itself. Each named module runs once
    and returns a single tensor. Captured tensors are detached copies of the same dtype: they have
    no graph, and in-place layers that run later do not change them. The output keeps its graph;
    under no_grad it has none.

    The modes of all modules, gradients, hooks that were there before and what they do stay as they
    are; where one of them replaces an output, the new output is captured. All hooks added here are
    gone afterwards, also when the forward raises, whatever it raises; the exception passes on as it
    is. An unknown name raises KeyError before anything runs.
    """
    modules = dict(model.named_modules())
    chosen = {name: modules[name] for name in names}
    captured = {}

    def keep_as(name):
        def hook(module, inputs, output):
            captured[name] = output.detach().clone()

        return hook

    handles = []
    try:
        for name, module in chosen.items():
            handles.append(module.register_forward_hook(keep_as(name)))
        output = model(x)
    finally:
        for handle in handles:
            handle.remove()
    return output, captured


def network(draw, inplace=False):
    """Two linear layers with a ReLU between them, inside another module, and their input."""
    inputs, hidden, outputs, batch = draw.sizes(4)
    first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    body = nn.Sequential(OrderedDict(first=first, relu=nn.ReLU(inplace=inplace)))
    model = nn.Sequential(OrderedDict(body=body, last=last))
    return model.to(draw.device), draw.normal(batch, inputs)


def hooks(model):
    """How many hooks of any kind are on each module, and how many on all modules at once."""
    count = {
        f"hooks on {name or 'the model'}": sum(
            len(value) for key, value in vars(module).items() if key.endswith("_hooks")
        )
        for name, module in model.named_modules()
    }
    everywhere = len(module_internals._global_forward_hooks)
    return count | {"hooks on all modules": everywhere - HOOKS_BEFORE}


HOOKS_BEFORE = len(module_internals._global_forward_hooks)


def seen(result, model):
    """The result and what is left on the model."""
    own = any("forward" in vars(module) for module in model.modules())
    return {"result": result, "hooks left": hooks(model), "a forward left on an instance": own}


@capture_activations.case
def two_layers_of_three(implementation, draw):
    model, x = network(draw)
    return seen(implementation(model, ["last", "body.first"], x), model)


@capture_activations.case
def an_in_place_layer_after_a_captured_one(implementation, draw):
    model, x = network(draw, inplace=True)
    return seen(implementation(model, ["body.first"], x), model)


@capture_activations.case
def the_model_itself_and_a_container_in_float64(implementation, draw):
    model, x = network(draw)
    return seen(implementation(model.double(), ["", "body"], x.double()), model)


@capture_activations.case
def no_names(implementation, draw):
    model, x = network(draw)
    return seen(implementation(model, [], x), model)


@capture_activations.case
def batch_norm_in_training_mode(implementation, draw):
    width, batch = draw.sizes(2)
    model = nn.Sequential(nn.BatchNorm1d(width), nn.Flatten()).to(draw.device)
    model[0].weight.grad = draw.normal(width)
    result = implementation(model, ("0",), draw.normal(batch, width))
    return {"result": result, "batches that were counted": model[0].num_batches_tracked}


@capture_activations.case
def a_model_in_evaluation_mode_under_no_grad(implementation, draw):
    width, batch = draw.sizes(2)
    model = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.5)).to(draw.device).eval()
    with torch.no_grad():
        return seen(implementation(model, ["1"], draw.normal(batch, width)), model)


@capture_activations.case
def a_model_whose_parts_are_in_different_modes(implementation, draw):
    width, batch = draw.sizes(2)
    norm = nn.BatchNorm1d(width).eval()
    model = nn.Sequential(OrderedDict(norm=norm, last=nn.Linear(width, width))).to(draw.device)
    result = implementation(model, ["norm", ""], draw.normal(batch, width))
    modes = {name or "the model": part.training for name, part in model.named_modules()}
    return {"result": result, "training mode afterwards": modes}


@capture_activations.case
def gradients_through_the_output(implementation, draw):
    model, x = network(draw)
    x.requires_grad_()
    result = attempt(implementation, model, ["body.first", "body", ""], x)
    output = result[0] if isinstance(result, tuple) and result else result
    upstream = draw.normal(len(x), model.last.out_features)
    return {"gradients": gradients(output, [x, *model.parameters()], upstream)}


@capture_activations.case
def hooks_that_were_there_before(implementation, draw):
    model, x = network(draw)
    calls = []
    model.body.register_forward_pre_hook(lambda module, inputs: calls.append("before"))
    model.body.register_forward_hook(lambda module, inputs, output: output * 2)
    model.last.register_forward_hook(lambda module, inputs, output: calls.append("after"))
    model.register_forward_hook(lambda module, inputs, output: output + 1)
    return seen(implementation(model, ["body", "last", ""], x), model) | {"calls": calls}


@capture_activations.case
def an_input_of_the_wrong_shape(implementation, draw):
    model, x = network(draw)
    error = attempt(implementation, model, ["body.first", ""], torch.cat([x, x], 1))
    return seen(error, model)


class Refusing(nn.Module):
    """A module whose forward refuses every input."""

    def forward(self, x):
        raise ValueError("this input is not allowed")


@capture_activations.case
def a_layer_that_raises_value_error(implementation, draw):
    model, x = network(draw)
    model.append(Refusing())
    return seen(attempt(implementation, model, ["body.first", ""], x), model)


@capture_activations.case
def an_unknown_name(implementation, draw):
    model, x = network(draw)
    ran, errors = [], {}
    model.register_forward_pre_hook(lambda module, inputs: ran.append(True))
    for name in ("first", "head", "last.weight"):
        error = attempt(implementation, model, ["body.first", name], x)
        errors[f"result for the name {name}"] = error
    left = seen(errors, model)
    return left.pop("result") | left | {"times the model ran": len(ran)}


def capture(model, names, x, keep=lambda output: output.detach().clone(), finish=None, run=None):
    """The reference in parts: `keep` what of an output, `finish` with which handles, `run` how."""
    modules = dict(model.named_modules())
    chosen = {name: modules[name] for name in names}
    captured = {}

    def keep_as(name):
        def hook(module, inputs, output):
            captured[name] = keep(output)

        return hook

    handles = [module.register_forward_hook(keep_as(name)) for name, module in chosen.items()]
    try:
        output = (run or model)(x)
    finally:
        for handle in handles if finish is None else finish(handles):
            handle.remove()
    return output, captured


@capture_activations.misconception(
    "Your hooks are still on the model. They stay until removed: each call adds more, and all of "
    "them slow the model down and hold memory."
)
def leaves_hooks(model, names, x):
    return capture(model, names, x, finish=lambda handles: [])


@capture_activations.misconception(
    "Only the last hook was removed; the others are still on the model. Keep every handle."
)
def removes_one_hook(model, names, x):
    return capture(model, names, x, finish=lambda handles: handles[-1:])


@capture_activations.misconception(
    "Captured tensors still require grad. With their history they keep all activations before them "
    "alive; a record for looking at needs no graph."
)
def keeps_graph(model, names, x):
    return capture(model, names, x, keep=torch.clone)


@capture_activations.misconception(
    "The layer after it wrote into the memory you stored: detach cuts the history, not the memory. "
    "Copy the values at the time of capture."
)
def stored_by_reference(model, names, x):
    return capture(model, names, x, keep=torch.Tensor.detach)


@capture_activations.misconception(
    "You stored the output as it is: with its graph, and in memory that a later in-place layer "
    "writes into. What you keep should be a copy without history."
)
def stored_as_it_is(model, names, x):
    return capture(model, names, x, keep=lambda output: output)


@capture_activations.misconception(
    "When the forward raised, your hooks were left on the model. What must happen in any case "
    "belongs where it happens in any case."
)
def no_cleanup_on_error(model, names, x):
    modules = dict(model.named_modules())
    chosen = {name: modules[name] for name in names}
    captured = {}

    def keep_as(name):
        def hook(module, inputs, output):
            captured[name] = output.detach().clone()

        return hook

    handles = [module.register_forward_hook(keep_as(name)) for name, module in chosen.items()]
    output = model(x)
    for handle in handles:
        handle.remove()
    return output, captured


@capture_activations.misconception(
    "After one kind of exception the hooks are removed, after others they stay on the model. What "
    "must happen in any case belongs where it happens in any case."
)
def cleans_up_after_runtime_errors(model, names, x):
    handles = []

    def keep_them(mine):
        handles.extend(mine)
        return []

    try:
        result = capture(model, names, x, finish=keep_them)
    except (RuntimeError, KeyError):
        for handle in handles:
            handle.remove()
        raise
    for handle in handles:
        handle.remove()
    return result


@capture_activations.misconception(
    "The exception of the model was turned into another one. Whoever waits for the first, around "
    "this call, no longer gets it. Cleaning up does not ask for catching it."
)
def another_exception(model, names, x):
    chosen = [dict(model.named_modules())[name] for name in names]
    try:
        return capture(model, names, x)
    except Exception as error:
        raise RuntimeError(f"the forward failed after {len(chosen)} hooks: {error}") from error


@capture_activations.misconception(
    "Captured tensors have another dtype than the outputs: they were converted on the way. A copy "
    "of a float64 output is float64."
)
def captures_in_float32(model, names, x):
    return capture(model, names, x, keep=lambda output: output.detach().float().clone())


@capture_activations.misconception(
    "All your hooks read one loop variable, and when they run it has its last value: every capture "
    "lands under one name. Each hook needs a name of its own."
)
def late_binding(model, names, x):
    modules = dict(model.named_modules())
    chosen = {name: modules[name] for name in names}
    captured, handles = {}, []
    for name, module in chosen.items():
        handles.append(
            module.register_forward_hook(
                lambda module, inputs, output: captured.update(
                    {name: output.detach().clone()}  # noqa: B023
                )
            )
        )
    try:
        return model(x), captured
    finally:
        for handle in handles:
            handle.remove()


@capture_activations.misconception(
    "All hooks of the modules were removed, also those that were there before and belong to "
    "somebody else. Remove yours, by their handles."
)
def clears_all_hooks(model, names, x):
    result = capture(model, names, x)
    for module in model.modules():
        module._forward_hooks.clear()
    return result


@capture_activations.misconception(
    "The output has no graph, so nothing can be trained through it. Only the captured copies are "
    "without history; the model itself runs as always."
)
def output_without_graph(model, names, x):
    with torch.no_grad():
        return capture(model, names, x)


@capture_activations.misconception(
    "Your hook returns the detached copy. What a forward hook returns replaces the module's "
    "output, and the graph is cut there."
)
def replaces_the_output(model, names, x):
    modules = dict(model.named_modules())
    chosen = {name: modules[name] for name in names}
    captured = {}

    def keep_as(name):
        return lambda module, inputs, output: captured.setdefault(name, output.detach().clone())

    handles = [module.register_forward_hook(keep_as(name)) for name, module in chosen.items()]
    try:
        return model(x), captured
    finally:
        for handle in handles:
            handle.remove()


@capture_activations.misconception(
    "The model ran twice. Batch norm counted two batches and moved its statistics twice, and "
    "with dropout the captures would not belong to the output."
)
def runs_twice(model, names, x):
    _, captured = capture(model, names, x)
    return model(x), captured


@capture_activations.misconception(
    "You called model.forward(x). That passes by the hooks of the model itself, so nothing is "
    'captured under the name "".'
)
def calls_forward(model, names, x):
    return capture(model, names, x, run=model.forward)


@capture_activations.misconception(
    "You called model.forward(x) and stored the output as that of the model itself. Hooks that "
    "others put on the model, which may replace its output, never ran."
)
def calls_forward_and_adds_the_root(model, names, x):
    output, captured = capture(model, names, x, run=model.forward)
    return output, captured | ({"": output.detach().clone()} if "" in names else {})


@capture_activations.misconception(
    "You set the mode of the whole model from the flag of its root. Parts that were in another "
    "mode, such as a frozen encoder, are now in the mode of the root. Nothing needs to be set."
)
def sets_the_mode_of_the_root(model, names, x):
    was_training = model.training
    try:
        return capture(model, names, x)
    finally:
        model.train(was_training)


@capture_activations.misconception(
    "The model was put into evaluation mode. Its statistics and its dropout then behave in "
    "another way than the caller wanted; run it in the mode it is in."
)
def switches_to_eval(model, names, x):
    model.eval()
    return capture(model, names, x)


@capture_activations.misconception(
    "A name that the model does not have was passed over. The caller would look for a capture that "
    "is not there; raise KeyError before anything runs."
)
def unknown_names_ignored(model, names, x):
    known = dict(model.named_modules())
    return capture(model, [name for name in names if name in known], x)


@capture_activations.misconception(
    "An unknown name was noticed while hooks were being registered, and those registered before it "
    "stayed on the model. Look up all names first."
)
def hooks_before_the_lookup(model, names, x):
    modules = dict(model.named_modules())
    captured, handles = {}, []

    def keep_as(name):
        def hook(module, inputs, output):
            captured[name] = output.detach().clone()

        return hook

    for name in names:
        handles.append(modules[name].register_forward_hook(keep_as(name)))
    try:
        return model(x), captured
    finally:
        for handle in handles:
            handle.remove()


capture_activations.hints(
    "A forward hook gets (module, inputs, output). How does it know under which name to store?",
    "What has to happen when the forward raises? Python has a statement for such things.",
    "What does a hook's return value do, and what may a later layer do to the tensor you stored?",
)
