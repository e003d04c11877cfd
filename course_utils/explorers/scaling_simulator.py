"""Scaling simulator: the time of a data-parallel step from a laptop to thousands of ranks, and who gets which rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import ipywidgets as widgets
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from course_utils.exercise import load_exercise
from course_utils.explorers.explorer import Explorer
from course_utils.plots.distributed import shards as shards_picture
from course_utils.plots.figure import (
    BLACK,
    BLUE,
    DOTS_PER_INCH,
    GRAY,
    PALE,
    SKY,
    VERMILION,
    Figure,
    bare,
)
from course_utils.scaling import Link, all_reduce_seconds

WORLD_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MEGABYTES = (0.1, 1, 4, 25, 100, 400, 1600, 6400)
BANDWIDTHS = (0.1, 0.5, 1, 2, 5, 10, 25, 50, 100, 400)
LATENCIES = (0, 1, 5, 10, 20, 50, 100, 500, 1000)
COMPUTE = (1, 5, 20, 50, 100, 200, 500, 1000)
RING, TREE = "ring", "tree"

ASSUMPTIONS = (
    "every rank computes equally long, whatever N is, and nobody waits for data",
    "all links are alike; a real cluster is slower between machines than inside one",
    "sending takes no computing time, and hides behind at most overlap × compute",
    "the steps of the ring follow each other; those of the tree overlap perfectly",
)


@dataclass(frozen=True)
class Job:
    """A training job: gradients in MB (10^6 bytes), bandwidth in GB/s (10^9 bytes/s), latency in µs, compute in ms."""

    world_size: int = 8
    megabytes: float = 400
    bandwidth: float = 10
    latency: float = 10
    overlap: float = 0.0
    compute: float = 100
    algorithm: str = RING


@dataclass(frozen=True)
class Prediction:
    """One step, in milliseconds. communication = hidden + exposed; waiting: the part of it that is latency.

    sent: buffers that each rank sends. messages: how many follow each other.
    """

    compute: float
    communication: float
    hidden: float
    waiting: float
    messages: int
    sent: float

    @property
    def exposed(self) -> float:
        return self.communication - self.hidden

    @property
    def step(self) -> float:
        return self.compute + self.exposed

    @property
    def efficiency(self) -> float:
        return self.compute / self.step

    @property
    def limit(self) -> str:
        """What the communication that sticks out is mostly made of."""
        if not self.exposed:
            return "nothing"
        return "latency" if 2 * self.waiting > self.communication else "bandwidth"


def predict(job: Job) -> Prediction:
    """The time of one step and its parts."""
    n, size = job.world_size, job.megabytes * 1e6
    if n == 1:
        return Prediction(job.compute, 0.0, 0.0, 0.0, 0, 0.0)
    link = Link(job.latency * 1e-6, job.bandwidth * 1e9)
    communication = 1e3 * all_reduce_seconds(size, n, link, job.algorithm)
    waiting = 1e3 * all_reduce_seconds(0, n, link, job.algorithm)
    messages = 2 * (n - 1) if job.algorithm == RING else 2 * math.ceil(math.log2(n))
    sent = 2 * (n - 1) / n if job.algorithm == RING else 2.0
    hidden = min(communication, job.overlap * job.compute)
    return Prediction(job.compute, communication, hidden, waiting, messages, sent)


def efficiencies(job: Job) -> list[float]:
    """The efficiency at each world size that can be chosen."""
    return [predict(replace(job, world_size=n)).efficiency for n in WORLD_SIZES]


def time(milliseconds: float) -> str:
    """A duration in words."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms" if milliseconds >= 0.1 or not milliseconds else f"{1000 * milliseconds:.3g} µs"


def size(megabytes: float) -> str:
    """A number of bytes in words."""
    if megabytes >= 1000:
        return f"{megabytes / 1000:.3g} GB"
    return f"{megabytes:.3g} MB" if megabytes >= 1 or not megabytes else f"{1000 * megabytes:.3g} kB"


