"""Recompute and recompile: the memory of activation checkpointing, and the graphs that torch.compile captures."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
from dataclasses import dataclass
from functools import cache

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import MaxNLocator

from course_utils.explorers.explorer import Explorer
from course_utils.plots.figure import (
    BLACK,
    BLUE,
    DOTS_PER_INCH,
    GRAY,
    GREEN,
    ORANGE,
    PALE,
    SKY,
    VERMILION,
    Figure,
    bare,
    new_figure,
)

# --- memory of a checkpointed stack -----------------------------------------------------------------------------------

WIDTH = 256  # numbers per row between two blocks
BYTES = 4  # of a float32
BACKWARD = 2  # how long the backward pass of a block takes, in forward passes


@dataclass(frozen=True)
class Stack:
    """Equal blocks under checkpoints of `segment` blocks; `interior`: what a block saves, in tensors like its input."""

    depth: int = 16
    segment: int = 4
    interior: int = 1
    batch: int = 32

    @property
    def boundary(self) -> int:
        """Bytes of the tensor between two blocks."""
        return self.batch * WIDTH * BYTES

    @property
    def lengths(self) -> list[int]:
        """Blocks in each segment; the last may be shorter."""
        starts = range(0, self.depth, self.segment)
        return [min(self.segment, self.depth - start) for start in starts]


def plain_walk(stack: Stack) -> list[tuple[float, float]]:
    """(time, memory) without checkpoints: time in forward passes of a block, memory in boundaries."""
    n, interior = stack.depth, stack.interior
    up = [(float(i), float(i * interior)) for i in range(n + 1)]
    down = [(n + BACKWARD * i, float((n - i) * interior)) for i in range(1, n + 1)]
    return up + down


def checkpointed_walk(stack: Stack) -> list[tuple[float, float]]:
    """The same with every segment under a checkpoint. What a block needs while it runs, and drops, is left out."""
    time, held, points = 0.0, 0.0, [(0.0, 0.0)]

    def move(duration: float, change: float) -> None:
        nonlocal time, held
        time, held = time + duration, held + change
        points.append((time, held))

    for length in stack.lengths:
        move(0, 1)  # the input of the segment stays
        move(length, 0)
    for length in reversed(stack.lengths):
        for _ in range(length):
            move(1, stack.interior)  # the forward pass again, and now autograd keeps what it saves
        for _ in range(length):
            move(BACKWARD, -stack.interior)
        move(0, -1)
    return points


def after_forward(stack: Stack) -> int:
    """Boundaries held between forward and backward."""
    return len(stack.lengths)


def peak(stack: Stack) -> int:
    """The most boundaries held at one time: inputs of segments, and one segment in full."""
    return max(inputs + length * stack.interior for inputs, length in enumerate(stack.lengths, start=1))


def peaks(stack: Stack) -> list[int]:
    """The peak for every segment length from 1 on."""
    return [peak(Stack(stack.depth, k, stack.interior, stack.batch)) for k in range(1, stack.depth + 1)]


def best_segments(stack: Stack) -> list[int]:
    """The segment lengths of the lowest peak."""
    found = peaks(stack)
    return [k for k, value in enumerate(found, start=1) if value == min(found)]


def relative_time(stack: Stack) -> float:
    """Time of a checkpointed step in units of a plain one."""
    return checkpointed_walk(stack)[-1][0] / plain_walk(stack)[-1][0]


def size(count: float) -> str:
    """A number of bytes in words."""
    if count < 2**20:
        return f"{count / 2**10:.3g} KiB"
    return f"{count / 2**20:.4g} MiB" if count < 2**30 else f"{count / 2**30:.4g} GiB"


def describe_memory(stack: Stack) -> str:
    """What is kept, the peak, the time, and where the lowest peak is."""
    plain = stack.depth * stack.interior
    best = best_segments(stack)
    share = 1 - peak(stack) / plain
    saved = f"{share:.0%} less than plain" if share > 0 else f"{-share:.0%} more than plain" if share else "as plain"
    root = math.sqrt(stack.depth / stack.interior)
    rows = {
        "segments": ", ".join(map(str, stack.lengths)) + " blocks",
        "kept after forward": f"{size(after_forward(stack) * stack.boundary)}, plain {size(plain * stack.boundary)}",
        "peak": f"{size(peak(stack) * stack.boundary)}, {saved}",
        "time of a step": f"{relative_time(stack):.2f} of the plain one",
        "lowest peak": f"{size(min(peaks(stack)) * stack.boundary)} with segments of {_or(best)}",
        "square root": f"sqrt(depth / interior) = {root:.1f}",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _or(numbers: list[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


# --- graphs of a compiled function ------------------------------------------------------------------------------------

MOST_CALLS = 12
LARGEST = 4096
DYNAMIC = {"None (the default)": None, "True": True, "False": False}
COMPILED, REUSED, EAGER = "compiled", "reused", "eager"


@dataclass(frozen=True)
class Program:
    """A function and how it is called: with a vector of each length in turn."""

    lengths: tuple[int, ...] = (4, 6, 8, 10)
    dynamic: bool | None = None
    prints: bool = False
    branches: bool = False
    other_dtype: bool = False

    @property
    def source(self) -> str:
        """The function as text."""
        lines = ["def f(x):", "    y = x * 2"]
        lines += ['    print("on the way")'] if self.prints else []
        lines += ["    if y.sum() > 0:", "        return y + 1"] if self.branches else []
        return "\n".join([*lines, "    return y - 1" if self.branches else "    return y + 1"])


@dataclass(frozen=True)
class Call:
    """One call: its input, how many graphs were compiled for it, and how many ran."""

    length: int
    dtype: str
    sign: int
    compiled: int
    ran: int

    @property
    def kind(self) -> str:
        """Whether something was compiled, used again, or given up on."""
        return COMPILED if self.compiled else REUSED if self.ran else EAGER


def read_lengths(text: str) -> tuple[int, ...]:
    """The whole numbers in a text: at most 12, none above 4096."""
    return tuple(min(int(number[:5]), LARGEST) for number in re.findall(r"\d+", text))[:MOST_CALLS]


@cache
def run(program: Program) -> tuple[Call, ...]:
    """Compile the function and call it, with torch itself and a backend that runs graphs as they are."""
    from course_utils.exercises.week11._capture import fresh_compilations

    graphs: list[object] = []
    runs: list[object] = []

    def backend(gm, example_inputs):
        graphs.append(gm)

        def execute(*args):
            runs.append(gm)
            return gm.forward(*args)

        return execute

    prints, branches = program.prints, program.branches

    def f(x):
        y = x * 2
        if prints:
            print("on the way")
        if branches and y.sum() > 0:
            return y + 1
        return y - 1 if branches else y + 1

    calls = []
    with fresh_compilations(), _silence():
        compiled = torch.compile(f, backend=backend, dynamic=program.dynamic)
        for place, length in enumerate(program.lengths):
            sign = -1 if place % 2 and program.branches else 1
            last = program.other_dtype and place == len(program.lengths) - 1
            x = torch.full((length,), float(sign), dtype=torch.float64 if last else torch.float32)
            before = len(graphs), len(runs)
            compiled(x)
            dtype = str(x.dtype).removeprefix("torch.")
            calls.append(Call(length, dtype, sign, len(graphs) - before[0], len(runs) - before[1]))
    return tuple(calls)


@contextlib.contextmanager
def _silence():
    """Drop what the function prints, and torch's warning that it gives up on a function."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def describe_graphs(program: Program) -> str:
    """The function, and what each call did."""
    calls = run(program)
    lines = [program.source, "", f"torch.compile(f, dynamic={program.dynamic})", ""]
    for number, call in enumerate(calls, start=1):
        done = {
            COMPILED: f"compiled {_graphs(call.compiled)}",
            REUSED: f"used {_graphs(call.ran)} again",
            EAGER: "ran without a graph",
        }[call.kind]
        lines.append(f"call {number:>2}  {_input(program, call):<32}  {done}")
    lines += ["", f"graphs in all: {sum(call.compiled for call in calls)}"]
    if any(call.kind == EAGER and call.length for call in calls):
        lines.append("Too many compilations of one function: Dynamo gave up and lets Python run it.")
    return "\n".join(lines)


