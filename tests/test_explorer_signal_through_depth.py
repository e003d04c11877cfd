"""Signal through depth: numbers against plain torch and theory, hooks, words, picture and controls."""

import importlib
import math
from itertools import product

import pytest
import torch
from torch import nn

explorer = importlib.import_module("course_utils.explorers.signal_through_depth")
Setting, send, describe, picture = explorer.Setting, explorer.send, explorer.describe, explorer.picture
COMBINATIONS = list(product(explorer.INITIALIZATIONS, explorer.ACTIVATIONS))


@pytest.mark.parametrize(("initialization", "activation"), COMBINATIONS)
def test_the_numbers_are_those_of_a_pass_written_by_hand(initialization, activation):
    """Matrix products with the same weights, and autograd.grad for every layer's output."""
    setting = Setting(initialization, activation, depth=6, width=16, mode="eval")
    signal = send(setting)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(explorer.SEED)
        x = torch.randn(explorer.BATCH, 16, requires_grad=True)
        upstream = torch.randn(explorer.BATCH, 16)
        model = explorer.build(setting)
    function = {"relu": torch.relu, "tanh": torch.tanh, "none": lambda values: values}[activation]
    places = [x]
    for block in model:
        places.append(function(places[-1] @ block[0].weight.T))
    gradients = torch.autograd.grad(places[-1], places, upstream)
    stds = [values.detach().double().std().item() for values in places]
    assert signal.activation_std == pytest.approx(stds, rel=1e-4)
    assert signal.gradient_std == pytest.approx([g.double().std().item() for g in gradients], rel=1e-4)
    assert signal.difference == 0


def test_kaiming_keeps_relu_level_and_xavier_loses_a_root_of_two_per_layer():
    """Averages over 30 layers, forward and backward."""
    for initialization, factor in (("Kaiming normal", 1), ("Xavier uniform", math.sqrt(0.5))):
        signal = send(Setting(initialization, width=256))
        forward = explorer.factor_per_layer(signal.activation_std[1:])
        backward = explorer.factor_per_layer(signal.gradient_std[:0:-1])
        assert (forward, backward) == pytest.approx((factor, factor), rel=0.03)


def test_default_weights_are_those_of_a_linear_layer():
    """Uniform within 1 / sqrt(width), std 1 / sqrt(3 width); the biases are zero."""
    model = explorer.build(Setting("default", depth=1, width=256))
    weight = model[0][0].weight
    assert weight.abs().max().item() <= 1 / 16
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 256), rel=0.02)
    assert not model[0][0].bias.any()


def test_ones_make_one_distinct_unit():
    """All rows of each weight are equal, and so are all columns of the outputs."""
    signal = send(Setting("ones", "tanh", depth=3, width=32))
    assert signal.distinct_rows == (1, 1, 1)
    for values in signal.outputs:
        torch.testing.assert_close(values, values[:, :1].expand_as(values))
    assert send(Setting(depth=3, width=32)).distinct_rows == (32, 32, 32)


def test_dropout_makes_passes_differ_in_training_mode_only():
    """The same batch sent twice."""
    differences = {
        (mode, p): send(Setting(depth=4, width=32, mode=mode, dropout=p)).difference
        for mode, p in product(explorer.MODES, (0.0, 0.3))
    }
    assert differences.pop(("train", 0.3)) > 0
    assert set(differences.values()) == {0.0}


def test_hooks_are_counted_and_all_are_removed():
    """Two hooks per layer while it runs, none afterwards."""
    signal = send(Setting(depth=7, width=16))
    assert (signal.hooks_set, signal.hooks_left) == (14, 0)
    model = nn.Sequential(nn.Linear(2, 2))
    handle = model[0].register_forward_hook(lambda *_: None)
    assert explorer.count_hooks(model) == 1
    handle.remove()
    assert explorer.count_hooks(model) == 0


def test_the_global_random_state_is_left_alone():
    """A notebook's own random numbers do not depend on how an explorer is used."""
    before = torch.get_rng_state()
    send.cache_clear()
    send(Setting(depth=2, width=16, dropout=0.5))
    assert torch.equal(before, torch.get_rng_state())


def test_what_overflows_or_vanishes_is_said():
    """Ones with relu overflow; ones with tanh saturate and give no gradient."""
    overflow, saturated = send(Setting("ones")), send(Setting("ones", "tanh"))
    assert "not finite at" in picture(overflow, 1).alt
    assert "gradients: 0 at layers 0 to" in picture(saturated, 1).alt
    assert "% not finite" in describe(overflow, 30)
    assert "1 of 128" in describe(saturated, 30)


@pytest.mark.parametrize(("initialization", "activation"), COMBINATIONS)
@pytest.mark.parametrize(("depth", "layer"), [(1, 1), (40, 40)])
def test_every_state_is_drawn_and_described(initialization, activation, depth, layer):
    """No warning, no empty text; the words name the setting and the hooks."""
    figure, text = explorer.render(initialization, activation, depth, 32, "train", 0.2, layer)
    assert figure.png().startswith(b"\x89PNG")
    assert initialization in figure.alt and initialization in text
    assert f"{2 * depth} while it ran, 0 left on the model" in text
    left, right = figure.figure.axes
    assert left.get_yscale() == "log"
    assert f"output of layer {layer}" in right.get_title(loc="left")


def test_a_layer_past_the_end_is_taken_as_the_last():
    """The words say so."""
    signal = send(Setting(depth=3, width=16))
    assert "The layer slider is at 9; the last layer is 3." in describe(signal, 9)
    assert "layer slider" not in describe(signal, 3)


def test_the_curves_are_the_numbers():
    """The two lines that are drawn hold the standard deviations, layer by layer."""
    signal = send(Setting(depth=5, width=32))
    lines = picture(signal, 2).figure.axes[0].lines
    assert lines[0].get_ydata() == pytest.approx(signal.activation_std)
    assert lines[1].get_ydata() == pytest.approx(signal.gradient_std)


def test_controls_change_picture_and_words():
    """Every control reaches the render function."""
    tool = explorer.signal_through_depth()
    assert tool.state()["initialization"] == "Kaiming normal"
    tool.controls["depth"].value = 4
    seen = {tool.words.value}
    changes = {
        "width": 16, "initialization": "ones", "activation": "tanh", "dropout": 0.5, "mode": "eval", "layer": 3,
    }  # fmt: skip
    for name, value in changes.items():
        tool.controls[name].value = value
        assert tool.words.value not in seen, name
        seen.add(tool.words.value)
    assert "Kaiming normal, relu" in tool.still.alt
    assert tool._repr_mimebundle_()["text/plain"].startswith("Signal through depth.")
