"""Gates that compare directions.

Shapes: R rows (instances, tokens or pixels), T teacher variants, D width of the input, P width of the projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from ...registry import Injected
from ..positions import Granularity, Rows
from .base import GATES, Gate, Scores
from .inputs import GateInput, On, Shapes

if TYPE_CHECKING:
    from ...step import Step

LARGEST_SCALE = 100.0


def cosine_scores(x_RD: Tensor, directions_TD: Tensor) -> Tensor:
    """Return the cosine of every row to every direction, `[R, T]`; 0 for a row of zeros."""
    return F.normalize(x_RD, dim=1) @ F.normalize(directions_TD, dim=1).T


@GATES.register("cosine")
class CosineGate(Gate):
    """Cosine between a projection of the input and one learned direction a teacher, with a learned temperature.

    `scores = scale * cos(W x, s_t)`, `scale = min(1 / temperature, 100)`: bounded scores, whatever the length of the
    input. After Chi et al., "On the Representation Collapse of Sparse Mixture of Experts" (X-MoE), NeurIPS 2022, arXiv
    2204.09179.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        on: what the gate reads; the page on routers says what each is.
        source: tap or embedding of the student, or field of the batch, for the three that have one.
        width: size of the source, found by itself in a config.
        detach_input: cut the gradient from the router's losses into the student.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
        projection: width P of the projection.
        temperature: at the start, above 0.
        shapes: sizes of fields and taps.
    """

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        on: On = "student_logits",
        source: str | None = None,
        width: int | None = None,
        detach_input: bool = True,
        granularity: Granularity = "instance",
        mask_field: str | None = None,
        projection: Annotated[int, Ge(1)] = 256,
        temperature: Annotated[float, Gt(0)] = 0.5,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.rows = Rows(granularity, mask_field)
        self.input = GateInput(on, num_classes, num_teachers, source, width, detach_input, self.rows, shapes)
        self.needs_teachers = self.input.needs_teachers
        self.project = nn.Linear(self.input.width, projection, bias=False)
        self.directions = nn.Parameter(torch.randn(num_teachers, projection) * 0.01)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[R, T]`."""
        scale = self.log_scale.clamp_max(math.log(LARGEST_SCALE)).exp()
        return scale * cosine_scores(self.project(self.input(step)), self.directions)


@GATES.register("prototype")
class PrototypeGate(Gate):
    """Cosine between the input and one learned prototype a teacher: rows go to the prototype they resemble.

    `scores = scale * cos(x, prototype_t)`, prototypes drawn from N(0, 0.02^2); after Wei et al., "Routing Matters in
    MoE: Scaling Diffusion Transformers with Explicit Routing Guidance" (ProMoE), ICLR 2026, arXiv 2510.24711. The
    balance loss `routing_contrastive` pulls every prototype to its rows and away from the others; no loss on the load
    is needed then. ProMoE uses raw cosines as weights, which can be negative; a teacher's loss can't have a negative
    weight, so here weights come from the softmax of the scores.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        on: what the gate reads; the page on routers says what each is.
        source: tap or embedding of the student, or field of the batch, for the three that have one.
        width: size of the source, found by itself in a config.
        detach_input: cut the gradient from the router's losses into the student.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
        scale: factor of the cosines, above 0.
        shapes: sizes of fields and taps.
    """

    example: ClassVar[Mapping[str, Any]] = {
        "selection": {"kind": "top_k", "k": 1},
        "balance": [{"kind": "routing_contrastive"}],
    }

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        on: On = "student_logits",
        source: str | None = None,
        width: int | None = None,
        detach_input: bool = True,
        granularity: Granularity = "instance",
        mask_field: str | None = None,
        scale: Annotated[float, Gt(0)] = 1.0,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.rows = Rows(granularity, mask_field)
        self.input = GateInput(on, num_classes, num_teachers, source, width, detach_input, self.rows, shapes)
        self.needs_teachers = self.input.needs_teachers
        self.prototypes = nn.Parameter(torch.randn(num_teachers, self.input.width) * 0.02)
        self.scale = scale

    def forward(self, step: Step) -> Scores:
        """Return the scores `[R, T]`, with the inputs and the prototypes for `routing_contrastive`."""
        x_RD = self.input(step)
        scores = self.scale * cosine_scores(x_RD, self.prototypes)
        return Scores(scores, {"input": x_RD, "prototypes": self.prototypes})
