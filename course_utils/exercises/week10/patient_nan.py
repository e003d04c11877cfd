"""Clinic: a loss that is NaN from the first step."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import blobs, first_losses, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "zero divided by zero"
COMPLAINT = (
    "The loss is nan at once. The rows were checked: no nan, no infinity, only a few rows of zeros "
    "where the sensor was off. With those rows taken out, the script runs."
)


@exercise(objectives=("debug.nonfinite", "debug.anomaly"))
def patient_nan(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train a classifier on directions; x (N, d), y (N,) int64 in 0..2, a few rows of x are all
    zeros.

    Each row is divided by its length; a row of zeros stays a row of zeros. Then come a hidden
    layer of 16 units with tanh and a linear head. Adam at 0.05 on the mean cross-entropy of all
    rows, for `epochs` epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "zero divided by zero"

    class Direction(nn.Module):
        def forward(self, rows):
            return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)

    model = nn.Sequential(Direction(), nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 3))
    model.to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


def material(draw):
    """Rows to train on, rows to judge by, and the number of epochs."""
    x, y = blobs(draw, 240, 5, 3)
    x[:120:40] = 0.0
    return split(x, y, 120, 25)


class By(nn.Module):
    """Applies a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, rows):
        return self.function(rows)


def divided(rows):
    """Rows divided by their lengths, whatever these are."""
    return rows / rows.norm(dim=1, keepdim=True)


def fit(x, y, epochs, direction=divided, *, clean_loss=False, skip=False):
    """Training with another direction, with NaN taken out of the loss, or without bad steps."""
    layers = By(direction), nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 3)
    model = nn.Sequential(*layers).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y, reduction="none")
        loss = (loss.nan_to_num() if clean_loss else loss).mean()
        losses.append(loss.item())
        if skip and not loss.isfinite():
            continue
        loss.backward()
        optimizer.step()
    return FAULT, model, losses


@patient_nan.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_nan.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.25)


@patient_nan.case(random=True)
def what_becomes_of_a_row_of_zeros(implementation, draw):
    run = material(draw)
    model = implementation(*run.given, 1)[1]
    zeros = torch.zeros_like(run.new_x[:2])
    weights = [bool(p.isfinite().all()) for p in model.parameters()]
    output = "finite" if model(zeros).isfinite().all() else "not finite"
    rows = run.new_x[:4]
    apart = (model(rows) - model(0.05 * rows)).abs().max().item()
    length = "does not matter" if apart < 1e-3 else "matters"
    return {"1. output": output, "2. weights that are finite": weights, "3. the length": length}


@patient_nan.case(random=True, tolerance=(1e-3, 1e-4))
def the_first_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given)


@patient_nan.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_nan.reference(x, y, epochs))


@patient_nan.misconception(
    "A rate that is too high needs a step or two before the loss is NaN. This loss is NaN before "
    "the first update; ask first_nonfinite_module."
)
def blames_the_learning_rate(x, y, epochs):
    return saying("learning rate too high", patient_nan.reference(x, y, epochs))


@patient_nan.misconception(
    "The labels do belong to their rows. Pairing never makes a NaN; something in the forward pass "
    "does. Ask first_nonfinite_module which module."
)
def blames_the_pairing(x, y, epochs):
    return saying("rows and labels apart", patient_nan.reference(x, y, epochs))


@patient_nan.misconception(
    "The run is as ill as it was: the loss is NaN from the first step. Ask first_nonfinite_module, "
    "and look at the rows that go in there."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_nan(x, y, epochs))


@patient_nan.misconception(
    "The NaN is removed from the loss, not from the model. The loss looks like a number, and every "
    "row of it is 0 or unchanged; the gradients are NaN all the same, and so are the weights after "
    "one step."
)
def cleans_the_loss(x, y, epochs):
    return fit(x, y, epochs, clean_loss=True)


@patient_nan.misconception(
    "Steps with a loss that is not finite are left out. Here that is every step, since the same "
    "rows come each time: nothing is ever learned."
)
def skips_the_steps(x, y, epochs):
    return fit(x, y, epochs, skip=True)


@patient_nan.misconception(
    "Nothing is NaN any more, and the length of a row still matters: a much shorter row gets "
    "another answer. The task is about directions; each row is divided by its own length."
)
def leaves_the_division_out(x, y, epochs):
    return fit(x, y, epochs, lambda rows: rows)


@patient_nan.misconception(
    "A large number was added to the length, so that it is never 0. All rows become short, and "
    "what tells them apart is nearly gone."
)
def adds_a_large_number(x, y, epochs):
    return fit(x, y, epochs, lambda rows: rows / (rows.norm(dim=1, keepdim=True) + 1e4))


@patient_nan.misconception(
    "The rows of zeros are kept out of the training, and the model is as it was: the next row of "
    "zeros it meets makes a NaN. Mend the division."
)
def drops_the_rows(x, y, epochs):
    kept = x.norm(dim=1) > 0
    return fit(x[kept], y[kept], epochs)


@patient_nan.broken
def broken_patient_nan(x, y, epochs):
    cause = "?"

    class Direction(nn.Module):
        def forward(self, rows):
            return rows / rows.norm(dim=1, keepdim=True)

    model = nn.Sequential(Direction(), nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 3))
    model.to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_nan.hints(
    "first_nonfinite_module names the place.",
    "What is the length of a row of zeros, and what comes of dividing by it?",
    "A lower limit for the divisor, far below every real length, changes nothing else.",
)
