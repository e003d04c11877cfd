"""Loader timeline: who loads and who computes when, measured on a real DataLoader, and simulated for other settings."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import ipywidgets as widgets
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch.utils.data import DataLoader, Dataset, get_worker_info

from course_utils.explorers.explorer import Explorer
from course_utils.plots.figure import BLACK, BLUE, DOTS_PER_INCH, GRAY, PALE, SKY, VERMILION, Figure

# How long each batch takes to load, and each training step, in milliseconds. Batch 5 comes from a slow disk.
LOADS = (18.0, 24.0, 16.0, 22.0, 20.0, 80.0, 19.0, 25.0, 17.0, 21.0, 23.0, 18.0)
STEP = 14.0

Span = tuple[float, float]


@dataclass(frozen=True)
class Batch:
    """What happened to one batch; all times in milliseconds since the loop began.

    worker: who loaded it, None for the main process. asked: when the loop began to wait for it. step: from when the
    loop had it until the training step was over.
    """

    worker: int | None
    load: Span
    asked: float
    step: Span

    @property
    def waiting(self) -> float:
        """How long the loop stood still for it."""
        return self.step[0] - self.asked


@dataclass(frozen=True)
class Timeline:
    """One epoch, batch after batch. prefetch is None without workers, as in the DataLoader."""

    workers: int
    prefetch: int | None
    batches: tuple[Batch, ...]

    @property
    def total(self) -> float:
        """When the last step was over."""
        return self.batches[-1].step[1]

    @property
    def waiting(self) -> float:
        """How long the loop stood still in all."""
        return sum(batch.waiting for batch in self.batches)

    @property
    def loads(self) -> list[float]:
        """How long each batch took to load."""
        return [batch.load[1] - batch.load[0] for batch in self.batches]

    @property
    def steps(self) -> list[float]:
        """How long each training step took."""
        return [batch.step[1] - batch.step[0] for batch in self.batches]

    @property
    def startup(self) -> list[float]:
        """When each worker began with its first batch."""
        first: dict[int, float] = {}
        for batch in self.batches:
            if batch.worker is not None:
                first.setdefault(batch.worker, batch.load[0])
        return [first[worker] for worker in sorted(first)]

    def ready(self) -> list[tuple[float, int]]:
        """How many batches lie loaded and not yet taken, as (time, number from then on) where it changes."""
        changes = [(b.load[1], 1) for b in self.batches] + [(b.step[0], -1) for b in self.batches]
        levels, level = {0.0: 0}, 0
        for moment, change in sorted(changes):
            level += change
            levels[moment] = level
        return list(levels.items())

    def most_ready(self) -> int:
        """The largest number of batches that lay loaded at once, while the loop was busy with others."""
        if not self.workers:
            return 0
        levels = self.ready()
        return max(level for (at, level), (then, _) in pairwise(levels) if then - at > 1e-3)


# --- the simulator ----------------------------------------------------------------------------------------------------


def simulate(
    loads: Sequence[float], steps: Sequence[float], workers: int, prefetch: int, startup: Sequence[float] = ()
) -> Timeline:
    """The epoch as a DataLoader runs it, were handing over for free and every worker had a CPU of its own.

    Batch b belongs to worker b % workers. The first workers * prefetch batches are ordered at the start; whenever the
    loop takes one, one more is ordered. Batches are handed out in order. startup: when each worker can begin.
    Raises ValueError for a negative number of workers and for a prefetch below 1.
    """
    if workers < 0 or prefetch < 1:
        raise ValueError(f"{workers} workers with prefetch {prefetch}")
    if not workers:
        return _without_workers(loads, steps)
    free = [startup[w] if w < len(startup) else 0.0 for w in range(workers)]
    batches: list[Batch] = []
    now = 0.0
    for number, (load, step) in enumerate(zip(loads, steps, strict=True)):
        worker = number % workers
        early = number - workers * prefetch  # the batch whose taking orders this one
        ordered = batches[early].step[0] if early >= 0 else 0.0
        begin = max(ordered, free[worker])
        free[worker] = begin + load
        taken = max(now, free[worker])
        batches.append(Batch(worker, (begin, free[worker]), now, (taken, taken + step)))
        now = taken + step
    return Timeline(workers, prefetch, tuple(batches))


def _without_workers(loads: Sequence[float], steps: Sequence[float]) -> Timeline:
    batches, now = [], 0.0
    for load, step in zip(loads, steps, strict=True):
        batches.append(Batch(None, (now, now + load), now, (now + load, now + load + step)))
        now += load + step
    return Timeline(0, None, tuple(batches))


def startup_of(trace: Timeline, workers: int) -> list[float]:
    """When so many workers would begin, from when those of the trace did: they are started one after the other."""
    seen = sorted(trace.startup)
    if not seen:
        return [0.0] * workers
    gap = (seen[-1] - seen[0]) / (len(seen) - 1) if len(seen) > 1 else 0.0
    return [seen[0] + gap * worker for worker in range(workers)]


def replay(
    trace: Timeline, workers: int, prefetch: int, persistent: bool = False, load: float = 1.0, step: float = 1.0
) -> Timeline:
    """The durations of the trace, times load and step, with other settings. persistent: the workers are there."""
    startup = [] if persistent else startup_of(trace, workers)
    loads, steps = [load * t for t in trace.loads], [step * t for t in trace.steps]
    return simulate(loads, steps, workers, prefetch, startup)


# --- the measurement --------------------------------------------------------------------------------------------------


class TimedBatches(Dataset):
    """Batches that wait for their milliseconds, as for a disk, and tell who loaded them from when to when."""

    def __init__(self, milliseconds: Sequence[float]) -> None:
        self.milliseconds = tuple(milliseconds)

    def __len__(self) -> int:
        return len(self.milliseconds)

    def __getitem__(self, number: int) -> tuple[int, float, float]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        begin = time.perf_counter()
        time.sleep(self.milliseconds[number] / 1000)
        info = get_worker_info()
        return (-1 if info is None else info.id, begin, time.perf_counter())


def measure(
    workers: int, prefetch: int, loads: Sequence[float] = LOADS, step: float = STEP, persistent: bool = False
) -> Timeline:
    """Run a real DataLoader over one epoch and note its timestamps; its workers are gone when this returns.

    The clock is `time.perf_counter`, which runs alike in all processes. persistent: the second epoch of workers that
    stay.
    """
    stays = persistent and workers > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than CPUs is the student's choice here
        loader = DataLoader(
            TimedBatches(loads),
            batch_size=None,  # an item is a batch already
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=stays,
            generator=torch.Generator(),  # else each epoch draws a number from the global one
        )
        epochs = [_one_epoch(loader, workers, prefetch, step) for _ in range(2 if stays else 1)]
    return epochs[-1]


def _one_epoch(loader: DataLoader, workers: int, prefetch: int, step: float) -> Timeline:
    start = time.perf_counter()

    def since(moment: float) -> float:
        return 1000 * (moment - start)

    batches, asked = [], 0.0
    for worker, begin, end in loader:
        taken = time.perf_counter()
        time.sleep(step / 1000)
        done = time.perf_counter()
        who = None if worker < 0 else int(worker)
        batches.append(Batch(who, (since(begin), since(end)), asked, (since(taken), since(done))))
        asked = since(done)
    return Timeline(workers, prefetch if workers else None, tuple(batches))


def recorded(workers: int, prefetch: int, rows: Sequence[Sequence[float]]) -> Timeline:
    """A timeline from rows (worker, load begins, load ends, batch taken, step over)."""
    batches, asked = [], 0.0
    for worker, begin, end, taken, done in rows:
        batches.append(Batch(int(worker), (begin, end), asked, (taken, done)))
        asked = done
    return Timeline(workers, prefetch, tuple(batches))


# measure(2, 2) on two cores of an AMD EPYC, Linux, Python 3.11, torch 2.13, workers forked.
MEASURED_ON = "two cores of an AMD EPYC"
MEASURED = recorded(2, 2, (
    (0, 37.3, 55.4, 57.1, 71.2),
    (1, 41.2, 65.4, 71.6, 85.7),
    (0, 56.5, 72.6, 86.2, 100.3),
    (1, 66.5, 88.6, 100.8, 114.9),
    (0, 72.7, 92.9, 115.4, 129.6),
    (1, 88.8, 169.0, 169.7, 183.8),
    (0, 93.3, 112.4, 184.3, 198.4),
    (1, 169.3, 194.5, 198.8, 212.9),
    (0, 115.4, 132.6, 213.1, 227.2),
    (1, 194.7, 215.8, 227.6, 241.7),
    (0, 184.3, 207.4, 241.9, 256.0),
    (1, 216.1, 234.2, 256.4, 270.5),
))  # fmt: skip


# --- in words ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What the controls say. load and step: how many times longer than measured."""

    workers: int = 3
    prefetch: int = 2
    load: float = 1.0
    step: float = 1.0
    persistent: bool = False


