"""Clinic: images that are all the same to the model."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import first_losses, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "integer arithmetic"
COMPLAINT = (
    "Small images, pixels from 0 to 255. The loss stays at 1.1, whatever the model; somebody said "
    "that the labels must be wrong, but they were checked, row by row."
)


@exercise(objectives=("debug.order", "debug.init_loss"))
def patient_blank(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train a classifier on images x (N, 36), uint8 pixels 0..255, y (N,) int64 in 0..2.

    The model takes pixels scaled to 0..1 as float32; scaling is the first part of the model, so
    that it takes raw pixels. One hidden layer of 16 units with a ReLU, Adam at 0.02 on the mean
    cross-entropy of all rows, for `epochs` epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "integer arithmetic"

    class Scaled(nn.Module):
        def forward(self, pixels):
            return pixels.float() / 255

    model = nn.Sequential(Scaled(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3)).to(x.device)
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
    y = draw.permutation(300) % 3
    looks = draw.uniform(3, 36, low=30, high=220)
    x = (looks[y] + 25 * draw.normal(300, 36)).clamp(0, 254).to(torch.uint8)
    return split(x, y, 120, 20)


class By(nn.Module):
    """Applies a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, pixels):
        return self.function(pixels)


def fit(x, y, epochs, scale):
    """Training with another scaling."""
    layers = By(scale), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3)
    model = nn.Sequential(*layers).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_blank.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_blank.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.3)


@patient_blank.case(random=True, tolerance=(2e-4, 1e-5))
def the_first_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given)


@patient_blank.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_blank.reference(x, y, epochs))


@patient_blank.misconception(
    "A wrong pairing gives the same loss curve, which is why one look at the curve is not enough. "
    "Here the labels do belong to the images; print the batch as the second layer gets it."
)
def blames_the_pairing(x, y, epochs):
    return saying("rows and labels apart", patient_blank.reference(x, y, epochs))


@patient_blank.misconception(
    "Dead units have zero gradients for every row because of their weights. Here some gradients "
    "are zero because of the input: print the batch as the first linear layer gets it."
)
def blames_dead_units(x, y, epochs):
    return saying("dead units", patient_blank.reference(x, y, epochs))


@patient_blank.misconception(
    "The run is as ill as it was: the loss stays near log 3. Print a batch as the first linear "
    "layer gets it, its range, and how many different values it has."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_blank(x, y, epochs))


@patient_blank.misconception(
    "The pixels are divided twice, so the inputs are at most 0.004. The values are there, and the "
    "layer hardly feels them: the loss comes down very slowly."
)
def scaled_twice(x, y, epochs):
    return fit(x, y, epochs, lambda pixels: pixels.float() / 255 / 255)


@patient_blank.misconception(
    "The pixels are floats, but not scaled: with inputs up to 255 the first loss is far above "
    "log 3, and the first steps are spent on bringing it down."
)
def not_scaled(x, y, epochs):
    return fit(x, y, epochs, lambda pixels: pixels.float())


@patient_blank.misconception(
    "Every pixel is black or white now. The run learns from what is left; 0..1 means all the grays "
    "in between as well."
)
def black_and_white(x, y, epochs):
    return fit(x, y, epochs, lambda pixels: (pixels > 127).float())


@patient_blank.broken
def broken_patient_blank(x, y, epochs):
    cause = "?"

    class Scaled(nn.Module):
        def forward(self, pixels):
            return (pixels // 255).float()

    model = nn.Sequential(Scaled(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_blank.hints(
    "Print one batch as the first linear layer gets it: dtype, range, how many different values.",
    "What is 200 // 255?",
    "In which dtype does the division happen, and with which operator?",
)
