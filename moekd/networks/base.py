"""The registry of networks."""

from __future__ import annotations

from torch import nn

from ..registry import Registry

NETWORKS: Registry[nn.Module] = Registry("network", "networks")
