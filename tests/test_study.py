"""Weeks' TOML files: what they may say, and how cards and quiz look in plain text, in HTML and as widgets."""

import html
import re
import subprocess
import sys
from datetime import date, timedelta

import pytest
from conftest import WEEK, forget_samples, write

from course_utils import cards, quiz
from course_utils.card_box import CardBox
from course_utils.feedback import code_html
from course_utils.repetition import FILE, Place, Record
from course_utils.study import Cards, Quiz
from course_utils.weeks import WeekError, load_week, week_names


def changed_week(root, old, new):
    """Replace a part of the sample week's file."""
    assert old in WEEK
    write(root / "course_utils" / "weeks" / "week90.toml", WEEK.replace(old, new))
    load_week.cache_clear()


@pytest.mark.parametrize("name", week_names())
def test_every_week_of_the_course_obeys_the_rules(name):
    week = load_week(name)
    assert week.cards
    assert len({card.question for card in week.cards}) == len(week.cards)  # they are told apart by it
    assert week.quiz
    assert week.promise.endswith(".")


def test_a_week_has_title_promise_objectives_cards_and_quiz(sample_course):
    week = load_week("week90")
    assert (week.name, week.title) == ("week90", "Samples")
    assert list(week.objectives) == ["sample.double", "sample.count", "sample.quiz"]
    assert week.cards[0].answer == "It is `True`."
    assert [option.right for option in week.quiz[0].options] == [False, True]


