"""The student alone, for use elsewhere: weights, how to prepare its inputs, and a program that needs no moekd.

    <folder>/ model.safetensors  config.json  student.pt2 (a program for plain PyTorch)  README.md

A student that tokenizes texts for itself has a program a tower instead: `image_encoder.pt2`, `text_encoder.pt2`.
`config.json` is written last and has the sha256 of the other files and of itself. Teachers, heads, masks and routers
stay behind.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..atomic import plain as to_json
from ..atomic import write_bytes, write_json, write_text
from ..checkpoint import read_tensors
from ..errors import CheckpointError, ConfigError, DataError, ModelError
from ..manifest import digest_of, sha256_of
from ..model import Model
from .parts import NAMES, parts_of, scales
from .portable import portable_options
from .readme import default_card, usage
from .torch_program import write_program

logger = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "moekd-student", 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PROGRAMS = tuple(f"{name}.pt2" for name in NAMES)


def export_student(
    model: Model,
    config: Mapping[str, Any],
    folder: Path,
    card: str | None = None,
    *,
    example: Mapping[str, Tensor] | None = None,
    program: bool = True,
) -> Path:
    """Write the bare network of a student.

    Args:
        model: the trained student; only `model.network` is written.
        config: "network" `{"kind", "options", "context"}` (registered network, its options, and what the engine
            injected; by default the number of classes), "class_names", "fields" `{input: {"shape", "dtype",
            "modality", and how to prepare it: "mean", "std", "size", ...}}`, and for the card "title" and "facts".
        folder: where to write; files of an earlier export are replaced one by one.
        card: head of the README, which a section on how to load the student follows; by default a table of `config`.
        example: a batch to trace the program with; by default zeros of the shapes in "fields".
        program: also write the programs. If the network can't be traced, a warning says so and the reason is kept in
            `config.json`; the weights are written all the same.

    Raises:
        ConfigError: `config` lacks a part.
        ModelError: the configured network does not take the student's weights.
    """
    document = _document(model, config)
    weights = _weights(model.network)
    _check_rebuilds(document, weights)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (CONFIG, *PROGRAMS):
        (folder / stale).unlink(missing_ok=True)
    write_bytes(folder / WEIGHTS, safetensors.torch.save(weights, metadata={"format": "pt"}))
    files, programs = [WEIGHTS], list[str]()
    if program:
        try:
            programs = write_programs(model, document, folder, example)
        except (ModelError, DataError) as error:
            logger.warning("the student is exported without its program: %s", error)
            document["program_missing"] = str(error)
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    head = default_card(document, parameters) if card is None else card.rstrip() + "\n"
    write_text(folder / CARD, f"{head}\n{usage(document, folder.name, programs)}")
    files += programs
    document["files"] = {name: _description(folder / name) for name in (*files, CARD)}
    document = json.loads(json.dumps(to_json(document)))
    write_json(folder / CONFIG, document | {"sha256": digest_of(document)})
    return folder


def write_programs(
    model: Model, document: dict[str, Any], folder: Path, example: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Write one traced program a part of a student into a folder; what they take and give goes into `document`.

    Returns:
        The names of the files.

    Raises:
        ModelError: a part can't be traced; then no program is left.
    """
    given = None if example is None else model.arguments(example)
    training, files, described = model.network.training, list[str](), dict[str, Any]()
    try:
        for part in parts_of(model.network, model.inputs, document["fields"], given):
            files.append(write_program(part, folder / f"{part.name}.pt2").name)
            described[files[-1]] = {"inputs": list(part.examples), "outputs": list(part.run(part.examples.values()))}
    except (ModelError, DataError):
        for name in files:
            (folder / name).unlink()
        raise
    finally:
        model.network.train(training)
    document["programs"] = described
    return files


def load_student(folder: Path | str) -> nn.Module:
    """Rebuild an exported student and load its weights.

    Args:
        folder: a student folder, or a run folder that has one.

    Returns:
        The plain network on the CPU, in eval mode; it takes the tensors named by `inputs` in `config.json`, in order.

    Raises:
        DataError: no student there.
        CheckpointError: the files are damaged, or the weights do not fit the network.
        UnknownNameError: the network's kind is not registered here.
    """
    path, document = read_student(Path(folder))
    try:
        network = build_network(document["network"], document)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(f"{path / CONFIG} describes no network that can be made: {error!r:.200}") from error
    _load_strictly(network, read_tensors(path / WEIGHTS), str(path))
    return network.eval()


