"""The one place that opens a pickled file of weights: it is asked for by name, and makes a safetensors file of it.

A pickle can run code when it is read. `torch.load(weights_only=True)` runs an unpickler that knows tensors and plain
containers only, and it had holes: code execution up to torch 2.5 (CVE-2025-32434), memory corruption up to 2.9.1
(GHSA-63cw-57p8-fm3p). So nothing else in moekd reads such files, and this refuses older versions of torch.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..atomic import write_bytes
from ..errors import ConfigError, DataError

logger = logging.getLogger(__name__)

#: First version without known holes in `weights_only`.
SAFE_TORCH = (2, 10)
SUFFIX = ".safetensors"
_LARGEST_PICKLE = 64 * 2**20
_NAME = re.compile(r"[^/\\]+/(?:\.?[A-Za-z_]\w*(?:\.pkl)?|(?:data|\.data)/\w+|\.format_version|\.storage_alignment)")


def convert_weights(source: Path, target: Path, *, allow_pickle: bool = False, key: str | None = None) -> int:
    """Read a pickled file of weights, as `torch.save` writes it, and write its tensors as safetensors.

    Args:
        source: `.pt`, `.pth`, `.bin` or `.ckpt` in the zip format of torch 1.6 and later.
        target: a new `.safetensors` file.
        allow_pickle: must be True: the caller trusts the file.
        key: where the weights are in a nested file ("state_dict", "model.student"); without it, at the top, or in
            the only mapping of tensors below.

    Returns:
        Number of tensors.

    Raises:
        ConfigError: it is not allowed, torch is too old, or `target` has another suffix.
        DataError: no readable file, something else than tensors in it, or `target` exists.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if not allow_pickle:
        raise ConfigError(
            f"{source.name} is a pickle, which can run code: if you trust where it comes from, convert it once with "
            "--allow-pickle; else ask its owner for safetensors"
        )
    if _version(torch.__version__) < SAFE_TORCH:
        raise ConfigError(
            f"torch {torch.__version__} has known holes in reading pickles (CVE-2025-32434, GHSA-63cw-57p8-fm3p): "
            f"use torch {'.'.join(map(str, SAFE_TORCH))} or later"
        )
    if target.suffix != SUFFIX:
        raise ConfigError(f"{target.name}: expected a name that ends in {SUFFIX}")
    if target.exists() or target.is_symlink():
        raise DataError(f"{target} exists already; it is not overwritten")
    check_archive(source)
    logger.warning(
        "WARNING: reading %s as a pickle. Tensors and plain containers are all that is accepted, but a malicious file "
        "can exploit errors of the reader. Convert files only that you trust, where there is nothing to lose.",
        source,
    )
    weights = _tensors(_load(source), source, key)
    write_bytes(target, safetensors.torch.save(weights, metadata={"format": "pt"}))
    return len(weights)


def check_archive(source: Path) -> None:
    """Refuse what is not a plain archive of `torch.save`: other formats, compressed entries, foreign names.

    Raises:
        DataError: what it is.
    """
    try:
        size = source.stat().st_size
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{source} is no archive of torch.save (torch 1.6 or later): {error}") from error
    total = 0
    for entry in entries:
        total += entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or total > size:
            raise DataError(f"{source}: the entry {entry.filename!r:.80} is compressed; torch.save never does that")
        if not _NAME.fullmatch(entry.filename) or ".." in entry.filename.split("/"):
            raise DataError(f"{source}: the entry {entry.filename!r:.80} does not belong into a file of torch.save")
        if entry.filename.endswith(".pkl") and entry.file_size > _LARGEST_PICKLE:
            raise DataError(f"{source}: a pickle of {entry.file_size:,} bytes is refused")


def _load(source: Path) -> Any:
    with _no_allowed_classes():
        try:
            return torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler fails with whatever the file makes it fail with
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(f"{source} can't be read as tensors and plain containers: {reason:.300}") from error


@contextmanager
def _no_allowed_classes() -> Iterator[None]:
    """Forget the classes that other libraries have told torch to accept."""
    allowed = list(torch.serialization.get_safe_globals())
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _tensors(content: Any, source: Path, key: str | None) -> dict[str, Tensor]:
    for part in key.split(".") if key else ():
        if not isinstance(content, Mapping) or part not in content:
            known = ", ".join(map(str, list(content)[:10])) if isinstance(content, Mapping) else "none"
            raise DataError(f"{source} has no key '{part}' of '{key}'; keys: {known}")
        content = content[part]
    if isinstance(content, Mapping) and not _is_state(content):
        inner = [name for name, value in content.items() if isinstance(value, Mapping) and _is_state(value)]
        if len(inner) != 1:
            names = ", ".join(map(str, list(content)[:10]))
            raise DataError(f"{source} holds more than one mapping of tensors or none: name one with --key, of {names}")
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not _is_state(content):
        raise DataError(f"{source} holds {type(content).__name__}, expected a mapping from names to tensors")
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in content.items()}


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(name, str) and isinstance(value, Tensor) and not value.is_sparse and value.device.type == "cpu"
        for name, value in content.items()
    )


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
