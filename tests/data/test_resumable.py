"""Arrays that are written part by part: interruption, resumption, checksums."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from moekd.data.resumable import PROGRESS, check_sums, write_rows
from moekd.data.storage import load_array, read_manifest
from moekd.errors import DataError

ROWS = 10
ARRAYS = {"x": ((3,), "float32"), "y": ((), "uint8")}


def rows_of(part, seen=None, fail_at=None):
    if seen is not None:
        seen.append((part.start, part.stop))
    if fail_at is not None and fail_at in part:
        raise DataError(f"row {fail_at} can't be read")
    numbers = np.arange(part.start, part.stop)
    return {"x": np.repeat(numbers[:, None], 3, axis=1).astype(np.float32), "y": numbers.astype(np.uint8)}


def write(source, output, **options):
    seen = options.pop("seen", None)
    fail_at = options.pop("fail_at", None)
    arrays = options.pop("arrays", ARRAYS)
    return write_rows(
        "toy",
        source,
        output,
        arrays,
        ROWS,
        lambda part: rows_of(part, seen, fail_at),
        lambda folder: {"largest": float(load_array(folder / "x.npy").max())},
        chunk=options.pop("chunk", 3),
        progress=False,
    )


def test_everything_is_there_and_nothing_is_left(tmp_path):
    folder = write(tmp_path, tmp_path / "out")
    assert (load_array(folder / "x.npy")[:, 1] == np.arange(ROWS)).all()
    assert isinstance(load_array(folder / "y.npy"), np.memmap)
    manifest = read_manifest(folder, "toy")
    assert manifest["largest"] == 9
    assert set(manifest["files"]) == {"x.npy", "y.npy"}
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "x.npy", "y.npy"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_it_goes_on_behind_the_last_complete_chunk(tmp_path):
    seen: list[tuple[int, int]] = []
    with pytest.raises(DataError, match="row 7"):
        write(tmp_path, tmp_path / "out", seen=seen, fail_at=7)
    assert seen == [(0, 3), (3, 6), (6, 9)]
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial" / PROGRESS).is_file()
    seen.clear()
    folder = write(tmp_path, tmp_path / "out", seen=seen)
    assert seen == [(6, 9), (9, 10)]
    assert (load_array(folder / "y.npy") == np.arange(ROWS)).all()
    seen.clear()
    assert write(tmp_path, tmp_path / "out", seen=seen) == folder
    assert seen == []


def test_another_plan_starts_anew(tmp_path):
    with pytest.raises(DataError):
        write(tmp_path, tmp_path / "out", fail_at=7)
    seen: list[tuple[int, int]] = []
    write(tmp_path, tmp_path / "out", seen=seen, arrays={"x": ((3,), "float16"), "y": ((), "uint8")})
    assert seen[0] == (0, 3)


def test_a_damaged_progress_starts_anew(tmp_path):
    with pytest.raises(DataError):
        write(tmp_path, tmp_path / "out", fail_at=7)
    (tmp_path / ".out.partial" / PROGRESS).write_text("{")
    seen: list[tuple[int, int]] = []
    write(tmp_path, tmp_path / "out", seen=seen)
    assert seen[0] == (0, 3)


def test_other_files_in_the_way_and_too_little_space_are_refused(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="exists already"):
        write(tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="GiB are free"):
        write(tmp_path, tmp_path / "big", arrays={"x": ((2**40,), "float32")})


def test_checksums_beside_the_files_are_honoured(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.bin").write_bytes(b"def")
    md5 = hashlib.md5(b"abc").hexdigest()
    sha = hashlib.sha256(b"def").hexdigest()
    (tmp_path / "md5sums.txt").write_text(f"{md5}  a.bin\n{md5}  gone.bin\nno checksum\n")
    (tmp_path / "sub" / "SHA256SUMS").write_text(f"{sha.upper()} *b.bin\n")
    assert check_sums(tmp_path) == 2
    (tmp_path / "sub" / "b.bin").write_bytes(b"dex")
    with pytest.raises(DataError, match=r"b.bin has the sha256 .*fetch it again"):
        check_sums(tmp_path)
