"""Figures of week 11: memory of recomputation, captured graphs, compilations, differences, exported programs.

Everything is drawn from what the caller measured or captured. Drawings are laid out in inches, like those of `memory`.
"""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import nn
from torch.fx import GraphModule

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
    YELLOW,
    Figure,
    new_figure,
)
from course_utils.plots.memory import LETTER, MARGIN, SIZE, SMALL, WIDTH, arrow, canvas, tint, write, write_centered

MONO = {"family": "monospace", "fontsize": SMALL}
REGIONS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
LINE = 0.235
Place = tuple[float, float, float, float]  # left, top, width, height


def _block(axis: Axes, place: Place, color: str, hatch: str = "") -> None:
    x, y, width, height = place
    look = {"facecolor": tint(color, 0.35), "edgecolor": tint(color, 0.65)}
    axis.add_patch(Rectangle((x, y), width, height, hatch=hatch or None, linewidth=0, **look))
    axis.add_patch(Rectangle((x, y), width, height, facecolor="none", edgecolor=GRAY, linewidth=0.9))


def _plate(axis: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Text on a white plate, readable on any hatching."""
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9}
    write_centered(axis, x, y, text, **{"fontsize": SMALL, "bbox": plate, **options})


# ---- recomputation ---------------------------------------------------------------------------------------------------


def memory_timelines(runs: Mapping[str, tuple[Sequence[float], int]]) -> Figure:
    """Memory in use after each operation, one panel a run on common axes.

    runs: label → (bytes after each operation, how many of these belong to the forward pass).
    """
    if not runs:
        raise ValueError("memory_timelines needs at least one run to draw.")
    figure, panels = new_figure(WIDTH, 1.15 * len(runs) + 0.4, rows=len(runs))
    panels = panels if isinstance(panels, list) else [panels]
    top = max(max(history) for history, _ in runs.values()) / 1e6
    longest = max(len(history) for history, _ in runs.values())
    words = []
    for axis, (label, (history, forward)) in zip(panels, runs.items(), strict=True):
        ys = [value / 1e6 for value in history]
        xs = range(len(ys))
        parts = ((0, forward, BLUE, ""), (forward - 1, len(ys), VERMILION, "////"))
        for start, end, color, hatch in parts:
            look = {"facecolor": tint(color), "edgecolor": tint(color, 0.7), "linewidth": 0}
            axis.fill_between(xs[start:end], ys[start:end], step="post", hatch=hatch or None, **look)
        axis.step(xs, ys, where="post", color=BLACK, linewidth=1)
        peak = max(range(len(ys)), key=ys.__getitem__)
        axis.plot([peak], [ys[peak]], marker="v", color=BLACK, markersize=6)
        axis.annotate(
            f"peak {ys[peak]:.2f} MB",
            (peak, ys[peak]),
            (7, 1),
            textcoords="offset points",
            fontsize=SMALL,
            weight="bold",
        )
        axis.set_title(label, fontsize=SIZE, loc="left")
        axis.set(xlim=(0, longest * 1.13), ylim=(0, top * 1.22))
        axis.set_ylabel("MB", fontsize=SMALL)
        words.append(
            f"{label}: {ys[forward - 1]:.2f} MB after the forward pass, peak {ys[peak]:.2f} MB, "
            f"{len(ys) - 1} operations."
        )
    for axis in panels[:-1]:
        axis.tick_params(labelbottom=False)
    key = [
        Rectangle(
            (0, 0),
            1,
            1,
            facecolor=tint(color),
            edgecolor=tint(color, 0.7),
            hatch=hatch or None,
            linewidth=0,
            label=name,
        )
        for name, color, hatch in (("forward", BLUE, ""), ("backward", VERMILION, "////"))
    ]
    panels[0].legend(handles=key, loc="upper right", fontsize=SMALL, frameon=False)
    panels[-1].set_xlabel("operation", fontsize=SIZE)
    return Figure(figure, "Memory in use after each operation, forward then backward. " + " ".join(words))


def recompute_lanes(runs: Mapping[str, tuple[Sequence[object], Sequence[object]]]) -> Figure:
    """What ran in the forward pass and what ran again in the backward pass, in order of time; one lane a run.

    runs: label → (what ran in forward, what ran in backward). What runs in backward without having run in forward as
    often is marked as wrong.
    """
    if not runs:
        raise ValueError("recompute_lanes needs at least one run to draw.")
    most = [max([1, *(len(sides[side]) for sides in runs.values())]) for side in (0, 1)]
    left = 0.25 + LETTER * 1.02 * max(len(line) for label in runs for line in label.split("\n"))
    gap, head, row, tall = 0.4, 0.36, 0.52, 0.36
    cell = min(0.85, (WIDTH - MARGIN - left - gap) / sum(most))
    figure, axis = canvas(head + row * len(runs) + 0.02)
    starts = (left, left + most[0] * cell + gap)
    write(axis, starts[0], 0.16, "forward →", fontsize=SIZE, weight="bold")
    write(axis, starts[1], 0.16, "run again in backward →", fontsize=SIZE, weight="bold")
    words = []
    for index, (label, sides) in enumerate(runs.items()):
        top = head + row * index
        write(axis, left - 0.1, top + tall / 2, label, fontsize=SMALL, ha="right")
        left_over = list(sides[0])
        for side, calls in enumerate(sides):
            for place, name in enumerate(calls):
                wrong = side == 1 and name not in left_over
                if side == 1 and not wrong:
                    left_over.remove(name)
                color, hatch = (VERMILION, "xxx") if wrong else ((BLUE, ""), (ORANGE, "///"))[side]
                x = starts[side] + place * cell
                _block(axis, (x, top, cell - 0.06, tall), color, hatch)
                _plate(axis, x + cell / 2 - 0.03, top + tall / 2, f"{name}{' ✗' if wrong else ''}")
        if not sides[1]:
            write(axis, starts[1], top + tall / 2, "nothing", fontsize=SMALL, color=GRAY)
        forward, backward = (", ".join(map(str, calls)) or "nothing" for calls in sides)
        words.append(f"{' '.join(label.split())}: forward {forward}; run again in backward: {backward}.")
    return Figure(figure, "Lanes in order of time. " + " ".join(words))


# ---- capture ---------------------------------------------------------------------------------------------------------


def lines_of(graph: GraphModule, name: str) -> set[int]:
    """The lines of the function called `name` that the operations of a captured graph come from.

    What follows a break belongs to a function that Dynamo made, torch_dynamo_resume_in_<name>_at_<line>.
    """
    found = set()
    for node in graph.graph.nodes:
        trace = node.meta.get("stack_trace") or ""
        hits = re.findall(rf", line (\d+), in (?:\w*resume_in_)?{re.escape(name)}(?:_at_\d+)?$", trace, re.MULTILINE)
        if hits and node.op.startswith("call_"):
            found.add(int(hits[-1]))
    return found


def captured_lines(function: Callable[..., Any], graphs: Sequence[GraphModule]) -> Figure:
    """The source of a function; each line carries the numbers of the graphs that hold its operations.

    graphs: what a backend was given, in order.
    """
    source, first = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(source)).rstrip().split("\n")
    regions = [lines_of(graph, function.__name__) for graph in graphs]
    owners = [[number for number, lines in enumerate(regions) if first + row in lines] for row in range(len(source))]
    figure, axis = canvas(0.2 + LINE * len(source))
    wide = min(WIDTH - 2.3, 0.3 + LETTER * 1.05 * max(map(len, source)))
    words = []
    for row, (text, mine) in enumerate(zip(source, owners, strict=True)):
        y = 0.1 + LINE * row
        for slot, number in enumerate(mine):
            share = wide / len(mine)
            place = (MARGIN + slot * share, y + 0.015, share, LINE - 0.03)
            _block(axis, place, REGIONS[number % len(REGIONS)])
        write(axis, MARGIN + 0.08, y + LINE / 2, text, **MONO)
        if mine:
            label = "graph " + " and ".join(str(number + 1) for number in mine)
            for slot, number in enumerate(mine):
                place = (MARGIN + wide + 0.12 + 0.24 * slot, y + 0.035, 0.2, LINE - 0.07)
                _block(axis, place, REGIONS[number % len(REGIONS)], HATCHES[1 + number % (len(HATCHES) - 1)])
            write(axis, MARGIN + wide + 0.16 + 0.24 * len(mine), y + LINE / 2, label, fontsize=SMALL, weight="bold")
            words.append(f"line {row + 1}, {text.strip()}: {label}")
        elif row and text.strip() and not text.strip().startswith(("#", '"""')):
            write(axis, MARGIN + wide + 0.12, y + LINE / 2, "Python", fontsize=SMALL, color=GRAY)
            words.append(f"line {row + 1}, {text.strip()}: Python")
    return Figure(figure, f"The lines of {function.__name__} and where they run. {'; '.join(words)}.")


def compilations(scenarios: Mapping[str, Sequence[tuple[str, int]]]) -> Figure:
    """Calls in order, one lane a scenario: which call made Dynamo capture new graphs, which one reused what was there.

    scenarios: label → for each call (what it was called with, how many new graphs it brought).
    """
    if not scenarios:
        raise ValueError("compilations needs at least one scenario to draw.")
    left = 0.25 + LETTER * 1.02 * max(len(label) for label in scenarios)
    most = max(len(calls) for calls in scenarios.values())
    cell = min(0.95, (WIDTH - left - MARGIN - 0.85) / most)
    head, row, tall = 0.42, 0.5, 0.36
    figure, axis = canvas(head + row * len(scenarios) + 0.02)
    for x, (color, hatch, text) in zip(
        (left, left + 2.2), ((VERMILION, "///", "captured a new graph"), (PALE, "", "reused")), strict=True
    ):
        _block(axis, (x, 0.08, 0.26, 0.18), color, hatch)
        write(axis, x + 0.34, 0.17, text, fontsize=SMALL)
    words = []
    for index, (label, calls) in enumerate(scenarios.items()):
        top = head + row * index
        write(axis, left - 0.1, top + tall / 2, label, fontsize=SMALL, ha="right")
        for place, (given, new) in enumerate(calls):
            x = left + place * cell
            _block(axis, (x, top, cell - 0.06, tall), *((VERMILION, "///") if new else (PALE, "")))
            _plate(axis, x + cell / 2 - 0.03, top + tall / 2, given + (f" +{new}" if new > 1 else ""))
        total = sum(new for _, new in calls)
        text = f"{total} graph{'s' * (total != 1)}"
        write(axis, left + len(calls) * cell + 0.04, top + tall / 2, text, fontsize=SMALL, weight="bold")
        told = ", ".join(f"{given} {f'brings {new}' if new else 'reuses'}" for given, new in calls)
        words.append(f"{label}: {told}; {text} in all.")
    return Figure(figure, "Calls in order. " + " ".join(words))


# ---- comparison ------------------------------------------------------------------------------------------------------


def differences(reference: torch.Tensor, candidates: Mapping[str, torch.Tensor], rtol: float, atol: float) -> Figure:
    """Histograms of |candidate - reference| / (atol + rtol·|reference|): what lies right of 1 is out of tolerance."""
    if not candidates:
        raise ValueError("differences needs at least one candidate to draw.")
    exact = reference.detach().cpu().double().flatten()
    ratios = {
        label: (values.detach().cpu().double().flatten() - exact).abs() / (atol + rtol * exact.abs())
        for label, values in candidates.items()
    }
    logs = {label: ratio[ratio > 0].log10() for label, ratio in ratios.items()}
    ends = [value for log in logs.values() if len(log) for value in (log.min().item(), log.max().item())]
    low, high = math.floor(min([*ends, -1])), max(math.ceil(max([*ends, 0])), 1)
    edges = torch.linspace(low, high, 8 * (high - low) + 1, dtype=torch.float64)
    figure, panels = new_figure(WIDTH, 1.2 * len(ratios) + 0.45, rows=len(ratios))
    panels = panels if isinstance(panels, list) else [panels]
    words = []
    for axis, (label, ratio) in zip(panels, ratios.items(), strict=True):
        heights = torch.histogram(logs[label], edges).hist.tolist()
        for left, right, height in zip(edges[:-1].tolist(), edges[1:].tolist(), heights, strict=True):
            bad = left >= -1e-9
            color, hatch = (VERMILION, "xxx") if bad else (SKY, "")
            axis.bar(left, height, right - left, align="edge", color=tint(color, 0.6), edgecolor=tint(color, 0.9),
                     hatch=hatch or None, linewidth=0)  # fmt: skip
        axis.axvline(0, color=BLACK, linewidth=1.6)
        equal, out = (ratio == 0).double().mean().item(), (ratio > 1).double().mean().item()
        story = f"{equal:.0%} equal, {1 - equal - out:.0%} within tolerance, {out:.0%} outside"
        axis.set_title(f"{label}: {story}", fontsize=SIZE, loc="left")
        axis.set(xlim=(low, high), yticks=[])
        axis.spines["left"].set_visible(False)
        axis.tick_params(labelbottom=axis is panels[-1])
        words.append(f"{label}: {story}.")
    panels[-1].set_xticks(range(low, high + 1), [f"$10^{{{e}}}$" if e else "1" for e in range(low, high + 1)])
    panels[-1].set_xlabel("difference, in units of the tolerance (the line is at 1)", fontsize=SIZE)
    return Figure(
        figure, f"Histograms of differences where they are not 0, rtol {rtol:g}, atol {atol:g}. {' '.join(words)}"
    )


# ---- export ----------------------------------------------------------------------------------------------------------


def exported_operations(program: torch.export.ExportedProgram) -> list[tuple[str, str, tuple]]:
    """The operations of an exported program: name, the submodule it comes from ("" for none), shape of its result."""
    rows = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        owner = stack[-1][0] if stack else ""
        value = node.meta.get("val")
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
        rows.append((str(node.target).removesuffix(".default"), owner, shape))
    return rows


def exported_program(module: nn.Module, program: torch.export.ExportedProgram, batch: str = "batch") -> Figure:
    """The submodules of a model beside the operations that were exported, each with the shape of its result.

    batch: the word for sizes that are left open.
    """
    leaves = {name: part for name, part in module.named_modules() if name and not list(part.children())}
    rows = exported_operations(program)
    height = 0.42 + 0.42 * max(len(leaves), len(rows))
    figure, axis = canvas(height)
    write(axis, MARGIN, 0.17, "the module", weight="bold")
    right, wide = 4.85, 4.0
    write(axis, right, 0.17, "the program, sizes of results", weight="bold")
    places, words = {}, []
    for row, (name, part) in enumerate(leaves.items()):
        y = 0.42 + 0.42 * row
        _block(axis, (MARGIN, y, wide, 0.32), SKY)
        write(axis, MARGIN + 0.08, y + 0.16, _short(f"{name}: {part}", 51), **MONO)
        places[name] = y + 0.16
    for row, (operation, owner, shape) in enumerate(rows):
        y = 0.42 + 0.42 * row
        sizes = ", ".join(str(size) if isinstance(size, int) else batch for size in shape)
        _block(axis, (right, y, WIDTH - MARGIN - right, 0.32), ORANGE)
        write(axis, right + 0.08, y + 0.16, _short(f"{operation}  ({sizes})", 32), **MONO)
        if owner in places:
            arrow(axis, (MARGIN + wide + 0.05, places[owner]), (right - 0.05, y + 0.16), GRAY)
        words.append(f"{operation} gives ({sizes})" + (f", from {owner}" if owner in places else ""))
    return Figure(
        figure, f"{len(leaves)} submodules and the {len(rows)} operations exported from them: {'; '.join(words)}."
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
