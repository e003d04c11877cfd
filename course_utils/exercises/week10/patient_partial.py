"""Clinic: a deep network that behaves like a shallow one."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import first_losses, named, recovery, rings, saying, split
from course_utils.exercise import exercise

FAULT = "unregistered layers"
COMPLAINT = (
    "Somebody made the network deeper, from one hidden layer to three. The number of parameters in "
    "the log did not change, and neither did the plateau of the loss."
)


@exercise(objectives=("debug.flow", "debug.grad_report"))
def patient_partial(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train a network of three hidden layers; x (N, 2), y (N,) int64 in 0..1.

    Each hidden layer has 6 units and tanh, then a linear head gives two logits; all of these
    learn and belong to the model. Adam at 0.03 on the mean cross-entropy of all rows, for
    `epochs` epochs.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "unregistered layers"

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (2, 6), (6, 6), (6, 6)
            self.hidden = nn.ModuleList(nn.Linear(a, b, device=x.device) for a, b in widths)
            self.head = nn.Linear(6, 2, device=x.device)

        def forward(self, points):
            for layer in self.hidden:
                points = torch.tanh(layer(points))
            return self.head(points)

    model = Deep()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
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


def layers(x):
    """Three hidden layers."""
    return [nn.Linear(a, 6, device=x.device) for a in (2, 6, 6)]


class Deep(nn.Module):
    """The network, some of whose hidden layers are registered."""

    def __init__(self, hidden, register, used, device):
        super().__init__()
        self.known = nn.ModuleList(hidden[register])
        self.hidden = hidden if used else []
        self.head = nn.Linear(6 if used else 2, 2, device=device)

    def forward(self, points):
        for layer in self.hidden:
            points = torch.tanh(layer(points))
        return self.head(points)


def fit(x, y, epochs, hidden, *, register=slice(0, 0), used=True, extra=False):
    """Training of such a network; extra: the optimizer gets all hidden layers."""
    model = Deep(hidden, register, used, x.device)
    parameters = list(model.parameters())
    if extra:
        parameters += [p for layer in hidden for p in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_partial.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_partial.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.2)


@patient_partial.case(random=True)
def the_parameters_of_the_model(implementation, draw):
    model = implementation(*material(draw).given, 1)[1]
    return {"parameters": sorted(tuple(p.shape) for p in model.parameters())}


@patient_partial.case(random=True, tolerance=(1e-3, 1e-4))
def the_first_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given)


@patient_partial.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_partial.reference(x, y, epochs))


@patient_partial.misconception(
    "The graph is whole: the weights of the hidden layers even have a .grad after backward. They "
    "do not appear in gradient_report. Who would have to know them?"
)
def blames_a_cut_graph(x, y, epochs):
    return saying("cut graph", patient_partial.reference(x, y, epochs))


@patient_partial.misconception(
    "The optimizer is made after the model, from the parameters that the model has. It is complete "
    "as far as model.parameters() goes; count those."
)
def blames_a_stale_optimizer(x, y, epochs):
    return saying("stale optimizer", patient_partial.reference(x, y, epochs))


@patient_partial.misconception(
    "The run is as ill as it was: most layers never change. Count what model.parameters() gives, "
    "and then the layers in the code."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_partial(x, y, epochs))


@patient_partial.misconception(
    "The optimizer was given the hidden layers by hand, so the run learns. They are still no part "
    "of the model: state_dict lacks them, and to(), train() and freezing pass them by."
)
def hands_them_to_the_optimizer(x, y, epochs):
    return fit(x, y, epochs, layers(x), extra=True)


@patient_partial.misconception(
    "Only the last hidden layer is registered now, since one attribute was assigned again and "
    "again. A container that holds all of them does it."
)
def registers_the_last_only(x, y, epochs):
    return fit(x, y, epochs, layers(x), register=slice(2, 3))


@patient_partial.misconception(
    "A container was made for the layers, but forward uses the head on the points alone. The "
    "hidden layers are parameters now, and their gradient is none."
)
def registered_and_unused(x, y, epochs):
    return fit(x, y, epochs, layers(x), register=slice(0, 3), used=False)


@patient_partial.broken
def broken_patient_partial(x, y, epochs):
    cause = "?"

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (2, 6), (6, 6), (6, 6)
            self.hidden = [nn.Linear(a, b, device=x.device) for a, b in widths]
            self.head = nn.Linear(6, 2, device=x.device)

        def forward(self, points):
            for layer in self.hidden:
                points = torch.tanh(layer(points))
            return self.head(points)

    model = Deep()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_partial.hints(
    "Count the parameters that the model says it has, and those you see in its __init__.",
    "gradient_report lists named_parameters(). Which names are missing?",
    "nn.Module notices modules that are assigned to it, and containers made for the purpose.",
)
