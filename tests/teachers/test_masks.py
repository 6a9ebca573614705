"""The feature attention mask: published sizes and names, an independent transcription, shapes, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekd.errors import ModelError
from moekd.teachers import MASKS, FeatureAttentionMask, Mask

from ..builders import make_mask, randomise

SMALL_VECTORS = [
    (84, 2, 42, 307_147),
    (84, 4, 21 // 3 * 3, 151_810),
    (84, 8, 9, 64_630),
    (120, 2, 60, 885_901),
    (120, 4, 30, 439_351),
    (120, 8, 15, 218_776),
    (160, 2, 78, 2_034_007),
    (160, 4, 39, 1_010_920),
    (160, 8, 18, 465_067),
    (298, 8, 36, 3_213_037),
    (320, 8, 39, 4_012_360),
]
LARGE_VECTORS = [
    (596, 2, 297, 106_030_486),
    (596, 4, 147, 52_391_536),
    (596, 8, 72, 25_639_561),
    (298, 2, 147, 13_185_166),
    (298, 4, 72, 6_436_441),
    (320, 2, 159, 16_434_400),
    (320, 4, 78, 8_036_887),
    (512, 2, 255, 67_238_656),
    (512, 4, 126, 33_158_791),
    (512, 8, 63, 16_563_520),
    (256, 2, 126, 8_353_927),
    (256, 4, 63, 4_161_088),
    (256, 8, 30, 1_977_511),
    (1024, 2, 510, 536_338_951),
    (1024, 4, 255, 267_909_376),
    (1024, 8, 126, 132_313_735),
]
MAPS = [
    (64, 2, 30, 133_351),
    (64, 4, 15, 68_176),
    (64, 8, 6, 29_935),
    (128, 2, 63, 1_074_240),
    (128, 4, 30, 516_903),
    (128, 8, 15, 266_448),
    (512, 2, 255, 67_506_432),
    (512, 4, 126, 33_426_567),
    (512, 8, 63, 16_831_296),
]


class PublishedMask(nn.Module):
    """MaskNet of MST-Distill (arXiv 2507.07015) from its description, with the attention maps computed."""

    def __init__(self, dim: int, factor: int, heads: int, spatial: bool) -> None:
        super().__init__()
        self.dim, self.h = dim, dim // (factor * heads) * heads
        if spatial:
            self.spatial_reduce = nn.Module()
            self.spatial_reduce.downsample = nn.Sequential(
                nn.Conv2d(dim, dim, kernel_size=3, stride=2, padding=1, groups=dim, bias=False),
                nn.Conv2d(dim, dim, kernel_size=1, bias=False),
                nn.BatchNorm2d(dim),
            )
        self.embed = nn.Linear(dim, self.h * dim)
        self.mha = nn.MultiheadAttention(embed_dim=self.h, num_heads=heads, batch_first=True)
        self.fc = nn.Linear(self.h, 1)

    def forward(self, z: Tensor) -> Tensor:
        v = z if z.dim() == 2 else self.spatial_reduce.downsample(z).relu().mean(dim=(2, 3))
        tokens = self.embed(v).reshape(-1, self.dim, self.h)
        attended, _ = self.mha(tokens, tokens, tokens, need_weights=True)
        mask = torch.sigmoid(self.fc(attended)).squeeze(-1)
        return mask if z.dim() == 2 else mask[:, :, None, None].expand_as(z)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("dim", "factor", "hidden", "count"), SMALL_VECTORS + LARGE_VECTORS)
def test_parameters_for_vectors(dim: int, factor: int, hidden: int, count: int) -> None:
    with torch.device("meta"):
        mask = FeatureAttentionMask(dim, hidden_factor=factor)
    assert (mask.hidden, parameters(mask)) == (hidden, count)


@pytest.mark.parametrize(("dim", "factor", "hidden", "count"), MAPS)
def test_parameters_for_maps(dim: int, factor: int, hidden: int, count: int) -> None:
    with torch.device("meta"):
        mask = FeatureAttentionMask(dim, hidden_factor=factor, spatial=True)
    assert (mask.hidden, parameters(mask)) == (hidden, count)


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 90), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_parameters_by_formula(dim: int, factor: int, heads: int, spatial: bool) -> None:
    h = dim // (factor * heads) * heads
    if h == 0:
        return
    with torch.device("meta"):
        mask = FeatureAttentionMask(dim, factor, heads, spatial)
    vector = dim * h * dim + h * dim + 4 * h * h + 4 * h + h + 1
    assert parameters(mask) == vector + (9 * dim + dim * dim + 2 * dim) * spatial


@pytest.mark.parametrize("spatial", [False, True])
def test_published_names(spatial: bool) -> None:
    names = {"embed", "mha.in_proj", "mha.out_proj", "fc"}
    expected = {f"{n}_{p}" if n.endswith("in_proj") else f"{n}.{p}" for n in names for p in ("weight", "bias")}
    if spatial:
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        expected |= {"spatial_reduce.downsample.0.weight", "spatial_reduce.downsample.1.weight"}
        expected |= {f"spatial_reduce.downsample.2.{name}" for name in norm}
    assert set(FeatureAttentionMask(12, spatial=spatial).state_dict()) == expected


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(5, 12), (5, 12, 7, 6), (1, 12), (5, 12, 1, 1)])
def test_equals_the_published_network_with_its_weights(shape: tuple[int, ...], training: bool) -> None:
    spatial = shape[2:] == (7, 6)
    published = randomise(PublishedMask(12, 2, 3, spatial), seed=1).train(training)
    mask = FeatureAttentionMask(12, spatial=spatial).train(training)
    mask.load_state_dict(published.state_dict())
    z = torch.randn(shape)
    expected = published(z) if spatial or len(shape) == 2 else published(z[:, :, 0, 0])[:, :, None, None]
    torch.testing.assert_close(mask(z), expected)
    torch.testing.assert_close(mask.adapt(z), expected * z)
    with torch.inference_mode():
        torch.testing.assert_close(mask(z), expected.detach())


@pytest.mark.parametrize(("shape", "spatial"), [((4, 60), False), ((4, 60, 1, 1), False), ((4, 60, 9, 5), True)])
def test_shape_range_and_start_at_one_half(shape: tuple[int, ...], spatial: bool) -> None:
    values = FeatureAttentionMask(60, spatial=spatial)(torch.randn(shape))
    assert values.shape == shape
    assert ((values > 0) & (values < 1)).all()
    assert abs(values.mean().item() - 0.5) < 0.15
    assert (values - 0.5).abs().max() < 0.3


def test_a_channel_has_one_weight_for_all_positions() -> None:
    values = make_mask(spatial=True)(torch.randn(2, 12, 5, 5))
    assert torch.equal(values, values[:, :, :1, :1].expand_as(values))
    assert values[:, :, 0, 0].std() > 0.01


def test_rows_do_not_meet() -> None:
    mask, z = make_mask(), torch.randn(6, 12)
    torch.testing.assert_close(mask(z)[2:3], mask(z[2:3]))


def test_half_precision_activations_keep_their_type() -> None:
    mask, z = make_mask(), torch.randn(3, 12)
    adapted = mask.adapt(z.bfloat16())
    assert adapted.dtype == torch.bfloat16
    torch.testing.assert_close(adapted.float(), mask.adapt(z), rtol=0.03, atol=0.03)


def test_gradient_reaches_all_weights_and_the_activation() -> None:
    mask, z = make_mask(spatial=True), torch.randn(3, 12, 4, 4, requires_grad=True)
    mask.adapt(z).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mask.parameters())
    assert z.grad.abs().sum() > 0


def test_too_few_features_are_refused() -> None:
    with pytest.raises(ModelError, match=r"hidden_factor \* heads = 6 features, found 5; lower"):
        FeatureAttentionMask(5)
    assert FeatureAttentionMask(6).hidden == 3


@pytest.mark.parametrize("shape", [(2, 11), (12,), (2, 11, 12)])
def test_other_widths_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="mask for 12 features got an activation"):
        FeatureAttentionMask(12)(torch.zeros(shape))


def test_maps_need_a_spatial_mask() -> None:
    with pytest.raises(ModelError, match=r"got maps of shape \(2, 12, 3, 1\); build it with spatial=True"):
        FeatureAttentionMask(12)(torch.zeros(2, 12, 3, 1))


def test_registered() -> None:
    assert MASKS.get("feature_attention") is FeatureAttentionMask
    assert issubclass(FeatureAttentionMask, Mask)
    assert set(MASKS.parameters("feature_attention")) == {"hidden_factor", "heads"}
