"""`vggsound50k` from look-alikes of features by video."""

from __future__ import annotations

import csv
import importlib.util

import numpy as np
import pytest
import torch

from moekd.data import make_loader, prepare
from moekd.data.published_splits import rows_of_group
from moekd.data.vggsound50k import VggSound50k
from moekd.errors import DataError

RNG = np.random.default_rng(0)
H5PY = importlib.util.find_spec("h5py") is not None


@pytest.fixture
def vggsound(tmp_path):
    root = tmp_path / "VGGS50K"
    for folder in ("visual_features", "audio_features"):
        (root / "VGGS50K_features" / folder).mkdir(parents=True)
    (root / "seg_labels").mkdir()
    lines = []
    for row in range(10):
        name, label = f"v{row:011}_10_20_out", row % 3
        lines.append(f"{name}&{label}")
        visual = RNG.normal(row, 1, (10, 7, 7, 512)).astype(np.float32)
        np.save(root / "VGGS50K_features/visual_features" / f"{name}_vFeature.npy", visual)
        np.save(
            root / "VGGS50K_features/audio_features" / f"{name}_aFeature.npy", RNG.random((10, 128), dtype=np.float32)
        )
        np.save(root / "seg_labels" / f"{name}_sLabel.npy", (np.arange(10) < row)[None].astype(np.int64))
    (root / "VGGS50k_metadata.txt").write_text("\n".join(lines) + "\n")
    with open(root / "vggsound-avel50k.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["video_id", "category"], *([f"{r:011}", f"event {r % 3}"] for r in range(10))])
    return root


def test_vggsound50k(vggsound, tmp_path):
    data = VggSound50k(root=str(prepare("vggsound50k", vggsound, tmp_path / "out", progress=False)))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 2, "test": 2}
    assert data.class_names == ["event 0", "event 1", "event 2"]
    batch = next(iter(make_loader(data.splits["train"], 6, shuffle=False)))
    assert batch["visual"].shape == (6, 512, 10, 7, 7)
    assert batch["audio"].shape == (6, 10, 128)
    assert batch["id"].tolist() == rows_of_group(10, 0)["train"].tolist()
    assert batch["label"].tolist() == [int(i) % 3 for i in batch["id"]]
    assert batch["segments"].sum(dim=1).tolist() == batch["id"].tolist()
    everything = torch.cat([split.__getitems__(list(range(len(split))))["visual"] for split in data.splits.values()])
    assert everything.min() == 0
    assert everything.max() == 1
    row = int(batch["id"][0])
    raw = np.load(next((vggsound / "VGGS50K_features/visual_features").glob(f"v{row:011}*")))
    low, high = data.manifest["ranges"]["visual"]
    expected = (torch.from_numpy(raw).permute(3, 0, 1, 2) - low) / (high - low)
    assert (batch["visual"][0] - expected).abs().max() < 2e-3, "half precision"
    assert data.fingerprint() != VggSound50k(group=1, root=str(data.root)).fingerprint()
    assert isinstance(data.splits["train"].arrays["visual"].array, np.memmap)


def test_vggsound50k_says_what_is_missing(vggsound, tmp_path):
    (vggsound / "seg_labels" / "v00000000003_10_20_out_sLabel.npy").unlink()
    with pytest.raises(DataError, match="lacks 1 files, the first: seg_labels/v00000000003"):
        prepare("vggsound50k", vggsound, tmp_path / "out", progress=False)
    np.save(vggsound / "seg_labels" / "v00000000003_10_20_out_sLabel.npy", np.ones((1, 9)))
    with pytest.raises(DataError, match=r"sLabel.npy has shape \(1, 9\), expected \(10,\)"):
        prepare("vggsound50k", vggsound, tmp_path / "out", progress=False)
    metadata = vggsound / "VGGS50k_metadata.txt"
    metadata.write_text(metadata.read_text().replace("&1", "&141"))
    with pytest.raises(DataError, match=r"line 2: expected NAME&CLASS with a class from 0 to 140"):
        prepare("vggsound50k", vggsound, tmp_path / "out", progress=False)
    metadata.unlink()
    with pytest.raises(DataError, match=r"has no VGGS50k_metadata\.txt"):
        prepare("vggsound50k", vggsound, tmp_path / "out", progress=False)
