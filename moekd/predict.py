"""Apply an exported student to files.

Shapes: B inputs, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from .data.fields.image import ImageField
from .errors import DataError, ModelError
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
        ModelError: the student does not classify.
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
            output = network(torch.stack([read_input(path, field) for path in paths]))
        logits_BC = output.get("logits") if isinstance(output, Mapping) else output
        if logits_BC is None:
            raise ModelError(f"the student in {folder} gives no logits; it has no classifier")
        probs_BC = logits_BC.softmax(dim=1)
        values, indices = probs_BC.topk(min(top, len(names)), dim=1)
        for path, v, i in zip(paths, values.tolist(), indices.tolist(), strict=True):
            predictions.append(Prediction(str(path), [(names[c], p) for c, p in zip(i, v, strict=True)]))
    return predictions


def read_input(path: Path, field: Mapping[str, Any]) -> Tensor:
    """Read one file as the field that a student takes, without a batch axis.

    Args:
        path: picture or `.npy` file.
        field: "modality", "shape", "dtype" and how pictures are prepared ("mean", "std", "resize").

    Raises:
        DataError: the file is not there, can't be read, or does not fit the field.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    if path.suffix == ".npy":
        return _array(path, field)
    shape = tuple(field["shape"])
    if field["modality"] != "image" or len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{path}: the student reads {field['modality']}; give a .npy file of shape {shape}")
    reader = ImageField(
        size=(shape[1], shape[2]),
        color="rgb" if shape[0] == 3 else "grey",
        resize=field.get("resize", "stretch"),
        mean=field.get("mean") or None,
        std=field.get("std") or None,
    )
    try:
        pixels = reader.decode(str(path.absolute()), Path())
    except DataError as error:
        raise DataError(f"{path} is no readable picture: {error}") from error
    return reader.transform("image", pixels[None])["image"][0]


def _array(path: Path, field: Mapping[str, Any]) -> Tensor:
    """Read a `.npy` file of the field's shape and type."""
    shape, dtype = tuple(field["shape"]), getattr(torch, field.get("dtype", "float32"))
    try:
        value = torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, OSError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is no readable array: {error}") from error
    if tuple(value.shape) != shape:
        raise DataError(f"{path} holds an array of shape {tuple(value.shape)}; the student takes {shape}")
    if value.is_complex() or (value.is_floating_point() and not dtype.is_floating_point):
        found = str(value.dtype).removeprefix("torch.")
        raise DataError(f"{path} holds numbers of type {found}; the student takes {str(dtype).removeprefix('torch.')}")
    if not bool(torch.isfinite(value).all()):
        raise DataError(f"{path} holds NaN or infinite values")
    return value.to(dtype)
