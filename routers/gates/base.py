"""What a gate is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

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
    #: Keys of a `router` section with which this gate makes sense, where they differ from `examples`' own: the other
    #: parts of the router, and under "gate" options of the gate itself.
    example: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def examples(cls, num_teachers: int) -> dict[str, dict[str, Any]]:
        """Return `router` sections in which this gate makes sense, without its `kind`, by suffix of their name.

        All teachers take part and one target is mixed from what they say. A gate that learns does so from the
        cross-entropy of the mixture; one whose weights a formula gives has nothing to learn.
        """
        signal = "none" if cls.gives_weights else "task"
        usual = {"selection": {"kind": "dense"}, "balance": [], "combine": "target", "signal": signal, "mix": "probs"}
        return {"": usual | dict(cls.example)}

    def forward(self, step: Step) -> Tensor | Scores:
        """Return the scores, `[B, T]`."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Update what no gradient trains; called once after every optimizer step."""


GATES: Registry[Gate] = Registry("gate", "gates", base=Gate)
