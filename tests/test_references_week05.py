"""The answers of week 05 against torch's own optimizers, schedulers and clipping, over random models."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.exercise import load_exercise

SEEDS = range(6)
EXACT = {"rtol": 1e-12, "atol": 1e-14}  # float64, the same formula in another order


def reference(name):
    """The course's answer to an exercise, as plain function."""
    return load_exercise(name).reference


def random_model(seed):
    """A small network of random shape in float64, of which some heads take part only now and then."""
    torch.manual_seed(seed)
    width, hidden = (int(n) for n in torch.randint(2, 7, (2,)))
    trunk = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.LayerNorm(hidden))
    heads = nn.ModuleList(nn.Linear(hidden, 2) for _ in range(3))
    model = nn.ModuleDict({"trunk": trunk, "heads": heads}).double()
    model["trunk"][0].bias.requires_grad_(False)  # never gets a gradient
    return model, width


def twins(seed, steps=12):
    """Two equal models, and a generator that yields after each backward through the same batch.

    Head 0 always takes part, head 1 in every third step, head 2 never. After 8 steps the loss is
    multiplied by 0, so that gradients of zero occur as well.
    """
    mine, width = random_model(seed)
    theirs = copy.deepcopy(mine)

    def backward():
        for step in range(steps):
            x = torch.randn(5, width, dtype=torch.float64)
            for model in (mine, theirs):
                model.zero_grad()
                hidden = model["trunk"](x)
                heads = [0, 1] if step % 3 == 2 else [0]
                loss = sum(model["heads"][i](hidden).square().mean() for i in heads)
                (loss * (0.0 if 8 <= step < 10 else 3.0)).backward()
            yield step

    return mine, theirs, backward()


def assert_same(mine, theirs, step):
    """The parameters of both models agree."""
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, **EXACT, msg=lambda m, n=name: f"step {step}, {n}: {m}")


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.7, True)])
@pytest.mark.parametrize("seed", SEEDS)
def test_sgd_momentum_step_tracks_torch_through_a_change_of_rate(seed, momentum, nesterov, weight_decay):
    """Step for step, parameters and velocities, with parameters that are absent or never there."""
    mine, theirs, backward = twins(seed)
    params = list(mine.parameters())
    velocities = [None] * len(params)
    optimizer = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    sgd_momentum_step = reference("sgd_momentum_step")
    for step in backward:
        lr = optimizer.param_groups[0]["lr"] = 0.1 if step < 5 else 0.02
        grads = [p.grad for p in params]
        sgd_momentum_step(params, grads, velocities, lr, momentum, weight_decay, nesterov)
        optimizer.step()
        assert_same(mine, theirs, step)
        for velocity, p in zip(velocities, theirs.parameters(), strict=True):
            buffer = optimizer.state[p].get("momentum_buffer") if p in optimizer.state else None
            if momentum:
                assert (velocity is None) == (buffer is None)
            if buffer is not None:
                torch.testing.assert_close(velocity, buffer, **EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_dampening_of_torch_is_what_the_misconception_says_it_is(seed):
    """`dampens_after_the_first_step` tracks torch with dampening = momentum; the reference does not."""
    mine, theirs, backward = twins(seed)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, dampening=0.9)
    bank = {m.name: m.implementation for m in load_exercise("sgd_momentum_step").misconceptions}
    params = list(mine.parameters())
    velocities = [None] * len(params)
    for step in backward:
        bank["dampens_after_the_first_step"](params, [p.grad for p in params], velocities, 0.1, 0.9)
        optimizer.step()
        assert_same(mine, theirs, step)


@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.9), 1e-2)])
@pytest.mark.parametrize("seed", SEEDS)
def test_adam_step_tracks_torch_down_to_gradients_near_eps(seed, betas, eps):
    """Step for step, parameters, averages and counters."""
    mine, theirs, backward = twins(seed)
    states = {p: {} for p in mine.parameters()}
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.05, betas=betas, eps=eps)
    for step in backward:
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            if p.grad is not None:
                p.grad *= 10.0**-step
                q.grad *= 10.0**-step
                reference("adam_step")(p, p.grad, states[p], 0.05, betas, eps)
        optimizer.step()
        assert_same(mine, theirs, step)
    compare_states(states.values(), optimizer, theirs)


