"""Study cards and quizzes. Without a kernel both fold open, by mouse or keyboard; without HTML they are plain text."""

from __future__ import annotations

from html import escape
from pathlib import Path

from course_utils.feedback import Part, inline_html, show, show_object
from course_utils.repetition import FILE, Record
from course_utils.weeks import Question, Week, load_week, week_names

LETTERS = "ABCDEFGH"


class Cards:
    """Study cards of one week or several: think of the answer, then turn the card. They repeat what was missed.

    Where no widgets are, all of them fold open instead. Widgets read and write the file that the record names.
    """

    def __init__(self, *weeks: Week, record: Record) -> None:
        self.weeks, self.record = weeks, record

    def __repr__(self) -> str:
        lines = []
        for week in self.weeks:
            lines += ["", f"Study cards: {week.title}"]
            for card in week.cards:
                lines += ["", f"Q: {card.question}", f"A: {card.answer}"]
        return "\n".join(lines[1:])

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        from course_utils.card_box import CardBox  # takes a while to import, and only notebooks need it

        cards = {(week.name, card.question): card for week in self.weeks for card in week.cards}
        title = self.weeks[0].title if len(self.weeks) == 1 else "all weeks you have begun"
        bundle = dict(CardBox(f"Study cards: {title}", cards, self.record).box._repr_mimebundle_())
        bundle["text/html"] = "".join(map(_folded_cards, self.weeks))
        bundle["text/plain"] = repr(self)
        return bundle


def _folded_cards(week: Week) -> str:
    cards = "".join(_fold(card.question, inline_html(card.answer)) for card in week.cards)
    return f"<div><p><strong>Study cards: {escape(week.title)}</strong></p>{cards}</div>"


class Quiz:
    """A week's quiz: choose an option to see whether it is right, and why."""

    def __init__(self, week: Week) -> None:
        self.week = week

    def __repr__(self) -> str:
        lines = [f"Quiz: {self.week.title}"]
        for number, question in enumerate(self.week.quiz, start=1):
            lines += ["", f"{number}. {question.question}"]
            lines += [f"   {letter}. {o.text}" for letter, o in zip(LETTERS, question.options, strict=False)]
        lines += ["", "Explanations"]
        for number, question in enumerate(self.week.quiz, start=1):
            for letter, option in zip(LETTERS, question.options, strict=False):
                lines.append(f"{number}{letter}. {'Right' if option.right else 'Wrong'}. {option.why}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        questions = "".join(_question_html(n, q) for n, q in enumerate(self.week.quiz, start=1))
        html = f"<div><p><strong>Quiz: {escape(self.week.title)}</strong></p>{questions}</div>"
        return {"text/html": html, "text/plain": repr(self)}


def _question_html(number: int, question: Question) -> str:
    options = ""
    for letter, option in zip(LETTERS, question.options, strict=False):
        verdict = "✓ Right." if option.right else "✗ Not this one."
        options += _fold(f"{letter}. {option.text}", f"<em>{verdict}</em> {inline_html(option.why)}")
    text = inline_html(f"{number}. {question.question}")
    return f'<div style="margin: 12px 0"><p style="margin: 4px 0">{text}</p>{options}</div>'


def _fold(summary: str, content_html: str) -> str:
    return (
        f'<details style="margin: 2px 0 2px 12px"><summary style="cursor: pointer">{inline_html(summary)}</summary>'
        f'<p style="margin: 2px 0 8px 18px">{content_html}</p></details>'
    )


def cards(week: str = "") -> None:
    """Show the study cards of a week such as "week01"; without a name, those of all weeks that were begun.

    What was known is kept in FILE in the current folder. Raises WeekError for an unknown week.
    """
    record = Record(Path.cwd() / FILE)
    begun = {name for name, _ in record.read()}
    names = [week] if week else [name for name in week_names() if name in begun]
    if names:
        show_object(Cards(*map(load_week, names), record=record))
    else:
        sentence = 'You have not answered a study card in this folder yet. Begin with a week: `cards("week01")`.'
        show([Part("text", part) for part in (record.note, sentence) if part])


def quiz(week: str) -> None:
    """Show the quiz of a week such as "week01". Raises WeekError for an unknown week."""
    show_object(Quiz(load_week(week)))
