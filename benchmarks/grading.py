"""`course grade` beside otter-grader and nbgrader, on the same answers: `python benchmarks/grading.py`.

Builds a class whose answers to five exercises of week 01 are right, wrong by the banks' misconceptions, or broken. No
answer hangs: then each tool would wait for its own time limit. Each tool gets the answers in the notebook its students
would hand in. The tests of otter and nbgrader make the calls that the cases make of the reference, with plain asserts;
they are therefore less strict than the cases.
The first run makes an environment for each of the two in the cache folder, which takes minutes. Not for Windows.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import ast
import builtins
import dis
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

import nbformat
import torch
from nbformat.v4 import new_code_cell, new_notebook

from course_utils.draw import Draw
from course_utils.exercise import Exercise, load_exercise
from course_utils.source import solution_source

COURSE = Path(__file__).resolve().parent.parent
EXERCISES = ("storage_index", "broadcast_shape", "hwc_to_chw", "pick_per_row", "standardize_rows")
SHARES = {"right": 0.5, "wrong": 0.35, "broken": 0.15}
ASSIGNMENT = "week01"
IMPORTS = """import math
from itertools import zip_longest

import numpy as np
import torch
from torch.nn import functional as F
"""
BROKEN = (
    "def {name}(*arguments:\n    return arguments[0]\n",  # does not parse
    "def {name}(*arguments):\n    return torch.no_such_function(*arguments)\n",
    "def {name}(*arguments):\n    return None\n",
    "raise RuntimeError('half done')\n",
    "",
)
LARGEST_STORAGE = 4096
CHECKS = 30
SECONDS = 1800


@dataclass
class Cost:
    """What a command took: wall and processor seconds with all its children, and MB of its largest process.

    lines: what it printed, each with the second it came at.
    """

    wall: float
    processor: float
    largest: float
    lines: list[tuple[float, str]] = field(default_factory=list)

    def moments(self, word: str) -> list[float]:
        """When the lines came that have the word."""
        return [moment for moment, line in self.lines if word in line]

    def per(self, count: int) -> Cost:
        return Cost(self.wall / count, self.processor / count, self.largest)

    def warm(self, wall: float, other: Cost, more: int) -> Cost:
        """One submission's cost without the start. wall: as seen. other: the same for `more` submissions fewer."""
        return Cost(wall, (self.processor - other.processor) / more, self.largest)


class Failed(Exception):
    """A command of another tool failed; the message has its last lines."""


def timed(command: list[str | Path], folder: Path, environment: dict[str, str], log: Path) -> Cost:
    """Run a command to its end; what it prints goes to the log too. Raises Failed when it fails or takes too long."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    stop = threading.Timer(SECONDS, process.kill)
    stop.start()
    lines = []
    for line in process.stdout:
        lines.append((time.perf_counter() - begin, line))
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    stop.cancel()
    process.stdout.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    with open(log, "a", encoding="utf-8") as text:
        text.writelines(line for _, line in lines)
    if process.returncode:
        tail = "".join(line for _, line in lines[-12:])
        raise Failed(f"{' '.join(map(str, command))[:300]} ended with {process.returncode}:\n{tail}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit, lines)


# --- the class --------------------------------------------------------------------------------------------------------


def build_class(count: int, seed: int) -> list[dict[str, tuple[str, str]]]:
    """For each submission, the kind and the code of each answer."""
    chance = random.Random(seed)
    wrong = {name: wrong_answers(load_exercise(name)) for name in EXERCISES}
    submissions = []
    for _ in range(count):
        answers = {}
        for name in EXERCISES:
            kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
            code = {
                "right": solution_source(load_exercise(name)),
                "wrong": chance.choice(wrong[name]),
                "broken": chance.choice(BROKEN).format(name=name),
            }[kind]
            answers[name] = kind, code
        submissions.append(answers)
    return submissions


def wrong_answers(exercise: Exercise) -> list[str]:
    """The exercise's misconceptions as code that stands alone, those for which that is possible."""
    names = [misconception.name for misconception in exercise.misconceptions]
    return [code for code in (standalone(exercise, name) for name in names) if code]