def ranks(count: int) -> str:
    """How many ranks, in words."""
    return "1 rank" if count == 1 else f"{count} ranks"


def describe(job: Job) -> str:
    """The numbers of one step, what limits it, and what is taken for granted."""
    step = predict(job)
    messages = f"{step.messages} messages one after the other" if step.messages else "nothing to send"
    work = job.world_size * step.efficiency
    rows = {
        "all-reduce": f"{time(step.communication)}: {messages}; {time(step.waiting)} of it is latency",
        "each rank sends": f"{size(step.sent * job.megabytes)}, {step.sent:.2f} buffers",
        "hidden": f"{time(step.hidden)} behind {time(step.compute)} of computation",
        "step": f"{time(step.step)}; {time(step.exposed)} of it is communication that sticks out",
        "efficiency": f"{step.efficiency:.1%}; {ranks(job.world_size)} do the work of {work:.4g}",
        "held up by": step.limit,
    }
    lines = [f"{name:<17}{text}" for name, text in rows.items()]
    return "\n".join([*lines, "", "Taken for granted:", *(f"- {line}" for line in ASSUMPTIONS)])


# --- shards -----------------------------------------------------------------------------------------------------------

MOST_ROWS, MOST_SHARDS = 16, 8


@dataclass(frozen=True)
class Data:
    """Rows that are dealt to ranks in two epochs that follow each other."""

    n: int = 10
    ranks: int = 4
    epoch: int = 0
    set_epoch: bool = True
    shuffle: bool = True
    drop_last: bool = False


def dealt(data: Data) -> dict[str, list[list[int]]]:
    """Title → the rows of rank 0, of rank 1, …, in this epoch and in the next one."""
    shard_indices = load_exercise("shard_indices").reference
    return {
        f"epoch {epoch}": [
            shard_indices(data.n, data.ranks, r, epoch if data.set_epoch else 0, 0, data.shuffle, data.drop_last)
            for r in range(data.ranks)
        ]
        for epoch in (data.epoch, data.epoch + 1)
    }


def describe_shards(data: Data) -> str:
    """How many rows each rank gets, which come again, which are left out, and whether the epochs differ."""
    panels = list(dealt(data).values())
    each = len(panels[0][0])
    given = [row for shard in panels[0] for row in shard]
    again = {row: given.count(row) for row in sorted(set(given)) if given.count(row) > 1}
    unused = [str(row) for row in range(data.n) if row not in given]
    told = ", ".join(f"row {row} {count} times" for row, count in again.items())
    same = "the same order again" if panels[0] == panels[1] else "another order"
    why = "" if data.set_epoch or not data.shuffle else ": nobody called set_epoch"
    code = f"DistributedSampler(data, {data.ranks}, rank, shuffle={data.shuffle}, drop_last={data.drop_last})"
    rows = {
        "each rank": f"{each} of {data.n} rows" if each else "nothing: fewer rows than ranks, and drop_last",
        "more than once": told or "no row",
        "not used": ", ".join(unused) or "every row is used",
        "the next epoch": same + why,
    }
    return "\n".join([code, "", *(f"{name:<16}{text}" for name, text in rows.items())])


# --- pictures ---------------------------------------------------------------------------------------------------------


def step_picture(job: Job) -> Figure:
    """One step on a time axis, and the efficiency for every world size with a mark at this one."""
    figure = MatplotlibFigure(figsize=(7.5, 3.0), dpi=DOTS_PER_INCH)
    _draw_step(figure.add_axes((0.115, 0.17, 0.375, 0.66)), predict(job), named=True)
    _draw_efficiency(figure.add_axes((0.59, 0.17, 0.395, 0.66)), job)
    return Figure(figure, _step_alt(job))


