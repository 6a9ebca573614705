"""What the objectives on embeddings share: reading them, scales, and the similarities of a whole batch.

A model gives embeddings when its network returns `Signals(embeddings={"image": [B, D], "text": [B, D]})`, or when its
adapter does. A model with a scale of its own (exp of the learned log-scale of a CLIP) gives it as the head
`logit_scale` `[B]`, the same number in every row; a SigLIP gives its bias as the head `logit_bias` `[B]`.

Shapes: B rows of this process, N rows of all processes, D width of an embedding.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import gather_rows, gather_with_gradients
from ..errors import ConfigError, ModelError, did_you_mean
from ..signals import Signals, full_precision

#: Where a scale comes from: a parameter of the objective, the model's head `logit_scale`, or a number.
ScaleSource = Literal["learned", "model"] | float
Scale = Tensor | float


class Pairs(NamedTuple):
    """Similarities of this process's rows with the rows of all processes, and where the own rows begin.

    Attributes:
        image_to_text: `[B, N]`, cosines.
        text_to_image: `[B, N]`, cosines.
        images, texts: embeddings of length 1 of all processes, `[N, D]`.
        first: index of the first own row among the N.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    images: Tensor
    texts: Tensor
    first: int

    @property
    def targets(self) -> Tensor:
        """Index of each row's own partner, `[B]`."""
        return own_columns(self.image_to_text.shape[0], self.first, self.image_to_text.device)

    @property
    def partners(self) -> Tensor:
        """True where a row meets its own partner, `[B, N]`."""
        return self.targets[:, None] == torch.arange(self.image_to_text.shape[1], device=self.image_to_text.device)


def unit(values_BD: Tensor) -> Tensor:
    """Return the rows at length 1, in float32 or better; rows of (nearly) no length stay near 0."""
    return F.normalize(full_precision(values_BD), dim=-1, eps=1e-6)


def embedding(signals: Signals, modality: str, who: str) -> Tensor:
    """Return an embedding `[B, D]`.

    Raises:
        ModelError: the model gives none of this modality; the message says which it gives.
    """
    if modality not in signals.embeddings:
        known = ", ".join(signals.embeddings) or "none"
        hint = did_you_mean(modality, signals.embeddings) or f"; embeddings: {known}"
        raise ModelError(
            f"{who} needs the embedding '{modality}', which the model does not give{hint}; its network has to return "
            f"Signals(embeddings={{'{modality}': ...}})"
        )
    return signals.embeddings[modality]


def model_scale(signals: Signals, who: str, head: str = "logit_scale") -> Tensor:
    """Return the model's own scale (or bias) as a column `[B, 1]`.

    Raises:
        ModelError: the model gives none.
    """
    if head not in signals.heads:
        raise ModelError(
            f"{who} needs the model's own {head.removeprefix('logit_')}, its head '{head}' [B], which it does not "
            "give; set a number instead"
        )
    return full_precision(signals.heads[head]).reshape(-1, 1)


def similarities(image_BD: Tensor, text_BD: Tensor) -> Pairs:
    """Return the cosines of images with the texts of all processes and the other way round, with gradients to all rows.

    Args:
        image_BD, text_BD: embeddings of the same rows, not normalised.

    Raises:
        ModelError: images and texts have different shapes.
    """
    if image_BD.shape != text_BD.shape or image_BD.dim() != 2:
        raise ModelError(
            f"image embeddings {tuple(image_BD.shape)} and text embeddings {tuple(text_BD.shape)} of one model must "
            "have the same shape [B, D]; add a projection to the model"
        )
    image, text = unit(image_BD), unit(text_BD)
    images, first = everywhere(image)
    texts, _ = everywhere(text)
    return Pairs(product(image, texts.T), product(text, images.T), images, texts, first)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product in the precision of the factors, also where autocast would lower it."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def everywhere(values_BD: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes `[N, D]` and the index of the first own one; constants get no gradient."""
    return gather_with_gradients(values_BD) if values_BD.requires_grad else gather_rows(values_BD)


def own_columns(rows: int, first: int, device: torch.device) -> Tensor:
    """Return the index, among the rows of all processes, of each of this process's rows."""
    return torch.arange(first, first + rows, device=device)


class LogitScale(nn.Module):
    """A positive factor: learned as its logarithm, fixed, or the model's own.

    The learned one starts at `initial` and is held at or below `maximum`: the parameter is put back before each use, so
    that it can fall again (an ordinary clamp would stop its gradient).

    Args:
        source: `learned`, `model` or a number.
        initial: first value of a learned scale; 1 / 0.07 in CLIP (arXiv 2103.00020).
        maximum: largest value of a learned scale; 100 in CLIP.

    Raises:
        ConfigError: a number that is not positive.
    """

    def __init__(self, source: ScaleSource, initial: float = 1 / 0.07, maximum: float = 100.0) -> None:
        super().__init__()
        for name, value in (("initial", initial), ("maximum", maximum), ("scale", source)):
            if not isinstance(value, str) and not 0 < value < math.inf:
                raise ConfigError(f"{name} of a logit scale must be a positive number, found {value}")
        self.source, self.maximum = source, maximum
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial))) if source == "learned" else None

    def forward(self, signals: Signals, who: str) -> Scale:
        """Return the scale for a model's signals: a number, a scalar, or the model's own as a column `[B, 1]`."""
        if self.log_scale is None:
            return model_scale(signals, who) if isinstance(self.source, str) else self.source
        if torch.is_grad_enabled() and self.training:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.maximum))
            return self.log_scale.exp()
        return self.log_scale.clamp(max=math.log(self.maximum)).exp()
