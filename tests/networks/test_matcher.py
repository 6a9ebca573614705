"""The cross-encoder: shapes, pairs on their own, its start as a dual encoder, and how its retrieval is measured."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError, ModelError
from moekd.evaluation import retrieval
from moekd.evaluation.retrieval import all_pairs
from moekd.networks import CnnEncoder, Matcher, MlpEncoder


def matcher(**options) -> Matcher:
    torch.manual_seed(0)
    network = Matcher(CnnEncoder(channels=[4, 8]), MlpEncoder(6, hidden=[8]), width=5, **options).eval()
    torch.nn.init.normal_(network.score.weight)
    return network


def test_shapes_and_the_score_of_each_own_pair() -> None:
    network = matcher()
    said = network(torch.randn(3, 3, 16, 16), torch.randn(3, 6))
    assert {name: tuple(value.shape) for name, value in said["embeddings"].items()} == {"image": (3, 5), "text": (3, 5)}
    own = network.match(said["embeddings"]["image"], said["embeddings"]["text"])
    torch.testing.assert_close(said["match"], own)
    one = network.match(said["embeddings"]["image"][1:2], said["embeddings"]["text"][1:2])
    torch.testing.assert_close(one, own[1:2])


def test_it_starts_as_a_dual_encoder() -> None:
    network = Matcher(CnnEncoder(channels=[4]), MlpEncoder(6, hidden=[8]), width=5)
    u, v = torch.randn(4, 5), torch.randn(4, 5)
    torch.testing.assert_close(network.match(u, v), 10 * torch.cosine_similarity(u, v))


def test_the_length_of_features_does_not_count() -> None:
    network = matcher()
    u, v = torch.randn(4, 5), torch.randn(4, 5)
    torch.testing.assert_close(network.match(3 * u, v / 2), network.match(u, v))


@pytest.mark.parametrize("pairs", [1, 7, 1000])
def test_all_pairs_are_scored_in_parts(pairs: int) -> None:
    network = matcher()
    images, texts = torch.randn(5, 5), torch.randn(3, 5)
    found = all_pairs(network.match, images, texts, pairs)
    expected = torch.stack([torch.cat([network.match(i[None], t[None]) for t in texts]) for i in images])
    torch.testing.assert_close(found, expected)


def test_retrieval_by_a_scorer() -> None:
    """A scorer that prefers what the cosine does not."""
    images, texts = torch.eye(3), torch.eye(3).roll(1, dims=0)

    def prefer_unlike(image, text):
        return -(image * text).sum(dim=1) - (image * text.roll(1, dims=1)).sum(dim=1)

    scores = all_pairs(prefer_unlike, images, texts)
    best = scores.argmax(dim=1)
    own = torch.empty(3, dtype=torch.int64)
    own[best] = torch.arange(3)
    found = retrieval(images, texts, own, ks=[1], scorer=prefer_unlike)
    assert found["image_to_text_r1"] == 1.0
    assert found["text_to_image_r1"] == 1.0
    assert retrieval(images, texts, own, ks=[1])["image_to_text_r1"] < 1.0


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="width"):
        Matcher(CnnEncoder(channels=[4]), MlpEncoder(6, hidden=[8]), width=0)
    with pytest.raises(ModelError, match=r"matcher\.match text"):
        matcher().match(torch.randn(2, 5), torch.randn(2, 4))
