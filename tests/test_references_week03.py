"""The references of week 03 against independent oracles: torch's own layers, or plain loops."""

import copy
import math

import pytest
import torch
from torch import nn

from course_utils.exercise import load_exercise

SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_layer_mlp_is_the_chain_of_torch_layers(seed):
    """The same layers in an nn.Sequential, with the same dropout mask, give the same output and gradients."""
    torch.manual_seed(seed)
    model = load_exercise("TwoLayerMLP")(5, 7, 3, 0.4)
    model.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})
    chain = nn.Sequential(model.fc1, nn.ReLU(), nn.Dropout(0.4), model.fc2)
    x = torch.randn(2, 4, 5)
    for training in (True, False):
        model.train(training)
        chain.train(training)
        torch.manual_seed(seed + 1)
        output = model(x)
        torch.manual_seed(seed + 1)
        expected = chain(x) * model.scale + model.shift
        torch.testing.assert_close(output, expected)
        mine = torch.autograd.grad(output.square().sum(), list(model.parameters()))
        theirs = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)])
def test_gated_linear_unit_is_torch_glu_after_the_projection(shape):
    """nn.GLU on the projection's output, for any number of leading dimensions."""
    torch.manual_seed(0)
    unit = load_exercise("GatedLinearUnit")(5, 3)
    x = torch.randn(shape)
    torch.testing.assert_close(unit(x), nn.GLU()(unit.proj(x)))


def test_parameter_report_counts_what_a_walk_over_the_tree_finds():
    """A recursive walk over the drawers of each module, remembering what was met."""
    report = load_exercise("parameter_report")
    shared = nn.Linear(3, 3)
    model = nn.Sequential(nn.Embedding(4, 5), nn.Linear(5, 4), nn.BatchNorm1d(4), shared, shared, nn.LSTM(2, 3))
    model[1].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    model.register_buffer("mask", torch.ones(6), persistent=False)
    model.note = torch.ones(9)
    counts, met = dict.fromkeys(("total", "trainable", "frozen", "buffers"), 0), set()

    def walk(module):
        for tensor in module._parameters.values():
            if tensor is not None and id(tensor) not in met:
                met.add(id(tensor))
                counts["total"] += math.prod(tensor.shape)
                counts["trainable" if tensor.requires_grad else "frozen"] += math.prod(tensor.shape)
        for tensor in module._buffers.values():
            if tensor is not None and id(tensor) not in met:
                met.add(id(tensor))
                counts["buffers"] += math.prod(tensor.shape)
        for child in module._modules.values():
            walk(child)

    walk(model)
    assert report(model) == counts
    assert counts["total"] == counts["trainable"] + counts["frozen"]
    assert (counts["frozen"], counts["buffers"]) == (3, 4 + 4 + 1 + 6)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_residual_stack_is_a_loop_over_its_state_dict(depth):
    """Matrix products with the tensors of the state dict, one row at a time."""
    torch.manual_seed(depth)
    stack = load_exercise("ResidualStack")(3, depth)
    state = {name: torch.randn_like(value) for name, value in stack.state_dict().items()}
    stack.load_state_dict(state)
    x = torch.randn(4, 3)
    rows = []
    for row in x:
        for i in range(depth):
            pre = [
                sum(float(w) * float(v) for w, v in zip(weights, row, strict=True)) + float(bias)
                for weights, bias in zip(state[f"layers.{i}.weight"], state[f"layers.{i}.bias"], strict=True)
            ]
            row = torch.tensor(
                [float(v) + float(state[f"gains.{i}"]) * max(0, p) for v, p in zip(row, pre, strict=True)]
            )
        rows.append(row)
    torch.testing.assert_close(stack(x), torch.stack(rows), atol=1e-5, rtol=1e-4)


def test_freeze_submodules_keeps_a_part_still_through_real_training():
    """Training with momentum and weight decay changes nothing in the frozen part, and all of the rest."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
    model = nn.Sequential(encoder, nn.Linear(6, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad(set_to_none=False)
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    steps(3)
    trainable = load_exercise("freeze_submodules")(model, ["0"])
    before = copy.deepcopy(model.state_dict())
    steps(3)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert trainable == ["1.weight", "1.bias", "2.weight", "2.bias"]
    assert moved == {name for name in before if not name.startswith("0.")}


def test_capture_activations_gives_what_running_layer_by_layer_gives():
    """The layers of a chain called one after the other, the captures taken by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(4, 2), nn.Tanh()))
    x = torch.randn(5, 3)
    output, captured = load_exercise("capture_activations")(model, ["2.0", "0", "", "1"], x)
    first = nn.functional.linear(x, model[0].weight, model[0].bias)
    second = nn.functional.linear(first.clamp(min=0), model[2][0].weight, model[2][0].bias)
    expected = {"0": first, "1": first.clamp(min=0), "2.0": second, "": second.tanh()}
    assert set(captured) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(captured[name], value.detach())
        assert not captured[name].requires_grad
    torch.testing.assert_close(output, second.tanh())
    assert output.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_init_weights_keeps_the_scale_through_a_deep_relu_stack():
    """Signals of 20 ReLU layers keep their scale; torch's Kaiming initialization draws the same numbers."""
    initialize = load_exercise("init_weights_")
    model = nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(256, 256), nn.ReLU())))
    initialize(model, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    for layer in model[::2]:
        expected = nn.init.kaiming_normal_(torch.empty(256, 256), nonlinearity="relu", generator=generator)
        torch.testing.assert_close(layer.weight.detach(), expected)
        assert not layer.bias.any()
    x = torch.randn(512, 256, generator=torch.Generator().manual_seed(1))
    assert 0.2 < (model(x).square().mean() / x.square().mean()).item() < 5


def test_init_weights_counts_the_fan_in_of_a_grouped_convolution():
    """The number of inputs that one output really depends on, counted through gradients."""
    layer = nn.Conv2d(6, 63, (3, 5), groups=3)
    x = torch.randn(1, 6, 3, 5, requires_grad=True)
    layer(x)[0, 0].sum().backward()
    fan_in = int((x.grad != 0).sum())
    load_exercise("init_weights_")(layer, torch.Generator().manual_seed(0))
    assert fan_in == 2 * 3 * 5
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_running_norm_is_batch_norm_without_affine_parameters(seed):
    """nn.BatchNorm1d over five batches: outputs, input gradients, running statistics, both modes."""
    torch.manual_seed(seed)
    mine = load_exercise("RunningNorm")(4, momentum=0.3, eps=0.01)
    theirs = nn.BatchNorm1d(4, momentum=0.3, eps=0.01, affine=False)
    for rows in (2, 9, 3, 17, 5):
        x = torch.randn(rows, 4) * 3 + 1
        upstream = torch.randn(rows, 4)
        for training in (True, False):
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            ours, reference = mine.train(training)(a), theirs.train(training)(b)
            torch.testing.assert_close(ours, reference)
            (grad_a,), (grad_b,) = (
                torch.autograd.grad(out, leaf, upstream) for out, leaf in ((ours, a), (reference, b))
            )
            torch.testing.assert_close(grad_a, grad_b, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mine.running_mean, theirs.running_mean)
        torch.testing.assert_close(mine.running_var, theirs.running_var)
        assert mine.num_batches == theirs.num_batches_tracked
    with pytest.raises(ValueError):
        mine.train()(torch.ones(1, 4))
