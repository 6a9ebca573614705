"""The transformer layers of the project's own towers, whose heads and hidden neurons may differ from layer to layer.

Parameter names are the canonical ones of weight inheritance (`moekd.networks.inherit`).

Shapes: B batch, N tokens, D features of a token, A heads x features of a head, F hidden features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

Activation = Literal["gelu", "quick_gelu"]


class Attention(nn.Module):
    """Multi-head attention of a sequence with itself.

    Args:
        width: D.
        heads: number of heads.
        head_width: features of a head.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.proj = nn.Linear(heads * head_width, width)

    def forward(self, x_BND: Tensor, allowed: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return `[B, N, D]`; `allowed` `[B, 1, 1, N]` is True at the tokens that may be looked at."""
        q, k, v = self.qkv(x_BND).unflatten(2, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4).unbind(0)
        if causal and allowed is not None:
            size = x_BND.shape[1]
            allowed = allowed & torch.ones(size, size, dtype=torch.bool, device=x_BND.device).tril()
            causal = False
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Pre-norm attention and perceptron, each added to its input.

    Args:
        width: D.
        heads: number of heads; 0 leaves the attention out.
        head_width: features of a head.
        hidden: F; 0 leaves the perceptron out.
        activation: of the perceptron; `quick_gelu` is x sigmoid(1.702 x), that of the first CLIP models.
        dropout: probability behind both.
        epsilon: of the normalisations.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        hidden: int,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, epsilon)
        self.attn = Attention(width, heads, head_width) if heads else None
        self.norm2 = nn.LayerNorm(width, epsilon)
        self.fc1 = nn.Linear(width, hidden) if hidden else None
        self.fc2 = nn.Linear(hidden, width) if hidden else None
        self.quick = activation == "quick_gelu"
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, allowed: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return `[B, N, D]`."""
        if self.attn is not None:
            x_BND = x_BND + self.dropout(self.attn(self.norm1(x_BND), allowed, causal))
        if self.fc1 is not None and self.fc2 is not None:
            hidden = self.fc1(self.norm2(x_BND))
            hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick else F.gelu(hidden)
            x_BND = x_BND + self.dropout(self.fc2(hidden))
        return x_BND

    def extra_repr(self) -> str:
        """Say what no weight shows, since fingerprints read it."""
        return f"quick_gelu={self.quick}, heads={self.attn.heads if self.attn is not None else 0}"


def make_blocks(
    width: int,
    layers: int,
    heads: int | Sequence[int],
    hidden: int | Sequence[int],
    head_width: int | None = None,
    activation: Activation = "gelu",
    dropout: float = 0.0,
    epsilon: float = 1e-5,
) -> nn.ModuleList:
    """Return layers with the initial weights of CLIP (arXiv 2103.00020): the residual branches shrink with the depth.

    Args:
        width: D.
        layers: how many.
        heads: number of heads, or one for each layer.
        hidden: F, or one for each layer.
        head_width: features of a head; None: D / heads.
        activation, dropout, epsilon: see `Block`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    each_heads = [heads] * layers if isinstance(heads, int) else list(heads)
    each_hidden = [hidden] * layers if isinstance(hidden, int) else list(hidden)
    if len(each_heads) != layers or len(each_hidden) != layers:
        raise ConfigError(f"heads and hidden: expected one number or {layers}, one a layer; found {heads} and {hidden}")
    if head_width is None:
        most = max(each_heads, default=1)
        if most < 1 or width % most:
            raise ConfigError(f"width: expected a multiple of heads = {most}, found {width}; or give head_width")
        head_width = width // most
    blocks = nn.ModuleList(
        Block(width, a, head_width, f, activation, dropout, epsilon)
        for a, f in zip(each_heads, each_hidden, strict=True)
    )
    deep = 1 / math.sqrt(2 * max(layers, 1) * width)
    for block in blocks:
        assert isinstance(block, Block)
        if block.attn is not None:
            _initialise(block.attn.qkv, 1 / math.sqrt(width))
            _initialise(block.attn.proj, deep)
        if block.fc1 is not None and block.fc2 is not None:
            _initialise(block.fc1, 1 / math.sqrt(2 * width))
            _initialise(block.fc2, deep)
    return blocks


def _initialise(layer: nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
