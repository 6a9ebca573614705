"""Making the files of data sets that are not shipped; what `moekd data prepare` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .dataset import DATASETS


def prepare(
    name: str, source: Path | str | None, output: Path | str | None = None, progress: bool = True, **options: Any
) -> Path:
    """Prepare a data set and return its folder.

    Args:
        name: kind of the data set.
        source: folder with the files to prepare it from; their layout is recognised.
        output: folder to make; None is the place where the data set looks by default.
        progress: show progress bars on a terminal.
        options: further options of the kind.

    Raises:
        UnknownNameError: no such kind.
        DataError: the kind needs no preparation, a source file is missing or damaged, or the output exists.
    """
    kind = DATASETS.get(name)
    return kind.prepare(
        None if source is None else Path(source), None if output is None else Path(output), progress, **options
    )
