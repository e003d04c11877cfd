"""A student at a notebook: what a hand does with mouse and keyboard, and what an eye sees on the page."""

import ast
import builtins
import re
from collections.abc import Iterable
from pathlib import Path

import nbformat

from course_utils.exercise import Exercise, Misconception, load_exercise
from course_utils.source import solution_source

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
AXE = Path(__file__).with_name("axe.min.js")
SECONDS_TO_OPEN = 120
SECONDS_FOR_A_NOTEBOOK = 240
SECONDS_FOR_A_CELL = 60
WIDTHS = (1280, 800)
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"

CLOSE = """async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    await panel.sessionContext.shutdown();
    panel.context.model.dirty = false;  // or JupyterLab asks whether to save
    panel.close();
}"""

# True when all cells are there, nothing is queued or running and each has its number. A folded cell shows none.
ALL_RUN = """cells => {
    const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')]
        .filter(prompt => !prompt.classList.contains('jp-Placeholder-prompt'));
    const drawn = document.querySelectorAll('.jp-Notebook .jp-Cell').length >= cells;
    return drawn && prompts.every(p => /\\[\\d+\\]/.test(p.textContent));
}"""

# JupyterLab clips and skips what is out of view, and axe-core then takes texts to be hidden or covered: it would judge
# the contrast of few of them, or none. So for its look nothing around the outputs clips; should it still not judge most
# of them, that counts as a violation.
RUN_AXE = """async places => {
    const present = places.filter(place => document.querySelector(place));
    const sheet = document.createElement('style');
    sheet.textContent = `*:not(.jp-OutputArea-output *) {
        overflow: visible !important; content-visibility: visible !important; contain: none !important }`;
    document.head.append(sheet);
    const found = await axe.run({include: present.map(place => [place])});
    sheet.remove();
    const contrast = kind => found[kind].filter(rule => rule.id === 'color-contrast').flatMap(rule => rule.nodes);
    const judged = contrast('passes').length + contrast('violations').length, left = contrast('incomplete');
    const bad = found.violations.filter(v => ['serious', 'critical'].includes(v.impact)).flatMap(v => v.nodes.map(
        node => `${v.id}: ${node.html.slice(0, 300)} ${node.failureSummary.slice(0, 300)}`));
    return judged > left.length ? bad : [...bad, `contrast of ${judged} texts judged, of ${left.length} not`];
}"""


class Student:
    """One week's notebook, alone in JupyterLab. `cells` are those of the file, in order, as on the page."""

    def __init__(self, notebook: Path, page, screenshots: Path | None) -> None:
        self.notebook, self.page, self.screenshots = notebook, page, screenshots
        self.week = notebook.stem.split("_")[0]
        self.cells = nbformat.read(notebook, as_version=4).cells
        self.complaints: list[str] = []

    # ---- opening and closing ----------------------------------------------------------

    def open(self) -> None:
        """Open the notebook in JupyterLab and wait until its kernel answers."""
        self.page.on("pageerror", self._note_error)
        self.page.on("console", self._listen)
        self.command("docmanager:open", wait=False, path=self.notebook.name, factory="Notebook")
        self.page.wait_for_function(f"() => {KERNEL}?.status === 'idle'", timeout=1000 * SECONDS_TO_OPEN, polling=250)

    def _note_error(self, error) -> None:
        self.complaints.append(f"page error: {error}")

    def _listen(self, message) -> None:
        if message.type == "error":
            self.complaints.append(f"{message.text} {(message.location or {}).get('url', '')}".strip())

    def close(self) -> None:
        """End the notebook's kernel and close the notebook unsaved."""
        self.page.remove_listener("pageerror", self._note_error)
        self.page.remove_listener("console", self._listen)
        self.page.evaluate(CLOSE)
        self.page.wait_for_selector(".jp-Notebook", state="detached")

    # ---- running ----------------------------------------------------------------------

    def run_all(self) -> None:
        """Choose Run All Cells and wait until every cell is drawn and every code cell has its number.

        Meanwhile another tab is in front: JupyterLab restyles a notebook in view at every step of every cell, which
        takes half of the browser's time.
        """
        self.command("notebook:run-all-cells", wait=False)
        other = self.page.evaluate_handle("() => window.jupyterapp.commands.execute('launcher:create')")
        try:
            seconds = SECONDS_FOR_A_NOTEBOOK
            self.page.wait_for_function(ALL_RUN, arg=len(self.cells), timeout=1000 * seconds, polling=250)
        finally:
            other.evaluate("tab => tab.dispose()")  # the notebook is in front again, also for `close`
        self.page.wait_for_selector(".jp-Notebook .widget-vbox img", state="attached")

    def command(self, name: str, wait: bool = True, **arguments) -> None:
        """Do what a menu entry of JupyterLab does."""
        call = "window.jupyterapp.commands.execute(name, args)"
        self.page.evaluate(f"([name, args]) => {{ {'return ' if wait else ''}{call}; }}", [name, arguments])

    def cell(self, wanted: str):
        """The cell on the page with this id, such as "storage_index-answer", or whose text begins with the words.

        css:light: other selectors have Playwright look for shadow roots on the whole page, for everything in the cell.
        """
        for place, cell in enumerate(self.cells):
            if cell.id == wanted or cell.source.startswith(wanted):
                return self.page.locator("css:light=.jp-Notebook .jp-Cell").nth(place)
        raise LookupError(f"{self.notebook.name} has no cell {wanted!r}")

    def write(self, wanted: str, code: str) -> None:
        """Replace the text of a cell, as by selecting all and pasting."""
        editor = self.cell(wanted).locator(".cm-content")
        editor.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.press("Delete")
        self.page.keyboard.insert_text(code)

    def run(self, wanted: str) -> None:
        """Run a cell with Ctrl+Enter and wait for its new number."""
        cell = self.cell(wanted)
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.inner_text()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_function(
            "([p, before]) => p.textContent !== before && /\\[\\d+\\]/.test(p.textContent)",
            arg=[prompt.element_handle(), before],
            timeout=1000 * SECONDS_FOR_A_CELL,
        )

    def output(self, wanted: str):
        """The output area of a cell, scrolled into view: the page draws no others."""
        area = self.cell(wanted).locator(".jp-OutputArea").first
        area.scroll_into_view_if_needed()
        self.wait_for_frames()
        return area

    # ---- looking ----------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until the kernel has answered all that the page asked of it, and the page shows it."""
        self.page.evaluate(f"async () => {{ await {KERNEL}.requestKernelInfo(); }}")
        self.wait_for_frames()

    def wait_for_frames(self) -> None:
        """Wait until the page was drawn with all that has changed."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def wait_for_focus(self, button) -> None:
        """Wait until an element has the keyboard's focus. Looks at every frame, where `expect` waits half a second."""
        self.page.wait_for_function("button => button === document.activeElement", arg=button.element_handle())

    def violations(self, *places: str, themes: Iterable[str] = THEMES) -> list[str]:
        """What axe-core calls serious or critical in the parts of the page that selectors name."""
        if not self.page.evaluate("() => Boolean(window.axe)"):
            self.page.evaluate(AXE.read_text(encoding="utf-8") + "\n;0")
        found = []
        for theme in themes:
            self.choose_theme(theme)
            results = self.page.evaluate(RUN_AXE, list(places))
            found += [f"{theme}: {result}" for result in results]
        self.choose_theme("light")
        return found

    def look(self, name: str, target) -> None:
        """Keep pictures of an element at every width in both themes, when a folder for them is given."""
        if self.screenshots is None:
            return
        for theme in THEMES:
            self.choose_theme(theme)
            for width in WIDTHS:
                self.page.set_viewport_size({"width": width, "height": 2400})
                self.page.wait_for_timeout(300)
                file = self.screenshots / f"{self.week}-{name}-{theme}-{width}.png"
                target.scroll_into_view_if_needed()
                target.screenshot(path=file, animations="disabled")
        self.page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        self.choose_theme("light")

    def choose_theme(self, theme: str) -> None:
        """Switch JupyterLab to its "light" or "dark" theme."""
        if self.page.evaluate("document.body.dataset.jpThemeName") != THEMES[theme]:
            self.command("apputils:change-theme", theme=THEMES[theme])
            self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=THEMES[theme])
            self.page.wait_for_timeout(200)  # colors fade from one theme to the other


