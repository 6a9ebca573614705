"""Objectives on embeddings in whole recipes: teachers run live, routers take them, a cut run goes on bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.dry_run import dry_run
from moekd.networks import NETWORKS
from moekd.objectives import EmbeddingKD
from moekd.registry import Injected
from moekd.signals import Signals
from moekd.teachers import TargetNorm

from ..engine.conftest import _tiny_kinds  # noqa: F401
from ..engine.tiny import PowerCutError, cut_after, recipe_of, same_weights, simple, train
from .towers import TwoTowers


class TowersAndClasses(nn.Module):
    """Two towers and a classifier on the image's embedding."""

    def __init__(self, num_classes: Injected[int], dim: int = 6) -> None:
        super().__init__()
        self.towers, self.classes = TwoTowers(dim), nn.Linear(dim, num_classes)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Signals:
        said = self.towers(left_BD, right_BD)
        return Signals(self.classes(said.embeddings["image"]), embeddings=said.embeddings, heads=said.heads)


@pytest.fixture(autouse=True, scope="module")
def _towers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS._members, "two_towers", TowersAndClasses)
        yield


TOWERS = {"kind": "two_towers", "inputs": ["left", "right"]}
WIDTHS = {"narrow": 4, "wide": 9}
EVERY = [
    {"kind": "contrastive_kd"},
    {"kind": "affinity"},
    {"kind": "embedding_kd", "modalities": ["image", "text"], "normalise": "phi_s", "refresh_every": 2},
    {"kind": "interactive_contrastive"},
    {"kind": "relational_kl"},
    {"kind": "soft_bce"},
    {"kind": "ranking", "top_k": 3},
    {"kind": "gradient_kd"},
    {"kind": "augmented_contrastive", "same": "label"},
    {"kind": "masked_student", "objective": {"kind": "embedding_kd"}, "patch": 4},
    {"kind": "together", "objectives": [{"kind": "embedding_kd"}, {"kind": "affinity"}]},
]


def recipe(*objectives: Any, **stage: Any) -> dict[str, Any]:
    return simple(
        {"objectives": ["cross_entropy", *objectives], **stage},
        student=TOWERS,
        teachers={name: TOWERS | {"dim": dim} for name, dim in WIDTHS.items()},
        router={"gate": {"kind": "instance"}, "selection": "top_k"},
    )


def test_every_objective_fits_a_recipe() -> None:
    (row,) = dry_run(recipe_of(recipe({"kind": "contrastive"}, *EVERY)).build())
    names = {name.partition("/")[0] for name in row["losses"]} - {"cross_entropy"}
    assert names == {"contrastive", *(objective["kind"] for objective in EVERY)}


def test_the_dry_run_leaves_the_statistics_of_targets_untouched() -> None:
    program = recipe_of(recipe(EVERY[2])).build()
    dry_run(program)
    objective = program.phases[0].stages[0].settings.objectives[1].objective
    assert isinstance(objective, EmbeddingKD)
    for norm in objective.norms.values():
        assert isinstance(norm, TargetNorm)
        assert norm.updates == 0
        assert not norm.total.any()


@pytest.mark.parametrize("objective", EVERY, ids=lambda o: o["kind"])
def test_every_one_can_be_routed(objective: dict[str, Any]) -> None:
    raw = recipe({"kind": "routed", "objective": objective}, trains=["student", "router"])
    (row,) = dry_run(recipe_of(raw).build())
    assert "routed" in row["losses"]


def test_a_cut_run_goes_on_with_its_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = recipe({"kind": "contrastive"}, EVERY[2], epochs=2)
    whole = train(raw, tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_after(patch, 4)
        with pytest.raises(PowerCutError):
            train(raw, tmp_path / "cut")
    resumed = train(raw, tmp_path / "cut", resume="auto")
    assert same_weights(whole.weights(), resumed.weights()) == []
    norms = []
    for run in (whole, resumed):
        objective = run.program.phases[0].stages[0].settings.objectives[2].objective
        assert isinstance(objective, EmbeddingKD)
        norm = objective.norms["wide:text"]
        assert isinstance(norm, TargetNorm)
        norms.append(norm)
    assert norms[0].updates == norms[1].updates > 4
    assert torch.equal(norms[0].rotation, norms[1].rotation)
    assert torch.equal(norms[0].scale, norms[1].scale)
