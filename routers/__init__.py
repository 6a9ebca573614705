"""Routers: gate x selection x balance x combine."""

from .balances import BALANCES, Balance, coefficient_of_variation, kl_to_uniform
from .gates import GATES, DenseInstanceGate, Gate, InstanceGate, UniformGate
from .router import Router
from .routing import Routing
from .selections import SELECTIONS, Dense, Drop, Hash, Random, Selection, Single, TopK, balanced_table

__all__ = [
    "BALANCES",
    "GATES",
    "SELECTIONS",
    "Balance",
    "Dense",
    "DenseInstanceGate",
    "Drop",
    "Gate",
    "Hash",
    "InstanceGate",
    "Random",
    "Router",
    "Routing",
    "Selection",
    "Single",
    "TopK",
    "UniformGate",
    "balanced_table",
    "coefficient_of_variation",
    "kl_to_uniform",
]
