"""The bug clinic: training scripts that run without an error and do not learn, and the causes to choose from.

Each script is an exercise `patient_<symptom>` of week 10: a bug hunt whose answer returns (cause, model, losses).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import nn

from course_utils.draw import Draw
from course_utils.errors import CourseError
from course_utils.exercise import exercise_weeks, load_exercise

WEEK = "week10"
RIGHT_NAME = "the fault of this script"

CAUSES = {
    "broadcast loss": "Prediction and target have different shapes, and the loss pairs every row with every other.",
    "clipping too early": "Gradients are clipped while there are none yet.",
    "cut graph": "A part of the model lies outside the graph of the loss, so it gets no gradient.",
    "dead units": "Units are off, or saturated, for every row, so their gradient is exactly 0.",
    "edited behind autograd": "A tensor that was saved for backward is changed through .data.",
    "evaluated in training mode": "Scores are taken with Dropout and batch statistics switched on.",
    "gradients cleared before the step": "zero_grad stands between backward and step.",
    "gradients not cleared": "zero_grad is missing, so every step uses the sum of all gradients so far.",
    "graph kept alive": "Losses are stored with their graphs, and memory grows.",
    "integer arithmetic": "A division or a sum in an integer dtype loses the values.",
    "learning rate too high": "Each step overshoots.",
    "learning rate too low": "Each step is too short to matter.",
    "rows and labels apart": "Inputs and labels were filtered or shuffled differently.",
    "scheduler too often": "The schedule is advanced per batch where it counts epochs.",
    "softmax before the loss": "The loss expects logits and gets probabilities.",
    "stale optimizer": "The optimizer holds parameters that the model no longer uses.",
    "stuck in evaluation mode": "The model is put into evaluation mode and never back.",
    "unregistered layers": "Layers in a plain Python list: no parameters, as far as the optimizer can see.",
    "wrong dimension": "A normalization runs over the batch where it should run over the features or classes.",
    "zero divided by zero": "A division meets 0 / 0, and a NaN spreads from there.",
}


class Material(NamedTuple):
    """What a script is given, rows from the same source that it never sees, and the number of epochs."""

    given: tuple[Any, ...]
    new_x: torch.Tensor
    new_y: torch.Tensor
    epochs: int


@dataclass(frozen=True)
class Chart:
    """A patient's run: what people say of it, its losses, the model it left, and its score on given and on new rows.

    A score is the share of rows that are right, or for numbers the share of the variance that is explained; x and y
    are the given rows, new_x and new_y the others.
    """

    name: str
    words: str
    losses: list[float]
    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    new_x: torch.Tensor
    new_y: torch.Tensor
    score: float
    new_score: float


def patients() -> list[str]:
    """The names of all scripts of the clinic."""
    return [name for name, week in exercise_weeks().items() if week == WEEK and name.startswith("patient_")]


def chart(name: str, *, cured: bool = False, seed: int = 0, device: str = "cpu") -> Chart:
    """Run a script of the clinic as it was given, or with `cured` as the course mends it.

    The numbers are the same for the same seed; the caller's random numbers are left alone. Raises CourseError for a
    name that is no patient.
    """
    if name not in patients():
        raise CourseError(f"There is no patient called {name}. They are: {', '.join(patients())}.")
    exercise = load_exercise(name)
    module = import_module(exercise.reference.__module__)
    script = exercise.reference if cured else exercise.broken_version
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        material = module.material(Draw(seed, name, device))
        _, model, losses = script(*material.given, material.epochs)
    x, y = material.given[-2:]
    scores = score(model, x, y), score(model, material.new_x, material.new_y)
    return Chart(name, module.COMPLAINT, list(losses), model, x, y, material.new_x, material.new_y, *scores)


def score(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of rows whose class is right, or for float targets 1 - error / variance. In evaluation mode.

    The mode of every part is put back.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            output = model(x)
            if y.is_floating_point():
                error = (output.reshape(-1) - y.reshape(-1)).square().mean()
                return 1 - (error / y.var(correction=0)).item()
            return (output.argmax(dim=1) == y).float().mean().item()
    finally:
        for part, mode in modes:
            part.training = mode


# --- what the cases of the clinic share -------------------------------------------------------------------------------


def named(result: object, right: str) -> str:
    """What to say about the cause that an answer names, without giving the right one away."""
    if not _is_report(result):
        return "what came back is not a tuple (cause, model, losses)"
    cause = result[0]
    if cause == right:
        return RIGHT_NAME
    if cause == "?":
        return "no cause is named yet"
    if isinstance(cause, str) and cause in CAUSES:
        return f"“{cause}” is not {RIGHT_NAME}"
    return f"{cause!r} is not in clinic.CAUSES" if isinstance(cause, str) else "the cause is not a str"


def recovery(result: object, material: Material, most: float, least: float = 0.9, alone: int = 0) -> dict[str, str]:
    """How the run of an answer went, in words that are the same for all that learned.

    most: the largest last loss of a run that learned. least: its lowest score on new rows. alone: judge by so many new
    rows, each given to the model on its own.
    """
    if not _is_report(result):
        return {"the run": "what came back is not a tuple (cause, model, losses)"}
    _, model, losses = result
    if alone and isinstance(model, nn.Module):
        model, material = (
            _OneByOne(model),
            material._replace(new_x=material.new_x[:alone], new_y=material.new_y[:alone]),
        )
    return {"1. losses": _fell(losses, most), "2. new rows": _learned(model, material, least)}


def first_losses(implementation: Callable[..., Any], *given: Any, epochs: int = 3) -> dict[str, Any]:
    """The losses of a short run; a seed that the answer sets is ignored, so that all answers start alike."""
    with _own_seeds_ignored():
        result = implementation(*given, epochs)
    return {"losses": result[2] if _is_report(result) else "what came back is not a tuple (cause, model, losses)"}


@contextmanager
def _own_seeds_ignored() -> Iterator[None]:
    seeding = torch.manual_seed
    torch.manual_seed = lambda seed: torch.default_generator
    try:
        yield
    finally:
        torch.manual_seed = seeding


class _OneByOne(nn.Module):
    """Gives a model its rows one at a time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.model(row[None]) for row in x])


