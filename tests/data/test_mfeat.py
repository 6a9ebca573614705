"""`mfeat` from look-alikes of UCI's files and of the pack, and from the real pack."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch

from moekd.data import make_loader, prepare
from moekd.data.mfeat import MultipleFeatures
from moekd.data.mfeat_prepare import PACK_VIEWS, VIEWS
from moekd.errors import DataError


def view_values(generator, rows):
    """Return small numbers for each view, whose first column is the number of the row."""
    values = {view: generator.integers(0, 7, (rows, width)).astype(float) for view, width in VIEWS.items()}
    for view in ("fou", "kar", "mor", "zer"):
        values[view] = values[view] / 8
    for view in set(VIEWS) - {"pix"}:
        values[view][:, 0] = np.arange(rows)
    return values


@pytest.fixture(scope="module")
def uci(tmp_path_factory):
    """Text tables with the names, the shapes and the order of the original files."""
    folder = tmp_path_factory.mktemp("uci")
    (folder / "mfeat").mkdir()
    for view, values in view_values(np.random.default_rng(0), 2000).items():
        lines = [" ".join(f" {value:g}" for value in row) for row in values]
        (folder / f"mfeat/mfeat-{view}").write_text("\n".join(lines) + "\n")
    return folder


def write_pack(folder, **changes):
    generator, arrays = np.random.default_rng(1), {}
    for part, each in (("train", 8), ("test", 2)):
        values = view_values(generator, 10 * each)
        arrays |= {f"{PACK_VIEWS[view]}_{part}": array.astype(np.float32) for view, array in values.items()}
        arrays[f"y_{part}"] = np.repeat(np.arange(1, 11), each).astype(np.uint8)
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    folder.mkdir(exist_ok=True)
    np.savez(folder / "mfeat.npz", **arrays)
    return arrays


@pytest.fixture(scope="module")
def prepared(uci, tmp_path_factory):
    return prepare("mfeat", uci, tmp_path_factory.mktemp("prepared") / "mfeat")


def load(root, **options):
    return MultipleFeatures(root=str(root), **options)


def test_original_files(prepared, uci):
    data = load(prepared)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1400, "val": 200, "test": 400}
    for split in data.splits.values():
        assert len(set(np.bincount(split.labels))) == 1
        assert (split.labels == split.ids // 200).all()
    assert {name: spec.shape for name, spec in data.fields.items()} == {view: (width,) for view, width in VIEWS.items()}
    assert data.splits["test"].describe(int(data.splits["test"].ids[-1])).startswith("digit 9, row 1")
    assert prepare("mfeat", uci, prepared) == prepared


def test_values_are_standardised_with_training_rows_alone(prepared):
    data = load(prepared)
    everything = {name: split.__getitems__(list(range(len(split)))) for name, split in data.splits.items()}
    for view, width in VIEWS.items():
        train = everything["train"][view]
        assert train.shape == (1400, width)
        assert train.dtype == torch.float32
        assert train.mean(dim=0).abs().max() < 1e-5
        assert (train.std(dim=0, correction=0) - 1).abs().max() < 1e-4
        raw, recipe = np.load(prepared / f"{view}.npy"), data.input_recipe(view)
        expected = (raw[everything["test"]["id"]] - np.array(recipe["mean"])) / np.array(recipe["std"])
        assert np.allclose(everything["test"][view], expected, atol=1e-5)


def test_a_constant_feature_becomes_zero(tmp_path):
    changes = {f"v1_{part}": np.full((rows, 240), 3, np.uint8) for part, rows in (("train", 80), ("test", 20))}
    write_pack(tmp_path / "pack", **changes)
    data = load(prepare("mfeat", tmp_path / "pack", tmp_path / "out"), val=20)
    assert (next(iter(make_loader(data.splits["train"], 8, shuffle=False)))["pix"] == 0).all()


def test_the_test_rows_of_a_pack_are_kept(tmp_path):
    arrays = write_pack(tmp_path / "pack")
    data = load(prepare("mfeat", tmp_path / "pack", tmp_path / "out"), val=20)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 60, "val": 20, "test": 20}
    test = data.splits["test"]
    assert test.labels.tolist() == (arrays["y_test"] - 1).tolist()
    raw = np.load(data.root / "zer.npy")[test.ids]
    assert (raw == arrays["v4_test"]).all()
    assert (np.load(data.root / "fac.npy")[test.ids] == arrays["v3_test"]).all()


def test_a_split_seed_draws_everything_anew(prepared):
    kept, first, again, other = (load(prepared, split_seed=seed) for seed in (None, 1, 1, 2))
    assert first.fingerprint() == again.fingerprint()
    assert len({data.fingerprint() for data in (kept, first, other)}) == 3
    for data in (first, other):
        assert np.bincount(data.splits["test"].labels).tolist() == [40] * 10
        assert set(data.splits["test"].ids) != set(kept.splits["test"].ids)
        assert sorted(np.concatenate([split.ids for split in data.splits.values()])) == list(range(2000))


def test_views_can_be_chosen(prepared):
    data = load(prepared, views=["zer", "mor"])
    assert set(data.splits["train"][0]) == {"zer", "mor", "id", "label", "labelled"}
    assert data.fingerprint() != load(prepared).fingerprint()
    for views in ([], ["zer", "zer"], ["zer", "abc"]):
        with pytest.raises(DataError, match=r"views must be some of fac, fou"):
            load(prepared, views=views)


def test_the_number_of_validation_rows(prepared):
    assert len(load(prepared, val=400).splits["val"]) == 400
    with pytest.raises(DataError, match="val: 1599 rows asked for, but test leaves 1600"):
        load(prepared, val=1599).splits  # noqa: B018


def test_splits_can_be_sent_to_worker_processes(prepared):
    split = load(prepared).splits["val"]
    copy = pickle.loads(pickle.dumps(split))
    assert copy.describe(int(split.ids[3])) == split.describe(int(split.ids[3]))
    assert torch.equal(copy[3]["zer"], split[3]["zer"])


def test_missing_and_incomplete_files_are_named(uci, tmp_path):
    folder = tmp_path / "uci"
    shutil.copytree(uci, folder)
    for view in ("kar", "zer"):
        (folder / f"mfeat/mfeat-{view}").rename(folder / f"{view}.away")
    with pytest.raises(DataError, match=r"neither mfeat.npz nor mfeat-kar, mfeat-zer found"):
        prepare("mfeat", folder, tmp_path / "out")
    text = (folder / "kar.away").read_text()
    (folder / "zer.away").rename(folder / "mfeat-zer")
    for wrong, message in (
        (text[: len(text) // 2].rsplit("\n", 1)[0], r"mfeat-kar has \(\d+, 64\) numbers, expected \(2000, 64\)"),
        (text.replace("\n", " x\n", 1), "mfeat-kar can't be read as a table of numbers"),
        ("", "mfeat-kar can't be read as a table of numbers"),
        (text.replace("\n", " nan\n").replace(" ", "", 1), "mfeat-kar has"),
    ):
        (folder / "mfeat-kar").write_text(wrong)
        with pytest.raises(DataError, match=message):
            prepare("mfeat", folder, tmp_path / "out")
    (folder / "mfeat-kar").write_text(text.replace(text.split()[0], "nan", 1))
    with pytest.raises(DataError, match="view 'kar' holds NaN"):
        prepare("mfeat", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v4_test": None}, "lacks the arrays v4_test"),
        ({"v4_test": np.zeros((20, 46))}, r"v4_test \(zer\) has shape \(20, 46\), expected \(20, 47\)"),
        ({"y_train": np.zeros(80, np.uint8)}, "labels lie in 0 to 10, expected 1 to 10"),
        ({"y_test": np.array([{}] * 20, dtype=object)}, "mfeat.npz can't be read"),
    ],
)
def test_wrong_packs_are_named(tmp_path, changes, message):
    write_pack(tmp_path / "pack", **changes)
    with pytest.raises(DataError, match=message):
        prepare("mfeat", tmp_path / "pack", tmp_path / "out")
    (tmp_path / "pack/mfeat.npz").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"mfeat.npz can't be read"):
        prepare("mfeat", tmp_path / "pack", tmp_path / "out")


def test_unprepared_and_damaged_folders(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("MOEKD_DATA_HOME", str(tmp_path))
    with pytest.raises(DataError, match="moekd data prepare mfeat"):
        MultipleFeatures()
    with pytest.raises(DataError, match="give their folder"):
        prepare("mfeat", None)
    shutil.copytree(prepared, tmp_path / "mfeat")
    (tmp_path / "mfeat/zer.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"zer.npy is damaged"):
        MultipleFeatures()


@pytest.mark.data
def test_the_real_pack(data_root, tmp_path):
    data = load(prepare("mfeat", data_root / "mfeat_6views", tmp_path / "mfeat"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1400, "val": 200, "test": 400}
    pixels, labels = np.load(data.root / "pix.npy").reshape(-1, 16, 15), np.load(data.root / "label.npy")
    means = np.stack([pixels[labels == digit].mean(axis=0) for digit in range(10)])
    assert means[0][6:10, 6:9].max() < 1  # a zero is open in the middle, an eight is not
    assert means[8][6:10, 6:9].max() > 4
    assert means[1][:, 8].min() > 2.5
    train, test = (data.splits[name].__getitems__(list(range(len(data.splits[name])))) for name in ("train", "test"))
    accuracy = {
        view: float(
            (train["label"][torch.cdist(test[view], train[view]).argmin(dim=1)] == test["label"]).float().mean()
        )
        for view in VIEWS
    }
    assert min(accuracy[view] for view in ("pix", "fac", "kar")) > 0.9
    assert max(accuracy, key=accuracy.__getitem__) not in ("mor", "fou", "zer")
    assert 0.5 < accuracy["mor"] < accuracy["fac"] - 0.1
