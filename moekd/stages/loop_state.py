"""Where a training loop is: everything that a resumed loop needs besides the models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import sum_over_processes, whole, world_size
from .fused import IMPLEMENTATION

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
        train_seconds: the part of it that went into training steps.
        teacher_forwards: forwards of teachers in training steps.
        bad_steps: steps that changed nothing since their loss or gradient was no number.
        bad_in_a_row: those without a good step (or, by the policy, a checkpoint) since.
        sums: sums of the loss terms since the last record, on the device.
        count: batches in `sums`.
        shares: rows each teacher variant taught in this epoch, all rows, and the sum of their entropies (and of
            the label's weights, where the router weighs it), on the device.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    best_weights: dict[str, StateDict] | None = None
    stale: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    teacher_forwards: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    shares: dict[str, Tensor] = field(default_factory=dict)

    def add(self, result: dict[str, Any]) -> None:
        """Add what a training step reported; nothing is read from the device."""
        for name, value in {**result["terms"], "total": result["loss"].detach()}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.count += 1
        if "shares" in result:
            rows = result["shares"].sum()
            routed = {"shares": result["shares"], "entropy": rows * result["entropy"], "rows": rows}
            if "label_weight" in result:
                routed["label_weight"] = rows * result["label_weight"]
            for name, value in routed.items():
                self.shares[name] = self.shares[name] + value if name in self.shares else value.clone()

    def take_means(self) -> dict[str, float]:
        """Return the mean loss terms since the last call, over all processes, and start anew."""
        sums = sum_over_processes(torch.stack([value.double() for value in self.sums.values()]))
        means = (sums / (max(1, self.count) * world_size())).tolist()
        names, self.sums, self.count = list(self.sums), {}, 0
        return dict(zip(names, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors, numbers and dicts."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> LoopState:
        """Rebuild the state on a device."""
        loop = cls(**state)
        loop.sums = {name: value.to(device) for name, value in loop.sums.items()}
        loop.shares = {name: value.to(device) for name, value in loop.shares.items()}
        return loop


def copy_weights(modules: dict[str, nn.Module]) -> dict[str, StateDict]:
    """Return copies of the modules' weights and buffers in main memory; sharded ones are gathered."""
    return {
        name: {key: value.detach().cpu().clone() for key, value in whole(module.state_dict()).items()}
        for name, module in modules.items()
    }


def load_weights(modules: dict[str, nn.Module], weights: dict[str, StateDict]) -> None:
    """Load what `copy_weights` returned."""
    for name, module in modules.items():
        module.load_state_dict(weights[name])


Options = list[dict[str, Any]]


def options_of(optimizer: torch.optim.Optimizer) -> Options:
    """Return the options of the parameter groups (learning rate, weight decay, ...), without the parameters and without
    how a step is computed.
    """
    left_out = ("params", *IMPLEMENTATION)
    return [{key: value for key, value in group.items() if key not in left_out} for group in optimizer.param_groups]


def adopt_options(groups: Options, now: Options, saved: Options) -> list[str]:
    """Put into resumed parameter groups what the config says differently than at the time of the checkpoint.

    Args:
        groups: parameter groups, as they were in the checkpoint.
        now: the options at the start of the stage, by the present config.
        saved: the same by the checkpoint's config.

    Returns:
        Names of the options that changed.
    """
    changed = set()
    for group, new, old in zip(groups, now, saved, strict=True):
        for key in new:
            if new[key] != old.get(key):
                group[key] = new[key]
                changed.add(key)
    return sorted(changed)
