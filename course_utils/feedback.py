"""Messages in two forms from the same parts: plain text, and HTML that reads in dark and light themes."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

SIGNS = {"passed": "✓", "failed": "✗", "not attempted": "○", "error": "!"}
_BORDERS = {
    "passed": "#009E73",
    "failed": "#D55E00",
    "not attempted": "#767676",
    "error": "#CC79A7",
}


class Part(NamedTuple):
    """A piece of a message. kind: "headline", "text", "why", "facts" (fixed width), "code", or "next"."""

    kind: str
    text: str


def as_text(parts: Sequence[Part]) -> str:
    """The parts as plain text, facts and code indented."""
    lines = []
    for kind, text in parts:
        indent = "    " if kind in ("facts", "code") else ""
        lines += [indent + line for line in text.rstrip("\n").split("\n")]
    return "\n".join(lines)


def as_html(parts: Sequence[Part], outcome: str = "") -> str:
    """The parts as HTML. Text takes the theme's colors; an outcome is a sign and a word, not just a color."""
    border = _BORDERS.get(outcome, "#767676")
    body = "".join(_part_html(part, SIGNS.get(outcome, "")) for part in parts)
    return f'<div style="border-left: 4px solid {border}; padding: 2px 12px; margin: 4px 0">{body}</div>'


def _part_html(part: Part, sign: str) -> str:
    kind, text = part
    if kind in ("facts", "code"):
        style = "margin: 4px 0 8px 12px; white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere"
        return f'<pre style="{style}">{escape(text.rstrip())}</pre>'
    inline = inline_html(text)
    if kind == "headline":
        mark = f'<span aria-hidden="true">{sign}</span> ' if sign else ""
        return f'<p style="margin: 4px 0"><strong>{mark}{inline}</strong></p>'
    return f'<p style="margin: 4px 0">{inline}</p>'


def inline_html(text: str) -> str:
    """Text with `code` between backticks and *emphasis* between stars as HTML."""
    pieces = re.split(r"`([^`]+)`", escape(text, quote=False))
    pieces[::2] = [re.sub(r"\*(\w[^*]*)\*", r"<em>\1</em>", words) for words in pieces[::2]]
    pieces[1::2] = map(code_html, pieces[1::2])
    return "".join(pieces)


def code_html(code: str) -> str:
    """Escaped code within a line. VS Code shows it in the font of the text unless told otherwise."""
    return f'<code style="font-family: var(--jp-code-font-family, monospace)">{code}</code>'


class Message:
    """Parts shown in a notebook as HTML and elsewhere as text."""

    def __init__(self, parts: Sequence[Part], outcome: str = "") -> None:
        self.text, self._html = as_text(parts), as_html(parts, outcome)

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self._html, "text/plain": self.text}


def show(parts: Sequence[Part], outcome: str = "") -> None:
    """Display the message in a notebook, print it elsewhere."""
    show_object(Message(parts, outcome))


def show_object(thing: object) -> None:
    """Display a thing that has a rich form and a plain `repr`."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from IPython.display import display

        display(thing)
    else:
        print(repr(thing))


def on_load(script: str) -> str:
    """An empty picture that runs a script once it stands in the page, where `this` is the picture.

    ipywidgets has no other way to reach the elements that it makes. The script holds no double quotes.
    """
    return (
        '<img alt="" aria-hidden="true" style="display: none" '
        f'src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==" onload="{script}">'
    )
