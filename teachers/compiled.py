"""Frozen networks through `torch.compile`, and as they are where that can't be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)
#: Batches of fewer rows (the two samples that shapes are learned from) are not worth compiling for.
FEWEST_ROWS = 8


class Compiled:
    """Calls a network compiled, or as it is where compiling would be wrong or impossible.

    A network with hooks (taps that are read, masks) runs as it is: compiled code would not call them. So does every
    forward outside of `torch.inference_mode`, in which the pool runs frozen teachers. Where the compiler fails (no C++
    compiler, an operation that it does not know) a warning says why, and the network runs as it is from then on: the
    numbers are the same up to rounding.

    Args:
        who: the network's name in messages.
        backend: of `torch.compile`.
    """

    def __init__(self, who: str, backend: str | Callable[..., Any] = "inductor") -> None:
        self.who, self.backend = who, backend
        self.calls, self.failed = 0, False
        self._network: Callable[..., Any] | None = None

    def __call__(self, network: nn.Module, arguments: tuple[Tensor, ...]) -> Any:
        """Return what the network gives for the arguments."""
        plain = self.failed or not torch.is_inference_mode_enabled() or len(arguments[0]) < FEWEST_ROWS
        if plain or any(part._forward_hooks for part in network.modules()):
            return network(*arguments)
        if self._network is None:
            self._network = torch.compile(network, backend=self.backend, dynamic=False)
        try:
            found = self._network(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            self.failed = True
            logger.warning("%s runs uncompiled: torch.compile failed: %s", self.who, _reason(error))
            return network(*arguments)
        self.calls += 1
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Copies compile anew."""
        return vars(self) | {"_network": None}


def _reason(error: Exception) -> str:
    """Return the beginning of an error of many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
