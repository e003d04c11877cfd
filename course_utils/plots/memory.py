"""Pictures of memory: storage strips, strides, number formats, broadcasting, shared blocks.

Drawings are laid out in inches on a bare canvas, y downward, so that text and cells keep their
proportions whatever the tensor. Where an element lies is always worked out from the stride and the
offset of the tensor that is drawn.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as MatplotlibFigure

from course_utils.plots.figure import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    HATCHES,
    ORANGE,
    PALETTE,
    VERMILION,
    Figure,
    bare,
    new_figure,
)

WIDTH = 7.5
MARGIN = 0.15
INNER = WIDTH - 2 * MARGIN
LINE = 0.23  # height of a line of text, in inches
SIZE, SMALL = 10, 9  # font sizes, in points
DIGIT = 0.08  # width of a digit of the small size, in inches
LETTER = 0.0755  # width of a letter of the small size, monospaced
MOST_CELLS = 64
MOST_TICKS = 250
WHITE = "#FFFFFF"
INDEX_NAMES = "ijklmn"


# The canvas, and what is put on it


def canvas(height: float, width: float = WIDTH) -> tuple[MatplotlibFigure, Axes]:
    """An empty drawing whose coordinates are inches, counted from the top left corner."""
    figure, axis = new_figure(width, height)
    figure.set_layout_engine("none")
    bare(axis).set_position((0, 0, 1, 1))
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    return figure, axis


def write(axis: Axes, x: float, y: float, text: str, **options) -> None:
    """Text with its left end in the middle of the line at (x, y)."""
    look = {"fontsize": SIZE, "color": BLACK, "ha": "left", "va": "center", **options}
    axis.text(x, y, text, **look)


def write_centered(axis: Axes, x: float, y: float, text: str, **options) -> None:
    """Text with its middle at (x, y)."""
    write(axis, x, y, text, **{"ha": "center", **options})


def arrow(axis: Axes, start: tuple, end: tuple, color: str = BLACK, **options) -> None:
    """An arrow between two points."""
    look = {"arrowstyle": "-|>", "color": color, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", xy=end, xytext=start, arrowprops={**look, **options})


def tint(color: str, strength: float = 0.3) -> tuple[float, ...]:
    """The color mixed with white, so that dark text on it stays readable."""
    return tuple(1 - strength * (1 - part) for part in to_rgb(color))


@dataclass(frozen=True)
class Fill:
    """How a cell is filled: a color, and a hatching that tells it apart without the color."""

    color: str = WHITE
    hatch: str = ""


EMPTY = Fill()


def row_fill(row: int) -> Fill:
    """The filling of a row of a view; 42 rows differ. Black is left out: text could not be read."""
    colors = PALETTE[:-1]
    return Fill(colors[row % len(colors)], HATCHES[row % len(HATCHES)])


def draw_cells(axis: Axes, corners: Sequence[tuple], width: float, height: float, fills: Sequence[Fill]) -> None:
    """Rectangles with the given top left corners, few artists however many there are."""
    rectangles = [_rectangle(x, y, width, height) for x, y in corners]
    for fill in dict.fromkeys(fills):
        some = [box for box, other in zip(rectangles, fills, strict=True) if other == fill]
        look = {"facecolor": tint(fill.color), "edgecolor": tint(fill.color, 0.55)}
        axis.add_collection(PolyCollection(some, hatch=fill.hatch or None, linewidth=0, **look))
    axis.add_collection(PolyCollection(rectangles, facecolor="none", edgecolor=GRAY, linewidth=0.9))


def outline(axis: Axes, x: float, y: float, width: float, height: float, color: str = BLACK, **options) -> None:
    """A frame around a place, filled only where a facecolor is given."""
    look = {"facecolor": "none", "edgecolor": color, "linewidth": 2.2, **options}
    axis.add_collection(PolyCollection([_rectangle(x, y, width, height)], **look))


def _rectangle(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def draw_grid(
    axis: Axes,
    x: float,
    y: float,
    cell: tuple[float, float],
    texts: Sequence[Sequence[str]],
    fills: Sequence[Sequence[Fill]],
) -> None:
    """A table of cells with a text in each."""
    width, height = cell
    rows = range(len(texts))
    places = [(row, column) for row in rows for column in range(len(texts[row]))]
    corners = [(x + width * column, y + height * row) for row, column in places]
    draw_cells(axis, corners, width, height, [fills[row][column] for row, column in places])
    for (row, column), (left, top) in zip(places, corners, strict=True):
        write_centered(axis, left + width / 2, top + height / 2, texts[row][column])


# Storage: what it holds, where elements lie, and the strip that shows it


def storage_positions(tensor: torch.Tensor) -> torch.Tensor:
    """For each element the place of its cell in the storage: offset + Σ index · stride."""
    positions = torch.full(tensor.shape, tensor.storage_offset())
    for dim, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        steps = torch.arange(size) * step
        positions += steps.view(-1, *[1] * (tensor.ndim - dim - 1))
    return positions


def storage_visits(tensor: torch.Tensor) -> list[int]:
    """For each cell of the storage how many of the tensor's elements lie there."""
    positions = storage_positions(tensor).flatten()
    return torch.bincount(positions, minlength=storage_length(tensor)).tolist()


