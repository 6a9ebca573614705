"""Trying a forward without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


@contextmanager
def untouched(*modules: nn.Module) -> Iterator[None]:
    """Put the buffers, extra state and train modes of the modules back at the end.

    Buffers keep their identity. One that is None before is None again.
    """
    parts = [part for module in modules for part in module.modules()]
    modes = [(part, part.training) for part in parts]
    put_back = remember_buffers(*modules)
    try:
        yield
    finally:
        put_back()
        for part, mode in modes:
            part.training = mode


def remember_buffers(*modules: nn.Module) -> Callable[[], None]:
    """Copy the buffers and extra state of the modules; what is returned puts them back.

    Buffers keep their identity. One that is None before is None again.
    """
    parts = [part for module in modules for part in module.modules()]
    buffers = [
        (part, name, buffer, None if buffer is None else buffer.clone())
        for part in parts
        for name, buffer in part._buffers.items()
    ]
    extras = [
        (part, part.get_extra_state()) for part in parts if type(part).get_extra_state is not nn.Module.get_extra_state
    ]

    def put_back() -> None:
        for part, extra in extras:
            part.set_extra_state(extra)
        with torch.no_grad():
            for part, name, buffer, value in buffers:
                if buffer is not None and value is not None:
                    buffer.copy_(value)
                part._buffers[name] = buffer

    return put_back


def same_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """Put the random state of torch, on the CPU and on a device, back at the end."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
