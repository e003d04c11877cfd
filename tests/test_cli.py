"""The command `course`: what each subcommand prints, exit codes, and one clear line for what went wrong."""

import json
import subprocess
import sys

import pytest
from conftest import write

from course_utils import classroom, doctor
from course_utils.cli import main
from course_utils.errors import CourseError
from course_utils.results import Graded, Row


def run(capsys, *arguments):
    """Run the command in this process; returns exit code, output, errors."""
    code = main(arguments)
    return code, *capsys.readouterr()


@pytest.fixture
def in_course(sample_course, monkeypatch):
    """The sample course as the current folder."""
    monkeypatch.chdir(sample_course)
    return sample_course


@pytest.fixture
def grading_course(copied_course, monkeypatch):
    """The sample course with its package, as the current folder, so that processes that grade find it."""
    monkeypatch.chdir(copied_course)
    return copied_course


# --- list ---------------------------------------------------------------------------------------------------------


def test_list_names_every_exercise_on_a_line(capsys, sample_course):
    assert run(capsys, "list") == (
        0,
        "week90  double                   function   1 cases,  1 misconceptions\n"
        "week90  last_item                bug hunt   1 cases,  1 misconceptions\n"
        "week90  Tally                    class      1 cases,  1 misconceptions\n",
        "",
    )


def test_list_as_json_has_every_fact(capsys, sample_course):
    code, output, errors = run(capsys, "list", "--json")
    assert (code, errors) == (0, "")
    assert json.loads(output)["exercises"][1:] == [
        {
            "name": "last_item",
            "week": "week90",
            "objectives": ["sample.count"],
            "kind": "function",
            "bug_hunt": True,
            "cases": 1,
            "misconceptions": ["one_too_few"],
        },
        {
            "name": "Tally",
            "week": "week90",
            "objectives": ["sample.count"],
            "kind": "class",
            "bug_hunt": False,
            "cases": 1,
            "misconceptions": ["Letters"],
        },
    ]


def test_the_module_is_the_command(copied_course):
    command = [sys.executable, "-m", "course_utils", "list", "--json"]
    done = subprocess.run(command, cwd=copied_course, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["name"] for row in json.loads(done.stdout)["exercises"]] == ["double", "last_item", "Tally"]


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--check"], "notebooks/week90_samples.ipynb is missing; `make build` writes it."),
        (["build", "week91"], "There is no lesson for week91."),
        (["start"], "There are no notebooks/*.ipynb; `make build` writes them from the lessons."),
        (["update"], "There are no notebooks/*.ipynb; `make build` writes them from the lessons."),
        (["grade", "nowhere", "--json", "out.json"], "nowhere: there is no such file or folder."),
        (["grade", "lessons", "--json", "out.json"], "There is no .ipynb or .py file in what you gave; name files, "),
        (["grade", "a.py", "--json", "out.json", "--week", "week7"], "There is no week called week7; `course "),
        (["report", "nowhere.json", "--json", "out.json"], "nowhere.json: there is no such file."),
        (["grade", "lessons", "--json", "no/out.json"], "no/out.json: the folder for it does not exist."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_problem_is_one_message_on_stderr_and_exit_code_1(capsys, in_course, arguments, message):
    code, output, errors = run(capsys, *arguments)
    assert (code, output) == (1, "")
    assert errors.startswith(f"course: {message}")
    assert "Traceback" not in errors
    assert not (in_course / "out.json").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("COURSE_DEVICE", "tpu", "COURSE_DEVICE is 'tpu'; it can be cpu or cuda."),
        ("COURSE_SEED", "many", "COURSE_SEED is 'many'; it can be a whole number such as 7."),
    ],
)
def test_a_wrong_setting_is_one_line(capsys, in_course, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    write(in_course / "a.py", "def double(values):\n    return values\n")
    assert run(capsys, "grade", "a.py", "--json", "out.json") == (1, "", f"course: {message}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["grade", "a.py"],
        ["grade", "--json", "out.json"],
        ["grade", "a.py", "--json", "out.json", "--jobs", "0"],
        ["grade", "a.py", "--json", "out.json", "--timeout", "-1"],
        ["grade", "a.py", "--json", "out.json", "--device", "tpu"],
        ["grade", "a.py", "--json", "out.json", "--shard", "3/2"],
        ["grade", "a.py", "--json", "out.json", "--shard", "half"],
        ["report", "--json", "out.json"],
    ],
    ids=" ".join,
)
def test_a_command_that_is_not_understood_ends_with_exit_code_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: course")


