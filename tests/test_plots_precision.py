"""Figures of week 08: limits agree with real casts, drawings with the numbers given, and nothing sticks out."""

import math
from itertools import pairwise

import pytest
import torch

from course_utils import plots
from course_utils.plots.precision import Limits, blocking_plan, overlapped_plan

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


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


def cast(value, dtype):
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


# ---- formats ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE])
def test_limits_are_where_casts_change(dtype):
    limits = Limits.of(dtype)
    above = 1 + 1e-4  # float32, on the way, is not finer than that near 1e-41
    assert cast(limits.zero, dtype) == 0 < cast(limits.zero * above, dtype)
    assert cast(limits.infinite, dtype) == math.inf
    largest = torch.finfo(dtype).max
    assert cast((largest + limits.infinite) / 2, dtype) == largest


def test_limits_of_float16_are_the_known_ones():
    limits = Limits.of(HALF)
    assert (limits.zero, limits.normal, limits.infinite) == (2.0**-25, 2.0**-14, 65520.0)


@pytest.mark.parametrize(
    ("magnitude", "zone"),
    [(2.98e-8, "0"), (2.9803e-8, "subnormal"), (6e-5, "subnormal"), (2.0**-14, "normal"), (65519, "normal"),
     (65520, "inf")],
)  # fmt: skip
def test_zones_of_float16(magnitude, zone):
    assert Limits.of(HALF).zone(magnitude) == zone


def test_spans_cover_the_axis_without_gaps():
    spans = Limits.of(HALF).spans(1e-12, 1e12)
    assert [name for name, _, _ in spans] == ["0", "subnormal", "normal", "inf"]
    assert spans[0][1] == 1e-12 and spans[-1][2] == 1e12
    assert all(end == begin for (_, _, end), (_, begin, _) in pairwise(spans))
    assert [name for name, _, _ in Limits.of(BRAIN).spans(1e-12, 1e12)] == ["normal"]


def test_magnitude_zones_say_where_the_points_fall():
    figure = plots.magnitude_zones({"square": 9e4, "eps": 1e-8}, dtypes=(HALF, BRAIN), low=1e-12, high=1e12)
    assert "float16: 0 up to 2.98e-08, subnormal up to 6.1e-05, inf from 65520 on" in figure.alt
    assert "square falls into inf; eps falls into 0." in figure.alt
    assert "square falls into normal; eps falls into normal." in figure.alt
    assert {"square", "eps", "float16", "bfloat16"} <= set(texts(figure))
    assert_inside(figure)


def test_magnitude_zones_of_all_formats():
    figure = plots.magnitude_zones()
    assert figure.alt.count("subnormal up to") == 3
    assert_inside(figure)


# ---- promotion and autocast ---------------------------------------------------------


def test_promotion_draws_the_lattice_of_torch():
    figure = plots.promotion()
    assert (
        "int64 to float16, int64 to bfloat16, float16 to float32, bfloat16 to float32, float32 to float64" in figure.alt
    )
    assert "float16 + bfloat16 → float32" in figure.alt
    assert {"int64", "float64"} <= set(texts(figure))
    assert_inside(figure)


def test_promotion_of_other_dtypes_skips_what_lies_between():
    figure = plots.promotion((torch.bool, torch.uint8, torch.int8, torch.int16))
    assert "bool to uint8, bool to int8, uint8 to int16, int8 to int16." in figure.alt


def test_dtype_flow_names_each_arrow():
    figure = plots.dtype_flow(SINGLE, [("Linear", SINGLE, BRAIN), ("ReLU", None, BRAIN), ("loss", None, SINGLE)])
    drawn = texts(figure)
    assert drawn.count("float32") == 2 and drawn.count("bfloat16") == 2
    assert drawn.count("weights\nfloat32") == 1
    assert "The input is float32. Linear, weights float32, gives bfloat16. ReLU gives bfloat16." in figure.alt
    assert_inside(figure)


def test_dtype_flow_needs_a_step():
    with pytest.raises(ValueError, match="at least one step"):
        plots.dtype_flow(SINGLE, [])


# ---- scaling and the step -----------------------------------------------------------


def test_gradient_exponents_count_what_a_cast_destroys():
    torch.manual_seed(0)
    gradients = torch.exp(3 * torch.randn(500) - 17)
    figure = plots.gradient_exponents({"exact": gradients, "scaled": gradients * 2.0**40})
    lost = (gradients.half() == 0).double().mean().item()
    over = (gradients * 2.0**40).half().isinf().double().mean().item()
    assert 0.2 < lost < 0.8 and 0.1 < over < 0.9
    titles = [axis.get_title(loc="left") for axis in figure.figure.axes]
    assert titles == [f"exact: {lost:.0%} become 0, 0% become inf", f"scaled: 0% become 0, {over:.0%} become inf"]
    assert_inside(figure)


def test_gradient_exponents_leave_out_zeros_and_what_is_not_finite():
    figure = plots.gradient_exponents({"g": torch.tensor([0.0, math.inf, math.nan, 2.0**-3, 2.0**-30])})
    assert "g: from 2^-30 to 2^-3, 50% become 0, 0% become inf." in figure.alt
    with pytest.raises(ValueError, match="not zero"):
        plots.gradient_exponents({"g": torch.zeros(3)})


def test_amp_step_tells_scaled_from_true_norms():
    calls = [("zero_grad()", None, 0.5), ("backward", 32768.0, 0.5), ("clip", 1.0, 0.5), ("unscale_", 0.5, 0.5)]
    figure = plots.amp_step(calls, scale=65536.0)
    assert texts(figure).count("no gradient") == 1
    assert "backward: 32768 = S × 0.5. clip: 1 neither. unscale_: 0.5 true units." in figure.alt
    assert_inside(figure)


# ---- transfers and memory -----------------------------------------------------------


@pytest.mark.parametrize(("copy", "compute", "batches"), [(2, 3, 4), (3, 2, 4), (1, 1, 1), (5, 1, 3)])
def test_plans_do_all_the_work_in_order(copy, compute, batches):
    for plan in (blocking_plan(copy, compute, batches), overlapped_plan(copy, compute, batches)):
        for kind, length in (("copy", copy), ("compute", compute)):
            own = [(begin, end) for other, _, begin, end in plan if other == kind]
            assert len(own) == batches and all(end - begin == length for begin, end in own)
            assert all(end <= begin for (_, end), (begin, _) in pairwise(own))
        copied = {batch: end for kind, batch, _, end in plan if kind == "copy"}
        assert all(begin >= copied[batch] for kind, batch, begin, _ in plan if kind == "compute")


def test_overlap_saves_the_shorter_of_the_two():
    def end(plan):
        return max(stop for _, _, _, stop in plan)

    for copy, compute in ((2, 3), (3, 2)):
        assert end(blocking_plan(copy, compute, 4)) == 20
        assert end(overlapped_plan(copy, compute, 4)) == 20 - 3 * 2


def test_copy_timelines_say_both_ends():
    figure = plots.copy_timelines(copy=2, compute=3, batches=4)
    assert "blocking: done after 20 units; overlapped: done after 14 units." in figure.alt
    assert {"20", "14"} <= set(texts(figure))
    assert_inside(figure)


def test_memory_bars_add_up():
    figure = plots.memory_bars({"float32": {"weights": 28, "state": 56}, "half": {"weights": 14, "state": 0}})
    assert "float32: weights 28, state 56, together 84 GB." in figure.alt
    assert {"84 GB", "14 GB", "28", "56"} <= set(texts(figure))
    assert_inside(figure)
