"""The larger model that a student inherits its weights from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ..errors import ConfigError
from .base import ENCODERS
from .inherit import InheritOptions, Modality, TowerWeights, pick, shrink
from .text_tower import TextOptions
from .timm import backbone
from .tower_formats import read_tower, write_tower
from .transformers_files import load_model
from .visual_prompts import VisualPromptOptions


def take_over(student: nn.Module, options: InheritOptions) -> None:
    """Give the towers of a student the weights of a larger model, cut to its sizes; other weights stay as they are.

    Args:
        student: two towers of this project, or a model of open_clip.
        options: the larger model, the rules, and the towers.

    Raises:
        ConfigError: the larger model can't be read, or the student is larger, or built in another way.
    """
    source = open_source(options)
    pairs: dict[Modality, tuple[TowerWeights, TowerWeights]] = {}
    for modality in options.towers:
        theirs = read_tower(source, modality, f"'{options.source}'")
        mine = read_tower(student, modality, "the student")
        if wrong := [key for key in mine.traits if mine.traits[key] != theirs.traits.get(key)]:
            key = wrong[0]
            raise ConfigError(
                f"inherit: the {modality} tower of '{options.source}' has {key} {theirs.traits.get(key)}, the student "
                f"{mine.traits[key]}; they have to be the same"
            )
        pairs[modality] = theirs, mine
    where = "the embedding"
    try:
        embedding = _embedding(list(pairs.values()), options)
        for modality, (theirs, mine) in pairs.items():
            where = f"{modality} tower"
            cut = shrink(theirs, mine, options.layers, options.width, embedding)
            write_tower(student, modality, cut, "the student")
    except ConfigError as error:
        raise ConfigError([f"inherit: {where}: {line}" for line in error.problems]) from error
    with torch.no_grad():
        for name in ("logit_scale", "logit_bias"):
            ours, other = getattr(student, name, None), getattr(source, name, None)
            if ours is not None and other is not None:
                ours.copy_(other.reshape(ours.shape))


def open_source(options: InheritOptions) -> nn.Module:
    """Return the larger model, on the CPU.

    Raises:
        ConfigError: it can't be read.
    """
    folder = Path(options.source).expanduser()
    if not folder.is_dir() or (folder / "open_clip_config.json").is_file():
        from .open_clip import OpenClip

        larger: nn.Module = OpenClip(options.source, pretrained=options.pretrained).model
        return larger
    if (folder / "student" / "config.json").is_file():
        folder /= "student"
    document = _document(folder / "config.json")
    if document.get("format") == "moekd-student":
        return _student(folder, document)
    if "model_type" in document:
        return load_model("AutoModel", folder, f"'{options.source}'")
    if "architecture" in document:
        return backbone(str(document["architecture"]), str(folder / "model.safetensors"), {"num_classes": 0})
    raise ConfigError(f"inherit.source: {folder} is no model of open_clip, transformers, timm or moekd")


def _embedding(pairs: list[tuple[TowerWeights, TowerWeights]], options: InheritOptions) -> torch.Tensor | None:
    """Return which channels of the embedding are kept, the same for both towers."""
    name = "projection.weight"
    both = [(a.tensors[name], b.tensors[name]) for a, b in pairs if name in a.tensors and name in b.tensors]
    if not both:
        return None
    total, wanted = both[0][0].shape[0], both[0][1].shape[0]
    scores = torch.stack([theirs.float().abs().sum(dim=1) for theirs, _ in both]).sum(dim=0)
    return pick("channels of the embedding", total, wanted, options.width, scores)


def _student(folder: Path, document: dict[str, Any]) -> nn.Module:
    """Return the model inside of a student that was written by this package."""
    kind, options = document["network"]["kind"], dict(document["network"].get("options") or {})
    if kind == "two_tower":
        from .two_tower import TwoTower

        given = {key: options[key] for key in ("preset", "width", "sigmoid") if options.get(key) is not None}
        tower, text = options.get("tower"), options.get("text")
        if isinstance(tower, dict):
            sizes = {key: value for key, value in tower.items() if key not in ("kind", "pretrained")}
            if isinstance(sizes.get("prompts"), dict):
                sizes["prompts"] = VisualPromptOptions(**sizes["prompts"])
            given["tower"] = ENCODERS.get(tower["kind"])(**sizes)  # its weights are in the student's file
        if text is not None:
            given["text"] = TextOptions(**text) if isinstance(text, dict) else text
        fields = {name: document["fields"][name] for name in document["inputs"]}
        network: Any = TwoTower(**given, fields=fields, loading="architecture")
    elif kind == "open_clip":
        from .open_clip import OpenClip

        network = OpenClip(options["model"], options=options.get("options"), loading="architecture")
    else:
        raise ConfigError(
            f"inherit.source: the student in {folder} is of kind '{kind}', expected two_tower or open_clip"
        )
    weights = _checked_weights(folder / "model.safetensors", document)
    model: nn.Module = network.model
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    return model


def _checked_weights(file: Path, document: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a student; where its description lists their sha256, they must have it."""
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if document.get("files", {}).get(file.name, {}).get("sha256", digest) != digest:
        raise ConfigError(f"inherit.source: {file}: sha256 mismatch; the file is damaged or was changed")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ConfigError(f"inherit.source: {file} is no readable safetensors file: {error}") from error


def _document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"inherit.source: {path} is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}
