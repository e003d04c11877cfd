"""A bug hunt: one step, clipped where it counts, and skipped when the gradient is broken."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.exercise import exercise
from course_utils.exercises.week07._loops import (
    give_gradients,
    in_two_groups,
    optimizer_state,
    regression_batches,
    without_gradients,
)


@exercise(objectives=("loop.clipping", "loop.nonfinite_guard", "loop.five_steps"))
def clipped_step(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
) -> tuple[float, float]:
    """One training step with clipping by global norm and a guard; return (loss, norm).

    Only the gradient of this batch counts. norm is the total 2-norm over all parameters that have a
    gradient, whatever their group in the optimizer. If it exceeds max_norm, the gradients are
    scaled to norm max_norm, to a relative 1e-4; otherwise they are used as they are.

    If the norm is inf or NaN, the optimizer does not step: parameters and optimizer state stay
    exactly as they were, and nothing is raised. Every finite norm, however large, is only clipped.
    Gradients that are finite have a finite norm here.

    loss is the loss before the step, norm the one before clipping; both are Python floats, also
    where they are inf or NaN. Some parameters may be frozen and have no gradient, all others are
    used; the optimizer holds all of them. The mode stays as it is; what .grad holds afterwards is
    free.
    """
    optimizer.zero_grad()
    loss = loss_fn(model(x), y)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if torch.isfinite(norm):
        optimizer.step()
    return loss.item(), norm.item()


def network(draw, *, frozen=False):
    """A small model, one of its weights perhaps frozen."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).to(draw.device).eval()
    model[0].weight.requires_grad_(not frozen)
    return model


def layer(draw, *, frozen=False):
    """One layer, for the cases where clipping it whole or in parts is not the question."""
    model = nn.Linear(2, 1).to(draw.device).eval()
    model.weight.requires_grad_(not frozen)
    return model


def step(implementation, draw, model, x, y, limit, *, warm=False, **settings):
    """One step; what came back and what is left.

    warm: the optimizer has made a step before.
    """
    settings = {"lr": draw.number(0.1, 0.3)} | settings
    optimizer = torch.optim.SGD(in_two_groups(model), **settings)
    if warm:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = draw.normal(*parameter.shape)
        optimizer.step()
    result = implementation(model, x, y, F.mse_loss, optimizer, limit)
    return {
        "1. (loss, norm)": result,
        "2. model afterwards": without_gradients(model),
        "3. optimizer": optimizer_state(optimizer),
    }


def one_batch(draw):
    """x and y of one batch. The targets are so far away that the norm is well above 4."""
    x, y = regression_batches(draw, 2, (draw.whole(3, 6),))[0]
    return x, y + 5


@clipped_step.case(random=True)
def a_norm_above_the_limit(implementation, draw):
    return step(implementation, draw, network(draw), *one_batch(draw), draw.number(1.0, 4.0))


@clipped_step.case(random=True)
def a_norm_below_the_limit(implementation, draw):
    return step(implementation, draw, layer(draw), *one_batch(draw), 300.0)


@clipped_step.case(random=True)
def a_norm_far_above_the_limit(implementation, draw):
    x, y = one_batch(draw)
    return step(implementation, draw, layer(draw), x, 1e6 * y, 0.1, lr=10.0)


@clipped_step.case(random=True)
def gradients_left_from_before(implementation, draw):
    model = layer(draw)
    give_gradients(draw, model)
    return step(implementation, draw, model, *one_batch(draw), 4.0)


@clipped_step.case(random=True)
def a_frozen_weight(implementation, draw):
    return step(implementation, draw, network(draw, frozen=True), *one_batch(draw), 3.0)


@clipped_step.case(random=True)
def momentum_after_a_step(implementation, draw):
    model = layer(draw)
    return step(implementation, draw, model, *one_batch(draw), 2.0, warm=True, momentum=0.9)


@clipped_step.case(random=True)
def a_loss_that_is_nan(implementation, draw):
    x, y = one_batch(draw)
    y[0] = float("nan")
    return step(implementation, draw, layer(draw), x, y, 1.0, warm=True, momentum=0.9)


@clipped_step.case(random=True)
def a_loss_that_is_infinite(implementation, draw):
    x, y = one_batch(draw)
    y[1] = float("inf")
    model = layer(draw, frozen=True)
    return step(implementation, draw, model, x, y, 1.0, warm=True, momentum=0.9, weight_decay=0.3)


