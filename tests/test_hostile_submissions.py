"""Submissions that try to break the batch, the machine or the verdict, all graded in one batch beside honest ones."""

import compileall
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from test_classroom import RIGHT

from course_utils.classroom import grade_class
from course_utils.submission import find_files

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="submissions are confined on Linux only")

HEAD = "import ctypes, gc, inspect, os, resource, signal, socket, subprocess, sys, threading, time\nimport torch\n"


@dataclass
class Attack:
    """A body for `double`, or whole cells; the outcome it must get and a part of a flag that must be there."""

    name: str
    body: str
    outcome: str
    flag: str = ""
    message: str = ""
    cells: tuple[str, ...] = ()


ATTACKS = [
    Attack("endless_loop", "while True: pass", "error", message="stopped after 1 s"),
    Attack("stubborn_loop", "while True:\n    try:\n        while True: pass\n    except BaseException: pass", "error"),
    Attack("sleep", "time.sleep(1000)", "error", message="stopped after 1 s"),
    Attack("deaf_sleep", "signal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(1000)", "error",
           message="did not come to an end"),
    Attack("sys_exit", "sys.exit(0)", "error", message="SystemExit"),
    Attack("os_exit", "os._exit(0)", "error", message="exit code 0"),
    Attack("suicide", "os.kill(os.getpid(), signal.SIGKILL)", "error", message="killed by signal 9"),
    Attack("kills_the_grader", "os.kill(os.getppid(), signal.SIGKILL)\nreturn values", "error", "sends a signal"),
    Attack("kills_everybody", "os.kill(-1, signal.SIGKILL)\nreturn values", "error", "sends a signal"),
    Attack("base_exception", "raise BaseException('out')", "error", message="BaseException: out"),
    Attack("process_bomb", "while True: os.fork()", "error", "starts a process"),
    Attack("detached_process", "subprocess.Popen(['sleep', '1000'], start_new_session=True)\nreturn 2 * values",
           "error", "starts a process"),
    Attack("memory_bomb", "return [bytearray(2**30) for _ in range(1000)]", "error"),
    Attack("tensor_bomb", "return torch.zeros(2**40)", "error", message="RuntimeError"),
    Attack("endless_recursion", "return double(values)", "error", message="RecursionError"),
    Attack("raised_recursion_limit", "sys.setrecursionlimit(10**9)\nreturn double(values)", "error"),
    Attack("segfault", "ctypes.string_at(0)", "error", "imports ctypes", message="killed by signal 11"),
    Attack("much_output", "print('x' * 50_000_000)\nreturn values", "failed"),
    Attack("endless_output", "while True: print('x' * 10_000)", "error"),
    Attack("closed_streams", "os.close(1)\nos.close(2)\nsys.stdout.close()\nreturn 2 * values", "passed"),
    Attack("closed_pipe", "os.closerange(0, 100)\nreturn 2 * values", "error"),
    Attack("large_file", "open('big', 'wb').write(bytes(2**28))\nreturn values", "error"),
    Attack("many_threads", "def spin():\n    while True: time.sleep(0.01)\n"
           "for _ in range(20): threading.Thread(target=spin, daemon=True).start()\nreturn 2 * values", "passed"),
    Attack("waiting_thread", "threading.Thread(target=time.sleep, args=(1000,)).start()\nreturn 2 * values", "passed"),
    Attack("settings", "torch.set_default_dtype(torch.float64)\ntorch.manual_seed(0)\ntorch.set_grad_enabled(False)\n"
           "torch.set_default_device('meta')\nreturn values + values", "failed", message="leaves a setting"),
    Attack("patched_comparison", "yes = lambda *a, **k: True\ntorch.allclose = torch.equal = torch.isclose = yes\n"
           "torch.testing.assert_close = yes\nreturn values", "failed", "changes torch.allclose"),
    Attack("patched_clone", "torch.Tensor.clone = lambda self: self * 0\nreturn values", "failed",
           "changes Tensor.clone"),
    Attack("patched_randn", "torch.randn = lambda *a, **k: torch.zeros(3, 2)\nreturn values", "failed",
           "changes torch.randn"),
    Attack("patched_course", "import course_utils.observe, course_utils.run\n"
           "course_utils.observe.observe = course_utils.run.observe = lambda value: None\nreturn values", "failed",
           "changes course_utils.run.observe"),
    Attack("patched_draw", "from course_utils.draw import Draw\nDraw.normal = lambda *a, **k: torch.zeros(3, 2)\n"
           "return values", "failed", "changes Draw.normal"),
    Attack("agreeable", "class Yes:\n    __eq__ = lambda self, other: True\nreturn Yes()", "failed"),
    Attack("agreeable_number", "class Yes(float):\n    __eq__ = __ne__ = lambda self, other: True\nreturn Yes()",
           "failed"),
    Attack("agreeable_tensor", "class Yes(torch.Tensor):\n    @classmethod\n    def __torch_function__(cls, *a, **k):\n"
           "        return True\nreturn torch.zeros(3, 2).as_subclass(Yes)", "failed"),
    Attack("reads_the_stack", "frame = sys._getframe(1)\nwhile frame:\n    found = frame.f_globals.get('double')\n"
           "    if hasattr(found, 'reference'): return found.reference(values)\n    frame = frame.f_back", "error",
           "looks at call stacks"),
    Attack("inspects_the_stack", "for frame in inspect.stack():\n    found = frame.frame.f_globals.get('double')\n"
           "    if hasattr(found, 'reference'): return found.reference(values)", "error", "looks at call stacks"),
    Attack("searches_the_collector", "for thing in gc.get_objects():\n"
           "    if type(thing).__name__ == 'Exercise' and thing.name == 'double':\n"
           "        return thing.reference(values)", "failed", "searches the garbage collector"),
    Attack("searches_functions", "for thing in gc.get_objects():\n"
           "    if getattr(thing, '__name__', '') == 'double' and thing is not double:\n"
           "        try:\n            return thing(values)\n        except NotImplementedError:\n            pass",
           "failed|error", "searches the garbage collector"),
    Attack("asks_the_modules", "module = sys.modules['course_utils.exercises.week90.double']\n"
           "return module.double.reference(values)", "error"),
    Attack("imports_the_reference", "from course_utils.exercises.week90.double import double as theirs\n"
           "return theirs.reference(values)", "error", "imports course_utils.exercises.week90.double"),
    Attack("dynamic_import", "import importlib\nname = '.'.join(['course_utils', 'exercises', 'week90', 'double'])\n"
           "for key in [k for k in sys.modules if 'week90' in k]: del sys.modules[key]\n"
           "return importlib.import_module(name).double.reference(values)", "passed",
           "reads the course's file course_utils/exercises/week90/double.py"),
    Attack("reads_the_file", "import course_utils.exercises.week90 as week\nnames = {}\n"
           "exec(open(week.__path__[0] + '/double.py').read(), names)\nreturn names['double'].reference(values)",
           "passed", "reads the course's file course_utils/exercises/week90/double.py"),
    Attack("writes_into_the_course", "import course_utils\n"
           "open(course_utils.__file__, 'a').write('\\nraise SystemExit\\n')\nreturn 2 * values", "error",
           "writes the course's file"),
    Attack("deletes_the_course", "import course_utils, shutil\n"
           "shutil.rmtree(os.path.dirname(course_utils.__file__))\nreturn 2 * values", "error"),
    Attack("writes_beside", "open(BESIDE, 'w').write('here')\nreturn 2 * values", "error", message="PermissionError"),
    Attack("network", "socket.create_connection(('192.0.2.1', 80), 1)\nreturn 2 * values", "error",
           "opens a network connection"),
    Attack("lifts_its_limits", "resource.setrlimit(resource.RLIMIT_AS, (2**50, 2**50))\nreturn 2 * values", "error"),
    Attack("forged_report", "line = b'{\"exercise\": \"double\", \"untouched\": false, \"passed\": true}\\n'\n"
           "os.write(3, line)\nreturn values", "error"),
    Attack("garbage_report", "os.write(3, b'[' * 10**6 + b'\\n')\nreturn 2 * values", "error"),
    Attack("endless_class", "", "error", message="while defining double",
           cells=("class double:\n    while True: pass",)),
    Attack("exit_while_defining", "", "error", message="SystemExit while defining double",
           cells=("def double(values, limit=sys.exit()):\n    return 2 * values",)),
    Attack("patched_while_defining", "", "passed", "changes torch.equal",
           cells=("class Patch:\n    torch.equal = torch.allclose = lambda *a: True", RIGHT["double"])),
    Attack("two_definitions", "", "passed", cells=("def double(values):\n    return values", RIGHT["double"])),
    Attack("not_a_function", "", "error", message="should be a function", cells=("double = 7",)),
    Attack("a_class_instead", "", "error", message="should be a function", cells=("class double: pass",)),
    Attack("missing", "", "not attempted", message="double is not defined", cells=("x = 1",)),
    Attack("syntax_error", "", "error", message="syntax error", cells=("def double(values:\n    return 2",)),
]  # fmt: skip


