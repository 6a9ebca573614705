"""What selections without scores share.

Shapes: B batch, T teacher variants, k chosen ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import ConfigError, ModelError

if TYPE_CHECKING:
    from ...step import Step


def equal_weights(like_BT: Tensor, chosen_Bk: Tensor) -> Tensor:
    """Return the weight 1/k for each chosen teacher and 0 for the others, `[B, T]`."""
    share = torch.ones_like(chosen_Bk, dtype=like_BT.dtype) / chosen_Bk.shape[1]
    return torch.zeros_like(like_BT).scatter(1, chosen_Bk, share)


def require_k(k: int) -> int:
    """Return k, or refuse to choose nobody."""
    if k < 1:
        raise ConfigError(f"router.selection.k: at least one teacher must be chosen, found {k}")
    return k


def require_step(step: Step | None, who: str) -> Step:
    """Return the step, or say who needs it."""
    if step is None:
        raise ModelError(f"the selection '{who}' reads the samples' ids: call it with the step")
    return step
