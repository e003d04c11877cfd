"""Figures of week 03: what a module holds, what follows it, how it is called, what is frozen.

Each figure reads the module it is given: drawers, flags, modes and hooks are those of that object
at that moment. Drawings are laid out in inches, like those of `memory`.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
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
    PURPLE,
    SKY,
    VERMILION,
    Figure,
    new_figure,
)
from course_utils.plots.memory import (
    EMPTY,
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
    tint,
    write,
    write_centered,
)

MOST_MODULES = 14
GAP = 0.12
MONO = {"family": "monospace", "fontsize": SMALL}


# What a module holds


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters in a module's own drawer, without those of its children."""
    return {name: value for name, value in module._parameters.items() if value is not None}


def own_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers in a module's own drawer, without those of its children."""
    return {name: value for name, value in module._buffers.items() if value is not None}


def own_plain(module: nn.Module) -> dict[str, object]:
    """The attributes that were set on the instance and went into no drawer."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}


def tensors_within(value: object) -> tuple[int, int, int]:
    """How many modules, how many other tensors and how many numbers a plain value holds.

    Lists, tuples, sets and dicts are searched, however deep.
    """
    if isinstance(value, nn.Module):
        return 1, 0, sum(parameter.numel() for parameter in value.parameters())
    if isinstance(value, torch.Tensor):
        return 0, 1, value.numel()
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple | set):
        return 0, 0, 0
    parts = [tensors_within(item) for item in value]
    return tuple(sum(part[place] for part in parts) for place in range(3))  # type: ignore[return-value]


def shapes(tensors: Mapping[str, torch.Tensor]) -> str:
    """Names and shapes: weight (2, 10), bias (2,)."""
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())


# module_tree


@dataclass(frozen=True)
class Card:
    """A module as drawn: its title, its drawers, and what it holds outside of them."""

    depth: int
    parent: int  # place of the parent's card; -1 for the root
    title: str
    drawers: tuple[tuple[str, str], ...]
    strays: tuple[str, ...]


DRAWERS = {
    "parameters": Fill(GREEN),
    "buffers": Fill(ORANGE, "..."),
    "children": Fill(SKY, "///"),
}
CARD_WIDTH, DRAWER_WIDTH, INDENT = 4.35, 0.95, 0.35


def module_tree(module: nn.Module, name: str = "model") -> Figure:
    """The tree of a module: one card per module with its drawers, and what lies outside the tree.

    Drawers: parameters, buffers, children (sub-modules). Outside: plain tensors, and lists, tuples
    and dicts that hold modules or tensors; these are drawn apart, since no method looks there.
    Raises ValueError for a tree of more modules than a picture can hold.
    """
    count = len(list(module.modules()))
    if count > MOST_MODULES:
        raise ValueError(f"{count} modules are too many to draw; {MOST_MODULES} are the most.")
    cards = _cards(module, name)
    heights = [_card_height(card) for card in cards]
    tops = [0.1 + sum(heights[:place]) + GAP * place for place in range(len(cards))]
    strays = any(card.strays for card in cards)
    width = WIDTH if strays else CARD_WIDTH + 2 * MARGIN
    figure, axis = canvas(tops[-1] + heights[-1] + 0.1, width)
    for card, top, height in zip(cards, tops, heights, strict=True):
        x = MARGIN + INDENT * card.depth
        if card.parent >= 0:
            trunk = MARGIN + INDENT * (card.depth - 1) + 0.17
            middle = top + 0.16
            start = tops[card.parent] + heights[card.parent]
            axis.plot([trunk, trunk, x], [start, middle, middle], color=GRAY, linewidth=1.2)
        _draw_card(axis, card, x, top, height)
    return Figure(figure, " ".join(_describe_card(card) for card in cards))


def _cards(module: nn.Module, name: str, depth: int = 0, parent: int = -1) -> list[Card]:
    children = {key: child for key, child in module.named_children() if child is not None}
    listed = ", ".join(children)
    drawers = {
        "parameters": shapes(own_parameters(module)),
        "buffers": shapes(own_buffers(module)),
        "children": listed,
    }
    shown = tuple((drawer, content or "empty") for drawer, content in drawers.items() if content or not depth)
    strays = tuple(_stray(key, value) for key, value in own_plain(module).items() if any(tensors_within(value)[:2]))
    cards = [Card(depth, parent, f"{name}: {type(module).__name__}", shown, strays)]
    for key, child in children.items():
        # A child's parent is always the first card of this call.
        below = _cards(child, key, depth + 1, 0)
        offset = len(cards)
        cards += [
            card if place == 0 else Card(card.depth, card.parent + offset, *_rest(card))
            for place, card in enumerate(below)
        ]
    return cards


def _rest(card: Card) -> tuple:
    return card.title, card.drawers, card.strays


def _stray(name: str, value: object) -> str:
    modules, tensors, numbers = tensors_within(value)
    if isinstance(value, torch.Tensor):
        return f"{name}: plain tensor {tuple(value.shape)}"
    parts = [plural(modules, "module")] if modules else []
    parts += [plural(tensors, "tensor")] if tensors else []
    return f"{name}: {type(value).__name__} of {' and '.join(parts)}, {plural(numbers, 'number')} in it"


def _lines(card: Card) -> list[list[str]]:
    """The content of each drawer, wrapped to the card."""
    room = CARD_WIDTH - INDENT * card.depth - DRAWER_WIDTH - 0.2
    return [textwrap.wrap(content, int(room / LETTER)) for _, content in card.drawers]


def _stray_lines(card: Card) -> list[list[str]]:
    return [textwrap.wrap(stray, int(2.45 / LETTER)) for stray in card.strays]


def _card_height(card: Card) -> float:
    own = LINE * (1 + sum(map(len, _lines(card)))) + 0.14
    outside = sum(LINE * (len(lines) + 1) + 0.2 for lines in _stray_lines(card))
    return max(own, outside)


def _draw_card(axis: Axes, card: Card, x: float, y: float, height: float) -> None:
    width = CARD_WIDTH - INDENT * card.depth
    outline(axis, x, y, width, height, BLACK, linewidth=1.3)
    write(axis, x + 0.08, y + 0.17, card.title, weight="bold")
    line = y + LINE + 0.1
    for (drawer, _), content in zip(card.drawers, _lines(card), strict=True):
        draw_cells(axis, [(x + 0.08, line)], DRAWER_WIDTH - 0.1, LINE - 0.03, [DRAWERS[drawer]])
        write_centered(axis, x + 0.03 + DRAWER_WIDTH / 2, line + LINE / 2 - 0.02, drawer, fontsize=SMALL)
        for text in content:
            look = {"color": GRAY, "style": "italic"} if text == "empty" else {}
            write(axis, x + DRAWER_WIDTH + 0.08, line + LINE / 2 - 0.02, text, **MONO, **look)
            line += LINE
    left, top = MARGIN + CARD_WIDTH + 0.2, y + 0.06
    for lines in _stray_lines(card):
        tall = LINE * (len(lines) + 1) + 0.1
        axis.plot([x + width, left], [top + tall / 2] * 2, color=VERMILION, linestyle=":")
        outline(axis, left, top, 2.6, tall, VERMILION, linewidth=1.3, linestyle="--")
        write(axis, left + 0.08, top + 0.17, "✗ outside the tree", fontsize=SMALL, weight="bold")
        for row, text in enumerate(lines, start=1):
            write(axis, left + 0.08, top + 0.17 + LINE * row, text, **MONO)
        top += tall + 0.1


def _describe_card(card: Card) -> str:
    level = "The root" if not card.depth else f"Level {card.depth}"
    drawers = "; ".join(f"{drawer}: {content}" for drawer, content in card.drawers)
    strays = "".join(f" Outside the tree: {stray}." for stray in card.strays)
    return f"{level}, {card.title}. Drawers: {drawers or 'all empty'}.{strays}"


# attribute_table


QUESTIONS = (
    "in\nparameters()",
    "requires\ngrad",
    "moved by\n.to(device)",
    "cast by\n.double()",
    "in\nstate_dict()",
)


@dataclass(frozen=True)
class Attribute:
    """A tensor or number of a module, its kind, and the answers to the five questions."""

    name: str
    kind: str
    answers: tuple[bool | None, ...]  # None: the question makes no sense for it


def attribute_table(module: nn.Module) -> Figure:
    """A grid of check marks: which attribute of a module is trained, moved, cast and saved.

    The marks are measured on copies of the module: one is moved (to the meta device), one is cast.
    Rows: parameters, buffers, then plain tensors and numbers, of this module without its children.
    """
    rows = attributes(module)
    if not rows:
        raise ValueError("This module has no parameter, buffer, tensor or number of its own.")
    left, width, height = 2.95, 0.87, 0.36
    figure, axis = canvas(0.75 + height * len(rows) + 0.1)
    for column, question in enumerate(QUESTIONS):
        write_centered(axis, left + width * (column + 0.5), 0.38, question, fontsize=SMALL)
    for place, row in enumerate(rows):
        y = 0.7 + height * place
        write(axis, MARGIN, y + height / 2, row.name, family="monospace", weight="bold")
        write(axis, MARGIN + 1.0, y + height / 2, row.kind, fontsize=SMALL)
        corners = [(left + width * column, y) for column in range(len(QUESTIONS))]
        draw_cells(axis, corners, width, height, [ANSWER_FILLS[a] for a in row.answers])
        for (x, _), answer in zip(corners, row.answers, strict=True):
            mark = {True: "✓", False: "✗", None: "–"}[answer]
            write_centered(
                axis, x + width / 2, y + height / 2, mark, fontsize=13, weight="bold",
                color=BLACK if answer else GRAY,
            )  # fmt: skip
    questions = [question.replace("\n", " ") for question in QUESTIONS]
    stories = [
        f"{row.name} ({row.kind.replace(chr(10), ' ')}): "
        + (", ".join(q for q, a in zip(questions, row.answers, strict=True) if a) or "none")
        for row in rows
    ]
    asked = "; ".join(questions)
    return Figure(figure, f"A grid of check marks for {asked}. Yes for {'. '.join(stories)}.")


ANSWER_FILLS = {True: Fill(GREEN), False: EMPTY, None: EMPTY}


def attributes(module: nn.Module) -> list[Attribute]:
    """The rows of `attribute_table`, measured."""
    moved = copy.deepcopy(module).to("meta")
    cast = copy.deepcopy(module).double()
    saved = module.state_dict()
    found = {id(parameter) for parameter in module.parameters()}
    temporary = module._non_persistent_buffers_set
    kinds = dict.fromkeys(own_parameters(module), "Parameter")
    for name, value in own_buffers(module).items():
        note = ",\nnot persistent" if name in temporary else ""
        kinds[name] = f"{_short(value.dtype)} buffer{note}"
    for name, value in own_plain(module).items():
        if isinstance(value, torch.Tensor):
            kinds[name] = "plain tensor"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            kinds[name] = "Python number"
    rows = []
    for name, kind in kinds.items():
        value = getattr(module, name)
        if isinstance(value, torch.Tensor):
            answers = (
                id(value) in found,
                value.requires_grad,
                getattr(moved, name).is_meta,
                getattr(cast, name).dtype == torch.float64,
                name in saved,
            )
        else:
            answers = (False, None, None, None, name in saved)
        rows.append(Attribute(name, kind, answers))
    return rows


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# wirings


@dataclass(frozen=True)
class Wiring:
    """A small network as layers of block names and the wires between them."""

    columns: dict[str, int]
    rows: dict[str, float]
    wires: tuple[tuple[str, str], ...]

    @property
    def width(self) -> int:
        return max(self.columns.values()) + 1

    @property
    def depth(self) -> float:
        return max(self.rows.values()) + 1

    @property
    def bridged(self) -> bool:
        """Whether some wire passes over a block between its ends."""
        return any(self.columns[b] - self.columns[a] > 1 for a, b in self.wires)


def wirings(panels: Mapping[str, Sequence[tuple[str, str]]]) -> Figure:
    """The same blocks wired in several ways.

    panels: title → wires (source, target) between blocks named by text; data flows left to right.
    A block that occurs in several panels keeps its color and hatching; ends (named x and y) and
    operators (names of one sign, such as +) are drawn small.
    """
    laid = {title: lay_wiring(wires) for title, wires in panels.items()}
    names = [name for wiring in laid.values() for name in wiring.columns if len(name) > 1]
    fills = {
        name: Fill(PALETTE[place % (len(PALETTE) - 1)], HATCHES[place % len(HATCHES)])
        for place, name in enumerate(dict.fromkeys(names))
    }
    pitch = min(1.3, (WIDTH - 2 * MARGIN) / max(wiring.width for wiring in laid.values()))
    leads = [LINE + (0.35 if wiring.bridged else 0.14) for wiring in laid.values()]
    heights = [lead + 0.5 * wiring.depth + 0.02 for lead, wiring in zip(leads, laid.values(), strict=True)]
    figure, axis = canvas(sum(heights) + 0.1)
    top, stories = 0.05, []
    for (title, wiring), lead, height in zip(laid.items(), leads, heights, strict=True):
        write(axis, MARGIN, top + LINE / 2 + 0.05, title, weight="bold")
        _draw_wiring(axis, wiring, fills, top + lead, pitch)
        top += height
        stories.append(f"{title}: {', '.join(f'{a} to {b}' for a, b in wiring.wires)}.")
    return Figure(figure, f"Wirings of the same blocks. {' '.join(stories)}")


def lay_wiring(wires: Sequence[tuple[str, str]]) -> Wiring:
    """Columns by the longest way from the input, rows by the order in which blocks appear."""
    names = list(dict.fromkeys(name for wire in wires for name in wire))
    columns = dict.fromkeys(names, 0)
    for _ in names:
        for source, target in wires:
            columns[target] = max(columns[target], columns[source] + 1)
    if max(columns.values()) >= len(names):
        raise ValueError("These wires form a circle; data has to flow from left to right.")
    stacks: dict[int, list[str]] = {}
    for name in names:
        stacks.setdefault(columns[name], []).append(name)
    tallest = max(map(len, stacks.values()))
    rows = {name: place + (tallest - len(stack)) / 2 for stack in stacks.values() for place, name in enumerate(stack)}
    return Wiring(columns, rows, tuple(wires))


def _draw_wiring(axis: Axes, wiring: Wiring, fills: Mapping, top: float, pitch: float) -> None:
    wide, tall = pitch * 0.68, 0.32

    def center(name: str) -> tuple[float, float]:
        return MARGIN + pitch * (wiring.columns[name] + 0.4), top + 0.5 * wiring.rows[name] + 0.1

    def half(name: str) -> float:
        return wide / 2 if len(name) > 1 else 0.14

    for source, target in wiring.wires:
        (x, y), (goal, level) = center(source), center(target)
        if wiring.columns[target] - wiring.columns[source] > 1:  # over the blocks between
            bridge = top - 0.2
            axis.plot([x, x, goal], [y - 0.16, bridge, bridge], color=BLACK, linewidth=1.2)
            arrow(axis, (goal, bridge), (goal, level - 0.14), linewidth=1.2)
        else:
            arrow(axis, (x + half(source), y), (goal - half(target), level), linewidth=1.2)
    for name in wiring.columns:
        x, y = center(name)
        if len(name) > 1:
            draw_cells(axis, [(x - wide / 2, y - tall / 2)], wide, tall, [fills[name]])
            write_centered(axis, x, y, name, fontsize=SMALL,
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # fmt: skip
        else:
            axis.plot([x], [y], marker="o", markersize=20, markerfacecolor="white",
                      markeredgecolor=BLACK)  # fmt: skip
            write_centered(axis, x, y, name, weight="bold")


# freezing


@dataclass(frozen=True)
class FreezeRow:
    """What a module's own state says about freezing."""

    depth: int
    title: str
    flags: str
    gradients: str
    mode: str
    frozen: bool | None  # None: nothing of its own that could be frozen


