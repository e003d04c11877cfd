"""The thin ipywidgets layer under every explorer: controls, a picture, and the state in words."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from html import escape

import ipywidgets as widgets

from course_utils.feedback import on_load
from course_utils.plots.figure import Figure

Render = Callable[..., tuple[Figure, str]]

# ipywidgets writes a slider's description beside it and does not tell a screen reader that the two belong together.
# This names the sliders of its box, also those that are drawn later.
NAMES_SLIDERS = on_load(
    "const start = () => { const box = this.closest('.widget-vbox'); if (!box) return setTimeout(start, 50); "
    "const name = () => box.querySelectorAll('.widget-slider').forEach(slider => "
    "slider.querySelector('[role=slider]')?.setAttribute('aria-label', slider.querySelector('label').textContent)); "
    "name(); new MutationObserver(name).observe(box, {childList: true, subtree: true}); }; start()"
)


class Explorer:
    """Controls wired to a pure function that returns a picture and the state in words.

    title: heading above the controls. controls: name → ipywidgets control; `render` gets their values as keyword
    arguments and returns (Figure, text). still: the picture shown where no kernel runs. Buttons belong among the
    controls too: their value is the number of presses. restart: any other control sets the presses back to 0.
    in_use: from the same keyword arguments, the names of the controls that matter now; the others are hidden.
    """

    def __init__(
        self,
        title: str,
        controls: Mapping[str, widgets.Widget],
        render: Render,
        still: Figure,
        restart: bool = False,
        in_use: Callable[..., Collection[str]] | None = None,
    ) -> None:
        self.restart, self.in_use = restart, in_use
        self.title, self.controls, self.render, self.still = title, dict(controls), render, still
        self.presses = {name: 0 for name, control in self.controls.items() if isinstance(control, widgets.Button)}
        self.picture = widgets.HTML()
        self.words = widgets.HTML()
        heading = widgets.HTML(f"<h4>{escape(title)}</h4>{NAMES_SLIDERS}")
        row = widgets.HBox(list(self.controls.values()), layout=widgets.Layout(flex_flow="row wrap"))
        self.box = widgets.VBox([heading, row, self.picture, self.words])
        for name, control in self.controls.items():
            control.tooltip = control.tooltip or control.description  # without one, JupyterLab shows "null"
            if name in self.presses:
                control.on_click(lambda _, name=name: self._press(name))
            else:
                control.observe(lambda _: self._change(), names="value")
        self.update()

    def _press(self, name: str) -> None:
        self.presses[name] += 1
        self.update()

    def _change(self) -> None:
        if self.restart:
            self.presses = dict.fromkeys(self.presses, 0)
        self.update()

    def state(self) -> dict[str, object]:
        """The value of every control; for a button the number of presses."""
        return {
            name: self.presses.get(name, getattr(control, "value", None)) for name, control in self.controls.items()
        }

    def update(self) -> None:
        """Draw the picture and the words again from the controls."""
        state = self.state()
        if self.in_use is not None:
            names = self.in_use(**state)
            for name, control in self.controls.items():
                control.layout.display = None if name in names else "none"
        collects = gc.isenabled()
        gc.disable()  # a full collection takes half a second where torch is loaded, and can follow
        try:
            figure, text = self.render(**state)
            self.picture.value = figure.html()
        finally:
            if collects:
                gc.enable()
        self.words.value = f'<pre style="white-space: pre-wrap; word-break: normal">{escape(text)}</pre>'

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        bundle = dict(self.box._repr_mimebundle_())
        bundle["text/html"] = self.still.html()
        bundle["text/plain"] = f"{self.title}. {self.still.alt}"
        return bundle
