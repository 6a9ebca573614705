"""`nyu_depth_v2` from look-alikes of the MATLAB files."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from moekd.data import make_loader, prepare
from moekd.data.dataset import WrappedSplit, check_splits
from moekd.data.nyu_depth_v2 import NyuDepthV2
from moekd.errors import DataError, MissingDependencyError
from moekd.evaluation import ConfusionMatrix
from moekd.evaluation.embedded import Collector
from moekd.evaluation.evaluate import evaluate_signals
from moekd.signals import Signals

RNG = np.random.default_rng(0)
H5PY = importlib.util.find_spec("h5py") is not None


def nyu_arrays(rows=5):
    labels = np.zeros((rows, 640, 480), np.uint8)
    labels[:, 100:300] = 7
    labels[:, 300:] = 40
    depths = np.broadcast_to(np.linspace(1, 5, 640, dtype=np.float32)[None, :, None], (rows, 640, 480))
    images = np.broadcast_to(np.arange(rows, dtype=np.uint8)[:, None, None, None] * 20 + 10, (rows, 3, 640, 480))
    return {"images": images, "depths": depths, "labels40": labels}


@pytest.fixture(scope="module")
def nyu(tmp_path_factory):
    """Return the prepared folder, from the owners' file and a file with the 40 classes in an older version."""
    h5py = pytest.importorskip("h5py")
    from scipy.io import savemat

    source = tmp_path_factory.mktemp("nyu")
    arrays = nyu_arrays()
    with h5py.File(source / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name in ("images", "depths"):
            file.create_dataset(name, data=arrays[name])
        file.create_dataset("labels", data=arrays["labels40"].astype(np.uint16))
    savemat(source / "labels40.mat", {"labels40": arrays["labels40"].T})
    return prepare("nyu_depth_v2", source, tmp_path_factory.mktemp("prepared") / "nyu", progress=False)


def test_nyu_depth_v2(nyu):
    data = NyuDepthV2(root=str(nyu))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert (data.num_classes, data.void_class) == (41, 0)
    batch = data.splits["train"].__getitems__([0, 1, 2])
    assert batch["rgb"].shape == (3, 3, 480, 640)
    assert batch["depth"].shape == (3, 1, 480, 640)
    assert batch["label"].shape == (3, 480, 640)
    assert batch["label"][0, 0, [0, 99, 100, 299, 300, 639]].tolist() == [-1, -1, 7, 7, 40, 40]
    assert (batch["depth"].amin(), batch["depth"].amax()) == (0, 1)
    expected = batch["id"].float() / 4
    assert torch.allclose(batch["rgb"][:, 0, 0, 0], expected)
    check_splits(data.splits, data.class_names)


def test_nyu_depth_v2_without_void_and_smaller(nyu):
    data = NyuDepthV2(void="excluded", stride=8, root=str(nyu))
    assert (data.num_classes, data.void_class) == (40, None)
    batch = data.splits["val"].__getitems__([0])
    assert batch["rgb"].shape == (1, 3, 60, 80)
    assert sorted(batch["label"].unique().tolist()) == [-1, 6, 39]
    matrix = ConfusionMatrix(40)
    matrix.update(torch.full_like(batch["label"], 6), batch["label"])
    assert matrix.compute()["n"] == int((batch["label"] >= 0).sum())


def test_pixels_predicted_as_void_are_errors_or_dropped_as_released(nyu):
    """Of 480 x 540 pixels with a class, 200 columns are class 7 and 340 are class 40; a third is called void."""
    found = {}
    for void in ("class", "dropped"):
        split = NyuDepthV2(void=void, root=str(nyu)).splits["val"]
        wrapped = WrappedSplit(split)
        for kind in (split, wrapped):
            loader = make_loader(kind, 1, shuffle=False, seed=0, epoch=0)
            assert loader.dataset.drops_void == (void == "dropped")
            metrics = evaluate_signals(called_void, loader, 41, "cpu", Collector(("rgb",)), 0)
            found[void] = {key: metrics[key] for key in ("accuracy", "miou", "weighted_f1", "n")}
    assert found["class"]["accuracy"] == pytest.approx(2 / 3, abs=0.01)
    assert found["dropped"]["accuracy"] == 1
    assert found["dropped"]["miou"] == 1
    assert found["class"]["miou"] == pytest.approx(2 / 3, abs=0.01)
    assert found["class"]["weighted_f1"] == pytest.approx(found["dropped"]["weighted_f1"])


def called_void(batch):
    """Say the right class, but void in every third row."""
    logits = torch.nn.functional.one_hot(batch["label"].clamp_min(0), 41).permute(0, 3, 1, 2).float()
    logits[:, 0, ::3] = 9
    return Signals(logits)


@pytest.mark.skipif(not H5PY, reason="h5py is not installed (extra moekd[datasets])")
def test_nyu_depth_v2_says_what_is_missing(tmp_path):
    import h5py

    with pytest.raises(DataError, match=r"has no .mat file"):
        prepare("nyu_depth_v2", tmp_path, tmp_path / "out")
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file.create_dataset("images", data=nyu_arrays()["images"])
    with pytest.raises(DataError, match=r"no variable depths, labels40 in nyu_depth_v2_labeled\.mat"):
        prepare("nyu_depth_v2", tmp_path, tmp_path / "out")
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 7.3 but broken" * 20)
    with pytest.raises(DataError, match=r"is no MATLAB file of version 7\.3"):
        prepare("nyu_depth_v2", tmp_path, tmp_path / "out")


@pytest.mark.skipif(H5PY, reason="h5py is installed")
def test_nyu_depth_v2_names_the_extra(tmp_path):
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 7.3 MAT-file" * 20)
    with pytest.raises(MissingDependencyError, match="datasets"):
        prepare("nyu_depth_v2", tmp_path, tmp_path / "out")
