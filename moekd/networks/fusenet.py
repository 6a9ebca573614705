"""FuseNet: dense prediction from colour and depth (Hazirbas et al., ACCV 2016), as the CMKD benchmark has it for NYU.

VGG-16 encoders with batch normalisation, and decoders that unpool with the places of the encoder's maxima. Block names
are those of the released code (`CBR5_RGB_ENC`, ...), so its checkpoints load. The released code draws all weights anew
with a very small gain, which undoes the pretraining of the encoders; `reinit` does the same, the default leaves
PyTorch's initialisation.

Shapes: B batch, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from ..registry import Injected
from .base import NETWORKS
from .layers import check_dropout, check_input, check_widths

MIN_SIZE = 32
Places = list[tuple[Tensor, list[int]]]


def _block(channels: Sequence[int]) -> nn.Sequential:
    """Return 3x3 convolution, batch normalisation and ReLU for each step of `channels`."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, kernel_size=3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def _encoder_blocks(in_channels: int, w: int) -> list[nn.Sequential]:
    steps = [(in_channels, w, w), (w, 2 * w, 2 * w), (2 * w, *[4 * w] * 3), (4 * w, *[8 * w] * 3), (8 * w,) * 4]
    return [_block(step) for step in steps]


def _decoder_blocks(w: int, num_classes: int) -> list[nn.Sequential]:
    last = _block((w, w)).append(nn.Conv2d(w, num_classes, kernel_size=3, padding=1))
    steps = [(2 * w, 2 * w, w), (*[4 * w] * 3, 2 * w), (*[8 * w] * 3, 4 * w), (8 * w,) * 4]
    return [last, *(_block(step) for step in steps)]


