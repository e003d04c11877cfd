"""A bug hunt: one step in mixed precision, every call in its place."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("amp.step_order", "amp.autocast", "amp.scaling"))
def amp_train_step(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    dtype: torch.dtype,
    max_norm: float,
) -> tuple[float, float]:
    """One training step in mixed precision, on the device of x.

    Forward and loss run under autocast with `dtype`, for the device type of x. Backward runs
    outside, on the scaled loss. The total 2-norm of the gradient, in units of the unscaled loss, is
    limited to max_norm. Whether the step is taken is for the scaler to decide: in each call its
    step is called once, whatever the norm is, and then its update once.

    Model and loss get x and y as they are. Weights stay float32. Gradients that are there before
    the call play no role: a parameter that this batch does not use has none, and stays as it is.

    An overflow raises nothing. A scaler that is switched off then steps all the same; whether the
    weights become inf or NaN is free, and so is what .grad holds after any call.

    Return (unscaled loss, unscaled norm before clipping) as Python floats; the norm may be inf or
    NaN. scaler is a torch.amp.GradScaler for the device type of x, enabled or not; optimizer holds
    all parameters of model, in one group or several.
    """
    optimizer.zero_grad()
    with torch.autocast(x.device.type, dtype=dtype):
        loss = loss_fn(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss.item(), norm.item()


class NotingScaler(torch.amp.GradScaler):
    """A scaler that notes which calls decide about the step."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.calls = []

    def step(self, *args, **settings):
        self.calls.append("step")
        return super().step(*args, **settings)

    def update(self, *args, **settings):
        self.calls.append("update")
        return super().update(*args, **settings)


class Task:
    """A small model, a batch, an optimizer and a scaler; `step` runs the answer on them."""

    def __init__(self, draw, *, dtype=torch.bfloat16, scale=1024.0, enabled=True, device=None,
                 max_norm=1e3, **settings):  # fmt: skip
        device = device or draw.device
        inputs, hidden, batch = draw.sizes(3)
        self.model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.model.to(device)
        self.x, self.y = draw.normal(batch, inputs).to(device), draw.normal(batch, 1).to(device)
        self.dtype, self.max_norm, self.kind = dtype, max_norm, device.type
        groups = [{"params": layer.parameters()} for layer in (self.model[0], self.model[2])]
        self.optimizer = torch.optim.SGD(groups, **{"lr": 0.5} | settings)
        self.scaler = NotingScaler(
            device.type, init_scale=scale, growth_interval=2, enabled=enabled
        )
        self.loss_fn = F.mse_loss

    def step(self, implementation):
        """What the answer returns."""
        return attempt(
            implementation, self.model, self.x, self.y, self.loss_fn, self.optimizer, self.scaler,
            self.dtype, self.max_norm,
        )  # fmt: skip

    def state(self):
        """Scale, growth tracker, and parameters as numbers; gradients are free."""
        tracker = self.scaler.state_dict().get("_growth_tracker")
        weights = [parameter.detach().clone() for parameter in self.model.parameters()]
        return {"scale": self.scaler.get_scale(), "growth tracker": tracker, "weights": weights}

    def calls(self):
        """What was called of the scaler, in words."""
        return {"calls of the scaler": " ".join(self.scaler.calls)}

    def run(self, implementation, steps=1):
        """Results and final state of some steps."""
        results = [self.step(implementation) for _ in range(steps)]
        self.model.zero_grad()
        return {"results": results} | self.state()


@amp_train_step.case(tolerance=(2e-2, 2e-3))
def bfloat16_with_a_limit_that_binds(implementation, draw):
    return Task(draw, max_norm=0.02, lr=20.0).run(implementation, 2)


@amp_train_step.case(tolerance=(5e-3, 5e-4))
def float16_with_a_limit_that_does_not_bind(implementation, draw):
    task = Task(draw, dtype=torch.float16)
    return task.run(implementation, 2) | task.calls()


@amp_train_step.case(tolerance=(5e-3, 5e-4))
def float16_with_a_limit_between_both_units(implementation, draw):
    return Task(draw, dtype=torch.float16, max_norm=50.0).run(implementation)


@amp_train_step.case(tolerance=(5e-3, 5e-4))
def a_scale_that_overflows(implementation, draw):
    task = Task(draw, dtype=torch.float16, scale=2.0**40, momentum=0.9)
    task.y = task.y + 100  # so that the gradients surely leave float16
    return task.run(implementation, 3) | task.calls()


