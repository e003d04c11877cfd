"""How long a check takes, and how much of it is the engine's own: `python benchmarks/check_latency.py`.

The engine's own time is the whole check of a correct answer less running all cases on the answer and on the reference.
A wrong answer takes longer, since misconceptions are run to compare with: each misconception is timed as an answer.
Also prints what importing course_utils adds to importing torch.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from course_utils.draw import Draw
from course_utils.exercise import Exercise, exercise_weeks, load_exercise
from course_utils.judge import grade

ROUNDS, FEWEST_ROUNDS, SECONDS_PER_EXERCISE = 100, 5, 4.0
IMPORTS = 7


def milliseconds(function: Callable[[], object]) -> float:
    """Time of one call."""
    begin = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - begin)


def measure(exercise: Exercise) -> tuple[float, float, float]:
    """Milliseconds of a whole check, of running the cases twice, and of what is between.

    Each is the least of many rounds, since whatever else the machine does only adds; the two are timed by turns.
    """
    whole, bare = [], []
    begin = time.perf_counter()
    while len(whole) < FEWEST_ROUNDS or (len(whole) < ROUNDS and time.perf_counter() - begin < SECONDS_PER_EXERCISE):
        whole.append(milliseconds(lambda: grade(exercise, exercise.reference, 0)))
        bare.append(milliseconds(lambda: (run_bare(exercise), run_bare(exercise))))
    return min(whole), min(bare), min(whole) - min(bare)


def measure_wrong(exercise: Exercise) -> list[float]:
    """Milliseconds of the check of each misconception, the lesser of two."""
    wrong = [misconception.implementation for misconception in exercise.misconceptions]
    return [min(milliseconds(partial(grade, exercise, answer, 0)) for _ in range(2)) for answer in wrong]


def run_bare(exercise: Exercise) -> None:
    """Every case, called on the reference with nothing around it."""
    for case in exercise.cases:
        draw = Draw(0, case.name)
        case.function(exercise.reference, draw)
        draw.close()


def import_seconds(code: str) -> float:
    """Median seconds of a fresh interpreter that runs the code."""
    times = []
    for _ in range(IMPORTS):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Print one line per exercise, the medians, and the import times."""
    head = ("check", "two runs", "own", "wrong", "at most")
    print(f"{'exercise':<24}{''.join(f'{title:>10}' for title in head)}   (milliseconds)")
    owns, wrongs = [], []
    for name in exercise_weeks():
        exercise = load_exercise(name)
        whole, bare, own = measure(exercise)
        wrong = measure_wrong(exercise)
        owns.append(own)
        wrongs += wrong
        print(f"{name:<24}{whole:>10.2f}{bare:>10.2f}{own:>10.2f}{statistics.median(wrong):>10.0f}{max(wrong):>10.0f}")
    print(f"engine's own time: median {statistics.median(owns):.2f} ms, largest {max(owns):.2f} ms")
    print(f"wrong answers: median {statistics.median(wrongs):.0f} ms, largest {max(wrongs):.0f} ms")

    torch_alone = import_seconds("import torch")
    with_course = import_seconds("import torch; import course_utils")
    student = import_seconds("import torch; from course_utils import check, hint, solution, passing, progress")
    print(f"import torch {torch_alone:.2f} s; with course_utils {with_course - torch_alone:+.3f} s", end="; ")
    print(f"with all that students call {student - torch_alone:+.3f} s ({100 * (student / torch_alone - 1):+.1f} %)")


if __name__ == "__main__":
    main()
