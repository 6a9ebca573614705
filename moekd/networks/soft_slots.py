"""Soft mixture of experts over tokens, and a classifier that fuses several inputs with it.

Shapes: B batch, N tokens, D width of a token, S slots (of all experts), P slots of one expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..registry import Injected
from .base import NETWORKS, Encoder
from .layers import check_dropout, join

Positive = Annotated[int, Ge(1)]


def slot_weights(
    tokens_BND: Tensor, slots_SD: Tensor, scale: Tensor | float = 1.0, mask_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return how tokens are mixed into slots, and slots back into tokens, both `[B, N, S]`.

        score = scale * cos(token, slot);   dispatch = softmax of the scores over the tokens;   combine = over the slots

    So each slot reads a mean of all tokens, and each token reads a mean of all slots' outputs: every expert has the
    same load, nothing is dropped, and all of it has a gradient.

    Args:
        tokens_BND: tokens.
        slots_SD: one learned vector a slot.
        scale: of the cosines; 0 makes both means plain ones.
        mask_BN: tokens that slots may read, default all; without any, the slots read zeros.
    """
    scores_BNS = F.normalize(tokens_BND, dim=2) @ (scale * F.normalize(slots_SD, dim=1)).T
    combine_BNS = scores_BNS.softmax(dim=2)
    if mask_BN is None:
        return scores_BNS.softmax(dim=1), combine_BNS
    read_BN1 = mask_BN[:, :, None]
    lowest = torch.finfo(scores_BNS.dtype).min
    return scores_BNS.masked_fill(~read_BN1, lowest).softmax(dim=1) * read_BN1, combine_BNS


class SoftSlots(nn.Module):
    """A soft mixture of experts: experts work on slots, which are means of the tokens.

    Puigcerver et al., "From Sparse to Soft Mixtures of Experts", ICLR 2024, arXiv 2308.00951 (section 2). Tokens, and
    slot vectors up to a learned scale, have length 1 for the scores, as the paper does to train large models stably.

    Args:
        width: D.
        experts: modules `[..., D] -> [..., D]`.
        slots: slots P of every expert.

    Shape:
        tokens `[B, N, D]`, mask `[B, N]` of bool; output `[B, N, D]`.
    """

    def __init__(self, width: int, experts: Sequence[nn.Module], slots: int = 1) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.slots = nn.Parameter(torch.randn(len(experts) * slots, width) * width**-0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Return the mixed outputs of all slots for every token."""
        dispatch_BNS, combine_BNS = slot_weights(tokens_BND, self.slots, self.scale, mask_BN)
        read_BSD = dispatch_BNS.transpose(1, 2) @ tokens_BND
        parts = read_BSD.chunk(len(self.experts), dim=1)
        said_BSD = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)], dim=1)
        return combine_BNS @ said_BSD


@NETWORKS.register("slot_fusion")
class SlotFusion(nn.Module):
    """A classifier of several inputs whose tokens meet in a soft mixture of experts.

    Each encoder's features become a few tokens; all tokens of all inputs go through `SoftSlots` with a residual, and
    the mean over the tokens is classified. Like `fusion`, but how much each input counts depends on the sample.

    Args:
        num_classes: number of classes.
        encoders: one encoder for each input, in the order of the model's `inputs`.
        width: features D of a token.
        tokens: tokens made of each input's features.
        experts: experts, each of two linear layers.
        slots: slots of every expert.
        hidden: hidden units of an expert.
        dropout: probability before `fc`.

    Raises:
        ConfigError: no encoder is given, or a number is out of range.

    Shape:
        inputs as the encoders take them; taps encoders.0, encoders.1, ..., tokens.0, tokens.1, ...
        `[B, tokens * width]`, mix `[B, N, width]`, norm `[B, N, width]`, fc `[B, C]`.
    """

    def __init__(
        self,
        num_classes: Injected[int],
        encoders: Sequence[Encoder],
        width: Positive = 64,
        tokens: Positive = 4,
        experts: Positive = 4,
        slots: Positive = 2,
        hidden: Positive = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ConfigError("encoders: expected at least one, found none")
        self.width = width
        self.encoders = nn.ModuleList(encoders)
        self.tokens = nn.ModuleList(nn.Linear(encoder.out_features, tokens * width) for encoder in encoders)
        workers = [nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)) for _ in range(experts)]
        self.mix = SoftSlots(width, workers, slots)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(check_dropout("dropout", dropout))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits `[B, C]`.

        Raises:
            ModelError: the number of inputs is not the number of encoders, or an encoder can't take its input.
        """
        if len(inputs) != len(self.encoders):
            raise ModelError(
                f"SlotFusion has {len(self.encoders)} encoders, but got {len(inputs)} inputs; list one field for each "
                "encoder under `inputs` of the model"
            )
        parts = []
        for index, (encoder, split, x) in enumerate(zip(self.encoders, self.tokens, inputs, strict=True)):
            try:
                parts.append(split(encoder(x)).unflatten(1, (-1, self.width)))
            except ModelError as error:
                raise ModelError(f"SlotFusion input {index + 1}: {error}") from error
        tokens_BND = join(parts, self)
        mixed_BND = self.norm(tokens_BND + self.mix(tokens_BND))
        logits: Tensor = self.fc(self.dropout(mixed_BND.mean(dim=1)))
        return logits