def loader_code(settings: Settings) -> str:
    """The DataLoader with these settings as a line of Python."""
    options = [f"num_workers={settings.workers}"]
    if settings.workers:
        options.append(f"prefetch_factor={settings.prefetch}")
        options += ["persistent_workers=True"] if settings.persistent else []
    return f"DataLoader(dataset, {', '.join(options)})"


def result(timeline: Timeline) -> str:
    """Total and waiting time in words."""
    share = 100 * timeline.waiting / timeline.total
    return f"{timeline.total:.0f} ms, of which the loop waits {timeline.waiting:.0f} ms ({share:.0f} %)"


def pace(timeline: Timeline) -> str:
    """Which side is the slower one, from the mean durations."""
    load = sum(timeline.loads) / len(timeline.batches)
    step = sum(timeline.steps) / len(timeline.batches)
    if not timeline.workers:
        return f"{load:.1f} ms loading + {step:.1f} ms step = {load + step:.1f} ms per batch: nothing overlaps"
    each = load / timeline.workers
    slower = "loading" if each > step else "the step"
    workers = counted(timeline.workers, "worker")
    return f"{load:.1f} ms loading / {workers} = {each:.1f} ms, step {step:.1f} ms: {slower} sets the pace"


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe(settings: Settings, trace: Timeline, simulated: Timeline, where: str, trouble: str = "") -> str:
    """The measurement, the simulation, and what decides."""
    own = replay(trace, trace.workers, trace.prefetch or 1)
    rows = {
        "measured": f"{result(trace)}; {_with(trace)}, on {where}",
        "  the simulator says": f"{own.total:.0f} ms for these settings",
        "simulated": result(simulated),
        "  per batch": pace(simulated),
    }
    if settings.workers:
        rows["  lie ready"] = (
            f"at most {simulated.most_ready()} of the {settings.workers * settings.prefetch} batches "
            "that may be ordered at once"
        )
    width = max(map(len, rows))
    lines = [loader_code(settings), "", *(f"{name:<{width}}  {text}" for name, text in rows.items())]
    return "\n".join([*lines, *(["", trouble] if trouble else [])])


