"""Clinic: a model of which one part never changes."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import first_losses, named, recovery, rings, saying, split
from course_utils.exercise import exercise

FAULT = "cut graph"
COMPLAINT = (
    "An encoder and a head, trained together. The loss stops early, far from zero, and a deeper "
    "encoder does not help. The head was looked at; it learns."
)


@exercise(objectives=("debug.flow", "debug.grad_report"))
def patient_deaf(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train an encoder and a head together; x (N, 2), y (N,) int64 in 0..1.

    The encoder is nn.Sequential(nn.Linear(2, 4), nn.Tanh()), the head nn.Linear(4, 2), and the
    model is nn.Sequential(encoder, head). Adam at 0.1 on the mean cross-entropy of all rows, for
    `epochs` epochs. Encoder and head both learn.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "cut graph"
    encoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
    head = nn.Linear(4, 2)
    model = nn.Sequential(encoder, head).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        codes = encoder(x)
        loss = F.cross_entropy(head(codes), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


def material(draw):
    """Rows to train on, rows to judge by, and the number of epochs."""
    x, y = rings(draw, 240)
    return split(x, y, 100, 60)


def fit(x, y, epochs, pass_on, *, head_too=True):
    """Training with another way from the codes to the head."""
    encoder, head = nn.Sequential(nn.Linear(2, 4), nn.Tanh()), nn.Linear(4, 2)
    model = nn.Sequential(encoder, head).to(x.device)
    trained = model if head_too else encoder
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.1)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(pass_on(encoder(x))), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_deaf.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_deaf.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.2)


@patient_deaf.case(random=True)
def both_parts_move(implementation, draw):
    run = material(draw)
    torch.manual_seed(run.new_y.sum().item())
    start = implementation(*run.given, 1)[1].state_dict()
    torch.manual_seed(run.new_y.sum().item())
    end = implementation(*run.given, 2)[1].state_dict()
    return {name: bool((end[name] != start[name]).any()) for name in start}


@patient_deaf.case(random=True, tolerance=(1e-3, 1e-4))
def the_first_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given)


@patient_deaf.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_deaf.reference(x, y, epochs))


@patient_deaf.misconception(
    "The encoder is registered: it is part of the model, and the optimizer holds its parameters. "
    "gradient_report lists them, and says none. Why does no gradient arrive?"
)
def blames_registration(x, y, epochs):
    return saying("unregistered layers", patient_deaf.reference(x, y, epochs))


@patient_deaf.misconception(
    "A dead unit is connected and gets zeros. The report says none here, which is another finding: "
    "the loss never reached the parameter."
)
def blames_dead_units(x, y, epochs):
    return saying("dead units", patient_deaf.reference(x, y, epochs))


@patient_deaf.misconception(
    "The run is as ill as it was: one part never changes, and gradient_report says none for it. "
    "Walk back from the loss to the place where a tensor has no grad_fn."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_deaf(x, y, epochs))


@patient_deaf.misconception(
    "The numbers pass through a leaf that requires gradients, and its gradient is handed on with "
    "the wrong sign or not at all: the encoder moves, and not toward a lower loss. Let autograd "
    "make the connection."
)
def gradient_passed_on_by_hand(x, y, epochs):
    return fit(x, y, epochs, lambda codes: 2 * codes.detach() - codes)


@patient_deaf.misconception(
    "Only the encoder is trained now: the head was cut in exchange, and stays as it was drawn."
)
def cuts_the_head_instead(x, y, epochs):
    return fit(x, y, epochs, lambda codes: codes, head_too=False)


@patient_deaf.broken
def broken_patient_deaf(x, y, epochs):
    cause = "?"
    encoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
    head = nn.Linear(4, 2)
    model = nn.Sequential(encoder, head).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        codes = torch.tensor(encoder(x).tolist(), device=x.device)
        loss = F.cross_entropy(head(codes), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_deaf.hints(
    "Run gradient_report after one backward. Which parameters say none?",
    "Walk back from the loss: through which expressions does it depend on the encoder?",
    "Which expression leaves the graph by way of Python numbers?",
)