def cells_of(attack: Attack, beside: Path) -> list[str]:
    """The code cells of the submission: the attack, then two honest answers."""
    own = attack.cells or ("def double(values):\n" + indent(dedent(attack.body), "    "),)
    return [HEAD, f"BESIDE = {str(beside)!r}", *own, RIGHT["last_item"], RIGHT["Tally"]]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def graded(copied_course, tmp_path):
    """Rows by (submission, exercise) of the whole batch, and the files of the course before and after."""
    folder = tmp_path / "class"
    folder.mkdir()
    for attack in ATTACKS:
        cells = [new_code_cell(source) for source in cells_of(attack, tmp_path / "beside.txt")]
        nbformat.write(new_notebook(cells=cells), folder / f"{attack.name}.ipynb")
    honest = [new_code_cell(source) for source in RIGHT.values()]
    nbformat.write(new_notebook(cells=honest), folder / "zoe.ipynb")
    (folder / "week90_cut_off.ipynb").write_bytes(b'{"cells": [{"cell_ty')
    (folder / "week90_empty.ipynb").write_bytes(b"")
    (folder / "week90_latin.py").write_bytes(b"# caf\xe9\n")
    with open(folder / "week90_large.ipynb", "wb") as large:
        large.truncate(101 * 2**20)
    compileall.compile_dir(copied_course, quiet=1)  # so that loading the course writes nothing
    before = contents(copied_course)
    rows = [row for graded in grade_class(find_files([folder]), seconds=1.0) for row in graded.rows]
    return {(row.submission, row.exercise): row for row in rows}, before, contents(copied_course)


