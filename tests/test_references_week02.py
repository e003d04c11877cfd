"""The references of week 02 against oracles that share no code with them: torch itself, plain loops, mathematics."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_utils.exercise import load_exercise

DOUBLE = torch.float64


def reference(name):
    """The reference solution of an exercise."""
    return load_exercise(name).reference


def generator(seed):
    """A seeded source of numbers."""
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,), (2, 1, 3)])
def test_numerical_gradient_agrees_with_autograd_and_with_the_formula(shape):
    """With a small step it is autograd's gradient; with a large one a cubic's error is exactly eps squared."""
    numerical_gradient = reference("numerical_gradient")
    x = torch.randn(shape, generator=generator(1), dtype=DOUBLE)
    weight = torch.randn(shape, generator=generator(2), dtype=DOUBLE)

    def f(point):
        return (weight * point).sin().sum() * point.exp().sum()

    leaf = x.clone().requires_grad_()
    (exact,) = torch.autograd.grad(f(leaf), leaf)
    assert torch.allclose(numerical_gradient(f, x), exact, rtol=1e-7, atol=1e-8)
    assert torch.allclose(numerical_gradient(f, x.float()).double(), exact, rtol=1e-5, atol=1e-5)
    assert numerical_gradient(f, x.half()).dtype is torch.float16
    for eps in (0.1, 0.3):
        measured = numerical_gradient(lambda point: (point**3).sum(), x, eps)
        assert torch.allclose(measured, 3 * x**2 + eps**2, rtol=1e-10, atol=1e-12)
    transposed = torch.randn(3, 2, generator=generator(3), dtype=DOUBLE).T
    by_row = numerical_gradient(lambda point: (point**2).sum(), transposed)
    assert torch.allclose(by_row, 2 * transposed)


@pytest.mark.parametrize("sizes", list(itertools.product((1, 3), (1, 2), (1, 4), (1, 2))))
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_two_layer_gradients_are_those_of_autograd(sizes, dtype):
    """For every small size, and with one hidden unit at exactly 0, all four gradients are autograd's."""
    n, d, h, k = sizes
    shapes = ((n, d), (h, d), (h,), (k, h), (k,), (n, k))
    source = generator(sum(sizes))
    inputs = [torch.randn(shape, generator=source, dtype=dtype) for shape in shapes]
    inputs[1][0], inputs[2][0] = 0, 0
    results = reference("two_layer_gradients")(*inputs)
    x, target = inputs[0], inputs[5]
    w1, b1, w2, b2 = parameters = [p.clone().requires_grad_() for p in inputs[1:5]]
    loss = F.mse_loss(F.linear(F.relu(F.linear(x, w1, b1)), w2, b2), target)
    for mine, theirs in zip(results, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradient_history_is_what_backward_would_have_written():
    """Each entry equals .grad after backward on a fresh copy; every .grad survives; all memories differ."""
    source = generator(5)
    params = [torch.randn(shape, generator=source).requires_grad_() for shape in ((2, 3), (3,), ())]
    batches = [torch.randn(n, 2, generator=source) for n in (1, 4, 2)]

    def loss_fn(params, batch):
        out = (batch @ params[0] + params[1]).tanh().sum()
        return out * params[2] if len(batch) > 1 else out

    waiting = torch.randn(3, generator=source)
    params[1].grad = waiting
    kept = waiting.clone()
    losses, history = reference("gradient_history")(loss_fn, params, iter(batches))
    for batch, loss, row in zip(batches, losses, history, strict=True):
        copies = [p.detach().clone().requires_grad_() for p in params]
        own = loss_fn(copies, batch)
        own.backward()
        assert type(loss) is float
        assert loss == pytest.approx(own.item())
        for gradient, copy in zip(row, copies, strict=True):
            expected = torch.zeros_like(copy) if copy.grad is None else copy.grad
            torch.testing.assert_close(gradient, expected.detach())
            assert not gradient.requires_grad
    assert params[1].grad is waiting
    assert torch.equal(waiting, kept)
    assert params[0].grad is None
    memories = {gradient.untyped_storage().data_ptr() for row in history for gradient in row}
    assert len(memories) == 9
    assert reference("gradient_history")(loss_fn, params, []) == ([], [])


def test_gradient_history_keeps_loss_and_gradient_of_a_random_loss_together():
    """For w · r with a random r, the gradient is r and the loss w · r, so one tells the other."""
    w = torch.tensor([2.0, -3.0], requires_grad=True)
    source = generator(6)
    losses, history = reference("gradient_history")(lambda p, b: w @ torch.rand(2, generator=source), [w], range(3))
    for loss, (gradient,) in zip(losses, history, strict=True):
        assert loss == pytest.approx((w.detach() @ gradient).item())


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("same_network", [False, True])
def test_bootstrap_loss_treats_its_goal_like_numbers(rows, same_network):
    """With the goal computed row by row as Python floats, loss and gradients are the same."""
    torch.manual_seed(0)
    value_net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    target_net = value_net if same_network else nn.Linear(3, 1).double()
    states, next_states = (torch.randn(rows, 3, dtype=DOUBLE, requires_grad=True) for _ in "ab")
    rewards = torch.randn(rows, dtype=DOUBLE)
    loss = reference("bootstrap_loss")(value_net, target_net, states, next_states, rewards, 0.9)
    total = 0
    for state, next_state, reward in zip(states, next_states, rewards.tolist(), strict=True):
        goal = reward + 0.9 * target_net(next_state).item()
        total = total + (value_net(state)[0] - goal) ** 2
    inputs = [*value_net.parameters(), states]
    torch.testing.assert_close(loss, total / rows)
    found = torch.autograd.grad(loss, inputs, retain_graph=True)
    for mine, theirs in zip(found, torch.autograd.grad(total / rows, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)
    cut = [next_states, *([] if same_network else target_net.parameters())]
    assert torch.autograd.grad(loss, cut, allow_unused=True) == (None,) * len(cut)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_straight_through_sign_element_by_element(dtype):
    """Each element against `if` statements on Python numbers, and against an estimator built from clamp and detach."""
    sign = reference("StraightThroughSign").apply
    values = [0.0, -0.0, 1.0, -1.0, 1.5, -1.5, 0.3, -0.3, 1e4, -1e4, math.inf, -math.inf]
    x = torch.tensor(values, dtype=dtype, requires_grad=True)
    upstream = 5 * torch.randn(len(values), generator=generator(0), dtype=dtype)
    y = sign(x)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    assert y.tolist() == [1.0 if value >= 0 else -1.0 for value in values]
    expected = [g if abs(value) <= 1 else 0.0 for value, g in zip(values, upstream.tolist(), strict=True)]
    assert gradient.tolist() == expected
    assert y.dtype is gradient.dtype is dtype
    z = torch.randn(4, 3, generator=generator(1), dtype=dtype).T.requires_grad_()
    pretended = z.clamp(-1, 1) + (torch.where(z >= 0, 1.0, -1.0) - z.clamp(-1, 1)).detach()
    ones = torch.ones_like(z)
    torch.testing.assert_close(torch.autograd.grad(sign(z), z, ones), torch.autograd.grad(pretended, z, ones))


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 87.0), (DOUBLE, 708.0)])
def test_stable_log_sigmoid_against_logaddexp_in_double_precision(dtype, largest):
    """Relative error below 1e-6 from -1e4 to the last normal number, against NumPy's logaddexp and exp."""
    function = reference("StableLogSigmoid").apply
    x = torch.cat([torch.linspace(-1e4, -100, 50), torch.linspace(-100, largest, 300)]).to(dtype)
    x.requires_grad_()
    y = function(x)
    upstream = torch.linspace(-3, 4, len(x), dtype=dtype)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    exact = x.detach().double().numpy()
    values = -np.logaddexp(0, -exact)
    slopes = np.exp(-np.logaddexp(0, exact)) * upstream.double().numpy()
    np.testing.assert_allclose(y.detach().double().numpy(), values, rtol=1e-6)
    np.testing.assert_allclose(gradient.double().numpy(), slopes, rtol=1e-5)
    torch.testing.assert_close(y, F.logsigmoid(x))
    far = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    assert function(far).isfinite().all()
    (slope,) = torch.autograd.grad(function(far).sum(), far)
    assert slope.tolist() == [1.0, 0.0]
    at_20 = torch.tensor(20.0, requires_grad=True)
    (slope,) = torch.autograd.grad(function(at_20), at_20)
    assert slope.item() == pytest.approx(2.06e-9, rel=1e-3)
    assert torch.autograd.gradcheck(function, (torch.randn(3, 2, dtype=DOUBLE).T.requires_grad_(),))


