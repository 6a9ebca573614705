"""What goes into the figures over training."""

from __future__ import annotations

import json

import pytest

from moekd.report.curves import OTHERS, _by_size, _largest, monitored, routing_curves, training_curves
from moekd.report.figures import shorten, slug, styled
from moekd.report.run import read_run


def drawn(tmp_path, records, draw=training_curves):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with styled():
        return draw(read_run(tmp_path))


def test_monitored_metric():
    assert monitored({"loss": 1.0, "accuracy": 0.5, "miou": 0.2}) == "miou"
    assert monitored({"loss": 1.0, "recall_at_5": 0.5}) == "recall_at_5"
    assert monitored({"loss": 1.0}) is None


def test_small_terms_get_their_own_panel():
    losses = {"kd": [(1.0, 3.0), (2.0, 0.01)], "balance": [(1.0, 0.02)], "zero": [(1.0, 0.0)]}
    large, small = _by_size(losses)
    assert list(large) == ["kd"]
    assert list(small) == ["balance", "zero"]
    assert _by_size({}) == [{}, {}]


def test_smallest_variants_are_added_up():
    records = [{f"v{i}": i / 10 for i in range(5)}, {"v4": 1.0}]
    table = _largest(records, 3)
    assert list(table) == ["v3", "v4", OTHERS]
    assert table["v4"] == [0.4, 1.0]
    assert table[OTHERS] == pytest.approx([0.3, 0.0])
    assert list(_largest(records, 5)) == ["v0", "v1", "v2", "v3", "v4"]


def test_one_figure_a_stage_with_words_for_it(tmp_path):
    where = {"phase": "main", "epoch": 0}
    records = [
        {"type": "train", **where, "stage": stage, "step": step, "losses": {"kd": loss, "total": loss}}
        for stage in ("first", "second")
        for step, loss in ((10, 2.0), (20, 0.5))
    ]
    records.append({"type": "validation", **where, "stage": "second", "step": 20, "metrics": {"accuracy": 0.25}})
    first, second = drawn(tmp_path, records)
    assert (first.slug, second.slug) == ("curves-main-first", "curves-main-second")
    assert first.alt == "Training curves of stage first. kd goes from 2 to 0.5."
    assert second.alt.endswith("Validation accuracy goes from 0.250 to 0.250.")
    assert first.png.startswith(b"\x89PNG")


def test_curves_of_other_phases_are_kept_apart(tmp_path):
    record = {"type": "train", "phase": "alone", "stage": "s", "step": 1, "losses": {"a": 1.0}}
    assert [drawing.section for drawing in drawn(tmp_path, [record])] == ["baselines"]


def test_routing_names_the_last_shares(tmp_path):
    records = [{"type": "routing", "stage": "s", "epoch": e, "shares": {"a": 0.2, "b": 0.8}} for e in range(3)]
    (drawing,) = drawn(tmp_path, records, routing_curves)
    assert drawing.alt.endswith("In the last epoch: a 20%, b 80%.")


def test_names_for_axes_and_files():
    assert shorten("multimodal/concat_identity", 20) == "multimodal/...entity"
    assert len(shorten("x" * 99)) == 24
    assert shorten("_hidden") == " _hidden"
    assert shorten("") == "(no name)"
    assert slug("KD: a/b", "..") == "kd-a-b-x"
