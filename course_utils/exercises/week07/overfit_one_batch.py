"""A wiring test: can the model learn one batch by heart?"""

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.exercise import exercise
from course_utils.exercises.week07._loops import give_gradients, regression_batches, regressor


@exercise(objectives=("loop.overfit_check", "loop.five_steps"))
def overfit_one_batch(
    model: nn.Module,
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    x: torch.Tensor,
    y: torch.Tensor,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    max_steps: int,
    target: float,
) -> tuple[bool, list[float]]:
    """Can the model drive the loss of this one batch down to target? Return (it can, losses).

    Train in train mode on the whole batch, with the optimizer that make_optimizer(parameters)
    makes, starting from the model's current weights. At most max_steps times: compute the loss and
    append it to the list; if it is <= target, return (True, losses) without a further update;
    otherwise update with the gradient of this loss alone. After max_steps losses return
    (False, losses). max_steps may be 0. The losses are Python floats; one that is NaN is not
    <= target. Frozen parameters stay frozen.

    Afterwards the caller's model is as before: parameters, buffers (also those that state_dict
    leaves out), the mode of every submodule, and .grad. The model has no random layers.
    """
    probe = copy.deepcopy(model).train()
    optimizer = make_optimizer(probe.parameters())
    losses = []
    for _ in range(max_steps):
        loss = loss_fn(probe(x), y)
        losses.append(loss.item())
        if losses[-1] <= target:
            return True, losses
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return False, losses


def make_sgd(draw, momentum=0.0):
    """A function that makes SGD with a drawn rate."""
    lr = draw.number(0.05, 0.15)
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def halved(draw):
    """A one-weight model and a batch whose loss is divided by 4 with each step; its optimizer."""
    model = nn.Linear(1, 1, bias=False).to(draw.device)
    x, level = draw.tensor([[1.0], [1.0]]), draw.number(2.0, 3.0)
    with torch.no_grad():
        model.weight.fill_(0.0)
    return model, lambda parameters: torch.optim.SGD(parameters, lr=0.25), x, level * x


@overfit_one_batch.case
def a_target_that_is_reached_midway(implementation, draw):
    model, make, x, y = halved(draw)
    first = float(y[0]) ** 2
    return implementation(model, make, x, y, F.mse_loss, 6, 1.5 * first / 4 ** draw.whole(1, 3))


@overfit_one_batch.case
def a_target_that_is_reached_with_the_last_loss(implementation, draw):
    model, make, x, y = halved(draw)
    steps = draw.whole(2, 3)
    return implementation(
        model, make, x, y, F.mse_loss, steps, 1.5 * float(y[0]) ** 2 / 4 ** (steps - 1)
    )


@overfit_one_batch.case
def a_target_that_is_reached_after_the_last_loss(implementation, draw):
    model, make, x, y = halved(draw)
    steps = draw.whole(1, 2)
    target = 1.5 * float(y[0]) ** 2 / 4**steps
    return implementation(model, make, x, y, F.mse_loss, steps, target)


@overfit_one_batch.case
def a_target_that_holds_at_once(implementation, draw):
    x, y = regression_batches(draw, 2, (4,))[0]
    make, updates = make_sgd(draw), []

    def make_optimizer(parameters):
        optimizer = make(parameters)
        optimizer.register_step_post_hook(lambda *_: updates.append(None))
        return optimizer

    result = implementation(regressor(draw, 2), make_optimizer, x, y, F.mse_loss, 3, 1000.0)
    return {"1. result": result, "2. updates": len(updates)}


@overfit_one_batch.case
def a_loss_that_equals_the_target(implementation, draw):
    model, make, x, _ = halved(draw)
    return implementation(model, make, x, 2 * x, F.mse_loss, 3, 1.0)


@overfit_one_batch.case
def a_target_that_is_never_reached(implementation, draw):
    x, y = regression_batches(draw, 3, (5,))[0]
    model, make = regressor(draw, 3), make_sgd(draw, momentum=0.5)
    model.bias.requires_grad_(False)
    return implementation(model, make, x, y, F.mse_loss, 3, -1.0)


@overfit_one_batch.case
def a_loss_that_grows(implementation, draw):
    model, _, x, y = halved(draw)
    return implementation(model, diverging, x, y, F.mse_loss, 2, 0.5 * float(y[0]) ** 2)


def diverging(parameters):
    """An optimizer whose rate is too high for `halved`: each step doubles the distance."""
    return torch.optim.SGD(parameters, lr=1.5)