def standalone(exercise: Exercise, function: str) -> str:
    """The function of the exercise's module under the exercise's name, after all of the module that it needs."""
    module = sys.modules[exercise.reference.__module__]
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    defined: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            defined[node.targets[0].id] = node
    if not isinstance(defined.get(function), ast.FunctionDef):
        return ""
    needed: list[str] = []
    _collect(function, defined, needed)
    rename = {function: exercise.name, exercise.name: f"right_{exercise.name}"}
    parts = [ast.unparse(_Renamed(rename).visit(defined[name])) for name in needed]
    code = "\n\n".join(parts) + "\n"
    namespace: dict[str, Any] = {}
    exec(IMPORTS + code, namespace)
    used = {name for value in list(namespace.values()) for name in _globals(getattr(value, "__code__", None))}
    return code if used <= namespace.keys() | vars(builtins).keys() else ""


def _collect(name: str, defined: dict[str, ast.stmt], needed: list[str]) -> None:
    node = defined[name]
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        node.decorator_list = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id in defined and inner.id != name and inner.id not in needed:
            _collect(inner.id, defined, needed)
    if name not in needed:
        needed.append(name)


def _globals(code: Any) -> Iterator[str]:
    """Names that a code object made here looks up outside itself."""
    if isinstance(code, CodeType) and code.co_filename == "<string>":
        yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
        for constant in code.co_consts:
            yield from _globals(constant)


class _Renamed(ast.NodeTransformer):
    """Other names for functions; `exercise.reference` becomes the name that the exercise gets."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self._names.get(node.id, node.id), node.ctx)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node = self.generic_visit(node)
        return node.value if node.attr == "reference" and isinstance(node.value, ast.Name) else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self._names.get(node.name, node.name)
        return self.generic_visit(node)


# --- the same tests as plain asserts ----------------------------------------------------------------------------------

HELPER = """
import torch
from math import inf, nan

def same(got, right):
    if isinstance(right, torch.Tensor):
        assert isinstance(got, torch.Tensor) and got.shape == right.shape and got.dtype == right.dtype
        if right.is_floating_point():
            assert torch.allclose(got, right, rtol=1e-4, atol=1e-5, equal_nan=True)
        else:
            assert torch.equal(got, right)
    else:
        assert type(got) is type(right) and got == right

def raises(error, function, *arguments, **named):
    try:
        function(*arguments, **named)
    except error:
        return
    raise AssertionError("no " + error.__name__)
"""


def assertions(exercise: Exercise) -> dict[str, list[str]]:
    """For each case the calls it makes of the reference, a line each, but for calls that no literal can show."""
    found = {}
    for case in exercise.cases:
        lines: list[str] = []
        draw = Draw(0, case.name)
        case.function(_recording(exercise, lines), draw)
        draw.close()
        found[case.name] = lines
    return {name: lines for name, lines in found.items() if lines}


def _recording(exercise: Exercise, lines: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        result, error, given = None, None, None
        with suppress(TypeError):
            given = ", ".join([*map(literal, arguments), *(f"{name}={literal(v)}" for name, v in named.items())])
        try:
            result = exercise.reference(*arguments, **named)
            return result
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            with suppress(TypeError):
                if given is not None and error:
                    lines.append(f"raises({error}, {exercise.name}, {given})")
                elif given is not None:
                    lines.append(f"same({exercise.name}({given}), {literal(result)})")

    return call


def literal(value: Any) -> str:
    """Python code that makes the value again, a tensor with its strides. Raises TypeError where there is none."""
    if type(value) in (int, float, bool, str, type(None)):
        return repr(value)
    if type(value) in (tuple, list, torch.Size):
        items = ", ".join(map(literal, value))
        return f"[{items}]" if type(value) is list else f"({items},)" if len(value) == 1 else f"({items})"
    if type(value) is torch.Tensor and value.device.type == "cpu" and not value.is_complex():
        size = value.untyped_storage().nbytes() // value.itemsize
        if size <= LARGEST_STORAGE:
            whole = value.detach().as_strided((size,), (1,), 0).tolist()
            view = f"{tuple(value.shape)}, {value.stride()}, {value.storage_offset()}"
            return f"torch.tensor({whole}, dtype={value.dtype}).as_strided({view})"
    raise TypeError(type(value).__name__)


# --- notebooks --------------------------------------------------------------------------------------------------------


def notebook(cells: list[Any]) -> Any:
    """A notebook of these cells, for the environment's own Python."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def for_course(answers: dict[str, tuple[str, str]]) -> Any:
    """As students of the course hand in: each answer, and its check."""
    cells = [new_code_cell("from course_utils import check\n" + IMPORTS)]
    for name, (_, code) in answers.items():
        cells += [new_code_cell(code), new_code_cell(f"check({name})")]
    return notebook(cells)


