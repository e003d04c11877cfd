"""What every figure of the course shares: one style, and alt text that cannot be left out."""

from __future__ import annotations

import base64
import html
import io

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure
from PIL import Image

# Okabe and Ito's palette: told apart with every common kind of color blindness (jfly.uni-koeln.de/color).
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#222222"
GRAY, PALE = "#767676", "#E8E8E8"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")  # so that no picture relies on color alone
DOTS_PER_INCH = 110


class Figure:
    """A drawn picture and the words that stand for it.

    Shown in a notebook as an `<img>` with alt text; shown as the alt text where there are no pictures.
    `figure` is the matplotlib figure (`figure.axes` for tests), `alt` the description.
    Raises ValueError when `alt` is empty.
    """

    def __init__(self, figure: MatplotlibFigure, alt: str) -> None:
        if not alt.strip():
            raise ValueError("A figure needs alt text: say what a reader should see in it.")
        self.figure = figure
        self.alt = " ".join(alt.split())

    def png(self) -> bytes:
        """The picture as PNG bytes, on a white ground so that it reads in dark themes too."""
        for axes in self.figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if not axis.label.get_text():
                    axis.set_label_coords(0.5, 0.0)  # or matplotlib looks for a place beside all tick labels
        canvas = FigureCanvasAgg(self.figure)
        with matplotlib.rc_context({"text.hinting": "none"}):  # hinting every glyph takes a tenth of the time
            canvas.draw()
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(buffer, "png", compress_level=1)
        return buffer.getvalue()

    def html(self) -> str:
        """An `<img>` element that holds the picture itself."""
        data = base64.b64encode(self.png()).decode("ascii")
        return (
            f'<img alt="{html.escape(self.alt)}" style="max-width: 100%; background: white" '
            f'src="data:image/png;base64,{data}">'
        )

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": repr(self)}


def new_figure(width: float = 7.5, height: float = 3.0, rows: int = 1, columns: int = 1):
    """An empty figure of the given size in inches and its axes: one `Axes`, or a flat list of rows·columns.

    Axes come without top and right spines. Nothing here touches pyplot, so no figure is shown twice.
    """
    figure = MatplotlibFigure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    return figure, axes[0] if len(axes) == 1 else axes


def bare(axis):
    """Take ticks and spines from an axis that holds a drawing rather than a graph."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    return axis
