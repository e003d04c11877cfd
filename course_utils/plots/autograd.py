"""Figures of week 02: what autograd records, which way gradients flow, and where they stop.

`Panel` is a graph as data: boxes, and links that run from a leaf's side to the result's side.
`graph_figure` lays panels out in layers and draws them; `autograd_graph` fills a panel from a
tensor's `grad_fn`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patches import FancyBboxPatch, Rectangle

from course_utils.plots.figure import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    HATCHES,
    PALE,
    PALETTE,
    VERMILION,
    Figure,
    bare,
    new_figure,
)

# Lengths are inches: the axis of a drawing has one unit per inch, y growing downward.
PAGE = 7.5
CHARACTER, LINE = 0.079, 0.175  # room one character and one line take at 9 points
LANE = 0.045  # forward and backward arrows of one link run this far from its middle
PORT = 0.21  # distance of two links that meet the same side of a box
MOST_NODES = 40
SCISSORS = "✂"
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A box of a graph.

    kind: "operation", "leaf", "constant" (no gradient goes there) or "off" (not recorded).
    """

    lines: tuple[str, ...]
    kind: str = "operation"

    def wrapped(self) -> list[str]:
        """The lines as drawn: the long name of a node breaks before "Backward"."""
        drawn = []
        for line in self.lines:
            stem, tail, digits = line.rpartition("Backward")
            drawn += [stem, tail + digits] if tail and len(line) > 18 else [line]
        return drawn


@dataclass(frozen=True)
class Link:
    """A value that went from box `source` to box `target`.

    kind: "forward" (a value, no gradient), "both" (a gradient comes back) or "cut" (a gradient is
    kept from coming back); label stands on the link.
    """

    source: int
    target: int
    kind: str = "both"
    label: str = ""


@dataclass(frozen=True)
class Panel:
    """A graph to draw: boxes, links between their indices (box 0 is the result), and a title."""

    boxes: tuple[Box, ...]
    links: tuple[Link, ...]
    title: str = ""


# ---- layout --------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where a panel's boxes and links lie, in inches from the top left."""

    centers: tuple[Point, ...]
    routes: tuple[tuple[Point, ...], ...]  # as (along the flow, across the flow)
    box: Point  # width and height
    size: Point
    sideways: bool

    def turn(self, along: float, across: float) -> Point:
        """The point on the page: the flow runs to the right, or down where it would be too wide."""
        return (along, across) if self.sideways else (across, along)


def layers_from_result(count: int, links: Sequence[Link]) -> list[int]:
    """For each box the length of the longest way to the result."""
    layer = [0] * count
    for _ in range(count):
        for link in links:
            layer[link.source] = max(layer[link.source], layer[link.target] + 1)
    return layer


def _chains(layer: list[int], links: Sequence[Link]) -> list[list[int]]:
    """Each link as a list of stops, one per layer; those between its ends are added to `layer`."""
    chains = []
    for link in links:
        between = range(layer[link.source] - 1, layer[link.target], -1)
        first = len(layer)
        layer.extend(between)
        chains.append([link.source, *range(first, first + len(between)), link.target])
    return chains


def _neighbours(count: int, chains: list[list[int]]) -> list[list[int]]:
    """For each stop those it is joined to."""
    joined: list[list[int]] = [[] for _ in range(count)]
    for chain in chains:
        for source, target in pairwise(chain):
            joined[source].append(target)
            joined[target].append(source)
    return joined


def _rows(layer: list[int], joined: list[list[int]]) -> list[list[int]]:
    """The stops of each layer in an order in which few links cross: near their neighbours' mean."""
    rows: list[list[int]] = [[] for _ in range(max(layer) + 1)]
    for stop, depth in enumerate(layer):
        rows[depth].append(stop)
    down, up = list(range(1, len(rows))), list(range(len(rows) - 2, -1, -1))
    rank = {stop: float(place) for row in rows for place, stop in enumerate(row)}
    for depths, step in ((down, -1), (up, 1), (down, -1)):
        for depth in depths:
            means = {}
            for stop in rows[depth]:
                near = [rank[other] for other in joined[stop] if layer[other] == depth + step]
                means[stop] = sum(near) / len(near) if near else rank[stop]
            rows[depth].sort(key=means.__getitem__)
            rank.update({stop: float(place) for place, stop in enumerate(rows[depth])})
    return rows


