"""Export for inference, for every batch size."""

from functools import partial

import torch
from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week11._capture import fresh_compilations
from course_utils.observe import observe


@exercise(objectives=("export.dynamic", "export.mode"))
def export_any_batch(model: nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    """Export the model for inference, so that ep.module() accepts every batch size from 1 on.

    x is an example (B, ...) with B >= 1, so possibly of a single row, and of any dtype. Only
    dimension 0 varies; every other size stays fixed to that of x. The program behaves as the model
    does in eval mode, whatever mode the model is in.

    Afterwards every sub-module has the training flag it had before; weights, buffers and x are
    unchanged.
    """
    modes = {module: module.training for module in model.modules()}
    example = torch.cat([x[:1], x[:1]])  # of a single row, the size 1 would become a constant
    model.eval()
    try:
        batch = torch.export.Dim("batch")
        return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    finally:
        for module, training in modes.items():
            module.training = training


TOKENS = 6


def outcome(implementation, draw, model, x):
    """What the program gives for several batch sizes, its type, and what is left of the model."""
    with fresh_compilations():  # some versions of torch export through Dynamo, which has a limit
        result = attempt(implementation, model, x)
    sample = draw.normal if x.is_floating_point() else partial(draw.integers, 0, TOKENS - 1)
    outputs = {}
    if isinstance(result, torch.export.ExportedProgram):  # nothing else is called: it might compile
        program = result.module()
        for rows in (1, 2, 5, 1500):
            outputs[f"{rows} rows"] = attempt(program, sample(rows, *x.shape[1:]))
        wider = sample(3, x.shape[1] + 1, *x.shape[2:])
        outputs["another size of dimension 1"] = attempt(program, wider)
    return {
        "training afterwards": {name: part.training for name, part in model.named_modules()},
        **{name: without_graph(output) for name, output in outputs.items()},
        "result": result if isinstance(result, Exception) else type(result).__name__,
        "weights and buffers": observe(dict(model.state_dict())),
    }


def without_graph(output):
    """A tensor as it is without its history: programs made under no_grad have none."""
    return output.detach() if isinstance(output, torch.Tensor) else output


@export_any_batch.case
def one_row_and_a_model_in_training(implementation, draw):
    features, hidden, classes = draw.sizes(3)
    model = nn.Sequential(
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden),
        nn.Dropout(0.5),
        nn.Linear(hidden, classes),
    )
    return outcome(implementation, draw, model.to(draw.device), draw.normal(1, features))


@export_any_batch.case
def four_rows_of_integers_and_a_part_in_evaluation_mode(implementation, draw):
    width, length = draw.sizes(2)
    inner = nn.Sequential(nn.Dropout(0.5), nn.Tanh()).eval()
    inner[1].train()
    model = nn.Sequential(nn.Embedding(TOKENS, width), inner, nn.Dropout(0.4), nn.Linear(width, 2))
    x = draw.integers(0, TOKENS - 1, 4, length, 3)
    return outcome(implementation, draw, model.to(draw.device), x)


def export(model, x, *, rows=2, dims=None, evaluate=True, restore=True, **options):
    """The reference in parts that can be exchanged."""
    modes = {module: module.training for module in model.modules()}
    example = torch.cat([x[:1]] * rows) if rows else x
    dims = {0: torch.export.Dim("batch")} if dims is None else dims
    if evaluate:
        model.eval()
    try:
        return torch.export.export(model, (example,), dynamic_shapes=(dims,), **options)
    finally:
        for module, training in modes.items():
            module.training = training if restore else module.training


@export_any_batch.misconception(
    "Every size was fixed to that of the example. A dimension that may vary has to be declared."
)
def static(model, x):
    return export(model, x, dims={})


@export_any_batch.misconception(
    "x was taken as the example. Of one row, its size is turned into a constant, since 0 and 1 are "
    "special to torch.export; an example of more rows gives a program that accepts one row as well."
)
def one_row_example(model, x):
    return export(model, x, rows=None)


@export_any_batch.misconception(
    "The model was exported in training mode. The mode is frozen into the graph: dropout stays on "
    "for good, and batch norm normalizes by the batch."
)
def training_mode(model, x):
    return export(model, x, evaluate=False)


@export_any_batch.misconception(
    "The model is in eval mode afterwards. The caller's training would go on without dropout and "
    "with batch norm's statistics standing still."
)
def left_in_eval(model, x):
    return export(model, x, restore=False)


@export_any_batch.misconception(
    "The whole model is set to the mode of its root afterwards. A part that was frozen in eval "
    "mode is then back in training; remember the flag of each."
)
def every_part_in_the_mode_of_the_root(model, x):
    training = model.training
    try:
        return export(model, x, restore=False)
    finally:
        model.train(training)


@export_any_batch.misconception(
    "Flags are remembered for the model and its direct children only. Parts have parts: "
    "model.modules() goes down to the last one."
)
def only_the_children_remembered(model, x):
    modes = {module: module.training for module in (model, *model.children())}
    try:
        return export(model, x, restore=False)
    finally:
        for module, training in modes.items():
            module.train(training)


@export_any_batch.misconception(
    "Your example has another dtype than x, or not all its dimensions, and the export fails. The "
    "model may look rows up by integers, as an embedding does; make the example from x."
)
def example_of_float32(model, x):
    return export(model, torch.zeros(x.shape, device=x.device))


@export_any_batch.misconception(
    "What you return is a TorchScript trace. It is deprecated, and no ExportedProgram: it cannot "
    "say which shapes it accepts."
)
def traced(model, x):
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return torch.jit.trace(model, (x,))
    finally:
        for module, training in modes.items():
            module.training = training


@export_any_batch.misconception(
    "torch.compile does not export. What you return is compiled when it is first called, in this "
    "program, and needs your Python; torch.export.export gives a program that does not."
)
def compiled(model, x):
    return torch.compile(model, backend="eager")


@export_any_batch.misconception(
    "All dimensions are open. Only the batch was to vary: a program that takes other sizes as well "
    "hides mistakes of its callers."
)
def every_dimension_open(model, x):
    return export(model, x, dims=dict.fromkeys(range(x.dim()), torch.export.Dim.AUTO))


@export_any_batch.misconception(
    "You return ep.module(). It runs, and it cannot be saved, inspected or lowered as the "
    "ExportedProgram can; the caller takes the module out."
)
def module_returned(model, x):
    return export(model, x).module()


@export_any_batch.misconception(
    "Your batch dimension has bounds, such as at least 2 rows, or at most as many as you tried. "
    "Every size from 1 on was asked for."
)
def bounded(model, x):
    return export(model, x, dims={0: torch.export.Dim("batch", min=2, max=1024)})


export_any_batch.hints(
    "torch.export.export takes the example's arguments as a tuple, and dynamic_shapes beside it.",
    "A dimension that may vary gets a name by Dim. And which example has two rows, whatever x is?",
    "Collect the training flags before you change the mode: model.modules() knows every part. What "
    "has to be put back also when the export fails?",
)
