"""The factorised mask: a transcription with loops, start, cost, shapes, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moekd.errors import ModelError
from moekd.teachers import MASKS, FactorisedAttentionMask, FeatureAttentionMask

from ..builders import randomise


@torch.no_grad()
def test_equals_loops_over_features() -> None:
    mask = randomise(FactorisedAttentionMask(7, rank=3), seed=2, scale=0.7).double()
    z = torch.randn(4, 7, dtype=torch.float64)
    expected = torch.empty_like(z)
    for b in range(4):
        summaries = []
        for r in range(3):
            scores = [float(mask.key_weight[r, j] * z[b, j] + mask.key_bias[r, j]) for j in range(7)]
            total = sum(map(math.exp, scores))
            summaries.append(sum(math.exp(score) / total * float(z[b, j]) for j, score in enumerate(scores)))
        hidden = nn.functional.gelu(mask.mix(torch.tensor(summaries, dtype=torch.float64)))
        for i in range(7):
            logit = sum(float(mask.read[r, i] * hidden[r]) for r in range(3))
            expected[b, i] = 1 / (1 + math.exp(-logit - float(mask.own[i] * z[b, i] + mask.bias[i])))
    torch.testing.assert_close(mask(z), expected)
    torch.testing.assert_close(mask(z[:, :, None, None])[:, :, 0, 0], expected)


@pytest.mark.parametrize("start", [0.5, 0.9])
def test_starts_as_one_weight_and_learns_from_there(start: float) -> None:
    torch.manual_seed(0)
    mask, z = FactorisedAttentionMask(12, rank=4, start=start), torch.randn(64, 12)
    torch.testing.assert_close(mask(z), torch.full_like(z, start))
    wanted = torch.sigmoid(6 * z.mean(dim=1, keepdim=True) + z)
    optimizer = torch.optim.Adam(mask.parameters(), lr=0.05)
    losses: list[float] = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = (mask(z) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad.abs().sum() > 0 for parameter in mask.parameters())


def test_a_feature_is_weighed_by_the_others() -> None:
    mask, z = randomise(FactorisedAttentionMask(9, rank=4), seed=1, scale=0.8), torch.randn(1, 9)
    moved = z.clone()
    moved[0, 3] += 2
    assert ((mask(z) - mask(moved)).abs() > 1e-6).all()


def test_costs_rank_times_width() -> None:
    def count(dim: int, rank: int = 16) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in FactorisedAttentionMask(dim, rank).parameters())

    assert count(596) == (3 * 16 + 2) * 596 + 16 * 16 + 16
    with torch.device("meta"):
        assert sum(p.numel() for p in FeatureAttentionMask(596).parameters()) > 3000 * count(596)


def test_maps_get_one_weight_a_channel() -> None:
    mask, z = randomise(FactorisedAttentionMask(6, rank=2, spatial=True), seed=1, scale=0.8), torch.randn(3, 6, 4, 5)
    weights = mask(z)
    assert weights.shape == z.shape
    assert torch.equal(weights, weights[:, :, :1, :1].expand_as(z))
    flat = FactorisedAttentionMask(6, rank=2)
    flat.load_state_dict(mask.state_dict())
    torch.testing.assert_close(weights[:, :, 0, 0], flat(z.mean((2, 3))))
    torch.testing.assert_close(mask(z)[1:2], mask(z[1:2]))


def test_mistakes_are_named() -> None:
    with pytest.raises(ModelError, match="rank >= 1 and 0 < start < 1, found 0 and"):
        FactorisedAttentionMask(6, rank=0)
    with pytest.raises(ModelError, match="found 16 and 1"):
        FactorisedAttentionMask(6, start=1)
    with pytest.raises(ModelError, match="mask for 6 features got an activation"):
        FactorisedAttentionMask(6)(torch.zeros(2, 5))
    with pytest.raises(ModelError, match="build it with spatial=True"):
        FactorisedAttentionMask(6)(torch.zeros(2, 6, 3, 1))


def test_registered_and_its_settings_are_printed() -> None:
    assert MASKS.get("factorised_attention") is FactorisedAttentionMask
    assert set(MASKS.parameters("factorised_attention")) == {"rank", "start"}
    assert "rank=5, start=0.9" in repr(FactorisedAttentionMask(6, rank=5))
