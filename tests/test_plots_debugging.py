"""Figures of the week on debugging: numbers in picture and words are those of the data, nothing sticks out."""

import math

import pytest
import torch
from torch import nn

from course_utils import plots
from course_utils.plots.debugging import kept_tensors, leaf_calls, survives_edit


def texts(figure):
    return [text.get_text() for axis in figure.figure.axes for text in axis.texts]


def assert_inside(figure):
    """No text sticks out of the picture."""
    figure.figure.draw_without_rendering()
    width, height = figure.figure.get_size_inches() * figure.figure.dpi
    for axis in figure.figure.axes:
        for text in (*axis.texts, axis.title, axis.xaxis.label, axis.yaxis.label):
            box = text.get_window_extent()
            if text.get_text():
                assert box.x0 >= -1 and box.x1 <= width + 1, text.get_text()
                assert box.y0 >= -1 and box.y1 <= height + 1, text.get_text()


# ---- losses_with_levels ----------------------------------------------------------------------------------------------


def test_levels_are_drawn_named_and_described():
    figure = plots.losses_with_levels({"run": [2.4, 2.3, 2.25, 2.24]}, {"log 10": math.log(10), "entropy": 2.238})
    assert {"log 10: 2.303", "entropy: 2.238"} <= set(texts(figure))
    assert "Horizontal lines: log 10 at 2.303, entropy at 2.238" in figure.alt
    low, high = figure.figure.axes[0].get_ylim()
    assert low < 0 < 2.303 < high
    assert_inside(figure)


def test_levels_are_needed():
    with pytest.raises(ValueError, match="at least one curve and one level"):
        plots.losses_with_levels({"run": [1.0]}, {})


# ---- call_order ------------------------------------------------------------------------------------------------------


class Crossed(nn.Module):
    """Registered in another order than called, one layer shared, one unused."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.act = nn.ReLU()
        self.spare = nn.Linear(6, 6)
        self.first = nn.Linear(4, 6)

    def forward(self, x):
        return self.act(self.head(self.act(self.first(x))))


def test_calls_are_those_of_a_forward_pass():
    model = Crossed()
    registered, called = leaf_calls(model, torch.ones(2, 4))
    assert registered == ["head", "act", "spare", "first"]
    assert called == ["first", "act", "head", "act"]
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_when_the_forward_fails():
    model = Crossed()
    with pytest.raises(RuntimeError):
        leaf_calls(model, torch.ones(2, 5))
    assert not any(module._forward_hooks for module in model.modules())


def test_call_order_says_what_is_shared_and_unused():
    figure = plots.call_order(Crossed(), torch.ones(2, 4))
    assert "Called more than once: act (2 times). Never called: spare." in figure.alt
    assert any("never called" in text for text in texts(figure))
    assert_inside(figure)


# ---- activation_ranges -----------------------------------------------------------------------------------------------


def test_ranges_mark_what_is_not_finite():
    runs = {"wide": {"a": 10.0, "b": 1e3, "c": 1e5}, "narrow": {"a": 10.0, "b": math.inf, "c": math.nan}}
    figure = plots.activation_ranges(runs, limits={"largest": 65504})
    assert "narrow: 10 after a, 10 after a, infinity first at b, NaN from c on" in figure.alt
    assert {"inf", "nan", "largest: 65504"} <= set(texts(figure))
    assert_inside(figure)


# ---- gradient_norms --------------------------------------------------------------------------------------------------


def test_every_state_is_written():
    report = {
        "a": ("ok", 0.12), "b": ("zero", 0.0), "c": ("none", None), "d": ("frozen", None), "e": ("nonfinite", None),
    }  # fmt: skip
    figure = plots.gradient_norms(report, title="all five")
    assert {"0.12", "zero", "none", "frozen", "nonfinite"} <= set(texts(figure))
    assert "a ok 0.12; b zero; c none; d frozen; e nonfinite" in figure.alt
    assert_inside(figure)


@pytest.mark.parametrize("norms", [(1e-12, 1e12), (1.0,), (46.0, 6.3), ()])
def test_bars_have_room_at_any_scale(norms):
    figure = plots.gradient_norms({"dead": ("zero", 0.0)} | {f"p{k}": ("ok", v) for k, v in enumerate(norms)})
    low, high = figure.figure.axes[0].get_xlim()
    assert all(low < norm < high for norm in norms)
    assert_inside(figure)


def test_a_report_without_parameters_is_refused():
    with pytest.raises(ValueError, match="at least one parameter"):
        plots.gradient_norms({})


# ---- saved_for_backward ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x: x + 1, (False, False)),
        (torch.sin, (True, False)),
        (torch.sigmoid, (False, True)),
        (torch.exp, (False, True)),
        (lambda x: x**2, (True, False)),
    ],
)
def test_what_is_kept_is_measured(function, kept):
    assert kept_tensors(function) == kept
    assert survives_edit(function) is not kept[1]


def test_table_of_saved_tensors():
    figure = plots.saved_for_backward({"x + 1": lambda x: x + 1, "tanh(x)": torch.tanh})
    assert "x + 1 keeps nothing, y += 1 is legal; tanh(x) keeps its output, y += 1 raises in backward" in figure.alt
    assert_inside(figure)


# ---- influence -------------------------------------------------------------------------------------------------------


def test_leaks_are_counted():
    leaky = torch.eye(4)
    leaky[0, 3] = -1e-7
    figure = plots.influence({"healthy": torch.eye(4), "leaky": leaky})
    assert "healthy: no leak among 12 pairs; leaky: 1 leak among 12 pairs" in figure.alt
    assert texts(figure).count("×") == 1 and texts(figure).count("•") == 8
    assert_inside(figure)


# ---- ward ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 13])
def test_a_panel_for_each_script(count):
    runs = {f"script{k}": {"as given": [2.0, math.nan], "mended": [2.0, 0.1]} for k in range(count)}
    figure = plots.ward(runs)
    titles = [axis.get_title(loc="left") for axis in figure.figure.axes]
    assert titles[:count] == list(runs)
    assert "script0, mended: 2 to 0.1" in figure.alt
    assert_inside(figure)


def test_panels_say_nan_and_log():
    figure = plots.ward({"lost": {"as given": [math.nan, math.nan]}, "wild": {"as given": [1e5, 3.0]}})
    assert "as given: nan" in texts(figure)
    assert [axis.get_title(loc="left") for axis in figure.figure.axes][:2] == ["lost", "wild (log)"]
    assert_inside(figure)
