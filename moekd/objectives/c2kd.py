"""Customised cross-modal distillation (Huo et al., "C2KD: Bridging the Modality Gap for Cross-Modal Knowledge
Distillation", CVPR 2024).

Shapes: B batch, C classes, P pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import Injected
from ..routers import Shapes
from ..signals import full_precision
from .auxiliary_heads import make_dense_proxy, make_proxy
from .base import OBJECTIVES, Loss, Objective
from .inputs import TapPair, logits_of, targets_of
from .kd import kd_kl
from .kendall import kendall_tau_b, mean_tau_b

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool

TargetHandling = Literal["zero", "exclude"]


def non_target_kl(
    learner_BC: Tensor, goal_BC: Tensor, target_B: Tensor, mask_B: Tensor, handling: TargetHandling = "zero"
) -> Tensor:
    """`mask KL(goal || learner)` of every instance over logits without the target's, `[B]`; the goal is detached.

    `zero` sets the target's logit to 0, as both released codes do; `exclude` takes the class out of the softmax, which
    is what the paper describes. Rows outside of the mask are 0 and count in the mean.

    Shape:
        learner_BC, goal_BC: logits `[B, C]`; target_B, mask_B: `[B]`.
    """
    learner_BC, goal_BC = full_precision(learner_BC), full_precision(goal_BC).detach()
    at_target = torch.zeros_like(learner_BC, dtype=torch.bool).scatter(1, target_B.unsqueeze(1), True)
    fill = 0.0 if handling == "zero" else -torch.inf
    if handling == "exclude" and learner_BC.shape[1] < 2:
        return (learner_BC * 0).sum(dim=1)
    learner, goal = (x.masked_fill(at_target, fill).log_softmax(dim=1) for x in (learner_BC, goal_BC))
    if handling == "exclude":
        learner, goal = learner.masked_fill(at_target, 0.0), goal.masked_fill(at_target, 0.0)
    terms = goal.exp() * (goal - learner)
    return torch.where(mask_B, terms.sum(dim=1), terms.new_zeros(()))


@OBJECTIVES.register("c2kd")
class BidirectionalProxies(Objective):
    """A teacher of another modality and the student learn from each other through proxies, where they agree on the
    order of the classes.

    A proxy is a classifier over a tapped activation. With KL(x <- y) the loss of x against the detached y:

        L = KL(h_t <-> o_t) + KL(h_s <-> o_s) + NT(h_s <- h_t) + NT(h_t <- h_s)

    o are the models' logits, h their proxies', NT is `non_target_kl` over the instances whose proxies have a rank
    correlation (Kendall's tau-b) above `threshold`. The teacher learns too: list it under `trains`, and add
    `{kind: cross_entropy, on: [student, TEACHER]}`. Instances without a label take the class that the teacher prefers.

    Args:
        teacher: name of the teacher.
        student_tap: tap of the student that its proxy reads.
        teacher_tap: tap of the teacher.
        threshold: smallest rank correlation that is not enough.
        target_handling: `zero` (released code) or `exclude` (paper's description).
        dense: classes of pixels: proxies give maps, which are brought to the size of the logits; every loss is the mean
            over the pixels, and an image takes part in NT where the mean rank correlation of its pixels is above the
            threshold (the benchmark's code lets all images take part as soon as one does).
        num_classes: number of classes.
        shapes: sizes of the taps.
    """

    reads_features = True
    #: Its proxies have batch normalisation.
    compares_rows = True

    def __init__(
        self,
        teacher: str,
        student_tap: str,
        teacher_tap: str,
        threshold: float = 0.0,
        target_handling: TargetHandling = "zero",
        dense: bool = False,
        num_classes: Injected[int] = 0,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.teacher, self.threshold, self.target_handling, self.dense = teacher, threshold, target_handling, dense
        self.taps = TapPair("c2kd", student_tap, teacher_tap, teacher, shapes)
        (teacher_shape,) = self.taps.teachers().values()
        make = make_dense_proxy if dense else make_proxy
        self.student_proxy = make(self.taps.student_shape(), num_classes)
        self.teacher_proxy = make(teacher_shape, num_classes)

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"c2kd/teacher_proxy", "c2kd/student_proxy", "c2kd/non_target"}`, each `[B]`."""
        student, teacher = step.student, step.signals(self.teacher)
        mine, other = self.taps.features(self.teacher, student, teacher)
        h_s, h_t = self.student_proxy(mine), self.teacher_proxy(other)
        o_s, o_t = logits_of(student, teacher, "c2kd", dense=self.dense)
        target = targets_of(step.batch, o_t)
        if self.dense:
            h_s, h_t = (F.interpolate(h, o_s.shape[2:], mode="bilinear", align_corners=False) for h in (h_s, h_t))
            mask_B = mean_tau_b(h_t, h_s) > self.threshold
        else:
            mask_B = kendall_tau_b(h_t, h_s) > self.threshold
        crossed = [self._crossed(learner, goal, target, mask_B) for learner, goal in ((h_s, h_t), (h_t, h_s))]
        return {
            "c2kd/teacher_proxy": _both_ways(h_t, o_t),
            "c2kd/student_proxy": _both_ways(h_s, o_s),
            "c2kd/non_target": crossed[0] + crossed[1],
        }

    def _crossed(self, learner: Tensor, goal: Tensor, target: Tensor, mask_B: Tensor) -> Tensor:
        """Return `non_target_kl` of every instance, for dense logits its mean over the pixels, `[B]`."""
        if not self.dense:
            return non_target_kl(learner, goal, target, mask_B, self.target_handling)
        pixels = target[0].numel()
        mine, other = (x.flatten(2).movedim(1, 2).flatten(0, 1) for x in (learner, goal))
        losses = non_target_kl(mine, other, target.flatten(), mask_B.repeat_interleave(pixels), self.target_handling)
        return losses.view(-1, pixels).mean(dim=1)

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return the teacher."""
        return [self.teacher]


def _both_ways(a_BC: Tensor, b_BC: Tensor) -> Tensor:
    return kd_kl(a_BC, b_BC.detach(), 1.0) + kd_kl(b_BC, a_BC.detach(), 1.0)
