"""Figures of week 04: what a loss averages, where its formula breaks, and how hard it pulls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from course_utils.plots.figure import (
    BLACK,
    BLUE,
    GRAY,
    HATCHES,
    PALE,
    PALETTE,
    VERMILION,
    Figure,
    new_figure,
)
from course_utils.plots.lines import PLOT_WIDTH, _describe_line, _label_ends, _line, _look, curves

SMALL, NORMAL = 9, 10  # font sizes, in points
SIGNED = LinearSegmentedColormap.from_list("signed", (VERMILION, "#FFFFFF", BLUE))
GROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}  # behind a note on a line
MOST_ROWS, MOST_COLUMNS = 16, 14


# What is averaged


def reductions(losses: Sequence[float] | torch.Tensor) -> Figure:
    """The losses of a batch as bars, with what each reduction makes of them.

    losses: one number per sample, at least one. Raises ValueError otherwise.
    """
    numbers = _numbers(losses)
    total, mean = math.fsum(numbers), math.fsum(numbers) / len(numbers)
    figure, (bars, stack) = new_figure(PLOT_WIDTH, 3.2, columns=2)
    bars.get_gridspec().set_width_ratios([4, 1])
    places = range(len(numbers))
    bars.bar(places, numbers, color=BLUE, width=0.7)
    for place, number in zip(places, numbers, strict=True):
        bars.text(place, number, f"{number:.2f}", ha="center", va="bottom", fontsize=SMALL)
    bars.axhline(mean, color=VERMILION, linestyle="--", linewidth=1.6)
    bars.text(len(numbers) - 0.5, mean, f'"mean"\n{mean:.2f}', color=BLACK, va="bottom", fontsize=NORMAL)
    bars.set_xlim(-0.6, len(numbers) + 0.3)
    bars.set_ylim(min(0, *numbers) * 1.1, max(*numbers, mean) * 1.15 + 1e-9)
    bars.set_xticks(list(places))
    bars.set_xlabel("sample", fontsize=NORMAL)
    bars.set_ylabel("loss", fontsize=NORMAL)
    bars.set_title('"none": one number per sample', fontsize=11, loc="left")
    low = 0.0
    for place, number in zip(places, numbers, strict=True):
        look = {"hatch": HATCHES[1 + place % 2], "facecolor": "white", "edgecolor": BLUE}
        stack.bar(0, number, bottom=low, width=0.6, linewidth=0.8, **look)
        low += number
    stack.text(0, total, f"{total:.2f}", ha="center", va="bottom", fontsize=NORMAL)
    stack.set_xlim(-0.7, 0.7)
    stack.set_ylim(0, max(total, 1e-9) * 1.12)
    stack.set_xticks([])
    stack.set_title('"sum"', fontsize=11, loc="left")
    listed = ", ".join(f"{number:.2f}" for number in numbers)
    return Figure(
        figure,
        f"Bars of the losses of {len(numbers)} samples: {listed}; reduction none keeps them all. A dashed line "
        f"marks their mean, {mean:.2f}. Beside them the same bars stacked: the sum, {total:.2f}.",
    )


def batch_areas(means: Sequence[float], counts: Sequence[int]) -> Figure:
    """Batches as bars as wide as the tokens they counted: the mean of means, and the mean over tokens.

    means: the mean loss of each batch; counts: its tokens, as many numbers, all positive. Raises ValueError otherwise.
    """
    heights, widths = _numbers(means), _numbers(counts)
    if len(heights) != len(widths) or min(widths) <= 0:
        raise ValueError(f"batch_areas needs a positive count for each of the {len(heights)} means; it got {counts}.")
    of_means = math.fsum(heights) / len(heights)
    tokens = math.fsum(widths)
    of_tokens = math.fsum(h * w for h, w in zip(heights, widths, strict=True)) / tokens
    figure, axis = new_figure(PLOT_WIDTH, 3.2)
    left = 0.0
    for place, (height, width) in enumerate(zip(heights, widths, strict=True)):
        look = {"facecolor": PALETTE[place % 2 * 5], "alpha": 0.55, "hatch": HATCHES[1 + place % 2]}
        axis.bar(left, height, width=width, align="edge", edgecolor="white", **look)
        narrow = width < tokens / 5
        words = f"{height:.3g}" if narrow else f"{width:.0f} tokens\nmean {height:.3g}"
        at, side = (height, "bottom") if narrow else (height / 2, "center")
        axis.text(left + width / 2, at, words, ha="center", va=side, fontsize=SMALL, bbox=None if narrow else GROUND)
        left += width
    axis.set_ylim(0, max(heights) * 1.15)
    apart = max(heights) * 0.09
    shift = apart if abs(of_means - of_tokens) < 2 * apart else 0.0
    lines = (
        ("mean of batch means", of_means, VERMILION, "--", of_means >= of_tokens),
        ("mean over tokens", of_tokens, BLACK, "-", of_means < of_tokens),
    )
    for name, value, color, style, upper in lines:
        axis.axhline(value, color=color, linestyle=style, linewidth=1.8)
        note = f"{name}: {value:.3f}\nperplexity {math.exp(value):.2f}"
        axis.text(tokens * 1.02, value + (shift if upper else -shift), note, va="center", fontsize=SMALL)
    axis.set_xlim(0, tokens)
    axis.set_xlabel("tokens, batch after batch", fontsize=NORMAL)
    axis.set_ylabel("loss per token", fontsize=NORMAL)
    pairs = ", ".join(f"{h:.3g} over {w:.0f}" for h, w in zip(heights, widths, strict=True))
    return Figure(
        figure,
        f"{len(heights)} batches as bars, as wide as their tokens and as high as their mean loss: {pairs}. The mean "
        f"of batch means is {of_means:.3f} (perplexity {math.exp(of_means):.2f}), the mean over tokens "
        f"{of_tokens:.3f} (perplexity {math.exp(of_tokens):.2f}).",
    )


# Tables of signed numbers


def signed_table(
    values: torch.Tensor,
    marked: torch.Tensor | None = None,
    row_label: str = "",
    column_label: str = "",
    note: str = "marked",
    title: str | None = None,
) -> Figure:
    """A matrix as a table of colored numbers: blue above zero, orange-red below, some cells outlined.

    values: 2-D, at most 16 by 14. marked: a bool mask of the same shape; note: what the outline means, said under
    the table. Raises ValueError for another shape.
    """
    if values.ndim != 2 or values.shape[0] > MOST_ROWS or values.shape[1] > MOST_COLUMNS or not values.numel():
        raise ValueError(f"signed_table draws matrices up to (16, 14); this is {tuple(values.shape)}.")
    if marked is not None and marked.shape != values.shape:
        raise ValueError(f"marked has shape {tuple(marked.shape)}, and values {tuple(values.shape)}.")
    matrix = values.detach().double().cpu()
    outlined = torch.zeros(matrix.shape, dtype=torch.bool) if marked is None else marked.cpu()
    rows, columns = matrix.shape
    limit = max(matrix.abs().max().item(), 1e-12)
    width = min(PLOT_WIDTH, max(4.2, 1.6 + 0.72 * columns, 0.5 + 0.1 * len(title or "")))
    figure, axis = new_figure(width, 1.1 + 0.34 * rows + 0.25 * bool(title) + 0.2 * bool(outlined.any()))
    axis.imshow(matrix.numpy(), cmap=SIGNED, vmin=-1.3 * limit, vmax=1.3 * limit, aspect="auto")
    for row in range(rows):
        for column in range(columns):
            number = matrix[row, column].item() + 0.0
            inked = bool(outlined[row, column])
            words = f"{number:+.2f}".replace("-", "\N{MINUS SIGN}") if abs(number) >= 0.005 else "0.00"
            weight = "bold" if inked else "normal"
            axis.text(column, row, words, ha="center", va="center", fontsize=SMALL, weight=weight, color=BLACK)
            if inked:
                box = Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, linewidth=2, edgecolor=BLACK)
                axis.add_patch(box)
    axis.set_xticks(range(columns))
    axis.set_yticks(range(rows))
    axis.xaxis.tick_top()
    axis.xaxis.set_label_position("top")
    axis.set_xlabel(column_label, fontsize=NORMAL)
    axis.set_ylabel(row_label, fontsize=NORMAL)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title(title or "", fontsize=11, loc="left")
    if outlined.any():
        axis.text(0, -0.02 - 0.1 / rows, f"outlined: {note}", transform=axis.transAxes, va="top", fontsize=SMALL)
    listed = "; ".join(
        f"{row_label or 'row'} {row}: " + ", ".join(f"{number:+.2f}" for number in numbers)
        for row, numbers in enumerate(matrix.tolist())
    )
    cells = ", ".join(f"({row}, {column})" for row, column in outlined.nonzero().tolist())
    mark = f" Outlined ({note}): {cells}." if cells else ""
    return Figure(
        figure, f"Table of {rows} by {columns} signed numbers{f', {title}' if title else ''}. {listed}.{mark}"
    )


# Curves


def cliffs(series: Mapping[str, Sequence], x: Sequence, xlabel: str = "", ylabel: str = "", **options) -> Figure:
    """Curves, and for each that stops being finite the place where it falls off, marked and named.

    series: label → numbers, all over the same rising x; options as in `curves`.
    """
    figure = curves(series, x=x, xlabel=xlabel, ylabel=ylabel, **options)
    axis, places, stories = figure.figure.axes[0], _numbers(x), []
    lowest = min(y for values in series.values() for y in _numbers(values) if math.isfinite(y))
    for rank, (label, values) in enumerate(series.items()):
        numbers = _numbers(values)
        lost = next((place for place, y in enumerate(numbers) if not math.isfinite(y)), None)
        if not lost:  # finite everywhere, or never: then there is no edge to mark
            continue
        edge, last, what = places[lost], numbers[lost - 1], str(numbers[lost]).replace("-", "\N{MINUS SIGN}")
        color = PALETTE[rank % len(PALETTE)]
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "linestyle": ":", "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", xy=(edge, lowest), xytext=(edge, last), arrowprops=arrow)
        axis.text(edge, last, f" {what} from {edge:g} on", va="bottom", ha="left", fontsize=SMALL, bbox=GROUND)
        stories.append(f"{label} is {what} from {edge:g} on.")
    return Figure(figure.figure, f"{figure.alt} {' '.join(stories)}")


def minima(series: Mapping[str, Sequence], x: Sequence, xlabel: str = "", ylabel: str = "", **options) -> Figure:
    """Curves with the lowest point of each marked, unless it is where the curve ends.

    series: label → numbers over x; options as in `curves`.
    """
    places, named, marks = _numbers(x), {}, []
    for rank, (label, values) in enumerate(series.items()):
        numbers = _numbers(values)
        best = min(range(len(numbers)), key=numbers.__getitem__)
        inside = best not in (0, len(numbers) - 1)
        named[f"{label} (★ {numbers[best]:.3f})" if inside else label] = numbers
        if inside:
            marks.append((label, places[best], numbers[best], PALETTE[rank % len(PALETTE)]))
    figure = curves(named, x=places, xlabel=xlabel, ylabel=ylabel, **options)
    for _, place, number, color in marks:
        look = {"marker": "*", "markersize": 16, "color": color, "markeredgecolor": BLACK, "zorder": 5}
        figure.figure.axes[0].plot([place], [number], linestyle="", **look)
    stories = " ".join(f"{label}: {number:.3f} at {place:.2f}." for label, place, number, _ in marks)
    return Figure(figure.figure, f"{figure.alt} Marked minima: {stories or 'none inside the picture.'}")


def panels(
    groups: Mapping[str, Mapping[str, Sequence]], x: Sequence, xlabel: str = "", title: str | None = None
) -> Figure:
    """Several plots of curves over one x axis, one above the other: a loss and its gradient, say.

    groups: what a plot shows → its lines, label → numbers over x. Give a label the same place in each group, so that
    its color and marker are the same.
    """
    figure, axes = new_figure(PLOT_WIDTH, 0.6 + 2.3 * len(groups), rows=len(groups))
    axes = axes if isinstance(axes, list) else [axes]
    drawn, stories = [], []
    for axis, (name, series) in zip(axes, groups.items(), strict=True):
        lines = [_line(label, values, x, log_x=False, log_y=False) for label, values in series.items()]
        looks = [_look(place) for place in range(len(lines))]
        for place, (line, look) in enumerate(zip(lines, looks, strict=True)):
            step = max(1, len(line.ys) // 8)
            axis.plot(line.xs, line.ys, markevery=(place * step // len(lines), step), **look)
        axis.set_ylabel(name, fontsize=NORMAL)
        axis.grid(axis="y", color=PALE, linewidth=0.8)
        axis.axvline(0, color=PALE, linewidth=0.8)
        axis.set_axisbelow(True)
        stories.append(f"{name}: {' '.join(_describe_line(line) for line in lines)}")
        drawn.append((axis, lines, looks))
    axes[0].set_title(title or "", fontsize=11, loc="left")
    axes[-1].set_xlabel(xlabel, fontsize=NORMAL)
    for axis, lines, looks in drawn:  # the first call makes room at the right, which the others share
        _label_ends(figure, axis, lines, looks)
    return Figure(figure, f"Plots over {xlabel or 'x'}{f', {title}' if title else ''}. {' '.join(stories)}")


# Best constants


def best_constants(before: Sequence[float], after: Sequence[float], best: Mapping[str, tuple[float, float]]) -> Figure:
    """Targets before and after some of them moved, and how far that moved the best constant of each loss.

    best: name of a loss → its best constant for `before` and for `after`.
    """
    old, new = _numbers(before), _numbers(after)
    figure, axis = new_figure(PLOT_WIDTH, 1.2 + 0.42 * (len(best) + 1))
    row = len(best)
    kept = [value for value in new if value in old]
    moved = [value for value in new if value not in old]
    gone = [value for value in old if value not in new]
    axis.plot(kept, [row] * len(kept), "o", color=BLACK, markersize=5)
    axis.plot(moved, [row] * len(moved), "o", color=VERMILION, markersize=9, markerfacecolor="white", mew=2)
    axis.plot(gone, [row] * len(gone), "x", color=GRAY, markersize=6, mew=1.6)
    stories = []
    for place, (name, (start, end)) in enumerate(best.items()):
        y = row - 1 - place
        axis.plot([start], [y], "|", color=GRAY, markersize=16, mew=2)
        if abs(end - start) > 0.005:
            arrow = {"arrowstyle": "-|>", "color": BLUE, "linewidth": 2, "shrinkA": 0, "shrinkB": 3}
            axis.annotate("", xy=(end, y), xytext=(start, y), arrowprops=arrow)
        axis.plot([end], [y], "D", color=BLUE, markersize=7)
        axis.text(end, y, f"    {start:.3g} → {end:.3g}", va="center", fontsize=NORMAL)
        stories.append(f"{name}: {start:.3g} → {end:.3g}.")
    axis.set_yticks(range(row, -1, -1), ["targets", *best], fontsize=NORMAL)
    axis.set_ylim(-0.6, row + 0.6)
    axis.set_xlabel("value", fontsize=NORMAL)
    axis.grid(axis="x", color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    listed = [", ".join(f"{value:g}" for value in values) for values in (old, new)]
    return Figure(
        figure,
        f"Targets {listed[0]} (gone: cross), then {listed[1]} (new: ring). Best constant of each loss before, as a "
        f"bar, and after, as a diamond. {' '.join(stories)}",
    )


def _numbers(values: Sequence[float] | torch.Tensor) -> list[float]:
    """Plain floats, also from tensors that require a gradient. Raises ValueError where there are none."""
    numbers = torch.as_tensor(values).detach().double().flatten().tolist()
    if not numbers:
        raise ValueError("There is nothing to draw: no numbers were given.")
    return numbers
