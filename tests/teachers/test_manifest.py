"""The manifest of the teachers: what it says, and that other teachers are noticed."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from moekd.errors import CheckpointError
from moekd.networks import TextOptions, TwoTower, VitEncoder
from moekd.teachers import Teacher, TeacherPool, check_same, describe_teachers, differences

from ..builders import make_batch, make_pool

IMAGE = {"modality": "image", "shape": (3, 16, 16), "dtype": "float32", "mean": [0.5] * 3, "std": [0.25] * 3}
BYTES = {"modality": "text", "shape": (20,), "dtype": "int64", "tokenizer": {"bytes": True, "lower": False}}
CONFIG = {"teachers": {"clip": {"kind": "two_tower", "model": None, "revision": "a" * 40, "inputs": ["image", "text"]}}}


def clip_pool(seed: int = 0, context: int = 24) -> TeacherPool:
    torch.manual_seed(seed)
    tower = VitEncoder(image_size=16, patch_size=8, width=8, layers=1, heads=2)
    text = TextOptions(context=context, width=8, layers=1, heads=2)
    network = TwoTower(3, tower=tower, text=text, classifier="new", fields={"image": IMAGE, "text": BYTES})
    return TeacherPool({"clip": Teacher(network, ["image", "text"], name="clip")})


def sample() -> dict[str, torch.Tensor]:
    return {"image": torch.zeros(2, 3, 16, 16), "text": torch.ones(2, 20, dtype=torch.int64)}


def test_it_says_what_a_teacher_is_and_sees() -> None:
    pool = clip_pool()
    (row,) = describe_teachers(pool, CONFIG, sample())
    assert json.loads(json.dumps(row)) == row
    assert (row["name"], row["kind"], row["revision"]) == ("clip", "two_tower", "a" * 40)
    assert row["embeddings"] == {"image": 8, "text": 8}
    assert row["classes"] == 3
    assert row["logit_scale"] == pytest.approx(1 / 0.07, abs=1e-3)
    assert row["logit_bias"] is None
    assert row["fingerprint"] == pool.teacher("clip").fingerprint()
    image, text = row["prepares"]["image"], row["prepares"]["text"]
    assert image["size"] == [16, 16]
    assert image["mean"] == [0.5] * 3
    assert image["undo_std"] == [0.25] * 3
    assert (image["interpolation"], image["resize"]) == ("bicubic", "none")
    assert text["context"] == 24
    assert len(text["tokens"]) == 64


def test_the_same_teachers_are_the_same() -> None:
    first = describe_teachers(clip_pool(), CONFIG, sample())
    moved = copy.deepcopy(CONFIG)
    moved["teachers"]["clip"]["weights"] = "elsewhere.safetensors"
    again = describe_teachers(clip_pool(), moved)
    assert differences(first, again) == []
    check_same(json.loads(json.dumps(first)), again, "runs/a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, r"runs/a was begun with other teachers: teachers.clip.fingerprint: [0-9a-f]{64} then"),
        ({"context": 30}, r"teachers.clip.prepares: "),
    ],
)
def test_another_teacher_is_refused(change, words) -> None:
    before = describe_teachers(clip_pool(), CONFIG, sample())
    with pytest.raises(CheckpointError, match=words):
        check_same(before, describe_teachers(clip_pool(**change), CONFIG, sample()), "runs/a")


def test_other_names_and_another_order_are_refused() -> None:
    pool = make_pool("vectors", "fusion", masked=False)
    rows = describe_teachers(pool, {}, make_batch(3))
    assert [row["kind"] for row in rows] == ["Vectors", "Fusion"]
    assert [row["classes"] for row in rows] == [4, 4]
    assert rows[0]["prepares"] == {}
    assert differences(rows, rows[::-1]) == ["teachers: vectors, fusion then, fusion, vectors now"]
    assert differences(rows, []) == ["teachers: vectors, fusion then, none now"]
