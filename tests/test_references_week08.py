"""The answers of week 08 against torch's own scaler, normalization, nextafter, and plain loops."""

import copy
import itertools
import math
import struct
from collections import OrderedDict, namedtuple
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from course_utils.exercise import load_exercise

SEEDS = range(6)
FORMATS = (torch.float16, torch.bfloat16, torch.float32)

each_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)


def reference(name):
    """The course's answer to an exercise, as plain function or class."""
    return load_exercise(name).reference


# --- representable_gap ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_representable_gap_is_the_distance_for_all_numbers_of_16_bits(dtype):
    """Every bit pattern of the format, against the difference of neighbors in the order of the bits."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    bits = x.abs().view(torch.int16)
    largest = torch.tensor(torch.finfo(dtype).max, dtype=dtype).view(torch.int16)
    up = torch.where(bits < largest, bits + 1, bits).view(dtype).double()
    down = torch.where(bits < largest, bits, largest - 1).view(dtype).double()
    expected = torch.where(x.isfinite(), up - down, math.nan).to(dtype)
    torch.testing.assert_close(reference("representable_gap")(x), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_representable_gap_is_that_of_nextafter_for_random_float32_bits(seed):
    """Bit patterns at random, so that all exponents occur."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-(2**31), 2**31 - 1, (20_000,), generator=generator).to(torch.int32).view(torch.float32)
    x = x[x.abs() < torch.finfo(torch.float32).max]
    expected = torch.nextafter(x.abs(), torch.tensor(math.inf)) - x.abs()
    torch.testing.assert_close(reference("representable_gap")(x), expected, rtol=0, atol=0)


# --- cast_losses ------------------------------------------------------------------------------------------------------


def rounded_to_float16(value):
    """The nearest float16 in exact arithmetic, by Python's struct and fractions; inf beyond the range."""
    if abs(Fraction(value)) >= 65520:
        return math.copysign(math.inf, value)
    return struct.unpack("e", struct.pack("e", value))[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_cast_losses_agree_with_a_loop_over_exact_float16_numbers(seed):
    """Magnitudes over thirty decades, zeros, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(seed)
    t = 10 ** (30 * torch.rand(400, generator=generator, dtype=torch.float64) - 20)
    t = (t * torch.randn(400, generator=generator).sign()).float()
    t[::17], t[5::90], t[7::90] = 0, math.inf, math.nan
    finite = [value for value in t.tolist() if math.isfinite(value)]
    nonzero = [value for value in finite if value]
    underflow = sum(rounded_to_float16(value) == 0 for value in nonzero) / len(nonzero)
    overflow = sum(math.isinf(rounded_to_float16(value)) for value in finite) / len(finite)
    assert 0.1 < underflow < 0.9 and overflow > 0.05
    assert reference("cast_losses")(t, torch.float16) == (underflow, overflow)


def test_the_borders_of_float16_are_where_the_week_says():
    """2**-25 and below become 0, 65520 and above become inf; both neighbors survive."""
    losses = reference("cast_losses")
    below, above = torch.tensor([2.0**-25]), torch.tensor([65520.0])
    assert losses(below, torch.float16) == (1.0, 0.0)
    assert losses(torch.nextafter(below, torch.ones(1)), torch.float16) == (0.0, 0.0)
    assert losses(above, torch.float16) == (0.0, 1.0)
    assert losses(torch.nextafter(above, torch.ones(1)), torch.float16) == (0.0, 0.0)


# --- move_to_device ---------------------------------------------------------------------------------------------------

Point = namedtuple("Point", ["x", "y"])


def test_move_to_device_moves_every_tensor_of_a_random_tree():
    """A flat list of all leaves, found by a loop of its own, is on the device, in the same order."""
    generator = torch.Generator().manual_seed(0)

    def grow(depth):
        kind = int(torch.randint(0, 7 if depth else 3, (1,), generator=generator))
        items = [grow(depth - 1) for _ in range(kind > 2 and 2)]
        leaves = [torch.zeros(2), "text", 3]
        made = [*leaves, items, tuple(items), {"b": items, "a": 1}, Point(*items or (0, 0))]
        return made[kind]

    def leaves(tree):
        if isinstance(tree, dict):
            return [leaf for item in tree.items() for leaf in leaves(list(item))]
        return [x for item in tree for x in leaves(item)] if isinstance(tree, (list, tuple)) else [tree]

    for tree in [grow(5) for _ in range(60)]:
        before, after = leaves(tree), leaves(reference("move_to_device")(tree, "meta"))
        assert [isinstance(leaf, torch.Tensor) for leaf in before] == [isinstance(x, torch.Tensor) for x in after]
        for mine, moved in zip(before, after, strict=True):
            if isinstance(mine, torch.Tensor):
                assert moved.device.type == "meta" and mine.device.type == "cpu"
            else:
                assert mine is moved


def test_move_to_device_keeps_a_packed_sequence_usable():
    """Unpacking it afterwards gives the same rows: its batch sizes stay where they belong."""
    packed = pack_sequence([torch.randn(3, 2), torch.randn(2, 2)])
    moved = reference("move_to_device")({"rows": packed}, "cpu")["rows"]
    for mine, theirs in zip(pad_packed_sequence(moved), pad_packed_sequence(packed), strict=True):
        assert torch.equal(mine, theirs)
    assert reference("move_to_device")(OrderedDict(a=packed), "meta")["a"].data.is_meta


# --- Float32Region ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", FORMATS, ids=str)
def test_Float32Region_equals_the_same_module_without_autocast(cast, given):
    """Output and gradients, to the last bit, of an inner that autocast would change."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    plain = copy.deepcopy(inner)
    x = (5 * torch.randn(4, 6)).to(given)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=cast):
        inside = reference("Float32Region")(inner)(mine)
        changed = inner(mine)
    right = plain(theirs.float())
    assert changed.dtype is cast and not torch.equal(changed.float(), right)
    assert torch.equal(inside, right)
    inside.square().sum().backward()
    right.square().sum().backward()
    assert torch.equal(mine.grad, theirs.grad)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(inner.parameters(), plain.parameters(), strict=True))