def _graphs(count: int) -> str:
    return "1 graph" if count == 1 else f"{count} graphs"


def _input(program: Program, call: Call) -> str:
    side = ", sum above 0" if call.sign > 0 else ", sum below 0"
    return f"length {call.length}, {call.dtype}" + (side if program.branches else "")


# --- pictures ---------------------------------------------------------------------------------------------------------


def memory_picture(stack: Stack) -> Figure:
    """Memory over time, plain and checkpointed, and beside it the peak for every segment length."""
    figure = MatplotlibFigure(figsize=(7.5, 3.3), dpi=DOTS_PER_INCH)
    _draw_walk(figure.add_axes((0.085, 0.155, 0.5, 0.71)), stack, named=True)
    _draw_peaks(figure.add_axes((0.68, 0.155, 0.31, 0.71)), stack)
    return Figure(figure, _memory_alt(stack))


def _draw_walk(axis, stack: Stack, *, named: bool = False) -> None:
    unit = stack.boundary / 2**20
    for walk, look in (
        (plain_walk(stack), {"color": GRAY, "linewidth": 1.4, "linestyle": (0, (4, 2))}),
        (checkpointed_walk(stack), {"color": BLUE, "linewidth": 1.8}),
    ):
        times, held = zip(*walk, strict=True)
        axis.plot(times, [value * unit for value in held], **look)
    times, held = zip(*checkpointed_walk(stack), strict=True)
    axis.fill_between(times, [value * unit for value in held], color=SKY, alpha=0.35, linewidth=0)
    axis.axvline(stack.depth, color=BLACK, linewidth=0.8, linestyle=":")
    top = max(stack.depth * stack.interior, peak(stack)) * unit
    axis.set(xlim=(0, 4 * stack.depth * 1.02), ylim=(0, 1.16 * top))
    _frame(axis)
    if named:
        axis.text(stack.depth, 1.1 * top, " backward →", fontsize=9, va="center")
        axis.text(stack.depth, 1.1 * top, "forward ", fontsize=9, va="center", ha="right")
        axis.set_title("MiB held for backward: plain dashed", fontsize=9.5, loc="left", y=1.0)
        axis.set_xlabel("time, in forward passes of a block", fontsize=9)


