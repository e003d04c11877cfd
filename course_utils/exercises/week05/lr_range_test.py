"""A probe: sweep the learning rate, write down the losses, leave no trace."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.exercise import exercise


@exercise(objectives=("optim.range_test", "optim.zero_grad", "optim.compare"))
def lr_range_test(
    model: nn.Module,
    loss_fn: Callable,
    batches: list,
    lr_min: float = 1e-6,
    lr_max: float = 10.0,
    num_steps: int = 100,
    diverge_factor: float = 4.0,
) -> tuple[list[float], list[float]]:
    """Rates and losses of an exponential sweep with plain SGD, no momentum; num_steps >= 2.

    Step k = 0, 1, ... uses the rate lr_min * (lr_max / lr_min) ** (k / (num_steps - 1)) and batch
    k modulo len(batches), in train mode. Its loss is recorded before its update, which uses the
    gradient of this step alone. If the loss is not finite or exceeds diverge_factor times the
    smallest loss recorded so far, this one included (for negative losses it matters), stop after
    recording it.

    Afterwards parameters and buffers equal their start exactly, every .grad is None, and the
    training flag is what it was. Return (lrs, losses), lists of Python floats of equal length.

    batches: a list of (x, y) pairs. The training flag is the same in all submodules. All trainable
    parameters get gradients; frozen ones stay frozen.
    """
    was_training = model.training
    tensors = [*model.parameters(), *model.buffers()]
    start = [tensor.detach().clone() for tensor in tensors]
    lrs, losses = [], []
    model.train()
    try:
        for k in range(num_steps):
            x, y = batches[k % len(batches)]
            loss = loss_fn(model(x), y)
            lrs.append(lr_min * (lr_max / lr_min) ** (k / (num_steps - 1)))
            losses.append(loss.item())
            if not math.isfinite(losses[-1]) or losses[-1] > diverge_factor * min(losses):
                break
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter -= lrs[-1] * parameter.grad
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, start, strict=True):
                tensor.copy_(value)
        model.zero_grad()
        model.train(was_training)
    return lrs, losses


def make_model(draw, inputs, *, norm=False):
    """A small model from (N, inputs) to (N, 1) in float64, its weights drawn by the seed."""
    layers = [nn.Linear(inputs, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)]
    model = nn.Sequential(*layers if norm else [nn.Linear(inputs, 1)])
    return model.to(draw.device, torch.float64)


def make_batches(draw, inputs, count):
    """Batches of (x, y) in float64."""
    return [
        (draw.normal(4, inputs, dtype=torch.float64), draw.normal(4, 1, dtype=torch.float64))
        for _ in range(count)
    ]


def sweep(implementation, model, loss_fn, batches, **settings):
    """The rates as powers of ten, the losses, and what is left of the model."""
    tensors = [*model.parameters(), *model.buffers()]
    start = [tensor.detach().clone() for tensor in tensors]
    result = implementation(model, loss_fn, batches, **settings)
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], list):
        lrs = [math.log10(lr) if type(lr) is float and lr > 0 else lr for lr in result[0]]
        result = {"log10 of the rates": lrs, "losses": result[1]}
    left = {
        "as before": all(a.equal(b) for a, b in zip(tensors, start, strict=True)),
        "modes": [part.training for part in model.modules()],
        "gradients": [parameter.grad for parameter in model.parameters()],
    }
    return {"result": result, "model afterwards": left}


@lr_range_test.case
def more_steps_than_batches(implementation, draw):
    inputs = draw.whole(2, 4)
    model, batches = make_model(draw, inputs), make_batches(draw, inputs, 3)
    settings = {"lr_min": 1e-3, "lr_max": draw.number(0.05, 0.1), "num_steps": 10}
    return sweep(implementation, model, F.mse_loss, batches, diverge_factor=1e9, **settings)


@lr_range_test.case
def two_steps(implementation, draw):
    inputs = draw.whole(2, 4)
    model, batches = make_model(draw, inputs), make_batches(draw, inputs, 4)
    settings = {"lr_min": draw.number(1e-4, 1e-2), "num_steps": 2, "diverge_factor": 1e9}
    return sweep(implementation, model, F.mse_loss, batches, **settings)


@lr_range_test.case
def a_loss_that_explodes(implementation, draw):
    inputs = draw.whole(2, 4)
    model, batches = make_model(draw, inputs), make_batches(draw, inputs, 1)
    settings = {"lr_min": 1.0, "lr_max": 1000.0, "num_steps": 10}
    return sweep(implementation, model, F.mse_loss, batches, **settings)


@lr_range_test.case
def a_loss_that_creeps_up_from_its_smallest(implementation, draw):
    # At these rates nothing moves, so the batches alone say how large the losses are.
    model, loss = make_model(draw, 2), draw.number(1.0, 3.0)
    x = draw.normal(3, 2, dtype=torch.float64)
    start = model(x).detach()
    sizes = [loss * share for share in (1.0, 0.2, 0.35, 0.5, 0.3, 0.7, 0.95, 2.3)]
    batches = [(x, start + size**0.5) for size in sizes]
    settings = {"lr_min": 1e-9, "lr_max": 1e-8, "num_steps": 8, "diverge_factor": 2.0}
    return sweep(implementation, model, F.mse_loss, batches, **settings)


@lr_range_test.case
def a_loss_exactly_at_the_limit(implementation, draw):
    model, batches, height = make_model(draw, 2), make_batches(draw, 2, 1), draw.number(1.0, 3.0)
    settings = {"lr_min": 0.01, "lr_max": 0.1, "num_steps": 3, "diverge_factor": 1.0}

    def always_the_same(output, target):
        return height + 0 * output.sum()

    return sweep(implementation, model, always_the_same, batches, **settings)


@lr_range_test.case
def a_negative_loss(implementation, draw):
    # The first one exceeds diverge_factor times itself.
    model, batches, depth = make_model(draw, 2), make_batches(draw, 2, 1), draw.number(1.0, 3.0)

    def below_zero(output, target):
        return 0 * output.sum() - depth

    return sweep(implementation, model, below_zero, batches, num_steps=3)


@lr_range_test.case
def a_loss_that_is_nan_or_infinite(implementation, draw):
    inputs = draw.whole(2, 4)
    model, batches = make_model(draw, inputs), make_batches(draw, inputs, 3)
    batches[1][1][0] = float("nan")
    infinite = make_batches(draw, inputs, 2)
    infinite[0][1][0] = float("inf")
    settings = {"lr_min": 1e-3, "lr_max": 1e-2, "num_steps": 4}
    return [sweep(implementation, model, F.mse_loss, given, **settings)
            for given in (batches, infinite)]  # fmt: skip


@lr_range_test.case
def batch_norm_that_starts_in_eval_mode(implementation, draw):
    model, batches = make_model(draw, 2, norm=True).eval(), make_batches(draw, 2, 2)
    settings = {"lr_min": 0.01, "lr_max": 0.1, "num_steps": 2, "diverge_factor": 1e9}
    return sweep(implementation, model, F.mse_loss, batches, **settings)


@lr_range_test.case
def frozen_weights_and_gradients_left_from_before(implementation, draw):
    inputs = draw.whole(2, 4)
    model, batches = make_model(draw, inputs), make_batches(draw, inputs, 2)
    model[0].weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = 5 * draw.normal(*parameter.shape, dtype=torch.float64)
    settings = {"lr_min": 0.05, "lr_max": 0.1, "num_steps": 2, "diverge_factor": 1e9}
    return sweep(implementation, model, F.mse_loss, batches, **settings)


class Offset(nn.Module):
    """Adds a running mean of its inputs, which is a buffer that no state_dict contains."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(1, dtype=torch.float64), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.5).add_(0.5 * x.mean().detach())
        return x[:, :1] * self.weight + self.mean