def storage_length(tensor: torch.Tensor) -> int:
    """The number of cells in the tensor's storage."""
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def storage_cells(tensor: torch.Tensor) -> list[str]:
    """The texts of all cells of the tensor's storage; blank where a tensor has no data (meta)."""
    tensor = tensor.detach()
    count = storage_length(tensor)
    if count > MOST_CELLS:
        raise ValueError(f"A storage of {count} cells is too long to draw; {MOST_CELLS} cells are the most.")
    if tensor.is_meta:
        return [""] * count
    return [number(value) for value in tensor.as_strided((count,), (1,), 0).tolist()]


def number(value: complex) -> str:
    """A number in few characters: 3.0 as 3, −1.2345 as −1.23, 0.00012 as 1e-4."""
    if isinstance(value, bool):
        return "FT"[value]
    if isinstance(value, complex) or not math.isfinite(value):
        text = f"{value:.2g}"
    elif value == int(value) and abs(value) < 1e6:
        text = str(int(value))
    elif 0.005 <= abs(value) < 100:
        text = f"{value:.2f}"
    else:
        text = f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "−")


@dataclass(frozen=True)
class Strip:
    """Where the cells of a storage lie on the canvas: one row, or more where one is too long."""

    count: int
    x: float
    y: float
    cell: float
    per_row: int
    height: float = 0.34
    pitch: float = 0.78  # from row to row: the numbers above, the cells, the marks below

    @property
    def rows(self) -> int:
        return max(1, math.ceil(self.count / self.per_row))

    @property
    def bottom(self) -> float:
        """The lower edge of the last row's cells."""
        return self.y + self.pitch * (self.rows - 1) + LINE + self.height

    def corner(self, position: int) -> tuple[float, float]:
        """The top left corner of a cell."""
        row, column = divmod(position, self.per_row)
        return self.x + self.cell * column, self.y + LINE + self.pitch * row

    def middle(self, position: int) -> float:
        """The x of the middle of a cell."""
        return self.corner(position)[0] + self.cell / 2


def lay_strip(texts: Sequence[str], y: float, x: float = MARGIN, width: float = INNER) -> Strip:
    """Choose the size of the cells so that all texts fit, in as few rows as that takes."""
    longest = max([len(text) for text in texts] + [len(str(len(texts)))])
    needed = DIGIT * longest + 0.07
    fitting = max(1, int(width / needed))
    rows = max(1, math.ceil(len(texts) / fitting))
    per_row = max(1, math.ceil(len(texts) / rows))
    return Strip(len(texts), x, y, min(max(0.5, needed), width / per_row), per_row)


def draw_strip(axis: Axes, strip: Strip, texts: Sequence[str], fills: Sequence[Fill], unit: int = 1) -> None:
    """The cells with their values, and above each its position (times `unit`)."""
    corners = [strip.corner(position) for position in range(strip.count)]
    draw_cells(axis, corners, strip.cell, strip.height, fills)
    for position, (x, y) in enumerate(corners):
        middle = x + strip.cell / 2
        write_centered(axis, middle, y - LINE / 2, str(position * unit), fontsize=SMALL, color=GRAY)
        write_centered(axis, middle, y + strip.height / 2, texts[position], fontsize=SMALL)


def draw_visits(axis: Axes, strip: Strip, visits: Sequence[int]) -> None:
    """Write ×3 under a cell that holds three elements of a view."""
    for position, count in enumerate(visits):
        if count > 1:
            y = strip.corner(position)[1] + strip.height + 0.1
            write_centered(axis, strip.middle(position), y, f"×{count}", fontsize=SMALL)


def header_text(tensor: torch.Tensor) -> str:
    """Shape, stride and offset in words."""
    shape, stride = tuple(tensor.shape), tensor.stride()
    return f"shape {shape}, stride {stride}, offset {tensor.storage_offset()}"


def index_formula(tensor: torch.Tensor) -> str:
    """The storage formula with the strides filled in: position of [i, j] = 0 + 4·i + 1·j."""
    names = [INDEX_NAMES[dim % len(INDEX_NAMES)] for dim in range(tensor.ndim)]
    terms = [f"{step}·{name}" for step, name in zip(tensor.stride(), names, strict=True)]
    return f"position of [{', '.join(names)}] = {' + '.join([str(tensor.storage_offset()), *terms])}"


def plural(count: int, noun: str) -> str:
    """1 cell, 2 cells."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _listed(items: Iterable) -> str:
    return ", ".join(map(str, items))


# tensor_anatomy


def tensor_anatomy(tensor: torch.Tensor) -> Figure:
    """A tensor's two parts: the header that says how to read, and the storage that is read."""
    texts = storage_cells(tensor)
    start = tensor.storage_offset()
    visits = storage_visits(tensor)
    reached = len(visits) - visits.count(0)
    facts = {
        "shape": tuple(tensor.shape),
        "stride": tensor.stride(),
        "storage_offset": start,
        "dtype": tensor.dtype,
        "device": tensor.device,
    }
    block = block_size(len(texts), tensor.element_size())
    words = f"{reached} of {plural(len(texts), 'cell')} reached by this tensor (filled)"
    strip = lay_strip(texts, y=2.2)
    figure, axis = canvas(strip.bottom + 2 * LINE + 0.15)
    box = (MARGIN, 0.1, 3.6, header_height(facts))
    draw_header(axis, box, "header: how to read", facts)
    write(axis, box[2] + 0.4, 0.3, index_formula(tensor), fontsize=SMALL)
    draw_strip(axis, strip, texts, [reach_fill(count > 0) for count in visits])
    if reached:
        point_to(axis, box, strip, start, f"the first element is in cell {start}", BLUE)
    write(axis, MARGIN, strip.bottom + LINE, f"storage: what is read, {block}", weight="bold")
    write(axis, MARGIN, strip.bottom + 2 * LINE, words, fontsize=SMALL)
    header = _listed(f"{name} {value}" for name, value in facts.items())
    alt = (
        f"A header box ({header}) with an arrow to cell {start} of a storage strip of {block}. "
        f"{words}. Values from cell 0 on: {_listed(texts)}."
    )
    return Figure(figure, alt)


