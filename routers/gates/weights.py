"""Weights by a formula, as scores.

A gate that computes weights returns their logarithms, so that the softmax of its scores, and so the selection `dense`,
gives the weights back, and `top_k` keeps the largest of them and divides by their sum.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_weights(weights_BT: Tensor, known_B: Tensor | None = None) -> Tensor:
    """Return finite scores `[B, T]` whose softmax is `weights_BT`, whose rows sum to 1.

    A weight of 0 becomes the smallest positive number. Rows that are not known get equal scores.
    """
    scores = weights_BT.clamp_min(torch.finfo(weights_BT.dtype).tiny).log()
    return scores if known_B is None else scores.where(known_B[:, None], 0.0)


def complement(shares_BT: Tensor) -> Tensor:
    """Return `(1 - share_t) / (T - 1)`: large shares become small weights; 1 for a single teacher.

    Rows of `shares_BT` sum to 1, and so do those of the result, which is at most `1 / (T - 1)` everywhere.
    """
    experts = shares_BT.shape[1]
    return torch.ones_like(shares_BT) if experts == 1 else (1 - shares_BT) / (experts - 1)
