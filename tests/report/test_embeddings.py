"""What the page of a run tells about embeddings, with and without a classifier; damaged files are noted or left out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from example_embeddings import add_embeddings, examples, picture
from example_run import write_example_run

from moekd.report import compare_report, write_report
from moekd.report.embeddings import embedding_tables, shift_table
from moekd.report.examples import draw_map, read_examples
from moekd.report.figures import styled
from moekd.report.measures import capital, known_measures, measure_label
from moekd.report.run import read_run
from moekd.report.summary import key_numbers, summary
from moekd.report.table import print_table, results_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return add_embeddings(write_example_run(tmp_path / "run"), logits=False)


def test_names_of_measures_are_for_people():
    assert measure_label("image_to_text_r10") == "image to text R@10"
    assert measure_label("balanced_accuracy") == "balanced accuracy"
    assert [capital(measure_label(name)) for name in ("miou", "retrieval_r1", "knn_accuracy", "accuracy")] == [
        "mIoU",
        "R@1, both ways",
        "kNN accuracy",
        "Accuracy",
    ]
    assert known_measures([{"knn_accuracy": None}, {"knn_accuracy": math.nan}]) == []
    assert known_measures([{}, {"knn_accuracy": 0.5, "retrieval_r1": 0}]) == ["retrieval_r1", "knn_accuracy"]


def test_a_student_without_a_classifier_is_compared_by_retrieval(folder: Path):
    run = read_run(folder)
    rows = results_table(run.results, run.teachers)
    assert {row.measure for row in rows} == {"retrieval_r1"}
    student = rows[0]
    assert student.headline == student.number("retrieval_r1") == run.results["test"]["test"]["student"]["retrieval_r1"]
    assert math.isnan(student.accuracy)
    text = summary(run, rows)
    assert f"{100 * student.headline:.1f}% R@1, both ways" in text
    assert "accuracy" not in text
    assert ("R@1, both ways, on test") in [tile[2] for tile in key_numbers(run, rows)]


def test_accuracy_stays_the_headline_where_there_is_one_unless_the_config_says(tmp_path: Path):
    folder = add_embeddings(write_example_run(tmp_path / "a"))
    run = read_run(folder)
    assert {row.measure for row in results_table(run.results)} == {"accuracy"}
    run.results["headline"] = "zero_shot_accuracy"
    rows = results_table(run.results)
    assert rows[0].headline == run.results["test"]["test"]["student"]["zero_shot_accuracy"]


def test_the_tables_hold_the_numbers(folder: Path):
    run = read_run(folder)
    rows = results_table(run.results, run.teachers)
    found = dict(embedding_tables(run, rows))
    retrieval, classes, teachers = found["test"]
    student = run.results["vision_language"]["test"]["student"]
    assert retrieval.caption == "test: retrieval among 1,229 pictures and 381 texts"
    assert retrieval.header[2:5] == ["Image to text R@1", "Image to text R@5", "Image to text R@10"]
    assert [cell.value for cell in retrieval.rows[0][2:5]] == [
        student["retrieval"][f"image_to_text_r{k}"] for k in (1, 5, 10)
    ]
    assert len(retrieval.rows) == len(run.results["test"]["test"])
    assert "4,000 training rows" in classes.caption
    assert classes.rows[0][-1].value == student["linear_probe"]["accuracy"]
    assert teachers.header == ["Model", "Role", "multimodal/image", "audio", "Worst teacher"]
    assert teachers.rows[0][-1].value == pytest.approx(student["teachers"]["audio"]["r2"])
    assert all(row[1].text != "teacher" for row in teachers.rows)


def test_the_order_of_hard_negatives_has_a_table(folder: Path):
    results = json.loads((folder / "results.json").read_text())
    for model, tau in (("student", 0.5), ("student_alone", 0.25)):
        rows = {"multimodal": {"tau": tau, "k": 16}, "audio": {"tau": -tau, "k": 16}}
        results["vision_language"]["test"][model]["rank_agreement"] = rows
        results["test"]["test"][model]["rank_agreement"] = 0.0
    (folder / "results.json").write_text(json.dumps(results))
    run = read_run(folder)
    tables = dict(embedding_tables(run, results_table(run.results, run.teachers)))["test"]
    assert tables[-1].header == ["Model", "Role", "multimodal", "audio", "Mean"]
    assert [cell.text for cell in tables[-1].rows[0]][1:] == ["student", "0.500", "-0.500", "0.000"]
    assert tables[-1].caption.startswith("test: order of the 16 nearest wrong answers")
    assert len(tables[-1].rows) == 2


def test_the_shift_is_the_difference_to_test(folder: Path):
    run = read_run(folder)
    table = shift_table(results_table(run.results, run.teachers))
    assert table is not None
    first = table.rows[0]
    test, other = (run.results["test"][split]["student"]["retrieval_r1"] for split in ("test", "test_unseen_style"))
    assert [first[0].text, first[1].text] == ["R@1, both ways", "student"]
    assert first[-1].value == pytest.approx(other - test)
    assert shift_table([row for row in results_table(run.results) if row.split == "test"]) is None


def test_the_page_has_every_part_and_escapes_what_it_shows(folder: Path):
    page = write_report(folder).read_text()
    for part in ("embeddings", "shift", "examples", "confusions"):
        assert f'<section id="{part}">' in page
    assert "<b>thing" not in page
    assert "&lt;b&gt;thing" in page
    assert "17 of 40" in page
    assert page.count("data:image/png;base64,") > 20
    assert (folder / "figures" / "embedding-map.png").is_file()


def test_runs_without_embeddings_have_no_empty_parts(tmp_path: Path):
    page = write_report(write_example_run(tmp_path / "run")).read_text()
    for part in ("embeddings", "examples", "confusions"):
        assert f'<section id="{part}">' not in page


def test_damaged_examples_are_noted_and_odd_ones_left_out(folder: Path):
    (folder / "examples.json").write_text("{")
    run = read_run(folder)
    assert read_examples(run).directions == ()
    assert "examples.json is damaged" in run.notes[-1]
    raw = examples(["a", "b"])
    raw["pictures"] = {"0": "no base64!", "1": picture(0)[8:], "2": '"><script>', "3": picture(3), "4": 7}
    raw["map"]["points"][0] = [math.nan, 0]
    raw["retrieval"]["image_to_text"] = 7
    (folder / "examples.json").write_text(json.dumps(raw))
    shown = read_examples(read_run(folder))
    uris = {tile.uri for tile in shown.confusions[0].rows}
    assert len(uris) == 2, "one picture is sound, the others are none"
    assert "" in uris
    with styled():
        assert draw_map(shown) == []
    write_report(folder)


def test_alternative_texts_say_what_is_shown(folder: Path):
    shown = read_examples(read_run(folder))
    name, queries = shown.directions[0]
    assert name == "text to image"
    assert queries[1].rank == 2
    assert queries[1].found[1].alt.startswith("answer 2, right, shows <b>thing</b>")
    with styled():
        (drawing,) = draw_map(shown)
    assert drawing.alt.startswith("Map of 60 image embeddings of test")
    assert "9 largest of 12 groups" in drawing.caption


def test_comparisons_are_about_the_same_number(tmp_path: Path):
    runs = [
        add_embeddings(write_example_run(tmp_path / f"{title}{seed}", title=title, seed=seed), logits=title == "both")
        for title in ("both", "towers")
        for seed in range(3)
    ]
    page = compare_report(runs, tmp_path / "compare.html").read_text()
    assert "These runs are about accuracy, R@1, both ways; compared is R@1, both ways." in page
    assert "<td>zero-shot accuracy</td>" in page
    alone = compare_report(runs[:3], tmp_path / "alone.html").read_text()
    assert "Accuracy, mean" in alone


def test_the_terminal_shows_what_is_known(folder: Path):
    from rich.console import Console

    console = Console(width=160, record=True)
    print_table(read_run(folder).results, console=console)
    text = console.export_text()
    assert "Image to text R@1" in text
    assert "Accuracy " not in text
