"""Loop simulator: the five calls in any order, on a line fitted to forty points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from course_utils.explorers.explorer import Explorer
from course_utils.plots.figure import (
    BLACK,
    BLUE,
    DOTS_PER_INCH,
    GRAY,
    ORANGE,
    PALE,
    Figure,
    bare,
    new_figure,
)

STEPS = 60
FAR = 1e4  # parameters this far away have left for good
FLOOR = 1e-3  # the smallest norm that is drawn
START = (-2.6, 2.6)
W_RANGE, B_RANGE = (-3.6, 4.4), (-3.2, 3.6)

ORDERS = {
    "clear · forward · backward · clip · step": "clear forward backward clip step",
    "forward · clear · backward · clip · step": "forward clear backward clip step",
    "forward · backward · clip · step · clear": "forward backward clip step clear",
    "forward · backward · clear · clip · step": "forward backward clear clip step",
    "clear · forward · clip · backward · step": "clear forward clip backward step",
    "forward · step · clear · backward · clip": "forward step clear backward clip",
}
RIGHT = next(iter(ORDERS))
BATCH_SIZES = (1, 5, 7, 10, 14, 20, 21, 28, 40)


@dataclass(frozen=True)
class Loop:
    """Everything that decides how the loop goes. clip: the largest gradient norm, None for no clipping.

    averaging: what the batches of an accumulation window weigh: "samples" or all the same ("batch means").
    """

    order: str = RIGHT
    zero_grad: bool = True
    lr: float = 0.1
    momentum: float = 0.0
    batch_size: int = 20
    accumulation: int = 1
    clip: float | None = None
    averaging: str = "samples"

    @property
    def plain(self) -> Loop:
        """The loop to compare with: calls in order, each window one large batch, nothing clipped."""
        large = self.batch_size * self.accumulation
        return Loop(lr=self.lr, momentum=self.momentum, batch_size=large)


@dataclass(frozen=True)
class Run:
    """What a loop did: the points (the start first), and for each step the loss and two gradient norms.

    reported: what the clip call returned, or without clipping the norm of the gradient the step found. used: the norm
    of the gradient the step found; 0 where it found none.
    """

    points: tuple[tuple[float, float], ...]
    losses: tuple[float, ...]
    reported: tuple[float, ...]
    used: tuple[float, ...]
    ended: str = ""

    @property
    def lengths(self) -> list[float]:
        """How long each step was."""
        return [math.dist(a, b) for a, b in zip(self.points, self.points[1:], strict=False)]


@cache
def forty_points() -> tuple[np.ndarray, np.ndarray]:
    """Inputs with a column of ones beside them, (40, 2), and targets, (40,); the last five lie off the line."""
    random = np.random.RandomState(3)  # the one generator that NumPy promises never to change
    x = random.uniform(-1.0, 2.2, 40)
    y = 1.5 * x - 1.0 + random.normal(0.0, 0.6, 40)
    y[-5:] += 2.5
    return np.stack([x, np.ones(40)], axis=1), y


def mean_loss(w, b):
    """The loss over all forty points, of numbers or of grids of them."""
    inputs, y = forty_points()
    # Written out, the mean of squares is a polynomial: six numbers for the whole grid.
    xx, x1, xy, y1, yy = (np.mean(a * c) for a, c in _pairs(inputs[:, 0], inputs[:, 1], y))
    return w * w * xx + 2 * w * b * x1 + b * b - 2 * w * xy - 2 * b * y1 + yy


def _pairs(x, ones, y):
    return (x, x), (x, ones), (x, y), (y, ones), (y, y)


def windows(batch_size: int, accumulation: int) -> Iterator[list[slice]]:
    """Without end: the batches of each accumulation window. Batches and windows at the end of an epoch may be short."""
    batches = [slice(start, min(start + batch_size, 40)) for start in range(0, 40, batch_size)]
    while True:
        for start in range(0, len(batches), accumulation):
            yield batches[start : start + accumulation]


def run(loop: Loop, steps: int = STEPS) -> Run:
    """So many optimizer steps of SGD, as torch makes them: a gradient of None is skipped, backward adds."""
    inputs, y = forty_points()
    p, gradient, velocity = np.array(START), None, None
    points, losses, reported, used, ended = [START], [], [], [], ""
    for _, window in zip(range(steps), windows(loop.batch_size, loop.accumulation), strict=False):
        shares = _shares(window, loop.averaging)
        norm = None
        for word in ORDERS[loop.order].split():
            if word == "clear" and loop.zero_grad:
                gradient = None
            elif word == "forward":
                residuals = [inputs[batch] @ p - y[batch] for batch in window]
                loss = sum(share * np.mean(r**2) for share, r in zip(shares, residuals, strict=True))
            elif word == "backward":
                for share, batch, r in zip(shares, window, residuals, strict=True):
                    fresh = share * 2 * (r @ inputs[batch]) / len(r)
                    gradient = fresh if gradient is None else gradient + fresh
            elif word == "clip" and loop.clip is not None:
                norm = _length(gradient)
                if gradient is not None:
                    gradient = gradient * min(1.0, loop.clip / (norm + 1e-6))
            elif word == "step":
                used.append(_length(gradient))
                if gradient is not None:
                    velocity = gradient if velocity is None else loop.momentum * velocity + gradient
                    p = p - loop.lr * velocity
        losses.append(float(loss))
        reported.append(used[-1] if norm is None else norm)
        if not math.hypot(*p) < FAR:
            ended = f"left the picture for good at step {len(losses)}"
            break
        points.append((float(p[0]), float(p[1])))
    return Run(tuple(points), tuple(losses), tuple(reported), tuple(used), ended)


def _shares(window: Sequence[slice], averaging: str) -> list[float]:
    sizes = [batch.stop - batch.start if averaging == "samples" else 1 for batch in window]
    return [size / sum(sizes) for size in sizes]


def _length(gradient: np.ndarray | None) -> float:
    return 0.0 if gradient is None else math.hypot(*gradient)


# --- in words ---------------------------------------------------------------------------------------------------------


def code(loop: Loop) -> str:
    """The loop as Python."""
    accumulates = loop.accumulation > 1
    share = "len(x) / samples" if loop.averaging == "samples" else "1 / len(window)"
    lines = {
        "clear": ["optimizer.zero_grad()"],
        "forward": ["loss = F.mse_loss(model(x), y)"],
        "backward": ["loss.backward()"],
        "clip": [f"norm = clip_grad_norm_(model.parameters(), {loop.clip:g})"] if loop.clip is not None else [],
        "step": ["optimizer.step()"],
    }
    if accumulates:
        lines["forward"] = [f"losses = [F.mse_loss(model(x), y) * ({share}) for x, y in window]"]
        lines["backward"] = ["for loss in losses: loss.backward()"]
    if not loop.zero_grad:
        lines["clear"] = []
    head = f"for x, y in batches_of({loop.batch_size}):"
    if accumulates:
        head = f"for window in windows_of({loop.accumulation}, batches_of({loop.batch_size})):"
    body = [f"    {line}" for word in ORDERS[loop.order].split() for line in lines[word]]
    first = f"optimizer = torch.optim.SGD(model.parameters(), lr={loop.lr:.3g}, momentum={loop.momentum:g})"
    return "\n".join([first, head, *body])


def describe(loop: Loop, path: Run, plain: Run) -> str:
    """The loop in words: its code, where it went, and how far from the plain loop."""
    rows = {
        "this loop": _result(path),
        "first steps": _listed(path.lengths, 4),
        "gradient norms": f"{_listed(path.reported)} reported; {_listed(path.used)} used by the step",
        "plain loop": _result(plain),
        "distance": _distance(path, plain),
        "angle": _angle(path, plain),
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {text}" for name, text in rows.items()]
    large = min(loop.batch_size * loop.accumulation, 40)
    note = f"Plain loop: calls in order, batches of {large}, no clipping, the same rate and momentum."
    return "\n".join([code(loop), "", *lines, "", note])


def _listed(numbers: Sequence[float], count: int = 3) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers[:count]) + ", …"


def _result(path: Run) -> str:
    w, b = path.points[-1]
    place = f"after {len(path.points) - 1} steps at ({w:.4f}, {b:.4f}), loss {mean_loss(w, b):.5g}"
    return f"{place}; {path.ended}" if path.ended else place


def _distance(path: Run, plain: Run) -> str:
    if len(path.points) != len(plain.points):
        return "the two do not end at the same step"
    largest = max(math.dist(a, b) for a, b in zip(path.points, plain.points, strict=True))
    return "below 1e-9: the same path" if largest < 1e-9 else f"up to {largest:.3g}"


def _angle(path: Run, plain: Run) -> str:
    """Between the first steps of both."""
    steps = [np.subtract(run.points[1], run.points[0]) for run in (path, plain) if len(run.points) > 1]
    if len(steps) < 2 or not all(map(np.any, steps)):
        return "one of the two makes no first step"
    (x, y), (u, v) = steps
    degrees = math.degrees(math.atan2(abs(x * v - y * u), x * u + y * v))
    return f"{degrees:.2f} degrees between the first steps of both"


# --- pictures ---------------------------------------------------------------------------------------------------------

# The plain path is the broader one and lies below: where both agree, it shows around the other.
PLAIN_LOOK = {"color": ORANGE, "linewidth": 4.0, "marker": "s", "markersize": 7, "alpha": 0.55}
LOOP_LOOK = {"color": BLUE, "linewidth": 1.3, "marker": "o", "markersize": 3.5}


@cache
def _ground() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    w, b = np.meshgrid(np.linspace(*W_RANGE, 33), np.linspace(*B_RANGE, 27))
    heights = mean_loss(w, b)
    return w, b, heights, np.quantile(heights, np.linspace(0.05, 0.98, 9) ** 1.6)


def picture(loop: Loop, path: Run, plain: Run) -> Figure:
    """Both paths on the contours of the loss; beside them loss and gradient norms at each step."""
    # Fixed frames, without the layout of new_figure: fitting them would take most of the time.
    figure = MatplotlibFigure(figsize=(7.5, 4.1), dpi=DOTS_PER_INCH)
    board = figure.add_axes((0.075, 0.115, 0.5, 0.79))
    _draw_board(board, [(plain, PLAIN_LOOK), (path, LOOP_LOOK)])
    board.set_title("circles: this loop; squares: the plain loop", fontsize=9.5, loc="left", y=1.01)
    board.set_xlabel("w", fontsize=9)
    board.set_ylabel("b", fontsize=9)
    board.xaxis.set_label_coords(0.5, -0.09)
    board.yaxis.set_label_coords(-0.09, 0.5)
    losses = figure.add_axes((0.68, 0.6, 0.3, 0.305))
    _draw_curves(losses, "loss of each step (log scale)", [(plain.losses, PLAIN_LOOK), (path.losses, LOOP_LOOK)])
    norms = figure.add_axes((0.68, 0.115, 0.3, 0.305))
    reported = {"color": GRAY, "linewidth": 3.2, "alpha": 0.6}
    _draw_curves(norms, "wide: norm reported; thin: used", [(path.reported, reported), (path.used, LOOP_LOOK)])
    norms.set_xlabel("step", fontsize=9)
    norms.xaxis.set_label_coords(0.5, -0.22)
    return Figure(figure, _alt(loop, path, plain))


def _draw_board(axis, runs: list[tuple[Run, dict]]) -> None:
    """Contours, the paths inside the frame, the start and the ends."""
    w, b, heights, levels = _ground()
    axis.contour(w, b, heights, levels=levels, colors=GRAY, linewidths=0.6, linestyles="solid", alpha=0.7)
    for path, look in runs:
        points = np.clip(np.array(path.points), -50, 50)  # what leaves the frame is cut off by it
        axis.plot(points[:, 0], points[:, 1], **look)
        axis.plot(*points[-1], marker="X", color=look["color"], markersize=4 + look["markersize"], linestyle="")
    axis.plot(*START, marker="D", color=BLACK, markersize=6, linestyle="")
    axis.set(xlim=W_RANGE, ylim=B_RANGE)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_curves(axis, title: str, curves: list[tuple[Sequence[float], dict]]) -> None:
    """Quantities at each step on one logarithmic scale."""
    for numbers, look in curves:
        shown = [min(max(number, FLOOR), 1e9) for number in numbers]
        axis.plot(range(1, len(shown) + 1), shown, **{**look, "marker": ""})
    axis.set_title(title, fontsize=9, loc="left", y=1.01)
    axis.set_xlim(0, STEPS)
    axis.set_yscale("log")
    axis.minorticks_off()  # they take longest to draw
    low, high = axis.get_ylim()
    if high / low < 20:  # room for at least one power of ten
        axis.set_ylim(low / 4, high * 4)
    axis.yaxis.set_major_locator(LogLocator(numticks=4))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_major_locator(FixedLocator(range(0, STEPS + 1, 20)))
    axis.tick_params(labelsize=9)
    axis.grid(axis="y", color=PALE, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def _settings(loop: Loop) -> str:
    clip = "no clipping" if loop.clip is None else f"clipped at {loop.clip:g}"
    clear = "" if loop.zero_grad else " without zero_grad"
    order = ORDERS[loop.order].replace(" ", ", ")
    windows = f"batches of {loop.batch_size}, {loop.accumulation} to a step, averaged over {loop.averaging}"
    return f"Order {order}{clear}; rate {loop.lr:.3g}, momentum {loop.momentum:g}, {windows}, {clip}"


def _alt(loop: Loop, path: Run, plain: Run) -> str:
    return (
        f"Paths of w and b on the contours of the loss, from {START}; beside them loss and gradient norm at each step, "
        f"logarithmic. {_settings(loop)}: {_result(path)}. The plain loop: {_result(plain)}."
    )


STILL = {
    "in order": Loop(),
    "no zero_grad": Loop(zero_grad=False),
    "clipped at 0.5": Loop(clip=0.5),
    "4 × 7, batch means": Loop(batch_size=7, accumulation=4, averaging="batch means"),
}


def still() -> Figure:
    """Four loops as panels and the final loss of every order, for a page without a kernel."""
    figure, axes = new_figure(7.5, 7.0, 3, 2)
    figure.suptitle("circles: this loop; squares: the plain loop", fontsize=9.5, x=0.01, ha="left")
    grid, told = axes[0].get_gridspec(), []
    grid.set_height_ratios((3, 3, 2))
    for axis in axes[4:]:
        axis.remove()
    for axis, (label, loop) in zip(axes, STILL.items(), strict=False):
        path = run(loop)
        _draw_board(axis, [(run(loop.plain), PLAIN_LOOK), (path, LOOP_LOOK)])
        axis.set_title(f"{label}: loss {mean_loss(*path.points[-1]):.3f}", fontsize=9.5, loc="left")
        told.append(f"{label}: {_result(path)}.")
    table = bare(figure.add_subplot(grid[2, :]))
    rows = [(order, mean_loss(*run(Loop(order=order, clip=0.5)).points[-1])) for order in ORDERS]
    table.text(0.0, 1.0, "Clipped at 0.5, the loss after 60 steps for each order of the calls", fontsize=9.5, va="top")
    for number, (order, loss) in enumerate(rows):
        table.text(0.02, 0.8 - 0.15 * number, order, fontsize=9.5, va="center")
        table.text(0.72, 0.8 - 0.15 * number, f"{loss:.4f}", fontsize=9.5, va="center", ha="right")
    told += [f"Order {ORDERS[order].replace(' ', ', ')}, clipped at 0.5: loss {loss:.4f}." for order, loss in rows]
    head = f"Four loops of {STEPS} steps on the contours of the loss (circles), each over the plain loop (squares). "
    return Figure(figure, head + " ".join(told))


# --- the explorer -----------------------------------------------------------------------------------------------------


def render(**controls) -> tuple[Figure, str]:
    """Picture and words for the values of the controls."""
    clip = controls.pop("clip")
    loop = Loop(clip=None if clip == "off" else float(clip), **controls)
    path, plain = run(loop), run(loop.plain)
    return picture(loop, path, plain), describe(loop, path, plain)


def loop_simulator() -> Explorer:
    """Fit a line to forty points with the five calls in an order of your choice, beside the plain loop."""
    first = Loop()
    wide = {"style": {"description_width": "110px"}}
    slow = {"continuous_update": False, **wide}
    controls: dict[str, widgets.Widget] = {
        "order": widgets.Dropdown(
            options=list(ORDERS), description="order", layout=widgets.Layout(width="430px"), **wide
        ),
        "zero_grad": widgets.Checkbox(value=True, description="zero_grad", **wide),
        "lr": widgets.FloatLogSlider(
            min=-3, max=0, step=0.02, value=first.lr, description="learning rate", readout_format=".3g", **slow
        ),
        "momentum": widgets.FloatSlider(min=0, max=1, step=0.1, value=first.momentum, description="momentum", **slow),
        "batch_size": widgets.SelectionSlider(
            options=BATCH_SIZES, value=first.batch_size, description="batch size", **slow
        ),
        "accumulation": widgets.IntSlider(min=1, max=8, value=1, description="accumulation", **slow),
        "clip": widgets.SelectionSlider(
            options=["off", 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1], description="clip norm", **slow
        ),
        "averaging": widgets.Dropdown(options=["samples", "batch means"], description="averaging", **wide),
    }
    return Explorer("Loop simulator", controls, render, still())
