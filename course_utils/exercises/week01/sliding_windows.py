"""Overlapping windows without a copy: a view described by strides."""

import numpy as np
import torch
from torch.nn import functional as F

from course_utils.cases import attempt, same_storage
from course_utils.exercise import exercise


@exercise(
    objectives=("tensor.storage_arithmetic", "tensor.views_vs_copies"),
    forbids=(
        torch.Tensor.unfold,
        torch.unfold_copy,
        F.unfold,
        np.lib.stride_tricks.sliding_window_view,
    ),
)
def sliding_windows(x: torch.Tensor, size: int, step: int = 1) -> torch.Tensor:
    """All windows of `size` neighboring elements along the last dimension, one every `step`
    elements, as a view.

    x: (..., T), of any strides and storage offset. Return a tensor of shape (..., n, size) with
    n = (T - size) // step + 1; window w starts at element w * step.

    No data is copied: the result is a view on x's own storage and overlaps itself when step < size.
    Raise ValueError unless 1 <= size <= T and step >= 1. Do without unfold and sliding_window_view.
    """
    length, stride = x.shape[-1], x.stride(-1)
    if not 1 <= size <= length or step < 1:
        raise ValueError(f"no windows of size {size} with step {step} in {length} elements")
    n = (length - size) // step + 1
    return x.as_strided((*x.shape[:-1], n, size), (*x.stride()[:-1], step * stride, stride))


def seen(result, x):
    """The windows and whether they lie in the memory of x."""
    return {"result": result, "shares x's storage": same_storage(result, x)}


@sliding_windows.case
def a_vector(implementation, draw):
    x = draw.normal(draw.whole(6, 8))
    return seen(implementation(x, draw.whole(2, 4)), x)


@sliding_windows.case
def a_vector_in_steps(implementation, draw):
    x = draw.normal(10)
    return seen(implementation(x, size=4, step=draw.whole(2, 3)), x)


@sliding_windows.case
def a_table(implementation, draw):
    x = draw.normal(draw.whole(2, 4), 7)
    return seen(implementation(x, 3, 2), x)


@sliding_windows.case
def a_batch_of_tables_in_float64(implementation, draw):
    batch, rows = draw.sizes(2, high=4)
    x = draw.normal(batch, rows, 6, dtype=torch.float64)
    return seen(implementation(x, draw.whole(2, 3), 2), x)


@sliding_windows.case
def a_transposed_table(implementation, draw):
    x = draw.normal(draw.whole(5, 7), draw.whole(2, 4)).T
    return seen(implementation(x, 2, draw.whole(1, 2)), x)


@sliding_windows.case
def every_second_element_from_an_offset(implementation, draw):
    x = draw.normal(3, draw.whole(9, 12))[1:, 2::2]
    return seen(implementation(x, 2), x)


@sliding_windows.case
def a_slice_in_the_middle(implementation, draw):
    start = draw.whole(2, 5)
    x = draw.normal(14)[start : start + 6]
    return seen(implementation(x, 3, 2), x)


@sliding_windows.case
def an_expanded_element(implementation, draw):
    x = draw.normal(3, 1).expand(3, draw.whole(4, 6))
    return seen(implementation(x, 3), x)


@sliding_windows.case
def windows_of_one_element(implementation, draw):
    x = draw.normal(2, draw.whole(4, 6))
    return seen(implementation(x, 1, 2), x)


@sliding_windows.case
def one_window_of_everything(implementation, draw):
    length = draw.whole(3, 6)
    x = draw.normal(2, length)
    return seen(implementation(x, length, draw.whole(1, 3)), x)


@sliding_windows.case
def steps_that_leave_gaps(implementation, draw):
    x = draw.normal(2, draw.whole(9, 11))
    return seen(implementation(x, 2, 4), x)


@sliding_windows.case
def a_size_beyond_the_last_element(implementation, draw):
    length = draw.whole(4, 6)
    x = draw.normal(3, length)
    return [attempt(implementation, x, length + 1, step) for step in (1, 2)]


@sliding_windows.case
def sizes_and_steps_below_one(implementation, draw):
    x = draw.normal(3, draw.whole(4, 6))
    return [
        attempt(implementation, x, size, step) for size, step in ((0, 1), (-1, 1), (2, 0), (2, -1))
    ]


def as_windows(x, size, step, strides=None, offset=None, n=None, leading=None):
    """The reference with one of its numbers replaced, after the same validation."""
    right = sliding_windows.reference(x, size, step)
    n = right.shape[-2] if n is None else n
    shape = (*x.shape[:-1], n, size)
    stride = x.stride(-1)
    strides = (step * stride, stride) if strides is None else strides
    return x.as_strided(shape, (*(leading or x.stride()[:-1]), *strides), offset)


