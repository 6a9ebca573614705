"""A small vision transformer of the project's own, which can inherit the weights of a larger one.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929.

Shapes: B batch, H x W pixels, N patches, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from ..errors import ConfigError
from .base import ENCODERS, Encoder
from .layers import check_dropout, check_input
from .transformer import Activation, make_blocks
from .visual_prompts import VisualPromptOptions, VisualPrompts

Positive = Annotated[int, Ge(1)]


@ENCODERS.register("vit_encoder")
class VitEncoder(Encoder):
    """Patches, learned positions, pre-norm transformer layers, one vector.

    Args:
        image_size: height and width of the pictures.
        patch_size: side of a patch; divides `image_size`.
        width: D.
        layers: transformer layers.
        heads: attention heads, one number or one for each layer.
        hidden: hidden features of the perceptrons, one number or one for each layer; None: 4 D.
        head_width: features of a head; None: D / heads.
        in_channels: channels of the pictures.
        pool: `cls`: a token of its own; `mean`: the mean of the patches.
        pre_norm: normalise the tokens in front of the first layer too, as CLIP does.
        activation: `gelu`, or `quick_gelu` as in the first CLIP models.
        dropout: probability behind attention and perceptron.
        epsilon: of the normalisations; 1e-6 in models of timm and DINO.
        prompts: learned tokens behind the patches, see `VisualPrompts`; they are no part of the mean. To tune them
            alone, a stage trains `student.model.image.prompts`.

    Raises:
        ConfigError: sizes that do not fit together.

    Shape:
        input `[B, in_channels, image_size, image_size]`, output `[B, D]`; taps patches `[B, D, h, w]`, blocks.0
        `[B, N (+ 1), D]`, ..., norm.
    """

    def __init__(
        self,
        image_size: Positive = 32,
        patch_size: Positive = 4,
        width: Positive = 128,
        layers: Positive = 4,
        heads: int | Sequence[int] = 4,
        hidden: int | Sequence[int] | None = None,
        head_width: int | None = None,
        in_channels: Positive = 3,
        pool: Literal["cls", "mean"] = "mean",
        pre_norm: bool = False,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        epsilon: float = 1e-5,
        prompts: VisualPromptOptions | None = None,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(f"patch_size: expected a divisor of image_size = {image_size}, found {patch_size}")
        self.input_shape, self.pool, self.out_features = (in_channels, image_size, image_size), pool, width
        self.patches = nn.Conv2d(in_channels, width, patch_size, patch_size)
        places = (image_size // patch_size) ** 2 + (pool == "cls")
        self.cls = nn.Parameter(torch.randn(width) / width**0.5) if pool == "cls" else None
        self.positions = nn.Parameter(torch.randn(places, width) / width**0.5)
        self.pre_norm = nn.LayerNorm(width, epsilon) if pre_norm else nn.Identity()
        wide = 4 * width if hidden is None else hidden
        self.blocks = make_blocks(
            width, layers, heads, wide, head_width, activation, check_dropout("dropout", dropout), epsilon
        )
        self.norm = nn.LayerNorm(width, epsilon)
        self.prompts = None if prompts is None else VisualPrompts(prompts, width, layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return one vector a picture.

        Raises:
            ModelError: the picture has another size.
        """
        check_input("vit_encoder input", x, self.input_shape)
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if self.cls is not None:
            tokens = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], dim=1)
        tokens = tokens + self.positions
        places = tokens.shape[1]
        if self.prompts is not None:
            tokens = self.prompts.append(tokens)
        tokens = self.pre_norm(tokens)
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens if self.prompts is None else self.prompts.renew(tokens, layer))
        tokens = self.norm(tokens)[:, :places]
        vector: Tensor = tokens[:, 0] if self.pool == "cls" else tokens.mean(dim=1)
        return vector

    def extra_repr(self) -> str:
        """Say what no weight shows, since fingerprints read it."""
        return f"pool={self.pool}"
