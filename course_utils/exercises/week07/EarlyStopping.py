"""When to stop, and what to go back to."""

import copy
import math

import torch
from torch import nn

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.observe import observe


@exercise(objectives=("loop.early_stopping",))
class EarlyStopping:
    """Stop when a validation metric has not improved for `patience` calls in a row; keep the best.

    EarlyStopping(patience, min_delta=0.0, mode="min"); ValueError if mode is not "min" or "max".
        patience is at least 1, min_delta at least 0.

    step(metric, model) -> bool: metric is a float. It is an improvement if it is below
        best - min_delta (mode "min") or above best + min_delta (mode "max"), strictly; min_delta is
        absolute. The first metric that is not NaN always is an improvement; NaN never is.
        On an improvement: best = metric, best_call = number of this call (0 for the first),
        bad_calls = 0, and an independent, exact copy of the model's whole state, parameters and
        buffers of any dtype, is kept. Otherwise bad_calls goes up by 1, and best, best_call and
        the copy stay.
        Return whether bad_calls >= patience. Further calls after a True follow the same rules.
    restore(model) -> None: write the kept state into model, in place (the same parameter objects).
        RuntimeError if none is kept. It may be called repeatedly; later changes of the model never
        change what is kept. The attributes stay as they are.

    Attributes: best (None before the first improvement), best_call (-1 before it), bad_calls.
    All buffers of the model are in its state_dict.
    """

    def __init__(self, patience: int, min_delta: float = 0.0, mode: str = "min") -> None:
        if mode not in ("min", "max"):
            raise ValueError(f'mode should be "min" or "max", not {mode!r}')
        self.patience, self.min_delta, self.mode = patience, min_delta, mode
        self.best, self.best_call, self.bad_calls = None, -1, 0
        self.calls, self.state = 0, None

    def step(self, metric: float, model: nn.Module) -> bool:
        if self._is_improvement(metric):
            self.best, self.best_call, self.bad_calls = metric, self.calls, 0
            self.state = {name: value.clone() for name, value in model.state_dict().items()}
        else:
            self.bad_calls += 1
        self.calls += 1
        return self.bad_calls >= self.patience

    def _is_improvement(self, metric: float) -> bool:
        if self.best is None:
            return not math.isnan(metric)
        if self.mode == "min":
            return metric < self.best - self.min_delta
        return metric > self.best + self.min_delta

    def restore(self, model: nn.Module) -> None:
        if self.state is None:
            raise RuntimeError("no state is kept: there was no improvement yet")
        model.load_state_dict(self.state)


