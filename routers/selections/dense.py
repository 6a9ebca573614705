"""All teachers.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...errors import ConfigError
from ...schedules import Progress, Schedule
from .base import SELECTIONS, Choice, Selected, Selection

if TYPE_CHECKING:
    from ...step import Step


@SELECTIONS.register("dense")
class Dense(Selection):
    """All teachers, with the weights `softmax(scores / temperature)`.

    A high temperature is the plain mean over the teachers, a low one the single best. A bonus for the entropy of the
    weights is the balance loss `entropy`.

    Args:
        temperature: above 0; a number or a schedule over the stage.
    """

    example: ClassVar[Mapping[str, Any]] = {"signal": "kd"}

    takes_all = True

    def __init__(self, temperature: Schedule | float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        if not isinstance(temperature, Schedule):
            _positive(temperature)

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Choice | Selected:
        """Return the weights, which are the router's probabilities too."""
        if isinstance(self.temperature, Schedule):
            temperature = _positive(self.temperature(Progress() if step is None else step.progress))
        else:
            temperature = self.temperature
        if temperature == 1:
            return probs_BT, None
        weights = (logits_BT / temperature).softmax(dim=1)
        return Selected(weights, None, weights)


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ConfigError(f"router.selection.temperature: must stay above 0, found {temperature}")
    return temperature
