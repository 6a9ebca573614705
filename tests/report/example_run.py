"""Writes a run folder as a finished (or interrupted) distillation leaves it, with made-up numbers of real size."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
VARIANTS = ["multimodal", "multimodal/fusion", "multimodal/fc1", "audio", "audio/conv3", "audio/fc1"]
BASELINES = {"student_alone": 0.592, "kd_multimodal": 0.618, "kd_audio": 0.575, "uniform_mix": 0.629}
TEACHERS = {"multimodal": 0.871, "audio": 0.664}


def write_example_run(
    path: Path,
    *,
    title: str = "AV-MNIST, image student",
    classes: list[str] | None = None,
    seed: int = 0,
    student: float = 0.641,
    routing: bool = True,
    baselines: bool = True,
    dense: bool = False,
    absent_class: bool = False,
    finished: bool = True,
) -> Path:
    """Write config.yaml, environment.json, metrics.jsonl and (if finished) results.json; return the folder."""
    generator = np.random.default_rng([seed, zlib.crc32(title.encode())])
    names = DIGITS if classes is None else classes
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "title": title,
        "seed": seed,
        "data": {"kind": "avmnist", "preset": "hard", "batch_size": 128},
        "student": {"kind": "lenet5", "inputs": ["image"]},
        "teachers": {name: {"kind": "cnn", "inputs": ["image", "audio"]} for name in TEACHERS},
        "router": {"gate": {"kind": "instance"}, "selection": {"kind": "top_k", "k": 1}} if routing else None,
        "stages": [{"name": name, "epochs": 10} for name in ("cotrain", "specialise", "distill")],
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {"python": "3.11.7", "packages": {"torch": "2.6.0", "moekd": "0.1.0"}, "cpus": 2, "git": "0123abc"}
    (path / "environment.json").write_text(json.dumps(environment))
    records = _records(generator, routing, finished)
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if finished:
        results = _results(generator, title, names, seed, student, routing, baselines, dense, absent_class)
        (path / "results.json").write_text(json.dumps({"name": path.name, **results}))
    return path


def _records(generator: np.random.Generator, routing: bool, finished: bool) -> list[dict[str, Any]]:
    terms = {
        "cotrain": ["cross_entropy", "multimodal_cross_entropy", "audio_cross_entropy", "mutual_kd"],
        "specialise": ["kd_to_student"],
        "distill": ["cross_entropy", "routed_kd", "kl_to_uniform"],
    }
    runs = [("main", stage) for stage in terms] + [("baseline kd_multimodal", "distill")]
    records: list[dict[str, Any]] = []
    for phase, stage in runs if finished else runs[:2]:
        where = {"phase": phase, "stage": stage}
        for epoch in range(10):
            step, decay = 40 * (epoch + 1), math.exp(-(epoch + 1) / 4)
            losses = {
                name: (2.3 * decay + 0.4 * (i + 1)) * (0.02 if name == "kl_to_uniform" else 1)
                + 0.01 * generator.standard_normal()
                for i, name in enumerate(terms[stage])
            }
            records.append(
                {
                    "type": "train",
                    **where,
                    "epoch": epoch,
                    "step": step,
                    "losses": losses,
                    "lr": 1e-3,
                    "seconds": 6.0 * epoch,
                }
            )
            accuracy = 0.65 - 0.5 * decay - 0.002 * max(0, epoch - 7) + 0.005 * generator.standard_normal()
            metrics = {"accuracy": accuracy, "loss": 1.1 + decay}
            records.append({"type": "validation", **where, "epoch": epoch, "step": step, "metrics": metrics})
            if routing and where == {"phase": "main", "stage": "distill"}:
                weights = np.exp(np.array([0.0, 0.1, 0.15, -0.1, 0.05, -0.2]) * epoch)
                shares = dict(zip(VARIANTS, (weights / weights.sum()).tolist(), strict=True))
                entropy = -sum(share * math.log(share) for share in shares.values())
                records.append({"type": "routing", **where, "epoch": epoch, "shares": shares, "entropy": entropy})
        records.append(
            {
                "type": "stage_end",
                **where,
                "epochs": 10,
                "steps": 400,
                "seconds": 61.2,
                "best_epoch": 7,
                "peak_memory_mb": 904,
            }
        )
    return records if finished else records[:-1]


def _results(
    generator: np.random.Generator,
    title: str,
    names: list[str],
    seed: int,
    student: float,
    routing: bool,
    baselines: bool,
    dense: bool,
    absent_class: bool,
) -> dict[str, Any]:
    sizes = [int(n) for n in generator.integers(60, 400, len(names))]
    noise = 0.01 * seed

    def measured(accuracy: float) -> dict[str, Any]:
        by_class = np.clip(accuracy + 0.12 * generator.standard_normal(len(names)), 0, 1)
        by_class = by_class.round(4).tolist()
        if absent_class:
            by_class[0] = math.nan
        metrics = {
            "accuracy": accuracy,
            "balanced_accuracy": accuracy - 0.012,
            "weighted_f1": accuracy - 0.006,
            "kappa": accuracy - 0.07,
            "loss": 2.1 * (1 - accuracy) + 0.3,
            "calibration_error": 0.2 * (1 - accuracy),
            "per_class_accuracy": by_class,
            "per_class_n": sizes,
            "n": sum(sizes),
        }
        return metrics | ({"miou": accuracy - 0.25} if dense else {})

    models = {"student": student, **(BASELINES if baselines else {}), **TEACHERS}
    splits = {"test": 0.0, "test_unseen_style": -0.14}
    by_class = generator.dirichlet(np.ones(len(VARIANTS)) * 1.2, len(names)).tolist()
    if absent_class:
        by_class[0] = [math.nan] * len(VARIANTS)
    return {
        "title": title,
        "dataset": "avmnist",
        "seed": seed,
        "class_names": names,
        "student": {"parameters": 61706, "kind": "lenet5"},
        "teachers": list(TEACHERS),
        "titles": {"student": title, "uniform_mix": "uniform mix of all variants"},
        "parameters": {**dict.fromkeys(models, 61706), "multimodal": 1809752, "audio": 343562},
        "test": {
            split: {
                model: measured(value + shift + noise * generator.standard_normal()) for model, value in models.items()
            }
            for split, shift in splits.items()
        },
        "routing": {
            "variants": VARIANTS,
            "shares": [1 / 6] * 6,
            "entropy": 1.6,
            "load_cv": 0.2,
            "by_class": by_class,
            "chosen_loss": 0.61,
            "mean_loss": 0.84,
            "oracle_loss": 0.22,
            "oracle_agreement": 0.31,
            "chance_agreement": 1 / 6,
        }
        if routing
        else None,
        "stages": [],
        "seconds": 245.1,
    }