def network(draw, dtype=torch.float32):
    """A small model with parameters and with buffers of two dtypes."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to(draw.device, dtype)


def train_on(draw, model):
    """Change everything in the model, in place, as further training would."""
    change = draw.whole(1, 9)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.add_(change)


def follow(draw, stopper, model, metrics):
    """What each call returns and leaves in the attributes; the model trains on in between."""
    seen, so_far = {}, "after the metrics"
    for metric in metrics:
        train_on(draw, model)
        told = stopper.step(metric, model)
        so_far += f" {metric:.4g}"
        seen[so_far] = {
            "1. stop": told,
            "2. best": stopper.best,
            "3. best_call": stopper.best_call,
            "4. bad_calls": stopper.bad_calls,
        }
    return seen


def followed(implementation, draw, metrics, *settings, **more):
    """A whole run, and the model that is restored after it."""
    model = network(draw)
    stopper = implementation(*settings, **more)
    seen = {"1. calls": follow(draw, stopper, model, metrics)}
    train_on(draw, model)
    stopper.restore(model)
    return seen | {"2. restored": model}


def scaled(draw, *metrics):
    """The metrics times one number."""
    factor = draw.number(0.5, 2.0)
    return [factor * metric for metric in metrics]


@EarlyStopping.case
def a_metric_that_falls_and_rises(implementation, draw):
    metrics = scaled(draw, 1.0, 0.8, 0.9, 0.85, 0.0, 0.75, 0.76, 0.72)
    return followed(implementation, draw, metrics, 2)


@EarlyStopping.case
def a_metric_that_stays_where_it_is(implementation, draw):
    return followed(implementation, draw, [draw.number(0.5, 1.0)] * 4, 3)


@EarlyStopping.case
def small_gains_that_add_up(implementation, draw):
    factor = draw.number(0.5, 2.0)
    metrics = [factor * metric for metric in (1.0, 0.95, 0.91, 0.85, 0.84, 0.78, 0.7)]
    return followed(implementation, draw, metrics, 2, 0.1 * factor)


@EarlyStopping.case
def an_accuracy_to_maximize(implementation, draw):
    metrics = [0.5, 0.54, 0.62, 0.6, 0.66, 0.75, 0.4, 0.75]
    metrics = [metric - draw.number(0.0, 0.001) for metric in metrics]
    return followed(implementation, draw, metrics, 2, min_delta=0.05, mode="max")


@EarlyStopping.case
def nan_at_first_and_in_between(implementation, draw):
    metrics = [math.nan, *scaled(draw, 0.9, math.nan, 0.7, math.nan), math.nan]
    return followed(implementation, draw, metrics, 2)


@EarlyStopping.case
def a_first_metric_that_is_infinite(implementation, draw):
    return followed(implementation, draw, [math.inf, math.inf, *scaled(draw, 3.0, 2.0)], 2)


@EarlyStopping.case
def two_restores_with_training_between_them(implementation, draw):
    model, stopper = network(draw), implementation(3)
    follow(draw, stopper, model, scaled(draw, 1.0, 0.5, 0.6))
    before = [id(parameter) for parameter in model.parameters()]
    stopper.restore(model)
    seen = {"1. restored": observe(model)}
    seen["2. the same parameters"] = [id(p) for p in model.parameters()] == before
    seen["3. best, best_call, bad_calls"] = stopper.best, stopper.best_call, stopper.bad_calls
    train_on(draw, model)
    stopper.restore(model)
    return seen | {"4. restored again": model}


@EarlyStopping.case(tolerance=(0.0, 0.0))  # a copy is exact
def restored_into_another_model_of_the_same_kind_in_float64(implementation, draw):
    model, stopper = network(draw, torch.float64), implementation(3)
    follow(draw, stopper, model, scaled(draw, 1.0, 0.5, 0.6))
    other = copy.deepcopy(model).eval()
    train_on(draw, other)
    train_on(draw, model)
    untouched = observe(model)
    stopper.restore(other)
    return {"1. the other": other, "2. the first, as it was": [model, untouched]}


@EarlyStopping.case
def nothing_to_restore(implementation, draw):
    model, stopper = network(draw), implementation(2)
    seen = [stopper.best, stopper.best_call, stopper.bad_calls]
    seen.append(attempt(stopper.restore, model))
    stopper.step(math.nan, model)
    return [*seen, attempt(stopper.restore, model)]


@EarlyStopping.case
def a_mode_that_does_not_exist(implementation, draw):
    errors = [attempt(implementation, 3, 0.0, mode) for mode in ("minimum", "MAX", "")]
    return [error if isinstance(error, Exception) else "no error" for error in errors]


class Stopper(EarlyStopping.reference):
    """The right class, of which the misconceptions change one thing."""

    def copied(self, model):
        return {name: value.clone() for name, value in model.state_dict().items()}

    def step(self, metric, model):
        if self._is_improvement(metric):
            self.best, self.best_call, self.bad_calls = metric, self.calls, 0
            self.state = self.copied(model)
        else:
            self.bad_calls += 1
        self.calls += 1
        return self.bad_calls >= self.patience


@EarlyStopping.misconception(
    "Your best state kept training. state_dict() hands out the live tensors, and copying the "
    "dictionary, or the module, one level deep copies references. Copy the values."
)
class live_state_dict(Stopper):
    def copied(self, model):
        return dict(model.state_dict())


@EarlyStopping.misconception(
    "The comparison is one call late. With patience 2 the second call in a row that brings no "
    "improvement returns True."
)
class stops_one_call_late(Stopper):
    def step(self, metric, model):
        super().step(metric, model)
        return self.bad_calls > self.patience


@EarlyStopping.misconception(
    "The counter is never set back. Bad calls are to be consecutive; an improvement starts the "
    "count again."
)
class counter_never_reset(Stopper):
    def step(self, metric, model):
        before = self.bad_calls
        super().step(metric, model)
        self.bad_calls = self.bad_calls or before
        return self.bad_calls >= self.patience


@EarlyStopping.misconception(
    "NaN counts as an improvement. Every comparison of order with NaN is False, so a negated one "
    "lets it in, and the best model is then the broken one."
)
class nan_as_improvement(Stopper):
    def _is_improvement(self, metric):
        if self.best is None:
            return True
        if self.mode == "min":
            return not metric >= self.best - self.min_delta
        return not metric <= self.best + self.min_delta


@EarlyStopping.misconception(
    "A best of 0.0 is taken for no best: where a condition is expected, 0.0 counts as False, as "
    "None does. The next metric then is an improvement, whatever it is."
)
class zero_taken_for_no_best(Stopper):
    def _is_improvement(self, metric):
        if not self.best:
            return not math.isnan(metric)
        return super()._is_improvement(metric)


@EarlyStopping.misconception(
    "A NaN that comes first is taken as the best. From then on nothing is better: every comparison "
    "with NaN is False."
)
class nan_as_the_first_best(Stopper):
    def _is_improvement(self, metric):
        return self.best is None or super()._is_improvement(metric)


@EarlyStopping.misconception(
    "Parameters alone are kept. The running statistics of batch norm are buffers; without them the "
    "restored model is not the one you measured."
)
class parameters_only(Stopper):
    def copied(self, model):
        return {name: value.detach().clone() for name, value in model.named_parameters()}

    def restore(self, model):
        if self.state is None:
            raise RuntimeError("no state is kept")
        model.load_state_dict(self.state, strict=False)


@EarlyStopping.misconception(
    "Each metric is compared with the one before. A curve that goes up and comes down a little "
    "would count as improving; compare with the best."
)
class compares_with_the_previous(Stopper):
    previous = None

    def step(self, metric, model):
        best, self.best = self.best, self.previous
        improved = self._is_improvement(metric)
        self.best = best
        if not math.isnan(metric):
            self.previous = metric
        if improved:
            self.best, self.best_call, self.bad_calls = metric, self.calls, 0
            self.state = self.copied(model)
        else:
            self.bad_calls += 1
        self.calls += 1
        return self.bad_calls >= self.patience


@EarlyStopping.misconception(
    "A tie counts as an improvement. A metric that stays where it is would then never stop the "
    "run; the comparison is strict."
)
class ties_count(Stopper):
    def _is_improvement(self, metric):
        return super()._is_improvement(metric) or (self.best is not None and metric == self.best)


@EarlyStopping.misconception(
    "min_delta is not used. Gains smaller than it are noise and do not count."
)
class min_delta_ignored(Stopper):
    def __init__(self, patience, min_delta=0.0, mode="min"):
        super().__init__(patience, 0.0, mode)


@EarlyStopping.misconception(
    "min_delta has the wrong sign: it lets metrics in that are worse than the best. It is a hurdle "
    "in the direction of better."
)
class min_delta_in_the_wrong_direction(Stopper):
    def __init__(self, patience, min_delta=0.0, mode="min"):
        super().__init__(patience, -min_delta, mode)


@EarlyStopping.misconception(
    "min_delta is taken as a share of the best metric. It is absolute: an amount, not a percentage."
)
class min_delta_relative(Stopper):
    def _is_improvement(self, metric):
        if self.best is None:
            return not math.isnan(metric)
        if self.mode == "min":
            return metric < self.best * (1 - self.min_delta)
        return metric > self.best * (1 + self.min_delta)


@EarlyStopping.misconception(
    "best follows every small gain. Gains below min_delta can then never add up to an improvement. "
    "Where a call is no improvement, best stays."
)
class best_follows_small_gains(Stopper):
    def step(self, metric, model):
        result = super().step(metric, model)
        if self.best is not None and not math.isnan(metric):
            self.best = (min if self.mode == "min" else max)(self.best, metric)
        return result


@EarlyStopping.misconception(
    "A gain below min_delta changes best, best_call and the kept state; only the count of bad "
    "calls respects min_delta. A call is an improvement in all of these or in none."
)
class keeps_every_small_gain(Stopper):
    def step(self, metric, model):
        bad = 0 if self._is_improvement(metric) else self.bad_calls + 1
        min_delta, self.min_delta = self.min_delta, 0.0
        super().step(metric, model)
        self.min_delta, self.bad_calls = min_delta, bad
        return bad >= self.patience


@EarlyStopping.misconception(
    "Once it has said True, step says True for ever. An improvement starts the count again, also "
    "after a True; the caller may have gone on."
)
class stays_stopped(Stopper):
    stopped = False

    def step(self, metric, model):
        self.stopped = super().step(metric, model) or self.stopped
        return self.stopped


@EarlyStopping.misconception(
    'The mode is not used: for an accuracy, mode "max", more is better.'
)  # fmt: skip
class mode_ignored(Stopper):
    def __init__(self, patience, min_delta=0.0, mode="min"):
        super().__init__(patience, min_delta, mode)
        self.mode = "min"


@EarlyStopping.misconception(
    "The search starts from infinity in place of None. best is then no None before the first "
    "improvement, and a first metric of infinity is none."
)
class starts_from_infinity(Stopper):
    def __init__(self, patience, min_delta=0.0, mode="min"):
        super().__init__(patience, min_delta, mode)
        self.best = math.inf if mode == "min" else -math.inf


@EarlyStopping.misconception(
    "best_call counts from 1. The first call has the number 0."
)  # fmt: skip
class calls_counted_from_one(Stopper):
    def __init__(self, patience, min_delta=0.0, mode="min"):
        super().__init__(patience, min_delta, mode)
        self.calls = 1


@EarlyStopping.misconception(
    "best_call leaves calls out: those that brought no improvement, or those with NaN. It is the "
    "number of the call among all calls."
)
class counts_improvements_only(Stopper):
    def step(self, metric, model):
        bad = not self._is_improvement(metric)
        result = super().step(metric, model)
        self.calls -= bad
        return result


@EarlyStopping.misconception(
    "restore hands out the kept tensors themselves. The next training step changes them, and the "
    "second restore brings back something else. Copy the values into the model."
)
class kept_tensors_handed_out(Stopper):
    def restore(self, model):
        if self.state is None:
            raise RuntimeError("no state is kept")
        for name, parameter in model.named_parameters():
            parameter.data = self.state[name]
        for name, buffer in model.named_buffers():
            buffer.data = self.state[name]


@EarlyStopping.misconception(
    "restore puts new Parameter objects into the model. An optimizer that was built before holds "
    "the old ones. Write into the tensors that are there."
)
class new_parameter_objects(Stopper):
    def restore(self, model):
        if self.state is None:
            raise RuntimeError("no state is kept")
        fresh = {name: value.clone() for name, value in self.state.items()}
        model.load_state_dict(fresh, assign=True)


@EarlyStopping.misconception(
    "The state goes back into the model that step saw, whichever one restore is given."
)
class restores_the_model_it_knows(Stopper):
    def step(self, metric, model):
        self.model = model
        return super().step(metric, model)

    def restore(self, model):
        super().restore(getattr(self, "model", model))


@EarlyStopping.misconception(
    "restore starts the count of bad calls again. It writes the kept state into the model and "
    "changes nothing else."
)
class restore_resets_the_counter(Stopper):
    def restore(self, model):
        super().restore(model)
        self.bad_calls = 0


@EarlyStopping.misconception(
    "A restore without a kept state does nothing, silently. The caller would go on with whatever "
    "weights are there; raise RuntimeError."
)
class restores_nothing_silently(Stopper):
    def restore(self, model):
        if self.state is not None:
            super().restore(model)


@EarlyStopping.misconception(
    "A restore without a kept state fails with an error from somewhere inside. Raise RuntimeError "
    "yourself, with words that say what is missing."
)
class nothing_kept_unchecked(Stopper):
    def restore(self, model):
        model.load_state_dict(dict(self.state.items()))


@EarlyStopping.misconception(
    "A mode that does not exist was accepted. A typing mistake would turn the comparison round; "
    'raise ValueError for everything but "min" and "max".'
)
class mode_not_checked(Stopper):
    def __init__(self, patience, min_delta=0.0, mode="min"):
        super().__init__(patience, min_delta, "min" if mode == "min" else "max")


EarlyStopping.hints(
    "What does state_dict() return: values or references?",
    "Compare with the best, not with the previous value. When does the counter start again?",
    "Put NaN through your condition by hand, as the first metric and as a later one.",
)
