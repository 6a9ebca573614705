"""Stored signals against fresh ones; damage, other teachers, other data, writers at the same time, a killed writer."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.cache import CacheSettings, Needs, SignalStore, Table, cache_in_memory
from moekd.cache import fill as filling
from moekd.errors import DataError

from .builders import (
    EVERYTHING,
    NAMES,
    Holes,
    N,
    all_rows,
    distance,
    live,
    pass_of,
    pool_of,
    split_of,
    tables,
    through,
)

LOGITS = Needs()


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 16 samples, so that 23 make two of them."""
    monkeypatch.setattr(filling, "SHARD_BYTES", 1)


@pytest.mark.parametrize("mapped", [False, True])
def test_stored_signals_are_the_fresh_ones(tmp_path: Path, mapped: bool) -> None:
    teachers = pass_of()
    batch = all_rows(teachers)
    fresh = live(teachers, batch)
    assert distance(cache_in_memory(teachers)(batch), fresh) < 1e-6
    assert distance(through(tmp_path, teachers, mapped=mapped)(batch), fresh) < 1e-6
    reads = teachers.split.reads
    again = through(tmp_path, replace(teachers, pool=pool_of()), mapped=mapped)
    assert teachers.split.reads == reads + 2
    some = {"id": batch["id"][[4, 0, 22, 4, 17]]}
    assert distance(again(some), fresh.select(torch.tensor([4, 0, 22, 4, 17]))) < 1e-6
    assert torch.equal(again(some)["a"].logits, again(batch)["a"].logits[[4, 0, 22, 4, 17]])


def test_a_table_for_each_signal_and_variant(tmp_path: Path) -> None:
    teachers = pass_of()
    through(tmp_path, teachers)
    found = [Table.open(folder) for folder in tables(tmp_path)]
    keys = {"logits", "embeddings/image", "embeddings/text", "heads/logit_scale", "features/body", "features/map"}
    assert {table.identity.signal for table in found} == keys
    assert len(found) == 3 * len(keys)
    assert all(not table.missing and table.shards == 2 for table in found)
    scale = next(table for table in found if table.identity.signal == "heads/logit_scale")
    _, encoded = scale.read(0)
    assert encoded.rows == {}, "rows that are the same are stored once"


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    """K5: only what is missing is computed."""
    split, pool = split_of(), pool_of()
    through(tmp_path, pass_of(pool, split, variants=["b"], needs=LOGITS))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    pool.forwards = 0
    cache = through(tmp_path, pass_of(pool, split, variants=["a", "b"], needs=LOGITS))
    assert pool.forwards == 6, "'a' alone runs, on the batches 5, 5, 5, 1 of its first shard and 5, 2 of its second"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    batch = split.__getitems__(list(range(N)))
    assert distance(cache(batch), pool(batch, ["a", "b"]), LOGITS) < 1e-6


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"data": "other"}, "data: data there, other now"),
        ({"split_name": "val"}, "split: train there, val now"),
        ({"precision": "bf16"}, r"precision: cpu\|no there, cpu\|bf16 now"),
        ({"pool": pool_of(seed=1)}, "teacher: "),
        ({"split": split_of(seed=1)}, "samples: "),
        ({"codec": "bf16"}, "codec: fp32 there, bf16 now"),
    ],
    ids=["data", "split", "precision", "weights", "order of the samples", "codec"],
)
def test_what_is_not_the_same_is_kept_apart_or_refused_by_name(
    tmp_path: Path, other: dict[str, Any], field: str
) -> None:
    """K1: other weights, data, inputs or codecs are refused with the differing field."""
    teachers = pass_of(variants=["a"], needs=LOGITS)
    through(tmp_path, teachers)
    outside = {key: other[key] for key in other if key in ("data", "codec")}
    changed = replace(teachers, **{key: other[key] for key in other if key not in outside})
    with pytest.raises(DataError, match=f"logits of teacher 'a'.*differs:\n  {field}"):
        through(tmp_path, changed, **outside, missing="raise")
    assert len(tables(tmp_path)) == 1
    through(tmp_path, changed, **outside)
    assert len(tables(tmp_path)) == 2


