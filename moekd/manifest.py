"""The manifest of a checkpoint: which files it has, their sizes and checksums, what run it belongs to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .atomic import safe_name
from .errors import CheckpointError, ConfigError
from .state_codec import flatten

FORMAT, VERSION = "moekd-checkpoint", 1
MANIFEST = "manifest.json"
LIBRARIES = ("moekd", "torch", "accelerate", "safetensors", "numpy")
_FILE = re.compile(r"(?P<entry>.+)\.(safetensors|json)")
_CHUNK = 1 << 20


def write_manifest(folder: Path, entries: Iterable[str], meta: Mapping[str, Any], sequence: int) -> None:
    """Describe all files of `folder` in `manifest.json`.

    Args:
        entries: parts of the state; each has a `.safetensors` and a `.json` file.
        meta: what `state_codec.flatten` takes, without tensors.
        sequence: number of this save within the run; the highest is the newest.
    """
    tensors, plain_meta = flatten(dict(meta))
    if tensors:
        raise CheckpointError(f"meta data hold tensors ({', '.join(tensors)}); put tensors into the state")
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(folder.iterdir())}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "sequence": sequence,
        "entries": list(entries),
        "meta": plain_meta,
        "libraries": library_versions(),
        "files": files,
    }
    (folder / MANIFEST).write_bytes(_canonical(manifest))


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check `manifest.json` alone.

    Raises:
        CheckpointError: it is missing, empty, not JSON, of an unknown version, changed, or names a file outside.
    """
    file = path / MANIFEST
    where = f"checkpoint {path}: {MANIFEST}"
    try:
        raw = file.read_bytes()
    except OSError as error:
        reason = f"can't be read: {error}" if file.exists() else "is missing: this is no complete checkpoint"
        raise CheckpointError(f"{where} {reason}") from error
    if not raw.strip(b"\0 \n"):
        raise CheckpointError(f"{where} is empty ({len(raw)} bytes): the writer or the disk failed; use another one")
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{where} does not describe a {FORMAT}")
    if manifest.get("version") != VERSION:
        raise CheckpointError(f"{where} {_other_version(manifest)}")
    if raw != _canonical(manifest):
        raise CheckpointError(f"{where}: sha256 mismatch; the file is damaged or was changed; use another checkpoint")
    _check_structure(manifest, where)
    return manifest


def verify_files(path: Path, manifest: Mapping[str, Any]) -> None:
    """Check that every listed file is there with its size and sha256.

    Raises:
        CheckpointError: the message names the file.
    """
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path}: the file {name} is missing; use another checkpoint")
        size = file.stat().st_size
        if size != expected["bytes"] or sha256_of(file) != expected["sha256"]:
            raise CheckpointError(
                f"checkpoint {path}: {name}: sha256 mismatch ({size:,} bytes, {expected['bytes']:,} expected); "
                "the file is damaged or was changed; use another checkpoint"
            )


def sha256_of(file: Path) -> str:
    """Return the hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_listed(file: Path) -> None:
    """Compare a file with the sha256 that the `config.json` beside it (of an exported student) lists, if it does.

    Raises:
        CheckpointError: they differ.
    """
    try:
        listed = json.loads((file.parent / "config.json").read_bytes())["files"][file.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if sha256_of(file) != listed:
        raise CheckpointError(f"{file}: sha256 mismatch with its config.json; the file is damaged or was changed")


def digest_of(document: Mapping[str, Any]) -> str:
    """Return the sha256 of a JSON document; its own field `sha256` and the order of the keys do not count."""
    body = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a checkpoint means."""
    versions = {}
    for package in LIBRARIES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    """Return the one byte string that stands for a manifest; its field `sha256` covers all others."""
    return json.dumps({**manifest, "sha256": digest_of(manifest)}, sort_keys=True, indent=1).encode()


def _other_version(manifest: Mapping[str, Any]) -> str:
    """Say which version wrote a manifest and what to do."""
    found, libraries = manifest.get("version"), manifest.get("libraries")
    writer = str(libraries.get("moekd", "unknown"))[:20] if isinstance(libraries, dict) else "unknown"
    newer = isinstance(found, int) and found > VERSION
    advice = (
        "it comes from a newer moekd; upgrade this one: pip install --upgrade moekd"
        if newer
        else f"finish the run with the moekd that began it: pip install 'moekd=={writer}'"
        if writer != "unknown"
        else "finish the run with the moekd that began it"
    )
    return (
        f"has the unknown format version {found!r:.20} (moekd {writer}), this moekd reads version {VERSION}; {advice}"
    )


def _check_structure(manifest: Mapping[str, Any], where: str) -> None:
    entries: Any = manifest.get("entries")
    files: Any = manifest.get("files")
    sound = (
        isinstance(entries, list)
        and isinstance(files, dict)
        and isinstance(manifest.get("sequence"), int)
        and isinstance(manifest.get("meta"), dict)
        and all(isinstance(entry, str) for entry in entries)
        and all(isinstance(file, dict) and {"bytes", "sha256"} <= set(file) for file in files.values())
    )
    if not sound:
        raise CheckpointError(f"{where} lacks 'sequence', 'entries', 'meta' or 'files', or they have the wrong type")
    for name in files:
        _check_file_name(name, where, entries)
    for entry in entries:
        for name in (f"{entry}.safetensors", f"{entry}.json"):
            if name not in files:
                raise CheckpointError(f"{where} lists no file {name!r:.80} for the part {entry!r:.80}")


def _check_file_name(name: str, where: str, entries: Collection[str]) -> None:
    try:
        match = _FILE.fullmatch(safe_name(name))
    except ConfigError as error:
        raise CheckpointError(f"{where} lists the file {name!r:.80}, which leaves the folder: {error}") from error
    if match is None or match["entry"] not in entries:
        raise CheckpointError(f"{where} lists the file {name!r:.80}, which belongs to no part of the state")
