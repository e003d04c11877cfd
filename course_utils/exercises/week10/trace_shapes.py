"""Every call of a leaf module and the shape that came out."""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week10._debugging import Backwards, hooks_on


@exercise(objectives=("debug.shapes", "debug.hook_semantics"))
def trace_shapes(model: nn.Module, x: torch.Tensor) -> list[tuple[str, str, tuple[int, ...]]]:
    """List every call of a leaf module (one without children) in one forward pass, in call order.

    Each row is (name, class name, output shape): the name as in model.named_modules(), so the first
    name of a module that is registered twice, and "" when the model itself is a leaf; the name of
    its class; the shape as a tuple of ints. A leaf that returns a tuple or a list is listed with
    the shape of the first element. A module that is called twice gives two rows.

    Run model(x) exactly once, under torch.no_grad(), in the mode the model is in. Afterwards none
    of your hooks may remain, also when the forward raises; the exception passes on. Hooks that were
    there before stay.
    """
    rows = []

    def row_for(name):
        def hook(module, inputs, output):
            first = output[0] if isinstance(output, (tuple, list)) else output
            rows.append((name, type(module).__name__, tuple(first.shape)))

        return hook

    handles = []
    try:
        for name, module in model.named_modules():
            if not list(module.children()):
                handles.append(module.register_forward_hook(row_for(name)))
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return rows


class SharedActivation(nn.Module):
    """One activation under two names, called twice."""

    def __init__(self, first, second):
        super().__init__()
        self.act = nn.Tanh()
        self.first, self.second, self.again = first, second, self.act

    def forward(self, x):
        return self.again(self.second(self.act(self.first(x))))


class Reads(nn.Module):
    """A recurrent layer whose output and state are both used."""

    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.head = nn.Linear(2 * hidden, outputs)

    def forward(self, x):
        output, (state, _) = self.lstm(x)
        return self.head(torch.cat([output[:, -1], state[0]], dim=1))


class Halves(nn.Module):
    """Splits the features in two, and gives them as a list."""

    def forward(self, x):
        return list(x.tensor_split(2, dim=1))


def seen(implementation, model, x):
    """The rows, and which hooks are left."""
    return {"rows": attempt(implementation, model, x), "left": hooks_on(model)}


def linears(draw, *widths):
    """Linear layers from width to width."""
    pairs = pairwise(widths)
    return [nn.Linear(a, b).to(draw.device) for a, b in pairs]


@trace_shapes.case
def parts_called_in_another_order_than_registered(implementation, draw):
    a, b, c, batch = draw.sizes(4)
    first, second = linears(draw, a, b, c)
    return seen(
        implementation,
        Backwards(head=second, body=nn.Sequential(first, nn.ReLU())),
        draw.normal(batch, a),
    )


@trace_shapes.case
def one_activation_called_twice(implementation, draw):
    a, b, c, batch = draw.sizes(4)
    return seen(implementation, SharedActivation(*linears(draw, a, b, c)), draw.normal(batch, a))


@trace_shapes.case
def a_layer_that_returns_a_tuple(implementation, draw):
    inputs, hidden, batch, steps = draw.sizes(4)
    model = nn.LSTM(inputs, hidden, batch_first=True).to(draw.device)
    return seen(implementation, model, draw.normal(batch, steps, inputs))


@trace_shapes.case
def a_layer_that_returns_a_list(implementation, draw):
    a, b, batch = draw.sizes(3, low=3)
    return seen(
        implementation, nn.Sequential(*linears(draw, a, b), Halves()), draw.normal(batch, a)
    )


@trace_shapes.case
def a_model_that_uses_the_tuple(implementation, draw):
    inputs, hidden, outputs, batch, steps = draw.sizes(5)
    model = Reads(inputs, hidden, outputs).to(draw.device)
    return seen(implementation, model, draw.normal(batch, steps, inputs))


@trace_shapes.case
def a_model_that_is_one_layer(implementation, draw):
    a, b, batch = draw.sizes(3)
    return seen(implementation, *linears(draw, a, b), draw.normal(batch, a))


