"""A dataset that owns its table: dtypes, memory, indexing, a transform on a copy."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week06._loading import some


@exercise(objectives=("data.dataset", "data.augment", "data.boundary"))
class TabularDataset(torch.utils.data.Dataset):
    """Own a copy of a numeric table: X, a NumPy array (N, d), and y, a NumPy array (N,).

    X has any real dtype and is stored as float32; y holds integers, perhaps large ones, and is
    stored as int64. Both may lie in memory in any way (reversed, strided, Fortran order,
    read-only). N = 0 is allowed. Raise ValueError unless X has two dimensions, y has one, and they
    are equally long. Whatever happens to X or y later has no effect.

    ds[i] is a tuple (x, label) for -N <= i < N: x, a float32 tensor of shape (d,), also when d is
    1, and label, an int64 tensor without dimensions. Any other i raises IndexError. len(ds) is N.
    transform, if given, is called once per access with a fresh copy of the row, which it may change
    in place; its result takes the place of x. Changing what ds[i] returned never changes ds.
    """

    def __init__(self, X, y, transform=None):
        if X.ndim != 2 or y.ndim != 1 or len(X) != len(y):
            raise ValueError(f"shapes {X.shape} and {y.shape} are not (N, d) and (N,)")
        self.X = torch.from_numpy(np.array(X, dtype=np.float32, order="C"))
        self.y = torch.from_numpy(np.array(y, dtype=np.int64))
        self.transform = transform

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        x, label = self.X[i].clone(), self.y[i].clone()
        if self.transform is not None:
            x = self.transform(x)
        return x, label


def table(draw, rows, width, x_dtype=np.float32, y_dtype=np.int64):
    """A random table as NumPy arrays, C order."""
    X = (10 * draw.normal(rows, width)).cpu().numpy().astype(x_dtype)
    return X, draw.integers(0, 9, rows).cpu().numpy().astype(y_dtype)


def rows_of(dataset, most=20):
    """What indexing gives, item by item."""
    return [dataset[i] for i in range(min(len(dataset), most))]


@TabularDataset.case
def a_float64_table_with_int32_labels(implementation, draw):
    rows, width = draw.sizes(2)
    dataset = implementation(*table(draw, rows, width, np.float64, np.int32))
    return [len(dataset), *rows_of(dataset)]


@TabularDataset.case
def a_table_of_small_integers(implementation, draw):
    rows, width = draw.sizes(2)
    dataset = implementation(*table(draw, rows, width, np.int16, np.uint8))
    return [len(dataset), *rows_of(dataset)]


@TabularDataset.case
def a_single_column(implementation, draw):
    return rows_of(implementation(*table(draw, draw.whole(2, 5), 1, np.float64)))


@TabularDataset.case
def labels_of_many_digits(implementation, draw):
    X, y = table(draw, 3, draw.whole(2, 5))
    y = 1 + 2 * y  # odd: no float32 is near enough to the first label, no float64 to the second
    return rows_of(implementation(X, y + np.array([2**40, 2**60, 0])))


@TabularDataset.case
def the_arrays_change_later(implementation, draw):
    rows, width = draw.sizes(2)
    X, y = table(draw, rows, width)
    dataset = implementation(X, y)
    X += 100
    y += 100
    return rows_of(dataset)


@TabularDataset.case
def what_was_returned_is_changed(implementation, draw):
    rows, width = draw.sizes(2)
    dataset = implementation(*table(draw, rows, width))
    x, label = dataset[1]
    x.mul_(5)
    label.add_(5)
    return {"1. the same item again": dataset[1], "2. the one before": dataset[0]}


@TabularDataset.case
def two_datasets_side_by_side(implementation, draw):
    first, second = draw.sizes(2)
    left, right = (implementation(*table(draw, rows, 3)) for rows in (first, second))
    return {"1. left": [len(left), left[0]], "2. right": [len(right), right[0]]}


@TabularDataset.case
def arrays_that_run_backwards(implementation, draw):
    X, y = table(draw, *draw.sizes(2))
    return rows_of(implementation(X[::-1], y[::-1]))


@TabularDataset.case
def every_second_row(implementation, draw):
    rows, width = draw.sizes(2)
    X, y = table(draw, 2 * rows, width)
    return rows_of(implementation(X[1::2], y[1::2]))


@TabularDataset.case
def Fortran_order_and_read_only(implementation, draw):
    X, y = table(draw, *draw.sizes(2))
    X = np.asfortranarray(X)
    X.flags.writeable = y.flags.writeable = False
    return rows_of(implementation(X, y))


@TabularDataset.case
def a_transform_that_works_in_place(implementation, draw):
    rows, width = draw.sizes(2)
    calls = []

    def double(x):
        calls.append(tuple(x.shape))
        return x.mul_(2)

    dataset = implementation(*table(draw, rows, width), double)
    seen = {"1. calls before any access": len(calls)}
    seen["2. items"] = [dataset[1], dataset[0], dataset[1]]
    return seen | {"3. shapes it was called with": list(calls)}


@TabularDataset.case
def a_transform_that_returns_something_else(implementation, draw):
    rows, width = draw.sizes(2, 3, 7)
    calls = []

    def number_and_part(x):
        calls.append(0)
        return {"call": len(calls), "part": x[1:]}

    dataset = implementation(*table(draw, rows, width, np.float64), transform=number_and_part)
    nothing = implementation(*table(draw, rows, width), transform=lambda x: calls.append(1))
    return [dataset[0], dataset[-1], dataset[0], nothing[0], len(calls)]


@TabularDataset.case
def indices_from_both_ends_and_beyond(implementation, draw):
    rows, width = draw.sizes(2)
    dataset = implementation(*table(draw, rows, width))
    return {
        "negative": [dataset[-1], dataset[-rows]],
        "beyond": [attempt(lambda i=i: dataset[i]) for i in (rows, -rows - 1, rows + 5)],
        "items in a for loop": len(some(dataset, rows + 3)),
    }


@TabularDataset.case
def batches_of_a_DataLoader(implementation, draw):
    rows, width = draw.sizes(2, 4, 7)
    dataset = implementation(*table(draw, rows, width, np.float64, np.int32))
    generator = torch.Generator().manual_seed(draw.whole(0, 99))
    return some(DataLoader(dataset, batch_size=3, shuffle=True, generator=generator), rows)


@TabularDataset.case
def shapes_that_do_not_fit(implementation, draw):
    rows, width = draw.sizes(2)
    X, y = table(draw, rows, width)
    wrong = ((X[:, 0], y), (X[None], y[:1]), (X, y[:, None]), (X, y[:-1]), (X[:-1], y),
             (X[0], y[:1]), (X[:1], np.array(y[0])))  # fmt: skip
    return [type(attempt(implementation, *pair)).__name__ for pair in wrong]


@TabularDataset.case
def a_table_without_rows(implementation, draw):
    width = draw.whole(2, 5)
    dataset = implementation(np.empty((0, width)), np.empty(0, dtype=np.int64))
    return [len(dataset), attempt(lambda: dataset[0]), attempt(lambda: dataset[-1])]


class Parts(torch.utils.data.Dataset):
    """The dataset in parts that can be exchanged."""

    def __init__(self, X, y, transform=None):
        self.check(X, y)
        self.X, self.y, self.transform = self.features(X), self.labels(y), transform

    def check(self, X, y):
        if X.ndim != 2 or y.ndim != 1 or len(X) != len(y):
            raise ValueError("X is not (N, d) or y is not (N,)")

    def features(self, X):
        return torch.from_numpy(np.array(X, dtype=np.float32, order="C"))

    def labels(self, y):
        return torch.from_numpy(np.array(y, dtype=np.int64))

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        x = self.row(i)
        return x if self.transform is None else self.transform(x), self.label(i)

    def row(self, i):
        return self.X[i].clone()

    def label(self, i):
        return self.y[i].clone()


@TabularDataset.misconception(
    "Your dataset shares its memory with the caller's arrays. from_numpy makes no copy, and a cast "
    "to the dtype that is there already makes none either. Copy once, at construction."
)
class shares_the_callers_memory(Parts):
    def features(self, X):
        return torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))

    def labels(self, y):
        return torch.from_numpy(np.ascontiguousarray(y, dtype=np.int64))


@TabularDataset.misconception(
    "The rows share their memory with the caller's X. A cast to the dtype that is there already "
    "makes no copy. Copy X as well as y."
)
class rows_share_the_callers_memory(shares_the_callers_memory):
    def labels(self, y):
        return Parts.labels(self, y)


@TabularDataset.misconception(
    "The labels share their memory with the caller's y. A cast to the dtype that is there already "
    "makes no copy. Copy y as well as X."
)
class labels_share_the_callers_memory(shares_the_callers_memory):
    def features(self, X):
        return Parts.features(self, X)


@TabularDataset.misconception(
    "from_numpy and a cast make no copy where the dtype is right already, so your dataset shares "
    "memory with the caller; and from_numpy refuses arrays that run backwards. A NumPy copy "
    "settles both."
)
class from_numpy_and_cast(Parts):
    def features(self, X):
        return torch.from_numpy(X).float()

    def labels(self, y):
        return torch.from_numpy(y).long()


@TabularDataset.misconception(
    "The rows keep the dtype of the array. NumPy's float64 then meets float32 weights, and the "
    "first Linear raises."
)
class keeps_the_arrays_dtype(Parts):
    def features(self, X):
        return torch.from_numpy(np.array(X, order="C"))


@TabularDataset.misconception(
    "You hand out views. Indexing a tensor copies nothing, so an edit in place of a sample "
    "rewrites the data set itself."
)
class hands_out_views(Parts):
    def row(self, i):
        return self.X[i]

    def label(self, i):
        return self.y[i]


@TabularDataset.misconception(
    "The table is kept on the class, where all datasets share it: the one made last replaces the "
    "data of those before. Keep it on self."
)
class a_table_for_all_datasets(Parts):
    def __init__(self, X, y, transform=None):
        self.check(X, y)
        kind, self.transform = type(self), transform
        kind.X, kind.y = self.features(X), self.labels(y)


@TabularDataset.misconception(
    "The row is a copy, the label is not: it still looks into the stored labels."
)
class label_is_a_view(Parts):
    def label(self, i):
        return self.y[i]


@TabularDataset.misconception(
    "The transform works on the stored row itself, and the copy comes too late: a transform that "
    "works in place changes the data a little more at every access."
)
class copies_after_the_transform(Parts):
    def __getitem__(self, i):
        x = self.X[i]
        if self.transform is not None:
            x = self.transform(x)
        return x.clone() if isinstance(x, torch.Tensor) else x, self.label(i)


@TabularDataset.misconception(
    "The transform runs at construction, once for each row. Random augmentation would be frozen "
    "for the whole run; call it at every access."
)
class transform_applied_once_at_construction(Parts):
    def __init__(self, X, y, transform=None):
        super().__init__(X, y, transform)
        if transform is not None:
            self.rows = [transform(x.clone()) for x in self.X]

    def __getitem__(self, i):
        if self.transform is None:
            return super().__getitem__(i)
        x = self.rows[i]
        return x.clone() if isinstance(x, torch.Tensor) else x, self.label(i)


@TabularDataset.misconception(
    "You call the transform and drop its result. It may change its argument in place, but need "
    "not: what counts is what it returns."
)
class drops_the_result_of_the_transform(Parts):
    def __getitem__(self, i):
        x = self.row(i)
        if self.transform is not None:
            self.transform(x)
        return x, self.label(i)


@TabularDataset.misconception(
    "The labels are floating-point numbers. Losses on class indices need int64; only x is float32."
)
class float_labels(Parts):
    def labels(self, y):
        return torch.from_numpy(np.array(y, dtype=np.float32))


@TabularDataset.misconception(
    "Your labels are int64 but went through float32 on the way, as in torch.Tensor(y).long(). That "
    "rounds whole numbers above 2 to the 24th; convert the integers directly."
)
class labels_by_way_of_float32(Parts):
    def labels(self, y):
        return torch.from_numpy(np.array(y, dtype=np.float32)).long()


@TabularDataset.misconception(
    "Your labels are int64 but went through float64 on the way. That rounds whole numbers above 2 "
    "to the 53rd, such as hashes used as identifiers; convert the integers directly."
)
class labels_by_way_of_float64(Parts):
    def labels(self, y):
        return torch.from_numpy(np.array(y, dtype=np.float64)).long()


@TabularDataset.misconception(
    "Where the transform returns None you give the row instead. Whatever it returns takes the "
    "place of x; a transform that forgot its return should show at once."
)
class the_row_instead_of_None(Parts):
    def __getitem__(self, i):
        x = self.row(i)
        result = None if self.transform is None else self.transform(x)
        return x if result is None else result, self.label(i)


@TabularDataset.misconception(
    "You make the missing dimensions up, or one row into a table. Arrays of other numbers of "
    "dimensions are a mistake of the caller; raise ValueError."
)
class makes_dimensions_up(Parts):
    def __init__(self, X, y, transform=None):
        super().__init__(np.atleast_2d(X), np.atleast_1d(y), transform)


@TabularDataset.misconception(
    "With a single column your x has no dimensions: squeeze removes every dimension of size 1. "
    "The shape is (d,), whatever d is."
)
class a_single_column_squeezed(Parts):
    def row(self, i):
        return super().row(i).squeeze()


@TabularDataset.misconception(
    "ds[i] is a list in your code. The pair is asked for as a tuple, as TensorDataset gives it."
)
class lists_for_pairs(Parts):
    def __getitem__(self, i):
        return list(super().__getitem__(i))


@TabularDataset.misconception(
    "The labels keep the integer type of the array. Class indices are int64, and a batch of them "
    "should have one dtype whatever file it came from."
)
class labels_keep_their_dtype(Parts):
    def labels(self, y):
        return torch.from_numpy(np.array(y))


@TabularDataset.misconception(
    "Your label has shape (1,), and a batch of them (B, 1). Class-index losses want (B,): one "
    "number without dimensions per sample."
)
class labels_with_a_dimension(Parts):
    def label(self, i):
        return super().label(i).reshape(1)


@TabularDataset.misconception(
    "Your label is a Python number. A loader makes a batch of that too, but the contract is a "
    "tensor of dtype int64."
)
class labels_as_python_numbers(Parts):
    def label(self, i):
        return self.y[i].item()


@TabularDataset.misconception(
    "Reversed arrays end in an error: torch has no negative strides. A NumPy copy in C order comes "
    "first."
)
class fails_on_negative_strides(Parts):
    def features(self, X):
        return torch.from_numpy(X).clone().float()

    def labels(self, y):
        return torch.from_numpy(y).clone().long()


@TabularDataset.misconception(
    "You read the memory of the array instead of its elements: the layout (strides, Fortran order) "
    "is lost, and rows come out scrambled."
)
class rows_read_in_memory_order(Parts):
    def features(self, X):
        return torch.from_numpy(X.ravel(order="K").reshape(X.shape).astype(np.float32))


@TabularDataset.misconception(
    "An index beyond the end starts again at the front. Python's for loop stops at the IndexError; "
    "without one it never ends."
)
class wraps_around(Parts):
    def __getitem__(self, i):
        if not len(self):
            raise IndexError(i)
        return super().__getitem__(i % len(self))


@TabularDataset.misconception(
    "You refuse negative indices. ds[-1] is the last sample, as in any Python sequence."
)
class refuses_negative_indices(Parts):
    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return super().__getitem__(i)


@TabularDataset.misconception(
    "Tables of the wrong shape go through: the number of dimensions is not checked, so the mistake "
    "shows up later and far away. Raise ValueError."
)
class dimensions_not_checked(Parts):
    def check(self, X, y):
        if len(X) != len(y):
            raise ValueError("lengths differ")


@TabularDataset.misconception(
    "X and y of different lengths go through. Some rows then have no label, or labels have no row."
)
class lengths_not_checked(Parts):
    def check(self, X, y):
        if X.ndim != 2 or y.ndim != 1:
            raise ValueError("X is not (N, d) or y is not (N,)")


@TabularDataset.misconception(
    "A table without rows is refused. It is legal: length 0, and every index is out of range."
)
class refuses_no_rows(Parts):
    def check(self, X, y):
        super().check(X, y)
        if not len(X):
            raise ValueError("no rows")


TabularDataset.hints(
    "Copy once, at construction, and choose the dtype there. Which NumPy function always copies?",
    "Copy again for each item. What does indexing a tensor with a number give you?",
    "Which indices does a Python list of length N accept, and what does it raise for the others?",
)
