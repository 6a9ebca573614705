"""Numbers that tell how sure the teachers are and how much they agree.

Shapes: B batch (or R rows), T teacher variants, P = T (T - 1) / 2 pairs of them, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ModelError
from ...signals import full_precision

STATISTICS = 3


def teacher_statistics(logits_BTC: Tensor) -> Tensor:
    """Return largest probability, entropy (nats) and margin of the two largest probabilities, `[B, T, 3]`.

    Raises:
        ModelError: dense logits.
    """
    log_probs = _flat(logits_BTC).log_softmax(dim=2)
    probs = log_probs.exp()
    best = probs.topk(min(2, probs.shape[2]), dim=2).values
    margin = best[..., 0] - best[..., 1] if best.shape[2] == 2 else best[..., 0]
    entropy = -(probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(dim=2)
    return torch.stack([best[..., 0], entropy, margin], dim=2)


def centred_logits(logits_BTC: Tensor) -> Tensor:
    """Return every teacher's logits (or log-probabilities: that is the same) minus their mean, `[B, T, C]`.

    Raises:
        ModelError: dense logits.
    """
    logits = _flat(logits_BTC)
    return logits - logits.mean(dim=2, keepdim=True)


def pairwise_divergences(logits_BTC: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of every pair of teachers (0, 1), (0, 2), ..., in nats, `[B, P]`.

    Between 0 (the same distribution) and ln 2 (nothing in common).

    Raises:
        ModelError: dense logits.
    """
    probs = _flat(logits_BTC).softmax(dim=2)
    first, second = torch.triu_indices(probs.shape[1], probs.shape[1], offset=1, device=probs.device)
    return jensen_shannon(probs[:, first], probs[:, second])


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return `H((p + q) / 2) - (H(p) + H(q)) / 2` over axis 2, in nats; at least 0."""
    entropies = [torch.special.entr(p).sum(dim=2) for p in ((first + second) / 2, first, second)]
    return (entropies[0] - (entropies[1] + entropies[2]) / 2).clamp_min(0)


def _flat(logits_BTC: Tensor) -> Tensor:
    if logits_BTC.dim() != 3:
        raise ModelError(
            f"teacher statistics need one prediction an instance; the teachers' logits are {tuple(logits_BTC.shape)}, "
            "expected [batch, teachers, classes]"
        )
    return full_precision(logits_BTC)