@clipped_step.case(random=True)
def a_finite_loss_whose_gradient_is_not(implementation, draw):
    x, y = one_batch(draw)
    model = nn.Sequential(nn.Linear(2, 1), Root()).to(draw.device)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()  # the root of 0 is 0, its slope there is infinite
    return step(implementation, draw, model, x, y, 1.0, weight_decay=0.3)


class Root(nn.Module):
    """The square root, whose slope at 0 is infinite."""

    def forward(self, x):
        return x.sqrt()


def do(model, x, y, loss_fn, optimizer, max_norm, order, clip=nn.utils.clip_grad_norm_):
    """A step that does the things in `order`: clear, backward, clip, guard, step.

    guard ends the step if the norm is not finite. Returns the loss and the norm, as tensors.
    """
    loss, norm = loss_fn(model(x), y), torch.zeros(())
    for word in order.split():
        if word == "clear":
            optimizer.zero_grad()
        elif word == "backward":
            loss.backward()
        elif word == "clip":
            norm = clip(model.parameters(), max_norm)
        elif word == "guard" and not torch.isfinite(norm):
            break
        elif word == "step":
            optimizer.step()
    return loss.detach(), norm


def floats(pair):
    """Both as Python floats."""
    return tuple(float(value) for value in pair)


def length(model):
    """The norm of all gradients as they are now."""
    return nn.utils.clip_grad_norm_(model.parameters(), float("inf"))


RIGHT = "clear backward clip guard step"


@clipped_step.misconception(
    "You clip before backward. There is nothing to clip yet: the norm you report is 0 and the step "
    "is unclipped."
)
def clip_before_backward(model, x, y, loss_fn, optimizer, max_norm):
    return floats(do(model, x, y, loss_fn, optimizer, max_norm, "clear clip backward step"))


@clipped_step.misconception(
    "You clip after the step. The step has already been made with the raw gradient."
)
def clip_after_step(model, x, y, loss_fn, optimizer, max_norm):
    loss, _ = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward")
    norm = length(model)
    if torch.isfinite(norm):
        optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "You clip by value. Limiting each entry changes the direction; the task limits the length of "
    "the whole vector."
)
def value_clipping(model, x, y, loss_fn, optimizer, max_norm):
    loss, _ = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward")
    norm = length(model)
    if torch.isfinite(norm):
        nn.utils.clip_grad_value_(model.parameters(), max_norm)
        optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "Each parameter is clipped by its own norm. The norm that counts is that of all gradients "
    "together, as if they were one long vector."
)
def parameter_by_parameter(model, x, y, loss_fn, optimizer, max_norm):
    loss, _ = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward")
    norm = length(model)
    if torch.isfinite(norm):
        for parameter in model.parameters():
            nn.utils.clip_grad_norm_([parameter], max_norm)
        optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "Only the first parameter group of the optimizer is measured and clipped. There may be more of "
    "them; the norm that counts is that of all gradients of the model."
)
def clips_the_first_group(model, x, y, loss_fn, optimizer, max_norm):
    def clip(parameters, limit):
        return nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], limit)

    return floats(do(model, x, y, loss_fn, optimizer, max_norm, RIGHT, clip))


@clipped_step.misconception(
    "Each parameter group of the optimizer is clipped by its own norm. Groups are there for their "
    "settings; the norm that counts is that of all gradients together."
)
def group_by_group(model, x, y, loss_fn, optimizer, max_norm):
    loss, _ = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward")
    norm = length(model)
    if torch.isfinite(norm):
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], max_norm)
        optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "A step is left out although its norm is finite. However large it is, a finite gradient has a "
    "direction and can be shortened; only inf and NaN leave nothing to use."
)
def skips_a_large_finite_norm(model, x, y, loss_fn, optimizer, max_norm):
    loss, norm = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward clip")
    if norm < 1e6:
        optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "The gradient is always scaled to max_norm, also where it is shorter. Below the limit it is "
    "used as it is: clipping never lengthens."
)
def always_rescales(model, x, y, loss_fn, optimizer, max_norm):
    loss, _ = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward")
    norm = length(model)
    if torch.isfinite(norm):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= max_norm / norm
        optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "You report the norm after clipping. It is at most max_norm, so a log of it can never show an "
    "explosion. Report the one from before."
)
def reports_the_clipped_norm(model, x, y, loss_fn, optimizer, max_norm):
    loss, norm = floats(do(model, x, y, loss_fn, optimizer, max_norm, RIGHT))
    return loss, min(norm, max_norm)


