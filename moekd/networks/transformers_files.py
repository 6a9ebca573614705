"""What the files of a transformers model say: its pictures, texts and pooling, in the terms of the contracts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .adapter import hub_folder, library
from .images import ImageOptions, ImageSettings, image_settings
from .texts import TextContract, Texts

FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "1_Pooling/config.json"]
PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
#: Model types whose texts always fill the context, and whose attention sees the padding.
PADDED_TEXTS = {"siglip", "siglip_text_model", "siglip2", "siglip2_text_model"}
NO_LIMIT = 1_000_000
UNIT = 1 / 255


def hugging_face() -> ModuleType:
    """Return the library transformers, which takes seconds to import."""
    return library("transformers", "transformers", "network kind 'transformers'")


def folder_of(model: str, revision: str | None) -> Path:
    """Return a local folder of a model, or that of a repository on the Hub at a commit."""
    path = Path(model).expanduser()
    return path if path.is_dir() else hub_folder(model, revision, FILES)


def load_model(auto: str, folder: Path, who: str) -> nn.Module:
    """Load all weights of a model from safetensors files; no remote code, no network.

    A pooling layer that the checkpoint lacks is left out, since it would have random weights.

    Raises:
        ConfigError: files are missing, or weights are missing or of another shape.
    """
    model, missing = _load(auto, folder, who)
    if missing and all("pooler" in key for key in missing):
        model, missing = _load(auto, folder, who, add_pooling_layer=False)
    if missing:
        shown = ", ".join(sorted(missing)[:5])
        raise ConfigError(f"model: {who} has no weights for {shown}; this checkpoint is not for this use")
    return model


def _load(auto: str, folder: Path, who: str, **options: Any) -> tuple[nn.Module, set[str]]:
    try:
        model, info = getattr(hugging_face(), auto).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(f"model: transformers can't load {who}: {str(error).strip().splitlines()[0]}") from error
    if info["mismatched_keys"]:
        raise ConfigError(f"model: weights of {who} have another shape: {list(info['mismatched_keys'])[:3]}")
    return model, set(info["missing_keys"])


def pictures(
    folder: Path | None, options: ImageOptions | None, who: str, guess: Mapping[str, Any] | None = None
) -> ImageSettings:
    """Return how a model's pictures are prepared, from its image processor, or from `guess` where there are no files.

    Raises:
        ConfigError: the processor does something that can't be done here, or there is none and `options` lack a part.
    """
    known: dict[str, Any] = dict(guess or {})
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        known = _processor_settings(
            hugging_face().AutoImageProcessor.from_pretrained(folder, local_files_only=True), who
        )
    return image_settings(known, options, who)


def _processor_settings(processor: Any, who: str) -> dict[str, Any]:
    said = processor.to_dict()
    steps = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
    odd = sorted(key for key, value in said.items() if key.startswith("do_") and value and key not in steps)
    if odd:
        raise ConfigError(f"model: pictures of {who} need {', '.join(odd)}, which is not supported")
    if said.get("do_rescale", True) and abs(float(said.get("rescale_factor", UNIT)) - UNIT) > 1e-6:
        raise ConfigError(f"model: pictures of {who} are scaled by {said['rescale_factor']}, expected 1/255")
    if not said.get("do_rescale", True):
        raise ConfigError(f"model: pictures of {who} are in [0, 255], which is not supported")
    normalised = said.get("do_normalize", True)
    known: dict[str, Any] = {
        "mean": said.get("image_mean") if normalised else [0.0] * 3,
        "std": said.get("image_std") if normalised else [1.0] * 3,
        "interpolation": PILLOW_FILTERS.get(int(said.get("resample", 2)), "unknown"),
    }
    size, crop = _sides(said.get("size")), _sides(said.get("crop_size")) if said.get("do_center_crop") else None
    if not said.get("do_resize", True):
        return known | ({"resize": "none"} if crop is None else {"resize": "a cut without resizing"})
    if "shortest_edge" in size and said.get("crop_pct") is not None:
        side = size["shortest_edge"]
        cut = {"resize": "shortest", "scale_to": int(side / said["crop_pct"])} if side < 384 else {"resize": "squash"}
        return known | {"size": (side, side)} | cut
    if "shortest_edge" in size and crop is not None and "height" in crop:
        square = crop["height"] == crop["width"]
        if not square:
            return known | {"size": (crop["height"], crop["width"]), "resize": "a cut that is no square"}
        return known | {
            "size": (crop["height"], crop["width"]),
            "resize": "shortest",
            "scale_to": size["shortest_edge"],
        }
    if "height" in size and crop in (None, size):
        return known | {"size": (size["height"], size["width"]), "resize": "squash"}
    return known | {"resize": f"size {size} and crop {crop}"}


def _sides(size: Any) -> dict[str, int]:
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {key: int(value) for key, value in dict(size or {}).items() if value is not None}


def texts_of(
    folder: Path | None, config: Any, field: Mapping[str, Any] | None, label: str, who: str
) -> tuple[TextContract, bool]:
    """Return how a model's texts are prepared, from its tokenizer, and whether attention is masked.

    Raises:
        ConfigError: there is no tokenizer.
    """
    if folder is None:
        raise ConfigError(f"tokenizer: {who} is made of a config; name the folder of its tokenizer")
    try:
        tokenizer = hugging_face().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"tokenizer: none in {folder}: {str(error).strip().splitlines()[0]}") from error
    inner = getattr(config, "text_config", config)
    context, fixed = (
        _context(folder, tokenizer, inner),
        inner.model_type in PADDED_TEXTS or config.model_type in PADDED_TEXTS,
    )
    pad = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def encode(texts: Texts) -> tuple[Tensor, Tensor]:
        rows = tokenizer(list(texts), truncation=True, max_length=context, padding=False)["input_ids"]
        length = context if fixed else max((len(row) for row in rows), default=1)
        ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
        lengths = torch.tensor([[len(row)] for row in rows])
        return ids, torch.arange(length) < lengths

    return TextContract(encode, context, pad, fixed, field, label), not fixed


def _context(folder: Path, tokenizer: Any, config: Any) -> int:
    """Return the longest text in tokens: what the tokenizer, the positions and a sentence encoder's file allow."""
    limits = [int(tokenizer.model_max_length)]
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        offset = int(config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
        limits.append(int(positions) - offset)
    sentences = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    limits += [int(sentences)] if sentences else []
    limit = min(limits)
    if limit > NO_LIMIT:
        raise ConfigError(f"tokenizer: {folder} does not say how long a text may be (model_max_length)")
    return limit


def sentence_pooling(folder: Path | None) -> str | None:
    """Return how a sentence encoder pools its tokens, if its folder says so.

    Raises:
        ConfigError: in another way than by the first token or the mean.
    """
    said = _json(folder / "1_Pooling" / "config.json") if folder is not None else {}
    modes = sorted(key for key, value in said.items() if key.startswith("pooling_mode_") and value is True)
    if not modes:
        return None
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) > 1 or modes[0] not in names:
        raise ConfigError(f"pool: {folder} pools by {', '.join(modes)}, which is not supported; set 'pool'")
    return names[modes[0]]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
