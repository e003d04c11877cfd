"""Sphinx's settings for the website. `build.py` writes the pages' sources and calls Sphinx."""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

project = "PyTorch course"
copyright = "the authors of the course. Text and figures: CC BY 4.0. Code: BSD-3-Clause"
language = "en"

extensions = ["myst_nb"]
nb_execution_mode = "off"  # the solutions hold what they showed when they were built
nb_ipywidgets_js = {}  # explorers are shown as still pictures, so no page needs a script from elsewhere
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "PyTorch course"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False  # the sources hold the answers, unfolded
html_show_sphinx = False
html_use_index = False
html_show_search_summary = False  # a browser would fetch every page found, and from the disk it may not
html_math_renderer = "mathml"


def visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula of a line as MathML, which browsers draw themselves: no script, no fonts to fetch."""
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula that stands alone."""
    translator.body.append(f'<div class="formula">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def mathml(node: nodes.Element, *, as_block: bool) -> str:
    """A formula in LaTeX as MathML; a warning where it has a command that docutils does not know."""
    try:
        return tex2mathml(node.astext().replace(r"\dots", r"\ldots"), as_block=as_block)  # it knows the second alone
    except MathError as error:
        logging.getLogger(__name__).warning("a formula cannot be drawn: %s", error, location=node)
        return ""


def setup(app: Sphinx) -> None:
    """Register the writer of formulas under the name that `html_math_renderer` uses."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
