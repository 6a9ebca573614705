"""Whole runs with cached teachers against the same runs with live ones: same losses, same weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from ..engine.tiny import train
from .runs import EMBEDDINGS, ROUTED, farthest, recipe


@pytest.mark.parametrize("objectives", [EMBEDDINGS, ROUTED], ids=["embeddings", "routed"])
def test_cached_is_live(objectives: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = train(recipe(objectives, "off"), tmp_path / "live")
    assert live.records("stage_end")[0]["teacher_forwards"] > 0
    for place in ("auto", "disk"):
        with caplog.at_level(logging.INFO):
            cached = train(recipe(objectives, place, cache={"folder": str(tmp_path / "signals")}), tmp_path / place)
        assert cached.records("stage_end")[0]["teacher_forwards"] == 0
        assert farthest(live, cached) < 1e-6
    assert "of 2 teachers cached in memory and in" in caplog.text
    assert "of 2 teachers cached on disk in" in caplog.text
