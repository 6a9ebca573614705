"""Models of transformers from their config alone: with new weights, or as a description of one that is not here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ConfigError
from .loading import Loading
from .transformers_files import folder_of, hugging_face


def folder_for(
    model: str | dict[str, Any], revision: str | None, architecture: dict[str, Any] | None, loading: Loading
) -> Path | None:
    """Return the folder with a model's files; None where it is made of a config.

    Raises:
        ConfigError: a model that is not here shall be described, and its architecture is not given.
    """
    if not isinstance(model, str):
        if architecture is not None:
            raise ConfigError("architecture: 'model' is the architecture already; leave one of them out")
        return None
    if loading == "meta" and not Path(model).expanduser().is_dir():
        if architecture is None:
            raise ConfigError(
                f"architecture: '{model}' is no local folder; to check it without a download, say what it is, such as "
                "{model_type: siglip, vision_config: {image_size: 256}}"
            )
        return None
    return folder_of(model, revision)


def from_config(auto: str, source: str | dict[str, Any] | Path) -> Any:
    """Return a model with new weights.

    Args:
        auto: name of the class in transformers.
        source: `model_type` and its options, or a folder with a config.

    Raises:
        ConfigError: an unknown model type or option.
    """
    if not isinstance(source, Path) and (not isinstance(source, dict) or "model_type" not in source):
        raise ConfigError("model: the config of a model needs 'model_type'")
    who = source.name if isinstance(source, Path) else repr(source["model_type"])
    library = hugging_face()
    try:
        if isinstance(source, Path):
            config = library.AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        else:
            config = library.AutoConfig.for_model(**source)
        network: nn.Module = getattr(library, auto).from_config(config, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ConfigError(f"model: transformers can't make {who}: {error}") from error
    return network


def check_architecture(config: Any, wanted: Mapping[str, Any], who: str) -> None:
    """Compare what a config file says about a model with what its files say.

    Raises:
        ConfigError: they differ; the message lists where.
    """
    if differences := list(_differences(config, wanted, "architecture")):
        raise ConfigError([f"{line} in {who}" for line in differences])


def _differences(config: Any, wanted: Mapping[str, Any], where: str) -> list[str]:
    found = []
    for key, value in wanted.items():
        own = getattr(config, key, None)
        if isinstance(value, Mapping) and own is not None:
            found += _differences(own, value, f"{where}.{key}")
        elif own != value and not (isinstance(own, tuple) and list(own) == value):
            found.append(f"{where}.{key}: {value!r} here, {own!r}")
    return found


def extractor_of(folder: Path | None, config: Any, who: str) -> Any:
    """Return the feature extractor of an audio model: that of its folder, or the usual one of its type.

    Raises:
        ConfigError: there is none.
    """
    library = hugging_face()
    if folder is not None:
        return library.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    names = library.models.auto.feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES
    name = names.get(config.model_type)
    if name is None:
        raise ConfigError(f"model: {who} is made of a config, which does not say what it hears; give a folder")
    options: dict[str, Any] = {}
    if config.model_type == "whisper":
        options = {"feature_size": config.num_mel_bins, "chunk_length": config.max_source_positions // 50}
    elif config.model_type == "audio-spectrogram-transformer":
        options = {"num_mel_bins": config.num_mel_bins, "max_length": config.max_length}
    elif config.model_type == "clap" and not config.audio_config.enable_fusion:
        options = {"truncation": "rand_trunc"}
    return getattr(library, name)(**options)


def picture_guess(config: Any) -> dict[str, Any]:
    """Return a preparation of pictures of the right size, for a description of a model whose files are not here."""
    inner = getattr(config, "vision_config", config)
    size = getattr(inner, "image_size", 224)
    return {"size": size if isinstance(size, int) else tuple(size), "mean": [0.5] * 3, "std": [0.5] * 3}