@lr_range_test.case
def a_buffer_outside_the_state_dict(implementation, draw):
    model, batches = Offset().to(draw.device), make_batches(draw, 2, 2)
    settings = {"lr_min": 0.01, "lr_max": 0.1, "num_steps": 2, "diverge_factor": 1e9}
    return sweep(implementation, model, F.mse_loss, batches, **settings)


def probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, *, rate=None,
          batch=None, stop=None, clear=True, train=True, momentum=0.0, late=False,
          keep=()):  # fmt: skip
    """A sweep of which a part can be exchanged.

    rate(k), batch(k) and stop(losses) replace the usual ones; late records the loss after the
    update; keep names what is not put back: parameters, buffers, unsaved, gradients, mode.
    """
    mode = model.training
    saved = [*model.parameters()] * ("parameters" not in keep)
    if "buffers" not in keep:
        persistent = model.state_dict(keep_vars=True)
        saved += [
            buffer
            for name, buffer in model.named_buffers()
            if "unsaved" not in keep or name in persistent
        ]
    start = [tensor.detach().clone() for tensor in saved]
    params = [p for p in model.parameters() if p.requires_grad]
    velocities = [0.0] * len(params)
    if clear in (True, "once"):
        model.zero_grad()
    if train:
        model.train()
    lrs, losses = [], []
    for k in range(num_steps):
        usual = lr_min * (lr_max / lr_min) ** (k / (num_steps - 1))
        lrs.append(rate(k) if rate else usual)
        which = batch(k) if batch else k % len(batches)
        if which is None:
            lrs.pop()
            break
        x, y = batches[which]
        loss = loss_fn(model(x), y)
        if clear is True:
            model.zero_grad()
        if not late:
            losses.append(loss.item())
            if stopped(losses, diverge_factor, stop):
                break
        loss.backward()
        for i, p in enumerate(params):
            velocities[i] = momentum * velocities[i] + p.grad
            p.data -= lrs[-1] * velocities[i]
        if clear == "after":
            model.zero_grad()
        if late:
            losses.append(loss_fn(model(x), y).item())
            if stopped(losses, diverge_factor, stop):
                break
    for tensor, value in zip(saved, start, strict=True):
        tensor.data.copy_(value)
    if "gradients" not in keep:
        model.zero_grad()
    if "mode" not in keep:
        model.train(mode)
    return lrs, losses


