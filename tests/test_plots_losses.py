"""Figures of week 04: what is drawn comes from the data, the words hold the true numbers, and nothing is covered."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from matplotlib.text import Text

from course_utils import plots


def texts(figure):
    return [text.get_text() for axis in figure.figure.axes for text in axis.texts]


def covered(figure):
    """Pairs of words that overlap in the picture as it is saved, and words that stick out."""
    figure.png()
    boxes = [(t.get_text(), t.get_window_extent()) for a in figure.figure.axes for t in a.texts if t.get_text()]
    boxes += [(t.get_text(), t.get_window_extent()) for t in figure.figure.findobj(Text) if t.get_text() and t.axes and
              t in (t.axes.title, t.axes._left_title, t.axes.xaxis.label, t.axes.yaxis.label)]  # fmt: skip
    pairs = [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
    ]
    width, height = figure.figure.bbox.size
    out = [(t, "out") for t, b in boxes if min(b.x0, b.y0) < -1 or b.x1 > width + 1 or b.y1 > height + 1]
    return pairs + out


def batch():
    logits = 2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return logits, torch.tensor([0, 3, 1, 1, 2, 0])


# ---- reductions ---------------------------------------------------------------------


def test_reductions_draws_each_loss_their_mean_and_their_stack():
    figure = plots.reductions([1.0, 2.0, 6.0])
    bars, stack = figure.figure.axes
    assert [bar.get_height() for bar in bars.patches] == [1, 2, 6]
    assert bars.lines[0].get_ydata() == [3, 3]
    assert [bar.get_y() for bar in stack.patches] == [0, 1, 3]
    assert "1.00, 2.00, 6.00" in figure.alt
    assert "mean, 3.00" in figure.alt and "sum, 9.00" in figure.alt


def test_reductions_agree_with_those_of_torch():
    logits, labels = batch()
    figure = plots.reductions(F.cross_entropy(logits.requires_grad_(), labels, reduction="none"))
    for reduction in ("mean", "sum"):
        assert f"{reduction}, {F.cross_entropy(logits, labels, reduction=reduction):.2f}" in figure.alt
    assert covered(figure) == []


def test_no_losses_are_refused_in_words():
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.reductions([])


# ---- batch_areas --------------------------------------------------------------------


def test_batch_areas_draws_bars_as_wide_as_their_counts():
    figure = plots.batch_areas([2.0, 4.0], [100, 10])
    (axis,) = figure.figure.axes
    assert [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in axis.patches] == [(0, 100, 2), (100, 10, 4)]
    assert f"mean of batch means is 3.000 (perplexity {math.exp(3):.2f})" in figure.alt
    assert f"mean over tokens 2.182 (perplexity {math.exp(240 / 110):.2f})" in figure.alt
    assert covered(figure) == []


@pytest.mark.parametrize("counts", [[10], [10, 0]])
def test_batch_areas_needs_a_positive_count_for_each_mean(counts):
    with pytest.raises(ValueError, match="positive count for each of the 2 means"):
        plots.batch_areas([2.0, 4.0], counts)


def test_words_of_equal_averages_do_not_cover_one_another():
    assert covered(plots.batch_areas([2.0, 2.0], [10, 10])) == []


# ---- signed_table -------------------------------------------------------------------


def test_a_signed_table_shows_every_number_with_its_sign_and_outlines_marked_cells():
    figure = plots.signed_table(torch.tensor([[1.5, -0.25], [0.001, -0.001]]), torch.eye(2).bool(), note="diagonal")
    assert texts(figure) == ["+1.50", "−0.25", "0.00", "0.00", "outlined: diagonal"]
    assert len(figure.figure.axes[0].patches) == 2
    assert "row 0: +1.50, -0.25" in figure.alt
    assert "Outlined (diagonal): (0, 0), (1, 1)." in figure.alt


def test_a_signed_table_of_a_gradient_with_a_title_covers_nothing():
    logits, labels = batch()
    gradient = logits.softmax(1) - F.one_hot(labels, 4)
    mask = F.one_hot(labels, 4).bool()
    figure = plots.signed_table(gradient, mask, "sample", "class", "the true class", "Gradient: softmax minus one-hot")
    assert covered(figure) == []
    assert "sample 0: -0.91" in figure.alt


def test_tables_that_cannot_be_drawn_are_refused_with_their_shape():
    with pytest.raises(ValueError, match=r"this is \(3,\)"):
        plots.signed_table(torch.ones(3))
    with pytest.raises(ValueError, match=r"this is \(17, 2\)"):
        plots.signed_table(torch.ones(17, 2))
    with pytest.raises(ValueError, match=r"marked has shape \(2,\)"):
        plots.signed_table(torch.ones(2, 2), torch.ones(2).bool())


# ---- cliffs and minima --------------------------------------------------------------


def test_cliffs_names_the_first_place_that_is_not_finite():
    lost = [0.0, -1.0, -math.inf, -math.inf]
    figure = plots.cliffs({"late": lost, "right": [0.0, -1.0, -2.0, -3.0]}, x=[0, 10, 20, 30])
    assert "late is −inf from 20 on." in figure.alt
    assert "right is" not in figure.alt
    assert " −inf from 20 on" in texts(figure)


def test_cliffs_of_log_softmax_are_where_torch_has_them():
    places = range(151)
    z = torch.stack([torch.arange(151.0), torch.zeros(151)], dim=1)
    series = {"late": z.softmax(1).log()[:, 1], "stable": z.log_softmax(1)[:, 1]}
    figure = plots.cliffs(series, x=places, xlabel="v", ylabel="log-probability")
    first = series["late"].isinf().nonzero()[0].item()
    assert f"late is −inf from {first} on." in figure.alt
    assert covered(figure) == []


def test_minima_marks_lowest_points_inside_the_picture_only():
    figure = plots.minima({"bowl": [4.0, 1.0, 3.0], "slope": [3.0, 2.0, 1.0]}, x=[0, 1, 2])
    stars = [line for line in figure.figure.axes[0].lines if line.get_marker() == "*"]
    assert [(list(star.get_xdata()), list(star.get_ydata())) for star in stars] == [([1], [1])]
    assert figure.alt.endswith("Marked minima: bowl: 1.000 at 1.00.")
    assert plots.minima({"slope": [2.0, 1.0]}, x=[0, 1]).alt.endswith("none inside the picture.")


def test_the_minimum_of_a_smoothed_loss_is_the_entropy_of_the_target():
    grid = torch.arange(-60, 241) / 20
    rows = torch.stack([grid, 0 * grid, 0 * grid], dim=1)
    loss = F.cross_entropy(rows, torch.zeros(301, dtype=torch.long), label_smoothing=0.1, reduction="none")
    figure = plots.minima({"smoothed": loss}, x=grid)
    entropy = -(14 / 15 * math.log(14 / 15) + 2 / 30 * math.log(1 / 30))
    assert f"smoothed: {entropy:.3f} at 3.35." in figure.alt
    assert covered(figure) == []


# ---- panels -------------------------------------------------------------------------


def test_panels_draws_each_group_over_the_same_places():
    groups = {"loss": {"a": [4.0, 0.0, 4.0], "b": [2.0, 0.0, 2.0]}, "gradient": {"a": [-4, 0, 4], "b": [-1, 0, 1]}}
    figure = plots.panels(groups, x=[-2, 0, 2], xlabel="error", title="Two losses")
    assert [axis.get_ylabel() for axis in figure.figure.axes] == ["loss", "gradient"]
    for axis, series in zip(figure.figure.axes, groups.values(), strict=True):
        drawn = [list(line.get_ydata()) for line in axis.lines if len(line.get_ydata()) == 3]
        assert drawn == list(series.values())
    assert "loss: a: from 4 at -2 to 4 at 2, lowest 0 at 0" in figure.alt
    assert "gradient: a: from -4 at -2 to 4 at 2" in figure.alt
    assert covered(figure) == []


def test_one_panel_is_enough():
    assert len(plots.panels({"loss": {"a": [1.0, 2.0]}}, x=[0, 1]).figure.axes) == 1


# ---- best_constants -----------------------------------------------------------------


def test_best_constants_tells_where_each_loss_went():
    figure = plots.best_constants([1, 2, 3, 4, 5], [1, 2, 3, 4, 100], {"MSE": (3.0, 22.0), "L1": (3.0, 3.0)})
    assert "MSE: 3 → 22. L1: 3 → 3." in figure.alt
    assert "Targets 1, 2, 3, 4, 5 (gone: cross), then 1, 2, 3, 4, 100 (new: ring)." in figure.alt
    diamonds = [line.get_xdata()[0] for line in figure.figure.axes[0].lines if line.get_marker() == "D"]
    assert diamonds == [22, 3]
    assert covered(figure) == []
