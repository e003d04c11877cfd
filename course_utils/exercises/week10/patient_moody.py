"""Clinic: a validation score that depends on the order of the rows."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import blobs, first_losses, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "evaluated in training mode"
COMPLAINT = (
    "On the rows it trains on, the model is nearly perfect. The validation loss is bad, it is "
    "another one when one validates twice, and it got better when somebody shuffled the validation "
    "file."
)


@exercise(objectives=("debug.mode", "debug.order"))
def patient_moody(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train a classifier and validate after each epoch; x (N, d), y (N,) int64 in 0..2.

    The last quarter of the rows is for validation, sorted by class and taken in slices of 10;
    its loss is the mean over the slices of their mean cross-entropy. The model has a hidden
    layer of 16 units, BatchNorm, ReLU and Dropout 0.3. Each epoch is one step of Adam at 0.05 on
    all training rows.

    Validation can be repeated with the same result, changes nothing in the model, and builds no
    graph.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the validation loss after each epoch, as
    Python floats.
    """
    cause = "evaluated in training mode"
    cut = 3 * len(x) // 4
    order = cut + y[cut:].argsort()
    model = nn.Sequential(
        nn.Linear(x.shape[1], 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    ).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x[:cut]), y[:cut]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            parts = [F.cross_entropy(model(x[rows]), y[rows]) for rows in order.split(10)]
        losses.append(torch.stack(parts).mean().item())
    return cause, model, losses


def material(draw):
    """Rows to train on, rows to judge by, and the number of epochs."""
    x, y = blobs(draw, 280, 5, 3)
    return split(x, y, 160, 15)


def fit(x, y, epochs, *, back=True, parts=nn.Module, shuffle=False, graph=False):
    """Training where only some parts are put into evaluation mode, or never out of it."""
    cut = 3 * len(x) // 4
    order = cut + (torch.randperm(len(x) - cut).to(x.device) if shuffle else y[cut:].argsort())
    head = nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    model = nn.Sequential(nn.Linear(x.shape[1], 16), *head).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for epoch in range(epochs):
        if back or epoch == 0:
            model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x[:cut]), y[:cut]).backward()
        optimizer.step()
        for part in model.modules():
            if isinstance(part, parts):
                part.training = False
        with torch.set_grad_enabled(graph):
            pieces = [F.cross_entropy(model(x[rows]), y[rows]) for rows in order.split(10)]
        losses.append(torch.stack(pieces).mean().item())
    return FAULT, model, losses


@patient_moody.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_moody.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.3)


@patient_moody.case(random=True, tolerance=(1e-2, 1e-3))
def the_first_validation_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given)


@patient_moody.case(random=True)
def statistics_that_validation_leaves_alone(implementation, draw):
    recording = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: (
            recording.append((module.training, torch.is_grad_enabled()))
            if isinstance(module, nn.BatchNorm1d)
            else None
        )
    )
    try:
        model = implementation(*material(draw).given, 2)[1]
    finally:
        hook.remove()
    counted = [
        part.num_batches_tracked for part in model.modules() if hasattr(part, "running_mean")
    ]
    modes = sorted(set(recording))
    return {"1. batches that were counted": counted, "2. (training, recording)": modes}


@patient_moody.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_moody.reference(x, y, epochs))


@patient_moody.misconception(
    "Training does take place in training mode: train is called at the start of every epoch. And "
    "in which mode does the model validate?"
)
def blames_stuck_evaluation(x, y, epochs):
    return saying("stuck in evaluation mode", patient_moody.reference(x, y, epochs))


@patient_moody.misconception(
    "Sorting took rows and labels along with the same order, so the pairs are whole. What else "
    "does a slice of one class change?"
)
def blames_the_pairing(x, y, epochs):
    return saying("rows and labels apart", patient_moody.reference(x, y, epochs))


@patient_moody.misconception(
    "The validation loss was called off for its rows, not for its batches: the model is right "
    "about them one by one. No normalization in the code has a wrong dimension; it is in the wrong "
    "mode."
)
def blames_the_dimension(x, y, epochs):
    return saying("wrong dimension", patient_moody.reference(x, y, epochs))


@patient_moody.misconception(
    "The run is as ill as it was: validating twice gives two numbers, and running statistics move "
    "while it validates. Print the mode of the model at that time."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_moody(x, y, epochs))


@patient_moody.misconception(
    "After the first validation the model stays in evaluation mode: it goes on learning with "
    "frozen statistics and without Dropout."
)
def never_back_to_training(x, y, epochs):
    return fit(x, y, epochs, back=False)


@patient_moody.misconception(
    "Only Dropout was put into evaluation mode. BatchNorm still takes its statistics from the "
    "slice, and remembers them."
)
def dropout_only(x, y, epochs):
    return fit(x, y, epochs, parts=nn.Dropout)


@patient_moody.misconception(
    "Only BatchNorm was put into evaluation mode. Dropout still drops units, so two validations "
    "give two numbers."
)
def batch_norm_only(x, y, epochs):
    return fit(x, y, epochs, parts=nn.BatchNorm1d)


@patient_moody.misconception(
    "The validation rows were shuffled. That makes each slice look like the whole and hides the "
    "fault; the score still depends on who else is in the slice, and moves the running statistics."
)
def shuffles_the_validation(x, y, epochs):
    return fit(x, y, epochs, parts=(), shuffle=True)


@patient_moody.misconception(
    "Evaluation mode changes nothing about graphs: recording is on during validation. Use no_grad "
    "as well."
)
def validates_with_a_graph(x, y, epochs):
    return fit(x, y, epochs, graph=True)


@patient_moody.broken
def broken_patient_moody(x, y, epochs):
    cause = "?"
    cut = 3 * len(x) // 4
    order = cut + y[cut:].argsort()
    model = nn.Sequential(
        nn.Linear(x.shape[1], 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    ).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x[:cut]), y[:cut]).backward()
        optimizer.step()
        with torch.no_grad():
            parts = [F.cross_entropy(model(x[rows]), y[rows]) for rows in order.split(10)]
        losses.append(torch.stack(parts).mean().item())
    return cause, model, losses


patient_moody.hints(
    "Validate twice in a row, without training in between. Compare the two numbers.",
    "Print model.training before each of the two parts of an epoch.",
    "Which two layers of this model behave differently in the two modes?",
)
