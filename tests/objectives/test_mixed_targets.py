"""Several teachers in one target: four ways to mix, alone and by a router's weights, in both directions.

Shapes: B batch, T teachers, N candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from moekd.errors import ConfigError, ModelError
from moekd.objectives import (
    AffinityMimicking,
    ContrastiveKD,
    EmbeddingKD,
    PairwiseObjective,
    Ranking,
    RoutedObjective,
    SoftBCE,
    contrastive_kd,
    soft_targets,
)
from moekd.objectives.embeddings import similarities
from moekd.routers import Dense, Gate, LinearGate, Router
from moekd.routers.mixing import mixture
from moekd.step import Step

from .towers import pair_of, tower_pool, tower_shapes, tower_step

MIXES = ("probs", "logits", "logmeanexp", "confidence")
OBJECTIVES: dict[str, Callable[..., PairwiseObjective]] = {
    "contrastive_kd": ContrastiveKD,
    "affinity": AffinityMimicking,
    "soft_bce": SoftBCE,
    "ranking": Ranking,
}


class Fixed(Gate):
    """Weights that depend on the row."""

    def forward(self, step: Step) -> Tensor:
        share_B = (step.batch["id"].float() % 5 + 1) / 8
        return torch.stack([share_B, 1 - share_B], dim=1).log()


def by_hand(z_TN: np.ndarray, w_T: np.ndarray, mix: str) -> np.ndarray:
    """The mixture's probabilities of one row, as the formulas say."""
    p_TN = np.exp(z_TN) / np.exp(z_TN).sum(1, keepdims=True)
    if mix == "logits":
        powers = np.exp((w_T[:, None] * z_TN).sum(0))
        return powers / powers.sum()
    if mix == "logmeanexp":
        powers = (w_T[:, None] * np.exp(z_TN)).sum(0)
        return powers / powers.sum()
    if mix == "confidence":
        w_T = w_T * p_TN.max(1)
        w_T = w_T / w_T.sum()
    return (w_T[:, None] * p_TN).sum(0)


@pytest.mark.parametrize("mix", MIXES)
def test_mixtures_equal_their_formulas(mix) -> None:
    z, w = torch.randn(4, 3, 6, dtype=torch.float64) * 3, torch.rand(4, 3, dtype=torch.float64).softmax(1)
    found = mixture(z, w, mix).softmax(1).numpy()
    expected = np.stack([by_hand(z[b].numpy(), w[b].numpy(), mix) for b in range(4)])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    warm = mixture(z, w, mix, 4.0)
    np.testing.assert_allclose((warm / 4).softmax(1), mixture(z / 4, w, mix).softmax(1), atol=1e-12)


@pytest.mark.parametrize("mix", MIXES)
def test_copies_of_one_teacher_are_that_teacher_and_the_order_does_not_matter(mix) -> None:
    z, w = torch.randn(5, 1, 4).double(), torch.rand(5, 3).double().softmax(1)
    torch.testing.assert_close(mixture(z.expand(-1, 3, -1), w, mix).softmax(1), z[:, 0].softmax(1))
    z, order = torch.randn(5, 3, 4).double(), torch.tensor([2, 0, 1])
    torch.testing.assert_close(mixture(z[:, order], w[:, order], mix), mixture(z, w, mix))


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_mixtures_of_large_logits_are_finite(mix, size: float) -> None:
    z = torch.tensor([[[size, 0.0, -size], [0.0, size, 1.0]]], requires_grad=True)
    for w in (torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])):
        mixed = mixture(z, w, mix)
        (gradient,) = torch.autograd.grad(mixed.log_softmax(1)[:, 0].sum(), z)
        assert mixed.isfinite().all()
        assert gradient.isfinite().all()


