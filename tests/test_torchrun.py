"""Ranks that are really started: what comes back, and that nobody is left, whatever happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from course_utils.torchrun import Finished, RanksFailed, torchrun

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
FOREVER = "import time\ntime.sleep(600)\n"


@pytest.fixture
def program(tmp_path):
    """Write a program to a file of its own."""

    def write(text):
        file = tmp_path / "program.py"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def processes_of(file):
    """All processes whose command line names the file."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(file) in command and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def wait_until(condition, seconds=20.0):
    """Whether the condition came true in time."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_lines_and_reports_come_back_and_nobody_is_left(program, monkeypatch):
    monkeypatch.setenv("RANK", "7")  # another torchrun's, which must not get through
    file = program(
        "import os, sys\nfrom course_utils.torchrun import report\n"
        "rank = int(os.environ['RANK'])\nprint('rank', rank, sys.argv[1:], __name__, os.environ['OMP_NUM_THREADS'])\n"
        "report({'squared': rank**2})\n"
    )
    finished = torchrun(file, "some", "--more", ranks=3)
    assert sorted(finished.lines) == [f"rank {rank} ['some', '--more'] __main__ 1" for rank in range(3)]
    assert finished.reports == [{"squared": 0}, {"squared": 1}, {"squared": 4}]
    assert processes_of(file) == []


def test_lines_of_ranks_that_print_at_once_stay_whole(program):
    file = program("import os\nfor number in range(2000):\n    print('rank', os.environ['RANK'], number)\n")
    lines = torchrun(file, ranks=3).lines
    assert sorted(lines) == sorted(f"rank {rank} {number}" for rank in range(3) for number in range(2000))


def test_a_rank_without_a_report_reports_none(program):
    file = program("import os\nfrom course_utils.torchrun import report\nos.environ['RANK'] == '1' and report(5)\n")
    assert torchrun(file) == Finished([], [None, 5])


def test_the_first_failure_is_told_in_one_line_and_the_other_ranks_are_ended(program):
    file = program(
        "import os\nif os.environ['RANK'] == '1':\n    raise ValueError('no such row\\nand more')\n" + FOREVER
    )
    with pytest.raises(RanksFailed, match=r"^Rank 1 failed: ValueError: no such row$") as failed:
        torchrun(file)
    assert "no such row" in failed.value.errors
    assert processes_of(file) == []


def test_a_rank_that_is_killed(program):
    file = program("import os, signal\nos.environ['RANK'] == '0' and os.kill(os.getpid(), signal.SIGKILL)\n" + FOREVER)
    with pytest.raises(RanksFailed, match=r"^A rank was killed by a signal\.$"):
        torchrun(file)
    assert processes_of(file) == []


def test_when_time_is_up_all_ranks_are_ended_even_those_that_do_not_listen(program, tmp_path):
    file = program(
        "import os, signal, subprocess, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path)!r} + '/up' + os.environ['RANK'], 'w').close()\n" + FOREVER
    )
    with pytest.raises(RanksFailed, match=r"^The 2 ranks were not done after 10 seconds and were ended\.$"):
        torchrun(file, seconds=10)
    assert (tmp_path / "up0").exists() and (tmp_path / "up1").exists()
    assert processes_of(file) == []


# A shell's background job, as this test may run in, ignores interrupts, and so would what it starts.
CALLER = """import signal, sys
from course_utils.torchrun import torchrun
signal.signal(signal.SIGINT, signal.default_int_handler)
torchrun(sys.argv[1])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_when_the_caller_goes_the_ranks_go(program, tmp_path, number):
    file = program(f"import os\nopen({str(tmp_path)!r} + '/up' + os.environ['RANK'], 'w').close()\n" + FOREVER)
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(file)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert wait_until(lambda: (tmp_path / "up0").exists() and (tmp_path / "up1").exists())
        os.kill(caller.pid, number)
        _, errors = caller.communicate(timeout=60)
        assert number == signal.SIGKILL or "KeyboardInterrupt" in errors
        # After an interrupt all is over when the call is; a killed caller cannot wait for it.
        assert wait_until(lambda: not processes_of(file), seconds=0.01 if number == signal.SIGINT else 60)
    finally:
        caller.kill()
        caller.communicate()


def test_where_there_are_no_process_groups_it_says_so(monkeypatch):
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(OSError, match="Windows"):
        torchrun("never.py")