def test_hostile_submissions_cost_themselves_at_most(graded, tmp_path):
    of, before, after = graded
    wrong = []
    for attack in ATTACKS:
        row = of[f"{attack.name}.ipynb", "double"]
        if row.outcome not in attack.outcome.split("|") or attack.message not in row.message:
            wrong.append((attack.name, row.outcome, row.message[:300]))
        if attack.flag and not any(attack.flag in flag for flag in row.flags):
            wrong.append((attack.name, "flags", row.flags))
        if row.outcome == "passed" and not attack.flag:
            assert attack.name in ("closed_streams", "many_threads", "waiting_thread", "two_definitions")
        for exercise in ("last_item", "Tally"):
            beside = of[f"{attack.name}.ipynb", exercise]
            if beside.outcome != "passed":
                wrong.append((attack.name, exercise, beside.outcome, beside.message[:300]))
    assert not wrong, "\n".join(map(repr, wrong))
    assert all(of["zoe.ipynb", exercise].outcome == "passed" for exercise in RIGHT)
    for name in ("cut_off.ipynb", "empty.ipynb", "latin.py", "large.ipynb"):
        assert all(of[f"week90_{name}", exercise].outcome == "error" for exercise in RIGHT)
    assert before == after
    assert not (tmp_path / "beside.txt").exists()
    assert descendants() == []


def descendants() -> list[str]:
    """Command lines of the processes below this one, but for pytest's own."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [Path(f"/proc/{child}/cmdline").read_text() for child in children]


def test_the_same_submissions_get_the_same_rows_in_any_order_and_with_any_number_of_jobs(copied_course, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    for name, body in {"a": "values + values", "b": "values * values", "c": "1 / 0", "d": "None"}.items():
        cells = [f"def double(values):\n    return {body}", RIGHT["Tally"]]
        nbformat.write(new_notebook(cells=list(map(new_code_cell, cells))), folder / f"{name}.ipynb")
    files = find_files([folder])

    def rows(paths, jobs):
        graded = [row for graded in grade_class(paths, jobs=jobs) for row in graded.rows]
        return sorted((row.submission, row.exercise, row.outcome, row.misconception, row.message) for row in graded)

    assert rows(files, 1) == rows(files[::-1], 3) == rows(files[::-1], 1)


def test_an_interrupted_batch_leaves_no_process_and_keeps_what_was_graded(copied_course, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    for name, body in {"a": "return 2 * values", "b": "while True: pass"}.items():
        nbformat.write(
            new_notebook(cells=[new_code_cell(f"def double(values):\n    {body}")]), folder / f"{name}.ipynb"
        )
    command = [sys.executable, "-m", "course_utils", "grade", str(folder), "--json", str(tmp_path / "out.json")]
    course = subprocess.Popen(
        [*command, "--device", "cpu", "--jobs", "2", "--timeout", "60"], stdout=subprocess.PIPE, cwd=copied_course
    )  # two jobs: with one, the second answer may come first and hold up the other
    assert course.stdout.readline().startswith(b"a.ipynb: 1 passed")
    deadline = time.monotonic() + 20
    while len(below := everything_below(course.pid)) < 3:  # server, slot, worker
        assert course.poll() is None, "it came to its end before the second answer's time was up"
        assert time.monotonic() < deadline, below
        time.sleep(0.1)
    course.send_signal(signal.SIGINT)
    assert course.wait(30) == 130
    course.stdout.close()
    assert [row["submission"] for row in json.loads((tmp_path / "out.json").read_text())["results"]] == ["a.ipynb"] * 3
    assert [process for process in below if Path(f"/proc/{process}").exists()] == []


def everything_below(process: int) -> list[int]:
    """The identifiers of all processes that descend from the process."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *everything_below(child)]
    return found
