"""Figures of week 08: number formats and their limits, dtypes on their way, loss scaling, copies, memory.

Limits and spacings are read from `torch.finfo`, promotion from `torch.promote_types`; everything else is drawn from
the numbers that the caller measured. Drawings are laid out in inches, like those of `memory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from course_utils.plots.figure import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    HATCHES,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Figure,
    new_figure,
)
from course_utils.plots.memory import (
    MARGIN,
    SIZE,
    SMALL,
    WIDTH,
    Fill,
    arrow,
    canvas,
    outline,
    tint,
    write,
    write_centered,
)

MONO = {"family": "monospace", "fontsize": SMALL}
ZONES = {
    "0": Fill(GRAY, "xxx"),
    "subnormal": Fill(ORANGE, "///"),
    "normal": Fill(SKY),
    "inf": Fill(VERMILION, "\\\\\\"),
}
LOOKS = {  # how a dtype is drawn where it flows: color, line style, width
    torch.float16: (VERMILION, (0, (2, 1.2)), 2.6),
    torch.bfloat16: (ORANGE, (0, (5, 1.5)), 2.6),
    torch.float32: (BLUE, "-", 2.6),
    torch.float64: (PURPLE, "-", 4.2),
}


def short(dtype: torch.dtype) -> str:
    """float16, not torch.float16."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Limits:
    """Where the zones of a format begin: below `zero` a magnitude rounds to 0, from `infinite` on to inf."""

    zero: float
    normal: float
    infinite: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Limits:
        """The limits of a floating dtype, rounding included, as float64."""
        limits = torch.finfo(dtype)
        _, exponent = math.frexp(limits.max)  # the largest number lies in [2^(exponent - 1), 2^exponent)
        half_gap = math.ldexp(limits.eps, exponent - 2)  # what is half a spacing above the largest is rounded up
        return cls(limits.smallest_normal * limits.eps / 2, limits.smallest_normal, limits.max + half_gap)

    def zone(self, magnitude: float) -> str:
        """The name of the zone a magnitude falls in."""
        if magnitude <= self.zero:
            return "0"
        if magnitude < self.normal:
            return "subnormal"
        return "inf" if magnitude >= self.infinite else "normal"

    def spans(self, low: float, high: float) -> list[tuple[str, float, float]]:
        """The zones between two magnitudes: name, begin, end."""
        edges = [low, *(edge for edge in (self.zero, self.normal, self.infinite) if low < edge < high), high]
        return [(self.zone(math.sqrt(begin) * math.sqrt(end)), begin, end) for begin, end in pairwise(edges)]


# ---- formats ---------------------------------------------------------------------------------------------------------


def magnitude_zones(
    points: Mapping[str, float] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float16, torch.bfloat16, torch.float32),
    low: float = 1e-48,
    high: float = 1e42,
) -> Figure:
    """Which magnitudes a format turns into 0, keeps with fewer digits, keeps, or turns into inf: one strip per dtype.

    points: label → magnitude, each marked by a line through all strips. low, high: the ends of the axis.
    """
    points = dict(points or {})
    head = 0.5 + 0.24 * len(points)
    row, tall, left = 0.6, 0.34, 0.95
    right = WIDTH - MARGIN - 0.15
    bottom = head + row * len(dtypes)
    figure, axis = canvas(bottom + 0.42)
    span = math.log10(high) - math.log10(low)

    def place(magnitude: float) -> float:
        return left + (right - left) * (math.log10(magnitude) - math.log10(low)) / span

    _zone_key(axis, left)
    words = []
    for index, dtype in enumerate(dtypes):
        limits, top = Limits.of(dtype), head + row * index
        write(axis, MARGIN, top + tall / 2, short(dtype), weight="bold")
        for zone, begin, end in limits.spans(low, high):
            x, width = place(begin), place(end) - place(begin)
            _block(axis, x, top, width, tall, ZONES[zone])
            if width > 0.09 * len(zone) + 0.1:
                _plate(axis, x + width / 2, top + tall / 2, zone)
        words.append(
            f"{short(dtype)}: 0 up to {limits.zero:.3g}, subnormal up to {limits.normal:.3g}, "
            f"inf from {limits.infinite:.6g} on"
            + "".join(f"; {label} falls into {limits.zone(value)}" for label, value in points.items())
            + "."
        )
    for index, (label, value) in enumerate(points.items()):
        x, y = place(value), 0.52 + 0.24 * index
        axis.plot([x, x], [y + 0.1, bottom - (row - tall)], color=BLACK, linewidth=1.3)
        axis.plot([x], [y + 0.1], marker="v", color=BLACK, markersize=5)
        _side_label(axis, x, y, label)
    _decades(axis, place, low, high, bottom - 0.1)
    return Figure(figure, "Magnitudes on a logarithmic axis, a strip per format. " + " ".join(words))