# ---- what a student might write ---------------------------------------------------------


def plausible_mistake(notebook_cells) -> tuple[Exercise, Misconception, str]:
    """The first exercise of a notebook with a misconception that stands on its own, and the code of that answer."""
    names = [cell.metadata["course"]["exercise"] for cell in notebook_cells if cell.id.endswith("-answer")]
    for exercise in map(load_exercise, names):
        for misconception in exercise.misconceptions:
            code = mistaken_answer(exercise, misconception)
            if code and misconception.implementation is not exercise.broken_version:
                return exercise, misconception, code
    raise LookupError("No misconception of this week can be written as a plain function.")


def mistaken_answer(exercise: Exercise, misconception: Misconception) -> str:
    """The misconception under the exercise's name, with the imports and helpers of its module that it needs.

    Nothing when it is no plain function, or needs the reference.
    """
    text = (ROOT / "course_utils" / "exercises" / exercise.week / f"{exercise.name}.py").read_text(encoding="utf-8")
    given, decorated = {}, set()  # what each name at the top of the module is, as code
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            given |= {alias.asname or alias.name: ast.unparse(node) for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            given[node.name] = ast.get_source_segment(text, node)
            decorated |= {node.name} if len(node.decorator_list) > 1 else set()
    name = misconception.name
    if exercise.is_class or name in decorated or not given.get(name, "").startswith(f"def {name}("):
        return ""
    parts = {name: given[name].replace(f"def {name}(", f"def {exercise.name}(", 1)}
    while needed := set().union(*map(_names_from_outside, parts.values())) - set(dir(builtins)) - parts.keys():
        if not needed <= given.keys() - {exercise.name}:
            return ""
        parts |= {name: given[name] for name in needed}
    helpers_first = [*parts.values()][::-1]
    return "\n\n\n".join(sorted(helpers_first, key=lambda part: part.startswith(("def", "class"))))


def right_answer(exercise: Exercise) -> str:
    """The reference as a student could have written it."""
    return solution_source(exercise)


def _names_from_outside(code: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(code)))
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in nodes[2:] if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defaults = [d for node in nodes if isinstance(node, ast.arguments) for d in (*node.defaults, *node.kw_defaults)]
    return _loaded(nodes) - own | _loaded(defaults)


def _loaded(nodes: list[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def words(text: str) -> str:
    """A text as an eye reads it: without the marks of Markdown and with single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"[`*]", "", text)).strip()
