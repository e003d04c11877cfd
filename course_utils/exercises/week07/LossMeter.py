"""A bug hunt: a running mean that does not stall the device."""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week07._loops import saved_tensors
from course_utils.observe import observe


@exercise(objectives=("loop.logging_sync", "loop.sample_weighting", "loop.graph_lifetime"))
class LossMeter:
    """Running mean of a loss over samples that does not stall the device.

    A new meter is empty.

    update(loss, n) -> None: loss is a 0-dim floating tensor of any float dtype, on any device,
        which may require grad: the mean over n samples. n may be 0; then loss may be NaN, and the
        call changes nothing. update reads no value on the host (no .item(), float(), bool(),
        tolist(), no printing), keeps no graph alive and does not modify loss. If the caller changes
        loss in place later, even after a single update, the result stays. Sums are kept in float32
        or wider.
    compute() -> float: the mean over all samples since the last reset, a Python float. ValueError
        if there are none. It may be called several times.
    reset() -> None: forget everything.

    All losses between two resets are on one device.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, loss: torch.Tensor, n: int) -> None:
        if n > 0:
            self.total = self.total + loss.detach().double() * n
            self.count += n

    def compute(self) -> float:
        if self.count == 0:
            raise ValueError("no samples since the last reset")
        return float(self.total / self.count)


def feed(meter, losses: Iterable[torch.Tensor], sizes: Iterable[int]):
    """Update the meter with each loss and its size."""
    for loss, size in zip(losses, sizes, strict=True):
        meter.update(loss, size)


def in_words(losses, sizes):
    """The losses and their sizes as they are now, for the name of a result."""
    values = ", ".join(f"{float(loss):.4g}" for loss in losses)
    return f"losses {values} with n = {', '.join(map(str, sizes))}"


UNCHANGED = "the caller's losses afterwards, which update should not change"


def drawn_losses(draw, count, dtype=torch.float32):
    """Scalar losses that differ clearly."""
    return [(draw.uniform(low=1.0, high=2.0) * (i + 1)).to(dtype) for i in range(count)]


@LossMeter.case
def batches_of_different_size(implementation, draw):
    meter, sizes = implementation(), draw.sizes(4, low=1, high=20)
    losses = drawn_losses(draw, 4)
    words = in_words(losses, sizes)
    feed(meter, losses, sizes)
    return {f"1. {UNCHANGED}": losses, f"2. the mean of {words}": meter.compute()}


@LossMeter.case
def losses_in_float64_on_top_of_a_large_one(implementation, draw):
    meter = implementation()
    feed(meter, drawn_losses(draw, 3, torch.float64), (5, 2, draw.whole(7, 9)))
    first = meter.compute()
    meter.update(draw.tensor(1e6, dtype=torch.float64), 1)
    return [first, meter.compute()]


@LossMeter.case
def many_small_losses_in_bfloat16(implementation, draw):
    meter = implementation()
    meter.update(draw.tensor(1000.0, dtype=torch.bfloat16), draw.whole(5, 7))
    for _ in range(20):
        meter.update(draw.tensor(1.0, dtype=torch.bfloat16), 1)
    return meter.compute()


@LossMeter.case
def losses_in_float16_whose_sum_is_too_large_for_it(implementation, draw):
    meter = implementation()
    for _ in range(3):
        meter.update(draw.tensor(draw.whole(900, 1000), dtype=torch.float16), 100)
    return meter.compute()


@LossMeter.case
def an_empty_batch_whose_loss_is_nan(implementation, draw):
    meter, (first, last) = implementation(), drawn_losses(draw, 2)
    feed(meter, (first, draw.tensor(float("nan")), last), (8, 0, 3))
    return meter.compute()


@LossMeter.case
def a_loss_that_is_nan_although_there_are_samples(implementation, draw):
    meter, (first, last) = implementation(), drawn_losses(draw, 2)
    feed(meter, (first, draw.tensor(float("nan")), last), (8, 4, 3))
    return meter.compute()


class HostReads(TorchFunctionMode):
    """Counts what makes the host wait for a value; `inner` sees reads on all other routes."""

    def __init__(self):
        super().__init__()
        self.count, self.inner = 0, _ScalarReads(self)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("tolist", "numpy", "cpu", "__array__", "__repr__"):
            self.count += 1
        return function(*args, **(kwargs or {}))


class _ScalarReads(TorchDispatchMode):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            self.reads.count += 1
        return operation(*args, **(kwargs or {}))


@LossMeter.case
def what_update_reads_on_the_host(implementation, draw):
    meter, reads = implementation(), HostReads()
    losses = drawn_losses(draw, 3)
    with reads, reads.inner:
        feed(meter, losses, (4, 0, 2))
    return {"1. update reads a value": reads.count > 0, "2. the mean": attempt(meter.compute)}


@LossMeter.case
def losses_in_float32_that_the_caller_overwrites_later(implementation, draw):
    return overwritten(implementation, draw, torch.float32)


@LossMeter.case
def losses_in_float64_that_the_caller_overwrites_later(implementation, draw):
    return overwritten(implementation, draw, torch.float64)


def overwritten(implementation, draw, dtype):
    """What one and what three updates leave of the losses; the means once these are overwritten."""
    seen = {}
    for number, sizes in enumerate(((1,), (1, 4, 6)), start=1):
        meter, losses = implementation(), drawn_losses(draw, len(sizes), dtype)
        words = f"{number}. {in_words(losses, sizes)}"
        feed(meter, losses, sizes)
        seen[f"{words}: {UNCHANGED}"] = observe(losses)
        for loss in losses:
            loss.fill_(50.0)
        seen[f"{words}: the mean, after the caller has set each loss to 50"] = meter.compute()
    return seen


@LossMeter.case
def losses_that_carry_a_graph(implementation, draw):
    meter, weight = implementation(), draw.normal(3, requires_grad=True)
    with saved_tensors() as alive:
        for size in (4, 2, 5):
            loss = (weight * draw.normal(size, 3)).exp().mean()
            meter.update(loss, size)
        del loss
        seen = {"1. saved tensors that are alive when the losses are gone": len(alive)}
    seen["2. something that is kept requires grad"] = requires_grad(getattr(meter, "__dict__", {}))
    return seen | {"3. the mean": meter.compute()}


def requires_grad(value, depth=3):
    """Whether a tensor in here requires grad."""
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return False
    return depth > 0 and any(requires_grad(item, depth - 1) for item in value)


@LossMeter.case
def a_reset_and_a_second_life(implementation, draw):
    meter, losses = implementation(), drawn_losses(draw, 4)
    feed(meter, losses[:2], (3, 5))
    seen = [meter.compute(), meter.compute()]
    meter.reset()
    seen.append(attempt(meter.compute))
    feed(meter, losses[2:], (2, 7))
    return [*seen, meter.compute()]


@LossMeter.case
def two_meters_side_by_side(implementation, draw):
    meter, losses = implementation(), drawn_losses(draw, 3)
    feed(meter, losses[:1], (3,))
    other = implementation()
    feed(other, losses[1:], (5, 2))
    return {"the first": attempt(meter.compute), "the second": attempt(other.compute)}


@LossMeter.case
def a_meter_without_samples(implementation, draw):
    meter = implementation()
    seen = [attempt(meter.compute)]
    meter.update(draw.tensor(float("nan")), 0)
    return [*seen, attempt(meter.compute)]


def widened(loss):
    """The detached loss in float32 or wider; it shares the caller's memory if it is that wide."""
    return loss.detach().to(torch.promote_types(loss.dtype, torch.float32))


