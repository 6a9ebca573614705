"""Intermediate fusion of any number of inputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..registry import Injected
from .base import NETWORKS, Encoder
from .layers import check_dropout, check_widths, join


@NETWORKS.register("fusion")
class Fusion(nn.Module):
    """A classifier of several inputs: one encoder each, joined features, two linear layers with ReLU between them.

    Args:
        num_classes: number of classes.
        encoders: one encoder for each input, in the order of the model's `inputs`.
        hidden: width of `fc1`.
        dropout: probability before `fc2`.

    Raises:
        ConfigError: no encoder is given, or a number is out of range.

    Shape:
        inputs as the encoders take them; taps encoders.0, encoders.1, ..., and inside them (`encoders.0.conv1`),
        concat_identity `[B, sum of out_features]`, fc1 `[B, hidden]`, fc2 `[B, C]`.
    """

    def __init__(
        self,
        num_classes: Injected[int],
        encoders: Sequence[Encoder],
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ConfigError("encoders: expected at least one, found none")
        check_widths("hidden", [hidden])
        self.encoders = nn.ModuleList(encoders)
        self.concat_identity = nn.Identity()
        self.fc1 = nn.Linear(sum(encoder.out_features for encoder in encoders), hidden)
        self.fc1_relu = nn.ReLU()
        self.dropout = nn.Dropout(check_dropout("dropout", dropout))
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits `[B, C]`.

        Raises:
            ModelError: the number of inputs is not the number of encoders, or an encoder can't take its input.
        """
        if len(inputs) != len(self.encoders):
            raise ModelError(
                f"Fusion has {len(self.encoders)} encoders, but got {len(inputs)} inputs; list one field for each "
                "encoder under `inputs` of the model"
            )
        features = []
        for index, (encoder, x) in enumerate(zip(self.encoders, inputs, strict=True)):
            try:
                features.append(encoder(x))
            except ModelError as error:
                raise ModelError(f"Fusion input {index + 1}: {error}") from error
        x = self.concat_identity(join(features, self))
        return self.fc2(self.dropout(self.fc1_relu(self.fc1(x))))
