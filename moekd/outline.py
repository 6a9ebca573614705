"""Check a config whose data and weights are not at hand: models without memory, made-up rows, stand-in networks.

Every model is made on PyTorch's meta device, which has shapes and no numbers, and run there once to learn what it
gives. The stages are then tried with networks that give made-up signals of these shapes, so that heads, routers and
losses are the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from .assembly import at, make_network
from .config import ModelConfig, RecipeConfig, Spec, build
from .config.component import value_of
from .data import DATASETS, Dataset
from .data.fields import FIELDS
from .data.stand_in import stand_in
from .dry_run import dry_run
from .errors import ConfigError
from .model import Batch, Model
from .recipe import Recipe
from .signals import Signals
from .stages.trainable import owner_and_path
from .trainer import make_accelerator

#: Bytes of a parameter that trains in float32: weight, gradient and the two moments of Adam.
TRAINED_BYTES = 16


@dataclass(frozen=True)
class Outline:
    """What is known of a config without data and weights.

    Attributes:
        models: a row a model: name, kind, inputs, parameters, widths of its embeddings by modality, shapes of its taps.
        stages: as in `CheckReport`.
    """

    models: list[dict[str, Any]]
    stages: list[dict[str, Any]]


def outline(recipe: Recipe) -> Outline:
    """Make every model on the meta device and try every stage with made-up signals; nothing is downloaded or written.

    Raises:
        ConfigError: what can't work, with its config path.
    """
    config = recipe.config
    with TemporaryDirectory(prefix="moekd-") as folder:
        dataset = made_up_data(config, Path(folder))
        sample = dataset.split("train").__getitems__([0, 1])
        described = {
            where: _describe(model, where, dataset, sample)
            for where, model in [("student", config.student), *_teachers(config)]
        }
        program = recipe.build(dataset, lambda model, where, *_: StandInNetwork(described[where][1]))
        make_accelerator(program)
        rows = dry_run(program)
    parameters = {where: row["parameters"] for where, (row, _) in described.items()}
    return Outline([row for row, _ in described.values()], [_with_true_size(row, parameters) for row in rows])


def made_up_data(config: RecipeConfig, folder: Path) -> Dataset:
    """Return made-up rows with the fields of the config; the data set itself where it declares none (it is at hand)."""
    spec = config.data.spec
    fields = spec.options.get("fields")
    if not isinstance(fields, dict):
        dataset: Dataset = build(spec, DATASETS, where="data")
        return dataset
    built = {
        name: build(field if isinstance(field, Spec) else Spec(str(field)), FIELDS, where=f"data.fields.{name}")
        for name, field in fields.items()
    }
    labelled = value_of(spec, DATASETS, "label") is not None
    return stand_in(built, folder, spec.options.get("classes"), config.evaluation.splits, labelled)


class StandInNetwork(nn.Module):
    """Gives made-up signals of known shapes, with a gradient to its one weight; it has a module at every tap.

    Args:
        like: signals of two rows, on any device; only shapes count.
    """

    #: It has none of the parts of the network for which it stands.
    stands_in = True

    def __init__(self, like: Signals) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.like = like
        self.order: list[nn.Module] = []
        for tap, value in like.features.items():
            place: nn.Module = self
            *path, last = tap.split(".")
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            emitter = _Emitter(tuple(value.shape[1:]))
            place.add_module(last, emitter)
            self.order.append(emitter)

    def forward(self, *inputs: Tensor) -> dict[str, Any]:
        """Return made-up values for as many rows as the first input has."""
        rows = len(inputs[0])
        for emitter in self.order:
            emitter(self.weight.expand(rows))
        said: dict[str, Any] = {name: self._values(rows, value).abs() + 1 for name, value in self.like.heads.items()}
        if self.like.embeddings:
            said["embeddings"] = {name: self._values(rows, value) for name, value in self.like.embeddings.items()}
        if self.like.logits is not None:
            said["logits"] = self._values(rows, self.like.logits)
        return said

    def _values(self, rows: int, like: Tensor) -> Tensor:
        return self.weight * torch.randn(rows, *like.shape[1:], device=self.weight.device, dtype=self.weight.dtype)


class _Emitter(nn.Module):
    """Stands where a tapped layer stands."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, weight_B: Tensor) -> Tensor:
        noise = torch.randn(len(weight_B), *self.shape, device=weight_B.device, dtype=weight_B.dtype)
        return noise * weight_B.view(-1, *[1] * len(self.shape))


def _with_true_size(row: dict[str, Any], parameters: dict[str, int]) -> dict[str, Any]:
    """Count the parameters of the models instead of the one weight that stands for each."""
    groups = {"teachers": [where for where in parameters if where != "student"]}
    names = [owner_and_path(name)[0] for name in row["trains"]]
    trained = {where for name in names for where in groups.get(name, [name]) if where in parameters}
    trainable = row["trainable"] + sum(parameters[where] - 1 for where in trained)
    return row | {"trainable": trainable, "state_mb": round(trainable * TRAINED_BYTES / 2**20, 1)}


def _teachers(config: RecipeConfig) -> Iterator[tuple[str, ModelConfig]]:
    return ((f"teachers.{name}", teacher) for name, teacher in config.teachers.items())


def _describe(config: ModelConfig, where: str, dataset: Dataset, sample: Batch) -> tuple[dict[str, Any], Signals]:
    """Return a row of the report and the signals of two rows, on the meta device."""
    with at(where):
        try:
            network = make_network(config, where, dataset, seed=0, loading="meta")
            model = Model(network, config.inputs, config.taps).to("meta").eval()
            with torch.no_grad():
                signals = model(_on_meta(sample))
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"can't be run without numbers, on the meta device: {error}") from error
    row = {
        "name": where,
        "kind": type(network).__name__,
        "inputs": list(config.inputs),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "embeddings": {name: value.shape[1] for name, value in signals.embeddings.items()},
        "taps": {tap: list(value.shape[1:]) for tap, value in signals.features.items()},
    }
    return row, signals


def _on_meta(sample: Batch) -> Batch:
    """Return a batch with its numbers on the meta device; texts stay, since tokenizers read them."""
    return {
        name: value.to("meta") if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in sample.items()
    }
