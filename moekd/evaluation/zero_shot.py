"""Classification by text: a class is the mean of what the text tower says about it.

Shapes: B batch, C classes, P prompts, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import DataError

#: Prompts for pictures in general.
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")


def prompts(names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[list[str]]:
    """Return the prompts of every class: each template with its name in place of `{}`.

    Raises:
        DataError: no class, no template, or a template without `{}`.
    """
    if not names or not templates:
        raise DataError(f"zero-shot needs classes and templates; found {len(names)} and {len(templates)}")
    if wrong := [template for template in templates if "{}" not in template]:
        raise DataError(f"prompt template {wrong[0]!r} has no place '{{}}' for the name of the class")
    return [[template.replace("{}", name) for template in templates] for name in names]


def class_vectors(
    encode: Callable[[list[str]], Tensor], prompts_by_class: Sequence[Sequence[str]], chunk: int = 256
) -> Tensor:
    """Return one vector a class by prompt ensembling (CLIP, arXiv 2103.00020, section 3.1.4).

    The embeddings of a class's prompts are brought to length 1, averaged, and brought to length 1 again.

    Args:
        encode: maps a list of texts to embeddings `[P, D]`; it has to be in eval mode. It runs without gradients.
        prompts_by_class: texts of every class; classes may have different numbers of them.
        chunk: texts that are encoded at a time.

    Returns:
        `[C, D]`, float32, length 1.

    Raises:
        DataError: a class without a prompt, embeddings that are not finite, or another number of them than of texts.
    """
    texts = [text for own in prompts_by_class for text in own]
    counts = [len(own) for own in prompts_by_class]
    if not counts or not min(counts):
        raise DataError(f"every class needs a prompt; class {counts.index(0) if counts else 0} has none")
    with torch.no_grad():
        parts = [encode(texts[start : start + chunk]) for start in range(0, len(texts), chunk)]
    vectors_PD = torch.cat(parts).float()
    if vectors_PD.dim() != 2 or len(vectors_PD) != len(texts) or not vectors_PD.isfinite().all():
        raise DataError(
            f"the text encoder gave {tuple(vectors_PD.shape)} for {len(texts)} texts; expected finite embeddings "
            f"[{len(texts)}, D]"
        )
    owner_P = torch.repeat_interleave(torch.tensor(counts)).to(vectors_PD.device)
    sums_CD = vectors_PD.new_zeros(len(counts), vectors_PD.shape[1]).index_add_(0, owner_P, unit_rows(vectors_PD))
    return unit_rows(sums_CD / torch.tensor(counts, device=vectors_PD.device)[:, None])


def zero_shot_logits(image_BD: Tensor, class_CD: Tensor, scale: float | Tensor = 100.0) -> Tensor:
    """Return `scale * cos(image, class)`, `[B, C]`.

    Args:
        image_BD: embeddings of images, not normalised.
        class_CD: vectors of the classes, from `class_vectors`.
        scale: the model's `exp(logit_scale)`; it matters for probabilities and the calibration error only.

    Raises:
        DataError: the widths differ.
    """
    if image_BD.shape[-1] != class_CD.shape[-1]:
        raise DataError(
            f"zero-shot: images have embeddings {tuple(image_BD.shape)}, classes {tuple(class_CD.shape)}; both have "
            "to come from one model"
        )
    return scale * unit_rows(image_BD.float()) @ unit_rows(class_CD.float()).T


def unit_rows(values: Tensor) -> Tensor:
    """Return the rows at length 1."""
    return torch.nn.functional.normalize(values, dim=-1, eps=1e-6)
