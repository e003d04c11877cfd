"""Grade on the workers of a Dask scheduler; the same rows as on one machine. Needs the extra `[cluster]`."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_utils.classroom import run_submission
from course_utils.errors import CourseError
from course_utils.marking import RememberingProcess, judge_submission
from course_utils.results import Graded
from course_utils.settings import class_seed
from course_utils.submission import open_submission, weeks_named
from course_utils.workers import Workers

SECONDS_TO_CONNECT = 10

_kept: dict[str, Any] = {}  # of a Dask worker: one fork server and one judge, for as long as the settings stay
_one_at_a_time = threading.Lock()


def grade_on_cluster(
    address: str,
    files: list[tuple[Path, str]],
    *,
    week: str = "",
    device: str = "cpu",
    jobs: int = 2,
    seconds: float = 10.0,
) -> Iterator[Graded]:
    """Like `classroom.grade_class`, on the workers of the scheduler at the address; `jobs` is theirs to say.

    The files are read here; the workers need the same version of the course, not the files.
    """
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise CourseError('Grading on a cluster needs Dask: pip install "course_utils[cluster]".') from error
    weeks = [week] if week else sorted(weeks_named(files))
    settings = {"week": week, "weeks": weeks, "device": device, "seconds": seconds, "seed": class_seed()}
    try:
        client = Client(address, timeout=SECONDS_TO_CONNECT)
    except (OSError, ValueError) as error:
        raise CourseError(f"There is no Dask scheduler at {address}: {error}") from error
    with client:
        futures = [
            client.submit(grade_file, path.name, name, path.read_bytes(), settings, pure=False) for path, name in files
        ]
        for future in futures:
            yield future.result()
            future.release()


def grade_file(file: str, name: str, content: bytes, settings: dict[str, Any]) -> Graded:
    """Grade one submission in this process's own fork server, which is started the first time."""
    with _one_at_a_time, tempfile.TemporaryDirectory(prefix="course-") as folder:
        path = Path(folder, file)
        path.write_bytes(content)
        submission = open_submission(path, name, settings["week"])
        workers, process = _prepared(settings)
        return judge_submission(*run_submission(submission, workers), process)


def _prepared(settings: dict[str, Any]) -> tuple[Workers, RememberingProcess]:
    if _kept.get("settings") != settings:
        if "workers" in _kept:
            _kept["workers"].close()
        seed, device, seconds = settings["seed"], settings["device"], settings["seconds"]
        _kept["workers"] = Workers(1, set(settings["weeks"]), seed=seed, device=device, seconds=seconds)
        _kept["process"], _kept["settings"] = RememberingProcess(seed, device), settings
    return _kept["workers"], _kept["process"]