def for_otter(answers: dict[str, tuple[str, str]]) -> Any:
    """As otter assign lays it out."""
    cells = [new_code_cell("import otter\ngrader = otter.Notebook()"), new_code_cell(IMPORTS)]
    for name, (_, code) in answers.items():
        cells += [new_code_cell(code), new_code_cell(f'grader.check("{name}")')]
    return notebook(cells)


def otter_test(exercise: Exercise) -> str:
    """A test file: one test function for each case, the first of them public."""
    parts = [
        "from otter.test_files import test_case",
        HELPER,
        f'OK_FORMAT = False\nname = "{exercise.name}"\npoints = 1',
    ]
    for number, (case, lines) in enumerate(assertions(exercise).items()):
        body = "\n    ".join(lines)
        parts.append(f"@test_case(hidden={number > 0})\ndef test_{case}({exercise.name}):\n    {body}")
    return "\n\n".join(parts) + "\n"


def nbgrader_source() -> Any:
    """The instructor's version: solutions, a public test and hidden tests."""
    cells = [new_code_cell(IMPORTS + HELPER)]
    for name in EXERCISES:
        exercise = load_exercise(name)
        solution = f"### BEGIN SOLUTION\n{solution_source(exercise)}### END SOLUTION"
        public, *hidden = ("\n".join(lines) for lines in assertions(exercise).values())
        tests = "\n".join([public, "### BEGIN HIDDEN TESTS", *hidden, "### END HIDDEN TESTS"])
        cells.append(new_code_cell(solution, metadata=_marked(name, solution=True)))
        cells.append(new_code_cell(tests, metadata=_marked(f"test_{name}", grade=True, locked=True, points=1)))
    return notebook(cells)


def _marked(name: str, **marks: Any) -> dict[str, Any]:
    plain = {"schema_version": 3, "grade": False, "solution": False, "locked": False, "task": False}
    return {"nbgrader": {**plain, "grade_id": name, **marks}}


# --- the tools --------------------------------------------------------------------------------------------------------


def grade_with_course(folder: Path, work: Path, count: int, jobs: int) -> tuple[Cost, list[set[str]]]:
    """`course grade` on the first submissions; also which answers of each passed."""
    part, out = work / f"course_{count}", work / f"course_{count}.json"
    part.mkdir(exist_ok=True)
    for file in sorted(folder.iterdir())[:count]:
        (part / file.name).write_bytes(file.read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(COURSE)}
    command = [sys.executable, "-m", "course_utils", "grade", part, "--json", out, "--device", "cpu", "--jobs", jobs]
    cost = timed(command, work, environment, work / "log")
    passed: dict[str, set[str]] = {file.name: set() for file in sorted(part.iterdir())}
    for row in json.loads(out.read_text())["results"]:
        if row["outcome"] == "passed":
            passed[row["submission"]].add(row["exercise"])
    return cost, list(passed.values())


def environment_of(python: Path, home: Path) -> dict[str, str]:
    """Variables for a tool in its own environment, away from this user's settings and kernels."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JUPYTER", "VIRTUAL"))}
    return {**kept, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)}


def make_environment(cache: Path, package: str) -> Path:
    """The Python of an environment in the cache that has the package and torch, made the first time."""
    place = cache / package
    python, done = place / "bin" / "python", place / "made"
    if not done.exists():
        print(f"making an environment for {package} in {place}; this takes minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        torch_version = f"torch=={torch.__version__.partition('+')[0]}"
        wanted = [package, torch_version, "numpy", "ipykernel", "-c", COURSE / "constraints.txt"]
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        done.touch()
    return python


OTTER_IN_ONE_PROCESS = """
import resource, sys, time
from otter.api import grade_submission

