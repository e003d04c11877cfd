"""Stride lens: see which cells of the storage a chain of view operations reaches, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import torch

from course_utils.explorers.explorer import Explorer
from course_utils.plots import memory
from course_utils.plots.figure import VERMILION, Figure

SHAPES = {"(3, 4)": (3, 4), "(4, 1)": (4, 1), "(2, 3, 4)": (2, 3, 4)}
MOST_DIMS = 4  # as many as there are index sliders
LARGEST_SIZE = 4
EXPANDED_SIZE = 2  # small, so that the longest strip (48 cells) is still drawn within 0.1 s
STEPS = 3
HEAD = 0.62  # inches above a strip for the code and what is outlined


@dataclass(frozen=True)
class Operation:
    """One step of a chain: as code, as a function, and when it is left out."""

    code: Callable[[torch.Tensor], str]
    run: Callable[[torch.Tensor], torch.Tensor]
    refusal: Callable[[torch.Tensor], str] = lambda tensor: ""  # why not; empty where it works


def _expanded_shape(tensor: torch.Tensor) -> list[int]:
    """The shape with the first size 1 replaced."""
    shape = list(tensor.shape)
    if 1 in shape:
        shape[shape.index(1)] = EXPANDED_SIZE
    return shape


def _refuse_expand(tensor: torch.Tensor) -> str:
    return "" if 1 in tensor.shape else f"no size in {tuple(tensor.shape)} is 1"


def _refuse_unsqueeze(tensor: torch.Tensor) -> str:
    return "" if tensor.ndim < MOST_DIMS else f"the lens shows at most {MOST_DIMS} dimensions"


OPERATIONS: dict[str, Operation | None] = {
    "none": None,
    "transpose last two": Operation(lambda t: ".transpose(-2, -1)", lambda t: t.transpose(-2, -1)),
    "[::2]": Operation(lambda t: "[::2]", lambda t: t[::2]),
    "[..., ::2]": Operation(lambda t: "[..., ::2]", lambda t: t[..., ::2]),
    "[1:]": Operation(lambda t: "[1:]", lambda t: t[1:]),
    "expand": Operation(
        lambda t: f".expand{tuple(_expanded_shape(t))}",
        lambda t: t.expand(_expanded_shape(t)),
        _refuse_expand,
    ),
    "unsqueeze(0)": Operation(lambda t: ".unsqueeze(0)", lambda t: t.unsqueeze(0), _refuse_unsqueeze),
    "contiguous": Operation(lambda t: ".contiguous()", lambda t: t.contiguous()),
}


@dataclass(frozen=True, eq=False)
class Lens:
    """A tensor made by a chain of operations, and one element of it."""

    base: str  # the code that makes x
    code: str  # the code that makes the tensor from x
    tensor: torch.Tensor
    notes: tuple[str, ...]  # what is worth saying about the steps and sliders
    index: tuple[int, ...]
    position: int | None  # the element's cell in the storage; None where there are no elements
    visits: tuple[int, ...]  # for each cell of the storage how many elements lie there

    @property
    def facts(self) -> dict[str, object]:
        """The tensor's layout, name by name."""
        return {
            "shape": tuple(self.tensor.shape),
            "stride": self.tensor.stride(),
            "storage_offset": self.tensor.storage_offset(),
            "is_contiguous()": self.tensor.is_contiguous(),
            ".view(-1)": "works" if memory.views_flat(self.tensor) else "raises RuntimeError",
        }

    @property
    def formula(self) -> str:
        """The storage formula with the numbers of this element filled in."""
        if self.position is None:
            return "no elements, so no positions"
        offset, strides = self.tensor.storage_offset(), self.tensor.stride()
        terms = [f"{at}·{step}" for at, step in zip(self.index, strides, strict=True)]
        return f"{' + '.join([str(offset), *terms])} = {self.position}"


def look(shape: Sequence[int], steps: Sequence[str], sliders: Sequence[int]) -> Lens:
    """Run the steps on a fresh tensor of a shape, and find the element the sliders point at.

    Steps that cannot be done are left out and named in the notes. An index past the end of its
    dimension is taken as the last one; sliders without a dimension are ignored.
    """
    count = torch.Size(shape).numel()
    tensor, code, notes = torch.arange(count).reshape(shape), "x", []
    for place, name in enumerate(steps, start=1):
        operation = OPERATIONS[name]
        if operation is None:
            continue
        refusal = operation.refusal(tensor)
        if refusal:
            notes.append(f"Step {place}, {name}, is left out: {refusal}.")
            continue
        if name == "contiguous":
            notes.append(f"Step {place}: {_contiguous_note(tensor)}")
        code, tensor = code + operation.code(tensor), operation.run(tensor)
    index, position = None, None
    if tensor.numel():
        ends = [size - 1 for size in tensor.shape]
        index = tuple(min(at, end) for at, end in zip(sliders, ends, strict=False))
        position = int(memory.storage_positions(tensor)[index])
        notes += [
            f"Index slider {dim} is at {at}; the last index of dimension {dim} is {end}."
            for dim, (at, end) in enumerate(zip(sliders, ends, strict=False))
            if at > end
        ]
    base = f"x = torch.arange({count}).reshape{tuple(shape)}"
    visits = tuple(memory.storage_visits(tensor))
    return Lens(base, code, tensor, tuple(notes), index or (), position, visits)


