"""The kill test: right programs survive, wrong ones are told by what they forgot, and nothing is left behind."""

import math
import os
import random
import signal
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from course_utils import survive
from course_utils.errors import CourseError
from course_utils.exercise import load_exercise
from course_utils.survive import BATCHES, PER_EPOCH, Kill, choose_kills, judge_program, kill_test, place

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the kill test forks processes")

# Two epochs of a linear model: everything that a resume can forget, in little time.
GOOD = """
import copy
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class CheckpointFile:
    def __init__(self, path):
        self.path = Path(path)

    def save(self, state):
        temporary = Path(f"{self.path}.tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def load(self):
        return torch.load(self.path, weights_only=True) if self.path.exists() else None


def make():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)


def survivable_fit(make, train, val, batch_size, max_epochs, patience, seed, save, resume=None):
    torch.manual_seed(seed)
    model, optimizer, scheduler = make()
    at = {"epoch": 0, "batch": 0, "history": [], "best": None}
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        scheduler.load_state_dict(resume["scheduler"])
        at = resume["at"]
        torch.set_rng_state(resume["rng"])

    def keep():
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "at": at}
        save(copy.deepcopy(state | {"scheduler": scheduler.state_dict(), "rng": torch.get_rng_state()}))

    while at["epoch"] < 2:
        order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed + at["epoch"]))
        for rows in order.split(batch_size)[at["batch"]:]:
            model.train()
            optimizer.zero_grad()
            F.cross_entropy(model(train[0][rows]), train[1][rows]).backward()
            optimizer.step()
            scheduler.step()
            at["batch"] += 1
            keep()
        model.eval()
        with torch.no_grad():
            at["history"].append(F.cross_entropy(model(val[0]), val[1]).item())
        if at["history"][-1] == min(at["history"]):
            at["best"] = copy.deepcopy(model.state_dict())
        at["epoch"], at["batch"] = at["epoch"] + 1, 0
        keep()
    return {"best_model": at["best"], "history": at["history"], "epochs": at["epoch"]}
"""


