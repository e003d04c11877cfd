"""Number-format microscope: what a format does to an update, to gradients, and to the memory of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure as MatplotlibFigure

from course_utils.explorers.explorer import Explorer
from course_utils.plots.figure import (
    BLACK,
    BLUE,
    DOTS_PER_INCH,
    GRAY,
    GREEN,
    ORANGE,
    PALE,
    SKY,
    VERMILION,
    Figure,
)

FORMATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
TICKS = 7  # representable numbers drawn on each side of the weight
SAMPLES = 4001
AXIS = (-18, 12)  # powers of ten that the histogram shows
BINS = np.linspace(*AXIS, 91)

# Bytes for each parameter, with Adam: two averages beside whatever holds weight and gradient.
RECIPES = {
    "float32": {"weights": 4, "gradients": 4, "Adam": 8},
    "AMP (autocast)": {"weights": 4, "gradients": 4, "Adam": 8},
    "pure bfloat16": {"weights": 2, "gradients": 2, "Adam": 4},
    "bfloat16 + master": {"weights": 2, "gradients": 2, "Adam": 8, "float32 copy": 4},
}
KINDS = {"weights": (BLUE, ""), "gradients": (ORANGE, "///"), "Adam": (SKY, "\\\\\\"), "float32 copy": (GREEN, "xxx")}


@dataclass(frozen=True)
class View:
    """Everything the controls set: format, a weight and its update, gradients and their scale, a model.

    center and spread: mean and standard deviation of log10 of the gradients' magnitudes. parameters: their number.
    """

    format: str = "bfloat16"
    value: float = 1.0
    update: float = 0.001
    scale_exponent: int = 0
    center: float = -6.0
    spread: float = 1.2
    parameters: float = 7e9
    recipe: str = "AMP (autocast)"


@dataclass(frozen=True)
class Update:
    """A weight minus an update, in a format. gap_below: the distance to the next smaller number."""

    weight: float
    update: float
    result: float
    gap: float
    gap_below: float

    @property
    def lost(self) -> bool:
        """Whether the weight is what it was, although something was to be subtracted."""
        return self.result == self.weight


def limits(name: str) -> tuple[float, float]:
    """The magnitude up to which a cast to the format gives zero, and the one from which on it gives infinity."""
    info = torch.finfo(FORMATS[name])
    last_gap = info.eps * 2.0 ** math.floor(math.log2(info.max * (1 - info.eps)))
    return info.tiny * info.eps / 2, info.max + last_gap / 2


def gap_at(name: str, value: float) -> float:
    """The distance from a positive number of the format to the next larger one, or smaller one for the largest."""
    numbers = neighbors(name, value, 1)
    return numbers[-1] - numbers[-2]


def neighbors(name: str, value: float, reach: int = TICKS) -> list[float]:
    """The numbers of the format around a positive value: the nearest one and up to `reach` on each side."""
    dtype = FORMATS[name]
    nearest = torch.tensor(value, dtype=torch.float64).to(dtype).clamp(max=torch.finfo(dtype).max)
    kind = BITS[dtype]
    # The bits of positive floating-point numbers, read as whole numbers, are in order.
    place = int(nearest.view(kind))
    last = int(torch.tensor(torch.finfo(dtype).max, dtype=dtype).view(kind))
    places = range(max(0, place - reach), min(last, place + reach) + 1)
    return torch.tensor(list(places), dtype=kind).view(dtype).tolist()


def subtract(name: str, value: float, update: float) -> Update:
    """value - update, both rounded to the format first, the difference rounded too."""
    dtype = FORMATS[name]
    weight = torch.tensor(value, dtype=torch.float64).to(dtype).clamp(max=torch.finfo(dtype).max)
    step = torch.tensor(update, dtype=torch.float64).to(dtype)
    below = [number for number in neighbors(name, value, 1) if number < weight]
    gap_below = float(weight) - below[-1] if below else 0.0
    return Update(float(weight), update, float(weight - step), gap_at(name, value), gap_below)


@cache
def _standard_normal() -> np.ndarray:
    """Evenly spread quantiles of a normal distribution: a sample without chance."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / SAMPLES) for i in range(SAMPLES)])


def magnitudes(view: View) -> np.ndarray:
    """The gradients' magnitudes, before scaling."""
    return 10.0 ** (view.center + view.spread * _standard_normal())


def fractions(view: View) -> tuple[float, float]:
    """The fractions of the scaled gradients that the format turns into zero and into infinity."""
    scaled = torch.from_numpy(magnitudes(view)) * 2.0**view.scale_exponent
    cast = scaled.to(FORMATS[view.format])
    return float((cast == 0).double().mean()), float(cast.isinf().double().mean())