def _spread(wanted: list[float], gaps: list[float], weights: list[float]) -> list[float]:
    """The positions nearest to the wanted ones, by weighted squares, at least `gaps` apart."""
    starts = [0.0, *accumulate(gaps)]
    blocks: list[tuple[float, float, int]] = []  # (mean, weight, members): pool adjacent violators
    for want, start, weight in zip(wanted, starts, weights, strict=True):
        blocks.append((want - start, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (high, heavy, many), (low, light, few) = blocks[-2:]
            mean = (high * heavy + low * light) / (heavy + light)
            blocks[-2:] = [(mean, heavy + light, many + few)]
    flat = [mean for mean, _, members in blocks for _ in range(members)]
    return [position + start for position, start in zip(flat, starts, strict=True)]


def _weights(panel: Panel, joined: list[list[int]]) -> list[float]:
    """How firmly each stop stands: constants and leaves make room, so that chains are straight."""
    weights = [1.0] * len(joined)
    for stop, box in enumerate(panel.boxes):
        if box.kind == "constant":
            weights[stop] = 0.01
        elif box.kind == "leaf" and len(joined[stop]) == 1:
            weights[stop] = 0.05
    return weights


def _across(
    rows: list[list[int]],
    joined: list[list[int]],
    weights: list[float],
    size: list[float],
    space: float,
) -> list[float]:
    """The position of every stop across the flow, drawn toward its neighbours."""
    place = [0.0] * len(size)
    for _ in range(30):
        for row in rows:
            gaps = [(size[a] + size[b]) / 2 + space for a, b in pairwise(row)]
            wanted = []
            for stop in row:
                pull = sum(weights[other] for other in joined[stop]) or 1.0
                pulled = sum(weights[other] * place[other] for other in joined[stop])
                wanted.append(pulled / pull)
            spread = _spread(wanted, gaps, [weights[stop] for stop in row])
            for stop, position in zip(row, spread, strict=True):
                place[stop] = position
    start = min(position - size[stop] / 2 for stop, position in enumerate(place))
    return [position - start for position in place]


def _side(wanted: list[float], weights: list[float], room: float, step: float) -> list[float]:
    """Where links meet one side of a box: toward their other ends, apart from each other."""
    last = len(wanted) - 1
    step = min(step, (room - PORT) / max(last, 1))
    limit = max(min(room / 2 - PORT / 2, 0.35), step * last / 2)
    places = _spread([min(max(want, -limit), limit) for want in wanted], [step] * last, weights)
    return [min(max(place, i * step - limit), limit - (last - i) * step) for i, place in enumerate(places)]


def _ports(
    chains: list[list[int]], across: list[float], weights: list[float], room: float, step: float
) -> list[list[float]]:
    """How far from the middle of its two boxes each link leaves and arrives."""
    offsets = [[0.0, 0.0] for _ in chains]
    for end, neighbour in ((0, 1), (-1, -2)):
        for stop in {chain[end] for chain in chains}:
            here = [i for i, chain in enumerate(chains) if chain[end] == stop]
            here.sort(key=lambda i: across[chains[i][neighbour]])
            others = [chains[i][neighbour] for i in here]
            wanted = [across[other] - across[stop] for other in others]
            places = _side(wanted, [weights[other] for other in others], room, step)
            for i, place in zip(here, places, strict=True):
                offsets[i][end] = place
    return offsets


def _box_size(panel: Panel) -> Point:
    """One size for all boxes of the panel: the longest line fits."""
    lines = [box.wrapped() for box in panel.boxes]
    longest = max(len(line) for own in lines for line in own)
    return max(0.6, longest * CHARACTER + 0.16), max(map(len, lines)) * LINE + 0.14


def _busiest(panel: Panel) -> int:
    """The largest number of links that meet one side of a box."""
    ends = [("out", link.source) for link in panel.links]
    ends += [("in", link.target) for link in panel.links]
    return max(map(ends.count, ends), default=1)


def _frame(panel: Panel, depth: int, width: float) -> tuple[Point, bool, float]:
    """The size of boxes, whether the flow runs to the right (it does if that fits), and its gap."""
    box_width, box_height = _box_size(panel)
    label = max((len(link.label) for link in panel.links), default=0) * CHARACTER
    free = (width - (depth + 1) * box_width) / max(depth, 1)
    if free < max(0.36, label + 0.3):
        return (box_width, box_height), False, 0.46
    return (box_width, max(box_height, _busiest(panel) * PORT + 0.04)), True, min(0.95, free)


def _route(
    chain: list[int], ports: list[float], along: list[float], across: list[float], half: float
) -> tuple[Point, ...]:
    """The points of a link; it runs straight past the boxes of a layer in between."""
    points = [(along[chain[0]] + half, across[chain[0]] + ports[0])]
    for stop in chain[1:-1]:
        points += [(along[stop] - half, across[stop]), (along[stop] + half, across[stop])]
    return (*points, (along[chain[-1]] - half, across[chain[-1]] + ports[-1]))


def lay_out(panel: Panel, width: float = PAGE) -> Layout:
    """Place the boxes in layers from leaves to result, to the right where `width` allows."""
    layer = layers_from_result(len(panel.boxes), panel.links)
    depth = max(layer)
    box, sideways, gap = _frame(panel, depth, width)
    length, room = box if sideways else box[::-1]
    step, space = (PORT, 0.2) if sideways else (2 * PORT, 0.3)

    chains = _chains(layer, panel.links)
    joined = _neighbours(len(layer), chains)
    weights = _weights(panel, joined)
    size = [room if stop < len(panel.boxes) else PORT for stop in range(len(layer))]
    across = _across(_rows(layer, joined), joined, weights, size, space)
    along = [(depth - own) * (length + gap) + length / 2 for own in layer]
    ports = _ports(chains, across, weights, room, step)

    extent = max(position + own / 2 for position, own in zip(across, size, strict=True))
    total = ((depth + 1) * length + depth * gap, extent)
    centers = list(zip(along, across, strict=True))[: len(panel.boxes)]
    return Layout(
        centers=tuple(center if sideways else center[::-1] for center in centers),
        routes=tuple(_route(chain, own, along, across, length / 2) for chain, own in zip(chains, ports, strict=True)),
        box=box,
        size=total if sideways else total[::-1],
        sideways=sideways,
    )


# ---- drawing -------------------------------------------------------------------------

_LOOK = {  # face, edge, line width, line style of a box
    "operation": ("white", BLACK, 1.0, "-"),
    "leaf": ("#DCEBF5", BLACK, 1.8, "-"),
    "constant": ("white", GRAY, 1.0, ":"),
    "off": (PALE, GRAY, 1.0, "--"),
}
_STROKES = {  # color, line style, end that carries the arrow head
    "forward": (BLUE, "-", 1),
    "backward": (VERMILION, (0, (4, 2)), 0),
    "cut": (GRAY, (0, (4, 2)), 1),
}


def canvas(width: float, height: float):
    """A figure of that size and an axis over all of it: one unit per inch, y downward."""
    figure, axis = new_figure(width, height)
    figure.set_layout_engine("none")
    bare(axis).set_position((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    return figure, axis


def write(axis, x: float, y: float, text: str, **style: object):
    """Text centered at a point, 9 points unless told otherwise."""
    return axis.text(x, y, text, **{"fontsize": 9, "ha": "center", "va": "center", "color": BLACK, **style})


def draw_box(axis, x: float, y: float, size: Point, box: Box) -> None:
    """A box around (x, y) with its lines; the first line is bold in a leaf."""
    face, edge, line_width, style = _LOOK[box.kind]
    width, height = size
    rounding = "round,pad=0,rounding_size=0.07"
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, boxstyle=rounding,
            facecolor=face, edgecolor=edge, linewidth=line_width, linestyle=style, zorder=3,
        )
    )  # fmt: skip
    lines = box.wrapped()
    for i, line in enumerate(lines):
        weight = "bold" if box.kind == "leaf" and i == 0 else "normal"
        write(axis, x, y + (i - (len(lines) - 1) / 2) * LINE, line, weight=weight, zorder=4)


_T = np.linspace(0, 1, 13)[:, None]
_BEZIER = np.hstack([(1 - _T) ** 3, 3 * _T * (1 - _T) ** 2, 3 * _T**2 * (1 - _T), _T**3])


def _curve(points: Sequence[Point], shift: float) -> np.ndarray:
    """A smooth line through the points, along the flow at each of them, moved aside by `shift`."""
    pieces = []
    for i, ((a0, b0), (a1, b1)) in enumerate(pairwise(points)):
        if i % 2 == 0:  # between two layers; the odd pieces run straight past a box
            middle = (a0 + a1) / 2
            pieces.append(_BEZIER @ np.array([(a0, b0), (middle, b0), (middle, b1), (a1, b1)]))
    line = np.vstack(pieces)
    along, across = np.gradient(line, axis=0).T
    along[[0, -1]], across[[0, -1]] = 1.0, 0.0  # the ends meet their boxes squarely
    normal = np.stack([-across, along], axis=1) / np.hypot(along, across)[:, None]
    return line + shift * normal


def _head(points: Sequence[Point], shift: float, end: int) -> list[Point]:
    """The three corners of an arrow head at the last (end 1) or first (end 0) of the points."""
    (a, b), back = points[-end], -0.1 if end else 0.1
    return [(a, b + shift), (a + back, b + shift - 0.042), (a + back, b + shift + 0.042)]


def _draw_strokes(axis, layout: Layout, strokes: list[tuple[str, int, float]], move: Callable) -> None:
    """Draw (stroke name, route index, shift) triples: one artist per name for lines and heads."""
    for name, (color, style, end) in _STROKES.items():
        mine = [(layout.routes[i], shift) for stroke, i, shift in strokes if stroke == name]
        if not mine:
            continue
        lines = [[move(*layout.turn(*point)) for point in _curve(*stroke)] for stroke in mine]
        heads = [[move(*layout.turn(*corner)) for corner in _head(*stroke, end)] for stroke in mine]
        axis.add_collection(LineCollection(lines, colors=color, linestyles=[style], linewidths=1.4), autolim=False)
        axis.add_collection(PolyCollection(heads, facecolors=color, zorder=2), autolim=False)


def draw_links(axis, panel: Panel, layout: Layout, left: float, top: float) -> None:
    """Draw the panel's links, and what is written on them."""

    def move(x: float, y: float) -> Point:
        return left + x, top + y

    strokes = []
    for i, link in enumerate(panel.links):
        if link.kind == "both":
            strokes += [("forward", i, -LANE), ("backward", i, LANE)]
        else:
            strokes.append((link.kind, i, 0.0))
    _draw_strokes(axis, layout, strokes, move)
    for link, route in zip(panel.links, layout.routes, strict=True):
        if link.label:
            first, second = (len(route) // 2) - 1, len(route) // 2
            middle = tuple((p + q) / 2 for p, q in zip(route[first], route[second], strict=True))
            color = VERMILION if link.kind == "both" else GRAY
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            points = 13 if link.label == SCISSORS else 9
            aside = 1.5 * LANE if link.kind == "both" and layout.sideways else 0.0
            at = move(*layout.turn(middle[0], middle[1] + aside))
            write(axis, *at, link.label, color=color, bbox=ground, zorder=5, fontsize=points)


def _draw_key(axis, left: float, top: float) -> None:
    """Say what the two kinds of arrows carry."""
    words = (("forward", "values, forward"), ("backward", "gradients, backward"))
    for name, text in words:
        color, style, end = _STROKES[name]
        points = [(left, top), (left + 0.45, top)]
        axis.add_collection(
            LineCollection([points], colors=color, linestyles=[style], linewidths=1.4),
            autolim=False,
        )
        axis.add_collection(PolyCollection([_head(points, 0.0, end)], facecolors=color), autolim=False)
        write(axis, left + 0.53, top, text, ha="left", color=color)
        left += 0.53 + len(text) * CHARACTER + 0.2


def graph_figure(panels: Sequence[Panel], columns: int = 1, footer: Sequence[str] = ()):
    """A matplotlib figure of the panels in rows, a key above them, lines of text below."""
    margin, between = 0.12, 0.3
    width = (PAGE - 2 * margin - (columns - 1) * between) / columns
    layouts = [lay_out(panel, width) for panel in panels]
    title = 0.32 if any(panel.title for panel in panels) else 0.0
    rows = [range(i, min(i + columns, len(panels))) for i in range(0, len(panels), columns)]
    tall = [max(layouts[i].size[1] for i in row) + title + between for row in rows]
    widest = max(width, *(layout.size[0] for layout in layouts))
    total = columns * widest + (columns - 1) * between + 2 * margin
    figure, axis = canvas(total, 0.36 + sum(tall) + len(footer) * 0.22 + (0.1 if footer else -0.1))
    _draw_key(axis, margin, 0.2)
    top = 0.42
    for row, height in zip(rows, tall, strict=True):
        for column, i in enumerate(row):
            left = margin + column * (widest + between)
            _draw_panel(axis, panels[i], layouts[i], (left, top + title), widest)
        top += height
    for i, line in enumerate(footer):
        write(axis, margin, top + i * 0.22, line, ha="left")
    return figure


def _draw_panel(axis, panel: Panel, layout: Layout, corner: Point, width: float) -> None:
    """Draw one panel, centered in the given width, its title above."""
    left, top = corner
    if panel.title:
        write(axis, left, top - 0.2, panel.title, ha="left", weight="bold")
    left += (width - layout.size[0]) / 2
    draw_links(axis, panel, layout, left, top)
    for box, (x, y) in zip(panel.boxes, layout.centers, strict=True):
        draw_box(axis, left + x, top + y, layout.box, box)


# ---- a tensor's graph ----------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """The graph behind a tensor.

    nodes: the result's first, None for a constant. edges: (source, target, slot of the target).
    """

    nodes: tuple[object, ...]
    edges: tuple[tuple[int, int, int], ...]


def walk(tensor: torch.Tensor) -> Recorded:
    """Follow `grad_fn` and `next_functions` from a tensor to its leaves.

    A node reached twice is listed once, with two edges; each None is a constant of its own.
    Raises ValueError where nothing was recorded.
    """
    if tensor.grad_fn is None:
        raise ValueError(
            "This tensor has no grad_fn: no operation that made it was recorded, so there is no graph to draw."
        )
    nodes: list[object] = [tensor.grad_fn]
    index = {tensor.grad_fn: 0}
    edges = []
    for target, node in enumerate(nodes):  # the list grows while it is read
        for slot, (source, _) in enumerate(() if node is None else node.next_functions):
            if source is None or source not in index:
                nodes.append(source)
                place = len(nodes) - 1
                if source is not None:
                    index[source] = place
            else:
                place = index[source]
            edges.append((place, target, slot))
    return Recorded(tuple(nodes), tuple(edges))


def number(value: float, digits: int = 4) -> str:
    """A number with that many significant digits and a real minus sign."""
    return f"{value + 0.0:.{digits}g}".replace("-", "−")


def short(tensor: torch.Tensor | None, digits: int = 4) -> str:
    """A tensor in few characters: its numbers, or its shape where there are more than four."""
    if tensor is None:
        return "None"
    if tensor.numel() > 4 or tensor.dim() > 1:
        return f"shape {tuple(tensor.shape)}"
    if tensor.dim() == 0:
        return number(tensor.item(), digits)
    return "[" + ", ".join(number(value, digits) for value in tensor.tolist()) + "]"


def _node_box(node, is_result: bool, names: Mapping, values: Mapping) -> Box:
    """The box of one node: a constant, a leaf with name and shape, or an operation."""
    if node is None:
        return Box(("constant", "None"), "constant")
    if hasattr(node, "variable"):
        leaf = node.variable
        name = next((own for own, tensor in names.items() if tensor is leaf), "leaf")
        shown = any(tensor is leaf for tensor in values.values())
        title = f"{name} = {short(leaf)}" if shown else f"{name}, shape {tuple(leaf.shape)}"
        return Box((title, "AccumulateGrad"), "leaf")
    notes = [f"{own} = {short(tensor)}" for own, tensor in values.items() if tensor.grad_fn is node]
    if is_result:
        notes = notes or ["result"]
    return Box((type(node).__name__, *notes))


def _spoken(boxes: Sequence[Box]) -> list[str]:
    """A name per box for the alt text; operations of the same name are numbered."""
    plain = []
    for box in boxes:
        if box.kind == "constant":
            plain.append("a constant")
        elif box.kind == "leaf":
            plain.append(f"leaf {box.lines[0]}")
        else:
            name, *notes = box.lines
            plain.append(name + (f" ({', '.join(notes)})" if notes else ""))
    seen: dict[str, int] = {}
    spoken = []
    for name in plain:
        seen[name] = seen.get(name, 0) + 1
        repeated = plain.count(name) > 1 and name != "a constant"
        spoken.append(f"{name} #{seen[name]}" if repeated else name)
    return spoken


def _count(amount: int, noun: str) -> str:
    return f"{amount} {noun}" + ("" if amount == 1 else "s")


def _graph_alt(boxes: Sequence[Box], recorded: Recorded, shape: tuple) -> str:
    """The graph in words: the boxes counted by kind, and every operation with its inputs."""
    spoken = _spoken(boxes)
    kinds = [box.kind for box in boxes]
    counts = ", ".join(_count(kinds.count(kind), kind) for kind in ("operation", "leaf", "constant")).replace(
        "leafs", "leaves"
    )
    inputs = [
        f"{spoken[i]} has inputs from " + ", ".join(spoken[s] for s, t, _ in recorded.edges if t == i)
        for i, kind in enumerate(kinds)
        if kind == "operation"
    ]
    return (
        f"The graph autograd recorded for a result of shape {shape}: {counts}. "
        f"{'; '.join(inputs)}. Solid arrows carry values from the leaves to the result; "
        "dashed arrows carry gradients back, none to a constant."
    )


def autograd_graph(
    tensor: torch.Tensor,
    names: Mapping[str, torch.Tensor] | None = None,
    values: Mapping[str, torch.Tensor] | None = None,
) -> Figure:
    """The graph recorded for `tensor`, from its `grad_fn`: one box per node, one link per input.

    names: name → leaf tensor, to label leaves. values: name → tensor; its name and value are
    written in the node that made it. Raises ValueError where nothing was recorded or the graph has
    more than 40 nodes.
    """
    recorded = walk(tensor)
    if len(recorded.nodes) > MOST_NODES:
        raise ValueError(
            f"This graph has {len(recorded.nodes)} nodes; with more than {MOST_NODES} a picture is "
            "no help. Draw the graph of a smaller part."
        )
    boxes = tuple(_node_box(node, i == 0, names or {}, values or {}) for i, node in enumerate(recorded.nodes))
    links = tuple(
        Link(source, target, "forward" if recorded.nodes[source] is None else "both")
        for source, target, _ in recorded.edges
    )
    return Figure(graph_figure([Panel(boxes, links)]), _graph_alt(boxes, recorded, tuple(tensor.shape)))


# ---- one node ------------------------------------------------------------------------


def _labelled(texts: str | Mapping[str, str]) -> list[str]:
    """One line per entry: "label: text", or the text alone."""
    return [texts] if isinstance(texts, str) else [f"{label}: {text}" for label, text in texts.items()]


def _arrow_lines(axis, lines: list[str], span: Point, middle: float) -> None:
    """Dashed arrows to the left over `span`, stacked around `middle`, a line of text above each."""
    for i, line in enumerate(lines):
        y = middle + (i - (len(lines) - 1) / 2) * 0.5 + 0.08
        points = [(span[0], y), (span[1], y)]
        color, style, end = _STROKES["backward"]
        axis.add_collection(
            LineCollection([points], colors=color, linestyles=[style], linewidths=1.6),
            autolim=False,
        )
        axis.add_collection(PolyCollection([_head(points, 0.0, end)], facecolors=color), autolim=False)
        write(axis, sum(span) / 2, y - 0.14, line)


def backward_node(
    name: str,
    incoming: str | Mapping[str, str],
    saved: str | Mapping[str, str],
    outgoing: str | Mapping[str, str],
) -> Figure:
    """One node during backward: the gradient that comes in, what was saved, what goes out.

    incoming, saved and outgoing are a text or label → text.
    """
    arriving, kept, leaving = _labelled(incoming), _labelled(saved), _labelled(outgoing)
    width = max([len(line) for line in kept] + [len(name) + 2, 16]) * CHARACTER + 0.3
    side = (PAGE - width) / 2
    inner = len(kept) * 0.2 + 0.3
    height = max(0.55 + inner, max(len(arriving), len(leaving)) * 0.5)
    figure, axis = canvas(PAGE, height + 0.75)
    middle = 0.5 + height / 2
    draw_box(axis, PAGE / 2, middle, (width, height), Box(()))
    write(axis, PAGE / 2, middle - height / 2 + 0.22, name, weight="bold", fontsize=10)
    top = middle + height / 2 - inner - 0.08
    axis.add_patch(
        Rectangle(
            (PAGE / 2 - width / 2 + 0.1, top), width - 0.2, inner,
            facecolor="#F4F4F4", edgecolor=GRAY, hatch="", zorder=3,
        )
    )  # fmt: skip
    for i, line in enumerate(["saved in forward", *kept]):
        color = GRAY if i == 0 else BLACK
        write(axis, PAGE / 2, top + 0.14 + i * 0.2, line, color=color, zorder=4)
    _arrow_lines(axis, arriving, (PAGE / 2 + width / 2 + 0.06, PAGE - 0.1), middle)
    _arrow_lines(axis, leaving, (0.1, PAGE / 2 - width / 2 - 0.06), middle)
    write(axis, PAGE - side / 2, 0.2, "incoming gradient", color=VERMILION, weight="bold")
    write(axis, side / 2, 0.2, "outgoing gradients", color=VERMILION, weight="bold")
    write(axis, PAGE - 0.1, height + 0.62, "from the result’s side", ha="right", color=GRAY)
    write(axis, 0.1, height + 0.62, "to the inputs", ha="left", color=GRAY)
    alt = (
        f"The node {name} during backward. Incoming gradient, from the result's side: "
        f"{'; '.join(arriving)}. Saved in forward: {'; '.join(kept)}. "
        f"Outgoing gradients, to the inputs: {'; '.join(leaving)}."
    )
    return Figure(figure, alt)


# ---- bars ----------------------------------------------------------------------------


def _draw_bars(axis, label: str, values: Sequence[float | None], rank: int, count: int) -> None:
    """One series of grouped bars, each with its value at its end where there is room for it."""
    width = 0.8 / count
    places = [i + (rank - (count - 1) / 2) * width for i in range(1, len(values) + 1)]
    heights = [0.0 if value is None else float(value) for value in values]
    color, hatch = PALETTE[rank % len(PALETTE)], HATCHES[rank % len(HATCHES)]
    axis.bar(places, heights, width * 0.92, label=label, color=color, hatch=hatch, edgecolor="white")
    if count * len(values) > 24:
        return
    for place, height, value in zip(places, heights, values, strict=True):
        text = "None" if value is None else number(height, 3)
        axis.annotate(
            text, (place, height), (0, 3 if height >= 0 else -3), textcoords="offset points",
            ha="center", va="bottom" if height >= 0 else "top", fontsize=9, color=BLACK,
        )  # fmt: skip


def gradient_bars(series: Mapping[str, Sequence[float | None]], xlabel: str = "step") -> Figure:
    """Gradients per step as grouped bars. series: label → values, None where `.grad` was None."""
    if not series:
        raise ValueError("gradient_bars needs at least one series: label → gradient values.")
    steps = max(len(values) for values in series.values())
    figure, axis = new_figure(PAGE, 3.0)
    for rank, (label, values) in enumerate(series.items()):
        _draw_bars(axis, label, [*map(_plain, values)], rank, len(series))
    axis.axhline(0, color=BLACK, linewidth=0.8)
    axis.set_xticks(range(1, steps + 1))
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel("gradient", fontsize=10)
    axis.margins(y=0.14)
    axis.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=min(len(series), 3),
        frameon=False,
        fontsize=10,
        handlelength=2.2,
        handleheight=1.1,
    )
    parts = [
        f"{label}: " + ", ".join("None" if v is None else number(v, 3) for v in map(_plain, values))
        for label, values in series.items()
    ]
    return Figure(figure, f"Bars of gradients for {xlabel} 1 to {steps}. {'; '.join(parts)}.")


def _plain(value: float | torch.Tensor | None) -> float | None:
    """A Python float, or None."""
    return None if value is None else float(value)


# ---- four ways to stop a gradient ----------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """What one way to stop gradients does to y = w2 · h with h = w1 · x."""

    name: str
    code: str
    w1_grad: float | None
    w2_grad: float | None
    h_recorded: bool
    error: str | None = None


def cut_outcomes() -> tuple[Cut, ...]:
    """Run y = w2 · (w1 · x) at x = 2, w1 = 3, w2 = 5 once per mechanism and read the gradients."""
    found = []
    for name, code in (
        ("detach()", "y = w2 * h.detach()"),
        ("no_grad()", "with no_grad(): h = w1 * x"),
        ("inference_mode()", "with inference_mode(): h = w1 * x"),
        ("requires_grad_(False)", "w2.requires_grad_(False)"),
    ):
        x, w1, w2 = (
            torch.tensor(2.0),
            torch.tensor(3.0, requires_grad=True),
            torch.tensor(5.0, requires_grad=True),
        )
        if name == "requires_grad_(False)":
            w2.requires_grad_(False)
        if name == "no_grad()":
            with torch.no_grad():
                h = w1 * x
        elif name == "inference_mode()":
            with torch.inference_mode():
                h = w1 * x
        else:
            h = w1 * x
        error = None
        try:
            (w2 * (h.detach() if name == "detach()" else h)).backward()
        except RuntimeError as problem:
            error = str(problem).partition(".")[0] + "."
        grads = (None if w.grad is None else w.grad.item() for w in (w1, w2))
        found.append(Cut(name, code, *grads, h.grad_fn is not None, error))
    return tuple(found)


def _cut_panel(cut: Cut) -> Panel:
    """The graph of y = w2 · (w1 · x) with the links that a mechanism cuts."""

    def leaf(name: str, value: int, grad: float | None) -> Box:
        text = "None" if grad is None else number(grad)
        return Box((f"{name} = {value}", f"grad {text}"), "leaf")

    result = Box(("y = w2 · h", "= 30")) if cut.error is None else Box(("y = w2 · h", "raises"), "off")
    hidden = Box(("h = w1 · x", "= 6"), "operation" if cut.h_recorded else "off")
    boxes = (
        result,
        hidden,
        leaf("w2", 5, cut.w2_grad),
        leaf("w1", 3, cut.w1_grad),
        Box(("x = 2", "data"), "constant"),
    )
    first = Link(3, 1) if cut.w1_grad is not None else Link(3, 1, "forward")
    into_result = Link(1, 0) if cut.w1_grad is not None else Link(1, 0, "forward")
    own = Link(2, 0) if cut.w2_grad is not None else Link(2, 0, "forward")
    if not cut.h_recorded:
        first = Link(3, 1, "cut", SCISSORS)
    elif cut.w1_grad is None:
        into_result = Link(1, 0, "cut", SCISSORS)
    else:
        own = Link(2, 0, "cut", SCISSORS)
    return Panel(boxes, (into_result, own, first, Link(4, 1, "forward")), cut.code)


def gradient_cuts() -> Figure:
    """y = w2 · (w1 · x) drawn four times: with detach, no_grad, inference_mode, requires_grad_."""
    cuts = cut_outcomes()
    words = []
    for cut in cuts:
        what = f"w1.grad {'None' if cut.w1_grad is None else number(cut.w1_grad)}"
        what += f", w2.grad {'None' if cut.w2_grad is None else number(cut.w2_grad)}"
        what += "" if cut.h_recorded else ", h is not recorded"
        what += f", and w2 * h raises: {cut.error}" if cut.error else ""
        words.append(f"{cut.code}: {what}")
    alt = (
        "One graph, h = w1 · x and y = w2 · h at x = 2, w1 = 3, w2 = 5, drawn four times with the "
        f"gradient cut in different places. {'. '.join(words)}. "
        "Uncut, w1.grad would be 10 and w2.grad 6."
    )
    raised = next(cut.error for cut in cuts if cut.error)
    footer = (
        "✂ marks the cut. Uncut: w1.grad = 10 and w2.grad = 6. Gray dashed boxes are not recorded.",
        f"Inference mode raises at w2 * h: “{raised}”",
    )
    return Figure(graph_figure([_cut_panel(cut) for cut in cuts], columns=2, footer=footer), alt)


# ---- versions ------------------------------------------------------------------------


def _verdict(version: int, saved: int | None) -> str:
    if saved is None:
        return "nothing saved"
    return "same: backward may run" if version == saved else "differs: backward raises"


def versions(rows: Sequence[tuple[str, int, int | None]]) -> Figure:
    """Version counters after each line of code, beside the version a node saved, mismatch marked.

    rows: (code line, version of the tensor, version saved); None where nothing is saved yet.
    """
    if not rows:
        raise ValueError("versions needs at least one row: (code line, version, version saved).")
    code_width = max(2.0, max(len(code) for code, _, _ in rows) * 0.082 + 0.2)
    columns = [code_width + 0.6, code_width + 1.75]
    width = max(PAGE, columns[1] + 0.6 + 2.3)
    figure, axis = canvas(width, 0.6 + 0.42 * len(rows))
    for x, text in zip(columns, ("version\nof the tensor", "version\nsaved"), strict=True):
        write(axis, x, 0.24, text, color=GRAY)
    write(axis, 0.12, 0.24, "after this line", ha="left", color=GRAY)
    for i, (code, version, saved) in enumerate(rows):
        y = 0.72 + 0.42 * i
        axis.plot([0.1, width - 0.1], [y - 0.21] * 2, color=PALE, linewidth=1)
        write(axis, 0.12, y, code, ha="left", family="monospace")
        _version_cells(axis, columns, y, version, saved)
    spoken = [
        f"after {code}: version {version}, saved {'none' if saved is None else saved}, {_verdict(version, saved)}"
        for code, version, saved in rows
    ]
    return Figure(figure, f"Version counters line by line. {'; '.join(spoken)}.")


def _version_cells(axis, columns: Sequence[float], y: float, version: int, saved: int | None) -> None:
    """The two counters of a row in boxes, and the verdict."""
    differs = saved is not None and saved != version
    color = VERMILION if differs else GREEN if saved is not None else GRAY
    for x, value in zip(columns, (version, saved), strict=True):
        if value is None:
            write(axis, x, y, "–", color=GRAY)
            continue
        box = Rectangle(
            (x - 0.3, y - 0.14), 0.6, 0.28, facecolor="white", linewidth=1.4,
            edgecolor=color, hatch="///" if differs else "", zorder=2,
        )  # fmt: skip
        axis.add_patch(box)
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1.0} if differs else None
        write(axis, x, y, str(value), weight="bold", bbox=ground, zorder=3)
    if saved is not None:
        write(
            axis,
            sum(columns) / 2,
            y,
            "≠" if differs else "=",
            color=color,
            fontsize=11,
            weight="bold",
        )
    sign = {True: "✗ ", False: "✓ " if saved is not None else ""}[differs]
    write(axis, columns[1] + 0.5, y, sign + _verdict(version, saved), ha="left", color=color)
