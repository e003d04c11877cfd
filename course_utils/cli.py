"""The command `course`; also `python -m course_utils`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from course_utils.errors import CourseError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A CourseError becomes one clear message and exit code 1."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except CourseError as error:
        print(f"course: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("course: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="course", description="Build, check and grade the PyTorch course.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="name the weeks and their exercises")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=list_exercises)

    command = commands.add_parser("build", help="write notebooks/ and solutions/ from lessons/")
    command.add_argument("weeks", nargs="*", metavar="WEEK", help="only these, such as week01")
    command.add_argument("--check", action="store_true", help="write nothing; fail if a committed file differs")
    command.set_defaults(run=build_notebooks)

    command = commands.add_parser("grade", help="grade submissions")
    command.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="notebooks, percent scripts, or folders")
    command.add_argument("--json", type=Path, required=True, metavar="OUT", help="where the results go")
    command.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="default: COURSE_DEVICE, else cuda where there is one",
    )
    command.add_argument("--jobs", type=_positive(int), default=2, help="submissions at a time (2)")
    command.add_argument("--timeout", type=_positive(float), default=10.0, help="seconds for one exercise (10)")
    command.set_defaults(run=grade_submissions)

    command = commands.add_parser("start", help="copy the notebooks to work/")
    command.set_defaults(run=start_work)
    command = commands.add_parser("update", help="bring new notebook versions to work/, keeping your answers")
    command.set_defaults(run=update_work)
    command = commands.add_parser("doctor", help="say what this machine has and lacks")
    command.set_defaults(run=examine)
    return parser


def _positive(kind: type):
    def parse(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError("has to be above 0")
        return value

    return parse


def list_exercises(options: argparse.Namespace) -> int:
    """`course list`."""
    from course_utils.exercise import exercise_weeks, load_exercise

    rows = []
    for name, week in exercise_weeks().items():
        exercise = load_exercise(name)
        row = {"name": name, "week": week, "objectives": list(exercise.objectives)}
        row |= {
            "kind": "class" if exercise.is_class else "function",
            "bug_hunt": exercise.broken_version is not None,
        }
        row |= {
            "cases": len(exercise.cases),
            "misconceptions": [m.name for m in exercise.misconceptions],
        }
        rows.append(row)
    if options.json:
        print(json.dumps({"exercises": rows}, indent=1))
        return 0
    for row in rows:
        kind = "bug hunt" if row["bug_hunt"] else row["kind"]
        bank = f"{row['cases']:>2} cases, {len(row['misconceptions']):>2} misconceptions"
        print(f"{row['week']}  {row['name']:<24} {kind:<9} {bank}")
    return 0


def build_notebooks(options: argparse.Namespace) -> int:
    """`course build`."""
    from course_utils.build import build, course_root

    written = build(course_root(), check=options.check, weeks=options.weeks)
    print("\n".join(written) if written else "Every notebook is what its lesson says.")
    return 0


def grade_submissions(options: argparse.Namespace) -> int:
    """`course grade`."""
    from course_utils.classroom import Row, grade_class, write_json
    from course_utils.run import course_device

    if not options.json.resolve().parent.is_dir():
        raise CourseError(f"{options.json}: the folder for the results does not exist.")
    rows: list[Row] = []
    device = options.device or course_device()
    try:
        for graded in grade_class(options.paths, device=device, jobs=options.jobs, seconds=options.timeout):
            rows += graded
            counts = Counter(row.outcome for row in graded)
            words = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
            print(f"{graded[0].submission}: {words}", flush=True)
    finally:
        if rows:
            write_json(rows, options.json)
    return 0


def start_work(options: argparse.Namespace) -> int:
    """`course start`."""
    from course_utils.build import course_root
    from course_utils.workspace import start

    print("\n".join(start(course_root())))
    return 0


def update_work(options: argparse.Namespace) -> int:
    """`course update`."""
    from course_utils.build import course_root
    from course_utils.workspace import update

    print("\n".join(update(course_root())))
    return 0


def examine(options: argparse.Namespace) -> int:
    """`course doctor`; exit code 1 when something needed is missing."""
    from course_utils.doctor import report

    facts, missing = report()
    print("\n".join(facts + [f"MISSING: {line}" for line in missing]))
    return 1 if missing else 0
