"""Symptom board: one small training run, a fault put into it, and the four pictures by which to tell which."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator
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
    VERMILION,
    Figure,
    new_figure,
)

ROWS, FEATURES, CLASSES, WIDTH, BATCH = 512, 20, 10, 32, 64
STEPS, MOST_STEPS = 100, 400
RATES = {"SGD": 0.1, "Adam": 0.003}
INITS = ("PyTorch's default", "Xavier-uniform", "Kaiming-normal")
SURPRISE = "a surprise"

# Each fault and the marks it leaves. The order is that of the still picture.
FINGERPRINTS = {
    "none": "loss starts near log 10 and falls; every bar there; updates near 1e-3 to 1e-2",
    "softmax before the loss": "loss starts near log 10 and cannot pass 1.461; bars small, all there",
    "separate shuffles": "loss comes down to the label entropy and stays; bars and updates look healthy",
    "zero_grad after backward": "loss stays where it began, but for the batches; every bar is none; updates exactly 0",
    "eval mode stuck": "learns without normalizing its inputs: slower and rougher, every bar there",
    "dead ReLU bias": "layer 1 is 100% dead: its bar and the next are exactly zero, not none; the rest learns",
    "detached gate": "loss falls nearly as usual; one bar is none: the gate's",
    "learning rate × 100": "loss jumps far above log 10 in the first steps; updates near or above 1; units die or NaN",
    "all-ones init": "stays on the plateau or above; the head's bar is longer than the others by orders",
}

Report = dict[str, tuple[str, float | None]]
Reporter = Callable[[nn.Module], Report]


@dataclass(frozen=True)
class Setup:
    """Everything that decides how a run goes."""

    fault: str = "none"
    depth: int = 2
    init: str = INITS[0]
    optimizer: str = "Adam"
    seed: int = 0
    steps: int = 1


@dataclass(frozen=True)
class Run:
    """What a run showed: the loss and the update-to-weight ratio of each step, and the layers as they are at the end.

    report: layer → (status, norm) of its weight's gradient. dead: the share of units of each hidden layer that are
    off for all rows. accuracy: of all rows, in evaluation mode. entropy: of the label frequencies.
    """

    losses: tuple[float, ...]
    ratios: tuple[float, ...]
    report: Report
    dead: tuple[float, ...]
    accuracy: float
    entropy: float
    failed: str = ""


class Gated(nn.Module):
    """BatchNorm on the inputs, ReLU layers, a gate on the last of them, and a linear head."""

    def __init__(self, depth: int, *, cut_gate: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        widths = [FEATURES] + [WIDTH] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.gate = nn.Linear(FEATURES, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.cut_gate = cut_gate

    def hidden(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of the ReLU layers, in order."""
        h, outputs = self.norm(x), []
        for layer in self.layers:
            h = layer(h).relu()
            outputs.append(h)
        return outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = 2 * torch.sigmoid(self.gate(self.norm(x)))
        return self.head(self.hidden(x)[-1] * (gate.detach() if self.cut_gate else gate))

    def weights(self) -> dict[str, nn.Parameter]:
        """The weight of each layer by a short name."""
        named = {f"layer {i}": layer.weight for i, layer in enumerate(self.layers, start=1)}
        return named | {"gate": self.gate.weight, "head": self.head.weight}


