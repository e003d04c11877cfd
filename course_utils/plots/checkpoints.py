"""Figures of week 09: what is in a state dict, what crosses a stop, what a crash leaves, who is let in.

Each figure shows data that the caller measured: outcomes of killed writers, reports of a load, draws of a generator,
differences of losses. Drawings are laid out in inches, like those of `memory`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from torch import nn

from course_utils.plots.figure import BLACK, BLUE, GRAY, GREEN, ORANGE, VERMILION, Figure
from course_utils.plots.memory import (
    EMPTY,
    LINE,
    MARGIN,
    SMALL,
    WIDTH,
    Fill,
    arrow,
    canvas,
    draw_cells,
    outline,
    tint,
    write,
    write_centered,
)
from course_utils.plots.modules import own_buffers, own_parameters, own_plain

MONO = {"family": "monospace", "fontsize": SMALL}
YES, NO = Fill(GREEN), Fill(VERMILION, "///")
ON_HATCH = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}  # a ground on which text over hatching reads


# state_dict_map


def state_dict_map(model: nn.Module, name: str = "model") -> Figure:
    """The module tree, line by line, beside the flat state dict; what the dict leaves out is hatched.

    Left: each module with its parameters, buffers, and plain attributes that are tensors, numbers or texts, and the
    mode of the whole. Right: the entries of state_dict().
    """
    saved = model.state_dict()
    rows: list[tuple[int, str, str | None, bool]] = []  # depth, text, key, whether it is a module's line
    for path, module in model.named_modules():
        depth = path.count(".") + 1 if path else 0
        own_name = path.rpartition(".")[2] or name
        rows.append((depth, f"{own_name}: {type(module).__name__}", None, True))
        prefix = f"{path}." if path else ""
        for key in [*own_parameters(module), *own_buffers(module)]:
            full = prefix + key
            rows.append((depth + 1, key if full in saved else f"{key} (not persistent)", full, False))
        for key, value in own_plain(module).items():
            if not path and isinstance(value, torch.Tensor | int | float | str):
                rows.append((1, f"{key} (plain attribute)", None, False))
        if not path:
            rows.append((1, "training (the mode)", None, False))
    height, left, right = 0.27, 3.15, 4.15
    figure, axis = canvas(0.42 + height * len(rows) + 0.1)
    write(axis, MARGIN, 0.2, "the module tree", weight="bold")
    write(axis, right, 0.2, "state_dict(): names to tensors", weight="bold")
    inside, outside = [], []
    for place, (depth, text, key, is_module) in enumerate(rows):
        top, middle = 0.4 + height * place, 0.4 + height * (place + 0.5)
        x = MARGIN + 0.25 * depth
        if is_module:
            write(axis, x, middle, text, weight="bold", fontsize=SMALL)
            continue
        held = key in saved
        draw_cells(axis, [(x, top + 0.02)], left - x, height - 0.04, [YES if held else NO])
        write(axis, x + 0.07, middle, text, **MONO, **({} if held else {"bbox": ON_HATCH}))
        if not held:
            outside.append(text)
            write(axis, left + 0.12, middle, "✗ not in it", fontsize=SMALL)
            continue
        entry = f"{key}  {tuple(saved[key].shape)}"
        arrow(axis, (left + 0.05, middle), (right - 0.06, middle), color=GRAY, linewidth=1.1)
        draw_cells(axis, [(right, top + 0.02)], WIDTH - MARGIN - right, height - 0.04, [YES])
        write(axis, right + 0.07, middle, entry, **MONO)
        inside.append(entry.replace("  ", " "))
    alt = (
        f"Left a module tree, right the flat state dict with {len(saved)} entries: {', '.join(inside)}. "
        f"Hatched and not in the dict: {', '.join(outside)}."
    )
    return Figure(figure, alt)


# resume_timeline


def resume_timeline(
    pieces: Mapping[str, str], saved: Collection[str], stop: int, end: int, unit: str = "epoch"
) -> Figure:
    """A run as a time line with a stop, and which pieces of its state cross it.

    pieces: piece → what happens to it when it is not saved. saved: the pieces that the checkpoint holds; the others
    break off at the stop. Raises ValueError where something saved is no piece.
    """
    unknown = [piece for piece in saved if piece not in pieces]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not among the pieces {', '.join(pieces)}.")
    label, left, cut, right, height = 1.65, 1.75, 4.0, WIDTH - MARGIN, 0.36
    figure, axis = canvas(0.5 + height * len(pieces) + 0.45)
    write_centered(axis, cut, 0.17, f"stop after epoch {stop}", weight="bold")
    stories = []
    for place, (piece, otherwise) in enumerate(pieces.items()):
        top = 0.42 + height * place
        middle, tall = top + height / 2, height - 0.1
        write(axis, label, middle, piece, ha="right")
        kept = piece in saved
        stories.append(f"{piece}: {'crosses the stop' if kept else f'not saved, {otherwise}'}")
        if kept:
            draw_cells(axis, [(left, top + 0.05)], right - left, tall, [YES])
            write_centered(axis, cut + (right - cut) / 2, middle, "goes on", fontsize=SMALL)
            continue
        draw_cells(axis, [(left, top + 0.05)], cut - left, tall, [YES])
        draw_cells(axis, [(cut + 0.15, top + 0.05)], right - cut - 0.15, tall, [NO])
        write_centered(axis, cut + 0.08 + (right - cut) / 2, middle, otherwise, fontsize=SMALL, bbox=ON_HATCH)
    bottom = 0.42 + height * len(pieces)
    axis.plot([cut, cut], [0.3, bottom + 0.05], color=BLACK, linewidth=2.2, linestyle="--")
    arrow(axis, (left, bottom + 0.12), (right, bottom + 0.12))
    for x, text, side in ((left, "0", "left"), (cut, str(stop), "center"), (right, f"epoch {end}", "right")):
        write(axis, x, bottom + 0.29, text, ha=side, fontsize=SMALL)
    return Figure(figure, f"A run of {end} epochs, stopped after {stop}. {'; '.join(stories)}.")


# crash_outcomes

PATH_FILLS = {"old": Fill(BLUE), "new": Fill(GREEN, "..."), "broken": Fill(VERMILION, "///")}


def crash_outcomes(outcomes: Mapping[str, Sequence[tuple[str, str]]]) -> Figure:
    """What is at the path after a writer was killed, per method of saving and moment of the kill.

    outcomes: method → pairs (moment, what was found), the latter "old", "new" or "broken"; all methods with the same
    moments, in the order of time.
    """
    moments = [moment for moment, _ in next(iter(outcomes.values()))]
    for method, found in outcomes.items():
        if [moment for moment, _ in found] != moments:
            raise ValueError(f"The moments of {method!r} are not those of the first method.")
    left, height, head = 1.35, 0.5, 0.75
    width = (WIDTH - MARGIN - left) / len(moments)
    figure, axis = canvas(head + (height + 0.08) * len(outcomes) + 0.1)
    write(axis, left, 0.16, "killed …", weight="bold", fontsize=SMALL)
    for column, moment in enumerate(moments):
        text = textwrap.fill(moment, max(8, int(width / 0.085)))
        write_centered(axis, left + width * (column + 0.5), 0.5, text, fontsize=SMALL)
    stories = []
    for row, (method, found) in enumerate(outcomes.items()):
        top = head + (height + 0.08) * row
        write(axis, left - 0.12, top + height / 2, method, ha="right", weight="bold")
        for column, (_, state) in enumerate(found):
            draw_cells(axis, [(left + width * column, top)], width, height, [PATH_FILLS[state]])
            x = left + width * (column + 0.5)
            write_centered(axis, x, top + height / 2, state, bbox=ON_HATCH)
        stories.append(f"{method}: {', '.join(f'{moment}: {state}' for moment, state in found)}.")
    return Figure(figure, f"Which checkpoint is at the path after the writer was killed. {' '.join(stories)}")


# two_doors


def two_doors(results: Mapping[str, bool]) -> Figure:
    """Objects at the strict door of torch.load: let in on the left, turned away on the right.

    results: what was saved → whether torch.load, with its default weights_only=True, loads it.
    """
    sides = {
        "let in: weights_only=True": [name for name, loads in results.items() if loads],
        "turned away: UnpicklingError": [name for name, loads in results.items() if not loads],
    }
    height, gap = 0.28, 0.35
    width = (WIDTH - 2 * MARGIN - gap) / 2
    figure, axis = canvas(0.45 + height * max(map(len, sides.values())) + 0.1)
    for side, (title, names) in enumerate(sides.items()):
        x = MARGIN + (width + gap) * side
        write(axis, x, 0.2, ("✓ ", "✗ ")[side] + title, weight="bold")
        tops = [0.4 + height * place for place in range(len(names))]
        draw_cells(axis, [(x, top) for top in tops], width, height, [(YES, NO)[side]] * len(names))
        for top, name in zip(tops, names, strict=True):
            write(axis, x + 0.1, top + height / 2, name, **MONO, **({"bbox": ON_HATCH} if side else {}))
    accepted, refused = (", ".join(names) or "nothing" for names in sides.values())
    return Figure(figure, f"What torch.load loads by default. Let in: {accepted}. Turned away: {refused}.")


# name_classes


def name_classes(report: Mapping[str, Sequence[str]]) -> Figure:
    """Two sets of names, the file's and the model's, and the four classes in which they fall.

    report: lists of names under "loaded", "mismatched", "unexpected" and "missing". Each class shows its count and up
    to four names.
    """
    wanted = ("unexpected", "loaded", "mismatched", "missing")
    if sorted(report) != sorted(wanted):
        raise ValueError(f"A report has the classes {', '.join(wanted)}; this one has {', '.join(report)}.")
    figure, axis = canvas(3.3)
    wide, tall, middle, most = 4.6, 2.65, 1.82, 3
    for x, color in ((2.5, BLUE), (5.0, ORANGE)):
        look = {"facecolor": tint(color, 0.25), "edgecolor": color, "alpha": 0.6, "linewidth": 2}
        axis.add_patch(Ellipse((x, middle), wide, tall, **look))
    write(axis, MARGIN + 0.3, 0.22, "the file offers", weight="bold")
    write(axis, WIDTH - MARGIN - 0.3, 0.22, "the model has", weight="bold", ha="right")
    places = {"unexpected": (1.3, middle), "loaded": (3.75, 1.32), "mismatched": (3.75, 2.3), "missing": (6.2, middle)}
    axis.plot([2.72, 4.78], [middle, middle], color=GRAY, linewidth=1.1, linestyle="--")
    for kind, (x, y) in places.items():
        names = list(report[kind])
        shown = [_shorter(name) for name in names[:most]]
        shown += [f"and {len(names) - most} more"] if len(names) > most else []
        write_centered(axis, x, y - 0.1 * len(shown), f"{kind}: {len(names)}", weight="bold")
        for place, name in enumerate(shown, start=1):
            write_centered(axis, x, y - 0.1 * len(shown) + 0.19 * place, name, **MONO)
    stories = [f"{kind}: {len(report[kind])} ({', '.join(report[kind]) or 'none'})" for kind in wanted]
    return Figure(
        figure,
        "Two overlapping sets, the names in the file and the names in the model. Only in the file, in both with equal "
        f"shapes, in both with different shapes, only in the model: {'; '.join(stories)}.",
    )


def _shorter(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


# generator_reels


def generator_reels(reels: Mapping[str, tuple[Sequence[float], int]]) -> Figure:
    """Sequences of random numbers, each with a cursor: what has been drawn and what comes next.

    reels: generator → (the numbers from its seed on, how many have been drawn).
    """
    longest = max(len(numbers) for numbers, _ in reels.values())
    left, height, pitch = 1.75, 0.34, 0.62
    width = (WIDTH - MARGIN - left) / longest
    figure, axis = canvas(0.3 + pitch * len(reels) + 0.1)
    write(axis, left, 0.16, "seed: where a reel begins", fontsize=SMALL)
    write(axis, WIDTH - MARGIN, 0.16, "▼ state: where it stands", fontsize=SMALL, ha="right")
    stories = []
    for row, (name, (numbers, drawn)) in enumerate(reels.items()):
        top = 0.3 + pitch * row + 0.2
        write(axis, left - 0.12, top + height / 2, name, ha="right")
        corners = [(left + width * place, top) for place in range(len(numbers))]
        fills = [Fill(GRAY, "///") if place < drawn else EMPTY for place in range(len(numbers))]
        draw_cells(axis, corners, width, height, fills)
        for place, number in enumerate(numbers):
            box = {"bbox": ON_HATCH} if place < drawn else {}
            write_centered(axis, left + width * (place + 0.5), top + height / 2, f"{number:.2f}", fontsize=SMALL, **box)
        write_centered(axis, left + width * drawn, top - 0.1, "▼", fontsize=12, color=VERMILION)
        following = f"{numbers[drawn]:.2f}" if drawn < len(numbers) else "beyond the picture"
        stories.append(f"{name}: {drawn} drawn, next {following}.")
    return Figure(figure, f"Reels of random numbers, each with a cursor. {' '.join(stories)}")


# partings


def partings(differences: Mapping[str, Sequence[float]], first: int = 1) -> Figure:
    """After a resume with one piece left out: at which steps the losses differ from those of the straight run.

    differences: what was left out → absolute difference of the losses, step by step. first: the number of the first
    step. Equal to the last bit is blank; everything else is hatched and shows the power of ten of the difference.
    """
    count = max(map(len, differences.values()))
    left, height = 1.75, 0.34
    width = (WIDTH - MARGIN - left) / count
    figure, axis = canvas(0.5 + height * len(differences) + LINE + 0.15)
    write(axis, left - 0.12, 0.34, "left out", ha="right", weight="bold", fontsize=SMALL)
    write(axis, left, 0.13, "step", weight="bold", fontsize=SMALL)
    for column in range(count):
        write_centered(axis, left + width * (column + 0.5), 0.34, str(first + column), fontsize=SMALL)
    stories = []
    for row, (name, values) in enumerate(differences.items()):
        top = 0.48 + height * row
        write(axis, left - 0.12, top + height / 2, name, ha="right")
        fills = [NO if value else YES for value in values]
        draw_cells(axis, [(left + width * column, top) for column in range(len(values))], width, height, fills)
        for column, value in enumerate(values):
            text, box = (f"{value:.0e}"[-3:].replace("-0", "-"), {"bbox": ON_HATCH}) if value else ("=", {})
            write_centered(axis, left + width * (column + 0.5), top + height / 2, text, fontsize=SMALL, **box)
        parted = [first + column for column, value in enumerate(values) if value]
        stories.append(f"{name}: {f'differs from step {parted[0]} on' if parted else 'equal at every step'}.")
    key = "=  equal to the last bit      -2  differs, by about 10 to the power -2"
    write(axis, left, 0.48 + height * len(differences) + LINE / 2 + 0.06, key, fontsize=SMALL)
    return Figure(figure, f"Losses after a resume beside those of the straight run. Left out: {' '.join(stories)}")


# reproducibility_ladder

RUNGS = (
    ("the same distribution", "same code, data, configuration; other seeds"),
    ("the same curves, roughly", "+ every generator seeded, the same order of draws"),
    ("the same bits, run again", "+ same machine, device, versions, threads, workers; deterministic kernels"),
    ("the same bits after a stop", "+ every state saved: weights, moments, schedule, scaler, generators, position"),
)


def reproducibility_ladder(rungs: Sequence[tuple[str, str]] = RUNGS) -> Figure:
    """A ladder from loose to strict reproducibility; each rung names what it needs beyond the one below."""
    height, step = 0.5, 0.2
    figure, axis = canvas(0.1 + height * len(rungs) + 0.1)
    for place, (goal, needs) in enumerate(reversed(rungs)):
        strictness = len(rungs) - 1 - place
        top = 0.1 + height * place
        _rung(axis, MARGIN + step * strictness, top, height - 0.08, goal, needs, strictness)
    told = "; ".join(f"{goal}, which needs {needs.removeprefix('+ ')}" for goal, needs in rungs)
    return Figure(figure, f"A ladder of reproducibility, from the lowest rung up: {told}.")


def _rung(axis: Axes, x: float, top: float, height: float, goal: str, needs: str, strictness: int) -> None:
    wide = 2.3
    draw_cells(axis, [(x, top)], wide, height, [Fill(BLUE)])
    outline(axis, x, top, wide, height, color=BLUE, linewidth=1 + 0.5 * strictness)
    write_centered(axis, x + wide / 2, top + height / 2, goal, weight="bold", fontsize=SMALL)
    room = int((WIDTH - MARGIN - x - wide - 0.15) / 0.071)
    write(axis, x + wide + 0.15, top + height / 2, textwrap.fill(needs, room), fontsize=SMALL)
