"""Figures of the week on optimizers: gradients over time, paths, groups, schedules, clipping, range tests, runs."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import nn

from course_utils.plots.figure import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    HATCHES,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILION,
    Figure,
    bare,
    new_figure,
)
from course_utils.plots.lines import Line, _label_ends, _look

WIDTH = 7.5
PALE_BLUE, PALE_RED = "#DCEBF5", "#FBE3D6"


# ---- what .grad holds ------------------------------------------------------------------------------------------------


def grad_timeline(programs: Mapping[str, Sequence[Sequence[tuple[str, str]]]], strong: str = "step") -> Figure:
    """Calls of each program from left to right, and below each call what `.grad` holds after it.

    programs: label → iterations, each a list of (call, content of `.grad`) pairs; the content is a short text, "None"
    for nothing. A content with a plus sign is a sum of several gradients and is marked. strong: the call with a thick
    frame.
    """
    left, cell, gap, row = 1.2, 0.765, 0.16, 0.84
    longest = max(sum(map(len, iterations)) * cell + gap * len(iterations) for iterations in programs.values())
    width, height = max(WIDTH, left + longest), len(programs) * row + 0.1
    figure, axis = new_figure(width, height)
    figure.set_layout_engine("none")
    bare(axis).set_position((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    for place, (label, iterations) in enumerate(programs.items()):
        top, x = place * row + 0.12, left
        axis.text(0.1, top + 0.32, textwrap.fill(label, 15), fontsize=9.5, va="center", color=BLACK)
        for iteration in iterations:
            for call, content in iteration:
                _call_box(axis, x, top, cell - 0.07, call, call == strong)
                _content_box(axis, x, top + 0.33, cell - 0.07, content)
                x += cell
            x += gap
    return Figure(figure, _describe_timeline(programs, strong))


def _call_box(axis, x: float, y: float, width: float, text: str, strong: bool) -> None:
    look = {"facecolor": "white", "edgecolor": BLACK, "linewidth": 2.0 if strong else 0.9}
    axis.add_patch(FancyBboxPatch((x, y), width, 0.28, boxstyle="round,pad=0,rounding_size=0.06", **look))
    weight = "bold" if strong else "normal"
    axis.text(x + width / 2, y + 0.14, text, fontsize=9, ha="center", va="center", weight=weight, color=BLACK)


def _content_box(axis, x: float, y: float, width: float, content: str) -> None:
    mixed = "+" in content
    face = "white" if content == "None" else PALE_RED if mixed else PALE_BLUE
    edge, style = (GRAY, ":") if content == "None" else (VERMILION if mixed else BLUE, "-")
    axis.add_patch(
        Rectangle((x, y), width, 0.28, facecolor=face, edgecolor=edge, linestyle=style, linewidth=1.8 if mixed else 1.0)
    )
    color = GRAY if content == "None" else BLACK
    weight = "bold" if mixed else "normal"
    axis.text(x + width / 2, y + 0.14, content, fontsize=9, ha="center", va="center", color=color, weight=weight)


def _describe_timeline(programs: Mapping[str, Sequence[Sequence[tuple[str, str]]]], strong: str) -> str:
    rows = []
    for label, iterations in programs.items():
        calls = [pair for iteration in iterations for pair in iteration]
        order = ", ".join(f"{call} ({content})" for call, content in calls)
        read = " and then ".join(content for call, content in calls if call == strong)
        rows.append(f"{label}: {order}; {strong} reads {read}.")
    return "Timeline of calls, with what .grad holds after each call. " + " ".join(rows)


# ---- paths on a surface ----------------------------------------------------------------------------------------------


def descent_paths(
    paths: Mapping[str, Sequence],
    surface: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    columns: int = 2,
) -> Figure:
    """One panel per path: contours of surface(x, y), the points of the path joined, its start, its end, its last value.

    paths: label → points (steps + 1, 2), a list or a tensor. What leaves the ranges is not drawn.
    """
    points = {str(label): _points(path) for label, path in paths.items()}
    rows = math.ceil(len(points) / columns)
    figure, axes = new_figure(WIDTH, 2.35 * rows + 0.2, rows, columns)
    axes = [axes] if len(points) == rows * columns == 1 else axes
    x, y = np.meshgrid(np.linspace(*x_range, 121), np.linspace(*y_range, 121))
    heights = np.asarray(surface(x, y), dtype=float)
    levels = np.quantile(heights, np.linspace(0.02, 0.98, 12) ** 1.6)
    for axis, (label, path) in zip(axes, points.items(), strict=False):
        axis.contour(x, y, heights, levels=np.unique(levels), colors=GRAY, linewidths=0.6, alpha=0.7)
        axis.plot(path[:, 0], path[:, 1], color=BLUE, linewidth=1.2, marker="o", markersize=2.6)
        axis.plot(*path[0], marker="s", color=BLACK, markersize=7, linestyle="")
        axis.plot(*path[-1], marker="X", color=VERMILION, markersize=8, linestyle="")
        last = float(surface(*path[-1]))
        axis.set_title(f"{label}: {len(path) - 1} steps, value {last:.2g}", fontsize=10, loc="left")
        axis.set(xlim=x_range, ylim=y_range)
    for axis in axes[len(points) :]:
        axis.set_visible(False)
    where = "squares mark the start, crosses the end"
    figure.supxlabel(where[0].upper() + where[1:], fontsize=9)
    rows_of_text = [
        f"{label}: {len(path) - 1} steps from ({path[0, 0]:.3g}, {path[0, 1]:.3g}) to "
        f"({path[-1, 0]:.3g}, {path[-1, 1]:.3g}), value {float(surface(*path[-1])):.3g}."
        for label, path in points.items()
    ]
    return Figure(figure, f"Paths of an optimizer on the contours of a surface; {where}. " + " ".join(rows_of_text))


def _points(path: Sequence) -> np.ndarray:
    if isinstance(path, torch.Tensor):
        path = path.detach().cpu().tolist()
    points = np.array([[float(value) for value in point] for point in path])
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"a path is a list of (x, y) points; this one has the shape {points.shape}.")
    return points


# ---- parameter groups ------------------------------------------------------------------------------------------------


def parameter_groups(model: nn.Module, groups: Sequence[Mapping]) -> Figure:
    """A table: every parameter of the model, the module that owns it, its shape, and the group it is in.

    groups: as given to an optimizer, or its `param_groups`.
    """
    homes = {id(p): place for place, group in enumerate(groups) for p in group["params"]}
    rows = []
    for name, parameter in model.named_parameters():
        owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
        rows.append((name, owner, str(tuple(parameter.shape)), homes.get(id(parameter)), parameter.requires_grad))
    names = [_group_name(place, group) for place, group in enumerate(groups)]
    row, heads, starts = 0.27, ("parameter", "owner", "shape", "group"), (0.1, 2.6, 4.1, 5.25)
    figure, axis = new_figure(WIDTH, row * (len(rows) + 1) + 0.15)
    figure.set_layout_engine("none")
    bare(axis).set_position((0, 0, 1, 1))
    axis.set(xlim=(0, WIDTH), ylim=(row * (len(rows) + 1) + 0.1, -0.05))
    for x, head in zip(starts, heads, strict=True):
        axis.text(x, row / 2, head, fontsize=9.5, va="center", weight="bold", color=BLACK)
    for place, (name, owner, shape, group, trained) in enumerate(rows, start=1):
        y = place * row
        axis.plot([0.1, WIDTH - 0.1], [y, y], color=PALE, linewidth=0.8)
        for x, text in zip(starts, (name, owner, shape), strict=False):
            axis.text(x, y + row / 2, text, fontsize=9, va="center", color=BLACK)
        _group_cell(axis, starts[3], y, row, group, _home(names, group, trained))
    described = [f"{n} ({o} {s}): {_home(names, g, t)}." for n, o, s, g, t in rows]
    return Figure(figure, f"Table of {len(rows)} parameters and their groups. " + " ".join(described))


def _group_name(place: int, group: Mapping) -> str:
    settings = {"decay": group.get("weight_decay"), "lr": group.get("lr")}
    shown = [f"{name} {value:g}" for name, value in settings.items() if value is not None]
    return f"{place}: {', '.join(shown)}" if shown else str(place)


def _home(names: list[str], group: int | None, trained: bool) -> str:
    return names[group] if group is not None else "none" if trained else "none (frozen)"


def _group_cell(axis, x: float, y: float, height: float, group: int | None, text: str) -> None:
    """The name of the group on a ground that differs by color and hatching."""
    colors = (BLUE, ORANGE, GREEN, PURPLE, SKY)
    if group is not None:
        axis.add_patch(
            Rectangle(
                (x, y + 0.03), 0.3, height - 0.06, facecolor="white", edgecolor=colors[group % len(colors)],
                hatch=("xxxx", *HATCHES[2:])[group % len(HATCHES[1:])], linewidth=1.2,
            )
        )  # fmt: skip
    axis.text(x + 0.4, y + height / 2, text, fontsize=9, va="center", color=GRAY if group is None else BLACK)


# ---- schedules -------------------------------------------------------------------------------------------------------


def schedules(
    rates: Mapping[str, Sequence[float]], wrong: Iterable[str] = (), xlabel: str = "calls of scheduler.step()"
) -> Figure:
    """Learning rates over steps on common axes: each panel shows one schedule strong and all others pale behind it.

    rates: label → the rates that a scheduler gave. wrong: labels drawn in red, with crosses.
    """
    wrong = set(wrong)
    columns = min(3, len(rates))
    rows = math.ceil(len(rates) / columns)
    figure, axes = new_figure(WIDTH, 1.62 * rows + 0.35, rows, columns)
    axes = [axes] if rows * columns == 1 else axes
    longest = max(map(len, rates.values()))
    low, high = min(map(min, rates.values())), max(map(max, rates.values()))
    room = 0.07 * (high - low or 1)
    for place, (axis, (label, values)) in enumerate(zip(axes, rates.items(), strict=False)):
        for other in rates.values():
            axis.plot(other, color=PALE, linewidth=1.2, zorder=1)
        color, marker = (VERMILION, "x") if label in wrong else (BLUE, "o")
        axis.plot(
            values, color=color, marker=marker, markersize=4 if label in wrong else 3, linewidth=1.6, zorder=3,
            markevery=max(1, len(values) // 20),
        )  # fmt: skip
        title = f"{label} (wrong unit)" if label in wrong else label
        axis.set_title(textwrap.fill(title, 32), fontsize=9, loc="left", color=color if label in wrong else BLACK)
        axis.set(xlim=(-0.03 * longest, longest - 1 + 0.03 * longest), ylim=(low - room, high + room))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axis.label_outer()
        if place % columns == 0:
            axis.set_ylabel("rate", fontsize=9)
    for axis in axes[len(rates) :]:
        axis.set_visible(False)
    figure.supxlabel(xlabel, fontsize=9.5)
    described = [_describe_rates(label, values, label in wrong) for label, values in rates.items()]
    return Figure(figure, f"Learning rates against {xlabel}, one panel each. " + " ".join(described))


def _describe_rates(label: str, values: Sequence[float], wrong: bool) -> str:
    low, high = min(values), max(values)
    return (
        f"{label}{' (wrong unit, in red)' if wrong else ''}: {len(values)} rates, starts at {values[0]:.3g}, highest "
        f"{high:.3g} at {values.index(high)}, lowest {low:.3g} at {values.index(low)}, ends at {values[-1]:.3g}."
    )


# ---- clipping --------------------------------------------------------------------------------------------------------


def clipped_gradients(before: Sequence, panels: Mapping[str, tuple[Sequence, float, str]]) -> Figure:
    """Arrows of gradients with two entries before (dashed) and after clipping, with the limit drawn.

    before: (x, y) pairs. panels: title → (pairs after clipping, limit, "norm" or "value").
    """
    start = _points(before)
    (left, bottom), (right, top) = (edge(start, axis=0) for edge in (np.min, np.max))
    limit = max(limit for _, limit, _ in panels.values())
    left, bottom, right, top = min(left, -limit), min(bottom, -limit), max(right, limit), max(top, limit)
    room = 0.3 * (top - bottom)  # for what is written at the tips
    figure, axes = new_figure(WIDTH, 3.4, 1, len(panels))
    axes = [axes] if len(panels) == 1 else axes
    described = []
    for axis, (title, (after, limit, kind)) in zip(axes, panels.items(), strict=True):
        end = _points(after)
        look = {"fill": False, "edgecolor": GRAY, "linewidth": 1.2, "linestyle": ":"}
        circle = kind == "norm"
        axis.add_patch(Circle((0, 0), limit, **look) if circle else Rectangle((-limit,) * 2, *(2 * limit,) * 2, **look))
        for (gx, gy), (cx, cy) in zip(start, end, strict=True):
            turn = abs(_angle(gx, gy, cx, cy))
            _arrow(axis, (gx, gy), GRAY, "--", 1.2)
            _arrow(axis, (cx, cy), BLUE if turn < 0.5 else VERMILION, "-", 2.4)
            words = "same direction" if turn < 0.5 else f"turned by {turn:.0f}°"
            words = "unchanged" if math.dist((gx, gy), (cx, cy)) < 1e-6 else words
            foot = gy if abs(gy) > limit else math.copysign(limit, gy)  # what is written stays outside the limit
            length = math.hypot(gx, gy)
            axis.annotate(
                f"({gx:g}, {gy:g})\n{words}", (gx, foot), xytext=(0, 5 if gy > 0 else -5),
                textcoords="offset points", fontsize=9, color=BLACK, va="bottom" if gy > 0 else "top",
                ha="center" if abs(gx) < 2 * abs(gy) else "right" if gx > 0 else "left",
            )  # fmt: skip
            described.append(
                f"{title}: ({gx:.3g}, {gy:.3g}), length {length:.3g}, becomes ({cx:.3g}, {cy:.3g}), "
                f"length {math.hypot(cx, cy):.3g}, {words}."
            )
        axis.set_title(title, fontsize=10, loc="left")
        axis.set(xlim=(left - room, right + 0.6 * room), ylim=(bottom - room, top + room), aspect="equal")
        axis.axhline(0, color=PALE, linewidth=0.8, zorder=0)
        axis.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    figure.supxlabel("dashed: before; solid: after; dotted: the limit", fontsize=9)
    return Figure(figure, "Arrows of gradients before and after clipping. " + " ".join(described))


def _arrow(axis, tip: tuple[float, float], color: str, style: str, width: float) -> None:
    look = {"arrowstyle": "-|>", "color": color, "linestyle": style, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", xy=tip, xytext=(0, 0), arrowprops=look)


def _angle(ax: float, ay: float, bx: float, by: float) -> float:
    """Degrees from one direction to the other."""
    return math.degrees(math.atan2(ax * by - ay * bx, ax * bx + ay * by))


# ---- range test ------------------------------------------------------------------------------------------------------


def range_test(lrs: Sequence[float], losses: Sequence[float], num_steps: int | None = None, window: int = 5) -> Figure:
    """Loss against learning rate, logarithmic: recorded losses, their running median, the lowest and the last point.

    num_steps: how many steps were planned; with fewer recorded, the sweep counts as stopped and a rate a tenth of the
    last is marked as a place to start. window: how many neighbors the median takes.
    """
    if not lrs or len(lrs) != len(losses):
        raise ValueError(f"A range test needs as many losses as rates; here are {len(losses)} and {len(lrs)}.")
    half = window // 2
    smooth = [statistics.median(losses[max(0, k - half) : k + half + 1]) for k in range(len(losses))]
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    stopped = num_steps is not None and len(lrs) < num_steps
    figure, axis = new_figure(WIDTH, 3.3)
    axis.set_xscale("log")
    axis.plot(lrs, losses, linestyle="", marker="o", markersize=3.5, markerfacecolor="none", color=GRAY)
    axis.plot(lrs, smooth, color=BLUE, linewidth=2.2)
    axis.plot([lrs[lowest]], [smooth[lowest]], marker="v", markersize=9, color=GREEN, linestyle="")
    _note(axis, f"lowest:\n{smooth[lowest]:.2g} at {lrs[lowest]:.2g}", (lrs[lowest], smooth[lowest]), (-78, 52), GREEN)
    top = max(loss for loss in losses if math.isfinite(loss))
    if stopped:
        last = losses[-1] if math.isfinite(losses[-1]) else top
        axis.plot([lrs[-1]], [last], marker="X", markersize=9, color=VERMILION, linestyle="")
        axis.text(lrs[-1] * 0.8, last, f"stopped\nat {lrs[-1]:.2g}", fontsize=9.5, ha="right", va="center", color=BLACK)
        axis.axvline(lrs[-1] / 10, color=VERMILION, linestyle=":", linewidth=1.6)
        axis.text(
            lrs[-1] / 10, 0.6, f"a tenth of that: {lrs[-1] / 10:.2g} ", transform=axis.get_xaxis_transform(),
            fontsize=9.5, ha="right", va="top", color=BLACK,
        )  # fmt: skip
    axis.set_xlabel("learning rate (logarithmic)", fontsize=10)
    axis.set_ylabel("loss of the batch", fontsize=10)
    words = f"stops at {lrs[-1]:.3g} after {len(lrs)} of {num_steps} steps" if stopped else f"runs to {lrs[-1]:.3g}"
    hint = f"; a tenth of that, {lrs[-1] / 10:.2g}, is marked" if stopped else ""
    return Figure(
        figure,
        f"Range test: loss against learning rate, logarithmic. It starts at rate {lrs[0]:.3g} with loss "
        f"{losses[0]:.3g}; the running median of {window} is lowest, {smooth[lowest]:.3g}, at rate {lrs[lowest]:.3g}; "
        f"the sweep {words}, loss {losses[-1]:.3g}{hint}.",
    )


def _note(axis, text: str, point: tuple[float, float], offset: tuple[float, float], color: str) -> None:
    axis.annotate(
        text, point, xytext=offset, textcoords="offset points", fontsize=9.5, ha="center", va="bottom", color=BLACK,
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 1.0},
    )  # fmt: skip


# ---- several seeds ---------------------------------------------------------------------------------------------------


def compare_runs(
    runs: Mapping[str, Sequence[Sequence[float]]],
    xlabel: str = "epoch",
    ylabel: str = "loss",
    title: str | None = None,
    log_y: bool = False,
    first: int = 1,
) -> Figure:
    """Several runs per label, usually one per seed: the median as a line, lowest to highest as a band.

    runs: label → runs of equal length. first: the place of the first value on x.
    """
    figure, axis = new_figure(WIDTH, max(3.4, 0.9 + 0.42 * len(runs)))
    lines, looks, described = [], [], []
    for place, (label, values) in enumerate(runs.items()):
        table = np.asarray(values, dtype=float)
        if table.ndim != 2:
            raise ValueError(f"{label!r} needs a list of runs, each a list of numbers.")
        xs = np.arange(first, first + table.shape[1])
        middle, low, high = np.median(table, 0), table.min(0), table.max(0)
        look = _look(place)
        axis.fill_between(xs, low, high, color=look["color"], alpha=0.18, linewidth=0)
        axis.plot(xs, middle, **look)
        lines.append(Line(str(label), tuple(xs), tuple(middle), (True,) * len(xs)))
        looks.append(look)
        described.append(
            f"{label}: median from {middle[0]:.3g} to {middle[-1]:.3g}, "
            f"last values of {len(table)} runs between {low[-1]:.3g} and {high[-1]:.3g}."
        )
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)
    axis.set_title(title or "", fontsize=11, loc="left")
    if log_y:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))  # runs often span less than a power of ten
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    _label_ends(figure, axis, lines, looks)
    head = f"Line plot with bands{f', {title}' if title else ''}: {ylabel} against {xlabel}, median and range of runs."
    return Figure(figure, f"{head} " + " ".join(described))
