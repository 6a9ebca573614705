"""The programs that a student is made of: one for most, one a tower for a student that reads texts of its own.

A part takes and gives plain tensors, so that torch.export and ONNX can write it. Pictures go in as the batch field that
the student was trained on (what an adapter does to them is part of the program); texts go in as token ids, sounds as
what the feature extractor of their library makes of them.

Shapes: B batch, N tokens, C classes, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..networks.adapter import Adapter
from ..networks.class_vectors import ClassVectors
from ..networks.sounds import SoundContract
from ..networks.zero_shot import ZeroShot, ZeroShotOptions
from ..signals import Signals

Tensors = dict[str, Tensor]
SCALES = ("logit_scale", "logit_bias")
SAMPLE_TEXTS = ("a red apple", "two umbrellas in the rain, and a very small cat", "a")
WHOLE = "student"
NAMES = (WHOLE, "image_encoder", "text_encoder", "audio_encoder")
ROWS = 3


@dataclass(frozen=True)
class Part:
    """One program of a student.

    Attributes:
        name: one of `NAMES`.
        module: takes the tensors of `examples` in order; gives logits `[B, C]`, or named tensors.
        examples: input name -> a few rows of what it takes.
        free: input name -> axes beside the batch whose size is free: their name and largest size.
    """

    name: str
    module: nn.Module
    examples: Tensors
    free: Mapping[str, Mapping[int, tuple[str, int]]] = field(default_factory=dict)

    @torch.no_grad()
    def run(self, inputs: Iterable[Tensor]) -> Tensors:
        """Return the outputs by name."""
        said = self.module(*inputs)
        return {"logits": said} if isinstance(said, Tensor) else dict(said)


class Whole(nn.Module):
    """Any network, with named tensors instead of Signals or nested ones."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor | Tensors:
        """Return logits, or named tensors."""
        said = self.network(*inputs)
        return said if isinstance(said, Tensor) else flat(said)


class Tower(nn.Module):
    """The tower of an adapter for pictures or sounds, with the classifier that stands on it."""

    def __init__(self, network: Adapter, name: str, features: Sequence[str] = ()) -> None:
        super().__init__()
        self.network, self.modality, self.features = network, network.readers[name], tuple(features)
        self.reader = None if features else network.reader(name)
        self.register_buffer("vectors", None if network.zero_shot is None else class_vectors(network))

    def forward(self, *values: Tensor) -> Tensors:
        """Return the embedding `[B, D]` and, of a student that classifies, logits `[B, C]`."""
        network = self.network
        given = dict(zip(self.features, values, strict=True)) if self.reader is None else self.reader(values[0])
        embedding = network.encode(self.modality, given)
        if network.logits_only:
            return {"logits": embedding}
        said = {f"{self.modality}_embeds": embedding}
        scale, bias = network.scale_and_bias()
        one = torch.ones((), device=embedding.device) if scale is None else scale
        if isinstance(network.classifier, ClassVectors):
            said["logits"] = network.classifier(embedding, one)
        elif network.classifier is not None:
            said["logits"] = network.classifier(embedding)
        elif network.zero_shot is not None and isinstance(self.vectors, Tensor):
            said["logits"] = network.zero_shot.logits(embedding, self.vectors, one, bias)
        if network.tip_adapter is not None and self.modality == network.seen and "logits" in said:
            said["logits"] = said["logits"] + network.tip_adapter(embedding)
        return said


