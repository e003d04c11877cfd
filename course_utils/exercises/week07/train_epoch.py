"""One pass over the data: five calls for each batch, and the mean that is logged."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week07._loops import (
    give_gradients,
    in_two_groups,
    regression_batches,
    regressor,
    without_gradients,
)


@exercise(objectives=("loop.five_steps", "loop.sample_weighting", "loop.clipping"))
def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    max_norm: float | None = None,
) -> float:
    """Train for one pass over batches and return the mean training loss.

    batches is any iterable of pairs (x, y), possibly a generator. loss_fn(prediction, target) is
    the mean over the batch, 0-dim. Put the model in train mode and leave it there. For each batch,
    move x and y to the device of the model's parameters, compute the loss, and take one optimizer
    step with the gradient of this batch's mean loss only. What .grad held before the call
    influences no step. If max_norm is given (0.0 is a limit too), the total 2-norm of the gradients
    of all model parameters, whatever their group in the optimizer, is limited to max_norm before
    the step.

    Return a Python float: the mean over all samples of the losses, each measured before its
    batch's own step. Raise ValueError if batches yields nothing; the weights are then unchanged.

    What .grad holds afterwards is free. The optimizer holds all trainable parameters of the model,
    perhaps in several groups; each of them is used. Frozen ones have no gradient. Batches are not
    empty.
    """
    device = next(model.parameters()).device
    model.train()
    total, samples = 0.0, 0
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        total += loss.detach() * len(x)
        samples += len(x)
    if samples == 0:
        raise ValueError("there are no batches to train on")
    return float(total / samples)


def train(implementation, draw, model, batches, *clip, **settings):
    """What came back, and the model without its gradients."""
    settings = {"lr": draw.number(0.05, 0.1)} | settings
    optimizer = torch.optim.SGD(in_two_groups(model), **settings)
    result = attempt(implementation, model, batches, F.mse_loss, optimizer, *clip)
    return {"1. result": result, "2. model afterwards": without_gradients(model)}


@train_epoch.case(random=True)
def a_short_last_batch(implementation, draw):
    inputs = draw.whole(2, 4)
    batches = regression_batches(draw, inputs, (4, 4, 1), device="cpu")
    return train(implementation, draw, regressor(draw, inputs), batches)


@train_epoch.case(random=True)
def one_batch_in_float64(implementation, draw):
    inputs = draw.whole(2, 4)
    batches = regression_batches(draw, inputs, (5,), dtype=torch.float64)
    return train(implementation, draw, regressor(draw, inputs, dtype=torch.float64), batches)


@train_epoch.case(random=True)
def a_generator_and_momentum(implementation, draw):
    inputs = draw.whole(2, 4)
    batches = (batch for batch in regression_batches(draw, inputs, (3, 4)))
    return train(implementation, draw, regressor(draw, inputs), batches, momentum=0.9)


@train_epoch.case(random=True)
def gradients_left_from_before(implementation, draw):
    inputs = draw.whole(2, 4)
    model = regressor(draw, inputs)
    give_gradients(draw, model)
    return train(implementation, draw, model, regression_batches(draw, inputs, (3,)))


@train_epoch.case(random=True)
def batch_norm_that_starts_in_eval_mode(implementation, draw):
    inputs = draw.whole(2, 4)
    model = regressor(draw, inputs, norm=True).eval()
    return train(implementation, draw, model, regression_batches(draw, inputs, (5, 3)))


@train_epoch.case(random=True)
def a_tight_limit(implementation, draw):
    inputs, limit = draw.whole(2, 4), draw.number(0.2, 0.5)
    batches = regression_batches(draw, inputs, (3, 4))
    model = nn.Sequential(nn.Linear(inputs, 3), nn.Linear(3, 1)).to(draw.device)
    return train(implementation, draw, model, batches, limit)


@train_epoch.case(random=True)
def a_limit_and_a_frozen_weight(implementation, draw):
    model, limit = regressor(draw, 3), draw.number(0.2, 0.5)
    model.weight.requires_grad_(False)
    return train(implementation, draw, model, regression_batches(draw, 3, (3,)), limit)


@train_epoch.case(random=True)
def a_limit_of_zero(implementation, draw):
    inputs = draw.whole(2, 4)
    batches = regression_batches(draw, inputs, (4,))
    return train(implementation, draw, regressor(draw, inputs), batches, 0.0)


@train_epoch.case(random=True)
def a_limit_that_is_never_reached(implementation, draw):
    inputs = draw.whole(2, 4)
    batches = regression_batches(draw, inputs, (3, 5))
    return train(implementation, draw, regressor(draw, inputs), batches, 1e4)


@train_epoch.case(random=True)
def no_batches(implementation, draw):
    return {
        "1. an empty list": train(implementation, draw, regressor(draw, 2), []),
        "2. an iterator that yields nothing": train(
            implementation, draw, regressor(draw, 2), iter(())
        ),
    }


def loop(model, batches, loss_fn, optimizer, max_norm, order, *, clear_first=False, mode=True,
         clip=nn.utils.clip_grad_norm_, late=False):  # fmt: skip
    """A pass that does the things in `order` for each batch: clear, backward, clip, step.

    Returns the batch losses and the batch sizes. clip(parameters, max_norm) limits the gradients;
    late measures each loss again after the step.
    """
    device = next(model.parameters()).device
    if mode:
        model.train()
    if clear_first:
        optimizer.zero_grad()
    losses, sizes = [], []
    for x, y in batches:
        x, y = x.to(device), y.to(device)
        loss = loss_fn(model(x), y)
        for word in order.split():
            if word == "clear":
                optimizer.zero_grad()
            elif word == "backward":
                loss.backward()
            elif word == "step":
                optimizer.step()
            elif max_norm is not None:
                clip(model.parameters(), max_norm)
        losses.append(loss_fn(model(x), y).item() if late else loss.item())
        sizes.append(len(x))
    return losses, sizes


def mean(losses, sizes):
    """The mean over samples."""
    if not losses:
        raise ValueError("no batches")
    total = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
    return total / sum(sizes)


RIGHT = "clear backward clip step"


@train_epoch.misconception(
    "The sum of the batch means was divided by the number of batches, which gives the samples of a "
    "short last batch more weight. Weight each mean by its batch size. (And a generator has no "
    "len().)"
)
def mean_of_batch_means(model, batches, loss_fn, optimizer, max_norm=None):
    losses, _ = loop(model, batches, loss_fn, optimizer, max_norm, RIGHT)
    return mean(losses, [1] * len(losses))


@train_epoch.misconception(
    "You multiply the loss by the batch size before backward. The step then uses the gradient of "
    "the sum, as if the learning rate had grown by the batch size. Weight only the number that you "
    "add up for the report."
)
def backward_of_the_sum(model, batches, loss_fn, optimizer, max_norm=None):
    def total(output, target):
        return loss_fn(output, target) * len(target)

    losses, sizes = loop(model, batches, total, optimizer, max_norm, RIGHT)
    return mean([loss / size for loss, size in zip(losses, sizes, strict=True)], sizes)


@train_epoch.misconception(
    "Gradients are never cleared. backward() adds to what is there, so each step used the sum of "
    "all batches so far; for SGD that is momentum 1.0. Clear once for every backward."
)
def gradients_never_cleared(model, batches, loss_fn, optimizer, max_norm=None):
    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, "backward clip step"))


@train_epoch.misconception(
    "You clear once, before the loop. From the second batch on the gradients pile up."
)
def cleared_once(model, batches, loss_fn, optimizer, max_norm=None):
    order = "backward clip step"
    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, order, clear_first=True))


@train_epoch.misconception(
    "You clear after each step, so the first step of the pass still uses what was in .grad before. "
    "Clear where it holds for the first batch too."
)
def cleared_after_the_step(model, batches, loss_fn, optimizer, max_norm=None):
    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, "backward clip step clear"))


@train_epoch.misconception(
    "You threw the fresh gradient away just before the step, so nothing moves. Clearing may stand "
    "anywhere but between backward and step."
)
def zero_grad_between_backward_and_step(model, batches, loss_fn, optimizer, max_norm=None):
    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, "backward clip clear step"))


@train_epoch.misconception(
    "The steps are not clipped. Before backward there is no gradient of this batch to clip, and "
    "after the step it has been used. Clip what backward produced, before the step."
)
def clip_before_backward(model, batches, loss_fn, optimizer, max_norm=None):
    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, "clear clip backward step"))


@train_epoch.misconception(
    "You clip by value. That limits each entry on its own and bends the direction; the task limits "
    "the length of the whole gradient."
)
def clipped_by_value(model, batches, loss_fn, optimizer, max_norm=None):
    clip = nn.utils.clip_grad_value_
    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, RIGHT, clip=clip))


@train_epoch.misconception(
    "Each parameter is clipped by its own norm. The norm that counts is that of all gradients "
    "together, as if they were one long vector."
)
def clipped_parameter_by_parameter(model, batches, loss_fn, optimizer, max_norm=None):
    def clip(parameters, limit):
        for parameter in parameters:
            nn.utils.clip_grad_norm_([parameter], limit)

    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, RIGHT, clip=clip))


@train_epoch.misconception(
    "A batch whose gradient is longer than max_norm is left out. That is what clipping is for: "
    "such a gradient is shortened and used."
)
def skips_what_exceeds_the_limit(model, batches, loss_fn, optimizer, max_norm=None):
    limit = float("inf") if max_norm is None else max_norm

    def clip(parameters, limit):
        parameters = list(parameters)
        if nn.utils.clip_grad_norm_(parameters, limit) > limit:
            for parameter in parameters:
                parameter.grad = None

    return mean(*loop(model, batches, loss_fn, optimizer, limit, RIGHT, clip=clip))


@train_epoch.misconception(
    "Your clipping reads the gradient of every parameter. A frozen one has none: its .grad is "
    "None. Take those that have a gradient."
)
def expects_a_gradient_everywhere(model, batches, loss_fn, optimizer, max_norm=None):
    def clip(parameters, limit):
        parameters = list(parameters)
        norm = torch.cat([parameter.grad.flatten() for parameter in parameters]).norm()
        for parameter in parameters:
            parameter.grad *= min(1.0, limit / float(norm))

    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, RIGHT, clip=clip))


@train_epoch.misconception(
    "Gradients are clipped although nobody asked for it. Without max_norm they are used as they "
    "are."
)
def clipped_without_being_asked(model, batches, loss_fn, optimizer, max_norm=None):
    limit = 1.0 if max_norm is None else max_norm
    return train_epoch.reference(model, batches, loss_fn, optimizer, limit)


@train_epoch.misconception(
    "A limit of 0.0 is taken for no limit at all: where a condition is expected, 0.0 counts as "
    "False, as None does. Only without max_norm are the gradients used as they are."
)
def zero_taken_for_no_limit(model, batches, loss_fn, optimizer, max_norm=None):
    return train_epoch.reference(model, batches, loss_fn, optimizer, max_norm or None)


@train_epoch.misconception(
    "Each parameter group of the optimizer is clipped by its own norm. Groups are there for their "
    "settings; the norm that counts is that of all gradients together."
)
def clipped_group_by_group(model, batches, loss_fn, optimizer, max_norm=None):
    def clip(parameters, limit):
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], limit)

    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, RIGHT, clip=clip))


@train_epoch.misconception(
    "Only the first parameter group of the optimizer is clipped. There may be more of them; the "
    "norm that counts is that of all gradients of the model."
)
def clips_the_first_group(model, batches, loss_fn, optimizer, max_norm=None):
    def clip(parameters, limit):
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], limit)

    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, RIGHT, clip=clip))


@train_epoch.misconception(
    "Frozen parameters are trained too: something in your loop sets requires_grad. Freezing is the "
    "decision of the caller; leave requires_grad alone."
)
def unfreezes_the_model(model, batches, loss_fn, optimizer, max_norm=None):
    model.requires_grad_(True)
    return train_epoch.reference(model, batches, loss_fn, optimizer, max_norm)


@train_epoch.misconception(
    "The model kept the mode it came with: dropout off, batch norm on its running statistics. "
    "Switch the mode at the start of the pass."
)
def no_model_train(model, batches, loss_fn, optimizer, max_norm=None):
    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, RIGHT, mode=False))


@train_epoch.misconception(
    "The model leaves your function in eval mode. Here it stays in train mode; whoever validates "
    "next will switch it."
)
def ends_in_eval_mode(model, batches, loss_fn, optimizer, max_norm=None):
    result = train_epoch.reference(model, batches, loss_fn, optimizer, max_norm)
    model.eval()
    return result


@train_epoch.misconception(
    "The number you return belongs to the updated weights, and it cost a second forward pass. Use "
    "the loss that produced the gradient."
)
def loss_measured_after_the_step(model, batches, loss_fn, optimizer, max_norm=None):
    return mean(*loop(model, batches, loss_fn, optimizer, max_norm, RIGHT, late=True))


@train_epoch.misconception(
    "You return the loss of the last batch. It says little about the pass; average over all "
    "samples."
)
def loss_of_the_last_batch(model, batches, loss_fn, optimizer, max_norm=None):
    losses, sizes = loop(model, batches, loss_fn, optimizer, max_norm, RIGHT)
    mean(losses, sizes)
    return losses[-1]


@train_epoch.misconception(
    "You step once, after the last batch. Each batch has a step of its own; only accumulation "
    "waits."
)
def one_step_for_the_whole_pass(model, batches, loss_fn, optimizer, max_norm=None):
    result = mean(*loop(model, batches, loss_fn, optimizer, max_norm, "backward",
                        clear_first=True))  # fmt: skip
    if max_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return result


@train_epoch.misconception(
    "Without batches you divide by zero. That is an error too, but one nobody will understand. "
    "Raise ValueError where there was nothing to train on."
)
def nothing_to_divide_by(model, batches, loss_fn, optimizer, max_norm=None):
    losses, sizes = loop(model, batches, loss_fn, optimizer, max_norm, RIGHT)
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


@train_epoch.misconception(
    "You ask batches itself whether it is empty. A list answers; an iterator counts as True even "
    "when it has nothing to yield. That is known only once you have been through it."
)
def asks_batches_whether_it_is_empty(model, batches, loss_fn, optimizer, max_norm=None):
    if not batches:
        raise ValueError("no batches")
    return nothing_to_divide_by(model, batches, loss_fn, optimizer, max_norm)


@train_epoch.misconception(
    "Without batches you return a number. A loss of 0 would look like a perfect epoch. Raise "
    "ValueError where there was nothing to train on."
)
def zero_for_no_batches(model, batches, loss_fn, optimizer, max_norm=None):
    losses, sizes = loop(model, batches, loss_fn, optimizer, max_norm, RIGHT)
    return mean(losses, sizes) if losses else 0.0


@train_epoch.misconception(
    "You return a tensor that still has a graph: the losses of all batches hang on it, and their "
    "graphs with them. Detach each loss before you add it, and return a Python float."
)
def keeps_the_graph(model, batches, loss_fn, optimizer, max_norm=None):
    result = train_epoch.reference(model, batches, loss_fn, optimizer, max_norm)
    return next(model.parameters()).new_tensor(result).requires_grad_()


@train_epoch.misconception(
    "You return a tensor. The caller wants a Python float to print and to keep: convert once, at "
    "the end."
)
def returns_a_tensor(model, batches, loss_fn, optimizer, max_norm=None):
    result = train_epoch.reference(model, batches, loss_fn, optimizer, max_norm)
    return next(model.parameters()).new_tensor(result)


train_epoch.hints(
    "Five calls for each batch. Which one may not stand between backward and step?",
    "Keep a running sum of loss times batch size, and a running count of samples.",
    "Generators have no len(). How do you notice that nothing came?",
)
