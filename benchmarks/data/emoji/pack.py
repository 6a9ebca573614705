"""Writing the shipped emoji set: 32-px images, descriptions, text vectors, and a manifest with their checksums.

Used by `build.py`, which makes the inputs from registry packages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DESCRIPTION_KEYS = ("row", "hexcode", "emoji", "name", "keywords", "group", "subgroup", "group_id", "subgroup_id")
FILES = ("emoji32.npz", "emoji.jsonl", "text.npz")


def halve(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Downsample `[N, 2H, 2W, 3]` to `[N, H, W, 3]` by the mean of each 2x2 area."""
    count, height, width, channels = images.shape
    areas = images.reshape(count, height // 2, 2, width // 2, 2, channels).astype(np.uint16)
    return ((areas.sum(axis=(2, 4)) + 2) // 4).astype(np.uint8)


def write_pack(
    output: Path,
    images: NDArray[np.uint8],
    style: NDArray[np.uint8],
    row: NDArray[np.int16],
    styles: Sequence[str],
    descriptions: Sequence[dict[str, Any]],
    text_vectors: NDArray[np.float16],
) -> None:
    """Write the three data files and `manifest.json`.

    Args:
        output: folder; made when it does not exist.
        images: `[N, 64, 64, 3]` on white.
        style: index into `styles`, `[N]`.
        row: index into `descriptions`, `[N]`.
        styles: names of the drawing styles.
        descriptions: one dict a concept, in row order.
        text_vectors: `[concepts, 384]`.
    """
    output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        output / FILES[0], image=halve(images), style=style, row=row, styles=np.array(list(styles), dtype=np.str_)
    )
    lines = (json.dumps({key: d[key] for key in DESCRIPTION_KEYS}, ensure_ascii=False) for d in descriptions)
    (output / FILES[1]).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    np.savez_compressed(output / FILES[2], vector=text_vectors)
    sums = {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in FILES}
    manifest = {"images": len(images), "concepts": len(descriptions), "sha256": sums}
    (output / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
