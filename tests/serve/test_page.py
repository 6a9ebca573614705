"""The page in a real browser: a picture is chosen, labels are changed, and what is wrong is said."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..report.browser import CONTRAST, STICKING_OUT, Browser, find_browser
from .conftest import CLASSES, Place, encoded

BARS = "[...document.querySelectorAll('#bars li')].map(e => e.innerText.split('\\n'))"
ERROR = "document.getElementById('error')"
TAB, ENTER = ("Tab", 9), ("Enter", 13, "\r")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    program = find_browser()
    if program is None:
        pytest.skip("no browser: install chromium (Debian: apt-get install chromium), or set MOEKD_BROWSER to one")
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture on disk."""
    path = tmp_path / "noise.png"
    path.write_bytes(encoded())
    return path


def opened(browser: Browser, place: Place, **options: object) -> None:
    """Open the page and wait until it knows the student."""
    browser.open(f"{place.url}/", **options)  # type: ignore[arg-type]
    browser.wait("document.getElementById('labels').value !== ''")


def asked(browser: Browser) -> list[list[str]]:
    """Wait for the answer and return the lines of its bars."""
    browser.wait("!document.getElementById('answer').hasAttribute('aria-busy')")
    browser.wait(f"document.querySelectorAll('#bars li').length > 0 || !{ERROR}.hidden")
    return list(browser.run(BARS))


def write_labels(browser: Browser, text: str) -> None:
    """Replace the labels as a person does."""
    browser.click("#labels")
    browser.run("document.getElementById('labels').select()")
    browser.send("Input.insertText", text=text)


def test_loads_without_errors_or_requests_elsewhere(browser: Browser, place: Place) -> None:
    opened(browser, place)
    assert browser.messages == []
    assert browser.requests
    assert all(url.startswith(place.url) for url in browser.requests)
    assert browser.run("document.title") == "Tiny small_cnn - moekd"
    assert browser.run("document.getElementById('labels').value") == ", ".join(CLASSES)
    assert browser.run("document.getElementById('ask').disabled")
    assert browser.run("document.getElementById('prompts').hidden"), "a classifier reads no prompts"


def test_a_chosen_picture_is_classified(browser: Browser, place: Place, picture: Path) -> None:
    opened(browser, place)
    browser.upload("#file", picture)
    bars = asked(browser)
    expected = place.post("/predict", json={"pictures": [base64.b64encode(encoded()).decode()]}).json()
    classes = expected["predictions"][0]["classes"]
    assert bars == [[one["label"], f"{100 * one['probability']:.1f} %"] for one in classes]
    browser.wait("document.getElementById('preview').naturalWidth === 40")
    assert "noise.png" in browser.run("document.getElementById('preview').alt")
    assert browser.messages == [], "nothing breaks the page's own security policy"
    browser.run("new Promise(done => setTimeout(done, 500))")
    widths = browser.run("[...document.querySelectorAll('.fill')].map(e => e.offsetWidth / e.parentNode.offsetWidth)")
    assert widths == pytest.approx([one["probability"] for one in classes], abs=0.02)


def test_labels_can_be_changed_and_brought_back(browser: Browser, place: Place, picture: Path) -> None:
    opened(browser, place)
    browser.upload("#file", picture)
    assert len(asked(browser)) == len(CLASSES)
    write_labels(browser, "naïve café, sky")
    browser.click("#ask")
    browser.wait("document.querySelectorAll('#bars li').length === 2")
    assert {name for name, _ in asked(browser)} == {"naïve café", "sky"}
    write_labels(browser, "zebra")
    browser.click("#ask")
    browser.wait(f"!{ERROR}.hidden")
    assert "no text tower" in browser.run(f"{ERROR}.innerText")
    assert browser.run(BARS) == []
    browser.click("#reset")
    browser.wait(f"document.querySelectorAll('#bars li').length === {len(CLASSES)}")
    assert browser.run(f"{ERROR}.hidden")


