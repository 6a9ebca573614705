"""What the router did: who was chosen, how surely, for which classes, and how good the choice was.

Shapes: B batch, T teacher variants, C classes, k chosen variants a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from .sums import reduce_over_ranks, sum_dtype


class RoutingStatistics:
    """Streaming diagnostics of a router; sums stay on the device until `compute`.

    Args:
        names: the T variant names, in pool order.
        num_classes: C.
        device: where the sums live.
    """

    def __init__(self, names: Sequence[str], num_classes: int, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self.names, self.num_classes = list(names), num_classes
        variants, dtype = len(self.names), sum_dtype(device)
        self.use = torch.zeros(variants, dtype=dtype, device=device)
        self.use_by_class = torch.zeros(num_classes, variants, dtype=dtype, device=device)
        self.entropy = torch.zeros(2, dtype=dtype, device=device)
        self.losses = torch.zeros(6, dtype=dtype, device=device)
        self.variant_losses = torch.zeros(variants, dtype=dtype, device=device)

    def update(
        self,
        probs_BT: Tensor,
        chosen_Bk: Tensor | None,
        labels_B: Tensor | None = None,
        teacher_logits_BTC: Tensor | None = None,
        weights_BT: Tensor | None = None,
    ) -> None:
        """Add one batch.

        Args:
            probs_BT: the gate's distribution over the variants, `[B, T]`, rows sum to 1.
            chosen_Bk: indices of the variants that taught each row, `[B, k]`, -1 for an empty slot; None for a dense
                selection, where the probabilities are the shares.
            labels_B: true classes `[B]`; rows with a label outside of `[0, C)` count only for the overall shares.
            teacher_logits_BTC: logits of all variants `[B, T, C]`, to compare the choice with the best one.
            weights_BT: what the variants count in the loss, `[B, T]`, not negative; None: as `probs_BT` and `chosen_Bk`
                say. Rows are divided by their sums.

        Raises:
            DataError: shapes that do not fit the names and classes.
        """
        self._check(probs_BT, teacher_logits_BTC)
        weights_BT = (_weights(probs_BT, chosen_Bk) if weights_BT is None else _shares(weights_BT)).to(self.use)
        probs_BT = probs_BT.detach().to(self.use)
        self.use += weights_BT.sum(0)
        self.entropy[0] += torch.special.entr(probs_BT).sum()
        self.entropy[1] += len(probs_BT)
        if labels_B is None:
            return
        known_B = (labels_B >= 0) & (labels_B < self.num_classes)
        classes_B = torch.where(known_B, labels_B, 0)
        self.use_by_class.index_add_(0, classes_B, weights_BT * known_B[:, None])
        if teacher_logits_BTC is not None:
            self._update_losses(weights_BT, classes_B, known_B, teacher_logits_BTC)

    def reduce(self) -> RoutingStatistics:
        """Add up over all processes of `torch.distributed`, in place; returns itself."""
        reduce_over_ranks([self.use, self.use_by_class, self.entropy, self.losses, self.variant_losses])
        return self

    def compute(self) -> dict[str, Any]:
        """Return plain Python numbers, as the "routing" part of results.json.

        `variants`; `shares` [T]; `entropy` (nats, mean over rows); `load_cv` (standard deviation over mean of the
        shares, n - 1, 0 for one variant); `by_class` [C][T] (NaN rows for classes without rows). With teacher logits
        also `chosen_loss`, `oracle_loss`, `mean_loss` (cross-entropy in nats of the chosen variant, of the best one
        of each row, and of all variants on average), `variant_loss` [T], and `oracle_agreement`: the share of rows
        whose best variant was among the chosen; `chance_agreement` is what a random choice of as many would give.
        `oracle_weight` is the mean weight of the best variant; where all variants take part it tells more than the
        agreement, which is then 1.

        Raises:
            DataError: nothing was added.
        """
        rows = self.entropy[1].item()
        if not rows:
            raise DataError("routing statistics are empty: no row was routed")
        shares = self.use.cpu() / self.use.sum().cpu()
        by_class = self.use_by_class.cpu()
        result: dict[str, Any] = {
            "variants": self.names,
            "shares": shares.tolist(),
            "entropy": self.entropy[0].item() / rows,
            "load_cv": (shares.std() / shares.mean()).item() if len(self.names) > 1 else 0.0,
            "by_class": (by_class / by_class.sum(1, keepdim=True)).tolist(),
        }
        keys = ("chosen_loss", "oracle_loss", "oracle_agreement", "chance_agreement", "oracle_weight")
        *sums, count = self.losses.tolist()
        if not count:
            return result | dict.fromkeys(("mean_loss", *keys), None) | {"variant_loss": None}
        variant_loss = (self.variant_losses / count).tolist()
        result |= {key: value / count for key, value in zip(keys, sums, strict=True)}
        return result | {"mean_loss": sum(variant_loss) / len(variant_loss), "variant_loss": variant_loss}

    def _update_losses(self, weights_BT: Tensor, classes_B: Tensor, known_B: Tensor, logits_BTC: Tensor) -> None:
        variants = len(self.names)
        losses_BT = F.cross_entropy(
            logits_BTC.detach().float().flatten(0, 1), classes_B.repeat_interleave(variants), reduction="none"
        ).view(-1, variants)
        losses_BT = losses_BT.to(self.use)
        counted_B = known_B & (weights_BT.sum(1) > 0)
        best_loss_B, best_B = losses_BT.min(dim=1)
        used_BT = weights_BT > 0
        terms = [
            (weights_BT * losses_BT).sum(1),
            best_loss_B,
            used_BT.gather(1, best_B[:, None]).squeeze(1).to(losses_BT),
            used_BT.sum(1).to(losses_BT) / variants,
            weights_BT.gather(1, best_B[:, None]).squeeze(1),
            torch.ones_like(best_loss_B),
        ]
        self.losses += torch.where(counted_B, torch.stack(terms), 0.0).sum(1)
        self.variant_losses += torch.where(counted_B[:, None], losses_BT, 0.0).sum(0)

    def _check(self, probs_BT: Tensor, logits_BTC: Tensor | None) -> None:
        variants = len(self.names)
        if probs_BT.ndim != 2 or probs_BT.shape[1] != variants:
            raise DataError(f"routing probabilities have shape {tuple(probs_BT.shape)}, expected [B, {variants}]")
        expected = (len(probs_BT), variants, self.num_classes)
        if logits_BTC is not None and tuple(logits_BTC.shape) != expected:
            raise DataError(f"teacher logits have shape {tuple(logits_BTC.shape)}, expected {expected}")


def _shares(weights_BT: Tensor) -> Tensor:
    """Return the weights divided by the sums of their rows; rows of zeros stay."""
    weights_BT = weights_BT.detach().clamp_min(0)
    total_B1 = weights_BT.sum(dim=1, keepdim=True)
    return weights_BT / torch.where(total_B1 > 0, total_B1, 1)


def _weights(probs_BT: Tensor, chosen_Bk: Tensor | None) -> Tensor:
    """Share of each row that each variant taught, `[B, T]`; rows sum to 1, or to 0 when nobody was chosen."""
    if chosen_Bk is None:
        return probs_BT.detach()
    filled = (chosen_Bk >= 0).to(torch.float32)
    weights_BT = torch.zeros(probs_BT.shape, dtype=torch.float32, device=probs_BT.device)
    weights_BT.scatter_add_(1, chosen_Bk.clamp(min=0), filled)
    return weights_BT / filled.sum(1, keepdim=True).clamp(min=1)