def test_gelu_function_is_exact_gelu_twice_differentiable():
    """Values and both derivatives are those of F.gelu, and finite differences agree to second order."""
    function = reference("GeluFunction").apply
    x = torch.linspace(-6, 6, 25, dtype=DOUBLE).reshape(5, 5).T.requires_grad_()
    weight, other = torch.randn(2, 5, 5, generator=generator(0), dtype=DOUBLE)
    found = []
    for gelu in (function, F.gelu):
        y = gelu(x)
        (slope,) = torch.autograd.grad((weight * y**2).sum(), x, create_graph=True)
        found.append((y, slope, torch.autograd.grad((other * slope).sum(), x)[0]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(function(x.float()), F.gelu(x.float()))
    small = torch.randn(3, generator=generator(1), dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(function, (small,))
    assert torch.autograd.gradgradcheck(function, (small,))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("column", [False, True])
def test_gradient_penalty_row_by_row(rows, column):
    """Rows one at a time, slopes by hand for a tanh network, and the parameters' gradient by finite differences."""
    source = generator(rows)
    w1 = torch.randn(3, 2, generator=source, dtype=DOUBLE, requires_grad=True)
    w2 = torch.randn(3, generator=source, dtype=DOUBLE, requires_grad=True)
    x = torch.randn(rows, 2, generator=source, dtype=DOUBLE)

    def penalty(w1, w2):
        def f(points):
            y = torch.tanh(points @ w1.T) @ w2
            return y[:, None] if column else y

        return reference("gradient_penalty")(f, x)

    total = 0.0
    for row in x:
        slope = [0.0, 0.0]
        for unit in range(3):
            t = math.tanh(sum(w1[unit, j].item() * row[j].item() for j in range(2)))
            for j in range(2):
                slope[j] += w2[unit].item() * (1 - t * t) * w1[unit, j].item()
        total += (math.hypot(*slope) - 1) ** 2
    assert penalty(w1, w2).item() == pytest.approx(total / rows, rel=1e-12)
    assert torch.autograd.gradcheck(penalty, (w1, w2))
    zero = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    flat = reference("gradient_penalty")(lambda points: points @ zero, x)
    (slope,) = torch.autograd.grad(flat, zero)
    assert flat.item() == 1.0
    assert slope.tolist() == [0.0, 0.0]
