"""Figures of week 09: what is drawn is what was measured, and the words hold it too."""

import pytest
import torch
from torch import nn

from course_utils import plots
from course_utils.plots.checkpoints import NO, RUNGS


class Net(nn.Module):
    """Parameters, buffers of both kinds, and plain attributes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.rate = 0.5


def texts(figure):
    return [text.get_text() for axis in figure.figure.axes for text in axis.texts]


def hatched(figure):
    """How many filled areas carry a hatching of their own."""
    return sum(bool(part.get_hatch()) for axis in figure.figure.axes for part in axis.collections)


def assert_inside(figure):
    """No text sticks out of the picture."""
    figure.figure.draw_without_rendering()
    width, height = figure.figure.get_size_inches() * figure.figure.dpi
    for axis in figure.figure.axes:
        for text in axis.texts:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width, text.get_text()
            assert box.y0 >= 0 and box.y1 <= height, text.get_text()


# ---- state_dict_map -----------------------------------------------------------------


def test_map_shows_every_entry_of_the_dict_with_its_shape():
    figure = plots.state_dict_map(Net())
    entries = {f"{name}  {tuple(value.shape)}" for name, value in Net().state_dict().items()}
    assert entries <= set(texts(figure))
    assert "flat state dict with 8 entries: scale (1,), body.0.weight (8, 4)" in figure.alt
    assert_inside(figure)


def test_map_shows_what_the_dict_leaves_out():
    figure = plots.state_dict_map(Net())
    assert texts(figure).count("✗ not in it") == 3
    assert figure.alt.endswith("not in the dict: mask (not persistent), rate (plain attribute), training (the mode).")


# ---- resume_timeline ----------------------------------------------------------------

PIECES = {"model": "random weights", "optimizer": "empty moments", "scheduler": "full rate"}


def test_timeline_says_what_crosses_and_what_starts_anew():
    figure = plots.resume_timeline(PIECES, ["model"], stop=25, end=50)
    assert texts(figure).count("goes on") == 1
    assert {"empty moments", "full rate", "stop after epoch 25", "epoch 50"} <= set(texts(figure))
    assert "random weights" not in texts(figure)
    assert "model: crosses the stop; optimizer: not saved, empty moments" in figure.alt
    assert_inside(figure)


def test_timeline_with_everything_saved_breaks_nothing_off():
    figure = plots.resume_timeline(PIECES, list(PIECES), stop=1, end=2)
    assert hatched(figure) == 0
    assert "not saved" not in figure.alt


def test_timeline_refuses_an_unknown_piece():
    with pytest.raises(ValueError, match="schedule: not among the pieces model, optimizer, scheduler"):
        plots.resume_timeline(PIECES, ["schedule"], stop=1, end=2)


# ---- crash_outcomes -----------------------------------------------------------------


def test_crash_table_has_a_row_per_method_and_a_column_per_moment():
    outcomes = {
        "direct": [("at byte 0", "broken"), ("not at all", "new")],
        "atomic": [("at byte 0", "old"), ("not at all", "new")],
    }
    figure = plots.crash_outcomes(outcomes)
    drawn = texts(figure)
    assert [drawn.count(state) for state in ("old", "new", "broken")] == [1, 2, 1]
    assert "direct: at byte 0: broken, not at all: new. atomic: at byte 0: old" in figure.alt
    assert_inside(figure)


def test_crash_table_refuses_methods_with_other_moments():
    with pytest.raises(ValueError, match="moments of 'atomic'"):
        plots.crash_outcomes({"direct": [("a", "old")], "atomic": [("b", "old")]})


# ---- two_doors ----------------------------------------------------------------------


def test_doors_part_what_loads_from_what_does_not():
    figure = plots.two_doors({"tensors": True, "Path": False, "a set": True})
    assert figure.alt.endswith("Let in: tensors, a set. Turned away: Path.")
    assert {"tensors", "Path", "a set"} <= set(texts(figure))
    assert_inside(figure)


def test_doors_with_nobody_turned_away():
    assert plots.two_doors({"tensors": True}).alt.endswith("Turned away: nothing.")


# ---- name_classes -------------------------------------------------------------------

REPORT = {"loaded": ["a", "b", "c", "d", "e"], "mismatched": ["head.weight"], "unexpected": [], "missing": ["m" * 30]}


def test_classes_show_counts_and_some_names():
    figure = plots.name_classes(REPORT)
    drawn = texts(figure)
    assert {"loaded: 5", "mismatched: 1", "unexpected: 0", "missing: 1", "and 2 more", "head.weight"} <= set(drawn)
    assert "d" not in drawn
    assert "loaded: 5 (a, b, c, d, e)" in figure.alt
    assert "unexpected: 0 (none)" in figure.alt
    assert_inside(figure)


def test_classes_refuse_another_report():
    with pytest.raises(ValueError, match="this one has missing_keys"):
        plots.name_classes({"missing_keys": []})


# ---- generator_reels ----------------------------------------------------------------


def test_reels_mark_what_was_drawn_and_name_what_comes_next():
    figure = plots.generator_reels({"random": ([0.25, 0.5, 0.75], 1), "torch": ([0.1, 0.2, 0.3], 3)})
    assert "random: 1 drawn, next 0.50. torch: 3 drawn, next beyond the picture." in figure.alt
    assert texts(figure).count("▼") == 2
    assert_inside(figure)


# ---- partings -----------------------------------------------------------------------


def test_partings_show_the_step_at_which_a_run_leaves():
    figure = plots.partings({"nothing": [0.0, 0.0, 0.0], "scheduler": [0.0, 2e-4, 3e-11]}, first=21)
    drawn = texts(figure)
    assert drawn.count("=") == 4
    assert {"21", "22", "23", "-4", "-11"} <= set(drawn)
    assert "nothing: equal at every step. scheduler: differs from step 22 on." in figure.alt
    assert_inside(figure)


def test_partings_hatch_only_what_differs():
    assert hatched(plots.partings({"nothing": [0.0, 0.0]})) == 0
    assert hatched(plots.partings({"model": [0.1, 0.0]})) == 1
    assert NO.hatch


# ---- reproducibility_ladder ---------------------------------------------------------


def test_ladder_has_its_loosest_rung_at_the_bottom():
    figure = plots.reproducibility_ladder()
    place = {text.get_text(): text.get_position()[1] for text in figure.figure.axes[0].texts}
    heights = [place[goal] for goal, _ in RUNGS]
    assert heights == sorted(heights, reverse=True)  # y points down
    assert figure.alt.index(RUNGS[0][0]) < figure.alt.index(RUNGS[-1][0])
    assert_inside(figure)
