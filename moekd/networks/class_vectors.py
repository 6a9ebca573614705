"""A classifier whose weights are not learned: one vector a class, taken over from a teacher's text tower or from data.

Shapes: B batch, C classes, S width of the student's embedding, D width of the class vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ModelError


@dataclass(frozen=True)
class ClassVectorOptions:
    """A classifier by stored class vectors.

    Attributes:
        width: D, that of the vectors that are to be taken over; None: that of the embedding.
        projector: what brings an embedding to D numbers: `mlp` (two layers with batch normalisation between, as in
            PromptKD), `linear`, or `none` (the widths agree).
        hidden: width of the hidden layer of `mlp`; None: D.
        norm: whether `mlp` has the batch normalisation.
        scale: factor of the cosines: the `model`'s own (exp of its log-scale, 100 in CLIP) or a number.
    """

    width: int | None = None
    projector: Literal["mlp", "linear", "none"] = "mlp"
    hidden: int | None = None
    norm: bool = True
    scale: Literal["model"] | float = "model"


class ClassVectors(nn.Module):
    """Logits by cosines with stored class vectors.

        z = g unit(P(e)) W^T

    W are the vectors of the classes, P the projector. PromptKD (Li et al., CVPR 2024, arXiv 2403.02781): W are the text
    features of the teacher for the names of all classes, P is a 1x1 convolution, batch normalisation, ReLU and a 1x1
    convolution, which for vectors are linear layers; so the student needs no text tower.

    The vectors are a buffer: they are part of checkpoints and of the exported student, and no optimizer moves them.
    Until a stage of the kind `class_vectors` has set them they are random directions.

    Args:
        options: widths, projector and scale.
        in_features: S.
        num_classes: C.

    Raises:
        ConfigError: no projector where the widths differ, or no classes.
    """

    #: `[C, D]`.
    vectors: Tensor

    def __init__(self, options: ClassVectorOptions, in_features: int, num_classes: int) -> None:
        super().__init__()
        width = in_features if options.width is None else options.width
        if num_classes < 1:
            raise ConfigError("class_vectors: the number of classes is not known here")
        if options.projector == "none" and width != in_features:
            raise ConfigError(
                f"class_vectors.projector 'none': the embedding has {in_features} numbers, the class vectors {width}; "
                "use 'mlp' or 'linear'"
            )
        self.scale = options.scale
        self.projector = _projector(options, in_features, width)
        self.register_buffer("vectors", F.normalize(torch.randn(num_classes, width), dim=1))

    def forward(self, embedding_BS: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """Return logits `[B, C]`.

        Args:
            embedding_BS: embeddings, of any length.
            scale: the model's own scale.
        """
        factor = scale if self.scale == "model" else self.scale
        logits: Tensor = factor * F.normalize(self.projector(embedding_BS), dim=1) @ self.vectors.T
        return logits

    @torch.no_grad()
    def adopt(self, vectors_CD: Tensor, unit: bool = True) -> None:
        """Take vectors over.

        Args:
            vectors_CD: one a class.
            unit: bring them to length 1.

        Raises:
            ModelError: another shape.
        """
        if vectors_CD.shape != self.vectors.shape:
            raise ModelError(
                f"class vectors: expected {list(self.vectors.shape)} (classes, width), found {list(vectors_CD.shape)}; "
                "set class_vectors.width of the student"
            )
        vectors = vectors_CD.to(self.vectors)
        self.vectors.copy_(F.normalize(vectors, dim=1) if unit else vectors)

    def extra_repr(self) -> str:
        """Say what no weight shows, since fingerprints read it."""
        return f"scale={self.scale}"


def _projector(options: ClassVectorOptions, in_features: int, width: int) -> nn.Module:
    if options.projector == "none":
        return nn.Identity()
    if options.projector == "linear":
        return nn.Linear(in_features, width)
    hidden = options.hidden or width
    between: list[nn.Module] = [nn.BatchNorm1d(hidden)] if options.norm else []
    return nn.Sequential(nn.Linear(in_features, hidden), *between, nn.ReLU(), nn.Linear(hidden, width))
