"""Figures of week 12: shards and the ring are the real ones, verdicts about calls are right, nothing sticks out."""

import pytest
from torch.utils.data import DistributedSampler

from course_utils import plots, scaling
from course_utils.plots.distributed import MOST_CALLS, MOST_COLUMNS, ring_states


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


def test_ranks_count_through_all_machines():
    figure = plots.ranks(machines=2, per_machine=2)
    assert "rank 3 on machine 1, local rank 1, device cuda:1" in figure.alt
    assert "process group of world size 4: broadcast, all-reduce, barrier" in texts(figure)
    assert_inside(figure)
    assert_inside(plots.ranks(1, 4))
    with pytest.raises(ValueError, match="1 to 4 processes, not 6"):
        plots.ranks(2, 3)


def test_shards_mark_what_was_handed_out_before():
    panels = {
        "ten": [list(DistributedSampler(range(10), 4, rank, shuffle=False)) for rank in range(4)],
        "cut": [list(DistributedSampler(range(10), 4, rank, shuffle=False, drop_last=True)) for rank in range(4)],
        "two": [list(DistributedSampler(range(2), 5, rank, shuffle=False)) for rank in range(5)],
    }
    figure = plots.shards(panels, rows=(10, 10, 2))
    drawn = texts(figure)
    assert drawn.count("hatched: 2 handed out again") == 1 and drawn.count("hatched: 3 handed out again") == 1
    assert "not used: 8, 9" in drawn
    assert "rank 3 [3, 7, 1]. More than once: row 0 2 times, row 1 2 times; every row used." in figure.alt
    assert_inside(figure)


def test_the_longest_shards_fit_below_one_another():
    panel = [range(rank * MOST_COLUMNS, (rank + 1) * MOST_COLUMNS) for rank in range(2)]
    assert_inside(plots.shards({"one": panel, "another": panel}, rows=2 * MOST_COLUMNS))
    with pytest.raises(ValueError, match="the longest has 15"):
        plots.shards({"long": [range(MOST_COLUMNS + 1)]}, rows=20)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_ring_ends_with_all_sums_everywhere(world):
    states = ring_states(world)
    everybody = "".join(map(str, range(world)))
    assert len(states) == 2 * (world - 1) + 1
    assert states[-1] == ([[everybody] * world] * world, {})
    after_the_first_half = states[world - 1][0]
    assert sum(text == everybody for row in after_the_first_half for text in row) == world
    for _, moves in states[:-1]:
        assert sorted(rank for rank, _ in moves) == sorted(moves.values()) == list(range(world))
    assert_inside(plots.ring(world))


def test_a_ring_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2, 3 or 4 ranks, not 5"):
        plots.ring(5)


def test_buckets_say_what_sticks_out():
    link = scaling.Link(10e-6, 10e9)
    figure = plots.buckets(
        {
            "one": scaling.simulate_step(0.033, 0.067, 400e6, 8, link, bucket_bytes=400e6),
            "alone": scaling.simulate_step(0.033, 0.067, 400e6, 1, link),
        }
    )
    assert "one: forward 33 ms, backward 67 ms, 1 transfer of 70 ms in all, 1 of them ending after" in figure.alt
    assert "alone: forward 33 ms, backward 67 ms, 0 transfers of 0 ms in all" in figure.alt
    assert "170 ms" in texts(figure)
    assert_inside(figure)


def test_calls_are_matched_by_their_place():
    figure = plots.calls({"rank 0": ["gradient", "validation", "gradient"], "rank 1": ["gradient", "gradient"]})
    assert [word for word in texts(figure) if word in ("matches", "mixed up", "waits")] == [
        "matches", "mixed up", "waits",
    ]  # fmt: skip
    assert "Call 3: rank 0 gradient, rank 1 no call; waits." in figure.alt
    assert_inside(figure)


def test_what_comes_after_a_wait_is_never_reached():
    figure = plots.calls({"rank 0": ["a", "b", "c"], "rank 1": ["a"]})
    assert "Call 2: rank 0 b, rank 1 no call; waits. Call 3: rank 0 c, rank 1 no call; never reached." in figure.alt
    with pytest.raises(ValueError, match="1 to 6 calls in a lane, not 7"):
        plots.calls({"rank 0": ["a"] * (MOST_CALLS + 1)})


def test_message_times_tell_both_numbers():
    figure = plots.message_times([(4, 2e-4), (1024, 4e-4)], [3e-4, 3e-4])
    assert "4 bytes 0.2 ms measured and 0.3 ms predicted" in figure.alt
    assert_inside(figure)
    with pytest.raises(ValueError, match="1 measurements and 2 predictions"):
        plots.message_times([(4, 1.0)], [1.0, 2.0])