def compare_states(states, optimizer, model):
    """Own states against those of torch's optimizer; {} where it has none."""
    for state, p in zip(states, model.parameters(), strict=True):
        if p not in optimizer.state:
            assert state == {}
            continue
        theirs = optimizer.state[p]
        assert state["step"] == int(theirs["step"])
        torch.testing.assert_close(state["m"], theirs["exp_avg"], **EXACT)
        torch.testing.assert_close(state["v"], theirs["exp_avg_sq"], **EXACT)


def test_adam_step_starts_with_steps_of_length_lr():
    """Whatever the scale of the gradient, as long as it is far above eps."""
    for scale in (1e-4, 1.0, 1e4):
        param = torch.zeros(3, dtype=torch.float64)
        grad = scale * torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        reference("adam_step")(param, grad, {}, lr=0.01)
        torch.testing.assert_close(param, -0.01 * grad.sign(), rtol=2e-4, atol=0.0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.9), 1e-2)])
@pytest.mark.parametrize("seed", SEEDS)
def test_adamw_step_tracks_torch(seed, betas, eps, weight_decay):
    """Step for step, with a parameter that never has a gradient and one that rarely has."""
    mine, theirs, backward = twins(seed)
    params = list(mine.parameters())
    states = [{} for _ in params]
    settings = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.05, **settings)
    for step in backward:
        reference("adamw_step")(params, [p.grad for p in params], states, 0.05, **settings)
        optimizer.step()
        assert_same(mine, theirs, step)
    compare_states(states, optimizer, theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_adamw_step_with_several_groups_tracks_torch(seed):
    """The groups of decay_parameter_groups with rates of their own, against one torch optimizer."""
    mine, theirs, backward = twins(seed)
    groups = [reference("decay_parameter_groups")(model, 0.4) for model in (mine, theirs)]
    for group_of_mine, group_of_theirs, lr in zip(*groups, (0.02, 0.1), strict=True):
        group_of_mine["lr"] = group_of_theirs["lr"] = lr
    optimizer = torch.optim.AdamW(groups[1])
    states = {p: {} for p in mine.parameters()}
    for step in backward:
        for group in groups[0]:
            params = group["params"]
            grads = [p.grad for p in params]
            settings = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
            reference("adamw_step")(params, grads, [states[p] for p in params], **settings)
        optimizer.step()
        assert_same(mine, theirs, step)


def test_adamw_step_equals_adam_step_after_shrinking():
    """Decay and update are two separate things."""
    torch.manual_seed(0)
    a, state_a, state_b = torch.randn(4, dtype=torch.float64), {}, {}
    b = a.clone()
    for _ in range(5):
        grad = torch.randn(4, dtype=torch.float64)
        reference("adamw_step")([a], [grad], [state_a], lr=0.1, weight_decay=0.3)
        b.mul_(1 - 0.1 * 0.3)
        reference("adam_step")(b, grad, state_b, lr=0.1)
        torch.testing.assert_close(a, b, **EXACT)


def test_decay_parameter_groups_of_a_transformer_layer_by_the_owner_of_each_name():
    """Another road: the owner of every name, looked up one by one."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    extras = [nn.BatchNorm2d(3), nn.InstanceNorm1d(2, affine=True), nn.GroupNorm(2, 4), nn.RMSNorm((2, 3))]
    model = nn.Sequential(layer, *extras, nn.Conv2d(1, 2, 3), nn.Embedding(3, 4))
    model[0].linear1.weight.requires_grad_(False)
    decays, stays = reference("decay_parameter_groups")(model, 0.1)
    assert (decays["weight_decay"], stays["weight_decay"]) == (0.1, 0.0)
    found = {id(p): "decays" for p in decays["params"]} | {id(p): "stays" for p in stays["params"]}
    assert len(found) == len(decays["params"]) + len(stays["params"])
    for name, p in model.named_parameters():
        owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
        expected = "stays" if "Norm" in owner or p.ndim < 2 else "decays"
        assert found.get(id(p)) == (expected if p.requires_grad else None), name


def test_decay_parameter_groups_spares_what_a_subclass_inherits_but_not_what_is_inside():
    """A LayerNorm by inheritance is spared with its direct parameters, and its inner Linear decays."""

    class Gated(nn.LayerNorm):
        def __init__(self):
            super().__init__((2, 3))
            self.gate = nn.Linear(2, 3)

    model = nn.Sequential(Gated())
    decays, stays = reference("decay_parameter_groups")(model, 0.1)
    assert [id(p) for p in decays["params"]] == [id(model[0].gate.weight)]
    assert len(stays["params"]) == 3


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (1, 8), (4, 20), (9, 10)])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_warmup_cosine_agrees_with_schedulers_in_sequence(warmup, total, floor):
    """LinearLR from 1/warmup, then CosineAnnealingLR, chained by SequentialLR."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=floor)
    scheduler = cosine
    if warmup > 1:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=floor)
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [up, cosine], [warmup])
    rates = []
    for _ in range(total if warmup != 1 else total - 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rates = [1.0, *rates] if warmup == 1 else rates
    found = [reference("warmup_cosine")(step, warmup, total, floor) for step in range(total)]
    assert found == pytest.approx(rates, abs=1e-9)
    assert reference("warmup_cosine")(total, warmup, total, floor) == pytest.approx(floor)


@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("seed", SEEDS)
def test_clip_gradients_agrees_with_torch(seed, max_norm):
    """Norms and gradients on random models, from a list and from a generator."""
    mine, theirs, backward = twins(seed, steps=3)
    for step in backward:
        found = reference("clip_gradients")(mine.parameters(), max_norm)
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        torch.testing.assert_close(found, expected, **EXACT)
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), step
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, **EXACT)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 3e38])
def test_clip_gradients_refuses_where_torch_does_when_asked(bad):
    """And leaves the gradients alone."""
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1.0, bad, bad])
    with pytest.raises(RuntimeError):
        nn.utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
    before = p.grad.clone()
    with pytest.raises(RuntimeError):
        reference("clip_gradients")([p], 1.0)
    torch.testing.assert_close(p.grad, before, equal_nan=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_train_steps_is_what_the_week_s_own_parts_do(seed):
    """Clipping, SGD with momentum and a schedule by hand, against the loop with torch's parts."""
    torch.manual_seed(seed)
    theirs = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).double()
    mine = copy.deepcopy(theirs)
    batches = [(torch.randn(6, 3).double(), 3 * torch.randn(6, 1).double()) for _ in range(6)]
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.2, momentum=0.8)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: reference("warmup_cosine")(step, 2, 6))
    theirs.eval()
    losses, norms, lrs = reference("train_steps")(theirs, optimizer, batches, F.mse_loss, 0.7, scheduler)
    params = list(mine.parameters())
    velocities = [None] * len(params)
    for step, (x, y) in enumerate(batches):
        loss = F.mse_loss(mine(x), y)
        grads = torch.autograd.grad(loss, params)
        length = math.sqrt(sum(float((grad * grad).sum()) for grad in grads))
        lr = 0.2 * reference("warmup_cosine")(step, 2, 6)
        clipped = [grad * min(1.0, 0.7 / (length + 1e-6)) for grad in grads]
        reference("sgd_momentum_step")(params, clipped, velocities, lr, 0.8)
        assert (losses[step], norms[step], lrs[step]) == pytest.approx((loss.item(), length, lr))
    for a, b in zip(params, theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert theirs.training


@pytest.mark.parametrize("seed", SEEDS)
def test_lr_range_test_is_plain_SGD_on_a_copy(seed):
    """A deep copy trained by torch.optim.SGD gives the rates, the losses and the stop."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
    batches = [(torch.randn(7, 3).double(), torch.randn(7, 1).double()) for _ in range(4)]
    before = copy.deepcopy(model.state_dict())
    probe = copy.deepcopy(model)
    optimizer = torch.optim.SGD(probe.parameters(), lr=1.0)
    rates = torch.logspace(-4, 2, 40, dtype=torch.float64).tolist()
    expected = []
    for k, rate in enumerate(rates):
        x, y = batches[k % 4]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = F.mse_loss(probe(x), y)
        expected.append(loss.item())
        if not math.isfinite(expected[-1]) or expected[-1] > 4 * min(expected):
            break
        loss.backward()
        optimizer.step()
    model.eval()
    lrs, losses = reference("lr_range_test")(model, F.mse_loss, batches, 1e-4, 100.0, 40)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert lrs == pytest.approx(rates[: len(expected)])
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
