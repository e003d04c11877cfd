"""The simulator of week 12 against closed formulas, and against itself at its borders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_utils.exercise import load_exercise
from course_utils.scaling import Link, all_reduce_seconds, fit_link, simulate_step

scaling_model = load_exercise("scaling_model").reference
positive = st.floats(1e-3, 1e3)


def test_the_example_of_the_lesson():
    link = Link(0.0, 10e9)
    assert all_reduce_seconds(400e6, 2, link) == pytest.approx(0.04)
    assert all_reduce_seconds(400e6, 8, link) == pytest.approx(0.07)
    assert all_reduce_seconds(400e6, 1, link) == 0.0


def test_a_tree_has_logarithmic_latency():
    assert all_reduce_seconds(0, 1024, Link(1.0, 1.0), "tree") == 20.0
    assert all_reduce_seconds(0, 1024, Link(1.0, 1.0)) == 2046.0
    with pytest.raises(ValueError, match="ring or tree, not 'star'"):
        all_reduce_seconds(1, 2, Link(1.0, 1.0), "star")


@given(forward=positive, backward=positive, size=positive, ranks=st.integers(1, 64), speed=positive)
def test_one_bucket_is_the_formula_without_overlap(forward, backward, size, ranks, speed):
    step = simulate_step(forward, backward, size, ranks, Link(0.01, speed), bucket_bytes=size)
    formula = scaling_model(forward + backward, size, ranks, speed, 0.01, 0.0)
    assert step.seconds == pytest.approx(formula["step_s"])
    assert step.efficiency == pytest.approx(formula["efficiency"])


@given(size=positive, bucket=positive, ranks=st.integers(2, 64), speed=positive)
def test_buckets_go_one_after_the_other_and_none_before_it_is_full(size, bucket, ranks, speed):
    bucket = max(bucket, size / 50)
    step = simulate_step(1.0, 2.0, size, ranks, Link(0.01, speed), bucket)
    ends = [0.0, *(end for _, end in step.transfers)]
    for number, (start, end) in enumerate(step.transfers):
        assert start >= ends[number] and end > start
        assert start >= 1.0 + 2.0 * min(1.0, (number + 1) * bucket / size) - 1e-9
    assert step.compute <= step.seconds <= step.compute + step.communication + 1e-9


@given(latency=positive, bandwidth=positive)
def test_a_link_is_found_again_from_its_own_times(latency, bandwidth):
    link = Link(latency, bandwidth)
    found = fit_link([(size, all_reduce_seconds(size, 2, link)) for size in (4, 64, 1024, 2**20)])
    assert found.bandwidth == pytest.approx(bandwidth, rel=1e-3)
    predicted = all_reduce_seconds(4, 2, found)
    assert predicted == pytest.approx(all_reduce_seconds(4, 2, link), rel=1e-3)


def test_times_that_do_not_grow_give_no_link():
    with pytest.raises(ValueError, match="do not grow with the bytes"):
        fit_link([(4, 1.0), (1024, 0.5)])
