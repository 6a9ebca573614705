"""A mask that costs as much as a thin layer.

Shapes: B batch, D features or channels, H x W positions, R summaries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..registry import Injected
from .masks import MASKS, ChannelMask, as_vector, check_width


@MASKS.register("factorised_attention")
class FactorisedAttentionMask(ChannelMask):
    """Low-rank attention over features gives a weight in (0, 1) for each; this kind is ours, not a published one.

    Like `feature_attention` it weighs a feature by its interactions with all others, but these pass through `rank`
    summaries instead of an attention map of all pairs:

        s_r = sum_j softmax_j(a_rj z_j + b_rj) z_j      each summary attends to the features
        m_i = sigmoid(sum_r u_ir gelu(V s)_r + d_i z_i + c_i)      each feature reads the summaries

    It has `(3 rank + 2) dim + rank^2 + rank` weights and costs `O(rank * dim)` operations a sample, where
    `feature_attention` has about `dim^3 / hidden_factor` of both. Maps are averaged over their positions first; their
    mask is one weight a channel. All weights start at `start`, whatever the input: `u` and `d` begin at zero.

    Args:
        dim: features (vectors) or channels (maps) of the tapped layer.
        rank: number of summaries.
        start: the weight of every feature before training; near 1, a specialised teacher begins as the plain one.
        spatial: the tapped layer gives maps `[B, dim, H, W]`.

    Shape:
        input: `[B, dim]`, `[B, dim, 1, 1]`, or with `spatial` `[B, dim, H, W]`; output: the same shape.

    Raises:
        ModelError: `rank` or `start` is out of range, or the input has another width.
    """

    def __init__(self, dim: Injected[int], rank: int = 16, start: float = 0.9, spatial: Injected[bool] = False) -> None:
        super().__init__()
        if rank < 1 or not 0 < start < 1:
            raise ModelError(f"factorised_attention needs rank >= 1 and 0 < start < 1, found {rank} and {start}")
        self.dim, self.rank, self.start, self.spatial = dim, rank, start, spatial
        self.summary = "mean" if spatial else ""
        self.key_weight = nn.Parameter(torch.randn(rank, dim) * 0.1)
        self.key_bias = nn.Parameter(torch.randn(rank, dim))
        self.mix = nn.Linear(rank, rank)
        self.read = nn.Parameter(torch.zeros(rank, dim))
        self.own = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.full((dim,), math.log(start / (1 - start))))

    def extra_repr(self) -> str:
        """Return the settings, which are part of a variant's fingerprint."""
        return f"dim={self.dim}, rank={self.rank}, start={self.start}, spatial={self.spatial}"

    def summarise(self, activation: Tensor) -> Tensor:
        """Return the mean over positions `[B, dim]`; vectors are their own."""
        check_width(activation, self.dim)
        maps = self.spatial and activation.dim() > 2
        return as_vector(activation.to(self.bias.dtype), _AVERAGE if maps else None)

    def weights(self, activation: Tensor) -> Tensor:
        """Return the weights `[B, dim]`, in (0, 1), of an activation or its summary."""
        z = self.summarise(activation)
        scores = torch.addcmul(self.key_bias, z[:, None], self.key_weight)
        summaries = (torch.softmax(scores, dim=-1) @ z[:, :, None])[:, :, 0]
        hidden = nn.functional.gelu(self.mix(summaries))
        return torch.sigmoid(torch.addmm(self.bias + self.own * z, hidden, self.read))


class _Average(nn.Module):
    """Averages maps over their positions."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.flatten(2).mean(2)


_AVERAGE = _Average()
