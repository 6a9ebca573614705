"""Who trains in a stage: gradients, train mode and parameters follow from the names in `trains`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from ..errors import ConfigError, did_you_mean
from ..model import Model
from ..routers.gates import Gate
from ..step import Models


def trained_modules(models: Models, trains: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules that a stage trains, by a name that is stable across runs.

    A model of which parts are trained is there as a whole, since it is validated and kept as a whole.

    Args:
        models: student, pool, router.
        trains: of `student`, `student.<path>`, `teachers`, `teachers.<name>`, `teachers.<name>.<path>`, `masks`,
            `router`, `objectives` (which train anyway).

    Raises:
        ConfigError: a name that means nothing in this recipe.
    """
    pool = models.pool
    found: dict[str, nn.Module] = {}
    for name in trains:
        whole, _ = owner_and_path(name)
        teacher = whole.partition(".")[2]
        if whole == "student":
            found["student"] = models.student
        elif name == "teachers" and pool.trainable:
            found |= {f"teachers.{teacher}": pool.teacher(teacher) for teacher in pool.trainable}
        elif teacher in pool.names:
            found[whole] = pool.teacher(teacher)
        elif name == "masks" and pool.specialised:
            found["masks"] = pool.masks
        elif name == "router" and models.router is not None:
            found["router"] = models.router
        elif name != "objectives":
            known = ["student", "teachers", *(f"teachers.{t}" for t in pool.names), "masks", "router", "objectives"]
            raise ConfigError(f"trains: '{name}' is nothing that this recipe can train{did_you_mean(name, known)}")
    return found


def owner_and_path(name: str) -> tuple[str, str]:
    """Split a name in `trains` into the model (`student`, `teachers.clip`) and the path of a part ("" for all)."""
    parts = name.split(".")
    owners = {"student": 1, "teachers": 2}.get(parts[0], len(parts))
    return ".".join(parts[:owners]), ".".join(parts[owners:])


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
    groups = {f"teachers.{teacher}" for teacher in models.pool.names} if "teachers" in trains else set()
    for name, module in modules.items():
        paths = [path for owner, path in map(owner_and_path, trains) if owner == name]
        if isinstance(module, Model) and name not in groups and all(paths):
            train_parts(module, paths, name)
    objectives.requires_grad_(True)
    objectives.train()
    if any(True for _ in objectives.parameters()):
        modules["objectives"] = objectives
    return modules


def train_parts(model: Model, paths: Sequence[str], where: str) -> None:
    """Freeze a model but for some modules or parameters of its network, as parameter-efficient tuning does.

    Everything else is in eval mode, so that statistics of frozen normalisations stay.

    Args:
        model: a model that trains as a whole so far.
        paths: of modules ("model.image") or parameters ("zero_shot.context") of its network.
        where: the model's name, for messages.

    Raises:
        ConfigError: a path that names nothing.
    """
    network = model.network
    if getattr(network, "stands_in", False):
        return
    parts, own = dict(network.named_modules()), dict(network.named_parameters())
    for part in model.modules():
        part.training = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for path in paths:
        if path in own:
            own[path].requires_grad_(True)
        elif path in parts:
            parts[path].requires_grad_(True)
            parts[path].train()
        else:
            known = [name for name in [*parts, *own] if name]
            hint = did_you_mean(path, known) or f"; parts: {', '.join(known[:20])}"
            raise ConfigError(f"trains: '{where}.{path}' is no module or parameter of {type(network).__name__}{hint}")


def parameters_of(modules: Collection[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters that an optimizer of the stage moves, each once, in a stable order.

    Those of a gate that trains itself are not among them.
    """
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    gates = (part for module in modules for part in module.modules() if isinstance(part, Gate) and part.trains_itself)
    for parameter in (p for gate in gates for p in gate.parameters()):
        found.pop(id(parameter), None)
    return list(found.values())
