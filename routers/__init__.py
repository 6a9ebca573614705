"""Routers: gate x selection x balance x combine."""

from .balances import BALANCES, Balance, coefficient_of_variation, kl_to_uniform
from .gates import GATES, DenseInstanceGate, Gate, InstanceGate, UniformGate
from .router import Router
from .routing import Routing
from .selections import SELECTIONS, Dense, Selection, TopK

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
