"""Heads on several layers of the student: their sum, their gradients, and the way back to raw targets."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError, ModelError
from moekd.objectives import EmbeddingKD
from moekd.objectives.ladder import Ladder
from moekd.routers import Shapes
from moekd.signals import Signals
from moekd.teachers import TargetNorm

TAPS = {"vector": (5,), "tokens": (4, 7), "maps": (3, 2, 2)}
SHAPES = Shapes(taps=TAPS, embeddings={"student": {"image": 6, "text": 6}, "t": {"image": 9, "text": 8}})


def signals(rows: int = 10) -> Signals:
    features = {tap: torch.randn(rows, *shape, requires_grad=True) for tap, shape in TAPS.items()}
    return Signals(None, features, {"image": torch.randn(rows, 6), "text": torch.randn(rows, 6)})


def objective(**options) -> EmbeddingKD:
    return EmbeddingKD("t", projection="ladder", distances={"mse": 1.0}, shapes=SHAPES, **options)


def test_rungs_are_summed_over_pooled_taps() -> None:
    student = signals()
    ladder = objective(taps=list(TAPS), hidden_dim=4).heads.head("t", "image")
    assert isinstance(ladder, Ladder)
    pooled = [student.features["vector"], student.features["tokens"].mean(1), student.features["maps"].mean((2, 3))]
    expected = ladder.top(student.embeddings["image"])
    for value, rung in zip(pooled, ladder.rungs, strict=True):
        expected = expected + rung(value)
    torch.testing.assert_close(ladder(student), expected)
    assert [rung[0].weight.shape for rung in ladder.rungs] == [(4, 5), (4, 7), (4, 3)]
    ladder(student).sum().backward()
    assert all(feature.grad is not None and feature.grad.any() for feature in student.features.values())


def test_each_modality_reads_its_own_taps() -> None:
    kd = objective(modalities=["image", "text"], taps={"image": ["maps"]})
    image, text = (kd.heads.head("t", modality) for modality in ("image", "text"))
    assert isinstance(image, Ladder)
    assert isinstance(text, Ladder)
    assert image.taps == ["maps"]
    assert text.taps == []
    student = signals()
    torch.testing.assert_close(text(student), text.top(student.embeddings["text"]))


@pytest.mark.parametrize("normalise", ["zscore", "phi_s"])
def test_the_normalisation_is_folded_into_all_rungs(normalise) -> None:
    kd, student = objective(taps=list(TAPS), normalise=normalise), signals(40)
    teacher = Signals(embeddings={"image": torch.randn(40, 9) * torch.arange(1, 10) + 5})
    kd.pair_with("t", student, teacher, {})
    norm = kd.norms["t:image"]
    assert isinstance(norm, TargetNorm)
    predicted = kd.heads.head("t", "image")(student)
    torch.testing.assert_close(kd.raw_head("t", "image")(student), norm.inverse(predicted), rtol=1e-4, atol=1e-4)


def test_taps_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"taps: projection 'ladder' reads taps of the student"):
        objective()
    with pytest.raises(ConfigError, match="name the taps of each of image, text"):
        objective(modalities=["image", "text"], taps=["maps"])
    with pytest.raises(ConfigError, match=r"'map' is no tap of the student.*did you mean 'maps'"):
        objective(taps=["map"])
    with pytest.raises(ConfigError, match="'audio' is none of the modalities image"):
        objective(taps={"audio": ["maps"]})
    with pytest.raises(ConfigError, match="taps: only projection 'ladder' reads them"):
        EmbeddingKD("t", taps=["maps"], shapes=SHAPES)
    with pytest.raises(ModelError, match="needs tap 'vector'"):
        objective(taps=["vector"]).pair_with("t", Signals(embeddings={"image": torch.randn(2, 6)}), signals(2), {})
