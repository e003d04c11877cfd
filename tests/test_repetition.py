"""Spaced repetition: the order of a sitting, the days between sittings, and a file that never stops the student."""

import json
import os
from datetime import date, timedelta

import pytest

from course_utils.repetition import DAYS, FILE, Place, Record, Sitting

TODAY = date(2026, 11, 21)
A, B, C = KEYS = [("week90", question) for question in ("a?", "b?", "c?")]


def day(number):
    """So many days from today."""
    return TODAY + timedelta(days=number)


# ---- a sitting ----------------------------------------------------------------------


def test_new_cards_are_due_in_the_order_of_the_week():
    assert Sitting(KEYS, {}, TODAY).queue == [A, B, C]


def test_a_card_rests_until_its_day():
    places = {A: Place(2, day(1)), B: Place(2, day(0)), C: Place(2, day(-1))}
    assert Sitting(KEYS, places, TODAY).queue == [B, C]


def test_a_known_card_climbs_one_box_at_a_time_to_the_last():
    place, today, rests = Place(0, TODAY), TODAY, []
    for _ in range(6):
        sitting = Sitting([A], {A: place}, today)
        place = sitting.answer(True, today)
        assert sitting.current is None
        rests.append((place.due - today).days)
        today = place.due
    assert rests == [1, 3, 7, 21, 21, 21]


def test_a_missed_card_falls_to_the_first_box_and_comes_again_at_the_end():
    sitting = Sitting(KEYS, {A: Place(3, TODAY)}, TODAY)
    assert sitting.answer(False, TODAY) == Place(0, TODAY)
    assert sitting.queue == [B, C, A]
    for _ in range(3):
        sitting.answer(True, TODAY)
    assert sitting.places[A] == Place(1, day(1))
    assert sitting.current is None


def test_the_last_card_missed_comes_again_at_once():
    sitting = Sitting([A], {}, TODAY)
    sitting.answer(False, TODAY)
    assert sitting.current == A


def test_everything_takes_the_resting_cards_too_and_knowing_one_early_changes_nothing():
    places = {key: Place(2, day(3)) for key in KEYS}
    sitting = Sitting(KEYS, places, TODAY, everything=True)
    assert sitting.queue == KEYS
    assert sitting.answer(True, TODAY) == Place(2, day(3))
    assert sitting.answer(False, TODAY) == Place(0, TODAY)
    assert sitting.queue == [C, B]


def test_cards_that_fall_due_while_the_notebook_stays_open_are_asked_too():
    sitting = Sitting([A, B], {B: Place(1, day(1))}, TODAY)
    sitting.answer(True, day(1))
    assert sitting.queue == [B]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({}, "3 of 3 cards due today."),
        ({A: Place(1, day(1))}, "2 of 3 cards due today; 1 comes back on 2026-11-22."),
        ({A: Place(1, day(1)), B: Place(2, day(3))}, "1 of 3 cards due today; 1 comes back on 2026-11-22, 1 later."),
        ({key: Place(2, day(3)) for key in KEYS}, "3 of 3 cards come back on 2026-11-24."),
        (
            {A: Place(1, day(1)), B: Place(2, day(3)), C: Place(2, day(3))},
            "1 of 3 cards comes back on 2026-11-22, 2 later.",
        ),
    ],
)
def test_words_say_how_many_are_due_and_when_the_others_come_back(places, words):
    assert Sitting(KEYS, places, TODAY).words(TODAY) == words


def test_words_of_going_through_all_of_them():
    sitting = Sitting(KEYS, {key: Place(2, day(3)) for key in KEYS}, TODAY, everything=True)
    sitting.answer(True, TODAY)
    assert sitting.words(TODAY) == "2 of 3 cards to go. A card that you know before its day keeps its day."


def test_the_end_names_the_day_of_the_next_card():
    places = {A: Place(2, day(3)), B: Place(1, day(1)), C: Place(4, day(21))}
    assert Sitting(KEYS, places, TODAY).end(TODAY) == "No card is due today. The next comes back on 2026-11-22."


