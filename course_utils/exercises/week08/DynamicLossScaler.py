"""Loss scaling by hand: scale, unscale, check, skip, back off, grow."""

import inspect
import math

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.observe import observe


@exercise(objectives=("amp.scaling",), forbids=(torch.amp.GradScaler, torch.cuda.amp.GradScaler))
class DynamicLossScaler:
    """Loss scaling for one optimizer whose gradients are float32 or wider.

    __init__(init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000)

    scale(loss) returns loss times the scale, differentiable; for 16-bit losses it is computed in
    float32. loss itself is unchanged.

    unscale_(optimizer) divides all existing gradients of all parameter groups in place by the
    scale and remembers whether any of them is inf or NaN. Raise RuntimeError if the gradients of
    this iteration were unscaled already.

    step(optimizer) unscales first if that was not done. If a value that is not finite was found, it
    does not call optimizer.step() and returns False; else it does and returns True.

    update() ends the iteration. After a non-finite one the scale is multiplied by backoff_factor
    and the growth tracker becomes 0. Otherwise the tracker rises by 1; when it reaches
    growth_interval, the scale is multiplied by growth_factor and the tracker becomes 0. Raise
    RuntimeError if nothing was unscaled or stepped since the last update.

    To be read: current_scale, a float, and growth_tracker, an int. Do without GradScaler.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ):
        self.current_scale = init_scale
        self.growth_factor = growth_factor
        self.backoff_factor = backoff_factor
        self.growth_interval = growth_interval
        self.growth_tracker = 0
        self.finite = None  # None until the gradients of this iteration are unscaled

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        if loss.dtype in (torch.float16, torch.bfloat16):
            loss = loss.float()
        return loss * self.current_scale

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        if self.finite is not None:
            raise RuntimeError("the gradients of this iteration are unscaled already")
        self.finite = True
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad /= self.current_scale
                    self.finite = self.finite and param.grad.isfinite().all().item()

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        if self.finite is None:
            self.unscale_(optimizer)
        if self.finite:
            optimizer.step()
        return self.finite

    def update(self) -> None:
        if self.finite is None:
            raise RuntimeError("nothing was unscaled or stepped since the last update")
        if self.finite:
            self.growth_tracker += 1
            if self.growth_tracker == self.growth_interval:
                self.current_scale *= self.growth_factor
                self.growth_tracker = 0
        else:
            self.current_scale *= self.backoff_factor
            self.growth_tracker = 0
        self.finite = None


READ = "current_scale", "growth_tracker"


def groups(draw, **settings):
    """Three parameters in two groups, of which the second learns faster, and their optimizer."""
    params = [draw.normal(size, requires_grad=True) for size in draw.sizes(3)]
    settings = {"lr": 0.1, "momentum": 0.9} | settings
    return params, torch.optim.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}],
                                   **settings)  # fmt: skip


def fill(draw, params, scale, bad=None, value=math.inf):
    """Scaled gradients, of which parameter number `bad` has a value that is not finite."""
    for place, param in enumerate(params):
        param.grad = scale * draw.normal(*param.shape)
        if place == bad:
            param.grad[-1] = value


def state(scaler):
    """The two attributes to be read."""
    return observe({name: getattr(scaler, name, None) for name in READ})


def momenta(params, optimizer):
    """The momentum of each parameter, None where there is none yet."""
    return [optimizer.state.get(param, {}).get("momentum_buffer") for param in params]


def walk(scaler, draw, outcomes):
    """Scale and tracker after each iteration; outcomes: 1 good, 0 inf, -1 NaN."""
    param = draw.normal(2, requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=0.1)
    seen = {}
    for number, outcome in enumerate(outcomes, start=1):
        param.grad = draw.normal(2)
        if outcome < 1:
            param.grad[1] = math.nan if outcome else -math.inf
        stepped = scaler.step(optimizer)
        scaler.update()
        kind = {1: "finite", 0: "-inf", -1: "NaN"}[outcome]
        seen[f"iteration {number}, {kind}"] = {"step": stepped} | {
            n: getattr(scaler, n, None) for n in READ
        }
    return seen


@DynamicLossScaler.case
def as_it_is_made(implementation, draw):
    other = state(implementation(draw.number(2, 9)))
    scaler = implementation()
    wrapped = any(base.__name__ == "GradScaler" for base in type(scaler).__mro__)
    parameters = inspect.signature(type(scaler)).parameters.items()
    defaults = {name: parameter.default for name, parameter in parameters}
    return {
        "by default": state(scaler),
        "with another init_scale": other,
        "a GradScaler": wrapped,
        "defaults": defaults,
    }


@DynamicLossScaler.case
def losses_of_each_dtype(implementation, draw):
    scaler, seen = implementation(), {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        weight = draw.normal(3, dtype=dtype, requires_grad=True)
        loss = (weight * weight).sum() + draw.number(2, 3)
        before = observe(loss)
        scaled = scaler.scale(loss)
        found = torch.autograd.grad(scaled, weight)[0] if scaled.requires_grad else None
        if found is not None and dtype is torch.float16:
            found = None  # beyond the range of the parameter, which is no case for scaling
        unchanged = torch.equal(before.values, loss.detach())
        seen[str(dtype)] = {
            "scaled loss / 65536": scaled / 65536,
            "gradient": found,
            "the loss is what it was": unchanged,
        }
    return seen


@DynamicLossScaler.case
def a_good_step(implementation, draw):
    scale = 2.0 ** draw.whole(3, 9)
    scaler, (params, optimizer) = implementation(scale), groups(draw)
    fill(draw, params, scale)
    result = scaler.step(optimizer)
    return {"step": result, "parameters": params, "momenta": momenta(params, optimizer)}


@DynamicLossScaler.case
def gradients_after_unscaling(implementation, draw):
    scale = 2.0 ** draw.whole(3, 9)
    scaler, (params, optimizer) = implementation(scale), groups(draw)
    fill(draw, params, scale, bad=0)  # the first of two in its group: those after it count too
    params[2].requires_grad_(False)  # after its backward
    held = [param.grad for param in params]
    result = scaler.unscale_(optimizer)
    same = [param.grad is grad for param, grad in zip(params, held, strict=True)]
    return {"unscale_": result, "gradients": held, "the same tensors": same}


@DynamicLossScaler.case
def inf_in_the_second_group(implementation, draw):
    scaler, (params, optimizer) = implementation(8.0), groups(draw)
    fill(draw, params, 8.0, bad=2)
    seen = {"step": scaler.step(optimizer)}
    scaler.update()
    seen |= {"parameters": params, "momenta": momenta(params, optimizer)}
    return seen | {"afterwards": state(scaler)}


@DynamicLossScaler.case
def NaN_in_the_first_group(implementation, draw):
    scaler, (params, optimizer) = implementation(8.0, 2.0, 0.25), groups(draw)
    seen = {}
    for bad, what in ((None, "finite"), (0, "NaN")):
        fill(draw, params, scaler.current_scale, bad=bad, value=math.nan)
        seen[f"step, {what}"] = scaler.step(optimizer)
        scaler.update()
    seen |= {"parameters": params, "momenta": momenta(params, optimizer)}
    return seen | {"afterwards": state(scaler)}


@DynamicLossScaler.case
def large_gradients_that_are_finite(implementation, draw):
    scaler, param = implementation(2.0), draw.normal(6, requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=1e-38)
    param.grad = 3e38 * draw.uniform(6, low=0.9, high=1.0)
    seen = {"step": scaler.step(optimizer)}
    scaler.update()
    return seen | {"parameter": param, "afterwards": state(scaler)}


@DynamicLossScaler.case
def a_parameter_without_a_gradient(implementation, draw):
    scaler, (params, optimizer) = implementation(4.0), groups(draw)
    fill(draw, params, 4.0)
    params[0].grad = None
    result = attempt(scaler.step, optimizer)
    without = [param.grad is None for param in params]
    return {"step": result, "parameters": params, "without a gradient": without}


@DynamicLossScaler.case
def unscaled_by_hand_and_clipped(implementation, draw):
    scaler, (params, optimizer) = implementation(1024.0), groups(draw)
    fill(draw, params, 1024.0)
    scaler.unscale_(optimizer)
    for param in params:
        param.grad.clamp_(-0.5, 0.5)
    before = observe(params)
    result = attempt(scaler.step, optimizer)
    scaler.update()
    fill(draw, params, 1024.0)
    again = attempt(scaler.step, optimizer)
    return {
        "parameters before the step": before,
        "step after unscale_": result,
        "step of the next iteration": again,
        "parameters": params,
        "scaler": state(scaler),
    }


@DynamicLossScaler.case
def an_overflow_found_by_hand(implementation, draw):
    scaler, (params, optimizer) = implementation(1024.0), groups(draw)
    fill(draw, params, 1024.0, bad=1)
    scaler.unscale_(optimizer)
    for param in params:
        param.grad.nan_to_num_(0.0, 0.0, 0.0)
    seen = {"step": scaler.step(optimizer)}
    scaler.update()
    gradients = [param.grad for param in params]
    return seen | {"parameters": params, "gradients": gradients, "afterwards": state(scaler)}


@DynamicLossScaler.case
def growth_after_enough_good_steps(implementation, draw):
    interval = draw.whole(2, 4)
    scaler = implementation(draw.number(5e4, 9e4), draw.number(1.5, 4), 0.5, interval)
    return walk(scaler, draw, [1] * (2 * interval + 1))


@DynamicLossScaler.case
def an_overflow_restarts_the_count(implementation, draw):
    scaler = implementation(4.0, growth_interval=3)
    return walk(scaler, draw, [1, 1, 0, 1, 1, 1, -1, -1, 0, 0, 1])


@DynamicLossScaler.case
def the_scale_changes_in_update_alone(implementation, draw):
    scaler, (params, optimizer) = implementation(16.0, growth_interval=1), groups(draw)
    seen = {}
    for bad, what in ((1, "inf"), (None, "finite")):
        fill(draw, params, 16.0, bad=bad)
        scaler.unscale_(optimizer)
        seen[f"{what}, after unscale_"] = state(scaler)
        scaler.step(optimizer)
        seen[f"{what}, after step"] = state(scaler)
        scaler.update()
        seen[f"{what}, after update"] = state(scaler)
    return seen


@DynamicLossScaler.case
def calls_that_do_not_fit(implementation, draw):
    scaler, (params, optimizer) = implementation(4.0), groups(draw)
    fill(draw, params, 4.0)
    seen = {
        "update before anything": attempt(scaler.update),
        "unscale_": attempt(scaler.unscale_, optimizer),
        "a second unscale_": attempt(scaler.unscale_, optimizer),
        "gradients": observe([param.grad for param in params]),
        "update after unscale_": attempt(scaler.update),
        "a second update": attempt(scaler.update),
        "step": attempt(scaler.step, optimizer),
        "unscale_ after step": attempt(scaler.unscale_, optimizer),
    }
    return seen | {"at the end": state(scaler)}


@DynamicLossScaler.case
def two_scalers_side_by_side(implementation, draw):
    first, second = implementation(4.0), implementation(32.0)
    params, optimizer = groups(draw)
    fill(draw, params, 4.0, bad=0)
    seen = {
        "first.step with an inf": first.step(optimizer),
        "second.update before any step": attempt(second.update),
    }
    fill(draw, params, 32.0)
    seen |= {
        "second.step with finite gradients": attempt(second.step, optimizer),
        "second.update": attempt(second.update),
        "first.update": attempt(first.update),
    }
    return seen | {"parameters": params, "first": state(first), "second": state(second)}


def gradients_of(optimizer):
    """All gradients that exist."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [param.grad for param in params if param.grad is not None]


