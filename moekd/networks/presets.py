"""Sizes of compact two-tower students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .base import Encoder
from .loading import Loading
from .small_cnn import CnnEncoder
from .text_tower import BYTES, CLIP, TextOptions
from .timm_encoder import TimmEncoder

Preset = Literal["tiny", "s0", "s1", "s2", "b"]


@dataclass(frozen=True)
class Sizes:
    """The parts of a preset.

    Attributes:
        text: the text tower.
        width: D, the width of the embeddings.
        model: image tower, a model of timm.
        channels: image tower, a `cnn_encoder` with these channels, where there is no `model`.
    """

    text: TextOptions
    width: int
    model: str | None = None
    channels: tuple[int, ...] = ()


def _clip_text(layers: int, causal: bool = False) -> TextOptions:
    sees = not causal
    return TextOptions(
        CLIP, context=77, width=512, layers=layers, heads=8, causal=causal, see_padding=sees, pool="last"
    )


#: Image towers of the MobileCLIP family (arXiv 2311.17049) as timm has them, and plain text transformers of its width.
PRESETS: Mapping[str, Sizes] = {
    "tiny": Sizes(TextOptions(BYTES, context=96, width=128, layers=2, heads=4), 128, channels=(24, 48, 96, 192)),
    "s0": Sizes(_clip_text(4), 512, "fastvit_mci0"),
    "s1": Sizes(_clip_text(12), 512, "fastvit_mci1"),
    "s2": Sizes(_clip_text(12), 512, "fastvit_mci2"),
    "b": Sizes(_clip_text(12, causal=True), 512, "vit_base_mci_224"),
}


def preset_tower(sizes: Sizes, loading: Loading) -> Encoder:
    """Return the image tower of a preset, with new weights."""
    if sizes.model is None:
        return CnnEncoder(sizes.channels)
    return TimmEncoder(sizes.model, loading=loading)
