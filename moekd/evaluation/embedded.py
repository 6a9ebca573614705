"""What a model said about every row of a split, kept on the CPU: embeddings, predictions, and which rows are the same.

Shapes: N rows of a split, B rows of a batch, D width of an embedding, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed import gather_rows, world_size
from ..errors import DataError, NonFiniteError
from ..model import Batch
from ..signals import Signals

Fields = Mapping[str, Mapping[str, Any]]
_HASHED = 4096


@dataclass(frozen=True)
class Embedded:
    """The rows of a split in the order of their ids; tensors on the CPU.

    Attributes:
        ids: sample ids, int64 `[N]`, each once.
        labels: classes, int64 `[N]` (-1: none); None for data without labels or with dense ones.
        groups: int64 `[N]`: rows of one number show the same thing.
        predicted: class with the largest logit, int64 `[N]`; None for models without a classifier.
        embeddings: float32 `[N, D]` by modality.
        contents: int64 `[N]` by modality: equal numbers stand for equal inputs of this modality.
        scale: mean of the model's `logit_scale`; None for models without one.
    """

    ids: Tensor
    labels: Tensor | None
    groups: Tensor
    predicted: Tensor | None
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    contents: dict[str, Tensor] = field(default_factory=dict)
    scale: float | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def check_finite(self, who: str) -> None:
        """Refuse embeddings that are NaN or infinite.

        Raises:
            NonFiniteError: with the model, the modality and the first sample ids.
        """
        for modality, values_ND in self.embeddings.items():
            bad_N = ~values_ND.isfinite().all(dim=1)
            if bool(bad_N.any()):
                ids = ", ".join(map(str, self.ids[bad_N][:5].tolist()))
                raise NonFiniteError(
                    f"{who}: {int(bad_N.sum())} of {len(self)} embeddings of modality '{modality}' are not finite "
                    f"(sample ids {ids}); the model or its input is broken"
                )


def in_common(first: Embedded, second: Embedded) -> tuple[Tensor, Tensor]:
    """Return where the rows stand that both have, in each; all, unless a row was bad for one of them."""
    if torch.equal(first.ids, second.ids):
        return torch.arange(len(first)), torch.arange(len(second))
    _, left, right = np.intersect1d(first.ids.numpy(), second.ids.numpy(), return_indices=True)
    return torch.from_numpy(left), torch.from_numpy(right)


class Collector:
    """Gathers what a model says, batch by batch.

    Args:
        inputs: batch fields that the model reads.
        fields: how the data set describes its fields; `modality` says which of them belong to an embedding.
        same: batch field of integers; rows with equal values show the same thing. None: every row is its own.
        keep: ids of the rows to keep, None: all.
    """

    def __init__(
        self,
        inputs: Sequence[str] = (),
        fields: Fields | None = None,
        same: str | None = None,
        keep: Iterable[int] | None = None,
    ) -> None:
        self.inputs, self.fields, self.same = tuple(inputs), dict(fields or {}), same
        self.keep = None if keep is None else torch.tensor(sorted(keep), dtype=torch.int64)
        self.parts: dict[str, list[Tensor]] = {}
        self.has_embeddings = False

    def add(self, batch: Batch, signals: Signals) -> None:
        """Add the rows of a batch.

        Raises:
            DataError: the batch lacks the field `same`.
        """
        self.has_embeddings |= bool(signals.embeddings)
        ids: Tensor = batch["id"].detach().cpu().long()
        rows = torch.arange(len(ids)) if self.keep is None else torch.isin(ids, self.keep).nonzero().flatten()
        if not len(rows):
            return
        said = {f"embedding {m}": value.float() for m, value in signals.embeddings.items()}
        label, scale = batch.get("label"), signals.heads.get("logit_scale")
        if signals.logits is not None and signals.logits.ndim == 2:
            said["predicted"] = signals.logits.argmax(dim=1)
        if label is not None and label.ndim == 1:
            said["label"] = label.long()
        if scale is not None:
            said["scale"] = scale.float().flatten()
        if self.same is not None:
            if self.same not in batch:
                raise DataError(f"retrieval.same: there is no field '{self.same}'; fields: {', '.join(batch)}")
            said["group"] = batch[self.same].flatten(1)[:, 0].long() if batch[self.same].ndim > 1 else batch[self.same]
        self._put("id", ids[rows])
        for name, value in said.items():
            self._put(name, value.detach()[rows.to(value.device)].cpu().clone())
        for modality in signals.embeddings:
            self._put(f"content {modality}", self._content(batch, modality, rows))

    def result(self, device: torch.device | str = "cpu") -> Embedded:
        """Return the rows of all processes; every process has to call this.

        Args:
            device: where tensors are for the exchange between processes.

        Raises:
            DataError: no row at all, or none in one of several processes.
        """
        counts = torch.tensor([[sum(map(len, self.parts.get("id", [])))]], device=device)
        if int(gather_rows(counts)[0].min()) < 1:
            where = "" if world_size() == 1 else " in one of the processes: use fewer processes or a larger split"
            raise DataError(f"nothing to measure: the split gave no rows{where}")
        whole = {name: _everywhere(torch.cat(parts), device) for name, parts in self.parts.items()}
        ids, first = np.unique(whole.pop("id").numpy(), return_index=True)
        rows = torch.from_numpy(first)
        whole = {name: value[rows] for name, value in whole.items()}
        named = {
            kind: {k.removeprefix(kind): v for k, v in whole.items() if k.startswith(kind)}
            for kind in ("embedding ", "content ")
        }
        numbers = torch.from_numpy(ids)
        scale = whole.get("scale")
        return Embedded(
            ids=numbers,
            labels=whole.get("label"),
            groups=whole.get("group", numbers),
            predicted=whole.get("predicted"),
            embeddings=named["embedding "],
            contents=named["content "],
            scale=None if scale is None else float(scale.mean()),
        )

    def _put(self, name: str, value: Tensor) -> None:
        self.parts.setdefault(name, []).append(value)

    def _content(self, batch: Batch, modality: str, rows: Tensor) -> Tensor:
        """Return a number for what each row holds of a modality; every row its own where no field is of it."""
        own = [n for n in self.inputs if str(self.fields.get(n, {}).get("modality")) == modality]
        numbers = np.zeros(len(rows), dtype=np.int64)
        if not own:
            return batch["id"].detach().cpu().long()[rows]
        values = [_some(batch[name]).cpu()[rows].contiguous().numpy() for name in own]
        for place in range(len(rows)):
            digest = hashlib.blake2b(b"".join(value[place].tobytes() for value in values), digest_size=8)
            numbers[place] = int.from_bytes(digest.digest(), "little", signed=True)
        return torch.from_numpy(numbers)


def _some(value: Tensor) -> Tensor:
    """Return at most about `_HASHED` values of each row, evenly spaced: enough to tell pictures apart."""
    flat = value.detach().flatten(1)
    return (
        flat[:, :: max(1, flat.shape[1] // _HASHED)].float()
        if flat.dtype == torch.bfloat16
        else flat[:, :: max(1, flat.shape[1] // _HASHED)]
    )


def _everywhere(value: Tensor, device: torch.device | str) -> Tensor:
    """Return the rows of all processes on the CPU."""
    if world_size() == 1:
        return value
    rows, _ = gather_rows(value.to(device).reshape(len(value), -1))
    return rows.reshape(len(rows), *value.shape[1:]).cpu()
