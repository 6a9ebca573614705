"""Distillation and labels in one loss, weighed for every instance by the router.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import ModelError
from .base import OBJECTIVES, Loss, Objective
from .cross_entropy import cross_entropy
from .routed import RoutedKD

if TYPE_CHECKING:
    from ..step import Step
    from ..teachers import TeacherPool


@OBJECTIVES.register("fused_kd_ce")
class FusedKDCE(Objective):
    """The loss of TGeo-KD ("Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", ICLR
    2024, arXiv 2312.15112), here for any number of teachers:

        L_b = (1 - a_b) sum_t w_bt KD_bt + a_b CE_b,    KD_bt = tau^2 KL(softmax(z_bt / tau) || softmax(s_b / tau))

    a_b is the label's weight and w_b the weights over the teachers, both from a router whose gate weighs the label too,
    such as `fusion_ratio`. Rows without a label have a_b = 0. Both parts are means over all rows.

    Args:
        temperature: tau > 0; 1.5 in the released code.
        label_smoothing: share of the target mass spread over all classes.
    """

    routable = True

    def __init__(self, temperature: float = 1.5, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.distillation, self.label_smoothing = RoutedKD(temperature), label_smoothing

    def forward(self, step: Step) -> Mapping[str, Loss]:
        """Return `{"fused_kd_ce/distillation": [B], "fused_kd_ce/label": [B]}`.

        Raises:
            ModelError: the router does not weigh the label.
        """
        share_B = step.routing.label_share
        if share_B is None:
            raise ModelError(
                "fused_kd_ce needs a router whose gate weighs the label beside the teachers, such as 'fusion_ratio'; "
                "use cross_entropy and routed_kd with other gates"
            )
        labels, logits = step.batch["label"], step.student.require_logits("fused_kd_ce")
        label_B = cross_entropy(logits, labels.where(share_B.detach() > 0, 0), self.label_smoothing)
        distilled_B = self.distillation(step)["routed_kd"]
        return {"fused_kd_ce/distillation": distilled_B, "fused_kd_ce/label": share_B * label_B}

    def variants(self, pool: TeacherPool) -> Sequence[str]:
        """Return all variants."""
        return pool.experts
