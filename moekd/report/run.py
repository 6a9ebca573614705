"""Read a run folder, finished or not; what is missing or damaged becomes a note instead of an error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError

Record = dict[str, Any]


@dataclass
class Run:
    """The readable parts of a run folder; missing parts are empty.

    Attributes:
        path: the folder.
        config: config.yaml as a mapping; `config_text` is the file as it stands.
        environment: environment.json.
        results: results.json.
        records: the lines of metrics.jsonl.
        notes: one sentence for each part that is missing or damaged.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the run: from the results, the config or the folder."""
        return str(self.results.get("name") or self.config.get("name") or self.path.resolve().name)

    @property
    def title(self) -> str:
        """Title of the results or the config; the name if there is none."""
        return str(self.results.get("title") or self.config.get("title") or self.name)

    @property
    def dataset(self) -> str:
        """Name of the data set, empty if unknown."""
        data = mapping(self.config.get("data"))
        return str(self.results.get("dataset") or data.get("kind") or "")

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers in the config."""
        return [str(name) for name in mapping(self.config.get("teachers"))]

    def of_type(self, kind: str) -> list[Record]:
        """Return the records of one type, in order."""
        return [record for record in self.records if record.get("type") == kind]

    def stages(self, kind: str) -> dict[tuple[str, str], list[Record]]:
        """Return the records of one type by (phase, stage), in order of appearance."""
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in self.of_type(kind):
            key = str(record.get("phase", "main")), str(record.get("stage", ""))
            groups.setdefault(key, []).append(record)
        return groups


def read_run(path: Path) -> Run:
    """Read what there is of a run folder.

    Raises:
        DataError: no such folder, or one without any file of a run.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"no run folder at {path}")
    run = Run(path)
    known = ["config.yaml", "metrics.jsonl", "results.json", "environment.json"]
    if not any((path / name).is_file() for name in known):
        raise DataError(f"{path} is not a run folder: it has none of {', '.join(known)}")
    run.config_text = _text(run, "config.yaml") or ""
    run.config = _parsed(run, "config.yaml", run.config_text, yaml.safe_load)
    run.results = _parsed(run, "results.json", _text(run, "results.json"), json.loads)
    run.environment = _parsed(run, "environment.json", _text(run, "environment.json"), json.loads)
    run.records = _records(run, _text(run, "metrics.jsonl") or "")
    return run


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float:
    """Return `value` as a float; NaN for anything that is not a number (a null in JSON, say)."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def numbers(values: Any) -> list[float]:
    """Return a list of numbers with NaN for the unknown ones; empty for anything that is not a list."""
    return [number(value) for value in values] if isinstance(values, Sequence) and not isinstance(values, str) else []


def _text(run: Run, name: str) -> str | None:
    try:
        return (run.path / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        run.notes.append(f"{name} is missing.")
    except (OSError, UnicodeDecodeError) as error:
        run.notes.append(f"{name} can't be read: {error}.")
    return None


def _parsed(run: Run, name: str, text: str | None, parse: Callable[[str], Any]) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = parse(text)
    except (ValueError, yaml.YAMLError) as error:
        run.notes.append(f"{name} is damaged: {str(error).splitlines()[0]}.")
        return {}
    if not isinstance(value, dict):
        run.notes.append(f"{name} is damaged: expected a mapping, found {type(value).__name__}.")
        return {}
    return value


def _records(run: Run, text: str) -> list[Record]:
    records, damaged = [], []
    for index, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged.append(index)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        run.notes.append(f"metrics.jsonl: {len(damaged)} unreadable lines were left out (line {shown}).")
    return records
