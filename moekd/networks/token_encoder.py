"""A small transformer for token ids, and a classifier on top of any encoder.

Shapes: B batch, N tokens, D features.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..registry import Injected
from .base import ENCODERS, NETWORKS, Encoder
from .layers import check_dropout

Positive = Annotated[int, Ge(1)]


@ENCODERS.register("token_encoder")
class TokenEncoder(Encoder):
    """Embedding, learned positions, pre-norm transformer layers, mean over the tokens that are not padding.

    Args:
        vocabulary: number of token ids (257 for the `bytes` tokenizer).
        context: longest text in tokens; the tokenizer's `context`.
        width: features of a token.
        layers: transformer layers; 0 averages the embeddings.
        heads: attention heads; `width` is a multiple of it.
        pad_id: id that fills short texts.
        dropout: probability inside of the layers.

    Shape:
        input ids `[B, N]` with N <= context, output `[B, width]`; taps embed `[B, N, width]`, norm `[B, N, width]`.
    """

    def __init__(
        self,
        vocabulary: Positive = 257,
        context: Positive = 128,
        width: Positive = 64,
        layers: Annotated[int, Ge(0)] = 2,
        heads: Positive = 4,
        pad_id: Annotated[int, Ge(0)] = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"width: expected a multiple of heads = {heads}, found {width}")
        self.pad_id, self.context, self.out_features = pad_id, context, width
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(context, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, check_dropout("dropout", dropout), "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        """Return one vector a text.

        Raises:
            ModelError: the input is no batch of token ids, or longer than the context.
        """
        if ids.dim() != 2 or ids.is_floating_point() or ids.shape[1] > self.context:
            raise ModelError(
                f"TokenEncoder input: expected integer ids [B, N] with N <= {self.context}, "
                f"found {ids.dtype} {tuple(ids.shape)}; use a text field, and the tokenizer's context"
            )
        padding = ids == self.pad_id
        tokens = self.embed(ids) + self.positions[: ids.shape[1]]
        blocked = padding & ~padding.all(dim=1, keepdim=True)
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=blocked)
        kept = (~padding).unsqueeze(-1).to(tokens.dtype)
        return (self.norm(tokens) * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1.0)


@NETWORKS.register("classifier")
class Classifier(nn.Module):
    """A linear classifier on any encoder.

    Args:
        num_classes: number of classes.
        encoder: maps the input to a vector.
        dropout: probability before the classifier.

    Shape:
        input as the encoder takes it; taps encoder `[B, out_features]`, fc1 `[B, C]`, and those inside of the encoder.
    """

    def __init__(self, num_classes: Injected[int], encoder: Encoder, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(check_dropout("dropout", dropout))
        self.fc1 = nn.Linear(encoder.out_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, C]`."""
        logits: Tensor = self.fc1(self.dropout(self.encoder(x)))
        return logits
