"""The thin ipywidgets layer over a sitting with study cards: one card at a time, turned by a button."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from html import escape

import ipywidgets as widgets

from course_utils.feedback import inline_html, on_load
from course_utils.repetition import Key, Record, Sitting
from course_utils.weeks import Card

# A screen reader reads a text when it changes only if the element around it is a live region. This makes one of the
# element that it stands in.
READ_ALOUD = on_load("this.closest('.widget-html-content')?.setAttribute('aria-live', 'polite')")
LINE = "1px solid var(--jp-border-color1, #767676)"
TEXT = "margin: 4px 0; line-height: 1.5; white-space: normal"


class CardBox:
    """One card at a time: a question, a button that turns the card, and two that say whether it was known.

    cards: in the order in which they are asked; the key names the card in the record. today: the day, asked at each
    press, since a notebook may stay open over night.
    """

    def __init__(
        self, title: str, cards: Mapping[Key, Card], record: Record, today: Callable[[], date] = date.today
    ) -> None:
        self.cards, self.record, self.today = cards, record, today
        self.words, self.question, self.answer, self.note = (widgets.HTML() for _ in range(4))
        self.turn = self._button("Show the answer", self._turn)
        self.knew = self._button("I knew it", lambda: self._answered(True))
        self.not_yet = self._button("Not yet", lambda: self._answered(False))
        self.all = self._button("Go through all of them anyway", self._begin_with_all)
        heading = widgets.HTML(f'<h4 style="margin: 4px 0">{escape(title)}</h4>')
        layout = widgets.Layout(
            border=LINE, padding="4px 14px", margin="4px 2px", min_height="108px", max_width="800px"
        )
        card = widgets.VBox([self.question, self.answer], layout=layout)
        row = widgets.HBox([self.turn, self.knew, self.not_yet, self.all])
        self.box = widgets.VBox([heading, self.words, card, row, self.note])
        self.begin()

    def _button(self, text: str, press: Callable[[], None]) -> widgets.Button:
        button = widgets.Button(description=text, tooltip=text, layout=widgets.Layout(width="auto"))
        button.on_click(lambda _: press())
        return button

    def begin(self, everything: bool = False) -> None:
        """Start a sitting with what is due today, or with all cards."""
        self.sitting = Sitting(self.cards, self.record.read(), self.today(), everything)
        self._show()

    def _begin_with_all(self) -> None:
        self.begin(everything=True)
        self.turn.focus()

    # A second press may arrive before the page has heard of the first: it must not answer a card that nobody has seen.

    def _turn(self) -> None:
        if not self.sitting.current:
            return
        self._show(turned=True)
        self.knew.focus()

    def _answered(self, knew: bool) -> None:
        if not self.turned:
            return
        key = self.sitting.current
        self.record.keep(key, self.sitting.answer(knew, self.today()))
        self._show()
        # The pressed button is gone, and the keyboard with it, unless the next one takes over.
        (self.turn if self.sitting.current else self.all).focus()

    def _show(self, turned: bool = False) -> None:
        self.turned, today = turned, self.today()
        card = self.cards.get(self.sitting.current)
        for button, is_there in (
            (self.turn, card and not turned),
            (self.knew, card and turned),
            (self.not_yet, card and turned),
            (self.all, not card and self.cards),
        ):
            button.layout.display = None if is_there else "none"
        self.words.value = f'<p style="{TEXT}">{self.sitting.words(today)}</p>'
        question = f"<strong>{inline_html(card.question)}</strong>" if card else self.sitting.end(today)
        self.question.value = f'<p style="{TEXT}">{question}</p>{READ_ALOUD}'
        answer = f'<p style="{TEXT}">{inline_html(card.answer)}</p>' if turned else ""
        self.answer.value = answer + READ_ALOUD
        note = f'<p style="{TEXT}">{escape(self.record.note)}</p>' if self.record.note else ""
        self.note.value = note + READ_ALOUD
