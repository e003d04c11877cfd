"""Kill and resume: end a run at any step, leave something out of its state, and see what the omission does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch.nn import functional as F

from course_utils.explorers.explorer import Explorer
from course_utils.explorers.resume_laboratory import (
    BATCHES,
    CLASSES,
    EPOCHS,
    FEATURES,
    RESUMED_LOOK,
    SAMPLES,
    SEED,
    STRAIGHT_LOOK,
    Process,
    Recipe,
    _copied,
)
from course_utils.plots.figure import BLACK, DOTS_PER_INCH, GRAY, GREEN, PALE, VERMILION, Figure, bare, new_figure

ITEMS = ("weights", "optimizer", "scheduler", "random state", "position", "counters")
VALIDATION_ROWS = 18
PATIENCE = 2
FIRST_KILL = 27
FLOOR = 1e-9  # where an exact zero is drawn; the smallest difference of two weights is above it

State = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A kill after so many steps, what the state on disk holds, and whether the run was started again."""

    kill: int = FIRST_KILL
    items: tuple[str, ...] = ("weights",)
    started: bool = False


@dataclass(frozen=True)
class Trace:
    """A run from its first step in this process to its end.

    first: the number of steps before it. losses, weights: over all training rows, before its first step and after
    each. history: the validation losses of all epochs it knows of. returned: the best weights. best_epoch: the epoch
    they come from, counted from 1 as the run counts, 0 without any. snapshots: a full state after each step.
    """

    first: int
    losses: tuple[float, ...]
    weights: tuple[torch.Tensor, ...]
    history: tuple[float, ...]
    returned: torch.Tensor
    best_epoch: int
    snapshots: tuple[State, ...]

    @property
    def last(self) -> int:
        """The number of steps when it ended."""
        return self.first + len(self.losses) - 1


# --- the run ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _validation_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Other points around the same centers, noisier ones, so that the run overfits and is stopped early."""
    generator = torch.Generator().manual_seed(SEED)
    centers = 1.2 * torch.randn(CLASSES, FEATURES, generator=generator)
    labels = torch.arange(VALIDATION_ROWS) % CLASSES
    return centers[labels] + 1.9 * torch.randn(VALIDATION_ROWS, FEATURES, generator=generator), labels


class Program(Process):
    """The capstone's program in small: the laboratory's run with a data order by epoch and early stopping."""

    def __init__(self) -> None:
        super().__init__(Recipe())
        self.epoch, self.best, self.waited, self.best_epoch = 0, math.inf, 0, 0
        self.history: list[float] = []
        self.kept = self.weights()

    def advance(self) -> bool:
        """Validate if the epoch's batches are done, and take one more step; False when the run is over."""
        if self.position >= SAMPLES:
            self._validate()
        if self.epoch >= EPOCHS or self.waited >= PATIENCE:
            return False
        if self.order is None:
            self.generator.manual_seed(SEED + self.epoch)
        self.step()
        return True

    def _validate(self) -> None:
        x, y = _validation_data()
        self.model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(self.model(x), y).item()
        self.history.append(loss)
        self.epoch, self.position = self.epoch + 1, 0
        if loss < self.best:
            self.best, self.waited, self.best_epoch, self.kept = loss, 0, self.epoch, self.weights()
        else:
            self.waited += 1

    def state(self, step: int) -> State:
        """Everything there is to save after so many steps, as a snapshot that does not move."""
        whole = super().state(step)
        return {
            "step": step,
            "weights": whole["model"],
            "optimizer": whole["optimizer"],
            "scheduler": whole["scheduler"],
            "random state": whole["RNG state"],
            "position": {"epoch": self.epoch, "position": self.position},
            "counters": _copied(
                {name: getattr(self, name) for name in ("best", "waited", "best_epoch", "kept", "history")}
            ),
        }

    def load(self, state: State) -> None:
        """Take over what the state holds; what it lacks stays as the program has just made it."""
        state = _copied(state)
        names = {"weights": "model", "random state": "RNG state"}
        own = ("step", "position", "counters")
        super().load({names.get(name, name): part for name, part in state.items() if name not in own})
        for name, value in {**state.get("position", {}), **state.get("counters", {})}.items():
            setattr(self, name, value)
        if 0 < self.position < SAMPLES:
            self.order = torch.randperm(SAMPLES, generator=self.generator.manual_seed(SEED + self.epoch))


