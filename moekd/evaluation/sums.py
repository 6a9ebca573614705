"""Sums that stay on the device, and how they are added up over processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of running sums on `device`: float64, or float32 on MPS, which has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def reduce_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Add up each tensor over all processes, in place; does nothing without an initialised process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for tensor in tensors:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
