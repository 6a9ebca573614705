"""Adds what embeddings give to an example run: metrics in results.json, and examples.json with pictures."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GROUPS = ["people", "objects", "symbols", "places", "faces", "animals", "food", "sports", "flags"]


def add_embeddings(run: Path, *, logits: bool = True, headline: str | None = None) -> Path:
    """Add embeddings to a run of `write_example_run`; without logits nothing else is left; return the folder."""
    results = json.loads((run / "results.json").read_text())
    generator = np.random.default_rng(7)
    results["vision_language"], results["headline"] = {}, headline
    for split, models in results["test"].items():
        parts = {}
        for name, metrics in models.items():
            part = parts[name] = _part(generator, name, name in results["teachers"])
            flat = {key: value for key, value in part["retrieval"].items() if not key.startswith("n_")}
            flat |= {f"{kind}_accuracy": part[kind]["accuracy"] for kind in ("zero_shot", "knn", "linear_probe")}
            if "teachers" in part:
                flat["worst_teacher_r2"] = min(row["r2"] for row in part["teachers"].values())
            models[name] = (metrics if logits else {"n": metrics["n"]}) | flat
        results["vision_language"][split] = parts
    (run / "results.json").write_text(json.dumps(results))
    (run / "examples.json").write_text(json.dumps(examples(results["class_names"])))
    return run


def _part(generator: np.random.Generator, name: str, teacher: bool) -> dict[str, Any]:
    base = 0.3 + zlib.crc32(name.encode()) % 20 / 100 + 0.02 * float(generator.random())
    recalls = {
        f"{way}_r{k}": min(1.0, base * scale)
        for way in ("image_to_text", "text_to_image")
        for k, scale in ((1, 1.0), (5, 1.6), (10, 1.9))
    }
    ranks = {f"{way}_median_rank": 4.0 for way in ("image_to_text", "text_to_image")}
    part: dict[str, Any] = {
        "retrieval": recalls | ranks | {"retrieval_r1": base, "n_image": 1229, "n_text": 381},
        "zero_shot": {"accuracy": base + 0.1, "top5_accuracy": base + 0.3, "calibration_error": 0.06, "n": 1229},
        "knn": {"accuracy": base + 0.12, "k": 10, "n": 1229, "train_rows": 4000, "modality": "image"},
        "linear_probe": {"accuracy": base + 0.2, "n": 1229, "train_rows": 4000, "modality": "image"},
    }
    if not teacher:
        rows = {"multimodal/image": 0.8, "audio": 0.6}
        part["teachers"] = {key: {"r2": value - base / 5, "modality": "image"} for key, value in rows.items()}
    return part


def picture(seed: int) -> str:
    """Return a PNG of 128 x 128 pixels as base64."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((128, 128)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def examples(class_names: list[str]) -> dict[str, Any]:
    """Return the content of examples.json."""
    generator = np.random.default_rng(3)

    def side(modality: str, index: int) -> dict[str, Any]:
        words = f"<b>thing</b> number {index}, with a rather long description of what it shows"
        return {"text": words} if modality == "text" else {"text": words, "picture": str(index % 12)}

    retrieval: dict[str, Any] = {"modalities": ["image", "text"]}
    for source, target in (("image", "text"), ("text", "image")):
        retrieval[f"{source}_to_{target}"] = [
            side(source, query)
            | {
                "rank": query + 1,
                "found": [side(target, query + i) | {"right": i == query, "score": 0.5} for i in range(5)],
            }
            for query in range(3)
        ]
    return {
        "split": "test",
        "rows": 1229,
        "map": {
            "modality": "image",
            "points": generator.normal(size=(60, 2)).round(3).tolist(),
            "group": [int(g) for g in generator.integers(-1, 9, 60)],
            "groups": GROUPS,
            "all_groups": 12,
            "variance": [0.4, 0.2],
        },
        "retrieval": retrieval,
        "confusions": [
            {
                "label": class_names[0],
                "predicted": class_names[1],
                "count": 17,
                "of": 40,
                "rows": [side("image", i) for i in range(4)],
                "like": [side("image", i) for i in range(4, 8)],
            }
        ],
        "pictures": {str(key): picture(key) for key in range(12)},
    }
