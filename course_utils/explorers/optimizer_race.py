"""Optimizer race: torch's optimizers on a surface of two coordinates, and beside them an `adam_step` of your own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import nn
from torch.optim import lr_scheduler

from course_utils.explorers.explorer import Explorer
from course_utils.plots.figure import (
    BLACK,
    BLUE,
    DOTS_PER_INCH,
    GRAY,
    GREEN,
    ORANGE,
    PALE,
    VERMILION,
    Figure,
    new_figure,
)

STEPS = 60
FAR = 1e4  # a point this far away has left for good
FLOOR = 1e-9  # the lowest height and step length that are drawn
LARGEST_BETA1 = 0.99  # Adam's averages need something of the new gradient
OWN = "your adam_step"

AdamStep = Callable[..., None]


@dataclass(frozen=True)
class Surface:
    """A loss of two coordinates: its formula, what part of it is drawn, where the race starts, its lowest value.

    curvature: the steepest one where it is the same everywhere, else None.
    """

    height: Callable
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    start: tuple[float, float]
    lowest: float
    curvature: float | None = None


SURFACES = {
    "bowl": Surface(lambda x, y: ((x - 2) ** 2 + 2 * (y - 1) ** 2) / 2, (-5, 5), (-3.5, 3.5), (-4.0, -2.5), 0.0, 2.0),
    "ravine": Surface(lambda x, y: (x**2 + 20 * y**2) / 2, (-9, 9), (-2.6, 2.6), (-8.0, 1.6), 0.0, 20.0),
    "saddle": Surface(lambda x, y: x**2 / 2 - y**2 / 2 + y**4 / 16, (-4, 4), (-3.4, 3.4), (-3.5, 0.02), -1.0),
    "two valleys": Surface(
        lambda x, y: (x**2 - 4) ** 2 / 16 + 0.3 * x + y**2 / 2, (-4.4, 4.4), (-2.6, 2.6), (3.9, 1.8), -0.6210249193
    ),
}

OPTIMIZERS = ("SGD", "momentum", "Nesterov", "Adam", "AdamW")
SCHEDULES = {
    "constant": None,
    "cosine": "CosineAnnealingLR",
    "warm-up, cosine": "LinearLR, then CosineAnnealingLR",
    "one-cycle": "OneCycleLR",
}
WARMUP = 10


@dataclass(frozen=True)
class Race:
    """Everything that decides how the race goes. clip: the largest gradient norm, None for no clipping."""

    surface: str = "ravine"
    optimizer: str = "Adam"
    lr: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    schedule: str = "constant"
    noise: float = 0.0
    never_clear: bool = False
    clip: float | None = None


@dataclass(frozen=True)
class Path:
    """What a racer did: its points (the start first), the rate of each step, and why it stopped early, if it did."""

    points: tuple[tuple[float, float], ...]
    rates: tuple[float, ...]
    ended: str = ""

    @property
    def lengths(self) -> list[float]:
        """How long each step was."""
        return [math.dist(a, b) for a, b in zip(self.points, self.points[1:], strict=False)]

    def heights(self, surface: Surface) -> list[float]:
        """The loss at each point."""
        return [float(surface.height(x, y)) for x, y in self.points]


def make_optimizer(race: Race, parameter: nn.Parameter) -> torch.optim.Optimizer:
    """torch's optimizer with the settings of the race."""
    common = {"lr": race.lr, "weight_decay": race.weight_decay}
    if race.optimizer in ("Adam", "AdamW"):
        kind = getattr(torch.optim, race.optimizer)
        return kind([parameter], betas=(min(race.beta1, LARGEST_BETA1), race.beta2), **common)
    momentum = 0.0 if race.optimizer == "SGD" else race.beta1
    nesterov = race.optimizer == "Nesterov" and momentum > 0
    return torch.optim.SGD([parameter], momentum=momentum, nesterov=nesterov, **common)


