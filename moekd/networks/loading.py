"""How much of an outside model is made: with its weights, without, or as a description on the meta device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

#: `weights`: as the config says; `architecture`: with new weights, since others are loaded afterwards, so that nothing
#: is downloaded; `meta`: shapes alone, for models that this machine can't hold.
Loading = Literal["weights", "architecture", "meta"]


def on_meta(loading: Loading) -> AbstractContextManager[object]:
    """Return a context in which new tensors are shapes alone, where that is wanted."""
    return torch.device("meta") if loading == "meta" else nullcontext()
