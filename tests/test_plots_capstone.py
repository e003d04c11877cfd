"""Figures of the capstone: what is drawn is what was measured, and the words hold it too."""

import math

import pytest
import torch

from course_utils import plots
from course_utils.survive import Kill, Report

SIZES = [64] * 22 + [30]


def texts(figure):
    return [text.get_text() for axis in figure.figure.axes for text in axis.texts]


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.figure.axes]


def assert_inside(figure):
    """No text sticks out of the picture."""
    figure.figure.draw_without_rendering()
    width, height = figure.figure.get_size_inches() * figure.figure.dpi
    for axis in figure.figure.axes:
        for text in [*axis.texts, axis.title]:
            box = text.get_window_extent()
            assert not text.get_text() or (box.x0 >= 0 and box.x1 <= width), text.get_text()
            assert not text.get_text() or (box.y0 >= 0 and box.y1 <= height), text.get_text()


# ---- class_counts -------------------------------------------------------------------


def test_counts_are_written_on_the_bars():
    figure = plots.class_counts({"training": torch.tensor([0, 2, 2]), "validation": [1]})
    assert titles(figure) == ["training: 3 rows", "validation: 1 rows"]
    assert texts(figure) == ["1", "0", "2", "0", "1", "0"]
    assert "training, 3 rows: 0: 1, 1: 0, 2: 2." in figure.alt
    assert_inside(figure)


def test_a_part_without_rows_is_refused():
    with pytest.raises(ValueError, match="rows in each"):
        plots.class_counts({"training": []})


# ---- epoch_address ------------------------------------------------------------------


def test_address_says_what_is_trained_twice_and_what_is_left_out():
    resumes = {"with its position": 5, "from the start": 0, "one too far": 6}
    figure = plots.epoch_address(SIZES, 5, resumes)
    assert {"killed after batch 5 of 23", "5 batches twice", "left out"} <= set(texts(figure))
    assert "23 batches of 64 rows, the last of 30" in figure.alt
    assert "with its position: goes on with batch 6, each batch once." in figure.alt
    assert "from the start: batches 1 to 5 are trained twice." in figure.alt
    assert "one too far: batches 6 to 6 are left out." in figure.alt
    assert_inside(figure)


@pytest.mark.parametrize(("done", "start"), [(24, 0), (5, 24), (-1, 0)])
def test_address_refuses_positions_outside_the_epoch(done, start):
    with pytest.raises(ValueError, match="between 0 and"):
        plots.epoch_address(SIZES, done, {"resume": start})


# ---- guarded_norms ------------------------------------------------------------------


def test_norms_are_counted_by_what_was_done_with_them():
    figure = plots.guarded_norms([0.5, 2.0, math.nan, 0.7, math.inf, 30.0], max_norm=1.0)
    assert titles(figure) == ["● as it is: 2    ▲ clipped to 1 (dashed line): 2    ✖ skipped: 2"]
    assert "step 3, step 5" in figure.alt
    assert {"nan", "inf"} <= set(texts(figure))
    assert_inside(figure)


def test_norms_without_one_that_is_finite_are_refused():
    with pytest.raises(ValueError, match="at least one norm"):
        plots.guarded_norms([math.nan], 1.0)


# ---- survival -----------------------------------------------------------------------


def report(gaps, history=(1.1, 0.2, 0.08)):
    weights = {"w": torch.ones(2)}
    straight = {"best_model": weights, "history": [1.1, 0.2, 0.08], "epochs": 3}
    resumed = {"best_model": weights, "history": list(history), "epochs": len(history)}
    kills = [Kill(16, "forward", -9), Kill(40, "write", -9, (50, 100)), Kill(60, "forward", -9)]
    return Report(not any(gaps.values()), [], kills, straight, resumed, gaps, len(gaps))


def test_a_run_that_survived_lies_on_the_line_0():
    figure = plots.survival(report({key: 0.0 for key in range(72) if key % 24 != 23}))
    assert "weights and buffers: difference exactly 0 before each of the 69 batches" in titles(figure)
    assert "the same to the last bit" in figure.alt
    assert "process 2 killed while the checkpoint after batch 17 of epoch 2 was being written, 50 of 100" in figure.alt
    assert texts(figure).count("killed") == 2
    assert "killed while saving" in texts(figure)
    assert_inside(figure)


def test_a_run_that_did_not_says_from_where_on():
    figure = plots.survival(report({10: 0.0, 16: 1e-3, 17: 0.2}, history=(1.1, 0.3)))
    assert "weights and buffers: equal (■) until batch 17 of epoch 1, then not (▲)" in titles(figure)
    assert "by up to 0.2" in figure.alt
    assert "of the resumed run 1.1, 0.3" in figure.alt
    assert_inside(figure)


def test_differences_that_are_not_finite_can_be_drawn():
    assert "differ" in plots.survival(report({10: 0.0, 16: math.inf})).alt


def test_a_report_of_one_run_is_refused():
    with pytest.raises(ValueError, match="no two complete runs"):
        plots.survival(Report(False, ["it raised"]))
