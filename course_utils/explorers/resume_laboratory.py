"""Resume laboratory: stop a small run, leave something out of its checkpoint, and see where the resumed run parts."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import nn
from torch.nn import functional as F

from course_utils.explorers.explorer import Explorer
from course_utils.plots.figure import (
    BLACK,
    BLUE,
    DOTS_PER_INCH,
    GRAY,
    GREEN,
    ORANGE,
    PALE,
    PURPLE,
    VERMILION,
    Figure,
    bare,
    new_figure,
)

SEED = 7
SAMPLES, FEATURES, CLASSES, WIDTH = 40, 4, 3, 16
BATCH = 7
BATCHES = -(-SAMPLES // BATCH)  # in an epoch; the last one is short
EPOCHS = 7
STEPS = BATCHES * EPOCHS
RATES = {"SGD": 0.25, "momentum": 0.08, "Adam": 0.02}
ITEMS = ("model", "optimizer", "scheduler", "RNG state", "data position")
WRITING = ("direct", "atomic")
PATH = "checkpoint.pt"
FLOOR = 1e-9  # where an exact zero is drawn; the smallest difference of two losses is above it

State = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What decides how the uninterrupted run goes."""

    optimizer: str = "Adam"
    dropout: bool = True
    schedule: bool = True


@dataclass(frozen=True)
class Scene:
    """A run, the step after which it stops, what its checkpoints hold, and how they are written.

    crash: the process dies half-way through writing the last checkpoint.
    """

    recipe: Recipe = Recipe()
    stop: int = 20
    items: tuple[str, ...] = ("model",)
    writing: str = "direct"
    crash: bool = False


@dataclass(frozen=True)
class StoredFile:
    """A file that the stopped process left: its name, its size in bytes, the step it holds or why it does not load."""

    name: str
    size: int
    step: int | None
    error: str = ""


@dataclass(frozen=True)
class Straight:
    """The uninterrupted run: loss and rate at each step, a full snapshot after each, the weights at the end.

    losses[i] is the loss over all samples in eval mode after i steps, rates[i] the learning rate of step i + 1.
    """

    losses: tuple[float, ...]
    rates: tuple[float, ...]
    snapshots: tuple[State, ...]
    weights: torch.Tensor


@dataclass(frozen=True)
class Resumed:
    """The run that was resumed: the step it began at, its losses from there on, its first rate, its weights, the files.

    start is None where no file could be loaded, and the run began anew.
    """

    start: int | None
    losses: tuple[float, ...]
    first_rate: float
    weights: torch.Tensor
    files: tuple[StoredFile, ...]


# --- the run ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _data() -> tuple[torch.Tensor, torch.Tensor]:
    """Three noisy groups of points."""
    generator = torch.Generator().manual_seed(SEED)
    labels = torch.arange(SAMPLES) % CLASSES
    centers = 1.2 * torch.randn(CLASSES, FEATURES, generator=generator)
    return centers[labels] + 1.1 * torch.randn(SAMPLES, FEATURES, generator=generator), labels