def test_a_reader_takes_any_label_and_prompt(browser: Browser, reader: Place, picture: Path) -> None:
    opened(browser, reader)
    browser.upload("#file", picture)
    assert {name for name, _ in asked(browser)} == set(CLASSES)
    write_labels(browser, "<b>fett</b>, 日本, 🙂")
    browser.click("#ask")
    browser.wait("document.querySelectorAll('#bars li').length === 3")
    first = dict(asked(browser))
    assert set(first) == {"<b>fett</b>", "日本", "🙂"}, "what was typed is text, never markup"
    browser.click("#prompts summary")
    browser.run("document.getElementById('templates').value = 'a drawing of a {}.'")
    browser.click("#ask")
    body = {
        "pictures": [base64.b64encode(encoded()).decode()],
        "labels": list(first),
        "templates": ["a drawing of a {}."],
    }
    expected = reader.post("/predict", json=body).json()["predictions"][0]["classes"]
    shown = [[one["label"], f"{100 * one['probability']:.1f} %"] for one in expected]
    browser.wait(f"JSON.stringify({BARS}) === JSON.stringify({shown!r})")


def test_a_file_that_is_no_picture_is_refused_with_a_reason(browser: Browser, place: Place, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    opened(browser, place)
    browser.upload("#file", tmp_path / "letter.txt")
    browser.wait(f"!{ERROR}.hidden")
    said = browser.run(f"{ERROR}.innerText")
    assert said == "Expected a picture (PNG, JPEG, WEBP, GIF, BMP), found 5 bytes of something else."
    assert browser.run(f"{ERROR}.getAttribute('role')") == "alert"
    assert browser.run("document.getElementById('preview').hidden")
    browser.upload("#file", tmp_path / "letter.txt")
    (tmp_path / "good.png").write_bytes(encoded())
    browser.upload("#file", tmp_path / "good.png")
    browser.wait("document.querySelectorAll('#bars li').length > 0")
    assert browser.run(f"{ERROR}.hidden")


def test_a_picture_can_be_dropped(browser: Browser, place: Place) -> None:
    opened(browser, place)
    content = base64.b64encode(encoded()).decode()
    browser.run(
        f"""(() => {{
          const bytes = Uint8Array.from(atob("{content}"), (c) => c.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "dropped.png", {{ type: "image/png" }}));
          const target = document.getElementById("target");
          for (const kind of ["dragenter", "dragover", "drop"]) {{
            target.dispatchEvent(new DragEvent(kind, {{ bubbles: true, cancelable: true, dataTransfer: data }}));
          }}
        }})()"""
    )
    assert len(asked(browser)) == len(CLASSES)
    assert browser.run("document.getElementById('hint').textContent") == "dropped.png"


def test_the_keyboard_is_enough(browser: Browser, place: Place, picture: Path) -> None:
    opened(browser, place)
    browser.press(*TAB)
    assert browser.run("document.activeElement.id") == "file"
    assert browser.run("getComputedStyle(document.getElementById('target')).outlineStyle") == "solid"
    browser.upload("#file", picture)
    asked(browser)
    places = []
    for _ in range(3):
        browser.press(*TAB)
        places.append(browser.run("document.activeElement.id"))
    assert places == ["reset", "labels", "ask"]
    browser.run("document.getElementById('labels').value = 'sky, animal'")
    browser.press(*ENTER)
    browser.wait("document.querySelectorAll('#bars li').length === 2")


def test_is_accessible(browser: Browser, reader: Place) -> None:
    opened(browser, reader)
    unnamed = """[...document.querySelectorAll('input, textarea')].filter(e => !e.labels.length).map(e => e.id)"""
    assert browser.run(unnamed) == []
    assert browser.run("[...document.images].every(i => i.alt.length > 5)")
    assert browser.run("document.documentElement.lang") == "en"
    assert browser.run("document.querySelectorAll('h1').length") == 1
    described = "[...document.querySelectorAll('[aria-describedby]')].map(e => e.getAttribute('aria-describedby'))"
    assert browser.run(f"{described}.every(id => document.getElementById(id))")
    assert browser.run("document.getElementById('status').getAttribute('role')") == "status"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_text_stands_out_and_fits(browser: Browser, reader: Place, picture: Path, width: int, dark: bool) -> None:
    opened(browser, reader, width=width, dark=dark)
    browser.upload("#file", picture)
    asked(browser)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    brightness = browser.run(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0)"
    )
    assert (brightness < 200) == dark
    ratio, text = browser.run(CONTRAST)
    assert ratio >= 4.5, text
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(STICKING_OUT) == []
    small = "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.offsetHeight < 44).length"
    assert browser.run(small) == 0, "buttons are large enough for a finger"
