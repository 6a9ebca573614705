"""Teacher dropping by the losses of an objective on embeddings: hand values and a whole run.

Shapes: B batch, T teachers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moekd.errors import ModelError
from moekd.objectives import ContrastiveKD, EmbeddingKD, PairwiseObjective, RoutedObjective
from moekd.routers import Drop, Router
from moekd.routers.gates import MismatchGate
from moekd.step import Step

from ..engine.conftest import _tiny_kinds  # noqa: F401
from ..engine.tiny import simple, train
from .test_embeddings_in_recipes import TOWERS, _towers  # noqa: F401
from .towers import tower_pool, tower_step

OBJECTIVES = {
    "embedding_kd": lambda: EmbeddingKD(distances={"cosine": 0.5, "smooth_l1": 0.5}),
    "contrastive_kd": ContrastiveKD,
}


class Table(PairwiseObjective):
    """Losses to the teachers that are known in advance."""

    name = "table"
    logits_only = False
    values = {"t0": [3.0, 1.0, 2.0, 0.0], "t1": [1.0, 2.0, 2.0, 5.0], "t2": [2.0, 4.0, 1.0, 0.0]}

    def pair_with(self, name, student, teacher, batch) -> Tensor:
        return torch.tensor(self.values[name]) + 0 * student.embeddings["image"].sum()


def dropped(objective: PairwiseObjective, drop: Drop, *dims: int, rows: int = 6) -> tuple[Tensor, Step]:
    router = Router(MismatchGate(on="losses"), drop, combine="loss", signal="none")
    step = tower_step(tower_pool(*dims), rows=rows, router=router)
    return RoutedObjective(objective)(step)["routed"], step


@pytest.mark.parametrize(
    ("p", "expected"),
    [(1.0, [3.0, 4.0, 2.0, 5.0]), (0.0, [2.0, 7 / 3, 5 / 3, 5 / 3])],
)
def test_hand_values(p: float, expected: list[float]) -> None:
    """p = 1 leaves the worst-matched teacher of each row (ties: the first), p = 0 is the mean over the teachers."""
    loss, step = dropped(Table(), Drop(p), 6, 6, 6, rows=4)
    torch.testing.assert_close(loss, torch.tensor(expected))
    assert step.expert_losses is not None
    torch.testing.assert_close(step.expert_losses, torch.tensor(list(Table.values.values())).T)


@pytest.mark.parametrize("normalise", ["row", "all"])
def test_kept_pairs_share_the_row_or_the_batch(normalise) -> None:
    loss, step = dropped(Table(), Drop(0.5, normalise=normalise, seed=3), 6, 6, 6, rows=4)
    assert step.routing.chosen is not None
    kept = step.routing.chosen >= 0
    assert 4 < int(kept.sum()) < 12
    losses = torch.tensor(list(Table.values.values())).T
    share = kept / (kept.sum(1, keepdim=True) if normalise == "row" else kept.sum() / 4)
    torch.testing.assert_close(loss, (share * losses).sum(1))
    if normalise == "all":
        torch.testing.assert_close(loss.mean(), losses[kept].mean())


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("normalise", ["row", "all"])
def test_losses_on_embeddings_choose_and_are_computed_once(kind: str, normalise, monkeypatch) -> None:
    objective = OBJECTIVES[kind]().eval()
    calls: list[str] = []
    plain = objective.pair_with
    monkeypatch.setattr(objective, "pair_with", lambda name, *rest: calls.append(name) or plain(name, *rest))
    loss, step = dropped(objective, Drop(0.5, normalise=normalise), 6, 6)
    assert calls == ["t0", "t1"]
    alone = torch.stack([plain(n, step.student, step.signals(n), step.batch) for n in step.pool.names], dim=1)
    weights = step.routing.weights
    assert not weights.requires_grad
    assert (weights.gather(1, alone.argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(loss, (weights * alone).sum(1))
    loss.mean().backward()
    assert step.models.student.network.image.weight.grad is not None


def test_the_first_routed_objective_decides_for_all() -> None:
    router = Router(MismatchGate(on="losses"), Drop(1.0), combine="loss", signal="none")
    step = tower_step(tower_pool(6, 6, 6), rows=4, router=router)
    RoutedObjective(Table())(step)
    weights = step.routing.weights
    other = EmbeddingKD()
    second = RoutedObjective(other)(step)["routed"]
    alone = torch.stack([other.pair_with(n, step.student, step.signals(n), step.batch) for n in step.pool.names], 1)
    assert weights.argmax(1).tolist() == [0, 2, 0, 1]
    torch.testing.assert_close(second, (weights * alone).sum(1))


def test_without_a_routed_objective_there_are_no_losses() -> None:
    router = Router(MismatchGate(on="losses"), Drop(), combine="loss", signal="none")
    with pytest.raises(ModelError, match="put an objective of kind 'routed' first"):
        _ = tower_step(tower_pool(6, 6), router=router).routing


def test_a_whole_run(tmp_path: Path) -> None:
    objective = {"kind": "embedding_kd", "distances": {"cosine": 0.5, "smooth_l1": 0.5}, "normalise": "ema"}
    raw = simple(
        {"objectives": ["cross_entropy", {"kind": "routed", "objective": objective}]},
        student=TOWERS,
        teachers={"narrow": TOWERS | {"dim": 4}, "wide": TOWERS | {"dim": 9}},
        router={
            "gate": {"kind": "mismatch", "on": "losses"},
            "selection": {"kind": "drop", "p": 0.5, "normalise": "all"},
            "combine": "loss",
        },
    )
    finished = train(raw, tmp_path)
    shares = finished.records("routing")[-1]["shares"]
    assert set(shares) == {"narrow", "wide"}
    assert sum(shares.values()) == pytest.approx(1)
    assert finished.results["routing"] is None