class Meter:
    """A right meter, of which the misconceptions change one thing."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.total, self.count = 0.0, 0

    def update(self, loss, n):
        if n > 0:
            self.add(loss, n)

    def add(self, loss, n):
        self.total = self.total + self.product(loss, n)
        self.count += n

    def product(self, loss, n):
        return loss.detach().double() * n

    def compute(self):
        if self.count == 0:
            raise ValueError("no samples")
        return float(self.total / self.count)


@LossMeter.misconception(
    "Reading the value on the host makes the CPU wait for all queued work of the device, in every "
    "step. Add tensors on the device and read once, in compute."
)
class item_per_update(Meter):
    def product(self, loss, n):
        return loss.item() * n


@LossMeter.misconception(
    "An `if` asks the tensor whether it is NaN, and the answer is a value on the host: the device "
    "has to finish first. It also passes over a NaN that had samples. You know n without asking."
)
class asks_whether_it_is_nan(Meter):
    def update(self, loss, n):
        if not torch.isnan(loss):
            self.add(loss, n)


@LossMeter.misconception(
    "A loss that is NaN is passed over, with its samples. Where there were samples, a NaN is news: "
    "training has broken, and the log should say so. Only a batch without samples is passed over."
)
class passes_over_nan(Meter):
    def update(self, loss, n):
        known = ~torch.isnan(loss.detach())
        term = torch.where(known, loss.detach().double(), 0.0) * n
        self.total = self.total + term
        self.count = self.count + known * n


@LossMeter.misconception(
    "Batches are counted, so a short batch has the weight of a full one. Count samples, and let "
    "each loss weigh as much as its samples."
)
class mean_of_batch_means(Meter):
    def add(self, loss, n):
        self.total = self.total + loss.detach().double()
        self.count += 1


@LossMeter.misconception(
    "You divide by the number of samples what was added without it. Each loss is a mean already: "
    "multiply by n first."
)
class sum_not_weighted(Meter):
    def product(self, loss, n):
        return loss.detach().double()


@LossMeter.misconception(
    "You add or keep the loss itself, and with it the graph of every iteration and all its saved "
    "activations. Detach first."
)
class keeps_the_graph(Meter):
    def product(self, loss, n):
        return loss.double() * n


@LossMeter.misconception(
    "The sum is kept in the dtype of the loss. In bfloat16 a running sum stops growing once it is "
    "256 times the addend, and in float16 it overflows at 65504. Convert to a wider dtype first."
)
class accumulates_in_the_loss_dtype(Meter):
    def product(self, loss, n):
        return loss.detach() * n


@LossMeter.misconception(
    "The product is taken in the dtype of the loss and widened afterwards. By then it has been "
    "rounded, or has overflowed. Widen first."
)
class widens_after_the_product(Meter):
    def product(self, loss, n):
        return (loss.detach() * n).double()


@LossMeter.misconception(
    "detach() shares memory with the caller's loss, so the operation in place rewrites the loss. "
    "Use a product that makes a new tensor."
)
class in_place_on_a_detached_alias(Meter):
    def product(self, loss, n):
        return loss.detach().mul_(n).double()


@LossMeter.misconception(
    "You keep detached losses for later. detach() copies nothing: when the caller reuses the "
    "memory, your numbers change. Compute something new from them at once, or clone."
)
class keeps_an_alias(Meter):
    def reset(self):
        self.losses, self.count = [], 0

    def add(self, loss, n):
        self.losses.append((loss.detach(), n))
        self.count += n

    def compute(self):
        self.total = sum(loss.double() * n for loss, n in self.losses)
        return super().compute()


@LossMeter.misconception(
    "Your total begins as the first loss itself, or as a view of it, and you add to it in place. "
    "The caller's loss is changed with it."
)
class total_is_the_first_loss(Meter):
    def add(self, loss, n):
        if self.count == 0:
            self.total = widened(loss)
            self.total *= n
        else:
            self.total += widened(loss) * n
        self.count += n


@LossMeter.misconception(
    "After the first update your meter holds the caller's loss itself: detach() copies nothing, "
    "and neither does a conversion to the dtype that the loss has already. When the caller reuses "
    "the memory, your number changes."
)
class first_mean_is_the_loss_itself(Meter):
    def add(self, loss, n):
        self.count += n
        if self.count == n:
            self.total = widened(loss)
        else:
            self.total = self.total + (widened(loss) - self.total) * (n / self.count)

    def compute(self):
        if self.count == 0:
            raise ValueError("no samples")
        return float(self.total)


@LossMeter.misconception(
    "An empty batch with a NaN loss makes the mean NaN: NaN times 0 is NaN. With n = 0 there is "
    "nothing to add at all."
)
class nan_times_zero(Meter):
    def update(self, loss, n):
        self.add(loss, n)


@LossMeter.misconception(
    "NaN losses are replaced by 0. Where there were samples, a NaN is news: training has broken, "
    "and the log should say so. Only a batch without samples is passed over."
)
class hides_nan(Meter):
    def product(self, loss, n):
        return loss.detach().double().nan_to_num(nan=0.0) * n


@LossMeter.misconception(
    "An empty meter divides by zero. Raise ValueError, which says what is the matter."
)
class nothing_to_divide_by(Meter):
    def compute(self):
        return float(self.total) / self.count


@LossMeter.misconception(
    "An empty meter gives a number. A mean of no samples does not exist, and 0 would be the best "
    "loss there ever was. Raise ValueError."
)
class zero_when_empty(Meter):
    def compute(self):
        return super().compute() if self.count else 0.0


@LossMeter.misconception(
    "reset() forgets the sum and keeps the count, or the other way round. Both belong together."
)
class half_a_reset(Meter):
    count = 0

    def reset(self):
        self.total = 0.0


@LossMeter.misconception(
    "All meters share one total: it belongs to the class, not to the meter. A second meter, for "
    "the validation, mixes its losses with those of the first. Give each one its own in __init__."
)
class shared_by_all_meters(Meter):
    shared: ClassVar[dict] = {}

    def __init__(self):
        self.__dict__ = self.shared
        self.reset()


@LossMeter.misconception(
    "compute() also empties the meter. Reading a result twice should give it twice; forgetting is "
    "the business of reset()."
)
class compute_resets(Meter):
    def compute(self):
        result = super().compute()
        self.reset()
        return result


@LossMeter.misconception(
    "compute() returns a tensor. This is the place to read the value on the host, once: return a "
    "Python float."
)
class returns_a_tensor(Meter):
    def compute(self):
        super().compute()
        return self.total / self.count


@LossMeter.broken
class BrokenLossMeter:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, loss: torch.Tensor, n: int) -> None:
        self.total += loss.item()
        self.count += 1

    def compute(self) -> float:
        return self.total / self.count


LossMeter.hints(
    "What should the total be: a float or a tensor? Which calls read a value on the host?",
    "Which operations copy, and which share memory with the loss they came from?",
    "NaN times 0 is NaN. And in which dtype is the sum kept?",
)
