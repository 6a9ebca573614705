"""Builds models, masks and routers from their config sections, and tries them on two samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import read_tensors
from .config import ModelConfig, RouterConfig, Spec, TeacherConfig, build
from .data import Dataset
from .errors import ConfigError, MoekdError, did_you_mean
from .manifest import check_listed
from .model import Batch, Model
from .networks import NETWORKS
from .networks.loading import Loading
from .networks.origin import check_origin
from .objectives import PairScorer
from .objectives.pair_scores import pair_scorer
from .randomness import seeded
from .routers import BALANCES, GATES, SELECTIONS, Router, Shapes
from .signals import Signals
from .teachers import MASKS, Mask, MomentumTeacher, Stacking, Teacher, TeacherPool

#: Makes the network of a model from its section, its config path, the data set and the seed.
NetworkMaker = Callable[[ModelConfig, str, Dataset, int], nn.Module]


def build_model(config: ModelConfig, name: str, dataset: Dataset, seed: int, make: NetworkMaker | None = None) -> Model:
    """Build a student, with the initial weights that belong to (seed, name); `make` replaces `make_network`."""
    network = (make or make_network)(config, name, dataset, seed)
    with at(f"{name}.taps"):
        return Model(network, config.inputs, config.taps).to(getattr(torch, config.dtype))


def build_pool(
    configs: Mapping[str, TeacherConfig],
    dataset: Dataset,
    seed: int,
    stacking: Stacking = "independent",
    make: NetworkMaker | None = None,
) -> TeacherPool:
    """Build the teachers, frozen, each with the initial weights that belong to (seed, its name)."""
    teachers, problems = {}, Problems()
    for name, config in configs.items():
        where = f"teachers.{name}"
        with problems:
            network = (make or make_network)(config, where, dataset, seed)
            with at(f"{where}.taps"):
                teachers[name] = _teacher(network, config, name)
    problems.tell()
    return TeacherPool(teachers, stacking)


def _teacher(network: nn.Module, config: TeacherConfig, name: str) -> Teacher:
    dtype, runs = getattr(torch, config.dtype), (config.device, config.compile, config.pad_rows)
    if config.follows is not None:
        if runs != ("auto", False, False):
            raise ConfigError(f"teachers.{name}: one that follows the student runs where and as the student does")
        return MomentumTeacher(network, config.inputs, config.taps, dtype, name, **vars(config.follows))
    return Teacher(network, config.inputs, config.taps, dtype, name).settled(*runs)


def check_followers(pool: TeacherPool, student: Model) -> None:
    """Refuse teachers that follow a student which is built otherwise.

    Raises:
        ConfigError: the weights that differ.
    """
    for name in pool.followers:
        teacher = pool.teacher(name)
        assert isinstance(teacher, MomentumTeacher)
        with at(f"teachers.{name}.follows"):
            teacher.check(student)


def pair_scorers(pool: TeacherPool) -> dict[str, PairScorer]:
    """Return how the cross-encoders of a pool score pairs of features, by name; other teachers have no such thing."""
    found = {name: pair_scorer(pool.teacher(name)) for name in pool.names}
    return {name: scorer for name, scorer in found.items() if scorer is not None}


def build_masks(spec: Spec, pool: TeacherPool, sample: Batch, seed: int) -> None:
    """Add a mask at every tap of every teacher, sized by what the tap gives for a sample."""
    for name in pool.names:
        for tap, shape in tap_shapes(pool.teacher(name), sample).items():
            where = f"masks at teachers.{name}.taps '{tap}'"
            if len(shape) not in (2, 4):
                raise ConfigError(
                    f"{where}: gives activations {list(shape[1:])} a sample; masks take vectors [D] or maps [C, H, W]: "
                    "tap a layer behind the pooling"
                )
            spatial = len(shape) == 4 and shape[2:] != (1, 1)
            with seeded(seed, where), at(where):
                mask: Mask = build(spec, MASKS, where=where, dim=shape[1], spatial=spatial)
            pool.specialise(name, tap, mask)


def build_router(
    config: RouterConfig, pool: TeacherPool, num_classes: int, where: str, shapes: Shapes | None = None
) -> Router:
    """Build a router over the experts of a pool.

    Args:
        config: its section.
        pool: the teachers.
        num_classes: number of classes.
        where: path of the section, for messages.
        shapes: sizes of the batch's fields and of the student's taps, which gates can read.

    Raises:
        ConfigError: more teachers chosen than there are, or parts that exclude each other.
    """
    if not pool.names:
        raise ConfigError(f"{where}: there are no teachers to route to; add a 'teachers' section")
    known = [*pool.names, *pool.specialised]
    if unknown := [name for name in config.experts or () if name not in known]:
        hint = did_you_mean(unknown[0], known) or f"; known: {', '.join(known)}"
        raise ConfigError(f"{where}.experts: no teacher or variant '{unknown[0]}'{hint}")
    if config.experts is not None and len(set(config.experts)) < len(config.experts):
        raise ConfigError(f"{where}.experts: a name is there twice in {config.experts}")
    names = list(config.experts or pool.experts)
    experts = len(names)
    context = {"num_classes": num_classes, "num_teachers": experts, "experts": names, "shapes": shapes}
    selection = build(config.selection, SELECTIONS, where=f"{where}.selection", **context)
    if selection.k is not None and selection.k > experts:
        raise ConfigError(f"{where}.selection.k: {selection.k} teachers chosen of {experts}; lower k or add teachers")
    return Router(
        build(config.gate, GATES, where=f"{where}.gate", **context),
        selection,
        [build(spec, BALANCES, where=f"{where}.balance[{i}]", **context) for i, spec in enumerate(config.balance)],
        config.combine,
        config.signal,
        config.mix,
        config.experts,
        config.oracle_tau,
    )


def shapes_of(student: Model, pool: TeacherPool, sample: Batch) -> Shapes:
    """Return the sizes of the batch's fields, of all taps and of all embeddings, from which gates and objectives size
    their weights; each model runs once, in eval mode.

    Raises:
        ConfigError: an embedding is no vector a sample.
    """
    fields = {name: tuple(value.shape[1:]) for name, value in sample.items() if isinstance(value, Tensor)}
    models = {"student": student, **{name: pool.teacher(name) for name in pool.names}}
    taps: dict[str, dict[str, tuple[int, ...]]] = {}
    embeddings: dict[str, dict[str, int]] = {}
    for name, model in models.items():
        said = _said(model, sample)
        taps[name] = {tap: tuple(said.features[tap].shape[1:]) for tap in model.taps}
        embeddings[name] = {modality: _width(name, modality, value) for modality, value in said.embeddings.items()}
    return Shapes(fields, taps.pop("student"), taps, embeddings)


def tap_shapes(model: Model, sample: Batch) -> dict[str, tuple[int, ...]]:
    """Return the shape of the activation at each tap for a sample batch; the model runs in eval mode."""
    said = _said(model, sample)
    return {tap: tuple(said.features[tap].shape) for tap in model.taps}


@torch.no_grad()
def _said(model: Model, sample: Batch) -> Signals:
    mode = model.training
    model.eval()
    try:
        return model(sample)
    finally:
        model.train(mode)


def _width(name: str, modality: str, embedding: Tensor) -> int:
    if embedding.dim() != 2:
        who = name if name == "student" else f"teachers.{name}"
        raise ConfigError(
            f"{who}: the embedding '{modality}' is {list(embedding.shape)}, expected [B, D]: one vector a sample"
        )
    return embedding.shape[1]


@torch.no_grad()
def probe(model: Model, where: str, sample: Batch, num_classes: int, dataset: Dataset) -> None:
    """Run a model on a sample.

    Raises:
        ConfigError: it can't read the data set's fields, or its classes are not the data set's.
    """
    mode = model.training
    model.eval()
    try:
        check = getattr(model.network, "check_inputs", None)
        if check is not None:
            check(*model.arguments(sample))
        logits = model(sample).logits
    except MoekdError as error:
        raise ConfigError(f"{where}: {error}") from error
    except RuntimeError as error:
        fields = ", ".join(f"{name} {dataset.fields[name].shape}" for name in model.inputs if name in dataset.fields)
        raise ConfigError(f"{where}: {type(model.network).__name__} can't take {fields}: {error}") from error
    finally:
        model.train(mode)
    if logits is not None and logits.shape[1] != num_classes:
        raise ConfigError(
            f"{where}: gives {logits.shape[1]} classes, the data set has {num_classes}; they must be the same"
        )


def load_weights(network: nn.Module, file: str, where: str) -> None:
    """Load a safetensors file into a network, strictly.

    Raises:
        ConfigError: no such file, or its tensors are not the network's; the message lists what differs.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"{where}.weights: no file {path}")
    check_listed(path)
    tensors, own = read_tensors(path), network.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    shapes = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    if missing or extra or shapes:
        lines = [("missing", missing), ("not in the network", extra), ("of another shape", shapes)]
        text = "; ".join(
            f"{label}: {', '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}" for label, keys in lines if keys
        )
        raise ConfigError(f"{where}.weights: {path} does not fit {type(network).__name__}: {text}")
    network.load_state_dict(tensors)


