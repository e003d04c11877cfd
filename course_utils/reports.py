"""Reports on a graded class: a table, pages to read, and Gradescope's file."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import quote

from course_utils.build import course_root
from course_utils.errors import CourseError
from course_utils.exercise import UnknownExercise, exercise_weeks, load_exercise
from course_utils.feedback import SIGNS, inline_html
from course_utils.judge import OUTCOMES, PASSED
from course_utils.results import Graded, Results, Row

MOST_COMMON = 10


def write_csv(results: Results, file: Path) -> None:
    """A table with one row a submission: its name, how many exercises passed, and the outcome of each."""
    exercises = exercises_of(results)
    with open(file, "w", newline="", encoding="utf-8") as text:
        table = csv.writer(text)
        table.writerow(["submission", "passed", "exercises", *exercises, "flags"])
        for graded in results.graded:
            outcome = {row.exercise: row.outcome for row in graded.rows}
            flags = "; ".join(dict.fromkeys(f"{row.exercise}: {flag}" for row in graded.rows for flag in row.flags))
            counts = [_passed(graded.rows), len(graded.rows)]
            cells = [graded.submission, *counts, *(outcome.get(e, "") for e in exercises), flags]
            table.writerow([_harmless(cell) for cell in cells])


def _harmless(cell: object) -> object:
    """A cell that a spreadsheet does not take for a formula: file names are the students' choice."""
    return "'" + cell if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def write_gradescope(results: Results, file: Path) -> None:
    """Gradescope's results.json for one submission: a test for each exercise, one point each.

    Format: gradescope-autograders.readthedocs.io, "Autograder specifications". Raises CourseError for several.
    """
    if len(results.graded) != 1:
        raise CourseError(f"Gradescope grades one submission at a time, and there are {len(results.graded)} here.")
    tests = [
        {
            "name": row.exercise,
            "score": float(row.outcome == PASSED),
            "max_score": 1.0,
            "status": "passed" if row.outcome == PASSED else "failed",
            "output": row.message,
        }
        for row in results.rows
    ]
    file.write_text(json.dumps({"tests": tests}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_html(results: Results, folder: Path) -> None:
    """index.html about the class, and a page for each submission, in a folder that is made if it is missing."""
    folder.mkdir(exist_ok=True)
    for number, graded in enumerate(results.graded, start=1):
        (folder / page_name(number, graded)).write_text(student_page(graded), encoding="utf-8")
    (folder / "index.html").write_text(class_page(results), encoding="utf-8")


def page_name(number: int, graded: Graded) -> str:
    """The file of a submission's page; the number keeps names apart that differ in odd characters alone."""
    return f"{number:04}_{re.sub(r'[^A-Za-z0-9._-]+', '_', graded.submission)[:80]}.html"


def class_page(results: Results) -> str:
    """What the class misunderstood, who did what, and what a person should look at."""
    rows, count = results.rows, len(results.graded)
    attempted = [row for row in rows if row.outcome != "not attempted"]
    body = [
        "<h1>The class</h1>",
        f"<p>{count} submissions, {len(attempted)} answers, {_passed(rows)} passed.</p>",
        "<h2>What to teach again</h2>",
        *_misconceptions(rows),
        "<h2>Exercises</h2>",
        *_exercise_table(rows),
        "<h2>Submissions</h2>",
        *_matrix(results),
        "<h2>For a person to look at</h2>",
        *_flags(rows),
    ]
    return _page("The class", body)


def student_page(graded: Graded) -> str:
    """What is right, what is not and why, and what to read."""
    body = [f"<h1>{escape(graded.submission)}</h1>"]
    body.append(f"<p>{_passed(graded.rows)} of {len(graded.rows)} exercises passed.</p>")
    for row in graded.rows:
        title = f"{row.exercise}: {row.outcome}" if row.exercise else row.outcome
        body.append(f'<h2><span aria-hidden="true">{SIGNS[row.outcome]}</span> {escape(title)}</h2>')
        body.append(f"<pre>{escape(row.message)}</pre>")
        section = section_of(row.exercise)
        if row.outcome != PASSED and section:
            body.append(f"<p>Read again: {inline_html(section)}.</p>")
    return _page(graded.submission, body)


def _passed(rows: Iterable[Row]) -> int:
    return sum(row.outcome == PASSED for row in rows)


def exercises_of(results: Results) -> list[str]:
    """The exercises that got a row, in the order of the course."""
    order = {name: number for number, name in enumerate(exercise_weeks())}
    names = {row.exercise for row in results.rows if row.exercise}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def common_misconceptions(rows: Iterable[Row]) -> list[tuple[str, str, int]]:
    """(exercise, misconception, number of answers that show it), the most common first, at most ten."""
    counts = Counter((row.exercise, row.misconception) for row in rows if row.misconception)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(exercise, name, count) for (exercise, name), count in ordered[:MOST_COMMON]]


def explanation_of(exercise: str, misconception: str) -> str:
    """What students read about the misconception, or nothing when the course no longer knows it."""
    try:
        known = load_exercise(exercise).misconceptions
    except UnknownExercise:
        return ""
    return next((m.explanation for m in known if m.name == misconception), "")


@cache
def section_of(exercise: str) -> str:
    """Where the lesson treats the exercise: "week01, 3. Broadcasting"; nothing without a checkout of the course."""
    week = exercise_weeks().get(exercise, "")
    try:
        lessons = sorted((course_root() / "lessons").glob(f"{week}_*.md")) if week else []
    except CourseError:
        return week
    for lesson in lessons:
        before, found, _ = lesson.read_text(encoding="utf-8").partition(f"{{exercise}} {exercise}\n")
        headings = re.findall(r"^## (.+)$", before, flags=re.MULTILINE)
        if found and headings:
            return f"{week}, {headings[-1]}"
    return week


def _misconceptions(rows: list[Row]) -> Iterator[str]:
    common = common_misconceptions(rows)
    if not common:
        yield "<p>No answer showed a misconception that the course knows.</p>"
        return
    yield "<ol>"
    for exercise, misconception, count in common:
        answers = "1 answer" if count == 1 else f"{count} answers"
        section = section_of(exercise)
        yield (
            f"<li><strong>{answers}</strong> to <code>{escape(exercise)}</code> ({inline_html(section)}): "
            f"<em>{escape(misconception.replace('_', ' '))}</em>. "
            f"{inline_html(explanation_of(exercise, misconception))}</li>"
        )
    yield "</ol>"


def _exercise_table(rows: list[Row]) -> Iterator[str]:
    counts = Counter((row.exercise, row.outcome) for row in rows)
    names = list(dict.fromkeys(row.exercise for row in rows))
    head = "".join(f'<th scope="col">{outcome}</th>' for outcome in OUTCOMES)
    yield f'<div class="wide"><table><thead><tr><th scope="col">exercise</th>{head}</tr></thead><tbody>'
    for name in names:
        cells = "".join(f"<td>{counts[name, outcome]}</td>" for outcome in OUTCOMES)
        yield f'<tr><th scope="row">{escape(name) or "no exercise"}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _matrix(results: Results) -> Iterator[str]:
    exercises = exercises_of(results)
    legend = ", ".join(f"{SIGNS[outcome]} {outcome}" for outcome in OUTCOMES)
    yield f"<p>{legend}.</p>"
    head = "".join(f'<th scope="col" class="turned"><span>{escape(name)}</span></th>' for name in exercises)
    yield f'<div class="wide"><table><thead><tr><th scope="col">submission</th>{head}</tr></thead><tbody>'
    for number, graded in enumerate(results.graded, start=1):
        of = {row.exercise: row for row in graded.rows}
        link = f'<a href="{quote(page_name(number, graded))}">{escape(graded.submission)}</a>'
        yield f'<tr><th scope="row">{link}</th>{"".join(_cell(of.get(name)) for name in exercises)}</tr>'
    yield "</tbody></table></div>"


def _cell(row: Row | None) -> str:
    if row is None:
        return "<td></td>"
    words = row.outcome + (f": {row.misconception.replace('_', ' ')}" if row.misconception else "")
    flag = ' <span title="flagged">⚑</span>' if row.flags else ""
    sign = f'<span role="img" aria-label="{escape(words)}" title="{escape(words)}">{SIGNS[row.outcome]}</span>'
    return f"<td>{sign}{flag}</td>"


def _flags(rows: list[Row]) -> Iterator[str]:
    flagged = [row for row in rows if row.flags]
    if not flagged:
        yield "<p>Nothing.</p>"
        return
    yield "<p>A flag changes no outcome. It says what an answer did that answers have no need of.</p><ul>"
    for row in flagged:
        what = "; ".join(row.flags)
        yield f"<li>{escape(row.submission)}, <code>{escape(row.exercise)}</code> ({row.outcome}): {escape(what)}</li>"
    yield "</ul>"


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid #767676; padding-left: .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { border: 1px solid #767676; padding: .2rem .5rem; text-align: center; }
th[scope=row] { text-align: left; font-weight: normal; white-space: nowrap; }
.turned { vertical-align: bottom; height: 11rem; padding: .3rem .1rem; }
.turned span { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: normal; }
"""


def _page(title: str, body: Iterable[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )
