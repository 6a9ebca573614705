"""Losses through which labels train a gate.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import masked_mean
from ..errors import ModelError
from .measures import INSTANCES
from .mixing import mixture
from .positions import Rows
from .routing import Mix

if TYPE_CHECKING:
    from ..step import Step


def task_loss(step: Step, probs_BT: Tensor, mix: Mix = "probs", rows: Rows = INSTANCES) -> Tensor:
    """Cross-entropy of the teachers' mixture against the label, the mean over the labelled rows.

        probs:    -log sum_t p_bt softmax(z_bt)[y_b]
        others:   -log softmax(mixture_b)[y_b], see `mixture`

    It is the mixture that combine `target` distils from (there at the objective's temperature), so that the gate
    learns whose mixture is right. Both coincide for one teacher, and where all teachers say the same.

    Raises:
        ModelError: dense logits.
    """
    logits_BTC, classes_B, known_B = _labelled_logits(step, "task", rows)
    if mix != "probs":
        mixture_BC = mixture(logits_BTC, probs_BT, mix)
        return masked_mean(F.cross_entropy(mixture_BC, classes_B, reduction="none"), known_B)
    floor = torch.finfo(probs_BT.dtype).tiny
    right_BT = -_cross_entropy(logits_BTC, classes_B)
    mixture_B = torch.logsumexp(probs_BT.clamp_min(floor).log() + right_BT, dim=1)
    return masked_mean(-mixture_B, known_B)


def oracle_loss(step: Step, scores_BT: Tensor, tau: float | None = None, rows: Rows = INSTANCES) -> Tensor:
    """Cross-entropy of the gate's scores against the teacher that is best at the row, the mean over the labelled rows.

        tau None:   target_b = argmin_t CE_bt                (ties go to the lowest index)
        else:       target_b = softmax_t(-CE_bt / tau)        with CE_bt = -log softmax(z_bt)[y_b]

    The soft targets tend to the hard ones for small tau and to uniform ones for large tau.

    Raises:
        ModelError: dense logits.
    """
    logits_BTC, classes_B, known_B = _labelled_logits(step, "oracle", rows)
    losses_BT = _cross_entropy(logits_BTC, classes_B)
    target = losses_BT.argmin(dim=1) if tau is None else (-losses_BT / tau).softmax(dim=1).to(scores_BT.dtype)
    return masked_mean(F.cross_entropy(scores_BT, target, reduction="none"), known_B)


def _labelled_logits(step: Step, signal: str, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Return the teachers' logits `[B, T, C]`, the classes `[B]` (0 without a label), and which rows have a label."""
    logits = rows.teacher_logits(step)
    if logits.dim() != 3:
        raise ModelError(
            f"router.signal '{signal}' needs one label an instance; the teachers' logits are {tuple(logits.shape)}, "
            "expected [batch, teachers, classes]; use signal 'kd' or 'aux_only' for dense logits"
        )
    classes_B, known_B = rows.labels(step, f"router.signal '{signal}'")
    return logits, classes_B, known_B


def _cross_entropy(logits_BTC: Tensor, classes_B: Tensor) -> Tensor:
    """Return `-log softmax(z_bt)[y_b]`, `[B, T]`."""
    index = classes_B[:, None, None].expand(-1, logits_BTC.shape[1], 1)
    return -logits_BTC.log_softmax(dim=2).gather(2, index).squeeze(2)
