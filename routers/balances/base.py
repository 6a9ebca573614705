"""What a balance loss is.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...registry import Registry
from ...schedules import Progress, Schedule


class Balance(nn.Module):
    """An auxiliary loss on the router's probabilities, with a weight that may follow a schedule."""

    def __init__(self, weight: Schedule | float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def weight_at(self, progress: Progress) -> float:
        """Return the weight at a moment of the stage."""
        return self.weight(progress) if isinstance(self.weight, Schedule) else float(self.weight)

    def forward(self, probs_BT: Tensor, logits_BT: Tensor, chosen_Bk: Tensor | None) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError


BALANCES: Registry[Balance] = Registry("balance loss", "balances", base=Balance)
