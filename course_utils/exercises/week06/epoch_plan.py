"""How many batches an epoch has, and which of them is short."""

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("data.batches",))
def epoch_plan(num_samples: int, batch_size: int, drop_last: bool = False) -> tuple[int, int, int]:
    """Plan one epoch of a DataLoader: (number of batches, size of the last one, samples used).

    The samples fill one batch after the other. A short batch at the end is kept, or left out with
    drop_last. All three are ints. An epoch without a batch is (0, 0, 0).
    Raise ValueError if batch_size is below 1 or num_samples is negative.
    """
    if batch_size < 1 or num_samples < 0:
        raise ValueError(f"{num_samples} samples in batches of {batch_size}")
    full, rest = divmod(num_samples, batch_size)
    if rest and not drop_last:
        return full + 1, rest, num_samples
    return (full, batch_size, full * batch_size) if full else (0, 0, 0)


@epoch_plan.case
def a_short_batch_at_the_end(implementation, draw):
    size = draw.whole(5, 40)
    full, rest = draw.whole(2, 6), draw.whole(2, size - 2)
    return [
        implementation(full * size + rest, size),
        implementation(full * size + rest, size, False),
    ]


@epoch_plan.case
def a_short_batch_is_dropped(implementation, draw):
    size = draw.whole(5, 40)
    full, rest = draw.whole(2, 6), draw.whole(2, size - 2)
    return implementation(full * size + rest, size, drop_last=True)


@epoch_plan.case
def batches_that_fit_exactly(implementation, draw):
    size, full = draw.whole(3, 40), draw.whole(2, 6)
    return [implementation(full * size, size), implementation(full * size, size, True)]


@epoch_plan.case
def one_sample_more_than_fits(implementation, draw):
    size = draw.whole(3, 40)
    return [implementation(size + 1, size), implementation(size + 1, size, True)]


@epoch_plan.case
def exactly_one_batch(implementation, draw):
    size = draw.whole(3, 40)
    return [implementation(size, size), implementation(size, size, True)]


@epoch_plan.case
def fewer_samples_than_a_batch(implementation, draw):
    size = draw.whole(8, 40)
    samples = draw.whole(2, size - 1)
    return [implementation(samples, size), implementation(samples, size, True)]


@epoch_plan.case
def no_samples(implementation, draw):
    size = draw.whole(2, 40)
    return [attempt(implementation, 0, size), attempt(implementation, 0, size, True)]


@epoch_plan.case
def batches_of_one(implementation, draw):
    samples = draw.whole(3, 40)
    return [implementation(samples, 1), implementation(samples, 1, True), implementation(1, 1)]


@epoch_plan.case
def a_batch_size_below_one(implementation, draw):
    samples = draw.whole(3, 40)
    return [
        attempt(implementation, samples, 0),
        attempt(implementation, samples, -draw.whole(1, 5), True),
        attempt(implementation, 0, 0),
    ]


@epoch_plan.case
def a_negative_number_of_samples(implementation, draw):
    size = draw.whole(3, 9)
    return [
        attempt(implementation, -1, size),
        attempt(implementation, -draw.whole(1, 30), size, drop_last=True),
        attempt(implementation, -size, size),
    ]


def plan(num_samples, batch_size, drop_last, *, batches=None, last=None, used=None):
    """The plan, of which a part can be exchanged: functions of full batches and rest."""
    right = epoch_plan.reference(num_samples, batch_size, drop_last)
    full, rest = divmod(num_samples, batch_size)
    own = (batches, last, used)
    return tuple(part(full, rest) if part else value
                 for part, value in zip(own, right, strict=True))  # fmt: skip


@epoch_plan.misconception(
    "You count full batches only. A DataLoader keeps the short batch at the end unless it is told "
    "to drop it."
)
def floor_division(num_samples, batch_size, drop_last=False):
    return epoch_plan.reference(num_samples, batch_size, True)


@epoch_plan.misconception(
    "You always add a batch for the rest. When the batches fit exactly there is no rest, and no "
    "batch for it."
)
def always_one_extra_batch(num_samples, batch_size, drop_last=False):
    if drop_last:
        return epoch_plan.reference(num_samples, batch_size, True)
    return plan(num_samples, batch_size, False, batches=lambda full, rest: full + 1)


