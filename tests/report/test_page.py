"""The page of a run: self-contained, accessible, escaped, and there for every kind of run."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from example_run import BASELINES, write_example_run

from moekd.errors import DataError
from moekd.report import write_report

EVIL = '<script>alert("x")</script> $\\frac{ & [a](http://evil.example) _under'


class Page(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if not self.tags or self.tags[-1][0] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_finished_run_has_every_part(tmp_path):
    run = write_example_run(tmp_path / "run")
    assert write_report(run) == run / "report.html"
    page = Page(run / "report.html")
    assert "On test (" in page.text
    assert "reaches 64.1% accuracy: 1.2 points above the best baseline, uniform_mix (62.9%)" in page.text
    assert "below the best teacher, multimodal (87.1%)" in page.text
    for name in ("test_unseen_style", *BASELINES, "61,706", "1,809,752", "best variant for 31.0%", "904", "0123abc"):
        assert name in page.text, name
    names = {path.stem for path in (run / "figures").glob("*.png")}
    assert names == {
        *(f"curves-main-{stage}" for stage in ("cotrain", "specialise", "distill")),
        "curves-baseline-kd-multimodal-distill",
        "routing-main-distill",
        "teacher-use",
        "class-accuracy",
    }
    assert not list(run.rglob("*.tmp"))
    first = (run / "report.html").read_bytes()
    assert write_report(run).read_bytes() == first, "a second report replaces the first"


def test_figures_of_the_page_are_the_files(tmp_path):
    run = write_example_run(tmp_path / "run")
    inlined = {image["src"] for image in Page(write_report(run)).all("img")}
    files = {
        "data:image/png;base64," + base64.b64encode(p.read_bytes()).decode() for p in (run / "figures").glob("*.png")
    }
    assert inlined == files


MANY = [f"class number {i}" for i in range(90)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, ["may be sampling noise", "best variant for 31.0%"], id="finished"),
        pytest.param({"routing": False}, ["No router took part"], id="no_routing"),
        pytest.param({"baselines": False}, ["No baseline was run"], id="no_baselines"),
        pytest.param({"dense": True}, ["reaches 39.1% mIoU", "pixels"], id="dense"),
        pytest.param(
            {"finished": False}, ["Last validation of the student: stage specialise, epoch 10, accuracy 0."], id="half"
        ),
        pytest.param(
            {"classes": MANY, "absent_class": True},
            ["The 30 most frequent of 90 classes.", "class number 89", "All 90 classes"],
            id="many_classes",
        ),
        pytest.param({"classes": ["only"]}, ["The class as a table"], id="one_class"),
    ],
)
def test_page_is_self_contained_and_accessible(tmp_path, options, expected):
    page = Page(write_report(write_example_run(tmp_path / "run", **options)))
    for part in expected:
        assert part in page.text, part
    assert not re.search(r"(?i)https?:|//[a-z]|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.source))
    assert not page.all("link")
    for image in page.all("img"):
        assert len(image["alt"]) > 20
        assert image["src"].startswith("data:image/png;base64,")
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text.split()
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_names_are_escaped(tmp_path):
    """S9: names in a page can't form markup."""
    run = write_example_run(tmp_path / "run", title=EVIL, classes=[EVIL, "_", "$", ""])
    results = json.loads((run / "results.json").read_text())
    for models in results["test"].values():
        models[EVIL] = models["uniform_mix"] | {"accuracy": 0.99}
    results["routing"]["variants"][0] = EVIL
    (run / "results.json").write_text(json.dumps(results))
    records = (run / "metrics.jsonl").read_text().replace('"routed_kd"', json.dumps(EVIL)).replace('"distill"', '"_s"')
    (run / "metrics.jsonl").write_text(records)
    page = Page(write_report(run))
    assert len(page.all("script")) == 1
    assert "<script>alert" not in page.source
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in page.source
    assert EVIL in "".join(page.words), "what is shown is the text itself"


def test_damaged_files_become_notes_on_the_page(tmp_path):
    run = write_example_run(tmp_path / "run", finished=False)
    (run / "config.yaml").write_text("{")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"type": "train", "phase"')
    notes = Page(write_report(run)).text.split("Notes on this run's files")[1].split("Results")[0]
    assert "config.yaml is damaged" in notes
    assert "results.json is missing." in notes
    assert "1 unreadable lines were left out" in notes


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"test": None, "routing": None},
        {"test": {"test": {"student": {}}}},
        {"test": {"test": {"student": {"accuracy": None, "per_class_accuracy": [None, 0.5]}}}, "class_names": None},
        {"test": {"test": {"baseline": {"accuracy": 0.5, "n": 10}}}, "routing": {"variants": ["a"], "by_class": [[]]}},
        {"test": {"val": {"student": {"accuracy": 0.5, "n": 0}, "other": {"accuracy": 0.5, "n": 0}}}},
    ],
)
def test_sparse_results_do_not_crash(tmp_path, results):
    run = write_example_run(tmp_path / "run")
    (run / "results.json").write_text(json.dumps(results))
    assert write_report(run).stat().st_size > 1000


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"type": "train"},
        {"type": "train", "losses": {"a": None, "b": -1.0, "c": 0}, "step": 1},
        {"type": "train", "losses": {"a": 1e9}},
        {"type": "validation", "metrics": {"loss": 1.0}},
        {"type": "validation", "metrics": {}},
        {"type": "routing", "shares": {}},
        {"type": "routing", "shares": {"a": 1.0}, "entropy": 0.0},
        {"type": "routing", "shares": {f"v{i}": 1 / 12 for i in range(12)}, "epoch": 3},
        {"type": "stage_end"},
        {"type": "something new"},
    ],
    ids=str,
)
def test_odd_records_do_not_crash(tmp_path, record):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert write_report(tmp_path).exists()


def test_refuses_what_is_not_a_run(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(DataError, match="not a run folder"):
        write_report(tmp_path)
