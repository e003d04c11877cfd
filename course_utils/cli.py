"""The command `course`; also `python -m course_utils`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

if TYPE_CHECKING:
    from course_utils.results import Graded, Results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A CourseError becomes one clear message and exit code 1."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        return 2
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
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    command = commands.add_parser("list", help="name the weeks and their exercises")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=list_exercises)

    command = commands.add_parser("build", help="write notebooks/ and solutions/ from lessons/")
    command.add_argument("weeks", nargs="*", metavar="WEEK", help="only these, such as week01")
    command.add_argument("--check", action="store_true", help="write nothing; fail if a committed file differs")
    command.set_defaults(run=build_notebooks)

    command = commands.add_parser("grade", help="grade submissions")
    command.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="notebooks, percent scripts, or folders")
    _add_outputs(command)
    command.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="default: COURSE_DEVICE, else cuda where there is one",
    )
    command.add_argument("--jobs", type=_positive(int), default=2, help="submissions at a time (2)")
    command.add_argument("--timeout", type=_positive(float), default=10.0, help="seconds for one exercise (10)")
    command.add_argument("--week", default="", metavar="WEEK", help="grade this week alone, such as week03")
    command.add_argument("--resume", action="store_true", help="keep what OUT holds of submissions that did not change")
    command.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="grade the I-th of N parts")
    command.add_argument("--cluster", metavar="ADDRESS", help="grade on the workers of this Dask scheduler")
    command.set_defaults(run=grade_submissions)

    command = commands.add_parser("report", help="merge results of `course grade` and write reports")
    command.add_argument("parts", nargs="+", type=Path, metavar="RESULTS", help="files that `course grade` wrote")
    _add_outputs(command)
    command.set_defaults(run=report_results)

    command = commands.add_parser("start", help="copy the notebooks to work/")
    command.set_defaults(run=start_work)
    command = commands.add_parser("update", help="bring new notebook versions to work/, keeping your answers")
    command.set_defaults(run=update_work)
    command = commands.add_parser("progress", help="grade what is in work/ and say where you stand")
    command.add_argument("weeks", nargs="*", metavar="WEEK", help="only these, such as week01")
    command.set_defaults(run=show_progress)
    command = commands.add_parser("doctor", help="say what this machine has and lacks")
    command.set_defaults(run=examine)
    return parser


def _add_outputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", type=Path, required=True, metavar="OUT", help="where the results go")
    command.add_argument("--csv", type=Path, metavar="OUT", help="also a table, one row a student")
    command.add_argument("--html", type=Path, metavar="FOLDER", help="also pages to read: the class, and each student")
    command.add_argument(
        "--gradescope", type=Path, metavar="OUT", help="also Gradescope's results.json, of one student"
    )


def _shard(text: str) -> tuple[int, int]:
    part, _, count = text.partition("/")
    if not (part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise argparse.ArgumentTypeError("has to be like 2/4: the second of four parts")
    return int(part), int(count)


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
    """`course grade`. What was graded is written even when the rest is interrupted."""
    from course_utils.classroom import grade_class
    from course_utils.exercise import exercise_weeks
    from course_utils.results import Results
    from course_utils.settings import class_seed, course_device
    from course_utils.submission import find_files

    _refuse_missing_folders(options)
    if options.week and options.week not in exercise_weeks().values():
        raise CourseError(f"There is no week called {options.week}; `course list` names them.")
    part, parts = options.shard
    files = find_files(options.paths)[part - 1 :: parts]
    device = options.device if options.device and options.cluster else course_device(options.device or "")
    settings = {"seed": class_seed(), "device": device, "seconds": options.timeout, "week": options.week}
    results = Results(settings)
    if options.resume and options.json.exists():
        results, files = _resumed(options.json, settings, files)
    grade = grade_class
    if options.cluster:
        from course_utils.cluster import grade_on_cluster

        grade = partial(grade_on_cluster, options.cluster)
    try:
        graded = grade(files, week=options.week, device=device, jobs=options.jobs, seconds=options.timeout)
        for number, submission in enumerate(graded, start=1):
            results.graded.append(submission)
            _tell(submission, number, len(files))
    finally:
        results.graded.sort(key=lambda graded: graded.submission)
        if results.graded:
            _write_outputs(results, options)
    return 0


def _resumed(
    file: Path, settings: dict[str, Any], files: list[tuple[Path, str]]
) -> tuple[Results, list[tuple[Path, str]]]:
    """What the file holds of submissions that did not change since, and the files that are left to grade."""
    from course_utils.results import read_results
    from course_utils.submission import file_digest

    results = read_results(file)
    if results.settings != settings:
        raise CourseError(f"{file} was graded with other settings: {results.settings}, not {settings}.")
    digests = {name: file_digest(path) for path, name in files}
    results.graded = [graded for graded in results.graded if digests.get(graded.submission) == graded.digest]
    kept = {graded.submission for graded in results.graded}
    print(f"{len(kept)} of {len(files)} submissions were graded before and did not change.", flush=True)
    return results, [(path, name) for path, name in files if name not in kept]


def _tell(graded: Graded, number: int, count: int) -> None:
    """A line for each submission; on a terminal a bar that fills."""
    if sys.stdout.isatty():
        width = 30 * number // count
        end = "\n" if number == count else ""
        print(f"\r[{'#' * width}{'.' * (30 - width)}] {number} of {count} submissions", end=end, flush=True)
        return
    counts = Counter(row.outcome for row in graded.rows)
    words = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(f"{graded.submission}: {words}", flush=True)


def report_results(options: argparse.Namespace) -> int:
    """`course report`."""
    from course_utils.results import merge, read_results

    _refuse_missing_folders(options)
    results = merge((str(part), read_results(part)) for part in options.parts)
    _write_outputs(results, options)
    print(f"{len(results.graded)} submissions, {len(results.rows)} rows.")
    return 0


def _refuse_missing_folders(options: argparse.Namespace) -> None:
    for file in (options.json, options.csv, options.html, options.gradescope):
        if file is not None and not file.resolve().parent.is_dir():
            raise CourseError(f"{file}: the folder for it does not exist.")


def _write_outputs(results: Results, options: argparse.Namespace) -> None:
    from course_utils.reports import write_csv, write_gradescope, write_html
    from course_utils.results import write_results

    write_results(results, options.json)
    if options.csv:
        write_csv(results, options.csv)
    if options.html:
        write_html(results, options.html)
    if options.gradescope:
        write_gradescope(results, options.gradescope)


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


def show_progress(options: argparse.Namespace) -> int:
    """`course progress`: what the notebooks in work/ hold now, whatever was checked before."""
    from course_utils.build import course_root
    from course_utils.classroom import grade_class
    from course_utils.exercise import exercise_weeks, load_exercise, week_order
    from course_utils.settings import course_device
    from course_utils.submission import read_cells
    from course_utils.workspace import course_notebooks, own_notebooks

    root, files, unreadable = course_root(), [], False
    for file in own_notebooks(root, options.weeks):
        try:
            read_cells(file)
        except CourseError as error:
            unreadable = True
            print(f"work/{error} Move it away, and `course start` puts a fresh copy there.", file=sys.stderr)
        else:
            files.append((file, file.name))
    missing = [file.name for file in course_notebooks(root) if not (root / "work" / file.name).exists()]
    if missing and not options.weeks:
        print(f"Not in work/: {', '.join(missing)}. `course start` puts what is missing there.", file=sys.stderr)
    print(f"Grading {len(files)} notebook{'s' * (len(files) != 1)} …", file=sys.stderr, flush=True)
    outcomes: dict[str, dict[str, str]] = {}
    for graded in grade_class(files, device=course_device()):
        for row in graded.rows:
            if row.exercise:
                outcomes.setdefault(exercise_weeks()[row.exercise], {})[row.exercise] = row.outcome
            else:
                print(f"{graded.submission}: {row.message}\n")
    from course_utils.standing import Progress
    from course_utils.weeks import load_week

    weeks = sorted(outcomes, key=week_order)
    begun = [week for week in weeks if set(outcomes[week].values()) != {"not attempted"}]
    for week in begun:
        print(f"{Progress(load_week(week), [load_exercise(name) for name in outcomes[week]], outcomes[week])}\n")
    if waiting := [week for week in weeks if week not in begun]:
        first = next(file.name for file, _ in files if file.name.startswith(waiting[0]))
        print(f"Not begun: {', '.join(waiting)}. Open {first} when you are ready.")
    return 1 if unreadable else 0


def examine(options: argparse.Namespace) -> int:
    """`course doctor`; exit code 1 when something needed is missing."""
    from course_utils.doctor import report

    facts, missing = report()
    verdict = "The lessons will not run like this." if missing else "All that the lessons need is here."
    print("\n".join([*facts, *(f"PROBLEM: {line}" for line in missing), verdict]))
    return 1 if missing else 0
