"""Weeks' TOML files: what they may say, and how cards and quiz look in plain text and in HTML."""

import html
import re

import pytest
from conftest import WEEK, write

from course_utils import cards, quiz
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


def test_cards_in_plain_text(sample_course):
    assert repr(Cards(load_week("week90"))) == (
        "Study cards: Samples\n\nQ: What is `2 < 3`?\nA: It is `True`."  # as written
    )


def test_cards_in_html_fold_each_answer_below_its_question(sample_course):
    bundle = Cards(load_week("week90"))._repr_mimebundle_()
    assert bundle["text/plain"] == repr(Cards(load_week("week90")))
    assert re.search(r"<summary[^>]*>What is <code>2 &lt; 3</code>\?</summary>", bundle["text/html"])
    assert " ".join(words_of(bundle["text/html"])) == "Study cards: Samples What is 2 < 3 ? It is True ."


def test_a_quiz_in_plain_text_keeps_the_explanations_to_the_end(sample_course):
    assert repr(Quiz(load_week("week90"))) == (
        "Quiz: Samples\n\n1. How many bits has a byte?\n   A. `7`\n   B. `8`\n\n"
        "Explanations\n1A. Wrong. One more.\n1B. Right. That is what a byte is."
    )


def test_a_quiz_in_html_folds_each_explanation_below_its_option(sample_course):
    fragment = Quiz(load_week("week90"))._repr_mimebundle_()["text/html"]
    options = re.findall(r"<details[^>]*><summary[^>]*>(.*?)</summary><p[^>]*>(.*?)</p></details>", fragment)
    assert options == [
        ("A. <code>7</code>", "<em>✗ Not this one.</em> One more."),
        ("B. <code>8</code>", "<em>✓ Right.</em> That is what a byte is."),
    ]


def test_cards_and_quiz_print_outside_a_notebook(sample_course, capsys):
    cards("week90")
    quiz("week90")
    shown = capsys.readouterr().out
    assert shown.startswith("Study cards: Samples\n")
    assert "\nQuiz: Samples\n" in shown


@pytest.mark.parametrize("function", [cards, quiz])
def test_cards_and_quiz_of_an_unknown_week_say_which_there_are(sample_course, function):
    with pytest.raises(WeekError, match="there are week90"):
        function("week01")
