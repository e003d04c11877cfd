"""The explorer of week 02: run a small expression, call backward, and see what flows where.

`take_walk(expression, value, detach, retain, presses)` really runs torch and returns a `Walk` of
plain numbers; `panel`, `picture` and `words` show it. `graph_walker` adds the controls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakSet

import ipywidgets as widgets
import torch
from torch import Tensor

from course_utils.explorers.explorer import Explorer
from course_utils.plots.autograd import SCISSORS, Box, Link, Panel, graph_figure, number, walk
from course_utils.plots.figure import Figure

Leaves = Mapping[str, Tensor]
Number = float | tuple[float, ...]
SHOWN_PRESSES = 6


class Cutter:
    """Called on the intermediate that "detach here" means: hands it on, detached or as it is."""

    def __init__(self, detach: bool) -> None:
        self.detach = detach
        self.tensor: Tensor | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        self.tensor = tensor
        return tensor.detach() if self.detach else tensor


@dataclass(frozen=True)
class Expression:
    """An expression to walk. `run` returns every intermediate by name, the result last.

    constants: name of an intermediate → the plain number that enters there.
    """

    leaf: str
    run: Callable[[Leaves, Cutter], dict[str, Tensor]]
    constants: Mapping[str, str]
    weights: Mapping[str, tuple[float, ...]]


def _polynomial(leaves: Leaves, cut: Cutter) -> dict[str, Tensor]:
    x = leaves["x"]
    square = x**2
    triple = 3 * x
    both = cut(square) + triple
    return {"x²": square, "3x": triple, "x² + 3x": both, "y": both + 1}


def _logarithm(leaves: Leaves, cut: Cutter) -> dict[str, Tensor]:
    double = 2 * leaves["a"]
    inner = double + 1
    return {"2a": double, "2a + 1": inner, "y": torch.log(cut(inner))}


def _network(leaves: Leaves, cut: Cutter) -> dict[str, Tensor]:
    scaled = leaves["w"] * leaves["x"]
    moved = scaled + leaves["b"]
    hidden = torch.relu(moved)
    parts = leaves["v"] * cut(hidden)
    return {"w·x": scaled, "w·x + b": moved, "h": hidden, "v·h": parts, "y": parts.sum()}


def _branch(leaves: Leaves, cut: Cutter) -> dict[str, Tensor]:
    x = leaves["x"]
    if x > 0:
        name, h = "h = x·x", x * x
    else:
        name, h = "h = −x", -x
    return {name: h, "y": cut(h) - x}


EXPRESSIONS = {
    "x² + 3x + 1": Expression("x", _polynomial, {"3x": "3", "y": "1"}, {}),
    "log(2a + 1)": Expression("a", _logarithm, {"2a": "2", "2a + 1": "1"}, {}),
    "Σ v·relu(w·x + b)": Expression("x", _network, {}, {"w": (1.0, -1.0), "b": (0.5, 0.5), "v": (2.0, 3.0)}),
    "(x·x if x > 0 else −x) − x": Expression("x", _branch, {}, {}),
}


# ---- running ------------------------------------------------------------------------


class _Kept:
    """One saved tensor; it lives as long as the graph holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


@dataclass(frozen=True)
class Trace:
    """A forward pass: leaves, intermediates by name, the tensor at the cut, the saved tensors."""

    leaves: Leaves
    steps: Mapping[str, Tensor]
    at_cut: Tensor
    kept: WeakSet

    @property
    def result(self) -> Tensor:
        return self.steps["y"]

    def held(self) -> tuple[int, int]:
        """How many tensors the graph still saves, and their bytes, each memory counted once.

        A plain number in an expression, such as the 3 of 3x, does not pass through the hooks.
        """
        tensors = [kept.tensor for kept in self.kept]
        memory = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}
        return len(tensors), sum(memory.values())

    def grads(self) -> dict[str, Number | None]:
        return {name: plain(leaf.grad) for name, leaf in self.leaves.items()}


