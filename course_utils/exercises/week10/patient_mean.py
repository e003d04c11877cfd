"""Clinic: a regression that answers the mean to everything."""

import torch
from torch import nn

from course_utils.clinic import first_losses, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "broadcast loss"
COMPLAINT = (
    "The model answers nearly the same number to every row. Its loss settles at the variance of "
    "the targets, as if x told nothing about y; a ruler on the plot says that it does."
)


@exercise(objectives=("debug.order", "debug.init_loss"))
def patient_mean(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Fit numbers: x (N, d), y (N,) float32. The model gives (N, 1).

    It has one hidden layer of 16 units with tanh. It learns with Adam at 0.05 on the mean
    squared error of all rows, for `epochs` epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "broadcast loss"
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 1)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = ((model(x).squeeze(1) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


def material(draw):
    """Rows to train on, rows to judge by, and the number of epochs."""
    x = draw.normal(200, 3)
    slopes = draw.tensor([draw.choice([-1.0, 1.0]) * draw.number(1, 2) for _ in range(3)])
    return split(x, x @ slopes + 0.1 * draw.normal(200), 80, 45)


def fit(x, y, epochs, loss_of):
    """Training with another loss of the output."""
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 1)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = loss_of(model(x))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_mean.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_mean.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.6)


@patient_mean.case(random=True, tolerance=(1e-3, 1e-4))
def the_first_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given)


@patient_mean.case(random=True)
def the_output_of_the_model(implementation, draw):
    x, y = material(draw).given
    return {"output of 5 rows": tuple(implementation(x, y, 1)[1](x[:5]).shape)}


@patient_mean.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_mean.reference(x, y, epochs))


@patient_mean.misconception(
    "Shuffled targets would give the same plateau. Here row i of x and entry i of y belong "
    "together; look at the shape of the difference that is squared."
)
def blames_the_pairing(x, y, epochs):
    return saying("rows and labels apart", patient_mean.reference(x, y, epochs))


@patient_mean.misconception(
    "With short steps the loss would still be on its way down at the end. This one has arrived: at "
    "the variance of y, which is what the best constant answer gets."
)
def blames_the_learning_rate(x, y, epochs):
    return saying("learning rate too low", patient_mean.reference(x, y, epochs))


@patient_mean.misconception(
    "No unit is off here. The gradients are there, and they pull every answer toward the mean of y."
)
def blames_dead_units(x, y, epochs):
    return saying("dead units", patient_mean.reference(x, y, epochs))


@patient_mean.misconception(
    "The run is as ill as it was: nearly one answer for all rows. Print the shapes of prediction, "
    "target and difference."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_mean(x, y, epochs))


@patient_mean.misconception(
    "The error of the mean answer is squared, not the mean of the squared errors: the average of "
    "all differences can be 0 with every single one wrong."
)
def squares_the_mean(x, y, epochs):
    return fit(x, y, epochs, lambda out: (out - y).mean() ** 2)


@patient_mean.misconception(
    "squeeze was applied to the wrong one of the two. y has no dimension of size 1, so nothing "
    "happens; and one more dimension in front makes (1, N), which broadcasts again."
)
def one_dimension_in_front(x, y, epochs):
    return fit(x, y, epochs, lambda out: ((out - y[None]) ** 2).sum() / len(y))


@patient_mean.misconception(
    "The run is mended, and the model gives (N,) now. The task says (N, 1): fit the loss to the "
    "model, not the model to the loss."
)
def flattened_output(x, y, epochs):
    _, model, losses = patient_mean.reference(x, y, epochs)
    return FAULT, nn.Sequential(model, nn.Flatten(0)), losses


@patient_mean.misconception(
    "The pairs are right, and the errors are not squared: this is the mean absolute error."
)
def absolute_errors(x, y, epochs):
    return fit(x, y, epochs, lambda out: (out.squeeze(1) - y).abs().mean())


@patient_mean.broken
def broken_patient_mean(x, y, epochs):
    cause = "?"
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 1)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_mean.hints(
    "Print the shape of the difference before it is squared.",
    "What does broadcasting make of (80, 1) and (80,)?",
    "Two tensors that are compared entry by entry should have one shape.",
)