class FuseNet(nn.Module):
    """What the three networks share: numbered blocks, pooling with places, unpooling.

    Args:
        num_classes: width of the logits.
        width: channels of the first block; later blocks have 2, 4, 8 and 8 times as many.
        dropout: probability behind encoder blocks 3 to 5 and decoder blocks 5 to 3.
    """

    def __init__(self, num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        (self.width,) = check_widths("width", [width])
        self.dropout = nn.Dropout(check_dropout("dropout", dropout))

    def add_encoder(self, suffix: str, in_channels: int) -> None:
        """Add `CBR1_<suffix>` to `CBR5_<suffix>` for maps with `in_channels` channels."""
        self._add(suffix, _encoder_blocks(in_channels, self.width))

    def add_decoder(self, suffix: str) -> None:
        """Add `CBR5_<suffix>` to `CBR1_<suffix>`; the last one gives the logits."""
        self._add(suffix, _decoder_blocks(self.width, self.num_classes))

    def _add(self, suffix: str, blocks: Sequence[nn.Module]) -> None:
        for level, block in enumerate(blocks, start=1):
            self.add_module(f"CBR{level}_{suffix}", block)

    def pool(self, x: Tensor, level: int, places: Places) -> Tensor:
        """Halve the map behind encoder block `level`, note where the maxima were, and drop out from level 3 on."""
        pooled, indices = F.max_pool2d(x, 2, return_indices=True)
        places.append((indices, list(x.shape[2:])))
        return self.dropout(pooled) if level >= 3 else pooled

    def encode(self, x: Tensor, suffix: str) -> tuple[Tensor, Places]:
        """Run one encoder alone; return the map `[B, 8 * width, H/32, W/32]` and the places of its maxima."""
        places: Places = []
        for level in range(1, 6):
            x = self.pool(self.get_submodule(f"CBR{level}_{suffix}")(x), level, places)
        return x, places

    def decode(self, x: Tensor, places: Places, suffix: str) -> Tensor:
        """Run a decoder from the smallest map to logits `[B, C, H, W]`.

        Raises:
            ModelError: a tap changed the number of rows, which the noted places can't follow.
        """
        for level in range(5, 0, -1):
            indices, size = places[level - 1]
            if x.shape != indices.shape:
                raise ModelError(
                    f"{type(self).__name__}: block {level} of the decoder gets {list(x.shape)}, but unpools with "
                    f"places of shape {list(indices.shape)}; taps may not append rows here, repeat the inputs instead"
                )
            x = F.max_unpool2d(x, indices, [2, 2], output_size=size)
            x = self.get_submodule(f"CBR{level}_{suffix}")(x)
            x = self.dropout(x) if level >= 3 else x
        return x


def redraw(network: nn.Module) -> None:
    """Initialise as the released code does: convolutions Xavier-normal with gain 0.02, scales N(1, 0.02), biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight, gain=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@NETWORKS.register("fusenet_i")
class FuseNetI(FuseNet):
    """Colour and depth, fused after each encoder block; 44,188,649 parameters with 41 classes and width 64.

    The maps are averaged, `(rgb + depth) / 2`, and pooled in the colour encoder only; the depth encoder
    goes on with its own maps.

    Args:
        num_classes: number of classes.
        width: channels of the first block.
        dropout: probability of the dropout layers.
        reinit: draw the weights as the released code does.

    Shape:
        inputs rgb `[B, 3, H, W]` and depth `[B, 1, H, W]`, H and W at least 32; taps CBR5_RGB_ENC and CBR5_DEPTH_ENC
        `[B, 512, H/16, W/16]`, after_fusion_identity `[B, 512, H/32, W/32]`, CBR5_RGBD_DEC `[B, 512, H/16, W/16]`.
    """

    def __init__(self, num_classes: Injected[int], width: int = 64, dropout: float = 0.4, reinit: bool = False) -> None:
        super().__init__(num_classes, width, dropout)
        self.add_encoder("RGB_ENC", 3)
        self.add_encoder("DEPTH_ENC", 1)
        self.after_fusion_identity = nn.Identity()
        self.add_decoder("RGBD_DEC")
        if reinit:
            redraw(self)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """Return logits `[B, C, H, W]`."""
        check_input("FuseNetI rgb", rgb, (3, None, None), MIN_SIZE)
        check_input("FuseNetI depth", depth, (1, *rgb.shape[2:]))
        places: Places = []
        for level in range(1, 6):
            depth = self.get_submodule(f"CBR{level}_DEPTH_ENC")(depth)
            rgb = self.get_submodule(f"CBR{level}_RGB_ENC")(rgb)
            if rgb.shape != depth.shape:
                raise ModelError(
                    f"FuseNetI fuses {list(rgb.shape)} with {list(depth.shape)} after block {level}; give both inputs "
                    "the same batch, and where a tap appends rows, repeat the inputs instead"
                )
            rgb = self.pool((rgb + depth) / 2, level, places)
            if level < 5:
                depth = F.max_pool2d(depth, 2)
                depth = self.dropout(depth) if level >= 3 else depth
        return self.decode(self.after_fusion_identity(rgb), places, "RGBD_DEC")


@NETWORKS.register("fusenet_rgb_branch")
class FuseNetRgbBranch(FuseNet):
    """Colour alone; 29,466,665 parameters with 41 classes and width 64. Options as for `fusenet_i`.

    Shape:
        input `[B, 3, H, W]`, H and W at least 32; taps CBR5_RGB_ENC and CBR5_RGB_DEC `[B, 512, H/16, W/16]`.
    """

    def __init__(self, num_classes: Injected[int], width: int = 64, dropout: float = 0.4, reinit: bool = False) -> None:
        super().__init__(num_classes, width, dropout)
        self.add_encoder("RGB_ENC", 3)
        self.add_decoder("RGB_DEC")
        if reinit:
            redraw(self)

    def forward(self, rgb: Tensor) -> Tensor:
        """Return logits `[B, C, H, W]`."""
        check_input("FuseNetRgbBranch input", rgb, (3, None, None), MIN_SIZE)
        return self.decode(*self.encode(rgb, "RGB_ENC"), "RGB_DEC")


@NETWORKS.register("fusenet_depth_branch")
class FuseNetDepthBranch(FuseNet):
    """Depth alone; 29,465,513 parameters with 41 classes and width 64. Options as for `fusenet_i`.

    Shape:
        input `[B, 1, H, W]`, H and W at least 32; taps CBR5_DEPTH_ENC and CBR5_D_DEC `[B, 512, H/16, W/16]`.
    """

    def __init__(self, num_classes: Injected[int], width: int = 64, dropout: float = 0.4, reinit: bool = False) -> None:
        super().__init__(num_classes, width, dropout)
        self.add_encoder("DEPTH_ENC", 1)
        self.add_decoder("D_DEC")
        if reinit:
            redraw(self)

    def forward(self, depth: Tensor) -> Tensor:
        """Return logits `[B, C, H, W]`."""
        check_input("FuseNetDepthBranch input", depth, (1, None, None), MIN_SIZE)
        return self.decode(*self.encode(depth, "DEPTH_ENC"), "D_DEC")
