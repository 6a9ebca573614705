"""Which wrong candidates of a row are worth looking at.

Shapes: B rows, N candidates, K negatives of a row.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .equal_rows import HIDDEN

#: How negatives are found: the nearest ones by the student, those that the teacher takes for likely, by chance in
#: proportion to the student's softmax, or any.
Miner = Literal["student", "teacher", "sampled", "random"]


def hard_negatives(scores_BN: Tensor, positive_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k candidates with the largest scores that are no known positives, hardest first.

    Args:
        scores_BN: similarities, by whoever mines.
        positive_BN: bool, which candidates are right answers (or must not be taken for another reason).
        k: K; with fewer candidates than that, all.

    Returns:
        Indices `[B, K]` and bool `[B, K]`: False where a row has fewer negatives; such an index means nothing.
    """
    hidden_BN = scores_BN.detach().masked_fill(positive_BN, -torch.inf)
    scores_BK, index_BK = hidden_BN.topk(min(k, scores_BN.shape[1]), dim=1)
    return index_BK, scores_BK > -torch.inf


def sampled_negatives(scores_BN: Tensor, positive_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Draw k negatives without replacement with probabilities `softmax(scores)`, as ALBEF (arXiv 2107.07651) does for
    its matching loss with k = 1; equal scores draw uniformly.

    The k largest of scores plus Gumbel noise are such a draw (Kool et al., ICML 2019, arXiv 1903.06059).

    Args:
        scores_BN, positive_BN, k: see `hard_negatives`.
    """
    uniform_BN = torch.rand(scores_BN.shape, device=scores_BN.device).clamp_(1e-20, 1 - 1e-7)
    gumbel_BN = -torch.log(-torch.log(uniform_BN))
    return hard_negatives(scores_BN.detach() + gumbel_BN, positive_BN, k)


def without_likely_positives(scores_BN: Tensor, own_B: Tensor, margin: float) -> Tensor:
    """Tell which candidates look more like a row's answer than its own one: `S_ij > S_ii + margin`, bool `[B, N]`.

    The filter of false negatives of UniME (Gu et al., ACM MM 2025, arXiv 2504.17432), with margin 0.1 on cosines. A
    duplicate of the answer (`S_ij = S_ii`) stays where the margin is not below 0. A row's own answer never counts.

    Args:
        scores_BN: cosines.
        own_B: column of each row's own answer.
        margin: beta.
    """
    scores_BN = scores_BN.detach()
    likely_BN = scores_BN > scores_BN.gather(1, own_B[:, None]) + margin
    return likely_BN.scatter(1, own_B[:, None], False)


def pick(scores_BN: Tensor, own_B: Tensor, index_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Return the score of a row's own answer and of its negatives, `[B, 1 + K]`; those that are none are hidden."""
    negative_BK = scores_BN.gather(1, index_BK).masked_fill(~valid_BK, HIDDEN)
    return torch.cat([scores_BN.gather(1, own_B[:, None]), negative_BK], dim=1)
