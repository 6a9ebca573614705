"""Running a masked variant from its tap on.

Shapes: B batch, D features or channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..model import Batch
from ..signals import Signals
from .entry import enter
from .known_shapes import KnownShapes
from .later_tap import LaterTap, later_tap
from .masks import ChannelMask, Mask
from .teacher import Teacher

#: Ends the names of maps that are kept in channels-last order.
CHANNELS_LAST = " BHWC"


@dataclass(frozen=True)
class MaskedEntry:
    """A variant that is entered at its tap or, where its weights pass to a later one, there.

    Attributes:
        teacher: frozen, in eval mode.
        tap: of the mask.
        mask: adapts the activation at the tap.
        features: the teacher's taps are recorded; the variant is then entered at its own.
    """

    teacher: Teacher
    tap: str
    mask: Mask
    features: bool = False

    @cached_property
    def place(self) -> LaterTap | None:
        """Where the weights of the mask are multiplied instead of at the tap."""
        kind = type(self.mask)
        weighs = issubclass(kind, ChannelMask) and kind.adapt is Mask.adapt and kind.forward is ChannelMask.forward
        if self.features or not weighs:
            return None
        return later_tap(self.teacher.network, self.tap)

    @property
    def taps(self) -> list[str]:
        """What a forward up to the variant has to note."""
        return [self.tap] if self.place is None else [self.tap, self.place.path]

    @torch.no_grad()
    def kept(self, activations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what a cache has to keep of the activations at `taps`: a map, or what mask and network read of it.

        Maps in channels-last order are kept in it.
        """
        if self.place is None or not self._summary:
            return _stored(self.tap, activations[self.tap])
        assert isinstance(self.mask, ChannelMask)
        summary = self.mask.summarise(activations[self.tap])
        return {self._summary: summary} | _stored(self.place.path, activations[self.place.path])

    def __call__(self, known: Mapping[str, Tensor], batch: Batch) -> Signals:
        """Return what the variant says, given the activations at `taps` or what is `kept` of them."""
        record: Sequence[str] | None = None if self.features else ()
        activation = _found(known, self.tap)
        if self.place is None:
            assert activation is not None
            return enter(self.teacher, self.tap, self.mask.adapt(activation), batch, record, self._shapes)
        later, read = _found(known, self.place.path), known.get(self._summary, activation)
        assert isinstance(self.mask, ChannelMask)
        assert read is not None
        if later is None:
            later = self.place.activation(read)
        adapted = self.mask.adapt_later(read, later)
        return enter(self.teacher, self.place.path, adapted, batch, record, self._shapes)

    @cached_property
    def _shapes(self) -> KnownShapes:
        return KnownShapes(self.teacher.network, self.tap if self.place is None else self.place.path)

    @property
    def _summary(self) -> str:
        """Name of what the mask reads of a map, "" where it reads all of it."""
        summary = self.mask.summary if isinstance(self.mask, ChannelMask) else ""
        return f"{self.tap} {summary}" if summary else ""


def _stored(path: str, activation: Tensor) -> dict[str, Tensor]:
    if activation.dim() == 4 and activation.is_contiguous(memory_format=torch.channels_last):
        return {f"{path}{CHANNELS_LAST}": activation.permute(0, 2, 3, 1)}
    return {path: activation}


def _found(known: Mapping[str, Tensor], path: str) -> Tensor | None:
    kept = known.get(f"{path}{CHANNELS_LAST}")
    return known.get(path) if kept is None else kept.permute(0, 3, 1, 2)
