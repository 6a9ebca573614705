"""Teachers by a fixed table.

Shapes: B batch, T teacher variants, k chosen ones, S slots of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from ...errors import ConfigError, ModelError
from ...registry import Injected
from .base import SELECTIONS, Choice, Selection
from .common import equal_weights, require_k, require_step

if TYPE_CHECKING:
    from ...step import Step


@SELECTIONS.register("hash")
class Hash(Selection):
    """The same k teachers for a sample in every epoch, by a fixed balanced table; each has the weight 1/k.

    `chosen = table[key mod S]`, after Roller et al., "Hash Layers For Large Sparse Models", NeurIPS 2021, arXiv
    2106.04426. Like `random` it knows nothing of the teachers, but a sample never changes its teachers. The scores are
    not read.

    Args:
        num_teachers: number T of teacher variants.
        k: teachers chosen for an instance, at most the number of teacher variants.
        seed: of the table.
        key: what is looked up: the sample's `id`, or its `label`, so that a class has its teachers. A row without a
            label is looked up by its id.
        blocks: rows of the table over T.
    """

    example: ClassVar[Mapping[str, Any]] = {"gate": {"kind": "uniform"}, "combine": "select", "signal": "none"}

    constant_weights = True
    table: Tensor

    def __init__(
        self,
        num_teachers: Injected[int],
        k: Annotated[int, Ge(1)] = 1,
        seed: int = 0,
        key: Literal["id", "label"] = "id",
        blocks: Annotated[int, Ge(1)] = 64,
    ) -> None:
        super().__init__()
        self.k: int = require_k(k)
        if k > num_teachers:
            raise ConfigError(f"router.selection.k: {k} teachers chosen of {num_teachers}; lower k or add teachers")
        self.key = key
        self.register_buffer("table", balanced_table(num_teachers, blocks, seed))

    def forward(
        self, logits_BT: Tensor, probs_BT: Tensor, step: Step | None = None, mask_B: Tensor | None = None
    ) -> Choice:
        """Return (weights, chosen)."""
        keys_B = self._keys(require_step(step, "hash"), logits_BT.shape[0])
        chosen = self.table[keys_B % self.table.shape[0]][:, : self.k]
        return equal_weights(probs_BT, chosen), chosen

    def _keys(self, step: Step, rows: int) -> Tensor:
        """Return what is looked up, `[rows]`; all tokens or pixels of a sample have its id, each its own label."""
        ids: Tensor = step.batch["id"].repeat_interleave(rows // max(1, len(step.batch["id"])))
        if self.key == "id":
            return ids
        labels: Tensor = step.batch["label"]
        if labels.numel() != rows:
            raise ModelError(
                f"router.selection.key 'label' needs one label a row, found labels {tuple(labels.shape)} for {rows} "
                "rows; use key 'id'"
            )
        labelled = step.batch.get("labelled")
        if labelled is None:
            return labels.flatten()
        return labels.where(labelled.view(-1, *[1] * (labels.dim() - 1)), ids.view(labels.shape)).flatten()


def balanced_table(teachers: int, blocks: int, seed: int) -> Tensor:
    """Return orders of the teachers, `[S = blocks * T, T]`.

    A block is a Latin square: the cyclic shifts of a random order, in random sequence. So any T keys of one block give
    every teacher every rank exactly once, and for each k all teachers are used equally often.
    """
    rng = torch.Generator().manual_seed(seed)
    shifts = (torch.arange(teachers)[:, None] + torch.arange(teachers)) % teachers
    squares = [
        torch.randperm(teachers, generator=rng)[shifts[torch.randperm(teachers, generator=rng)]] for _ in range(blocks)
    ]
    return torch.cat(squares)
