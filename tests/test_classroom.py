"""Grading a class: what is read of a submission, what its answers can do to others, and what the report says."""

import ast
import json
import os
import threading
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from conftest import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils import workers
from course_utils.classroom import grade_class
from course_utils.errors import CourseError
from course_utils.exercise import load_exercise
from course_utils.marking import judge_submission
from course_utils.results import Graded, Results, Row, merge, read_results, write_results
from course_utils.run import Clock, Undisturbed, run_cases
from course_utils.submission import (
    LARGEST_KEPT,
    Cell,
    Submission,
    contents,
    definitions,
    find_files,
    open_submission,
    python_only,
    read_cells,
    run_definitions,
)
from course_utils.worker import decode_run, encode_run

RIGHT = {
    "double": "def double(values):\n    return 2 * values\n",
    "last_item": "def last_item(items):\n    return items[-1]\n",
    "Tally": (
        "class Tally:\n"
        "    def __init__(self, start=0):\n        self.total = start\n"
        "    def add(self, text):\n        self.total += len(text.split())\n        return self.total\n"
        "    @property\n    def is_empty(self):\n        return self.total == 0\n"
    ),
}


def notebook(file, *sources):
    """Write a notebook with these code cells."""
    cells = [new_markdown_cell("# My answers"), *(new_code_cell(dedent(source)) for source in sources)]
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), file)
    return file


def script(file, *sources):
    """Write a percent script with these code cells."""
    return write(file, "".join(f"# %%\n{dedent(source).strip()}\n\n" for source in sources))


def cells_of(*sources):
    """Code cells as they are read."""
    return [Cell(number, python_only(dedent(source))) for number, source in enumerate(sources, start=1)]


def test_only_one_thread_parses(copied_course, tmp_path, monkeypatch):
    """In Python 3.11 `ast.parse` can raise SystemError when the garbage collector lets another thread into it."""
    inside, parse = set(), ast.parse

    def watched(*args, **options):
        inside.add(threading.current_thread())
        return parse(*args, **options)

    monkeypatch.setattr(ast, "parse", watched)
    files = [script(tmp_path / f"{n}.py", RIGHT["double"], f"TEXT = {n * 'long' * LARGEST_KEPT!r}") for n in range(3)]
    assert [graded.rows[0].outcome for graded in grade_class(find_files(files))] == ["passed"] * 3
    assert inside == {threading.current_thread()}


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [notebook, script])
def test_notebooks_and_percent_scripts_are_read_cell_by_cell(tmp_path, make):
    file = make(tmp_path / f"a.{'ipynb' if make is notebook else 'py'}", "x = 1", "def f():\n    return x")
    assert read_cells(file) == [Cell(1, "x = 1"), Cell(2, "def f():\n    return x")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.ipynb", b'{"cells": [{"cell_ty', "cut.ipynb cannot be read as a notebook: it may be cut off or empty."),
        ("empty.ipynb", b"", "empty.ipynb cannot be read as a notebook: it may be cut off or empty."),
        ("list.ipynb", b"[]", "list.ipynb cannot be read as a notebook: it may be cut off or empty."),
        ("latin.py", b"# caf\xe9\n", r"latin.py is not UTF-8 text \(byte 5\)."),
        ("latin.ipynb", b'{"cells": ["\xe9"]}', r"latin.ipynb is not UTF-8 text \(byte 12\)."),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CourseError, match=f"^{message}$"):
        read_cells(tmp_path / name)


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path, monkeypatch):
    with pytest.raises(CourseError, match=r"^a\.py: there is no such file\.$"):
        read_cells(tmp_path / "a.py")
    monkeypatch.setattr("course_utils.submission.LARGEST_BYTES", 2**20)
    (tmp_path / "a.py").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(CourseError, match=r"^a\.py is larger than 1 MB; clear its outputs and hand in again\.$"):
        read_cells(tmp_path / "a.py")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("%matplotlib inline\nx = 1", "\nx = 1"),
        ("!pip install x\nx = 1", "\nx = 1"),
        ("?print\nprint?\nx = 1", "\n\nx = 1"),
        ("files = !ls\nt = %time f()\nx = 1", "\n\nx = 1"),
        ("  %time f()\nx = 1", "\nx = 1"),
        ("%%bash\nls", ""),
        ("%%time\nx = 1", "\nx = 1"),
        ("%%capture out\nx = 1", "\nx = 1"),
        ("x = (7\n     % 4)", "x = (7\n     % 4)"),
        ('text = """\n% of all?\n"""', 'text = """\n% of all?\n"""'),
        ("x = 3 != 4", "x = 3 != 4"),
    ],
)
def test_lines_for_ipython_become_blank_and_python_stays(source, expected):
    assert python_only(source) == expected


