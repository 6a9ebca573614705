"""Balance losses: what keeps a router from sending everything to one teacher, one mechanism a file."""

from .base import BALANCES, Balance
from .kl_to_uniform import KLToUniform, kl_to_uniform
from .variation import CoefficientOfVariation, coefficient_of_variation

__all__ = ["BALANCES", "Balance", "CoefficientOfVariation", "KLToUniform", "coefficient_of_variation", "kl_to_uniform"]