def block_size(count: int, size: int) -> str:
    """A block's size in words: 12 cells × 4 bytes = 48 bytes."""
    return f"{plural(count, 'cell')} × {plural(size, 'byte')} = {plural(count * size, 'byte')}"


def reach_fill(reached: bool) -> Fill:
    """Blue and hatched for what is reached, empty for the rest."""
    return Fill(BLUE, "///") if reached else EMPTY


def header_height(facts: Mapping[str, object]) -> float:
    return LINE * (len(facts) + 1) + 0.25


def draw_header(axis: Axes, box: tuple, title: str, facts: Mapping[str, object]) -> None:
    """A box (x, y, width, height) with names and values."""
    x, y, *_ = box
    outline(axis, *box, facecolor="#F6F6F6", linewidth=1.2)
    write(axis, x + 0.12, y + 0.2, title, weight="bold")
    for row, (name, value) in enumerate(facts.items(), start=1):
        line = y + 0.22 + LINE * row
        write(axis, x + 0.12, line, name, fontsize=SMALL, color=GRAY)
        write(axis, x + 1.3, line, str(value), fontsize=SMALL, family="monospace")


def point_to(axis: Axes, box: tuple, strip: Strip, position: int, words: str, color: str) -> None:
    """An arrow with words from a header, above or below the strip, to one of the strip's cells."""
    left, top, width, height = box
    below = top > strip.y
    # Where the strip has several rows, an arrow to a far row would cross the cells between.
    row, column = divmod(position, strip.per_row)
    near = row == (strip.rows - 1 if below else 0)
    x = strip.x + strip.cell * ((column if near else 0) + 0.5)
    words += "" if near else " (outlined)"
    start = (min(max(x, left + 0.15), left + width - 0.15), top if below else top + height)
    end = (x, strip.bottom + 0.03 if below else strip.y)
    arrow(axis, start, end, color)
    outline(axis, *strip.corner(position), strip.cell, strip.height, color,
            linestyle=(0, (2, 2)) if below else "-")  # fmt: skip
    right = max(start[0], x) + 0.12
    fits = right + LETTER * len(words) < WIDTH
    write(axis, right if fits else min(start[0], x) - 0.12, end[1] + (0.17 if below else -0.15),
          words, fontsize=SMALL, ha="left" if fits else "right")  # fmt: skip


# strides


def strides(tensor: torch.Tensor, title: str | None = None) -> Figure:
    """The storage with the cells a view reaches, its strides as steps, and the view itself.

    Each row of the view has a color and a hatching. A cell that several rows read keeps those of
    the first one. Draws up to 3 dimensions; raises ValueError for more and for long storages.
    """
    if tensor.ndim > 3:
        raise ValueError(f"strides draws up to 3 dimensions; this tensor has {tensor.ndim}.")
    texts = storage_cells(tensor)
    blocks = _blocks(storage_positions(tensor))
    rows = [row for block in blocks for row in block]
    fills = _first_fills(rows)
    strip = lay_strip(texts, 0.2 + LINE * (3 if title else 2))
    steps = _steps(tensor, strip)
    grid_top = strip.bottom + LINE * (len(steps) + 1) + 0.25
    figure, axis = canvas(grid_top + LINE * 2 + GRID_CELL[1] * max(map(len, blocks)) + 0.15)
    lines = [(title, "bold")] if title else []
    lines += [
        (header_text(tensor), "normal" if title else "bold"),
        (index_formula(tensor), "normal"),
    ]
    for row, (text, weight) in enumerate(lines):
        write(axis, MARGIN, 0.2 + LINE * row, text, weight=weight)
    draw_strip(axis, strip, texts, [fills.get(place, EMPTY) for place in range(len(texts))])
    draw_visits(axis, strip, storage_visits(tensor))
    _draw_steps(axis, strip, steps)
    _draw_view(axis, grid_top, tensor, blocks, fills)
    return Figure(figure, _describe_strides(tensor, title, len(texts), rows))


GRID_CELL = (0.5, 0.3)


def _first_fills(rows: list[list[int]]) -> dict[int, Fill]:
    """For each reached cell the filling of the first row that reads it."""
    fills: dict[int, Fill] = {}
    for place, row in enumerate(rows):
        for position in row:
            fills.setdefault(position, row_fill(place))
    return fills


def _blocks(positions: torch.Tensor) -> list[list[list[int]]]:
    """The positions as matrices: one up to 2-D, one per index of the first dimension in 3-D."""
    missing = 3 - positions.ndim
    return positions[(None,) * missing].tolist() or [[]]


