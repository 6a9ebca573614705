"""A run's folder: what was run, where, what came out; and the trackers that watch it.

runs/<name>/ config.yaml  environment.json  metrics.jsonl  results.json  checkpoints/  student/  figures/  report.html
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from .atomic import FolderLock, append_jsonl, plain, probe_writable, safe_name, sync_file, write_json, write_text
from .errors import ConfigError, DataError, MissingDependencyError, did_you_mean

logger = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
_PACKAGES = ("moekd", "torch", "accelerate", "transformers", "datasets", "safetensors", "numpy", "scipy")
_PROJECT = "moekd"


class RunFolder:
    """The folder of one run, `root/name`.

    Of several processes that a launcher started, the first one (RANK 0) creates and checks the folder.

    Args:
        root: folder of all runs.
        name: run name; it must be a safe folder name.
        resume: allow a folder that already holds a run.

    Raises:
        ConfigError: the name can't be a folder, or the folder holds a run already and `resume` is not set.
        DataError: the path is a file, or can't be written.
    """

    def __init__(self, root: Path, name: str, *, resume: bool = False) -> None:
        self.name = safe_name(name, "run name")
        self.path = Path(root) / name
        if int(os.environ.get("RANK", "0")) != 0:
            return
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file; a run needs a folder: choose another run name")
        if not resume and self.path.is_dir() and any(map(_is_content, self.path.iterdir())):
            raise ConfigError(
                f"run '{name}' exists already in {root}: continue it with --resume, choose another --name, "
                "or delete that folder"
            )
        for folder in (self.path, self.checkpoints, self.figures):
            probe_writable(folder)

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def teachers(self) -> Path:
        """Which models the teachers are."""
        return self.path / "teachers.json"

    @property
    def metrics(self) -> Path:
        """One JSON record a line, in order of time."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """The final numbers."""
        return self.path / "results.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        """Folder of the exported student."""
        return self.path / "student"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    def lock(self) -> FolderLock:
        """Return the lock that keeps a second process out; use it as a context."""
        return FolderLock(self.path)

    def write_config(self, config: Mapping[str, Any]) -> Path:
        """Write the resolved configuration as YAML, keys in their order."""
        return write_text(self.config, yaml.safe_dump(_plain_yaml(config), sort_keys=False, allow_unicode=True))

    def write_environment(self) -> Path:
        """Write versions, platform and commit; see `environment`."""
        return write_json(self.environment, environment())

    def write_teachers(self, teachers: Sequence[Mapping[str, Any]]) -> Path:
        """Write which models the teachers are and what each of them sees; see `describe_teachers`."""
        return write_json(self.teachers, teachers)

    def write_results(self, results: Mapping[str, Any]) -> Path:
        """Write the final numbers."""
        return write_json(self.results, results)

    def log(self, record: Mapping[str, Any]) -> int:
        """Append a record to `metrics.jsonl` and return the position after it (a byte offset).

        Scalars of NumPy and PyTorch are converted; NaN and infinities are written as null.

        Raises:
            DataError: the record can't be written.
        """
        try:
            return append_jsonl(self.metrics, record)
        except OSError as error:
            raise DataError(f"can't append to {self.metrics}: {error.strerror or error}; free some space") from error

    def position(self) -> int:
        """Return the size of `metrics.jsonl` in bytes after forcing it to the disk; a checkpoint stores it."""
        if not self.metrics.exists():
            return 0
        sync_file(self.metrics)
        return self.metrics.stat().st_size

    def truncate_to(self, position: int) -> None:
        """Drop the records written after a checkpoint, so that a resumed run does not log steps twice.

        Raises:
            DataError: the file is shorter than at the checkpoint, or the position is not the end of a record.
        """
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        if not 0 <= position <= size:
            raise DataError(
                f"{self.metrics} has {size:,} bytes, the checkpoint expects at least {position:,}: "
                "records were removed; restore the file or start a new run"
            )
        if size == 0:
            return
        with open(self.metrics, "rb+") as file:
            file.seek(max(position - 1, 0))
            if position and file.read(1) != b"\n":
                raise DataError(f"{self.metrics}: byte {position:,} is not the end of a record; the file was changed")
            file.truncate(position)
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all records; a torn last line (a writer was killed) is left out.

        Raises:
            DataError: a line that is no JSON object, with its number.
        """
        return read_jsonl(self.metrics)


