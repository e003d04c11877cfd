"""Figures of week 06: batches, padding and deliveries are those of the real DataLoader, and nothing sticks out."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from course_utils import datasets, plots
from course_utils.plots.loading import MOST_BATCHES, MOST_ITEMS, MOST_SAMPLES, batches_of


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


@given(size=st.integers(0, 40), batch_size=st.integers(1, 12), drop_last=st.booleans())
def test_batches_are_cut_as_the_loader_cuts_them(size, batch_size, drop_last):
    loader = DataLoader(range(size), batch_size=batch_size, drop_last=drop_last)
    assert batches_of(range(size), batch_size, drop_last) == [batch.tolist() for batch in loader]


def test_a_batch_of_no_samples_is_refused():
    with pytest.raises(ValueError, match="at least one sample, not 0"):
        batches_of(range(3), 0)


# ---- loader_pipeline ----------------------------------------------------------------


def test_the_pipeline_works_one_order_through():
    figure = plots.loader_pipeline([6, 1, 4, 0, 7, 2, 5, 3], batch_size=3)
    drawn = texts(figure)
    assert {"dataset", "sampler", "batch sampler", "fetch", "collate_fn", "pin memory", "your loop"} <= set(drawn)
    assert "first batch: [ds[6], ds[1], ds[4]]" in drawn and "X (3, 4)   y (3,)" in drawn
    assert "[6, 1, 4] [0, 7, 2] [5, 3]." in figure.alt and "Dropped" not in figure.alt
    assert_inside(figure)


def test_the_pipeline_says_what_is_dropped():
    figure = plots.loader_pipeline(range(MOST_SAMPLES), batch_size=5, drop_last=True)
    assert "Dropped: [15]." in figure.alt and "dropped" in texts(figure)
    assert_inside(figure)


def test_the_pipeline_without_a_batch_fetches_nothing():
    figure = plots.loader_pipeline([1, 0], batch_size=3, drop_last=True)
    assert "there is no batch: nothing is fetched" in texts(figure) and "none. Dropped: [1, 0]." in figure.alt
    assert_inside(figure)


@pytest.mark.parametrize("order", [[], range(MOST_SAMPLES + 1)])
def test_the_pipeline_refuses_what_does_not_fit(order):
    with pytest.raises(ValueError, match="holds 1 to"):
        plots.loader_pipeline(order, batch_size=3)


# ---- epoch_bars ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "size", "kept", "dropped"),
    [
        (65, 64, "2 in number, the last with 1 sample.", "1 in number, 1 sample not used."),
        (64, 64, "1 in number.", "1 in number."),
        (30, 32, "1 in number, the last with 30 samples.", "no batch at all, 30 samples not used."),
        (274, 32, "9 in number, the last with 18 samples.", "8 in number, 18 samples not used."),
    ],
)
def test_bars_of_an_epoch(samples, size, kept, dropped):
    figure = plots.epoch_bars(samples, size)
    assert f"With drop_last=False: {kept}" in figure.alt and f"With drop_last=True: {dropped}" in figure.alt
    assert_inside(figure)


def test_bars_refuse_an_empty_epoch_and_too_many_batches():
    with pytest.raises(ValueError, match="without samples"):
        plots.epoch_bars(0, 4)
    with pytest.raises(ValueError, match="too many to draw"):
        plots.epoch_bars(MOST_BATCHES + 1, 1)


# ---- padded_batch -------------------------------------------------------------------

PADDED = torch.tensor([[4, 0, 2, 0, 0], [7, 0, 0, 0, 0], [1, 3, 0, 9, 6]])
LENGTHS = torch.tensor([3, 1, 5])


def test_a_mask_from_lengths_has_no_marks():
    figure = plots.padded_batch(PADDED, LENGTHS, torch.arange(5) < LENGTHS[:, None])
    assert texts(figure).count("✓") == 9 and "contradicts" not in figure.alt
    assert "length 3" in texts(figure)
    assert_inside(figure)


def test_a_mask_from_the_pad_value_is_marked_where_it_is_wrong():
    figure = plots.padded_batch(PADDED, LENGTHS.tolist(), PADDED != 0)
    assert "The mask contradicts the lengths in 2 places." in figure.alt
    assert "row 0: 4, 0, 2, 0, 0; 3 real; mask true at 2" in figure.alt
    assert_inside(figure)


def test_a_batch_of_empty_sequences_can_be_drawn():
    assert_inside(plots.padded_batch(torch.zeros(2, 0), [0, 0], torch.zeros(2, 0, dtype=torch.bool)))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="differ"):
        plots.padded_batch(PADDED, LENGTHS, PADDED[:2] != 0)


# ---- deliveries ---------------------------------------------------------------------


def test_deliveries_count_what_came_not_exactly_once():
    batches = [(0, [0, 1]), (1, [0, 1]), (0, [2])]
    figure = plots.deliveries({"a stream": batches, "alone": [(-1, [0, 1, 2, 3])]}, items=4)
    drawn = texts(figure)
    assert {"0:2×", "2:1×", "3:0×", "worker 0", "worker 1", "main process"} <= set(drawn)
    assert "a stream: worker 0 [0, 1]; worker 1 [0, 1]; worker 0 [2]. Not once: 0 2 times, 1 2 times, 3 0 times." in (
        figure.alt
    )
    assert "alone: main process [0, 1, 2, 3]. Every item came exactly once." in figure.alt
    assert_inside(figure)


def test_the_most_deliveries_fit():
    twice = [(worker, range(start, start + 4)) for start in range(0, MOST_ITEMS, 4) for worker in (0, 1)]
    figure = plots.deliveries({"not sharded": twice}, items=MOST_ITEMS)
    assert_inside(figure)
    figure.figure.draw_without_rendering()
    counts = [text.get_window_extent() for text in figure.figure.axes[0].texts if text.get_text().endswith("×")]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(counts))
    with pytest.raises(ValueError, match="each twice"):
        plots.deliveries({"too many": []}, items=MOST_ITEMS + 1)


# ---- gantt --------------------------------------------------------------------------


def test_a_gantt_chart_says_how_long_each_was_busy():
    lanes = {
        "no worker": {"main: load": [(10, 40), (50, 80)], "main: compute": [(40, 50), (80, 90)]},
        "1 worker": {"worker 0": [(0, 30), (30, 60)], "main: compute": [(30, 40), (60, 70)]},
    }
    figure = plots.gantt(lanes)
    assert "no worker, 80 ms in all: main: load busy 60 ms in 2 bars, main: compute busy 20 ms in 2 bars." in figure.alt
    assert "1 worker: 70 ms" in texts(figure)
    assert_inside(figure)


def test_a_gantt_chart_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no interval to draw in idle"):
        plots.gantt({"idle": {"worker 0": []}})


# ---- class_shares and image_batch ---------------------------------------------------


def test_class_shares_count_batches_of_one_class():
    _, species = datasets.penguins()
    figure = plots.class_shares({"in the order of the file": species.split(32)}, datasets.SPECIES)
    assert "11 batches, 9 of them of one class only; in all Adelie 151, Chinstrap 68, Gentoo 123." in figure.alt
    assert set(datasets.SPECIES) <= set(texts(figure))
    assert_inside(figure)
    with pytest.raises(ValueError, match="batches per panel, not 0"):
        plots.class_shares({"none": []}, datasets.SPECIES)


def test_images_come_with_their_labels():
    images, labels = datasets.digits()
    figure = plots.image_batch(images[:11], labels[:11])
    assert [axis.get_title() for axis in figure.figure.axes][:11] == [str(label) for label in labels[:11].tolist()]
    assert figure.alt == "11 images of 8 × 8 pixels, labeled 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0."
    with pytest.raises(ValueError, match="are wanted"):
        plots.image_batch(images[:2], labels[:3])


def test_one_image_alone_can_be_drawn():
    images, labels = datasets.digits()
    assert plots.image_batch(images[:1], labels[:1], columns=1).alt.startswith("1 image of")