def test_an_unknown_week_is_refused_with_the_names_of_the_others(sample_course):
    with pytest.raises(WeekError, match=r"There is no week called 'week91'; there are week90\."):
        load_week("week91")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("right = false", "right = true", "quiz question 1: exactly one option has to be right"),
        ("right = true", "right = false", "quiz question 1: exactly one option has to be right"),
        ('why = "One more."', 'why = " "', "quiz question 1: every option needs a `why`"),
        ('why = "One more."', "", "weeks/week90.toml: TypeError: .*'why'"),
        ('why = "One more."', 'why = "a"\nhow = "b"', "weeks/week90.toml: TypeError: .*'how'"),
        ('why = "One more."', "why = 5", "weeks/week90.toml: AttributeError"),
        ("right = true", 'right = "yes"', "weeks/week90.toml: TypeError"),
        ('objectives = ["sample.quiz"]', "objectives = []", "no objective named; the week has sample.double"),
        ('objectives = ["sample.quiz"]', 'objectives = ["a.b"]', r"quiz question 1: \['a.b'\]; the week has sample"),
        ('answer = "It is `True`."', "", "weeks/week90.toml: TypeError: .*'answer'"),
        ('title = "Samples"', "", "weeks/week90.toml: KeyError: 'title'"),
        ('title = "Samples"', "title = Samples", "weeks/week90.toml: TOMLDecodeError"),
        ('title = "Samples"', 'title = "Samples"\ncards = 3', "weeks/week90.toml: TOMLDecodeError"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused(sample_course, old, new, message):
    changed_week(sample_course, old, new)
    with pytest.raises(WeekError, match=message):
        load_week("week90")


def words_of(fragment):
    """The words a person sees when everything is unfolded."""
    return html.unescape(re.sub(r"<[^>]+>", " ", fragment)).split()


@pytest.fixture
def record(tmp_path):
    """A record in a folder of its own, with nothing in it yet."""
    return Record(tmp_path / FILE)


def test_cards_in_plain_text(sample_course, record):
    assert repr(Cards(load_week("week90"), record=record)) == (
        "Study cards: Samples\n\nQ: What is `2 < 3`?\nA: It is `True`."  # as written
    )


def test_cards_in_html_fold_each_answer_below_its_question(sample_course, record):
    """GitHub, nbviewer and stored outputs show this form, and whatever has no widgets."""
    bundle = Cards(load_week("week90"), record=record)._repr_mimebundle_()
    assert bundle["text/plain"] == repr(Cards(load_week("week90"), record=record))
    question, answer = rf"What is {re.escape(code_html('2 &lt; 3'))}\?", f"It is {re.escape(code_html('True'))}."
    fold = f"<details[^>]*><summary[^>]*>{question}</summary><p[^>]*>{answer}</p>"
    assert re.search(fold, bundle["text/html"])
    assert " ".join(words_of(bundle["text/html"])) == "Study cards: Samples What is 2 < 3 ? It is True ."


def test_what_is_stored_does_not_depend_on_what_was_answered(sample_course, record):
    """So that a solution run again agrees with its stored outputs; the widget's own name is not compared."""
    week = load_week("week90")
    before = Cards(week, record=record)._repr_mimebundle_()
    record.keep(("week90", week.cards[0].question), Place(2, date(2100, 1, 1)))
    after = Cards(week, record=record)._repr_mimebundle_()
    for kind in ("text/html", "text/plain"):
        assert before[kind] == after[kind]
    assert set(after) == {"text/html", "text/plain", "application/vnd.jupyter.widget-view+json"}


def test_showing_cards_leaves_no_file(sample_course, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cards("week90")
    Cards(load_week("week90"), record=Record(tmp_path / FILE))._repr_mimebundle_()
    assert not (tmp_path / FILE).exists()


# ---- cards as widgets ---------------------------------------------------------------

TODAY = date(2026, 11, 21)
MORE_CARDS = """[[cards]]
    question = "What is `a & b`?"
    answer = "Both <bits>."

    [[quiz]]
    question = "How"""


@pytest.fixture
def box(sample_course, record):
    """A box of two cards on TODAY; `box.date` moves the day."""
    changed_week(sample_course, '[[quiz]]\n    question = "How', MORE_CARDS)
    return new_box(record)


def new_box(record, day=TODAY):
    week = load_week("week90")
    return CardBox("Samples", {("week90", card.question): card for card in week.cards}, record, lambda: day)


def seen(box):
    """The words on the card and the buttons there are."""
    buttons = [b.description for b in (box.turn, box.knew, box.not_yet, box.all) if b.layout.display != "none"]
    return " ".join(words_of(box.question.value + box.answer.value)), buttons


def answer(box, knew):
    box.turn.click()
    (box.knew if knew else box.not_yet).click()


def test_a_card_shows_its_question_and_turned_its_answer_too(box):
    assert seen(box) == ("What is 2 < 3 ?", ["Show the answer"])
    box.turn.click()
    assert seen(box) == ("What is 2 < 3 ? It is True .", ["I knew it", "Not yet"])
    box.knew.click()
    box.turn.click()
    assert seen(box)[0] == "What is a & b ? Both <bits>."


def test_a_missed_card_comes_again_and_a_known_one_does_not(box, record):
    answer(box, knew=False)
    answer(box, knew=True)
    assert seen(box)[0] == "What is 2 < 3 ?"
    assert "1 of 2 cards due today; 1 comes back on 2026-11-22." in box.words.value
    answer(box, knew=True)
    end = "No card is due today. The next comes back on 2026-11-22."
    assert seen(box) == (end, ["Go through all of them anyway"])
    assert "2 of 2 cards come back on 2026-11-22." in box.words.value
    assert seen(new_box(record))[0] == end
    assert seen(new_box(record, TODAY + timedelta(days=1)))[0] == "What is 2 < 3 ?"


def test_a_button_pressed_twice_answers_no_card_that_was_not_seen(box, record):
    box.turn.click()
    box.turn.click()
    box.knew.click()
    box.knew.click()
    box.not_yet.click()
    assert seen(box) == ("What is a & b ?", ["Show the answer"])
    assert record.read() == {("week90", "What is `2 < 3`?"): Place(1, TODAY + timedelta(days=1))}
    answer(box, knew=True)
    box.turn.click()
    assert not box.turned
    assert seen(box)[1] == ["Go through all of them anyway"]


def test_all_cards_can_be_gone_through_before_their_day(box):
    answer(box, knew=True)
    answer(box, knew=True)
    box.all.click()
    assert seen(box) == ("What is 2 < 3 ?", ["Show the answer"])
    assert "2 of 2 cards to go." in box.words.value


def test_a_reworded_question_starts_anew(sample_course, box, record):
    answer(box, knew=True)
    answer(box, knew=True)
    changed_week(sample_course, "What is `2 < 3`?", "What is `3 > 2`?")
    assert seen(new_box(record))[0] == "What is 3 > 2 ?"


def test_the_keyboard_is_handed_to_the_next_button_and_never_taken_unasked(box, monkeypatch):
    focused = []
    monkeypatch.setattr(type(box.turn), "focus", lambda button: focused.append(button.description))
    new_box(box.record)
    assert focused == []
    answer(box, knew=True)
    answer(box, knew=True)
    box.all.click()
    knew, show, go_through = "I knew it", "Show the answer", "Go through all of them anyway"
    assert focused == [knew, show, knew, go_through, show]


def test_trouble_with_the_file_is_told_below_the_card(box, record):
    assert words_of(box.note.value) == []
    record.file.write_text("{", encoding="utf-8")
    answer(box, knew=True)
    assert "it is now study_cards.unreadable-1.json" in box.note.value


def test_cards_without_a_week_are_those_of_the_weeks_that_were_begun(sample_course, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("week91", "week92"):
        text = WEEK.replace("Samples", f"Samples of {name}")
        write(sample_course / "course_utils" / "weeks" / f"{name}.toml", text)
    forget_samples()
    cards()
    assert capsys.readouterr().out.startswith("You have not answered a study card in this folder yet.")
    for name in ("week92", "week90", "a week of former times"):
        Record(tmp_path / FILE).keep((name, "What is `2 < 3`?"), Place(0, TODAY))
    cards()
    titles = re.findall("Study cards: (.*)", capsys.readouterr().out)
    assert titles == ["Samples", "Samples of week92"]


def test_cards_outside_a_notebook_load_no_widgets(tmp_path):
    program = "import sys; from course_utils import cards; cards('week01'); sys.exit('ipywidgets' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


# ---- quizzes ------------------------------------------------------------------------


def test_a_quiz_in_plain_text_keeps_the_explanations_to_the_end(sample_course):
    assert repr(Quiz(load_week("week90"))) == (
        "Quiz: Samples\n\n1. How many bits has a byte?\n   A. `7`\n   B. `8`\n\n"
        "Explanations\n1A. Wrong. One more.\n1B. Right. That is what a byte is."
    )


def test_a_quiz_in_html_folds_each_explanation_below_its_option(sample_course):
    fragment = Quiz(load_week("week90"))._repr_mimebundle_()["text/html"]
    options = re.findall(r"<details[^>]*><summary[^>]*>(.*?)</summary><p[^>]*>(.*?)</p></details>", fragment)
    assert options == [
        (f"A. {code_html('7')}", "<em>✗ Not this one.</em> One more."),
        (f"B. {code_html('8')}", "<em>✓ Right.</em> That is what a byte is."),
    ]


def test_cards_and_quiz_print_outside_a_notebook(sample_course, capsys):
    cards("week90")
    quiz("week90")
    shown = capsys.readouterr().out
    assert shown.startswith("Study cards: Samples\n")
    assert "\nQuiz: Samples\n" in shown


# ---- both ---------------------------------------------------------------------------


@pytest.mark.parametrize("function", [cards, quiz])
def test_cards_and_quiz_of_an_unknown_week_say_which_there_are(sample_course, function):
    with pytest.raises(WeekError, match="there are week90"):
        function("week01")
