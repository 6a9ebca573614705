"""Tokenizers for text fields: one that needs no files, and those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

from annotated_types import Ge

from ..errors import DataError
from ..registry import Registry

#: Texts that tell tokenizers apart; short, so that they fit into every context.
PROBE = ("Green apple", "a photo of two dogs.", "naïve café, 42%")


class Tokenizer:
    """Text -> token ids.

    Attributes:
        context: longest sequence; the rest of a text is cut.
        vocabulary: number of token ids.
        pad_id: id that fills short sequences.
    """

    context: int
    vocabulary: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, not padded; it may be longer than `context`."""
        raise NotImplementedError

    def recipe(self) -> dict[str, Any]:
        """Return what a model needs to know to read the ids: sizes, and what becomes of a few texts."""
        probe = {text: self.encode(text)[: self.context] for text in PROBE}
        return {"context": self.context, "vocabulary": self.vocabulary, "pad_id": self.pad_id, "probe": probe}

    def identity(self) -> dict[str, Any]:
        """Return what the ids depend on."""
        return {key: repr(value) for key, value in sorted(vars(self).items()) if not key.startswith("_")}


TOKENIZERS: Registry[Tokenizer] = Registry("tokenizer", "tokenizers", base=Tokenizer)


@TOKENIZERS.register("bytes")
class BytesTokenizer(Tokenizer):
    """UTF-8 bytes, or hashed n-grams of them; needs no vocabulary file and knows every text.

    With `ngram=1` the id of a byte is its value + 1 (vocabulary 257). With longer n-grams, the id at each position is a
    hash of the n bytes from there on. Id 0 is padding.

    Args:
        context: longest sequence.
        ngram: bytes a token.
        buckets: number of hash values for `ngram > 1`.
        lower: fold upper case to lower case first.
    """

    def __init__(
        self,
        context: Annotated[int, Ge(1)] = 128,
        ngram: Annotated[int, Ge(1)] = 1,
        buckets: Annotated[int, Ge(1)] = 8192,
        lower: bool = True,
    ) -> None:
        self.context, self.ngram, self.buckets, self.lower = context, ngram, buckets, lower
        self.pad_id = 0
        self.vocabulary = 1 + (256 if ngram == 1 else buckets)

    def recipe(self) -> dict[str, Any]:
        """Return the sizes and, where the text can be read back from the ids, that it can."""
        return super().recipe() | {"bytes": self.ngram == 1, "lower": self.lower}

    def encode(self, text: str) -> list[int]:
        """Return one id a byte position."""
        data = (text.lower() if self.lower else text).encode()
        if self.ngram == 1:
            return [byte + 1 for byte in data[: self.context]]
        last = max(1, len(data) - self.ngram + 1)
        return [1 + crc32(data[i : i + self.ngram]) % self.buckets for i in range(min(last, self.context))]


@TOKENIZERS.register("hub")
class HubTokenizer(Tokenizer):
    """A tokenizer of transformers, from a local folder or the Hugging Face Hub; remote code is never run.

    Args:
        name: folder, or name on the Hub.
        context: longest sequence.
        revision: commit, tag or branch on the Hub.
    """

    def __init__(self, name: str, context: Annotated[int, Ge(1)] = 77, revision: str | None = None) -> None:
        from transformers import AutoTokenizer

        self.name, self.context, self.revision = name, context, revision
        where = str(Path(name)) if Path(name).is_dir() else name
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DataError(f"tokenizer '{name}' can't be loaded: {str(error).splitlines()[0]}") from error
        self.vocabulary = len(self._tokenizer)
        pad = self._tokenizer.pad_token_id
        self.pad_id = 0 if pad is None else int(pad)

    def encode(self, text: str) -> list[int]:
        """Return the ids with the tokenizer's special tokens."""
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self.context)["input_ids"]
        return ids
