"""The answers of week 07 against plain arithmetic and loops written another way, over random models and data."""

import copy
import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.exercise import load_exercise

SEEDS = range(6)
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64, the same formula in another order


def reference(name):
    """The course's answer to an exercise, as plain function or class."""
    return load_exercise(name).reference


def regression(seed, sizes, norm=False):
    """A small model in float64 and random batches of these sizes."""
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 4), *([nn.BatchNorm1d(4)] if norm else []), nn.Tanh(), nn.Linear(4, 1)]
    batches = [(torch.randn(n, 3).double(), 2 * torch.randn(n, 1).double() + n) for n in sizes]
    return nn.Sequential(*layers).double(), batches


def assert_same(mine, theirs):
    """Parameters and buffers of both models agree."""
    for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


def descend(model, loss, lr, max_norm=math.inf):
    """One step of plain gradient descent by hand; returns the norm of the gradient."""
    params = list(model.parameters())
    grads = torch.autograd.grad(loss, params)
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    with torch.no_grad():
        for p, g in zip(params, grads, strict=True):
            p -= lr * g * min(1.0, max_norm / norm)
    return norm


def tree(depth=3):
    """A random nest of modules with random flags."""
    children = [tree(depth - 1) for _ in range(random.randint(1, 3))] if depth else []
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), *children)
    for part in module.modules():
        part.training = random.random() < 0.5
    return module