def freezing(model: nn.Module, name: str = "model") -> Figure:
    """A module tree beside the three things that freezing means: flags, gradients, modes.

    A row is blue and hatched where nothing can change any more: no own parameter requires grad,
    none has a gradient left, and running statistics or dropout, where there are any, are in eval
    mode.
    """
    rows = freeze_rows(model, name)
    left, widths, height = 3.1, (1.45, 1.25, 1.35), 0.3
    heads = ("1. requires_grad", "2. .grad", "3. mode")
    figure, axis = canvas(0.4 + height * len(rows) + LINE + 0.2)
    edges = [left + sum(widths[:column]) for column in range(3)]
    for x, width, head in zip(edges, widths, heads, strict=True):
        write_centered(axis, x + width / 2, 0.2, head, weight="bold", fontsize=SMALL)
    for place, row in enumerate(rows):
        y = 0.38 + height * place
        fill = Fill(BLUE, "///") if row.frozen else EMPTY
        draw_cells(axis, [(MARGIN, y)], left - MARGIN, height, [fill])
        box = {"facecolor": tint(BLUE) if row.frozen else "white", "edgecolor": "none", "pad": 1.2}
        write(axis, MARGIN + 0.1 + 0.25 * row.depth, y + height / 2, row.title, bbox=box, **MONO)
        for x, width, text in zip(edges, widths, (row.flags, row.gradients, row.mode), strict=True):
            draw_cells(axis, [(x, y)], width, height, [EMPTY])
            write_centered(axis, x + width / 2, y + height / 2, text, fontsize=SMALL)
    key = "blue and hatched: fully frozen, nothing can change it"
    write(axis, MARGIN, 0.38 + height * len(rows) + LINE / 2 + 0.08, key, fontsize=SMALL)
    stories = [
        f"{row.title}: requires_grad {row.flags}, .grad {row.gradients}, mode {row.mode}"
        f"{', fully frozen' if row.frozen else ''}."
        for row in rows
    ]
    return Figure(figure, f"A module tree with the state that freezing sets. {' '.join(stories)}")


