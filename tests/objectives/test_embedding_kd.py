"""Matching embeddings: distances, heads, normalised targets and their way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moekd.errors import ConfigError, ModelError
from moekd.objectives import EmbeddingKD, embedding_distance, reduce
from moekd.routers import Shapes
from moekd.signals import Signals
from moekd.teachers import TargetNorm

from .towers import pair_of, tower_pool, tower_shapes, tower_step


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("distance", ["cosine", "smooth_l1", "mse"])
def test_distances_equal_loops(distance, reduction) -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64) * 2
    expected = []
    for s, y in zip(student.numpy(), teacher.numpy(), strict=True):
        gaps = np.abs(s - y)
        if distance == "cosine":
            expected.append(1 - s @ y / np.linalg.norm(s) / np.linalg.norm(y))
        else:
            terms = gaps**2 if distance == "mse" else np.where(gaps < 1, gaps**2 / 2, gaps - 0.5)
            expected.append(terms.mean() if reduction == "mean" else terms.sum())
    np.testing.assert_allclose(embedding_distance(student, teacher, distance, reduction).numpy(), expected, atol=1e-12)


def test_known_values() -> None:
    student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert embedding_distance(student, teacher).item() == pytest.approx(1.0)
    assert embedding_distance(student, teacher, "mse").item() == pytest.approx((9 + 0.25) / 2)
    assert embedding_distance(student, teacher, "smooth_l1", "sum").item() == pytest.approx(2.5 + 0.125)


@pytest.mark.parametrize("distance", ["cosine", "smooth_l1", "mse"])
def test_equal_embeddings_have_no_loss_and_no_gradient(distance) -> None:
    teacher = torch.randn(5, 4, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    loss = embedding_distance(student, teacher, distance)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(
        lambda s: embedding_distance(s, teacher, distance), (teacher + 0.1 * torch.randn_like(teacher)).requires_grad_()
    )


def test_modalities_are_averaged_and_distances_weighted() -> None:
    pool = tower_pool(6, 6)
    step = tower_step(pool)
    mine, expected = pair_of(step.student), []
    for name in pool.names:
        for s, y in zip(mine, pair_of(step.signals(name)), strict=True):
            smooth = embedding_distance(F.normalize(s), F.normalize(y), "smooth_l1", "sum")
            expected.append(0.9 * embedding_distance(s, y) + 0.1 * smooth)
    distances = {"cosine": 0.9, "smooth_l1": 0.1}
    objective = EmbeddingKD(modalities=["image", "text"], distances=distances, unit=True, reduction="sum")
    torch.testing.assert_close(objective(step)["embedding_kd"], torch.stack(expected).mean(0))


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_each_teacher_has_a_head_of_its_width(projection) -> None:
    pool = tower_pool(4, 9)
    objective = EmbeddingKD(projection=projection, shapes=tower_shapes(4, 9))
    step = tower_step(pool)
    student = step.student.embeddings["image"]
    expected = [
        embedding_distance(objective.heads.head(name, "image")(student), step.signals(name).embeddings["image"])
        for name in pool.names
    ]
    loss = objective(step)["embedding_kd"]
    torch.testing.assert_close(loss, torch.stack(expected).mean(0))
    loss.mean().backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


@pytest.mark.parametrize("normalise", ["zscore", "ema", "phi_s"])
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_targets_are_normalised_and_heads_folded_back(normalise, projection) -> None:
    pool = tower_pool(6, 4)
    widths = {"t0": 6, "t1": 4}
    objective = EmbeddingKD(
        distances={"mse": 1.0}, projection=projection, normalise=normalise, shapes=tower_shapes(6, 4)
    )
    step = tower_step(pool, rows=32)
    loss = reduce(objective(step)["embedding_kd"])
    expected = []
    for name, dim in widths.items():
        target = step.signals(name).embeddings["image"]
        norm, head = TargetNorm(normalise, dim), objective.heads.head(name, "image")
        image = step.student.embeddings["image"]
        mine = head(image)
        expected.append(embedding_distance(mine, norm(target, update=True), "mse").mean())
        torch.testing.assert_close(
            objective.raw_head(name, "image")(step.student.embeddings["image"]),
            norm.inverse(mine),
            rtol=1e-4,
            atol=1e-4,
        )
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)


def test_statistics_change_in_training_only_and_travel_in_the_state() -> None:
    options = {"shapes": tower_shapes(6), "normalise": "zscore"}
    objective, step = EmbeddingKD(**options), tower_step(tower_pool(6))
    with torch.no_grad():
        objective(step)
    objective.eval()
    objective(step)
    norm = objective.norms["t0:image"]
    assert isinstance(norm, TargetNorm)
    assert norm.updates == 0
    objective.train()
    objective(step)
    copy = EmbeddingKD(**options)
    copy.load_state_dict(objective.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(copy(step)["embedding_kd"], objective(step)["embedding_kd"])


def test_a_loud_teacher_does_not_drown_a_quiet_one() -> None:
    """Two teachers whose embeddings differ by a factor of 1000: normalised, their losses have one size."""
    pool = tower_pool(6, 6)
    with torch.no_grad():
        for parameter in pool.teacher("t1").network.image.parameters():
            parameter.mul_(1000.0)
    losses = {}
    for normalise in ("none", "zscore", "phi_s"):
        objective = EmbeddingKD(
            distances={"mse": 1.0},
            projection="linear",
            normalise=normalise,
            shapes=tower_shapes(6, 6),
        )
        step = tower_step(pool, rows=64)
        pairs = [objective.pair_with(name, step.student, step.signals(name), step.batch) for name in pool.names]
        losses[normalise] = (pairs[1].mean() / pairs[0].mean()).item()
    assert losses["none"] > 1e4
    assert 0.2 < losses["zscore"] < 5
    assert 0.2 < losses["phi_s"] < 5


def test_raw_head_without_normalisation_is_the_head() -> None:
    objective = EmbeddingKD("t0", projection="linear", shapes=tower_shapes(4))
    assert objective.raw_head("t0", "image") is objective.heads.head("t0", "image")
    assert isinstance(objective.raw_head("t0", "image"), nn.Linear)


def test_heads_are_where_widths_differ_or_targets_are_normalised() -> None:
    objective = EmbeddingKD(shapes=tower_shapes(6, 9))
    assert set(objective.heads.heads) == {"t1:image"}
    step = tower_step(tower_pool(6, 9))
    mine, target = objective.heads.match("t0", "image", step.student, step.signals("t0"))
    assert mine is step.student.embeddings["image"]
    assert target.shape == mine.shape
    reduce(objective(step)["embedding_kd"]).backward()
    assert set(EmbeddingKD(normalise="ema", shapes=tower_shapes(6, 9)).heads.heads) == {"t0:image", "t1:image"}
    assert set(EmbeddingKD("t0", projection="mlp", shapes=tower_shapes(6, 9)).heads.heads) == {"t0:image"}


def test_variants_have_the_head_of_their_teacher() -> None:
    objective = EmbeddingKD("t0/image", shapes=tower_shapes(9))
    assert objective.heads.head("t0/image", "image") is objective.heads.head("t0", "image")


def test_common_modalities_join_teachers_of_texts_and_of_pictures() -> None:
    shapes = Shapes(embeddings={"student": {"image": 6, "text": 6}, "t0": {"image": 9}, "t1": {"text": 6, "audio": 3}})
    objective = EmbeddingKD(modalities="common", shapes=shapes)
    assert objective.heads.widths == {("t0", "image"): (6, 9), ("t1", "text"): (6, 6)}
    step = tower_step(tower_pool(9, 6))
    image = Signals(embeddings={"image": step.signals("t0").embeddings["image"]})
    text = Signals(embeddings={"text": step.signals("t1").embeddings["text"]})
    found = objective.pair_with("t0", step.student, image, step.batch)
    head = objective.heads.head("t0", "image")
    torch.testing.assert_close(
        found, embedding_distance(head(step.student.embeddings["image"]), image.embeddings["image"])
    )
    found = objective.pair_with("t1", step.student, text, step.batch)
    torch.testing.assert_close(found, embedding_distance(step.student.embeddings["text"], text.embeddings["text"]))
    with pytest.raises(ModelError, match="'common': teacher 't0' gives none, the student image, text"):
        objective.pair_with("t0", step.student, Signals(), step.batch)
    sounds = Shapes(embeddings={"student": {"image": 6}, "t0": {"image": 9}, "t1": {"audio": 6}})
    with pytest.raises(ConfigError, match="'common': teacher 't1' gives audio, the student image"):
        EmbeddingKD(modalities="common", shapes=sounds)
    with pytest.raises(ConfigError, match=r"'common'.*give 'shapes'"):
        EmbeddingKD(modalities="common")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="'image' has 6 numbers in the student and 9 in teacher 't0'"):
        EmbeddingKD()(tower_step(tower_pool(9)))
    with pytest.raises(ConfigError, match="'image' has 6 numbers in the student and 9 in teacher 't1'") as caught:
        EmbeddingKD(modalities=["image", "text"], projection="none", shapes=tower_shapes(6, 9))
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match=r"projection 'linear'.*give 'shapes'"):
        EmbeddingKD(projection="linear")
    with pytest.raises(ConfigError, match="'phi_s': the targets' widths are not known"):
        EmbeddingKD(normalise="phi_s")
    with pytest.raises(ConfigError, match="no teacher 'tO'; did you mean 't0'"):
        EmbeddingKD("tO", shapes=tower_shapes(9))
    with pytest.raises(ConfigError, match="the student gives no embedding 'audio'; it gives image, text"):
        EmbeddingKD(modalities=["audio"], shapes=tower_shapes(9))
    with pytest.raises(ConfigError, match="distances takes cosine, smooth_l1, mse"):
        EmbeddingKD(distances={"l2": 1.0})
    with pytest.raises(ConfigError, match="modalities is empty"):
        EmbeddingKD(modalities=[])
    objective = EmbeddingKD(projection="linear", shapes=tower_shapes(9))
    with pytest.raises(ModelError, match="no head for teacher 't1'"):
        objective(tower_step(tower_pool(9, 9)))
    with pytest.raises(ModelError, match="no head for teacher 't1'"):
        EmbeddingKD(shapes=tower_shapes(6), normalise="zscore", projection="mlp")(tower_step(tower_pool(6, 6)))
    with pytest.raises(ModelError, match="no statistics of teacher 't1'"):
        EmbeddingKD(shapes=tower_shapes(6), normalise="zscore", projection="none")(tower_step(tower_pool(6, 6)))