def trace(expression: Expression, value: float, detach: bool) -> Trace:
    """Run the expression once and watch what its operations save."""
    leaves = {expression.leaf: torch.tensor(float(value), requires_grad=True)}
    for name, numbers in expression.weights.items():
        leaves[name] = torch.tensor(numbers, requires_grad=True)
    kept: WeakSet = WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        holder = _Kept(tensor)
        kept.add(holder)
        return holder

    cutter = Cutter(detach)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        steps = expression.run(leaves, cutter)
    return Trace(leaves, steps, cutter.tensor, kept)


def plain(tensor: Tensor | None) -> Number | None:
    """A tensor's number, or its numbers as a tuple."""
    if tensor is None:
        return None
    return tensor.item() if tensor.dim() == 0 else tuple(tensor.tolist())


@dataclass(frozen=True)
class Press:
    """What is true after a press: gradients of the leaves, what is held, what was raised."""

    grads: Mapping[str, Number | None]
    tensors: int
    bytes: int
    error: str | None = None


@dataclass(frozen=True)
class Node:
    """kind: "operation", "leaf", "constant" or "off" (the operation was not recorded)."""

    kind: str
    name: str
    label: str
    value: Number | None


@dataclass(frozen=True)
class Edge:
    """A value on its way between two nodes, and the gradient that came back in the last pass."""

    source: int
    target: int
    cut_point: bool
    gradient: Number | None


@dataclass(frozen=True)
class Walk:
    """All an explorer shows of one state. presses[0] is the moment before the first press."""

    expression: str
    leaf: str
    value: float
    detach: bool
    retain: bool
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    presses: tuple[Press, ...]

    @property
    def passes(self) -> int:
        """How many presses ran without an error."""
        return sum(press.error is None for press in self.presses[1:])


def _press(run: Trace, retain: bool) -> tuple[Press, dict[str, tuple]]:
    """Call backward once; also return what each node sent to its inputs, by the node's label."""
    sent: dict[str, tuple] = {}
    hooks = [
        step.grad_fn.register_hook(lambda grads, _, label=label: sent.update({label: grads}))
        for label, step in run.steps.items()
        if step.grad_fn is not None
    ]
    error = None
    try:
        run.result.backward(retain_graph=retain)
    except RuntimeError as problem:
        error = str(problem).partition(" (")[0].partition("\n")[0]
    for hook in hooks:
        hook.remove()
    return Press(run.grads(), *run.held(), error), sent


def take_walk(expression: str, value: float, detach: bool = False, retain: bool = False, presses: int = 0) -> Walk:
    """Build the graph, call backward `presses` times, and note everything there is to see."""
    chosen = EXPRESSIONS[expression]
    whole = trace(chosen, value, detach=False)  # the graph without a cut gives the picture its shape
    run = trace(chosen, value, detach=True) if detach else whole
    history, sent = [Press(run.grads(), *run.held())], {}
    for _ in range(presses):
        press, gradients = _press(run, retain)
        history.append(press)
        if press.error is None:
            sent = gradients
    nodes, edges = _graph(chosen, whole, run, sent)
    return Walk(expression, chosen.leaf, float(value), detach, retain, nodes, edges, tuple(history))


def _graph(
    expression: Expression, whole: Trace, run: Trace, sent: Mapping[str, tuple]
) -> tuple[tuple[Node, ...], tuple[Edge, ...]]:
    """The nodes and edges of the whole graph, with what became of them in `run`."""
    recorded = walk(whole.result)
    label = {step.grad_fn: name for name, step in whole.steps.items()}
    consumer = {source: recorded.nodes[target] for source, target, _ in recorded.edges}
    nodes = []
    for i, node in enumerate(recorded.nodes):
        if node is None:
            nodes.append(Node("constant", "constant", expression.constants[label[consumer[i]]], None))
        elif hasattr(node, "variable"):
            name = next(own for own, leaf in whole.leaves.items() if leaf is node.variable)
            nodes.append(Node("leaf", "AccumulateGrad", name, plain(node.variable)))
        else:
            step = run.steps[label[node]]
            kind = "off" if step.grad_fn is None else "operation"
            nodes.append(Node(kind, type(node).__name__, label[node], plain(step)))
    edges = []
    for source, target, slot in recorded.edges:
        gradients = sent.get(label[recorded.nodes[target]])
        cut_point = recorded.nodes[source] is whole.at_cut.grad_fn
        edges.append(Edge(source, target, cut_point, plain(gradients[slot]) if gradients else None))
    return tuple(nodes), tuple(edges)