def freeze_rows(model: nn.Module, name: str) -> list[FreezeRow]:
    """The rows of `freezing`, read from the model."""
    rows = []
    for path, module in model.named_modules():
        depth = path.count(".") + 1 if path else 0
        own = list(own_parameters(module).values())
        moody = has_mode(module)
        rows.append(
            FreezeRow(
                depth,
                f"{path.rpartition('.')[2] or name}: {type(module).__name__}",
                _share(own, [p.requires_grad for p in own], "on", "off"),
                _share(own, [p.grad is not None for p in own], "present", "None"),
                ("train" if module.training else "eval") + _consequence(module),
                None
                if not own and not moody
                else not any(p.requires_grad or p.grad is not None for p in own) and not (moody and module.training),
            )
        )
    return rows


def has_mode(module: nn.Module) -> bool:
    """Whether a layer of torch.nn acts differently in train and eval mode."""
    dropouts = nn.modules.dropout._DropoutNd
    return isinstance(module, dropouts | nn.modules.batchnorm._NormBase)


def _consequence(module: nn.Module) -> str:
    if not has_mode(module):
        return ""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return ", stats move" if module.training else ", stats rest"
    return ", drops" if module.training else ", identity"


def _share(own: Sequence, answers: Sequence[bool], yes: str, no: str) -> str:
    if not own:
        return "–"
    if all(answers):
        return yes
    return f"{sum(answers)} of {len(answers)} {yes}" if any(answers) else no


