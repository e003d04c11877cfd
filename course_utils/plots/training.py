"""Figures of the week on the training loop: the steps, the modes, means, memory, windows, stopping, and mistakes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.patches import FancyBboxPatch, Rectangle, Wedge
from matplotlib.ticker import MaxNLocator
from torch import nn

from course_utils.plots.figure import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    HATCHES,
    ORANGE,
    PALE,
    PALETTE,
    SKY,
    VERMILION,
    Figure,
    bare,
    new_figure,
)
from course_utils.plots.lines import Line, _label_ends
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

# ---- the five steps --------------------------------------------------------------------------------------------------

STEPS = ("forward + loss", "backward", "clip", "step")
EFFECTS = {
    "forward + loss": "records the graph",
    "backward": "adds into .grad",
    "clip": "optional",
    "step": "reads .grad",
}


def loop_ring() -> Figure:
    """The steps of a loop as a ring, and the arc on which `zero_grad` may stand: after step, before backward."""
    figure, axis = canvas(3.75)
    axis.set_aspect("equal")
    x, y, radius = WIDTH / 2, 1.87, 1.22
    ring = {"linewidth": 1.0, "width": 0.3}
    axis.add_patch(Wedge((x, y), radius + 0.15, -180, 0, facecolor=tint(GREEN), edgecolor=GREEN, hatch="///", **ring))
    axis.add_patch(Wedge((x, y), radius + 0.15, 0, 180, facecolor="white", edgecolor=VERMILION, **ring))
    for angle in (-135, -45, 45, 135):  # the direction of travel
        _tick(axis, x, y, radius, angle)
    boxes = {"forward + loss": (0, -radius), "backward": (radius, 0), "clip": (0, radius), "step": (-radius, 0)}
    for name, (dx, dy) in boxes.items():
        width = 1.3
        axis.add_patch(
            FancyBboxPatch(
                (x + dx - width / 2, y + dy - 0.23), width, 0.46, facecolor="white", edgecolor=BLACK,
                linewidth=1.5, boxstyle="round,pad=0,rounding_size=0.08", zorder=3,
            )
        )  # fmt: skip
        write_centered(axis, x + dx, y + dy - 0.09, name, weight="bold", zorder=4)
        write_centered(axis, x + dx, y + dy + 0.11, EFFECTS[name], fontsize=SMALL, zorder=4)
    write_centered(
        axis, x, y - 0.47, "zero_grad may stand\nanywhere on this arc", fontsize=SMALL, weight="bold", color="#00664B"
    )
    write_centered(axis, x, y + 0.47, "here it throws\nthe gradient away", fontsize=SMALL, color="#A34700")
    return Figure(
        figure,
        "The steps of a training loop as a ring, clockwise: forward + loss records the graph, backward adds into "
        ".grad, clip is optional, step reads .grad, and round again. The arc from step over forward to backward is "
        "shaded: zero_grad may stand anywhere on it. On the arc from backward over clip to step, zero_grad throws "
        "the gradient away.",
    )


def _tick(axis, x: float, y: float, radius: float, angle: float) -> None:
    """A small arrow head on the ring that points clockwise."""
    first, second = (math.radians(angle + turn) for turn in (-6, 6))
    start, end = ((x + radius * math.cos(a), y + radius * math.sin(a)) for a in (first, second))
    arrow(axis, start, end, BLACK, mutation_scale=16, zorder=2)


# ---- modes and recording ---------------------------------------------------------------------------------------------

USES = {
    (True, True): "a training step",
    (True, False): "Monte Carlo dropout,\nrenewing running statistics",
    (False, True): "gradients of a finished model:\nsaliency, frozen batch norm",
    (False, False): "validation and prediction",
}


def mode_grid(model: nn.Module, x: torch.Tensor) -> Figure:
    """The four combinations of mode and recording: what each does to this model, and what each is for.

    The facts are measured on copies: whether two passes agree, whether buffers move, whether the result has a graph.
    """
    left, top, width, height = 1.35, 0.42, 3.0, 1.32
    figure, axis = canvas(top + 2 * height + 0.12)
    stories = []
    for column, recording in enumerate((True, False)):
        head = "recording" if recording else "no_grad: not recording"
        write_centered(axis, left + width * (column + 0.5), 0.22, head, weight="bold")
        for row, training in enumerate((True, False)):
            corner = (left + width * column, top + height * row)
            common = training == recording
            draw_cells(axis, [corner], width, height, [Fill(SKY) if common else EMPTY])
            use, facts = USES[training, recording], measure_mode(model, x, training, recording)
            middle = corner[0] + width / 2
            write_centered(axis, middle, corner[1] + 0.28, use, weight="bold", linespacing=1.05)
            for line, fact in enumerate(facts):
                write_centered(axis, middle, corner[1] + 0.68 + 0.21 * line, fact, fontsize=SMALL)
            mode = "train()" if training else "eval()"
            stories.append(f"{mode}, {head}: for {' '.join(use.split())}; {', '.join(facts)}.")
    for row, mode in enumerate(("model.train()", "model.eval()")):
        write(axis, 0.12, top + height * (row + 0.5), mode, weight="bold")
    return Figure(figure, f"Grid of mode and recording, two by two. {' '.join(stories)}")


def measure_mode(model: nn.Module, x: torch.Tensor, training: bool, recording: bool) -> tuple[str, str, str]:
    """What two passes in this mode show, on a copy of the model."""
    model = copy.deepcopy(model).train(training)
    before = {name: value.clone() for name, value in model.named_buffers()}
    with torch.random.fork_rng(), torch.set_grad_enabled(recording):
        first, second = model(x), model(x)
    moved = any(not torch.equal(value, before[name]) for name, value in model.named_buffers())
    return (
        "two passes agree" if torch.equal(first, second) else "two passes differ",
        "running statistics move" if moved else "running statistics rest",
        "the result has a graph" if first.requires_grad else "no graph is kept",
    )


# ---- means over batches ----------------------------------------------------------------------------------------------


def batch_weights(sizes: Sequence[int], means: Sequence[float]) -> Figure:
    """Batches as bars as wide as their number of samples, as high as the weight of each of their samples.

    Two panels: averaging batch means, and averaging samples. sizes and means: one number per batch.
    """
    if not sizes or len(sizes) != len(means):
        raise ValueError(f"one mean for each batch is needed; here are {len(means)} for {len(sizes)} batches.")
    total, count = sum(sizes), len(sizes)
    weights = {"mean of batch means": [1 / (count * n) for n in sizes], "mean over samples": [1 / total] * count}
    highest = max(weights["mean of batch means"])
    narrow = 0.25 * total  # bars too narrow for their text have it higher up, with a line to it
    figure, axes = new_figure(WIDTH, 2.9, 1, 2)
    stories = []
    for axis, (title, each) in zip(axes, weights.items(), strict=True):
        result = sum(n * w * mean for n, w, mean in zip(sizes, each, means, strict=True))
        start = 0
        for place, (n, weight, mean) in enumerate(zip(sizes, each, means, strict=True)):
            color = PALETTE[place % 6]
            axis.add_patch(
                Rectangle((start, 0), n, weight, facecolor=tint(color), edgecolor=color,
                          hatch=HATCHES[place % len(HATCHES)])
            )  # fmt: skip
            text = f"{n} × 1/{1 / weight:.0f}\nloss {mean:g}"
            axis.annotate(
                text, (start + n / 2, weight), xytext=(0, 4 if n > narrow else 32), textcoords="offset points",
                fontsize=SMALL, ha="center" if n > narrow else "right", va="bottom",
                arrowprops=None if n > narrow else {"arrowstyle": "-", "color": GRAY, "linewidth": 0.8},
            )  # fmt: skip
            start += n
        axis.set(xlim=(0, total), ylim=(0, 1.6 * highest))
        axis.set_title(f"{title}: {result:.3f}", fontsize=10.5, loc="left")
        axis.set_xlabel("samples", fontsize=10)
        edges = ", ".join(f"{n} samples of weight 1/{1 / w:.0f}" for n, w in zip(sizes, each, strict=True))
        stories.append(f"{title}: {edges}; the result is {result:.3f}.")
    axes[0].set_ylabel("weight of each sample", fontsize=10)
    return Figure(
        figure,
        "Batches drawn as bars, as wide as their samples and as high as the weight of each sample. Batch losses "
        f"{', '.join(f'{mean:g}' for mean in means)}. {' '.join(stories)}",
    )


# ---- what stays alive ------------------------------------------------------------------------------------------------

MOMENTS = {"forward": (BLUE, ""), "backward": (ORANGE, "///"), "kept": (GRAY, "...")}
SHORT = {"forward": "fwd", "backward": "bwd"}


def live_tensors(timelines: Mapping[str, Sequence[tuple[str, int]]]) -> Figure:
    """Bars that count living saved tensors after each event, one row per program.

    timelines: label → (event, alive) pairs in order; events named forward, backward and kept have looks of their own.
    """
    rows = {label: list(events) for label, events in timelines.items()}
    if not rows or not all(rows.values()):
        raise ValueError("live_tensors needs at least one program, and an event in each.")
    highest = max(alive for events in rows.values() for _, alive in events)
    figure, axes = new_figure(WIDTH, 1.35 * len(rows) + 0.35, len(rows), 1)
    axes = [axes] if len(rows) == 1 else axes
    for axis, (label, events) in zip(axes, rows.items(), strict=True):
        for place, (event, alive) in enumerate(events):
            color, hatch = MOMENTS.get(event, (SKY, "xxx"))
            axis.bar(place, alive, 0.8, facecolor=tint(color, 0.45), edgecolor=color, hatch=hatch)
            axis.text(place, alive, f"{alive}", fontsize=SMALL, ha="center", va="bottom", color=BLACK)
        axis.set_title(label, fontsize=10, loc="left")
        axis.set(ylim=(0, 1.3 * max(highest, 1)), xlim=(-0.6, len(events) - 0.4), yticks=[])
        names = [event for event, _ in events]
        if len(events) > 10:  # more than fit side by side
            names = [SHORT.get(name, name) for name in names]
        axis.set_xticks(range(len(events)), names, fontsize=9)
        axis.spines["left"].set_visible(False)
    figure.supylabel("saved tensors alive", fontsize=9.5)
    stories = [f"{label}: " + ", ".join(f"{event} {alive}" for event, alive in rows[label]) + "." for label in rows]
    return Figure(figure, f"Timelines of how many saved tensors are alive after each event. {' '.join(stories)}")


# ---- accumulation ----------------------------------------------------------------------------------------------------


def accumulation_windows(sizes: Sequence[int], accum_steps: int) -> Figure:
    """Batches on a line, gathered into windows; above the usual loop that drops the tail, below the exact one.

    sizes: samples of each batch. accum_steps: batches in a full window.
    """
    if accum_steps < 1 or not sizes:
        raise ValueError("accumulation_windows needs batches and at least one batch per window.")
    windows = [list(sizes[start : start + accum_steps]) for start in range(0, len(sizes), accum_steps)]
    left, gap = 0.15, 0.16
    scale = (WIDTH - 0.3 - gap * (len(windows) - 1)) / sum(sizes)
    figure, axis = canvas(2.95)
    stories = []
    for row, exact in enumerate((False, True)):
        top = 0.15 + 1.55 * row
        title = (
            "Exact: weights by size, and a step where the data ends"
            if exact
            else f"Usual: each batch divided by {accum_steps}, a step at every {_ordinal(accum_steps)} batch"
        )
        write(axis, left, top + 0.1, title, weight="bold")
        x, told = left, []
        for place, window in enumerate(windows):
            dropped = not exact and len(window) < accum_steps
            color = VERMILION if dropped else PALETTE[(0, 2)[place % 2]]
            hatch = "xxx" if dropped else ("", "///")[place % 2]
            shares = [f"{n}/{sum(window)}" if exact else f"1/{accum_steps}" for n in window]
            width = scale * sum(window)
            inner = x
            for n, share in zip(window, shares, strict=True):
                draw_cells(axis, [(inner, top + 0.3)], scale * n, 0.5, [Fill(color, hatch)])
                write_centered(
                    axis, inner + scale * n / 2, top + 0.55, f"{n} samples\n× {share}" if scale * n > 0.9 else share,
                    fontsize=SMALL, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
                )  # fmt: skip
                inner += scale * n
            note = "never\nused" if dropped else "step"
            axis.plot([x, x + width], [top + 0.88] * 2, color=BLACK, linewidth=1.2)
            write_centered(axis, x + width / 2, top + (1.08 if dropped else 1.02), note, fontsize=SMALL, weight="bold")
            listed = ", ".join(f"{n} samples × {share}" for n, share in zip(window, shares, strict=True))
            told.append(f"window {place + 1}: {listed}, {'no step, its gradient is never used' if dropped else 'step'}")
            x += width + gap
        stories.append(f"{title}: {'; '.join(told)}.")
    return Figure(figure, f"Two timelines of {plural(len(sizes), 'batch').replace('batchs', 'batches')}. "
                  + " ".join(stories))  # fmt: skip


def _ordinal(number: int) -> str:
    if number % 100 not in (11, 12, 13) and number % 10 in (1, 2, 3):
        return f"{number}{('st', 'nd', 'rd')[number % 10 - 1]}"
    return f"{number}th"


# ---- early stopping --------------------------------------------------------------------------------------------------


def early_stopping(training: Sequence[float], validation: Sequence[float], patience: int) -> Figure:
    """Training and validation losses by epoch, with the best epoch, the span of patience after it, and the stop.

    The best epoch is that of the lowest validation loss; nan never counts. Epochs count from 1.
    """
    finite = [value for value in validation if math.isfinite(value)]
    if not finite or len(training) != len(validation):
        raise ValueError("early_stopping needs as many training as validation losses, and a finite one among them.")
    best = list(validation).index(min(finite)) + 1
    last = len(validation)
    figure, axis = new_figure(WIDTH, 3.6)
    xs = tuple(range(1, last + 1))
    looks = [
        {"color": BLUE, "marker": "o", "linestyle": "-", "markersize": 5, "linewidth": 1.6},
        {"color": VERMILION, "marker": "s", "linestyle": "--", "markersize": 5, "linewidth": 1.6},
    ]
    lines = []
    for label, values, look in zip(("training", "validation"), (training, validation), looks, strict=True):
        axis.plot(xs, values, **look)
        lines.append(Line(label, xs, tuple(values), tuple(math.isfinite(v) and v > 0 for v in values)))
    axis.set_yscale("log")
    axis.set_xlabel("epoch", fontsize=10)
    axis.set_ylabel("mean loss over samples", fontsize=10)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.axvline(best, color=GREEN, linestyle=":", linewidth=1.6)
    axis.plot([best], [min(finite)], marker="*", markersize=15, color=GREEN, linestyle="", zorder=4)
    stopped = last - best >= patience
    if stopped:
        axis.axvspan(best, best + patience, facecolor=PALE, hatch="...", edgecolor="white", zorder=0)
        axis.axvline(best + patience, color=BLACK, linestyle="-", linewidth=1.4)
    title = f"Best: epoch {best}, {min(finite):.3g} (star)"
    title += f"; patience {patience} (dotted), stop after epoch {best + patience}" if stopped else "; not stopped"
    axis.set_title(title, fontsize=10.5, loc="left")
    axis.set_xlim(0.5, last + 0.5)
    _label_ends(figure, axis, lines, looks)
    end = f"patience {patience} ran out after epoch {best + patience}" if stopped else "patience did not run out"
    return Figure(
        figure,
        f"Training and validation loss over {last} epochs, logarithmic. Training falls from {training[0]:.3g} to "
        f"{training[-1]:.3g}. Validation starts at {validation[0]:.3g}, is lowest at epoch {best} with "
        f"{min(finite):.3g}, and ends at {validation[-1]:.3g}; {end}.",
    )


# ---- what a classifier gets wrong ------------------------------------------------------------------------------------


def confusion_counts(targets: torch.Tensor, predictions: torch.Tensor, classes: int | None = None) -> torch.Tensor:
    """A (C, C) table of how often class i (row) was predicted as class j (column)."""
    targets, predictions = targets.detach().cpu().long(), predictions.detach().cpu().long()
    if targets.ndim != 1 or targets.shape != predictions.shape or not len(targets):
        raise ValueError(
            "one prediction for each target is needed; "
            f"the shapes are {tuple(targets.shape)} and {tuple(predictions.shape)}."
        )
    classes = classes or int(max(targets.max(), predictions.max())) + 1
    return torch.bincount(targets * classes + predictions, minlength=classes**2).reshape(classes, classes)


def confusion_matrix(
    targets: torch.Tensor, predictions: torch.Tensor, names: Sequence[str] | None = None
) -> Figure:  # fmt: skip
    """Counts of what was written (rows) against what was read (columns); mistakes are framed and shaded.

    targets, predictions: int tensors (N,). names: of the classes, their numbers by default.
    """
    table = confusion_counts(targets, predictions, len(names) if names else None)
    classes = len(table)
    names = list(names or map(str, range(classes)))
    cell, left, top = min(0.43, 4.3 / classes), 1.0, 0.75
    figure, axis = canvas(top + cell * classes + 0.35)
    worst = int((table - torch.diag(table.diagonal())).max())
    write_centered(axis, left + cell * classes / 2, 0.18, "read as", weight="bold")
    write(axis, 0.1, top + cell * classes / 2, "written", weight="bold")
    for place, name in enumerate(names):
        write_centered(axis, left + cell * (place + 0.5), top - 0.17, name)
        write_centered(axis, left - 0.17, top + cell * (place + 0.5), name)
    write_centered(axis, left + cell * classes + 0.62, top - 0.17, "found", weight="bold")
    for i in range(classes):
        for j in range(classes):
            count = int(table[i, j])
            corner = (left + cell * j, top + cell * i)
            if i == j:
                look = {"facecolor": tint(BLUE, 0.35), "edgecolor": "white", "linewidth": 1}
            elif count:
                strength = 0.3 + 0.4 * count / worst
                look = {"facecolor": tint(VERMILION, strength), "edgecolor": VERMILION, "linewidth": 1.8}
            else:
                look = {"facecolor": "white", "edgecolor": PALE, "linewidth": 0.8}
            axis.add_patch(Rectangle(corner, cell, cell, zorder=3 if count and i != j else 2, **look))
            if count:
                write_centered(
                    axis, corner[0] + cell / 2, corner[1] + cell / 2, str(count), zorder=4,
                    weight="normal" if i == j else "bold",
                )  # fmt: skip
        found, rows = int(table[i, i]), int(table[i].sum())
        write_centered(
            axis, left + cell * classes + 0.62, top + cell * (i + 0.5), f"{found} of {rows}", fontsize=SMALL + 0.5
        )
    right, all_ = int(table.diagonal().sum()), int(table.sum())
    pairs = sorted(
        ((int(table[i, j]), i, j) for i in range(classes) for j in range(classes) if i != j and table[i, j]),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    mistakes = [f"{names[i]} read as {names[j]} ({count})" for count, i, j in pairs]
    note = f"{right} of {all_} right (blue). Framed and bold: mistaken."
    write(axis, left, top + cell * classes + 0.2, note, fontsize=SMALL)
    return Figure(
        figure,
        f"Confusion matrix of {classes} classes: {right} of {all_} right, {right / all_:.1%}. "
        + (f"Mistakes, written read as: {', '.join(mistakes)}." if mistakes else "No mistakes."),
    )


def worst_mistakes(
    images: torch.Tensor, targets: torch.Tensor, probabilities: torch.Tensor, count: int = 10, columns: int = 5
) -> Figure:  # fmt: skip
    """The images to whose right class the least probability was given, worst first.

    images: (N, 1, H, W) or (N, H, W), bright ink; targets: (N,); probabilities: (N, C), rows that sum to 1.
    Each has its label, what was read, with which probability, and what was left for the label.
    """
    images, targets, probabilities = (t.detach().cpu() for t in (images, targets, probabilities))
    if not len(images) == len(targets) == len(probabilities) or probabilities.ndim != 2:
        raise ValueError("one label and one row of probabilities for each image is needed.")
    images = images.reshape(len(images), *images.shape[-2:]).float()
    given = probabilities.gather(1, targets[:, None])[:, 0]
    places = given.argsort(stable=True)[:count].tolist()
    columns = min(columns, len(places))
    rows = math.ceil(len(places) / columns)
    figure, axes = new_figure(WIDTH, 1.98 * rows + 0.1, rows, columns)
    axes = [axes] if rows * columns == 1 else axes
    stories = []
    for axis in axes:
        bare(axis)
    for axis, place in zip(axes, places, strict=False):
        label, read = int(targets[place]), int(probabilities[place].argmax())
        sure, left = float(probabilities[place, read]), float(given[place])
        right = label == read
        axis.imshow(images[place].numpy(), cmap="gray_r", vmin=0, vmax=float(images.max()))
        for spine in axis.spines.values():
            spine.set(visible=True, color=GRAY if right else VERMILION, linewidth=1 if right else 2.2)
        words = f"label {label}: {_percent(left)}\n" + ("read rightly" if right else f"read {read}: {_percent(sure)}")
        axis.set_title(words, fontsize=9.5, color=BLACK, weight="normal" if right else "bold")
        stories.append(
            f"label {label} with {_percent(left)}, "
            + ("read rightly" if right else f"read as {read} with {_percent(sure)}")
        )
    wrong = sum(int(targets[p]) != int(probabilities[p].argmax()) for p in places)
    return Figure(
        figure,
        f"The {plural(len(places), 'image')} to whose label the network gave the least probability, worst first; "
        f"{wrong} of them read wrongly. {'; '.join(stories)}.",
    )


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"
