"""Masks: small modules that adapt a tapped activation of a teacher.

Shapes: B batch, D features or channels, H x W positions, h hidden size of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..registry import Injected, Registry


class Mask(nn.Module):
    """Adapts a tapped activation to one of the same shape, by default `activation * mask(activation)`."""

    def forward(self, activation: Tensor) -> Tensor:
        """Return the mask, of the activation's shape."""
        raise NotImplementedError

    def adapt(self, activation: Tensor) -> Tensor:
        """Return the adapted activation."""
        return activation * self(activation).to(activation.dtype)


MASKS: Registry[Mask] = Registry("mask", "masks", base=Mask)


@MASKS.register("feature_attention")
class FeatureAttentionMask(Mask):
    """The MaskNet of MST-Distill (arXiv 2507.07015): self-attention over features gives a weight in (0, 1) for each.

    Every feature becomes a token of size `h = floor(dim / (hidden_factor * heads)) * heads`: Linear(dim -> h * dim),
    reshape to `[B, dim, h]`, multi-head self-attention without residual, norm or position code, Linear(h -> 1),
    sigmoid. Maps are first reduced to one vector: depthwise 3x3 convolution of stride 2, 1x1 convolution, batch norm,
    ReLU, global average pool; their mask is one weight a channel. Parameter names are those of the
    released code, so its weights load.

    Args:
        dim: features (vectors) or channels (maps) of the tapped layer.
        hidden_factor: larger is smaller; the embedding has about `dim^3 / hidden_factor` weights.
        heads: attention heads.
        spatial: the tapped layer gives maps `[B, dim, H, W]`.

    Shape:
        input: `[B, dim]`, `[B, dim, 1, 1]`, or with `spatial` `[B, dim, H, W]`; output: the same shape.

    Raises:
        ModelError: `dim` is smaller than `hidden_factor * heads`, or the input has another width.
    """

    def __init__(
        self, dim: Injected[int], hidden_factor: int = 2, heads: int = 3, spatial: Injected[bool] = False
    ) -> None:
        super().__init__()
        hidden = dim // (hidden_factor * heads) * heads
        if hidden < heads:
            raise ModelError(
                f"feature_attention needs at least hidden_factor * heads = {hidden_factor * heads} features, "
                f"found {dim}; lower hidden_factor or heads, or tap a wider layer"
            )
        self.dim, self.hidden, self.spatial = dim, hidden, spatial
        if spatial:
            self.spatial_reduce = SpatialReduce(dim)
        self.embed = nn.Linear(dim, hidden * dim)
        self.mha = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.fc = nn.Linear(hidden, 1)

    def forward(self, activation: Tensor) -> Tensor:
        """Return the weights, expanded to the activation's shape."""
        shape = activation.shape
        if len(shape) < 2 or shape[1] != self.dim:
            raise ModelError(
                f"mask for {self.dim} features got an activation {tuple(shape)}; check the tap it was built for"
            )
        activation = activation.to(self.embed.weight.dtype)
        if self.spatial:
            vector = self.spatial_reduce(activation)
        elif activation.numel() == shape[0] * self.dim:
            vector = activation.reshape(-1, self.dim)
        else:
            raise ModelError(f"mask for vectors got maps of shape {tuple(shape)}; build it with spatial=True")
        tokens = self.embed(vector).unflatten(1, (self.dim, self.hidden))
        attended, _ = self.mha(tokens, tokens, tokens, need_weights=False)
        mask = torch.sigmoid(self.fc(attended).squeeze(-1))
        return mask.reshape(shape[0], self.dim, *[1] * (len(shape) - 2)).expand(shape)


class SpatialReduce(nn.Module):
    """Maps `[B, D, H, W]` to vectors `[B, D]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim, bias=False),
            nn.Conv2d(dim, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return one vector a map."""
        return self.downsample(maps).flatten(1)
