"""A bug hunt: a loss that is constant to the last digit."""

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.exercise import exercise


@exercise(objectives=("debug.order", "debug.init_loss", "debug.graph_lifetime", "debug.mode"))
def train_flat_loss(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, lr: float, steps: int
) -> list[float]:
    """Full-batch training; return the losses *before* each update, as Python floats.

    x has shape (N, d), y has shape (N,) and int64 classes; model(x) gives logits of shape (N, C).

    Put the model in training mode and leave it so. Then, `steps` times: the mean cross-entropy of
    the logits, the gradient of this step alone (whatever is in .grad on entry must not matter), and
    one update of plain SGD with learning rate lr.
    """
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    history = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        history.append(loss.item())
    return history


def network(draw, *, norm=False):
    """A small classifier, its width and its number of classes."""
    inputs, hidden, classes = draw.sizes(3, low=3)
    layers = [nn.BatchNorm1d(hidden)] if norm else []
    model = nn.Sequential(nn.Linear(inputs, hidden), *layers, nn.Tanh(), nn.Linear(hidden, classes))
    return model.to(draw.device), inputs, classes


def batch(draw, inputs, classes):
    """Rows of several sizes, and a label for each."""
    count = draw.whole(8, 12)
    return 2 * draw.normal(count, inputs), draw.integers(0, classes - 1, count)


def train(implementation, draw, model, inputs, classes, steps):
    """The losses, and the model without what is left in .grad."""
    x, y = batch(draw, inputs, classes)
    losses = implementation(model, x, y, draw.number(0.3, 0.6), steps)
    model.zero_grad()
    return {"1. losses": losses, "2. model afterwards": model}


@train_flat_loss.case(random=True)
def one_step(implementation, draw):
    return train(implementation, draw, *network(draw), 1)


@train_flat_loss.case(random=True)
def parameters_after_several_steps(implementation, draw):
    return train(implementation, draw, *network(draw), draw.whole(3, 5))


@train_flat_loss.case(random=True)
def a_model_in_evaluation_mode_on_entry(implementation, draw):
    model, inputs, classes = network(draw, norm=True)
    return train(implementation, draw, model.eval(), inputs, classes, 2)


@train_flat_loss.case(random=True)
def batch_norm(implementation, draw):
    return train(implementation, draw, *network(draw, norm=True), 3)


@train_flat_loss.case(random=True)
def gradients_left_from_before(implementation, draw):
    model, inputs, classes = network(draw)
    for parameter in model.parameters():
        parameter.grad = draw.normal(*parameter.shape)
    return train(implementation, draw, model, inputs, classes, 2)


@train_flat_loss.case(random=True)
def two_classes(implementation, draw):
    model = nn.Linear(3, 2).to(draw.device)
    return train(implementation, draw, model, 3, 2, 4)


@train_flat_loss.case(random=True)
def no_steps(implementation, draw):
    model, inputs, classes = network(draw)
    return train(implementation, draw, model.eval(), inputs, classes, 0)


def loop(
    model,
    x,
    y,
    lr,
    steps,
    *,
    order="clear backward step",
    mode=True,
    scores=None,
    store=None,
    momentum=0.0,
    reduction="mean",
):
    """The reference in parts, each of which can be done another way."""
    opt = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    if mode is not None:
        model.train(mode)
    history = []
    for _ in range(steps):
        loss = F.cross_entropy((scores or (lambda z: z))(model(x)), y, reduction=reduction)
        for word in order.split():
            if word == "clear":
                opt.zero_grad()
            elif word == "backward":
                loss.backward()
            elif word == "step":
                opt.step()
        if order.endswith("measure"):
            loss = F.cross_entropy(model(x), y)
        history.append(store(loss) if store else loss.item())
    return history


@train_flat_loss.misconception(
    "The softmax is still there. cross_entropy applies log-softmax itself; probabilities taken for "
    "logits differ by at most 1, so the loss has a floor (1.46 for ten classes) and the gradients "
    "are small."
)
def softmax_kept(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, scores=lambda z: z.softmax(dim=1))


@train_flat_loss.misconception(
    "The softmax is still there, and it runs over dim 0: each class column sums to one over the "
    "samples, which now compete with each other. The loss wants logits as they are."
)
def normalizes_over_the_batch(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, scores=lambda z: z.softmax(dim=0))


@train_flat_loss.misconception(
    "The gradients are cleared between backward and step. The optimizer finds None and skips the "
    "parameters without a word."
)
def zero_grad_between_backward_and_step(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, order="backward clear step")


@train_flat_loss.misconception(
    "Gradients are never cleared. Every step now uses the sum of all gradients so far, and what "
    "was there on entry, which is momentum 1.0."
)
def no_zero_grad(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, order="backward step")


@train_flat_loss.misconception(
    "Gradients are cleared after the step. That leaves the first step with what the caller left in "
    ".grad; clear before backward."
)
def clears_after_the_step(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, order="backward step clear")


@train_flat_loss.misconception(
    "The history holds tensors. Each stored loss keeps its graph alive; store a number."
)
def history_of_tensors(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, store=lambda loss: loss)


@train_flat_loss.misconception(
    "The history holds detached tensors. They keep no graph, which is the important half; the task "
    "asks for Python floats."
)
def history_of_detached_tensors(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, store=lambda loss: loss.detach())


@train_flat_loss.misconception(
    "The mode was left as it came. A caller who has just evaluated hands over a model in "
    "evaluation mode: BatchNorm would use its running statistics, and never update them."
)
def mode_left_as_it_was(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, mode=None)


@train_flat_loss.misconception(
    "The mode of the entry was put back at the end. Here the model stays in training mode."
)
def restores_the_mode(model, x, y, lr, steps):
    was = model.training
    history = loop(model, x, y, lr, steps)
    model.train(was)
    return history


@train_flat_loss.misconception(
    "The losses are those after each update. Keep the one that the gradient came from; it is there "
    "already and costs no second forward."
)
def losses_after_the_update(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, order="clear backward step measure")


@train_flat_loss.misconception(
    "The loss is a sum over the rows. The step then grows with the number of rows; the task asks "
    "for the mean."
)
def sum_instead_of_mean(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, reduction="sum")


@train_flat_loss.misconception(
    "The optimizer has momentum. That may train faster, and it is not plain SGD."
)
def with_momentum(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, momentum=0.9)


@train_flat_loss.misconception(
    "The model was put into evaluation mode, where BatchNorm uses running statistics and never "
    "updates them. Training wants training mode."
)
def trains_in_evaluation_mode(model, x, y, lr, steps):
    return loop(model, x, y, lr, steps, mode=False)


@train_flat_loss.broken
def broken_train_flat_loss(model, x, y, lr, steps):
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    history = []
    for _ in range(steps):
        probs = torch.softmax(model(x), dim=0)
        loss = F.cross_entropy(probs, y)
        loss.backward()
        opt.zero_grad()
        opt.step()
        history.append(loss)
    return history


train_flat_loss.hints(
    "Compare one parameter before and after a step. Did anything move?",
    "What does the loss expect, logits or probabilities? And along which dimension do classes lie?",
    "There are four faults and one missing line. After the first two, look at the order of the "
    "calls, at what is stored, and at the mode in which the model comes.",
)
