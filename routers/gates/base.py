"""What a gate is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from ...registry import Registry

if TYPE_CHECKING:
    from ...step import Step


class Scores(NamedTuple):
    """What a gate returns when balance losses read more than its scores.

    Attributes:
        logits: `[B, T]`.
        details: goes to `Routing.details`.
    """

    logits: Tensor
    details: dict[str, Tensor]


class Gate(nn.Module):
    """Scores the teachers for every instance: `gate(step) -> logits [B, T]`, or `Scores`."""

    #: True when the gate reads what the teachers say; otherwise rows can be routed before any teacher runs.
    needs_teachers: bool = False
    #: True when the scores are the logarithms of weights that a formula gives, so that ignoring them is a mistake.
    gives_weights = False

    def forward(self, step: Step) -> Tensor | Scores:
        """Return the scores, `[B, T]`."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Update what no gradient trains; called once after every optimizer step."""


GATES: Registry[Gate] = Registry("gate", "gates", base=Gate)
