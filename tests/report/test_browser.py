"""The pages in a real browser: they load without errors or network, sort, and read well on a phone and in the dark."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from browser import CONTRAST, STICKING_OUT, Browser
from example_embeddings import add_embeddings
from example_run import write_example_run

from moekd.report import compare_report, write_report

ENTER, TAB, SPACE = ("Enter", 13, "\r"), ("Tab", 9), (" ", 32, " ")
TABLE = "document.querySelector('table.sortable')"
COLUMN = f"[...{TABLE}.tBodies[0].rows].map(r => r.cells[%d].dataset.sort).map(s => s ? Number(s) : null)"
STATES = f"[...{TABLE}.tHead.rows[0].cells].map(c => c.getAttribute('aria-sort'))"


@pytest.fixture(scope="session", params=["run", "compare", "ablation"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "run":
        names = [f"a rather long class name {i}" for i in range(40)]
        return write_report(add_embeddings(write_example_run(folder / "run", classes=names)))
    if request.param == "compare":
        runs = [write_example_run(folder / f"{t}{s}", title=t, seed=s) for t in ("routed", "alone") for s in range(3)]
        return compare_report(runs, folder / "compare.html")
    files: dict[str, Path] = request.getfixturevalue("ablation_files")
    return files["html"]


def test_loads_without_errors_or_network(browser: Browser, page: Path):
    browser.open(page)
    assert browser.messages == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.run("document.readyState") == "complete"
    assert browser.run("document.querySelectorAll('script').length") == 1
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 100)"), "images are decoded"


def test_the_recorder_sees_requests_and_errors(browser: Browser, tmp_path: Path):
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='absent.png'><script>console.warn('seen'); nothing();</script>")
    browser.open(bad)
    assert any(url.endswith("absent.png") for url in browser.requests)
    assert any("seen" in text for text in browser.messages)
    assert any("nothing is not defined" in text for text in browser.messages)


def test_is_accessible(browser: Browser, page: Path):
    browser.open(page)
    assert browser.run("[...document.images].length") > 0
    assert browser.run("[...document.images].filter(i => i.alt.trim().length < 20).length") == 0
    levels = browser.run("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), "no level is skipped"
    assert browser.run("[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent.trim())")
    assert browser.run("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == browser.run(
        "document.querySelectorAll('[id]').length"
    )
    broken = "[...document.querySelectorAll('a')].filter(a => !document.querySelector(a.getAttribute('href'))).length"
    assert browser.run(broken) == 0
    assert browser.run("[...document.querySelectorAll('.scroll')].every(s => s.tabIndex === 0 && s.ariaLabel)")


def first_numeric_column(browser: Browser) -> int:
    """Return the first column of the first table whose numbers differ."""
    columns = range(browser.run(f"{TABLE}.tHead.rows[0].cells.length"))
    found = next(c for c in columns if len({*browser.run(COLUMN % c)} - {None}) > 1)
    assert found > 0
    return found


def assert_sorted(values: list[float | None], descending: bool) -> None:
    known = [value for value in values if value is not None]
    assert len(set(known)) > 1, "the column has something to sort"
    assert known == sorted(known, reverse=descending)
    assert None not in values[: len(known)], "unknown numbers stand at the end"


def test_a_click_sorts_by_value_and_a_second_one_reverses(browser: Browser, page: Path):
    browser.open(page)
    column = first_numeric_column(browser)
    head = f"table.sortable thead th:nth-child({column + 1}) button"
    browser.click(head)
    assert_sorted(browser.run(COLUMN % column), descending=True)
    assert browser.run(STATES)[column] == "descending"
    browser.click(head)
    assert_sorted(browser.run(COLUMN % column), descending=False)
    assert browser.run(STATES)[column] == "ascending"
    browser.click("table.sortable thead th:nth-child(1) button")
    assert browser.run(STATES).count("none") == len(browser.run(STATES)) - 1
    names = browser.run(f"[...{TABLE}.tBodies[0].rows].map(r => r.cells[0].textContent.trim().toLowerCase())")
    collated = browser.run(f"({names!r}).toSorted((a, b) => b.localeCompare(a))")
    assert names == collated, "text sorts by text"


def test_the_keyboard_sorts(browser: Browser, page: Path):
    browser.open(page)
    column = first_numeric_column(browser)
    browser.run(f"{TABLE}.tHead.rows[0].cells[{column - 1}].firstElementChild.focus()")
    browser.press(*TAB)
    assert browser.run(f"document.activeElement === {TABLE}.tHead.rows[0].cells[{column}].firstElementChild")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid", "the focus is visible"
    browser.press(*ENTER)
    assert_sorted(browser.run(COLUMN % column), descending=True)
    browser.press(*SPACE)
    assert_sorted(browser.run(COLUMN % column), descending=False)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out(browser: Browser, page: Path, dark: bool):
    browser.open(page, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    brightness = browser.run(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0)"
    )
    assert (brightness < 200) == dark
    ratio, text = browser.run(CONTRAST)
    assert ratio >= 4.5, text


@pytest.mark.parametrize("width", [360, 768])
def test_fits_a_narrow_window(browser: Browser, page: Path, width: int):
    browser.open(page, width=width)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(STICKING_OUT) == []
    assert browser.run("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    if width == 360:
        assert browser.run("[...document.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth + 20)"), (
            "wide tables scroll inside their own box"
        )