def test_louder_teachers_count_more_in_logmeanexp_and_surer_ones_in_confidence() -> None:
    sure, unsure = [9.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    z, w = torch.tensor([[sure, unsure]]), torch.full((1, 2), 0.5)
    shares = {mix: float(mixture(z, w, mix).softmax(1)[0, 0]) for mix in MIXES}
    assert shares["probs"] < shares["confidence"] < shares["logmeanexp"]
    raised = torch.tensor([[sure, [20.0, 21.0, 20.0]]])
    assert float(mixture(raised, w, "logmeanexp").softmax(1)[0, 0]) < 0.25
    torch.testing.assert_close(mixture(raised, w, "probs").softmax(1), mixture(z, w, "probs").softmax(1))


@pytest.mark.parametrize("mix", MIXES)
def test_contrastive_kd_mixes_each_direction_on_its_own(mix) -> None:
    step = tower_step(tower_pool(4, 9))
    objective = ContrastiveKD(mix=mix, student_scale=5.0, teacher_scale={"t0": 7.0, "t1": 3.0})
    mine = similarities(*pair_of(step.student))
    theirs = [similarities(*pair_of(step.signals(name))) for name in step.pool.names]
    expected = []
    for z, direction in ((mine.image_to_text, "image_to_text"), (mine.text_to_image, "text_to_image")):
        scores = [scale * getattr(pairs, direction) for scale, pairs in zip((7.0, 3.0), theirs, strict=True)]
        z_BTN = torch.stack(scores, dim=1).detach().double().numpy()
        target = torch.from_numpy(np.stack([by_hand(row, np.array([0.5, 0.5]), mix) for row in z_BTN]))
        torch.testing.assert_close(target.sum(1), torch.ones(6).double())
        expected.append(soft_targets(5.0 * z.double(), target.log()))
    torch.testing.assert_close(objective(step)["contrastive_kd"], torch.stack(expected).mean(0).float())


def test_mean_of_probabilities_is_the_mean_of_the_soft_losses() -> None:
    """MobileCLIP's target; in the form `kl` only the gradient is the same."""
    step = tower_step(tower_pool(4, 9))
    losses = [ContrastiveKD(mix=mix, student_scale=5.0)(step)["contrastive_kd"] for mix in (None, "probs")]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("mix", MIXES)
def test_soft_bce_mixes_every_pair(mix) -> None:
    step = tower_step(tower_pool(4, 9))
    objective = SoftBCE(mix=mix, student_scale=5.0, bias=-1.0, teacher_scale={"t0": 7.0, "t1": 3.0}, teacher_bias=-2.0)
    z = 5.0 * similarities(*pair_of(step.student)).image_to_text.detach().double() - 1
    scores = [
        s * similarities(*pair_of(step.signals(name))).image_to_text.detach().double() - 2
        for s, name in ((7.0, "t0"), (3.0, "t1"))
    ]
    expected = torch.zeros(6).double()
    for b in range(6):
        for j in range(6):
            two_way = np.array([[0.0, float(score[b, j])] for score in scores])
            p = by_hand(two_way, np.array([0.5, 0.5]), mix)[1]
            q = 1 / (1 + math.exp(-float(z[b, j])))
            expected[b] -= p * math.log(q) + (1 - p) * math.log(1 - q)
    torch.testing.assert_close(objective(step)["soft_bce"], expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("mix", MIXES)
def test_a_router_weighs_the_target_of_each_row(kind: str, mix) -> None:
    pool, objective = tower_pool(6, 6), OBJECTIVES[kind]().eval()
    router = Router(Fixed(), Dense(), combine="target", signal="none", mix=mix)
    step = tower_step(pool, router=router)
    loss = RoutedObjective(objective)(step)["routed"]
    weights_BT = step.routing.weights
    assert len(weights_BT.unique(dim=0)) > 2
    teachers = {name: step.signals(name) for name in pool.names}
    expected = objective.mixed(step.student, teachers, weights_BT, mix, step.batch)
    torch.testing.assert_close(loss, expected)
    only = torch.zeros_like(weights_BT)
    only[:, 1] = 1
    alone = objective.pair_with("t1", step.student, teachers["t1"], step.batch)
    torch.testing.assert_close(
        objective.mixed(step.student, teachers, only, mix, step.batch), alone, rtol=1e-4, atol=1e-5
    )


def test_the_router_learns_from_a_mixed_target() -> None:
    class Learned(Gate):
        def __init__(self) -> None:
            super().__init__()
            self.scores = torch.nn.Parameter(torch.zeros(2))

        def forward(self, step: Step) -> Tensor:
            return self.scores.expand(len(step.batch["id"]), -1)

    gate = Learned()
    router = Router(gate, Dense(), combine="target", signal="kd")
    step = tower_step(tower_pool(6, 6), router=router)
    RoutedObjective(ContrastiveKD())(step)["routed"].mean().backward()
    assert gate.scores.grad is not None
    assert gate.scores.grad.abs().sum() > 0
    torch.testing.assert_close(gate.scores.grad.sum(), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("mix", MIXES)
def test_one_teacher_or_its_copies_are_the_plain_loss(kind: str, mix) -> None:
    step = tower_step(tower_pool(6, 6))
    plain, mixed = OBJECTIVES[kind](), OBJECTIVES[kind](mix=mix)
    first = step.signals("t0")
    alone = plain.pair_with("t0", step.student, first, step.batch)
    copies = mixed.mixed(step.student, {"t0": first, "t1": first}, None, mix, step.batch)
    torch.testing.assert_close(copies, alone, rtol=1e-4, atol=1e-5)


def test_embeddings_themselves_are_not_mixed() -> None:
    router = Router(Fixed(), Dense(), combine="target", signal="none")
    with pytest.raises(ModelError, match="can't be mixed"):
        RoutedObjective(EmbeddingKD())(tower_step(tower_pool(6, 6), router=router))
    step = tower_step(tower_pool(4, 4))
    teachers = {name: step.signals(name) for name in step.pool.names}
    with pytest.raises(ModelError, match="do not fit scores of 6 rows and 2 teachers"):
        ContrastiveKD().mixed(step.student, teachers, torch.ones(6, 3), "probs", step.batch)


def test_targets_of_the_text_side_are_no_transpose() -> None:
    step = tower_step(tower_pool(6, 6))
    student, theirs = pair_of(step.student), [pair_of(step.signals(name)) for name in step.pool.names]
    swapped = [contrastive_kd(student[::-1], pair[::-1], 5.0, 6.0) for pair in theirs]
    mixed = ContrastiveKD(mix="probs", student_scale=5.0, teacher_scale=6.0)(step)["contrastive_kd"]
    torch.testing.assert_close(mixed, torch.stack(swapped).mean(0))


def test_a_gate_reads_the_embedding_of_a_student_without_a_classifier() -> None:
    shapes = tower_shapes(6, 6)
    gate = LinearGate(3, 2, on="student_embedding", source="image", shapes=shapes)
    step = tower_step(tower_pool(6, 6), router=Router(gate, Dense(), combine="target", signal="kd"))
    RoutedObjective(ContrastiveKD(student_scale=5.0))(step)["routed"].mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gate.parameters())
    unit = torch.nn.functional.normalize(step.student.embeddings["image"])
    torch.testing.assert_close(gate.input(step), unit.detach())
    with pytest.raises(ConfigError, match="source 'imag' is no embedding of the student; did you mean 'image'"):
        LinearGate(3, 2, on="student_embedding", source="imag", shapes=shapes)
    with pytest.raises(ConfigError, match="an embedding is one for the whole instance"):
        LinearGate(3, 2, on="student_embedding", source="image", shapes=shapes, granularity="token")
    with pytest.raises(ModelError, match="which gives: image, text"):
        LinearGate(3, 2, on="student_embedding", source="audio", width=6).input(step)
