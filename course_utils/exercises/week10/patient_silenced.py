"""Clinic: gradients that are wrong without a word."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import first_losses, named, recovery, rings, saying, split
from course_utils.exercise import exercise

FAULT = "edited behind autograd"
COMPLAINT = (
    "Two hidden layers, and it learns worse than one. Nothing is none, nothing is zero, nothing is "
    "infinite; the loss jumps about. An old error message was 'fixed' here last month."
)


@exercise(objectives=("debug.inplace", "debug.flow"))
def patient_silenced(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train a network of two hidden layers; x (N, 2), y (N,) int64 in 0..1.

    Each hidden layer has 8 units, and its activation is 3 times the tanh of the layer's output;
    then a linear head gives two logits. Adam at 0.05 on the mean cross-entropy of all rows, for
    `epochs` epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "edited behind autograd"

    class WideTanh(nn.Module):
        def forward(self, z):
            return 3 * torch.tanh(z)

    model = nn.Sequential(
        nn.Linear(2, 8), WideTanh(), nn.Linear(8, 8), WideTanh(), nn.Linear(8, 2)
    ).to(x.device)
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
    x, y = rings(draw, 240)
    return split(x, y, 100, 50)


class By(nn.Module):
    """Applies a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


def fit(x, y, epochs, act):
    """Training with another activation."""
    layers = nn.Linear(2, 8), By(act), nn.Linear(8, 8), By(act), nn.Linear(8, 2)
    model = nn.Sequential(*layers).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_silenced.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_silenced.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.15)


@patient_silenced.case(random=True, tolerance=(1e-2, 1e-3))
def the_first_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given)


@patient_silenced.case(random=True)
def gradients_against_difference_quotients(implementation, draw):
    x, y = material(draw).given
    model = implementation(x, y, 1)[1].double()
    rows = x[:2].double().requires_grad_()
    agree = torch.autograd.gradcheck(model, rows, raise_exception=False)
    return {"autograd agrees with the measured slopes": agree}


@patient_silenced.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_silenced.reference(x, y, epochs))


@patient_silenced.misconception(
    "At a lower rate the loss jumps less, and it does not come down either: the direction is "
    "wrong, not the length. Compare a gradient with a numerical one."
)
def blames_the_learning_rate(x, y, epochs):
    return saying("learning rate too high", patient_silenced.reference(x, y, epochs))


@patient_silenced.misconception(
    "A cut branch would leave parameters with none. All of them have a gradient here, of an "
    "ordinary size, and it points the wrong way."
)
def blames_a_cut_graph(x, y, epochs):
    return saying("cut graph", patient_silenced.reference(x, y, epochs))


@patient_silenced.misconception(
    "The run is as ill as it was: the gradients do not agree with difference quotients. Check the "
    "activation on its own, with torch.autograd.gradcheck."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_silenced(x, y, epochs))


@patient_silenced.misconception(
    "The .data is gone and the edit is not. Now autograd sees it, and backward raises the error "
    "that was silenced. Make a new tensor."
)
def openly_in_place(x, y, epochs):
    return fit(x, y, epochs, lambda z: torch.tanh(z).mul_(3))


@patient_silenced.misconception(
    "Edited under no_grad instead of through .data, on a detached alias: the memory is the same "
    "one, and the saved output has changed with it. What looks different works out the same, but "
    "for the head start that a lower factor gives."
)
def another_way_around_the_counter(x, y, epochs):
    def around(z):
        h = torch.tanh(z)
        h.detach().numpy().__imul__(2) if h.device.type == "cpu" else h.data.mul_(2)
        return 1.5 * h

    return fit(x, y, epochs, around)


@patient_silenced.misconception(
    "The activation is detached, so no wrong slope is used, and none at all: the layers before it "
    "no longer learn."
)
def detaches_the_activation(x, y, epochs):
    return fit(x, y, epochs, lambda z: 3 * torch.tanh(z).detach())


@patient_silenced.misconception(
    "A new tensor was put into .data. What tanh saved is whole now, and autograd still does not "
    "know of the factor 3: gradients before it are too short, and Adam happens not to mind."
)
def swaps_the_data(x, y, epochs):
    def act(z):
        h = torch.tanh(z)
        h.data = 3 * h.data
        return h

    return fit(x, y, epochs, act)


@patient_silenced.broken
def broken_patient_silenced(x, y, epochs):
    cause = "?"

    class WideTanh(nn.Module):
        def forward(self, z):
            h = torch.tanh(z)
            h.data.mul_(3)
            return h

    model = nn.Sequential(
        nn.Linear(2, 8), WideTanh(), nn.Linear(8, 8), WideTanh(), nn.Linear(8, 2)
    ).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_silenced.hints(
    "Compare one entry of a gradient with the difference of two losses. Do they agree?",
    "Which tensor does tanh keep for the backward pass?",
    "What does .data hide, and from whom?",
)
