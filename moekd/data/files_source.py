"""Opening the user's own files as tables: one file, a glob, a folder of files, of pictures or of recordings."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..errors import DataError, did_you_mean
from .shards import LocalShard
from .tables import MappedTable, StreamedTable, Table

Format = Literal["auto", "parquet", "arrow", "json", "csv", "imagefolder", "audiofolder"]
SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
MEDIA = {
    "imagefolder": ("image", {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}),
    "audiofolder": ("audio", {".wav", ".flac", ".ogg", ".mp3"}),
}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
ALL = "all"


def split_name(name: str) -> str | None:
    """Return train, val or test for the usual names of splits; further test splits ("test_...") keep their name."""
    return name if name.startswith("test_") else SPLIT_NAMES.get(name.lower())


def open_source(path: str, form: Format, streaming: bool, cache_dir: str | None) -> dict[str, Table]:
    """Return the tables of a source: by split when the source itself has splits, else one under the name "all".

    Args:
        path: file, glob or folder.
        form: format, or "auto".
        streaming: read parquet row groups in place, without a memory-mapped copy.
        cache_dir: folder of the memory-mapped copies; None is that of Hugging Face datasets.

    Raises:
        DataError: nothing there, a mixture of formats, or a file that can't be read.
    """
    place = Path(path)
    if place.is_dir():
        found = _kind_of_folder(place) if form == "auto" else form
        if found in MEDIA:
            return _media_folder(place, found)
        parts = {
            name: child for child in sorted(place.iterdir()) if child.is_dir() and (name := split_name(child.name))
        }
        if found == "arrow" and (place / "state.json").is_file():
            return {ALL: _mapped([place], "disk", place, cache_dir)}
        if parts:
            return {name: open_source(str(child), form, streaming, cache_dir)[ALL] for name, child in parts.items()}
        files = [file for file in sorted(place.iterdir()) if SUFFIXES.get(file.suffix.lower()) == found]
    else:
        files = [Path(name) for name in sorted(glob.glob(path))] if glob.has_magic(path) else [place]
        found = form
    return {ALL: open_files(files, path, found, streaming, cache_dir)}


def open_files(files: Sequence[Path], path: str, form: str, streaming: bool, cache_dir: str | None) -> Table:
    """Return one table for files of one format in one folder."""
    if not files or not all(file.is_file() for file in files):
        near = did_you_mean(Path(path).name, [p.name for p in Path(path).parent.glob("*")] if files else [])
        raise DataError(f"no data file at {path}{near}")
    kinds = {SUFFIXES.get(file.suffix.lower(), file.suffix) for file in files} if form == "auto" else {form}
    folders = {file.parent for file in files}
    if len(kinds) > 1 or len(folders) > 1:
        raise DataError(
            f"{path} matches files of formats {', '.join(sorted(kinds))} in {len(folders)} folders; "
            "expected one format and one folder"
        )
    kind, folder = kinds.pop(), folders.pop()
    if kind not in SUFFIXES.values():
        raise DataError(f"{path}: unknown format {kind!r}; expected one of {', '.join(sorted(set(SUFFIXES.values())))}")
    if not streaming:
        return _mapped(files, kind, folder, cache_dir)
    if kind != "parquet":
        raise DataError(
            f"{path}: streaming reads parquet only, found {kind}; leave out 'streaming' or convert the file"
        )
    return StreamedTable([LocalShard(file, None) for file in files], folder)


def _mapped(files: Sequence[Path], kind: str, folder: Path, cache_dir: str | None) -> Table:
    import datasets

    names = [str(file) for file in files]
    tabs = {"sep": "\t"} if files[0].suffix.lower() == ".tsv" else {}
    readers = {"parquet": datasets.Dataset.from_parquet, "json": datasets.Dataset.from_json}
    try:
        if kind == "disk":
            dataset = datasets.load_from_disk(names[0])
        elif kind == "arrow":
            dataset = datasets.concatenate_datasets([datasets.Dataset.from_file(name) for name in names])
        elif kind == "csv":
            dataset = datasets.Dataset.from_csv(names, cache_dir=cache_dir, **tabs)
        else:
            dataset = readers[kind](names, cache_dir=cache_dir)
    except Exception as error:
        cause = error.__cause__ or error
        raise DataError(f"{', '.join(names[:3])} can't be read as {kind}: {type(cause).__name__}: {cause}") from error
    return MappedTable(dataset, files, folder)


def _kind_of_folder(folder: Path) -> str:
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    kinds = {SUFFIXES[suffix] for suffix in suffixes if suffix in SUFFIXES and suffix != ".json"}
    if kinds == {"arrow"} or not suffixes:
        return "arrow"
    kinds |= {"json"} if not kinds and ".json" in suffixes else set()
    media = {kind for kind, (_, known) in MEDIA.items() if suffixes & known}
    found = kinds or media
    if len(found) != 1:
        raise DataError(
            f"{folder} holds {', '.join(sorted(found)) or 'no data files'}; expected one kind of data: "
            "give a file, or set 'format'"
        )
    return found.pop()


def _media_folder(folder: Path, kind: str) -> dict[str, Table]:
    """Return tables for `[SPLIT/]CLASS/.../FILE`: paths in a column "image" or "audio", class names in "label"."""
    import datasets

    column, suffixes = MEDIA[kind]
    rows: dict[str, tuple[list[str], list[str]]] = {}
    children = [child.name for child in sorted(folder.iterdir()) if child.is_dir()]
    has_splits = bool(children) and all(split_name(name) for name in children)
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix.lower() not in suffixes:
            continue
        parts = path.relative_to(folder).parts
        first, *rest = parts if has_splits else (ALL, *parts)
        if len(rest) < 2:
            raise DataError(f"{path} lies in no class folder; expected {folder}/[SPLIT/]CLASS/{path.name}")
        paths, labels = rows.setdefault(split_name(first) or ALL, ([], []))
        paths.append("/".join(parts))
        labels.append(rest[0])
    if not rows:
        raise DataError(f"{folder} holds no files for {kind} ({', '.join(sorted(suffixes))})")
    return {
        name: MappedTable(datasets.Dataset.from_dict({column: paths, "label": labels}), [folder], folder)
        for name, (paths, labels) in rows.items()
    }
