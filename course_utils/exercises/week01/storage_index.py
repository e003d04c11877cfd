"""Where an element lives: strides, offset and index."""

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(
    objectives=("tensor.storage_arithmetic",),
    forbids=(torch.as_strided, torch.Tensor.as_strided),
)
def storage_index(
    shape: tuple[int, ...], stride: tuple[int, ...], storage_offset: int, index: tuple[int, ...]
) -> int:
    """Position, counted in elements from the start of the storage, of the element at `index`.

    `shape`, `stride` and `storage_offset` describe any strided tensor: transposed, sliced,
    expanded or 0-d. Strides count elements. An index entry may be negative; it then counts from
    the end of its dimension. Return a Python int. For a 0-d tensor the answer is
    `storage_offset`.

    Raise IndexError when len(index) != len(shape), or when an entry lies outside -size..size-1 of
    its dimension (so always for a dimension of size 0), also where the stride is 0.
    """
    if len(index) != len(shape):
        raise IndexError(f"{len(index)} indices for {len(shape)} dimensions")
    position = storage_offset
    for size, step, entry in zip(shape, stride, index, strict=True):
        if not -size <= entry < size:
            raise IndexError(f"index {entry} is out of range for size {size}")
        position += step * (entry + size if entry < 0 else entry)
    return position


def at(implementation, tensor, *indices):
    """Positions the implementation gives for these indices of the tensor, exceptions included."""
    described = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    return [attempt(implementation, *described, index) for index in indices]


@storage_index.case
def a_contiguous_tensor(implementation, draw):
    rows, columns, depth = draw.sizes(3)
    return at(
        implementation,
        draw.normal(rows, columns, depth),
        (0, 0, 0),
        (1, 1, 1),
        (rows - 1, columns - 1, depth - 1),
    )


@storage_index.case
def a_transposed_tensor(implementation, draw):
    rows, columns, depth = draw.sizes(3)
    grid = draw.normal(rows, columns, depth).permute(2, 0, 1)
    return at(implementation, grid, (1, 0, 0), (0, 1, 0), (1, 1, 1), (0, 0, columns - 1))


@storage_index.case
def a_view_that_starts_later(implementation, draw):
    rows, columns = draw.sizes(2, low=4, high=9)
    grid = draw.normal(rows, columns)[1:, 2::2]
    return at(implementation, grid, (0, 0), (0, 1), (1, 0), (2, 0))


@storage_index.case
def an_expanded_tensor(implementation, draw):
    rows, columns = draw.sizes(2)
    return at(
        implementation, draw.normal(rows, 1).expand(rows, columns), (0, 1), (1, 0), (1, columns - 1)
    )


@storage_index.case
def a_tensor_without_dimensions(implementation, draw):
    vector = draw.normal(draw.whole(5, 9))
    return at(implementation, vector[draw.whole(2, 4)], (), (0,))


@storage_index.case
def indices_that_count_from_the_end(implementation, draw):
    rows, columns = draw.sizes(2, low=3)
    return at(
        implementation, draw.normal(rows, columns).T, (-1, 0), (0, -1), (-columns, -rows), (-2, 1)
    )


@storage_index.case
def indices_out_of_range(implementation, draw):
    rows, columns = draw.sizes(2)
    grid = draw.normal(rows, columns)
    just_outside = (rows, 0), (0, columns), (-rows - 1, 0), (0, -columns - 1)
    return at(implementation, grid, *just_outside, (rows + 3, 0), (0, -columns - 4))


@storage_index.case
def indices_out_of_range_of_an_expanded_dimension(implementation, draw):
    rows, columns = draw.sizes(2)
    grid = draw.normal(rows, 1).expand(rows, columns)
    return at(implementation, grid, (0, columns), (-1, columns), (1, -columns - 1))


@storage_index.case
def indices_out_of_range_of_a_dimension_of_size_one(implementation, draw):
    return at(implementation, draw.normal(draw.whole(2, 7), 1), (0, 1), (-1, 1), (1, -2))


@storage_index.case
def too_few_or_too_many_indices(implementation, draw):
    return at(implementation, draw.normal(*draw.sizes(2)), (0,), (), (0, 0, 0))


@storage_index.case
def a_dimension_of_size_zero(implementation, draw):
    return at(implementation, draw.normal(draw.whole(2, 5), 0), (0, 0), (1, -1), (0, -1))


@storage_index.misconception(
    "Your position is right for a whole tensor and too small for a slice: a view starts at "
    "storage_offset, not at element 0."
)
def forgets_offset(shape, stride, storage_offset, index):
    return storage_index.reference(shape, stride, 0, index)


@storage_index.misconception(
    "You rebuilt the strides from the shape. That only holds for contiguous tensors: a "
    "transpose has the same elements under other strides, so use the strides you are given."
)
def row_major_from_shape(shape, stride, storage_offset, index):
    return storage_index.reference(shape, torch.empty(shape).stride(), storage_offset, index)


@storage_index.misconception(
    "A negative index was multiplied as it is and points before the tensor; first add the "
    "size of its dimension."
)
def raw_negative(shape, stride, storage_offset, index):
    storage_index.reference(shape, stride, storage_offset, index)
    return storage_offset + sum(step * entry for step, entry in zip(stride, index, strict=True))


