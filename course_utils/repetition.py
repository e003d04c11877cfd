"""Spaced repetition: which study cards are due on a day, and the file that remembers them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

DAYS = (0, 1, 3, 7, 21)  # how long a card rests in each box; 0: it comes again in the same sitting
FILE = "study_cards.json"

Key = tuple[str, str]  # a week's name and a card's question: a question that was reworded is a new card


class Place(NamedTuple):
    """Where a card stands: the number of its box, and the day from which it is due."""

    box: int
    due: date


class Sitting:
    """Goes through the cards that are due, or through all of them; a missed card comes again at the end.

    places: what is known of cards; one without a place is due. Days are passed in, nothing here looks at a clock.
    """

    def __init__(self, keys: Iterable[Key], places: Mapping[Key, Place], today: date, everything: bool = False) -> None:
        self.everything = everything
        self.places = {key: places.get(key, Place(0, today)) for key in keys}
        self.queue = list(self.places) if everything else self._due(today)

    def _due(self, today: date) -> list[Key]:
        return [key for key, place in self.places.items() if place.due <= today]

    @property
    def current(self) -> Key | None:
        """The card to show, None when the sitting is over."""
        return self.queue[0] if self.queue else None

    def answer(self, knew: bool, today: date) -> Place:
        """Move the current card to its new place, which is returned, and go on to the next.

        A card known before its day stays where it is: going through all cards twice a day teaches no more than once.
        Raises IndexError when the sitting is over.
        """
        key = self.queue.pop(0)
        place = self.places[key]
        if not knew:
            place = Place(0, today)
            self.queue.append(key)
        elif place.due <= today:
            box = min(place.box + 1, len(DAYS) - 1)
            place = Place(box, today + timedelta(days=DAYS[box]))
        self.places[key] = place
        self.queue = self.queue or self._due(today)  # midnight may have passed since the sitting began
        return place

    def words(self, today: date) -> str:
        """How many cards are to come in this sitting, and how many come back when."""
        total, left = len(self.places), len(self.queue)
        if self.everything and left:
            return f"{left} of {total} cards to go. A card that you know before its day keeps its day."
        due = f"{left} of {total} cards due today"
        resting = self._resting(today)
        if not resting:
            return f"{due}."
        first = min(resting)
        number, later = resting[first], resting.total() - resting[first]
        who = f"{due}; {number}" if left else f"{number} of {total} cards"
        back = f"{who} {'comes' if number == 1 else 'come'} back on {first}"
        return f"{back}, {later} later." if later else f"{back}."

    def end(self, today: date) -> str:
        """What is said when no card is left."""
        resting = self._resting(today)
        return f"No card is due today. The next comes back on {min(resting)}." if resting else "There are no cards."

    def _resting(self, today: date) -> Counter[date]:
        return Counter(place.due for place in self.places.values() if place.due > today)


class Record:
    """The places of cards, in a small JSON file that is written at each answer.

    Nothing here raises: what goes wrong with the file is a sentence in `note`, and the cards go on without it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._unreadable = self._not_kept = ""
        self._unsaved: dict[Key, Place] = {}

    @property
    def note(self) -> str:
        """What the student should know about the file, or nothing."""
        return " ".join(filter(None, (self._unreadable, self._not_kept)))

    def read(self) -> dict[Key, Place]:
        """The places in the file and those that could not be written to it; a broken file counts as empty."""
        places = self._load()
        if places is None:
            self._unreadable = (
                f"{self.file.name} cannot be read, so every card starts anew. "
                "With your first answer the old file gets another name; it is not deleted."
            )
        return {**(places or {}), **self._unsaved}

    def keep(self, key: Key, place: Place) -> None:
        """Write the card's place to the file."""
        self._unsaved[key] = place
        try:
            # Another notebook may have written since: only what was answered here is replaced.
            places = self._load()
            if places is None:
                places = {}
                self._set_aside()
            self._write({**places, **self._unsaved})
        except OSError:
            self._not_kept = (
                f"{self.file.name} cannot be written in this folder, so your answers are not kept for another day."
            )
        else:
            self._unsaved.clear()
            self._not_kept = ""

    def _load(self) -> dict[Key, Place] | None:
        """What the file says: nothing where there is none, None where it cannot be understood."""
        try:
            data = json.loads(self.file.read_text(encoding="utf-8"))
            return {
                (week, question): _place(place) for week, cards in data.items() for question, place in cards.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.file.with_name(f"{self.file.stem}.unreadable-{number}.json")).exists():
            number += 1
        self.file.replace(aside)
        self._unreadable = f"The old {self.file.name} could not be read; it is now {aside.name}, and a new one begins."

    def _write(self, places: Mapping[Key, Place]) -> None:
        data: dict[str, dict[str, dict[str, object]]] = {}
        for (week, question), place in sorted(places.items()):
            data.setdefault(week, {})[question] = {"box": place.box, "due": place.due.isoformat()}
        partial = self.file.with_name(f"{self.file.stem}-{os.getpid()}.partial")
        try:
            partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            partial.replace(self.file)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _place(entry: Mapping[str, object]) -> Place:
    box = entry["box"]
    if not isinstance(box, int) or not 0 <= box < len(DAYS):
        raise ValueError(f"there is no box {box!r}")
    return Place(box, date.fromisoformat(entry["due"]))