def _steps(tensor: torch.Tensor, strip: Strip) -> list[tuple[int, int, str]]:
    """The arrows under the strip: (from cell, to cell, words), for the offset and each stride."""
    if strip.rows > 1 or not tensor.numel():
        return []
    start = tensor.storage_offset()
    steps = [(0, start, f"offset {start}")] if start else []
    for dim, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1:
            steps.append((start, start + step, f"dim {dim}: +{step}{'' if step else ', stays'}"))
    return steps


def _draw_steps(axis: Axes, strip: Strip, steps: list[tuple[int, int, str]]) -> None:
    for row, (start, end, words) in enumerate(steps):
        y = strip.bottom + LINE * (row + 1) + 0.1
        from_x, to_x = strip.middle(start), strip.middle(end)
        if start == end:
            axis.plot([from_x], [y], "o", color=BLACK, markersize=4)
        else:
            arrow(axis, (from_x, y), (to_x, y))
        write(axis, to_x + 0.08, y, words, fontsize=SMALL)


def _draw_view(axis: Axes, y: float, tensor: torch.Tensor, blocks: list, fills: dict[int, Fill]) -> None:
    """The view as a grid of storage positions, or as several side by side."""
    write(axis, MARGIN, y, "the view: each element's position in storage", weight="bold")
    if not tensor.numel():
        write(axis, MARGIN, y + LINE * 1.5, "no elements")
        return
    columns = len(blocks[0][0])
    gap = 0.65
    x, width = MARGIN + gap, min(GRID_CELL[0], (INNER - gap * len(blocks)) / len(blocks) / columns)
    *_, row_step, column_step = (None, None, *tensor.stride())
    for index, block in enumerate(blocks):
        if column_step is not None:
            head = f"[{index}]   " if len(blocks) > 1 else ""
            write(axis, x, y + LINE * 1.2, f"{head}+{column_step} →", fontsize=SMALL, color=GRAY)
        if row_step is not None:
            write(axis, x - 0.08, y + LINE * 2 + 0.15, f"+{row_step} ↓", fontsize=SMALL,
                  color=GRAY, ha="right")  # fmt: skip
        draw_grid(axis, x, y + LINE * 1.8, (width, GRID_CELL[1]),
                  [list(map(str, row)) for row in block],
                  [[fills[position] for position in row] for row in block])  # fmt: skip
        x += width * columns + gap


def _describe_strides(tensor: torch.Tensor, title: str | None, count: int, rows: list[list[int]]) -> str:
    reached = {position for row in rows for position in row}
    per_row = tensor.shape[:-1]
    names = [list(index) for index in np.ndindex(*per_row)] if tensor.ndim > 1 else ["the view"]
    reads = "; ".join(
        f"{'row ' if tensor.ndim > 1 else ''}{name} reads {_listed(row)}"
        for name, row in zip(names, rows, strict=False)
    )
    twice = " Some cells are read more than once." if len(reached) < tensor.numel() else ""
    return (
        f"{title + ': a' if title else 'A'} storage strip of {plural(count, 'cell')} and a view "
        f"with {header_text(tensor)}. The view reaches {len(reached)} of the cells.{twice} "
        f"Positions: {reads or 'none, the view is empty'}."
    )


# view_decision


def view_decision(*tensors: torch.Tensor, labels: Sequence[str] | None = None) -> Figure:
    """How `view` decides whether neighboring dimensions merge, with the tensors as examples.

    labels: the expressions that made the tensors.
    """
    names = list(labels) if labels is not None else [f"tensor {n + 1}" for n in range(len(tensors))]
    if len(names) != len(tensors):
        raise ValueError(f"{len(names)} labels do not fit {plural(len(tensors), 'tensor')}.")
    checks = [merge_checks(tensor) for tensor in tensors]
    heights = [LINE * (1 + max(1, len(rows))) + 0.25 for rows in checks]
    figure, axis = canvas(1.95 + sum(heights))
    _draw_question(axis)
    y = 1.85
    stories = []
    for name, tensor, rows, height in zip(names, tensors, checks, heights, strict=True):
        axis.plot([MARGIN, WIDTH - MARGIN], [y, y], color=GRAY, linewidth=0.6)
        verdict = flat_verdict(tensor, rows)
        _draw_example(axis, y + 0.22, name, tensor, rows, verdict)
        steps = "; ".join(f"{words}: {'yes' if merges else 'no'}" for _, words, merges in rows)
        stories.append(f"{name} ({header_text(tensor)}): {steps or 'nothing to merge'}; {verdict}.")
        y += height
    alt = (
        "Decision diagram: for neighboring dimensions i and i+1, leaving out sizes of 1, is "
        "stride[i] equal to stride[i+1] × shape[i+1]? Yes: one even run, view merges them. No: the "
        f"steps jump: a view that merges these two raises, and reshape copies. Examples: {' '.join(stories)}"
    )
    return Figure(figure, alt)


