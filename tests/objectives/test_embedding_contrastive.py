"""The student's embedding among those of the teacher: a loop as oracle, directions, hidden rows, widths."""

from __future__ import annotations

import math

import pytest
import torch

from moekd.errors import ConfigError, ModelError
from moekd.objectives import EmbeddingContrastive, EmbeddingKD, embedding_contrastive, reduce
from moekd.signals import Signals

from .towers import make_towers, tower_pool, tower_shapes, tower_step


def oracle(student: torch.Tensor, teacher: torch.Tensor, temperature: float, both: bool) -> list[float]:
    s, t = (x / x.norm(dim=1, keepdim=True) for x in (student, teacher))
    scores = (s @ t.T / temperature).tolist()
    rows = range(len(scores))
    mine = [math.log(sum(math.exp(scores[b][j]) for j in rows)) - scores[b][b] for b in rows]
    theirs = [math.log(sum(math.exp(scores[j][b]) for j in rows)) - scores[b][b] for b in rows]
    return [(a + c) / 2 for a, c in zip(mine, theirs, strict=True)] if both else mine


@pytest.mark.parametrize("direction", ["both", "student"])
def test_it_is_the_loop(direction) -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    found = embedding_contrastive(student * 3, teacher, 0.5, direction)
    torch.testing.assert_close(found.tolist(), oracle(student, teacher, 0.5, direction == "both"))


def test_the_same_direction_is_best_but_not_nothing() -> None:
    teacher = torch.randn(6, 8)
    best = embedding_contrastive(7 * teacher, teacher)
    assert (best > 0).all()
    assert best.mean() < embedding_contrastive(teacher + torch.randn(6, 8), teacher).mean()


def test_rows_of_the_same_class_can_be_hidden() -> None:
    step = tower_step(tower_pool(6))
    label = torch.tensor([0, 0, 1, 2, -1, -1])
    step.batch["label"] = label
    objective = EmbeddingContrastive(
        "t0", teacher_modality="text", temperature=1, direction="student", hide_same="label"
    )
    found = objective(step)["embedding_contrastive"]
    image, text = step.student.embeddings["image"], step.signals("t0").embeddings["text"]
    scores = torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T
    for row in range(6):
        others = [j for j in range(6) if j == row or label[j] < 0 or label[j] != label[row]]
        expected = scores[row, others].logsumexp(0) - scores[row, row]
        torch.testing.assert_close(found[row], expected)


def test_widths_that_differ_get_a_head() -> None:
    pool, student = tower_pool(9, 4), make_towers()
    objective = EmbeddingContrastive(shapes=tower_shapes(9, 4))
    assert set(objective.heads.heads) == {"t0:image", "t1:image"}
    reduce(objective(tower_step(pool, student))["embedding_contrastive"]).backward()
    assert student.network.image.weight.grad is not None
    assert all(p.grad is None for p in pool.parameters())
    with pytest.raises(ModelError, match="give the objective 'shapes'"):
        EmbeddingContrastive()(tower_step(pool, student))
    with pytest.raises(ConfigError, match="must be positive"):
        EmbeddingContrastive(temperature=0)


def test_the_squared_distance_of_unit_vectors_and_its_logarithm() -> None:
    teacher = Signals(embeddings={"image": torch.randn(4, 5)})
    options = {"distances": {"mse": 1.0}, "reduction": "sum"}
    same = Signals(embeddings={"image": 3 * teacher.embeddings["image"]})
    torch.testing.assert_close(EmbeddingKD(unit=True, **options).pair(same, teacher, {}), torch.zeros(4))
    upright = Signals(embeddings={"image": torch.tensor([[2.0, 0.0]])})
    across = Signals(embeddings={"image": torch.tensor([[0.0, 5.0]])})
    torch.testing.assert_close(EmbeddingKD(unit=True, **options).pair(upright, across, {}), torch.tensor([2.0]))
    far = Signals(embeddings={"image": torch.tensor([[math.sqrt(10.0), 0.0], [0.0, 0.0]])})
    near = Signals(embeddings={"image": torch.tensor([[0.0, 0.0], [math.sqrt(10.0), 0.0]])})
    found = EmbeddingKD(log_scale=10.0, **options).pair(far, near, {})
    torch.testing.assert_close(found, torch.full((2,), math.log(2.0)))
