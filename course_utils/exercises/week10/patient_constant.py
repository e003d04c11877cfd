"""Clinic: a loss that is the same to the last digit."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import blobs, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "stale optimizer"
COMPLAINT = (
    "The head is being trained for new classes. The loss is the same in every epoch, to the last "
    "digit. Nothing is raised, and a larger learning rate changes nothing."
)


@exercise(objectives=("debug.order", "debug.grad_report"))
def patient_constant(
    body: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train a new head on a body that someone else trained; x (N, d), y (N,) int64 in 0..2.

    `body` turns (N, d) into (N, 16). It stays exactly as it is; the head, an nn.Linear(16, 3),
    learns, with Adam at 0.05 on the mean cross-entropy of all rows, for `epochs` epochs. The
    model is nn.Sequential(body, head), with the body itself and not a copy.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "stale optimizer"
    model = nn.Sequential(body, nn.Linear(16, 10)).to(x.device)
    body.requires_grad_(False)
    model[1] = nn.Linear(16, 3).to(x.device)
    optimizer = torch.optim.Adam(model[1].parameters(), lr=0.05)
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
    x, y = blobs(draw, 240, 5, 3)
    body = nn.Sequential(nn.Linear(5, 16), nn.Tanh()).to(draw.device)
    return split(x, y, 90, 25, body)


def fit(model, optimizer, x, y, epochs):
    """A new head, and training with this optimizer, or with one for all parameters."""
    model[1] = nn.Linear(16, 3).to(x.device)
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_constant.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_constant.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.35)


@patient_constant.case(random=True)
def the_body_stays_as_it_is(implementation, draw):
    run = material(draw)
    implementation(*run.given, 2)
    return {"the body": dict(run.given[0].state_dict())}


@patient_constant.case(random=True)
def the_model_and_the_number_of_losses(implementation, draw):
    body, x, y = material(draw).given
    _, model, losses = implementation(body, x, y, 3)
    output = tuple(model(x[:4]).shape)
    return {"losses": len(losses), "output of 4 rows": output, "its first part": model[0] is body}


@patient_constant.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(body, x, y, epochs):
    return saying("?", patient_constant.reference(body, x, y, epochs))


@patient_constant.misconception(
    "The gradients of the head are there at every step, as gradient_report shows, so zero_grad is "
    "in its place. Who gets them? Compare the parameters of the model with those that the "
    "optimizer holds, object by object."
)
def blames_the_order_of_zero_grad(body, x, y, epochs):
    return saying(
        "gradients cleared before the step", patient_constant.reference(body, x, y, epochs)
    )


@patient_constant.misconception(
    "A step that is too short still changes the loss in some digit. Here all digits are equal, and "
    "the learning rate is not the reason."
)
def blames_the_learning_rate(body, x, y, epochs):
    return saying("learning rate too low", patient_constant.reference(body, x, y, epochs))


@patient_constant.misconception(
    "The run is as ill as it was: the loss does not move, to the last digit. Compare the "
    "parameters of the model with those that the optimizer holds, object by object."
)
def named_but_not_mended(body, x, y, epochs):
    return saying(FAULT, broken_patient_constant(body, x, y, epochs))


@patient_constant.misconception(
    "The body was unfrozen. Now the loss falls, since the body learns to suit a head that never "
    "moves. The body was to stay as it is; the new head still has no optimizer."
)
def unfreezes_the_body(body, x, y, epochs):
    model = nn.Sequential(body, nn.Linear(16, 10)).to(x.device)
    return fit(model, torch.optim.Adam(body.parameters(), lr=0.05), x, y, epochs)


@patient_constant.misconception(
    "The optimizer is made at the right place now, and the body learns as well. It was to stay as "
    "it is: it has to be frozen."
)
def trains_the_body_too(body, x, y, epochs):
    model = nn.Sequential(body, nn.Linear(16, 10)).to(x.device)
    return fit(model, None, x, y, epochs)


@patient_constant.misconception(
    "The optimizer now holds what the model uses, since the line that makes a new head is gone. "
    "The head that is left has ten outputs, for three classes."
)
def keeps_the_old_head(body, x, y, epochs):
    model = nn.Sequential(body.requires_grad_(False), nn.Linear(16, 10)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_constant.broken
def broken_patient_constant(body, x, y, epochs):
    cause = "?"
    model = nn.Sequential(body, nn.Linear(16, 10)).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    body.requires_grad_(False)
    model[1] = nn.Linear(16, 3).to(x.device)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_constant.hints(
    "Compare one parameter of the head before and after a step. Then run gradient_report: is the "
    "gradient there?",
    "An optimizer remembers the parameter objects it was given, not their places in the model.",
    "Which line makes an object that comes after the line that asks for all objects?",
)
