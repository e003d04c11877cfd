"""The controls of an explorer on the page, and what moving one does."""

from collections.abc import Callable, Iterator

# Notes when a hand moved a control and when the picture or the words changed after it.
WATCH = """box => {
    box.moved = 0; box.waits = [];
    for (const kind of ['keydown', 'click', 'change'])
        box.addEventListener(kind, () => { box.moved = performance.now(); }, true);
    new MutationObserver(() => {
        if (box.moved) box.waits.push(performance.now() - box.moved);
        box.moved = 0;
    }).observe(box, {childList: true, subtree: true});
}"""
PICTURE = ".widget-html-content img:not([aria-hidden])"
SEEN = f"""box => [...box.querySelectorAll('{PICTURE}, .widget-html-content pre')]
    .map(part => part.src || part.textContent).join('\\n')"""
TEXTS = ("3", "4, 8")
SLIDER_KEYS = ("ArrowRight", "ArrowLeft", "End", "Home")


class ExplorerOnPage:
    """An explorer's box. `seen` is its picture and words, as one text."""

    def __init__(self, student, box) -> None:
        self.student, self.box = student, box
        box.evaluate(WATCH)

    @property
    def seen(self) -> str:
        return self.box.evaluate(SEEN)

    @property
    def waits(self) -> list[float]:
        """Milliseconds from each move to the first change it brought."""
        return self.box.evaluate("box => box.waits")

    def without_effect(self) -> set[str]:
        """Move every control in every way; return those that never changed anything.

        One may be hidden or without effect until another stands elsewhere, so those that are left are moved again
        after each choice that a list, a toggle or a checkbox offers.
        """
        controls = self.controls()
        choosers = [c for c in controls.values() if not c.locator("[role=slider]").count() and not _is_button(c)]
        order = sorted(controls, key=lambda name: controls[name] in choosers)
        left = {name for name in order if not self._changes(controls[name])}
        for chooser in choosers:
            for move in self._moves(chooser) if left and chooser.is_visible() else ():
                move()
                self.student.settle()
                left = {name for name in left if not self._changes(controls[name])}
        return left

    def cut_off(self) -> list[str]:
        """Labels that do not fit their place and end in an ellipsis."""
        labels = self.box.locator(".widget-label, button.widget-button, .widget-toggle-button")
        return labels.evaluate_all("all => all.filter(l => l.scrollWidth > l.clientWidth + 1).map(l => l.textContent)")

    def _changes(self, control) -> bool:
        """Whether a move of a visible control changes what is seen; it moves until one does."""
        if not control.is_visible():
            return False
        for move in self._moves(control):
            before = self.seen
            move()
            self.student.settle()
            if self.seen != before:
                return True
        return False

    def controls(self) -> dict[str, object]:
        """Every control by its label, hidden ones too."""
        found = {}
        kinds = (
            ".widget-slider, .widget-dropdown, .widget-checkbox, .widget-text, .widget-toggle-buttons, "
            "button.widget-button"
        )
        for control in self.box.locator(kinds).all():
            if control.evaluate("c => c.matches('.widget-toggle-buttons button')"):
                continue
            label = control if _is_button(control) else control.locator(".widget-label-basic, .widget-label").last
            label = label.text_content().strip()
            assert label and label not in found, f"a control without a name of its own: {label!r}"
            found[label] = control
        return found

    def _moves(self, control) -> Iterator[Callable[[], None]]:
        """Ways to move a control, by keyboard where it has a natural one."""
        if (handle := control.locator("[role=slider]")).count():
            for key in SLIDER_KEYS:
                yield lambda key=key: handle.press(key)
        elif (select := control.locator("select")).count():
            for option in select.locator("option").all():
                value = option.get_attribute("value")
                yield lambda value=value: select.select_option(value=value)
        elif (box := control.locator("input[type=checkbox]")).count():
            for _ in range(2):
                yield lambda: box.press("Space")
        elif (field := control.locator("input[type=text]")).count():
            for text in TEXTS:
                yield lambda text=text: (field.fill(text), field.press("Enter"))
        elif (buttons := control.locator("button")).count():
            for button in reversed(buttons.all()):
                yield lambda button=button: button.press("Enter")
        else:
            yield lambda: control.press("Enter")


def _is_button(control) -> bool:
    return control.evaluate("c => c.matches('button')")
