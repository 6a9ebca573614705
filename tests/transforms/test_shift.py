"""Random translation against a loop that moves pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import DataError
from moekd.schedules import Progress
from moekd.transforms import TRANSFORMS, RandomShift, shift


def by_loop(maps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Move maps pixel by pixel; what comes from outside is the nearest pixel."""
    moved = torch.empty_like(maps)
    height, width = maps.shape[-2:]
    for b in range(len(maps)):
        down, right = offsets[b].tolist()
        for y in range(height):
            for x in range(width):
                source = min(max(y - down, 0), height - 1), min(max(x - right, 0), width - 1)
                moved[b, :, y, x] = maps[b, :, source[0], source[1]]
    return moved


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (3, 2)])
def test_shift_against_a_loop(size: tuple[int, int]) -> None:
    maps = torch.randn(9, 2, *size)
    offsets = torch.tensor([[a, b] for a in (-2, 0, 2) for b in (-2, 0, 1)])
    assert torch.equal(shift(maps, offsets, 2), by_loop(maps, offsets))


def test_no_offset_changes_nothing() -> None:
    maps = torch.randn(4, 3, 6, 6)
    assert torch.equal(shift(maps, torch.zeros(4, 2, dtype=torch.long), 3), maps)


def test_shift_keeps_gradients() -> None:
    maps = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([[1, -1], [0, 2]])
    assert torch.autograd.gradcheck(lambda m: shift(m, offsets, 2), (maps,))


def batch(rows: int = 64) -> dict[str, torch.Tensor]:
    return {"image": torch.randn(rows, 1, 8, 8), "other": torch.randn(rows, 1, 8, 8), "id": torch.arange(rows)}


def test_named_fields_move_and_others_do_not() -> None:
    given = batch()
    before = {key: value.clone() for key, value in given.items()}
    moved = RandomShift(["image"], pixels=1)(given, Progress())
    assert all(torch.equal(given[key], before[key]) for key in given), "the batch itself stays as it is"
    assert moved["other"] is given["other"]
    assert moved["id"] is given["id"]
    candidates = [
        shift(given["image"], torch.tensor([[a, b]]).expand(64, 2), 1) for a in (-1, 0, 1) for b in (-1, 0, 1)
    ]
    found = [[torch.equal(moved["image"][row], c[row]) for c in candidates] for row in range(64)]
    assert all(any(row) for row in found)
    assert {row.index(True) for row in found} == set(range(9)), "all offsets occur"


def test_fields_draw_their_own_offsets() -> None:
    given = batch()
    given["other"] = given["image"].clone()
    moved = RandomShift(["image", "other"])(given, Progress())
    assert not torch.equal(moved["image"], moved["other"])


def test_offsets_follow_the_generator() -> None:
    given = batch()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(RandomShift(["image"])(given, Progress())["image"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(("field", "found"), [("picture", "no such field"), ("id", r"\(64,\)")])
def test_what_is_no_map_is_refused(field: str, found: str) -> None:
    with pytest.raises(DataError, match=f"images .* in field '{field}', found {found}"):
        RandomShift([field])(batch(), Progress())


def test_it_is_registered() -> None:
    assert TRANSFORMS.get("random_shift") is RandomShift
