"""Routers: gate x selection x balance x combine."""

from .balance import BALANCES, Balance, coefficient_of_variation, kl_to_uniform
from .gates import GATES, DenseInstanceGate, Gate, InstanceGate, UniformGate
from .router import Router
from .routing import Routing
from .selection import SELECTIONS, Dense, Selection, TopK

__all__ = [
    "BALANCES",
    "GATES",
    "SELECTIONS",
    "Balance",
    "Dense",
    "DenseInstanceGate",
    "Gate",
    "InstanceGate",
    "Router",
    "Routing",
    "Selection",
    "TopK",
    "UniformGate",
    "coefficient_of_variation",
    "kl_to_uniform",
]
