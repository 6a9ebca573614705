"""Rows of a batch that are the same thing: two pictures of one concept are no negatives of each other.

Shapes: B rows of this process, N rows of all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import gather_rows
from ..errors import DataError, did_you_mean

if TYPE_CHECKING:
    from ..model import Batch

#: Score of a pair that takes no part: its probability is 0 in every softmax and sigmoid, and no product is infinite.
HIDDEN = -1e30


def equal_rows(batch: Batch, field: str | None, who: str) -> Tensor | None:
    """Tell which rows of all processes have the same value as each own row, `[B, N]`; every row equals itself.

    Args:
        batch: the batch.
        field: a field of integers, one a row (`[B]` or `[B, 1]`), such as `concept`; None: nothing is known.
        who: the objective, for messages.

    Returns:
        bool `[B, N]`, or None without a field.

    Raises:
        DataError: the batch has no such field, or it is not one integer a row.
    """
    if field is None:
        return None
    own_B1 = row_numbers(batch, field, who)[:, None]
    everyone_N1, _ = gather_rows(own_B1)
    return own_B1 == everyone_N1.T


def row_numbers(batch: Batch, field: str | None, who: str) -> Tensor:
    """Return the number of what each row shows, int64 `[B]`: a field, or the sample's own id.

    Args:
        batch, field, who: see `equal_rows`.

    Raises:
        DataError: the batch has no such field, or it is not one integer a row.
    """
    field = field or "id"
    if field not in batch:
        hint = did_you_mean(field, batch) or f"; fields: {', '.join(batch)}"
        raise DataError(f"{who}.same: the batch has no field '{field}'{hint}")
    value = batch[field]
    rows = len(batch["id"]) if "id" in batch else len(value)
    if not isinstance(value, Tensor) or value.is_floating_point() or value.numel() != rows:
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"{who}.same: field '{field}' must hold one integer a row, found {found}")
    return value.reshape(rows).to(torch.int64)


def hide(scores_BN: Tensor, hidden_BN: Tensor | None) -> Tensor:
    """Take pairs out of the comparison: they get no probability and no gradient."""
    return scores_BN if hidden_BN is None else scores_BN.masked_fill(hidden_BN, HIDDEN)


def matching_loss(logits_BN: Tensor, own_B: Tensor, equal_BN: Tensor | None = None) -> Tensor:
    """Cross-entropy of each row with its partner, or with all equal rows in equal parts:

        L_b = -1/|P_b| sum_{j in P_b} log softmax_j(z_b)_j,    P_b the rows equal to b, b itself among them

    The outer sum of Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362, equation 2, for
    image-text pairs as in Yang et al., "Unified Contrastive Learning in Image-Text-Label Space" (UniCL), CVPR 2022,
    arXiv 2204.03610, equations 3 and 4. Its smallest value is log |P_b|.

    Args:
        logits_BN: scaled similarities.
        own_B: index of each row's own partner.
        equal_BN: which rows are the same thing; None: each row is a thing of its own.

    Returns:
        `[B]`.
    """
    if equal_BN is None:
        return F.cross_entropy(logits_BN, own_B, reduction="none")
    positive_BN = equal_BN.to(logits_BN.dtype)
    return -(positive_BN * logits_BN.log_softmax(dim=1)).sum(dim=1) / positive_BN.sum(dim=1)
