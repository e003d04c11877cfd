"""The website of the course, from README, docs, notebooks and solutions: `python docs/site/build.py build/site`.

Nothing is executed and nothing fetched: pages show what the solutions store.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import build_main

from course_utils.exercise import week_order

ROOT = Path(__file__).resolve().parents[2]
NOTE = """```{{note}}
This is the solved notebook with what it showed when it ran. To solve it yourself, `make lab` and open `work/{name}`:
[Using the course](../README.md) says how. There you also get the explorers, of which this page has still pictures.
```"""
RELATIVE_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def build(output: Path) -> int:
    """Build the site into `output`, a folder that is empty or not there; return Sphinx's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "sources"
        write_sources(sources)
        settings = ["-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), "-d", f"{folder}/doctrees"]
        return build_main([*settings, str(sources), str(output)])


def write_sources(folder: Path) -> None:
    """Write the pages as Sphinx reads them. They lie as in the repository, so that links between them hold."""
    lead, sections = parts((ROOT / "README.md").read_text(encoding="utf-8"))
    weeks = sections.pop("The weeks").replace("](notebooks/", "](solutions/")  # here the answers are folded away
    files = sorted((ROOT / "solutions").glob("*.ipynb"), key=lambda file: week_order(file.stem))
    notebooks = {file.stem: site_notebook(file.name) for file in files}
    guides = {f"docs/{file.name}": file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
    index = "\n".join([lead, weeks, exercise_list(notebooks), contents(list(notebooks), list(guides))])
    pages = {"index.md": index, "README.md": "\n".join(["# Using the course\n", *sections.values()]), **guides}
    for name, text in pages.items():
        write(folder / name, text)
        copy_linked(Path(name).parent, RELATIVE_LINK.findall(text), folder)
    for name, notebook in notebooks.items():
        write(folder / "solutions" / f"{name}.ipynb", nbformat.writes(notebook))


def write(file: Path, text: str) -> None:
    """Write a file and the folders it lies in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def copy_linked(parent: Path, links: list[str], folder: Path) -> None:
    """Copy the files that a page in `parent` links to and that are no pages, such as pictures and licenses."""
    for link in links:
        if (ROOT / parent / link).is_file() and not link.endswith((".md", ".ipynb")):
            (folder / parent / link).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / parent / link, folder / parent / link)


def parts(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section of a page, and its sections by title, each with its heading."""
    lead, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return lead, {section.split("\n")[0].removeprefix("## "): section for section in sections}


def site_notebook(name: str) -> NotebookNode:
    """A solution as a page: before each reference answer the student's stub, which is the task; the answer folded."""
    solution = nbformat.read(ROOT / "solutions" / name, as_version=4)
    stubs = {cell.id: cell for cell in nbformat.read(ROOT / "notebooks" / name, as_version=4).cells}
    cells = []
    for cell in solution.cells:
        if "exercise" in cell.metadata.get("course", {}):
            cells.append(stubs[cell.id])
            answer = f"````python\n{cell.source}\n````"
            cells.append(new_markdown_cell(f"<details>\n<summary>Show the answer</summary>\n\n{answer}\n\n</details>"))
        elif "setup" not in cell.metadata.get("tags", []):  # what installs the package is of no use to a reader
            cells.append(cell)
    solution.cells = [*cells[:1], new_markdown_cell(NOTE.format(name=name)), *cells[1:]]
    return solution


def exercise_list(notebooks: dict[str, NotebookNode]) -> str:
    """The exercises of each week, each with a link to its task."""
    lines = ["## The exercises", ""]
    for file, notebook in notebooks.items():
        title = notebook.cells[0].source.split("\n")[0].removeprefix("# ")
        headings = [cell.source.split("\n")[0] for cell in notebook.cells if cell.id.endswith("-task")]
        links = [f"[`{heading.split('`')[1]}`](solutions/{file}.ipynb#{anchor(heading)})" for heading in headings]
        lines += [f"**{title}**: {' · '.join(links)}", ""]
    return "\n".join(lines)


def anchor(heading: str) -> str:
    """The anchor that `myst_heading_anchors` gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def contents(weeks: list[str], guides: list[str]) -> str:
    """The menu at the side of each page."""
    menus = {"The weeks": [f"solutions/{week}" for week in weeks], "About": ["README", *guides]}
    return "\n".join(
        "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])
        for caption, pages in menus.items()
    )


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]).resolve()))