def test_without_a_command_there_is_the_list_of_commands(capsys):
    code, output, errors = run(capsys)
    assert (code, errors) == (2, "")
    assert output.startswith("usage: course") and "grade what is in work/ and say where you stand" in output


def test_an_interrupt_ends_quietly(capsys, in_course, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("course_utils.workspace.start", interrupted)
    assert run(capsys, "start") == (130, "", "course: interrupted\n")


# --- progress -----------------------------------------------------------------------------------------------------


def test_progress_grades_what_is_in_work_and_leaves_backups_alone(capsys, in_course, monkeypatch):
    for folder, name in (("notebooks", "week90_samples"), ("work", "week90_samples"), ("work", "week90_samples_old")):
        write(in_course / folder / f"{name}.ipynb", '{"cells": []}')
    rows = [Row("a", "double", "passed"), Row("a", "last_item", "failed"), Row("a", "Tally", "not attempted")]

    def grade_class(files, **options):
        assert [name for _, name in files] == ["week90_samples.ipynb"]
        yield Graded("a", "digest", rows, {})

    monkeypatch.setattr(classroom, "grade_class", grade_class)
    code, output, errors = run(capsys, "progress")
    assert (code, errors) == (0, "Grading 1 notebook …\n")
    assert output.startswith("Samples: 1 of 3 exercises pass, 1 of 2 objectives of the exercises are met.\n")
    assert "Next: last_item is begun and does not pass yet; check(last_item) says why.\n" in output
    rows[:2] = [Row("a", name, "not attempted") for name in ("double", "last_item")]
    assert run(capsys, "progress", "week90")[1] == "Not begun: week90. Open week90_samples.ipynb when you are ready.\n"


def test_progress_names_notebooks_that_are_damaged_or_missing(capsys, in_course, monkeypatch):
    for name in ("week90_samples", "week91_more", "week92_rest"):
        write(in_course / "notebooks" / f"{name}.ipynb", '{"cells": []}')
    write(in_course / "work" / "week90_samples.ipynb", '{"cells": [{"cell_ty')
    write(in_course / "work" / "week91_more.ipynb", '{"cells": []}')
    monkeypatch.setattr(classroom, "grade_class", lambda files, **options: iter(()))
    code, _, errors = run(capsys, "progress")
    damaged, missing, grading = errors.splitlines()
    assert code == 1 and grading == "Grading 1 notebook …"
    assert damaged.startswith("work/week90_samples.ipynb cannot be read as a notebook: it may be cut off or empty.")
    assert damaged.endswith(" Move it away, and `course start` puts a fresh copy there.")
    assert missing == "Not in work/: week92_rest.ipynb. `course start` puts what is missing there."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "There are no notebooks in work/; `course start` puts them there."),
        (("week91",), "There is no notebook of week91 in work/; `course start` puts those of all weeks there."),
    ],
)
def test_progress_without_notebooks_says_what_to_do(capsys, in_course, arguments, message):
    write(in_course / "notebooks" / "week90_samples.ipynb", "{}")
    assert run(capsys, "progress", *arguments) == (1, "", f"course: {message}\n")


# --- grade --------------------------------------------------------------------------------------------------------


def graded(*rows):
    """A stand-in for grading that gives these rows of one submission, then ends or raises."""

    def grade_class(paths, **options):
        for row in rows:
            if isinstance(row, Exception):
                raise row
            yield Graded(row.submission, "digest", [row], {})

    return grade_class


ROW = Row("a.py", "double", "passed", seconds=0.1)


def test_grade_writes_the_results_and_prints_a_line_for_each_submission(capsys, in_course, monkeypatch):
    write(in_course / "a.py", "x = 1")
    monkeypatch.setattr(classroom, "grade_class", graded(ROW))
    assert run(capsys, "grade", "a.py", "--json", "out.json") == (0, "a.py: 1 passed\n", "")
    assert json.loads((in_course / "out.json").read_text())["results"][0]["outcome"] == "passed"


def test_grade_keeps_what_it_has_when_something_breaks_later(capsys, in_course, monkeypatch):
    write(in_course / "a.py", "x = 1")
    monkeypatch.setattr(classroom, "grade_class", graded(ROW, CourseError("it broke")))
    assert run(capsys, "grade", "a.py", "--json", "out.json") == (1, "a.py: 1 passed\n", "course: it broke\n")
    assert len(json.loads((in_course / "out.json").read_text())["results"]) == 1