@storage_index.misconception(
    "Negative indices were refused. They are legal down to -size, as in a list, and count from "
    "the end of their dimension."
)
def refuses_negatives(shape, stride, storage_offset, index):
    if min(index, default=0) < 0:
        raise IndexError(index)
    return storage_index.reference(shape, stride, storage_offset, index)


@storage_index.misconception(
    "Negative indices were not thought of: you check the upper end of each dimension only, and "
    "an index below 0 is multiplied as it is. It counts from the end, and it has a lower limit."
)
def ignores_negatives(shape, stride, storage_offset, index):
    upwards = [max(entry, 0) if size else 0 for size, entry in zip(shape, index, strict=False)]
    storage_index.reference(shape, stride, storage_offset, (*upwards, *index[len(upwards) :]))
    return storage_offset + sum(step * entry for step, entry in zip(stride, index, strict=True))


@storage_index.misconception(
    "The sum is right for indices from 0 up to the end. There are others: a negative index counts "
    "from the end, and one that does not exist, or too few or too many of them, must raise "
    "IndexError."
)
def the_bare_sum(shape, stride, storage_offset, index):
    return storage_offset + sum(step * entry for step, entry in zip(stride, index, strict=False))


@storage_index.misconception(
    "Indices that do not exist were turned into positions. Before you add anything up, compare "
    "each index with the size of its dimension."
)
def range_unchecked(shape, stride, storage_offset, index):
    if len(index) != len(shape):
        raise IndexError(index)
    return storage_offset + sum(
        step * (entry + size if entry < 0 else entry)
        for size, step, entry in zip(shape, stride, index, strict=True)
    )


@storage_index.misconception(
    "Neither the indices nor their number was checked. An index that does not exist, and too few "
    "or too many of them, must raise IndexError before anything is added up."
)
def nothing_checked(shape, stride, storage_offset, index):
    return storage_offset + sum(
        step * (entry + size if entry < 0 else entry)
        for size, step, entry in zip(shape, stride, index, strict=False)
    )


@storage_index.misconception(
    "Where the stride is 0, any index was let through. That it leads to some cell does not make "
    "it exist: the size of the dimension alone decides."
)
def unchecked_where_stride_is_zero(shape, stride, storage_offset, index):
    if len(index) == len(shape):
        index = tuple(i if step else 0 for step, i in zip(stride, index, strict=True))
    return storage_index.reference(shape, stride, storage_offset, index)


@storage_index.misconception(
    "In a dimension of size 1, any index was let through. There is nowhere to go, but the only "
    "indices that exist are 0 and -1."
)
def unchecked_where_size_is_one(shape, stride, storage_offset, index):
    if len(index) == len(shape):
        index = tuple(0 if size == 1 else i for size, i in zip(shape, index, strict=True))
    return storage_index.reference(shape, stride, storage_offset, index)


@storage_index.misconception(
    "For a 0-d tensor you answered 0. It has no index to multiply, but it still starts "
    "somewhere: a number picked out of a vector lies where it lay in the vector."
)
def zero_for_no_dimensions(shape, stride, storage_offset, index):
    position = storage_index.reference(shape, stride, storage_offset, index)
    return position if shape else 0


@storage_index.misconception(
    "Taking the remainder makes every index legal. An index outside -size..size-1 has to "
    "raise IndexError."
)
def modulo_wraps_all(shape, stride, storage_offset, index):
    if len(index) != len(shape):
        raise IndexError(index)
    return storage_offset + sum(
        step * (entry % size if size else 0)
        for size, step, entry in zip(shape, stride, index, strict=True)
    )


@storage_index.misconception(
    "Your numbers are multiples of the element size. Strides already count elements, so bytes "
    "do not come in."
)
def bytes_not_elements(shape, stride, storage_offset, index):
    return 4 * storage_index.reference(shape, stride, storage_offset, index)


@storage_index.misconception(
    "An index one past the last element was let through: with size 3 the largest index is 2, "
    "the smallest is -3."
)
def off_by_one_range(shape, stride, storage_offset, index):
    if len(index) != len(shape):
        raise IndexError(index)
    for size, entry in zip(shape, index, strict=True):
        if not -size - 1 <= entry <= size:
            raise IndexError(entry)
    return storage_offset + sum(
        step * (entry + size if entry < 0 else entry)
        for size, step, entry in zip(shape, stride, index, strict=True)
    )


@storage_index.misconception(
    "The number of indices went unchecked: zip stops at the shorter one without a word, so "
    "say that the ranks differ."
)
def rank_unchecked(shape, stride, storage_offset, index):
    shorter = min(len(shape), len(index))
    return storage_index.reference(
        shape[:shorter], stride[:shorter], storage_offset, index[:shorter]
    )


storage_index.hints(
    "Write the position of element (1, 2) of a contiguous (3, 4) tensor as a sum.",
    "There is one product per dimension, and then there is the place where the view starts.",
    "Check that an index is in range before you turn a negative one into a positive one.",
)
