"""Number-format microscope: formats against torch, what there is to discover, words, picture and controls."""

import importlib
import itertools
import math
import time

import numpy as np
import pytest
import torch

module = importlib.import_module("course_utils.explorers.number_microscope")
FORMATS, RECIPES, View = module.FORMATS, module.RECIPES, module.View

each_format = pytest.mark.parametrize("name", FORMATS)


@each_format
def test_neighbors_are_those_of_nextafter(name):
    dtype = FORMATS[name]
    for value in (1e-9, 0.3, 1.0, 100.0, 65504.0, 1e6):
        numbers = module.neighbors(name, value)
        for number, following in itertools.pairwise(numbers):
            at, up = torch.tensor(number, dtype=dtype), torch.tensor(math.inf, dtype=dtype)
            assert torch.nextafter(at, up).item() == following


@each_format
def test_limits_are_where_the_cast_changes_its_mind(name):
    flushed, overflow = module.limits(name)
    dtype = FORMATS[name]

    def cast(value):
        return float(torch.tensor(value, dtype=torch.float64).to(dtype))

    # torch casts float64 to bfloat16 by way of float32, whose subnormal numbers are 3e-5 apart there.
    assert cast(flushed) == 0 < cast(flushed * (1 + 1e-4))
    assert cast(overflow) == math.inf > cast(overflow * (1 - 1e-6))


@each_format
def test_the_loop_of_a_student_finds_the_same_difference(name):
    for value in (1e-9, 0.77, 1.0, 123.4, 1e5):
        for update in (1e-12, 1e-4, 0.3, 1e4):
            weight = torch.tensor(value, dtype=torch.float64).to(FORMATS[name])
            if weight.isinf():
                continue
            moved = weight - torch.tensor(update, dtype=torch.float64).to(FORMATS[name])
            step = module.subtract(name, value, update)
            assert (step.result, step.lost) == (moved.item(), bool(moved == weight))


def test_bfloat16_loses_updates_below_two_to_four_thousandths_of_a_weight():
    """The first thing to discover: the largest lost update, as a share of the weight."""
    shares = []
    for value in np.linspace(1.0, 1.99, 45):
        weight = module.subtract("bfloat16", value, 0.0).weight
        lost = [
            share for share in np.linspace(1e-3, 5e-3, 161) if module.subtract("bfloat16", value, share * weight).lost
        ]
        shares.append(max(lost))
    assert min(shares) == pytest.approx(0.00195, rel=0.03)
    assert max(shares) == pytest.approx(0.0039, rel=0.03)


def test_there_is_a_band_of_scales_without_losses():
    """The second: too small a scale flushes, too large a one overflows, and a wide spread leaves none."""
    view = View(format="float16", center=-7.0, spread=0.8)
    band = module.good_scales(view)
    assert band == list(range(band[0], band[-1] + 1)) and 0 < band[0] < band[-1] < 24 + 1
    losses = {s: module.fractions(View(format="float16", center=-7.0, spread=0.8, scale_exponent=s)) for s in range(25)}
    assert [s for s, lost in losses.items() if lost == (0, 0)] == band
    assert losses[0][0] > 0.2
    loud = View(format="float16", center=1.0, spread=0.8, scale_exponent=24)
    assert module.fractions(loud)[1] > 0.9
    assert module.good_scales(View(format="float16", center=-6.0, spread=3.0)) == []
    assert len(module.good_scales(View(center=-7.0, spread=2.0))) == 25


def test_AMP_leaves_the_bars_unchanged():
    """The third, and the four sums for 7 B parameters."""
    assert RECIPES["AMP (autocast)"] == RECIPES["float32"]
    sums = [sum(module.memory(7e9, recipe).values()) / 1e9 for recipe in RECIPES]
    assert sums == pytest.approx([112, 112, 56, 112])


@pytest.mark.parametrize(("recipe", "dtype"), [("float32", torch.float32), ("pure bfloat16", torch.bfloat16)])
def test_bytes_for_each_parameter_are_those_of_a_real_adam(recipe, dtype):
    weight = torch.nn.Parameter(torch.zeros(1000, dtype=dtype))
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    averages = [value for value in optimizer.state[weight].values() if value.dim()]
    counted = {"weights": weight.nbytes, "gradients": weight.grad.nbytes, "Adam": sum(a.nbytes for a in averages)}
    assert module.memory(1000, recipe) == counted


def test_the_sample_has_the_center_and_spread_that_were_asked_for():
    logs = np.log10(module.magnitudes(View(center=-4.0, spread=1.5)))
    assert logs.mean() == pytest.approx(-4.0) and logs.std() == pytest.approx(1.5, rel=0.01)


def test_words_tell_a_lost_update_and_the_band():
    words = module.describe(View())
    assert "weight - update is 1: the update is lost" in words
    assert "112 GB without activations (float32: 112 GB)" in words
    words = module.describe(View(format="float16", center=-7.0, spread=0.8))
    assert "exponents without any loss: 5 to 21" in words or "exponents without any loss" in words
    words = module.describe(View(format="float16", value=1e6))
    assert "65504 in float16 (1e+06 does not fit; this is the largest number)" in words
    assert module.percent(0.0) == "0 %" and module.percent(1.0) == "100 %"
    assert module.percent(1e-5) == "under 0.1 %" and module.percent(0.99999) == "over 99.9 %"


def test_table_of_the_formats():
    assert module.table()[1:] == [
        ("float16", "0.000977", "0.0625", "2.98e-08", "65520"),
        ("bfloat16", "0.00781", "0.5", "4.59e-41", "3.4e+38"),
        ("float32", "1.19e-07", "7.63e-06", "7.01e-46", "3.4e+38"),
    ]


@each_format
@pytest.mark.parametrize("value", [1e-9, 1.0, 1e6])
@pytest.mark.parametrize("update", [1e-12, 1e4])
def test_the_ends_of_all_sliders_are_drawn(name, value, update):
    for extreme in ({"scale_exponent": 24, "center": 2.0, "spread": 3.0}, {"center": -12.0, "spread": 0.2}):
        view = View(name, value, update, parameters=70e9, **extreme)
        figure, words = module.picture(view), module.describe(view)
        assert len(figure.figure.axes) == 3 and figure.png()
        assert "nan" not in words.split() and name in figure.alt


def test_the_picture_is_there_in_less_than_a_tenth_of_a_second():
    """CPU time, twice as much allowed on a busy machine."""
    times = []
    for scale in range(5):
        start = time.process_time()
        module.render(**vars(View(scale_exponent=scale)))[0].html()
        times.append(time.process_time() - start)
    assert min(times) < 0.2


def test_the_still_picture_tells_the_table():
    alt = module.still().alt
    assert "format float16; gap at 1 0.000977; gap at 100 0.0625; zero up to 2.98e-08; inf from 65520." in alt
    assert "pure bfloat16: weights 14 GB, gradients 14 GB, Adam 28 GB, together 56 GB." in alt


def test_controls_change_words_and_picture():
    explorer = module.number_microscope()
    before = explorer.picture.value
    explorer.controls["format"].value = "float16"
    explorer.controls["center"].value = -8.0
    explorer.controls["recipe"].value = "pure bfloat16"
    assert "in float16; the next larger number is 0.000977 away" in explorer.words.value
    assert "pure bfloat16: weights 14 GB" in explorer.words.value
    assert explorer.picture.value != before


def test_a_page_without_a_kernel_gets_the_still_picture():
    bundle = module.number_microscope()._repr_mimebundle_()
    assert "Number-format microscope" in bundle["text/plain"]
    assert "<img" in bundle["text/html"]
