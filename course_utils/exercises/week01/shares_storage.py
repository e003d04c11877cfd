"""Views and copies: do two tensors stand on the same memory?"""

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("tensor.views_vs_copies",))
def shares_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether `a` and `b` are backed by the same storage, even if no element is common to both.

    Shapes, strides and dtypes may differ: `a.view(torch.int32)` shares a's storage. So does an
    empty slice such as `a[:0]`. A storage of zero bytes is shared with nothing, not even with
    itself: return False. Tensors on different devices: return False; one of them may be on the
    meta device, never both.

    Only look: nothing may be written into the memory of either, not even for a moment. Both were
    made by torch operations. Return a Python bool.
    """
    first, second = a.untyped_storage(), b.untyped_storage()
    if first.nbytes() == 0 or a.device != b.device:
        return False
    return first.data_ptr() == second.data_ptr()


def each(implementation, draw, *pairs):
    """What the implementation says about each pair, exceptions included; the order is drawn."""
    return [attempt(implementation, a, b) for a, b in draw.python_random.sample(pairs, len(pairs))]


class Writes:
    """Counts the writes through storage objects that happen inside its block."""

    METHODS = ("__setitem__", "fill_", "copy_")

    def __init__(self, *tensors):
        self.count, self.addresses = 0, {t.untyped_storage().data_ptr() for t in tensors}

    def __enter__(self):
        for name in self.METHODS:
            setattr(torch.UntypedStorage, name, self._counting(getattr(torch.UntypedStorage, name)))
        return self

    def __exit__(self, *exception):
        for name in self.METHODS:
            delattr(torch.UntypedStorage, name)  # the inherited method shows again

    def _counting(self, method):
        def count(storage, *args, **kwargs):
            self.count += storage.data_ptr() in self.addresses
            return method(storage, *args, **kwargs)

        return count


@shares_storage.case
def a_tensor_and_its_slices(implementation, draw):
    grid, other = draw.normal(*draw.sizes(2, high=4)), draw.normal(3, 2)
    return each(
        implementation, draw, (grid, grid), (grid[:, 1], grid), (grid, grid[:1]), (grid, other)
    )


@shares_storage.case
def slices_with_and_without_common_elements(implementation, draw):
    grid = draw.normal(draw.whole(4, 5), 2)
    halves = (grid[:2], grid[2:]), (grid[3], grid[0])
    copy = grid[0].clone()
    with Writes(grid, copy) as writes:
        answers = each(implementation, draw, *halves, (grid[:3], grid[1:]), (grid[0], copy))
    # A write through a tensor or a view of it raises its version, also when the old values return.
    return {"answers": answers, "written to": grid._version + copy._version + writes.count > 0}


@shares_storage.case
def columns_that_interleave(implementation, draw):
    grid = draw.normal(*draw.sizes(2, low=3, high=4))
    other = grid[:, 1::2].clone()
    return each(implementation, draw, (grid[:, ::2], grid[:, 1::2]), (grid[:, 0], other))


@shares_storage.case
def transposed_tensors(implementation, draw):
    grid = draw.normal(*draw.sizes(2, high=4))
    return each(implementation, draw, (grid, grid.T), (grid.T[:, 1:], grid))


@shares_storage.case
def a_row_and_its_expansion(implementation, draw):
    row = draw.normal(1, draw.whole(2, 4))
    return each(implementation, draw, (row.expand(4, -1), row), (row, row.repeat(4, 1)))


@shares_storage.case
def a_detached_tensor(implementation, draw):
    weights = draw.normal(*draw.sizes(2, high=4), requires_grad=True)
    seen = weights.detach()
    pairs = (weights, seen), (weights, seen.clone()), (seen[1:], weights)
    return each(implementation, draw, *pairs)


@shares_storage.case
def a_reshape_that_views_and_one_that_copies(implementation, draw):
    rows, columns = draw.sizes(2, high=4)
    grid = draw.normal(rows, columns)
    return each(
        implementation, draw, (grid, grid.reshape(columns, rows)), (grid.T.reshape(-1), grid)
    )


@shares_storage.case
def contiguous_and_to_which_copy_only_when_they_must(implementation, draw):
    grid = draw.normal(*draw.sizes(2, high=4))
    same = (grid, grid.contiguous()), (grid, grid.to(torch.float32))
    copied = (grid.T, grid.T.contiguous()), (grid, grid.to(torch.int32))
    return each(implementation, draw, *same, *copied)


@shares_storage.case
def equal_values_in_different_memory(implementation, draw):
    grid = draw.normal(*draw.sizes(2, high=4))
    every_row = torch.arange(len(grid), device=grid.device)
    by_mask = grid[grid == grid]
    pairs = (grid[every_row], grid), (grid.view(-1), by_mask), (grid + 0, grid)
    return each(implementation, draw, *pairs)


@shares_storage.case
def the_same_bytes_read_as_another_dtype(implementation, draw):
    grid = draw.normal(*draw.sizes(2, high=4))
    copy = grid.clone()
    return each(
        implementation, draw, (grid, grid.view(torch.int32)), (grid, copy.view(torch.int32))
    )


@shares_storage.case
def slices_without_elements(implementation, draw):
    grid, other = draw.normal(*draw.sizes(2, low=6, high=8)), draw.normal(6, 5)
    return each(implementation, draw, (grid[:0], grid), (other[:, 1:1], other), (grid[:0], other))


@shares_storage.case
def a_storage_of_zero_bytes_and_itself(implementation, draw):
    nothing = draw.normal(0, draw.whole(2, 5))
    return attempt(implementation, nothing, nothing)


@shares_storage.case
def a_storage_of_zero_bytes_and_another_one(implementation, draw):
    nothing, grid = draw.normal(0), draw.normal(*draw.sizes(2, high=4))
    pairs = (nothing, draw.normal(2, 0)), (nothing, grid[:0]), (grid, nothing)
    return each(implementation, draw, *pairs)


@shares_storage.case
def tensors_on_two_devices(implementation, draw):
    grid, nothing = draw.normal(*draw.sizes(2, high=4)), draw.normal(0)
    elsewhere = grid.to("meta")
    pairs = (grid, elsewhere), (elsewhere, grid), (nothing, elsewhere), (elsewhere, nothing)
    return each(implementation, draw, *pairs)


@shares_storage.misconception(
    "You compared data_ptr(), which is the address of the first element shown. Two slices of "
    "one tensor start at different elements and still share memory; compare the storages."
)
def first_element_address(a, b):
    return a.data_ptr() == b.data_ptr()


@shares_storage.misconception(
    "You compared values. Equal numbers can live in different memory (a clone), and one "
    "memory can show different numbers (two slices). Look at the storage."
)
def equal_values(a, b):
    return torch.equal(a, b)


@shares_storage.misconception(
    "You compared the bytes that the two storages hold. A clone holds the same bytes in other "
    "memory; ask where the storages are, not what is in them."
)
def equal_bytes(a, b):
    return a.untyped_storage().tolist() == b.untyped_storage().tolist()


@shares_storage.misconception(
    "You asked whether both are the same Python object. Two different objects can be views of "
    "one storage, as x and x[1:] are; `is` sees only the object."
)
def same_object(a, b):
    return a is b


@shares_storage.misconception(
    "You followed `_base` to the tensor a view was taken from. Only views that autograd keeps "
    "track of have one: detach() shares memory and leaves no base to follow."
)
def follows_base(a, b):
    def root(tensor):
        return tensor if tensor._base is None else tensor._base

    return root(a) is root(b)


@shares_storage.misconception(
    "You left the devices out. A tensor on the meta device has no memory and reports the address "
    "0, and so does an empty one on the CPU; tensors on different devices share nothing."
)
def forgets_the_device(a, b):
    first, second = a.untyped_storage(), b.untyped_storage()
    return first.nbytes() > 0 and first.data_ptr() == second.data_ptr()


@shares_storage.misconception(
    "You asked whether the two stretches of memory overlap. Two halves of one tensor do not, "
    "and still they share a storage: keeping either half alive keeps all of it alive."
)
def overlap_of_ranges(a, b):
    def stretch(tensor):
        reach = sum(
            (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        start = tensor.data_ptr()
        return start, start + (reach + 1) * tensor.element_size() if tensor.numel() else start

    (a_start, a_end), (b_start, b_end) = stretch(a), stretch(b)
    return a.device == b.device and a_start < b_end and b_start < a_end


ZERO_BYTES = (
    "Two storages of zero bytes came out as shared. Both report the address 0, which says that "
    "they have no memory, not that they have the same."
)


@shares_storage.misconception(ZERO_BYTES)
def zero_bytes_are_shared(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@shares_storage.misconception(ZERO_BYTES)
def zero_bytes_are_shared_on_one_device(a, b):
    return a.device == b.device and zero_bytes_are_shared(a, b)


@shares_storage.misconception(
    "A tensor without elements came out as sharing nothing. x[:0] shows no element, yet it "
    "refers to x's storage and keeps it alive. What has to be empty is the storage, not the "
    "tensor."
)
def empty_slices_share_nothing(a, b):
    return a.numel() > 0 and b.numel() > 0 and shares_storage.reference(a, b)


@shares_storage.misconception(
    "You let the dtype decide. A storage is plain bytes: x.view(torch.int32) reads the very "
    "bytes of x as other numbers."
)
def same_dtype_needed(a, b):
    return a.dtype == b.dtype and shares_storage.reference(a, b)


WRITES = (
    "You found out by writing into one tensor and watching the other. The task is to look only: "
    "between the write and its repair, whoever else uses that memory sees wrong numbers."
)


@shares_storage.misconception(WRITES)
def writes_into_the_storage(a, b):
    shared, storage = shares_storage.reference(a, b), a.untyped_storage()
    if storage.nbytes() and a.device.type != "meta":
        storage.copy_(storage.clone())
    return shared


@shares_storage.misconception(WRITES)
def writes_and_restores(a, b):
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False
    with torch.no_grad():
        before, kept = b.clone(), a.clone()
        a.add_(1)
        changed = not torch.equal(b, before)
        a.copy_(kept)
    return changed


shares_storage.hints(
    "Take x and several views of it, and print what stays the same for all of them.",
    (
        "A tensor can hand you its storage as an object, and the storage knows its own address "
        "and size."
    ),
    "Which address and which size does the storage of `torch.empty(0)` report?",
)
