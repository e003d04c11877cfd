"""Seeds: three generators, one of which takes fewer bits, and two flags."""

import os
import random
from functools import wraps

import numpy as np
import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("repro.seeds", "repro.determinism"))
def seed_everything(seed: int, deterministic: bool = False) -> dict[str, int | bool]:
    """Seed Python's random, NumPy's global generator and torch (all devices); say what was set.

    seed is an int. Unless 0 <= seed < 2**63, raise ValueError. Python and torch get seed itself.
    NumPy takes 32 bits and gets seed % 2**32.

    deterministic=True also sets torch.backends.cudnn.deterministic to True and
    torch.backends.cudnn.benchmark to False. With deterministic=False both flags stay as they are.

    Return {"python": ..., "numpy": ..., "torch": ..., "cudnn_deterministic": ...,
    "cudnn_benchmark": ...}: the seeds that were used, as ints, and the flags as they are after the
    call. Environment variables are left alone.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"the seed has to lie in 0..2**63 - 1, got {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    return {
        "python": seed,
        "numpy": seed % 2**32,
        "torch": seed,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def with_own_environment(case):
    """Put environment variables and both flags back after the case, whoever has set them."""

    @wraps(case)
    def run(implementation, draw):
        before = dict(os.environ)
        flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        try:
            return case(implementation, draw)
        finally:
            set_flags(*flags)
            if os.environ != before:
                os.environ.clear()
                os.environ.update(before)

    return run


def next_draws(draw):
    """What the three generators give next."""
    return {
        "Python": [random.random() for _ in range(2)],
        "NumPy": np.random.random(2),
        "torch": torch.rand(2),
        "torch on the device": torch.rand(2, device=draw.device),
    }


def set_flags(deterministic, benchmark):
    """Set the two flags."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark


def seeded(implementation, draw, *seeds):
    """For each seed: what came back, and the next draws."""
    seen = {}
    for seed in seeds:
        result = attempt(implementation, seed)
        seen[f"seed {seed}"] = {
            "result": result,
            "next draws": next_draws(draw),
            "torch.initial_seed()": torch.initial_seed(),  # the draws on the CPU depend on 32 bits
        }
    return seen


@seed_everything.case
@with_own_environment
def small_seeds(implementation, draw):
    return seeded(implementation, draw, 0, 1, draw.whole(2, 2**31))


@seed_everything.case
@with_own_environment
def seeds_of_more_than_32_bits(implementation, draw):
    return seeded(implementation, draw, 2**32, 2**63 - 1, draw.whole(2**33, 2**62))


@seed_everything.case
@with_own_environment
def seeds_outside_the_range(implementation, draw):
    seeds = -1, 2**63, -draw.whole(2, 2**40), 2**63 + draw.whole(1, 2**60)
    return [attempt(implementation, seed) for seed in seeds]


@seed_everything.case
@with_own_environment
def in_the_middle_of_a_run(implementation, draw):
    seed, seen = draw.whole(0, 10**6), []
    for drawn in (1, 3):
        for _ in range(drawn):  # an odd number, so that half a pair of normal draws is left over
            random.gauss(0, 1), np.random.standard_normal(), torch.randn(1)
        implementation(seed)
        normal = random.gauss(0, 1), np.random.standard_normal(), torch.randn(1)
        seen.append([*normal, next_draws(draw)])
    return seen


@seed_everything.case
@with_own_environment
def flags_with_deterministic(implementation, draw):
    seed, seen = draw.whole(0, 10**6), {}
    for preset in ((False, True), (True, True), (False, False)):
        set_flags(*preset)
        result = implementation(seed, deterministic=True)
        flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        seen[f"(deterministic, benchmark) were {preset}"] = [result, flags]
    return seen


@seed_everything.case
@with_own_environment
def flags_without_deterministic(implementation, draw):
    seed, seen = draw.whole(0, 10**6), {}
    for preset in ((True, True), (False, True)):
        set_flags(*preset)
        result = implementation(seed)
        flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        seen[f"(deterministic, benchmark) were {preset}"] = [result, flags]
    return seen


