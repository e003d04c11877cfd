"""One element per row: gather, and what to do about rows without a choice."""

import torch

from course_utils.cases import gradients
from course_utils.exercise import exercise


@exercise(objectives=("tensor.gather", "tensor.indexing"))
def pick_per_row(scores: torch.Tensor, index: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
    """Pick one score per row: out[r] = scores[r, index[r]], or `fill` where index[r] is -1.

    scores: (N, C), floating point, C >= 1; N may be 0, and scores may be non-contiguous. index:
    (N,), int64 or int32, entries -1..C-1; -1 means that the row is skipped. Return a tensor of
    shape (N,) and scores' dtype, with every digit of the scores and of fill.

    The result is differentiable in scores: 1 at each picked element and exactly 0 elsewhere. A
    skipped row may hold NaN or inf; its result is still `fill` and its gradient 0. index is not
    modified.
    """
    skipped = index == -1
    column = index.masked_fill(skipped, 0).long()
    picked = scores.gather(1, column.unsqueeze(1)).squeeze(1)
    return picked.masked_fill(skipped, fill)


def some_skipped(draw, rows, columns, dtype=torch.int64):
    """Random columns, -1 in every third row and in at least one, the last column in another one."""
    index = draw.integers(0, columns - 1, rows, dtype=dtype)
    order = draw.permutation(rows)
    index[order[: max(1, rows // 3)]] = -1
    index[order[-1]] = columns - 1
    return index


@pick_per_row.case
def one_choice_in_every_row(implementation, draw):
    rows, columns = draw.sizes(2)
    return implementation(draw.normal(rows, columns), draw.integers(0, columns - 1, rows))


@pick_per_row.case
def as_many_rows_as_columns(implementation, draw):
    side = draw.whole(3, 6)
    return implementation(draw.normal(side, side), draw.permutation(side))


@pick_per_row.case
def some_rows_skipped(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    return implementation(draw.normal(rows, columns), some_skipped(draw, rows, columns))


@pick_per_row.case
def every_row_skipped(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    skip_all = draw.tensor([-1] * rows)
    return implementation(draw.normal(rows, columns), skip_all, draw.number(2, 5))


@pick_per_row.case
def no_rows(implementation, draw):
    return implementation(draw.normal(0, draw.whole(2, 6)), draw.integers(0, 1, 0))


@pick_per_row.case
def a_single_row(implementation, draw):
    columns = draw.whole(3, 6)
    return implementation(draw.normal(1, columns), draw.integers(0, columns - 1, 1))


@pick_per_row.case
def a_single_column(implementation, draw):
    rows = draw.whole(3, 6)
    return implementation(draw.normal(rows, 1), some_skipped(draw, rows, 1), fill=draw.number(2, 5))


@pick_per_row.case(tolerance=(1e-12, 1e-12))  # nothing is computed, so no digit may be lost
def an_int32_index_and_float64_scores(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    scores = draw.normal(rows, columns, dtype=torch.float64)
    index = some_skipped(draw, rows, columns, torch.int32)
    return implementation(scores, index, draw.number(2, 5))


@pick_per_row.case
def nan_and_inf_in_skipped_rows(implementation, draw):
    scores = draw.normal(5, draw.whole(3, 6))
    scores[1], scores[3] = torch.nan, torch.inf
    index = draw.integers(0, 2, 5)
    index[[1, 3]] = -1
    return implementation(scores, index, fill=draw.number(2, 5))


@pick_per_row.case
def nan_and_inf_next_to_the_choice(implementation, draw):
    scores = draw.normal(3, 3)
    scores[0, 1], scores[1, 2], scores[2, 0] = torch.nan, torch.inf, -torch.inf
    return implementation(scores, draw.tensor([0, draw.choice((0, 1)), 0]))


@pick_per_row.case
def transposed_scores(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    scores = draw.normal(columns, rows).T
    return implementation(scores, some_skipped(draw, rows, columns), fill=draw.number(-5, -2))


@pick_per_row.case
def the_gradient(implementation, draw):
    rows, columns = draw.whole(5, 7), draw.whole(3, 4)
    scores, upstream = draw.normal(rows, columns), draw.normal(rows)
    index = some_skipped(draw, rows, columns)
    scores[index == -1] = torch.inf
    scores.requires_grad_()
    result = implementation(scores, index, 1.5)
    return {"result": result, "gradient": gradients(result, scores, upstream)}


@pick_per_row.misconception(
    "`scores[:, index]` pairs every row with every index and gives (N, N). You need one index "
    "per row."
)
def whole_columns(scores, index, fill=0.0):
    skipped = index == -1
    return scores[:, index.masked_fill(skipped, 0)].masked_fill(skipped, fill)


@pick_per_row.misconception(
    "-1 was read as the last column, as Python reads it. Here it means that there is no "
    "choice, so `fill` has to appear in those rows."
)
def minus_one_wraps(scores, index, fill=0.0):
    return pick_per_row.reference(scores, index % scores.shape[1], fill)


@pick_per_row.misconception(
    "The numbers are right, but the way back to scores is cut: they became Python numbers, or "
    "were detached. Stay with tensor operations."
)
def item_loop(scores, index, fill=0.0):
    picked = pick_per_row.reference(scores, index, fill).tolist()
    return torch.tensor(picked, dtype=scores.dtype, device=scores.device)


@pick_per_row.misconception(
    "NaN times 0 is NaN, and so is inf times 0: a mask that multiplies cannot hide a bad "
    "value. Choose by a condition instead."
)
def mask_multiplication(scores, index, fill=0.0):
    chosen = (index != -1).to(scores.dtype)
    column = index.clamp(min=0).long()
    return scores.gather(1, column[:, None])[:, 0] * chosen + fill * (1 - chosen)


@pick_per_row.misconception(
    "You multiplied each row by zeros and a single one and added it up. One NaN or inf "
    "anywhere in the row, and 0 times it spoils the sum; take the element itself."
)
def one_hot_sum(scores, index, fill=0.0):
    columns = torch.arange(scores.shape[1], device=scores.device)
    picked = (scores * (index[:, None] == columns)).sum(dim=1)
    return picked.masked_fill(index == -1, fill)


@pick_per_row.misconception(
    "You wrote into the index tensor of the caller to get rid of its -1s. Make a safe copy of "
    "your own."
)
def edits_index(scores, index, fill=0.0):
    result = pick_per_row.reference(scores, index, fill)
    index[index == -1] = 0
    return result


@pick_per_row.misconception(
    "Skipped rows came out as 0, whatever the caller asked for. The value to put there is the "
    "argument `fill`."
)
def ignores_fill(scores, index, fill=0.0):
    return pick_per_row.reference(scores, index)


@pick_per_row.misconception(
    "Skipped rows are missing from the result. It has one entry per row, and `fill` holds the "
    "place of a skipped one."
)
def drops_skipped_rows(scores, index, fill=0.0):
    return pick_per_row.reference(scores, index, fill)[index != -1]


@pick_per_row.misconception(
    "The picks run along the wrong dimension: index r chose a row for column r. `dim` names "
    "the dimension that the numbers in the index walk along."
)
def picks_rows_per_column(scores, index, fill=0.0):
    picked = scores.gather(0, index.clamp(min=0).long()[None]).squeeze(0)
    return picked.masked_fill(index == -1, fill)


@pick_per_row.misconception(
    "The result has a dtype of its own. It should be that of scores, so float64 scores give "
    "float64."
)
def default_dtype_result(scores, index, fill=0.0):
    return pick_per_row.reference(scores, index, fill).to(torch.get_default_dtype())


@pick_per_row.misconception(
    "The scores are right and `fill` lost its last digits: it went through a tensor of another "
    "dtype. torch makes float32 of a Python number unless you say otherwise."
)
def fill_in_float32(scores, index, fill=0.0):
    skipped = torch.full(index.shape, fill, dtype=torch.float32, device=scores.device)
    return torch.where(index == -1, skipped, pick_per_row.reference(scores, index))


@pick_per_row.misconception(
    "The dtype is right and the last digits are gone: float64 numbers went through float32 on "
    "their way, as happens when they are collected in a tensor made without a dtype."
)
def through_float32(scores, index, fill=0.0):
    return pick_per_row.reference(scores.float(), index, fill).to(scores.dtype)


@pick_per_row.misconception(
    "The result kept a dimension of size 1. gather returns the shape of its index; the answer "
    "has shape (N,)."
)
def keeps_the_column(scores, index, fill=0.0):
    return pick_per_row.reference(scores, index, fill)[:, None]


pick_per_row.hints(
    "Which operation takes one column number per row?",
    "Its index needs as many dimensions as scores has, and no number below 0.",
    "-1 needs attention twice: a harmless column before the pick, the fill after it.",
)