def _trace(state: State, *, keep: bool = False) -> Trace:
    """A new process that loads the state, which may be empty, and runs to its end."""
    with torch.random.fork_rng(devices=[]):
        program, step = Program(), state.get("step", 0)
        program.load(state)
        losses, weights, snapshots = [program.loss()], [program.weights()], []
        first = step
        while program.advance():
            step += 1
            losses.append(program.loss())
            weights.append(program.weights())
            if keep:
                snapshots.append(program.state(step))
    return Trace(first, tuple(losses), tuple(weights), tuple(program.history), program.kept, program.best_epoch,
                 tuple(snapshots))  # fmt: skip


@cache
def straight_run() -> Trace:
    """The run that is left alone."""
    return _trace({}, keep=True)


@lru_cache(maxsize=512)
def resumed_run(kill: int, items: Sequence[str]) -> Trace:
    """The run that is started again after a kill, from a state that holds these items."""
    state = straight_run().snapshots[kill - 1]
    return _trace({name: part for name, part in state.items() if name in items or name == "step"})


# --- comparing --------------------------------------------------------------------------------------------------------


def differences(resumed: Trace) -> list[tuple[int, float]]:
    """For each step that both runs have, the resumed run's first state included: the largest difference of a weight."""
    straight = straight_run()
    steps = range(resumed.first, min(straight.last, resumed.last) + 1)
    return [(step, (straight.weights[step] - resumed.weights[step - resumed.first]).abs().max().item())
            for step in steps]  # fmt: skip


def parting(resumed: Trace) -> tuple[int, float] | None:
    """The first step after which a weight differs, and by how much; None where none ever does."""
    return next(((step, gap) for step, gap in differences(resumed) if gap), None)


def is_same_run(resumed: Trace) -> bool:
    """Whether all weights, the history, the end and the returned weights are equal to the last bit."""
    straight = straight_run()
    return (
        parting(resumed) is None
        and straight.last == resumed.last
        and straight.history == resumed.history
        and torch.equal(straight.returned, resumed.returned)
    )


def trace_of(kill: int, missing: str) -> tuple[int | None, str]:
    """What a state that lacks one item leaves behind: the first step with a difference, None without one, and more."""
    resumed = resumed_run(kill, tuple(item for item in ITEMS if item != missing))
    found = parting(resumed)
    return (found and found[0]), _end_in_words(resumed)


# --- in words ---------------------------------------------------------------------------------------------------------

REPLACED = {
    "weights": "the weights are those before step 1.",
    "optimizer": "Adam's moments are empty, and its rate is that of the first epoch.",
    "scheduler": "it counts its epochs from 0 again.",
    "random state": "the dropout masks are those of the first steps.",
    "position": "the run begins with epoch 1 once more.",
    "counters": "history, best loss, best weights and the stop counter begin anew.",
}


def describe(scene: Scene) -> str:
    """What is in the state, whether the resumed run is the same, and what stands in the place of what is missing."""
    straight = straight_run()
    place = f"step {scene.kill}: {_place_in_words(scene.kill)}"
    held = ", ".join(("step", *scene.items))
    if not scene.started:
        return (
            f"killed after       {place}\nin the state       {held}\n\n"
            "What will the resumed run do? Say it, then press run."
        )
    resumed = resumed_run(scene.kill, scene.items)
    rows = {
        "killed after": place,
        "in the state": held,
        "the same run": "yes, to the last bit" if is_same_run(resumed) else "no",
        "weights differ": _parting_in_words(resumed),
        "left alone": f"{_run_in_words(straight)}",
        "resumed": f"{_run_in_words(resumed)}",
        "returned weights": "equal to the last bit"
        if torch.equal(straight.returned, resumed.returned)
        else f"differ by up to {(straight.returned - resumed.returned).abs().max():.2g}",
    }
    lines = [f"{name:<17}  {text}" for name, text in rows.items()]
    notes = [f"without {item}: {REPLACED[item]}" for item in ITEMS if item not in scene.items]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _place_in_words(step: int) -> str:
    epoch, batch = divmod(step - 1, BATCHES)
    validated = ", before its validation" if batch + 1 == BATCHES else ""
    return f"batch {batch + 1} of {BATCHES} in epoch {epoch + 1}{validated}"


def _parting_in_words(resumed: Trace) -> str:
    found = parting(resumed)
    if found is None:
        return "never"
    step, gap = found
    when = "at once, before any step" if step == resumed.first else f"from step {step} on"
    return f"{when}, first by {gap:.2g}, at the end by {differences(resumed)[-1][1]:.2g}"


def _run_in_words(trace: Trace) -> str:
    losses = "loss" if len(trace.history) == 1 else "losses"
    best = f"best epoch {trace.best_epoch}" if trace.best_epoch else "no best epoch"
    return f"ends after step {trace.last}, {len(trace.history)} validation {losses} in its history, {best}"


