"""Forward and backward of one mask: the released code's, ours with the same function, and the factorised kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..teachers import FactorisedAttentionMask, FeatureAttentionMask, Mask
from .performance_overhead import Bench
from .performance_published import AttentionMask
from .performance_timing import Round, row

#: Features of a mask, and rows of a batch that the plain form has memory for.
SIZES = ((84, 512), (120, 512), (256, 128), (596, 48))


def masks(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yield the cost of a forward and backward of each kind of mask, by number of features."""
    for dim, rows in SIZES[:2] if bench.quick else SIZES:
        case = f"a mask of {dim} features, {rows} rows"
        kinds: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {}
        plain = AttentionMask(dim).to(bench.device)
        kinds["published code"] = plain, plain
        ours: dict[str, Mask] = {
            "feature_attention": FeatureAttentionMask(dim),
            "factorised_attention, rank 16": FactorisedAttentionMask(dim),
        }
        kinds |= {name: (mask.to(bench.device), mask.adapt) for name, mask in ours.items()}
        vectors = torch.randn(rows, dim, device=bench.device)
        arms = {arm: _step(bench, *kind, vectors) for arm, kind in kinds.items()}
        times = bench.take_turns(arms, 5)
        for arm in arms:
            yield row("masks", case, arm, "forward and backward", 1000 * times.median(arm), "ms")
        for arm in list(arms)[1:]:
            yield row("masks", case, arm, "times less", times.ratio("published code", arm), "x")


def _step(bench: Bench, mask: nn.Module, adapt: Callable[[Tensor], Tensor], vectors: Tensor) -> Round:
    pull = torch.randn_like(vectors)

    def run() -> int:
        mask.zero_grad(set_to_none=True)
        with bench.accelerator.autocast():
            adapted = adapt(vectors)
        adapted.backward(pull)
        return 1

    return run
