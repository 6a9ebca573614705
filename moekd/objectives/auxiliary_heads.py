"""Small classifiers that read an activation.

Shapes: B batch, C channels or classes, D features, N tokens, H x W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

Shape = tuple[int, ...]


class RowSafeBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that takes the running statistics where a batch has one value a channel or none."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise `[B, C, H, W]`."""
        if self.training and x_BCHW.numel() <= x_BCHW.shape[1]:
            return F.batch_norm(
                x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(x_BCHW)


class RowSafeBatchNorm1d(nn.BatchNorm1d):
    """The same for vectors `[B, D]`."""

    def forward(self, x_BD: Tensor) -> Tensor:
        """Normalise `[B, D]`."""
        if self.training and x_BD.shape[0] < 2:
            return F.batch_norm(
                x_BD, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(x_BD)


def separable_conv(width: int, target: int) -> nn.Sequential:
    """Return two depthwise-separable convolutions 3 x 3, the first of which halves the resolution, each with batch
    normalisation and ReLU.
    """
    layers: list[nn.Module] = []
    for stride, out in ((2, width), (1, target)):
        layers += [
            nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False),
            nn.Conv2d(width, out, 1, bias=False),
            RowSafeBatchNorm2d(out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def make_auxiliary_head(shape: Shape, num_classes: int) -> nn.Module:
    """Return a classifier over an activation (the branches of OFA-KD, arXiv 2310.19444).

    Maps: separable convolutions to 2 C and then 2 `num_classes` channels, mean over the pixels, linear. Vectors and the
    mean of tokens: two linear layers with a ReLU and 2 `num_classes` units in between. Convolutions start with He's
    initialisation, linear layers with a truncated normal of deviation 0.02.

    Args:
        shape: `[D]`, `[N, D]` or `[C, H, W]`, without the batch axis.
        num_classes: number of classes.

    Raises:
        ConfigError: another shape.
    """
    if len(shape) == 3:
        convolutions = [*separable_conv(shape[0], 2 * shape[0]), *separable_conv(2 * shape[0], 2 * num_classes)]
        layers = [*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * num_classes, num_classes)]
    elif len(shape) in (1, 2):
        layers = [nn.Linear(shape[-1], 2 * num_classes), nn.ReLU(), nn.Linear(2 * num_classes, num_classes)]
        layers = [MeanOverTokens(), *layers] if len(shape) == 2 else layers
    else:
        raise ConfigError(
            f"no classifier for activations {list(shape)}; tap vectors [D], tokens [N, D] or maps [C, H, W]"
        )
    head = nn.Sequential(*layers)
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return head


def make_proxy(shape: Shape, num_classes: int) -> nn.Module:
    """Return a proxy of C2KD: linear, batch normalisation, leaky ReLU (0.1), linear; for maps behind the mean over the
    pixels, for tokens behind the mean over them.

    Args:
        shape: `[D]`, `[N, D]` or `[C, H, W]`, without the batch axis.
        num_classes: number of classes.

    Raises:
        ConfigError: another shape.
    """
    if len(shape) not in (1, 2, 3):
        raise ConfigError(f"no proxy for activations {list(shape)}; tap vectors [D], tokens [N, D] or maps [C, H, W]")
    width = shape[-1] if len(shape) < 3 else shape[0]
    entry: list[nn.Module] = [MeanOverTokens()] if len(shape) == 2 else []
    entry += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if len(shape) == 3 else []
    norm = RowSafeBatchNorm1d(width)
    return nn.Sequential(*entry, nn.Linear(width, width), norm, nn.LeakyReLU(0.1), nn.Linear(width, num_classes))


def make_dense_proxy(shape: Shape, num_classes: int) -> nn.Module:
    """Return a proxy of C2KD for classes of pixels: 1 x 1 convolution, batch normalisation, ReLU, 1 x 1 convolution.

    Args:
        shape: `[C, H, W]`, without the batch axis.
        num_classes: number of classes.

    Raises:
        ConfigError: another shape.
    """
    if len(shape) != 3:
        raise ConfigError(f"no dense proxy for activations {list(shape)}; tap maps [C, H, W]")
    layers: list[nn.Module] = [nn.Conv2d(shape[0], shape[0], 1), RowSafeBatchNorm2d(shape[0]), nn.ReLU()]
    proxy = nn.Sequential(*layers, nn.Conv2d(shape[0], num_classes, 1))
    for layer in proxy:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return proxy


class MeanOverTokens(nn.Module):
    """Mean of `[B, N, D]` over the tokens."""

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return `[B, D]`."""
        return x_BND.mean(dim=1)
