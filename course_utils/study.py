"""Study cards and quizzes. They fold open without a kernel, by mouse or keyboard; without HTML they are plain text."""

from __future__ import annotations

from html import escape

from course_utils.feedback import inline_html, show_object
from course_utils.weeks import Question, Week, load_week

LETTERS = "ABCDEFGH"


class Cards:
    """A week's study cards: think of the answer, then unfold it."""

    def __init__(self, week: Week) -> None:
        self.week = week

    def __repr__(self) -> str:
        lines = [f"Study cards: {self.week.title}"]
        for card in self.week.cards:
            lines += ["", f"Q: {card.question}", f"A: {card.answer}"]
        return "\n".join(lines)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        cards = "".join(_fold(card.question, inline_html(card.answer)) for card in self.week.cards)
        html = f"<div><p><strong>Study cards: {escape(self.week.title)}</strong></p>{cards}</div>"
        return {"text/html": html, "text/plain": repr(self)}


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


def cards(week: str) -> None:
    """Show the study cards of a week such as "week01". Raises WeekError for an unknown week."""
    show_object(Cards(load_week(week)))


def quiz(week: str) -> None:
    """Show the quiz of a week such as "week01". Raises WeekError for an unknown week."""
    show_object(Quiz(load_week(week)))