@overfit_one_batch.case
def a_loss_that_is_nan(implementation, draw):
    model, make, x, y = halved(draw)
    return implementation(model, make, x, draw.tensor(float("nan")) * y, F.mse_loss, 2, 1.0)


@overfit_one_batch.case
def no_steps(implementation, draw):
    x, y = regression_batches(draw, 2, (3,))[0]
    return implementation(regressor(draw, 2), make_sgd(draw), x, y, F.mse_loss, 0, 1000.0)


@overfit_one_batch.case
def batch_norm_that_comes_in_eval_mode(implementation, draw):
    model = nn.BatchNorm1d(1).to(draw.device).eval()
    x, y = regression_batches(draw, 1, (5,))[0]
    return implementation(model, make_sgd(draw), x, y, F.mse_loss, 2, 0.0)


@overfit_one_batch.case
def one_of_two_batch_norms_frozen_in_eval_mode(implementation, draw):
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1).eval()).to(draw.device)
    model[1].running_mean.fill_(draw.number(1.0, 2.0))
    model[0].register_buffer("running_mean", model[0].running_mean, persistent=False)
    x, y = regression_batches(draw, 1, (5,))[0]
    return implementation(model, make_sgd(draw), x, y, F.mse_loss, 1, 0.0)


@overfit_one_batch.case
def gradients_that_are_waiting(implementation, draw):
    model = regressor(draw, 2)
    give_gradients(draw, model)
    x, y = regression_batches(draw, 2, (4,))[0]
    return implementation(model, make_sgd(draw), x, y, F.mse_loss, 2, 0.0)


def overfit(probe, parameters, make_optimizer, x, y, loss_fn, max_steps, target, *, clear=True,
            reached=None, order="loss check update", extra=0):  # fmt: skip
    """The loop, on whatever probe and parameters it is given.

    reached(loss, target) replaces the usual comparison; order says what comes when in each round;
    extra: how many losses more than max_steps may be taken.
    """
    reached = reached or (lambda loss, target: loss <= target)
    optimizer, losses = make_optimizer(parameters), []
    for _ in range(max_steps + extra):
        loss = loss_fn(probe(x), y)
        for word in order.split():
            if word == "loss":
                losses.append(loss_fn(probe(x), y).item() if "late" in order else loss.item())
            elif word == "check" and reached(losses[-1], target):
                return True, losses
            elif word == "update":
                if clear:
                    optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return False, losses