def _draw_peaks(axis, stack: Stack) -> None:
    unit = stack.boundary / 2**20
    found = [value * unit for value in peaks(stack)]
    axis.plot(range(1, stack.depth + 1), found, color=BLUE, linewidth=1.2, marker="o", markersize=3)
    axis.plot([stack.segment], [peak(stack) * unit], color=VERMILION, marker="D", markersize=8, linestyle="")
    best = best_segments(stack)
    axis.plot(best, [min(found)] * len(best), color=GREEN, marker="v", markersize=7, linestyle="")
    axis.set(xlim=(0, stack.depth + 1), ylim=(0, 1.16 * max(found)))
    axis.set_title("peak; yours ◆, lowest ▼", fontsize=9.5, loc="left", y=1.0)
    axis.set_xlabel("blocks in a segment", fontsize=9)
    _frame(axis)


def _frame(axis) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.tick_params(labelsize=9)
    axis.grid(axis="y", color=PALE, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def _memory_alt(stack: Stack) -> str:
    plain = stack.depth * stack.interior * stack.boundary
    return (
        f"Memory held for the backward pass over time, for {stack.depth} blocks in segments of {stack.segment}, each "
        f"block saving {stack.interior} times its input, batch {stack.batch}. Plain it rises to {size(plain)} and "
        f"falls. With checkpoints it is {size(after_forward(stack) * stack.boundary)} after the forward pass and peaks "
        f"at {size(peak(stack) * stack.boundary)}, one tooth per segment, and the step takes "
        f"{relative_time(stack):.2f} times as long. Beside it the peak for each segment length: lowest, "
        f"{size(min(peaks(stack)) * stack.boundary)}, for {_or(best_segments(stack))}."
    )


LOOKS = {COMPILED: (VERMILION, "///"), REUSED: (GREEN, ""), EAGER: (ORANGE, "...")}


def graphs_picture(program: Program) -> Figure:
    """A bar per call: the graphs that it compiled; and below it what it did and how many there are so far."""
    calls = run(program)
    figure = MatplotlibFigure(figsize=(7.5, 3.0), dpi=DOTS_PER_INCH)
    axis = figure.add_axes((0.06, 0.3, 0.93, 0.57))
    total, ticks = 0, []
    for place, call in enumerate(calls):
        total += call.compiled
        color, hatch = LOOKS[call.kind]
        axis.bar(place, max(call.compiled, 0.12), 0.7, facecolor=color, hatch=hatch, edgecolor="white", linewidth=0.8)
        told = f"+{call.compiled}" if call.compiled else call.kind
        axis.text(place, max(call.compiled, 0.12) + 0.06, told, ha="center", va="bottom", fontsize=9)
        side = ("\n> 0" if call.sign > 0 else "\n< 0") if program.branches else ""
        ticks.append(f"{call.length}{'' if call.dtype == 'float32' else ' f64'}{side}\n= {total}")
    axis.set_xticks(range(len(calls)), ticks, fontsize=9)
    highest = max((call.compiled for call in calls), default=1)
    axis.set(xlim=(-0.6, max(len(calls), 4) - 0.4), ylim=(0, max(highest, 1) * 1.3 + 0.1))
    axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"graphs compiled by each call, dynamic={program.dynamic}", fontsize=9.5, loc="left", y=1.0)
    inputs = "length and sum of the input" if program.branches else "length of the input"
    axis.set_xlabel(f"{inputs}, and graphs so far", fontsize=9)
    return Figure(figure, _graphs_alt(program, calls))


