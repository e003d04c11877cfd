"""The explorer of week 03: how signals and gradients grow or fade in a deep network.

`send(setting)` builds a network, really runs it forward and backward under hooks, and returns what
the hooks saw as a `Signal`; `picture` and `describe` show it. `signal_through_depth` adds controls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import ipywidgets as widgets
import torch
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor, nn

from course_utils.explorers.explorer import Explorer
from course_utils.plots.figure import BLUE, PALE, VERMILION, Figure, new_figure
from course_utils.plots.lines import curves

BATCH = 128
DEEPEST = 40
SEED = 0
BINS = 40


def _leave(weight: Tensor) -> Tensor:
    """What nn.Linear drew: uniform within 1 / sqrt(fan_in)."""
    return weight


INITIALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Kaiming normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "Xavier uniform": nn.init.xavier_uniform_,
    "default": _leave,
    "normal, std 0.01": lambda weight: nn.init.normal_(weight, std=0.01),
    "normal, std 1": nn.init.normal_,
    "ones": nn.init.ones_,
}
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "none": nn.Identity}
MODES = ("train", "eval")


@dataclass(frozen=True)
class Setting:
    """A network to send a signal through: layers of equal width, biases 0, and how it is run."""

    initialization: str = "Kaiming normal"
    activation: str = "relu"
    depth: int = 30
    width: int = 128
    mode: str = "train"
    dropout: float = 0.0

    def __str__(self) -> str:
        layers = "1 layer" if self.depth == 1 else f"{self.depth} layers"
        return (
            f"{self.initialization}, {self.activation}, {layers} of {self.width}, "
            f"{self.mode} mode, dropout {self.dropout:g}"
        )


@dataclass(frozen=True, eq=False)
class Signal:
    """What one pass forward and one back through a network showed.

    Both lists of standard deviations count from the input, place 0, to the last layer. The
    gradient that enters at the last layer has standard deviation 1, like the input.
    """

    setting: Setting
    outputs: tuple[Tensor, ...]  # of each layer, the first layer's at place 0
    activation_std: tuple[float, ...]
    gradient_std: tuple[float, ...]
    distinct_rows: tuple[int, ...]  # of each layer's weight
    difference: float  # between two passes over one batch, the largest
    hooks_set: int
    hooks_left: int


def build(setting: Setting) -> nn.Sequential:
    """The network: per layer a Linear without the usual random bias, the activation, dropout."""
    blocks = []
    for _ in range(setting.depth):
        linear = nn.Linear(setting.width, setting.width)
        with torch.no_grad():
            INITIALIZATIONS[setting.initialization](linear.weight)
            linear.bias.zero_()
        activation = ACTIVATIONS[setting.activation]()
        blocks.append(nn.Sequential(linear, activation, nn.Dropout(setting.dropout)))
    return nn.Sequential(*blocks).train(setting.mode == "train")


def count_hooks(model: nn.Module) -> int:
    """How many hooks of any kind are on a model and the modules below it."""
    return sum(
        len(hooks) for module in model.modules() for name, hooks in vars(module).items() if name.endswith("_hooks")
    )


@lru_cache(maxsize=1)  # moving the layer slider asks for the same signal again
def send(setting: Setting) -> Signal:
    """Build the network, run it forward and backward under hooks, and remove them.

    The random numbers are the same for each call; the global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        x = torch.randn(BATCH, setting.width, requires_grad=True)
        upstream = torch.randn(BATCH, setting.width)
        model = build(setting)
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        handles = []
        try:
            for block in model:
                handles.append(block.register_forward_hook(lambda m, i, out: outputs.append(out)))
                handles.append(block.register_full_backward_hook(lambda m, i, out: gradients.append(out[0])))
            hooks_set = count_hooks(model)
            result = model(x)
            result.backward(upstream)
        finally:
            for handle in handles:
                handle.remove()
        with torch.no_grad():
            again = model(x)
    seen = tuple(out.detach() for out in outputs)
    return Signal(
        setting,
        seen,
        tuple(_std(values) for values in (x, *seen)),
        tuple(_std(values) for values in (x.grad, *reversed(gradients))),
        tuple(_distinct_rows(block[0].weight.detach()) for block in model),
        _difference(result.detach(), again),
        hooks_set,
        count_hooks(model),
    )


def _std(values: Tensor) -> float:
    """Standard deviation over all numbers, in float64 so that squares of tiny ones survive."""
    return values.detach().double().std().item()


def _distinct_rows(weight: Tensor) -> int:
    """How many different rows there are, that is how many different units."""
    return len(set(map(bytes, weight.numpy())))


def _difference(first: Tensor, second: Tensor) -> float:
    """The largest difference; places where both overflowed count as equal."""
    return (first - second).abs().nan_to_num(nan=0.0, posinf=math.inf).max().item()