def make_scheduler(name: str, optimizer: torch.optim.Optimizer, steps: int = STEPS):
    """torch's scheduler of that name for so many steps, or None."""
    if name == "constant":
        return None
    if name == "one-cycle":
        lr = optimizer.param_groups[0]["lr"]
        return lr_scheduler.OneCycleLR(optimizer, lr, steps, cycle_momentum=False)
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, steps)
    up = lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP - 1)
    down = lr_scheduler.CosineAnnealingLR(optimizer, steps - WARMUP)
    return lr_scheduler.SequentialLR(optimizer, [up, down], [WARMUP])


@cache
def rates_of(schedule: str, lr: float, steps: int = STEPS) -> tuple[float, ...]:
    """The rate that each step uses, read from the scheduler itself."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make_scheduler(schedule, optimizer, steps), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if scheduler is not None and step + 1 < steps:
                scheduler.step()
    return tuple(rates)


def run(race: Race, adam_step: AdamStep | None = None, steps: int = STEPS) -> Path:
    """The path of torch's optimizer, or of `adam_step` under the same rates, noise, clipping and decay.

    With adam_step, decay is AdamW's where the race says AdamW, and L2 otherwise. Noise is the same in every run.
    """
    surface = SURFACES[race.surface]
    parameter = nn.Parameter(torch.tensor(surface.start, dtype=torch.float64))
    rates = rates_of(race.schedule, race.lr, steps)
    move = partial(_move_by_hand, race, parameter, adam_step, {}) if adam_step else _mover(race, parameter)
    noise = race.noise * torch.randn(steps, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points, ended = [surface.start], ""
    for step in range(steps):
        if not race.never_clear:
            parameter.grad = None
        surface.height(parameter[0], parameter[1]).backward()
        if race.noise:
            parameter.grad += noise[step]
        if race.clip is not None:
            nn.utils.clip_grad_norm_([parameter], race.clip)
        try:
            move(rates[step])
        except Exception as error:
            ended = f"step {step + 1} raised {type(error).__name__}: {error}"
            break
        x, y = parameter.tolist()
        if not math.hypot(x, y) < FAR:
            ended = f"left the surface at step {step + 1}"
            break
        points.append((x, y))
    return Path(tuple(points), rates[: len(points) - 1], ended)


def _mover(race: Race, parameter: nn.Parameter) -> Callable[[float], None]:
    """One step of torch's optimizer at a given rate."""
    optimizer = make_optimizer(race, parameter)

    def move(rate: float) -> None:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()

    return move


def _move_by_hand(race: Race, parameter: nn.Parameter, adam_step: AdamStep, state: dict, rate: float) -> None:
    gradient = parameter.grad.clone()
    with torch.no_grad():
        if race.optimizer == "AdamW":
            parameter *= 1 - rate * race.weight_decay
        else:
            gradient += race.weight_decay * parameter
    adam_step(parameter, gradient, state, lr=rate, betas=(min(race.beta1, LARGEST_BETA1), race.beta2))


# --- in words ---------------------------------------------------------------------------------------------------------


def code(race: Race) -> str:
    """The optimizer of the race as a line of Python, without its scheduler."""
    settings = [f"lr={race.lr:.3g}"]
    if race.optimizer in ("Adam", "AdamW"):
        settings.append(f"betas=({min(race.beta1, LARGEST_BETA1):g}, {race.beta2:g})")
    elif race.optimizer != "SGD":
        settings.append(f"momentum={race.beta1:g}")
        settings += ["nesterov=True"] if race.optimizer == "Nesterov" and race.beta1 > 0 else []
    settings.append(f"weight_decay={race.weight_decay:g}")
    kind = race.optimizer if race.optimizer in ("Adam", "AdamW") else "SGD"
    return f"torch.optim.{kind}([p], {', '.join(settings)})"


