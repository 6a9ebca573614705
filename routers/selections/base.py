"""What a selection is.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...registry import Registry


class Selection(nn.Module):
    """Maps router logits `[B, T]` to weights `[B, T]` (rows sum to 1) and the chosen teachers `[B, k]` (None: all)."""

    #: Teachers chosen for an instance, where it is fixed; None means all.
    k: int | None = None

    def forward(self, logits_BT: Tensor, probs_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (weights, chosen)."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Update what no gradient trains; called once after every optimizer step."""


SELECTIONS: Registry[Selection] = Registry("selection", "selections", base=Selection)