def merge_checks(tensor: torch.Tensor) -> list[tuple[tuple[int, int], str, bool]]:
    """For each pair of neighboring dimensions: which ones, the comparison in words, its answer.

    Dimensions of size 1 take no step, so their stride does not matter and they are left out.
    """
    sizes, steps = tensor.shape, tensor.stride()
    dims = [dim for dim in range(tensor.ndim) if sizes[dim] != 1]
    rows = []
    for outer, inner in pairwise(dims):
        run = steps[inner] * sizes[inner]
        sign = "=" if steps[outer] == run else "≠"
        words = f"dims {outer}, {inner}:  {steps[outer]} {sign} {steps[inner]}·{sizes[inner]}"
        rows.append(((outer, inner), words, steps[outer] == run))
    return rows


def flat_verdict(tensor: torch.Tensor, checks: list) -> str:
    """What view(-1) does, and the view that works where only some dimensions merge."""
    if views_flat(tensor):
        return ".view(-1) works"
    merged = [inner for (_, inner), _, merges in checks if merges]
    if not merged:
        return ".view(-1) raises"
    shape: list[int] = []
    for dim, size in enumerate(tensor.shape):
        if dim in merged:
            shape[-1] *= size
        elif size != 1:
            shape.append(size)
    return f".view(-1) raises\n.view{tuple(shape)} works"


def views_flat(tensor: torch.Tensor) -> bool:
    """Whether `.view(-1)` works."""
    try:
        tensor.view(-1)
    except RuntimeError:
        return False
    return True


def _draw_question(axis: Axes) -> None:
    """The diagram above the examples: question, and an arrow to each of its two answers."""
    outline(axis, MARGIN, 0.45, 3.5, 0.95, BLUE, linewidth=1.5, facecolor=tint(BLUE, 0.1))
    write(axis, MARGIN + 0.15, 0.7, "neighboring dims i and i+1, sizes of 1 left out:",
          fontsize=SMALL)  # fmt: skip
    write(axis, MARGIN + 0.15, 1.1, "stride[i] == stride[i+1] · shape[i+1] ?",
          family="monospace", fontsize=SMALL)  # fmt: skip
    answers = (
        ("yes", 0.15, GREEN, "one even run in memory:\nview merges the two"),
        ("no", 1.05, VERMILION, "the steps jump: to merge them,\nview raises and reshape copies"),
    )
    for word, y, color, text in answers:
        middle = y + 0.32
        arrow(axis, (MARGIN + 3.5, 0.925), (4.75, middle), color)
        side = 0.14 if word == "no" else -0.14
        write_centered(axis, 4.1, (0.925 + middle) / 2 + side, word, weight="bold")
        outline(axis, 4.75, y, 2.6, 0.64, color, linewidth=1.5, facecolor=tint(color, 0.1))
        write(axis, 4.9, middle, text)


def _draw_example(axis: Axes, y: float, name: str, tensor: torch.Tensor, rows: list, verdict: str) -> None:
    code = {"family": "monospace", "weight": "bold", "fontsize": SMALL}
    write(axis, MARGIN, y, name, **code)
    layout = f"shape {tuple(tensor.shape)}, stride {tensor.stride()}"
    write(axis, MARGIN, y + LINE, layout, fontsize=SMALL)
    for row, (_, words, merges) in enumerate(rows, start=1):
        _draw_mark(axis, 3.25, y + LINE * row, merges)
        write(axis, 3.5, y + LINE * row, words)
    if not rows:
        write(axis, 3.5, y + LINE, "nothing to merge")
    for row, line in enumerate(verdict.split("\n"), start=1):
        _draw_mark(axis, 5.4, y + LINE * row, line.endswith("works"))
        write(axis, 5.65, y + LINE * row, line, **code)


def _draw_mark(axis: Axes, x: float, y: float, good: bool) -> None:
    mark, color = ("✓", GREEN) if good else ("✗", VERMILION)
    write(axis, x, y, mark, color=color, weight="bold")


# number_line


def number_line(
    center: float,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16),
    span: float = 8,
) -> Figure:
    """The numbers each dtype can hold from center − span to center + span, one line per dtype."""
    figure, axis = new_figure(WIDTH, 0.5 + 0.9 * len(dtypes))
    stories = []
    for row, dtype in enumerate(dtypes):
        name = str(dtype).removeprefix("torch.")
        values = representable(dtype, center - span, center + span)
        words = spacing_words(dtype, center) + (", too many to draw" if values is None else "")
        _draw_ticks(axis, -row, values, center, span)
        plate = {"facecolor": WHITE, "edgecolor": "none", "pad": 1}
        axis.text(center - span, 0.26 - row, words, fontsize=SMALL, va="bottom", bbox=plate)
        count = "values" if values is None else plural(len(values), "value")
        listed = f" ({_listed(f'{value:.10g}' for value in values)})" if _few(values) else ""
        stories.append(f"{name} has {count} there{listed}, {words}.")
    axis.axvline(center, color=GRAY, linestyle=":", linewidth=1, zorder=0)
    axis.set_yticks([-row for row in range(len(dtypes))])
    axis.set_yticklabels([str(dtype).removeprefix("torch.") for dtype in dtypes], fontsize=SIZE)
    axis.set_ylim(0.5 - len(dtypes), 0.55)
    axis.set_xlim(center - span * 1.03, center + span * 1.03)
    axis.ticklabel_format(style="plain", axis="x", useOffset=False)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    lines = f"Number line from {center - span:.10g} to {center + span:.10g}, a tick for each value."
    return Figure(figure, f"{lines} {' '.join(stories)}")


def _few(values: list[float] | None) -> bool:
    return values is not None and len(values) <= 20


