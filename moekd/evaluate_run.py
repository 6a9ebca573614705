"""Measure the student of a finished run again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .config import build, load_config, parse_recipe
from .data import DATASETS, Dataset
from .errors import ConfigError, DataError
from .export import load_student, read_student
from .measure_embeddings import Place
from .measure_models import Measurement
from .model import Model
from .recipe import Recipe


def evaluate_run(
    run: Path | str, overrides: Sequence[str] = (), splits: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the metrics of a run's student by split, those of its embeddings with them.

    Args:
        run: run folder.
        overrides: "key=value" changes of the run's config (its data, mostly).
        splits: splits to test on, default those of the config.

    Raises:
        DataError: no student in the folder.
        ConfigError: the changed data set has other classes than the student.
    """
    folder = Path(run)
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise DataError(f"{folder} is no run: config.yaml is missing")
    raw, source = load_config(str(config_file), overrides)
    config = parse_recipe(raw, source)
    _, document = read_student(folder)
    dataset: Dataset = build(config.data.spec, DATASETS, where="data")
    if list(dataset.class_names) != document["class_names"]:
        raise ConfigError(f"data: the student of {folder} knows other classes than this data set (or another order)")
    student = Model(load_student(folder), document["inputs"])
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.device != "cpu" else "cpu")
    data = Recipe(config, source).run_data(dataset)
    wanted = list(splits or config.evaluation.splits)
    measurement = Measurement(data, Place(device), {"student": student.to(device).eval()}, {}, wanted[0])
    return {name: measurement.split(name)[0]["student"] for name in wanted}
