"""`files`: what is refused, and how it says so."""

from __future__ import annotations

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from moekd.data import make_loader, with_policy
from moekd.data.fields.image import ImageField
from moekd.data.fields.vector import VectorField
from moekd.data.files import Files
from moekd.errors import DataError

PARTS = {"val": 0.2, "test": 0.2}


def table(folder, name="t.parquet", count=20, **columns):
    rows = [{"x": [float(row)], "label": row % 2} for row in range(count)]
    for column, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[column] = value
    parquet.write_table(pa.Table.from_pylist(rows), folder / name)
    return str(folder / name)


def files(folder, path, **options):
    defaults = {"fields": {"x": VectorField()}, "split": PARTS, "cache_dir": str(folder / "cache")}
    return Files(path, **(defaults | options))


def test_missing_columns_are_all_named(tmp_path):
    with pytest.raises(DataError) as caught:
        files(tmp_path, table(tmp_path), label="lable", fields={"x": VectorField("xx"), "y": VectorField("nothing")})
    message = str(caught.value)
    assert "no column 'lable' (label); did you mean 'label'?" in message
    assert "no column 'nothing' (field 'y')" in message
    assert "columns: x, label" in message


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 5, 0], ["a", "b"], r"row 2: label 5 in column 'label' is out of range, expected 0 to 1"),
        ([0, -1, 1, 0], ["a", "b"], r"row 1: label -1 .* out of range"),
        (["a", "b", "aa", "b"], ["a", "b"], r"row 2: unknown class 'aa'"),
        ([1, 1, 1, 1], None, "fewer than 2 classes"),
        ([None, None, None, None], None, "no labels at all"),
        ([0.5, 1.0, 0.5, 1.0], None, r"row 0: label column 'label' holds float"),
    ],
)
def test_wrong_labels(tmp_path, labels, classes, message):
    """D2: labels out of range or of another type."""
    with pytest.raises(DataError, match=message):
        files(tmp_path, table(tmp_path, count=4, label=labels), classes=classes)


def test_integer_labels_need_not_be_dense(tmp_path):
    data = files(tmp_path, table(tmp_path, count=20, label=[10, 2] * 10))
    assert data.class_names == ["2", "10"]
    assert set(data.splits["train"].labels) == {0, 1}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (None, "has no splits of its own: set 'split'"),
        ({"val": 0.2}, "no split test"),
        ({"val": 0.5, "test": 0.5}, "leave some rows for train"),
        ({"val": 0.001, "test": 0.2}, "split 'val' is empty"),
        ({"vale": 0.2}, "split: vale: unknown"),
        ({"train": 0.5, "test": 0.2}, "no fraction can be given for train"),
        ({"test": "t.parquet"}, "but none for train"),
        ("part", "row 1: 'trian' in split column 'part'"),
    ],
)
def test_wrong_splits(tmp_path, split, message):
    path = table(tmp_path, part=["train", "trian"] * 10)
    root = str(tmp_path) if isinstance(split, dict) and "t.parquet" in split.values() else path
    with pytest.raises(DataError, match=message):
        files(tmp_path, root, split=split).splits  # noqa: B018


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "data.xyz").write_text("")
    for name, message in [
        ("bad.parquet", "bad.parquet can't be read as parquet"),
        ("empty.csv", "empty.csv can't be read as csv"),
        ("data.xyz", "unknown format '.xyz'"),
        ("absent.csv", "no data file at"),
        ("*.json", "no data file at"),
    ]:
        with pytest.raises(DataError, match=message):
            files(tmp_path, str(tmp_path / name))
    with pytest.raises(DataError, match=r"bad.parquet can't be read as parquet"):
        files(tmp_path, str(tmp_path / "bad.parquet"), streaming=True)
    with pytest.raises(DataError, match="streaming reads parquet only"):
        files(tmp_path, str(tmp_path / "empty.csv"), streaming=True)
    with pytest.raises(DataError, match="matches files of formats csv, parquet"):
        files(tmp_path, str(tmp_path / "*[dy].*[tv]"))


def test_media_outside_class_folders(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"loose.png lies in no class folder"):
        files(tmp_path, str(tmp_path), fields={"image": ImageField(4)})


@pytest.fixture
def pictures(tmp_path):
    """20 pictures of which numbers 3 (damaged), 7 (missing) and 11 (no path) can't be read."""
    for row in range(20):
        Image.new("RGB", (40, 40), (row, 0, 0)).save(tmp_path / f"{row}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    (tmp_path / "7.png").unlink()
    paths = [None if row == 11 else f"{row}.png" for row in range(20)]
    path = table(tmp_path, picture=paths, part=["train"] * 16 + ["val", "val", "test", "test"])
    return files(tmp_path, path, split="part", fields={"image": ImageField(8, "picture")})


def test_bad_media_name_file_and_row(pictures):
    """D1: a damaged, missing or nameless picture is told with file and row."""
    train = pictures.splits["train"]
    for row, message in [
        (3, r"t.parquet row 3, 3.png\): field 'image': .*3.png can't be decoded as an image"),
        (7, r"row 7, 7.png\): field 'image': .*7.png does not exist"),
        (11, r"row 11\): field 'image': expected a path or bytes, found an empty value"),
    ]:
        with pytest.raises(DataError, match=message):
            train.__getitems__([0, row])


def test_bad_media_follow_the_policy(pictures):
    """D1: bad pictures follow the policy."""
    train = pictures.splits["train"]
    skipped = with_policy(train, "skip", 0.5)
    seen = [i for batch in make_loader(skipped, 5, shuffle=False) for i in batch["id"].tolist()]
    assert seen == [row for row in range(16) if row not in (3, 7, 11)]
    assert skipped.bad_count == 3
    assert skipped.__getitems__([3, 7])["image"].shape == (0, 3, 8, 8)
    substituted = with_policy(train, "substitute", 0.5)
    for batch in make_loader(substituted, 4, shuffle=False):
        assert batch["image"].shape == (4, 3, 8, 8)
        assert (batch["image"][:, 0, 0, 0] * 255).round().tolist() == batch["id"].tolist()


def test_a_field_that_no_row_has(tmp_path):
    """D1, D4: a field that no row has."""
    path = table(tmp_path, picture=["absent.png"] * 20)
    data = files(tmp_path, path, fields={"image": ImageField(8, "picture")})
    with pytest.raises(
        DataError, match=r"field 'image' can't be read in the first 20 rows; .*absent.png does not exist"
    ):
        data.splits  # noqa: B018


def test_vectors_of_another_length(tmp_path):
    """D1: a value of another shape."""
    path = table(tmp_path, count=6, v=[[1.0, 2.0]] * 5 + [[1.0]], part=["train", "val", "test"] * 2)
    data = files(tmp_path, path, split="part", fields={"v": VectorField()})
    with pytest.raises(DataError, match=r"row 5\): field 'v': shape \(1,\) differs from that of the first row, \(2,\)"):
        data.splits["test"].__getitems__([0, 1])
    data = files(tmp_path, path, split="part", fields={"v": VectorField(size=3)})
    with pytest.raises(DataError, match="expected 3 values, found"):
        data.splits  # noqa: B018


def test_no_fields(tmp_path):
    with pytest.raises(DataError, match="at least one field"):
        files(tmp_path, table(tmp_path), fields={})
