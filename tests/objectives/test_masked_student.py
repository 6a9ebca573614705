"""A student that sees a part of its picture; several objectives as one; the contrastive loss of both models together.

Shapes: B batch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.errors import ConfigError, DataError
from moekd.model import Model
from moekd.objectives import (
    KD,
    AugmentedContrastive,
    Contrastive,
    ContrastiveKD,
    EmbeddingKD,
    MaskedStudent,
    PairwiseObjective,
    RelationalKL,
    RoutedObjective,
    Together,
    mask_patches,
    softmax_contrastive,
)
from moekd.routers import Dense, Router
from moekd.signals import Signals
from moekd.step import Models, Step
from moekd.teachers import Teacher, TeacherPool

from ..builders import make_batch
from .test_mixed_targets import Fixed
from .towers import pair_of, tower_pool, tower_shapes, tower_step


class Pictures(nn.Module):
    """Embeds pictures `[B, 1, 8, 8]`, and remembers what it saw."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(64, 5)
        self.seen: list[Tensor] = []

    def forward(self, image_BCHW: Tensor) -> Signals:
        self.seen.append(image_BCHW.detach().clone())
        return Signals(
            embeddings={"image": self.layer(image_BCHW.flatten(1)), "text": self.layer(image_BCHW.flatten(1))}
        )


def picture_step(rows: int = 4, router: Any = None, **options: Any) -> Step:
    pool = TeacherPool({f"t{i}": Teacher(Pictures(10 + i), ["image"], name=f"t{i}") for i in range(2)})
    return Step(make_batch(rows), Models(Model(Pictures(1), ["image"]), pool, router), **options)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.75, 0.9])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_each_picture_keeps_the_same_number_of_whole_patches(ratio: float, size) -> None:
    image, patches = torch.randn(3, 2, *size), -(-size[0] // 3) * -(-size[1] // 3)
    masked = mask_patches(image, torch.rand(3, patches), 3, ratio, "zero")
    for b in range(3):
        blank = 0
        for top in range(0, size[0], 3):
            for left in range(0, size[1], 3):
                part = masked[b, :, top : top + 3, left : left + 3]
                whole = image[b, :, top : top + 3, left : left + 3]
                assert torch.equal(part, whole) or not part.any()
                blank += not part.any()
        assert blank == round(ratio * patches)


def test_the_smallest_draws_are_blanked_and_filled_with_the_mean() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    masked = mask_patches(image, torch.tensor([[0.9, 0.1, 0.8, 0.7]]), 2, 0.25)
    expected = image.clone()
    expected[0, 0, :2, 2:] = 7.5
    assert torch.equal(masked, expected)
    bytes_ = mask_patches(image.to(torch.uint8), torch.tensor([[0.9, 0.1, 0.8, 0.7]]), 2, 0.25)
    assert bytes_.dtype == torch.uint8
    assert int(bytes_[0, 0, 0, 3]) == 8


def test_the_student_alone_is_masked_and_runs_once_more() -> None:
    step = picture_step()
    loss = MaskedStudent(EmbeddingKD(), patch=2)(step)["masked_student"]
    student = step.models.student.network
    masked = student.seen[0]
    assert len(student.seen) == 1
    assert not torch.equal(masked, step.batch["image"])
    assert torch.equal(step.pool.teacher("t0").network.seen[0], step.batch["image"])
    plain = EmbeddingKD()
    said = step.models.student(step.batch | {"image": masked})
    alone = [plain.pair_with(n, said, step.signals(n), step.batch) for n in step.pool.names]
    torch.testing.assert_close(loss, torch.stack(alone).mean(0))


def test_nothing_masked_is_the_objective_itself() -> None:
    for objective in (EmbeddingKD(), ContrastiveKD(mix="probs", student_scale=3.0, teacher_scale=3.0)):
        masked = MaskedStudent(objective, patch=2, ratio=0.0)(picture_step())["masked_student"]
        torch.testing.assert_close(masked, objective(picture_step())[objective.name])


def test_steps_differ_and_validation_is_the_same_every_time() -> None:
    objective = MaskedStudent(EmbeddingKD(), patch=2)
    losses = [objective(picture_step())["masked_student"] for _ in range(2)]
    assert not torch.equal(*losses)
    still = [objective(picture_step(training=False))["masked_student"] for _ in range(2)]
    assert torch.equal(*still)
    again = MaskedStudent(EmbeddingKD(), patch=2)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(objective(picture_step())["masked_student"], again(picture_step())["masked_student"])


@pytest.mark.parametrize("combine", ["loss", "target"])
def test_can_be_routed(combine) -> None:
    inner = EmbeddingKD() if combine == "loss" else ContrastiveKD(student_scale=3.0, teacher_scale=3.0)
    step = picture_step(router=Router(Fixed(), Dense(), combine=combine, signal="none"))
    loss = RoutedObjective(MaskedStudent(inner, patch=2))(step)["routed"]
    assert len(step.models.student.network.seen) == 1
    said = step.models.student(step.batch | {"image": step.models.student.network.seen[0]})
    weights, teachers = step.routing.weights, {n: step.signals(n) for n in step.pool.names}
    if combine == "target":
        expected = inner.mixed(said, teachers, weights, "probs", step.batch)
    else:
        alone = [inner.pair_with(n, said, teacher, step.batch) for n, teacher in teachers.items()]
        expected = (weights * torch.stack(alone, 1)).sum(1)
    torch.testing.assert_close(loss, expected)


def test_mistakes_of_masking_are_named() -> None:
    with pytest.raises(DataError, match="no field 'imag'; did you mean 'image'"):
        MaskedStudent(EmbeddingKD(), field="imag")(picture_step())
    with pytest.raises(DataError, match=r"'left' must hold pictures \[B, C, H, W\], found \(4, 8\)"):
        MaskedStudent(EmbeddingKD(), field="left")(picture_step())
    with pytest.raises(ConfigError, match="must compare a student with one teacher; found Contrastive"):
        MaskedStudent(Contrastive())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="patch >= 1"):
        MaskedStudent(EmbeddingKD(), ratio=1.0)