# ---- showing ------------------------------------------------------------------------


def text(value: Number | None) -> str:
    """A number or a list of numbers in few characters."""
    if isinstance(value, tuple):
        return "[" + ", ".join(number(one, 3) for one in value) + "]"
    return "None" if value is None else number(value, 3)


def _box(node: Node, grads: Mapping[str, Number | None]) -> Box:
    if node.kind == "constant":
        return Box((node.label, "constant"), "constant")
    if node.kind == "leaf":
        return Box((f"{node.label} = {text(node.value)}", f"grad {text(grads[node.label])}"), "leaf")
    name = node.name if node.kind == "operation" else "not recorded"
    return Box((name, f"{node.label} = {text(node.value)}"), node.kind)


def _link(edge: Edge, detach: bool) -> Link:
    if edge.cut_point and detach:
        return Link(edge.source, edge.target, "cut", "detached")
    if edge.gradient is not None:
        return Link(edge.source, edge.target, "both", text(edge.gradient))
    return Link(edge.source, edge.target, "forward", SCISSORS if edge.cut_point else "")


def _moment(state: Walk) -> str:
    """Where in the sequence of presses we are."""
    count = len(state.presses) - 1
    if count == 0:
        return "before backward"
    if state.presses[-1].error:
        return f"call {count} of backward raised RuntimeError"
    return "after 1 call of backward" if count == 1 else f"after {count} calls of backward"


def _cut_label(state: Walk) -> str:
    """The intermediate whose edge "detach here" cuts."""
    return next(state.nodes[edge.source].label for edge in state.edges if edge.cut_point)


def panel(state: Walk) -> Panel:
    """The graph of a walk, ready to draw."""
    detached = f", {_cut_label(state)} detached" if state.detach else ""
    title = f"{state.expression} at {state.leaf} = {text(state.value)}{detached}, {_moment(state)}"
    boxes = tuple(_box(node, state.presses[-1].grads) for node in state.nodes)
    return Panel(boxes, tuple(_link(edge, state.detach) for edge in state.edges), title)


def _legend(state: Walk) -> str:
    if state.passes:
        return "A number on an arrow is the gradient that flowed there in the last pass."
    if not state.detach:
        return f"{SCISSORS} is where “detach here” would cut."
    return "Behind the gray edge nothing receives a gradient."


def describe(state: Walk) -> str:
    """The picture in words: forward values, gradients, and where the cut is."""
    values = ", ".join(f"{node.label} = {text(node.value)}" for node in state.nodes if node.kind != "constant")
    flows = [
        f"{text(edge.gradient)} from {state.nodes[edge.target].label} to {state.nodes[edge.source].label}"
        for edge in state.edges
        if edge.gradient is not None
    ]
    grads = ", ".join(f"{name}.grad {text(grad)}" for name, grad in state.presses[-1].grads.items())
    parts = [f"Graph of {state.expression}, {_moment(state)}: {values}."]
    if flows:
        parts.append(f"Gradients on the edges in the last pass: {'; '.join(flows)}.")
    if state.detach:
        parts.append(f"The edge that leaves {_cut_label(state)} is gray and dashed, marked detached.")
    return " ".join([*parts, f"{grads}."])


def picture(state: Walk) -> Figure:
    """The graph of a walk with its alt text."""
    return Figure(graph_figure([panel(state)], footer=[_legend(state)]), describe(state))


def _held(press: Press) -> str:
    tensors = "1 saved tensor" if press.tensors == 1 else f"{press.tensors} saved tensors"
    return f"{press.bytes} bytes, {tensors}"


