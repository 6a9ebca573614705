"""What a balance loss is.

Shapes: B batch, T teacher variants.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...distributed import batch_mean
from ...registry import Registry
from ...schedules import Progress, Schedule
from ...signals import full_precision
from ..routing import Routing


class Balance(nn.Module):
    """An auxiliary loss on the router's probabilities, with a weight that may follow a schedule."""

    def __init__(self, weight: Schedule | float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def weight_at(self, progress: Progress) -> float:
        """Return the weight at a moment of the stage."""
        return self.weight(progress) if isinstance(self.weight, Schedule) else float(self.weight)

    def forward(self, routing: Routing) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError


def mean_over_rows(values_BD: Tensor, mask_B: Tensor | None = None) -> Tensor:
    """Mean over the rows of the global batch whose mask is True (default: all), `[B, D] -> [D]`; 0 if there is none."""
    values_BD = full_precision(values_BD)
    if mask_B is None:
        return batch_mean(values_BD)
    rows_B1 = mask_B.to(values_BD)[:, None]
    share = batch_mean(rows_B1)
    return batch_mean(values_BD.where(rows_B1 > 0, 0.0)) / share.clamp_min(1e-12)


BALANCES: Registry[Balance] = Registry("balance loss", "balances", base=Balance)
