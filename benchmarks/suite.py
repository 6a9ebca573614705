"""Run shipped configs over seeds and label budgets, in parallel processes, and summarise the arms with paired
statistics.

Every cell (config, label budget, seed) is one run in its own folder; a finished cell is never run again, an
interrupted one goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..progress import Progressbar


@dataclass(frozen=True)
class Suite:
    """What a benchmark runs.

    Attributes:
        name: name in tables.
        configs: names of shipped configs.
        variants: config overrides by the name of a variant (label budgets).
        seeds: default number of seeds.
    """

    name: str
    configs: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"all": ()})
    seeds: int = 5


MST_DISTILL = Suite(
    "mst_distill",
    configs=("suites/emoji_image", "suites/avmnist_image", "suites/avmnist_audio"),
    variants={"all labels": (), "400 labels": ("data.labels=400",)},
)


@dataclass(frozen=True)
class Cell:
    """One run of a suite."""

    config: str
    variant: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{Path(self.config).name}-{self.variant.replace(' ', '-')}-seed{self.seed}"


def cells(suite: Suite, seeds: int | None = None, only: Sequence[str] = ()) -> Iterator[Cell]:
    """Yield the runs of a suite, all configs of a seed before the next seed."""
    for seed in range(seeds or suite.seeds):
        for config in suite.configs:
            for variant, overrides in suite.variants.items():
                cell = Cell(config, variant, overrides, seed)
                if not only or any(part in cell.name for part in only):
                    yield cell


def run_suite(
    suite: Suite,
    runs: Path,
    seeds: int | None = None,
    jobs: int = 1,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, str]:
    """Run what is left of a suite; a failed cell is reported and does not stop the others.

    Args:
        suite: what to run.
        runs: folder of the cells.
        seeds: number of seeds, default the suite's.
        jobs: processes at a time; each uses one thread.
        only: run only cells whose name has one of these parts.
        overrides: further "key=value" changes of every config.
        quiet: no progress bar.

    Returns:
        The end of the error output of each failed cell.
    """
    todo = [cell for cell in cells(suite, seeds, only) if not (runs / cell.name / "results.json").is_file()]
    failed: dict[str, str] = {}
    with Progressbar(enabled=not quiet) as progress, ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        progress.start(suite.name, len(todo))
        futures = {pool.submit(run_cell, cell, runs, overrides): cell for cell in todo}
        for future in as_completed(futures):
            error = future.result()
            if error is not None:
                failed[futures[future].name] = error
            progress.advance()
            progress.say(f"{futures[future].name}: {'failed' if error else 'done'}")
    return failed


def run_cell(cell: Cell, runs: Path, overrides: Sequence[str] = ()) -> str | None:
    """Run one cell in a process of its own; return the end of its error output if it failed."""
    command = [sys.executable, "-m", "moekd", "distill", cell.config, f"seed={cell.seed}", *cell.overrides, *overrides]
    command += ["--name", cell.name, "--runs", str(runs), "--quiet"]
    if (runs / cell.name).is_dir():
        command += ["--resume", "auto"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr[-2000:]


def read_results(suite: Suite, runs: Path) -> list[dict[str, Any]]:
    """Return a row for every (config, variant, split, arm, seed) of the finished cells.

    Raises:
        DataError: no cell is finished.
    """
    rows: list[dict[str, Any]] = []
    for cell, results in finished_cells(suite, runs):
        place = {"config": Path(cell.config).name, "variant": cell.variant, "seed": cell.seed}
        for split, models in results["test"].items():
            for arm, metrics in models.items():
                kind = "teacher" if arm in results["teachers"] else "arm"
                numbers = {"accuracy": metrics["accuracy"], "loss": metrics["loss"]}
                title = results["titles"].get(arm, arm)
                rows.append({**place, "split": split, "arm": arm, "title": title, "kind": kind, **numbers})
    return rows


def finished_cells(suite: Suite, runs: Path) -> list[tuple[Cell, dict[str, Any]]]:
    """Return the finished cells, of any seed, with their results.

    Raises:
        DataError: no cell is finished.
    """
    found = []
    for cell in cells(suite, seeds=1000):
        file = runs / cell.name / "results.json"
        if file.is_file():
            found.append((cell, json.loads(file.read_bytes())))
    if not found:
        raise DataError(f"no finished run of suite '{suite.name}' in {runs}")
    return found
