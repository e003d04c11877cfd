"""A resume in another process equals the straight run, bit for bit, and every piece of the state is needed for it."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from course_utils import course_device, resume_run
from course_utils.resume_run import PIECES, Run, first_difference

ROOT = Path(resume_run.__file__).parent.parent
STEPS = 20


@pytest.fixture(scope="module")
def straight():
    """2N steps without a stop: the state after N, the state at the end, and all losses."""
    run = Run(course_device())
    losses = run.train(STEPS)
    middle = copy.deepcopy(run.state_dict())
    losses += run.train(STEPS)
    return middle, copy.deepcopy(run.state_dict()), losses


def in_a_new_process(*arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "course_utils.resume_run", "--device", course_device(), *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=120)


def test_n_steps_a_file_a_new_process_and_n_steps_equal_2n_steps(tmp_path, straight):
    _, end, losses = straight
    half, whole = tmp_path / "half.pt", tmp_path / "whole.pt"
    run = Run(course_device())
    torch.save({"losses": run.train(STEPS), "run": run.state_dict()}, half)
    assert 0 < run.cursor < resume_run.SAMPLES, "the stop should lie in the middle of an epoch"
    in_a_new_process("--steps", STEPS, "--load", half, "--save", whole)
    found = torch.load(whole, map_location="cpu")
    assert found["losses"] == losses
    assert first_difference(found["run"], end) == ""
    for name, value in end["model"].items():
        assert torch.equal(found["run"]["model"][name], value.cpu()), name


def test_the_first_half_may_run_in_a_process_of_its_own_too(tmp_path, straight):
    middle, _, losses = straight
    in_a_new_process("--steps", STEPS, "--save", tmp_path / "half.pt")
    found = torch.load(tmp_path / "half.pt", map_location="cpu")
    assert found["losses"] == losses[:STEPS]
    assert first_difference(found["run"], middle) == ""


def test_the_run_uses_everything_that_a_resume_can_forget(straight):
    middle, end, _ = straight
    initial = Run(course_device()).state_dict()
    for piece in PIECES:
        assert first_difference(initial[piece], middle[piece]), piece
        assert first_difference(middle[piece], end[piece]), piece
    assert middle["scaler"]["scale"] < initial["scaler"]["scale"]
    skipped = STEPS - int(middle["optimizer"]["state"][0]["step"])
    assert skipped > 0, "the scaler should have skipped steps before the stop"


@pytest.mark.parametrize("piece", PIECES)
def test_each_piece_left_out_makes_another_run(straight, piece):
    middle, end, losses = straight
    run = Run(course_device())
    run.load_state_dict(copy.deepcopy(middle), leave_out=[piece])
    assert run.train(STEPS) != losses[STEPS:]
    assert first_difference(run.state_dict()["model"], end["model"])


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 13])
def test_any_stop_will_do(straight, stop):
    """Before the first step, inside an epoch, at its end (6 batches)."""
    _, end, losses = straight
    first = Run(course_device())
    first.train(stop)
    state = copy.deepcopy(first.state_dict())
    second = Run(course_device())
    second.load_state_dict(state)
    assert second.train(2 * STEPS - stop) == losses[stop:]
    assert first_difference(second.state_dict(), end) == ""


def test_the_state_loads_by_default(tmp_path, straight):
    torch.save(straight[0], tmp_path / "state.pt")
    assert first_difference(torch.load(tmp_path / "state.pt", map_location="cpu"), straight[0]) == ""


def test_first_difference_names_the_place_and_sees_single_bits():
    one = torch.ones(3)
    other = one.clone()
    other[1] = torch.nextafter(one[1], torch.tensor(2.0))
    assert first_difference({"a": [one, 1.0]}, {"a": [one.clone(), 1.0]}) == ""
    assert first_difference({"a": [one, 1.0]}, {"a": [other, 1.0]}) == "state.a.0"
    assert first_difference({"a": 1}, {"a": 2}) == "state.a"
    assert first_difference({"a": 1}, {"b": 1}) == "state"
    assert first_difference([1], [1, 2]) == "state"
    assert first_difference(1, 1.0) == "state"
    assert first_difference(one, one.double()) == "state"
    assert first_difference(float("nan"), float("nan")) == ""