@pytest.mark.parametrize("seed", SEEDS)
def test_evaluation_mode_gives_every_flag_of_a_random_tree_back(seed):
    """By name, with recording on and off outside, and when the block raises."""
    random.seed(seed)
    model = tree()
    flags = {name: part.training for name, part in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    for recording in (True, False):
        with torch.set_grad_enabled(recording):
            with pytest.raises(KeyError), reference("evaluation_mode")(model) as inside:
                assert inside is model and not any(part.training for part in model.modules())
                assert not model(torch.randn(4, 2)).requires_grad
                raise KeyError
            assert torch.is_grad_enabled() is recording
        assert {name: part.training for name, part in model.named_modules()} == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("max_norm", [None, 0.5, 1e6])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_train_epoch_is_descent_by_hand(seed, norm, max_norm):
    """Gradients from torch.autograd.grad, the mean from every single sample."""
    model, batches = regression(seed, (5, 2, 6), norm)
    twin, per_sample = copy.deepcopy(model), []
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = reference("train_epoch")(model, iter(batches), F.mse_loss, optimizer, max_norm)
    for x, y in batches:
        errors = (twin(x) - y).square()
        per_sample += errors.flatten().tolist()
        descend(twin, errors.mean(), 0.05, max_norm or math.inf)
    assert found == pytest.approx(math.fsum(per_sample) / len(per_sample))
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # torch's clipping adds 1e-6 to the norm
    assert model.training


@pytest.mark.parametrize("sizes", [(6, 6, 1), (4, 3), (1, 7, 2), (5,)])
@pytest.mark.parametrize("seed", SEEDS)
def test_evaluate_does_not_depend_on_how_the_data_is_cut(seed, sizes):
    """One forward of everything, in eval mode, sample by sample."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4))
    model[1].running_mean.normal_()
    x, y = torch.randn(sum(sizes), 3), torch.randint(0, 4, (sum(sizes),))
    batches = zip(x.split(list(sizes)), y.split(list(sizes)), strict=True)
    state = copy.deepcopy(model.state_dict())
    loss, accuracy = reference("evaluate")(model, batches, F.cross_entropy)
    logits = copy.deepcopy(model).eval()(x).detach().double()
    losses = [float(row.logsumexp(0) - row[label]) for row, label in zip(logits, y, strict=True)]
    right = [row.tolist().index(max(row.tolist())) == label for row, label in zip(logits, y, strict=True)]
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert accuracy == pytest.approx(sum(map(bool, right)) / len(right))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_meter_agrees_with_exact_sums(seed, dtype):
    """math.fsum over the values that the losses really have."""
    torch.manual_seed(seed)
    meter = reference("LossMeter")()
    losses = (10 * torch.rand(300)).to(dtype)
    sizes = torch.randint(0, 40, (300,)).tolist()
    for loss, size in zip(losses, sizes, strict=True):
        meter.update(loss if size else loss * math.nan, size)
    total = math.fsum(float(loss) * size for loss, size in zip(losses, sizes, strict=True))
    assert meter.compute() == pytest.approx(total / sum(sizes), rel=1e-9)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("min_delta", [0.0, 0.1])
@pytest.mark.parametrize("seed", SEEDS)
def test_early_stopping_agrees_with_a_look_at_the_whole_history(seed, min_delta, mode):
    """After each call everything is found again from all metrics so far, and the model is the best one's."""
    random.seed(seed)
    torch.manual_seed(seed)
    stopper, model = reference("EarlyStopping")(3, min_delta, mode), nn.BatchNorm1d(2)
    sign, history, states = (1 if mode == "min" else -1), [], []
    for _ in range(40):
        model(torch.randn(5, 2))
        history.append(random.choice([math.nan, random.random(), random.random(), 0.5]))
        states.append(copy.deepcopy(model.state_dict()))
        stopped = stopper.step(history[-1], model)
        improvements = []
        for call, metric in enumerate(history):
            worse = improvements and not sign * metric < sign * history[improvements[-1]] - min_delta
            if not (math.isnan(metric) or worse):
                improvements.append(call)
        last = improvements[-1] if improvements else -1
        assert stopper.best_call == last
        assert stopper.best == (history[last] if improvements else None)
        assert stopper.bad_calls == len(history) - 1 - last
        assert stopped == (stopper.bad_calls >= 3)
    other = nn.BatchNorm1d(2)
    stopper.restore(other)
    assert all(torch.equal(value, states[last][name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(("sizes", "accum_steps"), [((4, 4, 4, 4), 2), ((5, 2, 6, 3), 3), ((4, 4, 2), 3), ((3, 1), 9)])
@pytest.mark.parametrize("seed", SEEDS)
def test_accumulated_steps_are_those_of_the_big_batches(seed, sizes, accum_steps):
    """Each window put together into one batch, with an optimizer that remembers."""
    model, batches = regression(seed, sizes)
    twin, expected = copy.deepcopy(model), []
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, twin))
    found = reference("accumulate_gradients")(model, iter(batches), F.mse_loss, optimizer, accum_steps)
    for start in range(0, len(batches), accum_steps):
        x, y = (torch.cat(part) for part in zip(*batches[start : start + accum_steps], strict=True))
        loss = F.mse_loss(twin(x), y)
        other.zero_grad()
        loss.backward()
        other.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected)
    assert_same(model, twin)


@pytest.mark.parametrize("share", [0.01, 0.9, 1.1, 100.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_clipped_step_is_descent_by_hand_with_a_shorter_gradient(seed, share):
    """Loss and norm from torch.autograd.grad; the factor by division."""
    model, [(x, y)] = regression(seed, (7,))
    twin = copy.deepcopy(model)
    scout = copy.deepcopy(model)
    limit = share * descend(scout, F.mse_loss(scout(x), y), 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss, norm = reference("clipped_step")(model, x, y, F.mse_loss, optimizer, limit)
    expected = F.mse_loss(twin(x), y)
    assert (loss, norm) == pytest.approx((expected.item(), descend(twin, expected, 0.05, limit)))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clipped_step_leaves_everything_where_torch_would_write_nan(bad):
    """The same batch with torch's plain clip and step ends in NaN weights."""
    model, [(x, y)] = regression(0, (5,))
    y[0] = bad
    before, twin = copy.deepcopy(model), copy.deepcopy(model)
    loss, norm = reference("clipped_step")(model, x, y, F.mse_loss, torch.optim.Adam(model.parameters()), 1.0)
    assert not math.isfinite(loss) and not math.isfinite(norm)
    assert_same(model, before)
    optimizer = torch.optim.Adam(twin.parameters())
    F.mse_loss(twin(x), y).backward()
    nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    optimizer.step()
    assert any(p.isnan().any() for p in twin.parameters())


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_overfit_one_batch_is_descent_by_hand_on_a_copy(seed, norm):
    """Until the target or the end; and the model is as it was."""
    model, [(x, y)] = regression(seed, (6,), norm)
    model.eval()
    before, twin, expected = copy.deepcopy(model), copy.deepcopy(model).train(), []

    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.05)

    while len(expected) < 30 and (not expected or expected[-1] > 0.5):
        loss = F.mse_loss(twin(x), y)
        expected.append(loss.item())
        descend(twin, loss, 0.05)
    found, losses = reference("overfit_one_batch")(model, make, x, y, F.mse_loss, 30, 0.5)
    assert losses == pytest.approx(expected)
    assert found == (expected[-1] <= 0.5)
    assert_same(model, before)
    assert not model.training and all(p.grad is None for p in model.parameters())
