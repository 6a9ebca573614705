"""Small tar files of samples, as WebDataset's writers make them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ["cat", "dog", "emu"]


def png(value: int, size: int = 8) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (size, size), (value, 255 - value, 0)).save(content, format="PNG")
    return content.getvalue()


def array(values: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asarray(values, dtype=np.float32), allow_pickle=False)
    return content.getvalue()


def sample(number: int) -> dict[str, bytes]:
    """Members of a sample by suffix; the picture's red is its number."""
    return {
        "png": png(number),
        "txt": f"picture number {number}\n".encode(),
        "cls": str(number % 3).encode(),
        "json": json.dumps({"caption": f"no. {number}", "meta": {"kind": CLASSES[number % 3]}}).encode(),
        "npy": array([number, -number]),
    }


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """Write samples by key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, name: str, count: int, rows: int, start: int = 0) -> None:
    """Write `NAME-0000.tar`, ...; sample numbers go on from file to file."""
    for shard in range(count):
        numbers = range(start + shard * rows, start + (shard + 1) * rows)
        write_tar(folder / f"{name}-{shard:04d}.tar", {f"{number:06d}": sample(number) for number in numbers})
