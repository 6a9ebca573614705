"""Checkpoints: a folder with safetensors, JSON and a manifest of checksums that appears complete or not at all.

    <folder>/<name>/ <part>.safetensors  <part>.json (one pair a part of the state)  manifest.json (written last)
    <folder>/latest                      name of the newest checkpoint, for people and scripts

A save writes everything under a temporary name, fsyncs it, and renames the folder once; old checkpoints go only after
that. A load verifies size and sha256 of every file. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .atomic import atomic_directory, remove_leftovers, safe_name, temporary_sibling, write_text
from .errors import CheckpointError, ConfigError, DataError, UnsavedError
from .manifest import read_manifest, verify_files, write_manifest
from .state_codec import flatten, unflatten

logger = logging.getLogger(__name__)

POINTER = "latest"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_ABSENT = "(absent)"


def save_checkpoint(
    folder: Path,
    name: str,
    state: Mapping[str, Mapping[str, Any]],
    meta: Mapping[str, Any],
    *,
    keep: int | None = None,
    protect: Collection[str] = (),
) -> Path:
    """Write one checkpoint; only the main process may call this.

    Args:
        folder: where all checkpoints of the run lie.
        name: folder name, such as "step-00000120"; a name that exists already gets a number ("step-00000120-2").
        state: named parts ("student", "optimizer", "random"); each goes to its own pair of files. What a part may
            hold says `state_codec.flatten`.
        meta: step, stage, config and its hash, fingerprints, world size: whatever tells whether a resume fits.
        keep: delete all but the newest `keep` checkpoints after the new one is committed; None keeps all.
        protect: names that are never deleted, such as the best checkpoint.

    Returns:
        The new checkpoint's folder.

    Raises:
        UnsavedError: the disk refuses; earlier checkpoints are untouched and nothing half-written stays.
        CheckpointError: the state can't be stored.
    """
    if keep is not None and keep < 1:
        raise CheckpointError(f"keep={keep} would delete the checkpoint just written; use 1 or more, or None for all")
    _check_names(name, state)
    needed = sum(_size(part) for part in state.values())
    with _disk_errors(folder / name, needed):
        folder.mkdir(parents=True, exist_ok=True)
        target = _free_name(folder, name)
        sequence = max((number for number, _ in _by_age(folder)[0]), default=0) + 1
        with atomic_directory(target) as temporary:
            for part, content in state.items():
                _write_part(temporary, part, content)
            write_manifest(temporary, state, meta, sequence)
    try:
        write_text(folder / POINTER, target.name + "\n")
    except OSError as error:
        logger.warning("%s is saved, but the pointer file %s could not be written: %s", target, POINTER, error)
    if keep is not None:
        rotate(folder, keep, {*protect, target.name})
    return target


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint after verifying every file against the manifest; tensors come back on the CPU.

    Returns:
        The state by part, and the meta data.

    Raises:
        CheckpointError: no checkpoint there; manifest empty, not JSON, of another version or damaged; a file missing,
            too short or changed ("sha256 mismatch"), or with a name that leaves the folder.
    """
    manifest = verify_checkpoint(path)
    state = {part: _read_part(path, part) for part in manifest["entries"]}
    return state, unflatten({}, manifest["meta"])


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Check the manifest and the size and sha256 of every file, without loading; return the manifest.

    Raises:
        CheckpointError: see `load_checkpoint`.
    """
    manifest = read_manifest(path)
    verify_files(path, manifest)
    return manifest


def find_latest(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest valid checkpoint of a folder, and the damaged ones that were passed over with the reasons.

    "Newest" is the order of saving, which the manifests record. Temporary folders are never looked at.
    """
    known, skipped = _by_age(folder)
    for _, path in known:
        try:
            verify_checkpoint(path)
            return path, skipped
        except CheckpointError as error:
            skipped.append((path, str(error)))
    return None, skipped


def rotate(folder: Path, keep: int, protect: Collection[str] = ()) -> list[str]:
    """Delete all but the newest `keep` checkpoints; damaged folders and protected names are left alone.

    A checkpoint first gets a temporary name, so that a half-deleted one is never seen. A failure is a warning.

    Returns:
        The names that were deleted.
    """
    deleted = []
    for _, path in _by_age(folder)[0][max(keep, 1) :]:
        if path.name in protect:
            continue
        try:
            doomed = temporary_sibling(path)
            os.replace(path, doomed)
            shutil.rmtree(doomed)
            deleted.append(path.name)
        except OSError as error:
            logger.warning("could not delete the old checkpoint %s: %s; delete it by hand", path, error)
    return deleted


