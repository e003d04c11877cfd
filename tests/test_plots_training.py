"""Figures of the week on the training loop: numbers in picture and words are those of the data, nothing sticks out."""

import pytest
import torch
from matplotlib.text import Text
from torch import nn

from course_utils import plots
from course_utils.plots.training import confusion_counts, measure_mode


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


def assert_apart(figure):
    """No text lies on another."""
    figure.figure.draw_without_rendering()
    written = [text for axis in figure.figure.axes for text in axis.texts if text.get_text()]
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in written]  # of an annotation without its line
    for place, (first, box) in enumerate(boxes):
        for second, other in boxes[place + 1 :]:
            assert not box.overlaps(other), f"{first!r} lies on {second!r}"


# ---- loop_ring -------------------------------------------------------------------------------------------------------


def test_ring_has_the_steps_and_the_arc_for_zero_grad():
    figure = plots.loop_ring()
    assert {"forward + loss", "backward", "clip", "step"} <= set(texts(figure))
    assert "from step over forward to backward is shaded" in figure.alt
    assert_inside(figure)
    assert_apart(figure)


# ---- mode_grid -------------------------------------------------------------------------------------------------------


def test_modes_are_measured_and_the_model_stays_as_it_is():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)), torch.randn(8, 6)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    figure = plots.mode_grid(model, x)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (
        "train(), no_grad: not recording: for Monte Carlo dropout, renewing running statistics; two pas" in figure.alt
    )
    assert "running statistics move, no graph is kept" in figure.alt
    assert_inside(figure)
    assert_apart(figure)


def test_modes_of_a_model_without_moody_layers():
    plain = nn.Linear(3, 2)
    assert measure_mode(plain, torch.ones(4, 3), True, True) == (
        "two passes agree",
        "running statistics rest",
        "the result has a graph",
    )
    assert measure_mode(plain, torch.ones(4, 3), False, False)[2] == "no graph is kept"


# ---- batch_weights ---------------------------------------------------------------------------------------------------


def test_batch_weights_give_both_means():
    figure = plots.batch_weights([32, 32, 4], [1.0, 1.0, 9.0])
    titles = [axis.get_title(loc="left") for axis in figure.figure.axes]
    assert titles == ["mean of batch means: 3.667", "mean over samples: 1.471"]
    assert "4 samples of weight 1/12" in figure.alt and "4 samples of weight 1/68" in figure.alt
    areas = [sum(p.get_width() * p.get_height() for p in axis.patches[:3]) for axis in figure.figure.axes]
    assert areas == pytest.approx([1.0, 1.0])
    assert_inside(figure)
    assert_apart(figure)


@pytest.mark.parametrize(("sizes", "means"), [([], []), ([1, 2], [1.0])])
def test_batch_weights_need_a_mean_for_each_batch(sizes, means):
    with pytest.raises(ValueError, match="one mean for each batch"):
        plots.batch_weights(sizes, means)


# ---- live_tensors ----------------------------------------------------------------------------------------------------


def test_live_tensors_draws_a_bar_for_each_event():
    figure = plots.live_tensors({"kept": [("forward", 6), ("kept", 6)], "freed": [("forward", 6), ("backward", 0)]})
    assert [len(axis.patches) for axis in figure.figure.axes] == [2, 2]
    assert "kept: forward 6, kept 6." in figure.alt and "freed: forward 6, backward 0." in figure.alt
    assert_inside(figure)


def test_live_tensors_takes_events_it_does_not_know_and_all_zeros():
    figure = plots.live_tensors({"run": [("evening", 0)]})
    assert "evening 0" in figure.alt
    with pytest.raises(ValueError, match="at least one program"):
        plots.live_tensors({"run": []})


# ---- accumulation_windows --------------------------------------------------------------------------------------------


