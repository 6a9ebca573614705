"""The one distribution that several teachers' distributions make.

Shapes: B batch, T teacher variants, C classes (or candidates of a softmax).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..signals import full_precision
from .routing import Mix


def mixture(logits_BTC: Tensor, weights_BT: Tensor, mix: Mix = "probs", temperature: float = 1.0) -> Tensor:
    """Return logits z of the mixture q of the teachers p_t = softmax(z_t / T), so that q = softmax(z / T):

        probs:       q = sum_t w_t p_t
        logits:      z = sum_t w_t z_t                          (q is the weighted geometric mean of the p_t)
        logmeanexp:  z = T log sum_t w_t exp(z_t / T)           (loud teachers count more: no p_t is normalised)
        confidence:  q = sum_t w'_t p_t,  w'_t = w_t max_c p_tc / sum_u w_u max_c p_uc

    `probs` is the target of MobileCLIP (Vasu et al., CVPR 2024, arXiv 2311.17049). All four are p_t for one teacher,
    and where all teachers say the same.

    Args:
        logits_BTC: `[B, T, C, ...]`.
        weights_BT: `[B, T]`, or `[B, T, ...]` with weights of their own for every position; they sum to 1 over T.
        mix: which of the four.
        temperature: T > 0.

    Returns:
        `[B, C, ...]`, in at least float32.
    """
    weights, logits = full_precision(weights_BT).unsqueeze(2), full_precision(logits_BTC)
    weights = weights.reshape(*weights.shape, *[1] * (logits.dim() - weights.dim()))
    if mix == "logits" or logits.numel() == 0:
        return (weights * logits).sum(dim=1)
    scaled = logits / temperature
    if mix != "logmeanexp":
        scaled = scaled.log_softmax(dim=2)
    if mix == "confidence":
        weights = weights * scaled.amax(dim=2, keepdim=True).exp()
        weights = weights / weights.sum(dim=1, keepdim=True)
    log_weights = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
    return temperature * torch.logsumexp(log_weights + scaled, dim=1)
