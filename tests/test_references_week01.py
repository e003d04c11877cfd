"""The answers of week 01 against independent ones: plain loops over elements, or torch itself."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from course_utils.exercise import load_exercise


def reference(name):
    """The course's answer to an exercise, as plain function."""
    return load_exercise(name).reference


def outcome(function, *args):
    """What a call returns, or the class of the error it raises."""
    try:
        return function(*args)
    except Exception as error:
        return type(error)


def normal(*shape, dtype=torch.float32, seed=0):
    """Normal numbers from a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_storage_index_finds_each_element_of_many_views_in_the_storage():
    """Each storage cell holds its own position, so reading an element tells where it lies."""
    cells = torch.arange(120)
    grid = cells.view(4, 5, 6)
    views = [
        grid,
        grid.permute(2, 0, 1),
        grid[1:, ::2, 3:],
        grid[:, :1].expand(4, 3, 6),
        grid[2, 3, 4],
        cells[7:],
        grid[:, 2:2],
    ]
    storage_index = reference("storage_index")
    for view in views:
        for index in itertools.product(*(range(-size, size) for size in view.shape)):
            found = storage_index(tuple(view.shape), view.stride(), view.storage_offset(), index)
            assert type(found) is int and found == view[index].item()
        for dim, size in enumerate(view.shape):
            for entry in (size, -size - 1):
                beyond = [0] * view.ndim
                beyond[dim] = entry
                with pytest.raises(IndexError):
                    storage_index(tuple(view.shape), view.stride(), view.storage_offset(), tuple(beyond))
        with pytest.raises(IndexError):
            storage_index(tuple(view.shape), view.stride(), view.storage_offset(), (0,) * (view.ndim + 1))


def test_shares_storage_agrees_with_writing_to_every_byte():
    """Fill the whole storage of one tensor with other bytes and see whether that of the other changes."""
    x = normal(4, 6)
    empty = torch.empty(0)
    tensors = [x, x[:2], x[2:], x[:, ::2], x.T, x.T[1], x.detach(), x[:1].expand(3, 6), x.view(-1)]
    tensors += [x.T.reshape(-1), x.clone(), x.contiguous(), x.T.contiguous(), x[x == x], x.double()]
    tensors += [x.view(torch.int32), x[:0], empty, empty.view(0, 3), torch.empty(2, 0), x.to("meta")]

    def bytes_change(a, b):
        if a.device != b.device or a.untyped_storage().nbytes() == 0:
            return False
        before, kept = bytes(b.untyped_storage().tolist()), a.untyped_storage().clone()
        a.untyped_storage().fill_((before[0] + 1) % 256 if before else 1)
        changed = bytes(b.untyped_storage().tolist()) != before
        a.untyped_storage().copy_(kept)
        return changed

    shares_storage = reference("shares_storage")
    on_cpu = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    for a, b in itertools.product(on_cpu, on_cpu):
        assert shares_storage(a, b) is bytes_change(a, b)
    for a in on_cpu:
        assert shares_storage(a, tensors[-1]) is False
        assert shares_storage(tensors[-1], a) is False


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 1), (4, 4, 3), (2, 5, 3, 6), (0, 2, 3, 3), (1, 2, 4, 3), (3, 2, 2, 1)])
def test_hwc_to_chw_moves_each_pixel(shape, dtype):
    """Element by element, on the plain and on a strided input."""
    base = (normal(*shape) * 40 + 100).clamp(0, 255).to(dtype)
    for images in (base, base.transpose(-2, -3).contiguous().transpose(-2, -3)):
        result = reference("hwc_to_chw")(images)
        *batch, height, width, channels = shape
        assert result.shape == (*batch, channels, height, width) and result.is_contiguous()
        assert result.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
        for index in itertools.product(*map(range, shape)):
            *image, i, j, c = index
            value = images[index].item()
            expected = value / 255 if dtype == torch.uint8 else value
            assert result[(*image, c, i, j)].item() == pytest.approx(expected)
    for wrong in (normal(3, 4), normal(1, 2, 3, 4, 5), normal(3)):
        with pytest.raises(ValueError):
            reference("hwc_to_chw")(wrong)


def test_broadcast_shape_agrees_with_torch_on_all_small_shapes():
    """Every pair of shapes of up to three dimensions with sizes 0 to 3, about 7000 pairs."""
    shapes = [shape for rank in range(4) for shape in itertools.product(range(4), repeat=rank)]

    def by_torch(a, b):
        try:
            return tuple((torch.empty(a, device="meta") + torch.empty(b, device="meta")).shape)
        except RuntimeError:
            return ValueError

    for a, b in itertools.product(shapes, shapes):
        assert outcome(reference("broadcast_shape"), a, b) == by_torch(a, b), (a, b)


@pytest.mark.parametrize("shape", [(4, 4), (2, 5), (7,), (3, 2, 4), (3, 1), (0, 4), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-5, 0.7])
def test_standardize_rows_agrees_with_layer_norm(shape, dtype, eps):
    """layer_norm without weights does the same; its gradient too."""
    x = (normal(*shape, dtype=dtype) * 0.02 + 1).requires_grad_()
    mine = reference("standardize_rows")(x, eps)
    theirs = F.layer_norm(x, shape[-1:], eps=eps)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    upstream = normal(*shape, dtype=dtype, seed=1)
    grads = [torch.autograd.grad(result, x, upstream)[0] for result in (mine, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


def test_standardize_rows_stays_accurate_around_1000():
    """Against float64, for float32 rows that vary by about 1."""
    x = normal(50, 7) + 1000
    exact = F.layer_norm(x.double(), (7,))
    torch.testing.assert_close(reference("standardize_rows")(x).double(), exact, rtol=1e-3, atol=1e-3)


def test_pairwise_sq_distances_stays_accurate_around_a_million_in_float64():
    """Against Python's exact fractions."""
    x, y = (normal(4, 3, dtype=torch.float64, seed=seed) + 1e6 for seed in (0, 1))
    result = reference("pairwise_sq_distances")(x, y)
    for i, j in itertools.product(range(4), range(4)):
        exact = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(x[i].tolist(), y[j].tolist(), strict=True))
        assert result[i, j].item() == pytest.approx(float(exact), rel=1e-6)