def _with(timeline: Timeline) -> str:
    if not timeline.workers:
        return "no workers"
    return f"{counted(timeline.workers, 'worker')}, prefetch {timeline.prefetch}"


# --- pictures ---------------------------------------------------------------------------------------------------------

ROW = 0.23  # inches per process
LOOKS = {
    "load": {"facecolor": SKY, "edgecolor": "white"},
    "step": {"facecolor": BLUE, "edgecolor": "white"},
    "wait": {"facecolor": "white", "edgecolor": GRAY, "hatch": "////"},
}
NAMES = {"load": "loading", "step": "training step", "wait": "the loop waits"}


def picture(panels: Sequence[tuple[str, Timeline]], levels: Timeline | None = None) -> Figure:
    """Timelines below each other on one time axis; below them how many batches of `levels` lie ready.

    panels: (title, timeline). A row per process, numbers are those of the batches.
    """
    rows = [1 + timeline.workers for _, timeline in panels]
    extra = 0.8 if levels is not None else 0.0
    height = 0.73 + sum(ROW * count + 0.38 for count in rows) + extra
    figure = MatplotlibFigure(figsize=(7.5, height), dpi=DOTS_PER_INCH)
    end = 1.01 * max(timeline.total for _, timeline in panels)
    top = height - 0.28
    figure.legend(
        handles=[Patch(**look, linewidth=0.6, label=NAMES[name]) for name, look in LOOKS.items()],
        fontsize=9, frameon=False, ncols=3, loc="upper right", bbox_to_anchor=(0.995, 1.005), handlelength=1.6,
    )  # fmt: skip
    axis = None
    for (title, timeline), count in zip(panels, rows, strict=True):
        top -= 0.26
        axis = figure.add_axes((0.105, (top - ROW * count) / height, 0.88, ROW * count / height))
        _draw_timeline(axis, timeline, end)
        axis.set_title(title, fontsize=9.5, loc="left", pad=4, y=1.0)
        top -= ROW * count + 0.12
        axis.tick_params(labelbottom=False)
    if levels is not None:
        top -= 0.3
        axis = figure.add_axes((0.105, (top - 0.5) / height, 0.88, 0.5 / height))
        _draw_levels(axis, levels, end)
    axis.tick_params(labelbottom=True)
    axis.set_xlabel("milliseconds since the loop began", fontsize=9, labelpad=2)
    return Figure(figure, _alt(panels, levels))


