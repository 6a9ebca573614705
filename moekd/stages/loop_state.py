"""Where a training loop is: everything that a resumed loop needs besides the models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]


@dataclass
class LoopState:
    """Position, best epoch and running sums of a stage.

    Attributes:
        epoch: running epoch, from 0.
        batch: batches of the epoch that are done.
        step: optimizer steps of the stage that are done.
        best_value, best_epoch, best_weights: of the monitored metric, by module name.
        stale: epochs without a better metric.
        seconds: time spent in earlier sessions of this stage.
        sums: sums of the loss terms since the last record, on the device.
        count: steps in `sums`.
        shares: rows each teacher variant taught in this epoch, on the device.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    best_weights: dict[str, StateDict] | None = None
    stale: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    shares: dict[str, Tensor] = field(default_factory=dict)

    def add(self, result: dict[str, Any]) -> None:
        """Add what a training step reported; nothing is read from the device."""
        for name, value in {**result["terms"], "total": result["loss"].detach()}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.count += 1
        if "shares" in result:
            routed = {"shares": result["shares"], "entropy": result["entropy"], "steps": torch.ones(())}
            for name, value in routed.items():
                self.shares[name] = self.shares[name] + value if name in self.shares else value.clone()

    def take_means(self) -> dict[str, float]:
        """Return the mean loss terms since the last call and start anew."""
        means = {name: float(value) / max(1, self.count) for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors, numbers and dicts."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> LoopState:
        """Rebuild the state on a device."""
        loop = cls(**state)
        loop.sums = {name: value.to(device) for name, value in loop.sums.items()}
        loop.shares = {name: value.to(device) if name != "steps" else value for name, value in loop.shares.items()}
        return loop


def copy_weights(modules: dict[str, nn.Module]) -> dict[str, StateDict]:
    """Return copies of the modules' weights and buffers in main memory."""
    return {
        name: {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
        for name, module in modules.items()
    }


def load_weights(modules: dict[str, nn.Module], weights: dict[str, StateDict]) -> None:
    """Load what `copy_weights` returned."""
    for name, module in modules.items():
        module.load_state_dict(weights[name])
