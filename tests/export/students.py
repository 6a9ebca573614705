"""Tiny students of outside kinds, written as a run leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from moekd.export import build_network, export_student
from moekd.model import Model

NAMES = ["cat", "dog", "tree"]
CLIP: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
IMAGE = {"modality": "image", "shape": [3, 20, 20], "dtype": "float32", "mean": [0.5] * 3, "std": [0.25] * 3}
BYTES = {"modality": "text", "shape": [40], "dtype": "int64", "tokenizer": {"bytes": True, "lower": False}}
FIELDS = {"image": IMAGE, "caption": BYTES}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "dog", "red", "apple", ".", "two", "in", "the"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_student(
    folder: Path,
    kind: str,
    inputs: list[str],
    options: dict[str, Any],
    fields: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a student with random weights to `folder/student` and return `folder`."""
    fields = FIELDS if fields is None else fields
    document = {"class_names": NAMES, "inputs": inputs, "fields": fields}
    torch.manual_seed(0)
    description = {"kind": kind, "options": options, "context": {"num_classes": len(NAMES)}}
    network = build_network(description, document)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    whole = {"network": {"kind": kind, "options": options}, "class_names": NAMES, "fields": fields, **config}
    export_student(Model(network, inputs), whole, folder / "student", program=False)
    return folder


def save_tokenizer(folder: Path, length: int = 12) -> None:
    """Write a tokenizer of words, as BERT's is one of parts of words."""
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=length, **names).save_pretrained(
        folder
    )