def test_a_mask_is_part_of_a_variant(tmp_path: Path) -> None:
    teachers = pass_of(needs=LOGITS)
    through(tmp_path, teachers)
    changed = pool_of()
    with torch.no_grad():
        next(changed.mask("a/body").parameters()).add_(1.0)
    through(tmp_path, replace(teachers, pool=changed))
    assert len(tables(tmp_path)) == 3 + 1


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    """K1: a table of something else."""
    teachers = pass_of(variants=["a"], needs=LOGITS)
    through(tmp_path, teachers)
    (folder,) = tables(tmp_path)
    table = Table.open(folder)
    table.manifest["identity"]["data"] = "other"
    table.write_manifest()
    with pytest.raises(DataError, match="holds the signals of something else:\n  data: other there, data now"):
        through(tmp_path, teachers)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _flip(file: Path, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "cut": _cut,
    "a bit in the header": lambda file: _flip(file, 0.05),
    "a bit in the middle": _flip,
    "the last bit": lambda file: _flip(file, 1.0),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed_and_repaired(
    tmp_path: Path, damage: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """K3: damaged, cut and deleted files."""
    teachers = pass_of(variants=["a", "b"], needs=LOGITS)
    batch = all_rows(teachers)
    fresh = through(tmp_path, teachers)(batch)
    folder = tables(tmp_path)[1]
    content = (folder / name).read_bytes()
    damage(folder / name)
    with caplog.at_level(logging.WARNING):
        assert distance(through(tmp_path, teachers)(batch), fresh, LOGITS) == 0
    if (name, damage) != ("manifest.json", Path.unlink):
        assert caplog.text.count(str(folder / name)) == 1
    assert (folder / name).read_bytes() == content
    teachers.pool.forwards = 0
    through(tmp_path, teachers)
    assert teachers.pool.forwards == 0


@pytest.mark.parametrize("place", [i / 16 for i in range(17)])
def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path, place: float) -> None:
    """C1, K3: one bit anywhere in a shard."""
    teachers = pass_of(variants=["b"], needs=LOGITS)
    through(tmp_path, teachers)
    table = Table.open(tables(tmp_path)[0])
    _flip(table.folder / "shard-00000.safetensors", place)
    assert "sha256 mismatch" in (table.damage(0) or "")
    assert table.damage(1) is None


def test_rows_that_cannot_be_read_are_left_out_and_their_shard_is_not_kept(tmp_path: Path) -> None:
    teachers = pass_of(split=split_of(Holes), needs=LOGITS)
    batch = all_rows(teachers)
    assert len(batch["id"]) == N - 2
    for cache in (through(tmp_path, teachers), cache_in_memory(teachers), through(tmp_path, teachers, mapped=True)):
        assert distance(cache(batch), live(teachers, batch), LOGITS) < 1e-6
        assert len(cache.ids_N) == N - 2
        with pytest.raises(DataError, match=f"sample {teachers.split.ids[-1]} is not in the cache"):
            cache({"id": torch.tensor(teachers.split.ids[-1:])})
    assert all(Table.open(folder).missing == {1} for folder in tables(tmp_path))


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked, teachers = tmp_path / "file", pass_of(needs=LOGITS)
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        found = through(blocked / "cache", teachers)
    batch = all_rows(teachers)
    assert distance(found(batch), live(teachers, batch), LOGITS) < 1e-6
    assert "can't be kept" in caplog.text
    with pytest.raises(DataError, match=r"can't be kept in .*; free some space, or set cache\.folder"):
        through(blocked / "cache", teachers, mapped=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_teachers(tmp_path: Path, dtype: torch.dtype) -> None:
    teachers = pass_of(pool_of(dtype=dtype))
    batch = all_rows(teachers)
    fresh = cache_in_memory(teachers)(batch)
    for mapped in (False, True):
        found = through(tmp_path, teachers, mapped=mapped)(batch)
        assert found["a"].embeddings["text"].dtype == dtype
        assert distance(found, fresh) == 0


@pytest.mark.parametrize(("codec", "most"), [("bf16", 0.03), ("fp16", 3e-3), ("int8", 0.05)])
@pytest.mark.parametrize("mapped", [False, True])
def test_codecs(tmp_path: Path, codec: str, most: float, mapped: bool) -> None:
    teachers = pass_of()
    batch = all_rows(teachers)
    found = through(tmp_path, teachers, mapped=mapped, codec=codec)(batch)
    assert 0 < distance(found, live(teachers, batch)) < most
    memory = cache_in_memory(teachers, CacheSettings(codec=codec))  # type: ignore[arg-type]
    assert distance(memory(batch), found) < 1e-6


def test_sparse_logits(tmp_path: Path) -> None:
    teachers = pass_of(needs=EVERYTHING)
    batch = all_rows(teachers)
    found, fresh = through(tmp_path, teachers, logits="top_k", k=2)(batch), live(teachers, batch)
    assert distance(found, fresh, Needs(False, True, True)) < 1e-6
    for name in NAMES:
        one, other = (signals[name].require_logits("test").softmax(dim=1) for signals in (found, fresh))
        torch.testing.assert_close(one.topk(2).values, other.topk(2).values)


def _fill_once(folder: str, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    teachers = pass_of(needs=LOGITS)
    barrier.wait()
    cache = through(Path(folder), teachers)
    results.put((teachers.pool.forwards, float(cache(all_rows(teachers)).logits.double().sum())))


def test_processes_that_want_the_same_at_the_same_time(tmp_path: Path) -> None:
    """K4: two writers."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_fill_once, args=(str(tmp_path), barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 3
    assert len({total for _, total in found}) == 1
    assert sorted(forwards > 0 for forwards, _ in found) == [False, False, True], "one computes, the others wait"
    assert len(tables(tmp_path)) == 3
    assert not list(tmp_path.glob("*/.*.tmp"))


def _fill_slowly(folder: str) -> None:
    write = Table.write

    def slow(table: Table, *arguments: Any) -> None:
        write(table, *arguments)
        time.sleep(60)

    setattr(Table, "write", slow)  # noqa: B010
    through(Path(folder), pass_of(variants=["a"], needs=LOGITS))


def test_a_killed_fill_goes_on(tmp_path: Path) -> None:
    """K2: a fill that was killed goes on without computing a row twice."""
    process = multiprocessing.get_context("fork").Process(target=_fill_slowly, args=(str(tmp_path),))
    process.start()
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*/manifest.json")) and time.monotonic() < end:
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    (folder,) = tables(tmp_path)
    assert Table.open(folder).missing == {1}
    (folder / f".shard-00001.safetensors.{process.pid}.0123abcd.tmp").write_bytes(b"half a shard")
    first = (folder / "shard-00000.safetensors").stat().st_mtime_ns
    teachers = pass_of(variants=["a"], needs=LOGITS)
    batch = all_rows(teachers)
    reads = teachers.split.reads
    cache = through(tmp_path, teachers)
    assert teachers.split.reads == reads + 2 + (N - 16), "two samples to learn the shapes, and the missing shard"
    assert distance(cache(batch), live(teachers, batch), LOGITS) < 1e-6
    assert (folder / "shard-00000.safetensors").stat().st_mtime_ns == first
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".tmp") == []


def test_the_manifest_says_what_is_stored(tmp_path: Path) -> None:
    through(tmp_path, pass_of(variants=["b"], needs=Needs(False, True)))
    table = Table.open(next(folder for folder in tables(tmp_path) if folder.name.startswith("embeddings-text")))
    manifest = json.loads((table.folder / "manifest.json").read_text())
    assert manifest["identity"]["signal"] == "embeddings/text"
    assert manifest["about"]["teacher"] == "b"
    assert manifest["row"] == {"shape": [7], "dtype": "float32"}
    assert (manifest["samples"], manifest["views"], manifest["shard_samples"]) == (N, 1, 16)
    ids, encoded = table.read(1)
    assert ids.tolist() == split_of().ids[16:].tolist()
    assert encoded.rows["values"].shape == (N - 16, 7)
    assert table.nbytes == sum(file.stat().st_size for file in table.folder.glob("*.safetensors"))


def test_a_manifest_of_another_version_or_with_other_files_is_refused(tmp_path: Path) -> None:
    through(tmp_path, pass_of(variants=["b"], needs=LOGITS))
    (folder,) = tables(tmp_path)
    table = Table.open(folder)
    shards = table.manifest["shards"]
    changed: list[tuple[dict[str, Any], str]] = [
        ({"version": 2}, "format version 2; this moekd reads 1"),
        ({"format": "other"}, "does not describe stored signals"),
        (
            {"version": 1, "format": "moekd-signals", "shards": {"../../x": shards["shard-00000.safetensors"]}},
            "no shards",
        ),
    ]
    for changes, message in changed:
        table.manifest |= changes
        table.write_manifest()
        with pytest.raises(DataError, match=message):
            Table.open(folder)


def test_measured_logits_are_exact_whatever_the_codec(tmp_path: Path) -> None:
    teachers = pass_of(needs=LOGITS)
    batch = all_rows(teachers)
    exact = SignalStore(tmp_path, "data", CacheSettings(codec="int8")).exact(teachers)
    assert exact is not None
    assert distance(exact(batch), live(teachers, batch), LOGITS) < 1e-6
    assert SignalStore(tmp_path, "data", CacheSettings(memory_gb=1e-9)).exact(teachers) is None
