"""What is shown of a model: the map against NumPy, what queries find by hand, confusions by count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.evaluation import Embedded
from moekd.evaluation.examples import confusions, embedding_map, found_for, principal_map, spread
from moekd.examples import png_of


@given(st.integers(0, 40), st.integers(1, 12))
def test_positions_are_spread_evenly(count: int, most: int):
    found = spread(count, most)
    assert len(found) <= most
    assert found == sorted(set(found))
    assert len(found) == min(count, most)
    assert not found or (found[0] == 0 and (found[-1] == count - 1 or most == 1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.integers(3, 12), st.integers(2, 6))
def test_the_map_is_that_of_the_covariance(seed: int, rows: int, width: int):
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    points, shares = principal_map(values)
    unit = values.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    variances = np.sort(np.linalg.eigvalsh(np.cov(unit.T, bias=True)))[::-1]
    np.testing.assert_allclose(points.double().numpy().var(axis=0), variances[:2], atol=1e-6)
    np.testing.assert_allclose(shares, variances[:2] / variances.sum(), atol=1e-6)
    again, _ = principal_map(values)
    assert torch.equal(points, again)


def test_a_map_of_equal_or_one_dimensional_rows_is_finite():
    for values in (torch.ones(5, 3), torch.randn(5, 1), torch.zeros(4, 2)):
        points, shares = principal_map(values)
        assert points.shape == (len(values), 2)
        assert bool(points.isfinite().all())
        assert len(shares) == 2


def rows(image: torch.Tensor, text: torch.Tensor, groups: list[int], contents: list[int]) -> Embedded:
    ids = torch.arange(len(image)) + 10
    told = {"image": ids, "text": torch.tensor(contents)}
    return Embedded(ids, None, torch.tensor(groups), None, {"image": image, "text": text}, told)


def test_the_map_colours_the_largest_groups():
    said = rows(torch.randn(30, 4), torch.randn(30, 4), [0] * 30, [0] * 30)
    names = ["a"] * 14 + [f"g{i}" for i in range(12)] + ["b"] * 4
    found = embedding_map(said, names)
    assert found is not None
    assert found["groups"][:2] == ["a", "b"]
    assert len(found["groups"]) == 9
    assert found["all_groups"] == 14
    assert found["group"].count(-1) == 5
    assert embedding_map(rows(torch.randn(2, 4), torch.randn(2, 4), [0, 1], [0, 1]), ["a", "b"]) is None


def test_queries_find_what_is_near():
    image = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = found_for(rows(image, text, [0, 0, 1], [5, 5, 6]), queries=9, answers=2)
    assert found is not None
    assert found["modalities"] == ["image", "text"]
    pictures, texts = found["image_to_text"], found["text_to_image"]
    assert [query["row"] for query in pictures] == [0, 1, 2]
    assert [query["row"] for query in texts] == [0, 2], "the caption of row 1 is that of row 0"
    assert [query["rank"] for query in (*pictures, *texts)] == [1] * 5
    assert [(a["row"], a["right"], a["score"]) for a in texts[0]["found"]] == [(0, True, 1.0), (1, True, 0.8)]
    assert [(a["row"], a["right"]) for a in pictures[1]["found"]] == [(0, True), (2, False)]
    assert found_for(Embedded(torch.arange(2), None, torch.arange(2), None, {"image": torch.eye(2)}), 2, 2) is None


def test_confusions_are_counted():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, -1])
    predicted = torch.tensor([1, 1, 0, 2, 1, 0, 2, 0])
    found = confusions(labels, predicted, most=2, pictures=2)
    assert [(f["label"], f["predicted"], f["count"], f["of"]) for f in found] == [(0, 1, 2, 4), (0, 2, 1, 4)]
    assert found[0]["rows"] == [0, 1]
    assert found[0]["like"] == [4, 5], "a right one first"
    assert confusions(labels, labels.clamp_min(0), 3, 3) == []


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 4), (3, 300, 200)])
def test_pictures_come_back_as_they_were(shape: tuple[int, ...]):
    import base64
    import io

    from PIL import Image

    mean, std = [0.5] * shape[0], [0.25] * shape[0]
    pixels = (torch.full(shape, 0.75) - 0.5) / 0.25
    with Image.open(io.BytesIO(base64.b64decode(png_of(pixels, {"mean": mean, "std": std})))) as image:
        assert max(image.size) == 128
        assert image.size[0] / image.size[1] == pytest.approx(shape[2] / shape[1], abs=0.02)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - 191).max() <= 2