@seed_everything.case
@with_own_environment
def environment_variables(implementation, draw):
    for name in ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG"):
        os.environ.pop(name, None)
    before = dict(os.environ)
    implementation(draw.whole(0, 10**6), True)
    return {"changed": {k: v for k, v in os.environ.items() if before.get(k) != v}}


def seed_parts(
    seed, deterministic=False, *, python=random.seed, numpy=None, torch_=torch.manual_seed,
    flags=None, check=None,
):  # fmt: skip
    """The answer in parts that can be exchanged; flags(deterministic) sets both flags."""
    valid = check(seed) if check else 0 <= seed < 2**63
    if not valid:
        raise ValueError(seed)
    python(seed)
    (numpy or (lambda seed: np.random.seed(seed % 2**32)))(seed)
    torch_(seed)
    if flags:
        flags(deterministic)
    elif deterministic:
        set_flags(True, False)
    return {
        "python": seed,
        "numpy": seed % 2**32,
        "torch": seed,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


@seed_everything.misconception(
    "You seeded torch alone. Augmentation and shuffling often draw from Python's or NumPy's "
    "generator, and these go on from wherever they were."
)
def torch_only(seed, deterministic=False):
    return seed_parts(seed, deterministic, python=lambda s: None, numpy=lambda s: None)


@seed_everything.misconception(
    "Python's generator and torch's are seeded, NumPy's is not. It has a global generator of its "
    "own, and many data pipelines draw from it."
)
def numpy_forgotten(seed, deterministic=False):
    return seed_parts(seed, deterministic, numpy=lambda s: None)


@seed_everything.misconception(
    "NumPy's and torch's generators are seeded, that of Python's module `random` is not."
)
def python_forgotten(seed, deterministic=False):
    return seed_parts(seed, deterministic, python=lambda s: None)


@seed_everything.misconception(
    "Python's and NumPy's generators are seeded, torch's is not: weights, dropout masks and "
    "shuffles of the DataLoader come from that one."
)
def torch_forgotten(seed, deterministic=False):
    return seed_parts(seed, deterministic, torch_=lambda s: None)


@seed_everything.misconception(
    "NumPy was handed the full seed. It refuses numbers from 2**32 on; reduce the seed first, as "
    "the task says."
)
def numpy_gets_the_full_seed(seed, deterministic=False):
    return seed_parts(seed, deterministic, numpy=np.random.seed)


@seed_everything.misconception(
    "Your NumPy seed is the remainder by 2**32 - 1, the largest seed it takes. There are 2**32 "
    "seeds, counted from 0."
)
def remainder_by_one_less(seed, deterministic=False):
    def numpy(seed):
        np.random.seed(seed % (2**32 - 1))

    return seed_parts(seed, deterministic, numpy=numpy) | {"numpy": seed % (2**32 - 1)}


@seed_everything.misconception(
    "All three generators got the reduced seed. Only NumPy needs that; Python and torch take the "
    "seed as it is."
)
def all_get_the_reduced_seed(seed, deterministic=False):
    result = seed_parts(
        seed, deterministic, python=lambda s: random.seed(s % 2**32),
        torch_=lambda s: torch.manual_seed(s % 2**32),
    )  # fmt: skip
    return result | {"python": seed % 2**32, "torch": seed % 2**32}


@seed_everything.misconception(
    "torch got the reduced seed. It takes the seed as it is. On the CPU the numbers agree, since "
    "the generator there uses 32 bits; torch.initial_seed() says what it was given."
)
def torch_gets_the_reduced_seed(seed, deterministic=False):
    return seed_parts(seed, deterministic, torch_=lambda s: torch.manual_seed(s % 2**32))


@seed_everything.misconception(
    "The generators are right, and the report says that NumPy got the full seed. Report the number "
    "it was given, so that somebody can repeat it."
)
def reports_the_full_seed_for_numpy(seed, deterministic=False):
    return seed_parts(seed, deterministic) | {"numpy": seed}


@seed_everything.misconception(
    "You set PYTHONHASHSEED. Hash randomization is fixed when the interpreter starts; set in a "
    "running process it changes nothing here and only looks reproducible."
)
def sets_pythonhashseed(seed, deterministic=False):
    result = seed_parts(seed, deterministic)
    os.environ["PYTHONHASHSEED"] = str(seed)
    return result


@seed_everything.misconception(
    "The flags are set whether or not it was asked for. Deterministic kernels can cost speed; that "
    "is the caller's choice."
)
def flags_always_set(seed, deterministic=False):
    return seed_parts(seed, deterministic, flags=lambda wanted: set_flags(True, False))


@seed_everything.misconception(
    "With deterministic=False you turn the flags around. Then they have to stay as they are: "
    "somebody else may have set them for a reason."
)
def flags_follow_the_argument(seed, deterministic=False):
    return seed_parts(seed, deterministic, flags=lambda wanted: set_flags(wanted, not wanted))


@seed_everything.misconception(
    "You switched benchmark on. It measures several kernels and may pick another one from run to "
    "run; determinism wants it off."
)
def benchmark_switched_on(seed, deterministic=False):
    def flags(wanted):
        if wanted:
            set_flags(True, True)

    return seed_parts(seed, deterministic, flags=flags)


@seed_everything.misconception(
    "benchmark was left as it was. If it is on, kernels may be picked anew in each run, whatever "
    "the other flag says."
)
def benchmark_forgotten(seed, deterministic=False):
    def flags(wanted):
        if wanted:
            torch.backends.cudnn.deterministic = True

    return seed_parts(seed, deterministic, flags=flags)


@seed_everything.misconception("deterministic is not looked at: the two flags are never set.")
def flags_never_set(seed, deterministic=False):
    return seed_parts(seed)


@seed_everything.misconception(
    "The report repeats what was asked for. Flags can be set already when you are called: report "
    "what is."
)
def reports_what_was_asked(seed, deterministic=False):
    flags = {"cudnn_deterministic": deterministic, "cudnn_benchmark": not deterministic}
    return seed_parts(seed, deterministic) | flags


@seed_everything.misconception(
    "Seeds outside the range went through. Reduced or wrapped they give some numbers, but not "
    "those of the seed that was asked for: raise ValueError."
)
def range_not_checked(seed, deterministic=False):
    return seed_parts(
        seed, deterministic, check=lambda s: True, torch_=lambda s: torch.manual_seed(s % 2**64)
    )


@seed_everything.misconception("2**63 went through. The range ends before it: 0 <= seed < 2**63.")
def last_seed_included(seed, deterministic=False):
    return seed_parts(seed, deterministic, check=lambda s: 0 <= s <= 2**63)


@seed_everything.misconception(
    "A negative seed went through. Python takes its absolute value and torch wraps it around, so "
    "that two seeds give one run; raise ValueError."
)
def negative_seeds_accepted(seed, deterministic=False):
    return seed_parts(seed, deterministic, check=lambda s: s < 2**63)


@seed_everything.misconception(
    "You made new generators and seeded those. The code that has to become reproducible draws from "
    "the global ones."
)
def seeds_new_generators(seed, deterministic=False):
    return seed_parts(
        seed, deterministic, python=random.Random, torch_=torch.Generator().manual_seed,
        numpy=np.random.default_rng,
    )  # fmt: skip


@seed_everything.misconception(
    "Everything is seeded and nothing is reported: the task asks for a dict with five entries."
)
def reports_nothing(seed, deterministic=False):
    seed_parts(seed, deterministic)


seed_everything.hints(
    "Three generators, one call each.",
    "Which one has a smaller range of seeds? And what do the calls do with a seed of -1?",
    "Report what is, not what was asked for: read the flags at the end.",
)
