"""One-for-all distillation (Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
Distillation", NeurIPS 2023, arXiv 2310.19444).

Shapes: B batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import Injected
from ..routers import Shapes
from ..signals import Signals, full_precision
from .auxiliary_heads import make_auxiliary_head
from .base import OBJECTIVES, PairwiseObjective
from .inputs import logits_of, tap_shape, targets_of

if TYPE_CHECKING:
    from ..model import Batch


def adaptive_target_loss(
    student_BC: Tensor, teacher_BC: Tensor, target_B: Tensor, eps: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """`-sum_c [(p_t(c) + 1[c = y])^eps - 1[c = y]] log p_s(c)` of every instance, `[B]`.

    The exponent raises the weight of the target's class; with eps = 1 it is the cross-entropy to the teacher. At the
    target's place the paper's equation for eps > 1 is `(1 + p_t(y))^eps - 1`.

    Shape:
        student_BC, teacher_BC: logits `[B, C]`; target_B: `[B]`.
    """
    one_hot = F.one_hot(target_B, student_BC.shape[1])
    teacher = (full_precision(teacher_BC) / temperature).softmax(dim=1)
    weights = (teacher + one_hot).pow(eps) - one_hot
    return -(weights * (full_precision(student_BC) / temperature).log_softmax(dim=1)).sum(dim=1)


@OBJECTIVES.register("ofa")
class OneForAll(PairwiseObjective):
    """The teacher's logits teach auxiliary classifiers at several taps of the student, and the student itself.

    Only logits of the teacher are read, so that its architecture does not matter and they can be cached. Instances
    without a label take the class that the teacher prefers as their target.

    Args:
        student_taps: taps of the student; each gets a classifier of its own.
        teacher: the one teacher or variant; without it the mean over all.
        eps: exponent of the target's class; 1 by default in the released code, 1.5 and 1.0 in its examples, 1.1 in
            MST-Distill's benchmark.
        temperature: softmax temperature T > 0.
        on_logits: the loss on the student's own logits too; False in MST-Distill's benchmark.
        reduction: over the taps (and the logits): `sum`, or `mean` in MST-Distill's benchmark.
        num_classes: number of classes.
        shapes: sizes of the taps.
    """

    name = "ofa"

    def __init__(
        self,
        student_taps: list[str],
        teacher: str | None = None,
        eps: float = 1.0,
        temperature: float = 1.0,
        on_logits: bool = True,
        reduction: Literal["sum", "mean"] = "sum",
        num_classes: Injected[int] = 0,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, found {temperature}")
        if not student_taps or len(set(student_taps)) < len(student_taps):
            raise ConfigError(
                f"ofa.student_taps: name each tap of the student once, and at least one; found {student_taps}"
            )
        self.teacher, self.eps, self.temperature = teacher, eps, temperature
        self.on_logits, self.reduction, self.student_taps = on_logits, reduction, list(student_taps)
        widths = {tap: tap_shape(shapes, tap, "ofa.student_taps") for tap in student_taps}
        self.compares_rows = any(len(shape) == 3 for shape in widths.values())
        self.heads = nn.ModuleList(make_auxiliary_head(shape, num_classes) for shape in widths.values())

    def pair(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Return the reduced `adaptive_target_loss`, `[B]`."""
        mine, other = logits_of(student, teacher, "ofa", dense=False)
        target = targets_of(batch, other)
        logits = [head(student.feature(tap, "ofa")) for tap, head in zip(self.student_taps, self.heads, strict=True)]
        logits += [mine] if self.on_logits else []
        losses = torch.stack([adaptive_target_loss(x, other, target, self.eps, self.temperature) for x in logits])
        return losses.sum(dim=0) if self.reduction == "sum" else losses.mean(dim=0)
