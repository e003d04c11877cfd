"""A schedule as a function: up in a line, down in a cosine, and then it stays."""

import math

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("optim.schedule", "optim.cadence"))
def warmup_cosine(step: int, warmup_steps: int, total_steps: int, min_ratio: float = 0.0) -> float:
    """Factor on the initial rate at optimizer step 0, 1, 2, ..., as LambdaLR asks for it.

    For step < warmup_steps: (step + 1) / warmup_steps. From then on, with
    q = (step - warmup_steps) / (total_steps - warmup_steps), but never more than 1:
    min_ratio + (1 - min_ratio) * (1 + cos(pi * q)) / 2. So it is min_ratio from total_steps on.

    Return a Python float. At any step, raise ValueError if warmup_steps is negative, total_steps is
    not larger than warmup_steps, or min_ratio is not between 0 and 1, both included (nan is not).
    """
    if warmup_steps < 0 or total_steps <= warmup_steps:
        raise ValueError(f"{warmup_steps} warm-up steps do not fit into {total_steps} steps")
    if not 0 <= min_ratio <= 1:
        raise ValueError(f"min_ratio is {min_ratio}, it must be between 0 and 1")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    q = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * q)) / 2


@warmup_cosine.case
def three_steps_of_warmup(implementation, draw):
    total = draw.whole(8, 14)
    return [implementation(step, 3, total) for step in range(total)]


@warmup_cosine.case
def one_step_of_warmup_and_a_floor(implementation, draw):
    total = draw.whole(6, 12)
    return [implementation(step, 1, total, min_ratio=0.05) for step in range(total)]


@warmup_cosine.case
def no_warmup(implementation, draw):
    total = draw.whole(5, 12)
    return [implementation(step, 0, total, min_ratio=0.5) for step in range(total)]


@warmup_cosine.case
def warmup_until_the_last_step_but_one(implementation, draw):
    total = draw.whole(4, 9)
    floor = draw.number(0.2, 0.4)
    return [implementation(step, total - 1, total, floor) for step in range(total + 1)]


@warmup_cosine.case
def steps_after_the_end(implementation, draw):
    total = draw.whole(8, 14)
    steps = (total - 1, total, total + 1, total + 4, 2 * total + 1)
    return [implementation(step, 3, total, draw.number(0.1, 0.4)) for step in steps]


@warmup_cosine.case
def a_floor_of_one(implementation, draw):
    total = draw.whole(8, 12)
    return [implementation(step, 3, total, 1.0) for step in range(0, total + 4, 3)]


@warmup_cosine.case
def through_LambdaLR(implementation, draw):
    total, start = draw.whole(6, 9), draw.number(0.5, 2.0)
    optimizer = torch.optim.SGD([torch.zeros(1, device=draw.device)], lr=start)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: implementation(step, 2, total, 0.1)
    )
    rates = []
    for _ in range(total + 2):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


@warmup_cosine.case
def lengths_that_do_not_fit(implementation, draw):
    total = draw.whole(4, 9)
    return [
        attempt(implementation, 0, -1, total),
        attempt(implementation, 0, total, total),
        attempt(implementation, total + 3, total + 2, total),
        attempt(implementation, 2, 0, 0),
    ]


@warmup_cosine.case
def a_min_ratio_out_of_range(implementation, draw):
    total = draw.whole(4, 9)
    return [
        attempt(implementation, total, 2, total, -0.1),
        attempt(implementation, 0, 2, total, 1.1),
        attempt(implementation, total, 2, total, math.nan),
    ]


@warmup_cosine.case
def a_floor_given_as_an_int(implementation, draw):
    total = draw.whole(4, 9)
    return [attempt(implementation, total, 2, total, min_ratio=floor) for floor in (0, 1)]


def curve(step, warmup_steps, total_steps, min_ratio, *, warm=None, q=None, value=None):
    """The factor, of which a part can be exchanged: the warm-up, the progress q, the value at q."""
    warmup_cosine.reference(0, warmup_steps, total_steps, min_ratio)  # for its errors
    if step < warmup_steps:
        return warm() if warm else (step + 1) / warmup_steps
    progress = q() if q else min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return value(cosine) if value else min_ratio + (1 - min_ratio) * cosine