def _draw_ticks(axis: Axes, y: float, values: list[float] | None, center: float, span: float) -> None:
    axis.plot([center - span, center + span], [y, y], color=GRAY, linewidth=0.8)
    if values is None:
        axis.fill_between([center - span, center + span], y - 0.2, y + 0.2, color=tint(BLUE, 0.6))
        return
    few = _few(values)
    axis.vlines(values, y - 0.2, y + 0.2, color=BLUE, linewidth=2.2 if few else 1)
    free = -math.inf  # where the next label may begin
    for value in values if few else []:
        text = f"{value:.10g}"
        half = DIGIT * len(text) / 2 * (2 * span / 6.2)  # the axis is at least 6.2 inches long
        if value - half > free:
            axis.text(value, y - 0.24, text, fontsize=SMALL, ha="center", va="top")
            free = value + half * 1.1


def representable(dtype: torch.dtype, low: float, high: float) -> list[float] | None:
    """The numbers of a floating dtype within [low, high], rising; None if they are too many."""
    if dtype.itemsize <= 2:
        patterns = torch.arange(2 ** (8 * dtype.itemsize), dtype=torch.int32)
        integers = patterns.to(torch.int16 if dtype.itemsize == 2 else torch.uint8)
        values = integers.view(dtype).to(torch.float64)
        values = values[(values >= low) & (values <= high)].unique().tolist()
    else:
        kind = np.float32 if dtype == torch.float32 else np.float64
        value, values = kind(low), []
        if value < low:
            value = np.nextafter(value, kind(np.inf))
        while value <= high and len(values) <= MOST_TICKS:
            values.append(float(value))
            value = np.nextafter(value, kind(np.inf))
    return values if len(values) <= MOST_TICKS else None


def spacing_words(dtype: torch.dtype, center: float) -> str:
    """How far apart the dtype's numbers are below and above a number."""
    largest = torch.finfo(dtype).max
    if abs(center) > largest:
        return f"{center:.10g} is past the largest value, {largest:.10g}"
    below, above = spacing(dtype, center)
    if below == above:
        return f"steps of {above:g} around {center:.10g}"
    return f"steps of {below:g} below {center:.10g}, of {above:g} above"


def spacing(dtype: torch.dtype, center: float) -> tuple[float, float]:
    """The distance from the nearest number of a dtype to the one below it and to the one above."""
    nearest = torch.tensor(center, dtype=torch.float64).to(dtype).double().item()
    limits = torch.finfo(dtype)

    def gap(size: float) -> float:
        _, exponent = math.frexp(max(size, limits.smallest_normal))  # log2 would round up
        return limits.eps * 2.0 ** (exponent - 1)

    # Numbers get closer toward zero: at a power of two the step inward is half the step outward.
    outward, inward = gap(abs(nearest)), gap(abs(nearest) * (1 - limits.eps / 2))
    return (inward, outward) if nearest >= 0 else (outward, inward)


# picked_cells


def picked_cells(tensor: torch.Tensor, picks: Mapping[str, torch.Tensor]) -> Figure:
    """One small grid of the tensor per pick, with the picked cells filled.

    tensor: 1-D or 2-D. picks: an expression → a bool mask of the tensor's shape.
    """
    matrix = tensor.detach().reshape(-1, tensor.shape[-1])
    masks = {name: _checked_mask(name, mask, tensor) for name, mask in picks.items()}
    texts = [[number(value) for value in row] for row in matrix.tolist()]
    longest = max((len(text) for row in texts for text in row), default=1)
    cell = (max(0.4, 0.09 * longest + 0.1), 0.3)
    width, height = cell[0] * matrix.shape[1], cell[1] * len(texts)
    names = {name: textwrap.wrap(name, max(24, int(width / LETTER))) for name in masks}
    block = max([width, *(LETTER * len(line) for lines in names.values() for line in lines)]) + 0.35
    head = LINE * max(map(len, names.values()), default=1)
    per_row = max(1, int((INNER + 0.35) / block))
    pitch = head + height + 0.3
    figure, axis = canvas(pitch * math.ceil(len(masks) / per_row), min(WIDTH, 2 * MARGIN + block * per_row))
    stories = []
    for place, (name, mask) in enumerate(masks.items()):
        row, column = divmod(place, per_row)
        x, y = MARGIN + block * column, 0.1 + head + pitch * row
        write(axis, x, y, "\n".join(names[name]), family="monospace", weight="bold",
              fontsize=SMALL, va="bottom")  # fmt: skip
        fills = [[reach_fill(picked) for picked in line] for line in mask.tolist()]
        draw_grid(axis, x, y + 0.05, cell, texts, fills)
        picked = [number(value) for value in matrix[mask].tolist()]
        stories.append(f"{name} picks {plural(len(picked), 'cell')}: {_listed(picked) or 'none'}.")
    return Figure(figure, f"Grids of shape {tuple(tensor.shape)}. {' '.join(stories)}")


def _checked_mask(name: str, mask: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    if mask.shape != tensor.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"The pick {name!r} needs a bool mask of shape {tuple(tensor.shape)}; "
            f"it is {mask.dtype} of shape {tuple(mask.shape)}."
        )
    return mask.reshape(-1, tensor.shape[-1])


# broadcasting