def test_standardize_rows_computes_integers_in_float32():
    """Row by row with Python's own arithmetic."""
    table = [[3, -1, 8], [5, 5, 5], [0, 100, -7]]
    result = reference("standardize_rows")(torch.tensor(table))
    assert result.dtype == torch.float32
    for row, mine in zip(table, result.tolist(), strict=True):
        mean = sum(row) / 3
        var = sum((value - mean) ** 2 for value in row) / 3
        assert mine == pytest.approx([(value - mean) / math.sqrt(var + 1e-5) for value in row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (3, 3), (4, 1), (0, 2), (1, 4), (6, 7)])
def test_pick_per_row_picks_as_a_loop_does(rows, columns, dtype, index_dtype):
    """Values and gradients, with rows that are skipped and hold NaN or inf."""
    scores = normal(columns, rows, dtype=dtype).T
    index = torch.arange(rows).mul(2).remainder(columns + 1).sub(1).to(index_dtype)
    for row in range(rows):
        if index[row] == -1:
            scores[row] = (torch.nan, torch.inf, -torch.inf)[row % 3]
    scores.requires_grad_()
    before, upstream = index.clone(), normal(rows, dtype=dtype, seed=1)
    result = reference("pick_per_row")(scores, index, 2.5)
    gradient = torch.autograd.grad(result, scores, upstream)[0]
    assert result.dtype == dtype and result.shape == (rows,) and torch.equal(index, before)
    for row in range(rows):
        column = index[row].item()
        assert result[row].item() == (2.5 if column == -1 else scores[row, column].item())
        expected = [upstream[row].item() if k == column else 0.0 for k in range(columns)]
        assert gradient[row].tolist() == expected


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.float32, torch.float64)])
@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("sizes", [(3, 4, 2), (3, 3, 5), (1, 2, 1), (0, 2, 3), (2, 0, 3), (2, 3, 0)])
def test_pairwise_sq_distances_adds_up_each_pair(sizes, offset, dtypes):
    """Every pair in Python's double precision, and the gradients by formula."""
    n, m, d = sizes
    x = (normal(n, d, dtype=dtypes[0]) + offset).requires_grad_()
    y = (normal(m, d, dtype=dtypes[1], seed=1) + offset).requires_grad_()
    result = reference("pairwise_sq_distances")(x, y)
    upstream = normal(n, m, dtype=dtypes[1], seed=2)
    grads = torch.autograd.grad(result, (x, y), upstream)
    assert result.shape == (n, m) and result.dtype == torch.promote_types(*dtypes)
    xs, ys, up = x.tolist(), y.tolist(), upstream.tolist()
    for i, j in itertools.product(range(n), range(m)):
        expected = sum((a - b) ** 2 for a, b in zip(xs[i], ys[j], strict=True))
        assert result[i, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)
    for i, k in itertools.product(range(n), range(d)):
        expected = sum(2 * up[i][j] * (xs[i][k] - ys[j][k]) for j in range(m))
        assert grads[0][i, k].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    for j, k in itertools.product(range(m), range(d)):
        expected = sum(2 * up[i][j] * (ys[j][k] - xs[i][k]) for i in range(n))
        assert grads[1][j, k].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_pairwise_sq_distances_refuses_columns_that_do_not_match():
    """Also one column, which broadcasting would stretch."""
    for d, e in ((2, 3), (1, 3), (3, 1), (0, 1)):
        with pytest.raises(ValueError):
            reference("pairwise_sq_distances")(normal(4, d), normal(5, e))


def test_sliding_windows_agrees_with_unfold_on_many_views():
    """unfold makes the same view: same values, strides, offset and storage, and refuses the same sizes."""
    base = normal(4, 5, 12, dtype=torch.float64)
    views = [base, base[1, 2], base[:, 1:, 3::2], base.permute(2, 0, 1), base.mT[2], base[:, :0]]
    views += [base[:, :, :1].expand(4, 5, 6), base.view(-1)[7:20:3]]
    for x in views:
        length = x.shape[-1]
        for size, step in itertools.product(range(-1, length + 2), range(-1, length + 2)):
            mine = outcome(reference("sliding_windows"), x, size, step)
            if not 1 <= size <= length or step < 1:
                assert mine is ValueError
                continue
            theirs = x.unfold(-1, size, step)
            assert mine.shape == theirs.shape and torch.equal(mine, theirs)
            assert mine.stride() == theirs.stride()
            assert mine.storage_offset() == theirs.storage_offset()
            assert mine.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
