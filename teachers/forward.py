"""One forward of a teacher for several masked variants.

Shapes: B batch, V variants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError
from ..model import Batch, Model, tapped
from ..signals import Signals
from .masks import Mask
from .teacher import Teacher


class MaskedTap(NamedTuple):
    """A variant's name, the tap of its mask, and the mask."""

    name: str
    tap: str
    mask: Mask


def forward_shared(
    teacher: Teacher, batch: Batch, active: Sequence[MaskedTap], cumulative: bool, record: Sequence[str] | None = ()
) -> dict[str, Signals]:
    """Share the prefix: each tap appends the masked copies of its source rows behind the rows that are there.

    The source is the plain rows, or, if masks are cumulative, the rows of the previous variant. A tap has several
    masks where teachers that are the same run as one; masks are then not cumulative.

    Args:
        teacher: frozen, in eval mode.
        batch: fields `[B, ...]`.
        active: variants in the order of their taps.
        cumulative: masks of earlier taps stay active.
        record: taps to record, see `Model.forward`.

    Returns:
        The signals of the plain teacher (under its own name) and of the variants.

    Raises:
        ModelError: a tap fires twice or not at all, or stacked taps fire in another order.
    """
    size, order = batch_size(teacher, batch), [teacher.name]
    by_tap = _by_tap(active)

    def append(tap: str, output: Tensor) -> Tensor:
        here = by_tap[tap]
        if here[0].name in order:
            raise ModelError(f"tap '{tap}' of teacher '{teacher.name}' fires twice in one forward; tap another module")
        if cumulative and here != [active[len(order) - 1]]:
            raise ModelError(
                f"masks of teacher '{teacher.name}' stack in the order {[v.tap for v in active]}, but tap '{tap}' "
                "fires earlier; specialise the taps in the order of the forward, or use sharing='replicate'"
            )
        source = len(order) - 1 if cumulative else 0
        part = output[source * size : (source + 1) * size]
        order.extend(variant.name for variant in here)
        return torch.cat([output, *(variant.mask.adapt(part) for variant in here)])

    signals = _forward_with(teacher, batch, active, append, record)

    def part_of(index: int, tensor: Tensor) -> Tensor:
        """Return the rows of a variant; below its own mask it shares the rows of its source."""
        while index * size >= tensor.shape[0]:
            index = index - 1 if cumulative else 0
        return tensor[index * size : (index + 1) * size]

    return {name: signals.map(partial(part_of, index)) for index, name in enumerate(order)}


def forward_replicated(
    teacher: Teacher,
    batch: Batch,
    active: Sequence[MaskedTap],
    cumulative: bool,
    record: Sequence[str] | None = (),
    plain: bool = True,
) -> dict[str, Signals]:
    """Replicate the input, one copy a variant; each tap masks the rows of its variants.

    Args:
        teacher, batch, active, cumulative, record: see `forward_shared`.
        plain: also compute the plain teacher.
    """
    size, names = batch_size(teacher, batch), [variant.name for variant in active]
    names = [teacher.name, *names] if plain else names
    copies = {field: torch.cat([batch[field]] * len(names)) for field in teacher.inputs}
    by_tap = _by_tap(active)

    def replace(tap: str, output: Tensor) -> Tensor:
        for variant in by_tap[tap]:
            first = names.index(variant.name) * size
            last = output.shape[0] if cumulative else first + size
            adapted = variant.mask.adapt(output[first:last])
            output = torch.cat([output[:first], adapted, output[last:]])
        return output

    signals = _forward_with(teacher, copies, active, replace, record)
    return {name: signals.select(slice(i * size, (i + 1) * size)) for i, name in enumerate(names)}


@torch.no_grad()
def prefix_is_exact(teacher: Teacher, batch: Batch, active: Sequence[MaskedTap], cumulative: bool) -> bool:
    """Tell whether a teacher takes a batch that grows at its taps: both ways give the same logits for a few rows.

    The masks' modes are as before afterwards.
    """
    size = batch_size(teacher, batch)
    few = {field: batch[field][torch.arange(3) % size] for field in teacher.inputs}
    modes = [variant.mask.training for variant in active]
    try:
        for variant in active:
            variant.mask.eval()
        shared = forward_shared(teacher, few, active, cumulative)
        replicated = forward_replicated(teacher, few, active, cumulative)
        return all(_close(shared[variant.name], replicated[variant.name]) for variant in active)
    except (RuntimeError, ModelError):
        return False
    finally:
        for variant, mode in zip(active, modes, strict=True):
            variant.mask.train(mode)


def batch_size(teacher: Teacher, batch: Batch) -> int:
    """Return the number of rows that a teacher sees."""
    return int(Model.arguments(teacher, batch)[0].shape[0])  # as they are: neither moved nor cast


def _forward_with(
    teacher: Teacher,
    batch: Batch,
    active: Sequence[MaskedTap],
    on_tap: Callable[[str, Tensor], Tensor],
    record: Sequence[str] | None,
) -> Signals:
    silent = {variant.tap for variant in active}

    def note(tap: str, output: Tensor) -> Tensor:
        silent.discard(tap)
        return on_tap(tap, output)

    with tapped(teacher.network, list(silent), note):
        signals = teacher(batch, record)
    if silent:
        raise ModelError(f"taps {sorted(silent)} of teacher '{teacher.name}' take no part in its forward")
    return signals


def _by_tap(active: Sequence[MaskedTap]) -> dict[str, list[MaskedTap]]:
    found: dict[str, list[MaskedTap]] = {}
    for variant in active:
        found.setdefault(variant.tap, []).append(variant)
    return found


def _close(a: Signals, b: Signals) -> bool:
    x, y = a.require_logits("a variant"), b.require_logits("a variant")
    return x.shape == y.shape and torch.allclose(x, y, rtol=1e-3, atol=1e-4 * max(1.0, float(y.abs().max())))
