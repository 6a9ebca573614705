"""One of several texts of a sample, drawn anew in each epoch.

Shapes: B batch, M texts of a sample, L token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from ..errors import DataError
from ..model import Batch
from ..registry import Injected
from .base import TRANSFORMS, ReplayableTransform
from .draws import uniforms

#: Keeps these draws apart from those of other transforms with the same seed.
_DOMAIN = 2**62


@TRANSFORMS.register("draw_text")
class DrawText(ReplayableTransform):
    """Put one of a sample's texts into a text field, drawn from (seed, sample id, view).

    A text field with `choices: M` holds the first text; real and synthetic captions, names and descriptions are drawn
    with equal probability, from as many as the sample has. Validation and tests see the first text.

    Args:
        fields: text fields with `choices`.
        views: number of stored views of a sample; null draws anew in every epoch.
        seed: seed of the draws; not the run's, so that stored views fit runs with other seeds.
        field_info: how the data set describes the fields (the tokenizer's padding), by field name.

    Raises:
        DataError: a field without choices.
    """

    def __init__(
        self,
        fields: list[str] = ["caption"],  # noqa: B006
        views: Annotated[int, Ge(1)] | None = None,
        seed: Annotated[int, Ge(0)] = 0,
        field_info: Injected[Mapping[str, Mapping[str, Any]] | None] = None,
    ) -> None:
        super().__init__(views, seed)
        self.fields, known = list(fields), field_info or {}
        self.padding = {name: int((known.get(name, {}).get("tokenizer") or {}).get("pad_id", 0)) for name in fields}

    def replay(self, batch: Batch, views: Tensor) -> Batch:
        """Return the batch with the texts of the given views `[B]`."""
        drawn = uniforms(self.seed + _DOMAIN, batch["id"], views, len(self.fields))
        seen = dict(batch)
        rows = torch.arange(len(batch["id"]), device=views.device)
        for place, name in enumerate(self.fields):
            choices = batch.get(f"{name}_choices")
            if not isinstance(choices, Tensor) or choices.dim() != 3:
                raise DataError(
                    f"draw_text: field '{name}' has one text a sample; set 'choices' in the data set's field"
                )
            count = (choices[:, :, 0] >= 0).sum(dim=1)
            chosen = choices[rows, torch.minimum((drawn[:, place] * count).long(), count - 1)]
            mask = chosen >= 0
            seen |= {name: chosen.masked_fill(~mask, self.padding[name]), f"{name}_mask": mask}
        return seen

    def identity(self) -> dict[str, Any]:
        """Return fields, padding and seed."""
        return {"kind": "draw_text", "fields": self.fields, "padding": self.padding, "seed": self.seed}