class Process:
    """What the training script is in one process: it begins by seeding, then builds everything anew."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(SEED)
        self.x, self.y = _data()
        drop = nn.Dropout(0.2 if recipe.dropout else 0.0)
        self.model = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), drop, nn.Linear(WIDTH, CLASSES))
        self.optimizer = _make_optimizer(recipe.optimizer, self.model)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, EPOCHS) if recipe.schedule else None
        self.generator = torch.Generator().manual_seed(SEED)
        self.order: torch.Tensor | None = None
        self.position = 0

    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self) -> None:
        """One step of training; at the end of an epoch also one of the scheduler."""
        self.model.train()
        if self.order is None:
            self.order, self.position = torch.randperm(SAMPLES, generator=self.generator), 0
        picks = self.order[self.position : self.position + BATCH]
        self.position += BATCH
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x[picks]), self.y[picks]).backward()
        self.optimizer.step()
        if self.position >= SAMPLES:
            self.order = None
            if self.scheduler is not None:
                self.scheduler.step()

    def loss(self) -> float:
        """The loss over all samples, in eval mode; it draws nothing and changes nothing."""
        self.model.eval()
        with torch.no_grad():
            return F.cross_entropy(self.model(self.x), self.y).item()

    def weights(self) -> torch.Tensor:
        """All parameters in one vector."""
        return nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()

    def state(self, step: int) -> State:
        """Everything there is to save, as a snapshot that does not move."""
        live = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
            "RNG state": torch.get_rng_state(),
            "data position": {
                "generator": self.generator.get_state(),
                "order": self.order,
                "position": self.position,
            },
            "step": step,
        }
        return _copied(live)

    def load(self, state: State) -> None:
        """Take over what the checkpoint holds; what it lacks stays as the script has just made it."""
        if "model" in state:
            self.model.load_state_dict(state["model"])
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        if "scheduler" in state and self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if "RNG state" in state:
            torch.set_rng_state(state["RNG state"])
        if "data position" in state:
            place = state["data position"]
            self.generator.set_state(place["generator"])
            self.order, self.position = place["order"], place["position"]


def _make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "Adam":
        return torch.optim.Adam(model.parameters(), lr=RATES[name], foreach=False)
    momentum = 0.9 if name == "momentum" else 0.0
    return torch.optim.SGD(model.parameters(), lr=RATES[name], momentum=momentum, foreach=False)


def _copied(value: Any) -> Any:
    """A deep copy of tensors in containers; copy.deepcopy takes three times as long."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


@cache
def straight_run(recipe: Recipe) -> Straight:
    """The run without an interruption."""
    with torch.random.fork_rng(devices=[]):
        process = Process(recipe)
        losses, rates, snapshots = [process.loss()], [], [process.state(0)]
        for step in range(1, STEPS + 1):
            rates.append(process.rate())
            process.step()
            losses.append(process.loss())
            snapshots.append(process.state(step))
    return Straight(tuple(losses), tuple(rates), tuple(snapshots), process.weights())


@lru_cache(maxsize=512)
def resumed_run(scene: Scene) -> Resumed:
    """Leave the files behind, load what can be loaded in a new process, and run to the end."""
    snapshots = straight_run(scene.recipe).snapshots
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        _write_checkpoints(scene, snapshots, Path(folder))
        files = tuple(_inspect(file) for file in sorted(Path(folder).iterdir()))
        usable = any(file.name == PATH and not file.error for file in files)
        checkpoint = torch.load(Path(folder, PATH), weights_only=True) if usable else {"step": 0}
    with torch.random.fork_rng(devices=[]):
        process = Process(scene.recipe)
        process.load(checkpoint)
        losses, rate = [process.loss()], process.rate()
        for _ in range(checkpoint["step"], STEPS):
            process.step()
            losses.append(process.loss())
    return Resumed(checkpoint["step"] if usable else None, tuple(losses), rate, process.weights(), files)


def last_epoch_end(stop: int) -> int:
    """The step of the last checkpoint before this one: the script saves after each epoch. 0: there is none."""
    return (stop - 1) // BATCHES * BATCHES


