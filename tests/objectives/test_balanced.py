"""Weights of several losses: hand values of the three formulas, training, state, processes.

Shapes: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moekd.errors import ConfigError, ModelError
from moekd.objectives import (
    Balanced,
    Contrastive,
    ContrastiveKD,
    EmbeddingKD,
    MaskedStudent,
    Objective,
    RelationalKL,
    gradnorm_loss,
    uncertainty_weighted,
)
from moekd.step import Step

from ..engine.conftest import _tiny_kinds  # noqa: F401
from ..engine.tiny import PowerCutError, cut_after, same_weights, simple, train
from .test_embeddings_in_recipes import TOWERS, _towers  # noqa: F401
from .towers import tower_pool, tower_step


class Scaled(Objective):
    """A loss of a known size, `factor` times the mean of the image's embedding, plus a constant."""

    def __init__(self, factor: float, constant: float, name: str = "scaled") -> None:
        super().__init__()
        self.factor, self.constant, self.name = factor, constant, name

    def forward(self, step: Step) -> Mapping[str, Tensor]:
        image = step.student.embeddings["image"]
        return {self.name: self.factor * (image - image.detach()).mean(dim=1) + self.constant}


def step() -> Step:
    return tower_step(tower_pool(6, 6))


def test_uncertainty_by_hand() -> None:
    losses, log_variance = torch.tensor([2.0, 8.0]), torch.tensor([0.0, math.log(4.0)])
    weighted, further = uncertainty_weighted(losses, log_variance)
    torch.testing.assert_close(weighted, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(further, torch.tensor(math.log(2.0)))


def test_the_best_variance_is_the_loss_itself() -> None:
    """d/ds [L exp(-s) / 2 + s / 2] = 0 at exp(s) = L: a weighted loss of 1/2 each, whatever its size."""
    losses = torch.tensor([0.1, 30.0])
    log_variance = losses.log().requires_grad_()
    weighted, further = uncertainty_weighted(losses, log_variance)
    torch.testing.assert_close(weighted, torch.full((2,), 0.5))
    (gradient,) = torch.autograd.grad(weighted.sum() + further, log_variance)
    torch.testing.assert_close(gradient, torch.zeros(2), atol=1e-6, rtol=0)


def test_gradnorm_by_hand() -> None:
    """w g = [2, 4], G = 3, r = [0.5, 1.5]: |2 - 3 * 0.5| + |4 - 3 * 1.5| = 1, slopes + g_0 and - g_1."""
    weights = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = gradnorm_loss(torch.tensor([2.0, 2.0]), weights, torch.tensor([0.25, 0.75]), alpha=1.0)
    torch.testing.assert_close(loss, torch.tensor(1.0))
    loss.backward()
    torch.testing.assert_close(weights.grad, torch.tensor([2.0, -2.0]))
    flat = gradnorm_loss(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.1, 9.0]), alpha=0.0)
    assert float(flat) == 0.0


def test_uncertainty_in_an_objective() -> None:
    objective = Balanced([Scaled(1.0, 3.0), Scaled(1.0, 5.0, "other")])
    assert objective.log_variance is not None
    with torch.no_grad():
        objective.log_variance.copy_(torch.tensor([0.0, 2.0]))
    said = objective(step())
    expected = {"balanced/scaled": 1.5, "balanced/other": 2.5 * math.exp(-2.0), "balanced/uncertainty": 1.0}
    assert {name: float(value.detach()) for name, value in said.items()} == pytest.approx(expected)
    torch.testing.assert_close(objective.current_weights(), torch.tensor([0.5, 0.5 * math.exp(-2.0)]))


def test_adaloss_divides_by_the_running_mean() -> None:
    parts = [Scaled(1.0, 2.0), Scaled(1.0, 6.0, "other")]
    objective = Balanced(parts, by="adaloss", momentum=0.5)
    said = objective(step())
    assert [float(value.detach()) for value in said.values()] == pytest.approx([3.0, 3.0])
    parts[0].constant = 6.0
    said = objective(step())
    torch.testing.assert_close(objective.average, torch.tensor([4.0, 6.0]))
    weights = torch.tensor([2 / 4, 2 / 6]) / (1 / 4 + 1 / 6)
    torch.testing.assert_close(torch.stack(list(said.values())).detach(), weights * torch.tensor([6.0, 6.0]))
    torch.testing.assert_close(objective.current_weights(), weights)
    before = objective.average.clone()
    objective.eval()(step())
    with torch.no_grad():
        objective.train()(step())
    assert torch.equal(objective.average, before)


