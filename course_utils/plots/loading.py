"""Figures of week 06: the way of a sample from the data set to the loop, batches, padding, workers.

What is drawn is what the caller measured or computed: indices, batch sizes, timestamps. Drawings are laid out in
inches, like those of `memory`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes

from course_utils.plots.figure import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    HATCHES,
    ORANGE,
    PALE,
    PALETTE,
    VERMILION,
    Figure,
    bare,
    new_figure,
)
from course_utils.plots.memory import (
    DIGIT,
    EMPTY,
    INNER,
    LETTER,
    LINE,
    MARGIN,
    SMALL,
    WIDTH,
    Fill,
    arrow,
    canvas,
    draw_cells,
    outline,
    plural,
    row_fill,
    write,
    write_centered,
)

MOST_SAMPLES = 16  # that fit in one strip with readable numbers
MOST_BATCHES = 40
MOST_ITEMS = 12  # that can be counted below a strip
MONO = {"family": "monospace", "fontsize": SMALL}
PAPER = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8}}  # a ground for text on hatching
RAGGED = Fill(VERMILION, "///")


def batches_of(order: Sequence[int], batch_size: int, drop_last: bool = False) -> list[list[int]]:
    """The order cut into batches; with drop_last without an incomplete one. Raises ValueError for a size below 1."""
    if batch_size < 1:
        raise ValueError(f"A batch holds at least one sample, not {batch_size}.")
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


# loader_pipeline


def loader_pipeline(order: Sequence[int], batch_size: int, drop_last: bool = False, features: int = 4) -> Figure:
    """The stations of a DataLoader, worked through for the given order of indices.

    order: what the sampler yields; the samples are pairs (x of `features` numbers, label).
    Raises ValueError for no index, or for more than a strip can show.
    """
    order = [int(index) for index in order]
    if not 0 < len(order) <= MOST_SAMPLES:
        raise ValueError(f"The picture holds 1 to {MOST_SAMPLES} indices, not {len(order)}.")
    batches = batches_of(order, batch_size, drop_last)
    dropped = order[sum(map(len, batches)) :]
    first = batches[0] if batches else []
    stations = ["dataset", "sampler", "batch sampler", "fetch", "collate_fn", "pin memory", "your loop"]
    told = [
        "holds the samples",
        "yields indices",
        "groups them",
        "asks the dataset",
        "list of samples → batch",
        "only if you ask",
        "one batch at a time",
    ]
    top, pitch, left, cell = 0.1, 0.72, 2.45, 0.36
    room = WIDTH - MARGIN - left - 0.12 * len(batches) - (0.75 if dropped else 0)
    width = min(cell, room / max(len(order), max(order) + 1))
    figure, axis = canvas(top + pitch * len(stations) + 0.02)
    for place, (station, words) in enumerate(zip(stations, told, strict=True)):
        y = top + pitch * place
        look = {"linestyle": "--"} if station == "pin memory" else {}
        outline(axis, MARGIN, y, 2.05, 0.52, GRAY if look else BLACK, linewidth=1.3, facecolor="white", **look)
        write(axis, MARGIN + 0.1, y + 0.17, station, weight="bold")
        write(axis, MARGIN + 0.1, y + 0.38, words, fontsize=SMALL)
        if place:
            arrow(axis, (MARGIN + 1.02, y - pitch + 0.52), (MARGIN + 1.02, y))
    rows = [top + pitch * place + 0.26 for place in range(len(stations))]
    size = max(order) + 1
    fill_of = {index: row_fill(number) for number, batch in enumerate(batches) for index in batch}
    _strip(axis, left, rows[0], width, range(size), [EMPTY] * size)
    _strip(axis, left, rows[1], width, order, [EMPTY] * len(order))
    x = left
    for batch in batches:
        _strip(axis, x, rows[2], width, batch, [fill_of[index] for index in batch])
        x += width * len(batch) + 0.12
    if dropped:
        _strip(axis, x, rows[2], width, dropped, [EMPTY] * len(dropped), color=GRAY)
        write(axis, x + width * len(dropped) + 0.1, rows[2], "dropped", fontsize=SMALL, color=GRAY)
    if first:
        calls = ", ".join(f"ds[{index}]" for index in first)
        count = len(first)
        write(axis, left, rows[3] - 0.11, f"first batch: [{calls}]", **MONO)
        write(axis, left, rows[3] + 0.11, f"a list of {plural(count, 'sample')} (x, y)", fontsize=SMALL)
        shape_x, shape_y = (count, features), (count,)
        _batch_box(axis, left, rows[4], row_fill(0), f"X {shape_x}   y {shape_y}")
        write(axis, left, rows[5], "copies the batch to where a GPU can fetch it by itself", fontsize=SMALL, color=GRAY)
        write(axis, left, rows[6], "for X, y in loader:", **MONO)
    else:
        write(axis, left, rows[3], "there is no batch: nothing is fetched", fontsize=SMALL)
    listed = " ".join(str(batch) for batch in batches) or "none"
    left_out = f" Dropped: {dropped}." if dropped else ""
    story = (
        f"Seven stations from top to bottom. The dataset holds samples 0 to {size - 1}. The sampler yields {order}. "
        f"The batch sampler groups them into batches of {batch_size}: {listed}.{left_out} "
    )
    if first:
        story += (
            f"Fetch asks the dataset for {first}, one by one. collate_fn turns the list of "
            f"{plural(len(first), 'sample')} into X of shape {shape_x} and y of shape {shape_y}. "
            "Pinning, dashed, is optional. Your loop gets the batch."
        )
    return Figure(figure, story)


def _strip(
    axis: Axes, x: float, middle: float, width: float, texts: Sequence, fills: Sequence[Fill], color: str = BLACK
) -> None:
    """A row of cells with a text in each, its middle line given."""
    tall = 0.32
    corners = [(x + width * place, middle - tall / 2) for place in range(len(texts))]
    draw_cells(axis, corners, width, tall, fills)
    for (left, _), text, fill in zip(corners, texts, fills, strict=True):
        paper = PAPER if fill.hatch else {}
        write_centered(axis, left + width / 2, middle, str(text), fontsize=SMALL, color=color, **paper)


def _batch_box(axis: Axes, x: float, middle: float, fill: Fill, text: str) -> None:
    width = LETTER * len(text) + 0.3
    draw_cells(axis, [(x, middle - 0.17)], width, 0.34, [fill])
    write_centered(axis, x + width / 2, middle, text, **MONO, **PAPER)


# epoch_bars


def epoch_bars(num_samples: int, batch_size: int) -> Figure:
    """One epoch as a bar of batches, once with the ragged last batch kept and once with drop_last.

    Raises ValueError for a bad size, or for more batches than can be told apart.
    """
    if num_samples < 1:
        raise ValueError("An epoch without samples has no batches to draw.")
    cuts = {
        "drop_last=False": [len(batch) for batch in batches_of(range(num_samples), batch_size)],
        "drop_last=True": [len(batch) for batch in batches_of(range(num_samples), batch_size, drop_last=True)],
    }
    if len(cuts["drop_last=False"]) > MOST_BATCHES:
        raise ValueError(f"{len(cuts['drop_last=False'])} batches are too many to draw; {MOST_BATCHES} are the most.")
    left, pitch, tall = 1.75, 0.92, 0.42
    scale = (WIDTH - MARGIN - left) / num_samples
    figure, axis = canvas(pitch * len(cuts) - 0.05)
    stories = []
    for place, (title, sizes) in enumerate(cuts.items()):
        y = 0.12 + pitch * place
        ragged = bool(sizes) and sizes[-1] < batch_size
        write(axis, MARGIN, y + 0.12, title, **{**MONO, "weight": "bold"})
        write(axis, MARGIN, y + 0.34, "1 batch" if len(sizes) == 1 else f"{len(sizes)} batches", fontsize=SMALL)
        x = left
        for number, size in enumerate(sizes):
            short = ragged and number == len(sizes) - 1
            width = size * scale
            draw_cells(axis, [(x, y)], width, tall, [RAGGED if short else Fill(BLUE)])
            inside = width > DIGIT * len(str(size)) + 0.06
            if inside:
                write_centered(axis, x + width / 2, y + tall / 2, str(size), fontsize=SMALL, **(PAPER if short else {}))
            if short:
                words = f"ragged: {plural(size, 'sample')}"
                write(axis, min(x + width, WIDTH - MARGIN), y + tall + 0.15, words, fontsize=SMALL, ha="right")
            x += width
        unused = num_samples - sum(sizes)
        if unused:
            outline(axis, x, y, unused * scale, tall, GRAY, linewidth=1.2, linestyle="--")
            words = f"not used: {plural(unused, 'sample')}"
            write(axis, WIDTH - MARGIN, y + tall + 0.15, words, fontsize=SMALL, ha="right", color=GRAY)
        end = f", the last with {plural(sizes[-1], 'sample')}" if ragged else ""
        lost = f", {plural(unused, 'sample')} not used" if unused else ""
        listed = "no batch at all" if not sizes else f"{len(sizes)} in number{end}"
        stories.append(f"With {title}: {listed}{lost}.")
    return Figure(
        figure, f"An epoch of {num_samples} samples cut into batches of {batch_size}, as bars. {' '.join(stories)}"
    )


# padded_batch


def padded_batch(padded: torch.Tensor, lengths: torch.Tensor | Sequence[int], mask: torch.Tensor) -> Figure:
    """A padded batch beside its mask: real elements on white, padding hatched, each row's length in words.

    A cell is marked where the mask contradicts the lengths. Raises ValueError when the shapes do not fit.
    """
    lengths = [int(length) for length in lengths]
    if padded.ndim != 2 or padded.shape != mask.shape or len(lengths) != len(padded):
        raise ValueError(
            f"A batch {tuple(padded.shape)}, a mask {tuple(mask.shape)} and {len(lengths)} lengths differ."
        )
    rows, columns = padded.shape
    room = (INNER - 0.95 - 0.4) / 2
    width = min(0.55, room / max(columns, 1))
    tall, top = 0.34, 0.5
    figure, axis = canvas(top + tall * rows + 0.4)
    second = MARGIN + width * columns + 1.35
    write(axis, MARGIN, 0.25, f"padded {tuple(padded.shape)}", weight="bold")
    write(axis, second, 0.25, f"mask {tuple(mask.shape)}", weight="bold")
    wrong, stories = 0, []
    for row, length in enumerate(lengths):
        y = top + tall * row
        fills = [EMPTY if column < length else Fill(GRAY, "///") for column in range(columns)]
        corners = [(MARGIN + width * column, y) for column in range(columns)]
        draw_cells(axis, corners, width, tall, fills)
        for column, (x, _) in enumerate(corners):
            value = f"{padded[row, column].item():g}"
            look = {} if column < length else {"color": GRAY, **PAPER}
            write_centered(axis, x + width / 2, y + tall / 2, value, fontsize=SMALL, **look)
        write(axis, MARGIN + width * columns + 0.12, y + tall / 2, f"length {length}", fontsize=SMALL)
        marks = [bool(value) for value in mask[row].tolist()]
        corners = [(second + width * column, y) for column in range(columns)]
        draw_cells(axis, corners, width, tall, [Fill(GREEN) if mark else EMPTY for mark in marks])
        for column, ((x, _), mark) in enumerate(zip(corners, marks, strict=True)):
            write_centered(axis, x + width / 2, y + tall / 2, "✓" if mark else "–", color=BLACK if mark else GRAY)
            if mark != (column < length):
                outline(axis, x + 0.02, y + 0.02, width - 0.04, tall - 0.04, VERMILION)
                wrong += 1
        values = [f"{value:g}" for value in padded[row].tolist()]
        stories.append(f"row {row}: {', '.join(values)}; {length} real; mask true at {sum(marks)}")
    words = "gray, hatched: padding. "
    words += f"Framed: {plural(wrong, 'place')} where the mask contradicts the length." if wrong else ""
    write(axis, MARGIN, top + tall * rows + 0.2, words, fontsize=SMALL)
    verdict = f" The mask contradicts the lengths in {plural(wrong, 'place')}." if wrong else ""
    return Figure(figure, f"A padded batch and its mask, {'; '.join(stories)}.{verdict}")


# deliveries


def deliveries(panels: Mapping[str, Sequence[tuple[int, Sequence[int]]]], items: int) -> Figure:
    """What came out of a loader, batch by batch, and how often each item came.

    panels: title → batches in the order of delivery, each (worker that made it, its items); items are 0 … items − 1.
    A row of cells for each worker; batches that came later stand further right. An item that came not exactly once is
    marked. Raises ValueError for more cells than a row can hold.
    """
    longest = max((sum(len(batch) for _, batch in batches) for batches in panels.values()), default=0)
    most = max((len(batches) for batches in panels.values()), default=0)
    if items > MOST_ITEMS or longest > 2 * MOST_ITEMS:
        raise ValueError(
            f"The picture holds {MOST_ITEMS} items, each twice; here are {items}, and {longest} deliveries."
        )
    left, tall, gap = 1.15, 0.3, 0.07
    width = min(0.34, (WIDTH - MARGIN - left - gap * most) / max(longest, items, 1))
    heights = []
    for batches in panels.values():
        workers = len({worker for worker, _ in batches}) or 1
        heights.append(LINE + 0.1 + (tall + 0.06) * workers + 0.5)
    figure, axis = canvas(sum(heights) + 0.05)
    top, stories = 0.05, []
    for (title, batches), height in zip(panels.items(), heights, strict=True):
        workers = sorted({worker for worker, _ in batches})
        write(axis, MARGIN, top + 0.13, title, weight="bold")
        x = left
        rows = {worker: top + LINE + 0.1 + (tall + 0.06) * place for place, worker in enumerate(workers)}
        for worker, y in rows.items():
            name = "main process" if worker < 0 else f"worker {worker}"
            write(axis, MARGIN, y + tall / 2, name, fontsize=SMALL)
        for worker, batch in batches:
            y = rows[worker]
            fill = Fill(PALETTE[worker % len(PALETTE)] if worker >= 0 else GRAY, HATCHES[(worker + 1) % len(HATCHES)])
            _strip(axis, x, y + tall / 2, width, batch, [fill] * len(batch))
            x += width * len(batch) + gap
        counts = Counter(item for _, batch in batches for item in batch)
        y = top + height - 0.36
        write(axis, MARGIN, y, "times seen", fontsize=SMALL)
        for item in range(items):
            fine = counts[item] == 1
            look = {"color": GRAY} if fine else {"color": VERMILION, "weight": "bold"}
            text = f"{item}:{counts[item]}×"
            write(axis, left + item * (WIDTH - MARGIN - left) / items, y, text, fontsize=SMALL, **look)
        told = "; ".join(
            f"{'main process' if worker < 0 else f'worker {worker}'} {list(batch)}" for worker, batch in batches
        )
        seen = ", ".join(f"{item} {counts[item]} times" for item in range(items) if counts[item] != 1)
        stories.append(f"{title}: {told}. {f'Not once: {seen}.' if seen else 'Every item came exactly once.'}")
        top += height
    return Figure(figure, f"Batches in order of delivery, one row per worker. {' '.join(stories)}")


# gantt


def gantt(lanes: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], unit: str = "ms") -> Figure:
    """Who was busy when: a lane per process, a bar for each measured interval.

    lanes: title of the panel → {lane: [(start, end), …]}. Lanes whose name contains "compute" are drawn solid, others
    hatched. All panels share one time axis, which begins at the earliest start of each panel.
    """
    left, tall = 1.5, 0.27
    spans = {}
    for title, rows in panels_of(lanes).items():
        ends = [end for bars in rows.values() for _, end in bars]
        starts = [start for bars in rows.values() for start, _ in bars]
        spans[title] = (min(starts), max(ends))
    longest = max(end - start for start, end in spans.values())
    scale = (WIDTH - MARGIN - left - 0.1) / longest
    heights = [LINE + 0.1 + (tall + 0.05) * len(rows) + 0.16 for rows in lanes.values()]
    figure, axis = canvas(sum(heights) + 0.5)
    top, stories = 0.05, []
    for (title, rows), height in zip(lanes.items(), heights, strict=True):
        begin, end = spans[title]
        write(axis, MARGIN, top + 0.13, f"{title}: {end - begin:.0f} {unit}", weight="bold")
        told = []
        for place, (lane, bars) in enumerate(rows.items()):
            y = top + LINE + 0.1 + (tall + 0.05) * place
            write(axis, MARGIN, y + tall / 2, lane, fontsize=SMALL)
            fill = Fill(ORANGE) if "compute" in lane else Fill(PALETTE[place % len(PALETTE)], HATCHES[1 + place % 3])
            axis.plot([left, left + (end - begin) * scale], [y + tall / 2] * 2, color=PALE, linewidth=1, zorder=0)
            for start, stop in bars:
                draw_cells(axis, [(left + (start - begin) * scale, y)], (stop - start) * scale, tall, [fill])
            busy = sum(stop - start for start, stop in bars)
            told.append(f"{lane} busy {busy:.0f} {unit} in {plural(len(bars), 'bar')}")
        stories.append(f"{title}, {end - begin:.0f} {unit} in all: {', '.join(told)}.")
        top += height
    _time_axis(axis, left, top + 0.05, longest, scale, unit)
    return Figure(figure, f"Who was busy when, measured. {' '.join(stories)}")


def panels_of(lanes: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Mapping:
    """The panels as given. Raises ValueError when one of them holds no interval."""
    empty = [title for title, rows in lanes.items() if not any(rows.values())]
    if not lanes or empty:
        raise ValueError(f"There is no interval to draw in {', '.join(empty) or 'an empty picture'}.")
    return lanes


def _time_axis(axis: Axes, x: float, y: float, longest: float, scale: float, unit: str) -> None:
    """A line with round numbers below all lanes."""
    step = next(s * 10**p for p in range(-3, 7) for s in (1, 2, 5) if longest / (s * 10**p) <= 8)
    axis.plot([x, x + longest * scale], [y, y], color=BLACK, linewidth=1)
    for place in range(int(longest / step) + 1):
        tick = x + place * step * scale
        axis.plot([tick, tick], [y, y + 0.05], color=BLACK, linewidth=1)
        write_centered(axis, tick, y + 0.17, f"{place * step:g}", fontsize=SMALL)
    write(axis, MARGIN, y + 0.05, f"time in {unit}", fontsize=SMALL)


# class_shares


def class_shares(panels: Mapping[str, Sequence[torch.Tensor]], names: Sequence[str]) -> Figure:
    """The classes in each batch of an epoch: a stacked bar per batch, one panel per way of drawing the batches.

    panels: title → the labels of each batch; names: of the classes, in the order of their labels.
    """
    longest = max((len(batches) for batches in panels.values()), default=0)
    if not 0 < longest <= MOST_BATCHES:
        raise ValueError(f"The picture holds 1 to {MOST_BATCHES} batches per panel, not {longest}.")
    fills = [row_fill(number) for number in range(len(names))]
    height, gap = 0.75, 0.42
    pitch = min(0.6, INNER / longest)
    figure, axis = canvas((height + gap) * len(panels) + 0.45)
    stories = []
    for place, (title, batches) in enumerate(panels.items()):
        top = 0.05 + (height + gap) * place
        write(axis, MARGIN, top + 0.13, title, weight="bold")
        for number, labels in enumerate(batches):
            y = top + 0.3 + height
            counts = torch.bincount(labels, minlength=len(names)).tolist()
            for fill, count in zip(fills, counts, strict=True):
                part = height * count / max(len(labels), 1)
                y -= part
                if count:
                    draw_cells(axis, [(MARGIN + pitch * number, y)], 0.8 * pitch, part, [fill])
        total = torch.bincount(torch.cat(list(batches)), minlength=len(names)).tolist()
        whole = ", ".join(f"{name} {count}" for name, count in zip(names, total, strict=True))
        pure = sum(1 for labels in batches if len(labels.unique()) == 1)
        stories.append(f"{title}: {len(batches)} batches, {pure} of them of one class only; in all {whole}.")
    y = (height + gap) * len(panels) + 0.22
    for number, (name, fill) in enumerate(zip(names, fills, strict=True)):
        x = MARGIN + 1.5 * number
        draw_cells(axis, [(x, y - 0.09)], 0.3, 0.18, [fill])
        write(axis, x + 0.4, y, name, fontsize=SMALL)
    return Figure(figure, f"Stacked bars, the share of each class in each batch. {' '.join(stories)}")


# image_batch


def image_batch(images: torch.Tensor, labels: Sequence[int] | torch.Tensor, columns: int = 8) -> Figure:
    """The images (B, 1, H, W) of a batch, dark ink on white, each with its label above."""
    labels = [int(label) for label in labels]
    if images.ndim != 4 or images.shape[1] != 1 or len(images) != len(labels) or not labels:
        raise ValueError(f"Images (B, 1, H, W) and B labels are wanted, not {tuple(images.shape)} and {len(labels)}.")
    rows = -(-len(labels) // columns)
    figure, axes = new_figure(WIDTH, 1.15 * rows, rows, columns)
    axes = axes if isinstance(axes, list) else [axes]
    for axis in axes:
        bare(axis).set_aspect("equal")
    for axis, image, label in zip(axes, images[:, 0].detach().cpu(), labels, strict=False):
        axis.imshow(image.numpy(), cmap="gray_r", interpolation="nearest")
        axis.set_title(str(label), fontsize=10)
    size = f"{images.shape[2]} × {images.shape[3]} pixels"
    return Figure(figure, f"{plural(len(labels), 'image')} of {size}, labeled {', '.join(map(str, labels))}.")
