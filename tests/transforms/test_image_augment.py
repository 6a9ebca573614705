"""Crops, flips and colours: what they do to pixels, and that a view can be made again."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as reference

from moekd.errors import DataError
from moekd.schedules import Progress
from moekd.transforms import TRANSFORMS, ImageAugment
from moekd.transforms.augmentation import Crop, cut, draw_crop, luma, recolour

COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "grey": 0.2}


def batch(rows: int = 32, size: int = 12) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"image": torch.rand(rows, 3, size, size), "id": torch.arange(100, 100 + rows), "label": torch.arange(rows)}


def crop(top: float, left: float, height: float, width: float, mirrored: bool = False) -> Crop:
    return Crop(*(torch.tensor([value]) for value in (top, left, height, width)), torch.tensor([mirrored]))


def test_a_view_can_be_made_again_whatever_else_is_in_the_batch():
    transform, given = ImageAugment(views=4, **COLOURS), batch()
    seen = transform(given, Progress(epoch=3))
    assert torch.equal(seen["view"], transform.view_of(given["id"], 3))
    rows = torch.tensor([7, 30, 2])
    part = {key: value[rows] for key, value in given.items()}
    again = ImageAugment(views=4, **COLOURS).replay(part, seen["view"][rows])
    assert torch.allclose(again["image"], seen["image"][rows], atol=1e-6)
    assert not torch.allclose(seen["image"], given["image"], atol=0.1)


def test_views_are_k_results_and_all_of_them_occur():
    transform, given = ImageAugment(views=3), batch(64, 6)
    drawn = torch.stack([transform.view_of(given["id"], epoch) for epoch in range(40)])
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn.flatten(), minlength=3)
    assert len(counts) == 3
    assert (counts - 64 * 40 / 3).abs().max() < 120
    assert drawn.unique(dim=1).shape[1] == 64, "samples draw for themselves"
    results = [transform(given, Progress(epoch=epoch))["image"][0] for epoch in range(20)]
    views = drawn[:20, 0].tolist()
    for first in range(20):
        for second in range(first):
            assert torch.equal(results[first], results[second]) == (views[first] == views[second])


def test_without_views_every_epoch_is_new_and_the_batch_has_no_view():
    transform, given = ImageAugment(), batch()
    first, second = (transform(given, Progress(epoch=epoch)) for epoch in (0, 1))
    assert "view" not in first
    assert all(not torch.equal(a, b) for a, b in zip(first["image"], second["image"], strict=True))
    assert torch.equal(transform(given, Progress(epoch=1))["image"], second["image"])
    assert not torch.equal(ImageAugment(seed=1)(given, Progress())["image"], first["image"])


def test_global_generators_play_no_part():
    given = batch()
    state = torch.get_rng_state()
    first = ImageAugment(**COLOURS)(given, Progress())["image"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(ImageAugment(**COLOURS)(given, Progress())["image"], first)


def test_a_box_of_whole_pixels_is_the_resized_crop():
    maps = torch.rand(1, 3, 16, 16)
    seen = cut(maps, crop(4, 2, 8, 12))
    expected = reference.resized_crop(maps, 4, 2, 8, 12, [16, 16], antialias=False)
    inner = slice(2, -2)  # at the border the reference repeats the box's last pixel, here the picture goes on
    assert torch.allclose(seen[..., inner, inner], expected[..., inner, inner], atol=1e-5)
    assert torch.allclose(cut(maps, crop(4, 2, 8, 12, True)), seen.flip(-1), atol=1e-5)
    assert torch.allclose(cut(maps, crop(0, 0, 16, 16)), maps, atol=1e-5)


def test_boxes_lie_in_the_picture_and_in_the_ranges():
    drawn = torch.rand(500, 5)
    box = draw_crop(drawn, (20, 30), (0.25, 0.75), (0.8, 1.25), 0.3)
    assert box.top.min() >= 0
    assert (box.top + box.height).max() <= 20 + 1e-4
    assert (box.left + box.width).max() <= 30 + 1e-4
    share, ratio = box.height * box.width / 600, box.width / box.height
    assert 0.249 < share.min() < 0.3 < 0.7 < share.max() < 0.751
    assert 0.799 < ratio.min() < 0.85 < 1.2 < ratio.max() < 1.251
    assert torch.equal(box.mirrored, drawn[:, 4] < 0.3)


def test_colours_are_those_of_torchvision():
    pictures, drawn = torch.rand(5, 3, 7, 7), torch.rand(5, 4)
    changed = recolour(pictures, drawn, (0.4, 0.3, 0.8), 0.0)
    for row in range(5):
        factors = [1 - s + 2 * s * d for s, d in zip((0.4, 0.3, 0.8), drawn[row, :3].tolist(), strict=True)]
        expected = pictures[row]
        for change, factor in zip(("brightness", "contrast", "saturation"), factors, strict=True):
            expected = getattr(reference, f"adjust_{change}")(expected, factor)
        assert torch.allclose(changed[row], expected, atol=2e-3)
    grey = recolour(pictures, drawn, (0, 0, 0), 1.0)
    assert torch.allclose(grey, luma(pictures).expand(-1, 3, -1, -1))


def test_normalisation_is_undone_for_colours():
    given, info = batch(), {"image": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
    mean, std = (torch.tensor(info["image"][key]).view(3, 1, 1) for key in ("mean", "std"))
    plain = ImageAugment(scale=(1, 1), ratio=(1, 1), **COLOURS)(given, Progress())["image"]
    scaled = given | {"image": (given["image"] - mean) / std}
    seen = ImageAugment(scale=(1, 1), ratio=(1, 1), **COLOURS, field_info=info)(scaled, Progress())["image"]
    assert torch.allclose(seen * std + mean, plain, atol=1e-5)
    assert not torch.allclose(plain, given["image"], atol=0.05)


def test_flip_alone_moves_whole_pixels():
    given = batch(64)
    seen = ImageAugment(scale=(1, 1), ratio=(1, 1))(given, Progress())["image"]
    same = [torch.equal(a, b) for a, b in zip(seen, given["image"], strict=True)]
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(seen, given["image"], strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 16 < sum(turned) < 48
    assert ImageAugment(scale=(1, 1), ratio=(1, 1), flip=0)(given, Progress())["image"] is given["image"]


def test_fields_and_dense_labels_of_a_sample_move_together():
    given = batch(8, 16)
    labels = (given["image"].mean(dim=1) * 5).long()
    given |= {"depth": labels[:, None].float(), "label": labels}
    transform = ImageAugment(fields=["image", "depth"], scale=(0.3, 0.6), **COLOURS)
    seen = transform(given, Progress())
    assert seen["label"].dtype == torch.int64
    assert seen["label"].shape == (8, 16, 16)
    assert set(seen["label"].unique().tolist()) <= set(labels.unique().tolist())
    assert torch.allclose(seen["depth"][:, 0].round(), seen["label"].float(), atol=2)
    drawn_shift = (seen["depth"][:, 0] - seen["label"].float()).abs().mean()
    assert drawn_shift < 0.5 * (seen["depth"][:, 0] - labels.float()).abs().mean()


def test_half_precision_stays_and_the_batch_is_not_changed():
    given = batch()
    given["image"] = given["image"].to(torch.bfloat16)
    before = given["image"].clone()
    seen = ImageAugment(**COLOURS)(given, Progress())
    assert seen["image"].dtype == torch.bfloat16
    assert torch.equal(given["image"], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale: expected"),
        ({"scale": (0.9, 0.5)}, "scale: expected"),
        ({"scale": (0.5, 2.0)}, "up to 1"),
        ({"ratio": (2.0, 1.0)}, "ratio: expected"),
        ({"views": 0}, "at least 1"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        ImageAugment(**options)


def test_what_is_no_picture_is_refused():
    with pytest.raises(DataError, match="field 'photo', found no such field"):
        ImageAugment(["photo"])(batch(), Progress())
    with pytest.raises(DataError, match=r"field 'id', found \(32,\)"):
        ImageAugment(["id"])(batch(), Progress())


def test_transforms_with_other_views_do_not_mix():
    seen = ImageAugment(views=4)(batch(), Progress(epoch=1))
    ImageAugment(views=4)(seen, Progress(epoch=1))
    with pytest.raises(DataError, match="same views and seed"):
        ImageAugment(views=5)(seen, Progress(epoch=1))


def test_identity_names_what_pixels_depend_on():
    assert ImageAugment(views=2).identity() == ImageAugment(views=8).identity()
    assert ImageAugment(seed=1).identity() != ImageAugment().identity()
    assert TRANSFORMS.get("image_augment") is ImageAugment
