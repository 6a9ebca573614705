"""One signal of one teacher variant on disk: a folder with a manifest and safetensors shards.

    <signal>-<digest>/ manifest.json   shard-00000.safetensors  shard-00001.safetensors ...   .lock

A shard holds `ids` `[R]` and the encoded rows (`rows.*` `[R * K, ...]`, the K views of a sample one after the other;
`shared.*`). It counts when the manifest lists it with its sha256, which is written after it; so an interrupted fill
leaves whole shards and at most one file that is written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..atomic import write_bytes
from ..errors import DataError
from ..manifest import library_versions, sha256_of
from .codecs import Encoded, Like
from .column import Mapped

logger = logging.getLogger(__name__)

FORMAT, VERSION = "moekd-signals", 1
MANIFEST = "manifest.json"
#: Empty file whose time says when the table was read last.
USED = ".used"
_SHARD = re.compile(r"shard-\d{5,9}\.safetensors")


@dataclass(frozen=True)
class Identity:
    """Everything that the rows of a table depend on; two tables with the same identity hold the same.

    Attributes:
        teacher: fingerprint of the teacher and the masks that are active.
        signal: `logits`, `embeddings/image`, `heads/logit_scale`, `features/fc1`.
        data: fingerprint of the data set.
        split: name of the split.
        samples: sha256 of the split's sample ids, in their order.
        transform: what the views of a sample are drawn by (JSON: kinds, options, seed); "" for the samples as they are.
        precision: device type and autocast type.
        codec: how the rows are stored.
    """

    teacher: str
    signal: str
    data: str
    split: str
    samples: str
    transform: str
    precision: str
    codec: str

    @property
    def folder(self) -> str:
        """Name of the table's folder."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', self.signal)[:40]}-{digest[:24]}"