def clean_leftovers(folder: Path) -> list[str]:
    """Remove what interrupted saves and deletions left; call it at the start, holding the run's lock."""
    removed = remove_leftovers(folder)
    if removed:
        logger.info("removed leftovers of an interrupted run from %s: %s", folder, ", ".join(removed))
    return removed


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the sha256 of a resolved configuration; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def check_same(meta: Mapping[str, Any], expected: Mapping[str, Any], allow: Collection[str] = ()) -> None:
    """Refuse to resume with other settings than the checkpoint's.

    Args:
        meta: the checkpoint's meta data.
        expected: what this run has; every key is compared ("config_hash", "teacher_fingerprints",
            "dataset_fingerprint", "world_size"). Where both have "config", its differing keys are named, not the hash.
        allow: differences that are fine: a key ("world_size"), a config key ("stages[1].epochs") or a prefix of
            one ("stages").

    Raises:
        CheckpointError: one line a difference, with the checkpoint's value and the present one.
    """
    both_configs = "config" in meta and "config" in expected
    problems = []
    for key, value in expected.items():
        if key == "config_hash" and both_configs:
            continue
        if key == "config" and not both_configs:
            continue
        for path, old, new in _differences(meta.get(key, _ABSENT), value, "" if key == "config" else key):
            if not any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in allow):
                problems.append(f"  {path}: {_short(old)} in the checkpoint, {_short(new)} now")
    if problems:
        raise CheckpointError(
            "the checkpoint belongs to a run with other settings:\n"
            + "\n".join(problems)
            + "\nresume with the old settings, or allow a difference by its name with --override"
        )


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: it is missing or malformed; the message names it.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} is no readable safetensors file: {error}") from error


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            here = f"{path}.{key}" if path else str(key)
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), here)
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        for index in range(max(len(old), len(new))):
            before, now = (side[index] if index < len(side) else _ABSENT for side in (old, new))
            yield from _differences(before, now, f"{path}[{index}]")
    elif old != new and not (old != old and new != new):
        yield path, old, new


def _short(value: Any) -> str:
    text = value if value is _ABSENT else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_names(name: str, state: Mapping[str, Any]) -> None:
    try:
        safe_name(name, "checkpoint name")
        for part in state:
            safe_name(part, "checkpoint part")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    if name == POINTER or "manifest" in state or not state:
        raise CheckpointError(f"checkpoint '{name}': the name 'latest', a part 'manifest' and no part are refused")


def _free_name(folder: Path, name: str) -> Path:
    target, number = folder / name, 2
    while target.exists() or target.is_symlink():
        target, number = folder / f"{name}-{number}", number + 1
    return target


def _by_age(folder: Path) -> tuple[list[tuple[int, Path]], list[tuple[Path, str]]]:
    """Checkpoints with a sound manifest, newest first, with their sequence numbers; and the others with the reason."""
    known, unreadable = [], []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            known.append((int(read_manifest(path)["sequence"]), path))
        except CheckpointError as error:
            unreadable.append((path, str(error)))
    return sorted(known, reverse=True), unreadable


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_size(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_size(item) for item in value)
    return len(value) if isinstance(value, str) else 8


def _write_part(folder: Path, part: str, content: Mapping[str, Any]) -> None:
    try:
        tensors, skeleton = flatten(dict(content))
    except CheckpointError as error:
        raise CheckpointError(f"part '{part}' of the checkpoint: {error}") from error
    save_file(tensors, folder / f"{part}.safetensors")
    (folder / f"{part}.json").write_text(json.dumps(skeleton, allow_nan=False))


def _read_part(path: Path, part: str) -> Any:
    try:
        skeleton = json.loads((path / f"{part}.json").read_bytes())
        return unflatten(read_tensors(path / f"{part}.safetensors"), skeleton)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: {part}.json can't be read: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}, part '{part}': {error}") from error


@contextmanager
def _disk_errors(target: Path, needed: int) -> Iterator[None]:
    """Turn failures of the file system, also those that safetensors reports, into one clear error."""
    try:
        yield
    except (OSError, SafetensorError, DataError) as error:
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number in _DISK_FULL:
            available = shutil.disk_usage(next(path for path in target.parents if path.exists())).free
            raise UnsavedError(
                f"disk full: checkpoint {target} needs about {needed:,} bytes, available are {available:,}; "
                "nothing was changed, earlier checkpoints are intact; free some space and resume"
            ) from error
        raise UnsavedError(f"checkpoint {target} could not be written: {error}; earlier ones are intact") from error
