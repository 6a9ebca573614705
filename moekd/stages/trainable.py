"""Who trains in a stage: gradients, train mode and parameters follow from the names in `trains`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from ..errors import ConfigError, did_you_mean
from ..routers.gates import Gate
from ..step import Models


def trained_modules(models: Models, trains: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules that a stage trains, by a name that is stable across runs.

    Args:
        models: student, pool, router.
        trains: of `student`, `teachers`, `teachers.<name>`, `masks`, `router`, `objectives` (which train anyway).

    Raises:
        ConfigError: a name that means nothing in this recipe.
    """
    pool = models.pool
    found: dict[str, nn.Module] = {}
    for name in trains:
        if name == "student":
            found["student"] = models.student
        elif name == "teachers" and pool.names:
            found |= {f"teachers.{teacher}": pool.teacher(teacher) for teacher in pool.names}
        elif name.startswith("teachers.") and name[len("teachers.") :] in pool.names:
            found[name] = pool.teacher(name[len("teachers.") :])
        elif name == "masks" and pool.specialised:
            found["masks"] = pool.masks
        elif name == "router" and models.router is not None:
            found["router"] = models.router
        elif name != "objectives":
            known = ["student", "teachers", *(f"teachers.{t}" for t in pool.names), "masks", "router", "objectives"]
            raise ConfigError(f"trains: '{name}' is nothing that this recipe can train{did_you_mean(name, known)}")
    return found


def train_only(models: Models, trains: Sequence[str], objectives: nn.Module) -> dict[str, nn.Module]:
    """Freeze everything but what `trains` names (and the objectives' own parameters); return the trained modules."""
    modules = trained_modules(models, trains)
    for teacher in models.pool.names:
        if f"teachers.{teacher}" in modules:
            models.pool.teacher(teacher).thaw()
        else:
            models.pool.teacher(teacher).freeze()
    models.pool.masks_train = "masks" in modules
    others: dict[str, nn.Module | None] = {
        "student": models.student,
        "masks": models.pool.masks,
        "router": models.router,
    }
    for name, module in others.items():
        if module is not None:
            module.requires_grad_(name in modules)
            module.train(name in modules)
    objectives.requires_grad_(True)
    objectives.train()
    if any(True for _ in objectives.parameters()):
        modules["objectives"] = objectives
    return modules


def parameters_of(modules: Collection[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters that an optimizer of the stage moves, each once, in a stable order.

    Those of a gate that trains itself are not among them.
    """
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    gates = (part for module in modules for part in module.modules() if isinstance(part, Gate) and part.trains_itself)
    for parameter in (p for gate in gates for p in gate.parameters()):
        found.pop(id(parameter), None)
    return list(found.values())
