"""Labels as vectors that a text encoder made elsewhere, for students without a text tower.

Shapes: C labels, D width of a vector.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
from safetensors import SafetensorError
from torch import Tensor

from ..errors import DataError

KEY = "text"


def read_label_vectors(file: Path | str) -> tuple[list[str], Tensor]:
    """Read labels and their vectors `[C, D]` from a file as `moekd predict --output` writes it.

    Args:
        file: `.safetensors` with a float tensor `text` `[C, D]` and, under the same key of the metadata, a JSON list
            of C labels.

    Raises:
        DataError: no such file, or one of another form.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(f"label vectors: no file {path}")
    try:
        with safetensors.safe_open(path, "pt") as opened:
            vectors_CD = opened.get_tensor(KEY).float()
            names = json.loads((opened.metadata() or {})[KEY])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise DataError(
            f"label vectors: expected a .safetensors file with a tensor '{KEY}' and a JSON list of labels under "
            f"'{KEY}' in its metadata, found {path.name}: {error}"
        ) from error
    texts = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    if not texts or vectors_CD.ndim != 2 or len(names) != len(vectors_CD) or len(set(names)) != len(names) or not names:
        found = f"{len(names) if isinstance(names, list) else type(names).__name__} labels"
        raise DataError(
            f"label vectors: expected different labels and as many vectors [C, D] in {path.name}, found {found} and "
            f"{list(vectors_CD.shape)}"
        )
    if not bool(vectors_CD.isfinite().all()):
        raise DataError(f"label vectors: {path.name} holds NaN or infinite values")
    return names, vectors_CD
