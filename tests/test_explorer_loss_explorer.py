"""Loss explorer: numbers against formulas and torch's modules, words, pictures and controls."""

import importlib
import math
from itertools import product

import pytest
import torch
from test_plots_lines import covered_texts
from torch import nn

explorer_module = importlib.import_module("course_utils.explorers.loss_explorer")
classify, regress = explorer_module.classify, explorer_module.regress
describe_classes, describe_number = explorer_module.describe_classes, explorer_module.describe_number
picture_classes, picture_number = explorer_module.picture_classes, explorer_module.picture_number

SETTINGS = list(product((0, 2), (0.0, 0.3), (1.0, 4.0), (False, True)))
LOGITS = (2.0, -0.75, 1.25)


@pytest.mark.parametrize(("label", "smoothing", "weight", "twice"), SETTINGS)
def test_loss_gradient_and_curve_are_those_of_torchs_module(label, smoothing, weight, twice):
    weights = torch.ones(3)
    weights[label] = weight
    module = nn.CrossEntropyLoss(weights, label_smoothing=smoothing)
    state = classify(LOGITS, label, smoothing, weight, twice)
    z = torch.tensor([LOGITS], requires_grad=True)
    loss = module(z.softmax(1) if twice else z, torch.tensor([label]))
    loss.backward()
    assert state.loss == pytest.approx(loss.item())
    assert state.gradient == pytest.approx(z.grad[0].tolist())
    for place, value in list(zip(state.places, state.losses, strict=True))[::20]:
        moved = z.detach().clone()
        moved[0, label] = place
        expected = module(moved.softmax(1) if twice else moved, torch.tensor([label]))
        assert value == pytest.approx(expected.item(), rel=1e-5)


def test_without_options_the_gradient_is_softmax_minus_one_hot():
    state = classify(LOGITS, 1)
    one_hot = (0.0, 1.0, 0.0)
    assert state.gradient == pytest.approx([p - t for p, t in zip(state.probabilities, one_hot, strict=True)], abs=1e-6)
    assert state.target == one_hot


@pytest.mark.parametrize(("label", "smoothing", "weight", "twice"), SETTINGS)
def test_the_gradient_sums_to_zero_whatever_is_switched_on(label, smoothing, weight, twice):
    assert sum(classify(LOGITS, label, smoothing, weight, twice).gradient) == pytest.approx(0, abs=1e-6)


def test_a_class_weight_alone_changes_nothing():
    light, heavy = classify(LOGITS, 1), classify(LOGITS, 1, weight=10)
    assert (heavy.loss, heavy.gradient) == (pytest.approx(light.loss), pytest.approx(light.gradient))


def test_two_softmaxes_have_a_floor_and_no_gradient_where_the_model_is_most_wrong():
    floor = math.log(math.e + 2) - 1
    assert explorer_module.doubled_floor() == pytest.approx(floor)
    state = classify((-20, 0, 0), 0, twice=True)
    assert state.losses[-1] == pytest.approx(floor, abs=1e-6)
    assert max(map(abs, state.gradient)) < 1e-8
    assert classify((-20, 0, 0), 0).gradient[0] == pytest.approx(-1)


def test_smoothing_puts_the_minimum_at_a_finite_logit():
    state = classify((0, 0, 0), 0, smoothing=0.1)
    share = 1 - 0.1 + 0.1 / 3
    place, value = state.lowest
    assert place == pytest.approx(math.log(share / (0.1 / 3)), abs=0.125)
    entropy = -share * math.log(share) - 2 * (0.1 / 3) * math.log(0.1 / 3)
    assert value == pytest.approx(entropy, abs=1e-3)
    assert classify((0, 0, 0), 0).lowest is None
    assert classify((0, 0, 0), 0, twice=True).lowest is None


@pytest.mark.parametrize(("outlier", "delta"), list(product((5.0, 40.0, 100.0), (0.25, 1.0, 30.0))))
def test_best_constants_are_where_the_pulls_balance(outlier, delta):
    """The mean and the median; for Huber the derivative of the sum changes its sign there."""
    state = regress(outlier, delta)
    targets = torch.tensor(state.targets, dtype=torch.float64)
    assert state.best["MSE"] == pytest.approx(targets.mean().item(), abs=0.006)
    assert state.best["L1"] == targets.median().item()
    slopes = [
        (place - targets).clamp(-delta, delta).sum()
        for place in (state.best["Huber"] - 0.02, state.best["Huber"] + 0.02)
    ]
    assert slopes[0] <= 1e-9 and slopes[1] >= -1e-9


