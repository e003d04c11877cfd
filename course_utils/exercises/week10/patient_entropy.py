"""Clinic: a loss that stays at the entropy of the labels."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import blobs, first_losses, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "rows and labels apart"
COMPLAINT = (
    "A few sensors fail now and then. Since rows with gaps are left out, the loss starts at 1.4 "
    "and stays there; accuracy is that of guessing. The sensors are fine otherwise."
)


@exercise(objectives=("debug.order", "debug.init_loss"))
def patient_entropy(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train a classifier on x (N, d), y (N,) int64 in 0..3; some rows of x hold NaN and are left
    out.

    The model has one hidden layer of 16 units with a ReLU. It learns with Adam at 0.02 on the
    mean cross-entropy of all complete rows, for `epochs` epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "rows and labels apart"
    complete = torch.isfinite(x).all(dim=1)
    x, y = x[complete], y[complete]
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 4)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
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
    x, y = blobs(draw, 480, 6, 4)
    x[draw.permutation(240)[:40], draw.integers(0, 5, 40)] = float("nan")
    return split(x, y, 240, 24)


@patient_entropy.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_entropy.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.35)


@patient_entropy.case(random=True, tolerance=(1e-3, 1e-4))
def the_first_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given)


@patient_entropy.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_entropy.reference(x, y, epochs))


@patient_entropy.misconception(
    "A NaN that got into the model would make the loss NaN in the first step. This loss is an "
    "ordinary number, and it stays near log 4. What do the labels say about the rows beside them?"
)
def blames_nan(x, y, epochs):
    return saying("zero divided by zero", patient_entropy.reference(x, y, epochs))


@patient_entropy.misconception(
    "The parameters do move, and far enough to learn some rows by heart: the loss creeps down. New "
    "rows are guessed, and longer training does not help them, so inputs and labels have nothing "
    "to do with each other."
)
def blames_the_learning_rate(x, y, epochs):
    return saying("learning rate too low", patient_entropy.reference(x, y, epochs))


@patient_entropy.misconception(
    "The run is as ill as it was: the loss hardly leaves log 4, and new rows are guessed. Print a "
    "few rows beside their labels, as the model gets them."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_entropy(x, y, epochs))


@patient_entropy.misconception(
    "The labels are cut at the other end. The rows that were left out lie everywhere, so no slice "
    "can be right; the labels need the mask of the rows."
)
def cuts_the_labels_in_front(x, y, epochs):
    kept = x[torch.isfinite(x).all(dim=1)]
    return patient_entropy.reference(kept, y[len(y) - len(kept) :], epochs)


@patient_entropy.misconception(
    "Each column was cleaned on its own. That moves the entries of a row apart, which is the same "
    "fault once more, inside the rows."
)
def cleans_each_column(x, y, epochs):
    fewest = int(torch.isfinite(x).sum(dim=0).min())
    columns = [column[torch.isfinite(column)][:fewest] for column in x.T]
    return patient_entropy.reference(torch.stack(columns, dim=1), y[:fewest], epochs)


@patient_entropy.misconception(
    "Only some of the incomplete rows are left out: a gap may be in any column. One NaN is enough "
    "to make the loss NaN, and with it every weight."
)
def looks_for_gaps_in_one_column(x, y, epochs):
    complete = torch.isfinite(x[:, 2])
    x, y = x[complete], y[complete]
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 4)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_entropy.misconception(
    "The gaps are filled with zeros, so no row is lost and the pairs are whole. The task leaves "
    "incomplete rows out; the first losses are not those of the complete rows."
)
def fills_the_gaps(x, y, epochs):
    return patient_entropy.reference(x.nan_to_num(), y, epochs)


@patient_entropy.broken
def broken_patient_entropy(x, y, epochs):
    cause = "?"
    x = x[torch.isfinite(x).all(dim=1)]
    y = y[: len(x)]
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 4)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_entropy.hints(
    "Print five rows beside their labels, before and after the first two lines.",
    "Which rows does the first line take out, and which labels does the second?",
    "A mask can be used twice.",
)
