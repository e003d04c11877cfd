"""Loss explorer: move logits and targets, and see loss and gradient.

`classify` and `regress` turn the controls into numbers, all of them from torch's own losses and from autograd;
`picture` draws them and `describe` says them. `loss_explorer` adds the controls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import torch
import torch.nn.functional as F

from course_utils.explorers.explorer import Explorer
from course_utils.plots.figure import BLACK, BLUE, GRAY, GREEN, ORANGE, PALE, VERMILION, Figure, new_figure

CLASSES = 3
FARTHEST = 20  # logits go from minus this to this
NEIGHBORS = (1.0, 2.0, 3.0, 4.0)  # the targets beside the outlier
WIDEST_ERROR = 10
TABS = {"one class of three": "classes", "a number": "number"}
SMALL, NORMAL = 9, 10
LOSSES = {"MSE": (BLUE, "-"), "L1": (VERMILION, "--"), "Huber": (GREEN, "-.")}


# ---- one class of three -------------------------------------------------------------


@dataclass(frozen=True)
class Classified:
    """One sample of three classes, and what cross-entropy makes of it."""

    logits: tuple[float, ...]
    label: int
    smoothing: float
    weight: float  # of the true class; the others weigh 1
    twice: bool  # softmax before the loss
    probabilities: tuple[float, ...]  # softmax of the logits
    seen: tuple[float, ...]  # the probabilities the loss works with
    target: tuple[float, ...]  # smoothed
    loss: float
    gradient: tuple[float, ...]  # of the loss, for the logits
    places: tuple[float, ...]  # values of the true logit, and the losses there
    losses: tuple[float, ...]

    @property
    def lowest(self) -> tuple[float, float] | None:
        """Where the curve is lowest and its value there; None when it only falls."""
        best = min(range(len(self.losses)), key=self.losses.__getitem__)
        inside = best not in (0, len(self.losses) - 1) and self.losses[best] < self.losses[-1] - 1e-4
        return (self.places[best], self.losses[best]) if inside else None

    @property
    def code(self) -> str:
        """The call whose value is shown."""
        scores = "z.softmax(dim=1)" if self.twice else "z"
        options = f", weight=w, label_smoothing={self.smoothing:g}" if self.smoothing else ", weight=w"
        return f"F.cross_entropy({scores}, y{options})"


def classify(
    logits: Sequence[float], label: int, smoothing: float = 0.0, weight: float = 1.0, twice: bool = False
) -> Classified:
    """Loss and gradient of a batch of one, and the loss along the true logit, all from torch."""
    weights = torch.ones(CLASSES)
    weights[label] = weight

    def loss_of(rows: torch.Tensor, reduction: str) -> torch.Tensor:
        scores = rows.softmax(dim=1) if twice else rows
        labels = torch.full((len(rows),), label)
        return F.cross_entropy(scores, labels, weights, label_smoothing=smoothing, reduction=reduction)

    z = torch.tensor([list(map(float, logits))], requires_grad=True)
    loss = loss_of(z, "mean")
    loss.backward()
    row = z.detach()
    places = torch.arange(-4 * FARTHEST, 4 * FARTHEST + 1) / 4
    rows = row.repeat(len(places), 1)
    rows[:, label] = places
    curve = loss_of(rows, "none") / weight  # the mean of a batch of one divides by the weight of its target
    once = row.softmax(dim=1)
    target = torch.full((CLASSES,), smoothing / CLASSES)
    target[label] += 1 - smoothing
    return Classified(
        tuple(row[0].tolist()),
        label,
        smoothing,
        weight,
        twice,
        tuple(once[0].tolist()),
        tuple((once.softmax(dim=1) if twice else once)[0].tolist()),
        tuple(target.tolist()),
        loss.item(),
        tuple(z.grad[0].tolist()),
        tuple(places.tolist()),
        tuple(curve.tolist()),
    )


def doubled_floor() -> float:
    """The lowest loss of three classes after a softmax too many, without smoothing."""
    return F.cross_entropy(torch.eye(CLASSES), torch.arange(CLASSES)).item()


def describe_classes(state: Classified) -> str:
    """The state in words."""
    weights = [state.weight if c == state.label else 1.0 for c in range(CLASSES)]
    lines = [
        f"z = [{numbers(state.logits, 2)}], y = {state.label}, w = [{numbers(weights, 1)}]",
        state.code,
        "",
        f"softmax(z)       {numbers(state.probabilities)}",
    ]
    if state.twice:
        lines.append(f"softmax twice    {numbers(state.seen)}")
    lines += [
        f"target           {numbers(state.target)}",
        f"loss             {state.loss:.4f}",
        f"gradient for z   {', '.join(map(exact, state.gradient))}   sum {clean(sum(state.gradient)):.4f}",
    ]
    if state.lowest:
        lines.append(f"Along the true logit the loss is lowest at {state.lowest[0]:g}: {state.lowest[1]:.4f}.")
    if state.twice and not state.smoothing:
        lines.append(f"After two softmaxes no logits get below log(e + 2) − 1 = {doubled_floor():.4f}.")
    return "\n".join(lines)


def picture_classes(state: Classified) -> Figure:
    """Probabilities and gradient as bars, and the loss along the true logit."""
    figure, axes = new_figure(7.5, 3.1, columns=3)
    figure.set_layout_engine("none")  # placed by hand: much faster than a solver
    places = (0.05, 0.31), (0.425, 0.23), (0.73, 0.255)  # left edges and widths
    draws = _draw_probabilities, _draw_gradient, _draw_curve
    for axis, (left, width), draw in zip(axes, places, draws, strict=True):
        axis.set_position((left, 0.17, width, 0.63))
        draw(axis, state)
    return Figure(figure, _tell_classes(state))


def _class_ticks(axis, label: int) -> None:
    names = [f"{c}\ntrue" if c == label else str(c) for c in range(CLASSES)]
    axis.set_xticks(range(CLASSES), names)
    axis.set_xlim(-0.6, CLASSES - 0.4)


def _bars(axis, heights: Sequence[float], label: int, digits: int, sign: bool = False) -> None:
    """One bar a class, hatched at the true one, with its number."""
    drawn = axis.bar(range(CLASSES), heights, width=0.62, color=BLUE)
    drawn[label].set(facecolor="white", edgecolor=BLUE, hatch="///")
    for place, height in enumerate(heights):
        _write_height(axis, place, height, digits, sign)


def _write_height(axis, place: float, height: float, digits: int, sign: bool = False) -> None:
    below = height < -0.5 * 10**-digits
    axis.annotate(
        number(height, digits, sign),
        (place, height),
        xytext=(0, -3 if below else 3),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        fontsize=SMALL,
    )


def _draw_probabilities(axis, state: Classified) -> None:
    notes = "line: target"
    if state.twice:
        half = 0.21
        once = axis.bar([c - half for c in range(CLASSES)], state.probabilities, width=0.38, color=BLUE)
        once[state.label].set(facecolor="white", edgecolor=BLUE, hatch="///")
        axis.bar([c + half for c in range(CLASSES)], state.seen, width=0.38, color=ORANGE, edgecolor=BLACK)
        for place in range(CLASSES):
            _write_height(axis, place - half, state.probabilities[place], 2)
            _write_height(axis, place + half, state.seen[place], 2)
        notes += ", orange: softmax twice"
    else:
        _bars(axis, state.probabilities, state.label, 3)
    for place, share in enumerate(state.target):
        axis.plot([place - 0.45, place + 0.45], [share, share], color=BLACK, linewidth=2)
    axis.set_ylim(0, 1.18)
    axis.set_yticks((0, 0.5, 1))
    axis.set_title(f"softmax(z)\n{notes}", fontsize=NORMAL, loc="left", y=1.0)
    _class_ticks(axis, state.label)


def _draw_gradient(axis, state: Classified) -> None:
    _bars(axis, state.gradient, state.label, 3, sign=True)
    limit = 1.3 * max(1.0, *map(abs, state.gradient))
    axis.set_ylim(-limit, limit)
    axis.axhline(0, color=BLACK, linewidth=0.8)
    axis.set_title(f"gradient for z\nsum {number(sum(state.gradient), 3)}", fontsize=NORMAL, loc="left", y=1.0)
    _class_ticks(axis, state.label)


def _draw_curve(axis, state: Classified) -> None:
    axis.plot(state.places, state.losses, color=BLUE, linewidth=1.8)
    axis.plot([state.logits[state.label]], [state.loss], "o", color=VERMILION, markersize=9, markeredgecolor="white")
    axis.set_xlim(-FARTHEST - 1, FARTHEST + 1)
    axis.set_xticks((-FARTHEST, 0, FARTHEST))
    axis.set_ylim(0, 1.2 * max(1.0, *state.losses))
    second = "●: where you are"
    if state.lowest:
        axis.plot(*state.lowest, "*", color=BLACK, markersize=12)
        second += f", ★: {state.lowest[1]:.3f}"
    elif state.twice and not state.smoothing:
        axis.axhline(doubled_floor(), color=BLACK, linestyle="--", linewidth=1.2)
        second += f", - -: {doubled_floor():.3f}"
    axis.set_title(f"loss {state.loss:.3f}\n{second}", fontsize=NORMAL, loc="left", y=1.0)
    axis.set_xlabel(f"logit of class {state.label}", fontsize=NORMAL)


def _tell_classes(state: Classified) -> str:
    twice = f", after a second softmax {numbers(state.seen)}" if state.twice else ""
    lowest = f", lowest at {state.lowest[0]:g} with {state.lowest[1]:.3f}" if state.lowest else ""
    return (
        f"Logits {numbers(state.logits, 2)}, true class {state.label}. Bars of the probabilities: "
        f"{numbers(state.probabilities)}{twice}; target {numbers(state.target)}. Bars of the gradient: "
        f"{numbers(state.gradient, 3, sign=True)}. Loss {state.loss:.3f}, on a curve over the true logit that goes "
        f"from {state.losses[0]:.3f} at {state.places[0]:g} to {state.losses[-1]:.3f} at {state.places[-1]:g}{lowest}."
    )


# ---- a number -----------------------------------------------------------------------


@dataclass(frozen=True)
class Regressed:
    """Three regression losses over the error, and the constant each of them likes best."""

    outlier: float
    delta: float
    errors: tuple[float, ...]
    losses: dict[str, tuple[float, ...]]
    gradients: dict[str, tuple[float, ...]]
    best: dict[str, float]
    pulls: dict[str, float]  # gradient of the outlier's loss, at that best constant

    @property
    def targets(self) -> tuple[float, ...]:
        return (*NEIGHBORS, self.outlier)


def regress(outlier: float, delta: float) -> Regressed:
    """Values and gradients of MSE, L1 and Huber, and their best constants on a grid of steps of 0.01."""
    functions = {
        "MSE": lambda p, t: F.mse_loss(p, t, reduction="none"),
        "L1": lambda p, t: F.l1_loss(p, t, reduction="none"),
        "Huber": lambda p, t: F.huber_loss(p, t, reduction="none", delta=delta),
    }
    errors = torch.arange(-8 * WIDEST_ERROR, 8 * WIDEST_ERROR + 1) / 8
    targets = torch.tensor([*NEIGHBORS, outlier], dtype=torch.float64)
    low, high = math.floor(min(targets)), math.ceil(max(targets))
    grid = torch.arange(100 * low, 100 * high + 1, dtype=torch.float64) / 100
    losses, gradients, best, pulls = {}, {}, {}, {}
    for name, function in functions.items():
        losses[name], gradients[name] = _value_and_slope(function, errors)
        mean = sum(function(grid, target.expand_as(grid)) for target in targets) / len(targets)
        best[name] = grid[mean.argmin()].item()
        pulls[name] = _value_and_slope(function, torch.tensor([best[name] - outlier]))[1][0]
    return Regressed(
        outlier,
        delta,
        tuple(errors.tolist()),
        losses,
        gradients,
        best,
        pulls,
    )


def _value_and_slope(function, errors: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    errors = errors.clone().requires_grad_()
    values = function(errors, torch.zeros_like(errors))
    values.sum().backward()
    return tuple(values.tolist()), tuple(errors.grad.tolist())


def describe_number(state: Regressed) -> str:
    """The state in words."""
    lines = [f"targets {', '.join(f'{t:g}' for t in state.targets)}; Huber with delta {state.delta:g}", ""]
    lines.append("        best constant   pull of the last target there")
    for name in LOSSES:
        lines.append(f"{name:<6}  {state.best[name]:>13.2f}   {abs(state.pulls[name]):>12.2f}")
    lines += ["", "Pull: size of the gradient of that target's loss, for the prediction."]
    return "\n".join(lines)


def picture_number(state: Regressed) -> Figure:
    """Losses and gradients over the error, and the best constants on the line of the targets."""
    figure, axes = new_figure(7.5, 4.3, rows=2, columns=2)
    figure.set_layout_engine("none")
    loss, slope, line, spare = axes
    spare.remove()
    loss.set_position((0.06, 0.51, 0.4, 0.4))
    slope.set_position((0.555, 0.51, 0.4, 0.4))
    line.set_position((0.16, 0.12, 0.8, 0.26))
    for axis, series, title, limit in (
        (loss, state.losses, "loss", (0, 20)),
        (slope, state.gradients, "gradient", (-10, 10)),
    ):
        for name, (color, style) in LOSSES.items():
            axis.plot(state.errors, series[name], color=color, linestyle=style, linewidth=2, label=name)
        axis.set_ylim(*limit)
        axis.set_xlim(-WIDEST_ERROR, WIDEST_ERROR)
        axis.set_xticks((-WIDEST_ERROR, 0, WIDEST_ERROR))
        axis.set_yticks((*limit, sum(limit) / 2))
        axis.set_title(title, fontsize=NORMAL, loc="left", y=1.0)
        axis.set_xlabel("error: prediction − target", fontsize=SMALL, labelpad=1)
        axis.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    loss.legend(loc="upper center", fontsize=SMALL, frameon=False, handlelength=3)
    _draw_line(line, state)
    return Figure(figure, _tell_number(state))


def _draw_line(axis, state: Regressed) -> None:
    row = len(LOSSES)
    axis.plot(NEIGHBORS, [row] * len(NEIGHBORS), "o", color=BLACK, markersize=5)
    axis.plot([state.outlier], [row], "o", color=VERMILION, markersize=9, markerfacecolor="white", markeredgewidth=2)
    low, high = min(0.0, state.outlier), max(6.0, state.outlier)
    span = high - low
    for place, (name, (color, _)) in enumerate(LOSSES.items()):
        y, best = row - 1 - place, state.best[name]
        axis.plot([best], [y], "D", color=color, markersize=7)
        on_left = best > low + 0.8 * span
        where = {"xytext": (-9 if on_left else 9, 0), "textcoords": "offset points"}
        axis.annotate(f"{best:.2f}", (best, y), va="center", ha="right" if on_left else "left", fontsize=SMALL, **where)
    axis.set_yticks(range(row, -1, -1), ["targets", *(f"best for {name}" for name in LOSSES)], fontsize=SMALL)
    axis.set_ylim(-0.6, row + 0.6)
    axis.set_xlim(low - 0.03 * span, high + 0.03 * span)
    axis.grid(axis="x", color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines["left"].set_color(GRAY)


def _tell_number(state: Regressed) -> str:
    bests = ", ".join(f"{name} {state.best[name]:.2f}" for name in LOSSES)
    targets = ", ".join(f"{target:g}" for target in state.targets)
    return (
        "Losses and their gradients over the error: MSE is a parabola whose gradient is a line; L1 a V whose "
        f"gradient is −1 or 1; Huber with delta {state.delta:g} a parabola inside delta and a line outside, its "
        f"gradient stopping at ±{state.delta:g}. Below, the targets {targets} and the best constants: {bests}."
    )


# ---- both ---------------------------------------------------------------------------


def clean(value: float) -> float:
    """The number without the sign of a zero that is only rounding."""
    return 0.0 if abs(value) < 5e-7 else value


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """A rounded number with a true minus sign; with `sign`, a plus where it belongs."""
    rounded = round(value, digits) + 0.0
    text = f"{rounded:+.{digits}f}" if sign and rounded else f"{rounded:.{digits}f}"
    return text.replace("-", "−")


def exact(value: float) -> str:
    """A signed number that stays visible when it is tiny."""
    return number(value, 4, sign=True) if not value or abs(value) >= 1e-3 else f"{value:+.1e}".replace("-", "−")


def numbers(values: Sequence[float], digits: int = 3, sign: bool = False) -> str:
    """Several numbers, separated by commas."""
    return ", ".join(number(value, digits, sign) for value in values)


SAMPLES = {"wrong": (10.0, 0.0, 0.0), "unsure": (0.0, 0.0, 0.0), "right": (0.0, 10.0, 0.0)}


def still() -> Figure:
    """Six states for a page without a kernel: one softmax and two, for a wrong, an unsure and a right sample."""
    figure, axes = new_figure(7.5, 4.6, rows=2, columns=3)
    rows = []
    for row, twice in enumerate((False, True)):
        for column, (name, logits) in enumerate(SAMPLES.items()):
            state, axis = classify(logits, 1, twice=twice), axes[3 * row + column]
            _bars(axis, state.gradient, state.label, 3, sign=True)
            axis.set_ylim(-1.35, 1.35)
            axis.axhline(0, color=BLACK, linewidth=0.8)
            _class_ticks(axis, state.label)
            often = "twice" if twice else "once"
            axis.set_title(f"{name}, softmax {often}\nloss {state.loss:.3f}", fontsize=NORMAL, loc="left", y=1.0)
            if column == 0:
                axis.set_ylabel("gradient", fontsize=NORMAL)
            rows.append(
                f"{name}, softmax {often}: logits {numbers(logits, 0)}, loss {state.loss:.4f}, "
                f"gradient {numbers(state.gradient, 4, sign=True)}."
            )
    return Figure(figure, f"Gradients of six samples of three classes, the true class being 1. {' '.join(rows)}")


def render(tab: str, **controls: object) -> tuple[Figure, str]:
    """Picture and words for the values of the controls."""
    if tab == "number":
        state = regress(float(controls["outlier"]), float(controls["delta"]))
        return picture_number(state), describe_number(state)
    sample = classify(
        [controls[f"logit_{c}"] for c in range(CLASSES)],
        int(controls["label"]),
        float(controls["smoothing"]),
        float(controls["weight"]),
        bool(controls["twice"]),
    )
    return picture_classes(sample), describe_classes(sample)


def loss_explorer() -> Explorer:
    """Explore losses: move logits or an outlier, and watch value, gradient and the best answer."""
    slider = widgets.FloatSlider
    wide = {"style": {"description_width": "8em"}}
    controls: dict[str, widgets.Widget] = {
        "tab": widgets.ToggleButtons(options=TABS, description="target", layout=widgets.Layout(width="100%")),
        "label": widgets.Dropdown(options=range(CLASSES), description="true class", **wide),
    }
    for c, start in enumerate((2.0, 0.0, -1.0)):
        controls[f"logit_{c}"] = slider(
            min=-FARTHEST, max=FARTHEST, step=0.25, value=start, description=f"logit {c}", **wide
        )
    controls |= {
        "smoothing": slider(min=0, max=0.5, step=0.05, description="smoothing", **wide),
        "weight": slider(min=0.5, max=10, step=0.5, value=1, description="weight of true", **wide),
        "twice": widgets.Checkbox(description="softmax before loss", indent=False),
        "outlier": slider(min=5, max=100, step=1, value=5, description="last target", **wide),
        "delta": slider(min=0.25, max=40, step=0.25, value=1, description="Huber's delta", **wide),
    }
    of_number = {"outlier", "delta"}

    def in_use(tab: str, **_: object) -> list[str]:
        return [name for name in controls if name == "tab" or (name in of_number) == (tab == "number")]

    return Explorer("Loss explorer", controls, render, still(), in_use=in_use)
