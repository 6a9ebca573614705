"""Retrieval: recall and ranks against a plain loop, ties, several captions, chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moekd.errors import DataError
from moekd.evaluation import retrieval


def loop_ranks(queries: np.ndarray, candidates: np.ndarray, matches: np.ndarray) -> list[int]:
    """Rank of each query's best match, ties against it, in plain numpy; queries without a match are left out."""
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    candidates = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    ranks = []
    for query, own in zip(queries, matches, strict=True):
        if own.any():
            scores = candidates @ query
            best = scores[own].max()
            ranks.append(1 + int((scores[~own] >= best - 1e-6).sum()))
    return ranks


def reference(images: Tensor, texts: Tensor, owner: Tensor, ks: tuple[int, ...]) -> dict[str, float]:
    matches = owner.numpy()[None, :] == np.arange(len(images))[:, None]
    a, b = images.double().numpy(), texts.double().numpy()
    found = {}
    for name, ranks in (
        ("image_to_text", loop_ranks(a, b, matches)),
        ("text_to_image", loop_ranks(b, a, matches.T)),
    ):
        found |= {f"{name}_r{k}": float(np.mean([rank <= k for rank in ranks])) for k in ks}
        found[f"{name}_median_rank"] = float(sorted(ranks)[(len(ranks) - 1) // 2])
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 7), st.integers(0, 10_000))
def test_equals_a_loop_for_any_chunk(images: int, texts: int, chunk: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    # Small whole numbers make exact ties likely.
    image = torch.randint(-1, 2, (images, 3), generator=rng).float() + torch.tensor([0.0, 0.0, 2.0])
    text = torch.randint(-1, 2, (texts, 3), generator=rng).float() + torch.tensor([0.0, 0.0, 2.0])
    owner = torch.randint(0, images, (texts,), generator=rng)
    found = retrieval(image, text, owner, ks=(1, 2, 5), chunk=chunk)
    assert found == pytest.approx(reference(image, text, owner, (1, 2, 5)))


def test_a_known_case() -> None:
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.9, 0.0], [0.0, 0.0, 5.0]])
    found = retrieval(images, texts, ks=(1, 2))
    # Text 1 lies nearer to image 0 than to its own; image 1 still finds it before the other texts.
    assert found["text_to_image_r1"] == pytest.approx(2 / 3)
    assert found["text_to_image_r2"] == 1.0
    assert found["image_to_text_r1"] == 1.0
    assert found["text_to_image_median_rank"] == 1.0


def test_one_of_several_captions_is_enough() -> None:
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.0], [0.1, 1.0], [0.0, 1.0]])
    found = retrieval(images, texts, torch.tensor([0, 0, 1]), ks=(1,))
    assert found["image_to_text_r1"] == 1.0
    assert found["text_to_image_r1"] == pytest.approx(2 / 3)


def test_one_embedding_for_everything_finds_nothing() -> None:
    found = retrieval(torch.ones(11, 4), torch.ones(11, 4))
    assert [found[f"{way}_r{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)] == [0.0] * 6
    assert found["image_to_text_median_rank"] == 11.0


def test_length_does_not_matter_and_perfect_is_one() -> None:
    vectors = torch.randn(40, 8)
    found = retrieval(vectors * 100, vectors * 1e-3, chunk=7)
    assert all(value == 1.0 for value in found.values())


def test_images_without_a_text_are_candidates_but_no_queries() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 0.01]])
    found = retrieval(images, torch.tensor([[1.0, 0.02]]), torch.tensor([0]), ks=(1,))
    assert found["image_to_text_r1"] == 1.0
    assert found["text_to_image_r1"] == 0.0


@pytest.mark.parametrize(
    ("images", "texts", "owner", "options", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), None, {}, "same width"),
        (torch.ones(2, 3), torch.ones(0, 3), None, {}, "at least one image and one text"),
        (torch.ones(2, 3), torch.ones(3, 3), None, {}, "indices 0 to 2, but there are 2 images"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0]), {}, "one image index for each of 2 texts"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0]), {}, "one image index"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), None, {}, "not finite"),
        (torch.ones(2, 3), torch.ones(2, 3), None, {"chunk": 0}, "chunk >= 1"),
        (torch.ones(2, 3), torch.ones(2, 3), None, {"ks": ()}, "ks >= 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    images: Tensor, texts: Tensor, owner: Tensor | None, options: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        retrieval(images, texts, owner, **options)