def stopped(losses, diverge_factor, stop):
    """Whether to stop, by the contract or by another rule."""
    if stop:
        return stop(losses)
    return not math.isfinite(losses[-1]) or losses[-1] > diverge_factor * min(losses)


@lr_range_test.misconception(
    "Your rates are spaced evenly. Nearly all of them then lie within one factor of ten of the "
    "maximum; rates matter by ratio, so each is the same factor above the one before."
)
def linear_spacing(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def rate(k):
        return lr_min + (lr_max - lr_min) * k / (num_steps - 1)

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, rate=rate)


@lr_range_test.misconception(
    "Your last rate is not lr_max: num_steps rates have num_steps - 1 gaps between them."
)
def never_reaches_the_largest_rate(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def rate(k):
        return lr_min * (lr_max / lr_min) ** (k / num_steps)

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, rate=rate)


@lr_range_test.misconception(
    "The model is left as the sweep made it. Its last steps ran at absurd rates; training would "
    "start from a wreck. Put back parameters, buffers, gradients and mode."
)
def model_left_trained(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    keep = ("parameters", "buffers", "gradients", "mode")
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, keep=keep)


@lr_range_test.misconception(
    "You put a snapshot back and nothing changed. state_dict() returns the live tensors, not "
    "copies: updates in place change the snapshot too. Clone the values."
)
def snapshot_shares_memory(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    keep = ("parameters", "buffers")
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, keep=keep)


@lr_range_test.misconception(
    "The parameters are back, the buffers are not: in train mode every forward pass moves the "
    "running statistics."
)
def buffers_not_restored(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    keep = ("buffers",)
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, keep=keep)


@lr_range_test.misconception(
    "You restored the state_dict. Buffers registered with persistent=False are not in it, and they "
    "change too. Go through the buffers themselves."
)
def state_dict_only(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    keep = ("unsaved",)
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, keep=keep)


@lr_range_test.misconception(
    "The gradients of the last steps are still in .grad. Whoever calls backward next adds to them."
)
def gradients_left_behind(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    keep = ("gradients",)
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, keep=keep)


@lr_range_test.misconception(
    "A model that came in eval mode goes out in train mode. Put the flag back."
)
def mode_not_restored(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    keep = ("mode",)
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, keep=keep)


@lr_range_test.misconception(
    "You sweep in the mode you find. In eval mode batch norm uses its running statistics, and the "
    "losses are not those of training."
)
def mode_left_alone(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, train=False)


@lr_range_test.misconception(
    "The gradients are never cleared. Each step adds to the last, so that the sweep measures "
    "momentum 1.0, not the rate."
)
def gradients_never_cleared(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, clear="never")


@lr_range_test.misconception(
    "You clear the gradients once, before the sweep. From the second step on they pile up, and the "
    "sweep measures momentum 1.0."
)
def gradients_cleared_once(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, clear="once")


