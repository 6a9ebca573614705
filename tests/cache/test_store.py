"""Stored logits against fresh ones; damage, other teachers, other data, writers at the same time."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from moekd.cache import LogitCache, LogitStore, build_logit_cache
from moekd.model import Batch
from moekd.teachers import FeatureAttentionMask, Teacher, TeacherPool

N, C = 23, 5
CPU = torch.device("cpu")
IDS = np.random.default_rng(0).permutation(1000)[:N].astype(np.int64)
NAMES = ["a", "b", "a/0"]


def pool_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> TeacherPool:
    """Return two teachers and a masked variant of the first."""
    torch.manual_seed(seed)
    teachers = {
        name: Teacher(
            nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C)), inputs=["x"], taps=["0"], name=name, dtype=dtype
        )
        for name in ("a", "b")
    }
    pool = TeacherPool(teachers)
    pool.specialise("a", "0", FeatureAttentionMask(dim=8, heads=2, hidden_factor=2))
    return pool.requires_grad_(False).eval()


class Rows:
    """Batches of a split, which count how often they are read."""

    def __init__(self, ids: Sequence[int] = tuple(IDS), unreadable: int = 0) -> None:
        self.ids, self.reads = torch.tensor(ids), 0
        self.left = len(ids) - unreadable

    def __iter__(self) -> Iterator[Batch]:
        self.reads += 1
        for rows in torch.arange(self.left).split(7):
            ids = self.ids[rows]
            x = torch.sin(ids[:, None] * torch.arange(1, 7))
            yield {"id": ids, "x": x}


def fill(folder: Path, pool: TeacherPool, rows: Rows, names: Sequence[str] = NAMES, **options: Any) -> LogitCache:
    """Return the logits through a store."""
    store = LogitStore(folder, options.get("data", "data"), options.get("precision", "cpu|no"))
    ids = options.get("ids", rows.ids.numpy())
    return store.cache(options.get("split", "train"), ids)(pool, list(names), rows, CPU, None)


def same(a: LogitCache, b: LogitCache) -> bool:
    """Tell whether two caches say the same about the same samples."""
    return a.names == b.names and torch.equal(a.ids_N, b.ids_N) and torch.equal(a.logits_NTC, b.logits_NTC)


def files(folder: Path) -> list[Path]:
    """Return the files of a store, none of them temporary."""
    found = sorted(folder.iterdir())
    assert all(path.suffix == ".safetensors" and not path.name.startswith(".") for path in found)
    return found


def test_stored_logits_are_the_fresh_ones(tmp_path: Path) -> None:
    pool, rows = pool_of(), Rows()
    fresh = build_logit_cache(pool, NAMES, Rows(), CPU)
    assert same(fill(tmp_path, pool, rows), fresh)
    assert rows.reads == 1
    assert len(files(tmp_path)) == 3
    assert same(fill(tmp_path, pool_of(), rows), fresh)
    assert rows.reads == 1
    batch = {"id": torch.from_numpy(IDS[[4, 0, 9]])}
    assert torch.equal(fill(tmp_path, pool, rows)(batch).logits, fresh(batch).logits)


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    pool, rows = pool_of(), Rows()
    fill(tmp_path, pool, rows, ["b"])
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    fresh = build_logit_cache(pool, ["a/0", "b", "a"], Rows(), CPU)
    assert same(fill(tmp_path, pool, rows, ["a/0", "b", "a"]), fresh)
    assert rows.reads == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("other", [{"data": "other"}, {"precision": "cpu|bf16"}, {"split": "val"}])
def test_what_is_not_the_same_is_kept_apart(tmp_path: Path, other: dict[str, Any]) -> None:
    pool, rows = pool_of(), Rows()
    fill(tmp_path, pool, rows)
    fill(tmp_path, pool, rows, **other)
    assert rows.reads == 2
    assert len(files(tmp_path)) == 6


def test_other_weights_other_samples(tmp_path: Path) -> None:
    rows = Rows()
    first = fill(tmp_path, pool_of(), rows)
    assert not same(fill(tmp_path, pool_of(seed=1), rows), first)
    changed = pool_of()
    with torch.no_grad():
        next(changed.mask("a/0").parameters()).add_(1.0)
    fill(tmp_path, changed, rows)
    assert rows.reads == 3
    assert len(files(tmp_path)) == 3 + 3 + 1
    fewer = Rows(IDS[:9])
    assert len(fill(tmp_path, pool_of(), fewer).ids_N) == 9
    assert fewer.reads == 1
    fill(tmp_path, pool_of(), rows)
    assert rows.reads == 3


def test_the_order_of_samples_does_not_matter(tmp_path: Path) -> None:
    first = fill(tmp_path, pool_of(), Rows())
    turned = Rows(IDS[::-1].copy())
    assert same(fill(tmp_path, pool_of(), turned), first)
    assert turned.reads == 0


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _lie(file: Path) -> None:
    tensors = load_file(file)
    save_file({**tensors, "logits": tensors["logits"] + 1.0}, file)


def _no_logits(file: Path) -> None:
    save_file({"ids": load_file(file)["ids"]}, file)


def _no_checksum(file: Path) -> None:
    tensors = load_file(file)
    save_file({"ids": tensors["ids"], "logits": tensors["logits"]}, file)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _flip, _lie, _no_logits, _no_checksum, _empty])
def test_damage_is_noticed_and_repaired(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    pool, rows = pool_of(), Rows()
    fresh = fill(tmp_path, pool, rows)
    damaged = files(tmp_path)[1]
    damage(damaged)
    with caplog.at_level(logging.WARNING):
        assert same(fill(tmp_path, pool, rows), fresh)
    assert damaged.name in caplog.text
    assert rows.reads == 2
    assert same(fill(tmp_path, pool, rows), fresh)
    assert rows.reads == 2


def test_rows_that_cannot_be_read_are_left_out_and_nothing_is_kept(tmp_path: Path) -> None:
    pool, rows = pool_of(), Rows(unreadable=2)
    assert len(fill(tmp_path, pool, rows).ids_N) == N - 2
    assert not tmp_path.exists() or files(tmp_path) == []
    fill(tmp_path, pool, Rows(), ["b"])
    partly = fill(tmp_path, pool, rows)
    assert same(partly, build_logit_cache(pool, NAMES, Rows(unreadable=2), CPU))
    assert len(files(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        found = fill(blocked / "cache", pool_of(), Rows())
    assert same(found, build_logit_cache(pool_of(), NAMES, Rows(), CPU))
    assert "can't be kept" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    pool = pool_of(dtype=dtype)
    first = fill(tmp_path, pool, Rows())
    again = fill(tmp_path, pool, Rows())
    assert again.logits_NTC.dtype == first.logits_NTC.dtype
    assert same(again, first)


def _fill_once(folder: str, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    barrier.wait()
    results.put(fill(Path(folder), pool_of(), Rows()).logits_NTC.sum().item())


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_fill_once, args=(str(tmp_path), barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    sums = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(sums) == 1
    rows = Rows()
    assert same(fill(tmp_path, pool_of(), rows), build_logit_cache(pool_of(), NAMES, Rows(), CPU))
    assert rows.reads == 0
    assert len(files(tmp_path)) == 3
