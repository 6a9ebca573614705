"""How much to learn from each teacher and from the label, by the geometry between them and the student.

Shapes: B batch, T teacher variants, C classes, D width of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ModelError
from ...model import Batch
from ...registry import Injected
from ...signals import PoolSignals
from ..class_means import ClassMeans
from ..measures import labels_of, student_logits, teacher_logits
from ..trilateral import Geometry, trilateral_state, trilateral_width
from .base import GATES, Gate

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("fusion_ratio")
class FusionRatioGate(Gate):
    """A small network on the predictions of student, teachers and the teachers' class means, the label, and the
    differences between them (TGeo-KD: "Less or More From Teacher", ICLR 2024, arXiv 2312.15112; there for one teacher).

    It gives T + 1 scores: the last one is the label's. Their softmax says how much to learn from whom; with one teacher
    it is the published sigmoid. Use the selection `dense`, the objective `fused_kd_ce`, the signal `bilevel` and a
    stage of kind `bilevel`. Other objectives multiply the teachers' losses by what the label leaves to them.

    No gradient flows into the student. The class means are measured on the training split before the first step. Rows
    without a label get equal weights over the teachers and none for the label.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        geometry: what the network reads: `full`, `vertices`, `edges` or `angles` (numbers for every class), or
            `scalars` (a few numbers, for many classes).
        hidden: widths of the hidden layers.
        label: score the label too; without it the gate is one for teachers only, for any signal and objective.
    """

    needs_teachers = True
    fit_on = "train"
    example: ClassVar[Mapping[str, Any]] = {"gate": {"label": False}}

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        geometry: Geometry = "full",
        hidden: Sequence[int] = (32, 16),
        label: bool = True,
    ) -> None:
        super().__init__()
        self.geometry: Geometry = geometry
        self.scores_label = label
        self.class_means = ClassMeans(num_classes, num_teachers)
        widths = [trilateral_width(geometry, num_classes, num_teachers), *hidden]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.LeakyReLU(0.01)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_teachers + label))
        self.fitted = False
        self.register_load_state_dict_post_hook(_look_again)

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[B, T + 1]`, or `[B, T]` without the label's.

        Raises:
            ModelError: the class means are not measured yet.
        """
        state_BD, known_B = self.state(step)
        scores: Tensor = self.layers(state_BD)
        return scores.where(known_B[:, None], 0.0)

    def state(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return what the network reads, `[B, D]`, and which rows have a label, `[B]`; all detached."""
        if not self.fitted:
            raise ModelError("the gate 'fusion_ratio' has not measured the teachers' class means: call fit() first")
        who = "the gate 'fusion_ratio'"
        classes_B, known_B = labels_of(step, who)
        teachers, student = teacher_logits(step), student_logits(step, who)
        if teachers.dim() != 3:
            raise ModelError(f"{who} needs teachers' logits [batch, teachers, classes], found {tuple(teachers.shape)}")
        means_BTC = self.class_means(classes_B).to(teachers.dtype)
        label_BC = F.one_hot(classes_B, student.shape[1]).to(student.dtype)
        return (
            trilateral_state(student.softmax(1), teachers.softmax(2), label_BC, means_BTC, self.geometry),
            known_B,
        )

    def fit(self, teachers: Callable[[Batch], PoolSignals], batches: Iterable[Batch]) -> None:
        """Measure the class means on the training split."""
        self.class_means.measure(teachers, batches)
        self.fitted = True


def _look_again(gate: nn.Module, incompatible: Any) -> None:
    assert isinstance(gate, FusionRatioGate)
    gate.fitted = gate.class_means.known
