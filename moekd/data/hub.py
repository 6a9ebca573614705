"""`hub`: a data set of the Hugging Face Hub at a pinned commit, or a local folder in the same layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt

from ..atomic import write_json
from ..errors import DataError, did_you_mean
from .dataset import DATASETS
from .fetch import check_commit, fetch_hub
from .fields import Field
from .files_source import split_name
from .fingerprint import digest, file_digest
from .shard_cache import ShardCache, read_json
from .shards import CachedShard, LocalShard, Shard
from .table_dataset import TableDataset, named_tables
from .tables import MappedTable, StreamedTable, Table
from .webdataset import GIB


@DATASETS.register("hub")
class Hub(TableDataset):
    """A data set by name and commit; code of the repository is never run.

    Without `streaming`, everything is downloaded and prepared once by Hugging Face datasets (any format that it reads),
    and memory-mapped. With `streaming`, parquet files are fetched one by one when their rows are read, into a folder of
    bounded size; an epoch shuffles within windows of 4 row groups. The first start reads each file once, for the number
    of its rows and the label column; both are kept.

    Args:
        name: name on the Hub, or local folder.
        fields: the batch fields, by name.
        revision: commit (40 hex digits); needed for names on the Hub.
        config: configuration (subset) of the data set; None is its only or default one.
        split: the source's split for each split (`{train: train, val: validation, test: validation2}`), or fractions
            of the training rows, and `seed` for these; None takes the source's own train, validation and test.
        label: column with the class: integers (of a ClassLabel, with its names) or texts; None: no labels.
        classes: class names in order; None takes those of the source, or sorts the values of the label column.
        labelled_splits: the splits that have labels; None: all of them.
        streaming: fetch parquet files when they are read.
        cache_dir: folder for what is downloaded; None is the cache of Hugging Face datasets, and for streaming an
            error, unless the files are on disk.
        cache_gb: most that streamed files may take there, in GiB.

    Raises:
        DataError: no commit, no connection, an unknown name, configuration, split or column; streaming without parquet.
    """

    kind = "hub"

    def __init__(
        self,
        name: str,
        fields: dict[str, Field],
        revision: str | None = None,
        config: str | None = None,
        split: dict[str, str | int | float] | None = None,
        label: str | None = None,
        classes: list[str] | None = None,
        labelled_splits: list[str] | None = None,
        streaming: bool = False,
        cache_dir: str | None = None,
        cache_gb: Annotated[float, Gt(0)] = 100.0,
    ) -> None:
        self.source, self.config, self.streaming, self.cache_dir = name, config, streaming, cache_dir
        self.local = Path(name).is_dir()
        self.revision = None if self.local else check_commit(name, revision)
        self.limit = int(cache_gb * GIB)
        super().__init__(name, fields, label, split, classes, labelled_splits)

    def open_tables(self) -> dict[str, Table]:
        """Open the parts of the source that `split` names."""
        return self._streamed() if self.streaming else self._mapped()

    def _mapped(self) -> dict[str, Table]:
        import datasets

        options = {"revision": self.revision, "cache_dir": self.cache_dir}
        loaded = self._asked(lambda: datasets.load_dataset(self.source, self.config, **options))
        tables: dict[str, Table] = {}
        for name, part in self._parts(loaded).items():
            content = {"rows": len(loaded[part]), **self._content(part)}
            tables[name] = _HubTable(loaded[part], f"{self.source}, split '{part}'", Path(self.source), content)
        return tables

    def _streamed(self) -> dict[str, Table]:
        files = self._listing()
        tables: dict[str, Table] = {}
        for name, part in self._parts(files).items():
            kept = self.label if self.needs_label(name) else None
            tables[name] = StreamedTable([self._shard(file) for file in files[part]], Path(self.source), kept)
        return tables

    def _listing(self) -> dict[str, list[str]]:
        """Return the parquet files of each split; those of a commit are asked for once."""
        if self.revision is None or self.cache_dir is None:
            return self._ask_for_files()
        asked = digest([self.source, self.revision, self.config])[:16]
        place = Path(self.cache_dir) / f"files-{asked}.json"
        kept = read_json(place)
        if kept is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, kept := self._ask_for_files())
        return dict(kept)

    def _ask_for_files(self) -> dict[str, list[str]]:
        import datasets

        options = {"revision": self.revision, "cache_dir": self.cache_dir}
        builder = self._asked(lambda: datasets.load_dataset_builder(self.source, self.config, **options))
        files = {str(part): list(map(str, found)) for part, found in (builder.config.data_files or {}).items()}
        other = [file for found in files.values() for file in found if not file.endswith(".parquet")]
        if other or not files:
            raise DataError(
                f"{self.source}: streaming reads parquet only, found {other[0] if other else 'no data files'}; leave "
                "out 'streaming', or name the commit of its parquet conversion"
            )
        return files

    def _shard(self, file: str) -> Shard:
        return CachedShard(file, self._cache()) if file.startswith("hf://") else LocalShard(Path(file), None)

    def _cache(self) -> ShardCache:
        if self.cache_dir is None:
            raise DataError(f"{self.source} is remote: set 'cache_dir' to the folder where its files may be kept")
        return ShardCache(Path(self.cache_dir), self.limit, {"hf": fetch_hub})

    def _asked(self, ask: Any) -> Any:
        """Ask Hugging Face datasets, and put its many errors in our words."""
        what = self.source if self.revision is None else f"{self.source} at {self.revision[:8]}"
        try:
            return ask()
        except ConnectionError as error:
            raise DataError(
                f"data set '{what}' can't be had: {error}; is this machine offline? Download the repository where "
                "there is a connection, and give the folder as 'name'"
            ) from error
        except Exception as error:
            cause = error.__cause__ or error
            raise DataError(f"data set '{what}' can't be had: {type(cause).__name__}: {cause}") from error

    def _parts(self, found: Mapping[str, Any]) -> dict[str, str]:
        """Return the split of the source behind each of ours."""
        named: dict[str, str] = named_tables(self.division)
        if not named:
            named = {name: part for part in found if (name := split_name(part)) is not None}
        for name, part in named.items():
            if part not in found:
                hint = did_you_mean(part, found) or f"; its splits: {', '.join(found)}"
                raise DataError(f"split.{name}: {self.source} has no split '{part}'{hint}")
        if "train" not in named:
            raise DataError(f"{self.source} has no split for train; its splits: {', '.join(found)}; set 'split'")
        return named

    def _content(self, part: str) -> dict[str, Any]:
        if self.revision is not None:
            return {"name": self.source, "commit": self.revision, "config": self.config, "split": part}
        files = {str(file.relative_to(self.source)): file for file in Path(self.source).rglob("*") if file.is_file()}
        contents = {name: file_digest(file) for name, file in sorted(files.items()) if not name.startswith(".")}
        return {"files": contents, "config": self.config, "split": part}


class _HubTable(MappedTable):
    """A prepared split; what it holds is known by its commit, not by the checksums of files."""

    def __init__(self, dataset: Any, name: str, folder: Path, content: dict[str, Any]) -> None:
        super().__init__(dataset, [], folder)
        self.title, self.content = name, content

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.title

    def identity(self) -> Any:
        """Return the commit, or for a folder the checksums of its files."""
        return self.content