def restored(model, run, *, parameters=True, buffers=True, gradients=True, only=None):
    """What run() returns; afterwards the model is put back, but for what is said to be False.

    gradients: True puts them back, False removes them, None leaves those of the run. only: the
    tensors that are put back, in place of all.
    """
    tensors = [*model.parameters()] * parameters + [*model.buffers()] * buffers
    tensors = tensors if only is None else list(only)
    values = [tensor.detach().clone() for tensor in tensors]
    flags = [(module, module.training) for module in model.modules()]
    grads = [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
    try:
        return run()
    finally:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data.copy_(value)
        for module, training in flags:
            module.training = training
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            if gradients is not None:
                parameter.grad = grad if gradients else None


@overfit_one_batch.misconception(
    "The caller's model was trained. A test must not change what it tests; the real run would "
    "start from overfitted weights. Work on an independent copy."
)
def trains_the_callers_model(model, make_optimizer, x, y, loss_fn, max_steps, target):
    model.train()
    parameters = model.parameters()
    return overfit(model, parameters, make_optimizer, x, y, loss_fn, max_steps, target)


@overfit_one_batch.misconception(
    "You put a snapshot back and nothing came back. state_dict() returns the live tensors, so the "
    "snapshot was trained too. Copy the values, or the whole model."
)
def snapshot_shares_memory(model, make_optimizer, x, y, loss_fn, max_steps, target):
    def run():
        model.train()
        parameters = model.parameters()
        return overfit(model, parameters, make_optimizer, x, y, loss_fn, max_steps, target)

    return restored(model, run, parameters=False, buffers=False)


@overfit_one_batch.misconception(
    "You put back what state_dict() holds. A buffer that was registered with persistent=False is "
    "not in it, and in train mode a forward may move that too."
)
def restores_the_state_dict(model, make_optimizer, x, y, loss_fn, max_steps, target):
    kept = model.state_dict(keep_vars=True).values()

    def run():
        model.train()
        parameters = model.parameters()
        return overfit(model, parameters, make_optimizer, x, y, loss_fn, max_steps, target)

    return restored(model, run, only=kept)


@overfit_one_batch.misconception(
    "Where the target is reached you return at once, and the lines that put the model back come "
    "later in your function: they never run. They have to run on every way out."
)
def returns_before_it_restores(model, make_optimizer, x, y, loss_fn, max_steps, target):
    result = overfit_one_batch.reference(model, make_optimizer, x, y, loss_fn, max_steps, target)
    if result[0]:
        model.train()
        overfit(model, model.parameters(), make_optimizer, x, y, loss_fn, max_steps, target)
        model.zero_grad()
    return result


@overfit_one_batch.misconception(
    "You compare with a loss that you measured after the update, and that the list does not hold. "
    "Each recorded loss is compared, before the update."
)
def compares_after_the_update(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train()
    optimizer, losses = make_optimizer(probe.parameters()), []
    for _ in range(max_steps):
        losses += overfit(probe, probe.parameters(), lambda _: optimizer, x, y, loss_fn, 1, target,
                          order="loss update")[1]  # fmt: skip
        if loss_fn(probe(x), y).item() <= target:
            return True, losses
    return False, losses


@overfit_one_batch.misconception(
    "You stop at a loss that is NaN. It has not reached the target, so the loop goes on like after "
    "any other loss, up to max_steps of them."
)
def stops_at_nan(model, make_optimizer, x, y, loss_fn, max_steps, target):
    done, losses = overfit_one_batch.reference(
        model, make_optimizer, x, y, loss_fn, max_steps, target
    )
    broken = [number for number, loss in enumerate(losses, start=1) if math.isnan(loss)]
    return done, losses[: broken[0]] if broken else losses


@overfit_one_batch.misconception(
    "After the last update you measure once more, and that decides. The answer comes from the "
    "losses in the list: after max_steps of them, none at the target, it is False."
)
def measures_once_more_at_the_end(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train()
    parameters = probe.parameters()
    done, losses = overfit(probe, parameters, make_optimizer, x, y, loss_fn, max_steps, target)
    return done or (max_steps > 0 and loss_fn(probe(x), y).item() <= target), losses


@overfit_one_batch.misconception(
    "The parameters are back and the buffers are not: in train mode every forward moves the "
    "running statistics of batch norm."
)
def buffers_not_restored(model, make_optimizer, x, y, loss_fn, max_steps, target):
    def run():
        model.train()
        parameters = model.parameters()
        return overfit(model, parameters, make_optimizer, x, y, loss_fn, max_steps, target)

    return restored(model, run, buffers=False)


@overfit_one_batch.misconception(
    "Weights and buffers are put back, and the gradients that were waiting in .grad are gone. "
    "Somebody may be accumulating; on a copy they stay out of reach."
)
def gradients_not_restored(model, make_optimizer, x, y, loss_fn, max_steps, target):
    def run():
        model.train()
        parameters = model.parameters()
        return overfit(model, parameters, make_optimizer, x, y, loss_fn, max_steps, target)

    return restored(model, run, gradients=False)


@overfit_one_batch.misconception(
    "Weights, buffers and modes are put back; the gradients of your own loop stay in .grad. A "
    "training loop that clears late would use them. On a copy they stay out of reach."
)
def leaves_its_own_gradients(model, make_optimizer, x, y, loss_fn, max_steps, target):
    def run():
        model.train()
        parameters = model.parameters()
        return overfit(model, parameters, make_optimizer, x, y, loss_fn, max_steps, target)

    return restored(model, run, gradients=None)


@overfit_one_batch.misconception(
    "The caller's model changed its mode. A layer that was frozen in eval mode, or a model that "
    "came in eval mode, has to be so afterwards."
)
def modes_not_restored(model, make_optimizer, x, y, loss_fn, max_steps, target):
    model.train()
    probe = copy.deepcopy(model)
    return overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps, target)


@overfit_one_batch.misconception(
    "The optimizer holds the parameters of the original. The copy computes gradients, the "
    "optimizer looks at other tensors, and the loss never falls. Build it from the copy."
)
def optimizer_on_the_original_parameters(model, make_optimizer, x, y, loss_fn, max_steps, target):
    def run():
        probe = copy.deepcopy(model).train()
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = None
        return overfit(probe, parameters, make_optimizer, x, y, loss_fn, max_steps, target)

    return restored(model, run)


@overfit_one_batch.misconception(
    "The probe runs in eval mode. Batch norm then uses its running statistics, and the check is "
    "not of the configuration you will train."
)
def eval_mode(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).eval()
    return overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps, target)


@overfit_one_batch.misconception(
    "The probe keeps the modes it came with. The check belongs in train mode, all of it, whatever "
    "the model was doing before."
)
def mode_left_alone(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model)
    return overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps, target)