def without(*pairs):
    """The good program with some text replaced, each of which has to be there."""
    program = GOOD
    for old, new in pairs:
        assert old in program, old
        program = program.replace(old, new)
    return program


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """After every test: no process that it started, and no file in the folder for temporary ones."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("COURSE_TEST_MARK", mark)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    assert alive(mark) == []
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("course-")] == []


def alive(mark):
    """Other processes that have this mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if mark.encode() in environment and int(entry.name) != os.getpid() and not zombie:
            found.append(entry.name)
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server that has imported torch."""
    server = survive._Server(tmp_path_factory.mktemp("server"), "", "cpu")
    yield server
    server.close()


@pytest.fixture
def lent(running, monkeypatch):
    """Kill tests take the running server instead of one of their own: they need not wait for torch."""

    class Lent(survive._Server):
        def _start(self):
            self.endings = []
            return running.process

        def order(self, **order):
            self.endings.append(Path(order["ended"]))
            super().order(**order)

        def close(self):
            """End the runs that go on although their test is decided; the server has noted the end of each."""
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            while not all(file.exists() for file in self.endings):
                for pid in children.read_text().split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.01)

    monkeypatch.setattr(survive, "_Server", Lent)


# ---- right programs ------------------------------------------------------------------


def test_the_references_survive_three_kills_one_of_them_in_a_write():
    pieces = {name: load_exercise(name).reference for name in ("split_digits", "CheckpointFile", "survivable_fit")}
    report = kill_test(**pieces)
    assert report.survived, str(report)
    assert [kill.exit_code for kill in report.kills] == [-9, -9, -9]
    assert [kill.moment for kill in report.kills] == ["forward", "write", "forward"]
    written, whole = report.kills[1].written
    assert 0 < written < whole
    assert set(report.gaps.values()) == {0.0} and len(report.gaps) == report.batches
    assert report.straight["history"] == report.resumed["history"]
    assert "Nobody can tell" in " ".join(str(report).split())


def test_a_small_program_survives_and_the_seed_decides_when_it_is_killed(lent):
    first, second = (judge_program(GOOD, kills=2, seed=seed, device="cpu") for seed in (1, 2))
    assert first.survived and second.survived, f"{first}\n{second}"
    assert [kill.saves for kill in first.kills] != [kill.saves for kill in second.kills]
    assert first.straight["history"] == second.resumed["history"]


# ---- wrong programs -------------------------------------------------------------------

FORGETFUL = {
    "position": (("[at[\"batch\"]:]", ""), ["its rows are those of batch 1 of epoch", "Look at the position"]),
    "optimizer": (
        ('optimizer.load_state_dict(resume["optimizer"])', "pass"),
        ["the optimizer's moments differ, they have seen 0 steps instead of"],
    ),
    "scheduler": (
        ('scheduler.load_state_dict(resume["scheduler"])', "pass"),
        ["the learning rate is", "Look at the scheduler's state"],
    ),
    "random state": (('torch.set_rng_state(resume["rng"])', "pass"), ["the random state is another one"]),
    "buffers": (
        (
            'model.load_state_dict(resume["model"])',
            'model.load_state_dict({k: v for k, v in resume["model"].items() if "running" not in k}, strict=False)',
        ),
        ["1.running_mean[0] is", "all parameters are right. Look at the buffers"],
    ),
    "history": (
        ('at = resume["at"]', 'at = resume["at"] | {"history": []}'),
        ["what is kept beside the steps was not", "1 losses instead of 2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGETFUL)
def test_a_program_that_forgets_something_is_told_what(lent, name):
    change, wanted = FORGETFUL[name]
    report = judge_program(without(change), kills=1, seed=5, device="cpu")
    text = " ".join(str(report).split())
    assert not report.survived
    for words in wanted:
        assert words in text, text
    assert name == "history" or max(report.gaps.values()) > 0


IN_PLACE = [
    ('temporary = Path(f"{self.path}.tmp")', "temporary = self.path"),
    ("os.replace(temporary, self.path)", "pass"),
]


def test_a_checkpoint_written_in_place_does_not_survive_the_kill_in_the_write(lent):
    report = judge_program(without(*IN_PLACE), kills=2, device="cpu")
    assert not report.survived
    assert report.kills[-1].moment == "write" and report.resumed is None
    assert "CheckpointFile.load raised" in report.findings[0]
    assert f"{report.kills[-1].written[0]:,} bytes and is not whole: it was written in place" in report.findings[0]


def test_a_checkpoint_that_is_removed_before_it_is_written_is_missed(lent):
    removed = without(("temporary = Path", "self.path.unlink(missing_ok=True)\n        temporary = Path"))
    report = judge_program(removed, kills=2, device="cpu")
    assert "CheckpointFile.load returned None" in report.findings[0]


def test_a_program_that_starts_over_is_found_although_its_result_is_right(lent):
    report = judge_program(without(("if resume is not None", "if False")), kills=1, device="cpu")
    assert not report.survived
    assert "costs time, not bits" in " ".join(report.findings)


PROBLEMS = {
    "def survivable_fit(": (
        "def survivable_fit(*a):\n    raise ValueError('no')\n\ndef other(",
        "raised ValueError: no",
    ),
    "            keep()\n        model.eval()": ("            pass\n        model.eval()", "called save 2 times"),
    "while at": ("import sys; sys.exit(3)\n    while at", "ended by itself in survivable_fit with exit code 3"),
    'return {"best_model"': ('return {"best"', "should return a dict with best_model"),
}


@pytest.mark.parametrize("old", PROBLEMS)
def test_a_program_that_does_not_come_to_its_end_is_reported(lent, old):
    new, words = PROBLEMS[old]
    report = judge_program(without((old, new)), kills=1, device="cpu")
    assert not report.survived and words in report.findings[0], str(report)
    assert words.split()[-1] in str(report)


# ---- nothing outlives it -----------------------------------------------------------------


def test_a_program_that_hangs_is_ended():
    hanging = without(("while at", "import time; time.sleep(600)\n    while at"))
    begin = time.monotonic()
    report = judge_program(hanging, device="cpu", seconds=12)
    assert "not done in time; it was in survivable_fit" in report.findings[0], str(report)
    assert time.monotonic() - begin < 40


def test_an_interrupt_ends_all_processes(monkeypatch):
    """It comes when the first kill is due, with a run in the midst of its work. The fixture looks for leftovers."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(survive._Stage, "_kill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge_program(GOOD, kills=1, device="cpu")