def describe(race: Race, path: Path, own: Path | None) -> str:
    """The race in words: what ran, where it went, how the two paths compare."""
    surface = SURFACES[race.surface]
    rows = {"torch": _result(path, surface)}
    rows["first steps"] = ", ".join(f"{length:.4g}" for length in path.lengths[:4]) or "none"
    if own is not None:
        rows[OWN] = _result(own, surface)
        rows["its first steps"] = ", ".join(f"{length:.4g}" for length in own.lengths[:4]) or "none"
        if race.optimizer in ("Adam", "AdamW"):
            rows["largest distance"] = _distance(path, own)
    width = max(map(len, rows))
    lines = [code(race), "", *(f"{name:<{width}}  {text}" for name, text in rows.items())]
    return "\n".join([*lines, *_notes(race, surface)])


def _result(path: Path, surface: Surface) -> str:
    (x, y), count = path.points[-1], len(path.points) - 1
    height = path.heights(surface)[-1]
    ended = f"; {path.ended}" if path.ended else ""
    return f"after {count} steps at ({round(x, 5) + 0.0:g}, {round(y, 5) + 0.0:g}), loss {height:.4g}{ended}"


def _distance(path: Path, own: Path) -> str:
    if len(path.points) != len(own.points):
        return "the two do not end at the same step"
    largest = max(math.dist(a, b) for a, b in zip(path.points, own.points, strict=True))
    return "below 1e-9: the same path" if largest < 1e-9 else f"{largest:.3g}"


def _notes(race: Race, surface: Surface) -> list[str]:
    notes = []
    if surface.curvature:
        limit = 2 / surface.curvature
        notes.append(f"Steepest curvature here: {surface.curvature:g}. 2 / curvature = {limit:g}.")
    if race.optimizer == "Nesterov" and race.beta1 == 0:
        notes.append("Nesterov without momentum is plain SGD; torch refuses the combination.")
    if race.optimizer in ("Adam", "AdamW") and race.beta1 > LARGEST_BETA1:
        notes.append(f"beta1 = {race.beta1:g} would never take in a gradient; {LARGEST_BETA1} is used.")
    if race.schedule == "one-cycle":
        notes.append("OneCycleLR runs with cycle_momentum=False here, so momentum and beta1 stay yours.")
    return ["", *notes] if notes else []


# --- pictures ---------------------------------------------------------------------------------------------------------

# Torch's path is the broader one and lies below: where both agree, it shows around the other.
TORCH_LOOK = {"color": BLUE, "linewidth": 2.4, "marker": "o", "markersize": 5}
OWN_LOOK = {"color": ORANGE, "linewidth": 1.2, "linestyle": (0, (4, 2)), "marker": "s", "markersize": 2.2}


