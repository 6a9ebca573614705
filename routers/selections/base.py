"""What a selection is.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ...registry import Registry

if TYPE_CHECKING:
    from ...step import Step

Choice = tuple[Tensor, Tensor | None]


class Selected(NamedTuple):
    """What a selection returns when it has more to say than weights and choice.

    Attributes:
        weights: `[B, T]`.
        chosen: indices `[B, k]`, best first, -1 for an empty place; None: all.
        probs: replaces the softmax of the scores as the router's probabilities `[B, T]`.
        details: goes to `Routing.details`.
    """

    weights: Tensor
    chosen: Tensor | None
    probs: Tensor | None = None
    details: dict[str, Tensor] | None = None


class Selection(nn.Module):
    """Maps router logits `[B, T]` to weights `[B, T]` and the chosen teachers `[B, k]` (None: all).

    Where tokens or pixels are routed, B is the number of all positions (see `moekd.routers.positions`). Rows outside of
    `mask_B` get weights that nobody reads, and must not change what the selection does with others.
    """

    #: Teachers chosen for an instance, where it is fixed; None means all, or a number that varies.
    k: int | None = None
    #: True when the weights of a row sum to 1; otherwise they may only multiply losses (combine "loss").
    sums_to_one: bool = True
    #: True when all teachers must have run.
    needs_teachers: bool = False
    #: True when all teachers take part in every row, so that without their weights they all count the same.
    takes_all: bool = False
    #: True when rows have weights of their own (their sums differ), which only multiply losses.
    weighs_rows: bool = False
    #: Keys of a `router` section with which this selection makes sense, where they differ from `examples`' own: the
    #: other parts of the router, and under "selection" options of the selection itself.
    example: ClassVar[Mapping[str, Any]] = {}

    @property
    def constant_weights(self) -> bool:
        """True when the weights carry no gradient: a single teacher whose weight is always 1."""
        return self.k == 1 and self.sums_to_one

    @classmethod
    def examples(cls, num_teachers: int) -> dict[str, dict[str, Any]]:
        """Return `router` sections in which this selection makes sense, without its `kind`, by suffix of their name.

        A gate on the student's logits learns from the cross-entropy of the teachers' mixture.
        """
        gate = {"kind": "mlp", "on": "student_logits"}
        usual = {"gate": gate, "balance": [], "combine": "target", "signal": "task", "mix": "probs"}
        return {"": usual | dict(cls.example)}

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Choice | Selected:
        """Return (weights, chosen), or more as `Selected`; what changes over time reads the step."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Update what no gradient trains; called once after every optimizer step."""


SELECTIONS: Registry[Selection] = Registry("selection", "selections", base=Selection)