def test_gradients_over_the_error_follow_their_formulas():
    state = regress(5, 1.5)
    for place, error in enumerate(state.errors):
        assert state.gradients["MSE"][place] == pytest.approx(2 * error)
        assert state.gradients["L1"][place] == (error > 0) - (error < 0)
        assert state.gradients["Huber"][place] == pytest.approx(max(-1.5, min(1.5, error)))
    assert state.pulls["Huber"] == pytest.approx(-1.5)


def test_words_of_a_classified_sample():
    assert describe_classes(classify((2, 0, -1), 0, smoothing=0.1)) == (
        "z = [2.00, 0.00, −1.00], y = 0, w = [1.0, 1.0, 1.0]\n"
        "F.cross_entropy(z, y, weight=w, label_smoothing=0.1)\n"
        "\n"
        "softmax(z)       0.844, 0.114, 0.042\n"
        "target           0.933, 0.033, 0.033\n"
        "loss             0.3365\n"
        "gradient for z   −0.0895, +0.0809, +0.0087   sum 0.0000\n"
        "Along the true logit the loss is lowest at 3: 0.2992."
    )
    twice = describe_classes(classify((-20, 0, 0), 0, twice=True))
    assert "F.cross_entropy(z.softmax(dim=1), y, weight=w)" in twice
    assert "gradient for z   −1.2e−09" in twice
    assert "no logits get below log(e + 2) − 1 = 0.5514" in twice


def test_words_of_a_regression():
    words = describe_number(regress(100, 1))
    assert "targets 1, 2, 3, 4, 100; Huber with delta 1" in words
    assert [line.split() for line in words.split("\n")[3:6]] == [
        ["MSE", "22.00", "156.00"],
        ["L1", "3.00", "1.00"],
        ["Huber", "3.00", "1.00"],
    ]


@pytest.mark.parametrize(
    "state", [((2, 0, -1), 0), ((20, -20, 0), 1, 0.5, 10, True), ((0, 0, 0), 2, 0.0, 1, True)], ids=str
)
def test_texts_of_a_classified_picture_do_not_overlap(state):
    figure = picture_classes(classify(*state))
    assert covered_texts(figure) == []
    assert f"Loss {classify(*state).loss:.3f}" in figure.alt


@pytest.mark.parametrize("state", [(5, 1), (100, 30), (100, 0.25), (40, 40)], ids=str)
def test_texts_of_a_regression_picture_do_not_overlap(state):
    figure = picture_number(regress(*state))
    assert covered_texts(figure) == []
    assert f"MSE {regress(*state).best['MSE']:.2f}" in figure.alt


def test_the_still_picture_tells_six_states_as_a_table():
    figure = explorer_module.still()
    assert covered_texts(figure) == []
    assert len(figure.figure.axes) == 6
    assert "wrong, softmax once: logits 10, 0, 0, loss 10.0001, gradient +0.9999, −1.0000, 0.0000." in figure.alt
    assert "right, softmax twice: logits 0, 10, 0, loss 0.5515" in figure.alt


def test_controls_change_words_and_picture():
    explorer = explorer_module.loss_explorer()
    before = explorer.picture.value
    explorer.controls["logit_0"].value = -20
    explorer.controls["twice"].value = True
    assert "F.cross_entropy(z.softmax(dim=1), y, weight=w)" in explorer.words.value
    assert explorer.picture.value != before


def test_the_second_tab_shows_its_own_controls():
    explorer = explorer_module.loss_explorer()

    def shown():
        return {name for name, control in explorer.controls.items() if control.layout.display != "none"}

    assert not shown() & {"outlier", "delta"}
    explorer.controls["tab"].value = "number"
    assert shown() == {"tab", "outlier", "delta"}
    explorer.controls["outlier"].value = 100
    assert "22.00" in explorer.words.value
    explorer.controls["tab"].value = "classes"
    assert "logit_2" in shown() and "softmax(z)" in explorer.words.value


def test_the_outlier_stays_above_the_median():
    """Question 5 of the lesson: the best constant of L1 never moves."""
    outlier = explorer_module.loss_explorer().controls["outlier"]
    assert regress(outlier.min, 1).best["L1"] == regress(outlier.max, 1).best["L1"] == 3


def test_a_page_without_a_kernel_gets_the_still_picture():
    bundle = explorer_module.loss_explorer()._repr_mimebundle_()
    assert explorer_module.still().alt in bundle["text/plain"]
    assert "<img" in bundle["text/html"]
