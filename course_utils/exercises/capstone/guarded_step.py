"""One step that cannot poison the run."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("cap.step",))
def guarded_step(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    amp_dtype: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> dict:
    """One training step that is right with and without a scaler and survives a bad batch.

    Training mode, which is left on; gradients from before the call play no role. The forward runs
    under autocast to amp_dtype, for the device type of x, if amp_dtype is given, else without
    autocast. The loss is the mean cross-entropy of the logits, in float32. Backward (of the scaled
    loss if a scaler is given, then unscaled), and the total 2-norm of the gradient is limited to
    max_norm.

    Without a scaler the optimizer steps only if the norm is finite. With one, scaler.step and
    scaler.update, each called once, decide. If the norm is not finite, the model's buffers (the
    statistics of BatchNorm, its counter) are put back to their values before the step, and nothing
    is raised.

    Return {"loss": float, not scaled, "grad_norm": float, unscaled and before clipping, "skipped":
    bool, True if that norm is not finite}. optimizer holds all parameters of model; a scaler is
    enabled and made for the device type of x. What .grad holds afterwards is free.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    model.train()
    optimizer.zero_grad()
    with torch.autocast(x.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        logits = model(x)
    loss = F.cross_entropy(logits.float(), y)
    if scaler is None:
        loss.backward()
    else:
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    skipped = not torch.isfinite(norm).item()
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    elif not skipped:
        optimizer.step()
    if skipped:
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return {"loss": loss.item(), "grad_norm": norm.item(), "skipped": skipped}


class Noting(nn.Module):
    """Notes how the model is called: mode, dtype of the logits, autocast."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.notes = kind, []

    def forward(self, x):
        mode = "training" if self.training else "evaluation"
        self.notes.append([mode, x.dtype, torch.is_autocast_enabled(self.kind)])
        return x


class Root(nn.Module):
    """Logits with a gradient that is infinite where the parameter is 0, while the loss is not."""

    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(classes))

    def forward(self, x):
        return x * self.weight.sqrt()


CLASSES = 3


class Task:
    """A small model, a batch, an optimizer and a scaler; `step` runs the answer on them."""

    def __init__(self, draw, *, norm=False, scale=None, amp_dtype=None, max_norm=1e3, adam=False,
                 lr=0.3):  # fmt: skip
        self.draw, self.kind = draw, draw.device.type
        features, self.rows = draw.sizes(2, low=4)
        self.noting = Noting(self.kind)
        layers = [nn.BatchNorm1d(features)] if norm else []
        self.model = nn.Sequential(*layers, nn.Linear(features, CLASSES), self.noting)
        self.model.to(draw.device)
        self.features, self.amp_dtype, self.max_norm = features, amp_dtype, max_norm
        self.set_optimizer(adam, lr)
        self.scaler = None
        if scale:
            self.scaler = torch.amp.GradScaler(self.kind, init_scale=scale, growth_interval=2)

    def set_optimizer(self, adam, lr):
        settings = {"lr": lr, "foreach": False}
        self.optimizer = (
            torch.optim.Adam(self.model.parameters(), **settings)
            if adam
            else torch.optim.SGD(self.model.parameters(), momentum=0.9, **settings)
        )

    def batch(self, size=1.0):
        x = size * self.draw.normal(self.rows, self.features)
        return x, self.draw.integers(0, CLASSES - 1, self.rows)

    def bad_batch(self):
        x, y = self.batch()
        x[self.draw.whole(0, self.rows - 1), 1] = math.nan
        return x, y

    def step(self, implementation, batch):
        """What the answer returns."""
        options = {} if self.amp_dtype is None else {"amp_dtype": self.amp_dtype}
        if self.scaler is not None:
            options["scaler"] = self.scaler
        return attempt(implementation, self.model, *batch, self.optimizer, self.max_norm, **options)

    def seen(self, results):
        """Results, and the state that they left; gradients are free."""
        self.model.zero_grad()
        seen = {
            "1. returned": results,
            "2. model": dict(self.model.state_dict()),
            "3. calls of the model": self.noting.notes,
            "4. mode": self.model.training,
        }
        return seen if self.scaler is None else seen | {"5. scale": self.scaler.get_scale()}

    def run(self, implementation, *batches):
        return self.seen([self.step(implementation, batch) for batch in batches])


@guarded_step.case
def two_plain_steps(implementation, draw):
    task = Task(draw)
    return task.run(implementation, task.batch(), task.batch())


@guarded_step.case
def gradients_larger_than_the_limit(implementation, draw):
    task = Task(draw, max_norm=draw.number(0.4, 0.6))
    return task.run(implementation, task.batch(30.0), task.batch(20.0))


@guarded_step.case
def gradients_left_from_before(implementation, draw):
    task = Task(draw)
    for parameter in task.model.parameters():
        parameter.grad = draw.normal(*parameter.shape)
    return task.run(implementation, task.batch())


@guarded_step.case
def a_model_in_evaluation_mode(implementation, draw):
    task = Task(draw, norm=True)
    task.model.eval()
    return task.run(implementation, task.batch(), task.batch())


@guarded_step.case
def bfloat16(implementation, draw):
    task = Task(draw, amp_dtype=torch.bfloat16, max_norm=1.0)
    return task.run(implementation, task.batch(9.0), task.batch(4.0))


@guarded_step.case
def a_NaN_among_the_inputs(implementation, draw):
    task = Task(draw, adam=True)
    return task.run(implementation, task.batch(), task.bad_batch(), task.batch())


@guarded_step.case
def a_NaN_in_a_model_with_BatchNorm(implementation, draw):
    task = Task(draw, norm=True)
    return task.run(implementation, task.batch(), task.bad_batch())


@guarded_step.case
def a_finite_loss_with_an_infinite_gradient(implementation, draw):
    task = Task(draw)
    task.model = nn.Sequential(Root(CLASSES), task.noting).to(draw.device)
    with torch.no_grad():
        task.model[0].weight[1] = 0.0
    task.features = CLASSES
    task.set_optimizer(False, 0.1)
    return task.run(implementation, task.batch())


@guarded_step.case
def a_scaler_and_a_limit_between_both_units(implementation, draw):
    task = Task(draw, scale=256.0, max_norm=30.0)
    return task.run(implementation, task.batch(), task.batch(), task.batch())


@guarded_step.case
def a_scaler_and_gradients_larger_than_the_limit(implementation, draw):
    task = Task(draw, scale=1024.0, max_norm=0.5)
    return task.run(implementation, task.batch(30.0))


@guarded_step.case
def a_scaler_and_a_bad_batch(implementation, draw):
    task = Task(draw, norm=True, scale=64.0)
    return task.run(implementation, task.batch(), task.bad_batch(), task.batch())


@guarded_step.case(tolerance=(5e-3, 5e-4))
def a_scale_that_overflows_float16(implementation, draw):
    task = Task(draw, norm=True, scale=2.0**20, amp_dtype=torch.float16)
    return task.run(implementation, task.batch(4.0))


def step(model, x, y, optimizer, max_norm, amp_dtype=None, scaler=None, *, train=True, clear=True,
         kind=None, enabled=None, loss_of=None, clip=None, unscale=True, late=False,
         finite=None, before="clone", restore=None, decide=None, scaled=True):  # fmt: skip
    """The reference in parts that can be exchanged."""
    state = model.state_dict() if before == "alias" else {}
    saved = [state[n] if state else b.clone() for n, b in model.named_buffers()]
    if train:
        model.train()
    if clear:
        optimizer.zero_grad()
    on = amp_dtype is not None if enabled is None else enabled
    with torch.autocast(kind or x.device.type, dtype=amp_dtype, enabled=on):
        logits = model(x)
    loss = (loss_of or loss_in_float32)(logits, y)
    used = scaler if scaled else None
    (loss if used is None else used.scale(loss)).backward()
    if used is not None and unscale:
        used.unscale_(optimizer)
    norm = (clip or nn.utils.clip_grad_norm_)(model.parameters(), math.inf if late else max_norm)
    skipped = not bool((finite or is_finite)(norm, loss))
    (decide or decide_by_the_rules)(model, optimizer, used, skipped)
    if late:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if skipped if restore is None else restore(skipped):
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), saved, strict=True):
                buffer.copy_(value)
    return {"loss": loss.item(), "grad_norm": norm.item(), "skipped": skipped}


def loss_in_float32(logits, y):
    return F.cross_entropy(logits.float(), y)


def is_finite(norm, loss):
    return norm.isfinite()


def decide_by_the_rules(model, optimizer, scaler, skipped):
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    elif not skipped:
        optimizer.step()


@guarded_step.misconception(
    "You clip scaled gradients. The norm is as many times too large as the scale says, and after "
    "the unscaling in scaler.step next to nothing is left of them."
)
def clips_scaled_gradients(*args, **options):
    return step(*args, **options, unscale=False)


@guarded_step.misconception(
    "You step whatever the norm is. One bad batch turns all weights and moments into NaN, and no "
    "later batch can repair that."
)
def steps_on_NaN(*args, **options):
    def decide(model, optimizer, scaler, skipped):
        decide_by_the_rules(model, optimizer, scaler, False)

    return step(*args, **options, decide=decide)


@guarded_step.misconception(
    "The step is taken with the whole gradient: you clip before backward, when there is nothing to "
    "clip yet, or after the step, or not at all."
)
def clips_before_backward(*args, **options):
    return step(*args, **options, late=True)


@guarded_step.misconception(
    "update is missing. The scale never falls after an overflow, and the next unscale_ raises "
    "because the iteration was never ended."
)
def no_update(*args, **options):
    def decide(model, optimizer, scaler, skipped):
        if scaler is not None:
            scaler.step(optimizer)
        elif not skipped:
            optimizer.step()

    return step(*args, **options, decide=decide)


@guarded_step.misconception(
    "The step was skipped, but the forward in training mode had already moved the statistics of "
    "BatchNorm to NaN. Every weight is finite, and every evaluation from now on is NaN. If you do "
    "put them back: copies have to be taken before the forward, since references move along."
)
def buffers_poisoned(*args, **options):
    return step(*args, **options, before="alias")


@guarded_step.misconception(
    "The statistics of BatchNorm are put back and its counter of batches is not. "
    "num_batches_tracked is a buffer too."
)
def counter_left_behind(model, x, y, *rest, **options):
    counters = [b for b in model.buffers() if not b.is_floating_point()]
    before = [counter.clone() for counter in counters]
    result = step(model, x, y, *rest, **options)
    for counter, value in zip(counters, before, strict=True):
        counter.copy_(value + 1)
    return result


@guarded_step.misconception(
    "The buffers are put back after every step. BatchNorm then never learns its statistics, and "
    "evaluation uses those of an untrained model. Only a skipped step needs it."
)
def buffers_always_put_back(*args, **options):
    return step(*args, **options, restore=lambda skipped: True)


@guarded_step.misconception(
    "The buffers are put back in one of the two ways only: where a scaler decides, a bad batch "
    "poisons the statistics of BatchNorm as well."
)
def buffers_forgotten_with_a_scaler(*args, **options):
    alone = options.get("scaler") is None
    return step(*args, **options, restore=lambda skipped: skipped and alone)


@guarded_step.misconception(
    "Gradients from before the call are added to those of this batch. Clear them before backward, "
    "in every call; clearing after the step is too late for the first."
)
def stale_gradients(*args, **options):
    try:
        return step(*args, **options, clear=False)
    finally:
        args[3].zero_grad()


@guarded_step.misconception(
    "Gradients are never cleared: each step goes in the direction of all batches so far."
)
def gradients_never_cleared(*args, **options):
    return step(*args, **options, clear=False)


@guarded_step.misconception(
    "The mode is left as it was. After an evaluation the model would train without dropout, and "
    "BatchNorm would not learn its statistics."
)
def mode_left_as_it_was(*args, **options):
    return step(*args, **options, train=False)


@guarded_step.misconception(
    "You look at the loss to decide. The loss can be finite while a gradient is not, such as that "
    "of a square root at 0; the norm of the gradient knows about both."
)
def looks_at_the_loss(*args, **options):
    return step(*args, **options, finite=lambda norm, loss: loss.isfinite())


@guarded_step.misconception(
    "You look for NaN alone. A norm can be infinite, and clipping then multiplies infinity by 0, "
    "which is NaN: ask whether it is finite."
)
def infinity_let_through(*args, **options):
    return step(*args, **options, finite=lambda norm, loss: ~norm.isnan())


@guarded_step.misconception(
    "You step and then put the weights back. The optimizer's moments have taken in the NaN, and "
    "the next good batch spoils all weights."
)
def weights_put_back_after_the_step(model, x, y, optimizer, *rest, **options):
    weights = [parameter.detach().clone() for parameter in model.parameters()]

    def decide(model, optimizer, scaler, skipped):
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        if skipped:
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), weights, strict=True):
                    parameter.copy_(value)

    return step(model, x, y, optimizer, *rest, **options, decide=decide)


@guarded_step.misconception(
    "You replace NaN in the gradients by 0, and then step. The moments of the optimizer move the "
    "weights all the same; and the norm that would have told of the bad batch looks healthy."
)
def NaN_replaced_by_zero(*args, **options):
    def clip(parameters, max_norm):
        parameters = list(parameters)
        for parameter in parameters:
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    return step(*args, **options, clip=clip)


@guarded_step.misconception(
    "A bad batch raises an error. One row would end the run; skip the step and report it."
)
def raises_on_a_bad_batch(*args, **options):
    def clip(parameters, max_norm):
        return nn.utils.clip_grad_norm_(parameters, max_norm, error_if_nonfinite=True)

    return step(*args, **options, clip=clip)


@guarded_step.misconception(
    "With a scaler you leave both of its calls out when the norm is not finite. update is the one "
    "that lowers the scale after an overflow; without it the next batch overflows as well."
)
def scaler_not_asked_on_a_bad_batch(*args, **options):
    def decide(model, optimizer, scaler, skipped):
        if not skipped:
            decide_by_the_rules(model, optimizer, scaler, skipped)

    return step(*args, **options, decide=decide)


@guarded_step.misconception(
    "The optimizer steps by itself although there is a scaler. Then nobody skips the step of an "
    "overflow, and nobody adapts the scale."
)
def optimizer_step_beside_the_scaler(*args, **options):
    def decide(model, optimizer, scaler, skipped):
        optimizer.step()
        if scaler is not None:
            scaler.update()

    return step(*args, **options, decide=decide)


@guarded_step.misconception(
    "The scaler is never used: a plain backward and a plain step. In float16 small gradients are "
    "flushed to zero, and the scale never adapts."
)
def scaler_ignored(*args, **options):
    return step(*args, **options, scaled=False)


@guarded_step.misconception(
    "Nothing is cast, although amp_dtype was given: autocast is missing, or entered for another "
    "device type than that of x."
)
def no_autocast(*args, **options):
    return step(*args, **options, enabled=False)


@guarded_step.misconception(
    "Autocast is on although no amp_dtype was given, and casts to its own default. None means that "
    "the step runs in full precision."
)
def autocast_in_any_case(*args, **options):
    return step(*args, **options, enabled=True)


@guarded_step.misconception(
    "The loss is computed from logits of 16 bits. Its softmax and logarithm lose most of their "
    "digits there; convert the logits to float32 first."
)
def loss_in_half_precision(*args, **options):
    def of_16_bits(logits, y):
        log_p = logits.log_softmax(dim=1)
        return -log_p[torch.arange(len(y), device=y.device), y].mean()

    return step(*args, **options, loss_of=of_16_bits)


@guarded_step.misconception(
    "The loss is summed over the batch. Its gradient then grows with the batch size; the task asks "
    "for the mean."
)
def summed_loss(*args, **options):
    def summed(logits, y):
        return F.cross_entropy(logits.float(), y, reduction="sum")

    return step(*args, **options, loss_of=summed)


@guarded_step.misconception(
    "You limit each value of the gradient. That changes its direction; limiting the norm keeps it."
)
def clips_each_value(*args, **options):
    def clip(parameters, max_norm):
        parameters = list(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, math.inf)
        nn.utils.clip_grad_value_(parameters, max_norm)
        return norm

    return step(*args, **options, clip=clip)


@guarded_step.misconception(
    "Each parameter is clipped by a norm of its own. The global norm is that of all gradients "
    "together, so that their proportions stay."
)
def clips_each_parameter(*args, **options):
    def clip(parameters, max_norm):
        parameters = list(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, math.inf)
        for parameter in parameters:
            nn.utils.clip_grad_norm_([parameter], max_norm)
        return norm

    return step(*args, **options, clip=clip)


@guarded_step.misconception(
    "grad_norm is that after clipping. It can never exceed max_norm, so that a log of it shows no "
    "trouble; clip_grad_norm_ returns the one before."
)
def norm_after_clipping(*args, **options):
    result = guarded_step.reference(*args, **options)
    return result | {"grad_norm": min(result["grad_norm"], args[4])}


@guarded_step.misconception(
    "You return the scaled loss. In a log it jumps each time the scale changes."
)
def scaled_loss_returned(*args, **options):
    scaler = options.get("scaler")
    scale = 1.0 if scaler is None else scaler.get_scale()
    result = guarded_step.reference(*args, **options)
    return result | {"loss": scale * result["loss"]}


@guarded_step.misconception(
    "You return tensors. A loss kept as a tensor keeps its whole graph alive; return a Python "
    "float, and a bool."
)
def returns_tensors(*args, **options):
    result = guarded_step.reference(*args, **options)
    return {name: torch.tensor(value) for name, value in result.items()}


@guarded_step.misconception(
    "skipped tells whether something was clipped. It means that the norm was not finite, and that "
    "no step was taken."
)
def skipped_means_clipped(*args, **options):
    result = guarded_step.reference(*args, **options)
    return result | {"skipped": not result["grad_norm"] <= args[4]}


guarded_step.hints(
    "Write down the calls in order, and beside each the unit of the gradients at that moment. In "
    "which unit is max_norm?",
    "clip_grad_norm_ returns the norm before clipping. What does it return if one gradient is NaN, "
    "and what if one is infinite?",
    "Which state of the model changes in a forward already? When do you have to copy it?",
)