def test_resume_grades_what_is_new_or_changed_alone(capsys, grading_course, monkeypatch):
    for name in ("a.py", "b.py"):
        (grading_course / name).write_text("def double(values):\n    return 2 * values\n")
    command = ["grade", "a.py", "b.py", "--json", "out.json", "--device", "cpu"]
    assert run(capsys, *command, "--shard", "1/2")[0] == 0
    first = json.loads((grading_course / "out.json").read_text())
    assert {row["submission"] for row in first["results"]} == {"a.py"}
    code, out, _ = run(capsys, *command, "--resume")
    assert (code, out.split("\n")[0]) == (0, "1 of 2 submissions were graded before and did not change.")
    second = json.loads((grading_course / "out.json").read_text())
    assert second["results"][:3] == first["results"]
    assert {row["submission"] for row in second["results"]} == {"a.py", "b.py"}
    (grading_course / "a.py").write_text("def double(values):\n    return values * values\n")
    assert run(capsys, *command, "--resume")[0] == 0
    rows = json.loads((grading_course / "out.json").read_text())["results"]
    assert [row["misconception"] for row in rows if row["exercise"] == "double"] == ["squares", None]
    code, _, error = run(capsys, *command, "--resume", "--timeout", "3")
    assert (code, "was graded with other settings" in error) == (1, True)


def test_shards_merged_equal_a_plain_run(capsys, grading_course):
    for name, body in {"a": "values + values", "b": "values * values", "c": "None"}.items():
        (grading_course / f"{name}.py").write_text(f"def double(values):\n    return {body}\n")
    files = ["a.py", "b.py", "c.py", "--device", "cpu"]
    run(capsys, "grade", *files, "--json", "whole.json")
    for shard in ("1/2", "2/2"):
        run(capsys, "grade", *files, "--shard", shard, "--json", f"part{shard[0]}.json")
    assert run(capsys, "report", "part2.json", "part1.json", "--json", "merged.json")[0] == 0
    whole, merged = (json.loads((grading_course / f"{name}.json").read_text()) for name in ("whole", "merged"))
    for row in whole["results"] + merged["results"]:
        row["seconds"] = 0
    assert merged == whole


# --- start, update ------------------------------------------------------------------------------------------------


def test_start_and_update_print_a_line_for_each_notebook(capsys, in_course):
    (in_course / "notebooks").mkdir()
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (in_course / "notebooks" / "a.ipynb").write_text(json.dumps(notebook))
    assert run(capsys, "start") == (0, "work/a.ipynb is new.\n", "")
    assert run(capsys, "start") == (0, "work/a.ipynb is there already and stays as it is.\n", "")
    assert run(capsys, "update") == (0, "work/a.ipynb is up to date.\n", "")


# --- doctor -------------------------------------------------------------------------------------------------------


def test_doctor_names_versions_device_and_threads(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    code, output, errors = run(capsys, "doctor")
    assert (code, errors) == (0, "")
    starts = ("Python 3.", "torch ", "jupyterlab ", "device: ", "threads: ")
    assert all(any(line.startswith(start) for line in output.split("\n")) for start in starts)
    assert "(OMP_NUM_THREADS is 1)" in output
    assert "COURSE_DEVICE is cpu\n" in output
    assert output.endswith("All that the lessons need is here.\n")


def test_doctor_says_how_to_get_what_is_missing_and_ends_with_exit_code_1(capsys, monkeypatch):
    there = doctor._has
    monkeypatch.setattr(doctor, "_has", lambda name: name != "jupyterlab" and there(name))
    code, output, _ = run(capsys, "doctor")
    assert code == 1
    problem = "PROBLEM: jupyterlab is missing: pip install -e . -c constraints.txt\n"
    assert output.endswith(problem + "The lessons will not run like this.\n")


def test_doctor_says_that_torch_does_not_load(capsys, monkeypatch):
    def broken():
        raise OSError("libtorch_cpu.so: undefined symbol\nand more")

    monkeypatch.setattr(doctor, "_torch_facts", broken)
    code, output, _ = run(capsys, "doctor")
    assert code == 1
    assert "PROBLEM: torch does not load (libtorch_cpu.so: undefined symbol): pip install " in output


def test_doctor_without_what_only_tests_need_gives_a_note(capsys, monkeypatch):
    there = doctor._has
    monkeypatch.setattr(doctor, "_has", lambda name: name != "playwright" and there(name))
    code, output, _ = run(capsys, "doctor")
    assert code == 0
    assert "note: playwright is missing; the browser tests need it" in output
