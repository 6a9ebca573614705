"""`moekd cache`: filled ahead of a run, listed, checked against fresh teachers, cleared up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from moekd.cache import Table
from moekd.caching import inspect_folder, recheck_caches
from moekd.errors import DataError
from moekd.model import Batch
from moekd.signals import PoolSignals
from moekd.teachers import TeacherPool

from ..cli.conftest import run_moekd
from ..engine.tiny import full, recipe_of, train
from .builders import tables
from .runs import EMBEDDINGS, recipe


def configured(folder: Path, **changes: Any) -> dict[str, Any]:
    return recipe(EMBEDDINGS, "auto", cache={"folder": str(folder / "signals")}, **changes)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a config whose signals go to `signals`."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configured(tmp_path)))
    return file


def test_built_listed_checked_used_and_pruned(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "signals"
    built = run_moekd("cache", "build", config, "-q")
    assert (built.code, built.err) == (0, "")
    assert "embeddings of narrow, wide" in built.out
    assert len(tables(folder)) == 2 * 4, "embeddings of image and text, scale and bias, of two teachers"
    listed = run_moekd("cache", "info", folder)
    assert listed.code == 0
    assert listed.out.count("complete") == 8
    assert listed.out.count("heads/logit_scale") == 2
    verified = run_moekd("cache", "verify", config)
    assert verified.code == 0
    assert "8 tables, all checksums right" in verified.out
    assert "main/learn: embeddings/text of wide: differs from 32 fresh samples by at most" in verified.out
    before = {shard: shard.stat().st_mtime_ns for shard in folder.glob("*/*.safetensors")}
    run = train(configured(tmp_path), tmp_path / "runs")
    assert run.records("stage_end")[0]["teacher_forwards"] == 0
    assert {shard: shard.stat().st_mtime_ns for shard in before} == before
    assert run_moekd("cache", "prune", folder, "--days", "1").out == ""
    assert run_moekd("cache", "prune", config, "--all").code == 0
    assert tables(folder) == []


def test_a_damaged_shard_is_named(config: Path, tmp_path: Path) -> None:
    run_moekd("cache", "build", config, "-q")
    table = tables(tmp_path / "signals")[0]
    shard = table / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    found = run_moekd("cache", "verify", tmp_path / "signals")
    assert found.code == 1
    assert f"{shard}: sha256 mismatch" in found.err
    assert "--damaged" in found.err
    assert run_moekd("cache", "prune", tmp_path / "signals", "--damaged").out == f"deleted {table}\n"
    assert len(tables(tmp_path / "signals")) == 7


def test_what_teachers_say_now_is_compared(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K2: random rows are computed again and compared."""
    run_moekd("cache", "build", config, "-q")
    plan = recipe_of(configured(tmp_path))
    assert max(recheck_caches(plan).values()) < 1e-5
    forward = TeacherPool.forward

    def moody(pool: TeacherPool, batch: Batch, *arguments: Any, **options: Any) -> PoolSignals:
        said = forward(pool, batch, *arguments, **options)
        return PoolSignals({name: signals.map(lambda value: value + 0.1) for name, signals in said.items()})

    monkeypatch.setattr(TeacherPool, "forward", moody)
    with pytest.raises(DataError, match=r"differs by .* from what it says now, more than fp32 explains"):
        recheck_caches(plan)


def test_stages_that_cannot_be_built_say_why(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(full(cache={"folder": str(tmp_path / "signals")})))
    said = " ".join(run_moekd("cache", "build", file, "-q").out.split())
    assert "nothing: teachers or masks train in this stage (both, right)" in said
    assert "nothing: an earlier stage trains" in said
    assert "nothing: no teacher takes part" in said
    assert not (tmp_path / "signals").exists()


def test_old_tables_are_pruned_and_used_ones_are_not(config: Path, tmp_path: Path) -> None:
    run_moekd("cache", "build", config, "-q")
    folder, past = tmp_path / "signals", time.time() - 3 * 86400
    for path in folder.glob("*/*"):
        os.utime(path, (past, past))
    for path in folder.glob("*/.used"):
        os.utime(path, (past, past))
    Table.open(tables(folder)[2]).used()
    deleted = run_moekd("cache", "prune", folder, "--days", "2").out.splitlines()
    assert len(deleted) == 7
    assert len(tables(folder)) == 1


def test_what_is_there_but_no_table(tmp_path: Path) -> None:
    assert inspect_folder(tmp_path) == []
    with pytest.raises(DataError, match=r"no folder .*; stored signals lie where cache.folder says"):
        inspect_folder(tmp_path / "none")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "manifest.json").write_text("{}")
    (condition,) = inspect_folder(tmp_path)
    assert not condition.complete
    assert "does not describe stored signals" in condition.problems[0]
    assert run_moekd("cache", "info", tmp_path).out.count("damaged") == 1
    assert run_moekd("cache", "prune", tmp_path).code == 2


def test_a_missing_signal_can_be_an_error(tmp_path: Path) -> None:
    """K5: a missing signal raises or is computed."""
    raw = configured(tmp_path)
    raw["cache"]["missing"] = "raise"
    with pytest.raises(DataError, match=r"does not hold the .* of teacher 'narrow' on 'train'; fill it with"):
        train(raw, tmp_path / "runs")
