"""The tokenizer of a student, in the files that transformers and the library tokenizers read."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ModelError
from ..networks.adapter import library
from ..networks.open_clip import OpenClip
from ..networks.text_tower import CLIP, ByteContract, Tokens
from ..networks.texts import TextContract

PROBES = ("a red apple", "Two umbrellas, in the rain", "it's 42 o'clock!", "Grün / thé", "x" * 40, "a cat " * 60)
START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(network: nn.Module, folder: Path) -> dict[str, Any] | None:
    """Write the tokenizer of a student that tokenizes texts for itself.

    Returns:
        What its users have to know: "kind" (`transformers`: files are in "folder"; `bytes`: an id is a byte of the
        UTF-8 text and 1, there are no files), "context" (most ids in a row), "padding" ("longest" or "context"),
        "pad_id". None for a student without texts.
    """
    contract = contract_of(network)
    if contract is None:
        return None
    said = {
        "context": contract.context,
        "padding": "context" if contract.fixed else "longest",
        "pad_id": contract.pad_id,
    }
    tokenizer = tokenizer_of(network)
    if tokenizer is None:
        return {"kind": "bytes", **said}
    tokenizer.save_pretrained(folder)
    return {"kind": "transformers", "folder": folder.name, **said}


def tokenizer_of(network: nn.Module) -> Any:
    """Return the tokenizer of a student as a tokenizer of transformers; None if it reads bytes, or no texts.

    Raises:
        ModelError: a tokenizer that transformers does not have.
    """
    contract = contract_of(network)
    if contract is None or isinstance(contract, ByteContract):
        return None
    if isinstance(network, OpenClip):
        inner = getattr(network.tokenizer, "tokenizer", None)
        return inner if inner is not None else clip_tokenizer(network.tokenizer, contract.context)
    tokens = getattr(network, "tokens", None)
    if isinstance(tokens, Tokens) and tokens.name == CLIP:
        open_clip = library("open_clip", "open_clip_torch", "tokenizer 'clip'")
        return clip_tokenizer(open_clip.SimpleTokenizer(context_length=contract.context), contract.context)
    folder = Path(tokens.name).expanduser() if isinstance(tokens, Tokens) else getattr(network, "token_folder", None)
    if folder is None:
        raise ModelError(f"the tokenizer of this student ({type(network).__name__}) has no files")
    transformers = library("transformers", "transformers", "the tokenizer of the student")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer.model_max_length = contract.context
    return tokenizer


def clip_tokenizer(simple: Any, context: int) -> Any:
    """Return open_clip's own byte-pair tokenizer as one of transformers.

    Both give the same ids for ordinary texts; open_clip also mends broken encodings and HTML entities first.

    Raises:
        ModelError: it is set up in a way that the other can't be.
    """
    transformers = library("transformers", "transformers", "the tokenizer of an open_clip student")
    if not hasattr(simple, "bpe_ranks") or getattr(simple, "reduction_fn", None) is not None:
        raise ModelError(f"the tokenizer {type(simple).__name__} of this student has no counterpart in transformers")
    names = {simple.sot_token_id: START, simple.eot_token_id: END}
    vocabulary = {names.get(index, token): index for token, index in simple.encoder.items()}
    tokenizer = transformers.CLIPTokenizer(
        vocab=vocabulary, merges=list(simple.bpe_ranks), model_max_length=context, pad_token=END
    )
    for text in PROBES:
        row = simple([text], context_length=context)[0].tolist()
        expected = row[: row.index(simple.eot_token_id) + 1]
        found = tokenizer(text, truncation=True, max_length=context)["input_ids"]
        if found != expected:
            raise ModelError(
                f"the tokenizer of this student has no counterpart in transformers: {html.escape(text)[:40]!r} is "
                f"{expected[:8]} there and {found[:8]} here"
            )
    return tokenizer


def contract_of(network: nn.Module) -> TextContract | None:
    """Return what makes ids of a student's texts; None if it reads none."""
    texts = getattr(network, "texts", None)
    if isinstance(texts, dict) and texts:
        contract: TextContract = next(iter(texts.values()))
        return contract
    return getattr(network, "_prompt_tokens", None)
