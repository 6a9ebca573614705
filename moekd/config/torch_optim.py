"""PyTorch's optimizers and learning-rate schedulers as components.

`{kind: adam, lr: 1e-3}`, `{kind: cosine_annealing_lr, T_max: 30}`: optimizers go by their lower-case name, schedulers
by their name in snake_case; the options are PyTorch's.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from ..registry import Registry
from .annotations import is_configurable
from .component import build
from .options import parameters_of
from .spec import Spec

#: Parameters that the training loop supplies or keeps itself.
_ENGINE = ("params", "optimizer", "last_epoch")
#: LBFGS evaluates its loss several times a step, which a training loop over batches does not do.
#: ReduceLROnPlateau steps on a metric, the training loop steps after every optimizer step.
_LEFT_OUT = ("LBFGS", "LRScheduler", "Optimizer", "ReduceLROnPlateau", "_LRScheduler")
#: Lengths in optimizer steps that a config may leave out; the stage's length stands in.
_LENGTHS = {"cosine_annealing_lr": "T_max", "one_cycle_lr": "total_steps"}


class TorchRegistry(Registry[Any]):
    """Classes of PyTorch: options that YAML can't give (callables, tensors) are no options."""

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """Return the options of a class."""
        found = {
            key: parameter
            for key, parameter in parameters_of(self.get(name)).items()
            if key not in _ENGINE and is_configurable(parameter.annotation)
        }
        length = _LENGTHS.get(name)
        if self.group == "schedulers" and length is not None:
            found[length] = found[length].replace(annotation=int | None, default=None)
        return found


def snake_case(name: str) -> str:
    """Return the config name of a scheduler class: `CosineAnnealingLR` is `cosine_annealing_lr`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def build_optimizer(spec: Spec, params: Iterable[Any], where: str = "optimizer") -> Optimizer:
    """Make the optimizer of `params` (parameters or parameter groups)."""
    return build(spec, OPTIMIZERS, where=where, params=params)


def build_scheduler(spec: Spec, optimizer: Optimizer, steps: int, where: str = "scheduler") -> LRScheduler:
    """Make the learning-rate scheduler of `optimizer`.

    Args:
        spec: the scheduler.
        optimizer: the optimizer.
        steps: optimizer steps of the stage: `T_max` of a cosine and `total_steps` of a cycle that name no length.
        where: path in the config, for messages.
    """
    return build(_with_length(spec, steps), SCHEDULERS, where=where, optimizer=optimizer)


def _with_length(spec: Spec, steps: int) -> Spec:
    nested = spec.options.get("schedulers", [])
    options = dict(spec.options) | ({"schedulers": [_with_length(item, steps) for item in nested]} if nested else {})
    length = _LENGTHS.get(spec.kind)
    if length is not None and options.get(length) is None and options.get("epochs") is None:
        options[length] = steps
    return Spec(spec.kind, options)


def _fill(registry: Registry[Any], module: Any, base: type, name_of: Callable[[str], str]) -> None:
    for name, cls in vars(module).items():
        if isinstance(cls, type) and issubclass(cls, base) and name not in _LEFT_OUT:
            needed = [p for p in parameters_of(cls).values() if p.default is p.empty and p.name not in _ENGINE]
            if all(is_configurable(p.annotation) for p in needed):
                registry.register(name_of(name))(cls)


OPTIMIZERS = TorchRegistry("optimizer", "optimizers", base=Optimizer)
SCHEDULERS = TorchRegistry("learning-rate scheduler", "schedulers", base=LRScheduler)
_fill(OPTIMIZERS, torch.optim, Optimizer, str.lower)
_fill(SCHEDULERS, lr_scheduler, LRScheduler, snake_case)
