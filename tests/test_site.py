"""The website as `make site` builds it: nothing dangles, nothing is fetched, no answer lies open."""

import json
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from course_utils.exercise import exercise_weeks

if find_spec("myst_nb") is None:
    pytest.skip("the website's tools are not installed; `make site` installs them", allow_module_level=True)

ROOT = Path(__file__).parent.parent
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "embed": "src"}
SEARCH = "search.html"  # its heading is written by its script


class Page(HTMLParser):
    """What a page consists of, as far as the tests ask."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.headings = 0
        self.title = ""
        self.open_text = ""  # outside of folds
        self.folded_texts: list[str] = []
        self._folds = 0
        self._in_title = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.anchors.update(values[key] for key in ("id", "name") if values.get(key))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if LOADING.get(tag) in values and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(values[LOADING[tag]])
        if tag == "img":
            self.pictures.append(values)
        if tag == "details":
            if not self._folds:
                self.folded_texts.append("")
            self._folds += 1
        self.headings += tag == "h1"
        self._in_title = tag == "title" and not self.title  # icons have titles, too

    def handle_endtag(self, tag: str) -> None:
        self._folds -= tag == "details"
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        if self._folds:
            self.folded_texts[-1] += data
        else:
            self.open_text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site that was just built."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "docs" / "site" / "build.py"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """All pages by their path in the site."""
    return {file.relative_to(site).as_posix(): Page(file) for file in sorted(site.rglob("*.html"))}


def test_every_lesson_and_guide_has_a_page(pages):
    lessons = {f"solutions/{file.stem}.html" for file in (ROOT / "lessons").glob("*.md")}
    guides = {f"docs/{file.stem}.html" for file in (ROOT / "docs").glob("*.md")}
    assert set(pages) == {"index.html", "README.html", *lessons, *guides, SEARCH}


def test_links_lead_somewhere(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if parts.scheme not in ("https", "mailto"):
                    broken.append(f"{name}: {link} is not https")
                continue
            target = (page.file.parent / unquote(parts.path)).resolve() if parts.path else page.file
            if not target.is_file():
                broken.append(f"{name}: {link} leads to no file")
            elif parts.fragment and target.suffix == ".html":
                other = pages[target.relative_to(site.resolve()).as_posix()]
                if unquote(parts.fragment) not in other.anchors:
                    broken.append(f"{name}: {link} leads to no anchor")
    assert not broken, "\n".join(broken)


def test_nothing_is_loaded_from_elsewhere(site, pages):
    elsewhere = []
    for name, page in pages.items():
        for address in page.loaded:
            parts = urlsplit(address)
            if parts.scheme == "data" or address == "#":
                continue
            if parts.scheme or parts.netloc or not (page.file.parent / unquote(parts.path)).is_file():
                elsewhere.append(f"{name}: {address}")
    for file in site.rglob("*.css"):
        text = file.read_text(encoding="utf-8")
        if "url(http" in text or 'url("http' in text or "url(//" in text or "@import" in text:
            elsewhere.append(file.name)
    assert not elsewhere, "\n".join(elsewhere)


def test_pictures_are_described(pages):
    silent = [
        f"{name}: {picture.get('src', '')[:60]}, alt text {picture.get('alt')!r}"
        for name, page in pages.items()
        for picture in page.pictures
        if picture.get("aria-hidden") != "true" and sum(map(str.isalpha, picture.get("alt") or "")) <= 20
    ]
    assert not silent, "\n".join(silent)
    assert sum(len(page.pictures) for page in pages.values()) > 100


def test_a_page_has_one_heading_and_a_title(pages):
    assert {name: page.headings for name, page in pages.items()} == {name: int(name != SEARCH) for name in pages}
    assert all(page.title for page in pages.values())
    assert len({page.title for page in pages.values()}) == len(pages)


def test_tasks_are_open_and_answers_folded(pages):
    answers = {
        cell.metadata.course.exercise: (f"solutions/{file.stem}.html", cell.source.strip())
        for file in (ROOT / "solutions").glob("*.ipynb")
        for cell in nbformat.read(file, as_version=4).cells
        if "exercise" in cell.metadata.get("course", {})
    }
    assert set(answers) == set(exercise_weeks())
    for name, (page, answer) in answers.items():
        assert f": {name}" in pages[page].open_text, f"{name} has no task on {page}"
        assert any(answer in text for text in pages[page].folded_texts), f"the answer of {name} is in no fold"
        assert all(answer not in other.open_text for other in pages.values()), f"the answer of {name} lies open"


def test_figures_and_explorers_are_shown_as_pictures(pages):
    for file in (ROOT / "solutions").glob("*.ipynb"):
        page = pages[f"solutions/{file.stem}.html"]
        outputs = [output for cell in nbformat.read(file, as_version=4).cells for output in cell.get("outputs", [])]
        stored = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
        described = [unescape(text) for text in re.findall(r'<img alt="([^"]*)"', stored)]
        assert [picture["alt"] for picture in page.pictures] == described, page.file.name
        assert "widget-view" not in page.file.read_text(encoding="utf-8")


def test_the_search_finds_words(site):
    script = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("Search.setIndex(").removesuffix(")"))
    for word, page in [("stride", "week01"), ("checkpoint", "week09"), ("misconcept", "authoring")]:
        found = [index[part].get(word, []) for part in ("terms", "titleterms")]
        numbers = {number for some in found for number in ([some] if isinstance(some, int) else some)}
        names = {index["docnames"][number] for number in numbers}
        assert any(page in name for name in names), f"{word}: {names}"
