"""What models say about one batch.

Shapes: B batch, T teacher variants, C classes, D features, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import ModelError, did_you_mean


def full_precision(tensor: Tensor) -> Tensor:
    """Raise half-precision floats to float32, in which losses are computed; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Signals:
    """The outputs of one model for one batch; every tensor has the batch as its first axis.

    Attributes:
        logits: `[B, C]`, dense `[B, C, H, W]`, or None for models without a classifier.
        features: tapped activations by tap name.
        embeddings: `[B, D]` by modality.
        heads: outputs of extra heads by head name.
    """

    logits: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Signals:
        """Apply `function` to every tensor."""
        return Signals(
            None if self.logits is None else function(self.logits),
            {key: function(value) for key, value in self.features.items()},
            {key: function(value) for key, value in self.embeddings.items()},
            {key: function(value) for key, value in self.heads.items()},
        )

    def detach(self) -> Signals:
        """Return the same signals cut from the autograd graph."""
        return self.map(Tensor.detach)

    def to(self, *args: object, **kwargs: object) -> Signals:
        """Move or cast every tensor, as `torch.Tensor.to` does."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))  # type: ignore[call-overload]

    def select(self, rows: Tensor | slice) -> Signals:
        """Return the given rows of the batch (indices, boolean mask or slice)."""
        return self.map(lambda tensor: tensor[rows])

    @staticmethod
    def cat(parts: Sequence[Signals]) -> Signals:
        """Join batches of signals that have the same keys."""
        first = parts[0]

        def join(group: str) -> dict[str, Tensor]:
            return {key: torch.cat([getattr(part, group)[key] for part in parts]) for key in getattr(first, group)}

        logits = None if first.logits is None else torch.cat([part.require_logits("cat") for part in parts])
        return Signals(logits, join("features"), join("embeddings"), join("heads"))

    def require_logits(self, who: str) -> Tensor:
        """Return the logits, or say who needs them."""
        if self.logits is None:
            raise ModelError(f"{who} needs logits, but the model gives none; add a classifier head")
        return self.logits

    def feature(self, tap: str, who: str) -> Tensor:
        """Return a tapped activation, or say which taps there are."""
        if tap not in self.features:
            hint = did_you_mean(tap, self.features) or f"; taps: {', '.join(self.features) or 'none'}"
            raise ModelError(f"{who} needs tap '{tap}', which the model does not have{hint}")
        return self.features[tap]


class PoolSignals(Mapping[str, Signals]):
    """The signals of the teacher variants for one batch, in pool order.

    Args:
        signals: by variant.
        stacked: their logits `[B, T, C, ...]`, where they are stacked already.
    """

    def __init__(self, signals: Mapping[str, Signals], stacked: Tensor | None = None) -> None:
        self._signals = dict(signals)
        self._stacked = stacked

    @classmethod
    def from_logits(cls, names: Sequence[str], logits_BTC: Tensor) -> PoolSignals:
        """Wrap stacked logits `[B, T, C, ...]`."""
        return cls({name: Signals(logits_BTC[:, index]) for index, name in enumerate(names)}, logits_BTC)

    def __getitem__(self, name: str) -> Signals:
        if name not in self._signals:
            raise ModelError(f"no teacher variant '{name}'; variants: {', '.join(self._signals) or 'none'}")
        return self._signals[name]

    def __contains__(self, name: object) -> bool:
        return name in self._signals

    def __iter__(self) -> Iterator[str]:
        return iter(self._signals)

    def __len__(self) -> int:
        return len(self._signals)

    @property
    def names(self) -> list[str]:
        """Variant names in pool order: the order of the axis T."""
        return list(self._signals)

    @property
    def logits(self) -> Tensor:
        """Logits of all variants, stacked to `[B, T, C]` or `[B, T, C, H, W]`."""
        if self._stacked is None:
            self._stacked = torch.stack([s.require_logits(f"teacher '{n}'") for n, s in self._signals.items()], dim=1)
        return self._stacked

    def detach(self) -> PoolSignals:
        """Return the same signals cut from the autograd graph."""
        detached = PoolSignals({name: signals.detach() for name, signals in self._signals.items()})
        detached._stacked = None if self._stacked is None else self._stacked.detach()
        return detached

    def select(self, rows: Tensor | slice) -> PoolSignals:
        """Return the given rows of every variant."""
        return PoolSignals({name: signals.select(rows) for name, signals in self._signals.items()})