def broadcasting(*shapes: Sequence[int]) -> Figure:
    """Shapes aligned on the right with the stretched sizes hatched, and the shape that results.

    Where the shapes do not broadcast, the dimension that clashes is marked instead.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    columns = [_column(shapes, rank, dim) for dim in range(rank)]
    clashes = [dim for dim, (_, size) in enumerate(columns) if size is None]
    result = tuple(size for _, size in columns)
    labels = [f"shape {tuple(shape)}" for shape in shapes]
    labels.append("no result" if clashes else f"result {result}")
    left = MARGIN + 0.3 + 0.085 * max(map(len, labels))
    width, pitch = min(1.1, (WIDTH - left) / max(rank, 1)), 0.52
    line = 0.38 + pitch * len(shapes)
    keys = _broadcast_keys(columns, clashes)
    figure, axis = canvas(line + 0.75 + LINE * len(keys))
    for row, label in enumerate(labels):
        y = 0.58 + pitch * row + (0.1 if row == len(shapes) else 0)
        weight = "bold" if row == len(shapes) else "normal"
        write(axis, MARGIN, y, label, family="monospace", weight=weight)
    for dim, (sizes, size) in enumerate(columns):
        x, wide = left + width * dim, width - 0.16
        write_centered(axis, x + wide / 2, 0.2, f"dim {dim}", fontsize=SMALL, color=GRAY)
        for row, own in enumerate(sizes):
            _draw_size(axis, x, 0.38 + pitch * row, wide, own, size)
        _draw_result(axis, x, line + 0.1, wide, sizes, size)
        if size is None:
            outline(axis, x - 0.05, 0.31, wide + 0.1, line + 0.26, VERMILION)
    axis.plot([MARGIN, left + width * max(rank, 1)], [line, line], color=BLACK, linewidth=1)
    for row, key in enumerate(keys):
        write(axis, MARGIN, line + 0.78 + LINE * row, key, fontsize=SMALL)
    return Figure(figure, _describe_broadcast(shapes, columns, clashes, result))


def _column(shapes: Sequence, rank: int, dim: int) -> tuple[list[int | None], int | None]:
    """One dimension: each shape's size there (None: missing), and the common size (None: clash)."""
    sizes = [shape[dim - rank + len(shape)] if dim >= rank - len(shape) else None
             for shape in shapes]  # fmt: skip
    others = {size for size in sizes if size not in (1, None)}
    return sizes, (None if len(others) > 1 else others.pop() if others else 1)


STRETCHED, MISSING = Fill(BLUE, "///"), Fill(ORANGE, "...")


def _stretch(size: int | None, result: int | None) -> tuple[Fill, str]:
    """How the size of one shape in one dimension is drawn."""
    own = "(1)" if size is None else str(size)
    fill = MISSING if size is None else STRETCHED
    if size not in (1, None) or result in (1, None):
        return (MISSING if size is None else EMPTY), own
    return fill, f"{own} → {result}"


def _draw_size(axis: Axes, x: float, y: float, width: float, size: int | None, result: int | None) -> None:
    fill, text = _stretch(size, result)
    draw_cells(axis, [(x, y)], width, 0.4, [fill])
    write_centered(axis, x + width / 2, y + 0.2, text)


def _draw_result(axis: Axes, x: float, y: float, width: float, sizes: list, result: int | None) -> None:
    outline(axis, x, y, width, 0.4, VERMILION if result is None else BLACK, linewidth=1.5)
    text = f"✗ {_clash(sizes)}" if result is None else str(result)
    write_centered(axis, x + width / 2, y + 0.2, text, weight="bold")


def _clash(sizes: list) -> str:
    return " ≠ ".join(map(str, dict.fromkeys(size for size in sizes if size not in (1, None))))


def _broadcast_keys(columns: list, clashes: list[int]) -> list[str]:
    """Lines that say why there is no result, and what the fillings mean, as far as they occur."""
    fills = {_stretch(size, result)[0] for sizes, result in columns for size in sizes}
    parts = ["hatched: size 1, read again and again"] if STRETCHED in fills else []
    parts += ["dotted: missing, counts as size 1"] if MISSING in fills else []
    keys = [_clash_words(columns, clashes)] if clashes else []
    keys += ["; ".join(parts)] if parts else []
    return keys or ["All sizes match; nothing is stretched."]


def _clash_words(columns: list, clashes: list[int]) -> str:
    where = _listed(f"dim {dim} ({_clash(columns[dim][0])})" for dim in clashes)
    return f"Clash in {where}: sizes must be equal, or one of them 1."


def _describe_broadcast(shapes: Sequence, columns: list, clashes: list[int], result: tuple) -> str:
    stories = []
    for row, shape in enumerate(shapes):
        changes = [
            f"dim {dim} {'is missing and counts as 1' if sizes[row] is None else 'has size 1'}"
            f"{f', stretched to {size}' if size not in (1, None) else ''}"
            for dim, (sizes, size) in enumerate(columns)
            if sizes[row] in (1, None)
        ]
        stories.append(f"{tuple(shape)}: {'; '.join(changes) or 'nothing is stretched'}.")
    end = _clash_words(columns, clashes) if clashes else f"Result: {result}."
    return f"Shapes aligned on the right. {' '.join(stories)} {end}"


# shared_block


