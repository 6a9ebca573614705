"""Distillation of what the teacher holds for the most likely classes.

Shapes: B rows of this process, C classes, K classes that are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import sum_over_processes
from ..registry import Injected
from ..signals import Signals
from .base import OBJECTIVES, PairwiseObjective
from .inputs import base_of, logits_of, only

if TYPE_CHECKING:
    from ..model import Batch


def topk_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, k: int, temperature: float = 1.0, tau_squared: bool = False
) -> Tensor:
    """KL divergence on the teacher's k most likely classes, each row among them alone:

        L_b = KL( softmax(z^t_S / T) || softmax(z^s_S / T) ),    S the k largest of z^t_b

    The alignment of image-text neighbourhoods of Li et al., "Distilling Large Vision-Language Model with
    Out-of-Distribution Generalizability", ICCV 2023, arXiv 2307.03135: there the logits are cosines over 0.07, k is
    256, and there is no T^2. With k = C it is the divergence of all classes; with k = 1 it is 0.

    Args:
        student_logits, teacher_logits: `[B, C]`.
        k: classes; more than C means all.
        temperature: T.
        tau_squared: multiply with T^2.

    Returns:
        `[B]`.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k must be at least 1 and the temperature positive, found {k} and {temperature}")
    ids_BK = teacher_logits.topk(min(k, teacher_logits.shape[1]), dim=1).indices
    student, teacher = ((logits.gather(1, ids_BK) / temperature) for logits in (student_logits, teacher_logits))
    losses_BK = F.kl_div(student.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="none", log_target=True)
    return losses_BK.sum(dim=1) * (temperature**2 if tau_squared else 1.0)


@OBJECTIVES.register("topk_kd")
class TopKKD(PairwiseObjective):
    """KL divergence on the teacher's k most likely classes, see `topk_kd_loss`.

    Args:
        teacher: name of a teacher or variant; None: the mean of the losses over all of them.
        k: classes that are compared.
        temperature: softmax temperature T > 0.
        tau_squared: multiply the loss with T^2.
        keep: rows that count: `all`, or those whose label the teacher gives (`correct`; rows without a label count).
            The mean is over those that count, and 0 where there are none.
        among: classes that take part: `all`, or the `base` classes where others are novel (`data.novel`).
        base_classes: the base classes.
    """

    name = "topk_kd"

    def __init__(
        self,
        teacher: str | None = None,
        k: int = 256,
        temperature: float = 1.0,
        tau_squared: bool = False,
        keep: Literal["all", "correct"] = "all",
        among: Literal["all", "base"] = "all",
        base_classes: Injected[list[int] | None] = None,
    ) -> None:
        super().__init__()
        if k < 1 or temperature <= 0:
            raise ValueError(f"k must be at least 1 and the temperature positive, found {k} and {temperature}")
        self.teacher, self.k, self.temperature, self.tau_squared = teacher, k, temperature, tau_squared
        self.keep, self.base = keep, base_of(among, base_classes, self.name)
        # The mean over the rows that count needs all rows of the batch.
        self.compares_rows = keep == "correct"

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return `topk_kd_loss`, `[B]`."""
        logits = logits_of(student, teacher, self.name, dense=False)
        mine, theirs = logits if self.base is None else (only(logits[0], self.base), only(logits[1], self.base))
        k = self.k if self.base is None else min(self.k, len(self.base))
        loss_B = topk_kd_loss(mine, theirs, k, self.temperature, self.tau_squared)
        if self.keep == "all":
            return loss_B
        label = batch["label"]
        known = batch.get("labelled", torch.ones_like(label, dtype=torch.bool)) & (label >= 0)
        kept_B = ((theirs.argmax(dim=1) == label) | ~known).to(loss_B)
        rows = sum_over_processes(torch.full_like(kept_B.sum(), len(kept_B)))
        share = sum_over_processes(kept_B.sum().detach()) / rows
        return loss_B * kept_B / share.where(share > 0, torch.ones_like(share))