def _table(state: Walk) -> list[str]:
    """A line per press: the gradients and the bytes held, or what was raised."""
    names = list(state.presses[0].grads)
    cells = [[text(press.grads[name]) for name in names] for press in state.presses]
    heads = [f"{name}.grad" for name in names]
    widths = [max(map(len, column)) + 3 for column in zip(heads, *cells, strict=True)]

    def line(first: str, row: list[str], last: str) -> str:
        padded = "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return f"{first:<10}{padded}{last}"

    rows = [line("", heads, "held by the graph, shared memory counted once")]
    for i, (press, row) in enumerate(zip(state.presses, cells, strict=True)):
        rows.append(line(f"press {i}" if i else "start", row, _held(press)))
        if press.error:
            rows.append(f"{'':<10}RuntimeError: {press.error}")
    hidden = len(rows) - 2 - SHOWN_PRESSES * 2
    return rows if hidden <= 0 else [*rows[:2], "…", *rows[2 + hidden :]]


def _notes(state: Walk) -> list[str]:
    """What is worth a second look in this state."""
    notes = []
    last, first = state.presses[-1], state.presses[0]
    if last.error and "second time" in last.error:
        notes.append("An earlier pass freed what was saved, numbers like 3 included. retain_graph keeps it.")
    elif last.error:
        notes.append("Detached, the result depends on no tensor that requires grad: y has no grad_fn.")
    elif state.passes > 1 and not state.retain and first.tensors == 0:
        notes.append("No operation here saved anything, so a second pass misses nothing.")
    elif state.passes > 1:
        notes.append("Each pass adds its gradient to .grad.")
    if state.detach and last.tensors and state.passes and not state.retain:
        notes.append("What is still held lies behind the cut: backward never went there to free it.")
    if state.expression.startswith("log") and state.value <= -0.5:
        runs = "; backward runs all the same." if state.passes else "."
        notes.append(f"2a + 1 is not positive, so log is −inf or nan here{runs}")
    return notes


def words(state: Walk) -> str:
    """`.grad` and saved bytes after each press, with notes."""
    head = (
        f"y = {state.expression} at {state.leaf} = {text(state.value)}   "
        f"retain_graph={state.retain}   detach here: {'yes' if state.detach else 'no'}"
    )
    return "\n".join([head, "", *_table(state), "", *_notes(state)]).rstrip()


def render(expression: str, value: float, detach: bool, retain_graph: bool, backward: int) -> tuple[Figure, str]:
    """Picture and words for the state of the controls; `backward` is the number of presses."""
    state = take_walk(expression, value, detach, retain_graph, backward)
    return picture(state), words(state)


# ---- the explorer -------------------------------------------------------------------


def _calls(state: Walk) -> str:
    """x.grad after each call, up to the first error."""
    found = []
    for press in state.presses[1:]:
        if press.error:
            found.append(f"then RuntimeError: {press.error}")
            break
        found.append(text(press.grads[state.leaf]))
    return ", ".join(found)


def still() -> Figure:
    """Three graphs: before, after one backward, with a detach; `.grad` after 1, 2, 3 calls."""
    name = "x² + 3x + 1"
    states = [
        take_walk(name, 2, presses=0),
        take_walk(name, 2, presses=1),
        take_walk(name, 2, True, presses=1),
    ]
    table = [
        "x.grad after 1, 2, 3 calls of backward:",
        f"retain_graph=True: {_calls(take_walk(name, 2, False, True, 3))}",
        f"retain_graph=False: {_calls(take_walk(name, 2, False, False, 3))}",
        f"x² detached, retain_graph=True: {_calls(take_walk(name, 2, True, True, 3))}",
    ]
    alt = f"Three still graphs. {' '.join(map(describe, states))} {table[0]} {'; '.join(table[1:])}."
    return Figure(graph_figure([panel(state) for state in states], footer=table), alt)


def graph_walker() -> Explorer:
    """Choose an expression and an input, press backward, watch values, gradients, saved bytes."""
    names = list(EXPRESSIONS)
    controls = {
        "expression": widgets.Dropdown(options=names, value=names[0], description="expression"),
        "value": widgets.FloatSlider(value=2.0, min=-3.0, max=3.0, step=0.5, description="input"),
        "detach": widgets.Checkbox(value=False, description="detach here", indent=False),
        "retain_graph": widgets.Checkbox(value=False, description="retain_graph", indent=False),
        "backward": widgets.Button(description="backward"),
    }
    return Explorer("Graph walker", controls, render, still(), restart=True)
