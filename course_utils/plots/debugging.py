"""Figures of the week on debugging: levels, call order, ranges, gradients, saved tensors, influence, the ward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.ticker import MaxNLocator
from torch import nn

from course_utils.plots.figure import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PALE,
    PALETTE,
    PURPLE,
    SKY,
    VERMILION,
    Figure,
    new_figure,
)
from course_utils.plots.lines import _describe, _label_ends, _line, _look
from course_utils.plots.memory import (
    EMPTY,
    SMALL,
    WIDTH,
    Fill,
    arrow,
    canvas,
    draw_cells,
    plural,
    tint,
    write,
    write_centered,
)

MONO = {"family": "monospace", "fontsize": SMALL}
LEVEL_STYLES = ((0, (6, 3)), (0, (1.5, 2)), (0, (6, 2, 1, 2)))

# ---- losses and the levels that mean something -----------------------------------------------------------------------


def losses_with_levels(
    history: Mapping[str, Sequence[float]],
    levels: Mapping[str, float],
    title: str | None = None,
    xlabel: str = "step",
    ylabel: str = "loss",
) -> Figure:
    """Loss curves with named horizontal lines, such as the loss of a model that knows nothing.

    history: label → losses; levels: label → loss. The axis begins at zero, so that a floor above it looks like one.
    Raises ValueError without a curve and without a level.
    """
    if not history or not levels:
        raise ValueError("losses_with_levels needs at least one curve and one level; `curves` draws lines alone.")
    lines = [_line(label, losses, None, False, False) for label, losses in history.items()]
    looks = [_look(place) for place in range(len(lines))]
    figure, axis = new_figure(WIDTH, 3.2)
    for line, look in zip(lines, looks, strict=True):
        step = max(1, len(line.ys) // 8)
        axis.plot(line.xs, [y if shown else math.nan for y, shown in zip(line.ys, line.shown, strict=True)],
                  markevery=step, **look)  # fmt: skip
    top = 1.12 * max([*levels.values(), *(y for line in lines for _, y in line.points())])
    axis.set_ylim(-0.05 * top, top)
    highest = max(levels, key=levels.__getitem__)
    for place, (name, level) in enumerate(levels.items()):
        axis.axhline(level, color=BLACK, linewidth=1.3, linestyle=LEVEL_STYLES[place % len(LEVEL_STYLES)], zorder=1.5)
        axis.annotate(
            f"{name}: {level:.3f}", (0.5, level), xycoords=("axes fraction", "data"),
            xytext=(0, 5 if name == highest else -6), textcoords="offset points", fontsize=9.5, color=BLACK,
            va="bottom" if name == highest else "top", ha="left",
        )  # fmt: skip
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)
    axis.set_title(title or "", fontsize=11, loc="left")
    _label_ends(figure, axis, lines, looks)
    drawn = ", ".join(f"{name} at {level:.3f}" for name, level in levels.items())
    return Figure(figure, f"{_describe(lines, xlabel, ylabel, title, False, False)} Horizontal lines: {drawn}.")


# ---- registered and called -------------------------------------------------------------------------------------------


def leaf_calls(model: nn.Module, x: torch.Tensor) -> tuple[list[str], list[str]]:
    """Names of the leaf modules as registered, and of their calls in one forward pass without gradients."""
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    calls: list[str] = []
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: calls.append(name))
        for name, module in leaves.items()
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return list(leaves), calls


def call_order(model: nn.Module, x: torch.Tensor) -> Figure:
    """The leaves in the order of registration, their calls in the order of one forward pass, an arrow for each call."""
    registered, called = leaf_calls(model, x)
    kinds = dict(model.named_modules())
    top, pitch, box = 0.62, 0.42, (2.35, 0.32)
    rows = max(len(registered), len(called))
    figure, axis = canvas(top + rows * pitch + 0.1)
    left, right = 0.35, 4.75
    write_centered(axis, left + box[0] / 2, 0.3, "registered: order of __init__", weight="bold")
    write_centered(axis, right + box[0] / 2, 0.3, "called: order of forward", weight="bold")
    colors = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(registered)}

    def middle(row: int) -> float:
        return top + row * pitch + box[1] / 2

    for row, name in enumerate(registered):
        used = name in called
        draw_cells(axis, [(left, top + row * pitch)], *box, [Fill(colors[name]) if used else Fill(GRAY, "///")])
        text = f"{name}  {type(kinds[name]).__name__}" + ("" if used else "  never called")
        plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.2} if not used else None
        write(axis, left + 0.1, middle(row), text, bbox=plate, **MONO)
    for row, name in enumerate(called):
        draw_cells(axis, [(right, top + row * pitch)], *box, [Fill(colors[name])])
        write(axis, right + 0.1, middle(row), f"{row + 1}. {name}", **MONO)
        start, end = (left + box[0], middle(registered.index(name))), (right - 0.03, middle(row))
        arrow(axis, start, end, colors[name], linewidth=1.6)
    twice = [f"{name} ({called.count(name)} times)" for name in registered if called.count(name) > 1]
    unused = [name for name in registered if name not in called]
    return Figure(
        figure,
        f"Two columns joined by arrows. Registered: {', '.join(registered)}. Called: {', '.join(called)}. "
        f"Called more than once: {', '.join(twice) or 'none'}. Never called: {', '.join(unused) or 'none'}.",
    )


# ---- ranges of activations -------------------------------------------------------------------------------------------


def activation_ranges(runs: Mapping[str, Mapping[str, float]], limits: Mapping[str, float] | None = None) -> Figure:
    """The largest absolute output of each layer, logarithmic; infinity and NaN stand at the upper edge, by name.

    runs: label → (layer → largest absolute value); all runs have the same layers. limits: label → a number worth a
    line, such as the largest of a dtype.
    """
    names = list(next(iter(runs.values())))
    limits = limits or {}
    figure, axis = new_figure(WIDTH, 3.5)
    axis.set_yscale("log")
    finite = [v for run in runs.values() for v in run.values() if math.isfinite(v) and v > 0]
    edge = 30 * max([*finite, *limits.values()])
    sentences = []
    for place, (label, run) in enumerate(runs.items()):
        values = [float(run[name]) for name in names]
        good = [k for k, value in enumerate(values) if math.isfinite(value)]
        bad = [k for k, value in enumerate(values) if not math.isfinite(value)]
        color, marker = PALETTE[place], "os^D"[place % 4]
        axis.plot(
            good, [values[k] for k in good], color=color, marker=marker, markersize=6 + 3 * place, linewidth=1.8,
            linestyle=("-", "--", "-.", ":")[place % 4], markerfacecolor="none" if place else color,
        )  # fmt: skip
        for k in bad:
            word = "nan" if math.isnan(values[k]) else "inf"
            axis.plot([k], [edge], marker="X", color=color, markersize=9, linestyle="")
            axis.annotate(word, (k, edge), (0, 8), textcoords="offset points", ha="center", fontsize=9, color=BLACK)
        axis.annotate(
            label, (good[-1], values[good[-1]]), (9, -4 - 10 * place), textcoords="offset points", fontsize=9.5,
            color=BLACK, va="top",
        )  # fmt: skip
        sentence = f"{label}: {values[0]:.2g} after {names[0]}, {values[good[-1]]:.2g} after {names[good[-1]]}"
        if bad:
            first = "NaN" if math.isnan(values[bad[0]]) else "infinity"
            nan = next((names[k] for k in bad if math.isnan(values[k])), None)
            sentence += f", {first} first at {names[bad[0]]}" + (f", NaN from {nan} on" if nan else "")
        sentences.append(sentence)
    for name, level in limits.items():
        axis.axhline(level, color=BLACK, linestyle=LEVEL_STYLES[0], linewidth=1.2)
        axis.annotate(
            f"{name}: {level:g}", (0.01, level), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", fontsize=9.5, color=BLACK,
        )  # fmt: skip
        sentences.append(f"a line marks {name}, {level:g}")
    axis.set_xticks(range(len(names)), [name.removeprefix("layer ") for name in names])
    axis.set_xlim(-0.4, len(names) + 0.6)
    if any(not math.isfinite(v) for run in runs.values() for v in run.values()):
        axis.set_ylim(top=edge * 20)
    axis.set_xlabel("layer", fontsize=10)
    axis.set_ylabel("largest absolute output (log)", fontsize=10)
    return Figure(figure, f"Largest absolute output by layer, logarithmic. {'. '.join(sentences)}.")


# ---- gradients by parameter ------------------------------------------------------------------------------------------

STATES = {
    "ok": (BLUE, ""),
    "zero": (GRAY, "..."),
    "none": (VERMILION, "xxx"),
    "frozen": (SKY, "///"),
    "nonfinite": (PURPLE, "\\\\\\"),
}


def gradient_norms(report: Mapping[str, tuple[str, float | None]], title: str | None = None) -> Figure:
    """Bars of the gradient norm by parameter, logarithmic; what has no bar says why.

    report: name → (state, norm), as `gradient_report` returns it; states are ok, zero, none, frozen, nonfinite.
    """
    if not report:
        raise ValueError("A report needs at least one parameter.")
    names = list(report)
    figure, axis = new_figure(WIDTH, 0.95 + 0.3 * len(names))
    norms = [norm for state, norm in report.values() if state == "ok" and norm]
    low = 10 ** (math.floor(math.log10(min(norms, default=1))) - 1)
    high = 10 ** (math.ceil(math.log10(max(norms, default=1)) + 0.35))
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    for row, (state, norm) in enumerate(report.values()):
        color, hatch = STATES[state]
        if state == "ok":
            axis.barh(row, norm - low, left=low, height=0.62, facecolor=tint(color, 0.55), edgecolor=color)
            axis.text(norm * 1.08, row, f"{norm:.2g}", va="center", fontsize=9, color=BLACK)
        else:  # a short stub at the axis, and the state in words
            end = low * (high / low) ** 0.045
            axis.barh(row, end - low, left=low, height=0.62, facecolor=tint(color, 0.45), edgecolor=color, hatch=hatch)
            axis.text(
                end * (high / low) ** 0.01, row, state, va="center", fontsize=9.5, color=BLACK,
                weight="bold" if state in ("none", "nonfinite") else "normal",
            )  # fmt: skip
    axis.set_yticks(range(len(names)), names, family="monospace", fontsize=9)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel("gradient norm (log)", fontsize=10)
    axis.set_title(title or "", fontsize=11, loc="left")
    told = [f"{n} {s} {v:.2g}" if s == "ok" else f"{n} {s}" for n, (s, v) in report.items()]
    head = f"Gradient norm by parameter, logarithmic{f', {title}' if title else ''}"
    return Figure(figure, f"{head}: {'; '.join(told)}.")


# ---- what backward keeps ---------------------------------------------------------------------------------------------


def kept_tensors(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[bool, bool]:
    """Whether the function keeps its input, and whether it keeps its output, for the backward pass."""
    x = torch.tensor([0.5, 1.5, 2.5], requires_grad=True)
    addresses: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        addresses.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x)
    return x.data_ptr() in addresses, y.data_ptr() in addresses


def survives_edit(function: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether backward still runs after the function's output was edited in place."""
    y = function(torch.tensor([0.5, 1.5, 2.5], requires_grad=True))
    y += 1
    try:
        y.sum().backward()
    except RuntimeError:
        return False
    return True


