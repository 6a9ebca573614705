"""Perceptrons for feature vectors, such as text embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..registry import Injected
from .base import ENCODERS, NETWORKS, Encoder
from .layers import Chain, check_dropout, check_widths, mlp_layers


@ENCODERS.register("mlp_encoder")
class MlpEncoder(Chain, Encoder):
    """The hidden layers of `mlp`: a vector to a vector of `hidden[-1]` features.

    Args:
        in_features: width of the input.
        hidden: widths of the layers, each followed by ReLU.

    Shape:
        input `[B, in_features]`, output `[B, hidden[-1]]`; taps fc1, fc1_relu, fc2, ...
    """

    def __init__(self, in_features: int, hidden: Sequence[int] = (256, 64)) -> None:
        check_widths("in_features", [in_features])
        super().__init__(mlp_layers(in_features, check_widths("hidden", hidden)), (in_features,))
        self.out_features = hidden[-1]


@NETWORKS.register("mlp")
class Mlp(Chain):
    """A small classifier of vectors.

    Args:
        num_classes: number of classes.
        in_features: width of the input.
        hidden: widths of the hidden layers, each followed by ReLU; empty for a linear classifier.
        dropout: probability before the last layer.

    Shape:
        input `[B, in_features]`; taps fc1 `[B, hidden[0]]`, fc2, ...; the last one, `fc<n>`, gives the logits `[B, C]`.
    """

    def __init__(
        self,
        num_classes: Injected[int],
        in_features: int,
        hidden: Sequence[int] = (256, 64),
        dropout: float = 0.0,
    ) -> None:
        check_widths("in_features", [in_features])
        widths = check_widths("hidden", hidden, allow_empty=True)
        layers = mlp_layers(in_features, widths)
        layers["dropout"] = nn.Dropout(check_dropout("dropout", dropout))
        layers[f"fc{len(widths) + 1}"] = nn.Linear([in_features, *widths][-1], num_classes)
        super().__init__(layers, (in_features,))
