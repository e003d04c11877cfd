"""How long a check takes, and how much of it is the engine's own: `python benchmarks/check_latency.py`.

The engine's own time is the whole check of a correct answer less running all cases on the answer and on the reference.
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
    """Print one line per exercise, the median, and the import times."""
    print(f"{'exercise':<24}{'check':>10}{'two runs':>10}{'own':>10}   (milliseconds)")
    owns = []
    for name in exercise_weeks():
        whole, bare, own = measure(load_exercise(name))
        owns.append(own)
        print(f"{name:<24}{whole:>10.2f}{bare:>10.2f}{own:>10.2f}")
    print(f"engine's own time: median {statistics.median(owns):.2f} ms, largest {max(owns):.2f} ms")

    torch_alone = import_seconds("import torch")
    with_course = import_seconds("import torch; import course_utils")
    student = import_seconds("import torch; from course_utils import check, hint, solution, passing, progress")
    print(f"import torch {torch_alone:.2f} s; with course_utils {with_course - torch_alone:+.3f} s", end="; ")
    print(f"with all that students call {student - torch_alone:+.3f} s ({100 * (student / torch_alone - 1):+.1f} %)")


if __name__ == "__main__":
    main()
