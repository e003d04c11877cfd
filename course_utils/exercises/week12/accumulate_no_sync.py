"""Several micro-batches, one step, and one all-reduce."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week07._loops import (
    give_gradients,
    optimizer_state,
    regression_batches,
    without_gradients,
)


@exercise(objectives=("dist.no_sync",))
def accumulate_no_sync(
    model: nn.Module,
    micro_batches: list[tuple[torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> float:
    """Take one optimizer step over at least one micro-batch (x, y); return the mean loss.

    model is wrapped as by DistributedDataParallel: it is called like a module, and has no_sync().
    Forward and backward of every micro-batch but the last run inside model.no_sync(); those of the
    last run outside, and synchronize what has been accumulated.

    loss_fn(model(x), y) is the mean over the rows of one micro-batch, which are counted along the
    first axis of x and y; micro-batches may differ in size, and in the shape of a row. The step
    uses the gradient of the mean over all rows of all micro-batches; the returned float is that
    mean. Gradients from before the call are discarded. What .grad holds afterwards is free. The
    list micro_batches and the mode of the model stay as they are.
    """
    rows = sum(len(x) for x, _ in micro_batches)
    optimizer.zero_grad()
    total = 0.0
    for number, (x, y) in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        with contextlib.nullcontext() if last else model.no_sync():
            loss = loss_fn(model(x), y) * (len(x) / rows)
            loss.backward()
        total += loss.item()
    optimizer.step()
    return total


class DdpLike(nn.Module):
    """A wrapper that notes whether each forward and backward would synchronize."""

    def __init__(self, module):
        super().__init__()
        self.module, self.log, self.synchronizes = module, [], True

    @contextlib.contextmanager
    def no_sync(self):
        before, self.synchronizes = self.synchronizes, False
        try:
            yield
        finally:
            self.synchronizes = before

    def note(self, what, rows):
        where = "synchronizes" if self.synchronizes else "in no_sync"
        self.log.append(f"{what} of {rows} rows: {where}")

    def forward(self, x):
        self.note("forward", len(x))
        output = self.module(x)
        if output.requires_grad:
            output.register_hook(lambda gradient: self.note("backward", len(x)))
        return output


def run(implementation, draw, sizes, *, stale=False, repeated=False, lengths=None, frozen=False,
        **settings):  # fmt: skip
    """What came back, what was synchronized, the model, and what the optimizer remembers.

    repeated: the first micro-batch is the last one, too. lengths: the rows of each micro-batch are
    sequences this long. frozen: the bias takes no part.
    """
    model, steps = DdpLike(nn.Linear(3, 1).to(draw.device)), []
    model.module.bias.requires_grad_(not frozen)
    model.train(draw.choice((True, False)))
    if stale:
        give_gradients(draw, model)
    settings = {"lr": draw.number(0.05, 0.1)} | settings
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    optimizer.register_step_post_hook(lambda *_: steps.append(None))
    lengths = lengths or (1,) * len(sizes)
    items = [size * length for size, length in zip(sizes, lengths, strict=True)]
    batches = regression_batches(draw, 3, items)
    if max(lengths) > 1:
        shapes = zip(sizes, lengths, strict=True)
        batches = [
            (x.unflatten(0, shape), y.unflatten(0, shape))
            for shape, (x, y) in zip(shapes, batches, strict=True)
        ]
    if repeated:
        batches[-1] = batches[0]
    result = attempt(implementation, model, batches, optimizer, F.mse_loss)
    return {
        "1. result": result,
        "2. passes": [*model.log, "synchronizes again" if model.synchronizes else "still no_sync"],
        "3. model afterwards": without_gradients(model.module),
        "4. optimizer": optimizer_state(optimizer),
        "5. calls of optimizer.step()": len(steps),
        "6. len(micro_batches) afterwards": len(batches),
    }


@accumulate_no_sync.case(random=True)
def a_single_micro_batch(implementation, draw):
    return run(implementation, draw, (draw.whole(2, 5),), stale=True)


@accumulate_no_sync.case(random=True)
def two_micro_batches(implementation, draw):
    return run(implementation, draw, draw.sizes(2, 2, 6))


@accumulate_no_sync.case(random=True)
def three_micro_batches_and_the_last_is_the_first_again(implementation, draw):
    return run(implementation, draw, (draw.whole(2, 4),) * 3, repeated=True)


@accumulate_no_sync.case(random=True)
def four_micro_batches_of_different_size_and_a_frozen_bias(implementation, draw):
    return run(implementation, draw, draw.sizes(4, 1, 7), frozen=True)


@accumulate_no_sync.case(random=True)
def gradients_left_from_before(implementation, draw):
    return run(implementation, draw, draw.sizes(2, 2, 6), stale=True)


@accumulate_no_sync.case(random=True)
def momentum_and_decay(implementation, draw):
    return run(implementation, draw, draw.sizes(3, 2, 6), momentum=0.9, weight_decay=0.1)


@accumulate_no_sync.case(random=True)
def rows_that_are_sequences_of_different_length(implementation, draw):
    return run(implementation, draw, draw.sizes(2, 2, 4), lengths=draw.sizes(2, 2, 4))


def accumulate(model, micro_batches, optimizer, loss_fn, *, quiet="all but the last", weight=None,
               clear="before", forward="inside", backward="inside", step=True,
               report=None):  # fmt: skip
    """The answer in parts that can be exchanged.

    quiet: which micro-batches use no_sync, and which part of them is inside. weight(rows, all rows,
    number of micro-batches) of each mean. clear: "before", "never", "each" or after
    "each step". report(means, sizes).
    """
    sizes, count = [len(x) for x, _ in micro_batches], len(micro_batches)
    weight = weight or (lambda rows, total, count: rows / total)
    if clear in ("before", "each step"):
        optimizer.zero_grad()
    means = []
    for number, (x, y) in enumerate(micro_batches):
        if clear == "each":
            optimizer.zero_grad()
        without = {"all but the last": number < count - 1, "all": True, "none": False,
                   "all but the first": number > 0}[quiet]  # fmt: skip
        with model.no_sync() if without and forward == "inside" else contextlib.nullcontext():
            mean = loss_fn(model(x), y)
        with model.no_sync() if without and backward == "inside" else contextlib.nullcontext():
            (mean * weight(len(x), sum(sizes), count)).backward()
        means.append(mean.item())
        if step == "each":
            optimizer.step()
            if clear == "each step":
                optimizer.zero_grad()
    if step is True:
        optimizer.step()
    return (report or mean_of_rows)(means, sizes)


def mean_of_rows(means, sizes):
    """The mean over all rows."""
    return sum(mean * rows for mean, rows in zip(means, sizes, strict=True)) / sum(sizes)


@accumulate_no_sync.misconception(
    "Every micro-batch synchronizes. The step is right, and the same all-reduce is paid once for "
    "each micro-batch, which is what no_sync is there to save."
)
def always_synchronizes(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, quiet="none")


@accumulate_no_sync.misconception(
    "Nothing is ever synchronized, not even by the last micro-batch. Each rank steps with its own "
    "gradient, and the replicas drift apart without an error."
)
def never_synchronizes(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, quiet="all")


@accumulate_no_sync.misconception(
    "The wrong micro-batch synchronizes: the first. What the later ones add stays on its own "
    "rank. The last one carries along all that was accumulated before."
)
def first_one_synchronizes(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, quiet="all but the first")


@accumulate_no_sync.misconception(
    "Only backward is inside no_sync. DDP decides in forward whether to synchronize, so it does "
    "so for every micro-batch."
)
def only_backward_inside(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, forward="outside")


@accumulate_no_sync.misconception(
    "Only forward is inside no_sync; a backward of your code runs outside. Keep both inside, as "
    "DDP's documentation asks, and do not lean on the detail that decides today."
)
def only_forward_inside(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, backward="outside")


@accumulate_no_sync.misconception(
    "All micro-batches get the same weight. A short one then counts too much; weight each mean by "
    "its rows."
)
def equal_weights(model, micro_batches, optimizer, loss_fn):
    def weight(rows, total, count):
        return 1 / count

    return accumulate(model, micro_batches, optimizer, loss_fn, weight=weight)


@accumulate_no_sync.misconception(
    "All micro-batches get the same weight, in the step and in the loss you return. A short one "
    "then counts too much; weight each mean by its rows."
)
def equal_weights_and_the_loss_too(model, micro_batches, optimizer, loss_fn):
    def weight(rows, total, count):
        return 1 / count

    def report(means, sizes):
        return sum(means) / len(means)

    return accumulate(model, micro_batches, optimizer, loss_fn, weight=weight, report=report)


@accumulate_no_sync.misconception(
    "The means are added up without weights. The step grows with the number of micro-batches."
)
def no_weights(model, micro_batches, optimizer, loss_fn):
    def weight(rows, total, count):
        return 1.0

    return accumulate(model, micro_batches, optimizer, loss_fn, weight=weight)


@accumulate_no_sync.misconception(
    "The gradient is that of the sum over all rows; the division by their number is missing."
)
def sum_over_rows(model, micro_batches, optimizer, loss_fn):
    def weight(rows, total, count):
        return rows

    return accumulate(model, micro_batches, optimizer, loss_fn, weight=weight)


@accumulate_no_sync.misconception(
    "What was in .grad before the call goes into the step. Discard it first."
)
def stale_gradients(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, clear="never")


@accumulate_no_sync.misconception(
    "You clear before each micro-batch. Only the last one reaches the step; clear once."
)
def cleared_before_each(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, clear="each")


@accumulate_no_sync.misconception(
    "You step after each micro-batch, with gradients that are not complete and not synchronized. "
    "There is one step, after the last."
)
def steps_each_time(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, step="each")


@accumulate_no_sync.misconception(
    "You step after each micro-batch and clear its gradient. Nothing accumulates, and all steps "
    "but the last use gradients that are not synchronized. There is one step, after the last."
)
def steps_and_clears_each_time(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, step="each", clear="each step")


@accumulate_no_sync.misconception(
    "The training is right, and the list of the caller has lost its last micro-batch: pop takes it "
    "out. Read it without removing it."
)
def takes_the_last_one_out(model, micro_batches, optimizer, loss_fn):
    mean = accumulate(model, micro_batches, optimizer, loss_fn)
    micro_batches.pop()
    return mean


@accumulate_no_sync.misconception(
    "You tell the last micro-batch by asking whether it is the object at the end of the list. The "
    "same object may be in the list twice, and then an earlier one synchronizes, too. Go by the "
    "place in the list."
)
def last_told_by_identity(model, micro_batches, optimizer, loss_fn):
    rows = sum(len(x) for x, _ in micro_batches)
    optimizer.zero_grad()
    total = 0.0
    for batch in micro_batches:
        last = batch is micro_batches[-1]
        with contextlib.nullcontext() if last else model.no_sync():
            loss = loss_fn(model(batch[0]), batch[1]) * (len(batch[0]) / rows)
            loss.backward()
        total += loss.item()
    optimizer.step()
    return total


@accumulate_no_sync.misconception(
    "The weight of a micro-batch is its number of elements. With long rows they are more, and "
    "the mean is over rows: what counts is the size of the first axis."
)
def weighted_by_elements(model, micro_batches, optimizer, loss_fn):
    elements = sum(x.numel() for x, _ in micro_batches)
    optimizer.zero_grad()
    total = 0.0
    for number, (x, y) in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        with contextlib.nullcontext() if last else model.no_sync():
            loss = loss_fn(model(x), y) * (x.numel() / elements)
            loss.backward()
        total += loss.item()
    optimizer.step()
    return total


@accumulate_no_sync.misconception(
    "You divide every .grad after the last backward. A frozen parameter has none: its .grad is "
    "None. Weight the losses instead, before backward."
)
def gradients_divided_at_the_end(model, micro_batches, optimizer, loss_fn):
    def divide(optimizer, *_):
        for parameter in model.parameters():
            parameter.grad /= sum(len(x) for x, _ in micro_batches)

    handle = optimizer.register_step_pre_hook(divide)
    try:
        return accumulate(
            model, micro_batches, optimizer, loss_fn, weight=lambda rows, total, count: rows
        )
    finally:
        handle.remove()


@accumulate_no_sync.misconception(
    "The optimizer never steps. After the last backward the gradients are complete; use them."
)
def step_missing(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, step=False)


@accumulate_no_sync.misconception(
    "The step is right, the loss you return is not: it is a mean of means. Weight each by its "
    "rows, as in the gradient."
)
def returns_a_mean_of_means(model, micro_batches, optimizer, loss_fn):
    def report(means, sizes):
        return sum(means) / len(means)

    return accumulate(model, micro_batches, optimizer, loss_fn, report=report)


@accumulate_no_sync.misconception(
    "The step is right, and you return the loss of the last micro-batch alone. Asked is the mean "
    "over all rows."
)
def returns_the_last_loss(model, micro_batches, optimizer, loss_fn):
    return accumulate(model, micro_batches, optimizer, loss_fn, report=lambda means, _: means[-1])


@accumulate_no_sync.misconception(
    "You return a tensor. Asked is a Python float; a tensor may keep its graph and all "
    "activations alive."
)
def returns_a_tensor(model, micro_batches, optimizer, loss_fn):
    mean = accumulate(model, micro_batches, optimizer, loss_fn)
    return torch.tensor(mean, device=micro_batches[0][0].device)


@accumulate_no_sync.misconception(
    "You return a tensor, and one with a graph: the losses were added up as tensors. Asked is a "
    "Python float."
)
def returns_a_tensor_with_a_graph(model, micro_batches, optimizer, loss_fn):
    mean = accumulate(model, micro_batches, optimizer, loss_fn)
    return torch.tensor(mean, device=micro_batches[0][0].device, requires_grad=True)


@accumulate_no_sync.misconception(
    "You call model.module, the model inside the wrapper. That goes around DDP: nothing is "
    "prepared for synchronizing, and nothing says so. Call the wrapper."
)
def wrapper_bypassed(model, micro_batches, optimizer, loss_fn):
    real = model.forward
    model.forward = model.module.forward
    try:
        return accumulate(model, micro_batches, optimizer, loss_fn)
    finally:
        model.forward = real


accumulate_no_sync.hints(
    "Which micro-batch is the last one? You have a list, so you can know beforehand.",
    "contextlib.nullcontext() is a context that does nothing; one with statement can use it or "
    "no_sync().",
    "How much should the mean of a micro-batch count, if it holds 2 of 10 rows?",
)
