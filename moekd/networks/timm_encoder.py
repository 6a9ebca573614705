"""Backbones of timm as a part of the project's own networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..registry import Injected
from .base import ENCODERS, Encoder
from .loading import Loading
from .timm import backbone, pictures_of, vectors


@ENCODERS.register("timm_encoder")
class TimmEncoder(Encoder):
    """A backbone of timm without its classifier: pictures to the vector behind its pooling.

    Args:
        model: name of a model, with or without the tag of its weights ("fastvit_mci0.apple_mclip"), or
            "hf-hub:owner/name@commit".
        pretrained: true downloads the weights of the model's tag; a local .safetensors file is loaded instead.
        options: further options of `timm.create_model` (`img_size`, `drop_path_rate`, say).
        loading: how much of the model is made.

    Raises:
        ConfigError: an unknown model or option, or weights that do not fit.
        MissingDependencyError: timm is not installed.

    Shape:
        input `[B, 3, H, W]` as the model was trained, output `[B, out_features]`; taps model.blocks.0, ...
    """

    def __init__(
        self,
        model: str,
        pretrained: bool | str = False,
        options: dict[str, Any] | None = None,
        loading: Injected[Loading] = "weights",
    ) -> None:
        super().__init__()
        extra = dict(options or {})
        made: Any = backbone(model, pretrained, extra | {"num_classes": 0}, loading)
        self.model, self.pictures = made, pictures_of(made, extra.get("img_size"))
        self.out_features = int(getattr(made, "head_hidden_size", None) or made.num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return one vector a picture."""
        return vectors(self.model(x))