def chosen_layer(signal: Signal, layer: int) -> int:
    """The layer a slider points at, the last one where it points past the end."""
    return min(layer, signal.setting.depth)


def factor_per_layer(stds: Sequence[float]) -> float | None:
    """By how much a standard deviation is multiplied from one place to the next, on average.

    None where the first or last is 0 or not finite.
    """
    first, last = stds[0], stds[-1]
    if len(stds) < 2 or not all(math.isfinite(s) and s > 0 for s in (first, last)):
        return None
    return (last / first) ** (1 / (len(stds) - 1))


def describe(signal: Signal, layer: int) -> str:
    """The state in words."""
    setting = signal.setting
    at = chosen_layer(signal, layer)
    values = signal.outputs[at - 1]
    rows = {
        "std of activations": _some(signal.activation_std),
        "std of gradients": _some(signal.gradient_std),
        "from layer to layer": _growth(signal),
        f"layer {at}": _layer_in_words(values),
        "distinct units there": f"{signal.distinct_rows[at - 1]} of {setting.width}",
        "two passes, same batch": _passes(signal),
        "hooks": f"{signal.hooks_set} while it ran, {signal.hooks_left} left on the model",
    }
    width = max(map(len, rows))
    lines = [str(setting), "", *(f"{name:<{width}}  {value}" for name, value in rows.items())]
    if at != layer:
        lines += ["", f"The layer slider is at {layer}; the last layer is {at}."]
    return "\n".join(lines)