def _write_checkpoints(scene: Scene, snapshots: Sequence[State], folder: Path) -> None:
    """The earlier checkpoint, then the last one, which may be cut off half-way."""
    path = folder / PATH
    for step in (last_epoch_end(scene.stop), scene.stop):
        if step == 0:
            continue
        data = _as_file(snapshots[step], scene.items)
        dies = scene.crash and step == scene.stop
        target = path if scene.writing == "direct" else folder / f"{PATH}.tmp"
        target.write_bytes(data[: len(data) // 2] if dies else data)
        if target != path and not dies:
            os.replace(target, path)


def _as_file(state: State, items: Sequence[str]) -> bytes:
    """What torch.save writes of the chosen items and the number of steps."""
    buffer = io.BytesIO()
    torch.save({"step": state["step"], **{item: state[item] for item in items}}, buffer)
    return buffer.getvalue()


def _inspect(file: Path) -> StoredFile:
    size = file.stat().st_size
    try:
        return StoredFile(file.name, size, torch.load(file, weights_only=True)["step"])
    except Exception as error:  # which one depends on where the file was cut
        return StoredFile(file.name, size, None, type(error).__name__)


# --- comparing --------------------------------------------------------------------------------------------------------


def differences(straight: Straight, resumed: Resumed) -> list[tuple[int, float]]:
    """For each step of the resumed run, its first state included: how far its loss is from the other's."""
    start = resumed.start or 0
    return [(start + i, abs(loss - straight.losses[start + i])) for i, loss in enumerate(resumed.losses)]


def parting(straight: Straight, resumed: Resumed) -> tuple[int, float] | None:
    """The first step after which the losses differ, and by how much; None where they never do."""
    return next(((step, gap) for step, gap in differences(straight, resumed) if gap), None)


def is_same_run(straight: Straight, resumed: Resumed) -> bool:
    """Whether all losses, and the weights at the end, are equal to the last bit."""
    return parting(straight, resumed) is None and torch.equal(straight.weights, resumed.weights)


# --- in words ---------------------------------------------------------------------------------------------------------


def describe(scene: Scene) -> str:
    """What was saved, whether the runs are the same, where they part, what was missing and what lies on disk."""
    straight, resumed = straight_run(scene.recipe), resumed_run(scene)
    gap = resumed.losses[-1] - straight.losses[-1]
    lower = "equal" if gap == 0 else f"{abs(gap):.4f} {'lower' if gap < 0 else 'higher'}"
    rows = {
        "in the checkpoint": ", ".join(["step", *scene.items]),
        "resumed from": _start_in_words(scene, resumed),
        "the same run": "yes, to the last bit" if is_same_run(straight, resumed) else "no",
        "the losses part": _parting_in_words(straight, resumed),
        "loss at the end": f"straight {straight.losses[-1]:.4f}, resumed {resumed.losses[-1]:.4f} ({lower})",
        "weights at the end": _weights_in_words(straight, resumed),
    }
    lines = [f"{name:<18}  {text}" for name, text in rows.items()]
    notes = _missing_in_words(scene, straight, resumed)
    return "\n".join([*lines, "", *notes, *([""] if notes else []), *_files_in_words(resumed)])


def _start_in_words(scene: Scene, resumed: Resumed) -> str:
    if resumed.start is None:
        return f"nothing: no file loads, so the run starts over and does {scene.stop} steps again"
    again = scene.stop - resumed.start
    return f"step {resumed.start}" + (f", so that {again} of the {scene.stop} steps are done again" if again else "")


def _parting_in_words(straight: Straight, resumed: Resumed) -> str:
    found = parting(straight, resumed)
    if found is None:
        return "never"
    step, gap = found
    after = step - (resumed.start or 0)
    when = "at once, before any step" if after == 0 else f"after step {step}, {_steps(after)} after the resume"
    return f"{when}, by {gap:.2g}"


def _steps(count: int) -> str:
    return "one step" if count == 1 else f"{count} steps"


def _weights_in_words(straight: Straight, resumed: Resumed) -> str:
    if torch.equal(straight.weights, resumed.weights):
        return "equal to the last bit"
    return f"differ by up to {(straight.weights - resumed.weights).abs().max():.2g}"


def _missing_in_words(scene: Scene, straight: Straight, resumed: Resumed) -> list[str]:
    """A line for each item that the checkpoint lacks: what the new process has in its place."""
    if resumed.start is None:
        return []
    recipe, notes = scene.recipe, []
    moments = {"SGD": "", "momentum": "its velocities are empty; ", "Adam": "its moments are empty; "}
    now, then = resumed.first_rate, straight.rates[min(resumed.start, STEPS - 1)]
    rate = f"the first rate is {now:.3g}" + ("" if now == then else f" instead of {then:.3g}")
    replaced = {
        "model": "the weights are those before step 1.",
        "optimizer": f"{moments[recipe.optimizer]}{rate}.",
        "scheduler": "it counts its epochs from 0 again.",
        "RNG state": "the dropout masks are those of the first steps.",
        "data position": "an epoch begins, in the order of the first one.",
    }
    unused = {"scheduler": not recipe.schedule, "RNG state": not recipe.dropout}
    for item in ITEMS:
        if item not in scene.items:
            what = "this run has none." if unused.get(item) and item == "scheduler" else replaced[item]
            what = "nothing in this run draws from it." if unused.get(item) and item == "RNG state" else what
            notes.append(f"without {item}: {what}")
    return notes


def _files_in_words(resumed: Resumed) -> list[str]:
    lines = ["on disk"]
    for file in resumed.files:
        told = f"holds step {file.step}" if not file.error else f"half a file: {file.error} when loaded"
        lines.append(f"  {file.name:<18}  {_size(file.size):>7}  {told}")
    return lines


def _size(count: int) -> str:
    return f"{count / 1000:.1f} kB"


# --- pictures ---------------------------------------------------------------------------------------------------------

STRAIGHT_LOOK = {"color": BLUE, "linewidth": 3.2, "alpha": 0.55}
RESUMED_LOOK = {"color": VERMILION, "linewidth": 1.4, "linestyle": (0, (4, 2)), "marker": "s", "markersize": 2.6}


def picture(scene: Scene) -> Figure:
    """Both losses, the difference below them on a logarithmic scale, and beside them checkpoint and files."""
    straight, resumed = straight_run(scene.recipe), resumed_run(scene)
    # Fixed frames without the layout of new_figure: fitting them would take most of the time.
    figure = MatplotlibFigure(figsize=(7.5, 4.0), dpi=DOTS_PER_INCH)
    _draw_losses(figure.add_axes((0.075, 0.545, 0.575, 0.36)), scene, straight, resumed)
    _draw_difference(figure.add_axes((0.075, 0.125, 0.575, 0.32)), scene, straight, resumed)
    _draw_files(bare(figure.add_axes((0.68, 0.03, 0.31, 0.94))), scene, straight, resumed)
    return Figure(figure, _alt(scene, straight, resumed))


def _draw_losses(axis, scene: Scene, straight: Straight, resumed: Resumed) -> None:
    start = resumed.start or 0
    axis.plot(range(STEPS + 1), straight.losses, **STRAIGHT_LOOK)
    axis.plot(range(start, STEPS + 1), resumed.losses, **RESUMED_LOOK)
    axis.set_ylim(0, 1.05 * max(*straight.losses, *resumed.losses))
    _mark_stop(axis, scene, resumed, named=True)
    axis.set_title("loss: straight broad, resumed dashed", fontsize=9.5, loc="left", y=1.08)
    axis.yaxis.set_major_locator(MaxNLocator(4))
    _frame(axis)
    axis.tick_params(labelbottom=False)


def _draw_difference(axis, scene: Scene, straight: Straight, resumed: Resumed) -> None:
    pairs = differences(straight, resumed)
    axis.set_yscale("log")
    axis.minorticks_off()  # they take longest to draw
    for points, look in (
        ([p for p in pairs if p[1]], {"color": VERMILION, "marker": "s", "markersize": 3.2}),
        ([p for p in pairs if not p[1]], {"color": GREEN, "marker": "o", "markersize": 3.6}),
    ):
        if points:
            steps, gaps = zip(*points, strict=True)
            axis.plot(steps, [max(gap, FLOOR) for gap in gaps], linestyle="", **look)
    axis.set_ylim(FLOOR / 4, 10)
    axis.yaxis.set_major_locator(FixedLocator([FLOOR, 1e-6, 1e-3, 1]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == FLOOR else f"{value:g}"))
    axis.axhline(FLOOR * 8, color=GRAY, linewidth=0.7, linestyle=":")
    _mark_stop(axis, scene, resumed)
    axis.set_title("difference, logarithmic; circles: exactly 0", fontsize=9.5, loc="left", y=1.02)
    axis.set_xlabel("step", fontsize=9)
    axis.xaxis.set_label_coords(0.5, -0.2)
    _frame(axis)


def _frame(axis) -> None:
    axis.set_xlim(-0.6, STEPS + 0.6)
    axis.xaxis.set_major_locator(FixedLocator(range(0, STEPS + 1, BATCHES)))
    axis.tick_params(labelsize=9)
    axis.grid(axis="y", color=PALE, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def _mark_stop(axis, scene: Scene, resumed: Resumed, *, named: bool = False) -> None:
    start = resumed.start or 0
    axis.axvline(scene.stop, color=BLACK, linewidth=1)
    if start != scene.stop:
        axis.axvline(start, color=BLACK, linewidth=1, linestyle=":")
    if named:
        right = scene.stop < STEPS / 2
        text = " stopped" if right else "stopped "
        axis.text(scene.stop, 1.0, text, transform=axis.get_xaxis_transform(), fontsize=9,
                  ha="left" if right else "right", va="bottom")  # fmt: skip


def _draw_files(axis, scene: Scene, straight: Straight, resumed: Resumed) -> None:
    """What the checkpoint holds, what lies on disk, and the verdict."""
    axis.set(xlim=(0, 1), ylim=(0, 1))
    _text(axis, 0.97, "in the checkpoint", weight="bold")
    listed = "\n".join(f"{'✓' if item in scene.items else '✗'}  {item}" for item in ITEMS)
    axis.text(0.02, 0.935, listed, fontsize=9.5, va="top", color=BLACK, linespacing=1.35)
    _text(axis, 0.59, "on disk " + ("after the crash" if scene.crash else "after the stop"), weight="bold")
    y = 0.53
    for file in resumed.files:
        broken = bool(file.error)
        axis.add_patch(_card(y, broken))
        told = "half a file, does not load" if broken else f"{_size(file.size)}, step {file.step}"
        _text(axis, y - 0.058, f"{file.name}\n{told}", x=0.07, color=VERMILION if broken else BLACK)
        y -= 0.165
    same = is_same_run(straight, resumed)
    _text(axis, 0.14, "resumed from " + ("nothing" if resumed.start is None else f"step {resumed.start}"))
    _text(axis, 0.07, "the same run" if same else "another run", weight="bold", color=GREEN if same else VERMILION)


def _card(y: float, broken: bool) -> Rectangle:
    """A frame for a file; that of half a file is torn."""
    style = {"linestyle": (0, (3, 2)), "edgecolor": VERMILION} if broken else {"edgecolor": GRAY}
    return Rectangle((0.02, y - 0.125), 0.96, 0.135, facecolor="white", linewidth=1.2, **style)


def _text(axis, y: float, text: str, x: float = 0.02, **look) -> None:
    axis.text(x, y, text, fontsize=9.5, va="center", **{"color": BLACK, **look})


def _alt(scene: Scene, straight: Straight, resumed: Resumed) -> str:
    recipe = scene.recipe
    schedule = "a cosine schedule" if recipe.schedule else "a constant rate"
    run = f"{recipe.optimizer} {'with' if recipe.dropout else 'without'} dropout under {schedule}"
    crash = f", crash during the save, {scene.writing} writing" if scene.crash else f", {scene.writing} writing"
    same = "the same run to the last bit" if is_same_run(straight, resumed) else "another run"
    files = "; ".join(f"{f.name} {'is broken' if f.error else f'holds step {f.step}'}" for f in resumed.files)
    return (
        f"Loss of a straight run and of one stopped after step {scene.stop} and resumed from "
        f"{'nothing' if resumed.start is None else f'step {resumed.start}'}, and their difference on a logarithmic "
        f"scale. {run}{crash}. In the checkpoint: {', '.join(['step', *scene.items])}. Straight run ends at "
        f"{straight.losses[-1]:.4f}, resumed run at {resumed.losses[-1]:.4f}: {same}. The losses part: "
        f"{_parting_in_words(straight, resumed)}. On disk: {files}."
    )


def still(recipe: Recipe | None = None, stop: int = 20) -> Figure:
    """The five contents, each with one item more, as curves of the difference and a table of the final losses."""
    recipe = recipe or Recipe()
    straight = straight_run(recipe)
    figure, (axis, table) = new_figure(7.5, 3.4, 1, 2)
    axis.set_yscale("log")
    axis.minorticks_off()  # they take longest to draw
    looks = zip((VERMILION, ORANGE, PURPLE, BLUE, GREEN), ("s", "^", "D", "v", "o"), strict=True)
    bare(table).set(xlim=(0, 1), ylim=(0, 1))
    table.text(0, 0.95, "in the checkpoint", fontsize=9.5, weight="bold")
    table.text(1, 0.95, "loss at the end", fontsize=9.5, weight="bold", ha="right")
    told = []
    for place, (color, marker) in enumerate(looks):
        resumed = resumed_run(Scene(recipe, stop, ITEMS[: place + 1]))
        steps, gaps = zip(*differences(straight, resumed), strict=True)
        axis.plot(steps, [max(gap, FLOOR) for gap in gaps], color=color, marker=marker, markersize=3.5, linewidth=1)
        name = ITEMS[0] if place == 0 else f"+ {ITEMS[place]}"
        y = 0.81 - 0.135 * place
        table.plot([0.03], [y + 0.02], color=color, marker=marker, markersize=6, linestyle="")
        table.text(0.1, y, name, fontsize=9.5)
        table.text(1, y, f"{resumed.losses[-1]:.4f}", fontsize=9.5, ha="right")
        told.append(f"{name}: ends at {resumed.losses[-1]:.4f}, parts {_parting_in_words(straight, resumed)}.")
    table.text(0.1, 0.81 - 0.135 * 5, "not interrupted", fontsize=9.5)
    table.text(1, 0.81 - 0.135 * 5, f"{straight.losses[-1]:.4f}", fontsize=9.5, ha="right")
    axis.set_ylim(FLOOR / 4, 10)
    axis.yaxis.set_major_locator(FixedLocator([FLOOR, 1e-6, 1e-3, 1]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "exactly 0" if value == FLOOR else f"{value:g}"))
    axis.set_xlabel("step", fontsize=9.5)
    axis.set_title("difference of the losses, logarithmic", fontsize=9.5, loc="left")
    axis.grid(axis="y", color=PALE, linewidth=0.7)
    head = f"{recipe.optimizer} with dropout and a cosine schedule, stopped after step {stop} of {STEPS} and resumed. "
    end = f" Not interrupted: {straight.losses[-1]:.4f}."
    return Figure(figure, head + "What the checkpoint holds, one item more each time. " + " ".join(told) + end)


# --- the explorer -----------------------------------------------------------------------------------------------------


def _control_of(item: str) -> str:
    """The name of the check box of an item, such as save_rng_state."""
    return f"save_{item.lower().replace(' ', '_')}"


def scene_of(stop: int, optimizer: str, dropout: bool, schedule: bool, crash: bool, writing: str, **items) -> Scene:
    """The scene for the values of the controls; `items` are the check boxes of what is saved."""
    chosen = tuple(item for item in ITEMS if items[_control_of(item)])
    return Scene(Recipe(optimizer, dropout, schedule), stop, chosen, writing, crash)


def render(**controls) -> tuple[Figure, str]:
    """Picture and words for the values of the controls."""
    scene = scene_of(**controls)
    return picture(scene), describe(scene)


def resume_laboratory() -> Explorer:
    """Stop a run, choose what its checkpoint holds and how it is written, and compare the resumed run."""
    first = Scene()
    wide = {"style": {"description_width": "90px"}}
    for optimizer in RATES:  # so that no later change has to wait for a straight run
        for switches in range(4):
            straight_run(Recipe(optimizer, bool(switches & 1), bool(switches & 2)))
    controls: dict[str, widgets.Widget] = {
        "stop": widgets.IntSlider(
            min=1, max=STEPS - 1, value=first.stop, description="stop after", continuous_update=False, **wide
        ),
        **{
            _control_of(item): widgets.Checkbox(item in first.items, description=f"save {item}", indent=False)
            for item in ITEMS
        },
        "optimizer": widgets.Dropdown(
            options=list(RATES), value=first.recipe.optimizer, description="optimizer", **wide
        ),
        "dropout": widgets.Checkbox(first.recipe.dropout, description="dropout", indent=False),
        "schedule": widgets.Checkbox(first.recipe.schedule, description="cosine schedule", indent=False),
        "crash": widgets.Checkbox(first.crash, description="crash during the save", indent=False),
        "writing": widgets.Dropdown(options=WRITING, value=first.writing, description="writing", **wide),
    }
    return Explorer("Resume laboratory", controls, render, still())
