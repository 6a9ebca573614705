"""Learned tokens beside the patches of a vision transformer, for tuning a frozen tower with few parameters.

Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119 (deep form); the form here, tokens behind the patches
and new ones in each of the first layers, is that of MaPLe (arXiv 2210.03117) and PromptKD (arXiv 2403.02781).

Shapes: B batch, N tokens, P prompts, L layers with prompts, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError


@dataclass(frozen=True)
class VisualPromptOptions:
    """Prompts of a vision transformer.

    Attributes:
        tokens: P, tokens in each layer; 4 in PromptKD.
        depth: L, first layers that get tokens of their own; behind them the last ones run on. 9 of 12 in PromptKD.
    """

    tokens: int = 4
    depth: int = 1


class VisualPrompts(nn.Module):
    """The tokens of the first layers; those of a layer replace what the layer before made of its own.

    Args:
        options: how many.
        width: D.
        layers: layers of the tower.

    Raises:
        ConfigError: no token, or more layers than the tower has.
    """

    def __init__(self, options: VisualPromptOptions, width: int, layers: int) -> None:
        super().__init__()
        if options.tokens < 1 or not 1 <= options.depth <= layers:
            raise ConfigError(
                f"prompts: expected tokens of at least 1 and a depth of 1 to {layers}, the layers; found "
                f"{options.tokens} and {options.depth}"
            )
        self.weight = nn.Parameter(torch.randn(options.depth, options.tokens, width) * 0.02)

    def append(self, tokens_BND: Tensor) -> Tensor:
        """Return `[B, N + P, D]`, with the prompts of the first layer behind the tokens."""
        return torch.cat([tokens_BND, self._layer(0, tokens_BND)], dim=1)

    def renew(self, tokens: Tensor, layer: int) -> Tensor:
        """Return the tokens `[B, N + P, D]` that go into a layer: with its own prompts, if it has any."""
        depth, count, _ = self.weight.shape
        if not 0 < layer < depth:
            return tokens
        return torch.cat([tokens[:, :-count], self._layer(layer, tokens)], dim=1)

    def _layer(self, layer: int, like: Tensor) -> Tensor:
        return self.weight[layer].to(like.dtype).expand(len(like), -1, -1)