@amp_train_step.case(tolerance=(5e-3, 5e-4))
def a_loss_that_overflows(implementation, draw):
    seen = []
    for enabled in (True, False):
        task = Task(draw, dtype=torch.float16, enabled=enabled)
        task.y = task.y + 1e30
        found = task.run(implementation) | task.calls()
        if not enabled:  # the step is taken, and what it makes of the weights is free
            weights = found.pop("weights")
            found["weights are finite"] = all(weight.isfinite().all().item() for weight in weights)
            for parameter in task.model.parameters():
                parameter.data.zero_()
        seen.append(found)
    return dict(zip(("scaler on", "scaler off"), seen, strict=True))


@amp_train_step.case(tolerance=(2e-2, 2e-3))
def gradients_left_from_before(implementation, draw):
    task = Task(draw, scale=4.0, max_norm=2.0)
    unused = nn.Parameter(1 + draw.uniform(3))
    task.model.register_parameter("unused", unused)
    task.optimizer.add_param_group({"params": [unused], "weight_decay": 0.5})
    for parameter in task.model.parameters():
        parameter.grad = 40 * draw.normal(*parameter.shape)
    found = task.run(implementation, 2)
    return found | {"a parameter that is not used": unused}


@amp_train_step.case(tolerance=(2e-2, 2e-3))
def a_scaler_that_is_switched_off(implementation, draw):
    task = Task(draw, enabled=False, max_norm=0.05, lr=5.0)
    seen = []
    task.model[1].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    return task.run(implementation) | {"dtypes in the model": seen}


@amp_train_step.case(tolerance=(2e-2, 2e-3))
def a_loss_with_a_matrix_product(implementation, draw):
    task = Task(draw)
    matrix, seen = draw.normal(1, 4), []

    def loss_fn(out, y):
        mixed = out @ matrix
        seen.append([out.dtype, mixed.dtype, torch.is_autocast_enabled(task.kind)])
        return ((mixed - y) ** 2).mean()

    task.loss_fn = loss_fn
    return task.run(implementation) | {"dtypes in the loss": seen}


@amp_train_step.case(tolerance=(5e-3, 5e-4))
def what_runs_under_autocast(implementation, draw):
    task = Task(draw, dtype=torch.float16)
    seen = []
    task.model.register_forward_pre_hook(lambda module, args: seen.append(["x", args[0].dtype]))

    def note_backward(grad):
        seen.append(["backward", grad.dtype, torch.is_autocast_enabled(task.kind)])

    def loss_fn(out, y):
        seen.append(["loss", out.dtype, y.dtype, torch.is_autocast_enabled(task.kind)])
        if out.requires_grad:
            out.register_hook(note_backward)
        return F.mse_loss(out, y)

    task.loss_fn = loss_fn
    return task.run(implementation) | {"what ran, and its dtypes": seen}


@amp_train_step.case(tolerance=(2e-2, 2e-3))
def on_the_CPU_in_any_case(implementation, draw):
    task = Task(draw, device=torch.device("cpu"))
    seen = []
    task.model[1].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    return task.run(implementation) | {"dtypes in the model": seen}


ORDER = "clear forward scale unscale clip step update"


def train(model, x, y, loss_fn, optimizer, scaler, dtype, max_norm, *, order=ORDER, kind=None,
          inside="forward loss", number=float):  # fmt: skip
    """The reference as a list of words, of which some can be left out or moved.

    Words: clear, forward, scale or backward (which takes the loss as it is), unscale, clip, step or
    plain (optimizer.step), update. inside: which of forward, loss, backward run under autocast.
    """

    def autocast(what):
        return torch.autocast(kind or x.device.type, dtype=dtype, enabled=what in inside)

    norm = None
    for word in order.split():
        if word == "clear":
            optimizer.zero_grad()
        elif word == "forward":
            with autocast("forward"):
                out = model(x)
                if "loss" in inside:
                    loss = loss_fn(out, y)
            if "loss" not in inside:
                loss = loss_fn(out, y)
        elif word in ("scale", "backward"):
            with autocast("backward"):
                (scaler.scale(loss) if word == "scale" else loss).backward()
        elif word == "unscale":
            scaler.unscale_(optimizer)
        elif word == "clip":
            norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        elif word == "step":
            scaler.step(optimizer)
        elif word == "plain":
            optimizer.step()
        elif word == "update":
            scaler.update()
    return number(loss.detach()), number(norm)


@amp_train_step.misconception(
    "You cast the batch to 16 bits yourself. What autocast would have computed in float32 gets "
    "rounded inputs, and class indices become nonsense; autocast makes the copies it needs."
)
def casts_the_batch(model, x, *rest):
    return train(model, x.to(rest[-2]), *rest)


@amp_train_step.misconception(
    "The gradients of the first parameter group alone are limited. The total norm is that of all "
    "parameters: an optimizer can have several groups."
)
def clips_the_first_group(*args):
    optimizer, scaler, max_norm = args[4], args[5], args[-1]
    loss, _ = train(*args[:-1], math.inf, order="clear forward scale unscale clip")
    norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss, norm.item()