@warmup_cosine.misconception(
    "Your first factor is zero. step counts from 0, so the first batch is thrown away with rate 0, "
    "and the warm-up ends one step late."
)
def first_factor_is_zero(step, warmup_steps, total_steps, min_ratio=0.0):
    def warm():
        return step / warmup_steps

    return curve(step, warmup_steps, total_steps, min_ratio, warm=warm)


@warmup_cosine.misconception(
    "Your warm-up takes one step too many. Its last step is warmup_steps - 1, at the full rate; at "
    "step warmup_steps your factor is above 1, or a division by zero if there is no warm-up."
)
def warmup_one_step_too_long(step, warmup_steps, total_steps, min_ratio=0.0):
    if step == warmup_steps:
        warmup_cosine.reference(step, warmup_steps, total_steps, min_ratio)  # for its errors
        return (step + 1) / warmup_steps
    return warmup_cosine.reference(step, warmup_steps, total_steps, min_ratio)


@warmup_cosine.misconception(
    "Your warm-up never reaches 1: it divides by one too many. Its last step, warmup_steps - 1, "
    "runs at the full rate."
)
def warmup_stops_short_of_one(step, warmup_steps, total_steps, min_ratio=0.0):
    def warm():
        return (step + 1) / (warmup_steps + 1)

    return curve(step, warmup_steps, total_steps, min_ratio, warm=warm)


@warmup_cosine.misconception(
    "The warm-up starts from min_ratio in your code. The floor belongs to the cosine; the warm-up "
    "starts at 1 / warmup_steps."
)
def warmup_starts_at_the_floor(step, warmup_steps, total_steps, min_ratio=0.0):
    def warm():
        return min_ratio + (1 - min_ratio) * (step + 1) / warmup_steps

    return curve(step, warmup_steps, total_steps, min_ratio, warm=warm)


@warmup_cosine.misconception(
    "The rate climbs again after the end. A cosine is periodic; without a cap on its progress it "
    "returns to its maximum."
)
def climbs_again_after_the_end(step, warmup_steps, total_steps, min_ratio=0.0):
    def q():
        return (step - warmup_steps) / (total_steps - warmup_steps)

    return curve(step, warmup_steps, total_steps, min_ratio, q=q)


@warmup_cosine.misconception(
    "You count the progress of the cosine from step 0. At the end of the warm-up it has already "
    "fallen, so the curve jumps down there."
)
def progress_counted_from_step_zero(step, warmup_steps, total_steps, min_ratio=0.0):
    def q():
        return min(1.0, step / total_steps)

    return curve(step, warmup_steps, total_steps, min_ratio, q=q)


@warmup_cosine.misconception(
    "Your cosine takes total_steps steps after the warm-up, so that it ends late. The warm-up "
    "counts among the total_steps."
)
def cosine_as_long_as_everything(step, warmup_steps, total_steps, min_ratio=0.0):
    def q():
        return min(1.0, (step - warmup_steps) / total_steps)

    return curve(step, warmup_steps, total_steps, min_ratio, q=q)


@warmup_cosine.misconception(
    "Your cosine reaches its floor one step early, at total_steps - 1. By the formula the floor is "
    "reached at total_steps itself."
)
def arrives_one_step_early(step, warmup_steps, total_steps, min_ratio=0.0):
    def q():
        return min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps - 1))

    return curve(step, warmup_steps, total_steps, min_ratio, q=q)


@warmup_cosine.misconception(
    "You added the floor on top, so that the factor starts above 1. Go from 1 down to the floor: "
    "what is added at the bottom has to be missing from the height of the cosine."
)
def floor_added_on_top(step, warmup_steps, total_steps, min_ratio=0.0):
    return curve(
        step, warmup_steps, total_steps, min_ratio, value=lambda cosine: min_ratio + cosine
    )


@warmup_cosine.misconception(
    "You cut the cosine off at the floor. The curve then bends there and lies flat for a while; "
    "it is the whole cosine that is squeezed between 1 and the floor."
)
def cosine_cut_off_at_the_floor(step, warmup_steps, total_steps, min_ratio=0.0):
    return curve(
        step, warmup_steps, total_steps, min_ratio, value=lambda cosine: max(min_ratio, cosine)
    )


@warmup_cosine.misconception(
    "Your way down is a straight line. Halfway both agree; a cosine stays high longer and settles "
    "more gently."
)
def falls_in_a_line(step, warmup_steps, total_steps, min_ratio=0.0):
    q = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return curve(
        step, warmup_steps, total_steps, min_ratio,
        value=lambda cosine: min_ratio + (1 - min_ratio) * (1 - q),
    )  # fmt: skip