def make_network(
    config: ModelConfig, where: str, dataset: Dataset, seed: int, loading: Loading = "weights"
) -> nn.Module:
    """Make the network of a model, with the initial weights that belong to (seed, where) or those of its file.

    Args:
        config: its section.
        where: its path in the config.
        dataset: tells classes and fields.
        seed: seed of the run.
        loading: how much of an outside model is made.
    """
    known = {name: dataset.fields[name] for name in config.inputs if name in dataset.fields}
    fields = {name: vars(field) | dataset.input_recipe(name) for name, field in known.items()}
    context = {
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "fields": fields,
        "loading": loading,
    }
    with seeded(seed, where):
        network: nn.Module = build(config.spec, NETWORKS, where=where, **context)
    if config.weights is not None and loading == "weights":
        check_origin(Path(config.weights).expanduser(), where, config.inputs, dataset.class_names, fields)
        load_weights(network, config.weights, where)
    return network


class Problems:
    """Collects errors of moekd over several `with` blocks, so that all of them are told at once."""

    def __init__(self) -> None:
        self.errors: list[MoekdError] = []

    def __enter__(self) -> Problems:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, MoekdError):
            self.errors.append(error)
        return isinstance(error, MoekdError)

    def tell(self) -> None:
        """Raise what was collected.

        Raises:
            MoekdError: the only one.
            ConfigError: several.
        """
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ConfigError([line for error in self.errors for line in getattr(error, "problems", [str(error)])])


@contextmanager
def at(where: str) -> Iterator[None]:
    """Put the config path before the message of an error."""
    try:
        yield
    except MoekdError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from error
