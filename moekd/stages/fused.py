"""Optimizer steps in one kernel."""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

#: Options of an optimizer that say how a step is computed, not what it computes.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
_FUSED = (Adam, AdamW, SGD)
_DEVICES = ("cpu", "cuda")

#: Processes that need nothing of an optimizer but its step.
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def use_fused(optimizer: AnyOptimizer) -> AnyOptimizer:
    """Let Adam, AdamW and SGD move a group of parameters in one pass over memory, and return the optimizer.

    PyTorch's default on the CPU is a loop of about ten passes, which for the large weights of masks costs as much as
    small networks do; the fused step of Adam takes about a tenth of it and gives the same weights to rounding. Groups
    whose config says `fused` or `foreach`, and parameters that the fused step does not take, stay as they are. Gradient
    scalers see an ordinary optimizer and leave out steps themselves. Call it before the first step.
    """
    if type(optimizer) not in _FUSED:
        return optimizer
    for group in optimizer.param_groups:
        chosen = any(group.get(key) for key in IMPLEMENTATION) or group.get("fused") is not None
        tensors = [group["lr"], *group["params"]] if isinstance(group["lr"], torch.Tensor) else group["params"]
        plain = all(type(p) in (torch.Tensor, nn.Parameter) for p in tensors)  # no shards of a tensor
        fits = plain and all(p.device.type in _DEVICES and p.is_floating_point() for p in tensors)
        if fits and not chosen and group.get("foreach") is None:
            group["fused"] = True
    return optimizer


def without_wrapper(optimizer: Optimizer, accelerator: Accelerator) -> Optimizer:
    """Return the optimizer itself where Accelerate's wrapper adds nothing to it.

    Without a gradient scaler and on ordinary processes the wrapper looks for installed packages and reads signatures in
    every step, which takes as long as a fused step of a small network.
    """
    if not isinstance(optimizer, AcceleratedOptimizer) or accelerator.scaler is not None:
        return optimizer
    inner: Optimizer = optimizer.optimizer
    return inner if accelerator.distributed_type in _PLAIN else optimizer
