"""The registries of networks and of the encoders they are put together from."""

from __future__ import annotations

from torch import nn

from ..registry import Registry

NETWORKS: Registry[nn.Module] = Registry("network", "networks")


class Encoder(nn.Module):
    """A network without a classifier: one input to a vector, `forward(x) -> [B, out_features]`.

    Attributes:
        out_features: width of the vector; set by `__init__`.
    """

    out_features: int


ENCODERS: Registry[Encoder] = Registry("encoder", "encoders", base=Encoder)
