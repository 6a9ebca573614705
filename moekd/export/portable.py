"""The options of a student's network without what only the training machine has: files of first weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..networks.open_clip import OpenClip, architecture_of
from ..networks.timm import Timm

FIRST_WEIGHTS = ("inherit", "pretrained")


def portable_options(network: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options that make the same network elsewhere, where its trained weights are loaded into it.

    First weights are left out. An architecture of open_clip that came from a folder, a file or the Hub is written out;
    so is the preparation of pictures, which would come from there. A tokenizer's folder stays a folder.

    Args:
        network: the student's network.
        options: its options in the config.
    """
    kept = {key: value for key, value in options.items() if key not in FIRST_WEIGHTS}
    tower = kept.get("tower")
    if isinstance(tower, Mapping):
        kept["tower"] = {key: value for key, value in tower.items() if key not in FIRST_WEIGHTS}
    if isinstance(network, OpenClip | Timm):
        kept["image"] = asdict(network.settings) | {"size": list(network.settings.size)}
    if isinstance(network, OpenClip) and getattr(network.tokenizer, "tokenizer", None) is None:
        try:
            config = architecture_of(options["model"], options.get("revision"), options.get("options"))
        except ConfigError:
            return dict(options)
        kept["model"] = {"model_cfg": config, "preprocess_cfg": {}}
        kept = {key: value for key, value in kept.items() if key not in ("revision", "options")}
    return kept
