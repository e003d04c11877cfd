"""A bug hunt: mini-batches whose rows and labels part ways."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.exercise import exercise


@exercise(objectives=("debug.order", "debug.mode"))
def train_shuffled_pairs(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    batch_size: int,
    epochs: int,
    lr: float,
    generator: torch.Generator,
) -> list[float]:
    """Mini-batch SGD, and after every epoch the accuracy over all of (x, y); return the accuracies.

    The loss is the mean cross-entropy, the optimizer plain SGD. Each epoch draws exactly one
    torch.randperm(len(x), generator=generator) (a CPU generator; x may be on CUDA); its batches are
    consecutive slices of that order, the last one smaller where the numbers do not divide.

    Train in training mode. Score in evaluation mode, without gradients. The accuracies are Python
    floats. At the end the model is in the mode it had on entry.
    """
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    training = model.training
    history = []
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for rows in order.split(batch_size):
            opt.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            opt.step()
        model.eval()
        with torch.no_grad():
            history.append((model(x).argmax(dim=1) == y).float().mean().item())
    model.train(training)
    return history


def problem(draw, *, norm=False, rows=23):
    """A small classifier, rows and labels that it can learn."""
    inputs, classes = draw.sizes(2, low=3, high=5)
    layers = [nn.BatchNorm1d(inputs)] if norm else []
    model = nn.Sequential(*layers, nn.Linear(inputs, classes)).to(draw.device)
    x = draw.normal(rows, inputs) + 0.5
    return (
        model,
        x,
        x[:, :classes].argmax(dim=1) if classes <= inputs else draw.integers(0, classes - 1, rows),
    )


def train(implementation, draw, model, x, y, batch_size, epochs, lr=0.5, *, seen_by_hook=None):
    """Accuracies, the model without .grad, and what the generator draws next."""
    generator = torch.Generator().manual_seed(draw.whole(0, 9999))
    accuracies = implementation(model, x, y, batch_size, epochs, lr, generator)
    model.zero_grad()
    return {
        "1. accuracies": accuracies,
        "2. model afterwards": model,
        "3. what the generator gives next": torch.randint(1000, (3,), generator=generator),
    }


@train_shuffled_pairs.case(random=True)
def twenty_three_rows_in_batches_of_five(implementation, draw):
    return train(implementation, draw, *problem(draw), 5, 2)


@train_shuffled_pairs.case(random=True)
def one_epoch(implementation, draw):
    return train(implementation, draw, *problem(draw, rows=12), 4, 1)


@train_shuffled_pairs.case(random=True)
def batch_norm_statistics_after_training(implementation, draw):
    return train(implementation, draw, *problem(draw, norm=True, rows=12), 4, 2)


@train_shuffled_pairs.case(random=True)
def a_model_in_evaluation_mode_on_entry(implementation, draw):
    model, x, y = problem(draw, norm=True, rows=10)
    return train(implementation, draw, model.eval(), x, y, 5, 1)


@train_shuffled_pairs.case(random=True)
def batches_larger_than_the_data(implementation, draw):
    return train(implementation, draw, *problem(draw, rows=9), 16, 2)


@train_shuffled_pairs.case(random=True)
def gradients_left_from_before(implementation, draw):
    model, x, y = problem(draw, rows=10)
    for parameter in model.parameters():
        parameter.grad = 3 * draw.normal(*parameter.shape)
    return train(implementation, draw, model, x, y, 5, 1)


@train_shuffled_pairs.case(random=True)
def modes_and_recording_in_each_forward(implementation, draw):
    model, x, y = problem(draw, rows=6)
    notes = []
    model.register_forward_pre_hook(
        lambda m, i: notes.append((len(i[0]), m.training, torch.is_grad_enabled()))
    )
    return train(implementation, draw, model, x, y, 4, 2) | {"0. rows, training, recording": notes}


def fit(
    model,
    x,
    y,
    batch_size,
    epochs,
    lr,
    generator,
    *,
    order=None,
    labels=None,
    batches=None,
    train_each=True,
    score_mode=False,
    score_grad=False,
    restore=True,
    clear=True,
    number=float,
    score_rows=None,
):
    """The reference in parts, each of which can be done another way."""
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    entry, history = model.training, []
    model.train()
    for epoch in range(epochs):
        if train_each:
            model.train()
        rows = order(epoch) if order else torch.randperm(len(x), generator=generator)
        rows = rows.to(x.device)
        label_rows = labels(rows).to(x.device) if labels else rows
        parts = zip(rows.split(batch_size), label_rows.split(batch_size), strict=True)
        for part, label_part in batches(list(parts)) if batches else parts:
            if clear:
                opt.zero_grad()
            F.cross_entropy(model(x[part]), y[label_part]).backward()
            opt.step()
        if score_mode is not None:
            model.train(score_mode)
        with torch.set_grad_enabled(score_grad):
            chosen = slice(None) if score_rows is None else score_rows(rows)
            right = model(x[chosen]).argmax(dim=1) == y[chosen]
        history.append(number(right.float().mean()))
    if restore:
        model.train(entry)
    return history


@train_shuffled_pairs.misconception(
    "The labels are shuffled on their own. Two permutations pair every input with some other row's "
    "label; the loss settles at the entropy of the labels."
)
def labels_shuffled_on_their_own(model, x, y, batch_size, epochs, lr, generator):
    own = lambda rows: torch.randperm(len(rows), generator=generator)  # noqa: E731
    return fit(model, x, y, batch_size, epochs, lr, generator, labels=own)


@train_shuffled_pairs.misconception(
    "After the first score the model stays in evaluation mode: from the second epoch on it trains "
    "with frozen BatchNorm statistics and without Dropout."
)
def stays_in_eval_mode(model, x, y, batch_size, epochs, lr, generator):
    return fit(model, x, y, batch_size, epochs, lr, generator, train_each=False)


@train_shuffled_pairs.misconception(
    "The score is taken in training mode. It uses the statistics of the batch, and it moves the "
    "running ones."
)
def scored_in_training_mode(model, x, y, batch_size, epochs, lr, generator):
    return fit(model, x, y, batch_size, epochs, lr, generator, score_mode=None)


@train_shuffled_pairs.misconception(
    "The smaller last batch is dropped. Integer division loses the last rows of every epoch, and "
    "all of them where a batch is larger than the data."
)
def ragged_batch_dropped(model, x, y, batch_size, epochs, lr, generator):
    whole = lambda parts: [p for p in parts if len(p[0]) == batch_size]  # noqa: E731
    return fit(model, x, y, batch_size, epochs, lr, generator, batches=whole)


@train_shuffled_pairs.misconception(
    "One permutation serves all epochs. The order has to be drawn anew in each."
)
def one_permutation_for_all_epochs(model, x, y, batch_size, epochs, lr, generator):
    once = torch.randperm(len(x), generator=generator)
    return fit(model, x, y, batch_size, epochs, lr, generator, order=lambda epoch: once)


@train_shuffled_pairs.misconception(
    "The permutation does not come from the generator you were given, so the run cannot be "
    "repeated."
)
def uses_the_global_generator(model, x, y, batch_size, epochs, lr, generator):
    drawn = lambda epoch: torch.randperm(len(x))  # noqa: E731
    return fit(model, x, y, batch_size, epochs, lr, generator, order=drawn)


@train_shuffled_pairs.misconception(
    "Nothing is shuffled. Pairs are right now, but each epoch sees the same batches in the order "
    "of the file."
)
def does_not_shuffle(model, x, y, batch_size, epochs, lr, generator):
    straight = lambda epoch: torch.arange(len(x))  # noqa: E731
    return fit(model, x, y, batch_size, epochs, lr, generator, order=straight)


@train_shuffled_pairs.misconception(
    "The score builds a graph that nobody uses. Score under no_grad."
)
def scores_with_gradients(model, x, y, batch_size, epochs, lr, generator):
    return fit(model, x, y, batch_size, epochs, lr, generator, score_grad=True)


@train_shuffled_pairs.misconception(
    "At the end the model is in evaluation mode, whatever it was on entry. Remember the mode, and "
    "put it back."
)
def leaves_evaluation_mode(model, x, y, batch_size, epochs, lr, generator):
    return fit(model, x, y, batch_size, epochs, lr, generator, restore=False)


@train_shuffled_pairs.misconception(
    "At the end the model is always in training mode. A caller who hands it over in evaluation "
    "mode gets it back in that mode."
)
def leaves_training_mode(model, x, y, batch_size, epochs, lr, generator):
    history = fit(model, x, y, batch_size, epochs, lr, generator)
    model.train()
    return history


@train_shuffled_pairs.misconception(
    "Gradients are not cleared before each batch, so each step carries the batches before it along."
)
def never_clears(model, x, y, batch_size, epochs, lr, generator):
    return fit(model, x, y, batch_size, epochs, lr, generator, clear=False)


@train_shuffled_pairs.misconception("The accuracies are tensors. The task asks for Python floats.")
def accuracies_as_tensors(model, x, y, batch_size, epochs, lr, generator):
    return fit(model, x, y, batch_size, epochs, lr, generator, number=lambda value: value)


@train_shuffled_pairs.misconception(
    "The accuracy is that of the last batch. The task asks for all rows."
)
def scores_the_last_batch(model, x, y, batch_size, epochs, lr, generator):
    last = lambda rows: rows.split(batch_size)[-1]  # noqa: E731
    return fit(model, x, y, batch_size, epochs, lr, generator, score_rows=last)


@train_shuffled_pairs.misconception(
    "Scored in evaluation mode, and trained in it as well: training mode is never switched on."
)
def never_in_training_mode(model, x, y, batch_size, epochs, lr, generator):
    entry = model.training
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    history = []
    model.eval()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for rows in order.split(batch_size):
            opt.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            opt.step()
        with torch.no_grad():
            history.append((model(x).argmax(dim=1) == y).float().mean().item())
    model.train(entry)
    return history


@train_shuffled_pairs.broken
def broken_train_shuffled_pairs(model, x, y, batch_size, epochs, lr, generator):
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    history = []
    for _ in range(epochs):
        xs = x[torch.randperm(len(x), generator=generator)]
        ys = y[torch.randperm(len(y), generator=generator)]
        for i in range(len(x) // batch_size):
            opt.zero_grad()
            rows = slice(i * batch_size, (i + 1) * batch_size)
            F.cross_entropy(model(xs[rows]), ys[rows]).backward()
            opt.step()
        model.eval()
        history.append((model(x).argmax(dim=1) == y).float().mean().item())
    return history


train_shuffled_pairs.hints(
    "Print three pairs of input and label before and after the shuffle.",
    "Print the mode of the model in each epoch.",
    "Count the rows that one epoch trains on.",
)