def processor():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)

for file in sys.argv[2:]:
    begin, used = time.perf_counter(), processor()
    grade_submission(file, sys.argv[1], quiet=True)
    print("took", time.perf_counter() - begin, processor() - used, flush=True)
"""


def grade_with_otter(python: Path, submissions: list[Any], work: Path) -> dict[str, Any]:
    """`otter run` for each submission, then otter's own function in one process for all."""
    tests, home = work / "tests", work / "home"
    tests.mkdir()
    for name in EXERCISES:
        (tests / f"{name}.py").write_text(otter_test(load_exercise(name)))
    environment, log = environment_of(python, home), work / "log"
    otter = [python, "-m", "otter"]
    timed([*otter, "generate", "-t", tests, "-o", work / "autograder.zip"], work, environment, log)
    files, costs, passed = [], [], []
    for number, submission in enumerate(submissions):
        file = work / f"student{number:03}.ipynb"
        nbformat.write(for_otter(submission), file)
        files.append(file)
        out = work / f"out{number:03}"
        out.mkdir()
        command = [*otter, "run", "-a", work / "autograder.zip", "-o", out, "--no-logo", file]
        costs.append(timed(command, work, environment, log))
        tests_run = json.loads((out / "results.json").read_text())["tests"]
        passed.append(_otter_passed(tests_run))
    command = [python, "-c", OTTER_IN_ONE_PROCESS, work / "autograder.zip", *files]
    together = timed(command, work, environment, log)
    took = [tuple(map(float, line.split()[1:])) for _, line in together.lines if line.startswith("took ")]
    wall, processor = map(statistics.mean, zip(*took, strict=True))
    each = [statistics.mean(column) for column in zip(*((c.wall, c.processor) for c in costs), strict=True)]
    largest = max(cost.largest for cost in costs)
    return {"each": Cost(*each, largest), "warm": Cost(wall, processor, together.largest), "passed": passed}


def _otter_passed(tests: list[dict[str, Any]]) -> set[str]:
    by_name = {name: [t for t in tests if name in t.get("name", "")] for name in EXERCISES}
    return {n for n, of in by_name.items() if of and sum(t.get("score", 0) for t in of) >= 1 - 1e-6}


NBGRADER_SCORES = """
import json, sys
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db") as book:
    for submission in book.assignment_submissions(sys.argv[1]):
        grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
        print("scores", submission.student.id, json.dumps({grade.name: grade.score for grade in grades}))
"""


def grade_with_nbgrader(python: Path, submissions: list[Any], work: Path) -> dict[str, Any]:
    """`nbgrader autograde`, of one submission and then of all."""
    home, source = work / "home", work / "source" / ASSIGNMENT
    source.mkdir(parents=True)
    environment, log = environment_of(python, home), work / "log"
    nbformat.write(nbgrader_source(), source / f"{ASSIGNMENT}.ipynb")
    (work / "nbgrader_config.py").write_text("c = get_config()\nc.CourseDirectory.course_id = 'course'\n")
    nbgrader = [python, "-m", "nbgrader"]
    timed([*nbgrader, "generate_assignment", ASSIGNMENT], work, environment, log)
    release = nbformat.read(work / "release" / ASSIGNMENT / f"{ASSIGNMENT}.ipynb", as_version=4)
    for number, answers in enumerate(submissions):
        for cell in release.cells:
            if cell.metadata.get("nbgrader", {}).get("grade_id") in answers:
                cell.source = answers[cell.metadata["nbgrader"]["grade_id"]][1]
        folder = work / "submitted" / f"student{number:03}" / ASSIGNMENT
        folder.mkdir(parents=True)
        nbformat.write(release, folder / f"{ASSIGNMENT}.ipynb")
    one = timed([*nbgrader, "autograde", ASSIGNMENT, "--student=student000"], work, environment, log)
    everyone = timed([*nbgrader, "autograde", ASSIGNMENT, "--force"], work, environment, log)
    scores = {}
    for _, line in timed([python, "-c", NBGRADER_SCORES, ASSIGNMENT], work, environment, log).lines:
        if line.startswith("scores "):
            _, student, data = line.split(" ", 2)
            scores[student] = {name.removeprefix("test_") for name, score in json.loads(data).items() if score}
    count = len(submissions)
    warm = everyone.warm((everyone.wall - everyone.moments("Converting notebook")[0]) / count, one, count - 1)
    return {"each": everyone.per(count), "warm": warm, "passed": [scores[name] for name in sorted(scores)]}


