"""Figures of week 03: what is drawn is read from the module, and the words hold the true numbers."""

import pytest
import torch
from torch import nn

from course_utils import plots
from course_utils.plots import modules
from course_utils.plots.modules import attributes, freeze_rows, lay_wiring, tensors_within


class Mixed(nn.Module):
    """One attribute of each kind, and a list that hides two layers."""

    def __init__(self):
        super().__init__()
        self.hidden = [nn.Linear(8, 8), nn.Linear(8, 8)]
        self.head = nn.Linear(8, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(3))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.offset = torch.zeros(3)
        self.wish = torch.zeros(3, requires_grad=True)
        self.rate = 0.5


def texts(figure):
    return [text.get_text() for axis in figure.figure.axes for text in axis.texts]


def assert_inside(figure):
    """No text sticks out of the picture."""
    figure.figure.draw_without_rendering()
    width, height = figure.figure.get_size_inches() * figure.figure.dpi
    for axis in figure.figure.axes:
        for text in axis.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width, text.get_text()
            assert box.y0 >= 0 and box.y1 <= height, text.get_text()


# ---- module_tree --------------------------------------------------------------------


def test_tree_names_every_module_and_its_parameters():
    figure = plots.module_tree(nn.Sequential(nn.Linear(10, 50), nn.Sequential(nn.Linear(50, 2))))
    drawn = texts(figure)
    assert {"model: Sequential", "0: Linear", "1: Sequential"} <= set(drawn)
    assert drawn.count("0: Linear") == 2
    assert "weight (50, 10), bias (50,)" in drawn
    assert "weight (2, 50), bias (2,)" in drawn


def test_tree_links_each_card_to_its_own_parent():
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.GELU()))
    cards = modules._cards(model, "model")
    parents = [(card.title, cards[card.parent].title if card.parent >= 0 else None) for card in cards]
    assert parents == [
        ("model: Sequential", None),
        ("0: Sequential", "model: Sequential"),
        ("0: ReLU", "0: Sequential"),
        ("1: Tanh", "0: Sequential"),
        ("1: Sequential", "model: Sequential"),
        ("0: GELU", "1: Sequential"),
    ]
    assert [card.parent for card in cards] == [-1, 0, 1, 1, 0, 4]


def test_tree_draws_a_list_of_layers_and_a_plain_tensor_outside():
    figure = plots.module_tree(Mixed())
    assert texts(figure).count("✗ outside the tree") == 3
    assert "hidden: list of 2 modules, 144 numbers in it" in figure.alt
    assert "offset: plain tensor (3,)" in figure.alt
    assert "children: head." in figure.alt
    assert_inside(figure)


def test_tree_of_registered_layers_has_nothing_outside():
    model = Mixed()
    model.hidden = nn.ModuleList(model.hidden)
    del model.offset, model.wish
    assert "Outside" not in plots.module_tree(model).alt


def test_tree_refuses_more_modules_than_can_be_read():
    with pytest.raises(ValueError, match="21 modules"):
        plots.module_tree(nn.Sequential(*[nn.ReLU() for _ in range(20)]))


def test_tensors_are_found_in_nested_containers():
    hidden = {"a": [nn.Linear(2, 3)], "b": (torch.ones(4), "text", 5)}
    assert tensors_within(hidden) == (1, 1, 13)
    assert tensors_within("text") == (0, 0, 0)


# ---- attribute_table ----------------------------------------------------------------


def test_attribute_marks_are_those_of_torch():
    marks = {row.name: row.answers for row in attributes(Mixed())}
    assert marks == {
        "scale": (True, True, True, True, True),
        "shift": (False, False, True, True, True),
        "steps": (False, False, True, False, True),
        "mask": (False, False, True, True, False),
        "offset": (False, False, False, False, False),
        "wish": (False, True, False, False, False),
        "rate": (False, None, None, None, False),
    }


def test_attribute_table_leaves_the_module_alone():
    model = Mixed()
    figure = plots.attribute_table(model)
    assert model.scale.dtype == torch.float32 and model.scale.device.type == "cpu"
    assert texts(figure).count("✓") == 13
    assert "offset (plain tensor): none" in figure.alt
    assert_inside(figure)


def test_attribute_table_of_an_empty_module_is_refused():
    with pytest.raises(ValueError, match="no parameter, buffer"):
        plots.attribute_table(nn.ReLU())


# ---- wirings ------------------------------------------------------------------------

SKIP = [("x", "A1"), ("A1", "B1"), ("B1", "+"), ("x", "+"), ("+", "y")]


def test_wiring_places_blocks_by_the_longest_way():
    laid = lay_wiring(SKIP)
    assert laid.columns == {"x": 0, "A1": 1, "B1": 2, "+": 3, "y": 4}
    assert laid.bridged
    assert not lay_wiring(SKIP[:3]).bridged


def test_wirings_tell_every_wire():
    figure = plots.wirings({"skip": SKIP, "chain": [("x", "A1"), ("A1", "y")]})
    assert "skip: x to A1, A1 to B1, B1 to +, x to +, + to y." in figure.alt
    assert texts(figure).count("A1") == 2
    assert_inside(figure)


def test_a_circle_is_refused():
    with pytest.raises(ValueError, match="circle"):
        plots.wirings({"loop": [("A1", "B1"), ("B1", "A1")]})


# ---- freezing -----------------------------------------------------------------------


def half_frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.ReLU(), nn.Linear(4, 1))
    model(torch.ones(2, 3)).sum().backward()
    return model.requires_grad_(False)


def frozen(model):
    return [row.frozen for row in freeze_rows(model, "model")]


def test_flags_alone_are_not_frozen():
    assert frozen(half_frozen()) == [None, False, False, False, None, False]


def test_flags_without_stale_gradients_still_leave_statistics():
    model = half_frozen()
    model.zero_grad()
    assert frozen(model) == [None, True, False, False, None, True]


def test_all_three_together_are_frozen():
    model = half_frozen().eval()
    model.zero_grad()
    assert frozen(model) == [None, True, True, True, None, True]
    figure = plots.freezing(model)
    assert figure.alt.count("fully frozen") == 4
    assert "mode eval, stats rest, fully frozen" in figure.alt
    assert_inside(figure)


def test_partly_frozen_flags_are_counted():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert freeze_rows(layer, "layer")[0].flags == "1 of 2 on"


# ---- call_pipeline ------------------------------------------------------------------


def test_pipeline_shows_the_hooks_there_are():
    def record(module, args, output):
        return None

    layer = nn.Linear(2, 2)
    handle = layer.register_forward_hook(record)
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    figure = plots.call_pipeline(layer)
    assert "0 forward pre-hooks; 1 forward hook (record); 0 backward pre-hooks; 1 backward hook" in figure.alt
    assert "record" in texts(figure)
    assert_inside(figure)
    handle.remove()
    assert "0 forward hooks" in plots.call_pipeline(layer).alt


# ---- repeated_predictions -----------------------------------------------------------


def test_repeated_predictions_count_different_values():
    figure = plots.repeated_predictions({"train": [0.25, 0.5, 0.75, 0.5], "eval": [0.5] * 4})
    assert "train: 4 passes, 3 different values, from 0.250 to 0.750, mean 0.500." in figure.alt
    assert "eval: 4 passes, 1 different value, from 0.500 to 0.500" in figure.alt
    for axis in figure.figure.axes:
        assert sum(patch.get_height() for patch in axis.patches) == 4


@pytest.mark.parametrize("series", [{}, {"train": []}])
def test_repeated_predictions_need_numbers(series):
    with pytest.raises(ValueError, match="at least one number"):
        plots.repeated_predictions(series)