def test_where_processes_cannot_be_forked_it_says_so(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(OSError, match="Windows"):
        judge_program(GOOD)


# ---- small parts -------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [1, 2, 3, 5])
def test_kills_come_in_mid_epoch_in_order_and_the_last_of_several_in_the_last_epoch(kills):
    for seed in range(30):
        chosen = choose_kills(5 * PER_EPOCH, kills, random.Random(seed))
        saves = [save for save, _ in chosen]
        assert saves == sorted(set(saves)) and len(saves) == kills
        assert all(3 <= save % PER_EPOCH <= BATCHES - 3 for save in saves)
        assert kills == 1 or saves[-1] // PER_EPOCH == 4
        assert sum(moment == "write" for _, moment in chosen) == min(kills - 1, 1)


def test_places_are_named_as_people_count():
    assert place(0) == "batch 1 of epoch 1"
    assert place(BATCHES) == "the validation of epoch 1"
    assert place(PER_EPOCH + 4) == "batch 5 of epoch 2"
    assert Kill(4, "write", -9, (10, 2000)).place.endswith("being written, 10 of 2,000 bytes written")
    assert math.ceil(1438 / 64) == BATCHES


# ---- the command line -----------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "code"), [(False, 0), (True, 1)])
def test_a_submission_is_judged_from_the_command_line(tmp_path, capsys, wrong, code):
    split = "def split_digits(rows, val_fraction, generator):\n"
    split += (
        "    perm = torch.randperm(len(rows), generator=generator)\n    x = rows[perm, :64].reshape(-1, 1, 8, 8) / 16\n"
    )
    split += "    y = rows[perm, 64]\n"
    split += "    return {'x_train': x[359:], 'y_train': y[359:], 'x_val': x[:359], 'y_val': y[:359]}\n"
    program = without(('torch.set_rng_state(resume["rng"])', "pass")) if wrong else GOOD
    file = tmp_path / "capstone_ada.py"
    file.write_text(f"# %%\n{program}\n# %%\n{split}\nprint(undefined)\nx = y, z = made = given\n", encoding="utf-8")
    assert survive.main([str(file), "--seed", "1", "--kills", "1"]) == code
    assert ("did not survive" if wrong else "The run survived") in capsys.readouterr().out


def test_a_submission_without_the_pieces_is_not_judged(tmp_path, capsys):
    file = tmp_path / "capstone_ada.py"
    file.write_text("# %%\ndef make():\n    return 1\n", encoding="utf-8")
    assert survive.main([str(file)]) == 2
    assert "does not define split_digits, CheckpointFile, survivable_fit" in capsys.readouterr().out
    with pytest.raises(CourseError, match="no such file"):
        survive.program_of(tmp_path / "nobody.py")


def test_the_program_runs_by_itself_and_goes_on_by_itself(tmp_path, capsys):
    from course_utils.survive_run import main

    program, checkpoint = tmp_path / "program.py", tmp_path / "last.pt"
    program.write_text(GOOD, encoding="utf-8")
    main([str(program), "--checkpoint", str(checkpoint)])
    whole = capsys.readouterr().out
    main([str(program), "--checkpoint", str(checkpoint), "--resume"])
    assert capsys.readouterr().out == whole
    assert "2 epochs" in whole and "weights: " in whole and sys.modules["torch"]
