"""A data set, networks and an objective that are small enough for whole runs in a test, and ways to break them.

`register` puts them into the registries; `python -m tests.engine.tiny ...` is the command line with them.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moekd.config import parse_recipe
from moekd.data import DATASETS, Dataset
from moekd.data.arrays import ArrayField, ArraySplit, to_float
from moekd.data.dataset import FieldSpec
from moekd.distributed import rank, world_size
from moekd.errors import DataError
from moekd.networks import NETWORKS
from moekd.objectives import OBJECTIVES, Objective
from moekd.program import Program
from moekd.recipe import Recipe
from moekd.registry import Injected
from moekd.stages.train import TrainLoop
from moekd.step import Step
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 4
MAGIC = 77.0


class Tiny(Dataset):
    """Four clouds of points, seen as `left` [8], `right` [10] and `image` [1, 8, 8].

    Args:
        rows: rows of the training split.
        seed: seed of the points.
        nan_ids: training samples whose `left` holds NaN.
        magic_ids: training samples on which the network `tiny_brittle` divides by zero.
        empty: name of a split without rows.
        augmented: say that training rows are read differently each time.
    """

    kind = "tiny"

    def __init__(
        self,
        rows: int = 40,
        seed: int = 0,
        nan_ids: list[int] = [],  # noqa: B006
        magic_ids: list[int] = [],  # noqa: B006
        empty: str | None = None,
        augmented: bool = False,
    ) -> None:
        self.options = {"rows": rows, "seed": seed, "nan_ids": nan_ids, "magic_ids": magic_ids, "empty": empty}
        self.augmented = augmented
        self.sizes = {"train": rows, "val": 18, "test": 22} | ({empty: 0} if empty else {})
        self.nan_ids, self.magic_ids, self.seed = list(nan_ids), list(magic_ids), seed
        self.class_names = [f"cloud {i}" for i in range(CLASSES)]
        self.fields = {
            "left": FieldSpec((8,), "float32", "vector"),
            "right": FieldSpec((10,), "float32", "vector"),
            "image": FieldSpec((1, 8, 8), "float32", "image"),
        }

    def load_splits(self) -> dict[str, Any]:
        """Draw the points."""
        rng, splits, start = np.random.default_rng(self.seed), {}, 0
        centres = {name: rng.normal(size=(CLASSES, *spec.shape)) for name, spec in self.fields.items()}
        for name, size in self.sizes.items():
            ids, labels = np.arange(start, start + size), rng.integers(0, CLASSES, size)
            arrays = {field: c[labels] + rng.normal(size=(size, *c.shape[1:])) for field, c in centres.items()}
            arrays["left"][np.isin(ids, self.nan_ids)] = np.nan
            arrays["left"][np.isin(ids, self.magic_ids), 0] = MAGIC
            fields = {field: ArrayField(value, self.fields[field], to_float) for field, value in arrays.items()}
            splits[name] = ArraySplit(name, ids, labels, fields, names="point {}".format)
            splits[name].random = self.augmented and name == "train"
            start += size
        return splits

    def identity(self) -> Any:
        """Return the options."""
        return self.options


class Brittle(nn.Module):
    """A linear map of `left` that is infinite on magic rows; parameters `linear`."""

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, num_classes)

    def forward(self, left_BD: Tensor) -> Tensor:
        logits: Tensor = self.linear(left_BD / (left_BD[:, :1] != MAGIC))
        return logits


class OtherClasses(nn.Module):
    """A linear map of `right` to one class more than asked for."""

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(10, num_classes + 1)

    def forward(self, right_BD: Tensor) -> Tensor:
        logits: Tensor = self.linear(right_BD)
        return logits


class Fatal(Objective):
    """A loss of 0 that ends, stops or delays the last process in the second epoch.

    Args:
        how: `raise` an error, `stop` the process as a machine that hangs, or `sleep` for a minute.
    """

    def __init__(self, how: str = "raise") -> None:
        super().__init__()
        self.how = how

    def forward(self, step: Step) -> Mapping[str, Tensor]:
        """Return `{"tiny_fatal": [B]}`."""
        if step.training and step.progress.epoch == 1 and rank() == world_size() - 1:
            if self.how == "raise":
                raise DataError("the last process can't go on")
            if self.how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(60)
        return {"tiny_fatal": step.student.require_logits("tiny_fatal").sum(dim=1) * 0}


class Checkpointed(nn.Module):
    """The network `mlp` of the tests, whose activations are computed again in the backward pass."""

    def __init__(self, num_classes: Injected[int]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, num_classes)

    def forward(self, left_BD: Tensor) -> Tensor:
        def inner(value: Tensor) -> Tensor:
            hidden: Tensor = self.last(self.first(value).relu())
            return hidden

        logits: Tensor = checkpoint(inner, left_BD, use_reentrant=False)
        return logits


class Poison(Objective):
    """A loss that is fine until some epoch and then NaN (or, with `gradient`, finite with an infinite gradient).

    Args:
        from_epoch: first epoch with NaN.
        gradient: only the gradient is not finite.
        epochs: how many epochs it stays so.
    """

    def __init__(self, from_epoch: int = 1, gradient: bool = False, epochs: int = 1000) -> None:
        super().__init__()
        self.from_epoch, self.gradient, self.until_epoch = from_epoch, gradient, from_epoch + epochs

    def forward(self, step: Step) -> Mapping[str, Tensor]:
        """Return `{"tiny_poison": [B]}`."""
        logits_BC = step.student.require_logits("tiny_poison")
        zero_B = (logits_BC - logits_BC.detach()).square().sum(dim=1)
        if not self.from_epoch <= step.progress.epoch < self.until_epoch:
            return {"tiny_poison": zero_B}
        return {"tiny_poison": zero_B.sqrt() if self.gradient else zero_B.log() - zero_B.log()}


KINDS = (
    (DATASETS, "tiny", Tiny),
    (NETWORKS, "tiny_brittle", Brittle),
    (NETWORKS, "tiny_other_classes", OtherClasses),
    (NETWORKS, "tiny_checkpointed", Checkpointed),
    (OBJECTIVES, "tiny_fatal", Fatal),
    (OBJECTIVES, "tiny_poison", Poison),
)

CROSS_ENTROPY, ROUTED = {"kind": "cross_entropy"}, {"kind": "routed_kd", "weight": {"kind": "step_decay", "every": 1}}
MLP = {"kind": "mlp", "inputs": ["left"], "in_features": 8, "hidden": [12]}
#: Three stages and a baseline, with dropout, batch norm, EMA, clipping and a scheduler: all that a resume must restore.
FULL: dict[str, Any] = {
    "seed": 3,
    "data": {"kind": "tiny", "batch_size": 16},
    "student": {
        "kind": "small_cnn",
        "inputs": ["image"],
        "in_channels": 1,
        "channels": [4],
        "hidden": 8,
        "dropout": 0.2,
    },
    "teachers": {
        "right": {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [12], "taps": ["fc1"]},
        "both": {
            "kind": "fusion",
            "inputs": ["image", "right"],
            "encoders": [
                {"kind": "cnn_encoder", "channels": [4], "in_channels": 1},
                {"kind": "mlp_encoder", "in_features": 10, "hidden": [8]},
            ],
            "hidden": 12,
            "taps": ["concat_identity", "fc1"],
        },
    },
    "masks": {"kind": "feature_attention", "hidden_factor": 4, "heads": 1},
    "router": {"gate": {"kind": "instance"}, "selection": "top_k", "balance": ["kl_to_uniform"]},
    "stages": [
        {
            "name": "cotrain",
            "trains": ["student", "teachers"],
            "epochs": 2,
            "objectives": [{"kind": "cross_entropy", "on": "all"}, "mutual_kd"],
            "clip_norm": 5.0,
            "scheduler": "cosine_annealing_lr",
        },
        {
            "name": "specialise",
            "trains": ["masks"],
            "epochs": 2,
            "objectives": ["kd_to_student"],
            "monitor": {"metric": "kd_to_student", "mode": "min"},
        },
        {
            "name": "distill",
            "trains": ["student", "router"],
            "epochs": 2,
            "objectives": [CROSS_ENTROPY, ROUTED],
            "monitor": {"metric": "loss", "mode": "min"},
            "ema": 0.8,
        },
    ],
    "baselines": {
        "alone": {"stages": [{"name": "alone", "trains": ["student"], "epochs": 1, "objectives": ["cross_entropy"]}]}
    },
    "trainer": {"threads": 1, "trackers": [], "log_every": 2, "checkpoint_every": 2, "keep": 100, "device": "cpu"},
}


def full(**changes: Any) -> dict[str, Any]:
    """Return the full config with whole top-level keys replaced."""
    return copy.deepcopy(FULL) | copy.deepcopy(changes)


def simple(stage: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a config of one stage that trains an MLP on labels, without anything random but its start."""
    learn = {"name": "learn", "trains": ["student"], "objectives": ["cross_entropy"]} | dict(stage or {})
    if "steps" not in learn:
        learn.setdefault("epochs", 2)
    raw = {key: FULL[key] for key in ("seed", "data", "trainer")} | {"student": MLP, "stages": [learn]}
    return copy.deepcopy(raw | changes)