def test_only_imports_definitions_and_constants_are_kept():
    cells = cells_of("""
        import math
        from math import pi
        SIZE = 3
        BOTH = SIZE, [2 * pi, {"a": -1}]
        LIMIT: int = 5
        called = print("no")
        print("no")
        for i in range(3):
            pass
        if SIZE:
            pass
        with open("a") as f:
            pass
        SIZE += 1
        def f(): pass
        async def g(): pass
        class C: pass
    """)
    assert [statement.lineno for statement in definitions(cells[0].source)] == [2, 3, 4, 5, 6, 16, 17, 18]


def test_a_syntax_error_costs_its_cell_alone():
    seen = [contents(cell.source) for cell in cells_of("x = 1", "def f(:\n    pass", "def g(): pass", "print(1)")]
    assert [cell.is_run for cell in seen] == [True, False, True, False]
    assert [cell.problem for cell in seen] == ["", "a syntax error in line 1: invalid syntax", "", ""]


def test_defined_names_are_those_of_the_kept_statements():
    assert contents("x = y = 1\ndef f(): pass\nclass C: pass\nimport math\nz = f()").names == {"x", "y", "f", "C"}


def test_imports_that_no_answer_needs_are_flagged_wherever_they_stand():
    cells = cells_of(
        "import torch\nimport inspect, gc as g",
        "def f():\n    from course_utils.exercises.week01 import storage_index\n    from course_utils import exercises",
        "def broken(:",
        "import inspect",
    )
    assert [contents(cell.source).imports for cell in cells] == [
        ("inspect", "gc"),
        ("course_utils.exercises.week01", "course_utils.exercises.week01.storage_index", "course_utils.exercises"),
        (),
        ("inspect",),
    ]


def test_a_definition_that_fails_costs_its_name_alone_and_says_why():
    namespace, failures = run_definitions(
        cells_of(
            "import no_such_module",
            "def f(x=undefined): pass",
            "class C:\n    import sys\n    sys.exit(3)",
            "def g(): return 5",
        ),
        "a.py",
        Clock(1.0),
    )
    assert failures == {
        "no_such_module": "ModuleNotFoundError while defining no_such_module in code cell 1: "
        "No module named 'no_such_module'",
        "f": "NameError while defining f in code cell 2: name 'undefined' is not defined",
        "C": "SystemExit while defining C in code cell 3: 3",
    }
    assert namespace["g"]() == 5


def test_the_last_definition_of_a_name_counts():
    namespace, failures = run_definitions(cells_of("def f(): return 1", "def f(): return 2"), "a.py", Clock(1.0))
    assert (namespace["f"](), failures) == (2, {})


# --- finding submissions ------------------------------------------------------------------------------------------


def test_a_folder_holds_a_submission_for_each_notebook_and_script(sample_course, tmp_path):
    folder = tmp_path / "class"
    for name in ("ben/week90.ipynb", "ada/b.ipynb", "ada/.ipynb_checkpoints/b.ipynb", "__pycache__/x.ipynb"):
        notebook(folder / name, RIGHT["double"])
    script(folder / "cy.py", RIGHT["Tally"])
    (folder / "notes.txt").write_text("no")
    assert [name for _, name in find_files([folder])] == ["ada/b.ipynb", "ben/week90.ipynb", "cy.py"]


