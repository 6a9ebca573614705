"""Indexes of tar files: what is unsafe, damaged or not a tar file of samples is refused before anything is read."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.data.shards import LocalShard
from moekd.data.tar_index import keys_of, open_index, split_member
from moekd.errors import DataError
from tests.data.tar_files import write_tar


def index(path, largest=2**20):
    return open_index(LocalShard(path, None), largest)


def special(path, **facts):
    """Write a good sample and one member with some facts."""
    with tarfile.open(path, "w") as archive:
        good = tarfile.TarInfo("a.txt")
        good.size = 2
        archive.addfile(good, io.BytesIO(b"ok"))
        member = tarfile.TarInfo(facts.pop("name", "b.txt"))
        for name, value in facts.items():
            setattr(member, name, value)
        archive.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    return path


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "no regular file"),
        ({"type": tarfile.LNKTYPE, "linkname": "a.txt"}, "no regular file"),
        ({"type": tarfile.FIFOTYPE}, "no regular file"),
        ({"type": tarfile.CHRTYPE}, "no regular file"),
        ({"name": "/etc/b.txt"}, "leaves the folder"),
        ({"name": "../b.txt"}, "leaves the folder"),
        ({"name": "x/../../b.txt"}, "leaves the folder"),
        ({"name": "..\\b.txt"}, "leaves the folder"),
        ({"name": "b\n.txt"}, "can't be shown"),
        ({"size": 3000}, "3000 bytes, more than 2000"),
        ({"name": "README"}, "no name of the form KEY.COLUMN"),
        ({"name": ".hidden"}, "no name of the form KEY.COLUMN"),
        ({"name": "a.txt"}, "occurs twice"),
    ],
)
def test_unsafe_members_are_refused(tmp_path, facts, message):
    """S5: links, devices, paths that leave the folder, huge members; nothing is unpacked."""
    with pytest.raises(DataError, match=message):
        index(special(tmp_path / "bad.tar", **facts), largest=2000)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"], "nothing was kept"


def test_folders_are_skipped_and_long_names_work(tmp_path):
    path = special(tmp_path / "a.tar", name="folder", type=tarfile.DIRTYPE)
    assert index(path).rows == 1
    long = "part/" * 40 + "x"
    found = write_tar(tmp_path / "b.tar", {long: {"seg.png": b"1", "TXT": b"22"}, "é": {"txt": b"333"}})
    made = index(found)
    assert made.columns == ["seg.png", "txt"]
    assert keys_of(LocalShard(found, None)) == [long, "é"]
    assert made.spans()[:, :, 1].tolist() == [[1, 2], [-1, 3]]


def test_members_of_a_sample_follow_each_other(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("1.txt", "2.txt", "1.cls"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match="sample '1' do not follow each other"):
        index(tmp_path / "a.tar")


def test_cut_compressed_empty_and_other_files_are_refused(tmp_path):
    """D2, S5: cut, compressed and empty archives."""
    whole = write_tar(tmp_path / "a.tar", {f"{n}": {"txt": b"x" * 700} for n in range(5)}).read_bytes()
    path = tmp_path / "b.tar"
    # a sample takes 512 bytes for its header and 1,024 for its content
    for end in (3 * 1536, 3 * 1536 + 100, 3 * 1536 + 512, 3 * 1536 + 600, 4 * 1536 + 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="can't be read as an uncompressed tar file"):
            index(path)
    damaged = bytearray(whole)
    damaged[2 * 1536 + 10] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="can't be read as an uncompressed tar file"):
        index(path)
    for content in (b"", b"PK\x03\x04 something else", bytes(20000)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"uncompressed tar file|holds no samples"):
            index(path)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(DataError, match="uncompressed tar file"):
        index(path)


def test_a_smaller_limit_is_checked_again(tmp_path):
    """S5: the limit counts for an index that was kept, too."""
    path = write_tar(tmp_path / "a.tar", {"1": {"txt": b"x" * 700}})
    assert index(path).rows == 1
    with pytest.raises(DataError, match="700 bytes, more than 500"):
        index(path, largest=500)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.dictionaries(st.sampled_from(["txt", "cls", "a.json"]), st.integers(0, 1500), min_size=1)),
)
def test_spans_point_at_the_contents(tmp_path_factory, sizes):
    if not sizes:
        return
    path = tmp_path_factory.mktemp("spans") / "a.tar"
    generator = np.random.default_rng(0)
    samples = {f"k{n}": {key: generator.bytes(size) for key, size in row.items()} for n, row in enumerate(sizes)}
    write_tar(path, samples)
    found, content = index(path), path.read_bytes()
    assert found.rows == len(sizes)
    for row, members in enumerate(samples.values()):
        for place, column in enumerate(found.columns):
            start, size = found.spans()[row, place].tolist()
            assert (content[start : start + size] if size >= 0 else None) == members.get(column)


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ("a.txt", ("a", "txt")),
        ("./d/a.seg.PNG", ("d/a", "seg.png")),
        ("d.x/a.txt", ("d.x/a", "txt")),
    ],
)
def test_names(member, expected):
    assert split_member(member, "t.tar") == expected