def _draw_timeline(axis, timeline: Timeline, end: float) -> None:
    """One row for the main process and one for each worker."""
    bars: dict[str, list[tuple[int, Span]]] = {kind: [] for kind in LOOKS}
    for number, batch in enumerate(timeline.batches):
        if batch.worker is not None and batch.waiting > 0.5:
            bars["wait"].append((0, (batch.asked, batch.step[0])))
        row = 0 if batch.worker is None else 1 + batch.worker
        bars["load"].append((row, batch.load))
        bars["step"].append((0, batch.step))
        _number(axis, row, batch.load, str(number), BLACK, end)
        _number(axis, 0, batch.step, str(number), "white", end)
    for kind, rows in bars.items():
        corners = [
            [(begin, row - 0.43), (stop, row - 0.43), (stop, row + 0.43), (begin, row + 0.43)]
            for row, (begin, stop) in rows
        ]
        # One collection for all bars of a kind: with a patch for each a picture takes a fifth longer.
        axis.add_collection(PolyCollection(corners, linewidth=0.6, **LOOKS[kind]), autolim=False)
    names = ["main", *(f"worker {worker}" for worker in range(timeline.workers))]
    axis.set(xlim=(0, end), ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
    axis.set_yticklabels(names, fontsize=9)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.grid(axis="x", color=PALE, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _number(axis, row: int, span: Span, text: str, color: str, end: float) -> None:
    """A batch's number on its bar, where there is room."""
    begin, stop = span
    room = (stop - begin) / end * 7.5 * 0.88  # inches
    if room > 0.085 * len(text) + 0.02:
        middle = (begin + stop) / 2
        axis.text(middle, row + 0.03, text, fontsize=9, color=color, ha="center", va="center", clip_on=True)


def _draw_levels(axis, timeline: Timeline, end: float) -> None:
    """How many batches lie loaded and wait for the loop."""
    moments, counts = zip(*timeline.ready(), strict=True)
    axis.step(moments, counts, where="post", color=VERMILION, linewidth=1.5)
    highest = max(2, *counts)
    axis.set(xlim=(0, end), ylim=(-0.2, highest + 0.4))
    axis.set_title("simulated: batches that lie ready", fontsize=9.5, loc="left", pad=4, y=1.0)
    axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.tick_params(labelsize=9)
    axis.grid(axis="y", color=PALE, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def _alt(panels: Sequence[tuple[str, Timeline]], levels: Timeline | None) -> str:
    told = [f"{title}, the loop waits {timeline.waiting:.0f} ms." for title, timeline in panels]
    told += [f"At most {levels.most_ready()} batches lie ready."] if levels is not None else []
    return (
        "Bars on a time axis, a row for the main process and one for each worker, numbered by batch: loading, training "
        "steps, and the loop waiting. " + " ".join(told)
    )


def title_of(timeline: Timeline, kind: str) -> str:
    """The heading of a panel."""
    return f"{kind}: {_with(timeline)}, {timeline.total:.0f} ms"


def still() -> Figure:
    """The stored measurement and three simulations, for a page without a kernel."""
    others = [(0, 1), (1, 2), (4, 2)]
    simulated = [replay(MEASURED, workers, prefetch) for workers, prefetch in others]
    panels = [(title_of(MEASURED, "measured"), MEASURED)]
    panels += [(title_of(timeline, "simulated"), timeline) for timeline in simulated]
    return picture(panels)


# --- the explorer -----------------------------------------------------------------------------------------------------


class _Render:
    """Picture and words for the controls; measures on this machine when the button is pressed, once per press."""

    def __init__(self) -> None:
        self._own: dict[tuple[Settings, int], Timeline] = {}

    def __call__(self, measure_here: int = 0, **controls) -> tuple[Figure, str]:
        settings = Settings(**controls)
        trace, where, trouble = MEASURED, MEASURED_ON, ""
        if measure_here:
            try:
                trace, where = self._measured(settings, measure_here), "this machine"
            except Exception as error:  # a machine without processes still gets the stored measurement
                trouble = f"The measurement failed with {type(error).__name__}: {error}"
        load, step = (1.0, 1.0) if trace is not MEASURED else (settings.load, settings.step)
        simulated = replay(trace, settings.workers, settings.prefetch, settings.persistent, load, step)
        panels = [(title_of(trace, "measured"), trace), (title_of(simulated, "simulated"), simulated)]
        return picture(panels, simulated if simulated.workers else None), describe(
            settings, trace, simulated, where, trouble
        )

    def _measured(self, settings: Settings, presses: int) -> Timeline:
        if (settings, presses) not in self._own:
            loads = [settings.load * milliseconds for milliseconds in LOADS]
            self._own = {
                (settings, presses): measure(
                    settings.workers, settings.prefetch, loads, settings.step * STEP, settings.persistent
                )
            }
        return self._own[settings, presses]


def loader_timeline() -> Explorer:
    """Who loads and who computes when: a measured epoch, and the same batches with other settings, simulated."""
    first = Settings()
    slow = {"continuous_update": False, "style": {"description_width": "110px"}}
    times = [0.25, 0.5, 1.0, 2.0, 4.0]
    controls: dict[str, widgets.Widget] = {
        "workers": widgets.IntSlider(min=0, max=4, value=first.workers, description="num_workers", **slow),
        "prefetch": widgets.IntSlider(min=1, max=4, value=first.prefetch, description="prefetch_factor", **slow),
        "load": widgets.SelectionSlider(options=times, value=first.load, description="loading takes ×", **slow),
        "step": widgets.SelectionSlider(options=times, value=first.step, description="a step takes ×", **slow),
        "persistent": widgets.Checkbox(value=first.persistent, description="persistent, second epoch"),
        "measure_here": widgets.Button(description="measure here"),
    }
    return Explorer("Loader timeline", controls, _Render(), still(), restart=True)
