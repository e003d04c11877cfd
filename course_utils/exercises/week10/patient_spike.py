"""Clinic: a run that a few bad targets throw off."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import first_losses, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "clipping too early"
COMPLAINT = (
    "One target in forty is a glitch, a thousand times too large. The log says that gradients are "
    "clipped at 1; the norm in it is 0.0 at every step, and the weights are huge."
)


@exercise(objectives=("debug.magnitudes", "debug.order"))
def patient_spike(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Mini-batch training with clipping; x (N, 3), y (N,) float32, a few entries of y far too
    large.

    The batches are consecutive slices of 10 rows, in the order given. For each: the mean squared
    error, its gradients, clipped to a total norm of 1, and a step of SGD at 0.1. The model gives
    (N, 1) from one hidden layer of 12 units with tanh; there are `epochs` epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each batch, before its update,
    as Python floats.
    """
    cause = "clipping too early"
    model = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(epochs):
        for rows in torch.arange(len(x), device=x.device).split(10):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x[rows]).squeeze(1), y[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    return cause, model, losses


def material(draw):
    """Rows to train on, rows to judge by, and the number of epochs."""
    x, y = rows_of_numbers(draw, 240)
    y[4:80:40] = 1000.0
    return split(x, y, 80, 6)


def rows_of_numbers(draw, count):
    """Rows, and numbers that depend on them along a plane."""
    x = draw.normal(count, 3)
    slopes = draw.tensor([draw.choice([-1.0, 1.0]) * draw.number(1, 2) for _ in range(3)])
    return x, x @ slopes + 0.1 * draw.normal(count)


def fit(x, y, epochs, order, lr=0.1):
    """Training with the lines of the loop in another order."""
    model = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(epochs):
        for rows in torch.arange(len(x), device=x.device).split(10):
            loss = F.mse_loss(model(x[rows]).squeeze(1), y[rows])
            do = {
                "clear": optimizer.zero_grad,
                "backward": loss.backward,
                "clip": lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0),
                "clip_entries": lambda: nn.utils.clip_grad_value_(model.parameters(), 1.0),
                "lengthen": lambda: [p.grad.mul_(1e6) for p in model.parameters()],
                "step": optimizer.step,
            }
            for word in order.split():
                do[word]()
            losses.append(loss.item())
    return FAULT, model, losses


@patient_spike.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_spike.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=10.0, least=0.7)


@patient_spike.case(random=True, tolerance=(1e-3, 1e-3))
def losses_around_a_glitch(implementation, draw):
    x, y = material(draw).given
    return first_losses(implementation, x[:30], y[:30], epochs=1)


@patient_spike.case(random=True, tolerance=(1e-3, 1e-4))
def losses_of_small_targets(implementation, draw):
    x, y = material(draw).given
    return first_losses(implementation, x[10:40], y[10:40] / 20, epochs=1)


@patient_spike.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_spike.reference(x, y, epochs))


@patient_spike.misconception(
    "The rate suits the ordinary rows: with the fault mended, the same rate learns. Look at the "
    "norm that the clip function returns."
)
def blames_the_learning_rate(x, y, epochs):
    return saying("learning rate too high", patient_spike.reference(x, y, epochs))


@patient_spike.misconception(
    "Shapes are in order: prediction and target are both (10,) when they meet. Which gradients "
    "does the clip function find?"
)
def blames_the_shapes(x, y, epochs):
    return saying("broadcast loss", patient_spike.reference(x, y, epochs))


@patient_spike.misconception(
    "The run is as ill as it was: one glitch throws the weights far off. Print the norm that the "
    "clip function returns, and how far the weights move in that step."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_spike(x, y, epochs))


@patient_spike.misconception(
    "Each entry was limited to 1, not the total norm. That changes the direction, and the step can "
    "be several times as long as the task allows."
)
def clips_each_entry(x, y, epochs):
    return fit(x, y, epochs, "clear backward clip_entries step")


@patient_spike.misconception(
    "The gradients are clipped, and then cleared before the optimizer sees them: nothing moves."
)
def clears_after_clipping(x, y, epochs):
    return fit(x, y, epochs, "backward clip clear step")


@patient_spike.misconception(
    "A rate a thousand times lower survives the glitches, and learns nothing in the time it has. "
    "The gradient is what is too long, and only now and then."
)
def much_lower_rate(x, y, epochs):
    return fit(x, y, epochs, "clear clip backward step", lr=1e-4)


@patient_spike.misconception(
    "Every gradient is given the length 1, short ones too. Clipping shortens what is too long and "
    "leaves the rest alone."
)
def always_the_same_length(x, y, epochs):
    return fit(x, y, epochs, "clear backward lengthen clip step")


@patient_spike.broken
def broken_patient_spike(x, y, epochs):
    cause = "?"
    model = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(epochs):
        for rows in torch.arange(len(x), device=x.device).split(10):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x[rows]).squeeze(1), y[rows])
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return cause, model, losses


patient_spike.hints(
    "Print the norm that the clip function returns, for a few batches.",
    "What is in .grad right after zero_grad?",
    "Put the five lines of the loop in the order in which each finds what it needs.",
)
