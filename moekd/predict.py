"""Apply an exported student to files.

Shapes: B inputs, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .errors import DataError
from .export import load_student, read_student


@dataclass(frozen=True)
class Prediction:
    """What the student says about one input: its path and the most probable classes with their probabilities."""

    path: str
    classes: list[tuple[str, float]]


def predict(run: Path | str, inputs: Sequence[Path | str], top: int = 5, batch_size: int = 64) -> list[Prediction]:
    """Classify files with the student of a run.

    Args:
        run: run folder or exported student.
        inputs: one file an input: pictures for image fields, `.npy` arrays (of the field's shape) for all others.
        top: classes to return.
        batch_size: inputs in a batch.

    Raises:
        DataError: no student there, a student with several inputs, or a file that can't be read.
    """
    folder, document = read_student(Path(run))
    if len(document["inputs"]) != 1:
        fields = ", ".join(document["inputs"])
        raise DataError(f"the student in {folder} reads {fields}; files can be given to students of one input only")
    network, field = load_student(folder), document["fields"][document["inputs"][0]]
    names, predictions = document["class_names"], []
    for start in range(0, len(inputs), batch_size):
        paths = [Path(path) for path in inputs[start : start + batch_size]]
        with torch.inference_mode():
            probs_BC = network(torch.stack([read_input(path, field) for path in paths])).softmax(dim=1)
        values, indices = probs_BC.topk(min(top, len(names)), dim=1)
        for path, v, i in zip(paths, values.tolist(), indices.tolist(), strict=True):
            predictions.append(Prediction(str(path), [(names[c], p) for c, p in zip(i, v, strict=True)]))
    return predictions


def read_input(path: Path, field: Mapping[str, Any]) -> Tensor:
    """Read one file as the field that a student takes, without a batch axis.

    Args:
        path: picture or `.npy` file.
        field: "modality", "shape" and how to prepare it ("mean", "std").
    """
    shape = tuple(field["shape"])
    if not path.is_file():
        raise DataError(f"no file {path}")
    if path.suffix == ".npy":
        try:
            value = torch.from_numpy(np.load(path, allow_pickle=False)).to(torch.float32)
        except (ValueError, OSError, TypeError) as error:
            raise DataError(f"{path} is no readable array: {error}") from error
        if tuple(value.shape) != shape:
            raise DataError(f"{path} holds an array of shape {tuple(value.shape)}; the student takes {shape}")
        return value
    if field["modality"] != "image":
        raise DataError(f"{path}: the student reads {field['modality']}; give a .npy file of shape {shape}")
    try:
        with Image.open(path) as picture:
            flat = (
                _on_white(picture)
                .convert("RGB" if shape[0] == 3 else "L")
                .resize((shape[2], shape[1]), Image.Resampling.BOX)
            )
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is no readable picture: {error}") from error
    value = (
        torch.from_numpy(np.asarray(flat, dtype=np.float32) / 255)
        .reshape(shape[1], shape[2], shape[0])
        .permute(2, 0, 1)
    )
    for key, operation in (("mean", value.sub), ("std", value.div)):
        if field.get(key):
            value = operation(torch.tensor(field[key]).view(-1, 1, 1))
    return value


def _on_white(picture: Image.Image) -> Image.Image:
    """Put a picture with transparency on a white ground."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture
    clear = picture.convert("RGBA")
    ground = Image.new("RGBA", clear.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, clear)
