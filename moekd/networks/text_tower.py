"""The text tower of compact students: a small transformer over bytes or over the tokens of a named tokenizer.

Shapes: B batch, N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from .adapter import library
from .layers import check_dropout
from .texts import Encode, TextContract, Texts
from .transformer import Activation, make_blocks

BYTES, CLIP = "bytes", "clip"


@dataclass(frozen=True)
class TextOptions:
    """A text tower.

    Attributes:
        tokenizer: `bytes` (UTF-8, as the tokenizer of the same name), `clip` (the byte pairs of CLIP, which come with
            open_clip), or a folder with a tokenizer of transformers.
        context: longest text in tokens; the rest is cut.
        width: features of a token.
        layers: transformer layers.
        heads: attention heads, one number or one for each layer.
        hidden: hidden features of the perceptrons, one number or one for each layer; None: 4 x `width`.
        head_width: features of a head; None: `width` / `heads`.
        causal: whether a token sees only those in front of it, as in CLIP.
        see_padding: whether tokens see the padding behind a text too, as towers of open_clip do that are not causal
            (MobileCLIP); needs a tokenizer that fills every text up to the context (`clip`).
        pool: the last token (that at the end of the text) or the mean of all.
        activation: `gelu`, or `quick_gelu` as in the first CLIP models.
        dropout: probability behind attention and perceptron.
    """

    tokenizer: str = BYTES
    context: int = 77
    width: int = 128
    layers: int = 2
    heads: int | list[int] = 4
    hidden: int | list[int] | None = None
    head_width: int | None = None
    causal: bool = False
    see_padding: bool = False
    pool: Literal["last", "mean"] = "mean"
    activation: Activation = "gelu"
    dropout: float = 0.0


class TextTower(nn.Module):
    """Token ids to one vector.

    Args:
        options: sizes.
        vocabulary: number of token ids.

    Shape:
        ids int64 `[B, N]` with N <= context, mask bool `[B, N]`, output `[B, D]`; taps blocks.0 `[B, N, D]`, ..., norm.
    """

    def __init__(self, options: TextOptions, vocabulary: int) -> None:
        super().__init__()
        width, self.context = options.width, options.context
        if min(width, options.context) < 1 or options.layers < 0:
            raise ConfigError(f"text: expected a width and a context of at least 1, found {width}, {options.context}")
        if options.see_padding and options.tokenizer != CLIP:
            raise ConfigError(f"text.see_padding: needs the tokenizer 'clip', found '{options.tokenizer}'")
        self.see_padding = options.see_padding
        self.start = int(options.tokenizer != BYTES)  # tokenizers begin a text with a token of their own, bytes do not
        self.causal, self.pool, self.out_features = options.causal, options.pool, width
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(options.context, width) * 0.01)
        nn.init.normal_(self.tokens.weight, std=0.02)
        wide = 4 * width if options.hidden is None else options.hidden
        dropout = check_dropout("text.dropout", options.dropout)
        self.blocks = make_blocks(
            width, options.layers, options.heads, wide, options.head_width, options.activation, dropout
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, mask: Tensor, learned: Tensor | None = None) -> Tensor:
        """Return one vector a text; a text without tokens is one padding token.

        Args:
            ids, mask: the tokens.
            learned: further tokens `[M, D]` in front of each text, behind its start token where there is one.

        Raises:
            ModelError: longer than the context.
        """
        if ids.shape[1] > self.context:
            raise ModelError(f"text tower: {ids.shape[1]} tokens, it takes up to {self.context}")
        tokens = self.tokens(ids)
        if learned is not None:
            tokens, mask = self._insert(tokens, mask, learned)
        places = torch.arange(tokens.shape[1], device=ids.device)
        mask = mask | (places == 0)
        tokens = tokens + self.positions[: tokens.shape[1]]
        allowed = None if self.see_padding else mask[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, allowed, self.causal)
        tokens = self.norm(tokens)
        if self.pool == "mean":
            kept = mask.unsqueeze(2).to(tokens.dtype)
            return (tokens * kept).sum(dim=1) / kept.sum(dim=1)
        last = (mask * places).amax(dim=1)
        vector: Tensor = tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1)
        return vector

    def _insert(self, tokens_BND: Tensor, mask_BN: Tensor, learned_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Put learned tokens in front of the words; padding at the end makes room for them."""
        count, size = len(learned_MD), len(tokens_BND)
        room = self.context - count
        if mask_BN.device.type != "meta" and bool(mask_BN[:, room:].any()):
            longest = int((mask_BN * torch.arange(1, mask_BN.shape[1] + 1, device=mask_BN.device)).max())
            raise ModelError(
                f"text tower: {count} learned tokens and a text of {longest} do not fit in a context of {self.context}"
            )
        new = learned_MD.to(tokens_BND.dtype).expand(size, -1, -1)
        tokens = torch.cat([tokens_BND[:, : self.start], new, tokens_BND[:, self.start : room]], dim=1)
        mask = torch.cat(
            [mask_BN[:, : self.start], mask_BN.new_ones(size, count), mask_BN[:, self.start : room]], dim=1
        )
        return tokens, mask

    def extra_repr(self) -> str:
        """Say what no weight shows, since fingerprints read it."""
        return f"causal={self.causal}, see_padding={self.see_padding}, pool={self.pool}"