def test_gradnorm_in_an_objective() -> None:
    """Gradients of a mean over [6, 6] with respect to the embedding have the norm factor / 6."""
    parts = [Scaled(1.0, 2.0), Scaled(4.0, 2.0, "other")]
    objective = Balanced(parts, by="gradnorm", alpha=1.0)
    first = step()
    said = objective(first)
    torch.testing.assert_close(objective.first, torch.tensor([2.0, 2.0]))
    assert float(said["balanced/gradnorm"].detach()) == pytest.approx(abs(1 - 2.5) / 6 + abs(4 - 2.5) / 6, rel=1e-5)
    sum(said.values()).mean().backward()  # type: ignore[union-attr]
    assert objective.weights is not None
    torch.testing.assert_close(objective.weights.grad, torch.tensor([-1 / 6, 4 / 6]))
    image = first.models.student.network.image
    torch.testing.assert_close(image.bias.grad, torch.full((6,), 5 / 6 / 1.0))
    parts[0].constant = 1.0
    with torch.no_grad():
        objective.weights.copy_(torch.tensor([3.0, 1.0]))
    said = objective(step())
    torch.testing.assert_close(objective.weights.detach(), torch.tensor([1.5, 0.5]))
    lengths, rates = torch.tensor([1.5, 2.0]) / 6, torch.tensor([0.5, 1.0]) / 0.75
    expected = (lengths - lengths.mean() * rates).abs().sum()
    torch.testing.assert_close(said["balanced/gradnorm"].detach(), expected)
    assert "balanced/gradnorm" not in objective.eval()(step())


def test_gradnorm_learns_to_make_gradients_alike() -> None:
    objective = Balanced([Scaled(1.0, 2.0), Scaled(9.0, 2.0, "other")], by="gradnorm", alpha=0.0)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    here = step()
    for _ in range(80):
        optimizer.zero_grad()
        objective(here)["balanced/gradnorm"].backward()
        optimizer.step()
    lengths = objective.current_weights() * torch.tensor([1.0, 9.0])
    assert float(lengths.max() / lengths.min()) < 1.3


@pytest.mark.parametrize("by", ["uncertainty", "gradnorm", "adaloss"])
def test_teachers_are_balanced_one_by_one(by) -> None:
    parts = [EmbeddingKD(), RelationalKL()]
    objective, here = Balanced(parts, by=by, teachers=["t0", "t1"]), step()
    assert objective.variants(here.pool) == ["t0", "t1"]
    said = objective(here)
    names = [f"balanced/{kind} to {name}" for kind in ("embedding_kd", "relational_kl") for name in ("t0", "t1")]
    assert [name for name in said if " to " in name] == names
    weights = objective.current_weights()
    assert weights.shape == (4,)
    alone = [p.pair_with(n, here.student, here.signals(n), here.batch).mean() for p in parts for n in here.pool.names]
    torch.testing.assert_close(torch.stack([said[name] for name in names]), weights * torch.stack(alone))
    sum(value.mean() for value in said.values()).backward()  # type: ignore[union-attr]
    assert here.models.student.network.image.weight.grad is not None


def test_two_of_a_kind_have_names_of_their_own() -> None:
    said = Balanced([Contrastive(), ContrastiveKD(), ContrastiveKD(form="kl")])(step())
    assert len(said) == 4


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="objectives is empty"):
        Balanced([])
    with pytest.raises(ConfigError, match="at least two losses"):
        Balanced([EmbeddingKD()])
    with pytest.raises(ConfigError, match=r"balanced\.teachers: Contrastive is no loss to a single teacher"):
        Balanced([Contrastive()], teachers=["t0", "t1"])
    with pytest.raises(ConfigError, match="ContrastiveKD is no loss to a single teacher"):
        Balanced([ContrastiveKD(mix="probs")], teachers=["t0", "t1"])

    class Constant(Objective):
        def forward(self, step: Step) -> Mapping[str, Tensor]:
            return {"constant": nn.Parameter(torch.ones(6)) * 1.0}

    with pytest.raises(ModelError, match="balanced/constant: by 'gradnorm' needs losses that depend"):
        Balanced([EmbeddingKD(), Constant()], by="gradnorm")(step())
    assert Balanced([MaskedStudent(EmbeddingKD()), EmbeddingKD()]).reads_embeddings


def recipe(by: str, **stage) -> dict:
    objective = {"kind": "balanced", "by": by, "objectives": [{"kind": "cross_entropy"}, {"kind": "embedding_kd"}]}
    return simple(
        {"objectives": [objective], "epochs": 2, **stage},
        student=TOWERS,
        teachers={"narrow": TOWERS | {"dim": 4}, "wide": TOWERS | {"dim": 9}},
    )


@pytest.mark.parametrize("by", ["gradnorm", "adaloss"])
def test_a_cut_run_goes_on_with_its_weights(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe(by), tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_after(patch, 3)
        with pytest.raises(PowerCutError):
            train(recipe(by), tmp_path / "cut")
    resumed = train(recipe(by), tmp_path / "cut", resume="auto")
    assert same_weights(whole.weights(), resumed.weights()) == []
    weights = [
        f.program.phases[0].stages[0].settings.objectives[0].objective.current_weights() for f in (whole, resumed)
    ]
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.ones(2))
