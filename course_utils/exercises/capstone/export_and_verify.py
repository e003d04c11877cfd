"""Ship the model, and check what was shipped."""

import torch
from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week11._capture import fresh_compilations


@exercise(objectives=("cap.export",))
def export_and_verify(
    model: nn.Module, example: torch.Tensor, batches: list[torch.Tensor], atol: float
) -> dict:
    """Export the model for inference and compare the program with the model itself.

    example is (B, ...) with B >= 1, so possibly of a single row. torch.export.export is called in
    eval mode, so that program.module() accepts every batch size from 1 on; only dimension 0
    varies. Then program.module() and the model, in eval mode as well, are called on each of
    batches. There is at least one batch, none is empty, and the output is one floating-point
    tensor.

    Return {"program": the ExportedProgram, "diffs": the largest absolute difference of each batch,
    as floats, "ok": bool, whether every difference is at most atol}.

    Afterwards every sub-module has the training flag it had before; weights, buffers, example and
    batches are unchanged.
    """
    flags = {module: module.training for module in model.modules()}
    two_rows = torch.cat([example[:1], example[:1]])  # of a single row, 1 would become a constant
    shapes = ({0: torch.export.Dim("batch")},)
    model.eval()
    try:
        program = torch.export.export(model, (two_rows,), dynamic_shapes=shapes)
        exported = program.module()
        with torch.no_grad():
            diffs = [(exported(x) - model(x)).abs().max().item() for x in batches]
    finally:
        for module, training in flags.items():
            module.training = training
    return {"program": program, "diffs": diffs, "ok": all(diff <= atol for diff in diffs)}


class Switch(nn.Module):
    """Scales its input, and by another factor while it is exported."""

    def forward(self, x):
        return x * (0.99 if torch.compiler.is_compiling() else 1.0)


def outcome(implementation, draw, model, example, batches, atol):
    """The verdict, what the program gives for other sizes, and the flags that are left."""
    with fresh_compilations():
        result = attempt(implementation, model, example, batches, atol)
    flags = {name or "the model": part.training for name, part in model.named_modules()}
    if not isinstance(result, dict):
        return {"returned": result, "training afterwards": flags}
    program = result.get("program")
    exported = isinstance(program, torch.export.ExportedProgram)
    run = program.module() if exported else program
    outputs = {
        f"the program with {rows} rows": attempt(run, draw.normal(rows, *example.shape[1:]))
        for rows in (1, 2, 17)
        if callable(run)
    }
    return {
        **{name: value.detach() if isinstance(value, torch.Tensor) else value
           for name, value in outputs.items()},
        "program": "an ExportedProgram" if exported else program,
        "the rest": {name: value for name, value in result.items() if name != "program"},
        "training afterwards": flags,
    }  # fmt: skip


@export_and_verify.case
def BatchNorm_and_dropout_an_example_of_one_row_and_no_tolerance(implementation, draw):
    features = draw.whole(3, 5)
    norm = nn.BatchNorm1d(features, affine=False)
    norm.running_mean.copy_(torch.linspace(-1, 1, features))
    model = nn.Sequential(norm, nn.Dropout(0.5), nn.Identity().eval()).to(draw.device)
    batches = [draw.normal(rows, features) for rows in (1, 2, 7)]
    return outcome(implementation, draw, model, draw.normal(1, features), batches, 0.0)


@export_and_verify.case
def a_model_that_is_another_one_while_it_is_exported(implementation, draw):
    features = draw.whole(3, 5)
    batches = [draw.uniform(rows, features, low=-2, high=2) for rows in (3, 2, 1, 7)]
    batches[0].abs_()  # all its differences are negative
    batches[1][1, 2], batches[2][0, 1] = draw.number(20, 30), -draw.number(12, 18)
    return outcome(implementation, draw, Switch(), draw.normal(3, features), batches, 0.15)


def verify(model, example, batches, atol, *, rows=2, dims=None, export_mode=False,
           eager_mode=False, restore="each", largest=None, ok=None):  # fmt: skip
    """The reference in parts that can be exchanged."""
    flags = {module: module.training for module in model.modules()}
    given = torch.cat([example[:1]] * rows) if rows else example
    shapes = ({0: torch.export.Dim("batch")} if dims is None else dims,)
    if not export_mode:
        model.eval()
    try:
        program = torch.export.export(model, (given,), dynamic_shapes=shapes)
        exported = program.module()
        for module, training in flags.items():
            module.training = training and eager_mode
        with torch.no_grad():
            diffs = [
                (largest or largest_of)(exported(x) - model(x), model(x)).item() for x in batches
            ]
    finally:
        for module, training in flags.items():
            if restore == "each":
                module.training = training
            elif restore == "root":
                module.training = flags[model]
            else:
                module.training = False
    return {"program": program, "diffs": diffs, "ok": (ok or all_within)(diffs, atol)}


def largest_of(difference, expected):
    return difference.abs().max()


def all_within(diffs, atol):
    return all(diff <= atol for diff in diffs)


