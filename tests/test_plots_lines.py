"""Line plots: what is drawn, what the words say, and that names do not cover one another."""

import math
from itertools import combinations

import pytest
import torch
from matplotlib.text import Text

from course_utils.plots import lines
from course_utils.plots.figure import Figure


def covered_texts(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that overlap, and texts that stick out, in the picture as it is saved."""
    figure.png()
    unseen = {label for tick in _ticks_out_of_view(figure) for label in (tick.label1, tick.label2)}
    shown = [text for text in figure.figure.findobj(Text) if text not in unseen]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown if t.get_text() and t.get_visible()]
    pairs = [
        (one, other)
        for (one, a), (other, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
    ]
    width, height = figure.figure.bbox.size
    out = [(t, "") for t, b in boxes if min(b.x0, b.y0) < -1 or b.x1 > width + 1 or b.y1 > height]
    return pairs + out


def _ticks_out_of_view(figure: Figure) -> list:
    """Ticks that matplotlib keeps but does not draw."""
    ticks = []
    for axes in figure.figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            every = axis.get_major_ticks() + axis.get_minor_ticks()
            ticks += [tick for tick in every if not low <= tick.get_loc() <= high]
    return ticks


def drawn(figure: Figure) -> list[tuple[list[float], list[float]]]:
    """The points of every line over more than one place."""
    found = [line for line in figure.figure.axes[0].lines if line.get_linestyle() != "None"]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in found]


def test_a_line_without_places_is_drawn_over_its_steps():
    assert drawn(lines.curves({"loss": [3.0, 2.0, 1.5]})) == [([0, 1, 2], [3.0, 2.0, 1.5])]


def test_common_places_and_a_line_with_its_own_places_can_be_mixed():
    figure = lines.curves({"a": [1, 2], "b": ([5, 6, 7], [1, 2, 3])}, x=[10, 20])
    assert drawn(figure) == [([10, 20], [1, 2]), ([5, 6, 7], [1, 2, 3])]


def test_a_pair_of_numbers_is_a_line_and_not_places_with_values():
    numbers = (torch.tensor(1.0), torch.tensor(2.0))
    assert drawn(lines.curves({"a": (4, 5), "b": numbers}))[1] == ([0, 1], [1, 2])


def test_tensors_that_require_a_gradient_are_drawn_without_warning():
    losses = [torch.tensor(2.0, requires_grad=True) * 2, torch.tensor(1.0)]
    assert drawn(lines.curves({"a": losses, "b": torch.ones(2, requires_grad=True)})) == [
        ([0, 1], [4, 1]),
        ([0, 1], [1, 1]),
    ]


def test_alt_text_has_first_last_lowest_and_highest_of_each_line():
    figure = lines.loss_curves({"SGD": [4.0, 0.5, 1.25], "Adam": [3.0, 2.0]})
    assert figure.alt == (
        "Line plot: loss against step. SGD: from 4 at 0 to 1.25 at 2, lowest 0.5 at 1, highest 4 "
        "at 0. Adam: from 3 at 0 to 2 at 1, lowest 2 at 1, highest 3 at 0."
    )


def test_alt_text_does_not_depend_on_rounding_errors():
    rounded = lines.curves({"a": [2.0, 1.0, 1.0, 2.0]})
    assert lines.curves({"a": [2.0, 1.0 + 1e-7, 1.0, 2.0 + 1e-7]}).alt == rounded.alt


def test_given_alt_text_is_kept():
    assert lines.curves({"a": [1]}, alt="One point.").alt == "One point."


def test_loss_curves_passes_its_options_on():
    figure = lines.loss_curves({"a": [10.0, 1.0]}, log_y=True, title="Two steps")
    axis = figure.figure.axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()) == ("step", "loss", "log")
    assert axis.get_title(loc="left") == "Two steps"
    assert "logarithmic y" in figure.alt


@pytest.mark.parametrize("log", [False, True])
def test_values_an_axis_cannot_show_leave_a_gap_and_are_counted(log):
    figure = lines.curves({"a": [1.0, math.inf, math.nan, 0.0, 2.0]}, log_y=log)
    (_, ys), *_ = drawn(figure)
    assert [math.isnan(y) for y in ys] == [False, True, True, log, False]
    assert f"{3 if log else 2} of 5 values cannot be drawn" in figure.alt


def test_a_line_without_any_finite_value_is_named_and_not_drawn():
    figure = lines.curves({"lost": [math.nan] * 3, "kept": [1.0, 2.0, 3.0]})
    assert "lost: nothing to draw. 3 of 3 values cannot be drawn." in figure.alt
    assert any("lost" in text.get_text() for text in figure.figure.axes[0].texts)


@pytest.mark.parametrize(
    "series",
    [
        {f"run {n}": [1.0, 2.0 + n / 1000] for n in range(12)},
        {f"a rather long name for the run number {n}": [1.0, 2.0] for n in range(9)},
        {"top": [0.0, 1.0], "top too": [0.0, 1.0], "low": [0.0, 0.0], "low too": [0.0, 0.0]},
    ],
)
@pytest.mark.parametrize("log_y", [False, True])
def test_names_at_line_ends_do_not_overlap_and_stay_in_the_picture(series, log_y):
    assert covered_texts(lines.curves(series, title="t", xlabel="x", log_y=log_y)) == []


def test_lines_of_the_same_color_differ_in_their_markers():
    figure = lines.curves({str(n): [1, 2] for n in range(16)})
    ends = [line for line in figure.figure.axes[0].lines if line.get_linestyle() != "None"]
    assert len({(line.get_color(), line.get_marker()) for line in ends}) == 16


def test_spread_keeps_wishes_that_do_not_clash_and_centers_those_that_do():
    assert lines.spread([1, 5, 9], 2, 0, 10) == [1, 5, 9]
    assert lines.spread([5, 5], 2, 0, 10) == [4, 6]
    assert lines.spread([6, 5, 0], 2, 0, 10) == [6.5, 4.5, 0]


def test_spread_stays_within_its_limits_where_there_is_room():
    assert lines.spread([10, 10, 10], 2, 0, 10) == [6, 8, 10]
    assert lines.spread([0, 0, 10], 2, 0, 10) == [0, 2, 10]


def test_nothing_to_draw_is_refused_in_words():
    with pytest.raises(ValueError, match="at least one line"):
        lines.curves({})
    with pytest.raises(ValueError, match="'a' has no values"):
        lines.curves({"a": []})


def test_lengths_that_do_not_match_are_refused_with_both_lengths():
    with pytest.raises(ValueError, match="'a' has 3 values for 2 places"):
        lines.curves({"a": [1, 2, 3]}, x=[1, 2])