class TextTower(nn.Module):
    """The tower of an adapter for texts: token ids, and the mask where the model reads it."""

    def __init__(self, network: Adapter) -> None:
        super().__init__()
        self.network = network
        self.alone = set(network.readers.values()) == {"text"}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensors:
        """Return the embedding `[B, D]` and, of a student that classifies texts, logits `[B, C]`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embedding = self.network.encode_text(input_ids, mask.bool())
        if self.network.logits_only:
            return {"logits": embedding}
        said = {"text_embeds": embedding}
        if self.alone and self.network.classifier is not None:
            said["logits"] = self.network.classifier(embedding)
        return said


def parts_of(
    network: nn.Module,
    inputs: Sequence[str],
    fields: Mapping[str, Mapping[str, Any]],
    example: Sequence[Tensor] | None = None,
) -> list[Part]:
    """Split a student into programs of plain tensors; the network is put into eval mode.

    Args:
        network: the student's network.
        inputs: batch fields in call order.
        fields: what the data set says about them.
        example: tensors to trace with; by default zeros of the fields' shapes, or sample texts.

    Raises:
        ModelError: the shape of a field is unknown.
    """
    network.eval()
    if not isinstance(network, Adapter) or not (network.texts or _sounds(network) or len(network.readers) > 1):
        values = example_inputs(fields, inputs) if example is None else example
        module = network if _gives_logits(network, values) else Whole(network)
        return [Part(WHOLE, module, dict(zip(inputs, values, strict=True)))]
    parts = [
        _text_tower(network, name) if name in network.texts else _tower(network, name, fields)
        for name in network.readers
    ]
    return [Part(WHOLE, p.module, p.examples, p.free) for p in parts] if len(parts) == 1 else parts


def example_inputs(fields: Mapping[str, Mapping[str, Any]], inputs: Sequence[str]) -> list[Tensor]:
    """Return rows of zeros for each input, from the shapes and types of the batch fields.

    Raises:
        ModelError: a field does not say its shape, or an odd type.
    """
    return [example_input(fields.get(name, {}), name) for name in inputs]


def example_input(known: Mapping[str, Any], name: str) -> Tensor:
    """Return rows of zeros for one input; see `example_inputs`."""
    if "shape" not in known:
        raise ModelError(f"the shape of input '{name}' is unknown; give it in fields.{name}.shape")
    dtype = getattr(torch, str(known.get("dtype", "float32")), None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"fields.{name}.dtype {known['dtype']!r} is no tensor type; use float32 or int64, say")
    return torch.zeros(ROWS, *known["shape"], dtype=dtype)


def flat(said: Any) -> Tensors:
    """Return what a network says as one level of names; a contrastive model's scale and bias are left out.

    Raises:
        ModelError: it is neither Signals nor named tensors.
    """
    if isinstance(said, Signals):
        named: dict[str, Any] = {"logits": said.logits, "embeddings": said.embeddings, **said.heads}
    elif isinstance(said, Mapping):
        named = dict(said)
    else:
        raise ModelError(f"the student returns {type(said).__name__}; expected logits, a dict of tensors or Signals")
    tensors = {f"{modality}_embeds": value for modality, value in (named.pop("embeddings", None) or {}).items()}
    tensors |= {name: value for name, value in named.items() if isinstance(value, Tensor) and name not in SCALES}
    if not tensors:
        raise ModelError("the student returns no tensors that could be exported")
    return tensors


@torch.no_grad()
def class_vectors(network: nn.Module, class_names: Sequence[str] | None = None) -> Tensor | None:
    """Return the zero-shot classifier `[C, D]` of a student with a text tower, each row of length 1.

    Args:
        network: the student's network.
        class_names: classes for a student that has no zero-shot classifier of its own; they stand in the prompt
            "a photo of a {}.".
    """
    if not isinstance(network, Adapter):
        return None
    tokens = getattr(network, "_prompt_tokens", None) or next(iter(network.texts.values()), None)
    zero_shot = network.zero_shot
    if zero_shot is None and class_names and set(network.readers.values()) != {"text"}:
        zero_shot = ZeroShot(ZeroShotOptions(), class_names)
    if zero_shot is None or tokens is None:
        return None
    zero_shot.forget()
    vectors = zero_shot.class_vectors(lambda texts: network.encode_text(*tokens(texts, network.device)), False)
    return vectors.detach().clone()


def scales(network: nn.Module) -> dict[str, float]:
    """Return the factor and the bias of a contrastive student's cosines, as far as it has them."""
    if not isinstance(network, Adapter) or network.logits_only:
        return {}
    found = zip(SCALES, network.scale_and_bias(), strict=True)
    return {name: float(value.detach().reshape(-1)[0]) for name, value in found if value is not None}


def _sounds(network: Adapter) -> bool:
    return any(isinstance(network.reader(name), SoundContract) for name in network.readers)


@torch.no_grad()
def _gives_logits(network: nn.Module, values: Sequence[Tensor]) -> bool:
    try:
        return isinstance(network(*values), Tensor)
    except (RuntimeError, IndexError, ConfigError, ModelError):
        return True


def _tower(network: Adapter, name: str, fields: Mapping[str, Mapping[str, Any]]) -> Part:
    value, reader = example_input(fields.get(name, {}), name), network.reader(name)
    part = f"{network.readers[name]}_encoder"
    if not isinstance(reader, SoundContract):
        return Part(part, Tower(network, name), {name: value})
    features = reader(value)
    return Part(part, Tower(network, name, tuple(features)), features)


def _text_tower(network: Adapter, name: str) -> Part:
    contract = network.texts[name]
    ids, mask = contract(list(SAMPLE_TEXTS))
    examples = {"input_ids": ids}
    if getattr(network, "masked", False):
        examples["attention_mask"] = mask.long()
    free = {} if contract.fixed else {key: {1: ("tokens", contract.context)} for key in examples}
    return Part("text_encoder", TextTower(network), examples, free)
