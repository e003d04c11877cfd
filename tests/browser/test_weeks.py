"""What a student sees of every week in JupyterLab, from the first run to the first passed exercise.

The tests of a week share one page and run in their order. JupyterLab draws each notebook once.
"""

import re
from statistics import median

from explorer import PICTURE, ExplorerOnPage
from playwright.sync_api import expect
from student import plausible_mistake, right_answer, words

from course_utils.exercise import exercise_weeks
from course_utils.weeks import load_week

IN_FULL = "capstone"  # the shortest notebook: here every card is turned, and axe-core looks at every state
SLOWEST_ANSWER = 1500  # milliseconds; on an idle machine it is near 100, and this one may be busy
OUTPUTS = ".jp-Notebook .jp-OutputArea-output.jp-RenderedHTMLCommon"
WIDGETS = ".jp-Notebook .jp-OutputArea .widget-vbox"
NOT_OURS = ".jp-Notebook .jp-InputArea, .jp-Notebook .jp-MarkdownCell"  # most of the page, and of axe-core's time


def test_every_cell_runs_and_the_page_complains_of_nothing(student):
    for kind in ("error", "stderr"):
        outputs = student.page.locator(f".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{kind}']")
        assert [output.text_content()[:500] for output in outputs.all()] == []
    assert student.complaints == []


def test_every_figure_is_drawn_and_has_alt_text(student):
    pictures = student.page.locator(".jp-Notebook .jp-OutputArea img:not([aria-hidden])")
    told = pictures.evaluate_all("all => all.map(i => [i.naturalWidth, i.alt.trim().length])")
    assert told and all(width > 0 and letters > 20 for width, letters in told)


def test_every_control_of_the_explorer_changes_what_is_seen(student):
    box = student.output("explorers.").locator(".widget-vbox").first
    expect(box.locator(PICTURE)).to_be_visible()
    student.look("explorer", box)
    explorer = ExplorerOnPage(student, box)
    assert len(explorer.controls()) >= 3
    assert explorer.cut_off() == []
    assert explorer.without_effect() == set()
    assert median(explorer.waits) < SLOWEST_ANSWER
    student.look("explorer-moved", box)


def test_cards_turn_by_mouse_and_by_keyboard_and_missed_ones_come_again(student):
    output, cards = student.output("cards("), load_week(student.week).cards
    output.evaluate("area => { area.id = 'cards'; }")
    box = output.locator(".widget-vbox").first
    names = ("Show the answer", "I knew it", "Not yet", "Go through all of them anyway")
    turn, knew, not_yet, again = (box.get_by_role("button", name=name, exact=True) for name in names)
    expect(box).to_contain_text(f"{len(cards)} of {len(cards)} cards due today.")
    expect(box.locator("[aria-live=polite]")).to_have_count(3)
    box.scroll_into_view_if_needed()  # what stands above may have grown meanwhile
    expect(box).to_contain_text(words(cards[0].question), use_inner_text=True)
    student.look("cards", output)

    turn.click()  # the first card by mouse, and missed
    expect(knew).to_be_focused()  # the last that a press brings; everything else is there then
    expect(not_yet).to_be_visible()
    expect(turn).to_be_hidden()
    assert words(cards[0].answer) in words(box.inner_text())
    student.look("cards-turned", output)
    whole = student.week == IN_FULL
    seen = student.violations("#cards") if whole else []
    not_yet.click()
    for card in (*cards[1:], cards[0]) if whole else cards[1:2]:  # by keyboard alone, and known; then the first again
        student.wait_for_focus(turn)
        assert words(card.question) in words(box.inner_text())
        student.page.keyboard.press("Enter")
        student.wait_for_focus(knew)
        assert words(card.answer) in words(box.inner_text())
        student.page.keyboard.press("Enter")
    assert seen == []
    if not whole:
        return
    expect(again).to_be_focused()
    expect(box).to_contain_text("No card is due today. The next comes back on ")
    student.look("cards-done", output)
    student.run("cards(")
    expect(box).to_contain_text("No card is due today. The next comes back on ")
    again.click()
    expect(turn).to_be_focused()
    expect(box).to_contain_text(f"{len(cards)} of {len(cards)} cards to go.")


def test_the_quiz_explains_right_and_wrong_options(student):
    output, questions = student.output("quiz("), load_week(student.week).quiz
    folds, first = output.locator("details"), questions[0].options
    assert folds.count() == sum(len(question.options) for question in questions)
    right = next(place for place, option in enumerate(first) if option.right)
    for place, verdict in (((right + 1) % len(first), "✗ Not this one."), (right, "✓ Right.")):
        fold = folds.nth(place)
        expect(fold.locator("p")).to_be_hidden()
        fold.locator("summary").click()
        expect(fold.locator("p")).to_be_visible()
        expect(fold).to_contain_text(verdict)
        assert words(first[place].why) in words(fold.inner_text())
    student.look("quiz", output)


def test_progress_lists_every_exercise(student):
    table = student.output("progress(").locator("table")
    expect(table).to_be_visible()
    exercises = [name for name, week in exercise_weeks().items() if week == student.week]
    assert table.locator("tbody tr").count() == len(exercises)
    for name in exercises:
        expect(table).to_contain_text(name)
    student.look("progress", student.output("progress("))


def test_a_mistake_is_named_hints_come_and_the_right_answer_passes(student):
    exercise, misconception, mistake = plausible_mistake(student.cells)
    name, verdict = exercise.name, student.output(f"{exercise.name}-check")
    seen = []

    student.write(f"{name}-answer", mistake)
    student.run(f"{name}-answer")
    student.run(f"{name}-check")
    expect(verdict).to_contain_text(f"{name}: failed")
    assert words(misconception.explanation) in words(verdict.inner_text())
    verdict.evaluate("area => { area.id = 'verdict'; }")
    student.look("mistake", student.cell(f"{name}-check"))
    if student.week == IN_FULL:
        seen += student.violations("#verdict")

    fold = student.cell(f"{name}-hint").locator("details")
    expect(fold.locator("p").first).to_be_hidden()
    fold.locator("summary").click()
    expect(fold.locator("p").first).to_be_visible()
    assert words(exercise.hint_texts[0]) in words(fold.inner_text())
    student.write(f"{name}-check", f"hint({name})")
    for number, text in enumerate(exercise.hint_texts[:2], start=1):
        student.run(f"{name}-check")
        expect(verdict).to_contain_text(f"hint {number} of {len(exercise.hint_texts)}")
        assert words(text) in words(verdict.inner_text())
    student.look("hint", student.cell(f"{name}-check"))
    if student.week == IN_FULL:
        seen += student.violations("#verdict", themes=["light"])

    student.write(f"{name}-check", f"check({name})")
    student.write(f"{name}-answer", right_answer(exercise))
    student.run(f"{name}-answer")
    student.run(f"{name}-check")
    expect(verdict).to_contain_text(re.compile(rf"{name}: passed"))
    student.look("passed", student.cell(f"{name}-check"))
    student.run("progress(")
    row = student.output("progress(").locator("tr", has=student.page.locator(f"code:text-is('{name}')"))
    expect(row).to_contain_text("passed")
    assert seen == []


def test_nothing_the_course_shows_shuts_anybody_out(student):
    student.page.locator(f"{OUTPUTS} details").evaluate_all("all => all.forEach(fold => { fold.open = true; })")
    student.page.locator(NOT_OURS).evaluate_all("all => all.forEach(part => part.remove())")
    assert student.violations(OUTPUTS, WIDGETS) == []
    assert student.complaints == []
