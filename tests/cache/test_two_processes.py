"""Two processes that share a folder of signals train what one process trains with live teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..engine.test_distributed import CROSS_ENTROPY, MLP, ROUTED, TEACHERS, in_two, loaded
from ..engine.tiny import Finished, simple, train
from .builders import tables


def distill(place: str, **changes: Any) -> dict[str, Any]:
    """Return a recipe of one stage with a mean over all teachers and with routed ones."""
    stage = {"trains": ["student", "router"], "objectives": [CROSS_ENTROPY, "kd", ROUTED], "cache": place}
    return simple(
        stage,
        student=MLP,
        data={"kind": "tiny", "batch_size": 16, "rows": 41, "labels": 12},
        teachers=TEACHERS,
        router={"gate": "instance", "selection": "top_k", "combine": "loss"},
        **changes,
    )


def assert_same(one: Finished, two: Finished) -> None:
    """Compare weights and losses."""
    mine, theirs = one.weights(), two.weights()
    for name in mine:
        np.testing.assert_allclose(theirs[name], mine[name], atol=1e-6, rtol=1e-5, err_msg=name)
    for live, cached in zip(one.records("train"), two.records("train"), strict=True):
        for name, loss in live["losses"].items():
            np.testing.assert_allclose(cached["losses"][name], loss, rtol=1e-5, err_msg=name)


def test_two_processes_share_the_work_of_a_cache_in_memory(tmp_path: Path) -> None:
    kept = distill("memory")
    ended = in_two(kept, tmp_path / "two")
    for code, messages in ended:
        assert code == 0, messages
    assert "each of 2 processes ran them on its share" in "".join(messages for _, messages in ended)
    two = loaded(kept, tmp_path / "two")
    assert two.records("stage_end")[0]["teacher_forwards"] == 0
    assert_same(train(distill("off"), tmp_path / "one"), two)


def test_two_processes_with_stored_signals_are_one_with_live_teachers(tmp_path: Path) -> None:
    stored = distill("disk", cache={"folder": str(tmp_path / "signals")})
    for code, messages in in_two(stored, tmp_path / "two"):
        assert code == 0, messages
    one, two = train(distill("off"), tmp_path / "one"), loaded(stored, tmp_path / "two")
    assert two.records("stage_end")[0]["teacher_forwards"] == 0
    assert len(tables(tmp_path / "signals")) == 2 + 2, "training and test split, of two teachers"
    assert_same(one, two)