@overfit_one_batch.misconception(
    "Gradients pile up. Without clearing, each update uses the sum of all gradients so far."
)
def gradients_pile_up(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train()
    parameters = probe.parameters()
    return overfit(probe, parameters, make_optimizer, x, y, loss_fn, max_steps, target, clear=False)


@overfit_one_batch.misconception(
    "Each loss is recorded after the update. The list must start with the loss of the untouched "
    "weights, and a model that is good enough needs no update at all."
)
def loss_recorded_after_the_update(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train()
    return overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps, target,
                   order="update late loss check")  # fmt: skip


@overfit_one_batch.misconception(
    "The loop never stops early. Once the loss is at the target the question is answered."
)
def runs_to_the_end(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train()
    _, losses = overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps,
                        target, order="loss update")  # fmt: skip
    return bool(losses) and losses[-1] <= target, losses


@overfit_one_batch.misconception(
    "You update before you compare. A loss at the target ends the test without a further update."
)
def updates_before_it_compares(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train()
    return overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps, target,
                   order="loss update check")  # fmt: skip


@overfit_one_batch.misconception(
    "Your copy trains all parameters, also those that are frozen in the model. Layers frozen by "
    "mistake are what this test is there to find; leave requires_grad alone."
)
def unfreezes_the_copy(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train().requires_grad_(True)
    return overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps, target)


@overfit_one_batch.misconception(
    "You stop below the target only. A loss that equals it has reached it: compare with <=."
)
def strictly_below_the_target(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train()
    return overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps, target,
                   reached=lambda loss, target: loss < target)  # fmt: skip


@overfit_one_batch.misconception(
    "A loss that is NaN counts as having reached the target. Every comparison of order with NaN is "
    "False, so `not loss > target` lets it in, and a loop that runs while `loss > target` stops."
)
def nan_reaches_the_target(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train()
    return overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps, target,
                   reached=lambda loss, target: not loss > target)  # fmt: skip


@overfit_one_batch.misconception(
    "You decide by the number of losses. The last loss that is allowed may be the one that reaches "
    "the target: compare it with the target."
)
def decides_by_the_number_of_losses(model, make_optimizer, x, y, loss_fn, max_steps, target):
    _, losses = overfit_one_batch.reference(model, make_optimizer, x, y, loss_fn, max_steps, target)
    return len(losses) < max_steps, losses


@overfit_one_batch.misconception(
    "One loss too many: the list has at most max_steps entries, and none when max_steps is 0."
)
def one_loss_too_many(model, make_optimizer, x, y, loss_fn, max_steps, target):
    probe = copy.deepcopy(model).train()
    return overfit(probe, probe.parameters(), make_optimizer, x, y, loss_fn, max_steps, target,
                   extra=1)  # fmt: skip


@overfit_one_batch.misconception(
    "The last loss is read without one being there: max_steps may be 0. Then there are no losses "
    "and the answer is False."
)
def needs_a_loss(model, make_optimizer, x, y, loss_fn, max_steps, target):
    done, losses = overfit_one_batch.reference(
        model, make_optimizer, x, y, loss_fn, max_steps, target
    )
    return losses[-1] <= target or done, losses


@overfit_one_batch.misconception(
    "The loss that reached the target is missing from the list. Append it before you return."
)
def last_loss_not_recorded(model, make_optimizer, x, y, loss_fn, max_steps, target):
    done, losses = overfit_one_batch.reference(
        model, make_optimizer, x, y, loss_fn, max_steps, target
    )
    return done, losses[:-1] if done else losses


@overfit_one_batch.misconception(
    "The list holds tensors, which keep their graphs alive. Record Python floats."
)
def lists_tensors(model, make_optimizer, x, y, loss_fn, max_steps, target):
    done, losses = overfit_one_batch.reference(
        model, make_optimizer, x, y, loss_fn, max_steps, target
    )
    return done, [torch.tensor(loss) for loss in losses]


overfit_one_batch.hints(
    "copy.deepcopy copies parameters, buffers and modes.",
    "Whose parameters does the optimizer hold: those of the copy?",
    "Record, compare, and update last. What does the list hold when max_steps is 0?",
)
