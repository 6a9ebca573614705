"""What a router decided for a batch.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Combine = Literal["select", "loss", "target"]
Signal = Literal["aux_only", "kd", "task", "oracle", "bilevel", "policy", "none"]
Mix = Literal["probs", "logits", "logmeanexp", "confidence"]


@dataclass(frozen=True)
class Routing:
    """Weights over the teacher variants for every instance.

    Attributes:
        weights: `[B, T]`; rows sum to 1 unless the selection says otherwise (`sums_to_one`).
        chosen: indices `[B, k]`, best first, -1 for an empty place, or None when all teachers take part.
        logits: the gate's scores `[B, T]`.
        probs: softmax of the scores `[B, T]`.
        losses: auxiliary losses (scalars), already weighted.
        stats: detached tensors for the log.
        details: what balance losses read besides, by name, with gradients: "load" `[B, T]` of a noisy selection,
            "input" `[B, D]` and "prototypes" `[T, D]` of a prototype gate.
        mask: rows that count, `[B]`; None: all. The others change neither losses nor loads.
        positions: shape of an instance's rows: `()` where instances are routed, `(N,)` for tokens, `(H, W)` for pixels.
            The rows of all tensors here are then all positions of the first instance, of the second, ..., and B stands
            for their number.
        combine: how objectives use the weights: "select", "loss" or "target".
        signal: where the gate's gradient comes from.
        mix: what "target" mixes.
        label_weights: how much the label counts beside the teachers, `[B]` in [0, 1]; None: the gate does not weigh it.
        hypothetical: the weights carry a gradient although the signal is not "kd": a stage asks what another weight
            would have led to.
    """

    weights: Tensor
    chosen: Tensor | None
    logits: Tensor
    probs: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)
    details: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    positions: tuple[int, ...] = ()
    combine: Combine = "select"
    signal: Signal = "aux_only"
    mix: Mix = "probs"
    label_weights: Tensor | None = None
    hypothetical: bool = False

    @cached_property
    def applied_weights(self) -> Tensor:
        """Weights as the distillation loss sees them, `[B, T]`.

        With `select` every chosen teacher counts the same (1/k); otherwise the router's weights. They carry a
        gradient to the gate only where its signal is the distillation loss ("kd").
        """
        if self.combine == "select":
            if self.chosen is None:
                return torch.full_like(self.weights, 1 / self.weights.shape[1])
            filled = (self.chosen >= 0).to(self.weights.dtype)
            share = filled / filled.sum(dim=1, keepdim=True).clamp_min(1)
            return torch.zeros_like(self.weights).scatter_add(1, self.chosen.clamp_min(0), share)
        return self.weights if self._teaches else self.weights.detach()

    @property
    def label_share(self) -> Tensor | None:
        """How much the label counts, `[B]`, with a gradient where `applied_weights` have one."""
        if self.label_weights is None or self._teaches:
            return self.label_weights
        return self.label_weights.detach()

    @property
    def teacher_share(self) -> Tensor | None:
        """What the label leaves to the teachers, `[B]`: the factor of their losses."""
        return None if self.label_share is None else 1 - self.label_share

    @property
    def _teaches(self) -> bool:
        return self.signal == "kd" or self.hypothetical

    @cached_property
    def load(self) -> Tensor:
        """Number of rows that each teacher taught, `[T]`, without gradient."""
        weights_BT = self.applied_weights.detach()
        return (weights_BT if self.mask is None else weights_BT * self.mask[:, None]).sum(dim=0)

    def rows(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the rows that chose each teacher, by name; empty for a teacher that nobody chose."""
        assert self.chosen is not None
        experts = torch.arange(len(names), device=self.chosen.device)
        taken_TB = (self.chosen[None] == experts[:, None, None]).any(dim=2)
        counts = taken_TB.sum(dim=1).tolist()  # the host has to know the sizes: read for all teachers at once
        return dict(zip(names, taken_TB.nonzero()[:, 1].split(counts), strict=True))