@sliding_windows.misconception(
    "You took neighbors to be one element apart. In a transposed or stepped tensor they are "
    "x.stride(-1) apart."
)
def unit_stride(x, size, step=1):
    return as_windows(x, size, step, strides=(step, 1))


@sliding_windows.misconception(
    "The numbers are right and the memory is new: slices that are stacked or picked with "
    "index tensors are copied. Describe the windows by strides on the same storage."
)
def copies(x, size, step=1):
    return sliding_windows.reference(x, size, step).clone()


@sliding_windows.misconception(
    "Your windows start at element 0 of the storage. A slice starts at its own storage_offset()."
)
def drops_offset(x, size, step=1):
    return as_windows(x, size, step, offset=0)


@sliding_windows.misconception(
    "The last full window is missing. T - size counts the steps after the first window, not "
    "the windows."
)
def off_by_one(x, size, step=1):
    n = sliding_windows.reference(x, size, step).shape[-2]
    return as_windows(x, size, step, n=n - 1)


@sliding_windows.misconception(
    "Your windows stand side by side: each begins where the one before it ends, as if `step` were "
    "`size`. Window w starts at element w * step, so windows overlap when step < size."
)
def side_by_side(x, size, step=1):
    sliding_windows.reference(x, size, step)
    n = x.shape[-1] // size
    return x[..., : n * size].view(*x.shape[:-1], n, size)


@sliding_windows.misconception(
    "The memory is that of x, but not as part of x's storage: a tensor made of a NumPy array gets "
    "a storage of its own, which begins at the array's first element. Stay with torch."
)
def through_numpy(x, size, step=1):
    right = sliding_windows.reference(x, size, step)
    if not x.storage_offset():
        return right
    places = [stride * x.element_size() for stride in right.stride()]
    windows = np.lib.stride_tricks.as_strided(x.numpy(), tuple(right.shape), places)
    return torch.from_numpy(windows)


@sliding_windows.misconception(
    "contiguous() copies exactly when the layout is interesting, and the result no longer "
    "shares memory with x. Work with the strides x has."
)
def contiguous_first(x, size, step=1):
    return sliding_windows.reference(x.contiguous(), size, step)


@sliding_windows.misconception(
    "The window axis and the position axis have each other's strides: the next window is "
    "`step` elements further, the next position inside a window is one."
)
def swapped_strides(x, size, step=1):
    stride = x.stride(-1)
    return as_windows(x, size, step, strides=(stride, step * stride))


@sliding_windows.misconception(
    "The right windows came out as columns. The last axis runs inside a window, the one "
    "before it counts windows."
)
def windows_as_columns(x, size, step=1):
    return sliding_windows.reference(x, size, step).mT


@sliding_windows.misconception(
    "A window that does not fit any more was counted, and it reads beyond the end, into "
    "whatever lies there. Only full windows count."
)
def counts_partial_windows(x, size, step=1):
    sliding_windows.reference(x, size, step)
    return as_windows(x, size, step, n=-(-(x.shape[-1] - size) // step) + 1)


@sliding_windows.misconception(
    "`step` went into the number of windows and not into the distance between them: window w "
    "starts at element w * step."
)
def forgets_step_in_stride(x, size, step=1):
    stride = x.stride(-1)
    return as_windows(x, size, step, strides=(stride, stride))


@sliding_windows.misconception(
    "The distance between windows ignores the stride of x: `step` counts elements along the "
    "dimension, and in a transposed or stepped tensor these lie more than one place apart."
)
def step_in_storage_places(x, size, step=1):
    return as_windows(x, size, step, strides=(step, x.stride(-1)))


@sliding_windows.misconception(
    "You rebuilt the strides of the leading dimensions from the shape. That holds for "
    "contiguous tensors only; x.stride() knows them."
)
def leading_strides_from_shape(x, size, step=1):
    return as_windows(x, size, step, leading=torch.empty(x.shape, device="meta").stride()[:-1])


@sliding_windows.misconception(
    "Sizes and steps went unchecked. size T + 1 then gives an empty result without a word, "
    "and step 0 a ZeroDivisionError; the task asks for ValueError in each such case."
)
def unchecked_arguments(x, size, step=1):
    n, stride = (x.shape[-1] - size) // step + 1, x.stride(-1)
    return x.as_strided((*x.shape[:-1], n, size), (*x.stride()[:-1], step * stride, stride))


sliding_windows.hints(
    "A window axis and a position axis walk along the same dimension of x.",
    "Write the two strides in terms of x.stride(-1) and step, and keep the ones in front.",
    "Check size and step before you build the view.",
)