# ---- the file -----------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    """Where a record is kept; there is nothing yet."""
    return tmp_path / FILE


def test_reading_writes_nothing(file):
    assert Record(file).read() == {}
    assert list(file.parent.iterdir()) == []


def test_what_was_kept_is_read_again_by_week_and_question(file):
    record = Record(file)
    record.keep(A, Place(1, day(1)))
    record.keep(("week91", "Is it `≤`?"), Place(0, TODAY))
    assert Record(file).read() == {A: Place(1, day(1)), ("week91", "Is it `≤`?"): Place(0, TODAY)}
    assert json.loads(file.read_text(encoding="utf-8"))["week90"] == {"a?": {"box": 1, "due": "2026-11-22"}}
    assert [path.name for path in file.parent.iterdir()] == [FILE]
    assert record.note == ""


def test_two_notebooks_keep_each_others_answers(file):
    first, second = Record(file), Record(file)
    first.read(), second.read()
    first.keep(A, Place(1, day(1)))
    second.keep(B, Place(2, day(3)))
    second.keep(A, Place(2, day(3)))
    first.keep(C, Place(1, day(1)))
    assert Record(file).read() == {A: Place(2, day(3)), B: Place(2, day(3)), C: Place(1, day(1))}


def test_a_write_that_is_cut_short_leaves_the_old_file(file, monkeypatch):
    record = Record(file)
    record.keep(A, Place(1, day(1)))
    before = file.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(type(file), "replace", fail)
    record.keep(B, Place(1, day(1)))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"week90": {"a?": {"box"',
        b"\xff\xfe",
        b"[]",
        b'{"week90": []}',
        b'{"week90": {"a?": 3}}',
        b'{"week90": {"a?": {"box": 5, "due": "2026-11-22"}}}',
        b'{"week90": {"a?": {"box": 1.5, "due": "2026-11-22"}}}',
        b'{"week90": {"a?": {"box": 1, "due": "tomorrow"}}}',
        b'{"week90": {"a?": {"box": 1, "due": 5}}}',
        b'{"week90": {"a?": {"box": 1}}}',
        b"[" * 100_000,
    ],
)
def test_a_broken_file_is_set_aside_at_the_first_answer_and_kept(file, content):
    file.write_bytes(content)
    record = Record(file)
    assert record.read() == {}
    assert record.note == (
        "study_cards.json cannot be read, so every card starts anew. "
        "With your first answer the old file gets another name; it is not deleted."
    )
    assert file.read_bytes() == content
    record.keep(A, Place(1, day(1)))
    aside = file.with_name("study_cards.unreadable-1.json")
    assert aside.read_bytes() == content
    assert record.note == f"The old study_cards.json could not be read; it is now {aside.name}, and a new one begins."
    assert Record(file).read() == {A: Place(1, day(1))}


def test_a_second_broken_file_does_not_take_the_place_of_the_first(file):
    for content in (b"one", b"two"):
        file.write_bytes(content)
        Record(file).keep(A, Place(1, day(1)))
    asides = sorted(path for path in file.parent.iterdir() if path != file)
    assert [path.read_bytes() for path in asides] == [b"one", b"two"]


def test_where_nothing_can_be_written_the_answers_last_as_long_as_the_notebook(tmp_path):
    file = tmp_path / "gone" / FILE  # a folder that is not there refuses root too, a read-only one does not
    record = Record(file)
    record.keep(A, Place(1, day(1)))
    assert record.note == (
        "study_cards.json cannot be written in this folder, so your answers are not kept for another day."
    )
    assert record.read() == {A: Place(1, day(1))}
    file.parent.mkdir()
    record.keep(B, Place(1, day(1)))
    assert record.note == ""
    assert set(Record(file).read()) == {A, B}


def test_the_first_box_comes_again_in_the_same_sitting_and_the_others_rest_longer_and_longer():
    assert DAYS[0] == 0
    assert list(DAYS) == sorted(set(DAYS))
