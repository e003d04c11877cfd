"""Line plots with the name of each line at its end and alt text made from the numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from course_utils.plots.figure import BLACK, GRAY, PALE, PALETTE, Figure, new_figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # 8 markers against 7 colors: 56 lines differ
STYLES = ("-", "--", "-.", ":")
MARKERS_PER_LINE = 8
LABEL_SIZE = 9.5
LABEL_CHARACTERS = 22
PLOT_WIDTH = 7.5


@dataclass(frozen=True)
class Line:
    """One named line: its points, and which of them the axes can show."""

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    shown: tuple[bool, ...]

    def points(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y, shown in zip(self.xs, self.ys, self.shown, strict=True) if shown]


def curves(
    series: Mapping[str, Sequence],
    x: Sequence | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    alt: str | None = None,
    height: float = 3.2,
) -> Figure:
    """Lines over a common axis, each with its name at its right end.

    series: label → numbers, or label → the pair (xs, ys). x: the places of all lines that come
    without their own, counted 0, 1, 2, … by default. Numbers may be tensors. Values that an axis
    cannot show (nan, inf, and what is not positive on a log axis) leave a gap. alt: made from the
    data unless given. Raises ValueError for an empty line and for lengths that do not match.
    """
    if not series:
        raise ValueError("curves needs at least one line to draw.")
    lines = [_line(str(k), values, x, log_x, log_y) for k, values in series.items()]
    rows_of_text = len(lines) * max(_end_label(line).count("\n") + 1 for line in lines)
    figure, axis = new_figure(PLOT_WIDTH, max(height, 0.9 + 0.2 * rows_of_text))
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)
    axis.set_title(title or "", fontsize=11, loc="left")
    if log_x:
        axis.set_xscale("log")
    elif all(x == round(x) for line in lines for x, _ in line.points()):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log_y:
        axis.set_yscale("log")
    axis.grid(axis="y", color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    looks = [_look(place) for place in range(len(lines))]
    for place, (line, look) in enumerate(zip(lines, looks, strict=True)):
        ys = [y if shown else math.nan for y, shown in zip(line.ys, line.shown, strict=True)]
        step = max(1, len(ys) // MARKERS_PER_LINE)
        # Each line starts its markers elsewhere, so that lines on top of one another stay visible.
        axis.plot(line.xs, ys, markevery=(place * step // len(lines) % len(ys), step), **look)
    _label_ends(figure, axis, lines, looks)
    return Figure(figure, alt or _describe(lines, xlabel, ylabel, title, log_x, log_y))


def loss_curves(history: Mapping[str, Sequence], **options) -> Figure:
    """The losses of one or more runs, label → losses, step by step; options as in `curves`."""
    return curves(history, **{"xlabel": "step", "ylabel": "loss", **options})


def _line(label: str, values, x: Sequence | None, log_x: bool, log_y: bool) -> Line:
    if isinstance(values, tuple) and len(values) == 2 and all(map(_is_sequence, values)):
        xs, ys = map(_numbers, values)
    else:
        ys = _numbers(values)
        xs = _numbers(x) if x is not None else [float(place) for place in range(len(ys))]
    if not ys:
        raise ValueError(f"The line {label!r} has no values to draw.")
    if len(xs) != len(ys):
        raise ValueError(f"The line {label!r} has {len(ys)} values for {len(xs)} places on x.")
    shown = [_can_show(x, log_x) and _can_show(y, log_y) for x, y in zip(xs, ys, strict=True)]
    return Line(label, tuple(xs), tuple(ys), tuple(shown))


def _is_sequence(values: object) -> bool:
    """Whether the values are many; a tensor or array without dimensions is one number."""
    return isinstance(values, Iterable) and getattr(values, "ndim", 1) > 0


def _numbers(values: Iterable) -> list[float]:
    """Plain floats, also from tensors that require a gradient."""
    return [float(v.detach() if hasattr(v, "detach") else v) for v in values]


def _can_show(number: float, log: bool) -> bool:
    return math.isfinite(number) and (number > 0 or not log)


def _look(place: int) -> dict[str, object]:
    return {
        "color": PALETTE[place % len(PALETTE)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": STYLES[place % len(STYLES)],
        "markersize": 5,
        "linewidth": 1.6,
    }


def _label_ends(figure, axis, lines: list[Line], looks: list[dict]) -> None:
    """Write each line's name right of the axes, as near to its last point as the others allow."""
    texts = [
        axis.text(1.05, 0.5, _end_label(line), transform=axis.transAxes, va="center",
                  fontsize=LABEL_SIZE, color=BLACK)
        for line in lines
    ]  # fmt: skip
    figure.get_layout_engine().execute(figure)  # now there is room for the names
    figure.set_layout_engine("none")
    box = axis.get_window_extent()
    ends = [max(line.points(), default=None) for line in lines]
    wished = [axis.transData.transform(end)[1] if end else box.y0 for end in ends]
    gap = 1.1 * max(text.get_window_extent().height for text in texts)
    for text, end, look, y in zip(texts, ends, looks, spread(wished, gap, box.y0, box.y1 - gap / 2), strict=True):
        height = (y - box.y0) / box.height
        text.set_y(height)
        axis.plot([1.03], [height], transform=axis.transAxes, clip_on=False, **{**look, "linestyle": ""})
        if end:
            axis.annotate(
                "", xy=end, xytext=(1.02, height), textcoords=axis.transAxes, annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": GRAY, "linewidth": 0.7,
                            "linestyle": ":", "shrinkB": 4},
            )  # fmt: skip


