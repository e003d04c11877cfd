"""Grading on a Dask cluster gives the same rows as grading here."""

import socket
import subprocess
import sys
import time

import pytest
from test_classroom import RIGHT, script

from course_utils.classroom import grade_class
from course_utils.cluster import grade_on_cluster
from course_utils.errors import CourseError
from course_utils.submission import find_files

distributed = pytest.importorskip("distributed", reason='grading on a cluster needs the extra "[cluster]"')


@pytest.fixture
def cluster(copied_course, tmp_path):
    """The address of a scheduler with two workers, in processes of their own as on other machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    commands = [[*scheduler, "--no-dashboard", "--no-show"], *[[*worker, "--no-nanny"]] * 2]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        with distributed.Client(address, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
        yield address
    finally:
        for process in reversed(processes):  # the workers first, since they take leave of the scheduler
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # now and then one never ends by itself
                process.kill()
                process.wait()


@pytest.mark.filterwarnings("default")
def test_two_dask_workers_give_the_rows_of_a_plain_run(cluster, tmp_path):
    folder = tmp_path / "class"
    bodies = {"a": "values + values", "b": "values * values", "c": "1 / 0", "d": "__import__('os')._exit(3)"}
    for name, body in bodies.items():
        script(folder / f"{name}.py", f"def double(values):\n    return {body}", RIGHT["Tally"])
    files = find_files([folder])

    def rows(graded):
        return [(row.submission, row.exercise, row.outcome, row.message, row.flags) for g in graded for row in g.rows]

    assert rows(grade_on_cluster(cluster, files)) == rows(grade_class(files))


@pytest.mark.filterwarnings("default")
def test_an_address_without_a_scheduler_is_one_clear_line(copied_course, tmp_path, monkeypatch):
    monkeypatch.setattr("course_utils.cluster.SECONDS_TO_CONNECT", 1)
    began = time.monotonic()
    with pytest.raises(CourseError, match=r"There is no Dask scheduler at tcp://127\.0\.0\.1:9"):
        list(grade_on_cluster("tcp://127.0.0.1:9", find_files([script(tmp_path / "a.py", RIGHT["double"])])))
    assert time.monotonic() - began < 30
