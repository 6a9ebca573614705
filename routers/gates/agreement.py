"""Weights by how near each teacher is to the mean of all.

Shapes: B batch, T teacher variants, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Gt
from torch import Tensor

from ...errors import ConfigError
from ..measures import over_pixels
from ..positions import Granularity, Rows
from .base import GATES, Gate
from .statistics import jensen_shannon

if TYPE_CHECKING:
    from ...step import Step


@GATES.register("agreement")
class AgreementGate(Gate):
    """Teachers that say what most others say count more; no labels needed. Ours, not published.

        w_b = softmax(-D_b / tau),   D_bt = JS(p_bt, mean_u p_bu),   p_bt = softmax(z_bt)

    JS is the Jensen-Shannon divergence in nats, between 0 and ln 2. A large tau is uniform.
    For dense logits D is the mean over the pixels, or that of each token or pixel, as `granularity` says.

    Use it with the selection `dense` and combine `loss`.

    Args:
        tau: temperature in nats, above 0.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
    """

    needs_teachers = True
    gives_weights = True

    def __init__(
        self,
        tau: Annotated[float, Gt(0)] = 0.1,
        granularity: Granularity = "instance",
        mask_field: str | None = None,
    ) -> None:
        super().__init__()
        if tau <= 0:
            raise ConfigError(f"router.gate.tau: must be positive, found {tau}")
        self.tau, self.rows = tau, Rows(granularity, mask_field)

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[B, T]`."""
        probs = self.rows.teacher_logits(step).softmax(dim=2)
        mean = probs.mean(dim=1, keepdim=True).expand_as(probs)
        return -over_pixels(jensen_shannon(probs, mean)) / self.tau