@epoch_plan.misconception(
    "drop_last removes a full batch too. It only concerns a last batch that is incomplete; when "
    "all are full, all stay."
)
def drop_last_removes_a_full_batch(num_samples, batch_size, drop_last=False):
    batches, last, used = epoch_plan.reference(num_samples, batch_size, drop_last)
    if not drop_last or num_samples % batch_size or not batches:
        return batches, last, used
    return (batches - 1, last, used - batch_size) if batches > 1 else (0, 0, 0)


@epoch_plan.misconception(
    "You plan for at least one batch. With fewer samples than a batch and drop_last there is none: "
    "the loop body never runs, and nothing says so."
)
def at_least_one_batch(num_samples, batch_size, drop_last=False):
    right = epoch_plan.reference(num_samples, batch_size, drop_last)
    return right if right[0] or not num_samples else (1, num_samples, num_samples)


@epoch_plan.misconception(
    "drop_last changes nothing in your plan. With it, a short last batch is left out, and its "
    "samples are not used."
)
def ignores_drop_last(num_samples, batch_size, drop_last=False):
    return epoch_plan.reference(num_samples, batch_size)


@epoch_plan.misconception(
    "Your last batch is as large as the others. It holds what is left when the others are filled."
)
def last_batch_always_full(num_samples, batch_size, drop_last=False):
    return plan(
        num_samples, batch_size, drop_last,
        last=lambda full, rest: batch_size if full or (rest and not drop_last) else 0,
    )  # fmt: skip


@epoch_plan.misconception(
    "Your last batch has size 0 when everything fits. A remainder of 0 means that the last batch "
    "is full."
)
def remainder_as_last_size(num_samples, batch_size, drop_last=False):
    batches, last, used = epoch_plan.reference(num_samples, batch_size, drop_last)
    return batches, last if num_samples % batch_size else 0, used


@epoch_plan.misconception(
    "With drop_last you report the size of the batch that was dropped. Asked is the last batch "
    "that the loop gets to see."
)
def size_of_the_dropped_batch(num_samples, batch_size, drop_last=False):
    batches, last, used = epoch_plan.reference(num_samples, batch_size, drop_last)
    return batches, num_samples % batch_size or last, used


@epoch_plan.misconception(
    "You count all samples as used. Those of a dropped batch are not seen in this epoch."
)
def all_samples_used(num_samples, batch_size, drop_last=False):
    return plan(num_samples, batch_size, drop_last, used=lambda full, rest: num_samples)


@epoch_plan.misconception(
    "Your plan counts whole batches as used, so it uses more samples than there are. The last one "
    "may be short."
)
def more_samples_than_there_are(num_samples, batch_size, drop_last=False):
    batches, last, _ = epoch_plan.reference(num_samples, batch_size, drop_last)
    return batches, last, batches * batch_size


@epoch_plan.misconception(
    "No samples are an error in your code. It is a legal, empty epoch: (0, 0, 0)."
)
def refuses_no_samples(num_samples, batch_size, drop_last=False):
    if num_samples < 1:
        raise ValueError("no samples")
    return epoch_plan.reference(num_samples, batch_size, drop_last)


@epoch_plan.misconception(
    "A batch size below 1 goes through, or ends in an error of another kind. Say so with "
    "ValueError before you divide."
)
def batch_size_not_checked(num_samples, batch_size, drop_last=False):
    if num_samples < 0:
        raise ValueError("a negative number of samples")
    full, rest = divmod(num_samples, batch_size)
    if rest and not drop_last:
        return full + 1, rest, num_samples
    return (full, batch_size, full * batch_size) if full else (0, 0, 0)


@epoch_plan.misconception(
    "A negative number of samples goes through, and Python's division makes something of it. Raise "
    "ValueError."
)
def samples_not_checked(num_samples, batch_size, drop_last=False):
    if batch_size < 1:
        raise ValueError("batch_size is below 1")
    full, rest = divmod(num_samples, batch_size)
    if rest and not drop_last:
        return full + 1, rest, num_samples
    return (full, batch_size, full * batch_size) if full else (0, 0, 0)


epoch_plan.hints(
    "Which Python function gives quotient and remainder at once?",
    "When is the last batch short? What does drop_last do when it is not?",
    "Write down what is left for fewer samples than one batch, with and without drop_last.",
)
