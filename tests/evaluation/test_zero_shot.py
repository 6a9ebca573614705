"""Zero-shot classification: prompt ensembles and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from moekd.errors import DataError
from moekd.evaluation import class_vectors, prompts, zero_shot_logits

VECTORS = {
    "a cat.": [3.0, 0.0],
    "the cat.": [0.0, 0.5],
    "a dog.": [-1.0, 0.0],
    "the dog.": [-2.0, 0.0],
    "hound": [0.0, -4.0],
}


def encode(texts: list[str]) -> Tensor:
    return torch.tensor([VECTORS[text] for text in texts])


def test_prompts_put_the_name_into_each_template() -> None:
    assert prompts(["cat", "dog"], ["a {}.", "the {}."]) == [["a cat.", "the cat."], ["a dog.", "the dog."]]


@pytest.mark.parametrize("chunk", [1, 2, 256])
def test_mean_of_normalised_prompts_is_normalised_again(chunk: int) -> None:
    found = class_vectors(encode, [["a cat.", "the cat."], ["a dog.", "the dog.", "hound"]], chunk)
    dog = np.array([-2.0, -1.0]) / np.sqrt(5)
    np.testing.assert_allclose(found.numpy(), [[0.5**0.5, 0.5**0.5], dog], atol=1e-6)


def test_scores_are_scaled_cosines() -> None:
    images, classes = torch.randn(5, 3) * 7, torch.randn(4, 3) * 0.1
    logits = zero_shot_logits(images, classes, 50.0)
    a, b = images.numpy(), classes.numpy()
    for i in range(5):
        for c in range(4):
            cosine = a[i] @ b[c] / (np.linalg.norm(a[i]) * np.linalg.norm(b[c]))
            assert logits[i, c].item() == pytest.approx(50 * cosine, abs=1e-4)


def test_the_text_tower_gets_no_gradient() -> None:
    tower = torch.nn.Embedding(5, 3)
    found = class_vectors(lambda texts: tower(torch.arange(len(texts))), [["x", "y"], ["z"]])
    assert not found.requires_grad


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"no place '\{\}'"):
        prompts(["cat"], ["a cat"])
    with pytest.raises(DataError, match="found 0 and 1"):
        prompts([], ["{}"])
    with pytest.raises(DataError, match="class 1 has none"):
        class_vectors(encode, [["hound"], []])
    with pytest.raises(DataError, match=r"gave \(1, 2\) for 2 texts"):
        class_vectors(lambda texts: torch.ones(1, 2), [["a", "b"]])
    with pytest.raises(DataError, match="come from one model"):
        zero_shot_logits(torch.ones(2, 3), torch.ones(2, 4))
