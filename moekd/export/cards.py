"""The README of an exported folder: the student's model card, and how to load the folder with the library it is for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .readme import clean

USE = "\n## Use\n"
FENCE = "---\n"
_ONNX = """\
```python
import json

import onnxruntime

said = json.load(open("config.json"))  # classes, how inputs are prepared, what each file takes and gives
{calls}
```

The first axis of every input is free. Each file was compared with PyTorch when it was written (`max_difference`).
Embeddings are not normalised.{vectors}
"""
_VECTORS = """ `class_vectors.npy` `[C, D]` is the zero-shot classifier: its rows have length 1 and are in the
order of `class_names`; a picture's logits are its embedding at length 1 times the rows, times `scale.logit_scale`."""
_OPEN_CLIP = """\
```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")  # or "hf-hub:owner/name"
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
model.eval()
image = model.encode_image(preprocess(picture)[None])  # picture: a PIL image
text = model.encode_text(tokenizer(["a photo of a cat."]))
```
"""


def format_card(student: Path, format: str, use: str, about: Mapping[str, Any] | None = None) -> str:
    """Return the README of an exported folder.

    Args:
        student: folder of the student, whose README is the model card.
        format: what the library is called in the front matter (`library_name`).
        use: section on how to load the folder, in Markdown.
        about: further entries of the front matter.
    """
    card = student / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else "# Student\n"
    values, body = split_card(text)
    values |= {"library_name": format, **(about or {})}
    head = body.rpartition(USE)[0] or body
    return f"{front_matter(values)}\n{head.strip()}\n{USE}\n{use.strip()}\n"


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Return the front matter of a card and the text after it; without a readable one, an empty mapping."""
    if text.startswith(FENCE) and FENCE in text[len(FENCE) :]:
        head, _, body = text[len(FENCE) :].partition(FENCE)
        try:
            values = yaml.safe_load(head)
        except yaml.YAMLError:
            values = None
        if isinstance(values, dict):
            return values, body
    return {"tags": ["moekd", "knowledge-distillation"]}, text


def front_matter(values: Mapping[str, Any]) -> str:
    """Return YAML between two fences."""
    return f"{FENCE}{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=False)}{FENCE}"


def onnx_use(files: Mapping[str, Mapping[str, Any]], vectors: bool) -> str:
    """Return how to run ONNX files; `files` as in `config.json`."""
    calls = []
    for name, said in files.items():
        if name.endswith(".int8.onnx"):
            continue
        variable = clean(name.removesuffix(".onnx"))
        given = ", ".join(f'"{clean(key)}": {clean(key)}' for key in said["inputs"])
        results = ", ".join(map(clean, said["outputs"])) + ("," if len(said["outputs"]) == 1 else "")
        calls += [f'{variable} = onnxruntime.InferenceSession("{clean(name)}")']
        calls += [f"{results} = {variable}.run(None, {{{given}}})"]
    return _ONNX.format(calls="\n".join(calls), vectors=_VECTORS if vectors else "")


def open_clip_use(notes: str = "") -> str:
    """Return how to load a folder of open_clip."""
    return f"{_OPEN_CLIP}\n{notes}"


def transformers_use(lines: str, notes: str = "") -> str:
    """Return how to load a folder of transformers; `lines` are Python."""
    return f"```python\n{lines.strip()}\n```\n\n{notes}"
