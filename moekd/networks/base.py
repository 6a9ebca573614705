"""The registries of networks and of the encoders they are put together from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..registry import Registry

NETWORKS: Registry[nn.Module] = Registry("network", "networks")


class Encoder(nn.Module):
    """A network without a classifier: one input to a vector, `forward(x) -> [B, out_features]`.

    Attributes:
        out_features: width of the vector; set by `__init__`.
        pictures: how it wants pictures prepared, in the names of `ImageSettings`; empty: as they are.
    """

    out_features: int
    pictures: Mapping[str, Any] = {}


ENCODERS: Registry[Encoder] = Registry("encoder", "encoders", base=Encoder)