def _end_in_words(resumed: Trace) -> str:
    """How the outcome differs, beside the weights of each step."""
    straight, told = straight_run(), []
    if resumed.last != straight.last:
        told.append(f"ends at step {resumed.last}")
    if len(resumed.history) != len(straight.history):
        told.append(f"history of {len(resumed.history)}")
    elif resumed.history != straight.history:
        told.append("other validation losses")
    if not torch.equal(resumed.returned, straight.returned):
        told.append("other weights returned")
    return ", ".join(told) or "the same outcome"


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(scene: Scene) -> Figure:
    """Both losses, the largest difference of a weight below them, and beside them the state and the verdict."""
    resumed = resumed_run(scene.kill, scene.items) if scene.started else None
    # Fixed frames without the layout of new_figure: fitting them would take most of the time.
    figure = MatplotlibFigure(figsize=(7.5, 4.0), dpi=DOTS_PER_INCH)
    _draw_losses(figure.add_axes((0.075, 0.545, 0.575, 0.36)), scene, resumed)
    _draw_differences(figure.add_axes((0.075, 0.125, 0.575, 0.32)), scene, resumed)
    _draw_state(bare(figure.add_axes((0.68, 0.03, 0.31, 0.94))), scene, resumed)
    return Figure(figure, _alt(scene, resumed))


def _draw_losses(axis, scene: Scene, resumed: Trace | None) -> None:
    straight = straight_run()
    axis.plot(range(straight.last + 1), straight.losses, **STRAIGHT_LOOK)
    top = max(straight.losses)
    if resumed is not None:
        axis.plot(range(resumed.first, resumed.last + 1), resumed.losses, **RESUMED_LOOK)
        top = max(top, *resumed.losses)
    axis.set_ylim(0, 1.05 * top)
    _mark_kill(axis, scene, named=True)
    axis.set_title("training loss: left alone broad, resumed dashed", fontsize=9.5, loc="left", y=1.08)
    axis.yaxis.set_major_locator(MaxNLocator(4))
    _frame(axis, resumed)
    axis.tick_params(labelbottom=False)


def _draw_differences(axis, scene: Scene, resumed: Trace | None) -> None:
    pairs = differences(resumed) if resumed is not None else []
    axis.set_yscale("log")
    axis.minorticks_off()  # they take longest to draw
    for points, look in (
        ([p for p in pairs if p[1]], {"color": VERMILION, "marker": "s", "markersize": 3.2}),
        ([p for p in pairs if not p[1]], {"color": GREEN, "marker": "o", "markersize": 3.6}),
    ):
        if points:
            steps, gaps = zip(*points, strict=True)
            axis.plot(steps, [max(gap, FLOOR) for gap in gaps], linestyle="", **look)
    axis.set_ylim(FLOOR / 4, 30)
    axis.yaxis.set_major_locator(FixedLocator([FLOOR, 1e-6, 1e-3, 1]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == FLOOR else f"{value:g}"))
    axis.axhline(FLOOR * 8, color=GRAY, linewidth=0.7, linestyle=":")
    _mark_kill(axis, scene)
    axis.set_title("largest difference of a weight; circles: exactly 0", fontsize=9.5, loc="left", y=1.02)
    axis.set_xlabel("step", fontsize=9)
    axis.xaxis.set_label_coords(0.5, -0.2)
    _frame(axis, resumed)


