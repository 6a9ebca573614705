"""A small house of components for the config tests, in registries of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt

from moekd.config.torch_optim import OPTIMIZERS, SCHEDULERS
from moekd.registry import REGISTRIES, Injected, Registry


class Ramp:
    """A schedule."""


class Loss:
    """An objective."""


class PairLoss(Loss):
    """An objective between two models."""


def _registry(noun: str, group: str, base: type | None = None) -> Registry[Any]:
    registry: Registry[Any] = Registry(noun, f"kit_{group}", base=base)
    return REGISTRIES.pop(registry.group)


DATASETS = _registry("data set", "datasets")
NETWORKS = _registry("network", "networks")
GATES = _registry("gate", "gates")
SELECTIONS = _registry("selection", "selections")
BALANCES = _registry("balance", "balances")
MASKS = _registry("mask", "masks")
STAGES = _registry("stage", "stages")
TRANSFORMS = _registry("transform", "transforms")
OBJECTIVES = _registry("objective", "objectives", Loss)
SCHEDULES = _registry("schedule", "schedules", Ramp)


@DATASETS.register("toy")
class Toy:
    """A data set."""

    def __init__(self, preset: Literal["easy", "hard"] = "easy", path: Path | None = None, train: int = 100) -> None:
        self.preset, self.path, self.train = preset, path, train


@NETWORKS.register("mlp")
class Mlp:
    """A perceptron."""

    def __init__(self, num_classes: Injected[int], widths: Sequence[int] = (8,), dropout: float = 0.0) -> None:
        self.num_classes, self.widths, self.dropout = num_classes, widths, dropout


@GATES.register("instance")
class Gate:
    """Scores from the student's logits."""

    def __init__(self, variants: Injected[int], on: Literal["student_logits", "features"] = "student_logits") -> None:
        self.variants, self.on = variants, on


@SELECTIONS.register("top_k")
class TopK:
    """The k best."""

    def __init__(self, k: Annotated[int, Ge(1)] = 1) -> None:
        self.k = k


@BALANCES.register("kl_to_uniform")
class KlToUniform:
    """Even shares."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight


@MASKS.register("attention")
class Attention:
    """A mask."""

    def __init__(self, dim: Injected[int], heads: Annotated[int, Ge(1)] = 3) -> None:
        self.dim, self.heads = dim, heads


@STAGES.register("train")
class Train:
    """Plain training; the common keys of a stage are parameters here, too."""

    def __init__(self, name: Injected[str], epochs: int | None = None) -> None:
        self.name, self.epochs = name, epochs


@STAGES.register("search")
class Search:
    """A stage with an option of its own."""

    def __init__(self, trials: Annotated[int, Ge(1)]) -> None:
        self.trials = trials


@TRANSFORMS.register("mixup")
class Mixup:
    """Mixes rows."""

    def __init__(self, alpha: Annotated[float, Gt(0)] = 0.2) -> None:
        self.alpha = alpha


@SCHEDULES.register("step_decay")
class StepDecay(Ramp):
    """Steps down.

    Args:
        start: first value.
        every: epochs between two drops,
            counted from 0.
    """

    def __init__(self, start: float = 1.0, every: Annotated[int, Ge(1)] = 30) -> None:
        if start == 13:
            raise ValueError("13 is unlucky")
        self.start, self.every = start, every


@OBJECTIVES.register("cross_entropy")
class CrossEntropy(Loss):
    """The task loss."""

    def __init__(self, on: str = "student", smoothing: float = 0.0) -> None:
        self.on, self.smoothing = on, smoothing


@OBJECTIVES.register("kd")
class Kd(PairLoss):
    """Distillation."""

    def __init__(self, teacher: str | None = None, temperature: Annotated[float, Gt(0)] | Ramp = 4.0) -> None:
        self.teacher, self.temperature = teacher, temperature


@OBJECTIVES.register("several")
class Several(Loss):
    """Several teachers."""

    def __init__(self, teachers: Sequence[str] | Literal["all"] = "all", ramps: dict[str, Ramp] | None = None) -> None:
        self.teachers, self.ramps = teachers, ramps


@OBJECTIVES.register("routed")
class Routed(Loss):
    """Any pairwise objective, routed."""

    def __init__(self, objective: PairLoss, extras: Sequence[Loss] = ()) -> None:
        self.objective, self.extras = objective, extras


KIT: dict[str, Registry[Any]] = {
    "datasets": DATASETS,
    "networks": NETWORKS,
    "gates": GATES,
    "selections": SELECTIONS,
    "balances": BALANCES,
    "masks": MASKS,
    "stages": STAGES,
    "transforms": TRANSFORMS,
    "objectives": OBJECTIVES,
    "schedules": SCHEDULES,
    "optimizers": OPTIMIZERS,
    "schedulers": SCHEDULERS,
}

RECIPE: Mapping[str, Any] = {
    "title": "a test",
    "data": {"kind": "toy", "preset": "hard", "batch_size": 8},
    "student": {"kind": "mlp", "inputs": ["image"]},
    "teachers": {
        "both": {"kind": "mlp", "inputs": ["image", "audio"], "taps": ["fusion", "fc1"]},
        "audio": {"kind": "mlp", "inputs": ["audio"], "taps": ["conv3", "fc1"], "widths": [16, 16]},
    },
    "masks": {"kind": "attention", "heads": 3},
    "router": {
        "gate": {"kind": "instance", "on": "student_logits"},
        "selection": {"kind": "top_k", "k": 1},
        "balance": ["kl_to_uniform"],
        "combine": "select",
    },
    "stages": [
        {
            "name": "cotrain",
            "trains": ["student", "teachers"],
            "epochs": 10,
            "objectives": [{"kind": "cross_entropy", "on": "all"}, {"kind": "kd", "teacher": "both"}],
        },
        {"name": "specialise", "trains": ["masks"], "steps": 10, "objectives": ["kd"]},
        {
            "name": "distill",
            "trains": ["student", "router"],
            "epochs": 30,
            "objectives": [
                "cross_entropy",
                {"kind": "kd", "teacher": "both/fc1", "weight": {"kind": "step_decay", "every": 10}},
            ],
        },
    ],
}


@pytest.fixture(scope="module", autouse=True)
def kit():
    """The registries of this file by group; in `REGISTRIES`, so that their base classes mark nested components."""
    added = {registry.group: registry for registry in KIT.values() if registry.group.startswith("kit_")}
    REGISTRIES.update(added)
    yield KIT
    for group in added:
        del REGISTRIES[group]


@pytest.fixture
def raw() -> dict[str, Any]:
    """A fresh copy of a valid recipe."""
    return deepcopy(dict(RECIPE))


@pytest.fixture(scope="module")
def base_raw() -> Mapping[str, Any]:
    """The valid recipe, not to be changed."""
    return RECIPE
