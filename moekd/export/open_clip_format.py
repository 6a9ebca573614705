"""A folder that open_clip loads: `open_clip.create_model_and_transforms("local-dir:FOLDER")`.

    <folder>/ open_clip_config.json  open_clip_model.safetensors  (tokenizer files)  README.md

Right after writing, open_clip loads the folder and has to give the student's embeddings to 1e-5, its own preparation of
pictures and texts included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..atomic import atomic_directory, write_bytes, write_json, write_text
from ..errors import ConfigError, ModelError
from ..networks.adapter import Adapter, library
from ..networks.images import ImageSettings
from ..networks.open_clip import CONFIG, OpenClip, architecture_of, quiet
from ..networks.two_tower import TwoTower
from .cards import format_card, open_clip_use
from .open_clip_towers import two_tower_config, two_tower_tokenizer, two_tower_weights
from .pictures import is_grey, preparation, prepared, sample_pictures
from .proof import SENTENCES, prove, refuse
from .student import load_student

WEIGHTS, FORMAT = "open_clip_model.safetensors", "open_clip"
GREY = "The student was trained on grey pictures: convert pictures to grey (`picture.convert('L')`) first."


@dataclass(frozen=True)
class Source:
    """A student in the terms of open_clip.

    Attributes:
        config: architecture (`embed_dim`, `vision_cfg`, `text_cfg`, ...).
        weights: state dict of the model that open_clip makes of it.
        pictures: how pictures are prepared.
        tokenizer: a tokenizer with `save_pretrained`; None for open_clip's own.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    pictures: ImageSettings
    tokenizer: Any = None


def write_open_clip(student: Path, document: Mapping[str, Any], target: Path) -> Path:
    """Write a student as a folder of open_clip.

    Args:
        student: folder of the student.
        document: its `config.json`.
        target: folder to write.

    Raises:
        ModelError: open_clip can't express the student, or gives other embeddings.
        MissingDependencyError: open_clip_torch is not installed.
        DataError: `target` exists.
    """
    library("open_clip", "open_clip_torch", "format open_clip")
    network = load_student(student)
    source = open_clip_source(network, document)
    assert isinstance(network, Adapter)
    with atomic_directory(target) as temporary:
        if source.tokenizer is not None:
            source.tokenizer.save_pretrained(temporary)
        weights = {name: value.detach().cpu().contiguous().clone() for name, value in source.weights.items()}
        write_bytes(temporary / WEIGHTS, safetensors.torch.save(weights, metadata={"format": "pt"}))
        pictures = source.pictures
        preprocess = {
            "mean": list(pictures.mean),
            "std": list(pictures.std),
            "interpolation": pictures.interpolation,
            "resize_mode": pictures.resize,
        }
        write_json(temporary / CONFIG, {"model_cfg": source.config, "preprocess_cfg": preprocess})
        prove_open_clip(network, source, temporary)
        notes = GREY if is_grey(network, document["fields"]) else ""
        about = {"pipeline_tag": "zero-shot-image-classification"}
        write_text(temporary / "README.md", format_card(student, FORMAT, open_clip_use(notes), about))
    return target


def open_clip_source(network: nn.Module, document: Mapping[str, Any], any_pictures: bool = False) -> Source:
    """Put a student into the terms of open_clip.

    Args:
        network: the student's network.
        document: its `config.json`.
        any_pictures: also take a preparation of pictures that open_clip does not have.

    Raises:
        ModelError: it can't be.
    """
    if not isinstance(network, OpenClip | TwoTower):
        kind = document["network"]["kind"]
        raise refuse(FORMAT, f"open_clip has image and text towers of its own; this student is of kind '{kind}'")
    if network.classifier is not None or network.tip_adapter is not None:
        raise refuse(FORMAT, "it has a classifier of its own")
    pictures = preparation(network, document["fields"]) or network.settings
    if not any_pictures:
        _check_pictures(pictures)
    options = document["network"]["options"]
    if isinstance(network, TwoTower):
        config = two_tower_config(network, pictures.size, options.get("tower") or {})
        return Source(config, two_tower_weights(network), pictures, two_tower_tokenizer(network))
    try:
        config = architecture_of(options["model"], options.get("revision"), options.get("options"))
    except ConfigError as error:
        raise refuse(FORMAT, f"its architecture can't be read again: {error}") from error
    if hasattr(network.model.visual, "trunk"):
        config["vision_cfg"]["image_size"] = list(pictures.size)
    elif tuple(_pair(network.model.visual.image_size)) != tuple(pictures.size):
        raise refuse(FORMAT, f"it sees pictures of {pictures.size}, its architecture says another size")
    tokenizer = getattr(network.tokenizer, "tokenizer", None)
    if tokenizer is None and type(network.tokenizer).__name__ != "SimpleTokenizer":
        raise refuse(FORMAT, f"its tokenizer {type(network.tokenizer).__name__} has no files")
    return Source(config, dict(network.model.state_dict()), pictures, tokenizer)


def _check_pictures(pictures: ImageSettings) -> None:
    if pictures.interpolation == "nearest":
        raise refuse(FORMAT, "its pictures are resized by the nearest pixel, open_clip knows bicubic and bilinear")
    if pictures.scale_to not in (None, pictures.size[0]):
        cut = f"its pictures are scaled to {pictures.scale_to} before the cut to {pictures.size}"
        raise refuse(FORMAT, f"{cut}; train with image.size set")


def _pair(size: int | Sequence[int]) -> Sequence[int]:
    return (size, size) if isinstance(size, int) else size


@torch.no_grad()
def prove_open_clip(network: Adapter, source: Source, folder: Path) -> dict[str, float]:
    """Load a folder with open_clip and compare it with the student; returns the largest differences.

    Raises:
        ModelError: open_clip can't load it, or gives other embeddings.
    """
    open_clip = library("open_clip", "open_clip_torch", "format open_clip")
    pictures = sample_pictures(source.pictures)
    try:
        with quiet():
            model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
            tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        model.eval()
        pixels = torch.stack([preprocess(picture) for picture in pictures])
        found = {"image": model.encode_image(pixels), "text": model.encode_text(tokenizer(list(SENTENCES)))}
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AssertionError) as error:
        raise ModelError(f"open_clip can't load what was written: {error}; nothing is exported") from error
    expected = {
        "image": network.encode("image", prepared(source.pictures, pictures)),
        "text": network.embed_texts(SENTENCES),
    }
    scale = network.scale_and_bias()[0]
    if scale is not None:
        found["logit_scale"], expected["logit_scale"] = model.logit_scale.exp().reshape(1), scale.reshape(1)
    return prove(found, expected, FORMAT)