def _graphs_alt(program: Program, calls: tuple[Call, ...]) -> str:
    told = "; ".join(
        f"{_input(program, call)}: {f'compiled {_graphs(call.compiled)}' if call.compiled else call.kind}"
        for call in calls
    )
    parts = [word for word, there in (("a print", program.prints), ("a branch", program.branches)) if there]
    made_of = " and ".join(parts) or "neither print nor branch"
    return (
        f"A bar for each of {len(calls)} calls of a compiled function with {made_of}, "
        f"dynamic={program.dynamic}. {told}. Graphs in all: {sum(call.compiled for call in calls)}."
    )


SCENARIOS = {
    "one length, four times": Program((4, 4, 4, 4)),
    "four lengths": Program(),
    "four lengths, dynamic=False": Program(dynamic=False),
    "four lengths, dynamic=True": Program(dynamic=True),
}


def still() -> Figure:
    """Memory over time for four segment lengths, and the graphs of four ways to call a function."""
    figure, axes = new_figure(7.5, 4.6, 3, 2)
    told = []
    for axis, segment in zip(axes, (1, 2, 4, 16), strict=False):
        stack = Stack(segment=segment)
        _draw_walk(axis, stack)
        axis.set_ylim(0, 1.16 * stack.depth * stack.boundary / 2**20)
        axis.set_title(
            f"segments of {segment}: peak {size(peak(stack) * stack.boundary)}", fontsize=9.5, loc="left", y=1.0
        )
        if segment in (1, 4):  # the left column
            axis.set_ylabel("MiB", fontsize=9)
        if segment in (4, 16):  # the lower row
            axis.set_xlabel("time, in forward passes of a block", fontsize=9)
        told.append(f"Segments of {segment}: peak {size(peak(stack) * stack.boundary)}.")
    grid = axes[0].get_gridspec()
    for axis in axes[4:]:
        axis.remove()
    table = bare(figure.add_subplot(grid[2, :]))
    table.set(xlim=(0, 1), ylim=(-0.1, 1.1))
    table.text(0.0, 0.95, "how a function is called", fontsize=9.5, weight="bold", va="center")
    table.text(0.6, 0.95, "graphs", fontsize=9.5, weight="bold", va="center")
    for row, (name, program) in enumerate(SCENARIOS.items()):
        count = sum(call.compiled for call in run(program))
        table.text(0.0, 0.72 - 0.22 * row, name, fontsize=9.5, va="center")
        table.text(0.6, 0.72 - 0.22 * row, str(count), fontsize=9.5, va="center")
        told.append(f"{name}: {_graphs(count)}.")
    head = (
        f"Memory held for backward in MiB over time for {Stack().depth} blocks, plain dashed, checkpointed filled; and "
        "a table of graphs. "
    )
    return Figure(figure, head + " ".join(told))