def saved_for_backward(operations: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> Figure:
    """For each operation y = f(x): which of x and y its node keeps, so which of them must not be edited in place."""
    top, pitch, left = 0.72, 0.36, 0.35
    figure, axis = canvas(top + pitch * len(operations) + 0.08)
    columns = {"operation": left, "keeps x": 2.25, "keeps y": 3.35}
    for name, place in columns.items():
        write(axis, place, 0.3, name, weight="bold")
    write(axis, 4.65, 0.3, "so y += 1 …", weight="bold")
    told = []
    for row, (text, function) in enumerate(operations.items()):
        y = top + row * pitch
        of_input, of_output = kept_tensors(function)
        write(axis, left, y + 0.1, text, **MONO)
        for place, kept in ((2.25, of_input), (3.35, of_output)):
            draw_cells(axis, [(place, y - 0.04)], 0.72, 0.28, [Fill(ORANGE, "///") if kept else EMPTY])
            plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            write_centered(axis, place + 0.36, y + 0.1, "saved" if kept else "–", fontsize=SMALL, bbox=plate)
        consequence = "is legal" if survives_edit(function) else "raises in backward"
        write(axis, 4.65, y + 0.1, consequence, fontsize=SMALL)
        kept = " and ".join(n for n, k in (("its input", of_input), ("its output", of_output)) if k)
        told.append(f"{text} keeps {kept or 'nothing'}, y += 1 {consequence}")
    return Figure(
        figure,
        f"Table of operations y = f(x), what each keeps for backward, and what editing y does: {'; '.join(told)}.",
    )


# ---- influence -------------------------------------------------------------------------------------------------------


def influence(matrices: Mapping[str, torch.Tensor]) -> Figure:
    """Grids of who influences whom: a row for each output, a column for each input; a mark where the entry is not 0.

    matrices: label → (N, N) tensor of absolute derivatives. Entries off the diagonal are leaks and carry a cross.
    """
    count = len(matrices)
    columns = min(4, count)
    rows = math.ceil(count / columns)
    cell_width = WIDTH / columns
    top, gap = 0.62, 0.5
    side = min(1.25, cell_width - 0.55)
    figure, axis = canvas(rows * (top + side + gap) + 0.02)
    told = []
    for place, (label, matrix) in enumerate(matrices.items()):
        n = len(matrix)
        x0 = cell_width * (place % columns) + (cell_width - side) / 2
        y0 = top + (place // columns) * (top + side + gap)
        hit = (matrix != 0).tolist()
        leaks = sum(hit[i][j] for i in range(n) for j in range(n) if i != j)
        size = side / n
        corners = [(x0 + j * size, y0 + i * size) for i in range(n) for j in range(n)]
        fills = [
            EMPTY if not hit[i][j] else Fill(GREEN) if i == j else Fill(VERMILION) for i in range(n) for j in range(n)
        ]
        draw_cells(axis, corners, size, size, fills)
        for (x, y), fill in zip(corners, fills, strict=True):
            if fill != EMPTY:
                mark = "•" if fill.color == GREEN else "×"
                write_centered(axis, x + size / 2, y + size / 2, mark, fontsize=9)
        write_centered(axis, x0 + side / 2, y0 - 0.36, label, fontsize=9, weight="bold")
        write_centered(axis, x0 + side / 2, y0 - 0.14, "input j", fontsize=SMALL)
        axis.text(
            x0 - 0.13, y0 + side / 2, "output i", rotation=90, va="center", ha="center", fontsize=SMALL, color=BLACK
        )
        words = f"{plural(leaks, 'leak')}" if leaks else "no leak"
        write_centered(axis, x0 + side / 2, y0 + side + 0.2, words, fontsize=9.5)
        told.append(f"{label}: {words} among {n * n - n} pairs")
    return Figure(
        figure,
        "Grids of which input row influences which output row; healthy is a diagonal. " + "; ".join(told) + ".",
    )


# ---- the ward --------------------------------------------------------------------------------------------------------


def ward(
    runs: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str = "epoch or batch",
    ylabel: str = "loss",
    columns: int = 4,
) -> Figure:
    """Small multiples of loss curves, one panel a script, each with its own scale.

    runs: name of the script → (label of the run → losses). A panel whose losses pass 100 is logarithmic and says so; a
    run without a finite loss is written instead of drawn. The labels stand in the first free panel.
    """
    count = len(runs)
    rows = math.ceil(count / columns)
    figure, axes = new_figure(WIDTH, 0.35 + 1.45 * rows, rows, columns)
    axes = axes if isinstance(axes, list) else [axes]
    told = []
    for axis, (name, lines) in zip(axes, runs.items(), strict=False):
        finite = [float(v) for losses in lines.values() for v in losses if math.isfinite(v)]
        log = max(finite, default=0.0) > 100 and min(finite) > 0
        axis.set_title(f"{name} (log)" if log else name, fontsize=9.5, loc="left")
        if log:
            axis.set_yscale("log")
        for place, (label, losses) in enumerate(lines.items()):
            values = [float(v) for v in losses]
            shown = [v if math.isfinite(v) else math.nan for v in values]
            style = ("-", "--")[place % 2]
            axis.plot(range(len(shown)), shown, color=PALETTE[(place + 1) % 2], linestyle=style, linewidth=1.6)
            if not any(math.isfinite(v) for v in values):
                words = f"{label}: nan" if label else "nan"
                axis.text(0.5, 0.8 - 0.2 * place, words, transform=axis.transAxes, ha="center", va="center", fontsize=9)
            told.append(f"{name}{f', {label}' if label else ''}: {values[0]:.3g} to {values[-1]:.3g}")
        axis.grid(axis="y", color=PALE, linewidth=0.8)
        axis.locator_params(axis="x", nbins=3)
        if not finite:
            axis.set_xticks([])
            axis.set_yticks([])
        elif not log:
            axis.set_ylim(min(0.0, 1.1 * min(finite)), 1.1 * max(finite) or 1.0)
            axis.locator_params(axis="y", nbins=3)
    for axis in axes[count:]:
        axis.set_axis_off()
    labels = list(dict.fromkeys(label for lines in runs.values() for label in lines if label))
    if labels and count < len(axes):
        spare = axes[count]
        spare.set_xlim(0, 1)
        spare.set_ylim(0, 1)
        for place, label in enumerate(labels):
            y = 0.75 - 0.25 * place
            spare.plot([0.05, 0.35], [y, y], color=PALETTE[(place + 1) % 2], linestyle=("-", "--")[place % 2])
            spare.text(0.42, y, label, va="center", fontsize=9.5, color=BLACK)
    figure.supylabel(ylabel, fontsize=10)
    figure.supxlabel(xlabel, fontsize=10)
    return Figure(figure, f"Loss curves, one panel a script, first to last {ylabel}. {'; '.join(told)}.")
