"""Gates: what scores the teachers for an instance."""

from .base import GATES, Gate
from .fixed import UniformGate
from .instance import DenseInstanceGate, InstanceGate

__all__ = ["GATES", "DenseInstanceGate", "Gate", "InstanceGate", "UniformGate"]