# --- one check in the notebook ----------------------------------------------------------------------------------------

LATENCY = """
import contextlib, io, statistics, time
{imports}
{answer}
{prepare}
times = []
for _ in range({checks} + 3):
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = {call}
    times.append(time.perf_counter() - begin)
print("took", 1000 * statistics.median(times[3:]), {verdict})
"""


def check_latency(python: Path | str, folder: Path, environment: dict[str, str], name: str, **parts: str) -> float:
    """Median milliseconds of a check of the right answer, in one process."""
    answer = solution_source(load_exercise(name))
    code = LATENCY.format(imports=IMPORTS, answer=answer, checks=CHECKS, **parts)
    lines = timed([python, "-c", code], folder, environment, folder / "log").lines
    took, verdict = next(line.split()[1:] for _, line in lines if line.startswith("took "))
    if verdict != "True":
        raise Failed(f"the right answer to {name} did not pass")
    return float(took)


def course_latency(name: str, work: Path) -> float:
    environment = {**os.environ, "PYTHONPATH": str(COURSE), "COURSE_DEVICE": "cpu"}
    parts = {"prepare": "from course_utils import check", "call": f"check({name})"}
    return check_latency(sys.executable, work, environment, name, **parts, verdict="result.outcome == 'passed'")


def otter_latency(python: Path, name: str, work: Path) -> float:
    environment = environment_of(python, work / "home")
    parts = {"prepare": f"import otter\ngrader = otter.Notebook(tests_dir={str(work / 'tests')!r})"}
    parts["call"] = f"grader.check({name!r}, global_env=globals())"
    return check_latency(python, work, environment, name, **parts, verdict="result.grade == 1")