@clipped_step.misconception(
    "The step is made whatever the norm is. An inf norm gives the factor 0, and 0 times inf is NaN "
    "in that entry; a NaN norm makes every gradient NaN. The step writes it into the weights. Test "
    "the norm first."
)
def steps_on_a_nonfinite_norm(model, x, y, loss_fn, optimizer, max_norm):
    return floats(do(model, x, y, loss_fn, optimizer, max_norm, "clear backward clip step"))


@clipped_step.misconception(
    "The guard looks for NaN only. An infinite norm gives the factor 0, and 0 times inf is NaN in "
    "that entry. Ask whether the norm is finite."
)
def guards_against_nan_only(model, x, y, loss_fn, optimizer, max_norm):
    loss, norm = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward clip")
    if not torch.isnan(norm):
        optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "The guard looks at the loss. A finite loss can have a gradient that is not: the square root "
    "at 0 has an infinite slope. Look at the norm of the gradient."
)
def guards_the_loss(model, x, y, loss_fn, optimizer, max_norm):
    loss, norm = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward clip")
    if torch.isfinite(loss):
        optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "The step is left out whenever the norm exceeds max_norm. That is what clipping is for: such a "
    "gradient is shortened and used. Only one that is not finite is left out."
)
def skips_what_exceeds_the_limit(model, x, y, loss_fn, optimizer, max_norm):
    loss, norm = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward clip")
    if norm <= max_norm:
        optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "A gradient that is not finite raises an error. The run should go on: leave out the step and "
    "return the numbers as they are."
)
def raises_on_a_nonfinite_norm(model, x, y, loss_fn, optimizer, max_norm):
    def clip(parameters, limit):
        return nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=True)

    return floats(do(model, x, y, loss_fn, optimizer, max_norm, RIGHT, clip))


@clipped_step.misconception(
    "Broken gradients are replaced by zeros, and the optimizer steps with them. Momentum and "
    "weight decay still move the weights, and the rest of such a gradient is not to be trusted. "
    "Leave the step out."
)
def steps_with_zeros(model, x, y, loss_fn, optimizer, max_norm):
    loss, _ = do(model, x, y, loss_fn, optimizer, max_norm, "clear backward")
    norm = length(model)
    if torch.isfinite(norm):
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    else:
        optimizer.zero_grad()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return floats((loss, norm))


@clipped_step.misconception(
    "The gradient is never cleared, so what was left from before is added to it."
)
def never_cleared(model, x, y, loss_fn, optimizer, max_norm):
    return floats(do(model, x, y, loss_fn, optimizer, max_norm, "backward clip guard step"))


@clipped_step.misconception(
    "You clear between backward and step, so nothing moves. Clear before backward."
)
def zero_grad_between_backward_and_step(model, x, y, loss_fn, optimizer, max_norm):
    order = "clear backward clip guard clear step"
    return floats(do(model, x, y, loss_fn, optimizer, max_norm, order))


@clipped_step.misconception(
    "The loss you return was measured after the step. Return the one that the gradient came from."
)
def loss_after_the_step(model, x, y, loss_fn, optimizer, max_norm):
    _, norm = do(model, x, y, loss_fn, optimizer, max_norm, RIGHT)
    return floats((loss_fn(model(x), y), norm))


@clipped_step.misconception(
    "You return tensors. The task asks for two Python floats, which hold no graph and no memory."
)
def returns_tensors(model, x, y, loss_fn, optimizer, max_norm):
    return do(model, x, y, loss_fn, optimizer, max_norm, RIGHT)


@clipped_step.misconception(
    "The model was put into train mode. Here the mode stays as the caller left it."
)
def changes_the_mode(model, x, y, loss_fn, optimizer, max_norm):
    model.train()
    return floats(do(model, x, y, loss_fn, optimizer, max_norm, RIGHT))


@clipped_step.broken
def broken_clipped_step(model, x, y, loss_fn, optimizer, max_norm):
    optimizer.zero_grad()
    loss = loss_fn(model(x), y)
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    loss.backward()
    optimizer.step()
    return loss.item(), norm.item()


clipped_step.hints(
    "Read what the clip function returns. Of which gradients is it the norm?",
    "Which line must move? And between which two lines does a test belong?",
    "What does min(1, c / inf) times inf give?",
)
