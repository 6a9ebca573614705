"""Your own data with YAML alone: makes a csv with pictures and captions beside it, and reads it as a data set.

Run: python examples/data/own_files.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from moekd.config import build, parse_yaml, validate_component
from moekd.data import DATASETS, make_loader
from moekd.errors import ConfigError

CONFIG = """
kind: files
path: {folder}/shapes.csv
label: shape
split: {{val: 0.2, test: 0.2, seed: 0}}
cache_dir: {folder}/cache
fields:
  image: {{kind: image, column: picture, size: 16, color: grey}}
  text: {{kind: text, column: caption, tokenizer: {{kind: bytes, context: 32}}}}
"""


def write_data(folder: Path, rows: int = 60) -> None:
    """Write pictures of squares and bars, and a table that describes them."""
    generator = np.random.default_rng(0)
    lines = ["picture,caption,shape"]
    for row in range(rows):
        shape = ("square", "bar")[row % 2]
        pixels = np.zeros((32, 32), dtype=np.uint8)
        x, y = generator.integers(2, 14, size=2)
        pixels[y : y + 14, x : x + (14 if shape == "square" else 4)] = 255
        Image.fromarray(pixels).save(folder / f"{row}.png")
        lines.append(f"{row}.png,a {shape} at {x} {y},{shape}")
    (folder / "shapes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Write the data, read one batch."""
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name))
        problems: list[str] = []
        spec = validate_component(DATASETS, parse_yaml(CONFIG.format(folder=name), "example"), "data", problems)
        if spec is None:
            raise ConfigError(problems)
        data = build(spec, DATASETS)
        print({split: len(rows) for split, rows in data.splits.items()}, data.class_names)
        batch = next(iter(make_loader(data.splits["train"], 8, shuffle=True)))
        print({field: (tuple(value.shape), value.dtype) for field, value in batch.items()})


if __name__ == "__main__":
    main()