def good_scales(view: View) -> list[int]:
    """The exponents of the slider at which nothing is flushed and nothing overflows."""
    flushed, overflow = limits(view.format)
    grads = magnitudes(view)
    return [s for s in range(25) if grads.min() * 2.0**s > flushed and grads.max() * 2.0**s < overflow]


def memory(parameters: float, recipe: str) -> dict[str, float]:
    """Bytes by kind, without activations."""
    return {kind: size * parameters for kind, size in RECIPES[recipe].items()}


# --- in words ---------------------------------------------------------------------------------------------------------


def size_in_words(size: float) -> str:
    """Bytes in the largest fitting unit of 1000."""
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= power:
            return f"{size / power:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def count_in_words(parameters: float) -> str:
    """A number of parameters, such as 7 B."""
    return f"{parameters / 1e9:.3g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"


def percent(fraction: float) -> str:
    """A fraction in percent, in which "0 %" and "100 %" mean exactly that."""
    if 0 < fraction < 5e-4:
        return "under 0.1 %"
    return "over 99.9 %" if 0.9995 < fraction < 1 else f"{100 * fraction:.1f} %".replace(".0 %", " %")


def describe(view: View) -> str:
    """The state in words: update, gradients, memory."""
    step = subtract(view.format, view.value, view.update)
    flushed, overflow = fractions(view)
    scales = good_scales(view)
    share = 100 * view.update / step.weight if step.weight else math.inf
    band = f"{scales[0]} to {scales[-1]}" if scales else "none"
    total = sum(memory(view.parameters, view.recipe).values())
    float32 = sum(memory(view.parameters, "float32").values())
    kinds = ", ".join(f"{k} {size_in_words(v)}" for k, v in memory(view.parameters, view.recipe).items())
    largest = step.weight == torch.finfo(FORMATS[view.format]).max
    too_large = f" ({view.value:.6g} does not fit; this is the largest number)" if largest else ""
    rows = {
        "weight": f"{step.weight:.9g} in {view.format}{too_large}; the next larger number is {step.gap:.3g} away, "
        f"the next smaller one {step.gap_below:.3g}",
        "update": f"{view.update:.3g}, {share:.3g} % of the weight; weight - update is {_result_in_words(step)}",
        "gradients": f"scaled by 2**{view.scale_exponent}: {percent(flushed)} become zero, "
        f"{percent(overflow)} become infinite; exponents without any loss: {band}",
        "memory": f"{count_in_words(view.parameters)} parameters, {view.recipe}: {kinds}; together "
        f"{size_in_words(total)} without activations (float32: {size_in_words(float32)})",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in rows.items())


def _result_in_words(step: Update) -> str:
    return f"{step.result:.9g}: the update is lost" if step.lost else f"{step.result:.9g}"


# --- pictures ---------------------------------------------------------------------------------------------------------

# Frames at fixed places and plain numbers at the ticks: fitting frames and setting powers take most of the time.


def picture(view: View) -> Figure:
    """Number line, histogram of the gradients, and memory of the four recipes."""
    figure = MatplotlibFigure(figsize=(7.5, 4.7), dpi=DOTS_PER_INCH)
    told = [
        _draw_line(figure.add_axes((0.04, 0.75, 0.92, 0.13)), view),
        _draw_gradients(figure.add_axes((0.07, 0.13, 0.42, 0.44)), view),
        _draw_memory(figure.add_axes((0.68, 0.19, 0.3, 0.38)), view),
    ]
    return Figure(figure, " ".join(told))


def _plain(axis, *, left: bool = False):
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines["left"].set_visible(left)
    axis.tick_params(labelsize=9)
    return axis


