"""Clinic: a model that works in a crowd and fails alone."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.clinic import blobs, first_losses, named, recovery, saying, split
from course_utils.exercise import exercise

FAULT = "wrong dimension"
COMPLAINT = (
    "Trained and scored on whole batches, the model is nearly perfect. In service it gets one row "
    "at a time, and a row that was right in the batch is often wrong on its own."
)


@exercise(objectives=("debug.batch_leak", "debug.order"))
def patient_crowd(
    x: torch.Tensor, y: torch.Tensor, epochs: int
) -> tuple[str, nn.Module, list[float]]:
    """Train a classifier whose units share one row's attention; x (N, d), y (N,) int64 in 0..3.

    A linear layer gives each row 8 scores; a softmax over the 8 scores of the row, times 8, goes
    into a linear head. Adam at 0.05 on the mean cross-entropy of all rows, for `epochs` epochs.
    The output of a row must not depend on the rows beside it.

    Return (cause, model, losses): the name of the fault in this script as you were given it, one
    of course_utils.clinic.CAUSES; the trained model; the loss of each epoch, before its update,
    as Python floats.
    """
    cause = "wrong dimension"

    class Shares(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.scores = nn.Linear(features, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, rows):
            return self.head(8 * torch.softmax(self.scores(rows), dim=1))

    model = Shares(x.shape[1]).to(x.device)
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
    x, y = blobs(draw, 240, 6, 4, apart=4.0)
    return split(x, y, 120, 40)


class SharesBy(nn.Module):
    """The model with another way from scores to shares."""

    def __init__(self, features, shares):
        super().__init__()
        self.scores = nn.Linear(features, 8)
        self.head = nn.Linear(8, 4)
        self.shares = shares

    def forward(self, rows):
        return self.head(8 * self.shares(self.scores(rows)))


def fit(x, y, epochs, shares):
    """Training with such a model."""
    model = SharesBy(x.shape[1], shares).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return FAULT, model, losses


@patient_crowd.case(random=True)
def the_name_of_the_fault(implementation, draw):
    return named(implementation(*material(draw).given, 1), FAULT)


@patient_crowd.case(random=True)
def the_mended_run_learns(implementation, draw):
    run = material(draw)
    return recovery(implementation(*run.given, run.epochs), run, most=0.35, least=0.85, alone=40)


@patient_crowd.case(random=True)
def rows_alone_and_in_a_batch(implementation, draw):
    run = material(draw)
    model = implementation(*run.given, 5)[1].eval()
    rows = run.new_x[:12]
    with torch.no_grad():
        together, alone = model(rows), torch.cat([model(row[None]) for row in rows])
    apart = (together - alone).abs().max().item()
    return {
        "a row alone": "the same as in the batch" if apart < 1e-4 else f"up to {apart:.2g} apart"
    }


@patient_crowd.case(random=True, tolerance=(1e-3, 1e-4))
def the_first_losses(implementation, draw):
    return first_losses(implementation, *material(draw).given)


@patient_crowd.misconception(
    "The run is mended. Now name what was wrong with it: put one of the causes where the question "
    "mark is."
)
def cause_left_open(x, y, epochs):
    return saying("?", patient_crowd.reference(x, y, epochs))


@patient_crowd.misconception(
    "There is neither Dropout nor BatchNorm here, so the mode changes nothing: twice the same "
    "batch gives twice the same output. Ask leaks_across_batch about a row."
)
def blames_the_mode(x, y, epochs):
    return saying("evaluated in training mode", patient_crowd.reference(x, y, epochs))


@patient_crowd.misconception(
    "A pairing of other rows' labels would show in the training accuracy, which is nearly perfect. "
    "What changes between the batch and the single row?"
)
def blames_the_pairing(x, y, epochs):
    return saying("rows and labels apart", patient_crowd.reference(x, y, epochs))


@patient_crowd.misconception(
    "The run is as ill as it was: what comes out for a row depends on who else is in the batch. "
    "Ask leaks_across_batch, then look for the line where rows meet."
)
def named_but_not_mended(x, y, epochs):
    return saying(FAULT, broken_patient_crowd(x, y, epochs))


@patient_crowd.misconception(
    "The softmax runs over everything at once: dim 0 after flattening is still all rows. The "
    "shares of one row depend on the others."
)
def softmax_over_everything(x, y, epochs):
    def shares(scores):
        return torch.softmax(scores.flatten(), dim=0).reshape(scores.shape) * len(scores)

    return fit(x, y, epochs, shares)


@patient_crowd.misconception(
    "The shares were divided by the largest in the batch. That is another way for a row to feel "
    "its neighbors; the rows have to be normalized each on its own."
)
def scaled_by_the_batch(x, y, epochs):
    def shares(scores):
        return scores.exp() / scores.exp().amax(dim=0, keepdim=True)

    return fit(x, y, epochs, shares)


@patient_crowd.misconception(
    "The samples are detached from each other in the gradient, and the values still mix. What has "
    "to change is the dimension, not the graph."
)
def detaches_the_shares(x, y, epochs):
    return fit(x, y, epochs, lambda scores: torch.softmax(scores, dim=0).detach())


@patient_crowd.misconception(
    "The softmax is gone, so no row feels another. It was to stay: a row's 8 shares add up to one."
)
def leaves_the_softmax_out(x, y, epochs):
    return fit(x, y, epochs, lambda scores: scores)


@patient_crowd.broken
def broken_patient_crowd(x, y, epochs):
    cause = "?"

    class Shares(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.scores = nn.Linear(features, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, rows):
            return self.head(8 * torch.softmax(self.scores(rows), dim=0))

    model = Shares(x.shape[1]).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return cause, model, losses


patient_crowd.hints(
    "Give the model one row alone, and the same row inside a batch. Compare the two outputs.",
    "Which dimension numbers the samples, and which the units?",
    "Whose shares should add up to one?",
)
