"""Students with fresh weights for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from moekd.export import build_network, export_student
from moekd.model import Model

NAMES = ["cat", "dog", "naïve café"]
IMAGE = {"shape": [3, 16, 16], "dtype": "float32", "modality": "image", "mean": [0.5] * 3, "std": [0.25] * 3}
CAPTION = {"shape": [40], "dtype": "int64", "modality": "text", "tokenizer": {"bytes": True, "lower": False}}
VECTOR = {"shape": [12], "dtype": "float32", "modality": "text"}
TOWER = {"kind": "cnn_encoder", "channels": [4, 8]}
TEXT = {"tokenizer": "bytes", "context": 40, "width": 16, "layers": 1, "heads": 2}


def write(folder: Path, kind: str, options: dict[str, Any], inputs: dict[str, Any]) -> Path:
    """Export a student."""
    torch.manual_seed(0)
    description = {"kind": kind, "options": options, "context": {"num_classes": len(NAMES)}}
    network = build_network(description, {"inputs": list(inputs), "fields": inputs, "class_names": NAMES})
    config = {"title": "t", "network": description, "class_names": NAMES, "fields": inputs}
    return export_student(Model(network, list(inputs)), config, folder, program=False)


def two_towers(folder: Path, **options: Any) -> Path:
    """Export a student that reads texts."""
    options = {"tower": TOWER, "text": TEXT, "width": 8, **options}
    return write(folder, "two_tower", options, {"image": IMAGE, "caption": CAPTION})


def pictures(folder: Path, count: int) -> list[Path]:
    """Write pictures of noise, some of them in a folder below."""
    rng, paths = np.random.default_rng(0), []
    for index in range(count):
        place = folder / ("below" if index % 3 == 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        paths.append(place / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(paths[-1])
    return paths
