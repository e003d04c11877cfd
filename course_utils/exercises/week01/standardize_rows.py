"""Statistics per row: which axis disappears, and how the result lines up again."""

import torch
from torch.nn import functional as F

from course_utils.cases import gradients
from course_utils.exercise import exercise


@exercise(
    objectives=("tensor.reductions", "tensor.broadcasting"),
    forbids=(
        F.layer_norm,
        torch.layer_norm,
        torch.native_layer_norm,
        F.group_norm,
        torch.group_norm,
        torch.native_group_norm,
        F.batch_norm,
        torch.batch_norm,
        torch.native_batch_norm,
        F.instance_norm,
        torch.instance_norm,
        F.rms_norm,
        torch.rms_norm,
    ),
)
def standardize_rows(x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Standardize each row by its own statistics: (x - mean) / sqrt(var + eps).

    Rows run along the last dimension. x: (..., D) with D >= 1 and any leading dimensions,
    including none; a leading dimension may be 0. var is the population variance, which divides by
    D. Return a tensor of x's shape.

    float32 and float64 are kept; integer input is computed in float32. The result stays accurate,
    to about 1e-3, for float32 rows around 1000 that vary by about 1. It is
    differentiable, through the mean and the variance too. x is not modified. Do without torch's
    own layer_norm, group_norm, batch_norm, instance_norm and rms_norm, and their modules.
    """
    if not x.is_floating_point():
        x = x.float()
    centered = x - x.mean(dim=-1, keepdim=True)
    var = centered.square().mean(dim=-1, keepdim=True)
    return centered / torch.sqrt(var + eps)


@standardize_rows.case
def a_square_table(implementation, draw):
    side = draw.whole(3, 6)
    return implementation(draw.normal(side, side) + draw.integers(-5, 5, side, 1))


@standardize_rows.case
def a_wide_table(implementation, draw):
    rows, columns = draw.whole(2, 4), draw.whole(5, 7)
    return implementation(draw.normal(rows, columns) + draw.integers(-5, 5, rows, 1))


@standardize_rows.case
def a_single_row_without_leading_dimensions(implementation, draw):
    return implementation(draw.normal(draw.whole(3, 7)) + 2)


@standardize_rows.case
def a_batch_of_tables(implementation, draw):
    batch, rows, columns = draw.sizes(3, low=3, high=5)
    return implementation(
        draw.normal(batch, rows, columns) * draw.uniform(rows, 1, low=0.5, high=3)
    )


@standardize_rows.case
def rows_of_one_element(implementation, draw):
    return implementation(draw.normal(draw.whole(2, 5), 1))


@standardize_rows.case
def a_constant_row_among_others(implementation, draw):
    columns = draw.choice((2, 4, 8))  # a power of two, so that the mean of equal numbers is exact
    table = draw.integers(-9, 9, 3, columns)
    table[1] = draw.whole(1, 9)
    return implementation(table.float())


@standardize_rows.case
def rows_with_a_tiny_spread(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    return implementation(0.01 * draw.normal(rows, columns))


@standardize_rows.case(tolerance=(2e-3, 2e-3))
def rows_around_1000(implementation, draw):
    # Of two numbers, every spelling of mean(x²) - mean(x)² rounds in the same way.
    pairs = draw.uniform(6, 1, low=990, high=1010) + draw.uniform(6, 2)
    pairs[:, 1] += 1.5
    return implementation(pairs)


@standardize_rows.case
def a_large_eps(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    return implementation(draw.normal(rows, columns), eps=draw.number(0.5, 2.0))


@standardize_rows.case
def float64_rows(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    return implementation(draw.normal(rows, columns, dtype=torch.float64) + 1)


@standardize_rows.case
def whole_numbers(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    return implementation(draw.integers(-20, 20, rows, columns))


@standardize_rows.case
def a_transposed_table(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    return implementation(3 * draw.normal(rows, columns).T + 1)


@standardize_rows.case
def a_table_without_rows(implementation, draw):
    return implementation(draw.normal(0, draw.whole(2, 7)))


@standardize_rows.case
def the_gradient(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    x = draw.normal(rows, columns, requires_grad=True)
    result = implementation(x)
    return {"gradient": gradients(result, x, draw.normal(rows, columns))}


@standardize_rows.misconception(
    "The row statistics lost their axis, so on square input they were lined up with the "
    "columns: row i was centered with the means of other rows. Keep the reduced axis."
)
def missing_keepdim(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    return (x - x.mean(dim=-1)) / torch.sqrt(x.var(dim=-1, correction=0) + eps)


@standardize_rows.misconception(
    "You divided by D - 1, which is what torch does unless told otherwise. The task asks for "
    "the population variance, which divides by D; for a row of one element the other one is 0 "
    "/ 0."
)
def sample_variance(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    return (x - x.mean(dim=-1, keepdim=True)) / torch.sqrt(x.var(dim=-1, keepdim=True) + eps)


@standardize_rows.misconception(
    "You standardized columns. `dim` names the axis that disappears, and each row has to be "
    "reduced over its own elements."
)
def wrong_axis(x, eps=1e-5):
    return standardize_rows.reference(x.transpose(0, -1), eps).transpose(0, -1)


@standardize_rows.misconception(
    "One mean and one variance for everything leave each row on a level of its own. Reduce "
    "over the last axis only."
)
def global_statistics(x, eps=1e-5):
    return standardize_rows.reference(x.reshape(-1), eps).reshape(x.shape)


@standardize_rows.misconception(
    "eps belongs under the root, next to the variance. Added to the standard deviation it is "
    "another number: look at rows with a small spread."
)
def eps_outside_root(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    std = x.std(dim=-1, correction=0, keepdim=True)
    return (x - x.mean(dim=-1, keepdim=True)) / (std + eps)


@standardize_rows.misconception(
    "The denominator differs from the formula in two ways: std divides by D - 1 unless told "
    "otherwise, and eps belongs under the root."
)
def sample_std_plus_eps(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    std = x.std(dim=-1, keepdim=True)
    return (x - x.mean(dim=-1, keepdim=True)) / (std + eps)


@standardize_rows.misconception(
    "Your axis 1 is the last one only when there are two dimensions. A single row has no axis "
    "1, and in a batch of tables it runs across the rows."
)
def second_axis(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    var = x.var(dim=1, correction=0, keepdim=True)
    return (x - x.mean(dim=1, keepdim=True)) / torch.sqrt(var + eps)


@standardize_rows.misconception(
    "You divided by the variance. Its root has the units of x, and only then does every row "
    "come out with spread 1."
)
def divides_by_variance(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    var = x.var(dim=-1, correction=0, keepdim=True)
    return (x - x.mean(dim=-1, keepdim=True)) / (var + eps)


@standardize_rows.misconception(
    "You computed the variance as mean(x²) - mean(x)². For rows around 1000 these are two "
    "numbers near a million that share most of their digits, and float32 keeps about seven: "
    "what is left is mostly rounding. Subtract the mean first, then square."
)
def expanded_variance(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    mean = x.mean(dim=-1, keepdim=True)
    var = x.square().mean(dim=-1, keepdim=True) - mean.square()
    return (x - mean) / torch.sqrt(var + eps)


@standardize_rows.misconception(
    "The numbers are right and the gradient is not: the variance depends on x as well, and you "
    "cut that path with detach(), no_grad() or item()."
)
def constant_variance(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    var = x.detach().var(dim=-1, correction=0, keepdim=True)
    return (x - x.mean(dim=-1, keepdim=True)) / torch.sqrt(var + eps)


@standardize_rows.misconception(
    "The numbers are right and the gradient is not: the mean you subtract depends on x as well, "
    "and you cut that path with detach(), no_grad() or item()."
)
def constant_mean(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    var = x.var(dim=-1, correction=0, keepdim=True)
    return (x - x.detach().mean(dim=-1, keepdim=True)) / torch.sqrt(var + eps)


@standardize_rows.misconception(
    "The numbers are right and the gradient is not: mean and variance depend on x as well, "
    "and you cut that path with detach() or no_grad()."
)
def constant_statistics(x, eps=1e-5):
    x = x if x.is_floating_point() else x.float()
    fixed = x.detach()
    var = fixed.var(dim=-1, correction=0, keepdim=True)
    return (x - fixed.mean(dim=-1, keepdim=True)) / torch.sqrt(var + eps)


@standardize_rows.misconception(
    "You changed the tensor you were given: -= and functions whose name ends in _ write into "
    "it. Build a new one."
)
def edits_the_input(x, eps=1e-5):
    result = standardize_rows.reference(x, eps)
    if x.is_floating_point():
        x -= x.mean(dim=-1, keepdim=True)
    return result


@standardize_rows.misconception(
    "Every result came out as float32. Only integers have to be converted; float64 stays float64."
)
def always_float32(x, eps=1e-5):
    return standardize_rows.reference(x.float(), eps)


@standardize_rows.misconception(
    "Integers were not converted, and torch takes no mean of whole numbers because it could "
    "not name the dtype of the result. Compute them in float32."
)
def integers_left_alone(x, eps=1e-5):
    mean, var = x.mean(dim=-1, keepdim=True), x.var(dim=-1, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps)


@standardize_rows.misconception(
    "The argument eps has no effect: the number in your formula is fixed. Use what the caller "
    "passes."
)
def fixed_eps(x, eps=1e-5):
    return standardize_rows.reference(x)


@standardize_rows.misconception(
    "eps is missing from the denominator. It hardly shows where rows vary a lot; a constant "
    "row becomes 0 / 0."
)
def without_eps(x, eps=1e-5):
    return standardize_rows.reference(x, 0.0)


@standardize_rows.broken
def broken_standardize_rows(x, eps=1e-5):
    mean = x.mean(dim=1)
    std = x.std(dim=1)
    return (x - mean) / (std + eps)


standardize_rows.hints(
    "Print the shapes of x and of mean side by side, for a 3×5 input.",
    "Take a 4×4 input and look at the mean of each row of the result: each should be 0.",
    (
        "Which name for the axis works for one, two and three dimensions alike? Then compare the "
        "denominator with the formula, letter by letter."
    ),
)