def _draw_line(axis, view: View) -> str:
    """The numbers of the format around the weight, the exact difference, and where it is rounded to."""
    step = subtract(view.format, view.value, view.update)
    numbers = neighbors(view.format, view.value)
    exact = step.weight - view.update
    unit = step.gap_below or step.gap
    left, right = step.weight - 5.5 * unit, step.weight + 3.5 * unit
    shown = [number for number in numbers if left <= number <= right]
    _plain(axis).set_yticks([])
    axis.vlines(shown, -0.25, 0.25, color=BLACK, linewidth=1.4)
    axis.plot([step.weight], [0], "o", color=BLUE, markersize=8)
    axis.text(step.weight, 0.5, f"weight {step.weight:.6g}", ha="left", va="bottom", fontsize=9, color=BLUE)
    if exact >= left:
        axis.plot([exact], [0], "D", color=ORANGE, markersize=6)
        axis.plot([step.result], [0], "x", color=VERMILION, markersize=11, markeredgewidth=2.2)
        told = f"exact difference (diamond) {exact:.6g}, rounded to (cross) {step.result:.6g}"
    else:
        axis.plot([left + 0.15 * unit], [0], "<", color=VERMILION, markersize=9)
        away = (step.weight - step.result) / unit
        told = f"the result {step.result:.6g} lies {away:.3g} gaps to the left"
    outcome = "the update is lost" if step.lost else "the weight moves"
    axis.set_title(f"{view.format}: {outcome}; {told}", fontsize=9.5, loc="left", y=1.45)
    axis.set(xlim=(left, right), ylim=(-0.4, 0.4))
    places = [step.weight - 4 * unit, step.weight - 2 * unit, step.weight, step.weight + 2 * unit]
    axis.set_xticks(places, [f"{place:.6g}" for place in places])
    return (
        f"Number line of {view.format} around the weight {step.weight:.6g}, gap {step.gap:.3g} above and "
        f"{step.gap_below:.3g} below; update {view.update:.3g}: {told}; {outcome}."
    )


def _draw_gradients(axis, view: View) -> str:
    """The scaled gradients against the window of the format."""
    flushed, overflow = fractions(view)
    low, high = (math.log10(limit) for limit in limits(view.format))
    logs = np.log10(magnitudes(view))
    shift = view.scale_exponent * math.log10(2)
    before = np.histogram(logs, BINS)[0] / SAMPLES
    after = np.histogram(np.clip(logs + shift, *AXIS), BINS)[0] / SAMPLES
    top = 1.45 * max(after.max(), before.max())
    _plain(axis).set_yticks([])
    start, end = max(low, AXIS[0]), min(high, AXIS[1])
    axis.axvspan(start, end, color=PALE, linewidth=0)
    middle = (start + end) / 2
    axis.text(middle, 0.97 * top, view.format, ha="center", va="top", fontsize=9, color=BLACK)
    axis.stairs(after, BINS, fill=True, color=BLUE)
    if view.scale_exponent:
        axis.stairs(before, BINS, color=GRAY, linestyle="--", linewidth=1.1)
    for lost, edge, place, name, side in (
        (flushed, low, AXIS[0], "become 0", "left"),
        (overflow, high, AXIS[1], "become inf", "right"),
    ):
        if AXIS[0] < edge < AXIS[1]:
            outside = np.where((BINS[:-1] < edge) if side == "left" else (BINS[1:] > edge), after, 0.0)
            axis.stairs(outside, BINS, fill=True, facecolor=VERMILION, hatch="///", edgecolor="white", linewidth=0)
            axis.axvline(edge, color=BLACK, linewidth=1.2)
        axis.text(place, 0.84 * top, f"{percent(lost)}\n{name}", ha=side, va="top", fontsize=9, color=BLACK)
    axis.set(xlim=AXIS, ylim=(0, top))
    places = range(-16, 11, 6)
    axis.set_xticks(list(places), [f"1e{place}" for place in places])
    axis.set_xlabel("magnitude of the gradient, scaled", fontsize=9)
    axis.xaxis.set_label_coords(0.5, -0.16)
    dashed = ", dashed: unscaled" if view.scale_exponent else ""
    axis.set_title(f"Gradients × 2**{view.scale_exponent}{dashed}; gray: in range", fontsize=9.5, loc="left", y=1.03)
    return (
        f"Histogram of gradient magnitudes around 1e{view.center:g} with a spread of {view.spread:g} powers of ten, "
        f"scaled by 2**{view.scale_exponent}, against the window of {view.format}: {percent(flushed)} become zero, "
        f"{percent(overflow)} become infinite."
    )


