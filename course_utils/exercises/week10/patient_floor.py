"""Clinic: a loss that stops far above zero."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import blobs, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "softmax before the loss"
COMPLAINT = (
    "Ten classes, and the rows are easy. The loss falls quickly at first, and then it will not go "
    "below 1.46, however long the run is."
)


@exercise(objectives=("debug.order", "debug.init_loss"))
def patient_floor(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train a classifier on x (N, d), y (N,) int64 in 0..9.

    The model has one hidden layer of 24 units with a ReLU and gives logits (N, 10). It learns
    with Adam at 0.02 on the mean cross-entropy of all rows, for `epochs` epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "softmax before the loss"
    model = nn.Sequential(nn.Linear(x.shape[1], 24), nn.ReLU(), nn.Linear(24, 10)).to(x.device)
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
    x, y = blobs(draw, 420, 10, 10)
    return split(x, y, 200, 45)


def fit(x, y, epochs, loss_of, lr=0.02):
    """Training with another loss of the logits."""
    model = nn.Sequential(nn.Linear(x.shape[1], 24), nn.ReLU(), nn.Linear(24, 10)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = loss_of(model(x))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_floor.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_floor.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.5)


@patient_floor.case(random=True)
def every_loss_is_a_cross_entropy(implementation, draw):
    run = material(draw)
    _, model, losses = implementation(*run.given, 8)
    first = "about log 10" if 1.9 < losses[0] < 3.0 else losses[0]
    with torch.no_grad():
        scores = bool((model(run.new_x) < 0).any())
    return {"first loss": first, "any below 0": min(losses) < 0, "any logit below 0": scores}


@patient_floor.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_floor.reference(x, y, epochs))


@patient_floor.misconception(
    "A learning rate that is too low makes the loss fall slowly, and it goes on falling. This one "
    "stopped at a value: work out the lowest loss that ten numbers between 0 and 1 with sum 1 can "
    "reach when they are taken for logits."
)
def blames_a_low_learning_rate(x, y, epochs):
    return saying("learning rate too low", patient_floor.reference(x, y, epochs))


@patient_floor.misconception(
    "Rows without the right labels leave the loss at the entropy of the labels, 2.30 here, and the "
    "accuracy at that of guessing. This run is well below, and most rows are right."
)
def blames_the_pairing(x, y, epochs):
    return saying("rows and labels apart", patient_floor.reference(x, y, epochs))


@patient_floor.misconception(
    "A softmax over the wrong dimension is another fault: samples would compete with each other. "
    "Here the probabilities of each row do add up to one, and it is still too much of a good thing."
)
def blames_the_dimension(x, y, epochs):
    return saying("wrong dimension", patient_floor.reference(x, y, epochs))


@patient_floor.misconception(
    "The run is as ill as it was: the loss stops above 1.46. Look at the range of the numbers that "
    "the model hands to the loss."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_floor(x, y, epochs))


@patient_floor.misconception(
    "nll_loss of probabilities is no likelihood: it wants their logarithms. The loss is now "
    "negative and stops at -1."
)
def nll_of_probabilities(x, y, epochs):
    return fit(x, y, epochs, lambda z: F.nll_loss(z.softmax(dim=1), y))


@patient_floor.misconception(
    "A sigmoid in place of the softmax moves the floor and does not remove it: scores between 0 "
    "and 1 still differ by at most 1."
)
def sigmoid_instead(x, y, epochs):
    return fit(x, y, epochs, lambda z: F.cross_entropy(z.sigmoid(), y))


@patient_floor.misconception(
    "The loss is a right one now, and the model still gives no logits: none of its numbers is "
    "below 0. What is handed to others should be what the task says."
)
def probabilities_from_the_model(x, y, epochs):
    _, model, losses = patient_floor.reference(x, y, epochs)
    return FAULT, nn.Sequential(model, nn.Softmax(dim=1)), losses


@patient_floor.broken
def broken_patient_floor(x, y, epochs):
    cause = "?"
    model = nn.Sequential(
        nn.Linear(x.shape[1], 24), nn.ReLU(), nn.Linear(24, 10), nn.Softmax(dim=1)
    ).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_floor.hints(
    "Write down the largest and the smallest entry of one row of the model's output.",
    "What is -log(e / (e + 9))?",
    "What does cross_entropy expect: logits or probabilities?",
)