@amp_train_step.misconception(
    "Your code raises where a parameter has no gradient. Frozen parameters, and those that the "
    "batch does not use, have None there; pass over them."
)
def every_parameter_must_have_a_gradient(*args):
    loss, norm = train(*args[:-1], math.inf, order="clear forward scale unscale clip")
    for parameter in args[0].parameters():
        parameter.grad.mul_(min(1.0, args[-1] / (norm + 1e-6)))
    args[5].step(args[4])
    args[5].update()
    return loss, norm


@amp_train_step.misconception(
    "Old gradients are filled with zeros and stay. A parameter that this batch does not use should "
    "have none: with zeros the optimizer takes a step on it, and weight decay or momentum move it."
)
def old_gradients_become_zeros(*args):
    args[4].zero_grad(set_to_none=False)
    return train(*args, order="forward scale unscale clip step update")


@amp_train_step.misconception(
    "You clip scaled gradients. They are as many times too long as the scale says, so nearly every "
    "one is cut down to max_norm, and unscaling then makes next to nothing of it. Unscale first."
)
def clips_scaled_gradients(*args):
    return train(*args, order="clear forward scale clip step update")


@amp_train_step.misconception(
    "You call optimizer.step() yourself, so the scaler never gets to skip an overflowed step, and "
    "inf and NaN go into the weights."
)
def optimizer_step_directly(*args):
    return train(*args, order="clear forward scale unscale clip plain update")


@amp_train_step.misconception(
    "The scaler is never used: a plain backward, a plain step. In float16 small gradients are "
    "flushed to zero, and nothing watches for overflow."
)
def scaler_never_used(*args):
    return train(*args, order="clear forward backward clip plain")


@amp_train_step.misconception(
    "update is missing. The scale never adapts, and the next unscale_ raises because the iteration "
    "was never ended."
)
def update_forgotten(*args):
    return train(*args, order="clear forward scale unscale clip step")


@amp_train_step.misconception(
    "Nothing is cast in your step, everything ran in float32. Either autocast is missing, or it is "
    'entered for another device type: on tensors of the CPU, autocast for "cuda" only warns. Take '
    "the device type from the input."
)
def autocast_hard_coded_for_cuda(*args):
    return train(*args, kind="cuda")


@amp_train_step.misconception(
    "The loss is computed outside autocast. One with a matrix product then meets a 16-bit "
    "activation, and it raises or runs in another dtype; forward and loss belong together."
)
def loss_outside_autocast(*args):
    return train(*args, inside="forward")


@amp_train_step.misconception(
    "You convert the output to float32 and compute the loss outside autocast. A loss with a matrix "
    "product then runs in float32 instead of `dtype`; forward and loss belong together."
)
def loss_outside_in_float32(model, x, y, loss_fn, *rest):
    return train(model, x, y, lambda out, y: loss_fn(out.float(), y), *rest, inside="forward")


@amp_train_step.misconception(
    "Your autocast is on only where the scaler is. bfloat16 runs with a scaler that is switched "
    "off, and then nothing is cast; the two have nothing to do with each other."
)
def autocast_with_the_scaler_only(*args):
    return train(*args, inside="forward loss" if args[5].is_enabled() else "")


@amp_train_step.misconception(
    "Backward starts from the loss as it is. The gradients are then divided by a scale that they "
    "never had, and the step is that many times too small."
)
def backward_of_the_unscaled_loss(*args):
    return train(*args, order="clear forward backward unscale clip step update")


@amp_train_step.misconception(
    "Backward runs under autocast. Its operations take the dtypes of their forward anyway; the "
    "context belongs around forward and loss only."
)
def backward_under_autocast(*args):
    return train(*args, inside="forward loss backward")


@amp_train_step.misconception(
    "What was in .grad before the call is added to this batch, and it was never scaled the same "
    "way. Clear the gradients before backward, in every call."
)
def gradients_never_cleared(*args):
    return train(*args, order="forward scale unscale clip step update")


@amp_train_step.misconception(
    "You clear the gradients after the step. What was in .grad before the call is still in the "
    "first one; clear before backward."
)
def cleared_after_the_step(*args):
    try:
        return train(*args, order="forward scale unscale clip step update")
    finally:
        args[4].zero_grad()


@amp_train_step.misconception(
    "The step is taken with the whole gradient. Either you clip after the step, or you only "
    "measure; limit the gradient between unscale_ and step."
)
def clips_after_the_step(*args):
    return train(*args, order="clear forward scale unscale step clip update")


@amp_train_step.misconception(
    "You limit each value of the gradient. That changes its direction; the task limits the norm of "
    "the whole, which keeps it."
)
def clips_each_value(*args):
    model, optimizer, scaler, max_norm = args[0], args[4], args[5], args[-1]
    loss, norm = train(*args[:-1], math.inf, order="clear forward scale unscale clip")
    nn.utils.clip_grad_value_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss, norm


