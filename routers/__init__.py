"""Routers: gate x selection x balance x combine."""

from .balances import BALANCES, Balance, coefficient_of_variation, kl_to_uniform
from .examples import example_routers
from .gates import (
    GATES,
    CosineGate,
    DenseInstanceGate,
    Gate,
    InstanceGate,
    LinearGate,
    MLPGate,
    PrototypeGate,
    UniformGate,
)
from .gates.inputs import Shapes
from .router import Router
from .routing import Routing
from .selections import (
    SELECTIONS,
    BiasBalanced,
    Dense,
    Drop,
    ExpertChoice,
    Hash,
    NoisyTopK,
    Random,
    Selection,
    Single,
    TopK,
    balanced_table,
)

__all__ = [
    "BALANCES",
    "GATES",
    "SELECTIONS",
    "Balance",
    "BiasBalanced",
    "CosineGate",
    "Dense",
    "DenseInstanceGate",
    "Drop",
    "ExpertChoice",
    "Gate",
    "Hash",
    "InstanceGate",
    "LinearGate",
    "MLPGate",
    "NoisyTopK",
    "PrototypeGate",
    "Random",
    "Router",
    "Routing",
    "Selection",
    "Shapes",
    "Single",
    "TopK",
    "UniformGate",
    "balanced_table",
    "coefficient_of_variation",
    "example_routers",
    "kl_to_uniform",
]
