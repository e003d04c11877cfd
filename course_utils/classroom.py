"""Grade a class: each submission runs in a process of its own, and is judged here, where no submission runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from course_utils.results import Graded
from course_utils.settings import class_seed
from course_utils.submission import Submission, open_submission, weeks_named
from course_utils.workers import Report, Workers


def grade_class(
    files: Iterable[tuple[Path, str]],
    *,
    week: str = "",
    device: str = "cpu",
    jobs: int = 2,
    seconds: float = 10.0,
    seed: int | None = None,
) -> Iterator[Graded]:
    """Grade the submissions, `jobs` at a time, and yield them in order.

    files: paths with the names they get, as `find_files` gives them. week: grade this week alone. seconds: how long one
    exercise may take. The same submission gives the same rows, whatever is graded beside it.
    """
    files = list(files)
    with_seed = class_seed() if seed is None else seed
    weeks = {week} if week else weeks_named(files)
    workers = Workers(jobs, weeks, seed=with_seed, device=device, seconds=seconds)
    pool = ThreadPoolExecutor(2 * jobs)

    # Opened in this thread alone: in Python 3.11 `ast.parse` can fail when several threads are inside it.
    submissions = (open_submission(*file, week) for file in files)
    try:
        from course_utils.marking import RememberingProcess, judge_submission  # torch loads, as it does in the workers

        process = RememberingProcess(with_seed, device)
        for submission, reports in _in_order(pool, partial(run_submission, workers=workers), submissions, 2 * jobs):
            yield judge_submission(submission, reports, process)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        workers.close()  # which ends what the pool's threads are waiting for
        pool.shutdown()


def _in_order(pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """The function's results in order, computed in the pool, never further ahead than that."""
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def run_submission(submission: Submission, workers: Workers) -> tuple[Submission, dict[str, Report]]:
    """The submission, and what was seen of each of its exercises."""
    if submission.problem:
        return submission, {}
    return submission, workers.run(submission.path.name, submission.cells_to_run, submission.exercises)