def _end_label(line: Line) -> str:
    return textwrap.fill(line.label if line.points() else f"{line.label} (nothing to draw)", LABEL_CHARACTERS)


def spread(wished: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wished ones that keep `gap` between neighbors and stay in [low, high].

    Where there is not enough room for all, the gap is kept and the places pass `low`.
    """
    order = sorted(range(len(wished)), key=lambda place: wished[place])
    groups: list[tuple[list[int], float]] = []  # members, and the center of the stack they form
    for place in order:
        members, center = [place], wished[place]
        # A stack that would touch the one below joins it, and both share the middle.
        while groups and center - groups[-1][1] < gap * (len(members) + len(groups[-1][0])) / 2:
            below, middle = groups.pop()
            center = (center * len(members) + middle * len(below)) / (len(members) + len(below))
            members = below + members
        groups.append((members, center))
    places = {
        place: center + gap * (rank - (len(members) - 1) / 2)
        for members, center in groups
        for rank, place in enumerate(members)
    }
    for rank, place in enumerate(order):
        places[place] = max(places[place], low + gap * rank)
    for rank, place in enumerate(reversed(order)):
        places[place] = min(places[place], high - gap * rank)
    return [places[place] for place in range(len(wished))]


def _describe(lines: list[Line], xlabel: str, ylabel: str, title: str | None, log_x: bool, log_y: bool) -> str:
    scales = [name for name, log in (("x", log_x), ("y", log_y)) if log]
    head = f"Line plot{f', {title}' if title else ''}: {ylabel or 'value'} against {xlabel or 'x'}"
    head += f", logarithmic {' and '.join(scales)}" if scales else ""
    return f"{head}. " + " ".join(_describe_line(line) for line in lines)


def _describe_line(line: Line) -> str:
    points = line.points()
    hidden = len(line.ys) - len(points)
    gone = f" {hidden} of {len(line.ys)} values cannot be drawn." if hidden else ""
    if not points:
        return f"{line.label}: nothing to draw.{gone}"
    # Of values that read the same, the first: which of them is lowest by a rounding error depends on the processor.
    read = [(f"{x:.4g}", f"{y:.3g}") for x, y in points]
    low, high = (extreme(read, key=lambda point: float(point[1])) for extreme in (min, max))
    (first_x, first), (last_x, last) = read[0], read[-1]
    return (
        f"{line.label}: from {first} at {first_x} to {last} at {last_x}, "
        f"lowest {low[1]} at {low[0]}, highest {high[1]} at {high[0]}.{gone}"
    )
