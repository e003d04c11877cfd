"""Reports on a class: the table, the pages, Gradescope's file."""

import csv
import json
from html.parser import HTMLParser

import pytest

from course_utils.errors import CourseError
from course_utils.reports import (
    common_misconceptions,
    section_of,
    write_csv,
    write_gradescope,
    write_html,
)
from course_utils.results import Graded, Results, Row


def student(name, *rows):
    """A graded submission; each row is (exercise, outcome, …)."""
    return Graded(name, "digest", [Row(name, *row) for row in rows], {})


CLASS = Results(
    {},
    [
        student("ada.py", ("double", "passed"), ("last_item", "passed"), ("Tally", "passed")),
        student(
            "b <b>&.py",
            ("double", "failed", "squares", "double: failed\n1 < 2"),
            ("last_item", "error", None, "last_item: error", 0.1, ["imports gc"]),
            ("Tally", "not attempted"),
        ),
        student("=cy.py", ("double", "failed", "squares", "double: failed")),
    ],
)


class Checker(HTMLParser):
    """Notes whether every element that is opened is closed, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links = [], "", []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta",):
            self.open.append(tag)
        self.links += [value for name, value in attributes if name == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(file):
    """The page's parser, after all of it."""
    checker = Checker()
    checker.feed(file.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker


def test_the_table_has_a_row_for_each_submission(sample_course, tmp_path):
    write_csv(CLASS, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["submission", "passed", "exercises", "double", "last_item", "Tally", "flags"],
        ["ada.py", "3", "3", "passed", "passed", "passed", ""],
        ["b <b>&.py", "0", "3", "failed", "error", "not attempted", "last_item: imports gc"],
        ["'=cy.py", "0", "1", "failed", "", "", ""],
    ]


def test_gradescope_gets_one_test_for_each_exercise(sample_course, tmp_path):
    write_gradescope(Results({}, CLASS.graded[1:2]), tmp_path / "results.json")
    tests = json.loads((tmp_path / "results.json").read_text())["tests"]
    assert tests[0] == {
        "name": "double", "score": 0.0, "max_score": 1.0, "status": "failed", "output": "double: failed\n1 < 2",
    }  # fmt: skip
    assert [test["score"] for test in tests] == [0.0, 0.0, 0.0]
    with pytest.raises(CourseError, match="one submission at a time, and there are 3 here"):
        write_gradescope(CLASS, tmp_path / "results.json")


def test_the_class_page_says_what_to_teach_again_and_links_every_student(sample_course, tmp_path, monkeypatch):
    monkeypatch.chdir(sample_course)
    section_of.cache_clear()
    write_html(CLASS, tmp_path / "pages")
    page = read(tmp_path / "pages" / "index.html")
    assert "3 submissions, 6 answers, 3 passed." in page.text
    assert "2 answers to double (week90, 1. Doubling): squares. You squared the values." in page.text
    assert "b <b>&.py, last_item (error): imports gc" in page.text
    assert len(page.links) == 3
    assert all((tmp_path / "pages" / link).is_file() for link in page.links)
    section_of.cache_clear()


def test_a_student_page_says_what_is_wrong_and_what_to_read(sample_course, tmp_path, monkeypatch):
    monkeypatch.chdir(sample_course)
    section_of.cache_clear()
    write_html(CLASS, tmp_path / "pages")
    page = read(tmp_path / "pages" / "0002_b_b_.py.html")
    assert "0 of 3 exercises passed." in page.text
    assert "double: failed\n1 < 2" in page.text
    assert page.text.count("Read again: week90, 1. Doubling.") == 3
    section_of.cache_clear()


def test_the_most_common_misconceptions_come_first_and_ten_are_enough():
    rows = [Row("a", "double", "failed", f"m{i % 12}") for i in range(30)]
    common = common_misconceptions(rows)
    assert [count for _, _, count in common] == [3] * 6 + [2] * 4
    assert common_misconceptions([Row("a", "double", "passed")]) == []