@DynamicLossScaler.misconception(
    "You step with gradients that are inf or NaN. That destroys the weights, and the momentum with "
    "them, for good; skip the step."
)
class no_skip(DynamicLossScaler.reference):
    def step(self, optimizer):
        if self.finite is None:
            self.unscale_(optimizer)
        optimizer.step()
        return self.finite


@DynamicLossScaler.misconception(
    "step divides by the scale even where unscale_ was called before. The second division makes "
    "the step that many times too small; remember that it is done."
)
class unscales_twice(DynamicLossScaler.reference):
    def step(self, optimizer):
        found, self.finite = self.finite, None
        self.unscale_(optimizer)
        self.finite = self.finite and found is not False
        return super().step(optimizer)


@DynamicLossScaler.misconception(
    "The tracker survives an overflow. Growth wants good steps in a row; start counting again."
)
class tracker_survives_an_overflow(DynamicLossScaler.reference):
    def update(self):
        before, bad = self.growth_tracker, self.finite is False
        super().update()
        self.growth_tracker = before if bad else self.growth_tracker


@DynamicLossScaler.misconception(
    "The scale grows after every good step. Then it overflows every other step; wait until there "
    "were growth_interval of them in a row."
)
class grows_every_good_step(DynamicLossScaler.reference):
    def __init__(self, init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5,
                 growth_interval=2000):  # fmt: skip
        super().__init__(init_scale, growth_factor, backoff_factor, 1)