class Table:
    """A table's folder.

    Args:
        folder: of the table.
        manifest: its contents.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def new(
        cls, folder: Path, identity: Identity, like: Like, samples: int, views: int, size: int, about: Mapping[str, Any]
    ) -> Table:
        """Return a table without rows; nothing is written yet.

        Args:
            folder: of the table.
            identity: what its rows depend on.
            like: shape and type of a row.
            samples: samples of the split.
            views: views of a sample.
            size: samples of a shard.
            about: what people want to know besides: the teacher's name, the transform.
        """
        shape = {"shape": list(like.shape), "dtype": str(like.dtype).removeprefix("torch.")}
        manifest = {"format": FORMAT, "version": VERSION, "identity": asdict(identity), "row": shape}
        manifest |= {"samples": samples, "views": views, "shard_samples": size, "about": dict(about)}
        return cls(folder, manifest | {"libraries": library_versions(), "shards": {}})

    @classmethod
    def open(cls, folder: Path) -> Table:
        """Read a table's manifest.

        Raises:
            DataError: it is missing, damaged or of another version.
        """
        file = folder / MANIFEST
        try:
            manifest = json.loads(file.read_bytes())
        except OSError as error:
            raise DataError(f"{file} can't be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} is damaged: it is not valid JSON ({error})") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DataError(f"{file} does not describe stored signals ({FORMAT})")
        if manifest.get("version") != VERSION:
            raise DataError(
                f"{file} has the format version {manifest.get('version')!r:.20}; this moekd reads {VERSION}"
            )
        if manifest.pop("sha256", None) != _digest(manifest):
            raise DataError(f"{file} is damaged or was changed: sha256 mismatch")
        if problem := _problem(manifest):
            raise DataError(f"{file} is no manifest of this version: {problem}")
        return cls(folder, manifest)

    @property
    def identity(self) -> Identity:
        """What the rows depend on."""
        return Identity(**self.manifest["identity"])

    @property
    def like(self) -> Like:
        """Shape and type of a row."""
        row = self.manifest["row"]
        return Like(tuple(row["shape"]), getattr(torch, row["dtype"]))

    @property
    def views(self) -> int:
        """Views of a sample."""
        return int(self.manifest["views"])

    @property
    def size(self) -> int:
        """Samples of a shard."""
        return int(self.manifest["shard_samples"])

    @property
    def shards(self) -> int:
        """Number of shards of the complete table."""
        return -(-int(self.manifest["samples"]) // self.size)

    @property
    def missing(self) -> set[int]:
        """Indices of the shards that are not there."""
        return {index for index in range(self.shards) if shard_name(index) not in self.manifest["shards"]}

    @property
    def nbytes(self) -> int:
        """Bytes of the shards that are there."""
        return sum(int(entry["bytes"]) for entry in self.manifest["shards"].values())

    def differences(self, identity: Identity) -> dict[str, tuple[str, str]]:
        """Return (stored, wanted) for every field of the identity that differs."""
        mine, other = self.manifest["identity"], asdict(identity)
        return {key: (str(mine.get(key)), value) for key, value in other.items() if mine.get(key) != value}

    def write(self, index: int, ids_R: Tensor, encoded: Encoded) -> None:
        """Write a shard, then the manifest that lists it."""
        tensors = {"ids": ids_R} | {f"rows.{key}": value for key, value in encoded.rows.items()}
        tensors |= {f"shared.{key}": value for key, value in encoded.shared.items()}
        content = save({key: value.cpu().contiguous() for key, value in tensors.items()})
        name = shard_name(index)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / name, content)
        entry = {"samples": len(ids_R), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self.manifest["shards"] = dict(sorted({**self.manifest["shards"], name: entry}.items()))
        self.write_manifest()

    def used(self) -> None:
        """Note that the table was used now, for `prune`."""
        with suppress(OSError):
            (self.folder / USED).touch()

    @property
    def last_used(self) -> float:
        """When it was used or written last, in seconds since 1970."""
        marks = [self.folder / name for name in (USED, MANIFEST)]
        return max((mark.stat().st_mtime for mark in marks if mark.exists()), default=0.0)

    def write_manifest(self) -> None:
        """Write the manifest with its checksum."""
        text = json.dumps({**self.manifest, "sha256": _digest(self.manifest)}, indent=1, sort_keys=True)
        write_bytes(self.folder / MANIFEST, text.encode())

    def damage(self, index: int) -> str | None:
        """Return what is wrong with a shard that the manifest lists, or None."""
        name = shard_name(index)
        entry, file = self.manifest["shards"][name], self.folder / name
        try:
            if file.stat().st_size != entry["bytes"]:
                return f"{file} has {file.stat().st_size:,} bytes, {entry['bytes']:,} were written"
            return None if sha256_of(file) == entry["sha256"] else f"{file}: sha256 mismatch"
        except OSError as error:
            return f"{file} can't be read: {error.strerror or error}"

    def forget(self, index: int) -> None:
        """Strike a shard off the list, so that it is computed again."""
        self.manifest["shards"].pop(shard_name(index), None)

    def read(self, index: int, mapped: bool = False) -> tuple[Tensor, Encoded]:
        """Return the sample ids `[R]` and the encoded rows of a shard, which has been checked.

        Args:
            index: which shard.
            mapped: leave the rows in the file, memory-mapped.

        Raises:
            DataError: the file is no readable safetensors file.
        """
        file = self.folder / shard_name(index)
        tensors = read_shard(file, mapped)
        parts: dict[str, dict[str, Tensor]] = {"rows": {}, "shared": {}}
        for key, value in tensors.items():
            group, _, name = key.partition(".")
            if key != "ids":
                parts[group][name] = value
        return tensors["ids"], (Mapped if mapped else Encoded)(parts["rows"], parts["shared"])


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:05d}.safetensors"


def read_shard(file: Path, mapped: bool) -> dict[str, Tensor]:
    """Return the tensors of a shard: `ids`, `rows.*` and `shared.*`.

    Raises:
        DataError: the file is no readable safetensors file, or holds other tensors.
    """
    try:
        tensors = map_tensors(file) if mapped else load(file.read_bytes())
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise DataError(f"{file} is no readable safetensors file: {error}") from error
    odd = [key for key in tensors if key != "ids" and key.partition(".")[0] not in ("rows", "shared")]
    if odd or "ids" not in tensors:
        raise DataError(f"{file} holds {odd[0]!r:.80} or no 'ids': it is no shard of signals")
    return tensors


def map_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, memory-mapped: rows are read from the disk when they are picked."""
    content = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    length = int.from_bytes(bytes(content[:8].tolist()), "little")
    if length > len(content) - 8:
        raise ValueError("the header is longer than the file")
    header = json.loads(bytes(content[8 : 8 + length].numpy()))
    found = {}
    for key, entry in header.items():
        if key != "__metadata__":
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            found[key] = content[start:stop].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def _problem(manifest: Mapping[str, Any]) -> str | None:
    """Return what a manifest lacks, whose checksum is right: it was made by hand."""
    identity, row, shards = (manifest.get(key) for key in ("identity", "row", "shards"))
    if not isinstance(identity, dict) or set(identity) != {field.name for field in fields(Identity)}:
        return "'identity' has other keys"
    if not all(isinstance(value, str) for value in identity.values()):
        return "'identity' holds more than text"
    numbers = [manifest.get(key) for key in ("samples", "views", "shard_samples")]
    if not all(type(number) is int and 0 < number < 2**40 for number in numbers):
        return "'samples', 'views' and 'shard_samples' must be positive numbers"
    if not isinstance(row, dict) or row.get("dtype") not in _NAMES or not isinstance(row.get("shape"), list):
        return "'row' has no shape and type"
    if not all(type(size) is int and size >= 0 for size in row["shape"]):
        return "'row' has no shape"
    if not isinstance(shards, dict) or not all(_SHARD.fullmatch(name) for name in shards):
        return "it lists files that are no shards"
    sound = all(isinstance(e, dict) and type(e.get("bytes")) is int and e.get("sha256") for e in shards.values())
    return None if sound else "a shard has no size or no sha256"


_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}

_NAMES = {str(dtype).removeprefix("torch.") for dtype in _TYPES.values()}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
