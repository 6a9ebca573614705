"""A cross-encoder: it looks at a picture and a text together and says whether they belong together.

Shapes: B batch, P pairs, D width of the embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import NETWORKS, Encoder
from .layers import check_dropout, check_input, check_widths


@NETWORKS.register("matcher")
class Matcher(nn.Module):
    """An encoder for each of two inputs, and a small network on both features of a pair that gives one match score.

    Scores need a pair, so that such a model is a slow and accurate judge; `match` scores any pairs of features, of
    which each is computed once. The features u, v (length 1, times sqrt(D)) meet as `[u, v, u * v, |u - v|]` (the
    heads of InferSent, Conneau et al., EMNLP 2017, arXiv 1705.02364), with a linear layer, ReLU, dropout and a linear
    layer behind it; the scaled cosine of u and v, with a learned scale, is added, so that it starts as a dual encoder.

    Args:
        image: encoder of the first input.
        text: encoder of the second one.
        width: D of both embeddings.
        hidden: width of the layer on pairs.
        dropout: probability before the last layer.

    Raises:
        ConfigError: a width below 1, or a probability out of range.

    Shape:
        inputs as the encoders take them; embeddings image and text `[B, D]`; heads match `[B]`, the score of each
        row's own pair, and logit_scale `[B]`.
    """

    def __init__(self, image: Encoder, text: Encoder, width: int = 96, hidden: int = 128, dropout: float = 0.0) -> None:
        super().__init__()
        check_widths("width", [width])
        check_widths("hidden", [hidden])
        self.width = width
        self.image, self.text = image, text
        self.image_projection = nn.Linear(image.out_features, width)
        self.text_projection = nn.Linear(text.out_features, width)
        self.pair = nn.Linear(4 * width, hidden)
        self.dropout = nn.Dropout(check_dropout("dropout", dropout))
        self.score = nn.Linear(hidden, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Any]:
        """Return the features of both inputs and the score of each row."""
        u, v = self.image_projection(self.image(image)), self.text_projection(self.text(text))
        scale_B = self.log_scale.exp().expand(len(u))
        return {"embeddings": {"image": u, "text": v}, "match": self.match(u, v), "logit_scale": scale_B}

    def match(self, image_PD: Tensor, text_PD: Tensor) -> Tensor:
        """Return the match logit of every pair of features, `[P]`; above 0: they rather belong together.

        Raises:
            ModelError: features of another width.
        """
        check_input("matcher.match image", image_PD, (self.width,))
        check_input("matcher.match text", text_PD, (self.width,))
        u, v = F.normalize(image_PD, dim=1), F.normalize(text_PD, dim=1)
        cosine = (u * v).sum(dim=1)
        u, v = u * self.width**0.5, v * self.width**0.5
        hidden = self.pair(torch.cat([u, v, u * v, (u - v).abs()], dim=1)).relu()
        scored: Tensor = self.score(self.dropout(hidden))[:, 0]
        return scored + self.log_scale.exp() * cosine
