"""Clinic: a loss that swings."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import first_losses, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "gradients not cleared"
COMPLAINT = (
    "The loss comes down, goes up again, comes down, like a swing, for as long as one lets it run. "
    "A lower rate makes the swing slower, not smaller."
)


@exercise(objectives=("debug.order", "debug.magnitudes"))
def patient_pendulum(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Fit a line: x (N, 3), y (N,) float32; the model is nn.Linear(3, 1) and gives (N, 1).

    Plain SGD at 0.2 on the mean squared error of all rows, for `epochs` epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "gradients not cleared"
    model = nn.Linear(3, 1).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x).squeeze(1), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


def material(draw):
    """Rows to train on, rows to judge by, and the number of epochs."""
    x, y = rows_of_numbers(draw, 240)
    return split(x, y + 3.0, 80, 45)


def rows_of_numbers(draw, count):
    """Rows, and numbers that depend on them along a plane."""
    x = draw.normal(count, 3)
    slopes = draw.tensor([draw.choice([-1.0, 1.0]) * draw.number(1, 2) for _ in range(3)])
    return x, x @ slopes + 0.1 * draw.normal(count)


def fit(x, y, epochs, before_step, lr=0.2):
    """Training without clearing, but with something done before each step."""
    model = nn.Linear(3, 1).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for epoch in range(epochs):
        loss = F.mse_loss(model(x).squeeze(1), y)
        loss.backward()
        before_step(optimizer, epoch)
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_pendulum.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_pendulum.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.05, least=0.97)


@patient_pendulum.case(random=True, tolerance=(1e-3, 1e-4))
def the_first_four_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given, epochs=4)


@patient_pendulum.case(random=True)
def the_output_of_the_model(implementation, draw):
    x, y = material(draw).given
    return {"output of 5 rows": tuple(implementation(x, y, 1)[1](x[:5]).shape)}


@patient_pendulum.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_pendulum.reference(x, y, epochs))


@patient_pendulum.misconception(
    "A rate that is too high makes the loss grow from step to step, or jump. This one swings with "
    "a long period, and at half the rate it swings as high. Print the norm of .grad, step by step."
)
def blames_the_learning_rate(x, y, epochs):
    return saying("learning rate too high", patient_pendulum.reference(x, y, epochs))


@patient_pendulum.misconception(
    "With gradients cleared before the step nothing would move at all, and the loss would be the "
    "same in every epoch. Here it moves, and too far."
)
def blames_the_opposite(x, y, epochs):
    return saying("gradients cleared before the step", patient_pendulum.reference(x, y, epochs))


@patient_pendulum.misconception(
    "The run is as ill as it was: the loss swings. Print the norm of .grad before each step, and "
    "beside it that of the gradient of this step alone."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_pendulum(x, y, epochs))


@patient_pendulum.misconception(
    "The run is mended, and the model gives (N,) now. The task says (N, 1): fit the loss to the "
    "model, not the model to the loss."
)
def flattened_output(x, y, epochs):
    _, model, losses = patient_pendulum.reference(x, y, epochs)
    return FAULT, nn.Sequential(model, nn.Flatten(0)), losses


@patient_pendulum.misconception(
    "Gradients are cleared now, right before the step: the optimizer finds none, and the loss is "
    "the same in every epoch."
)
def clears_before_the_step(x, y, epochs):
    return fit(x, y, epochs, lambda optimizer, epoch: optimizer.zero_grad())


@patient_pendulum.misconception(
    "The rate is lower, and the swing is slower. The sum of old gradients is still what drives it."
)
def lower_rate(x, y, epochs):
    return fit(x, y, epochs, lambda optimizer, epoch: None, lr=0.02)


@patient_pendulum.misconception(
    "Old gradients are not cleared but averaged with the new one. That damps the swing; each step "
    "still follows all steps before it."
)
def averages_over_all_steps(x, y, epochs):
    def halved(optimizer, epoch):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad /= epoch + 1

    return fit(x, y, epochs, halved)


@patient_pendulum.broken
def broken_patient_pendulum(x, y, epochs):
    cause = "?"
    model = nn.Linear(3, 1).to(x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(epochs):
        loss = F.mse_loss(model(x).squeeze(1), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_pendulum.hints(
    "Print the norm of the gradient before each step. Does it shrink when the loss does?",
    "What does backward do with the .grad that it finds?",
    "Each step should use the gradient of that step alone. One line is missing.",
)