@trace_shapes.case
def a_forward_that_raises(implementation, draw):
    a, b, c, batch = draw.sizes(4)
    model = nn.Sequential(*linears(draw, a, b), *linears(draw, c, a))
    return seen(implementation, model, draw.normal(batch, a))


@trace_shapes.case
def a_hook_that_was_there_before(implementation, draw):
    a, b, batch = draw.sizes(3)
    model = nn.Sequential(OrderedDict(body=nn.Sequential(*linears(draw, a, b)), act=nn.Tanh()))
    notes = []
    model.body[0].register_forward_hook(lambda m, i, output: notes.append(output.requires_grad))
    return seen(implementation, model, draw.normal(batch, a)) | {"it saw requires_grad": notes}


@trace_shapes.case
def training_mode_with_dropout_and_batch_norm(implementation, draw):
    a, b, batch = draw.sizes(3)
    model = nn.Sequential(*linears(draw, a, b), nn.Dropout(0.5), nn.BatchNorm1d(b))
    model.to(draw.device)
    modes = []
    model.register_forward_pre_hook(lambda m, i: modes.append([p.training for p in m.modules()]))
    rows = attempt(implementation, model, draw.normal(batch, a))
    return {"rows": rows, "modes in each forward": modes, "batches": model[2].num_batches_tracked}


@trace_shapes.case
def a_model_in_evaluation_mode(implementation, draw):
    a, b, batch = draw.sizes(3)
    model = nn.Sequential(*linears(draw, a, b), nn.BatchNorm1d(b)).to(draw.device).eval()
    return seen(implementation, model, draw.normal(batch, a)) | {
        "batches": model[1].num_batches_tracked
    }


def trace(model, x, *, leaf=None, keep=None, name_of=None, clean=True, shape=None, grad=False):
    """The reference in parts, each of which can be done another way."""
    rows, handles = [], []
    keep = keep or (lambda rows, row: rows.append(row))
    leaf = leaf or (lambda module: not list(module.children()))

    def row_for(name):
        def hook(module, inputs, output):
            first = output[0] if isinstance(output, (tuple, list)) else output
            named = name if name_of is None else name_of(name, module)
            keep(rows, (named, type(module).__name__, (shape or tuple)(first.shape)))

        return hook

    try:
        for name, module in model.named_modules():
            if leaf(module):
                handles.append(module.register_forward_hook(row_for(name)))
        with torch.set_grad_enabled(grad):
            model(x)
    finally:
        for handle in handles if clean else []:
            handle.remove()
    return rows


@trace_shapes.misconception(
    "Your rows are right, but the hooks are still attached and will fire in every later forward. "
    "Keep the handles, and remove them where nothing can skip it."
)
def hooks_never_removed(model, x):
    return trace(model, x, clean=False)


@trace_shapes.misconception(
    "Every row has the name of the last module: a hook that reads the loop variable reads it when "
    "it runs, not when it was made. Bind the name to each hook."
)
def late_binding_name(model, x):
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    return trace(model, x, name_of=lambda name, module: leaves[-1])


@trace_shapes.misconception(
    "Containers are listed too. Sequential and the model itself fire hooks as well; only modules "
    "without children are leaves."
)
def containers_included(model, x):
    return trace(model, x, leaf=lambda module: True)


@trace_shapes.misconception(
    "You applied the children one after another. Only a real forward knows the call order, what is "
    "used twice and what branches off."
)
def registration_order(model, x):
    rows = []
    with torch.no_grad():
        for name, module in model.named_modules():
            if not list(module.children()):
                x = module(x)
                x = x[0] if isinstance(x, tuple) else x
                rows.append((name, type(module).__name__, tuple(x.shape)))
    return rows


@trace_shapes.misconception(
    "There is one row per module: a dictionary keyed by name overwrites the first call of a module "
    "that is called twice. Append to a list."
)
def one_row_per_module(model, x):
    return list({row[0]: row for row in trace(model, x)}.values())


