"""A ladder of heads: the student's embedding and earlier layers together predict a teacher's embedding.

Shapes: B batch, S width of the student, D width of the teacher, N tokens, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..routers import Shapes
from ..signals import Signals
from .embeddings import embedding
from .inputs import tap_shape

#: Taps of the student: a list, or by modality where there are several.
LadderTaps = Sequence[str] | dict[str, list[str]]


class Ladder(nn.Module):
    """The sum of one two-layer head for the embedding and one for each tap (UNIC: Sariyildiz et al., ECCV 2024,
    arXiv 2408.05088, section 3.2):

        prediction = MLP(embedding) + sum_b MLP_b(pool(x_b))

    The tokens of `[B, N, D]` and the pixels of `[B, C, H, W]` are averaged. Gradients reach the early layers without a
    detour, and the last layer need not hold what earlier ones know.

    Args:
        modality: name of the embedding.
        student_dim: S.
        taps: width at each tap of the student.
        dim: D.
        hidden: width of the hidden layers.
    """

    def __init__(self, modality: str, student_dim: int, taps: Mapping[str, int], dim: int, hidden: int) -> None:
        super().__init__()
        self.modality, self.taps = modality, list(taps)
        self.top = mlp(student_dim, hidden, dim)
        self.rungs = nn.ModuleList(mlp(width, hidden, dim) for width in taps.values())

    def forward(self, student: Signals) -> Tensor:
        """Return the prediction `[B, D]`.

        Raises:
            ModelError: the student lacks the embedding or a tap.
        """
        parts = [self.top(_like(embedding(student, self.modality, "ladder (student)"), self.top))]
        for tap, rung in zip(self.taps, self.rungs, strict=True):
            parts.append(rung(_like(_pooled(student.feature(tap, "ladder.taps"), tap), rung)))
        return torch.stack(parts).sum(dim=0)


def mlp(width: int, hidden: int, dim: int) -> nn.Sequential:
    """Return two linear layers with GELU between."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, dim))


def ladder_taps(
    taps: LadderTaps | None, shapes: Shapes | None, modalities: Sequence[str], where: str
) -> dict[str, dict[str, int]]:
    """Return the width at each tap by modality.

    Raises:
        ConfigError: no taps, taps of several modalities in one list, or a tap that the student does not have.
    """
    if not taps:
        raise ConfigError(f"{where}.taps: projection 'ladder' reads taps of the student; name them")
    if not isinstance(taps, dict):
        if len(modalities) > 1:
            raise ConfigError(
                f"{where}.taps: name the taps of each of {', '.join(modalities)}, such as {{image: [...]}}"
            )
        taps = {modalities[0]: list(taps)}
    if wrong := sorted(set(taps) - set(modalities)):
        raise ConfigError(f"{where}.taps: '{wrong[0]}' is none of the modalities {', '.join(modalities)}")
    return {
        modality: {tap: _width(tap_shape(shapes, tap, f"{where}.taps")) for tap in taps.get(modality, ())}
        for modality in modalities
    }


def _width(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) in (1, 3) else shape[-1]


def _pooled(feature: Tensor, tap: str) -> Tensor:
    """Return the activation at a tap as one vector a row."""
    if feature.dim() == 2:
        return feature
    if feature.dim() not in (3, 4):
        raise ModelError(
            f"ladder.taps: '{tap}' gives {tuple(feature.shape)}; expected [B, D], [B, N, D] or [B, C, H, W]"
        )
    return feature.mean(dim=1) if feature.dim() == 3 else feature.mean(dim=(2, 3))


def _like(values: Tensor, head: nn.Module) -> Tensor:
    return values.to(next(head.parameters()).dtype)
