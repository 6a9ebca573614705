"""Cross-encoders in whole recipes: trained by matching, cached, ranked by two of them, routed, resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moekd.dry_run import dry_run
from moekd.errors import ConfigError
from moekd.networks import NETWORKS

from ..engine.conftest import _tiny_kinds  # noqa: F401
from ..engine.tiny import PowerCutError, cut_after, recipe_of, same_weights, simple, train
from .pairs import MatcherTowers
from .towers import TwoTowers


@pytest.fixture(autouse=True, scope="module")
def _networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS._members, "matcher_towers", MatcherTowers)
        patch.setitem(NETWORKS._members, "plain_towers", TwoTowers)
        yield


INPUTS = {"inputs": ["left", "right"]}
RANK = {"kind": "partial_ranking", "k": 6, "top_m": 3, "threshold": None}
HARD = {"kind": "hard_pair_kd", "k": 3, "prefilter": 6}


def recipe(*objectives: Any, **stage: Any) -> dict[str, Any]:
    raw = simple(
        {"objectives": [{"kind": "contrastive"}, *objectives], **stage},
        student={"kind": "plain_towers", **INPUTS},
        teachers={name: {"kind": "matcher_towers", **INPUTS, "dim": dim} for name, dim in (("a", 4), ("b", 7))},
        router={"gate": "static", "selection": "dense", "combine": "target"},
    )
    matching = {"name": "teach", "trains": ["teachers"], "epochs": 1, "objectives": [{"kind": "matching", "k": 2}]}
    raw["stages"] = [matching, *raw["stages"]]
    return raw


@pytest.mark.parametrize("objective", [RANK, HARD], ids=lambda o: o["kind"])
def test_two_cross_encoders_judge_together_from_the_cache(objective: dict[str, Any]) -> None:
    rows = dry_run(recipe_of(recipe(objective)).build())
    assert [row["teachers"] for row in rows][1] == "cached"
    assert set(rows[0]["losses"]) == {"matching/a", "matching/b"}


@pytest.mark.parametrize("objective", [RANK, HARD], ids=lambda o: o["kind"])
def test_a_routed_run_that_was_cut_goes_on_exactly(tmp_path: Path, objective: dict[str, Any]) -> None:
    raw = recipe({"kind": "routed", "objective": objective}, trains=["student", "router"], epochs=2)
    whole = train(raw, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(patch, 5)
        with pytest.raises(PowerCutError):
            train(raw, tmp_path / "cut")
    resumed = train(raw, tmp_path / "cut", resume="auto")
    assert same_weights(resumed.weights(), whole.weights()) == []
    assert resumed.records() == whole.records()


def test_retrieval_of_a_cross_encoder_is_measured_by_its_scores(tmp_path: Path) -> None:
    run = train(recipe(RANK), tmp_path)
    assert {"student", "a", "b"} <= set(run.results["test"]["test"])
    assert 0 <= run.results["test"]["test"]["a"]["retrieval_r1"] <= 1


def test_the_order_of_hard_negatives_is_compared_with_every_teacher(tmp_path: Path) -> None:
    raw = recipe(RANK)
    raw["evaluation"] = raw.get("evaluation", {}) | {"retrieval": {"rank_agreement": 4}, "headline": "rank_agreement"}
    alone = {"name": "alone", "trains": ["student"], "epochs": 1, "objectives": ["contrastive"]}
    raw["baselines"] = {"alone": {"stages": [alone]}}
    run = train(raw, tmp_path)
    parts, flat = run.results["vision_language"]["test"], run.results["test"]["test"]
    for name in ("student", "alone"):
        taus = [row["tau"] for row in parts[name]["rank_agreement"].values()]
        assert set(parts[name]["rank_agreement"]) == {"a", "b"}
        assert all(-1 <= tau <= 1 for tau in taus)
        assert flat[name]["rank_agreement"] == pytest.approx(sum(taus) / 2)
    assert "rank_agreement" not in flat["a"]
    assert run.results["headline"] == "rank_agreement"


@pytest.mark.parametrize("trains", [["student"], ["student", "teachers"]])
def test_the_order_of_hard_negatives_can_choose_the_epoch(tmp_path: Path, trains: list[str]) -> None:
    raw = recipe(RANK, trains=trains, epochs=3, monitor={"metric": "rank_agreement", "mode": "max"})
    if "teachers" in trains:
        raw["stages"][1]["objectives"].append({"kind": "matching", "k": 2})
    raw["evaluation"] = raw.get("evaluation", {}) | {"retrieval": {"rank_agreement": 4}, "splits": ["val"]}
    dry_run(recipe_of(raw).build())
    run = train(raw, tmp_path)
    taus = [record["metrics"]["rank_agreement"] for record in run.records("validation") if record["stage"] == "learn"]
    best = max(range(3), key=lambda epoch: taus[epoch])
    assert [record["best_epoch"] for record in run.records("stage_end")][-1] == best
    if "teachers" not in trains:
        assert run.results["test"]["val"]["student"]["rank_agreement"] == pytest.approx(taus[best], abs=1e-5)


def test_a_monitored_order_has_to_be_measured() -> None:
    raw = recipe(RANK, monitor={"metric": "rank_agreement", "mode": "max"})
    with pytest.raises(ConfigError, match="'rank_agreement' is not measured"):
        dry_run(recipe_of(raw).build())