def test_together_is_the_weighted_sum() -> None:
    parts: list[PairwiseObjective] = [EmbeddingKD(), RelationalKL()]
    step = tower_step(tower_pool(6, 6))
    found = Together(parts, [0.5, 2.0])(step)["together"]
    expected = 0.5 * parts[0](step)["embedding_kd"] + 2.0 * parts[1](step)["relational_kl"]
    torch.testing.assert_close(found, expected)
    joined = Together(parts)
    assert joined.compares_rows
    assert joined.reads_embeddings
    assert not joined.logits_only
    assert joined.variants(step.pool) == ["t0", "t1"]


@pytest.mark.parametrize(
    ("objectives", "weights", "message"),
    [
        ([], None, "objectives is empty"),
        ([KD(), EmbeddingKD()], [1.0], "2 objectives, but 1 weights"),
        ([EmbeddingKD("t0"), RelationalKL("t1")], None, "the same teacher"),
        ([Contrastive()], None, "found Contrastive"),
        ([MaskedStudent(EmbeddingKD())], None, "put 'together' into it"),
        ([ContrastiveKD(mix="probs")], None, "contrastive_kd.mix has no meaning here"),
    ],
)
def test_together_refuses_what_has_no_meaning(objectives, weights, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Together(objectives, weights)


def test_augmented_contrastive_joins_both_models() -> None:
    step = tower_step(tower_pool(4, 9))
    objective = AugmentedContrastive(scale=5.0, shapes=tower_shapes(4, 9))
    assert [tuple(layer.weight.shape) for layer in objective.layers.values()] == [(6, 10), (6, 10), (6, 15), (6, 15)]
    student, expected = pair_of(step.student), []
    for name in step.pool.names:
        teacher = pair_of(step.signals(name))
        joined = []
        for mine, theirs, modality in zip(student, teacher, ("image", "text"), strict=True):
            units = [x / x.norm(dim=1, keepdim=True) for x in (mine, theirs)]
            joined.append(objective.layers[f"{name}:{modality}"](torch.cat(units, dim=1)))
        expected.append(softmax_contrastive(joined[0], joined[1], 5.0))
    loss = objective(step)["augmented_contrastive"]
    torch.testing.assert_close(loss, torch.stack(expected).mean(0))
    loss.mean().backward()
    assert all(p.grad is not None for p in objective.parameters())
    assert step.models.student.network.image.weight.grad is not None
    with pytest.raises(ConfigError, match="the widths of the embeddings are not known"):
        AugmentedContrastive()
