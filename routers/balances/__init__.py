"""Balance losses: what keeps a router from sending everything to one teacher, one mechanism a file."""

from .base import BALANCES, Balance
from .entropy import Entropy, mean_entropy
from .importance import Importance, Load, cv_squared
from .kl_to_uniform import KLToUniform, kl_to_uniform
from .mutual_information import MutualInformation, joint_distribution, mutual_information
from .routing_contrastive import RoutingContrastive, routing_contrastive
from .switch import SwitchBalance, switch_balance
from .variation import CoefficientOfVariation, coefficient_of_variation
from .z_loss import ZLoss, z_loss

__all__ = [
    "BALANCES",
    "Balance",
    "CoefficientOfVariation",
    "Entropy",
    "Importance",
    "KLToUniform",
    "Load",
    "MutualInformation",
    "RoutingContrastive",
    "SwitchBalance",
    "ZLoss",
    "coefficient_of_variation",
    "cv_squared",
    "joint_distribution",
    "kl_to_uniform",
    "mean_entropy",
    "mutual_information",
    "routing_contrastive",
    "switch_balance",
    "z_loss",
]