# call_pipeline


def call_pipeline(module: nn.Module) -> Figure:
    """What calling a module runs: its hooks around forward, with the hooks it has at present.

    Above, `model(x)` passes all slots; `model.forward(x)` enters in the middle and leaves there.
    Below, the way back of the gradients.
    """
    pre, after = _names(module._forward_pre_hooks), _names(module._forward_hooks)
    back_pre, back = _names(module._backward_pre_hooks), _names(module._backward_hooks)
    figure, axis = canvas(2.85)
    width, middle = 1.62, 0.55
    lefts = (1.2, 3.05, 4.9)
    stops = (("forward pre-hooks", pre), ("forward", None), ("forward hooks", after))
    for x, (title, hooks) in zip(lefts, stops, strict=True):
        _draw_stop(axis, x, middle - 0.4, width, title, hooks)
    write_centered(axis, 0.6, middle, "model(x)", family="monospace", weight="bold")
    arrow(axis, (1.0, middle), (lefts[0], middle), BLUE)
    for start, end in ((lefts[0], lefts[1]), (lefts[1], lefts[2])):
        arrow(axis, (start + width, middle), (end, middle), BLUE)
    arrow(axis, (lefts[2] + width, middle), (6.92, middle), BLUE)
    write_centered(axis, 7.2, middle, "output", fontsize=SMALL)
    side = {"linestyle": "--"}
    write(axis, 0.15, 1.35, "model.forward(x)", family="monospace", weight="bold")
    enter, leave = lefts[1] + 0.5, lefts[1] + width - 0.5
    axis.plot([1.65, enter], [1.35, 1.35], color=VERMILION, linewidth=1.3, **side)
    arrow(axis, (enter, 1.35), (enter, middle + 0.4), VERMILION)
    axis.plot([leave, leave], [middle + 0.4, 1.35], color=VERMILION, linewidth=1.3, **side)
    arrow(axis, (leave, 1.35), (5.0, 1.35), VERMILION)
    write(axis, 5.08, 1.35, "output: skips this module's hooks", fontsize=SMALL)
    low = 2.3
    backs = (("backward hooks", back), ("backward of the inside", None))
    for x, (title, hooks) in zip(lefts, (*backs, ("backward pre-hooks", back_pre)), strict=True):
        _draw_stop(axis, x, low - 0.4, width, title, hooks, GRAY)
    write_centered(axis, 0.6, low, "gradient of\nthe inputs", fontsize=SMALL)
    write_centered(axis, 7.08, low, "gradient of\nthe output", fontsize=SMALL)
    arrow(axis, (6.72, low), (lefts[2] + width, low), GRAY)
    arrow(axis, (lefts[2], low), (lefts[1] + width, low), GRAY)
    arrow(axis, (lefts[1], low), (lefts[0] + width, low), GRAY)
    arrow(axis, (lefts[0], low), (0.98, low), GRAY)
    counts = {
        "forward pre-hook": pre, "forward hook": after,
        "backward pre-hook": back_pre, "backward hook": back,
    }  # fmt: skip
    slots = "; ".join(
        plural(len(hooks), kind) + (f" ({', '.join(hooks)})" if hooks else "") for kind, hooks in counts.items()
    )
    return Figure(
        figure,
        "Calling a module. model(x) passes the forward pre-hooks, forward and the forward hooks; "
        "model.forward(x) enters and leaves at forward and skips this module's hooks; gradients "
        "come back through backward pre-hooks, the inside and the backward hooks. "
        f"This {type(module).__name__} has {slots}.",
    )


def _names(hooks: Mapping) -> list[str]:
    return [getattr(hook, "__name__", type(hook).__name__) for hook in hooks.values()]


def _draw_stop(
    axis: Axes, x: float, y: float, width: float, title: str, hooks: Sequence | None,
    color: str = BLACK,
) -> None:  # fmt: skip
    """A stop on the way: a box with its title, and slots for hooks where it has some."""
    outline(axis, x, y, width, 0.8, color, linewidth=1.5,
            facecolor=PALE if hooks is None else "none")  # fmt: skip
    if hooks is None:
        write_centered(axis, x + width / 2, y + 0.4, textwrap.fill(title, 14), weight="bold")
        return
    write_centered(axis, x + width / 2, y + 0.18, title, fontsize=SMALL, weight="bold")
    fill = Fill(PURPLE, "///") if hooks else EMPTY
    draw_cells(axis, [(x + 0.1, y + 0.38)], width - 0.2, 0.32, [fill])
    names = ", ".join(hooks)
    text = names if 0 < len(names) <= 16 else plural(len(hooks), "hook")
    write_centered(
        axis, x + width / 2, y + 0.54, text if hooks else "empty", fontsize=SMALL,
        color=BLACK if hooks else GRAY,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )  # fmt: skip


# repeated_predictions