def _contiguous_note(tensor: torch.Tensor) -> str:
    if tensor.is_contiguous():
        return "contiguous() returned its input, which was contiguous already."
    return f"contiguous() copied {memory.plural(tensor.numel(), 'element')} to a new strip."


def describe(lens: Lens) -> str:
    """The state in words: code, layout, and the storage formula of the chosen element."""
    rows = dict(lens.facts)
    if lens.position is None:
        rows["position"] = lens.formula
    else:
        element = f"position of {list(lens.index)}"
        rows[element] = f"{lens.formula}, value {lens.tensor[lens.index].item()}"
    width = max(map(len, rows))
    lines = [lens.base, lens.code, "", *(f"{k:<{width}}  {value}" for k, value in rows.items())]
    return "\n".join([*lines, *([""] if lens.notes else []), *lens.notes])


def picture(lens: Lens) -> Figure:
    """The storage strip with the cells the tensor reaches filled, and the chosen one outlined."""
    strip = _strip(lens, HEAD)
    figure, axis = memory.canvas(strip.bottom + 0.3)
    _draw(axis, strip, lens)
    return Figure(figure, _summary(lens))


def still() -> Figure:
    """Three states, one above the other, for a page without a kernel: x, x.T and x[1:, ::2]."""
    chains = (), ("transpose last two",), ("[1:]", "[..., ::2]")
    lenses = [look((3, 4), chain, (0, 1)) for chain in chains]
    pitch = 1.85
    figure, axis = memory.canvas(pitch * len(lenses) - 0.1)
    for row, lens in enumerate(lenses):
        strip = _strip(lens, HEAD + memory.LINE + pitch * row)
        _draw(axis, strip, lens, extra=_facts(lens))
    table = " ".join(_summary(lens) for lens in lenses)
    return Figure(figure, f"Three tensors over one storage of 12 cells. {table}")


def _strip(lens: Lens, y: float) -> memory.Strip:
    return memory.lay_strip(memory.storage_cells(lens.tensor), y)


def _draw(axis, strip: memory.Strip, lens: Lens, extra: str = "") -> None:
    """The strip of one state, and above it the code and what is outlined."""
    fills = [memory.reach_fill(count > 0) for count in lens.visits]
    memory.draw_strip(axis, strip, memory.storage_cells(lens.tensor), fills)
    memory.draw_visits(axis, strip, lens.visits)
    words = lens.formula
    if lens.position is not None:
        corner = strip.corner(lens.position)
        memory.outline(axis, *corner, strip.cell, strip.height, VERMILION, linewidth=3)
        words = f"outlined: element {list(lens.index)} in cell {lens.formula}"
    lines = [line for line in (extra, words) if line]
    top = strip.y - HEAD + 0.2 - memory.LINE * (len(lines) - 1)
    memory.write(axis, memory.MARGIN, top, lens.code, family="monospace", weight="bold")
    for row, line in enumerate(lines, start=1):
        memory.write(axis, memory.MARGIN, top + memory.LINE * row, line, fontsize=memory.SMALL)


def _facts(lens: Lens) -> str:
    return ", ".join(f"{name} {value}" for name, value in lens.facts.items())


def _summary(lens: Lens) -> str:
    """One state in one line, for alt text."""
    reached = sum(count > 0 for count in lens.visits)
    most = max(lens.visits, default=0)
    again = f", some of them {most} times" if most > 1 else ""
    element = f"element {list(lens.index)} in cell " if lens.position is not None else ""
    return (
        f"{lens.code}: {_facts(lens)}; reaches {reached} of {len(lens.visits)} cells{again}; {element}{lens.formula}."
    )


def render(shape: str, **controls: str | int) -> tuple[Figure, str]:
    """Picture and words for the values of the controls."""
    lens = _lens(shape, **controls)
    return picture(lens), describe(lens)


def _lens(shape: str, **controls: str | int) -> Lens:
    steps = [str(controls[f"step_{place}"]) for place in range(1, STEPS + 1)]
    sliders = [int(controls[f"index_{dim}"]) for dim in range(MOST_DIMS)]
    return look(SHAPES[shape], steps, sliders)


def in_use(**controls: str | int) -> list[str]:
    """The controls without the index sliders that have no dimension to move in."""
    dims = _lens(**controls).tensor.ndim
    return [name for name in controls if name not in [f"index_{dim}" for dim in range(dims, MOST_DIMS)]]


def stride_lens() -> Explorer:
    """Explore how views read storage: choose a shape, up to three steps, and an index."""
    controls: dict[str, widgets.Widget] = {
        "shape": widgets.Dropdown(options=list(SHAPES), description="shape of x"),
    }
    for place in range(1, STEPS + 1):
        controls[f"step_{place}"] = widgets.Dropdown(options=list(OPERATIONS), description=f"step {place}")
    for dim in range(MOST_DIMS):
        controls[f"index_{dim}"] = widgets.IntSlider(min=0, max=LARGEST_SIZE - 1, description=f"index {dim}")
    return Explorer("Stride lens", controls, render, still(), in_use=in_use)
