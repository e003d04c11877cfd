"""What grading a class found, as a file: written, read again, merged, and looked through for identical answers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError

IDENTICAL = "identical to "
NAMED = 3


@dataclass
class Row:
    """How one exercise of one submission was graded; `outcome` is one of the four words of `course_utils.judge`."""

    submission: str
    exercise: str
    outcome: str
    misconception: str | None = None
    message: str = ""
    seconds: float = 0.0
    flags: list[str] = field(default_factory=list)


@dataclass
class Graded:
    """One submission: the digest of its file, a row for each exercise, and a fingerprint of the code of each answer."""

    submission: str
    digest: str
    rows: list[Row]
    fingerprints: dict[str, str]


@dataclass
class Results:
    """A graded class. settings: what the rows depend on besides the submissions, such as the seed and the device."""

    settings: dict[str, Any]
    graded: list[Graded] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """All rows, submission by submission."""
        return [row for graded in self.graded for row in graded.rows]


def write_results(results: Results, file: Path) -> None:
    """Write the results as JSON, complete or not at all. Answers with the same code are flagged first."""
    flag_identical(results)
    submissions = {g.submission: {"digest": g.digest, "fingerprints": g.fingerprints} for g in results.graded}
    data = {"results": [asdict(row) for row in results.rows], "submissions": submissions, "settings": results.settings}
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)


def read_results(file: Path) -> Results:
    """The results that `write_results` wrote. Raises CourseError for anything else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        rows: defaultdict[str, list[Row]] = defaultdict(list)
        for row in data["results"]:
            rows[row["submission"]].append(Row(**row))
        graded = [
            Graded(name, known["digest"], rows[name], known["fingerprints"])
            for name, known in data["submissions"].items()
        ]
        return Results(data["settings"], graded)
    except FileNotFoundError as error:
        raise CourseError(f"{file}: there is no such file.") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CourseError(f"{file} does not hold results of `course grade`.") from error


def merge(parts: Iterable[tuple[str, Results]]) -> Results:
    """Results of several runs as one, in order of the submissions' names; each part comes with a name for messages.

    Raises CourseError when the parts were graded with different settings, or hold different versions of a submission.
    """
    merged: dict[str, tuple[str, Graded]] = {}
    settings: dict[str, Any] | None = None
    for name, part in parts:
        if settings is not None and part.settings != settings:
            raise CourseError(f"{name} was graded with other settings: {part.settings}, not {settings}.")
        settings = part.settings
        for graded in part.graded:
            other, known = merged.setdefault(graded.submission, (name, graded))
            if known.digest != graded.digest:
                raise CourseError(f"{graded.submission} is another file in {name} than in {other}.")
    return Results(settings or {}, [graded for _, (_, graded) in sorted(merged.items())])


def flag_identical(results: Results) -> None:
    """Flag rows whose answers have the same code, but for layout and comments, as those of other submissions."""
    same: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for graded in results.graded:
        for exercise, fingerprint in graded.fingerprints.items():
            same[exercise, fingerprint].append(graded.submission)
    for graded in results.graded:
        for row in graded.rows:
            row.flags = [flag for flag in row.flags if not flag.startswith(IDENTICAL)]
            twins = same[row.exercise, graded.fingerprints.get(row.exercise, "")]
            others = [name for name in sorted(twins) if name != graded.submission]
            if others:
                more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
                row.flags.append(IDENTICAL + ", ".join(others[:NAMED]) + more)