def repeated_predictions(series: Mapping[str, Iterable[float]], xlabel: str = "prediction", bins: int = 30) -> Figure:
    """Histograms of the same prediction made many times, one panel per mode, on a common axis."""
    values = {label: [float(v) for v in numbers] for label, numbers in series.items()}
    if not values or not all(values.values()):
        raise ValueError("repeated_predictions needs at least one number for each label.")
    low = min(min(numbers) for numbers in values.values())
    high = max(max(numbers) for numbers in values.values())
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    figure, axes = new_figure(WIDTH, 0.5 + 1.35 * len(values), rows=len(values))
    axes = axes if isinstance(axes, list) else [axes]
    stories = []
    for place, (axis, (label, numbers)) in enumerate(zip(axes, values.items(), strict=True)):
        color, hatch = PALETTE[place % len(PALETTE)], HATCHES[(place + 1) % len(HATCHES)]
        axis.hist(numbers, bins=bins, range=(low, high), facecolor=tint(color, 0.5),
                  edgecolor=color, hatch=hatch)  # fmt: skip
        distinct = len(set(numbers))
        words = f"{label}: {len(numbers)} passes"
        axis.set_title(f"{words}, {plural(distinct, 'different value')}", fontsize=10, loc="left")
        axis.set_ylabel("passes", fontsize=9)
        axis.set_xlim(low, high)
        stories.append(
            f"{words}, {plural(distinct, 'different value')}, from {min(numbers):.3f} "
            f"to {max(numbers):.3f}, mean {sum(numbers) / len(numbers):.3f}."
        )
    axes[-1].set_xlabel(xlabel, fontsize=10)
    return Figure(figure, f"Histograms of repeated predictions ({xlabel}). {' '.join(stories)}")
