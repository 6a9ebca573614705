"""Fully sharded data parallelism (FSDP2) for what a stage trains, and for nothing else.

Every trained model is a group of its own, and so is each layer of a list inside of it; frozen teachers are in none, so
that nothing of them is gathered in a step. When the stage ends the models are whole and plain again.

Source: Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", arXiv 2304.11277.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils import _pytree

from ..distributed import whole, world_size
from ..errors import ConfigError
from ..objectives import LossTerm
from ..routers import Routing
from ..routers.gates import Gate
from ..signals import Signals
from ..step import Models
from .training_step import WeightedObjective

if TYPE_CHECKING:
    from .base import StageSettings

logger = logging.getLogger(__name__)

#: What modules return beside tensors and containers of them; FSDP has to find the tensors inside.
_OUTPUTS = (Signals, Routing, LossTerm)


def refuse_to_shard(settings: StageSettings, plain: bool, modules: Collection[nn.Module], follows: bool) -> None:
    """Refuse what needs whole parameters between two steps.

    Args:
        settings: the stage.
        plain: its kind is `train`.
        modules: what it trains.
        follows: teachers follow the student's weights.

    Raises:
        ConfigError: what it is.
    """
    gates = any(isinstance(part, Gate) and part.trains_itself for module in modules for part in module.modules())
    found = {
        "a kind other than 'train'": not plain,
        "ema": settings.ema is not None,
        "micro_batch": settings.micro_batch is not None,
        "momentum teachers": follows,
        "a gate that trains itself": gates,
    }
    if wrong := [name for name, there in found.items() if there]:
        raise ConfigError(
            f"stage '{settings.name}': {' and '.join(wrong)} can't be used with FSDP, which shards the parameters; "
            "launch with configs/accelerate/ddp.yaml"
        )


class Shards:
    """Models whose parameters are shared out over the processes, in place, until `gather`.

    Args:
        models: student, pool, router.
        modules: what a stage trains, by the names of `trained_modules`.
        device: of this process.
    """

    def __init__(self, models: Models, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        from torch.distributed.fsdp import fully_shard

        for kind in _OUTPUTS:
            if kind not in _pytree.SUPPORTED_NODES:
                torch.export.register_dataclass(kind)
        self.units = [unit for unit in _units(models, modules) if any(p.numel() for p in unit.parameters())]
        self._before = {part: _attributes(part) for unit in self.units for part in unit.modules()}
        mesh = init_device_mesh(device.type, (world_size(),))
        for unit in self.units:
            for layer in _layers(unit):
                fully_shard(layer, mesh=mesh)
            fully_shard(unit, mesh=mesh)
        logger.info("weights shared out over %d processes (FSDP2): %s", world_size(), ", ".join(modules))

    def load_optimizer(self, optimizer: Any, state: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> None:
        """Load an optimizer's state with whole tensors; each process keeps its shards."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        places = dict(enumerate(parameters))
        spread = {
            index: {
                key: distribute_tensor(value.to(place.device), place.device_mesh, place.placements)
                if isinstance(value, Tensor) and isinstance(place, DTensor) and value.shape == place.shape
                else value
                for key, value in entries.items()
            }
            for index, entries in state["state"].items()
            for place in [places[int(index)]]
        }
        optimizer.load_state_dict({**state, "state": spread})

    def gather(self) -> None:
        """Make the models whole and plain again; all processes call this."""
        from torch.distributed import _composable_state

        for part, (kind, attributes) in self._before.items():
            held = {name: whole(parameter) for name, parameter in part._parameters.items()}
            part.__class__ = kind
            for name in set(vars(part)) - set(attributes):
                delattr(part, name)
            for name, value in attributes.items():
                if name.endswith("_hooks") or "_hooks_" in name:
                    vars(part)[name] = value
            for name, value in held.items():
                old = part._parameters[name]
                if value is not None and old is not None:
                    part._parameters[name] = nn.Parameter(value.detach().clone(), old.requires_grad)
            _composable_state._module_state_mapping.pop(part, None)


def _units(models: Models, modules: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules that are called as a whole, each once."""
    if any(name.partition(".")[0] == "student" for name in modules):
        yield models.student
    for name, module in modules.items():
        if name.partition(".")[0] == "student":
            continue
        for unit in module.children() if isinstance(module, nn.ModuleList | nn.ModuleDict) else [module]:
            yield unit.objective if isinstance(unit, WeightedObjective) else unit


def _layers(unit: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of lists inside of a module, such as the blocks of a transformer."""
    for part in unit.modules():
        if isinstance(part, nn.ModuleList):
            yield from (layer for layer in part if any(p.numel() for p in layer.parameters()))


def _attributes(part: nn.Module) -> tuple[type[nn.Module], dict[str, Any]]:
    """Return the class of a module and copies of its hooks, with the names of all its attributes."""
    return type(part), {
        name: value.copy() if "_hooks" in name and isinstance(value, dict) else value
        for name, value in vars(part).items()
    }
