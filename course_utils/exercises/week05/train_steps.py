"""A bug hunt: one pass of training, every call in its place."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.exercise import exercise


@exercise(objectives=("optim.api", "optim.zero_grad", "optim.clip", "optim.cadence"))
def train_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable,
    loss_fn: Callable,
    max_norm: float,
    scheduler=None,
) -> tuple[list[float], list[float], list[float]]:
    """One pass over batches, anything that yields (x, y); return (losses, norms, lrs).

    The model is set to train mode and left there. For each batch there is one update. It uses the
    gradient of this batch alone, whatever .grad held before, clipped by global norm to max_norm,
    which may be 0. A parameter that takes no part in the loss of a batch is skipped: no decay.

    The three lists hold Python floats, one for each batch: the loss before the update, the norm of
    the gradient before clipping, and the rate this update used (that of param_groups[0], which may
    be an int).

    scheduler, if given, is stepped once for each batch, after the optimizer. What .grad holds
    afterwards is free. optimizer holds all parameters of model.
    """
    model.train()
    losses, norms, lrs = [], [], []
    for x, y in batches:
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        losses.append(loss.item())
        norms.append(norm.item())
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return losses, norms, lrs


def make_model(draw, inputs, *, norm=False):
    """A small model from (N, inputs) to (N, 1), its weights drawn by the seed of the case."""
    layers = [nn.Linear(inputs, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)]
    return nn.Sequential(*layers if norm else [nn.Linear(inputs, 1)]).to(draw.device)


def make_batches(draw, inputs, count):
    """Batches of (x, y), of different size."""
    sizes = [3 + number % 2 for number in range(count)]
    return [(draw.normal(size, inputs), 3 * draw.normal(size, 1)) for size in sizes]


def train(implementation, draw, model, batches, *, groups=None, max_norm=1.0, gamma=None,
          given=None, **settings):  # fmt: skip
    """Run the pass; what came back, and the model without its gradients."""
    groups = model.parameters() if groups is None else groups
    optimizer = torch.optim.SGD(groups, **{"lr": draw.number(0.1, 0.3)} | settings)
    scheduler = gamma and torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=gamma)
    arguments = (scheduler,) if scheduler else ()
    given = batches if given is None else given
    result = implementation(model, optimizer, given, F.mse_loss, max_norm, *arguments)
    model.zero_grad()  # what is left in .grad is free
    return {"result": result, "rate left in the optimizer": optimizer.param_groups[0]["lr"]}


@train_steps.case
def a_tight_limit(implementation, draw):
    inputs = draw.whole(2, 4)
    batches = make_batches(draw, inputs, 2)
    return train(implementation, draw, make_model(draw, inputs), batches, max_norm=0.5)


@train_steps.case
def a_limit_that_is_never_reached_and_one_of_zero(implementation, draw):
    inputs = draw.whole(2, 4)
    model, batches = make_model(draw, inputs), make_batches(draw, inputs, 1)
    return [train(implementation, draw, model, batches, max_norm=limit) for limit in (1000.0, 0.0)]


@train_steps.case
def a_rate_given_as_an_int(implementation, draw):
    inputs = draw.whole(2, 4)
    batches = make_batches(draw, inputs, 1)
    return train(implementation, draw, make_model(draw, inputs), batches, max_norm=0.5, lr=1)


@train_steps.case
def gradients_left_from_before(implementation, draw):
    inputs = draw.whole(2, 4)
    model = make_model(draw, inputs)
    for parameter in model.parameters():
        parameter.grad = 5 * draw.normal(*parameter.shape)
    return train(implementation, draw, model, make_batches(draw, inputs, 1))


@train_steps.case
def a_parameter_that_takes_no_part_under_decay(implementation, draw):
    inputs = draw.whole(2, 4)
    model = make_model(draw, inputs)
    model[0].unused = nn.Parameter(draw.normal(3))
    model[0].unused.grad = draw.normal(3)
    return train(implementation, draw, model, make_batches(draw, inputs, 1), weight_decay=0.5)


@train_steps.case
def momentum(implementation, draw):
    inputs = draw.whole(2, 4)
    batches = make_batches(draw, inputs, 2)
    return train(implementation, draw, make_model(draw, inputs), batches, momentum=0.9)


@train_steps.case
def a_scheduler(implementation, draw):
    inputs, gamma = draw.whole(2, 4), draw.number(0.4, 0.7)
    batches = make_batches(draw, inputs, 3)
    return train(implementation, draw, make_model(draw, inputs), batches, gamma=gamma)


@train_steps.case
def two_groups_of_parameters(implementation, draw):
    inputs = draw.whole(2, 4)
    model = nn.Sequential(nn.Linear(inputs, 2), nn.Linear(2, 1)).to(draw.device)
    batches = make_batches(draw, inputs, 2)
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.01}]
    return train(implementation, draw, model, batches, groups=groups, max_norm=0.5)


@train_steps.case
def batch_norm_that_starts_in_eval_mode(implementation, draw):
    inputs = draw.whole(2, 4)
    model = make_model(draw, inputs, norm=True).eval()
    return train(implementation, draw, model, make_batches(draw, inputs, 2))


@train_steps.case
def batches_from_a_generator_with_decay(implementation, draw):
    inputs = draw.whole(2, 4)
    batches = make_batches(draw, inputs, 2)
    given = (batch for batch in batches)
    model = make_model(draw, inputs)
    return train(implementation, draw, model, batches, given=given, weight_decay=0.3)


@train_steps.case
def no_batches(implementation, draw):
    model = make_model(draw, 2).eval()
    return train(implementation, draw, model, [])


def loop(model, optimizer, batches, loss_fn, max_norm, scheduler, order, *, number=float):
    """A pass that does the things in `order`, a string of words, for each batch.

    Words: clear, backward, clip, step, scheduler, rate (which notes it), zero (fills with zeros).
    number turns losses and norms into what is listed.
    """
    losses, norms, lrs = [], [], []
    model.train()
    for x, y in batches:
        loss = loss_fn(model(x), y)
        for word in order.split():
            if word == "clear":
                optimizer.zero_grad()
            elif word == "backward":
                loss.backward()
            elif word == "clip":
                norms.append(number(nn.utils.clip_grad_norm_(model.parameters(), max_norm)))
            elif word == "step":
                optimizer.step()
            elif word == "rate":
                lrs.append(float(optimizer.param_groups[0]["lr"]))
            elif scheduler is not None:
                scheduler.step()
        losses.append(number(loss.detach()))
    return losses, norms, lrs


@train_steps.misconception(
    "No gradient is ever cleared. Each update used the sum of all gradients so far: momentum 1.0 "
    "in disguise."
)
def gradients_never_cleared(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    order = "backward clip rate step scheduler"
    return loop(model, optimizer, batches, loss_fn, max_norm, scheduler, order)


@train_steps.misconception(
    "You clear after each step, so the first update of a pass still uses what was in .grad before. "
    "Clear where it holds for the first batch too."
)
def cleared_after_the_step(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    order = "backward clip rate step clear scheduler"
    return loop(model, optimizer, batches, loss_fn, max_norm, scheduler, order)


@train_steps.misconception(
    "You clear once, before the loop. From the second batch on the gradients pile up."
)
def cleared_once(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    optimizer.zero_grad()
    return gradients_never_cleared(model, optimizer, batches, loss_fn, max_norm, scheduler)


@train_steps.misconception(
    "You clip before backward. That scales what was there before, if anything; the gradient you "
    "step with is never clipped, and the norm you note is not its norm."
)
def clipped_before_backward(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    order = "clear clip backward rate step scheduler"
    return loop(model, optimizer, batches, loss_fn, max_norm, scheduler, order)


@train_steps.misconception(
    "You clip after the step. By then the parameters have moved by the full gradient."
)
def clipped_after_the_step(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    order = "clear backward rate step clip scheduler"
    return loop(model, optimizer, batches, loss_fn, max_norm, scheduler, order)


def train_with(clip, *arguments):
    """What the reference does where clip(real, parameters, limit) stands for clip_grad_norm_."""
    real = nn.utils.clip_grad_norm_
    nn.utils.clip_grad_norm_ = lambda parameters, limit: clip(real, parameters, limit)
    try:
        return train_steps.reference(*arguments)
    finally:
        nn.utils.clip_grad_norm_ = real


@train_steps.misconception(
    "You clip each tensor on its own, so the balance between them is lost. The norm is that of all "
    "gradients together, and one factor scales them all: hand over all parameters in one call."
)
def clipped_tensor_by_tensor(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    def clip(real, parameters, limit):
        norms = [real([p], limit) for p in parameters if p.grad is not None]
        return torch.stack(norms).norm()

    return train_with(clip, model, optimizer, batches, loss_fn, max_norm, scheduler)


@train_steps.misconception(
    "You clip the parameters of the optimizer's first group alone. The others step with their full "
    "gradient, and the norm you note leaves them out."
)
def first_group_clipped_alone(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    def clip(real, parameters, limit):
        return real(optimizer.param_groups[0]["params"], limit)

    return train_with(clip, model, optimizer, batches, loss_fn, max_norm, scheduler)


@train_steps.misconception(
    "You clip each group of the optimizer by a norm of its own, so the balance between the groups "
    "is lost. There is one norm for all parameters of the model, whatever group they are in."
)
def clipped_group_by_group(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    def clip(real, parameters, limit):
        norms = [real(group["params"], limit) for group in optimizer.param_groups]
        return torch.stack(norms).norm()

    return train_with(clip, model, optimizer, batches, loss_fn, max_norm, scheduler)


@train_steps.misconception(
    "You fill the gradients with zeros. A gradient of zero is a gradient: a parameter that takes "
    "no part in the loss is then updated all the same, by decay or old momentum. The optimizer "
    "skips only what has no gradient at all."
)
def gradients_filled_with_zeros(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    optimizer.zero_grad = lambda: type(optimizer).zero_grad(optimizer, set_to_none=False)
    try:
        return train_steps.reference(model, optimizer, batches, loss_fn, max_norm, scheduler)
    finally:
        del optimizer.zero_grad


@train_steps.misconception(
    "You list the rate as you find it. It may stand in the group as an int, and the lists are to "
    "hold Python floats."
)
def rates_as_they_stand(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    found = []
    step = optimizer.step

    def note_and_step():
        found.append(optimizer.param_groups[0]["lr"])
        return step()

    optimizer.step = note_and_step
    try:
        losses, norms, _ = train_steps.reference(
            model, optimizer, batches, loss_fn, max_norm, scheduler
        )
    finally:
        optimizer.step = step
    return losses, norms, found


@train_steps.misconception(
    "You take a max_norm of 0 for no limit at all. 0.0 counts as false in an `if`, and yet it is a "
    "limit: it lets nothing of the gradient through."
)
def limit_of_zero_ignored(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    limit = max_norm or float("inf")
    return train_steps.reference(model, optimizer, batches, loss_fn, limit, scheduler)


@train_steps.misconception(
    "The scheduler is stepped before the optimizer. So the first rate is skipped, and every update "
    "uses the one that was meant for the next."
)
def scheduler_stepped_before_the_optimizer(
    model, optimizer, batches, loss_fn, max_norm, scheduler=None
):
    order = "clear backward clip scheduler rate step"
    return loop(model, optimizer, batches, loss_fn, max_norm, scheduler, order)


@train_steps.misconception(
    "The updates are right and the rates you list are not: you read the rate after the scheduler "
    "had changed it. Read it where it is used."
)
def rate_read_after_the_scheduler(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    order = "clear backward clip step scheduler rate"
    return loop(model, optimizer, batches, loss_fn, max_norm, scheduler, order)


@train_steps.misconception(
    "The scheduler is stepped once for the whole pass. Here its unit is the batch."
)
def scheduler_stepped_once_a_pass(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    order = "clear backward clip rate step"
    result = loop(model, optimizer, batches, loss_fn, max_norm, None, order)
    if scheduler is not None:
        scheduler.step()
    return result


@train_steps.misconception(
    "You clear between backward and step. The optimizer finds None everywhere and does nothing, "
    "without a word."
)
def cleared_between_backward_and_step(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    order = "backward clip clear rate step scheduler"
    return loop(model, optimizer, batches, loss_fn, max_norm, scheduler, order)


@train_steps.misconception(
    "The model stays in the mode it came in. A pass of training begins with train mode: batch norm "
    "and dropout behave differently in eval mode."
)
def mode_left_alone(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    mode, real = model.training, model.train
    model.train = lambda *args: model
    try:
        result = train_steps.reference(model, optimizer, batches, loss_fn, max_norm, scheduler)
    finally:
        del model.train
    assert model.training is mode and callable(real)
    return result


@train_steps.misconception(
    "You train in train mode and put the model back into the mode it came in. The task asks for it "
    "to be left in train mode, whatever it was before."
)
def mode_put_back(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    mode = model.training
    result = train_steps.reference(model, optimizer, batches, loss_fn, max_norm, scheduler)
    model.train(mode)
    return result


@train_steps.misconception(
    "The lists hold tensors. A loss that is kept as a tensor keeps its graph and all activations "
    "alive; turn losses and norms into Python floats."
)
def lists_of_tensors(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    order = "clear backward clip rate step scheduler"
    return loop(model, optimizer, batches, loss_fn, max_norm, scheduler, order, number=lambda t: t)


@train_steps.misconception(
    "The norms are tensors. clip_grad_norm_ returns a 0-d tensor; the lists are to hold Python "
    "floats."
)
def norms_stay_tensors(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    losses, norms, lrs = train_steps.reference(
        model, optimizer, batches, loss_fn, max_norm, scheduler
    )
    return losses, [next(model.parameters()).new_tensor(norm) for norm in norms], lrs


@train_steps.misconception(
    "You list the norm after clipping. It can never exceed max_norm, so it cannot warn you; list "
    "the one before."
)
def norms_after_clipping(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    losses, norms, lrs = train_steps.reference(
        model, optimizer, batches, loss_fn, max_norm, scheduler
    )
    return losses, [min(norm, max_norm) for norm in norms], lrs


@train_steps.misconception(
    "The scheduler that was given is never stepped, so the rate stays what it was."
)
def scheduler_never_stepped(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    return train_steps.reference(model, optimizer, batches, loss_fn, max_norm)


@train_steps.misconception(
    "You list the loss after the update, which takes another forward pass. What was asked for is "
    "the loss that the gradient was computed from."
)
def losses_after_the_update(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    losses, norms, lrs = [], [], []
    model.train()
    for x, y in batches:
        _, norm, lr = train_steps.reference(
            model, optimizer, [(x, y)], loss_fn, max_norm, scheduler
        )
        losses.append(loss_fn(model(x), y).item())
        norms, lrs = norms + norm, lrs + lr
    return losses, norms, lrs


@train_steps.broken
def broken_train_steps(model, optimizer, batches, loss_fn, max_norm, scheduler=None):
    losses, norms, lrs = [], [], []
    for x, y in batches:
        loss = loss_fn(model(x), y)
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
        loss.backward()
        if scheduler is not None:
            scheduler.step()
        optimizer.step()
        lrs.append(optimizer.param_groups[0]["lr"])
        losses.append(loss)
    return losses, norms, lrs


train_steps.hints(
    "Write down for each call what it reads and what it writes.",
    "Now order them: who needs the gradient of this batch, whole, clipped, or gone?",
    "Read the rate before the scheduler changes it. And look at the types in the lists, and at the "
    "mode of the model.",
)
