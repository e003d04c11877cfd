"""Clinic: a run that falls asleep early."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import blobs, first_losses, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "scheduler too often"
COMPLAINT = (
    "It begins well. After two or three epochs the loss hardly moves any more, though it is far "
    "from what the same model reached last week, and no gradient is missing."
)


@exercise(objectives=("debug.magnitudes", "debug.order"))
def patient_tired(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Mini-batch training with a schedule; x (N, d), y (N,) int64 in 0..3.

    The batches of an epoch are consecutive slices of 10 rows, in the order given. SGD starts at
    a rate of 0.1, which is halved after every third epoch. The model has one hidden layer of 16
    units with a ReLU, the loss is the mean cross-entropy of a batch, and there are `epochs`
    epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each batch, before its update,
    as Python floats.
    """
    cause = "scheduler too often"
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 4)).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    losses = []
    for _ in range(epochs):
        for rows in torch.arange(len(x), device=x.device).split(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
    return cause, model, losses


def material(draw):
    """Rows to train on, rows to judge by, and the number of epochs."""
    x, y = blobs(draw, 280, 6, 4)
    return split(x, y, 120, 6)


def fit(x, y, epochs, *, lr=0.1, when="batch"):
    """Training with the scheduler stepped at another time."""
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 4)).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    losses = []
    for _ in range(epochs):
        if when == "before":
            scheduler.step()
        for rows in torch.arange(len(x), device=x.device).split(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if when == "batch":
                scheduler.step()
    return FAULT, model, losses


@patient_tired.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_tired.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.5)


@patient_tired.case(random=True, tolerance=(1e-3, 1e-4))
def rates_of_the_right_schedule(implementation, draw):
    run = material(draw)
    x, y = run.given
    return first_losses(implementation, x[:20], y[:20], epochs=8)


@patient_tired.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_tired.reference(x, y, epochs))


@patient_tired.misconception(
    "The rate it starts with is fine: the first steps bring the loss down. Print the rate of each "
    "step. By what is it so low later?"
)
def blames_the_learning_rate(x, y, epochs):
    return saying("learning rate too low", patient_tired.reference(x, y, epochs))


@patient_tired.misconception(
    "Dead units have gradients of exactly 0. Here the gradients are as long as before; the updates "
    "are what shrinks. Compare the two, step by step."
)
def blames_dead_units(x, y, epochs):
    return saying("dead units", patient_tired.reference(x, y, epochs))


@patient_tired.misconception(
    "The run is as ill as it was: after a dozen batches the steps do hardly anything. Print the "
    "learning rate of each step."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_tired(x, y, epochs))


@patient_tired.misconception(
    "A higher rate at the start lets the run come further before it falls asleep. The schedule is "
    "as wrong as before."
)
def starts_higher(x, y, epochs):
    return fit(x, y, epochs, lr=1.0)


@patient_tired.misconception(
    "The scheduler is gone. The run learns, and the rate is never halved; the task asks for a "
    "schedule that counts epochs."
)
def no_schedule(x, y, epochs):
    return fit(x, y, epochs, when="never")


@patient_tired.misconception(
    "The scheduler steps before the batches of an epoch, so every halving comes one epoch too "
    "early."
)
def steps_before_the_epoch(x, y, epochs):
    return fit(x, y, epochs, when="before")


@patient_tired.broken
def broken_patient_tired(x, y, epochs):
    cause = "?"
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, 4)).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
    losses = []
    for _ in range(epochs):
        for rows in torch.arange(len(x), device=x.device).split(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    return cause, model, losses


patient_tired.hints(
    "Print the learning rate of every step, and the ratio of update to weight.",
    "In what does the schedule count, and how often is it told to count?",
    "One line stands one level too deep.",
)
