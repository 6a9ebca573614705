"""The sentences that state the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from moekd.report.run import Run
from moekd.report.summary import duration, routing_sentence, sampling_margin, summary
from moekd.report.table import results_table


def told(student: float, baseline: float | None, n: int = 1000) -> str:
    models = {"student": {"accuracy": student, "n": n}}
    if baseline is not None:
        models["alone"] = {"accuracy": baseline, "n": n}
    run = Run(Path("run"), results={"test": {"test": models}})
    return summary(run, results_table(run.results))


def test_worse_is_called_worse():
    assert "12.0 points below the best baseline, alone (62.0%)" in told(0.5, 0.62)


def test_equal_is_called_level():
    assert "level with the best baseline" in told(0.5, 0.5001)


def test_small_differences_are_called_noise():
    # 1.96 * sqrt(2 * 0.25 / 1000) = 4.4 points
    assert "below about 4.4 points may be sampling noise; the one to the best baseline is below" in told(0.5, 0.52)
    assert "below about 4.3 points may be sampling noise." in told(0.5, 0.62)


def test_sampling_margin_hand_case():
    rows = results_table({"test": {"test": {"a": {"accuracy": 0.8, "n": 400}, "b": {"accuracy": 0.5, "n": 400}}}})
    assert sampling_margin(*rows) == pytest.approx(1.96 * (0.16 / 400 + 0.25 / 400) ** 0.5)


def test_every_split_is_told_of_even_where_the_student_loses():
    accuracies = {"test": (0.6, 0.5), "test_far": (0.1, 0.3), "test_near": (0.51, 0.5)}
    test = {
        split: {"student": {"accuracy": a, "n": 1000}, "alone": {"accuracy": b, "n": 1000}}
        for split, (a, b) in accuracies.items()
    }
    run = Run(Path("run"), results={"test": test})
    text = summary(run, results_table(run.results))
    assert "On test_far it reaches 10.0%: 20.0 points below the best baseline, alone (30.0%)." in text
    assert "On test_near it reaches 51.0%: 1.0 points above the best baseline, alone (50.0%), within sampling" in text


def test_no_baseline():
    assert "can't say what the teachers added" in told(0.5, None)


def test_routing_sentence_needs_losses():
    assert routing_sentence(Run(Path("run"), results={"routing": {"chosen_loss": None}})) == ""
    run = Run(Path("run"), results={"routing": {"chosen_loss": 0.5, "oracle_loss": 0.2}})
    assert routing_sentence(run) == (
        "Cross-entropy of the chosen teacher: 0.500 nats; always choosing the best variant would give 0.200."
    )


def test_durations():
    assert [duration(s) for s in (61.23, 600, 7200, float("nan"))] == ["61.2 s", "10.0 min", "2.0 h", "-"]
