"""Weights that live in main memory and visit another device for a forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Put copies of all weights and buffers on a device while the context is open; then the module has its own again.

    The device holds the weights of one visitor at a time, so that several teachers take the memory of the largest. A
    copy costs the time of its transfer in every forward: batches should be large, or the signals be cached. For a GPU
    the weights are moved to page-locked memory at the first visit, from which copies need not wait for the host.

    Args:
        module: frozen; what changes in its buffers while the context is open is lost.
        device: where to.
    """
    homes: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    copies: dict[int, Tensor] = {}
    try:
        for part in module.modules():
            for group in (part._parameters, part._buffers):
                for name, tensor in list(group.items()):
                    if tensor is not None:
                        homes.append((group, name, tensor))  # type: ignore[arg-type]
                        group[name] = _copy(tensor, device, copies)  # type: ignore[assignment]
        yield
    finally:
        for group, name, tensor in homes:
            group[name] = tensor


def _copy(tensor: Tensor, device: torch.device, copies: dict[int, Tensor]) -> Tensor:
    """Return the copy of a tensor; tied weights have one."""
    if id(tensor) not in copies:
        if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor.data = tensor.data.pin_memory()
        moved = tensor.detach().to(device, non_blocking=True)
        copies[id(tensor)] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    return copies[id(tensor)]
