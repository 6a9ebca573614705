"""Masks: small modules that adapt a tapped activation of a teacher.

Shapes: B batch, D features or channels, H x W positions, h hidden size of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..registry import Injected, Registry
from ..signals import full_precision
from .scalar_attention import scalar_attention
from .token_projection import project_tokens


class Mask(nn.Module):
    """Adapts a tapped activation to one of the same shape, by default `activation * mask(activation)`."""

    def forward(self, activation: Tensor) -> Tensor:
        """Return the mask, of the activation's shape."""
        raise NotImplementedError

    def adapt(self, activation: Tensor) -> Tensor:
        """Return the adapted activation."""
        return activation * self(activation).to(activation.dtype)


class ChannelMask(Mask):
    """Multiplies every feature or channel with a positive weight of its own, the same at all positions.

    Attributes:
        summary: name of what the weights depend on where they do not read the whole map, such as its mean; "": they do.
    """

    summary: str = ""

    def summarise(self, activation: Tensor) -> Tensor:
        """Return what `weights` takes in place of the activation, where there is a `summary`."""
        raise NotImplementedError

    def weights(self, activation: Tensor) -> Tensor:
        """Return the weights `[B, D]`, above 0, of features `[B, D]` or maps `[B, D, ...]`."""
        raise NotImplementedError

    def forward(self, activation: Tensor, later: Tensor | None = None) -> Tensor:
        """Return the weights, expanded to the shape of the activation or of a later one."""
        weights_BD, like = self.weights(activation), activation if later is None else later
        return weights_BD.reshape(*weights_BD.shape, *[1] * (like.dim() - 2)).expand(like.shape)

    def adapt_later(self, activation: Tensor, later: Tensor) -> Tensor:
        """Return the adapted activation of a later layer, `[B, D, ...]`, with the weights of an earlier one.

        Args:
            activation: at the tap of the mask, or its summary.
            later: what layers made of it through which positive weights pass, see `later_tap`.
        """
        return later * self(activation, later).to(later.dtype)


MASKS: Registry[Mask] = Registry("mask", "masks", base=Mask)


@MASKS.register("feature_attention")
class FeatureAttentionMask(ChannelMask):
    """The MaskNet of MST-Distill (arXiv 2507.07015): self-attention over features gives a weight in (0, 1) for each.

    Every feature becomes a token of size `h = floor(dim / (hidden_factor * heads)) * heads`: Linear(dim -> h * dim),
    reshape to `[B, dim, h]`, multi-head self-attention without residual, norm or position code, Linear(h -> 1),
    sigmoid. Maps are first reduced to one vector: depthwise 3x3 convolution of stride 2, 1x1 convolution, batch norm,
    ReLU, global average pool; their mask is one weight a channel. Parameter names are those of the
    released code, so its weights load.

    Only one number of an attended token is read, so attention carries one number a token and head: `Linear(h -> 1)`,
    output projection and value projection are multiplied first (see `scalar_attention`). The function and its gradients
    are the published ones to rounding. With `h = dim / 2` a batch costs `9 B dim^3` operations, forward and backward,
    where the plain way costs `15 B dim^3`, and no attention map stays in memory.

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

    def weights(self, activation: Tensor) -> Tensor:
        """Return the weights `[B, dim]`, in (0, 1)."""
        check_width(activation, self.dim)
        vectors = as_vector(activation.to(self.embed.weight.dtype), self.spatial_reduce if self.spatial else None)
        return torch.sigmoid(self._attend(vectors))

    def _attend(self, vectors_BD: Tensor) -> Tensor:
        """Return `Linear(attention(tokens))`, `[B, D]`."""
        hidden, heads = self.hidden, self.mha.num_heads
        weight, bias = self.mha.in_proj_weight, self.mha.in_proj_bias
        scale = (hidden // heads) ** -0.5
        reads_h = (self.fc.weight @ self.mha.out_proj.weight)[0]
        values_Hh = (reads_h[:, None] * weight[2 * hidden :]).unflatten(0, (heads, -1)).sum(1)
        constant = reads_h @ bias[2 * hidden :] + self.fc.weight @ self.mha.out_proj.bias + self.fc.bias
        queries_keys, values_HBD = project_tokens(
            vectors_BD,
            self.embed,
            torch.cat([weight[:hidden] * scale, weight[hidden : 2 * hidden], values_Hh]),
            torch.cat([bias[:hidden] * scale, bias[hidden : 2 * hidden], bias.new_zeros(heads)]),
            heads,
        )
        attended_HBD = scalar_attention(queries_keys, full_precision(values_HBD))
        return attended_HBD.sum(0) + constant


def check_width(activation: Tensor, dim: int) -> None:
    """Refuse activations that are not `[B, dim, ...]`.

    Raises:
        ModelError: the activation has another width.
    """
    if activation.dim() < 2 or activation.shape[1] != dim:
        raise ModelError(
            f"mask for {dim} features got an activation {tuple(activation.shape)}; check the tap it was built for"
        )


def as_vector(activation: Tensor, reduce: nn.Module | None) -> Tensor:
    """Return vectors `[B, D]` of vectors, of maps of one pixel, or of maps that a module reduces.

    Raises:
        ModelError: maps without a module that reduces them.
    """
    if reduce is not None:
        reduced: Tensor = reduce(activation)
        return reduced
    if activation.dim() > 2 and activation.shape[2:].numel() != 1:
        raise ModelError(f"mask for vectors got maps of shape {tuple(activation.shape)}; build it with spatial=True")
    return activation.flatten(1)


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