@dataclass(frozen=True)
class Reader:
    """A NumPy array or a torch tensor as one who reads memory: elements by address."""

    name: str
    facts: Mapping[str, object]
    first: int  # the address of the first element
    size: int  # bytes per element
    values: Mapping[int, str]  # address of an element → its text

    @property
    def span(self) -> tuple[int, int]:
        """The lowest address read, and the one behind the highest."""
        addresses = self.values or [self.first]
        return min(addresses), max(addresses) + self.size


def shared_block(array: np.ndarray, tensor: torch.Tensor) -> Figure:
    """The memory under an array and a tensor, with both headers: one block if they share it.

    Two blocks are drawn where they do not, as after `torch.tensor(array)`.
    """
    readers = [_numpy_reader(array), _torch_reader(tensor)]
    (low, high), (other_low, other_high) = (reader.span for reader in readers)
    shared = max(low, other_low) < min(high, other_high)
    heights = [header_height(reader.facts) for reader in readers]
    blocks = [_lay_block(readers if shared else readers[:1], heights[0] + 0.5)]
    if not shared:
        blocks.append(_lay_block(readers[1:], blocks[0].strip.bottom + 0.3))
    last = blocks[-1].strip.bottom + 0.45
    figure, axis = canvas(last + heights[1] + 0.1)
    note = "numbers above cells: bytes from the block's start"
    for block, y in zip(blocks, (0.3, last + 0.2), strict=False):
        draw_strip(axis, block.strip, block.texts, block.fills, unit=block.unit)
        for row, words in enumerate((*block.words, note)):
            write(axis, MARGIN + 3.75, y + LINE * row, words, fontsize=SMALL)
    for reader, block, y, height in zip(readers, (blocks[0], blocks[-1]), (0.1, last), heights, strict=True):
        box, place = (MARGIN, y, 3.5, height), (reader.first - block.start) // block.unit
        draw_header(axis, box, f"{reader.name} header", reader.facts)
        point_to(axis, box, block.strip, place, f"{reader.name} starts here",
                 READER_COLORS[reader.name])  # fmt: skip
    start = "One block of bytes with two headers" if shared else "Two blocks of bytes, not shared"
    headers = " ".join(_describe_header(reader) for reader in readers)
    contents = " ".join(f"{', '.join(block.words)}." for block in blocks)
    return Figure(figure, f"{start}. {headers} {contents}")


def _describe_header(reader: Reader) -> str:
    return f"{reader.name} header: {_listed(f'{k} {value}' for k, value in reader.facts.items())}."


READER_COLORS = {"NumPy": BLUE, "torch": VERMILION}


def _numpy_reader(array: np.ndarray) -> Reader:
    first = array.__array_interface__["data"][0]
    values = {
        first + sum(map(int.__mul__, index, array.strides)): number(array[index].item())
        for index in np.ndindex(array.shape)
    }
    facts = {
        "shape": array.shape,
        "strides": f"{array.strides} bytes",
        "dtype": array.dtype,
    }
    return Reader("NumPy", facts, first, array.itemsize, values)


def _torch_reader(tensor: torch.Tensor) -> Reader:
    tensor, size = tensor.detach(), tensor.element_size()
    start = tensor.data_ptr() - tensor.storage_offset() * size
    places = storage_positions(tensor).flatten().tolist()
    texts = map(number, tensor.flatten().tolist())
    values = {start + place * size: text for place, text in zip(places, texts, strict=True)}
    facts = {
        "shape": tuple(tensor.shape),
        "stride": f"{tensor.stride()} elements",
        "storage_offset": tensor.storage_offset(),
        "dtype": tensor.dtype,
    }
    return Reader("torch", facts, tensor.data_ptr(), size, values)


@dataclass(frozen=True)
class Block:
    """A stretch of memory that one or two readers read, laid out as a strip."""

    start: int
    unit: int  # bytes per cell
    strip: Strip
    texts: Sequence[str]
    fills: Sequence[Fill]
    words: tuple[str, ...]


def _lay_block(readers: list[Reader], y: float) -> Block:
    start = min(reader.span[0] for reader in readers)
    unit = min(reader.size for reader in readers)
    count = (max(reader.span[1] for reader in readers) - start) // unit
    if count > MOST_CELLS:
        raise ValueError(f"{count} cells are too many to draw; {MOST_CELLS} are the most.")
    finest = sorted(readers, key=lambda reader: -reader.size)
    found = {place: text for reader in finest for place, text in reader.values.items()}
    texts = [found.get(start + unit * place, "") for place in range(count)]
    who = [tuple(r.name for r in readers if _reads(r, start + unit * place))
           for place in range(count)]  # fmt: skip
    names = [" and ".join(names) if names else "neither" for names in who]
    tallies = [f"{names.count(name)} read by {name}" for name in dict.fromkeys(names)]
    words = (block_size(count, unit), *tallies)
    fills = [BLOCK_FILLS[names] for names in who]
    return Block(start, unit, lay_strip(texts, y), texts, fills, words)


BLOCK_FILLS = {
    ("NumPy", "torch"): Fill(GREEN),
    ("NumPy",): Fill(BLUE, "///"),
    ("torch",): Fill(VERMILION, "..."),
    (): EMPTY,
}


def _reads(reader: Reader, address: int) -> bool:
    low, high = reader.span
    inside = low <= address < high
    return inside and address - (address - low) % reader.size in reader.values
