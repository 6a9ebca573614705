"""Checksums that tell whether two runs saw the same data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def digest(value: Any) -> str:
    """Return the sha256 (hex) of an array (dtype, shape, bytes) or of a JSON-able value (sorted keys)."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        total = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
        return total.hexdigest()
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
