"""Rows of an ablation as a long one leaves them: made-up numbers of real size, with all that can go wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moekd.report.ablation_rows import Row

EVIL = 'router <script>alert("x")</script> with a very long title | *that* never seems to end, `code` [a](http://e.x)'
VARIANTS = ["multimodal", "multimodal/fusion", "audio", "audio/conv3", "image"]
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SETTINGS = ["400 labels", "corrupted, 400 labels", "all labels"]
ARMS: dict[str, tuple[str, float, float | None]] = {
    "alone": ("student alone", -0.055, None),
    "single": ("multimodal teacher only", -0.011, 0.30),
    "uniform": ("uniform over probabilities", 0.0, 0.2),
    "logit_mean": ("mean of logits", 0.021, 0.2),
    "random": ("random teacher", -0.02, 0.2),
    "hash": ("hash of the sample", -0.018, 0.2),
    "label_groups": ("specialists by label group", 0.004, 0.24),
    "oracle": ("oracle", 0.052, 1.0),
    "oracle_soft": ("oracle, soft", 0.046, 0.71),
    "class_oracle": ("class oracle", 0.009, 0.34),
    "label_confidence": ("label confidence", 0.012, 0.52),
    "entropy": ("entropy weighting", 0.024, 0.36),
    "entropy_sharp": ("entropy weighting, temperature 0.5", 0.027, 0.4),
    "gradient_qp": ("gradient QP", 0.001, 0.22),
    "drop": ("worst teacher kept", -0.003, 0.21),
    "instance_logits": ("instance gate on logits", -0.004, 0.21),
    "instance_features": ("instance gate on features", -0.002, 0.22),
    "dense": ("dense softmax, temperature 2", 0.003, 0.25),
    "noisy_topk": ("noisy top-k", -0.001, 0.24),
    "switch": ("Switch top-1", -0.006, 0.22),
    "expert_choice": ("expert choice", 0.0, 0.2),
    "bias": ("bias-balanced", 0.002, 0.23),
    "prototypes": ("prototype cosine", 0.005, 0.27),
    "statistics": (EVIL, 0.026, 0.45),
    "policy": ("policy (reward)", -0.009, 0.26),
}
LEARNED = list(ARMS)[15:]
ABOUT: dict[str, Any] = {
    "name": "routers",
    "title": "Routers on AV-MNIST",
    "baseline": "uniform",
    "settings": SETTINGS,
    "command": "moekd ablate routers --seeds 5 --jobs 2",
    "metric": "accuracy",
    "seeds": [0, 1, 2, 3, 4],
    "date": "2026-01-31",
    "environment": {"python": "3.11.7", "packages": {"torch": "2.6.0", "moekd": "0.1.0"}, "cpu_count": 2, "gpus": []},
}


def example_rows(
    arms: int = 25, settings: int = 3, seeds: int = 5, splits: tuple[str, ...] = ("test", "test_unseen_speakers")
) -> list[Row]:
    """Return the rows of the first arms and settings, all of them finished."""
    rows = []
    for s, setting in enumerate((SETTINGS + [f"setting {i}" for i in range(3, settings)])[:settings]):
        for arm in list(ARMS)[:arms]:
            for seed in range(seeds):
                rows += [_row(setting, s, arm, seed, split) for split in splits]
    return rows


def damaged_rows() -> list[Row]:
    """Return example rows with failed and inapplicable arms, a NaN, an infinite loss and a missing seed."""
    rows = []
    for row in example_rows():
        row = dict(row)
        place = (row["setting"], row["arm"], row["seed"])
        if row["arm"] == "policy" and row["setting"] == SETTINGS[1]:
            row |= {"status": "failed", "reason": "StageError: loss is not finite at step 120", "accuracy": None}
        if row["arm"] == "expert_choice" and row["setting"] == SETTINGS[2]:
            row |= {"status": "inapplicable", "reason": "needs at least 8 rows a batch", "accuracy": None}
        if place == (SETTINGS[0], "switch", 3):
            row["accuracy"] = math.nan
        if place == (SETTINGS[0], "dense", 1):
            row["loss"] = math.inf
        if place == (SETTINGS[0], "hash", 4):
            row |= {"status": "missing", "reason": "not run yet", "accuracy": None}
        if row["arm"] != "prototypes" or row["setting"] != SETTINGS[2] or row["seed"] < 2:
            rows.append(row)
    return rows


def _row(setting: str, index: int, arm: str, seed: int, split: str) -> dict[str, Any]:
    title, gain, weight = ARMS[arm]
    generator = np.random.default_rng([index, seed, list(ARMS).index(arm), len(split)])
    shared = np.random.default_rng([index, seed, len(split)])
    accuracy = (0.62, 0.58, 0.71)[index % 3] - (0.14 if split != "test" else 0)
    accuracy += 0.012 * shared.standard_normal() + 0.006 * generator.standard_normal()
    accuracy += gain * (1.0, 1.4, 0.25)[index % 3]
    return {
        "setting": setting,
        "split": split,
        "arm": arm,
        "title": title,
        "seed": seed,
        "status": "done",
        "reason": "",
        "accuracy": float(accuracy),
        "balanced_accuracy": float(accuracy) - 0.01,
        "weighted_f1": float(accuracy) - 0.004,
        "loss": 2.1 * (1 - float(accuracy)) + 0.3,
        "seconds_per_step": 0.021 + 0.003 * generator.random() + (0.02 if arm in LEARNED else 0),
        "teacher_forwards_per_step": 0.0 if weight is None else 1.0 if arm in ("single", "random", "hash") else 3.0,
        "seconds": 60 + 9 * generator.random(),
        "routing": None if weight is None else _routing(arm, weight, generator),
        "class_names": CLASSES,
        "history": [] if weight is None else _history(arm, generator),
        "teachers": {"multimodal": 0.63, "audio": 0.56, "image": 0.48},
        "config": {},
    }


def _routing(arm: str, weight: float, generator: np.random.Generator) -> dict[str, Any]:
    weight = float(np.clip(weight + 0.01 * generator.standard_normal(), 0, 1)) if weight not in (0.2, 1.0) else weight
    sharp = 0.4 if arm in ("label_groups", "class_oracle", "prototypes") else 30.0 * (1.02 - weight)
    by_class = np.random.default_rng(len(arm)).dirichlet(np.full(len(VARIANTS), sharp), len(CLASSES))
    shares = by_class.mean(0)
    return {
        "variants": VARIANTS,
        "shares": shares.tolist(),
        "entropy": max(0.0, math.log(len(VARIANTS)) * (1.2 - weight)) if weight != 0.2 else math.log(len(VARIANTS)),
        "load_cv": float(shares.std(ddof=1) / shares.mean()),
        "by_class": by_class.tolist(),
        "oracle_agreement": min(1.0, weight + 0.02),
        "oracle_weight": weight,
        "chance_agreement": 0.2,
        "chosen_loss": 1.5 - 0.6 * weight,
        "oracle_loss": 0.88,
        "mean_loss": 1.38,
    }


def _history(arm: str, generator: np.random.Generator) -> list[dict[str, Any]]:
    slope = np.random.default_rng(len(arm)).standard_normal(len(VARIANTS)) * (0.25 if arm in LEARNED else 0)
    records = []
    for epoch in range(10):
        logits = slope * epoch + (0.15 * generator.standard_normal(len(VARIANTS)) if arm in LEARNED else 0)
        shares = np.exp(logits) / np.exp(logits).sum()
        entropy = float(-(shares * np.log(shares)).sum())
        records.append(
            {"epoch": epoch, "shares": dict(zip(VARIANTS, shares.tolist(), strict=True)), "entropy": entropy}
        )
    return records