@DynamicLossScaler.misconception(
    "You look for inf only. inf - inf and 0 * inf are NaN, and a NaN is just as deadly; ask "
    "whether the values are finite."
)
class only_inf_tested(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        super().unscale_(optimizer)
        self.finite = not any(grad.isinf().any() for grad in gradients_of(optimizer))


@DynamicLossScaler.misconception(
    "You compare with +inf. Gradients overflow to -inf as well, and a NaN equals nothing; ask "
    "whether the values are finite."
)
class only_positive_inf_tested(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        super().unscale_(optimizer)
        self.finite = not any((grad == math.inf).any() for grad in gradients_of(optimizer))


@DynamicLossScaler.misconception(
    "You look for NaN only. What overflows is inf at first; ask whether the values are finite."
)
class only_NaN_tested(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        super().unscale_(optimizer)
        self.finite = not any(grad.isnan().any() for grad in gradients_of(optimizer))


@DynamicLossScaler.misconception(
    "-inf goes unnoticed. Gradients overflow to both sides; ask whether the values are finite."
)
class negative_inf_overlooked(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        super().unscale_(optimizer)
        grads = gradients_of(optimizer)
        self.finite = not any(((grad == math.inf) | grad.isnan()).any() for grad in grads)


@DynamicLossScaler.misconception(
    "Only the first parameter group is unscaled and checked. Groups exist so that parameters can "
    "have different settings; all of them have gradients."
)
class only_the_first_group(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        kept = optimizer.param_groups
        optimizer.param_groups = kept[:1]
        try:
            super().unscale_(optimizer)
        finally:
            optimizer.param_groups = kept


@DynamicLossScaler.misconception(
    "You pass over parameters that do not require a gradient. One that was frozen after its "
    "backward still holds a gradient, and it keeps the scale; look at .grad alone."
)
class only_trainable_parameters(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        params = [param for group in optimizer.param_groups for param in group["params"]]
        kept = [(param, param.grad) for param in params if not param.requires_grad]
        for param, _ in kept:
            param.grad = None
        super().unscale_(optimizer)
        for param, grad in kept:
            param.grad = grad


@DynamicLossScaler.misconception(
    "The check remembers the last gradient only: each one overwrites what was found before. One "
    "bad gradient anywhere is enough."
)
class only_the_last_gradient_decides(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        super().unscale_(optimizer)
        for grad in gradients_of(optimizer):
            self.finite = grad.isfinite().all().item()


@DynamicLossScaler.misconception(
    "A parameter without a gradient makes your code raise. Frozen and unused ones have none; pass "
    "over them."
)
class every_parameter_must_have_a_gradient(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad.shape  # noqa: B018
        super().unscale_(optimizer)


@DynamicLossScaler.misconception(
    "At the first bad gradient you stop, and those after it keep the scale. Go through all of "
    "them: whoever logs or clips them expects one unit."
)
class stops_at_the_first_overflow(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        grads = gradients_of(optimizer)
        saved = [grad.clone() for grad in grads]
        super().unscale_(optimizer)
        bad = [place for place, grad in enumerate(grads) if not grad.isfinite().all()]
        for place in range(bad[0] + 1 if bad else len(grads), len(grads)):
            grads[place].copy_(saved[place])


@DynamicLossScaler.misconception(
    "At a bad gradient you leave the loop over its group, and those after it in the group keep the "
    "scale. Go through all of them: whoever logs or clips them expects one unit."
)
class leaves_the_group_at_an_overflow(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        super().unscale_(optimizer)
        for group in optimizer.param_groups:
            bad = False
            for param in group["params"]:
                if param.grad is not None:
                    param.grad *= self.current_scale if bad else 1
                    bad = bad or not param.grad.isfinite().all()


@DynamicLossScaler.misconception(
    "unscale_ puts new tensors into .grad. Whoever holds the gradient still sees the scaled one; "
    "the underscore promises that it is changed in place."
)
class new_gradient_tensors(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = None if param.grad is None else param.grad.clone()
        super().unscale_(optimizer)


@DynamicLossScaler.misconception(
    "Bad values are set to zero and the step is taken. It is a step on a gradient nobody computed, "
    "and the scale does not fall; skip it."
)
class bad_values_set_to_zero(DynamicLossScaler.reference):
    def step(self, optimizer):
        if self.finite is None:
            self.unscale_(optimizer)
        for grad in gradients_of(optimizer):
            grad.nan_to_num_(0.0, 0.0, 0.0)
        optimizer.step()
        return True


@DynamicLossScaler.misconception(
    "step looks at the gradients again, after the caller may have changed them. What counts is "
    "what unscale_ found."
)
class checks_again_in_step(DynamicLossScaler.reference):
    def step(self, optimizer):
        if self.finite is None:
            self.unscale_(optimizer)
        self.finite = all(grad.isfinite().all().item() for grad in gradients_of(optimizer))
        return super().step(optimizer)


@DynamicLossScaler.misconception(
    "step takes the step after looking at the gradients again, where the caller may have mended "
    "them. Only what unscale_ found decides."
)
class steps_on_mended_gradients(DynamicLossScaler.reference):
    def step(self, optimizer):
        if self.finite is None:
            self.unscale_(optimizer)
        if any(not grad.isfinite().all() for grad in gradients_of(optimizer)):
            return False
        optimizer.step()
        return True


@DynamicLossScaler.misconception(
    "You ask whether a sum or a norm is finite. Large gradients that are finite can have a sum "
    "that is not, and a good step is skipped; ask each value."
)
class a_sum_decides(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        super().unscale_(optimizer)
        self.finite = all(grad.norm().isfinite().item() for grad in gradients_of(optimizer))


@DynamicLossScaler.misconception(
    "At the first bad gradient you stop before you divide, and from there on all keep the scale. "
    "Divide all of them: whoever logs or clips them expects one unit."
)
class stops_before_the_first_overflow(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        grads = gradients_of(optimizer)
        saved = [grad.clone() for grad in grads]
        super().unscale_(optimizer)
        bad = [place for place, grad in enumerate(grads) if not grad.isfinite().all()]
        for place in range(bad[0] if bad else len(grads), len(grads)):
            grads[place].copy_(saved[place])


@DynamicLossScaler.misconception(
    "Your memory belongs to the class, so all scalers share it. What one of them found decides "
    "about the steps of the others; keep it in self."
)
class memory_shared_by_all(DynamicLossScaler.reference):
    finite = property(
        lambda self: memory_shared_by_all.found,
        lambda self, value: setattr(memory_shared_by_all, "found", value),
    )


@DynamicLossScaler.misconception(
    "One of the default values is not that of the task. Compare your __init__ with it."
)
class another_default(DynamicLossScaler.reference):
    def __init__(self, init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5,
                 growth_interval=1000):  # fmt: skip
        super().__init__(init_scale, growth_factor, backoff_factor, growth_interval)


@DynamicLossScaler.misconception(
    "The tracker starts at 1, so the first growth comes a step early. It counts good steps, and at "
    "the beginning there was none."
)
class tracker_starts_at_one(DynamicLossScaler.reference):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.growth_tracker = 1


@DynamicLossScaler.misconception(
    "The scale does not grow when growth_interval good steps are done. A number of your own, such "
    "as 2000, stands where the one that was passed belongs."
)
class growth_interval_fixed(DynamicLossScaler.reference):
    def __init__(self, init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5,
                 growth_interval=2000):  # fmt: skip
        super().__init__(init_scale, growth_factor, backoff_factor)


@DynamicLossScaler.misconception(
    "The scale grows one good step late. It grows when the tracker reaches growth_interval, not "
    "when it exceeds it."
)
class grows_one_step_late(DynamicLossScaler.reference):
    def __init__(self, init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5,
                 growth_interval=2000):  # fmt: skip
        super().__init__(init_scale, growth_factor, backoff_factor, growth_interval + 1)


@DynamicLossScaler.misconception(
    "After the scale has grown the tracker goes on. From then on it never equals growth_interval "
    "again, or the scale grows at every step; it starts at 0 again."
)
class tracker_goes_on_after_growth(DynamicLossScaler.reference):
    def update(self):
        before, good = self.growth_tracker, self.finite is True
        super().update()
        if good:
            self.growth_tracker = before + 1


@DynamicLossScaler.misconception(
    "After an overflow the scale stays what it was, so the next step overflows as well. Multiply "
    "it by backoff_factor."
)
class never_backs_off(DynamicLossScaler.reference):
    def update(self):
        before, bad = self.current_scale, self.finite is False
        super().update()
        self.current_scale = before if bad else self.current_scale


@DynamicLossScaler.misconception(
    "You divide by backoff_factor, and the scale rises after an overflow. The factor is below 1: "
    "multiply."
)
class divides_by_the_backoff_factor(DynamicLossScaler.reference):
    def update(self):
        before, bad = self.current_scale, self.finite is False
        super().update()
        self.current_scale = before / self.backoff_factor if bad else self.current_scale


@DynamicLossScaler.misconception(
    "You keep the scale between limits of your own. It may fall below 1 and grow beyond its first "
    "value, wherever the gradients lead it."
)
class scale_kept_between_limits(DynamicLossScaler.reference):
    def update(self):
        super().update()
        self.current_scale = max(1.0, min(self.current_scale, 65536.0))


@DynamicLossScaler.misconception(
    "The factors 2 and 0.5 stand in your code. Use the ones that were passed."
)
class factors_fixed(DynamicLossScaler.reference):
    def __init__(self, init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5,
                 growth_interval=2000):  # fmt: skip
        super().__init__(init_scale, growth_interval=growth_interval)


@DynamicLossScaler.misconception(
    "The scale falls in step already. Until update it is the scale of this iteration, and whoever "
    "reads it before update gets the wrong one."
)
class backs_off_in_step(DynamicLossScaler.reference):
    def step(self, optimizer):
        stepped = super().step(optimizer)
        self.current_scale *= 1 if stepped else self.backoff_factor
        return stepped

    def update(self):
        if self.finite is False:
            self.current_scale /= self.backoff_factor
        super().update()


@DynamicLossScaler.misconception(
    "The scaled loss of a 16-bit loss has 16 bits as well. In float16 a loss of 3 times 65536 is "
    "inf before backward begins; the task asks for float32."
)
class loss_scaled_in_its_own_dtype(DynamicLossScaler.reference):
    def scale(self, loss):
        return loss * self.current_scale


@DynamicLossScaler.misconception(
    "You go to float32 after the product. By then a float16 loss of 3 times 65536 is inf; widen "
    "first, then multiply."
)
class widened_after_the_product(DynamicLossScaler.reference):
    def scale(self, loss):
        scaled = loss * self.current_scale
        return scaled.float() if loss.dtype in (torch.float16, torch.bfloat16) else scaled


@DynamicLossScaler.misconception(
    "Every loss becomes float32. That widens 16-bit ones and narrows float64 ones."
)
class every_loss_in_float32(DynamicLossScaler.reference):
    def scale(self, loss):
        return loss.float() * self.current_scale


@DynamicLossScaler.misconception(
    "You scale the loss in place. The caller prints it afterwards and sees a number that is 65536 "
    "times too large."
)
class loss_scaled_in_place(DynamicLossScaler.reference):
    def scale(self, loss):
        if loss.dtype in (torch.float16, torch.bfloat16):
            return super().scale(loss)
        return loss.mul_(self.current_scale)


@DynamicLossScaler.misconception("The scaled loss has no graph, so backward has nowhere to go.")
class scaled_loss_without_graph(DynamicLossScaler.reference):
    def scale(self, loss):
        return super().scale(loss.detach())


@DynamicLossScaler.misconception(
    "step returns None. The caller wants to know whether it was taken: True or False."
)
class step_returns_nothing(DynamicLossScaler.reference):
    def step(self, optimizer):
        super().step(optimizer)


@DynamicLossScaler.misconception(
    "step returns what optimizer.step returns, and that is None. The caller wants to know whether "
    "the step was taken: True or False."
)
class step_returns_the_result_of_the_optimizer(DynamicLossScaler.reference):
    def step(self, optimizer):
        return None if super().step(optimizer) else False


@DynamicLossScaler.misconception(
    "A second unscale_ in the same iteration goes through without a word. The gradients are "
    "divided twice, or the caller's mistake stays hidden; raise RuntimeError."
)
class second_unscale_unnoticed(DynamicLossScaler.reference):
    def unscale_(self, optimizer):
        if self.finite is None:
            super().unscale_(optimizer)


@DynamicLossScaler.misconception(
    "update counts a good step although nothing was unscaled or stepped. Raise RuntimeError: the "
    "caller forgot something."
)
class update_without_a_step(DynamicLossScaler.reference):
    def update(self):
        self.finite = True if self.finite is None else self.finite
        super().update()


@DynamicLossScaler.misconception(
    "The memory of an iteration is not cleared at its end. One overflow is then never forgotten, "
    "or the next gradients are not unscaled; update has to reset it."
)
class memory_not_cleared(DynamicLossScaler.reference):
    def update(self):
        kept = self.finite
        super().update()
        self.finite = kept


DynamicLossScaler.hints(
    "Keep one memory with three states: not looked at yet, fine, bad. Which method sets it, which "
    "ones read it?",
    "Gradients are in all groups, and some parameters have none. What is neither inf nor NaN?",
    "Who clears the memory? And what does the tracker do after an overflow, and after growth?",
)