def _some(stds: Sequence[float]) -> str:
    """First, middle and last of the layers, and the input."""
    last = len(stds) - 1
    places = sorted({0, 1, (last + 1) // 2, last})
    return ", ".join(f"{_place(i)} {_number(stds[i])}" for i in places)


def _place(place: int) -> str:
    return f"layer {place}" if place else "input"


def _number(value: float) -> str:
    return f"{value:.2g}" if value == value else "NaN"


def _growth(signal: Signal) -> str:
    forward = factor_per_layer(signal.activation_std[1:])
    backward = factor_per_layer(signal.gradient_std[:0:-1])
    ways = {"activations": forward, "gradients on the way back": backward}
    known = [f"{name} times {factor:.2f}" for name, factor in ways.items() if factor is not None]
    return ", ".join(known) or "no factor"


def _layer_in_words(values: Tensor) -> str:
    finite = values[values.isfinite()]
    if not finite.numel():
        return "no finite number"
    low, high = finite.aminmax()
    lost = values.numel() - finite.numel()
    note = f", {lost / values.numel():.0%} not finite" if lost else ""
    return f"{_share(values):.0%} zeros, from {_number(low.item())} to {_number(high.item())}{note}"


def _share(values: Tensor) -> float:
    """The share of values that are exactly 0."""
    return (values == 0).double().mean().item()


def _passes(signal: Signal) -> str:
    if signal.difference == 0:
        return "identical"
    return f"differ by up to {_number(signal.difference)}"


def picture(signal: Signal, layer: int) -> Figure:
    """Standard deviations layer by layer, and the histogram of one layer's output."""
    figure, (left, right) = new_figure(7.5, 3.3, columns=2)
    # Fixed places: finding them anew takes as long as running the network.
    figure.set_layout_engine("none")
    left.set_position([0.08, 0.16, 0.45, 0.74])
    right.set_position([0.57, 0.16, 0.41, 0.74])
    _draw_stds(left, signal)
    _draw_histogram(right, signal, chosen_layer(signal, layer))
    return Figure(figure, _alt(signal, chosen_layer(signal, layer)))


SIZES = {"markersize": 5, "linewidth": 1.6}
LINES = {
    "activations": {"color": BLUE, "marker": "o", "linestyle": "-", **SIZES},
    "gradients": {"color": VERMILION, "marker": "s", "linestyle": "--", **SIZES},
}


def _draw_stds(axis, signal: Signal) -> None:
    places = range(signal.setting.depth + 1)
    axis.set_yscale("log")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    every = max(1, signal.setting.depth // 8)
    for look, stds in zip(LINES.values(), (signal.activation_std, signal.gradient_std), strict=True):
        shown = [std if _drawable(std) else math.nan for std in stds]
        axis.plot(places, shown, markevery=every, **look)
    axis.set_xlabel("layer (0 is the input)", fontsize=10)
    axis.set_title("standard deviation", fontsize=10, loc="left", y=1.0)
    axis.grid(axis="y", color=PALE, linewidth=0.8)
    low, high = _limits([*signal.activation_std, *signal.gradient_std])
    axis.set_ylim(low, high)
    axis.set_xlim(-0.02 * signal.setting.depth, 1.02 * signal.setting.depth)
    gaps = _gaps(signal)
    for height, (name, look) in zip((0.93, 0.84), LINES.items(), strict=True):
        axis.plot([0.04, 0.12], [height, height], transform=axis.transAxes, **look)
        words = f"{name}: {gaps[name]}" if gaps[name] else name
        axis.text(0.15, height, words, transform=axis.transAxes, va="center", fontsize=9.5)


def _drawable(std: float) -> bool:
    return math.isfinite(std) and std > 0


def _limits(stds: Sequence[float]) -> tuple[float, float]:
    """The ends of a log axis: at least a factor of 10 to both sides of 1, and room for labels."""
    exponents = [math.log10(std) for std in stds if _drawable(std)]
    low, high = min([-1, *exponents]), max([1, *exponents])
    return 10 ** (low - 0.05 * (high - low)), 10 ** (high + 0.35 * (high - low))


def _gaps(signal: Signal) -> dict[str, str]:
    """For each line in words where there is nothing to draw, and why."""
    notes = {}
    for name, stds in zip(LINES, (signal.activation_std, signal.gradient_std), strict=True):
        zeros = [i for i, std in enumerate(stds) if std == 0]
        lost = [i for i, std in enumerate(stds) if not math.isfinite(std)]
        parts = [f"0 at {_span(zeros)}"] if zeros else []
        parts += [f"not finite at {_span(lost)}"] if lost else []
        notes[name] = ", ".join(parts)
    return notes


def _span(places: Sequence[int]) -> str:
    if len(places) == 1:
        return f"layer {places[0]}"
    return f"layers {places[0]} to {places[-1]}"


def _draw_histogram(axis, signal: Signal, layer: int) -> None:
    values = signal.outputs[layer - 1]
    shown = values[values.isfinite() & (values != 0)].double()
    axis.set_title(f"output of layer {layer}: {_share(values):.0%} zeros", fontsize=10, loc="left", y=1.0)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    if not shown.numel():
        axis.set_xticks([])
        axis.text(0.5, 0.5, "no other finite value", ha="center", transform=axis.transAxes)
        return
    low, high = shown.aminmax()
    spread = max(high.item() - low.item(), abs(high.item()) * 1e-3)
    low, high = low.item() - 0.01 * spread, high.item() + 0.01 * spread
    counts = torch.histc(shown, BINS, low, high)
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    axis.stairs(counts.tolist(), edges.tolist(), fill=True, color=BLUE)
    axis.set_xlabel("value, zeros left out" if (values == 0).any() else "value", fontsize=10)
    axis.locator_params(axis="x", nbins=4)


def _alt(signal: Signal, layer: int) -> str:
    return (
        f"Two panels for {signal.setting}. Left, on a log axis: standard deviation of activations, "
        f"{_some(signal.activation_std)}; of gradients, {_some(signal.gradient_std)}. "
        + "".join(f"Nothing drawn for {name}: {gap}. " for name, gap in _gaps(signal).items() if gap)
        + f"Right: histogram of the output of layer {layer}, "
        f"{_layer_in_words(signal.outputs[layer - 1])}."
    )


def still() -> Figure:
    """Activations of four networks, for a page without a kernel."""
    pairs = [
        ("Kaiming normal", "relu"),
        ("Xavier uniform", "tanh"),
        ("Xavier uniform", "relu"),
        ("default", "relu"),
    ]
    signals = {f"{i}, {a}": send(Setting(i, a)) for i, a in pairs}
    return curves(
        {name: signal.activation_std for name, signal in signals.items()},
        xlabel="layer (0 is the input)",
        ylabel="std of activations",
        log_y=True,
    )


def render(
    initialization: str, activation: str, depth: int, width: int, mode: str, dropout: float,
    layer: int,
) -> tuple[Figure, str]:  # fmt: skip
    """Picture and words for the values of the controls."""
    signal = send(Setting(initialization, activation, depth, width, mode, dropout))
    return picture(signal, layer), describe(signal, layer)


def signal_through_depth() -> Explorer:
    """Explore how activations and gradients change through a deep network."""
    start = Setting()
    controls: dict[str, widgets.Widget] = {
        "initialization": widgets.Dropdown(options=list(INITIALIZATIONS), description="weights"),
        "activation": widgets.Dropdown(options=list(ACTIVATIONS), description="activation"),
        "depth": _slider(1, DEEPEST, start.depth, "depth"),
        "width": _slider(16, 256, start.width, "width", step=16),
        "mode": widgets.ToggleButtons(options=MODES, description="mode"),
        "dropout": widgets.FloatSlider(
            value=0, min=0, max=0.9, step=0.1, description="dropout", continuous_update=False
        ),
        "layer": _slider(1, DEEPEST, 1, "layer"),
    }
    return Explorer("Signal through depth", controls, render, still())


def _slider(low: int, high: int, value: int, name: str, step: int = 1) -> widgets.IntSlider:
    """A slider that reports where it was let go, since each value means a network to run."""
    return widgets.IntSlider(value=value, min=low, max=high, step=step, description=name, continuous_update=False)