# --- safe_normalize ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FORMATS, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 300.0, 3e-4, 1e-6, 0.0])
def test_safe_normalize_agrees_with_exact_arithmetic(dtype, scale):
    """Each row against a loop over Python numbers, within one spacing of the format."""
    torch.manual_seed(0)
    x = (scale * torch.randn(3, 5)).to(dtype)
    result = reference("safe_normalize")(x)
    for row, mine in zip(x.tolist(), result.tolist(), strict=True):
        norm = max(math.sqrt(math.fsum(value * value for value in row)), 1e-8)
        expected = torch.tensor([value / norm for value in row], dtype=torch.float64).to(dtype)
        spacing = {torch.float64: 1e-12}.get(dtype, torch.finfo(dtype).eps)
        torch.testing.assert_close(torch.tensor(mine, dtype=dtype), expected, rtol=4 * spacing, atol=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_safe_normalize_has_the_gradient_of_finite_differences_and_of_torch(seed):
    """gradcheck in float64, and F.normalize on rows of any length, zero included."""
    torch.manual_seed(seed)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for dim, eps in ((0, 1e-8), (1, 0.5), (-1, 50.0)):
        assert torch.autograd.gradcheck(lambda t: reference("safe_normalize")(t, dim, eps), (x,))  # noqa: B023
    rows = (torch.randn(5, 4) * torch.tensor([[300.0], [1.0], [1e-3], [0.0], [1e-9]])).requires_grad_()
    upstream = 1e-6 * torch.randn(5, 4)
    mine, theirs = (
        torch.autograd.grad(f(rows), rows, upstream)[0]
        for f in (reference("safe_normalize"), lambda t: F.normalize(t, dim=-1, eps=1e-8))
    )
    assert mine.isfinite().all()
    torch.testing.assert_close(mine, theirs)


# --- DynamicLossScaler ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("by_hand", [False, True])
def test_DynamicLossScaler_tracks_torchs_own_scaler(seed, by_hand):
    """Scale, tracker, parameters and momentum over thirty random iterations, a third of them overflows."""
    torch.manual_seed(seed)
    settings = {"init_scale": 4096.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 3}
    mine, theirs = reference("DynamicLossScaler")(**settings), torch.amp.GradScaler("cpu", **settings)
    params = [torch.randn(3) for _ in range(3)]
    pairs = [[p.clone().requires_grad_() for p in params] for _ in range(2)]
    optimizers = [torch.optim.SGD([{"params": p[:1]}, {"params": p[1:]}], lr=0.1, momentum=0.9) for p in pairs]
    for _ in range(30):
        kind = float(torch.randint(0, 3, ()))
        factors = torch.randn(3, 3)
        if kind == 0:
            factors[int(torch.randint(0, 3, ())), 1] = [math.inf, math.nan][int(torch.randint(0, 2, ()))]
        stepped = None
        for scaler, own, optimizer in zip((mine, theirs), pairs, optimizers, strict=True):
            optimizer.zero_grad()
            loss = sum((p * f).sum() for p, f in zip(own, factors, strict=True))
            scaler.scale(loss).backward()
            if by_hand:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(own, 1.0)
            result = scaler.step(optimizer)
            stepped = result if scaler is mine else stepped
            scaler.update()
        assert stepped is (kind != 0)
        assert mine.current_scale == theirs.get_scale()
        assert mine.growth_tracker == theirs.state_dict()["_growth_tracker"]
        for a, b in zip(*pairs, strict=True):
            assert torch.equal(a, b)
    for a, b in zip(*pairs, strict=True):
        assert torch.equal(optimizers[0].state[a]["momentum_buffer"], optimizers[1].state[b]["momentum_buffer"])


# --- amp_train_step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 2.0**12)])
@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_amp_train_step_is_close_to_a_step_in_float32(dtype, scale, max_norm):
    """Loss, norm and parameters of three steps against plain training without autocast and scaler."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    plain = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
    for _ in range(3):
        x, y = torch.randn(16, 5), 3 * torch.randn(16, 1)
        loss, norm = reference("amp_train_step")(model, x, y, F.mse_loss, optimizers[0], scaler, dtype, max_norm)
        optimizers[1].zero_grad()
        right = F.mse_loss(plain(x), y)
        right.backward()
        assert norm == pytest.approx(nn.utils.clip_grad_norm_(plain.parameters(), max_norm).item(), rel=0.03)
        assert loss == pytest.approx(right.item(), rel=0.02)
        optimizers[1].step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert a.dtype is torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_amp_train_step_recovers_from_a_scale_that_is_far_too_large():
    """Steps are skipped until the scale fits; then the loss falls."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    scales, losses = [], []
    for _ in range(40):
        scales.append(scaler.get_scale())
        arguments = (model, x, y, F.mse_loss, optimizer, scaler, torch.float16, 1.0)
        losses.append(reference("amp_train_step")(*arguments)[0])
    skipped = sum(a > b for a, b in itertools.pairwise(scales))
    assert skipped > 5 and scales[-1] == 2.0 ** (30 - skipped)
    assert len(set(losses[: skipped + 1])) == 1 and losses[-1] < 0.9 * losses[0]
    assert not torch.equal(start["weight"], model.weight)


# --- state_bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "factor"), [
    (lambda p: torch.optim.SGD(p, lr=0.1), 0),
    (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
    (lambda p: torch.optim.AdamW(p), 2),
    (lambda p: torch.optim.Adam(p, amsgrad=True), 3),
])  # fmt: skip
def test_state_bytes_agrees_with_arithmetic_before_and_after_each_call(make, factor):
    """16 bytes for each parameter under Adam, and 4 for each counter; nothing before the first step."""
    model = nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.Linear(40, 5))
    weights = 4 * (30 * 40 + 40 + 40 + 40 + 40 * 5 + 5)
    buffers = 4 * 80 + 8
    optimizer = make(model.parameters())
    count = reference("state_bytes")
    nothing = {"params": weights, "buffers": buffers, "grads": 0, "optimizer": 0}
    assert count(model, optimizer) == nothing
    model(torch.randn(4, 30)).sum().backward()
    assert count(model, optimizer) == nothing | {"grads": weights}
    optimizer.step()
    state = factor * weights + (6 * 4 if factor > 1 else 0)
    assert count(model, optimizer) == nothing | {"grads": weights, "optimizer": state}
    optimizer.zero_grad()
    assert count(model, optimizer) == nothing | {"optimizer": state}


def test_state_bytes_agrees_with_the_storages():
    """Distinct storages, each counted once, hold exactly these bytes."""
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11))
    model[1].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([1, 2, 3])).sum().backward()
    optimizer.step()
    found = reference("state_bytes")(model, optimizer)

    def stored(tensors):
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    assert found["params"] == stored(model.state_dict().values())
    assert found["grads"] == stored(p.grad for p in model.parameters())
    assert found["optimizer"] == stored(value for state in optimizer.state.values() for value in state.values())
