"""Write the results of `course grade` into nbgrader's gradebook.

    course grade submitted --json results.json
    python docs/nbgrader_scores.py results.json

Run it in the course folder of nbgrader, with a Python that has nbgrader. The submissions are those of its layout,
submitted/STUDENT/ASSIGNMENT/NOTEBOOK.ipynb. Each exercise becomes a grade cell of one point; what nbgrader had of the
same cells is replaced, and scores given by hand stay.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import PurePosixPath

from nbgrader.api import Gradebook, MissingEntry


def main(results: str, database: str = "sqlite:///gradebook.db") -> None:
    """Fill the gradebook at the database's address from a results file."""
    with open(results, encoding="utf-8") as file:
        rows = json.load(file)["results"]
    notebooks: dict[tuple[str, str], dict[str, dict[str, bool]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        path = PurePosixPath(row["submission"])
        if len(path.parts) != 3:
            sys.exit(f"{path} is not STUDENT/ASSIGNMENT/NOTEBOOK: grade the folder submitted, as nbgrader lays it out.")
        student, assignment, _ = path.parts
        if row["exercise"]:
            notebooks[assignment, path.stem][student][row["exercise"]] = row["outcome"] == "passed"
    with Gradebook(database) as gradebook:
        for (assignment, notebook), students in notebooks.items():
            gradebook.update_or_create_assignment(assignment)
            gradebook.update_or_create_notebook(notebook, assignment)
            for exercise in sorted({name for passed in students.values() for name in passed}):
                gradebook.update_or_create_grade_cell(exercise, notebook, assignment, max_score=1, cell_type="code")
            for student, passed in students.items():
                gradebook.update_or_create_student(student)
                gradebook.update_or_create_submission(assignment, student)
                for exercise, right in passed.items():
                    _grade(gradebook, exercise, notebook, assignment, student).auto_score = float(right)
        gradebook.db.commit()
        for (assignment, _), students in notebooks.items():
            for student in students:
                submission = gradebook.find_submission(assignment, student)
                print(f"{student}: {submission.score:g} of {submission.max_score:g} in {assignment}")


def _grade(gradebook: Gradebook, exercise: str, notebook: str, assignment: str, student: str):
    """The grade of one cell, made where the submission is older than the cell."""
    try:
        return gradebook.find_grade(exercise, notebook, assignment, student)
    except MissingEntry:
        from nbgrader.api import Grade

        cell = gradebook.find_graded_cell(exercise, notebook, assignment)
        grade = Grade(cell=cell, notebook=gradebook.find_submission_notebook(notebook, assignment, student))
        gradebook.db.add(grade)
        return grade


if __name__ == "__main__":
    main(*sys.argv[1:])