@trace_shapes.misconception(
    "The hooks are removed after a forward that works. When the forward raises, those lines are "
    "skipped and the hooks stay."
)
def removed_only_on_success(model, x):
    raised = True
    try:
        rows = trace_shapes.reference(model, x)
        raised = False
        return rows
    finally:
        if raised:
            for module in model.modules():
                if not list(module.children()):
                    module.register_forward_hook(lambda *_: None)


@trace_shapes.misconception(
    "You emptied each module's hooks. That throws away hooks which others had put there; every "
    "registration returns a handle that removes that one hook."
)
def clears_all_hooks(model, x):
    try:
        return trace(model, x, clean=False)
    finally:
        for module in model.modules():
            module._forward_hooks.clear()


@trace_shapes.misconception(
    "The forward ran with gradient recording on: it builds a graph that nobody asked for. Look at "
    "shapes under no_grad."
)
def records_gradients(model, x):
    return trace(model, x, grad=True)


@trace_shapes.misconception(
    "The model was put into evaluation mode. A tool that looks should look at the model as it is; "
    "the mode belongs to the caller."
)
def switches_to_evaluation(model, x):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return trace(model, x)
    finally:
        for module, mode in modes:
            module.training = mode


@trace_shapes.misconception(
    "The model ran more than once. A second forward counts the batch a second time in BatchNorm "
    "and draws Dropout anew."
)
def runs_twice(model, x):
    with torch.no_grad():
        model(x)
    return trace(model, x)


@trace_shapes.misconception(
    "The exception of the forward was swallowed. Whoever called you has to learn that the model "
    "does not run."
)
def swallows_the_exception(model, x):
    rows = []
    try:
        return trace(model, x, keep=lambda _, row: rows.append(row)) or rows
    except Exception:
        return rows


@trace_shapes.misconception("The shapes are lists. The task asks for tuples of ints.")
def shapes_as_lists(model, x):
    return trace(model, x, shape=list)


@trace_shapes.misconception(
    "The model itself is left out. It is a leaf when it has no children; its name is then empty."
)
def leaves_out_the_model_itself(model, x):
    return trace(model, x, leaf=lambda module: module is not model and not list(module.children()))


@trace_shapes.misconception(
    "Your hook returns the first element of the output, and what a hook returns takes the place of "
    "the output: the layer that made a tuple seems to have made a tensor. Return nothing."
)
def replaces_the_output(model, x):
    rows, handles = [], []

    def row_for(name):
        def hook(module, inputs, output):
            first = output[0] if isinstance(output, (tuple, list)) else output
            rows.append((name, type(module).__name__, tuple(first.shape)))
            return first

        return hook

    try:
        for name, module in model.named_modules():
            if not list(module.children()):
                handles.append(module.register_forward_hook(row_for(name)))
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return rows


@trace_shapes.misconception(
    "Your hook reads the shape of whatever comes out. Some layers return a tuple, such as "
    "(output, state), and a tuple has no shape."
)
def output_taken_for_a_tensor(model, x):
    def strict(module):
        if not list(module.children()):
            return module.register_forward_hook(lambda m, i, output: output.shape)
        return None

    handles = [strict(module) for module in model.modules()]
    try:
        return trace(model, x)
    finally:
        for handle in filter(None, handles):
            handle.remove()


@trace_shapes.misconception(
    "Tuples are unpacked and lists are not. A layer may return either of them."
)
def unpacks_tuples_only(model, x):
    def strict(module):
        def look(m, i, output):
            (output[0] if isinstance(output, tuple) else output).shape  # noqa: B018

        return module.register_forward_hook(look)

    handles = [strict(module) for module in model.modules() if not list(module.children())]
    try:
        return trace(model, x)
    finally:
        for handle in handles:
            handle.remove()


trace_shapes.hints(
    "Registering a forward hook returns a handle. What can you do with it later?",
    "Which statement runs also after an exception?",
    "Look at the type of the output before you read its shape, and make one hook per name.",
)