@lr_range_test.misconception(
    "You clear the gradients after each step, so the first step still adds to what was in .grad "
    "before the sweep. Clear where it holds for the first step too."
)
def gradients_cleared_after_the_step(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, clear="after")


@lr_range_test.misconception(
    "Your sweep has momentum. Then each loss depends on the rates of many steps before; use plain "
    "SGD."
)
def sweeps_with_momentum(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, momentum=0.9)


@lr_range_test.misconception(
    "You run on after divergence. Points after it only stretch the plot, and may be nan."
)
def runs_on_after_divergence(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def stop(losses):
        return False

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, stop=stop)


@lr_range_test.misconception(
    "A loss of nan does not stop you: every comparison with nan is false. Ask whether the loss is "
    "finite."
)
def nan_does_not_stop_it(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def stop(losses):
        finite = [loss for loss in losses if loss == loss]
        return bool(finite) and losses[-1] > diverge_factor * min(finite)

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, stop=stop)


@lr_range_test.misconception(
    "You stop at a loss that only reaches the limit. The sweep ends when a loss exceeds it, so the "
    "comparison is >, not >=."
)
def stops_at_the_limit(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def stop(losses):
        return not math.isfinite(losses[-1]) or losses[-1] >= diverge_factor * min(losses)

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, stop=stop)


@lr_range_test.misconception(
    "You compare each loss with the first. The loss has fallen by then; what counts is the "
    "smallest so far."
)
def compares_with_the_first_loss(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def stop(losses):
        return not math.isfinite(losses[-1]) or losses[-1] > diverge_factor * losses[0]

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, stop=stop)


@lr_range_test.misconception(
    "You compare each loss with the one before. A loss that climbs step by step never trips that; "
    "what counts is the smallest so far."
)
def compares_with_the_loss_before(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def stop(losses):
        before = losses[-2] if len(losses) > 1 else math.inf
        return not math.isfinite(losses[-1]) or losses[-1] > diverge_factor * before

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, stop=stop)


@lr_range_test.misconception(
    "You compare each loss with the smallest of those before it. The loss itself belongs to them: "
    "for a negative one that makes a difference, since it is larger than its own multiple."
)
def smallest_loss_without_this_one(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def stop(losses):
        best = min(losses[:-1], default=math.inf)
        return not math.isfinite(losses[-1]) or losses[-1] > diverge_factor * best

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, stop=stop)


@lr_range_test.misconception(
    "Your limit is always four times the smallest loss. The caller chooses the factor; four is "
    "only what it is when nothing else is said."
)
def factor_of_four_always(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, 4.0)


@lr_range_test.misconception(
    "The loss at which you stop is missing from the lists. Record it first: it shows where the "
    "edge is."
)
def last_loss_not_recorded(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    lrs, losses = lr_range_test.reference(
        model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor
    )
    if stopped(losses, diverge_factor, None):
        return lrs[:-1], losses[:-1]
    return lrs, losses


@lr_range_test.misconception(
    "You record the loss after the update. The point at a rate is the loss that was there when the "
    "step with that rate began."
)
def loss_after_the_update(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, late=True)


@lr_range_test.misconception(
    "Your sweep ends with the batches. When they run out, start again with the first."
)
def ends_with_the_batches(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def batch(k):
        return k if k < len(batches) else None

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, batch=batch)


@lr_range_test.misconception(
    "You use the first batch all the time. Step k takes batch k, and starts again when they run "
    "out."
)
def one_batch_for_all_steps(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    def batch(k):
        return 0

    return probe(model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor, batch=batch)


@lr_range_test.misconception(
    "The losses you list are tensors. Each keeps its graph alive; turn them into Python floats."
)
def losses_stay_tensors(
    model, loss_fn, batches, lr_min=1e-6, lr_max=10.0, num_steps=100, diverge_factor=4.0
):
    lrs, losses = lr_range_test.reference(
        model, loss_fn, batches, lr_min, lr_max, num_steps, diverge_factor
    )
    return lrs, [batches[0][1].new_tensor(loss) for loss in losses]


lr_range_test.hints(
    "What has to be as before at the end? List it, and save values, not references.",
    "Buffers change in train mode. Which of them does a state_dict not contain?",
    "There are two ways out of the loop, the last step and the early stop. Restore on both.",
)