# --- the explorer -----------------------------------------------------------------------------------------------------

MEMORY, GRAPHS = "memory of checkpoints", "graphs of compile"
OF_MEMORY = ("depth", "segment", "interior", "batch")
OF_GRAPHS = ("lengths", "dynamic", "prints", "branches", "other_dtype")


def render(view: str, **controls) -> tuple[Figure, str]:
    """Picture and words for the values of the controls."""
    if view == MEMORY:
        values = {name: controls[name] for name in OF_MEMORY}
        values["segment"] = min(values["segment"], values["depth"])
        stack = Stack(**values)
        return memory_picture(stack), describe_memory(stack)
    values = {name: controls[name] for name in OF_GRAPHS}
    lengths = read_lengths(values.pop("lengths"))
    note = (
        "" if lengths else "No lengths were given; write whole numbers such as 4, 6, 8. These are the first ones.\n\n"
    )
    program = Program(lengths or Program().lengths, DYNAMIC[values.pop("dynamic")], **values)
    return graphs_picture(program), note + describe_graphs(program)


def recompute_and_recompile() -> Explorer:
    """Choose segments and watch the peak; choose inputs and watch what torch.compile compiles again."""
    first, program = Stack(), Program()
    wide = {"style": {"description_width": "110px"}}
    slow = {"continuous_update": False, **wide}
    controls: dict[str, widgets.Widget] = {
        "view": widgets.ToggleButtons(options=[MEMORY, GRAPHS], description="view", style={"button_width": "180px"}),
        "depth": widgets.IntSlider(min=4, max=64, value=first.depth, description="blocks", **slow),
        "segment": widgets.IntSlider(min=1, max=64, value=first.segment, description="in a segment", **slow),
        "interior": widgets.SelectionSlider(options=[1, 2, 4, 8, 16], description="saved ÷ input", **slow),
        "batch": widgets.SelectionSlider(options=[1, 8, 32, 128, 512], value=first.batch, description="batch", **slow),
        "lengths": widgets.Text(
            ", ".join(map(str, program.lengths)), description="lengths", continuous_update=False, **wide
        ),
        "dynamic": widgets.Dropdown(options=list(DYNAMIC), description="dynamic", **wide),
        "prints": widgets.Checkbox(False, description="f prints", indent=False),
        "branches": widgets.Checkbox(False, description="f branches on a sum", indent=False),
        "other_dtype": widgets.Checkbox(False, description="last call in float64", indent=False),
    }

    def in_use(view: str, **_: object) -> tuple[str, ...]:
        return ("view", *(OF_MEMORY if view == MEMORY else OF_GRAPHS))

    return Explorer("Recompute and recompile", controls, render, still(), in_use=in_use)