def _draw_step(axis, step: Prediction, *, named: bool = False) -> None:
    bars = [
        (1, 0.0, step.compute, BLUE, "", "white"),
        (0, step.compute - step.hidden, step.hidden, SKY, "...", "white"),
        (0, step.compute, step.exposed, VERMILION, "///", "white"),
    ]
    for row, start, length, color, hatch, edge in bars:
        if length:
            axis.barh(row, length, 0.62, left=start, color=color, hatch=hatch, edgecolor=edge, linewidth=0.8)
    axis.axvline(step.compute, color=BLACK, linewidth=0.8, linestyle=":")
    axis.set(xlim=(0, 1.04 * step.step), ylim=(-0.55, 1.5), yticks=[])
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    if named:
        axis.set_yticks([0, 1], ["all-reduce", "compute"], fontsize=9)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("ms", fontsize=9)
        told = "hidden ···  exposed ///" if step.communication else "nothing to send"
        axis.set_title(f"one step: {time(step.step)}\n{told}", fontsize=9.5, loc="left")


def _draw_efficiency(axis, job: Job) -> None:
    without = efficiencies(replace(job, latency=0))
    axis.plot(WORLD_SIZES, without, color=GRAY, linewidth=1.2, linestyle=(0, (4, 2)))
    axis.plot(WORLD_SIZES, efficiencies(job), color=BLUE, linewidth=1.8, marker="o", markersize=3)
    axis.plot([job.world_size], [predict(job).efficiency], color=VERMILION, marker="D", markersize=8)
    axis.set_xscale("log")
    axis.set(xlim=(0.85, 4800), ylim=(0, 1.08))
    axis.xaxis.set_major_locator(FixedLocator([1, 8, 64, 512, 4096]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.tick_params(labelsize=9)
    axis.grid(axis="y", color=PALE, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("ranks", fontsize=9)
    axis.set_title("efficiency; yours ◆\nwithout latency dashed", fontsize=9.5, loc="left")


def _step_alt(job: Job) -> str:
    step, along = predict(job), dict(zip(WORLD_SIZES, efficiencies(job), strict=True))
    told = ", ".join(f"{along[n]:.2f} at {n}" for n in (1, 8, 64, 512, 4096))
    return (
        f"One step of {ranks(job.world_size)} with a {job.algorithm}, {size(job.megabytes)} of gradients, "
        f"{job.bandwidth:g} GB/s, latency {job.latency:g} µs: computation from 0 to {time(step.compute)}; the "
        f"all-reduce takes {time(step.communication)}, of which {time(step.hidden)} lie behind the computation and "
        f"{time(step.exposed)} after it; the step ends at {time(step.step)}. Beside it the efficiency over the number "
        f"of ranks, {told}; a mark at {ranks(job.world_size)}, {step.efficiency:.2f}; dashed the same without latency."
    )


SCENARIOS = {
    "nothing hidden": Job(),
    "60 % overlap": Job(overlap=0.6),
    "1 MB, 0.1 ms of compute": Job(megabytes=1, compute=0.1),
}
TABLE = (1, 2, 8, 64)


def still() -> Figure:
    """Three steps of 8 ranks, and a table of efficiencies for 1, 2, 8, and 64 ranks."""
    figure = MatplotlibFigure(figsize=(7.5, 3.4), dpi=DOTS_PER_INCH)
    parts = []
    for place, (name, job) in enumerate(SCENARIOS.items()):
        axis = figure.add_axes((0.02 + 0.335 * place, 0.54, 0.295, 0.31))
        step = predict(job)
        _draw_step(axis, step)
        axis.set_title(f"{name}\nstep {time(step.step)}", fontsize=9.5, loc="left")
        parts.append(
            f"{name}: computation {time(step.compute)}, all-reduce {time(step.communication)}, "
            f"{time(step.hidden)} of it hidden, step {time(step.step)}."
        )
    table = bare(figure.add_axes((0.02, 0.02, 0.96, 0.38)))
    table.set(xlim=(0, 1), ylim=(-0.5, 3.5))
    table.text(0.0, 3, "efficiency with", fontsize=9.5, weight="bold", va="center")
    for column, n in enumerate(TABLE):
        table.text(0.47 + 0.15 * column, 3, ranks(n), fontsize=9.5, weight="bold", va="center", ha="right")
    for row, (name, job) in enumerate(SCENARIOS.items()):
        found = [predict(replace(job, world_size=n)).efficiency for n in TABLE]
        table.text(0.0, 2 - row, name, fontsize=9.5, va="center")
        for column, value in enumerate(found):
            table.text(0.47 + 0.15 * column, 2 - row, f"{value:.2f}", fontsize=9.5, va="center", ha="right")
        along = ", ".join(f"{n}: {value:.2f}" for n, value in zip(TABLE, found, strict=True))
        parts.append(f"Efficiency by ranks, {name}: {along}.")
    head = (
        "One step of 8 ranks, three times: computation above, the all-reduce below, dotted where it is hidden, striped "
        "where it sticks out, in ms; and a table. "
    )
    return Figure(figure, head + " ".join(parts))


# --- the explorer -----------------------------------------------------------------------------------------------------

STEP, SHARDS = "time of a step", "rows of each rank"
OF_STEP = ("world_size", "megabytes", "bandwidth", "latency", "overlap", "compute", "algorithm")
OF_SHARDS = ("n", "ranks", "epoch", "set_epoch", "shuffle", "drop_last")


def render(view: str, **controls) -> tuple[Figure, str]:
    """Picture and words for the values of the controls."""
    if view == STEP:
        job = Job(**{name: controls[name] for name in OF_STEP})
        return step_picture(job), describe(job)
    data = Data(**{name: controls[name] for name in OF_SHARDS})
    return shards_picture(dealt(data), data.n), describe_shards(data)


def scaling_simulator() -> Explorer:
    """Choose ranks, network and overlap, and watch where the time goes; deal rows to ranks, and look who gets them."""
    job, data = Job(), Data()
    wide = {"style": {"description_width": "110px"}}
    slow = {"continuous_update": False, **wide}

    def choice(options, value, words):
        return widgets.SelectionSlider(options=options, value=value, description=words, **slow)

    def switch(value, words):
        return widgets.Checkbox(value, description=words, indent=False)

    controls: dict[str, widgets.Widget] = {
        "view": widgets.ToggleButtons(options=[STEP, SHARDS], description="view", style={"button_width": "180px"}),
        "world_size": choice(WORLD_SIZES, job.world_size, "world size"),
        "megabytes": choice(MEGABYTES, job.megabytes, "gradients, MB"),
        "bandwidth": choice(BANDWIDTHS, job.bandwidth, "GB/s"),
        "latency": choice(LATENCIES, job.latency, "latency, µs"),
        "overlap": widgets.FloatSlider(min=0, max=1, step=0.05, value=job.overlap, description="overlap", **slow),
        "compute": choice(COMPUTE, job.compute, "compute, ms"),
        "algorithm": widgets.Dropdown(options=[RING, TREE], description="all-reduce", **wide),
        "n": widgets.IntSlider(min=1, max=MOST_ROWS, value=data.n, description="rows", **slow),
        "ranks": widgets.IntSlider(min=2, max=MOST_SHARDS, value=data.ranks, description="ranks", **slow),
        "epoch": widgets.IntSlider(min=0, max=9, value=data.epoch, description="epoch", **slow),
        "set_epoch": switch(data.set_epoch, "set_epoch is called"),
        "shuffle": switch(data.shuffle, "shuffle"),
        "drop_last": switch(data.drop_last, "drop_last"),
    }

    def in_use(view: str, **_: object) -> tuple[str, ...]:
        return ("view", *(OF_STEP if view == STEP else OF_SHARDS))

    return Explorer("Scaling simulator", controls, render, still(), in_use=in_use)