def _is_content(entry: Path) -> bool:
    """Tell whether an entry is part of a run: a run refused before its first step leaves empty folders only."""
    return entry.name != ".lock" and not (entry.is_dir() and not any(entry.iterdir()))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file with one JSON object a line; see `RunFolder.read_metrics`."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    if lines.pop():
        logger.warning("%s ends in the middle of a record, which is left out", path)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is no JSON object but {type(record).__name__}")
        records.append(record)
    return records


def environment() -> dict[str, Any]:
    """Return versions, platform, devices and commit. Environment variables and command lines are never part of it."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git_commit": git_commit(Path(__file__).parent),
    }


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Return `{"commit", "changed"}` of the checkout that tracks this package, or None where there is none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


class Trackers:
    """Sends scalars to the trackers of Accelerate: TensorBoard files in the run's folder, W&B, trackio or MLflow.

    Args:
        accelerator: `accelerate.Accelerator`; only its main process sends anything.
        names: members of `TRACKERS`; "none" stands for no tracker.
        run: the run's folder and name.

    Raises:
        ConfigError: unknown name.
        MissingDependencyError: the tracker's package is not installed.
    """

    def __init__(self, accelerator: Any, names: Iterable[str], run: RunFolder) -> None:
        self.accelerator = accelerator
        self.run = run
        self.names = [name for name in dict.fromkeys(names) if name != "none"]
        for name in self.names:
            if name not in TRACKERS:
                raise ConfigError(
                    f"unknown tracker {name!r}{did_you_mean(name, TRACKERS)}; known: {', '.join(TRACKERS)}, none"
                )
            if find_spec(name) is None:
                raise MissingTrackerError(name)

    def start(self, config: Mapping[str, Any]) -> None:
        """Open the trackers and store the flattened configuration."""
        if not self.names:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        directory, name = str(self.run.path), self.run.name
        options: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
            "tensorboard": (("tensorboard", directory), {}),
            "wandb": ((_PROJECT,), {"name": name, "dir": directory}),
            "trackio": ((_PROJECT,), {"name": name}),
            "mlflow": ((_PROJECT,), {"run_name": name}),
        }
        self.accelerator.log_with = [
            LOGGER_TYPE_TO_CLASS[tracker](*options[tracker][0], **options[tracker][1]) for tracker in self.names
        ]
        self.accelerator.init_trackers(_PROJECT, config=flat_config(config))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send scalars; nested mappings become names with slashes ("losses/kd"), other values are left out."""
        if self.names:
            self.accelerator.log(dict(_scalars(values, "")), step=step)

    def end(self) -> None:
        """Flush and close the trackers."""
        if self.names:
            self.accelerator.end_training()


class MissingTrackerError(MissingDependencyError):
    """A tracker was asked for whose package is not installed."""

    def __init__(self, name: str) -> None:
        Exception.__init__(
            self, f"the tracker '{name}' needs the package '{name}': {Path(sys.executable).name} -m pip install {name}"
        )


def flat_config(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Flatten nested settings to `{"stages[0].epochs": 10}` with the value types that trackers take."""
    flat: dict[str, bool | int | float | str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                walk(item, f"{path}.{key}" if path else str(key))
        elif isinstance(value, (list, tuple)) and value:
            for index, item in enumerate(value):
                walk(item, f"{path}[{index}]")
        else:
            flat[path] = value if isinstance(value, (bool, int, float, str)) else str(value)

    walk(config, "")
    return flat


def _scalars(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) or (hasattr(value, "item") and getattr(value, "ndim", None) == 0):
            yield f"{prefix}{key}", float(value)


def _plain_yaml(config: Mapping[str, Any]) -> Any:
    """Keep infinities (YAML has them), convert everything else as JSON files do."""
    if isinstance(config, float):
        return config
    if isinstance(config, Mapping):
        return {key: _plain_yaml(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [_plain_yaml(value) for value in config]
    return plain(config)