def read_student(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the student's folder and its verified `config.json`.

    Raises:
        DataError: no student there.
        CheckpointError: `config.json` is unusable, or a file differs from its sha256.
    """
    path = next((place for place in (folder, folder / "student") if (place / CONFIG).is_file()), None)
    if path is None:
        raise DataError(f"no student in {folder}: {CONFIG} is missing; give a run folder or its 'student' folder")
    try:
        document = json.loads((path / CONFIG).read_bytes())
        listed = {name: document["files"][name] for name in document["files"] if name in (WEIGHTS, *PROGRAMS)}
        form = (document["format"], document["format_version"])
        kind, seal = document["network"]["kind"], document.pop("sha256", None)
        digests = {name: entry["sha256"] for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path / CONFIG} is not the description of a student: {error!r:.200}") from error
    if form != (FORMAT, FORMAT_VERSION) or not isinstance(kind, str) or WEIGHTS not in digests:
        raise CheckpointError(
            f"{path / CONFIG} has the format {form!r:.80}; this moekd reads {(FORMAT, FORMAT_VERSION)}"
        )
    if seal is not None and seal != digest_of(document):
        raise CheckpointError(
            f"{path / CONFIG}: sha256 mismatch; the file is damaged or was changed; if you changed it on purpose, take "
            "its entry 'sha256' out"
        )
    if problem := _malformed(document):
        raise CheckpointError(f"{path / CONFIG} is not the description of a student: {problem}")
    for name, digest in digests.items():
        if not (path / name).is_file():
            raise CheckpointError(f"the student in {path} lacks the file {name}")
        if sha256_of(path / name) != digest:
            raise CheckpointError(f"{path / name}: sha256 mismatch; the file is damaged or was changed")
    return path, document


def build_network(description: Mapping[str, Any], document: Mapping[str, Any] | None = None) -> nn.Module:
    """Make a network from `{"kind", "options", "context"}`; the random state of the caller stays as it is.

    Args:
        description: kind and options, and what the engine injected.
        document: the student's `config.json`, which has the class names and the fields that adapters read.

    Raises:
        ConfigError: unknown kind or option, or an option with the wrong type.
    """
    from ..config.component import build, validate_component
    from ..networks import NETWORKS

    problems: list[str] = []
    component = {"kind": description["kind"], **description.get("options", {})}
    spec = validate_component(NETWORKS, component, "network", problems)
    if spec is None:
        raise ConfigError(problems)
    with torch.random.fork_rng(devices=[]):
        context = _data_context(document) | description.get("context", {}) | {"loading": "architecture"}
        return build(spec, NETWORKS, where="network", **context)  # the weights are loaded afterwards


def _malformed(document: Mapping[str, Any]) -> str | None:
    """Return which part of a description has another form than the one that is written."""
    network, inputs, names, fields = (document.get(key) for key in ("network", "inputs", "class_names", "fields"))
    if not isinstance(network, dict) or not all(isinstance(network.get(k, {}), dict) for k in ("options", "context")):
        return "'network' has no options and context"
    for key, value in (("inputs", inputs), ("class_names", names)):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return f"'{key}' is no list of names"
    if not isinstance(fields, dict) or not all(isinstance(field, dict) for field in fields.values()):
        return "'fields' does not describe fields"
    return None


def _data_context(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the engine told the network: the data set, and that outside models need no weights of their own."""
    if document is None:
        return {}
    fields = {name: document["fields"][name] for name in document["inputs"] if name in document["fields"]}
    return {"class_names": list(document["class_names"]), "fields": fields, "loading": "architecture"}


def _document(model: Model, config: Mapping[str, Any]) -> dict[str, Any]:
    if missing := [key for key in ("network", "class_names", "fields") if key not in config]:
        raise ConfigError([f"export: '{key}' is missing in the student's configuration" for key in missing])
    from ..config.spec import plain

    names = [str(name) for name in config["class_names"]]
    network = plain({"options": {}, "context": {"num_classes": len(names)}, **config["network"]})
    network["options"] = portable_options(model.network, network["options"])
    return {
        **plain(config),
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network": plain(network),
        "inputs": list(model.inputs),
        "class_names": names,
        "scale": scales(model.network),
        "moekd": version("moekd"),
        "torch": torch.__version__,
    }


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Return a snapshot of the state dict; tensors that share memory are written once each."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }


def _check_rebuilds(document: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    try:
        _load_strictly(build_network(document["network"], document), weights, "this export")
    except (CheckpointError, ConfigError) as error:
        raise ModelError(f"the student could not be loaded again: {error}") from error


def _load_strictly(network: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    try:
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if name in weights and weights[name].dtype != tensor.dtype:
                tensor.data = tensor.data.to(weights[name].dtype)
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {where} do not fit {type(network).__name__}: {error}") from error


def _description(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