def test_files_of_several_folders_keep_apart_and_none_is_graded_twice(tmp_path):
    for student in ("ada", "ben"):
        (tmp_path / student / "work").mkdir(parents=True)
        (tmp_path / student / "work" / "week90.py").touch()
    folders = [tmp_path / "ada" / "work", tmp_path / "ben" / "work"]
    both = ["ada/work/week90.py", "ben/work/week90.py"]
    assert [name for _, name in find_files(folders)] == both
    assert [name for _, name in find_files([*folders, tmp_path / "ada" / "work" / "week90.py"])] == both
    assert [name for _, name in find_files([tmp_path / "ada" / "work" / "week90.py"])] == ["week90.py"]


def test_a_submission_is_graded_on_every_exercise_of_the_weeks_it_touches(sample_course, tmp_path):
    by_answer = script(tmp_path / "a.py", RIGHT["double"])
    by_name = script(tmp_path / "week90_empty.py", "x = 1")
    neither = script(tmp_path / "c.py", "x = 1")
    found = [open_submission(file, file.name) for file in (by_answer, by_name, neither)]
    assert [s.exercises for s in found] == [["double", "last_item", "Tally"]] * 2 + [[]]
    assert [s.problem for s in found] == ["", "", "c.py defines none of the course's exercises."]


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(CourseError, match="no such file or folder"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(CourseError, match=r"There is no \.ipynb or \.py file in what you gave"):
        find_files([tmp_path])


# --- between worker and judge -------------------------------------------------------------------------------------


def test_a_run_travels_as_json(sample_course):
    exercise = load_exercise("double")
    for run in run_cases(exercise, lambda values: values / 0, 0, detail=True):
        back = decode_run(json.loads(json.dumps(encode_run(run))))
        assert json.dumps(encode_run(back)) == json.dumps(encode_run(run))
        assert (back.case, len(back.calls)) == (run.case, len(run.calls))


class Written(workers.Slot):
    """A slot whose worker has written these lines and ended."""

    def __init__(self, text):
        self.text = text

    def lines(self, task, seconds):
        return iter(self.text.split(b"\n")[: self.text.count(b"\n") + 1] if self.text else [])

    def kill(self):
        pass

    def reason(self):
        return "it ended"


def collected(*lines):
    """What is understood of the lines that a worker wrote about `double` and `last_item`."""
    text = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    reports = workers.collect(Written(text), {"exercises": ["double", "last_item"], "seconds": 1.0})
    return {name: report.died or report.data for name, report in reports.items()}


BEGINS, REPORT = {"begins": "double"}, {"exercise": "double", "untouched": True}


def test_reports_are_collected_until_the_worker_ends():
    assert collected(BEGINS, REPORT) == {"double": REPORT}
    assert collected(BEGINS, REPORT, {"begins": "last_item"}) == {"double": REPORT, "last_item": "it ended"}


def test_a_worker_that_never_begins_costs_all_its_exercises_the_same():
    assert collected() == {"double": "it ended", "last_item": "it ended"}


@pytest.mark.parametrize(
    "garbage",
    [b"hello\n", b"[1, 2]\n", b"null\n", b"[" * 100_000 + b"\n", b"\xff\xfe\n", b'{"exercise": "double"', b"7\n"],
    ids=["text", "list", "null", "deep", "bytes", "half", "number"],
)
def test_garbage_in_the_pipe_costs_the_exercise_it_came_in(garbage):
    assert collected(BEGINS, garbage, REPORT) == {"double": "it ended"}


def test_a_report_about_another_exercise_than_the_one_begun_is_ignored():
    assert collected(BEGINS, {"exercise": "last_item", "untouched": True}) == {"double": "it ended"}


def forged(**changes):
    """A report of `double` with a single forged run."""
    plain = ["plain", None]
    run = {"case": "some_numbers", "lines": [], "stopped": "", "forbidden": "", "left": [], "output": "", "calls": []}
    run |= {"observation": plain, "arguments": plain, "raised": plain}
    return {"exercise": "double", "runs": [run | changes]}


@pytest.mark.parametrize(
    "data",
    [
        {"exercise": "double"},
        {"exercise": "double", "runs": None},
        {"exercise": "double", "runs": []},
        {"exercise": "double", "runs": [7]},
        {"exercise": "double", "runs": forged()["runs"] * 3},
        forged(raised=["plain", True]),
        forged(observation=["tensor", "tensor", ["AAAA", "float32"], [5], "torch.float32", "cpu", False, "strided"]),
        forged(
            observation=["tensor", "tensor", ["AAAAAAAA", "int8"], [3, 2], "torch.float32", "cpu", False, "strided"]
        ),
        forged(observation=["items", ["list"], None, []]),
        forged(calls=[["f", [1], 2, 3, 4, 5]]),
        forged(calls=7),
    ],
    ids=lambda data: json.dumps(data)[:60],
)
def test_a_report_that_makes_no_sense_is_an_error_of_that_exercise_alone(sample_course, data):
    submission = Submission("a.py", Path("a.py"), "", [], ["double", "last_item"])
    reports = {"double": workers.Report(data, 0.1), "last_item": workers.Report({"untouched": True}, 0.1)}
    rows = judge_submission(submission, reports, Undisturbed(0)).rows
    assert [row.outcome for row in rows] in (["error", "not attempted"], ["failed", "not attempted"])
    assert rows[0].message.startswith("double")


ROW = Row("ä.py", "double", "passed", seconds=0.5, flags=["imports gc"])
SETTINGS = {"seed": 500, "device": "cpu"}


def test_results_are_written_complete_or_not_at_all_and_read_again(tmp_path):
    results = Results(SETTINGS, [Graded("ä.py", "d1", [ROW], {"double": "f1"})])
    write_results(results, tmp_path / "out.json")
    data = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert data["results"] == [
        {
            "submission": "ä.py",
            "exercise": "double",
            "outcome": "passed",
            "misconception": None,
            "message": "",
            "seconds": 0.5,
            "flags": ["imports gc"],
        }
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    assert read_results(tmp_path / "out.json") == results


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": [{}]}', '{"results": [], "submissions": []}'])
def test_a_file_that_holds_no_results_is_refused(tmp_path, text):
    (tmp_path / "out.json").write_text(text)
    with pytest.raises(CourseError, match=r"out\.json does not hold results of `course grade`"):
        read_results(tmp_path / "out.json")
    with pytest.raises(CourseError, match="there is no such file"):
        read_results(tmp_path / "nowhere.json")


def part(*names, settings=SETTINGS, fingerprint="f", digest=""):
    """Results of submissions that all wrote the same answer to `double`."""
    return Results(
        settings,
        [Graded(n, digest or n, [Row(n, "double", "passed")], {"double": fingerprint}) for n in names],
    )


def test_parts_are_merged_in_order_of_names():
    merged = merge([("1.json", part("b", "d")), ("2.json", part("a", "c", "b"))])
    assert [graded.submission for graded in merged.graded] == ["a", "b", "c", "d"]
    with pytest.raises(CourseError, match=r"2\.json was graded with other settings"):
        merge([("1.json", part("a")), ("2.json", part("b", settings={"seed": 7}))])
    with pytest.raises(CourseError, match=r"a is another file in 2\.json than in 1\.json"):
        merge([("1.json", part("a", digest="x")), ("2.json", part("a", digest="y"))])


def test_identical_answers_are_flagged_in_a_batch_and_over_merged_parts(tmp_path):
    one, two = part("a", "b"), part("c", "d", "e")
    for results in (one, two):
        write_results(results, tmp_path / "out.json")
    assert [row.flags for row in one.rows] == [["identical to b"], ["identical to a"]]
    merged = merge([("1", one), ("2", two)])
    write_results(merged, tmp_path / "out.json")
    assert merged.rows[0].flags == ["identical to b, c, d and 1 more"]
    assert [row.outcome for row in merged.rows] == ["passed"] * 5


def test_a_fingerprint_sees_the_code_and_not_its_dress():
    long = " + ".join(f"a * {i}" for i in range(12))
    cells = [
        f"def f(a):\n    return {long}",
        f'def f(a):\n    """Sum."""\n    # so\n    return (\n        {long}\n    )',
        f"def f(a):\n    return 1 + {long}",
        "def f(a):\n    return a",
    ]
    first, dressed, other, short = (contents(cell).digests.get("f") for cell in cells)
    assert first == dressed != other
    assert short is None


# --- a class ------------------------------------------------------------------------------------------------------

OPEN_PIPES = """
def open_pipes():
    import os
    import stat
    for number in range(3, 40):
        try:
            if stat.S_ISFIFO(os.fstat(number).st_mode):
                yield number
        except OSError:
            pass
"""


def hand_in(folder):
    """A class of students, one file each."""
    script(
        folder / "ada.py",
        "%matplotlib inline\nimport torch\nfrom course_utils import check, hint\nFACTOR = 2",
        f"open({str(folder / 'was_run.txt')!r}, 'w').write('top-level code ran')\nwhile True:\n    pass",
        "!ls\n%time print(3)\ndef double(values: torch.Tensor):\n    return FACTOR * values",
        "%%time\n" + RIGHT["last_item"],
        RIGHT["Tally"] + "\ncheck(Tally)",
    )
    notebook(
        folder / "ben.ipynb",
        "import os, time",
        "def double(values):\n    os._exit(0)",
        "def last_item(items):\n    while True:\n        try:\n            time.sleep(0.01)\n"
        "        except:\n            pass",
        RIGHT["Tally"],
    )
    script(
        folder / "cy.py",
        "import torch, os, inspect",
        OPEN_PIPES,
        "class Yes:\n    def __eq__(self, other):\n        return True\n    def __len__(self):\n        return 6",
        "def double(values):\n    torch.equal = torch.allclose = torch.isclose = lambda *args, **kwargs: True\n"
        "    print('x' * 10**7)\n    return Yes()",
        "def last_item(items):\n    for pipe in open_pipes():\n        os.write(pipe, b'[' * 10**5 + b'\\n')\n"
        "    return items[-1]",
        RIGHT["Tally"],
    )
    notebook(
        folder / "dee.ipynb",
        "import sys, torch",
        "def double(values)\n    return 2 * values",
        "def last_item(items):\n    sys.exit('done')",
        "class Tally:\n    sys.exit()",
    )
    notebook(folder / "eve.ipynb", RIGHT["double"].replace("2 * values", "values * values"))
    (folder / "week90_cut_off.ipynb").write_bytes(b'{"cells": [{"cell_ty')
    (folder / "week90_empty.ipynb").write_bytes(b"")
    (folder / "week90_latin.py").write_bytes(b"# caf\xe9\n")


def test_a_class_with_hostile_answers(copied_course, tmp_path):
    """Each answer costs its own exercise at most; whoever is right beside it keeps the credit."""
    folder = tmp_path / "class"
    hand_in(folder)
    rows = [row for graded in grade_class(find_files([folder]), seconds=1.0) for row in graded.rows]
    of = {(row.submission, row.exercise): row for row in rows}

    assert {key: row.outcome for key, row in of.items()} == {
        ("ada.py", "double"): "passed",
        ("ada.py", "last_item"): "passed",
        ("ada.py", "Tally"): "passed",
        ("ben.ipynb", "double"): "error",
        ("ben.ipynb", "last_item"): "error",
        ("ben.ipynb", "Tally"): "passed",
        ("cy.py", "double"): "failed",
        ("cy.py", "last_item"): "error",
        ("cy.py", "Tally"): "passed",
        ("dee.ipynb", "double"): "error",
        ("dee.ipynb", "last_item"): "error",
        ("dee.ipynb", "Tally"): "error",
        ("eve.ipynb", "double"): "failed",
        ("eve.ipynb", "last_item"): "not attempted",
        ("eve.ipynb", "Tally"): "not attempted",
        **{(f"week90_{name}", e): "error" for name in ("cut_off.ipynb", "empty.ipynb", "latin.py") for e in RIGHT},
    }
    assert not (folder / "was_run.txt").exists()
    assert of["ada.py", "double"].message == "double: passed, 1 of 1 cases"
    assert "it ended the whole process (exit code 0)" in of["ben.ipynb", "double"].message
    assert "stopped after 1 s; a loop may never end" in of["ben.ipynb", "last_item"].message
    assert "came back: an object of type Yes" in of["cy.py", "double"].message
    assert len(of["cy.py", "double"].message) < 2000
    changes = ["changes torch.allclose", "changes torch.equal", "changes torch.isclose"]
    assert of["cy.py", "double"].flags == ["imports inspect", *changes]
    assert of["cy.py", "last_item"].flags == of["cy.py", "Tally"].flags == ["imports inspect"]
    assert [(row, row.flags) for row in rows if row.flags and row.submission != "cy.py"] == []
    assert of["dee.ipynb", "double"].message == "code cell 2 has a syntax error in line 1: expected ':'"
    assert "SystemExit: done" in of["dee.ipynb", "last_item"].message
    assert of["dee.ipynb", "Tally"].message == "SystemExit while defining Tally in code cell 4: "
    assert of["eve.ipynb", "double"].misconception == "squares"
    assert of["eve.ipynb", "Tally"].message == "Tally is not defined in this submission."
    assert of["week90_latin.py", "double"].message == "week90_latin.py is not UTF-8 text (byte 5)."

    write_results(Results({}, [Graded("all", "", rows, {})]), tmp_path / "out.json")
    results = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]
    assert len(results) == 24
    kinds = {
        "submission": str,
        "exercise": str,
        "outcome": str,
        "misconception": str | None,
        "message": str,
        "seconds": float,
        "flags": list,
    }
    for row in results:
        assert list(row) == list(kinds)
        assert all(isinstance(row[name], kind) for name, kind in kinds.items())
        assert row["outcome"] in ("passed", "failed", "not attempted", "error")
    assert os.getcwd() != str(folder)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there is a fork server on Linux alone")
def test_a_kill_that_comes_after_the_worker_has_ended_costs_nobody_anything(copied_course):
    processes = workers.Workers(1, {"week90"}, seed=0, device="cpu", seconds=5.0)
    task = "a.py", [Cell(1, RIGHT["double"])], ["double"]
    try:
        first = processes.run(*task)
        processes._slots[0].kill()
        second = processes.run(*task)
    finally:
        processes.close()
    assert [reports["double"].died for reports in (first, second)] == ["", ""]


def test_without_a_fork_server_each_submission_has_a_python_of_its_own(copied_course, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    ends = script(tmp_path / "a.py", "import os\ndef double(values):\n    os._exit(3)", RIGHT["last_item"])
    hangs = script(
        tmp_path / "b.py", "import signal, time\ndef double(values):\n    signal.alarm(0)\n"
        "    signal.signal(signal.SIGALRM, signal.SIG_IGN)\n    time.sleep(99)", RIGHT["Tally"]
    )  # fmt: skip
    rows = [row for graded in grade_class(find_files([ends, hangs]), seconds=1.0) for row in graded.rows]
    assert [row.outcome for row in rows] == ["error", "passed", "not attempted", "error", "not attempted", "passed"]
    assert "it ended the whole process (exit code 3)" in rows[0].message
    assert "did not come to an end in its time" in rows[3].message


@pytest.mark.parametrize("week", ["week06", "week12"])
def test_what_a_lesson_itself_imports_is_not_flagged(week):
    files = find_files(sorted((Path(__file__).parent.parent / "notebooks").glob(f"{week}_*.ipynb")))
    [graded] = grade_class(files)
    assert [(row.outcome, row.flags) for row in graded.rows] == [("not attempted", [])] * len(graded.rows)
    assert graded.rows
