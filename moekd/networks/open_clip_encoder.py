"""Image towers of open_clip as a part of the project's own networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import ConfigError
from ..registry import Injected
from .base import ENCODERS, Encoder
from .loading import Loading
from .open_clip import OpenClip, architecture_of


@ENCODERS.register("open_clip_encoder")
class OpenClipEncoder(Encoder):
    """The image tower of a model of open_clip with its projection: pictures to embeddings, not normalised.

    The text tower is not kept. Class vectors that the whole model makes of names lie in the same space, so that heads
    can start from them (`fit_head_mix.start_from`).

    Args:
        model, pretrained, revision, options: which model, see `OpenClip`.
        loading: how much of the model is made.

    Raises:
        ConfigError: an unknown model or tag, weights that do not fit, or a tower that gives no vector a picture.
        MissingDependencyError: open_clip_torch is not installed.

    Shape:
        input `[B, 3, H, W]` as the model was trained, output `[B, out_features]`; taps model.transformer.resblocks.0,
        ... of vision transformers.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        pretrained: str | None = None,
        revision: str | None = None,
        options: dict[str, Any] | None = None,
        loading: Injected[Loading] = "weights",
    ) -> None:
        super().__init__()
        whole = OpenClip(model, pretrained=pretrained, revision=revision, options=options, loading=loading)
        self.model, self.pictures = whole.model.visual, vars(whole.settings)
        self.out_features = int(architecture_of(model, revision, options)["embed_dim"])

    def forward(self, x: Tensor) -> Tensor:
        """Return one embedding a picture.

        Raises:
            ConfigError: the tower gives something else.
        """
        found = self.model(x)
        if not isinstance(found, Tensor) or found.ndim != 2:
            raise ConfigError(
                f"open_clip_encoder: this image tower gives {type(found).__name__}, expected one vector a picture; "
                "leave output_tokens out of its vision_cfg"
            )
        return found