# --- the comparison ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Build, grade with all three, print."""
    options = _options()
    submissions = build_class(options.submissions, options.seed)
    kinds = [kind for answers in submissions for kind, _ in answers.values()]
    print(f"{len(submissions)} submissions of {len(EXERCISES)} exercises: ", end="")
    print(", ".join(f"{kinds.count(kind)} answers {kind}" for kind in SHARES), end="; ")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="grading-") as name:
        work = Path(name)
        folder = work / "class"
        folder.mkdir()
        for number, answers in enumerate(submissions):
            nbformat.write(for_course(answers), folder / f"student{number:03}.ipynb")
        print(f"\n{'seconds a submission':<34}{'wall':>9}{'processor':>11}{'largest process':>18}")
        ours, passed = measure_course(folder, work, options)
        theirs = dict(measure_theirs(submissions[: options.theirs], work, options))
        for tool, result in theirs.items():
            print(agreement(tool, result["passed"], passed, submissions))
        print_ratios(ours, theirs)
        print_latencies(theirs, work, options)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def measure_course(folder: Path, work: Path, options: argparse.Namespace) -> tuple[dict[Any, Cost], list[set[str]]]:
    """The costs of `course grade`, by the number of jobs and whether the start counts; and what passed."""
    few, many = max(1, options.submissions // 4), options.submissions
    costs: dict[Any, Cost] = {}
    for jobs in (1, 2):
        small, _ = grade_with_course(folder, work, few, jobs)
        large, passed = grade_with_course(folder, work, many, jobs)
        moments = large.moments("student")
        wall = (moments[-1] - moments[0]) / (many - 1)
        costs[jobs, "each"], costs[jobs, "warm"] = large.per(many), large.warm(wall, small, many - few)
        tell(f"course grade --jobs {jobs}", costs[jobs, "each"])
        tell("  without its start", costs[jobs, "warm"])
        for count, cost in ((few, small), (many, large)):
            first, last = cost.moments("student")[0], cost.moments("student")[-1]
            words = f"first of {count} after {first:.1f} s, last after {last:.1f} s"
            print(f"  {words}; {cost.processor:.1f} s of processor, {cost.largest:.0f} MB", flush=True)
    return costs, passed


def measure_theirs(submissions: list[Any], work: Path, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """The name and result of each tool that works here; for the others the reason is printed."""
    tools = (
        ("nbgrader", grade_with_nbgrader, options.nbgrader_python),
        ("otter-grader", grade_with_otter, options.otter_python),
    )
    for tool, grade, python in tools:
        place = work / tool
        place.mkdir()
        try:
            python = python or make_environment(options.cache, tool)
            (place / "home").mkdir()
            timed(
                [python, "-c", IMPORTS + "import ipykernel"],
                place,
                environment_of(python, place / "home"),
                place / "log",
            )
            result = grade(python, submissions, place)
        except (Failed, OSError, subprocess.CalledProcessError) as error:
            print(f"{tool} could not be measured here: {error}", flush=True)
            continue
        command = "nbgrader autograde" if tool == "nbgrader" else "otter run"
        tell(command, result["each"])
        tell("  without its start" if tool == "nbgrader" else "  in one process", result["warm"])
        yield tool, {**result, "python": python, "work": place}


def tell(words: str, cost: Cost) -> None:
    """A line of the table."""
    print(f"{words:<34}{cost.wall:>9.3f}{cost.processor:>11.3f}{cost.largest:>15.0f} MB", flush=True)


def agreement(tool: str, theirs: list[set[str]], ours: list[set[str]], submissions: list[Any]) -> str:
    """How many answers the tool passed, and what only one of the two passed."""
    words = [f"{tool} passed {sum(map(len, theirs))} of {len(theirs) * len(EXERCISES)} answers"]
    for number, mine in enumerate(theirs):
        for name in sorted(mine ^ ours[number]):
            who = tool if name in mine else "course grade"
            words.append(f"only {who} passed student{number:03}'s {name} ({submissions[number][name][0]})")
    return "; ".join(words)


def print_ratios(ours: dict[Any, Cost], theirs: dict[str, Any]) -> None:
    """How many times as long the faster of the other two takes."""
    if not theirs:
        return
    print("\nthe faster of the others takes, times `course grade`")
    for jobs in (1, 2):
        for kind, words in (("each", "starts counted"), ("warm", "starts left out")):
            tool = min(theirs, key=lambda tool: theirs[tool][kind].wall)
            ratio = theirs[tool][kind].wall / ours[jobs, kind].wall
            processor = theirs[tool][kind].processor / ours[jobs, kind].processor
            print(f"  --jobs {jobs}, {words}: {ratio:.0f} in wall time, {processor:.0f} in processor time ({tool})")


def print_latencies(theirs: dict[str, Any], work: Path, options: argparse.Namespace) -> None:
    """`check` beside `grader.check`, on the right answers."""
    print(f"\n{'milliseconds of one check':<34}{'check':>9}{'grader.check':>15}")
    for name in EXERCISES:
        line = f"{name:<34}{course_latency(name, work):>9.1f}"
        if "otter-grader" in theirs:
            otter = theirs["otter-grader"]
            try:
                line += f"{otter_latency(otter['python'], name, otter['work']):>15.1f}"
            except Failed as error:
                line += f"  not measured: {error}"
        print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="course grade beside otter-grader and nbgrader, on the same answers")
    parser.add_argument("--submissions", type=int, default=20, help="size of the class (20)")
    parser.add_argument("--theirs", type=int, default=3, help="how many of them the other two grade, 2 or more (3)")
    parser.add_argument("--seed", type=int, default=0)
    cache = Path.home() / ".cache" / "pytorch-course"
    parser.add_argument("--cache", type=Path, default=cache, help=f"where environments are made ({cache})")
    parser.add_argument(
        "--otter-python", type=Path, help="the Python of an environment that has otter-grader and torch"
    )
    parser.add_argument("--nbgrader-python", type=Path, help="the Python of an environment that has nbgrader and torch")
    options = parser.parse_args()
    if not 2 <= options.theirs <= options.submissions:
        parser.error("--theirs has to be at least 2 and at most --submissions")
    for name in ("otter_python", "nbgrader_python"):
        python = getattr(options, name)
        setattr(options, name, python and python.absolute())
    return options


if __name__ == "__main__":
    main()