def recipe_of(raw: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a config."""
    return Recipe(parse_recipe(raw, "tiny"), "tiny")


@dataclass
class Finished:
    """A run that ended: what it was made of and what it wrote."""

    program: Program
    run: RunFolder
    trainer: Trainer
    results: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Return all weights and buffers of the run by name."""
        return weights_of(self.program)

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the records of a type, without times and memory."""
        found = [record for record in self.run.read_metrics() if kind in (None, record["type"])]
        return [
            {k: v for k, v in record.items() if k not in ("seconds", "train_seconds", "peak_memory_mb")}
            for record in found
        ]


def weights_of(program: Program) -> dict[str, Tensor]:
    """Return copies of all weights and buffers of a program by name."""
    modules: dict[str, nn.Module] = {"pool": program.pool}
    for phase in program.phases:
        modules[f"student of {phase.name}"] = phase.student
        if phase.router is not None:
            modules[f"router of {phase.name}"] = phase.router
    return {f"{name}: {key}": value.clone() for name, module in modules.items() for key, value in _state(module)}


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return sorted(module.state_dict().items())


def same_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are not bit for bit the same."""
    return [key for key in sorted({*a, *b}) if key not in a or key not in b or not torch.equal(a[key], b[key])]


def train(
    raw: Mapping[str, Any], runs: Path, name: str = "run", resume: str | Path | None = None, **options: Any
) -> Finished:
    """Run a config without export and report."""
    program = recipe_of(raw).build()
    run = RunFolder(runs, name, resume=resume is not None)
    trainer = Trainer(program, run, quiet=options.pop("quiet", True))
    results = trainer.fit(resume, **options)
    return Finished(program, run, trainer, results)


class PowerCutError(Exception):
    """What stops a run in the middle."""


def cut_after(monkeypatch: Any, steps: int) -> None:
    """Let the process die right after a number of optimizer steps, before anything of the step is written."""
    update, done = TrainLoop.update, [0]

    def update_or_die(loop: TrainLoop, batch: Any) -> None:
        if done[0] == steps:
            raise PowerCutError
        done[0] += 1
        update(loop, batch)

    monkeypatch.setattr(TrainLoop, "update", update_or_die)


def register() -> None:
    """Put the kinds into the registries, for a process of its own."""
    for registry, name, cls in KINDS:
        registry.register(name)(cls)


def start(arguments: Sequence[str | Path], **environment: str) -> subprocess.Popen[str]:
    """Start `python -m tests.engine.tiny ...` in a process of its own, on one thread and without a network."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.engine.tiny", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train_alone(config: str, runs: str) -> None:
    """Run a config (JSON) from its start or its newest checkpoint, without export and report; for processes."""
    torch.set_num_threads(1)
    train(json.loads(Path(config).read_text()), Path(runs), resume="auto", quiet=False)


if __name__ == "__main__":
    from moekd.cli.main import app, main
    from tests.engine import tiny

    tiny.register()
    app.command("train-tiny")(tiny.train_alone)
    main()