def _draw_memory(axis, view: View) -> str:
    """Stacked bars of the four recipes, the chosen one marked, and what the colors mean below them."""
    axis.set_axis_off()
    told, boxes = [], {kind: [] for kind in KINDS}
    for place, name in enumerate(RECIPES):
        start = 0.0
        for kind, size in RECIPES[name].items():
            boxes[kind].append(_box(start, place, size))
            start += size
        total = size_in_words(start * view.parameters)
        axis.text(start + 0.3, place, total, va="center", fontsize=9, color=BLACK)
        label = f"▶ {name}" if name == view.recipe else name
        axis.text(-0.4, place, label, ha="right", va="center", fontsize=9, color=BLACK)
        parts = ", ".join(f"{k} {size_in_words(v)}" for k, v in memory(view.parameters, name).items())
        told.append(f"{name}: {parts}, together {total}.")
    for place, (kind, (color, hatch)) in enumerate(KINDS.items()):
        x, y = 10.5 * (place % 2), 4.1 + 0.55 * (place // 2)
        boxes[kind].append(_box(x, y, 1.4, 0.18))
        axis.text(x + 1.8, y, kind, va="center", fontsize=9, color=BLACK)
        # One collection for each kind: patches of their own would take most of the time.
        look = {"facecolor": color, "edgecolor": "white", "hatch": hatch, "clip_on": False}
        axis.add_collection(PolyCollection(boxes[kind], **look), autolim=False)
    axis.set(xlim=(0, 21), ylim=(3.5, -0.5))
    axis.set_title(f"{count_in_words(view.parameters)} parameters with Adam", fontsize=9.5, loc="left", y=1.03)
    return f"Memory for {count_in_words(view.parameters)} parameters without activations. {' '.join(told)}"


def _box(left: float, middle: float, width: float, half: float = 0.3) -> list[tuple[float, float]]:
    """The corners of a bar."""
    low, high, right = middle - half, middle + half, left + width
    return [(left, low), (right, low), (right, high), (left, high)]


def table() -> list[tuple[str, ...]]:
    """What the formats can do: name, gap at 1, gap at 100, flushed at, overflow at."""
    rows = [("format", "gap at 1", "gap at 100", "zero up to", "inf from")]
    for name in FORMATS:
        flushed, overflow = limits(name)
        top = f"{overflow:.0f}" if overflow < 1e6 else f"{overflow:.3g}"
        rows.append((name, f"{gap_at(name, 1.0):.3g}", f"{gap_at(name, 100.0):.3g}", f"{flushed:.3g}", top))
    return rows


@cache
def still() -> Figure:
    """The three pictures and a table of the formats, for a page without a kernel."""
    view = View()
    float16 = View(format="float16", scale_exponent=10, recipe="")
    figure = MatplotlibFigure(figsize=(7.5, 6.4), dpi=DOTS_PER_INCH)
    told = [
        _draw_line(figure.add_axes((0.04, 0.84, 0.92, 0.08)), view),
        _draw_gradients(figure.add_axes((0.07, 0.33, 0.42, 0.33)), float16),
        _draw_memory(figure.add_axes((0.68, 0.36, 0.3, 0.3)), float16),
    ]
    rows = table()
    for line, row in enumerate(rows):
        for x, text in zip((0.07, 0.25, 0.43, 0.61, 0.79), row, strict=True):
            weight = "bold" if line == 0 else "normal"
            figure.text(x, 0.17 - 0.045 * line, text, fontsize=9.5, fontweight=weight, color=BLACK)
        told.append("; ".join(f"{head} {text}" for head, text in zip(rows[0], row, strict=True)) + "." if line else "")
    return Figure(figure, " ".join(told))


# --- the explorer -----------------------------------------------------------------------------------------------------


def render(**controls: object) -> tuple[Figure, str]:
    """Picture and words for the values of the controls."""
    view = View(**controls)
    return picture(view), describe(view)


def number_microscope() -> Explorer:
    """Look at a format: a weight and its update, gradients and their scale, the memory of a run."""
    first = View()
    slow = {"continuous_update": False, "style": {"description_width": "110px"}}
    wide = {"style": {"description_width": "110px"}}

    def logarithmic(name: str, low: float, high: float, words: str, digits: str = ".3g") -> widgets.FloatLogSlider:
        return widgets.FloatLogSlider(
            min=low, max=high, step=0.02, value=getattr(first, name), description=words, readout_format=digits, **slow
        )

    controls: dict[str, widgets.Widget] = {
        "format": widgets.Dropdown(options=list(FORMATS), value=first.format, description="format", **wide),
        "value": logarithmic("value", -9, 6, "weight", ".6g"),
        "update": logarithmic("update", -12, 4, "update"),
        "center": widgets.FloatSlider(
            min=-12, max=2, step=0.5, value=first.center, description="gradients: log10", **slow
        ),
        "spread": widgets.FloatSlider(min=0.2, max=3, step=0.1, value=first.spread, description="their spread", **slow),
        "scale_exponent": widgets.IntSlider(
            min=0, max=24, value=first.scale_exponent, description="scale: 2**", **slow
        ),
        "parameters": logarithmic("parameters", 6, math.log10(70e9), "parameters"),
        "recipe": widgets.Dropdown(options=list(RECIPES), value=first.recipe, description="recipe", **wide),
    }
    return Explorer("Number-format microscope", controls, render, still())
