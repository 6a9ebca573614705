"""A classifier's second opinion: labelled pictures that resemble the one in question vote for their classes.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv 2207.09519.

Shapes: B batch, C classes, D width of the embeddings, S entries (labelled pictures).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ModelError


@dataclass(frozen=True)
class TipAdapterOptions:
    """Labelled pictures that vote beside a model's classifier.

    Attributes:
        entries: S, for how many labelled pictures there is place; places that stay empty say nothing.
        alpha: weight of the votes, until a stage of the kind `tip_adapter` has chosen it.
        beta: how much nearer pictures count more, until then. Both begin as the released settings for ImageNet do.
    """

    entries: int
    alpha: float = 1.17
    beta: float = 1.0


def cache_scores(affinity_BS: Tensor, values_SC: Tensor, beta: Tensor | float) -> Tensor:
    """Return what the entries vote for, `exp(-(beta - beta * affinity)) V`.

    Args:
        affinity_BS: cosines of the pictures with the keys.
        values_SC: class of each entry, one-hot; zeros where there is none.
        beta: sharpness.

    Shape:
        result: `[B, C]`.
    """
    return torch.exp(beta * affinity_BS - beta) @ values_SC


class TipAdapter(nn.Module):
    """What is added to the logits of a model by its cache of labelled pictures:

        z = z_0 + alpha exp(-(beta - beta f K^T)) V

    f is the picture's embedding at length 1, K the keys (embeddings of labelled pictures, at length 1 when a stage sets
    them), V their classes, z_0 the model's own logits, `scale f W^T` for class vectors W. Keys are parameters: frozen
    they make Tip-Adapter, trained (a stage with `trains: [teachers.NAME.tip_adapter]`) Tip-Adapter-F, which leaves
    their length free. Values, alpha and beta are buffers. With `alpha = 0` z is z_0, and so it is until a stage of
    the kind `tip_adapter` has filled the entries.

    Args:
        options: number of entries, first alpha and beta.
        width: D.
        num_classes: C.

    Raises:
        ConfigError: no entries, numbers out of range, or no classes.
    """

    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, options: TipAdapterOptions, width: int, num_classes: int) -> None:
        super().__init__()
        if options.entries < 1:
            raise ConfigError(f"tip_adapter.entries: expected 1 or more labelled pictures, found {options.entries}")
        if not (0 <= options.alpha < math.inf and 0 < options.beta < math.inf):
            raise ConfigError(
                f"tip_adapter: expected alpha >= 0 and beta > 0, found alpha {options.alpha} and beta {options.beta}"
            )
        if num_classes < 1:
            raise ConfigError("tip_adapter: the number of classes is not known here")
        self.keys = nn.Parameter(torch.zeros(options.entries, width))
        self.register_buffer("values", torch.zeros(options.entries, num_classes))
        self.register_buffer("alpha", torch.tensor(float(options.alpha)))
        self.register_buffer("beta", torch.tensor(float(options.beta)))

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Return what is added to the logits, `[B, C]`, for embeddings of any length."""
        return self.alpha * cache_scores(self.affinity(embedding_BD), self.values, self.beta)

    def affinity(self, embedding_BD: Tensor) -> Tensor:
        """Return `f K^T`, `[B, S]`."""
        return F.normalize(embedding_BD, dim=1) @ self.keys.T

    @torch.no_grad()
    def adopt(self, keys_ND: Tensor, labels_N: Tensor) -> None:
        """Take labelled pictures over; entries beyond them stay empty.

        Args:
            keys_ND: embeddings, of any length.
            labels_N: class of each.

        Raises:
            ModelError: more pictures than entries, another width, or labels that do not fit.
        """
        entries, width = self.keys.shape
        if keys_ND.ndim != 2 or keys_ND.shape[1] != width or len(keys_ND) != len(labels_N):
            raise ModelError(
                f"tip_adapter: expected embeddings [N, {width}] and N labels, found {list(keys_ND.shape)} and "
                f"{list(labels_N.shape)}"
            )
        if len(keys_ND) > entries:
            raise ModelError(
                f"tip_adapter: {len(keys_ND)} labelled pictures, but place for {entries}; set tip_adapter.entries to "
                f"{len(keys_ND)}"
            )
        classes = self.values.shape[1]
        if bool(((labels_N < 0) | (labels_N >= classes)).any()):
            raise ModelError(f"tip_adapter: expected labels of {classes} classes, found {labels_N.unique().tolist()}")
        self.keys.zero_()
        self.values.zero_()
        self.keys[: len(keys_ND)] = F.normalize(keys_ND.float(), dim=1).to(self.keys)
        self.values[: len(labels_N)] = F.one_hot(labels_N, classes).to(self.values)

    def mix(self, alpha: float, beta: float) -> None:
        """Set how the votes count."""
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)