@amp_train_step.misconception(
    "Autocast gets no dtype and takes its own default, bfloat16 on the CPU and float16 on CUDA. "
    "Pass the dtype that the caller asked for."
)
def dtype_left_to_autocast(*args):
    default = torch.get_autocast_dtype(args[1].device.type)
    return train(*args[:-2], default, args[-1])


@amp_train_step.misconception(
    "The norm that you return belongs to the gradient after clipping. It can never exceed "
    "max_norm, so it cannot warn; clip_grad_norm_ returns the one before."
)
def norm_after_clipping(*args):
    loss, norm = amp_train_step.reference(*args)
    return loss, min(norm, args[-1])


@amp_train_step.misconception(
    "You return the scaled loss. In a log it jumps each time the scale changes; return the loss "
    "itself."
)
def returns_the_scaled_loss(*args):
    scale = args[5].get_scale()
    loss, norm = amp_train_step.reference(*args)
    return scale * loss, norm


@amp_train_step.misconception(
    "You return tensors. A loss kept as a tensor keeps its graph alive; turn loss and norm into "
    "Python floats."
)
def returns_tensors(*args):
    return train(*args, number=lambda value: value)


@amp_train_step.misconception(
    "An overflow raises in your code. It is an ordinary event: the scaler skips the step and "
    "lowers the scale. Let it."
)
def overflow_raises(*args):
    model, optimizer, scaler = args[0], args[4], args[5]
    loss, norm = train(*args, order="clear forward scale unscale clip")
    if not math.isfinite(norm):
        raise RuntimeError("the norm of the gradient is not finite")
    scaler.step(optimizer)
    scaler.update()
    assert model is args[0]
    return loss, norm


@amp_train_step.misconception(
    "When the norm is not finite you return early. The scaler is then never told and its scale "
    "never falls; it skips such a step by itself."
)
def leaves_early_on_overflow(*args):
    optimizer, scaler = args[4], args[5]
    loss, norm = train(*args, order="clear forward scale unscale clip")
    if math.isfinite(norm):
        scaler.step(optimizer)
        scaler.update()
    return loss, norm


@amp_train_step.misconception(
    "When the norm is not finite you do not call scaler.step. Whether to skip is for the scaler to "
    "decide: it looks at the gradients, not at their norm, and switched off it skips nothing."
)
def skips_by_hand(*args):
    optimizer, scaler = args[4], args[5]
    loss, norm = train(*args, order="clear forward scale unscale clip")
    if math.isfinite(norm):
        scaler.step(optimizer)
    scaler.update()
    return loss, norm


@amp_train_step.misconception(
    "You look at the norm and call optimizer.step() yourself. Whether to skip is for the scaler to "
    "decide: it looks at the gradients, not at their norm. Call its step."
)
def steps_by_hand_if_finite(*args):
    optimizer, scaler = args[4], args[5]
    loss, norm = train(*args, order="clear forward scale unscale clip")
    if math.isfinite(norm):
        optimizer.step()
    scaler.update()
    return loss, norm


@amp_train_step.misconception(
    "When the loss is not finite you leave before backward. The scaler is then never told, and its "
    "scale never falls; go on, it skips such a step by itself."
)
def leaves_early_on_a_bad_loss(*args):
    found = []

    def loss_fn(out, y):
        found.append(args[3](out, y))
        if not math.isfinite(found[0]):
            raise ArithmeticError
        return found[0]

    try:
        return amp_train_step.reference(*args[:3], loss_fn, *args[4:])
    except ArithmeticError:
        return found[0].item(), math.nan


@amp_train_step.misconception(
    "On overflow you skip the step and update the scaler with a lower scale by hand. It knows how "
    "far to back off, and it counts; let step and update do it."
)
def backs_off_by_hand(*args):
    optimizer, scaler = args[4], args[5]
    loss, norm = train(*args, order="clear forward scale unscale clip")
    if math.isfinite(norm):
        scaler.step(optimizer)
        scaler.update()
    else:
        scaler.update(scaler.get_scale() / 4)
    return loss, norm


@amp_train_step.broken
def broken_amp_train_step(model, x, y, loss_fn, optimizer, scaler, dtype, max_norm):
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=dtype):
        out = model(x)
    loss = loss_fn(out, y)
    scaler.scale(loss).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss.item(), norm.item()


amp_train_step.hints(
    "Write the six calls in the order in which they have to run, and beside each what it reads and "
    "writes.",
    "In which unit is max_norm, and in which unit are the gradients at the moment of clipping?",
    "Which call looks at inf? And which part of the work is under autocast, on which device?",
)
