"""Expected calibration error, streamed.

Shapes: B batch, C classes, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sums import reduce_over_ranks, sum_dtype


class CalibrationError:
    """Expected calibration error over equal-width bins of the confidence.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599, equation 3: the mean over the
    bins, weighted by their size, of |accuracy - mean confidence|. Bins are closed on the right.
    """

    def __init__(self, bins: int = 15, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self.bins = bins
        self.sums = torch.zeros(3, bins, dtype=sum_dtype(device), device=device)

    def update(self, logits: Tensor, labels: Tensor, counted: Tensor) -> None:
        """Add logits `[B, C, ...]` with labels `[B, ...]`; only where the boolean `counted` `[B, ...]` is true."""
        confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
        bins = ((confidence * self.bins).ceil() - 1).clamp(0, self.bins - 1).nan_to_num().long()
        rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).to(confidence)])
        rows = torch.where(counted, rows.to(self.sums), 0.0)
        self.sums.scatter_add_(1, bins.flatten().expand(3, -1), rows.flatten(1))

    def reduce(self) -> CalibrationError:
        """Add up over all processes of `torch.distributed`, in place; returns itself."""
        reduce_over_ranks([self.sums])
        return self

    def compute(self) -> float:
        """Return the error in [0, 1]; NaN when nothing was added."""
        size, confidence, hits = self.sums.cpu().double()
        return ((hits - confidence).abs().sum() / size.sum()).item()
