"""All teachers.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
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

    A schedule moves the temperature in training. Validation and everything after training use the temperature of the
    last training step, which checkpoints hold.

    Args:
        temperature: above 0; a number or a schedule over the stage.
    """

    example: ClassVar[Mapping[str, Any]] = {"signal": "kd"}

    takes_all = True
    last_temperature: Tensor

    def __init__(self, temperature: Schedule | float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        if isinstance(temperature, Schedule):
            self.register_buffer("last_temperature", torch.tensor(temperature(Progress())))
        else:
            _positive(temperature)

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Choice | Selected:
        """Return the weights, which are the router's probabilities too."""
        temperature = self._temperature(step)
        if isinstance(temperature, float) and temperature == 1:
            return probs_BT, None
        weights = (logits_BT / temperature).softmax(dim=1)
        return Selected(weights, None, weights)

    def _temperature(self, step: Step | None) -> Tensor | float:
        if not isinstance(self.temperature, Schedule):
            return float(self.temperature)
        if step is not None and step.training and self.training:
            self.last_temperature.fill_(_positive(self.temperature(step.progress)))
        return self.last_temperature


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ConfigError(f"router.selection.temperature: must stay above 0, found {temperature}")
    return temperature