@cache
def _ground(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Grid, heights and contour levels of a surface; the levels are denser near its lowest point."""
    surface = SURFACES[name]
    x, y = np.meshgrid(np.linspace(*surface.x_range, 51), np.linspace(*surface.y_range, 37))
    heights = surface.height(x, y)
    return x, y, heights, np.unique(np.quantile(heights, np.linspace(0.03, 0.97, 10) ** 1.5))


def picture(race: Race, path: Path, own: Path | None) -> Figure:
    """Both paths on the contours, and beside them rate, step length and height at each step."""
    surface = SURFACES[race.surface]
    # Four fixed frames, without the layout of new_figure: fitting them would take most of the time.
    figure = MatplotlibFigure(figsize=(7.5, 4.1), dpi=DOTS_PER_INCH)
    board = figure.add_axes((0.065, 0.075, 0.51, 0.83))
    _draw_board(board, race.surface, [(path, TORCH_LOOK), *([(own, OWN_LOOK)] if own else [])])
    squares = f"; {OWN}: squares" if own else ""
    board.set_title(f"{race.optimizer} of torch: circles{squares}", fontsize=9.5, loc="left", y=1.01)
    heights = [height - surface.lowest for height in path.heights(surface)]
    own_heights = [height - surface.lowest for height in own.heights(surface)] if own else []
    plots = (
        ("rate", path.rates, ()),
        ("step length", path.lengths, own.lengths if own else ()),
        ("loss − lowest", heights, own_heights),
    )
    for place, (name, values, others) in enumerate(plots):
        axis = figure.add_axes((0.675, 0.725 - 0.305 * place, 0.305, 0.185))
        _draw_curve(axis, name, values, others, logarithmic=place > 0)
        _place_by_hand(axis)
    axis.set_xlabel("step", fontsize=9)
    _place_by_hand(board)
    return Figure(figure, _alt(race, path, own))


def _place_by_hand(axis) -> None:
    """Fix the places of labels, which are otherwise fitted around all tick labels at each drawing."""
    axis.xaxis.set_label_coords(0.5, -0.3)
    axis.yaxis.set_label_coords(-0.2, 0.5)


def _draw_board(axis, name: str, racers: list[tuple[Path, dict]]) -> None:
    """Contours, the paths inside the frame, the start and the ends."""
    surface = SURFACES[name]
    x, y, heights, levels = _ground(name)
    axis.contour(x, y, heights, levels=levels, colors=GRAY, linewidths=0.6, linestyles="solid", alpha=0.7)
    for path, look in racers:
        points = np.clip(np.array(path.points), -50, 50)  # what leaves the frame is cut off by it
        axis.plot(points[:, 0], points[:, 1], **look)
        axis.plot(*points[-1], marker="X", color=look["color"], markersize=4 + look["markersize"], linestyle="")
    axis.plot(*surface.start, marker="D", color=BLACK, markersize=6, linestyle="")
    axis.set(xlim=surface.x_range, ylim=surface.y_range)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_curve(axis, name: str, values: Sequence[float], others: Sequence[float], *, logarithmic: bool) -> None:
    """One quantity at each step, for torch's optimizer and, where there are others, for one's own."""
    for numbers, look in ((values, TORCH_LOOK), (others, OWN_LOOK)):
        shown = [min(max(number, FLOOR), 1e9) for number in numbers] if logarithmic else numbers
        axis.plot(shown, **{**look, "marker": "", "linewidth": 0.8 * look["linewidth"]})
    axis.set_title(f"{name}, logarithmic" if logarithmic else name, fontsize=9, loc="left", y=1.01)
    axis.set_xlim(0, STEPS)
    if logarithmic:
        axis.set_yscale("log")
        axis.minorticks_off()  # they take longest to draw
        low, high = axis.get_ylim()
        if high / low < 20:  # room for at least one power of ten
            axis.set_ylim(low / 4, high * 4)
        axis.yaxis.set_major_locator(LogLocator(numticks=4))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_ylim(0, 1.15 * max(values, default=1.0))
        axis.yaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_locator(FixedLocator(range(0, STEPS + 1, 20)))
    axis.tick_params(labelsize=9)
    axis.grid(axis="y", color=PALE, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def _alt(race: Race, path: Path, own: Path | None) -> str:
    surface = SURFACES[race.surface]
    settings = f"schedule {race.schedule}, noise {race.noise:g}, "
    settings += "gradients never cleared, " if race.never_clear else ""
    settings += "no clipping" if race.clip is None else f"clipped at {race.clip:g}"
    beside = f" {OWN}: {_result(own, surface)}." if own else ""
    return (
        f"Paths on the contours of the {race.surface}, from {surface.start}; beside them rate, step length and height "
        f"above the lowest point at each step, logarithmic. {code(race)}, {settings}: {_result(path, surface)}.{beside}"
    )


def still(adam_step: AdamStep | None = None) -> Figure:
    """Six paths in the ravine and the four schedules, for a page without a kernel."""
    races = {
        "SGD, lr 0.03": Race(optimizer="SGD", lr=0.03),
        "no zero_grad, lr 0.03": Race(optimizer="SGD", lr=0.03, never_clear=True),
        "momentum 0.9, lr 0.03": Race(optimizer="momentum", lr=0.03),
        "Nesterov 0.9, lr 0.03": Race(optimizer="Nesterov", lr=0.03),
        "Adam, lr 0.2": Race(optimizer="Adam"),
        "AdamW, decay 0.3": Race(optimizer="AdamW", weight_decay=0.3),
    }
    surface = SURFACES["ravine"]
    figure, axes = new_figure(7.5, 5.6, 3, 3)
    grid = axes[0].get_gridspec()
    for axis in axes[6:]:
        axis.remove()
    told = []
    for axis, (label, race) in zip(axes, races.items(), strict=False):
        path = run(race)
        by_hand = [(run(race, adam_step), OWN_LOOK)] if adam_step and "Adam" in race.optimizer else []
        _draw_board(axis, "ravine", [(path, TORCH_LOOK), *by_hand])
        yours = " (squares: yours)" if by_hand else ""
        axis.set_title(f"{label}\nloss {path.heights(surface)[-1]:.2g}{yours}", fontsize=9, loc="left")
        told.append(f"{label}: {_result(path, surface)}{f', {OWN} beside it as squares' if by_hand else ''}.")
    wide = figure.add_subplot(grid[2, :])
    looks = zip(("-", "--", "-.", ":"), (BLUE, VERMILION, GREEN, BLACK), strict=True)
    for name, (style, color) in zip(SCHEDULES, looks, strict=True):
        rates = rates_of(name, 1.0)
        wide.plot(rates, linestyle=style, color=color, linewidth=1.8, label=name)
        told.append(f"Schedule {name}: from {rates[0]:.3g} to {rates[-1]:.3g}, highest {max(rates):.3g}.")
    wide.legend(fontsize=9, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    wide.set_xlabel("step", fontsize=9)
    wide.set_ylabel("rate", fontsize=9)
    wide.spines[["top", "right"]].set_visible(False)
    wide.tick_params(labelsize=9)
    head = f"Six paths of {STEPS} steps in a ravine, and the rates of four schedules below them. "
    return Figure(figure, head + " ".join(told))


# --- the explorer -----------------------------------------------------------------------------------------------------


def render(adam_step: AdamStep | None = None, **controls) -> tuple[Figure, str]:
    """Picture and words for the values of the controls."""
    clip = controls.pop("clip")
    race = Race(clip=None if clip == "off" else float(clip), **controls)
    path = run(race)
    own = run(race, adam_step) if adam_step else None
    return picture(race, path, own), describe(race, path, own)


def optimizer_race(adam_step: AdamStep | None = None) -> Explorer:
    """Race torch's optimizers on a surface, and beside them `adam_step(param, grad, state, lr, betas)` if given."""
    first = Race()
    wide = {"style": {"description_width": "110px"}}
    slow = {"continuous_update": False, **wide}
    controls: dict[str, widgets.Widget] = {
        "surface": widgets.Dropdown(options=list(SURFACES), value=first.surface, description="surface", **wide),
        "optimizer": widgets.Dropdown(options=OPTIMIZERS, value=first.optimizer, description="optimizer", **wide),
        "lr": widgets.FloatLogSlider(
            min=-3, max=0.6, step=0.01, value=first.lr, description="learning rate", readout_format=".3g", **slow
        ),
        "beta1": widgets.FloatSlider(min=0, max=1, step=0.05, value=first.beta1, description="momentum, β1", **slow),
        "beta2": widgets.SelectionSlider(
            options=[0.5, 0.9, 0.95, 0.99, 0.999], value=first.beta2, description="β2", **slow
        ),
        "weight_decay": widgets.SelectionSlider(
            options=[0.0, 0.01, 0.03, 0.1, 0.3, 1.0], description="weight decay", **slow
        ),
        "schedule": widgets.Dropdown(options=list(SCHEDULES), description="schedule", **wide),
        "noise": widgets.FloatSlider(min=0, max=5, step=0.25, value=0, description="gradient noise", **slow),
        "clip": widgets.SelectionSlider(options=["off", 10.0, 5.0, 2.0, 1.0, 0.5], description="clip norm", **slow),
        "never_clear": widgets.Checkbox(description="no zero_grad", **wide),
    }
    return Explorer("Optimizer race", controls, partial(render, adam_step), still(adam_step))
