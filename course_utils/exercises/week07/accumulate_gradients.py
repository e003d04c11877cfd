"""Several backward passes before one step, weighted so that the step is that of the big batch."""

import weakref
from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week07._loops import (
    give_gradients,
    in_two_groups,
    optimizer_state,
    regression_batches,
    regressor,
    saved_tensors,
    without_gradients,
)


@exercise(objectives=("loop.accumulation", "loop.sample_weighting"))
def accumulate_gradients(
    model: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    accum_steps: int,
) -> list[float]:
    """Train over batches with one optimizer step per window of accum_steps consecutive batches.

    The last window may be shorter and is stepped too. Each step uses exactly the gradient of the
    mean loss over all samples of its window (batch sizes may differ), at the parameters before that
    step. Gradients present before the call play no role. loss_fn is the mean over one batch, 0-dim.

    The model is called exactly once for each batch, with that batch alone. Apart from the batches
    themselves, memory must not grow with the window: the tensors that a batch's graph has saved are
    released before the next forward, and a running sum of losses carries no graph. batches may be a
    generator; no batch is empty.

    Return one float for each optimizer step: the mean loss over the samples of its window. Without
    batches the list is empty. ValueError if accum_steps < 1.

    The model has no batch-dependent or random layers. All its parameters are trainable, used, and
    held by the optimizer, perhaps in several groups. The mode stays as it is; what .grad holds
    afterwards is free.
    """
    if accum_steps < 1:
        raise ValueError(f"accum_steps is {accum_steps}; a window holds at least one batch")
    losses, batches = [], iter(batches)
    while True:
        optimizer.zero_grad()
        total, samples = 0.0, 0
        for x, y in islice(batches, accum_steps):
            batch_sum = loss_fn(model(x), y) * len(x)
            batch_sum.backward()
            total += batch_sum.detach()
            samples += len(x)
        if samples == 0:
            return losses
        for parameter in model.parameters():
            parameter.grad /= samples
        optimizer.step()
        losses.append(float(total / samples))


def train(implementation, draw, batches, accum_steps, *, stale=False, evaluating=False, **settings):
    """What came back, the model, and what the optimizer remembers."""
    model = nn.Linear(3, 1).to(draw.device).train(not evaluating)
    if stale:
        give_gradients(draw, model)
    settings = {"lr": draw.number(0.05, 0.1)} | settings
    optimizer, steps = torch.optim.SGD(in_two_groups(model), **settings), []
    optimizer.register_step_post_hook(lambda *_: steps.append(None))
    result = attempt(implementation, model, batches, F.mse_loss, optimizer, accum_steps)
    return {
        "1. result": result,
        "2. model afterwards": without_gradients(model),
        "3. optimizer": optimizer_state(optimizer),
        "4. calls of optimizer.step()": len(steps),
    }


@accumulate_gradients.case(random=True)
def full_windows_of_equal_batches_with_momentum(implementation, draw):
    batches = regression_batches(draw, 3, (4, 4, 4, 4))
    return train(implementation, draw, batches, 2, momentum=0.9)


@accumulate_gradients.case(random=True)
def a_window_with_a_smaller_last_batch(implementation, draw):
    return train(implementation, draw, regression_batches(draw, 3, (4, 4, 2)), 3)


@accumulate_gradients.case(random=True)
def a_short_last_window(implementation, draw):
    return train(implementation, draw, regression_batches(draw, 3, (4, 4, 4)), 2)


@accumulate_gradients.case(random=True)
def batches_of_different_size_from_a_generator(implementation, draw):
    batches = regression_batches(draw, 3, (5, 2, 6))
    return train(implementation, draw, (batch for batch in batches), 2, evaluating=True)


@accumulate_gradients.case(random=True)
def a_window_longer_than_the_data(implementation, draw):
    return train(implementation, draw, regression_batches(draw, 3, (3, 5)), draw.whole(3, 6))


@accumulate_gradients.case(random=True)
def windows_of_one_batch(implementation, draw):
    return train(implementation, draw, regression_batches(draw, 3, (3, 2)), 1)


