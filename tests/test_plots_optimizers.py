"""Figures of the week on optimizers: what is drawn, what the words say, and that texts do not overlap."""

from itertools import combinations

import pytest
import torch
from matplotlib.text import Text
from torch import nn

from course_utils import plots
from course_utils.plots.figure import BLUE, VERMILION, Figure


def words(figure: Figure) -> list[str]:
    """Every text in the figure, line breaks removed."""
    return [" ".join(text.get_text().split()) for text in figure.figure.findobj(Text) if text.get_text()]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts of 9 points and more that lie on top of each other, tick labels left out."""
    figure.png()
    ticks = {id(label) for axes in figure.figure.axes for label in axes.get_xticklabels() + axes.get_yticklabels()}
    texts = [t for t in figure.figure.findobj(Text) if t.get_text() and t.get_visible() and id(t) not in ticks]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    return [
        (one, other)
        for (one, a), (other, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 2
    ]


def sticks_out(figure: Figure) -> list[str]:
    """Visible texts that leave the picture."""
    figure.png()
    width, height = figure.figure.bbox.size
    found = []
    for text in figure.figure.findobj(Text):
        if text.get_text() and text.get_visible() and text.axes is not None:
            box = text.get_window_extent()
            if min(box.x0, box.y0) < -2 or box.x1 > width + 2 or box.y1 > height + 2:
                found.append(text.get_text())
    return found


def ravine(x, y):
    return 0.5 * (x**2 + 20 * y**2)


CLEAN = [[("zero_grad", "None"), ("forward", "None"), ("backward", "g1"), ("step", "g1")]] * 2
MIXED = [[("forward", "None"), ("backward", "g1"), ("step", "g1")], [("backward", "g1 + g2"), ("step", "g1 + g2")]]


def timeline() -> Figure:
    return plots.grad_timeline({"clear before the forward pass": CLEAN, "never clear": MIXED})


def groups() -> Figure:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    model[2].requires_grad_(False)
    decayed = {"params": [model[0].weight], "weight_decay": 0.1, "lr": 0.01}
    spared = {"params": [model[0].bias, *model[1].parameters()], "weight_decay": 0.0, "lr": 0.01}
    return plots.parameter_groups(model, [decayed, spared])


def rates() -> Figure:
    return plots.schedules({"good": [1.0, 0.5, 0.0], "bad": [1.0, 0.0, 1.0]}, wrong=["bad"])


def arrows() -> Figure:
    before = [[4.0, 1.0], [-1.5, 2.5], [0.6, -0.7]]
    panels = {
        "by norm": ([[0.970, 0.243], [-0.514, 0.857], [0.6, -0.7]], 1.0, "norm"),
        "by value": ([[1.0, 1.0], [-1.0, 1.0], [0.6, -0.7]], 1.0, "value"),
    }
    return plots.clipped_gradients(before, panels)


def sweep() -> Figure:
    lrs = [10 ** (k / 4 - 6) for k in range(20)]
    losses = [2.3] * 15 + [2.0, 1.5, 1.2, 3.0, 9.0]
    return plots.range_test(lrs, losses, num_steps=30)


def runs() -> Figure:
    return plots.compare_runs({"one": [[3, 2, 1], [3, 2, 2], [3, 2, 4]], "two": [[3, 1, 1], [3, 1, 1], [3, 1, 1]]})


def paths() -> Figure:
    return plots.descent_paths({"a": [[-8, 1], [-4, 0.5]], "b": torch.tensor([[-8.0, 1.0]])}, ravine, (-9, 9), (-2, 2))


@pytest.mark.parametrize("draw", [timeline, groups, rates, arrows, sweep, runs, paths], ids=lambda draw: draw.__name__)
def test_texts_are_large_enough_and_neither_overlap_nor_leave_the_picture(draw):
    figure = draw()
    assert not overlaps(figure)
    assert not sticks_out(figure)
    assert all(text.get_fontsize() >= 9 for text in figure.figure.findobj(Text) if text.get_text())


def test_a_timeline_says_what_each_step_reads():
    alt = timeline().alt
    assert "clear before the forward pass: zero_grad (None), forward (None), backward (g1), step (g1)" in alt
    assert "step reads g1 and then g1 + g2." in alt


def test_a_timeline_marks_sums_by_more_than_color():
    bold = [t.get_text() for t in timeline().figure.findobj(Text) if t.get_weight() == "bold"]
    assert bold.count("g1 + g2") == 2 and "g1" not in bold


def test_paths_name_their_end_and_its_value():
    figure = paths()
    assert "a: 1 steps from (-8, 1) to (-4, 0.5), value 10.5." in figure.alt
    assert "a: 1 steps, value 10" in words(figure)[0] or any("value 10" in text for text in words(figure))


def test_a_path_needs_two_coordinates():
    with pytest.raises(ValueError, match="list of"):
        plots.descent_paths({"a": [[1.0], [2.0]]}, ravine, (-1, 1), (-1, 1))


def test_a_group_table_names_owner_group_and_what_is_frozen():
    alt = groups().alt
    assert "0.weight (Linear (3, 4)): 0: decay 0.1, lr 0.01." in alt
    assert "1.weight (LayerNorm (3,)): 1: decay 0, lr 0.01." in alt
    assert "2.weight (Linear (2, 3)): none (frozen)." in alt


def test_a_group_table_shows_a_trained_parameter_that_was_forgotten():
    model = nn.Linear(2, 1)
    assert "bias (Linear (1,)): none." in plots.parameter_groups(model, [{"params": [model.weight]}]).alt


def test_each_schedule_has_its_panel_with_the_others_behind():
    figure = rates()
    good, bad = figure.figure.axes[:2]
    assert [len(axis.lines) for axis in (good, bad)] == [3, 3]
    assert good.lines[-1].get_color() == BLUE and list(good.lines[-1].get_ydata()) == [1.0, 0.5, 0.0]
    assert bad.lines[-1].get_color() == VERMILION and bad.lines[-1].get_marker() == "x"
    assert good.get_ylim() == bad.get_ylim()
    assert "bad (wrong unit)" in words(figure)
    assert "bad (wrong unit, in red): 3 rates, starts at 1" in figure.alt


def test_a_long_schedule_has_few_markers():
    line = plots.schedules({"long": [1.0] * 400}).figure.axes[0].lines[-1]
    assert line.get_markevery() == 20


def test_clipping_says_which_arrows_turned():
    alt = arrows().alt
    assert "by norm: (4, 1), length 4.12, becomes (0.97, 0.243), length 1, same direction." in alt
    assert "by value: (4, 1), length 4.12, becomes (1, 1), length 1.41, turned by 31°." in alt


def test_a_range_test_tells_where_it_stopped_and_marks_a_tenth():
    figure = sweep()
    assert "the sweep stops at 0.0562 after 20 of 30 steps, loss 9; a tenth of that, 0.0056, is marked." in figure.alt
    assert "stopped at 0.056" in words(figure)


def test_a_range_test_that_ran_to_its_end_marks_no_start():
    figure = plots.range_test([0.1, 1.0], [2.0, 1.0], num_steps=2)
    assert "runs to 1" in figure.alt and "tenth" not in figure.alt


def test_a_range_test_survives_a_last_loss_that_is_not_finite():
    figure = plots.range_test([0.1, 1.0, 10.0], [2.0, 1.0, float("nan")], num_steps=5)
    assert "loss nan" in figure.alt
    assert figure.png()


def test_a_range_test_needs_as_many_losses_as_rates():
    with pytest.raises(ValueError, match="as many losses"):
        plots.range_test([0.1, 1.0], [1.0])


def test_runs_show_median_and_range():
    figure = runs()
    line = figure.figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3] and list(line.get_ydata()) == [3, 2, 2]
    assert "one: median from 3 to 2, last values of 3 runs between 1 and 4." in figure.alt


def test_one_run_is_not_several():
    with pytest.raises(ValueError, match="list of runs"):
        plots.compare_runs({"one": [3, 2, 1]})