def test_windows_have_the_weights_of_both_recipes():
    figure = plots.accumulation_windows([4, 4, 4, 4, 4, 2, 2], 3)
    assert "window 3: 2 samples × 1/3, no step" in figure.alt
    assert "window 2: 4 samples × 4/10, 4 samples × 4/10, 2 samples × 2/10, step" in figure.alt
    assert texts(figure).count("step") == 5
    assert_inside(figure)
    assert_apart(figure)


def test_full_windows_lose_nothing():
    assert "never used" not in plots.accumulation_windows([4, 4, 4, 4], 2).alt
    with pytest.raises(ValueError, match="at least one batch"):
        plots.accumulation_windows([4], 0)


# ---- early_stopping --------------------------------------------------------------------------------------------------


def test_stop_is_patience_after_the_best():
    figure = plots.early_stopping([3.0, 2.0, 1.0, 0.5, 0.2], [3.0, 1.0, 1.5, 1.2, 1.3], patience=3)
    assert "lowest at epoch 2 with 1" in figure.alt and "patience 3 ran out after epoch 5" in figure.alt
    assert "stop after epoch 5" in figure.figure.axes[0].get_title(loc="left")
    assert_inside(figure)


def test_no_stop_and_no_nan():
    figure = plots.early_stopping([3.0, 2.0, 1.0], [3.0, float("nan"), 0.5], patience=3)
    assert "lowest at epoch 3" in figure.alt and "patience did not run out" in figure.alt
    with pytest.raises(ValueError, match="a finite one"):
        plots.early_stopping([1.0], [float("nan")], patience=1)


# ---- confusion_matrix ------------------------------------------------------------------------------------------------


def test_confusion_counts_have_targets_in_rows():
    targets, predictions = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 2, 1, 2, 2, 0])
    table = confusion_counts(targets, predictions)
    slow = torch.zeros(3, 3, dtype=torch.long)
    for i, j in zip(targets, predictions, strict=True):
        slow[i, j] += 1
    assert torch.equal(table, slow)
    figure = plots.confusion_matrix(targets, predictions)
    assert "4 of 6 right" in figure.alt and "0 read as 2 (1), 2 read as 0 (1)" in figure.alt
    assert_inside(figure)
    assert_apart(figure)


def test_confusion_matrix_of_ten_classes_fits_and_knows_names():
    torch.manual_seed(0)
    targets, predictions = torch.randint(10, (999,)), torch.randint(10, (999,))
    assert_inside(plots.confusion_matrix(targets, predictions))
    assert "cat read as dog (1)" in plots.confusion_matrix(torch.tensor([0]), torch.tensor([1]), ["cat", "dog"]).alt
    assert "No mistakes" in plots.confusion_matrix(targets, targets).alt


def test_confusion_matrix_wants_one_prediction_for_each_target():
    with pytest.raises(ValueError, match="one prediction for each target"):
        plots.confusion_matrix(torch.tensor([0, 1]), torch.tensor([0]))


# ---- worst_mistakes --------------------------------------------------------------------------------------------------


def test_worst_mistakes_come_first():
    images = torch.rand(4, 1, 8, 8)
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.001, 0.999], [0.6, 0.4]])
    figure = plots.worst_mistakes(images, torch.tensor([0, 0, 0, 1]), probabilities, count=3)
    titles = [axis.get_title() for axis in figure.figure.axes]
    assert titles == ["label 0: under 1 %\nread 1: 100 %", "label 0: 20 %\nread 1: 80 %", "label 1: 40 %\nread 0: 60 %"]
    assert "3 of them read wrongly" in figure.alt
    assert_inside(figure)


def test_worst_mistakes_says_what_was_right_and_hides_empty_places():
    images, targets = torch.rand(7, 8, 8), torch.zeros(7, dtype=torch.long)
    figure = plots.worst_mistakes(images, targets, torch.tensor([[0.7, 0.3]] * 7), count=10)
    assert figure.alt.count("read rightly") == 7 and "0 of them read wrongly" in figure.alt
    with pytest.raises(ValueError, match="for each image"):
        plots.worst_mistakes(images, targets[:3], torch.ones(7, 2))
