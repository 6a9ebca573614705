"""A small encoder and decoder for dense prediction, for machines without a GPU (after Ronneberger et al., "U-Net:
Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, arXiv 1505.04597).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from ..registry import Injected
from .base import NETWORKS
from .layers import check_dropout, check_input, check_widths


def _block(before: int, after: int) -> nn.Sequential:
    """Return 3 x 3 convolution, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


@NETWORKS.register("small_unet")
class SmallUnet(nn.Module):
    """Classes of all pixels from one or several maps, which are joined at the input.

    The encoder halves the map between blocks; the decoder doubles it (bilinear), adds the encoder's map of that size
    and convolves. Any size of the input will do.

    Args:
        num_classes: number of classes.
        channels: width of the encoder's blocks, from the full size on.
        in_channels: channels of each input, in the order of the model's `inputs`.
        dropout: probability before the last layer.

    Shape:
        inputs `[B, in_channels[i], H, W]`, H and W at least `2 ** (len(channels) - 1)`; output `[B, C, H, W]`; taps
        encoder1 `[B, channels[0], H, W]`, ..., decoder1 `[B, channels[0], H, W]` (the last one before `out`).
    """

    def __init__(
        self,
        num_classes: Injected[int],
        channels: Sequence[int] = (16, 32, 64),
        in_channels: Sequence[int] = (3,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_channels = check_widths("in_channels", in_channels)
        widths = check_widths("channels", channels)
        self.depth = len(widths)
        before = sum(self.in_channels)
        for level, width in enumerate(widths, start=1):
            self.add_module(f"encoder{level}", _block(before, width))
            before = width
        for level in range(self.depth - 1, 0, -1):
            self.add_module(f"lateral{level}", nn.Conv2d(widths[level], widths[level - 1], kernel_size=1))
            self.add_module(f"decoder{level}", _block(widths[level - 1], widths[level - 1]))
        self.dropout = nn.Dropout(check_dropout("dropout", dropout))
        self.out = nn.Conv2d(widths[0], num_classes, kernel_size=1)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits `[B, C, H, W]`.

        Raises:
            ModelError: another number of inputs, or maps that the network can't take.
        """
        if len(inputs) != len(self.in_channels):
            raise ModelError(f"SmallUnet: {len(inputs)} inputs, but in_channels is {list(self.in_channels)}")
        for number, (x, channels) in enumerate(zip(inputs, self.in_channels, strict=True), start=1):
            size = (None, None) if number == 1 else inputs[0].shape[2:]
            check_input(f"SmallUnet input {number}", x, (channels, *size), 2 ** (self.depth - 1))
        x, skipped = torch.cat(inputs, dim=1), []
        for level in range(1, self.depth + 1):
            x = self.get_submodule(f"encoder{level}")(F.max_pool2d(x, 2) if level > 1 else x)
            skipped.append(x)
        for level in range(self.depth - 1, 0, -1):
            skip = skipped[level - 1]
            x = self.get_submodule(f"lateral{level}")(x)
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            if x.shape[0] != skip.shape[0]:
                raise ModelError(
                    f"SmallUnet adds {x.shape[0]} rows to {skip.shape[0]}; where a tap appends rows, repeat the inputs"
                )
            x = self.get_submodule(f"decoder{level}")(x + skip)
        logits: Tensor = self.out(self.dropout(x))
        return logits
