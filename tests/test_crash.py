"""Writers that are really killed: what plain torch.save leaves at the path, and what an atomic save leaves."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from course_utils import crash
from course_utils.crash import killed_writer
from course_utils.exercise import load_exercise

save_checkpoint = load_exercise("save_checkpoint").reference
CUTS = (0, 1, 700, 5000, 20_000, 40_000, 60_000, 79_000)


def state(version):
    return {"version": version, "w": torch.full((20_000,), float(version))}


def version_at(path):
    """The version of a complete checkpoint; raises whatever torch.load raises for a broken one."""
    found = torch.load(path)
    assert torch.equal(found["w"], torch.full((20_000,), float(found["version"])))
    return found["version"]


def children():
    """Process numbers of this process's children, where Linux tells them."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(listed.read_text().split()) if listed.exists() else set()


@pytest.fixture
def path(tmp_path):
    """A folder of its own that holds version 1."""
    place = tmp_path / "checkpoints" / "last.pt"
    place.parent.mkdir()
    torch.save(state(1), place)
    return place


@pytest.mark.parametrize("cut", CUTS)
def test_a_direct_save_that_is_killed_destroys_the_old_checkpoint(path, cut):
    assert killed_writer(torch.save, state(2), path, after_bytes=cut) == "killed"
    assert path.stat().st_size == cut
    with pytest.raises(Exception):  # noqa: B017 - which error depends on the byte
        torch.load(path)


@pytest.mark.parametrize("cut", CUTS)
def test_an_atomic_save_that_is_killed_leaves_the_old_checkpoint(path, cut):
    before = path.read_bytes()
    assert killed_writer(save_checkpoint, state(2), path, after_bytes=cut) == "killed"
    assert path.read_bytes() == before
    assert version_at(path) == 1


def test_killed_before_the_move_the_old_checkpoint_is_there_and_the_new_one_lies_beside_it(path):
    assert killed_writer(save_checkpoint, state(2), path, before_move=True) == "killed"
    assert version_at(path) == 1
    (beside,) = set(path.parent.iterdir()) - {path}
    assert version_at(beside) == 2


def test_a_writer_that_is_left_alone_finishes(path):
    assert killed_writer(save_checkpoint, state(2), path) == "finished"
    assert version_at(path) == 2
    assert os.listdir(path.parent) == ["last.pt"]


def test_kill_minus_nine_at_any_moment_leaves_a_complete_checkpoint(path):
    """A writer that saves without a pause, killed from outside at random moments."""
    draw, versions = random.Random(0), []
    for _ in range(12):
        writer = os.fork()
        if writer == 0:
            try:
                for version in range(2, 10_000):
                    save_checkpoint(state(version), path)
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0.005, 0.04))
        os.kill(writer, signal.SIGKILL)
        _, status = os.waitpid(writer, 0)
        assert os.WIFSIGNALED(status)
        versions.append(version_at(path))
    assert max(versions) > 1, "no save was finished; the writers were killed too early to prove anything"


def test_the_callers_process_keeps_its_limits_its_functions_and_its_files(path):
    before = children()
    replace, limit = os.replace, crash.resource.getrlimit(crash.resource.RLIMIT_FSIZE)
    killed_writer(save_checkpoint, state(2), path, after_bytes=10)
    killed_writer(save_checkpoint, state(2), path, before_move=True)
    assert os.replace is replace
    assert crash.resource.getrlimit(crash.resource.RLIMIT_FSIZE) == limit
    assert children() == before


def test_a_writer_that_raises_is_told_apart_from_one_that_is_killed(path):
    with pytest.raises(RuntimeError, match="error of its own"):
        killed_writer(save_checkpoint, {"f": lambda: 0}, path)
    assert version_at(path) == 1
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_writer_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(crash, "PATIENCE", 0.1)
    before = children()
    with pytest.raises(RuntimeError, match="hung"):
        killed_writer(time.sleep, 60)
    assert children() == before


def test_where_processes_cannot_be_forked_it_says_so(monkeypatch):
    monkeypatch.setattr(crash, "resource", None)
    with pytest.raises(OSError, match="Windows"):
        killed_writer(Path.touch, Path("never"))
