"""What distillation costs here: the numbers behind docs/performance.md.

    moekd benchmark performance
    python -m moekd.benchmarks.performance --part overhead --quick

Parts: `overhead` (a step with T teachers over one of the student alone), `routing` (one of four live teachers, and what
the engine adds), `stages` (the three stages of MST-Distill at the shapes of AV-MNIST against a plain transcription of
the published loop), `masks` (one mask, by kind and size), `cache` (fill and read rates, bytes a sample by codec),
`memory` (peaks, and growth over many steps). Arms take turns; numbers are medians.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..allocator import keep_freed_memory
from ..errors import ConfigError
from .performance_cache import cache
from .performance_masks import masks
from .performance_memory import memory
from .performance_overhead import Bench, overhead, routing
from .performance_report import read_rows, write_report
from .performance_stages import stages

PARTS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "overhead": overhead,
    "routing": routing,
    "stages": stages,
    "masks": masks,
    "cache": cache,
    "memory": memory,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments say and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m moekd.benchmarks.performance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--part", action="append", choices=[*PARTS], help="a part; default all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--rounds", type=int, help="rounds of each arm")
    parser.add_argument("--quick", action="store_true", help="two rounds of small sizes, to try the command")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the tables")
    options = parser.parse_args(arguments)
    run_performance(
        options.part or (), options.device, options.precision, options.rounds, options.quick, options.output
    )


def run_performance(
    parts: Sequence[str] = (),
    device: str = "cpu",
    precision: str = "no",
    rounds: int | None = None,
    quick: bool = False,
    output: Path = Path("results"),
) -> Path:
    """Measure parts and write `performance.csv`, `performance.md` and `performance.svg`; return the second.

    Parts that are not measured keep the lines that the table has, if it is of the same device.

    Args:
        parts: see `PARTS`; none: all.
        device: "cpu", where one thread is used and processor time is measured, or "cuda".
        precision: "no", "bf16" or "fp16" (autocast).
        rounds: rounds of each arm; None: what a part takes by itself.
        quick: two rounds of small sizes.
        output: folder of the tables.

    Raises:
        ConfigError: an unknown part, or a GPU that is not there.
    """
    parts = list(parts) or [*PARTS]
    if unknown := set(parts) - PARTS.keys():
        raise ConfigError(f"performance has no part '{min(unknown)}'; parts: {', '.join(PARTS)}")
    if device not in ("cpu", "cuda") or precision not in ("no", "bf16", "fp16"):
        raise ConfigError(f"performance runs on cpu or cuda in no, bf16 or fp16; found {device} and {precision}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("performance: device 'cuda' is asked for, but there is no usable GPU; use cpu")
    logging.getLogger("moekd").setLevel(logging.WARNING)
    keep_freed_memory()  # as every run of `moekd distill` does
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    bench = Bench(Accelerator(cpu=device == "cpu", mixed_precision=precision), quick, rounds)
    rows = [row for row in read_rows(output, machine(device)) if row["part"] not in parts]
    try:
        for part in parts:
            start, load = time.monotonic(), os.getloadavg()[0]
            where = {"machine": machine(device), "precision": precision, "load": round(load, 1)}
            print(f"{part}: load {load:.1f} before the start", flush=True)
            for found in PARTS[part](bench):
                rows.append(found | where)
                print("  {case} | {arm} | {measure} {value:.4g} {unit}".format(**found), flush=True)
            print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
            written = write_report(rows, output, command(parts, device, precision, rounds, quick))
    finally:
        torch.set_num_threads(threads)
    return written


def machine(device: str) -> str:
    """Return the name of what is measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores ({platform.machine()}), one thread, PyTorch {torch.__version__}"


def command(parts: Sequence[str], device: str, precision: str, rounds: int | None, quick: bool) -> str:
    """Return the command that makes these numbers."""
    words = ["moekd benchmark performance"]
    words += [f"--part {part}" for part in parts] if list(parts) != [*PARTS] else []
    words += [f"--device {device}"] * (device != "cpu") + [f"--precision {precision}"] * (precision != "no")
    return " ".join(words + [f"--rounds {rounds}"] * (rounds is not None) + ["--quick"] * quick)


if __name__ == "__main__":
    main()
