"""Figures of week 12: processes and ranks, shards, the ring, buckets behind the backward pass, calls that must match.

Drawings are laid out in inches, like those of `memory`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from course_utils.plots.figure import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PALE,
    VERMILION,
    Figure,
    new_figure,
)
from course_utils.plots.memory import (
    EMPTY,
    INNER,
    LETTER,
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
    tint,
    write,
    write_centered,
)
from course_utils.scaling import Step

MOST_RANKS = 4  # boxes side by side
MOST_COLUMNS = 14  # of a shard
MOST_CALLS = 6
RING_SIZES = (2, 3, 4)
MONO = {"family": "monospace", "fontsize": SMALL}
PAPER = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8}}  # a ground for text on hatching
AGAIN, SENT = Fill(ORANGE, "///"), Fill(BLUE)


# ---- processes and ranks ---------------------------------------------------------------------------------------------


def ranks(machines: int = 2, per_machine: int = 2) -> Figure:
    """The processes of a job: a box each, grouped by machine, above the one place where they meet.

    Raises ValueError for more processes than fit side by side.
    """
    count = machines * per_machine
    if not 1 <= count <= MOST_RANKS:
        raise ValueError(f"The picture holds 1 to {MOST_RANKS} processes, not {count}.")
    gap, top, tall = 0.3, 0.45, 1.62
    width = (INNER - gap * (machines - 1)) / machines
    figure, axis = canvas(top + tall + 1.15)
    link = top + tall + 0.62
    stories = []
    for machine in range(machines):
        left = MARGIN + (width + gap) * machine
        outline(axis, left, 0.08, width, top + tall + 0.1, GRAY, linewidth=1.2, linestyle="--")
        write(axis, left + 0.12, 0.27, f"machine {machine}", color=GRAY)
        box = (width - 0.12 * (per_machine + 1)) / per_machine
        for local in range(per_machine):
            rank = machine * per_machine + local
            x = left + 0.12 + (box + 0.12) * local
            fill = row_fill(rank)
            outline(axis, x, top, box, tall, fill.color, linewidth=1.8, facecolor=tint(fill.color, 0.15))
            middle = x + box / 2
            write_centered(axis, middle, top + 0.2, f"rank {rank}", weight="bold")
            lines = [f"local rank {local}", f"cuda:{local}", "own interpreter,", "model, optimizer,", "loader"]
            for place, line in enumerate(lines):
                write_centered(axis, middle, top + 0.47 + 0.235 * place, line, fontsize=SMALL)
            arrow(axis, (middle, link), (middle, top + tall), linewidth=1.5, arrowstyle="<|-|>")
            stories.append(f"rank {rank} on machine {machine}, local rank {local}, device cuda:{local}")
    draw_cells(axis, [(MARGIN, link)], INNER, 0.36, [Fill(GRAY)])
    words = f"process group of world size {count}: broadcast, all-reduce, barrier"
    write_centered(axis, WIDTH / 2, link + 0.18, words)
    return Figure(
        figure,
        f"A job of world size {count} on {plural(machines, 'machine')}: "
        f"{'; '.join(stories)}. Each box holds an interpreter, a model, an optimizer and a loader of its own. The only "
        f"connection is a bar below all of them: the process group of world size {count}, with broadcast, all-reduce "
        "and barrier.",
    )


# ---- shards ----------------------------------------------------------------------------------------------------------


def shards(panels: Mapping[str, Sequence[Sequence[int]]], rows: int | Sequence[int]) -> Figure:
    """Which rows of the data each rank gets: a line of cells per rank, in the order it takes them.

    panels: title → the indices of rank 0, of rank 1, …; rows: how many there are in the data, one number for all panels
    or one for each. A cell is hatched where its row has been handed out before, dealing one row to every rank in turn.
    Raises ValueError for lines too long.
    """
    longest = max((len(shard) for panel in panels.values() for shard in panel), default=0)
    if not panels or longest > MOST_COLUMNS:
        raise ValueError(f"The picture holds panels of up to {MOST_COLUMNS} rows a rank; the longest has {longest}.")
    sizes = [rows] * len(panels) if isinstance(rows, int) else list(rows)
    label, tall, cell = 0.7, 0.31, 0.42
    tallest = max(map(len, panels.values()))
    height = 0.34 + tall * tallest + 0.62
    spots, x, y = [], MARGIN, 0.02  # the panels stand side by side, in as many lines as that takes
    for title, panel in panels.items():
        words = max([*_shard_words(panel, 0), title], key=len)
        width = max(label + cell * max(map(len, panel), default=0), (LETTER + 0.005) * len(words), 2.15)
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x, y = MARGIN, y + height
        spots.append((x, y))
        x += width + 0.3
    figure, axis = canvas(spots[-1][1] + height)
    stories = []
    for (title, panel), size, (left, top) in zip(panels.items(), sizes, spots, strict=True):
        write(axis, left, top + 0.16, title, weight="bold")
        again, seen = _dealt_again(panel), Counter(row for shard in panel for row in shard)
        for rank, shard in enumerate(panel):
            y = top + 0.34 + tall * rank
            write(axis, left, y + tall / 2, f"rank {rank}", fontsize=SMALL)
            corners = [(left + label + cell * place, y) for place in range(len(shard))]
            fills = [AGAIN if (rank, place) in again else Fill(row_fill(rank).color) for place in range(len(shard))]
            draw_cells(axis, corners, cell, tall, fills)
            for (x, _), row, fill in zip(corners, shard, fills, strict=True):
                paper = PAPER if fill.hatch else {}
                write_centered(axis, x + cell / 2, y + tall / 2, str(row), fontsize=SMALL, **paper)
        words = _shard_words(panel, size)
        for number, line in enumerate(words):
            write(axis, left, top + 0.34 + tall * len(panel) + 0.17 + 0.21 * number, line, fontsize=SMALL)
        told = [f"row {row} {count} times" for row, count in sorted(seen.items()) if count > 1]
        given = "; ".join(f"rank {rank} {list(shard)}" for rank, shard in enumerate(panel))
        twice = "More than once: " + ", ".join(told) if told else "No row twice"
        stories.append(f"{title}, {plural(size, 'row')}: {given}. {twice}; {words[1]}.")
    return Figure(figure, f"The rows that each rank gets. {' '.join(stories)}")


def _shard_words(panel: Sequence[Sequence[int]], size: int) -> tuple[str, str]:
    """What is said below a panel: rows that came again, rows that never came."""
    again = len(_dealt_again(panel))
    missing = [str(row) for row in range(size) if all(row not in shard for shard in panel)]
    unused = f"not used: {', '.join(missing)}" if missing else "every row used"
    return f"hatched: {again} handed out again" if again else "no row twice", unused


def _dealt_again(panel: Sequence[Sequence[int]]) -> set[tuple[int, int]]:
    """(rank, place) of each row that was dealt before."""
    seen: set[int] = set()
    again = set()
    for place in range(max(map(len, panel), default=0)):
        for rank, shard in enumerate(panel):
            if place < len(shard):
                if shard[place] in seen:
                    again.add((rank, place))
                seen.add(shard[place])
    return again


# ---- ring ------------------------------------------------------------------------------------------------------------


def ring_states(world: int) -> list[tuple[list[list[str]], dict[tuple[int, int], int]]]:
    """Each state of a ring all-reduce, and what is sent next.

    A state is a table [rank][chunk] of texts that name the ranks whose numbers are in the sum; the second part maps
    (rank, chunk) to the receiver.
    """
    held = [[str(rank)] * world for rank in range(world)]
    states = []
    for phase, first in (("add", 0), ("replace", 1)):
        for step in range(world - 1):
            moves = {(rank, (rank + first - step) % world): (rank + 1) % world for rank in range(world)}
            states.append(([row[:] for row in held], moves))
            arrived = {(to, chunk): held[rank][chunk] for (rank, chunk), to in moves.items()}
            for (to, chunk), text in arrived.items():
                joined = "".join(sorted(text + held[to][chunk]))
                held[to][chunk] = joined if phase == "add" else text
    states.append((held, {}))
    return states


def ring(world: int = 4) -> Figure:
    """A ring all-reduce, state by state: who holds which sums, and which chunk each rank sends next.

    Raises ValueError for a world size that does not fit.
    """
    if world not in RING_SIZES:
        raise ValueError(f"The picture holds 2, 3 or 4 ranks, not {world}.")
    states = ring_states(world)
    columns = min(4, len(states))
    rows = -(-len(states) // columns)
    left, cell, tall, pitch = 0.62, 0.385, 0.33, 0.33 * world + 0.5
    wide = (WIDTH - left) / columns
    figure, axis = canvas(pitch * rows + 0.28)
    stories = []
    for number, (held, moves) in enumerate(states):
        row, column = divmod(number, columns)
        x, y = left + wide * column, 0.1 + pitch * row
        if number == len(states) - 1:
            title = "done"
        elif number < world - 1:
            title = f"{number + 1}: send, then add"
        else:
            title = f"{number + 1}: send, then replace"
        write(axis, x, y + 0.1, title, fontsize=SMALL, weight="bold")
        places = [(rank, chunk) for rank in range(world) for chunk in range(world)]
        corners = [(x + cell * chunk, y + 0.27 + tall * rank) for rank, chunk in places]
        fills = [SENT if place in moves else Fill(GREEN) if len(held[place[0]][place[1]]) == world else EMPTY
                 for place in places]  # fmt: skip
        draw_cells(axis, corners, cell, tall, fills)
        for (rank, chunk), (cx, cy) in zip(places, corners, strict=True):
            look = {"weight": "bold"} if (rank, chunk) in moves else {}
            write_centered(axis, cx + cell / 2, cy + tall / 2, held[rank][chunk], fontsize=SMALL, **look)
            if (rank, chunk) in moves:
                outline(axis, cx, cy, cell, tall, BLUE, linewidth=2)
        if column == 0:
            for rank in range(world):
                write(axis, MARGIN - 0.05, y + 0.27 + tall * (rank + 0.5), f"rank {rank}", fontsize=SMALL)
        table = "; ".join(f"rank {rank} holds {', '.join(line)}" for rank, line in enumerate(held))
        sends = ", ".join(f"rank {rank} sends chunk {chunk} to rank {to}" for (rank, chunk), to in moves.items())
        stories.append(f"{title}: {table}{'. Then ' + sends if sends else ''}.")
    write(
        axis, MARGIN - 0.05, pitch * rows + 0.1,
        "Digits: the ranks whose numbers are in the sum. Framed: what goes to the next rank; the last sends to rank 0.",
        fontsize=SMALL,
    )  # fmt: skip
    return Figure(
        figure,
        f"A ring all-reduce of {world} ranks with {world} chunks each, {len(states)} tables; a cell lists the ranks "
        f"whose numbers are in the sum. {' '.join(stories)}",
    )


# ---- buckets ---------------------------------------------------------------------------------------------------------


def buckets(steps: Mapping[str, Step]) -> Figure:
    """Training steps as two lanes each, computation and network: what of the communication sticks out.

    steps: title → a step of `scaling.simulate_step`.
    """
    longest = max(step.seconds for step in steps.values())
    left, tall, pitch = 1.0, 0.29, 1.12
    scale = (WIDTH - MARGIN - left - 0.62) / longest
    figure, axis = canvas(pitch * len(steps) + 0.05)
    stories = []
    for place, (title, step) in enumerate(steps.items()):
        top = 0.08 + pitch * place
        write(axis, MARGIN, top + 0.12, title, weight="bold")
        compute, network = top + 0.3, top + 0.3 + tall + 0.06
        write(axis, MARGIN, compute + tall / 2, "compute", fontsize=SMALL)
        write(axis, MARGIN, network + tall / 2, "network", fontsize=SMALL)
        for start, length, name, fill in (
            (0.0, step.forward, "forward", Fill(BLUE)),
            (step.forward, step.backward, "backward", Fill(ORANGE)),
        ):
            draw_cells(axis, [(left + start * scale, compute)], length * scale, tall, [fill])
            if length * scale > LETTER * len(name):
                write_centered(axis, left + (start + length / 2) * scale, compute + tall / 2, name, fontsize=SMALL)
        for number, (start, end) in enumerate(step.transfers):
            hidden = end <= step.compute
            fill = Fill(GREEN) if hidden else Fill(VERMILION, "///")
            draw_cells(axis, [(left + start * scale, network)], (end - start) * scale, tall, [fill])
            if (end - start) * scale > 0.2:
                x = left + (start + end) / 2 * scale
                write_centered(axis, x, network + tall / 2, str(number + 1), fontsize=SMALL, **PAPER)
        edge = left + step.seconds * scale
        axis.plot([edge, edge], [compute - 0.04, network + tall + 0.04], color=BLACK, linewidth=1.4)
        write(axis, edge + 0.06, compute + tall / 2, f"{step.seconds * 1e3:.0f} ms", fontsize=SMALL)
        late = sum(end > step.compute for _, end in step.transfers)
        stories.append(
            f"{title}: forward {step.forward * 1e3:.0f} ms, backward {step.backward * 1e3:.0f} ms, "
            f"{plural(len(step.transfers), 'transfer')} of {step.communication * 1e3:.0f} ms in all, "
            f"{late} of them ending after the computation; the step takes {step.seconds * 1e3:.0f} ms."
        )
    return Figure(
        figure,
        "Training steps as lanes of time: computation above, network below; transfers that end after the computation "
        f"are hatched. {' '.join(stories)}",
    )


# ---- calls that must match -------------------------------------------------------------------------------------------


def calls(lanes: Mapping[str, Sequence[str]]) -> Figure:
    """The collectives that each rank calls, in order, matched by their place as the backends match them.

    lanes: rank → the names of its calls. A column whose names differ is framed; where a rank has no call left, the
    others wait. Raises ValueError for more calls than fit.
    """
    columns = list(zip_longest(*lanes.values()))
    if not columns or len(columns) > MOST_CALLS:
        raise ValueError(f"The picture holds 1 to {MOST_CALLS} calls in a lane, not {len(columns)}.")
    left, tall, pitch = 0.85, 0.4, 0.62
    width = (WIDTH - MARGIN - left) / len(columns)
    figure, axis = canvas(0.3 + pitch * len(lanes) + 0.2)
    bottom = 0.3 + pitch * len(lanes) - 0.05
    for place, name in enumerate(lanes):
        write(axis, MARGIN, 0.3 + pitch * place + tall / 2, name, weight="bold", fontsize=SMALL)
    stories, stuck = [], False
    for number, column in enumerate(columns):
        x = left + width * number
        names = {call for call in column if call is not None}
        waits = None in column
        verdict = "waits" if waits else "mixed up" if len(names) > 1 else "matches"
        verdict = "never reached" if stuck else verdict
        good = verdict == "matches"
        for place, call in enumerate(column):
            y = 0.3 + pitch * place
            if call is None:
                outline(axis, x + 0.06, y, width - 0.12, tall, GRAY, linewidth=1.1, linestyle="--")
                write_centered(axis, x + width / 2, y + tall / 2, "no call", fontsize=SMALL, color=GRAY)
                continue
            fill = Fill(GREEN) if good else Fill(PALE) if stuck else Fill(VERMILION)
            draw_cells(axis, [(x + 0.06, y)], width - 0.12, tall, [fill])
            if not good and not stuck:
                outline(axis, x + 0.06, y, width - 0.12, tall, VERMILION)
            write_centered(axis, x + width / 2, y + tall / 2, call, fontsize=SMALL)
        color = BLACK if good else GRAY if stuck else VERMILION
        weight = {} if good or stuck else {"weight": "bold"}
        write_centered(axis, x + width / 2, bottom + 0.1, verdict, fontsize=SMALL, color=color, **weight)
        pairs = ", ".join(f"{lane} {call or 'no call'}" for lane, call in zip(lanes, column, strict=True))
        stories.append(f"Call {number + 1}: {pairs}; {verdict}.")
        stuck = stuck or waits
    write(axis, left + 0.06, 0.13, "time →", fontsize=SMALL, color=GRAY)
    return Figure(figure, f"The calls of each rank, matched by their number. {' '.join(stories)}")


# ---- measured and predicted ------------------------------------------------------------------------------------------


def message_times(measured: Sequence[tuple[float, float]], predicted: Sequence[float]) -> Figure:
    """Measured all-reduces, pairs (bytes, seconds), and the model's line through them; both axes logarithmic."""
    if not measured or len(measured) != len(predicted):
        raise ValueError(f"{len(measured)} measurements and {len(predicted)} predictions do not go together.")
    sizes = [size for size, _ in measured]
    figure, axis = new_figure(WIDTH, 3.2)
    axis.loglog(sizes, [1e3 * seconds for seconds in predicted], color=BLUE, linewidth=1.8)
    axis.loglog(sizes, [1e3 * seconds for _, seconds in measured], "o", color=VERMILION, markersize=6)
    axis.set_xlabel("bytes", fontsize=10)
    axis.set_ylabel("milliseconds", fontsize=10)
    axis.grid(axis="y", color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_title("● measured    — latency + bytes / bandwidth", fontsize=10.5, loc="left")
    told = ", ".join(
        f"{size:g} bytes {1e3 * seconds:.2g} ms measured and {1e3 * model:.2g} ms predicted"
        for (size, seconds), model in zip(measured, predicted, strict=True)
    )
    return Figure(figure, f"Time of an all-reduce against its size, both logarithmic: {told}.")
