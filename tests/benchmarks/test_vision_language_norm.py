"""The command on made-up data, and the committed table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from moekd.benchmarks import vision_language_norm as norm

RESULTS = Path(norm.__file__).resolve().parent / "results"


@pytest.fixture(scope="module")
def data() -> norm.Digits:
    rng = torch.Generator().manual_seed(0)
    labels = [torch.arange(rows) % 10 for rows in (200, 100)]
    centres = torch.randn(10, 20, generator=rng)
    train, test = (centres[y] + torch.randn(len(y), 20, generator=rng) for y in labels)
    return norm.Digits(train, labels[0], test, labels[1])


def test_every_arm_is_measured(data: norm.Digits) -> None:
    rows = list(norm.run(data, [0], steps=3))
    assert [(row["norm"], row["drop"]) for row in rows] == [(n, d) for n in norm.NORMS for d in norm.DROPS]
    for row in rows:
        assert row["worst"] == min(row[name] for name in norm.TEACHERS)
        assert 0 <= float(row["accuracy"]) <= 1


def test_the_teachers_are_of_very_different_loudness(data: norm.Digits) -> None:
    pool = norm.make_teachers(data, 0)
    said = pool({"pix": data.train, "id": torch.arange(200)})
    loudness = [float(said[name].embeddings["image"].std()) for name in pool.names]
    assert loudness[0] > 20 * loudness[1] > 100 * loudness[2]
    assert pool.frozen()


def test_normalised_targets_serve_the_quiet_teacher_better(data: norm.Digits) -> None:
    pool = norm.make_teachers(data, 0)
    found = [norm.measure(data, pool, norm.train_student(data, pool, kind, 0.0, 0, 150)) for kind in ("none", "zscore")]
    assert found[1]["random x0.1"] > found[0]["random x0.1"]


@pytest.mark.parametrize(("name", "data", "words"), [("", "mfeat", ""), ("_emoji", "emoji", " --data emoji")])
def test_the_committed_table_is_that_of_the_committed_numbers(name: str, data: str, words: str) -> None:
    with open(RESULTS / f"vision_language_norm{name}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seeds = len({row["seed"] for row in rows})
    assert seeds >= 5
    text = norm.table(rows, f"python -m moekd.benchmarks.vision_language_norm{words} --seeds {seeds}", data)
    assert text == (RESULTS / f"vision_language_norm{name}.md").read_text(encoding="utf-8")


def test_the_pictures_are_standardised() -> None:
    found = norm.emoji()
    assert found.train.shape[1] == found.test.shape[1] == 3 * 8 * 8
    torch.testing.assert_close(found.train.std(dim=0), torch.ones(192), atol=1e-4, rtol=0)
