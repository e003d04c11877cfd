"""Figures of the capstone: a position inside an epoch, guarded steps, and a run that was killed.

Each shows what the caller measured: batches handed out, norms of gradients, the report of a kill test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from course_utils.plots.figure import BLACK, BLUE, GRAY, GREEN, PALE, VERMILION, Figure, new_figure
from course_utils.plots.memory import MARGIN, SMALL, WIDTH, Fill, arrow, canvas, draw_cells, write, write_centered

USED, FRESH, AGAIN = Fill(GRAY, "///"), Fill(GREEN), Fill(VERMILION, "xxx")
ON_HATCH = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
MOST_BATCHES = 40


# class_counts


def class_counts(parts: Mapping[str, Sequence[int]]) -> Figure:
    """How many rows of each class there are, a panel for each part of the data, the counts written on the bars.

    parts: title → labels, whole numbers from 0 on. Raises ValueError for a part without rows.
    """
    labels = {title: [int(label) for label in values] for title, values in parts.items()}
    if not labels or not all(labels.values()):
        raise ValueError("class_counts needs at least one part, and rows in each.")
    classes = range(max(max(values) for values in labels.values()) + 1)
    figure, panels = new_figure(WIDTH, 1.55 * len(labels) + 0.2, rows=len(labels))
    stories = []
    for axis, (title, values) in zip(panels if isinstance(panels, list) else [panels], labels.items(), strict=True):
        counts = [values.count(label) for label in classes]
        axis.bar(classes, counts, color=BLUE, alpha=0.55, width=0.8)
        for label, count in zip(classes, counts, strict=True):
            axis.annotate(str(count), (label, count), (0, 2), textcoords="offset points", ha="center", fontsize=SMALL)
        axis.set_title(f"{title}: {len(values)} rows", fontsize=10, loc="left")
        axis.set(xticks=list(classes), yticks=[], ylim=(0, 1.2 * max(counts)))
        axis.spines["left"].set_visible(False)
        stories.append(f"{title}, {len(values)} rows: {', '.join(f'{k}: {n}' for k, n in enumerate(counts))}.")
    return Figure(figure, f"Bars, rows of each class. {' '.join(stories)}")


# epoch_address


def epoch_address(sizes: Sequence[int], done: int, resumes: Mapping[str, int]) -> Figure:
    """An epoch as a bar of batches with a kill after `done` of them, and what each kind of resume does with the rest.

    sizes: rows of each batch. resumes: label → how many batches it takes as done: `done` is right, fewer are trained
    twice, more are left out. Raises ValueError for numbers that do not fit.
    """
    count = len(sizes)
    if not 0 < count <= MOST_BATCHES or not all(0 <= n <= count for n in (done, *resumes.values())):
        raise ValueError(f"Positions lie between 0 and the number of batches, which is at most {MOST_BATCHES}.")
    left, height, pitch, head = 1.95, 0.36, 0.56, 0.5
    scale = (WIDTH - MARGIN - left) / sum(sizes)
    edges = [left + scale * sum(sizes[:number]) for number in range(count + 1)]
    figure, axis = canvas(head + pitch * (1 + len(resumes)) + 0.28)
    write_centered(axis, edges[done], 0.16, f"killed after batch {done} of {count}", weight="bold")
    stories = []
    rows = {"before the kill": (0, done), **{label: (start, count) for label, start in resumes.items()}}
    for place, (label, (start, end)) in enumerate(rows.items()):
        top = head + pitch * place
        write(axis, left - 0.12, top + height / 2, label, ha="right", fontsize=SMALL)
        for number in range(start, end):
            fill = USED if not place else AGAIN if number < done else FRESH
            draw_cells(axis, [(edges[number], top)], edges[number + 1] - edges[number], height, [fill])
        if not place:
            story = f"batches 1 to {done}"
        elif start < done:
            story = f"batches {start + 1} to {done} are trained twice"
            twice = f"{done - start}× twice" if done - start < 3 else f"{done - start} batches twice"
            middle = (edges[start] + edges[done]) / 2
            write_centered(axis, middle, top + height / 2, twice, fontsize=SMALL, bbox=ON_HATCH)
        elif start > done:
            story = f"batches {done + 1} to {start} are left out"
            write_centered(axis, (edges[start] + edges[done]) / 2, top + height / 2, "left out", fontsize=SMALL)
        else:
            story = f"goes on with batch {done + 1}, each batch once"
        stories.append(f"{label}: {story}.")
    bottom = head + pitch * len(rows) - 0.08
    axis.plot([edges[done]] * 2, [0.28, bottom], color=BLACK, linewidth=2, linestyle="--")
    arrow(axis, (left, bottom + 0.06), (WIDTH - MARGIN, bottom + 0.06), color=GRAY)
    ends = f"{count} batches of {sizes[0]} rows" + (f", the last of {sizes[-1]}" if sizes[-1] != sizes[0] else "")
    write(axis, WIDTH - MARGIN, bottom + 0.22, ends, ha="right", fontsize=SMALL)
    return Figure(figure, f"An epoch of {ends}, killed after batch {done}. {' '.join(stories)}")


# guarded_norms


def guarded_norms(norms: Sequence[float], max_norm: float) -> Figure:
    """Gradient norms before clipping, step by step: below the line as they are, above it clipped, else skipped."""
    finite = [norm for norm in norms if math.isfinite(norm) and norm > 0]
    if not finite or max_norm <= 0:
        raise ValueError("guarded_norms needs at least one norm that is finite and above 0, and a max_norm above 0.")
    figure, axis = new_figure(WIDTH, 3.0)
    axis.set_yscale("log")
    top = 10 ** math.ceil(math.log10(max([*finite, max_norm])) + 0.6)
    low = 10 ** math.floor(math.log10(min([*finite, max_norm])))
    axis.set(ylim=(low, top), xlim=(0, len(norms) + 1))
    axis.set_xlabel("step", fontsize=10)
    axis.set_ylabel("gradient norm", fontsize=10)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    steps = range(1, len(norms) + 1)
    kinds = {
        "within": ([s for s, n in zip(steps, norms, strict=True) if math.isfinite(n) and n <= max_norm], BLUE, "o"),
        "clipped": ([s for s, n in zip(steps, norms, strict=True) if math.isfinite(n) and n > max_norm], GREEN, "^"),
        "skipped": ([s for s, n in zip(steps, norms, strict=True) if not math.isfinite(n)], VERMILION, "X"),
    }
    ceiling = top / 10**0.2
    for name, (places, color, marker) in kinds.items():
        heights = [ceiling if name == "skipped" else norms[place - 1] for place in places]
        size = 11 if name == "skipped" else 6
        axis.plot(places, heights, color=color, marker=marker, markersize=size, linestyle="", clip_on=False)
    for place in kinds["skipped"][0]:
        axis.axvline(place, color=PALE, linewidth=6, zorder=0)
        axis.annotate(
            f"{norms[place - 1]}", (place, ceiling), (9, 0), textcoords="offset points", va="center", fontsize=SMALL
        )
    axis.axhline(max_norm, color=BLACK, linestyle="--", linewidth=1.4)
    clipped, skipped = len(kinds["clipped"][0]), kinds["skipped"][0]
    axis.set_title(
        f"● as it is: {len(kinds['within'][0])}    ▲ clipped to {max_norm:g} (dashed line): {clipped}    "
        f"✖ skipped: {len(skipped)}",
        fontsize=10,
        loc="left",
    )
    return Figure(
        figure,
        f"Gradient norms of {len(norms)} steps, logarithmic, from {min(finite):.3g} to {max(finite):.3g}. The line of "
        f"clipping is at {max_norm:g}: {clipped} steps lie above it and were clipped, {len(kinds['within'][0])} below. "
        f"Not finite and skipped: {', '.join(f'step {place}' for place in skipped) or 'none'}.",
    )


# survival


def survival(report: Any) -> Figure:
    """The report of a kill test: the processes over the batches, both validation losses, and how far weights differ.

    report: of `survive.kill_test`, with both runs at their end. The last panel is logarithmic above its line 0, which
    means equal to the last bit. Raises ValueError when there is nothing to compare.
    """
    if not report.straight or not report.resumed or not report.gaps:
        raise ValueError("This report has no two complete runs to draw; print it, it says why.")
    from course_utils.survive import PER_EPOCH

    epochs = max(report.straight["epochs"], report.resumed["epochs"])
    figure, (lanes, losses, gaps) = new_figure(WIDTH, 5.4, rows=3)
    figure.set_layout_engine("constrained", h_pad=0.06)
    lanes.get_gridspec().set_height_ratios([0.22 * (len(report.kills) + 2), 1.5, 1.3])
    told = [_lanes(lanes, report, PER_EPOCH)]
    told.append(_losses(losses, report))
    told.append(_gaps(gaps, report, PER_EPOCH))
    for axis in (lanes, losses, gaps):
        axis.set_xlim(-0.02 * epochs, epochs * 1.02)
        axis.set_xticks(range(epochs + 1))
        for kill in report.kills:
            axis.axvline(kill.saves / PER_EPOCH, color=GRAY, linestyle=":", linewidth=1.2, zorder=0)
    gaps.set_xlabel("epochs", fontsize=10)
    return Figure(figure, " ".join(told))


def _lanes(axis: Any, report: Any, per_epoch: int) -> str:
    ends = [kill.saves / per_epoch for kill in report.kills]
    spans = [(0.0, float(report.straight["epochs"]))]
    spans += list(zip([0.0, *ends], [*ends, float(report.resumed["epochs"])], strict=True))
    names = ["left alone", *(f"process {number}" for number in range(1, len(spans)))]
    for row, (start, end) in enumerate(spans):
        color, hatch = (GRAY, "") if row == 0 else (GREEN, "///" if row % 2 else "...")
        axis.barh(row, end - start, left=start, height=0.62, color=color, alpha=0.55, hatch=hatch, edgecolor="white")
    for row, kill in enumerate(report.kills, start=1):
        axis.plot([kill.saves / per_epoch], [row], marker="X", color=VERMILION, markersize=11, linestyle="")
        what = "killed while saving" if kill.moment == "write" else "killed"
        at, whole = kill.saves / per_epoch, spans[-1][1]
        inside = at - spans[row][0] > 0.3 * whole  # room enough on the bar itself
        offset, side = ((9, 0), "left")
        if inside or at > 0.7 * whole:
            at = at if inside else spans[row][0]
            offset, side = ((-10, 0), "right")
        axis.annotate(
            what, (at, row), offset, textcoords="offset points", va="center", ha=side, fontsize=SMALL,
            bbox=ON_HATCH if inside else None,
        )  # fmt: skip
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelbottom=False, length=0)
    kills = "; ".join(f"process {number} killed {kill.place}" for number, kill in enumerate(report.kills, start=1))
    return f"Three panels over {report.straight['epochs']} epochs. Processes: {kills or 'no kills'}."


def _losses(axis: Any, report: Any) -> str:
    one, two = report.straight["history"], report.resumed["history"]
    # The right run lies under the other, so the one that was left alone gets large open markers.
    axis.plot(
        range(1, len(one) + 1), one, color=GRAY, marker="o", markersize=11, fillstyle="none", linewidth=3, alpha=0.7
    )
    axis.plot(range(1, len(two) + 1), two, color=BLUE, marker="s", markersize=4.5, linewidth=1.4, linestyle="--")
    axis.set_yscale("log")
    axis.minorticks_off()
    shown = [value for value in (*one, *two) if value > 0 and math.isfinite(value)]
    ticks = [tick for tick in _NICE if shown and min(shown) <= tick <= max(shown)]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ylabel("validation\nloss", fontsize=10)
    axis.tick_params(labelbottom=False)
    axis.set_title("○ left alone    ■ killed and resumed", fontsize=10, loc="left")
    numbers = ", ".join(f"{value:.3g}" for value in one)
    same = "the same to the last bit" if one == two else f"of the resumed run {', '.join(f'{v:.3g}' for v in two)}"
    return f"Validation losses of the run that was left alone: {numbers}; {same}."


_NICE = [digit * 10.0**power for power in range(-6, 6) for digit in (1, 2, 5)]


def _gaps(axis: Any, report: Any, per_epoch: int) -> str:
    places = [key / per_epoch for key in report.gaps]
    values = list(report.gaps.values())
    finite = [value for value in values if value > 0 and math.isfinite(value)]
    low = math.floor(math.log10(min(finite))) if finite else -8
    high = max(math.ceil(math.log10(max(finite))), low + 1) if finite else 0
    zero = low - max(1.0, 0.25 * (high - low))
    heights = [math.log10(v) if v > 0 and math.isfinite(v) else high if v > 0 else zero for v in values]
    equal = [(x, y) for x, y, value in zip(places, heights, values, strict=True) if value == 0]
    other = [(x, y) for x, y, value in zip(places, heights, values, strict=True) if value != 0]
    axis.plot(*zip(*equal, strict=True) if equal else ((), ()), color=GREEN, marker="s", markersize=3.5, linestyle="")
    axis.plot(*zip(*other, strict=True) if other else ((), ()), color=VERMILION, marker="^", markersize=4, linestyle="")
    powers = list(range(low, high + 1))
    powers = powers[:: max(1, math.ceil(len(powers) / 4))]
    axis.set_yticks([zero, *powers], ["0", *(f"$10^{{{power}}}$" for power in powers)])
    axis.set_ylim(zero - 0.6, high + 0.3)
    axis.axhline(zero, color=PALE, linewidth=1, zorder=0)
    axis.set_ylabel("largest\ndifference", fontsize=10)
    first = next((key for key, value in report.gaps.items() if value), None)
    if first is None:
        title = f"weights and buffers: difference exactly 0 before each of the {len(values)} batches"
        story = "Weights and buffers are equal to the last bit before every batch."
    else:
        epoch, batch = divmod(first, per_epoch)
        title = f"weights and buffers: equal (■) until batch {batch + 1} of epoch {epoch + 1}, then not (▲)"
        story = (
            f"Weights differ from batch {batch + 1} of epoch {epoch + 1} on, by up to "
            f"{max(finite):.2g}." if finite else "Weights differ."
        )  # fmt: skip
    axis.set_title(title, fontsize=10, loc="left")
    return story
