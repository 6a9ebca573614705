"""What an outside text model wants to read: token ids of its own tokenizer, cut and padded as it was trained.

A batch holds a text in one of two ways, as the data set describes it: raw, as UTF-8 bytes (tokenizer `bytes`), which
every model tokenizes for itself; or as ids of one tokenizer, which only models with this tokenizer can read.

Shapes: B batch, N tokens of the data set, L tokens of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ModelError

Texts = Sequence[str]
#: Texts that tell tokenizers apart.
PROBE = ("Green apple", "a photo of two dogs.", "na\u00efve caf\u00e9, 42%")
Encode = Callable[[Texts], tuple[Tensor, Tensor]]


class TextContract:
    """Turns a batch's texts into the ids that a model reads.

    Args:
        encode: texts -> ids int64 `[B, L]` as the model's own tokenizer makes and pads them, and a mask of the tokens.
        context: longest text in tokens.
        pad_id: id that fills short texts.
        fixed: whether every text is padded to `context`.
        field: how the data set describes the field; without it, texts and the model's own ids are taken as they are.
        label: how messages call the input.

    Raises:
        ConfigError: the field holds no text, or ids of another tokenizer.
    """

    def __init__(
        self,
        encode: Encode,
        context: int,
        pad_id: int,
        fixed: bool,
        field: Mapping[str, Any] | None = None,
        label: str = "text",
    ) -> None:
        self.encode, self.context, self.pad_id, self.fixed, self.label = encode, context, pad_id, fixed, label
        ids, mask = encode(["a"])
        self.source: Mapping[str, Any] | None = None
        self._source_pad, self._ends_with_pad = pad_id, bool(ids[0][mask[0]][-1:].eq(pad_id).any())
        if field is not None:
            self.source = self._check(field)

    def __call__(self, value: Tensor | Texts, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return ids int64 `[B, L]` and a mask `[B, L]`, True on tokens.

        Raises:
            ModelError: the value is neither texts nor a batch of ids.
        """
        if isinstance(value, Tensor):
            if value.ndim != 2 or value.is_floating_point() or value.dtype == torch.bool:
                raise ModelError(
                    f"{self.label}: expected texts or integer ids [B, N], found {value.dtype} {list(value.shape)}"
                )
            if self.source is None or not self.source.get("bytes"):
                return self._adopt(value)
            device, value = value.device, _decode(value)
        if isinstance(value, str) or not all(isinstance(text, str) for text in value):
            raise ModelError(f"{self.label}: expected a list of texts, one a row")
        ids, mask = self.encode(list(value))
        return ids.to(device), mask.to(device)

    def identity(self) -> str:
        """Return what the ids depend on, for fingerprints."""
        return f"context={self.context}, pad_id={self.pad_id}, fixed={self.fixed}, source={self.source}"

    def contract(self) -> dict[str, Any]:
        """Return in plain values how texts are prepared; `tokens` tells tokenizers apart by what they make of texts."""
        ids, _ = self.encode(PROBE)
        digest = hashlib.sha256(repr(ids.tolist()).encode()).hexdigest()
        return {"context": self.context, "pad_id": self.pad_id, "fixed": self.fixed, "tokens": digest}

    def _check(self, field: Mapping[str, Any]) -> Mapping[str, Any]:
        source = field.get("tokenizer")
        if source is None or not str(field.get("dtype")).startswith("int"):
            raise ConfigError(
                f"{self.label}: expected a text field whose data set names its tokenizer, found {field.get('dtype')} "
                f"{list(field.get('shape', ()))}; give the raw text as bytes (field kind 'text' with tokenizer "
                "{kind: bytes, lower: false})"
            )
        if source.get("bytes"):
            if source.get("lower") and self._minds_case():
                raise ConfigError(
                    f"{self.label}: the field is folded to lower case, which this model's tokenizer tells apart; "
                    "set tokenizer: {kind: bytes, lower: false}"
                )
            return source
        if int(source["context"]) > self.context:
            raise ConfigError(
                f"{self.label}: the field has up to {source['context']} tokens, the model takes {self.context}; set "
                f"the tokenizer's context to {self.context} in the data set"
            )
        self._compare(source)
        return source

    def _compare(self, source: Mapping[str, Any]) -> None:
        """Compare the ids of a few texts, made by the data set's tokenizer and by the model's own."""
        self._source_pad = int(source["pad_id"])
        probe: Mapping[str, list[int]] = source.get("probe") or {}
        self._ends_with_pad = any(ids[-1:] == [self._source_pad] for ids in probe.values())
        for text, found in probe.items():
            own, mask = self.encode([text])
            if len(found) < int(source["context"]):
                padded = torch.tensor([[*found, *[self._source_pad] * (own.shape[1] - len(found))]])
                adopted, _ = self._adopt(padded) if padded.shape[1] <= self.context else (padded, None)
                if torch.equal(adopted, own):
                    continue
            elif int(source["context"]) < int(mask.sum()):
                continue
            raise ConfigError(
                f"{self.label}: the field's token ids are not this model's: '{text}' is {found[:8]} there and "
                f"{own[0][mask[0]][:8].tolist()} here; use this model's tokenizer in the data set, or give the raw "
                "text (tokenizer {kind: bytes, lower: false})"
            )
        if not probe:
            raise ConfigError(f"{self.label}: the data set does not say what its tokenizer makes of a text")

    def _minds_case(self) -> bool:
        ids, _ = self.encode(["GREEN APPLE", "green apple"])
        return not torch.equal(ids[0], ids[1])

    def _adopt(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Take ids of the model's own tokenizer and give them the model's padding."""
        if ids.shape[1] > self.context:
            raise ModelError(f"{self.label}: {ids.shape[1]} tokens, the model takes {self.context}")
        places = torch.arange(ids.shape[1], device=ids.device)
        lengths = ((ids != self._source_pad) * (places + 1)).amax(dim=1, keepdim=True)
        mask = places < lengths + self._ends_with_pad
        ids = ids.masked_fill(~mask, self.pad_id)
        if self.fixed:
            more = self.context - ids.shape[1]
            ids = F.pad(ids, (0, more), value=self.pad_id)
            mask = F.pad(mask, (0, more), value=False)
        return ids, mask


class UnknownTokens(TextContract):
    """Stands in for a tokenizer whose files are not there, for models that are a description alone: every text becomes
    as many padding tokens as fit.

    Args:
        context: longest text in tokens.
        label: how messages call the input.
    """

    def __init__(self, context: int, label: str = "text") -> None:
        super().__init__(self._blank, context, 0, True, None, label)

    def __call__(self, value: Tensor | Texts, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return ids `[B, context]` of zeros, and a mask that is True everywhere."""
        return self._blank([""] * len(value))

    def _blank(self, texts: Texts) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(len(texts), self.context, dtype=torch.int64)
        return ids, torch.ones_like(ids, dtype=torch.bool)


def _decode(ids: Tensor) -> list[str]:
    """Return the texts of byte ids (a byte is its value + 1, 0 is padding); a character cut in half is dropped."""
    return [bytes(i - 1 for i in row if i > 0).decode("utf-8", errors="ignore") for row in ids.cpu().tolist()]