def _is_report(result: object) -> bool:
    return isinstance(result, tuple) and len(result) == 3


def _learned(model: object, material: Material, least: float) -> str:
    if not isinstance(model, nn.Module):
        return "what came back in second place is not a module"
    share = score(model, material.new_x, material.new_y)
    what = "of the variance is explained" if material.new_y.is_floating_point() else "are right"
    return f"at least {least:.0%} {what}" if share >= least else f"{max(share, -9.99):.0%} {what}"


def _fell(losses: object, most: float) -> str:
    if not isinstance(losses, list) or not losses or not all(type(value) is float for value in losses):
        return "not a list of Python floats"
    return f"the last is at most {most:g}" if losses[-1] <= most else f"the last is {losses[-1]:.3g}"


def blobs(draw: Draw, rows: int, features: int, classes: int, apart: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around one center per class, and their classes; every class has the same number of rows, or one more."""
    y = draw.permutation(rows) % classes
    centers = apart * torch.eye(features, device=draw.device)[draw.permutation(features)[:classes]]
    return centers[y] + draw.normal(rows, features), y


def rings(draw: Draw, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in the plane, class 0 near the origin and class 1 around it: no straight line parts them."""
    y = draw.permutation(rows) % 2
    angle, radius = draw.uniform(rows, high=6.2832), 0.7 + 1.8 * y + 0.15 * draw.normal(rows)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), y


def split(x: torch.Tensor, y: torch.Tensor, given: int, epochs: int, *before: Any) -> Material:
    """The first `given` rows for the script, the rest as new rows."""
    return Material((*before, x[:given], y[:given]), x[given:], y[given:], epochs)


def saying(cause: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The result of a script with another cause named."""
    return (cause, *result[1:])
