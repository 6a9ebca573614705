"""Layers below a tap that run on tensors without data, once: after that the shapes that they give are known.

PyTorch works out the shape of many an operation in Python, which costs more than the operation on a small batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .later_tap import runs_in_order


class KnownShapes:
    """Answers for layers whose input and output is one tensor each, given tensors without data.

    These are the members of an `nn.Sequential` or `Chain`, and those as a whole.

    Args:
        network: which is entered at a tap.
        tap: a module path; what contains it always runs.
    """

    def __init__(self, network: nn.Module, tap: str) -> None:
        self.layers = dict(_simple(network, "", tap))
        self.found: dict[tuple[str, torch.Size, torch.dtype], tuple[torch.Size, torch.dtype]] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Put the answers in place of the layers' own forwards while the context is open."""
        try:
            for path, layer in self.layers.items():
                layer.forward = partial(self._forward, path, layer)
            yield
        finally:
            for layer in self.layers.values():
                vars(layer).pop("forward", None)

    def _forward(self, path: str, layer: nn.Module, x: Tensor) -> Tensor:
        run = type(layer).forward
        if not x.is_meta:
            said: Tensor = run(layer, x)
            return said
        key = path, x.shape, x.dtype
        if key not in self.found:
            output = run(layer, x)
            if not isinstance(output, Tensor) or not output.is_meta:
                return output
            self.found[key] = output.shape, output.dtype
        shape, dtype = self.found[key]
        return torch.empty(shape, dtype=dtype, device="meta")


def _simple(module: nn.Module, path: str, tap: str, member: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield the largest such layers with their paths."""
    within = not path or tap == path or tap.startswith(f"{path}.")
    if not within and (member or runs_in_order(module)) and "forward" not in vars(module):
        yield path, module
        return
    children: Mapping[str, nn.Module] = dict(module.named_children())
    for name, child in children.items():
        yield from _simple(child, f"{path}.{name}" if path else name, tap, runs_in_order(module))