def _frame(axis, resumed: Trace | None) -> None:
    end = max(EPOCHS * BATCHES, resumed.last if resumed else 0)
    axis.set_xlim(-0.6, end + 0.6)
    axis.xaxis.set_major_locator(FixedLocator(range(0, end + 1, BATCHES)))
    axis.tick_params(labelsize=9)
    axis.grid(axis="y", color=PALE, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def _mark_kill(axis, scene: Scene, *, named: bool = False) -> None:
    axis.axvline(scene.kill, color=BLACK, linewidth=1)
    if named:
        axis.text(scene.kill, 1.0, "killed", transform=axis.get_xaxis_transform(), fontsize=9, ha="center",
                  va="bottom")  # fmt: skip


def _draw_state(axis, scene: Scene, resumed: Trace | None) -> None:
    """What the state holds, how both runs end, and the verdict."""
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.text(0.02, 0.97, "in the state", fontsize=9.5, va="top", weight="bold")
    listed = "\n".join(f"{'✓' if item in scene.items else '✗'}  {item}" for item in ITEMS)
    axis.text(0.02, 0.905, listed, fontsize=9.5, va="top", linespacing=1.35)
    axis.text(0.02, 0.5, "the outcome", fontsize=9.5, va="top", weight="bold")
    if resumed is None:
        axis.text(0.02, 0.435, "press run", fontsize=9.5, va="top")
        return
    table = [("", "alone", "resumed")]
    straight = straight_run()
    table.append(("last step", straight.last, resumed.last))
    table.append(("epochs known", len(straight.history), len(resumed.history)))
    table.append(("best epoch", straight.best_epoch, resumed.best_epoch or "–"))
    for row, (name, mine, theirs) in enumerate(table):
        y = 0.435 - 0.068 * row
        axis.text(0.02, y, name, fontsize=9.5, va="top")
        axis.text(0.68, y, str(mine), fontsize=9.5, va="top", ha="right")
        axis.text(1.0, y, str(theirs), fontsize=9.5, va="top", ha="right",
                  color=BLACK if row == 0 or mine == theirs else VERMILION)  # fmt: skip
    same = is_same_run(resumed)
    words = "The same run, to the last bit." if same else "Another run."
    axis.text(0.02, 0.1, words, fontsize=9.5, va="top", weight="bold", color=GREEN if same else VERMILION)


def _alt(scene: Scene, resumed: Trace | None) -> str:
    straight = straight_run()
    head = (
        f"Two charts over the steps of training. The run that is left alone ends after step {straight.last} with a "
        f"loss of {straight.losses[-1]:.4f}. A line marks the kill after step {scene.kill}. "
        f"In the state: {', '.join(scene.items) or 'nothing but the number of steps'}. "
    )
    if resumed is None:
        return head + "The resumed run is not drawn yet."
    verdict = "the same run to the last bit" if is_same_run(resumed) else "another run"
    return (
        f"{head}The resumed run is {verdict}: it ends after step {resumed.last} with a loss of "
        f"{resumed.losses[-1]:.4f}; the weights differ {_parting_in_words(resumed)}."
    )


@cache
def still() -> Figure:
    """For each item that is left out: the first step with a difference, and what else comes of it."""
    figure, axis = new_figure(7.5, 3.1)
    bare(axis).set(xlim=(0, 1), ylim=(0, 1))
    rows = [("missing in the state", "weights differ", "outcome")]
    told = []
    for item in ITEMS:
        step, end = trace_of(FIRST_KILL, item)
        first = "never" if step is None else "at once" if step == FIRST_KILL else f"from step {step} on"
        rows.append((item, first, end))
        told.append(f"Without {item}: weights differ {first}; {end}.")
    rows.append(("nothing", "never", "the same, to the last bit"))
    for place, (left, middle, right) in enumerate(rows):
        y = 0.93 - place / (len(rows) + 0.3)
        weight = "bold" if place == 0 else "normal"
        for x, text in ((0.01, left), (0.27, middle), (0.47, right)):
            axis.text(x, y, text, fontsize=9.5, weight=weight, va="center")
        axis.axhline(y - 0.5 / (len(rows) + 0.3), color=PALE, linewidth=0.8)
    axis.set_title(f"Killed after step {FIRST_KILL}: {_place_in_words(FIRST_KILL)}", fontsize=10, loc="left")
    head = f"Table. The run is killed after step {FIRST_KILL} and resumed from a state that lacks one item. "
    return Figure(figure, head + " ".join(told) + " With all items: the same run, to the last bit.")


# --- the explorer -----------------------------------------------------------------------------------------------------


def _control_of(item: str) -> str:
    """The name of the check box of an item, such as save_random_state."""
    return f"save_{item.replace(' ', '_')}"


def render(kill: int, run: int, **items: bool) -> tuple[Figure, str]:
    """Picture and words for the values of the controls; run: how often the button was pressed."""
    scene = Scene(kill, tuple(item for item in ITEMS if items[_control_of(item)]), started=run > 0)
    return picture(scene), describe(scene)


def kill_and_resume() -> Explorer:
    """Choose the moment of the kill and what the state holds, say what will happen, and press run."""
    first = Scene()
    controls: dict[str, widgets.Widget] = {
        "kill": widgets.IntSlider(
            min=1,
            max=straight_run().last,
            value=first.kill,
            description="kill after",
            continuous_update=False,
            style={"description_width": "90px"},
        ),
        **{_control_of(item): widgets.Checkbox(item in first.items, description=item, indent=False) for item in ITEMS},
        "run": widgets.Button(description="run"),
    }
    return Explorer("Kill and resume", controls, render, still(), restart=True)
