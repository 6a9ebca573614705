"""Kills, damage and cost: the numbers behind docs/reliability.md.

    moekd benchmark reliability
    python -m moekd.benchmarks.reliability --output benchmarks/results

Parts: `kills` (a three-stage run that is killed at random moments ends like one that was not), `saves` (kills in the
middle of saves), `damage` (single bytes of files flipped, or files cut off), `cost` (of the checks and a checkpoint).
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..api import export_run
from ..atomic import write_text
from ..errors import ConfigError, did_you_mean
from .reliability_cost import costs
from .reliability_damage import damaged_files
from .reliability_kills import killed_runs, killed_saves, small_recipe, undisturbed

logger = logging.getLogger(__name__)

PARTS = {
    "kills": "A three-stage run that is killed (`kill -9`) at random moments and goes on, against one that is not",
    "saves": "Processes that are killed in the middle of a save",
    "damage": "Single bytes flipped, or files cut off",
    "cost": "Cost, at the student of the quickstart",
}
COLUMNS = ("part", "case", "trials", "detected", "harmless", "failed", "value", "unit", "target", "said")
_HEADS = {
    "kills": ("kills", "bit-identical", None, "differences"),
    "saves": ("kills", "checkpoint from before", "new checkpoint", "unreadable or wrong"),
    "damage": ("damaged", "detected", "harmless", "other numbers, or another error"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments say and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m moekd.benchmarks.reliability", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--part", action="append", choices=[*PARTS], help="a part; default all")
    parser.add_argument("--kills", type=int, default=20, help="kills of runs, and of saves")
    parser.add_argument("--damages", type=int, default=200, help="damaged files")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the measurement of cost")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and places")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the tables")
    options = parser.parse_args(arguments)
    given = (options.kills, options.damages, options.rounds, options.seed)
    run_reliability(options.part or (), *given, output=options.output)


def run_reliability(
    parts: Sequence[str] = (),
    kills: int = 20,
    damages: int = 200,
    rounds: int = 20,
    seed: int = 0,
    output: Path = Path("results"),
    overrides: Sequence[str] = (),
) -> Path:
    """Measure parts and write `reliability.csv` and `reliability.md`; return the second.

    Args:
        parts: see `PARTS`; none: all.
        kills: kills of runs, and of saves.
        damages: damaged files.
        rounds: rounds of the measurement of cost.
        seed: of the moments and places.
        output: folder of the tables.
        overrides: "key=value" changes of the small run.

    Raises:
        ConfigError: an unknown part, or a system without processes that can be forked.
    """
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"unknown part '{part}'{did_you_mean(part, PARTS)}; known: {', '.join(PARTS)}")
    if not hasattr(os, "fork"):
        raise ConfigError("the reliability benchmark forks processes and kills them, which this system does not have")
    torch.set_num_threads(1)
    wanted, load = [part for part in PARTS if part in (parts or PARTS)], os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="moekd-reliability-") as folder:
        rows = list(_measure(wanted, Path(folder), kills, damages, rounds, seed, overrides))
    call = f"moekd benchmark reliability --kills {kills} --damages {damages} --rounds {rounds} --seed {seed}"
    command = " ".join([call, *(f"--part {part}" for part in parts)])
    return write_reliability(rows, output, command, load)


def _measure(
    parts: Sequence[str], work: Path, kills: int, damages: int, rounds: int, seed: int, overrides: Sequence[str]
) -> Iterator[dict[str, Any]]:
    tables = work / "tables"
    settings = [*overrides, f"cache.folder={tables}"]
    whole = undisturbed(work / "whole", settings) if set(parts) - {"cost"} else work
    if "kills" in parts:
        logger.info("killing a run %d times", kills)
        yield {"part": "kills", "case": "last checkpoint and log"} | killed_runs(
            whole, work / "killed", kills, seed, settings
        )
    if "saves" in parts:
        logger.info("killing %d saves", kills)
        yield {"part": "saves", "case": "newest checkpoint"} | killed_saves(whole, work / "saves", kills, seed)
    if "damage" in parts:
        logger.info("damaging %d files", damages)
        recipe = small_recipe(settings)
        export_run(recipe, recipe.build(), work / "student")
        (work / "damage").mkdir()
        for row in damaged_files(whole, tables, work / "student", work / "damage", damages, seed):
            yield {"part": "damage"} | row
    if "cost" in parts:
        logger.info("measuring %d rounds", rounds)
        for row in costs(work / "cost", rounds):
            yield {"part": "cost"} | row


def write_reliability(rows: Sequence[dict[str, Any]], folder: Path, command: str, load: float) -> Path:
    """Write `reliability.csv` and `reliability.md` into a folder; return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "reliability.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({key: _number(row.get(key, "")) for key in COLUMNS} for row in rows)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), PyTorch {torch.__version__}"
    lines = [f"Made by `{command}`: {machine}, load {load:.1f} before the start.", ""]
    for part, title in PARTS.items():
        mine = [row for row in rows if row["part"] == part]
        lines += [f"### {title}", "", *(_costs(mine) if part == "cost" else _counts(mine, part)), ""] if mine else []
    return write_text(folder / "reliability.md", "\n".join(lines).rstrip() + "\n")


def _counts(rows: Sequence[dict[str, Any]], part: str) -> list[str]:
    keys = ("trials", "detected", "harmless", "failed")
    shown = [(key, head) for key, head in zip(keys, _HEADS[part], strict=True) if head is not None]
    lines = [f"| what | {' | '.join(head for _, head in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row['case']} | {' | '.join(str(row[key]) for key, _ in shown)} |")
        lines += [f"| | {row['said']} |"] * bool(row.get("said"))
    return lines


def _costs(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| what | median | target | |", "|---|---|---|---|"]
    for row in rows:
        target = f"at most {row['target']:g} {row['unit']}" if "target" in row else ""
        lines.append(f"| {row['case']} | {row['value']:.2f} {row['unit']} | {target} | {row.get('said', '')} |")
    return lines


def _number(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