@export_and_verify.misconception(
    "Every size was fixed to that of the example. A dimension that may vary has to be declared."
)
def static(model, example, batches, atol):
    return verify(model, example, batches, atol, dims={})


@export_and_verify.misconception(
    "The model was exported in training mode. Dropout is frozen into the graph, its outputs are "
    "random, and BatchNorm normalizes by the batch."
)
def exported_in_training_mode(model, example, batches, atol):
    return verify(model, example, batches, atol, export_mode=True)


@export_and_verify.misconception(
    "The example has one row. torch.export takes the sizes 0 and 1 for constants, so that 1 is "
    "specialized; an example of two rows gives a program that accepts one as well."
)
def example_of_one_row(model, example, batches, atol):
    return verify(model, example, batches, atol, rows=None)


@export_and_verify.misconception(
    "You compare on the example only. One size, and one range of values, prove little: batches is "
    "what the check runs on."
)
def compared_on_the_example(model, example, batches, atol):
    return verify(model, example, [example], atol)


@export_and_verify.misconception(
    "The program is compared with the model in training mode. Dropout makes the eager outputs "
    "random, and the difference says nothing about the export."
)
def compared_with_training_mode(model, example, batches, atol):
    return verify(model, example, batches, atol, eager_mode=True)


@export_and_verify.misconception(
    "The model is left in eval mode. A training that goes on would run without dropout, and "
    "BatchNorm's statistics would stand still."
)
def left_in_eval(model, example, batches, atol):
    return verify(model, example, batches, atol, restore="none")


@export_and_verify.misconception(
    "Every part gets the mode of the whole model afterwards. A part that was frozen in eval mode "
    "is then back in training; remember the flag of each."
)
def every_part_in_the_mode_of_the_root(model, example, batches, atol):
    return verify(model, example, batches, atol, restore="root")


@export_and_verify.misconception(
    "The largest difference is taken without its sign removed first. A large negative one is then "
    "the smallest of all."
)
def largest_before_abs(model, example, batches, atol):
    return verify(model, example, batches, atol, largest=lambda d, expected: d.max())


@export_and_verify.misconception(
    "The absolute value comes after the largest was taken. A large negative difference is lost by "
    "then: abs before max."
)
def abs_after_max(model, example, batches, atol):
    return verify(model, example, batches, atol, largest=lambda d, expected: d.max().abs())


@export_and_verify.misconception(
    "Differences are averaged. One wrong output among a thousand right ones disappears in a mean; "
    "the largest tells."
)
def mean_difference(model, example, batches, atol):
    return verify(model, example, batches, atol, largest=lambda d, expected: d.abs().mean())


@export_and_verify.misconception(
    "Your differences are relative to the eager output. atol is an absolute tolerance, and so are "
    "the differences that it is compared with."
)
def relative_difference(model, example, batches, atol):
    return verify(
        model, example, batches, atol,
        largest=lambda d, expected: (d.abs() / expected.abs().clamp(min=1e-12)).max(),
    )  # fmt: skip


@export_and_verify.misconception(
    "One batch decides on ok, such as the first, the last or the best, or the mean of all does. "
    "Every difference has to be within atol: a good batch does not make up for a bad one."
)
def one_batch_decides(model, example, batches, atol):
    return verify(model, example, batches, atol, ok=lambda diffs, atol: diffs[-1] <= atol)


@export_and_verify.misconception(
    "A difference that equals atol fails in your code. With atol 0 not even equal outputs would "
    "pass."
)
def atol_excluded(model, example, batches, atol):
    return verify(
        model, example, batches, atol, ok=lambda diffs, atol: all(d < atol for d in diffs)
    )


@export_and_verify.misconception(
    "One number is returned for all batches. The list shows which size is at fault."
)
def one_difference_for_all(model, example, batches, atol):
    found = verify(model, example, batches, atol)
    return found | {"diffs": max(found["diffs"])}


@export_and_verify.misconception(
    "Differences or ok are tensors. A verdict holds plain Python values, which can be printed and "
    "stored."
)
def verdict_of_tensors(model, example, batches, atol):
    found = verify(model, example, batches, atol)
    return found | {"diffs": [torch.tensor(d) for d in found["diffs"]]}


@export_and_verify.misconception(
    "Under program is what program.module() gives. It runs, and it cannot be saved or inspected as "
    "the ExportedProgram can; the caller takes the module out."
)
def module_for_the_program(model, example, batches, atol):
    found = verify(model, example, batches, atol)
    return found | {"program": found["program"].module()}


@export_and_verify.misconception(
    "Your batch dimension has bounds, such as 16 rows at most. Every size from 1 on was asked for."
)
def bounded(model, example, batches, atol):
    return verify(model, example, batches, atol, dims={0: torch.export.Dim("batch", max=16)})


export_and_verify.hints(
    "torch.export.export takes a tuple of examples and dynamic_shapes beside it. Which example has "
    "two rows, whatever you were given?",
    "A large negative difference is as bad as a positive one: what comes first, abs or max?",
    "Collect the training flags of all sub-modules before you change the mode. When do they have "
    "to be put back, also if something raises?",
)