class ByteContract(TextContract):
    """Texts as UTF-8 bytes: a byte is its value + 1, 0 is padding. Ids of such a field are read as they are."""

    def __init__(self, context: int, field: Mapping[str, Any] | None, label: str) -> None:
        self.lower = bool(((field or {}).get("tokenizer") or {}).get("lower"))
        super().__init__(self._bytes, context, 0, False, field, label)

    def __call__(self, value: Tensor | Texts, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return ids int64 `[B, L]` and a mask `[B, L]`, True on bytes; see `TextContract`."""
        if isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point():
            ids = value[:, : self.context]
            return ids, ids != 0
        return super().__call__(value, device)

    def _check(self, field: Mapping[str, Any]) -> Mapping[str, Any]:
        source = field.get("tokenizer") or {}
        if not source.get("bytes"):
            raise ConfigError(
                f"{self.label}: expected raw text as bytes (field kind 'text' with tokenizer {{kind: bytes}}), found "
                f"{field.get('dtype')} {list(field.get('shape', ()))}; or name the field's tokenizer in "
                "text.tokenizer, or set 'text: vectors' for text vectors"
            )
        return source

    def _bytes(self, texts: Texts) -> tuple[Tensor, Tensor]:
        rows = [list((text.lower() if self.lower else text).encode()[: self.context]) for text in texts]
        longest = max((len(row) for row in rows), default=0) or 1
        ids = torch.tensor([[*(byte + 1 for byte in row), *[0] * (longest - len(row))] for row in rows])
        ids = ids.reshape(len(rows), longest).long()
        return ids, ids != 0


class Tokens:
    """What a text tower reads: the number of ids, and contracts for fields.

    Args:
        options: tokenizer and context.

    Raises:
        ConfigError: no such tokenizer.
        MissingDependencyError: open_clip is not installed, for `clip`.
    """

    def __init__(self, options: TextOptions) -> None:
        self.context, self.name = options.context, options.tokenizer
        self.encode: Encode | None = None
        self.pad_id, self.fixed = 0, False
        if self.name == BYTES:
            self.vocabulary = 257
        elif self.name == CLIP:
            self.vocabulary, self.fixed = self._clip(), True
        else:
            self.vocabulary = self._folder(Path(self.name).expanduser())

    def contract(self, field: Mapping[str, Any] | None, label: str) -> TextContract:
        """Return the reader of a field."""
        if self.encode is None:
            return ByteContract(self.context, field, label)
        return TextContract(self.encode, self.context, self.pad_id, self.fixed, field, label)

    def _clip(self) -> int:
        open_clip = library("open_clip", "open_clip_torch", "tokenizer 'clip'")
        tokenizer = open_clip.SimpleTokenizer(context_length=self.context)

        def encode(texts: Texts) -> tuple[Tensor, Tensor]:
            ids: Tensor = tokenizer(list(texts))
            places = torch.arange(self.context)
            return ids, places <= ((ids != 0) * places).amax(dim=1, keepdim=True)

        self.encode = encode
        return int(tokenizer.vocab_size)

    def _folder(self, folder: Path) -> int:
        transformers = library("transformers", "transformers", "text.tokenizer")
        if not folder.is_dir():
            raise ConfigError(f"text.tokenizer: expected bytes, clip or a folder with a tokenizer, found '{self.name}'")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"text.tokenizer: none in {folder}: {str(error).strip().splitlines()[0]}") from error
        self.pad_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

        def encode(texts: Texts) -> tuple[Tensor, Tensor]:
            rows: Sequence[Sequence[int]] = tokenizer(
                list(texts), truncation=True, max_length=self.context, padding=False
            )["input_ids"]
            length = max((len(row) for row in rows), default=0) or 1
            ids = torch.tensor([[*row, *[self.pad_id] * (length - len(row))] for row in rows]).reshape(-1, length)
            return ids.long(), torch.arange(length) < torch.tensor([[len(row)] for row in rows])

        self.encode = encode
        return len(tokenizer)
