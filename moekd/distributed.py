"""The few collective operations that keep losses equal for one and for many processes.

Under data parallelism the gradients of the processes are averaged. A mean over the rows of a global batch is therefore
written as `sum(local) / (global_count / world)`, and the mean of a quantity inside a non-linear function is reduced
with a collective that carries gradients.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch import distributed as dist

from .errors import ConfigError, DataError, MissingDependencyError, PeerError

#: How gloo and NCCL say that another process is gone or silent.
_LOST = re.compile(
    r"connection (was )?(closed|reset|refused)|timed out|timeout|broken pipe|socket|remote process", re.I
)


def world_size() -> int:
    """Return the number of processes, 1 outside of a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def end_process() -> NoReturn:
    """End one of several processes of a program that went well, without tearing the interpreter down.

    Threads of gloo that still run then abort the process now and then (exit code -6, "terminate called without an
    active exception"), also where the process group has been destroyed before.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def other_processes() -> Iterator[None]:
    """Turn what a collective operation raises when another process is gone or silent into one clear error.

    Raises:
        PeerError: which process noticed it, and what to look at.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        raise PeerError(
            f"process {rank()} of {world_size()} stops: another one failed, or did not answer within "
            f"trainer.timeout_minutes; its own message says why ({str(error).splitlines()[0]:.200})"
        ) from error


def sharding_asked_for() -> bool:
    """Tell whether `accelerate launch` was given an FSDP config, and there are several processes.

    Raises:
        ConfigError: it asks for the first version of FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("accelerate config: fsdp_version 1 is not supported; set fsdp_version: 2")
    return world_size() > 1


@contextmanager
def launched_as() -> Iterator[None]:
    """Make an Accelerator inside: it does not hear of FSDP, which stages do by themselves for what they train.

    Raises:
        MissingDependencyError: `accelerate launch` was given a DeepSpeed config, and DeepSpeed is not installed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true" and find_spec("deepspeed") is None:
        raise MissingDependencyError("deepspeed", "deepspeed", "the accelerate config with distributed_type: DEEPSPEED")
    asked = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["ACCELERATE_USE_FSDP"] = asked


def whole(tree: Any) -> Any:
    """Return nested dicts, lists and tuples with every sharded tensor gathered; all processes have to call this.

    Tensors that are not sharded are returned as they are, and so is a tree without any.
    """
    if world_size() == 1:
        return tree
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(whole(value) for value in tree)
    if isinstance(tree, Tensor) and hasattr(tree, "full_tensor"):
        return tree.full_tensor()
    return tree


def batch_mean(values_BD: Tensor) -> Tensor:
    """Mean over the rows of the global batch, `[B, D] -> [D]`, with gradients through the other processes' rows."""
    if world_size() == 1:
        return values_BD.mean(dim=0)
    count = torch.tensor([values_BD.shape[0]], dtype=values_BD.dtype, device=values_BD.device)
    dist.all_reduce(count)
    total: Tensor = _Sum.apply(values_BD.sum(dim=0))
    return total / count.clamp_min(1)


class _Sum(torch.autograd.Function):
    """Sum over the processes; the gradient of every process reaches all of them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return sum_over_processes(value.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0].clone())


def masked_mean(values_B: Tensor, mask_B: Tensor | None = None) -> Tensor:
    """Mean of the values whose mask is True over the global batch; 0 (with zero gradient) if there is none.

    Averaged over processes, the result is the mean over the global batch, and so is its gradient.
    """
    if mask_B is None:
        total = values_B.sum()
        count = torch.tensor(float(values_B.numel()), device=values_B.device)
    else:
        total = torch.where(mask_B, values_B, torch.zeros_like(values_B)).sum()
        count = mask_B.sum().to(torch.float32)
    world = world_size()
    if world > 1:
        dist.all_reduce(count)
        count = count / world
    return total / count.clamp_min(1.0 / world)


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place, without gradients."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def rows_everywhere(batch: Mapping[str, Any]) -> bool:
    """Tell whether a batch has rows.

    Raises:
        DataError: it is empty (all samples were skipped) in one of several processes, which can't go on without it.
    """
    if len(batch["id"]):
        return True
    if world_size() > 1:
        raise DataError(
            f"process {rank()} has a batch without a readable sample; use on_bad_sample 'substitute' or larger batches"
        )
    return False


def average_buffers(module: torch.nn.Module) -> None:
    """Average floating-point buffers (running statistics) over the processes, in place."""
    world = world_size()
    if world == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(world)


def gather_rows(values_BD: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, `[N, D]`, in the order of the processes, and where this process's rows begin.

    Without gradients. Reads the processes' row counts back from the device if there are several processes.
    """
    world = world_size()
    if world == 1:
        return values_BD, 0
    mine = torch.tensor([values_BD.shape[0]], device=values_BD.device)
    counts = [torch.zeros_like(mine) for _ in range(world)]
    dist.all_gather(counts, mine)
    sizes = [int(count) for count in counts]
    padded = values_BD.new_zeros(max(sizes), values_BD.shape[1])
    padded[: values_BD.shape[0]] = values_BD
    parts = [torch.zeros_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return rows, sum(sizes[: rank()])


def gather_with_gradients(values_BD: Tensor) -> tuple[Tensor, int]:
    """Return what `gather_rows` does, with gradients: those of every process reach the rows they belong to.

    The processes may hold different numbers of rows; all have to call this, and all have to go backward through it.

    Shape:
        values_BD: `[B, D]` in this process; result: `[N, D]` of all processes, and the index of the first own row.
    """
    if world_size() == 1:
        return values_BD, 0
    rows, first = _GatherRows.apply(values_BD)
    return rows, int(first)


class _GatherRows(torch.autograd.Function):
    """The rows of all processes; backward adds up the gradients of all processes and keeps the own rows."""

    @staticmethod
    def forward(ctx: Any, values_BD: Tensor) -> tuple[Tensor, int]:
        rows, first = gather_rows(values_BD.detach().contiguous())
        ctx.own = slice(first, first + values_BD.shape[0])
        return rows, first

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return sum_over_processes(gradients[0].clone(memory_format=torch.contiguous_format))[ctx.own]