@warmup_cosine.misconception(
    "cos(pi * q) itself goes from 1 to -1. Half of it, moved up, goes from 1 to 0."
)
def cosine_below_zero(step, warmup_steps, total_steps, min_ratio=0.0):
    return curve(
        step, warmup_steps, total_steps, min_ratio,
        value=lambda cosine: min_ratio + (1 - min_ratio) * (2 * cosine - 1),
    )  # fmt: skip


@warmup_cosine.misconception(
    "Your function returns a tensor or a NumPy number. A rate is a plain Python float: it is "
    "printed, logged and stored in checkpoints."
)
def returns_a_tensor(step, warmup_steps, total_steps, min_ratio=0.0):
    return torch.tensor(warmup_cosine.reference(step, warmup_steps, total_steps, min_ratio))


@warmup_cosine.misconception(
    "At the end you return min_ratio as it came in. It may have come as the int 0 or 1, and the "
    "task asks for a Python float."
)
def floor_returned_as_it_came(step, warmup_steps, total_steps, min_ratio=0.0):
    factor = warmup_cosine.reference(step, warmup_steps, total_steps, min_ratio)
    return min_ratio if step >= total_steps else factor


@warmup_cosine.misconception(
    "From total_steps on your factor is 0. The floor is min_ratio, and the schedule stays there."
)
def zero_after_the_end(step, warmup_steps, total_steps, min_ratio=0.0):
    factor = warmup_cosine.reference(step, warmup_steps, total_steps, min_ratio)
    return 0.0 if step >= total_steps else factor


@warmup_cosine.misconception(
    "Lengths that do not fit together go through, or fail with an error of another kind. Say so "
    "with ValueError before you compute anything."
)
def lengths_not_checked(step, warmup_steps, total_steps, min_ratio=0.0):
    if not 0 <= min_ratio <= 1:
        raise ValueError("min_ratio is out of range")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    q = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * q)) / 2


@warmup_cosine.misconception(
    "A warm-up as long as the whole run went through. Then there is no step left for the cosine; "
    "total_steps has to be larger than warmup_steps, not just as large."
)
def no_room_for_the_cosine(step, warmup_steps, total_steps, min_ratio=0.0):
    if total_steps == warmup_steps > 0 and 0 <= min_ratio <= 1:
        return min_ratio if step >= warmup_steps else (step + 1) / warmup_steps
    return warmup_cosine.reference(step, warmup_steps, total_steps, min_ratio)


@warmup_cosine.misconception(
    "Within the warm-up nothing is checked: your function returns before it looks at its "
    "arguments. A schedule that cannot work is to be refused at its first step, not in the middle "
    "of a run."
)
def checked_after_the_warmup(step, warmup_steps, total_steps, min_ratio=0.0):
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return warmup_cosine.reference(step, warmup_steps, total_steps, min_ratio)


@warmup_cosine.misconception(
    "A min_ratio of nan goes through. Each comparison with nan is false, so it is neither below 0 "
    "nor above 1, and it is not between them either. Ask what has to be true."
)
def nan_as_a_floor(step, warmup_steps, total_steps, min_ratio=0.0):
    if min_ratio != min_ratio:
        return min_ratio
    return warmup_cosine.reference(step, warmup_steps, total_steps, min_ratio)


@warmup_cosine.misconception(
    "A min_ratio below 0 or above 1 goes through. The first makes rates negative, the second makes "
    "the cosine rise; raise ValueError."
)
def floor_not_checked(step, warmup_steps, total_steps, min_ratio=0.0):
    warmup_cosine.reference(step, warmup_steps, total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    q = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * q)) / 2


@warmup_cosine.misconception(
    "You refuse a warm-up of 0 steps. It is a schedule without warm-up: it starts at 1 right away."
)
def refuses_no_warmup(step, warmup_steps, total_steps, min_ratio=0.0):
    if warmup_steps == 0:
        raise ValueError("no warm-up")
    return warmup_cosine.reference(step, warmup_steps, total_steps, min_ratio)


warmup_cosine.hints(
    "Plot it for total_steps 20, warm-up 5, from step 0 to step 30. Three places deserve a look.",
    "Compute the last step of the warm-up and the first after it. How large is each, and which "
    "value of q is that?",
    "After the end: cap the progress, not the result.",
)