@accumulate_gradients.case(random=True)
def gradients_left_from_before(implementation, draw):
    return train(implementation, draw, regression_batches(draw, 3, (4,)), 2, stale=True)


@accumulate_gradients.case(random=True)
def no_batches_and_no_window(implementation, draw):
    batches = regression_batches(draw, 3, (2,))
    return [
        train(implementation, draw, [], 2, stale=True, momentum=0.5),
        train(implementation, draw, batches, 0),
        train(implementation, draw, batches, draw.whole(-3, -1)),
    ]


@accumulate_gradients.case(random=True)
def what_the_model_is_called_with(implementation, draw):
    model, calls, nodes = regressor(draw, 3), [], weakref.WeakSet()
    batches = regression_batches(draw, 3, (5, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def before(module, given):
        seen = {"1. rows": len(given[0]), "2. saved tensors alive before": len(alive)}
        # Until the next loss is there, a variable may hold the last one.
        older = max(len(nodes) - 1, 0)
        calls.append(seen | {"3. graphs alive before, besides that of the last batch": older})

    def after(module, given, output):
        if output.grad_fn is not None:
            output.grad_fn.metadata["lifetime"] = lifetime = Lifetime()
            nodes.add(lifetime)

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    with saved_tensors() as alive:
        result = attempt(implementation, model, batches, F.mse_loss, optimizer, 3)
    return {"1. calls of the model": calls, "2. result": result}


class Lifetime:
    """Lives as long as the node of a graph that it is attached to."""


def windows(batches, accum_steps):
    """The batches in lists of accum_steps, the last perhaps shorter."""
    if accum_steps < 1:
        raise ValueError(accum_steps)
    batches = iter(batches)
    while window := list(islice(batches, accum_steps)):
        yield window


def weighted(model, batches, loss_fn, optimizer, accum_steps, weights, *, clear="window",
             report=None):  # fmt: skip
    """Accumulation where weights(sizes) says how much each batch of a window counts.

    clear: before each "window", before each "batch", or only "after" each step. report(losses,
    sizes) is what is listed for a window.
    """
    listed = []
    for window in windows(batches, accum_steps):
        if clear == "window":
            optimizer.zero_grad()
        sizes, losses = [len(x) for x, _ in window], []
        for (x, y), weight in zip(window, weights(sizes), strict=True):
            if clear == "batch":
                optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            (loss * weight).backward()
            losses.append(loss.item())
        optimizer.step()
        if clear == "after":
            optimizer.zero_grad()
        listed.append((report or mean_over_samples)(losses, sizes))
    return listed


def shares(sizes):
    """Each batch's share of the samples of its window."""
    return [size / sum(sizes) for size in sizes]


def mean_over_samples(losses, sizes):
    """The mean over all samples of a window."""
    return sum(loss * share for loss, share in zip(losses, shares(sizes), strict=True))


@accumulate_gradients.misconception(
    "You divide each batch loss by accum_steps. That is right only if all batches have equal size "
    "and the window is full. Weight each batch mean by its share of the window's samples."
)
def divides_by_accum_steps(model, batches, loss_fn, optimizer, accum_steps):
    def weights(sizes):
        return [1 / accum_steps] * len(sizes)

    return weighted(model, batches, loss_fn, optimizer, accum_steps, weights)


@accumulate_gradients.misconception(
    "You divide each batch loss by the number of batches in the window. That is right for a short "
    "window and still wrong where batch sizes differ."
)
def equal_weights_over_the_real_window_length(model, batches, loss_fn, optimizer, accum_steps):
    def weights(sizes):
        return [1 / len(sizes)] * len(sizes)

    return weighted(model, batches, loss_fn, optimizer, accum_steps, weights)


@accumulate_gradients.misconception(
    "You divide each batch loss by accum_steps, and list it that way too. Both are right only for "
    "batches of equal size in a full window. Weight by the share of the window's samples."
)
def divides_by_accum_steps_and_lists_it(model, batches, loss_fn, optimizer, accum_steps):
    def weights(sizes):
        return [1 / accum_steps] * len(sizes)

    def report(losses, sizes):
        return sum(losses) / accum_steps

    return weighted(model, batches, loss_fn, optimizer, accum_steps, weights, report=report)


@accumulate_gradients.misconception(
    "The usual loop: every loss is divided by accum_steps, and a step follows every accum_steps "
    "batches. The last short window is never stepped, and unequal batches get equal weights."
)
def the_usual_loop(model, batches, loss_fn, optimizer, accum_steps):
    if accum_steps < 1:
        raise ValueError(accum_steps)
    optimizer.zero_grad()
    listed, total = [], 0.0
    for number, (x, y) in enumerate(batches, start=1):
        loss = loss_fn(model(x), y) / accum_steps
        loss.backward()
        total += loss.item()
        if number % accum_steps == 0:
            optimizer.step()
            optimizer.zero_grad()
            listed.append(total)
            total = 0.0
    return listed


@accumulate_gradients.misconception(
    "The weights are right and the last short window is dropped: a test for a full window never "
    "fires there. Its samples are lost, or leak into the next epoch. A window also ends where the "
    "batches end."
)
def tail_dropped(model, batches, loss_fn, optimizer, accum_steps):
    full = [window for window in windows(batches, accum_steps) if len(window) == accum_steps]
    kept = [batch for window in full for batch in window]
    return weighted(model, kept, loss_fn, optimizer, accum_steps, shares)


@accumulate_gradients.misconception(
    "Nothing is divided. The sum of batch means is up to k times the gradient of the mean: your "
    "learning rate silently grew."
)
def no_division(model, batches, loss_fn, optimizer, accum_steps):
    def weights(sizes):
        return [1.0] * len(sizes)

    return weighted(model, batches, loss_fn, optimizer, accum_steps, weights)


@accumulate_gradients.misconception(
    "The gradient is the sum over all samples of the window, not their mean: somewhere the "
    "division by the number of samples is missing."
)
def sum_over_samples(model, batches, loss_fn, optimizer, accum_steps):
    return weighted(model, batches, loss_fn, optimizer, accum_steps, lambda sizes: sizes)


@accumulate_gradients.misconception(
    "You clear before each backward. Then only the last batch of the window survives to the step."
)
def cleared_before_each_backward(model, batches, loss_fn, optimizer, accum_steps):
    return weighted(model, batches, loss_fn, optimizer, accum_steps, shares, clear="batch")


@accumulate_gradients.misconception(
    "You clear after each step and not before the first window, which inherits whatever was in "
    ".grad."
)
def cleared_only_after_the_step(model, batches, loss_fn, optimizer, accum_steps):
    return weighted(model, batches, loss_fn, optimizer, accum_steps, shares, clear="after")


@accumulate_gradients.misconception(
    "The gradients are never cleared, so each window starts with those of all windows before."
)
def gradients_never_cleared(model, batches, loss_fn, optimizer, accum_steps):
    return weighted(model, batches, loss_fn, optimizer, accum_steps, shares, clear="never")


@accumulate_gradients.misconception(
    "The window is put together into one batch. The result is right, and the memory is that of the "
    "big batch, which is what accumulation is there to avoid."
)
def concatenates_the_window(model, batches, loss_fn, optimizer, accum_steps):
    joined = [
        tuple(map(torch.cat, zip(*window, strict=True))) for window in windows(batches, accum_steps)
    ]
    return weighted(model, joined, loss_fn, optimizer, 1, shares)


@accumulate_gradients.misconception(
    "The gradient is right, but the graphs of all batches are alive until the window ends: you add "
    "up losses and call backward once, or retain_graph keeps them. One plain backward for each "
    "batch lets its graph go."
)
def one_backward_per_window(model, batches, loss_fn, optimizer, accum_steps):
    listed = []
    for window in windows(batches, accum_steps):
        samples = sum(len(x) for x, _ in window)
        optimizer.zero_grad()
        loss = sum(loss_fn(model(x), y) * (len(x) / samples) for x, y in window)
        loss.backward()
        optimizer.step()
        listed.append(loss.item())
    return listed


@accumulate_gradients.misconception(
    "The sum of losses that you list keeps its graph. Backward has freed the saved tensors, but "
    "the nodes of all batches hang on the sum until the window ends. A number for the report needs "
    "no graph."
)
def running_sum_with_its_graph(model, batches, loss_fn, optimizer, accum_steps):
    listed = []
    for window in windows(batches, accum_steps):
        samples, total = sum(len(x) for x, _ in window), 0.0
        optimizer.zero_grad()
        for x, y in window:
            loss = loss_fn(model(x), y) * (len(x) / samples)
            loss.backward()
            total = total + loss
        optimizer.step()
        listed.append(total.item())
    return listed


@accumulate_gradients.misconception(
    "Only the gradients of the first parameter group are divided by the number of samples. There "
    "may be more groups; the others step with a sum."
)
def divides_in_the_first_group(model, batches, loss_fn, optimizer, accum_steps):
    class Divided:
        def zero_grad(self):
            optimizer.zero_grad()

        def step(self):
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad /= self.samples
            optimizer.step()

    divided = Divided()

    def weights(sizes):
        divided.samples = sum(sizes)
        return sizes

    return weighted(model, batches, loss_fn, divided, accum_steps, weights)


@accumulate_gradients.misconception(
    "You step after every batch. Within a window the parameters stay where they are; the step "
    "comes when the window is complete."
)
def steps_after_every_batch(model, batches, loss_fn, optimizer, accum_steps):
    listed = []
    for window in windows(batches, accum_steps):
        sizes = [len(x) for x, _ in window]
        losses = weighted(model, window, loss_fn, optimizer, 1, shares)
        listed.append(mean_over_samples(losses, sizes))
    return listed


@accumulate_gradients.misconception(
    "After the last batch you step once more, also where its window was complete and had its step. "
    "Without gradients nothing moves, but it is one step too many. Step there only if the window "
    "holds something."
)
def one_step_too_many(model, batches, loss_fn, optimizer, accum_steps):
    batches = list(batches)
    listed = accumulate_gradients.reference(model, batches, loss_fn, optimizer, accum_steps)
    if len(batches) % accum_steps == 0:
        optimizer.zero_grad()
        optimizer.step()
    return listed


@accumulate_gradients.misconception(
    "The steps are right, the losses you list are not: they are means of batch means. Weight each "
    "by its samples, as in the gradient."
)
def lists_means_of_batch_means(model, batches, loss_fn, optimizer, accum_steps):
    def report(losses, sizes):
        return sum(losses) / len(losses)

    return weighted(model, batches, loss_fn, optimizer, accum_steps, shares, report=report)


@accumulate_gradients.misconception(
    "You list one loss for each batch. The list has one entry for each optimizer step: the mean "
    "over its window."
)
def lists_every_batch(model, batches, loss_fn, optimizer, accum_steps):
    listed = []

    def report(losses, sizes):
        listed.extend(losses)

    weighted(model, batches, loss_fn, optimizer, accum_steps, shares, report=report)
    return listed


@accumulate_gradients.misconception(
    "The list holds tensors. Turn each into a Python float once its window is complete."
)
def lists_tensors(model, batches, loss_fn, optimizer, accum_steps):
    losses = accumulate_gradients.reference(model, batches, loss_fn, optimizer, accum_steps)
    return [torch.tensor(loss) for loss in losses]


@accumulate_gradients.misconception(
    "A window of less than one batch was accepted. Raise ValueError before anything is trained."
)
def window_not_checked(model, batches, loss_fn, optimizer, accum_steps):
    return weighted(model, batches, loss_fn, optimizer, max(accum_steps, 1), shares)


@accumulate_gradients.misconception(
    "The model was put into train mode. This function does not choose the mode; the caller does."
)
def changes_the_mode(model, batches, loss_fn, optimizer, accum_steps):
    model.train()
    return accumulate_gradients.reference(model, batches, loss_fn, optimizer, accum_steps)


accumulate_gradients.hints(
    "Write the mean over the window as a weighted sum of batch means.",
    "Either know the number of samples of the window first, or let backward add up sums and divide "
    "the gradients before the step.",
    "When is a window over? There are two conditions.",
)