@lru_cache(maxsize=8)
def task(seed: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Rows, labels and the entropy of the labels.

    The features are of very different size, a linear rule gives the labels, and some classes are rare.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    z = torch.randn(ROWS, FEATURES, generator=generator)
    scores = z @ torch.randn(FEATURES, CLASSES, generator=generator)
    y = (scores + torch.linspace(-4, 4, CLASSES)).argmax(dim=1)
    share = y.bincount(minlength=CLASSES) / ROWS
    entropy = -(share * share.clamp(min=1e-12).log()).sum().item()
    return z * torch.logspace(-1, 1, FEATURES) + 3, y, entropy


def actual_fault(setup: Setup) -> str:
    """The fault that runs: the chosen one, or the one that the seed picks for a surprise."""
    return list(FINGERPRINTS)[1:][(7 * setup.seed + 3) % 8] if setup.fault == SURPRISE else setup.fault


def make_model(setup: Setup, fault: str) -> Gated:
    """The network as the setup says, with the faults that lie in it."""
    model = Gated(setup.depth, cut_gate=fault == "detached gate")
    for layer in (*model.layers, model.gate, model.head):
        if fault == "all-ones init":
            nn.init.ones_(layer.weight)
        elif setup.init == "Xavier-uniform":
            nn.init.xavier_uniform_(layer.weight)
        elif setup.init == "Kaiming-normal":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if setup.init != INITS[0]:
            nn.init.zeros_(layer.bias)
    if fault == "dead ReLU bias":
        nn.init.constant_(model.layers[0].bias, -10.0)
    return model


@lru_cache(maxsize=64)
def train(setup: Setup) -> tuple[Run, Gated]:
    """Make the run of the setup. The caller's random numbers are left alone."""
    x, y, entropy = task(setup.seed)
    fault = actual_fault(setup)
    generator = torch.Generator().manual_seed(setup.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.seed)
        model = make_model(setup, fault)
    lr = RATES[setup.optimizer] * (100 if fault == "learning rate × 100" else 1)
    optimizer = getattr(torch.optim, setup.optimizer)(model.parameters(), lr=lr)
    model.train(fault != "eval mode stuck")
    losses, ratios = [], []
    for _ in range(setup.steps):
        rows = torch.randint(ROWS, (BATCH,), generator=generator)
        labels = torch.randint(ROWS, (BATCH,), generator=generator) if fault == "separate shuffles" else rows
        output = model(x[rows])
        loss = F.cross_entropy(output.softmax(dim=1) if fault.startswith("softmax") else output, y[labels])
        optimizer.zero_grad()
        loss.backward()
        if fault == "zero_grad after backward":
            optimizer.zero_grad()
        before = [weight.detach().clone() for weight in model.weights().values()]
        optimizer.step()
        losses.append(loss.item())
        ratios.append(_mean_ratio(before, list(model.weights().values())))
    return _examine(model, x, y, losses, ratios, entropy), model


def _mean_ratio(before: list[torch.Tensor], after: list[nn.Parameter]) -> float:
    """The mean over the layers of |update| / |weight|."""
    shares = [((b - a.detach()).norm() / a.norm()).item() for a, b in zip(before, after, strict=True)]
    return sum(shares) / len(shares)


def _examine(
    model: Gated, x: torch.Tensor, y: torch.Tensor, losses: list[float], ratios: list[float], entropy: float
) -> Run:
    was_training = model.training
    with torch.no_grad():
        model.eval()
        accuracy = (model(x).argmax(dim=1) == y).float().mean().item()
        dead = tuple((h.amax(dim=0) <= 0).float().mean().item() for h in model.hidden(x))
    model.train(was_training)
    report = {name: state_of(weight) for name, weight in model.weights().items()}
    return Run(tuple(losses), tuple(ratios), report, dead, accuracy, entropy)


def state_of(weight: nn.Parameter) -> tuple[str, float | None]:
    """Status and norm of a weight's gradient, in the words of `gradient_report`."""
    grad = weight.grad
    if grad is None:
        return "none", None
    if not grad.isfinite().all():
        return "nonfinite", None
    return ("ok", grad.norm().item()) if grad.any() else ("zero", 0.0)


def run(setup: Setup, gradient_report: Reporter | None = None) -> Run:
    """The run of the setup; with a `gradient_report` of your own, its findings take the place of the board's."""
    seen, model = train(setup)
    if gradient_report is None:
        return seen
    names = {id(weight): name for name, weight in model.weights().items()}
    shown = {full: names[id(p)] for full, p in model.named_parameters() if id(p) in names}
    try:
        found = gradient_report(model)
        own = {shown[full]: (str(found[full][0]), found[full][1]) for full in shown}
    except Exception as error:
        return Run(**{**vars(seen), "failed": f"your gradient_report raised {type(error).__name__}: {error}"})
    return Run(**{**vars(seen), "report": own})


# --- in words ---------------------------------------------------------------------------------------------------------


def describe(setup: Setup, seen: Run, hide: bool) -> str:
    """The run in words: numbers, and the fault with its fingerprint unless that is hidden."""
    bad = {name: status for name, (status, _) in seen.report.items() if status != "ok"}
    rows = {
        "first loss": f"{seen.losses[0]:.4g} (log 10 = {math.log(CLASSES):.4g}, label entropy {seen.entropy:.4g})",
        f"loss of step {len(seen.losses)}": f"{seen.losses[-1]:.4g}",
        "accuracy, eval mode": f"{seen.accuracy:.0%} of the {ROWS} training rows",
        "gradients not ok": ", ".join(f"{name}: {status}" for name, status in bad.items()) or "all are ok",
        "dead units": ", ".join(f"{share:.0%}" for share in seen.dead) + " by layer",
        "update / weight": f"{seen.ratios[0]:.2g} in step 1, {seen.ratios[-1]:.2g} in step {len(seen.ratios)}",
    }
    if not hide:
        rows["fault"] = (fault := actual_fault(setup))
        rows["fingerprint"] = FINGERPRINTS[fault]
    if seen.failed:
        rows["note"] = seen.failed
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(setup: Setup, seen: Run, hide: bool) -> Figure:
    """Loss, gradient bars, dead units and update sizes of a run."""
    # Four fixed frames, without the layout of new_figure: fitting them would take most of the time.
    figure = MatplotlibFigure(figsize=(7.5, 5.2), dpi=DOTS_PER_INCH)
    places = (0.085, 0.575, 0.355, 0.335), (0.595, 0.575, 0.375, 0.335)
    below = (0.085, 0.09, 0.355, 0.335), (0.595, 0.09, 0.375, 0.335)
    axes = [figure.add_axes(place) for place in (*places, *below)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    name = "hidden" if hide else actual_fault(setup)
    figure.text(0.015, 0.962, f"fault: {name}", fontsize=10.5, fontweight="bold", color=BLACK)
    _draw_loss(axes[0], seen)
    _draw_bars(axes[1], seen)
    _draw_dead(axes[2], seen)
    _draw_ratios(axes[3], seen)
    return Figure(figure, f"Four panels on a run whose fault is {name}. {in_words(seen)}")


def in_words(seen: Run) -> str:
    """What the four panels show, with the numbers."""
    bars = "; ".join(
        f"{name} {status}" + (f" {norm:.2g}" if status == "ok" and norm is not None else "")
        for name, (status, norm) in seen.report.items()
    )
    dead = ", ".join(f"{share:.0%}" for share in seen.dead)
    return (
        f"Loss from {seen.losses[0]:.3g} to {seen.losses[-1]:.3g} in {len(seen.losses)} steps, lines at log 10 = 2.303 "
        f"and at the label entropy {seen.entropy:.3f}. Gradient norms: {bars}. Dead ReLU units by layer: {dead}. "
        f"Update to weight ratio: {seen.ratios[0]:.2g} at first, {seen.ratios[-1]:.2g} at last."
    )


def _draw_loss(axis, seen: Run, small: bool = False) -> None:
    finite = [value for value in seen.losses if math.isfinite(value)] or [0.0]
    steps = range(1, len(seen.losses) + 1)
    axis.plot(steps, seen.losses, color=BLUE, linewidth=1.5, marker="o" if len(finite) < 8 else "", markersize=4)
    axis.set_xlim(0, max(2, 1.02 * len(steps)))
    top = max(finite)
    if top > 30:
        axis.set_yscale("log")
        axis.minorticks_off()  # they take longest to draw
    else:
        axis.set_ylim(0, max(2.9, 1.1 * top))
    levels = {"log 10": math.log(CLASSES), "entropy": seen.entropy}
    for (label, level), style, va in zip(levels.items(), ("--", ":"), ("bottom", "top"), strict=True):
        axis.axhline(level, color=GRAY, linewidth=1.0, linestyle=style)
        if not small:
            place = (1.015, level)
            axis.annotate(label, place, xycoords=("axes fraction", "data"), fontsize=9, va=va, color=GRAY)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if not small:
        axis.set_title("loss by step", fontsize=9.5, loc="left", y=1.0)


def _draw_bars(axis, seen: Run) -> None:
    """log10 of each norm, drawn from a floor; words where there is no number."""
    floor, roof = -6.0, 2.0
    logs = [math.log10(n) if s == "ok" and n else None for s, n in seen.report.values()]
    known = [value for value in logs if value is not None and math.isfinite(value)]
    floor, roof = min([floor, *(math.floor(v) - 1 for v in known)]), max([roof, *(math.ceil(v) + 1 for v in known)])
    names = list(seen.report)
    for place, ((status, _), value) in enumerate(zip(seen.report.values(), logs, strict=True)):
        if value is not None:
            axis.barh(place, value - floor, left=floor, color=GREEN, height=0.6)
            continue
        color, hatch = {"none": (VERMILION, "///"), "zero": (PALE, "...")}.get(status, (ORANGE, "xxx"))
        axis.barh(place, 0.8, left=floor, color=color, hatch=hatch, edgecolor=GRAY, height=0.6)
        axis.text(floor + 1.0, place, status, fontsize=9, va="center", color=BLACK)
    axis.set_yticks(range(len(names)), names, fontsize=9 if len(names) < 9 else 7.5)
    axis.invert_yaxis()
    axis.set_xlim(floor, roof)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_title("gradient of each weight: log10 of its norm", fontsize=9.5, loc="left", y=1.0)


def _draw_dead(axis, seen: Run) -> None:
    places = range(1, len(seen.dead) + 1)
    axis.bar(places, [100 * share for share in seen.dead], color=GRAY, width=0.6)
    for place, share in zip(places, seen.dead, strict=True):
        axis.text(place, 100 * share + 1.5, f"{share:.0%}", fontsize=9 if len(seen.dead) < 7 else 7.5, ha="center")
    axis.set_ylim(0, 114)
    axis.set_yticks(range(0, 101, 25))
    axis.set_xlim(0.4, len(seen.dead) + 0.6)
    axis.set_xticks(list(places))
    axis.set_title("dead ReLU units by layer, %", fontsize=9.5, loc="left", y=1.0)


def _draw_ratios(axis, seen: Run) -> None:
    axis.axhspan(3e-4, 3e-3, color=PALE)
    drawn = [value if math.isfinite(value) and value > 0 else math.nan for value in seen.ratios]
    steps = range(1, len(drawn) + 1)
    axis.plot(steps, drawn, color=BLUE, linewidth=1.5, marker="o" if len(drawn) < 8 else "", markersize=4)
    axis.set_yscale("log")
    axis.minorticks_off()  # they take longest to draw
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{math.log10(value):.0f}"))  # 10⁻³ is slow to set
    known = [value for value in drawn if not math.isnan(value)]
    axis.set_ylim(min([1e-5, *known]) / 2, max([3.0, *known]) * 2)
    axis.annotate("around 1e-3", (0.99, 1e-3), xycoords=("axes fraction", "data"), fontsize=9, ha="right", va="center")
    axis.set_xlim(0, max(2, 1.02 * len(drawn)))
    if math.isnan(drawn[-1]):
        words = "every update is 0" if set(seen.ratios) == {0.0} else f"at the end: {seen.ratios[-1]:g}"
        axis.text(0.5, 0.85, words, transform=axis.transAxes, fontsize=9.5, ha="center")
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.set_title("update / weight by step", fontsize=9.5, loc="left", y=1.0)


CAPTIONS = {
    "none": "falls; all is there",
    "softmax before the loss": "stops above 1.461",
    "separate shuffles": "ends at the label entropy",
    "zero_grad after backward": "stays; gradients none",
    "eval mode stuck": "learns, more slowly",
    "dead ReLU bias": "falls late; layer 1: gradient zero",
    "detached gate": "falls; gate: gradient none",
    "learning rate × 100": "jumps; updates near 1",
    "all-ones init": "only the head's bar is long",
}


@lru_cache(maxsize=1)
def still() -> Figure:
    """The loss of each fault with a caption, for a page without a kernel; the alt text holds all fingerprints."""
    figure, axes = new_figure(7.5, 6.2, 3, 3)
    for number, (axis, fault) in enumerate(zip(axes, FINGERPRINTS, strict=True)):
        seen = run(Setup(fault, steps=STEPS))
        _draw_loss(axis, seen, small=True)
        axis.set_title(f"{fault}\n{CAPTIONS[fault]}", fontsize=9, loc="left", y=1.0)
        if number >= 6:
            axis.set_xlabel("step", fontsize=9)
        if number % 3 == 0:
            axis.set_ylabel("loss", fontsize=9)
    head = "The loss of nine runs of 100 steps, dashed lines at log 10, dotted ones at the label entropy. "
    return Figure(figure, head + " ".join(f"{fault}: {marks}." for fault, marks in FINGERPRINTS.items()))


# --- the explorer -----------------------------------------------------------------------------------------------------


def render(gradient_report: Reporter | None = None, *, more: int, hide: bool, **controls: object) -> tuple[Figure, str]:
    """Picture and words for the values of the controls; `more` counts the presses of the button."""
    setup = Setup(**controls, steps=min(max(1, STEPS * more), MOST_STEPS))  # type: ignore[arg-type]
    seen = run(setup, gradient_report)
    return picture(setup, seen, hide), describe(setup, seen, hide)


def symptom_board(gradient_report: Reporter | None = None) -> Explorer:
    """Put a fault into a run and look at its marks; `gradient_report(model)` draws the bars where one is given."""
    first = Setup()
    wide = {"style": {"description_width": "110px"}}
    slow = {"continuous_update": False, **wide}
    controls: dict[str, widgets.Widget] = {
        "fault": widgets.Dropdown(
            options=[*FINGERPRINTS, SURPRISE], value=first.fault, description="injected fault", **wide
        ),
        "depth": widgets.IntSlider(min=1, max=10, value=first.depth, description="hidden layers", **slow),
        "init": widgets.Dropdown(options=INITS, value=first.init, description="initialization", **wide),
        "optimizer": widgets.Dropdown(options=list(RATES), value=first.optimizer, description="optimizer", **wide),
        "seed": widgets.IntSlider(min=0, max=20, value=first.seed, description="seed", **slow),
        "hide": widgets.Checkbox(description="hide the fault's name", **wide),
        "more": widgets.Button(description=f"run {STEPS} steps"),
    }
    return Explorer("Symptom board", controls, partial(render, gradient_report), still())