def _zone_key(axis: Axes, x: float) -> None:
    """What the fillings mean, in one line."""
    for zone, name in {"0": "becomes 0", "subnormal": "subnormal: fewer digits", "normal": "normal",
                       "inf": "becomes inf"}.items():  # fmt: skip
        _block(axis, x, 0.1, 0.26, 0.18, ZONES[zone])
        write(axis, x + 0.33, 0.19, name, fontsize=SMALL)
        x += 0.33 + 0.077 * len(name) + 0.2


def _side_label(axis: Axes, x: float, y: float, text: str) -> None:
    """A label beside a pin, on the side where there is room."""
    right = x < WIDTH / 2
    write(axis, x + (0.09 if right else -0.09), y, text, fontsize=SMALL, ha="left" if right else "right")


def _decades(axis: Axes, place, low: float, high: float, y: float) -> None:
    """Ticks at powers of ten, about nine of them."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, round((last - first) / 9))
    for exponent in range(-(-first // step) * step, last + 1, step):
        x = place(10.0**exponent)
        axis.plot([x, x], [y, y + 0.06], color=GRAY, linewidth=0.9)
        write_centered(axis, x, y + 0.19, f"$10^{{{exponent}}}$" if exponent else "1", fontsize=SMALL)


def _block(axis: Axes, x: float, y: float, width: float, height: float, fill: Fill) -> None:
    look = {"facecolor": tint(fill.color), "edgecolor": tint(fill.color, 0.6)}
    axis.add_patch(Rectangle((x, y), width, height, hatch=fill.hatch or None, linewidth=0, **look))
    axis.add_patch(Rectangle((x, y), width, height, facecolor="none", edgecolor=GRAY, linewidth=0.9))


def _plate(axis: Axes, x: float, y: float, text: str, **options) -> None:
    """Text on a white plate, readable on any hatching."""
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9}
    write_centered(axis, x, y, text, **{"fontsize": SMALL, "bbox": plate, **options})


# ---- mixing dtypes ---------------------------------------------------------------------------------------------------


def promotion(
    dtypes: Sequence[torch.dtype] = (torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
) -> Figure:
    """The lattice of `torch.promote_types`: two dtypes meet in the first one that arrows lead to from both."""
    above = {a: [b for b in dtypes if a != b and torch.promote_types(a, b) == b] for a in dtypes}
    links = [(a, b) for a in dtypes for b in above[a] if not any(b in above[c] for c in above[a])]
    depth = {a: len([b for b in dtypes if a in above[b]]) for a in dtypes}
    levels = [[a for a in dtypes if depth[a] == level] for level in sorted(set(depth.values()))]
    lanes = max(map(len, levels))
    figure, axis = canvas(0.62 * lanes + 0.15)
    wide, tall = 1.1, 0.34
    pitch = (WIDTH - 2 * MARGIN - wide) / max(1, len(levels) - 1)
    spots = {}
    for column, level in enumerate(levels):
        for lane, dtype in enumerate(level):
            middle = 0.075 + 0.62 * (lanes / 2 + lane - (len(level) - 1) / 2)
            spots[dtype] = (MARGIN + pitch * column, middle)
    for a, b in links:
        (x, y), (far, other) = spots[a], spots[b]
        arrow(axis, (x + wide + 0.03, y), (far - 0.03, other), GRAY)
    for dtype, (x, y) in spots.items():
        color = LOOKS.get(dtype, (GREEN,))[0]
        outline(axis, x, y - tall / 2, wide, tall, color, facecolor=tint(color, 0.18), linewidth=1.6)
        write_centered(axis, x + wide / 2, y, short(dtype), weight="bold")
    pairs = [
        f"{short(a)} + {short(b)} → {short(torch.promote_types(a, b))}"
        for a, b in combinations(dtypes, 2)
        if torch.promote_types(a, b) not in (a, b)
    ]
    arrows = ", ".join(f"{short(a)} to {short(b)}" for a, b in links)
    return Figure(
        figure, f"Promotion between dtypes. Arrows lead from {arrows}. Neither of the two: {', '.join(pairs)}."
    )


# ---- autocast --------------------------------------------------------------------------------------------------------


def dtype_flow(start: torch.dtype, steps: Sequence[tuple[str, torch.dtype | None, torch.dtype]]) -> Figure:
    """A chain of operations; each arrow shows the dtype of the tensor that goes along it.

    start: the dtype of the input. steps: (operation, dtype of its weights or None, dtype of its result).
    """
    if not steps:
        raise ValueError("dtype_flow needs at least one step to draw.")
    pitch = (WIDTH - 2 * MARGIN - 0.45) / len(steps)
    wide, tall, top = pitch - 0.46, 0.5, 0.42
    figure, axis = canvas(1.75)
    flows = [start, *(result for _, _, result in steps)]
    for index, dtype in enumerate(flows):
        x = MARGIN + pitch * index
        color, style, width = LOOKS.get(dtype, (BLACK, ":", 2))
        end = x + 0.42
        axis.plot([x, end - 0.1], [top + tall / 2] * 2, color=color, linestyle=style, linewidth=width)
        arrow(axis, (end - 0.09, top + tall / 2), (end, top + tall / 2), color, mutation_scale=13)
        write_centered(axis, max(x + 0.22, 0.34), top - 0.14, short(dtype), fontsize=SMALL, color=BLACK)
    words = [f"The input is {short(start)}."]
    for index, (name, weights, result) in enumerate(steps):
        x = MARGIN + pitch * index + 0.44
        outline(axis, x, top, wide, tall, BLACK, linewidth=1.3, facecolor="white")
        write_centered(axis, x + wide / 2, top + tall / 2, name, fontsize=SMALL)
        if weights is not None:
            color, style, width = LOOKS.get(weights, (BLACK, ":", 2))
            axis.plot([x + wide / 2] * 2, [top + tall + 0.27, top + tall + 0.04], color=color, linestyle=style,
                      linewidth=width)  # fmt: skip
            outline(axis, x + wide / 2 - 0.36, top + tall + 0.27, 0.72, 0.42, color, linewidth=1.6)
            write_centered(axis, x + wide / 2, top + tall + 0.48, f"weights\n{short(weights)}", fontsize=SMALL)
        held = f", weights {short(weights)}," if weights is not None else ""
        words.append(f"{name}{held} gives {short(result)}.")
    return Figure(figure, "A chain of operations and the dtype on each arrow. " + " ".join(words))


# ---- loss scaling ----------------------------------------------------------------------------------------------------


def gradient_exponents(gradients: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float16) -> Figure:
    """Histograms of the magnitudes of gradients over the window of a 16-bit format, one panel per label.

    gradients: label → exact gradients (float32 or wider); exact zeros are left out. Each panel says which share the
    format would turn into 0 and into inf.
    """
    logs = {label: _log2(values) for label, values in gradients.items()}
    limits = Limits.of(dtype)
    edges = [math.log2(limits.zero), math.log2(limits.normal), math.log2(limits.infinite)]
    everything = torch.cat(list(logs.values()))
    low = math.floor(min(everything.min().item(), edges[0] - 4))
    high = math.ceil(max(everything.max().item(), edges[2] + 4))
    figure, axes = new_figure(WIDTH, 0.75 + 1.5 * len(logs), rows=len(logs))
    words = []
    for axis, (label, values) in zip(axes if len(logs) > 1 else [axes], logs.items(), strict=True):
        heights, _, _ = axis.hist(values.tolist(), bins=range(low, high + 1), color=BLUE, edgecolor="white")
        for (zone, fill), begin, end in zip(ZONES.items(), [low, *edges], [*edges, high], strict=True):
            look = {"facecolor": tint(fill.color, 0.16), "edgecolor": tint(fill.color, 0.42), "linewidth": 0}
            axis.axvspan(begin, end, hatch=fill.hatch or None, zorder=0, **look)
            axis.text((begin + end) / 2, max(heights) * 1.22, zone, fontsize=SMALL, ha="center", va="center",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        lost = (values <= edges[0]).double().mean().item()
        over = (values >= edges[2]).double().mean().item()
        story = f"{lost:.0%} become 0, {over:.0%} become inf"
        axis.set_title(f"{label}: {story}", fontsize=SIZE, loc="left")
        axis.set(xlim=(low, high), ylim=(0, max(heights) * 1.42), yticks=[])
        axis.spines["left"].set_visible(False)
        words.append(f"{label}: from 2^{values.min().item():.0f} to 2^{values.max().item():.0f}, {story}.")
    axis.set_xlabel("log2 of the gradient's magnitude", fontsize=SIZE)
    window = f"0 up to 2^{edges[0]:.0f}, subnormal up to 2^{edges[1]:.0f}, inf from 2^{edges[2]:.0f} on"
    return Figure(figure, f"Histograms of gradients over the zones of {short(dtype)} ({window}). " + " ".join(words))


def _log2(values: torch.Tensor) -> torch.Tensor:
    flat = values.detach().flatten().to("cpu", torch.float64).abs()
    flat = flat[(flat > 0) & flat.isfinite()]
    if not len(flat):
        raise ValueError("gradient_exponents needs gradients that are finite and not zero.")
    return flat.log2()


# ---- the step --------------------------------------------------------------------------------------------------------


def amp_step(calls: Sequence[tuple[str, float | None, float]], scale: float) -> Figure:
    """The calls of one mixed-precision step from left to right, and the norm of `.grad` after each.

    calls: (call, norm of the gradients after it or None where there are none, norm in true units). A norm that is
    `scale` times the true one is drawn as scaled.
    """
    pitch = (WIDTH - 2 * MARGIN + 0.12) / len(calls)
    wide, top, tall, below = pitch - 0.12, 0.12, 0.72, 1.12
    figure, axis = canvas(1.85)
    words = []
    for index, (call, norm, true) in enumerate(calls):
        x = MARGIN + pitch * index
        outline(axis, x, top, wide, tall, BLACK, linewidth=1.3)
        write_centered(axis, x + wide / 2, top + tall / 2, call, **MONO)
        if index:
            arrow(axis, (x - 0.12, top + tall / 2), (x, top + tall / 2), BLACK, mutation_scale=8)
        if norm is None:
            fill, text = Fill("#FFFFFF"), "no gradient"
        elif math.isclose(norm, true, rel_tol=1e-3):
            fill, text = Fill(GREEN), f"{norm:.5g}\ntrue units"
        elif math.isclose(norm, true * scale, rel_tol=1e-3):
            fill, text = Fill(VERMILION, "///"), f"{norm:.5g}\n= S × {true:g}"
        else:
            fill, text = Fill(ORANGE, "..."), f"{norm:.5g}\nneither"
        _block(axis, x, below, wide, 0.52, fill)
        _plate(axis, x + wide / 2, below + 0.26, text)
        words.append(f"{' '.join(call.split())}: {' '.join(text.split())}.")
    write(axis, MARGIN, below - 0.13, "norm of .grad after the call:", fontsize=SMALL, color=GRAY)
    return Figure(
        figure, f"The calls of one step with S = {scale:g}, and the norm of .grad after each. {' '.join(words)}"
    )


# ---- transfers -------------------------------------------------------------------------------------------------------


def copy_timelines(copy: float = 2.0, compute: float = 3.0, batches: int = 4) -> Figure:
    """Two schedules of the same work, worked out from the two durations: copies that block, and copies that overlap.

    A drawing of the rule, not a measurement. Overlapped: a copy runs beside the computation on the batch before.
    """
    plans = {"blocking": blocking_plan(copy, compute, batches), "overlapped": overlapped_plan(copy, compute, batches)}
    longest = max(end for plan in plans.values() for _, _, _, end in plan)
    left, tall, gap = 1.75, 0.34, 0.34
    figure, axis = canvas(2.25)
    unit = (WIDTH - left - MARGIN - 0.4) / longest
    words = []
    for index, (name, plan) in enumerate(plans.items()):
        top = 0.12 + index * (2 * tall + gap)
        write(axis, MARGIN, top + tall, name, weight="bold")
        for lane, kind in enumerate(("copy", "compute")):
            write(axis, left - 0.08, top + tall * (lane + 0.5), kind, fontsize=SMALL, ha="right")
        for kind, batch, begin, end in plan:
            lane = ("copy", "compute").index(kind)
            fill = (Fill(ORANGE, "///"), Fill(SKY))[lane]
            _block(axis, left + begin * unit, top + tall * lane, (end - begin) * unit, tall, fill)
            _plate(axis, left + (begin + end) / 2 * unit, top + tall * (lane + 0.5), str(batch))
        finish = max(end for _, _, _, end in plan)
        axis.plot([left + finish * unit] * 2, [top - 0.04, top + 2 * tall + 0.04], color=BLACK, linewidth=1.5)
        write(axis, left + finish * unit + 0.06, top + tall, f"{finish:g}", fontsize=SIZE, weight="bold")
        words.append(f"{name}: done after {finish:g} units")
    write(axis, left, 2.12, "time, in units →", fontsize=SMALL, color=GRAY)
    story = f"{batches} batches, each {copy:g} units to copy and {compute:g} to compute with. {'; '.join(words)}."
    return Figure(figure, f"Two timelines with a lane for copies and one for computation. {story}")


def blocking_plan(copy: float, compute: float, batches: int) -> list[tuple[str, int, float, float]]:
    """(kind, batch, begin, end) when nothing runs beside anything else."""
    plan, now = [], 0.0
    for batch in range(1, batches + 1):
        plan += [("copy", batch, now, now + copy), ("compute", batch, now + copy, now + copy + compute)]
        now += copy + compute
    return plan


def overlapped_plan(copy: float, compute: float, batches: int) -> list[tuple[str, int, float, float]]:
    """(kind, batch, begin, end) when the next batch is copied while the present one is computed with."""
    plan, copied, computed = [], 0.0, 0.0
    starts = [0.0]  # when the computation on each batch began: then the copy of the next one may begin
    for batch in range(1, batches + 1):
        begin = max(copied, starts[-1])
        copied = begin + copy
        start = max(copied, computed)
        computed = start + compute
        starts.append(start)
        plan += [("copy", batch, begin, copied), ("compute", batch, start, computed)]
    return plan


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory_bars(recipes: Mapping[str, Mapping[str, float]], unit: str = "GB") -> Figure:
    """Stacked bars: recipe → part → amount. Parts keep one filling in all bars; sums stand at the ends."""
    parts = list(dict.fromkeys(part for amounts in recipes.values() for part in amounts))
    colors = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
    fills = {part: Fill(colors[i % len(colors)], HATCHES[i % len(HATCHES)]) for i, part in enumerate(parts)}
    left = 0.25 + 0.075 * max(len(line) for name in recipes for line in name.split("\n"))
    head, row, tall = 0.42, 0.52, 0.36
    figure, axis = canvas(head + row * len(recipes) + 0.05)
    longest = max(sum(amounts.values()) for amounts in recipes.values())
    length = (WIDTH - left - MARGIN - 0.85) / longest
    x = left
    for part, fill in fills.items():
        _block(axis, x, 0.08, 0.26, 0.18, fill)
        write(axis, x + 0.33, 0.17, part, fontsize=SMALL)
        x += 0.33 + 0.077 * len(part) + 0.25
    words = []
    for index, (name, amounts) in enumerate(recipes.items()):
        top, x = head + row * index, left
        write(axis, left - 0.1, top + tall / 2, name, fontsize=SMALL, ha="right")
        for part, amount in amounts.items():
            width = amount * length
            if not amount:
                continue
            _block(axis, x, top, width, tall, fills[part])
            if width > 0.09 * len(f"{amount:g}") + 0.1:
                _plate(axis, x + width / 2, top + tall / 2, f"{amount:g}")
            x += width
        total = sum(amounts.values())
        write(axis, x + 0.08, top + tall / 2, f"{total:g} {unit}", weight="bold")
        listed = ", ".join(f"{part} {amount:g}" for part, amount in amounts.items())
        words.append(f"{' '.join(name.split())}: {listed}, together {total:g} {unit}.")
    return Figure(figure, "Stacked bars of memory. " + " ".join(words))
