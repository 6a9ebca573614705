"""Which signals of its teachers a stage reads, and signals as flat named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..signals import Signals

LOGITS = "logits"


@dataclass(frozen=True)
class Needs:
    """The kinds of teacher signals that somebody reads.

    Attributes:
        logits: the logits.
        embeddings: the embeddings of all modalities, and the heads (scales and biases) that belong to them.
        features: tapped activations.
        taps: which of them; None: all.
    """

    logits: bool = True
    embeddings: bool = False
    features: bool = False
    taps: frozenset[str] | None = None

    def pick(self, signals: Signals) -> dict[str, Tensor]:
        """Return the tensors that are needed, by name: `logits`, `embeddings/image`, `heads/logit_scale`,
        `features/fc1`.

        What a model does not give is not there: whoever reads it says so.
        """
        found = {}
        if self.logits and signals.logits is not None:
            found[LOGITS] = signals.logits
        if self.embeddings:
            found |= {f"embeddings/{name}": value for name, value in signals.embeddings.items()}
            found |= {f"heads/{name}": value for name, value in signals.heads.items()}
        if self.features:
            taps = [tap for tap in signals.features if self.taps is None or tap in self.taps]
            found |= {f"features/{tap}": signals.features[tap] for tap in taps}
        return found

    def __str__(self) -> str:
        words = [name for name in ("logits", "embeddings", "features") if getattr(self, name)]
        return ", ".join(words).replace("features", "tapped activations")


def joined(tensors: Mapping[str, Tensor]) -> Signals:
    """Return signals from the names that `Needs.pick` gives."""
    groups: dict[str, dict[str, Tensor]] = {"embeddings": {}, "heads": {}, "features": {}}
    for key, value in tensors.items():
        group, _, name = key.partition("/")
        if key != LOGITS:
            groups[group][name] = value
    return Signals(tensors.get(LOGITS), groups["features"], groups["embeddings"], groups["heads"])
