"""What the adapters of outside models share: readers of batch fields, and a classifier on top.

An adapter is a network like every other: it takes batch fields and returns named tensors, `embeddings` by modality
(not normalised), `logits` if it classifies, and a contrastive model's `logit_scale` and `logit_bias` `[B]`. Each of its
towers can be used alone: `embed` takes a field of the batch, `embed_texts` takes texts, and `encode` and `encode_text`
take what the readers make of them, so that they can be traced.

Shapes: B batch, C classes, D width of an embedding.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError, MissingDependencyError, ModelError
from .class_vectors import ClassVectors
from .images import ImageContract
from .texts import TextContract
from .tip_adapter import TipAdapter, TipAdapterOptions
from .zero_shot import ZeroShot, ZeroShotOptions

Fields = Mapping[str, Mapping[str, Any]]
Classifier = Literal["none", "new", "own"]
Output = dict[str, Any]
SUFFIX = ".safetensors"
HUB = "hf-hub:"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def library(module: str, package: str, purpose: str, extra: str = "vision-language") -> ModuleType:
    """Import an optional library.

    Raises:
        MissingDependencyError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(package, extra, purpose) from error


def local_weights(path: str, option: str) -> Path:
    """Return a local file of weights.

    Raises:
        ConfigError: no such file, or a pickled one, which could run code.
    """
    file = Path(path).expanduser()
    if file.suffix != SUFFIX:
        raise ConfigError(
            f"{option}: {file.name} is no {SUFFIX} file; other formats are pickles, which can run code: if you trust "
            f"it, convert it once with 'moekd convert {file.name} {file.stem}{SUFFIX} --allow-pickle'"
        )
    if not file.is_file():
        raise ConfigError(f"{option}: no file {file}")
    return file


def check_revision(name: str, revision: str | None) -> str:
    """Return the commit of a repository on the Hugging Face Hub.

    Raises:
        ConfigError: none is given, or a branch or tag, which can move.
    """
    if revision is None or not _COMMIT.fullmatch(revision):
        raise ConfigError(
            f"revision: '{name}' is no local folder; to take it from the Hugging Face Hub, name the commit (40 hex "
            f"digits) that you trust, found {revision!r}"
        )
    return revision


def hub_folder(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Download the files of a repository on the Hugging Face Hub at a commit, or take them from its cache.

    Raises:
        ConfigError: no commit is named, or the download fails.
    """
    from huggingface_hub import snapshot_download

    commit = check_revision(name, revision)
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model: '{name}' at {commit[:8]} can't be downloaded: {error}") from error


class Adapter(nn.Module):
    """Base of the adapters: one reader for each input, in call order.

    Subclasses set `model` and call `read_fields`; they give `encode_<modality>` for each modality they can read.
    """

    #: Inputs are prepared in float32 and then brought to the type of the weights, whatever that is.
    casts_inputs = True
    model: Any
    zero_shot: ZeroShot | None
    classifier: nn.Module | None
    tip_adapter: TipAdapter | None

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.readers: dict[str, str] = {}
        self.images = nn.ModuleDict()
        self.texts: dict[str, TextContract] = {}
        self.zero_shot = self.classifier = self.tip_adapter = None
        self.logits_only = self.partial = False
        self._prompt_tokens: TextContract | None = None

    def read_fields(
        self,
        fields: Fields | None,
        modalities: Sequence[str],
        image: Callable[[Mapping[str, Any] | None, str], nn.Module],
        text: Callable[[Mapping[str, Any] | None, str], TextContract | nn.Module],
    ) -> None:
        """Make a reader for each input field.

        Args:
            fields: the fields in call order, as the data set describes them; None: one field a modality.
            modalities: what the model can read.
            image: maps a field's description and name to the reader of pictures (or of sounds).
            text: the same for texts; a module reads vectors of texts.

        Raises:
            ConfigError: a field of a modality that the model can't read, or two fields of one modality.
        """
        for name, field in (fields or dict.fromkeys(modalities)).items():
            modality = name if field is None else str(field.get("modality"))
            if modality not in modalities:
                raise ConfigError(
                    f"inputs: field '{name}' is of modality '{modality}', this model reads {' and '.join(modalities)}"
                )
            if modality in self.readers.values():
                raise ConfigError(f"inputs: '{name}' is the second field of modality '{modality}'; leave one")
            self.readers[name] = modality
            made = (text if modality == "text" else image)(field, f"{self.kind} input '{name}'")
            if isinstance(made, TextContract):
                self.texts[name] = made
            else:
                self.images[_key(name)] = made
        self.partial = fields is None

    def forward(self, *inputs: Tensor) -> Output:
        """Return named tensors; see the head of this file.

        Raises:
            ModelError: another number of inputs, or an input that can't be read.
        """
        self.check_count(len(inputs))
        vectors = self.class_vectors()
        embeddings: dict[str, Tensor] = {}
        said: Output = {"embeddings": embeddings}
        for (name, modality), value in zip(self.readers.items(), inputs, strict=False):
            embeddings[modality] = self.embed(name, value)
        first = next(iter(embeddings.values()))
        if self.logits_only:
            return {"logits": first}
        scale, bias = self.scale_and_bias()
        for key, scalar in (("logit_scale", scale), ("logit_bias", bias)):
            if scalar is not None:
                said[key] = scalar.reshape(1).expand(len(first))
        pictured = next((value for modality, value in embeddings.items() if modality != "text"), None)
        seen = first if set(self.readers.values()) == {"text"} else pictured
        one: Tensor | float = 1.0 if scale is None else scale
        if isinstance(self.classifier, ClassVectors) and seen is not None:
            said["logits"] = self.classifier(seen, one)
        elif self.classifier is not None and seen is not None:
            said["logits"] = self.classifier(seen)
        elif vectors is not None and self.zero_shot is not None and seen is not None:
            said["logits"] = self.zero_shot.logits(seen, vectors, one, bias)
        if self.tip_adapter is not None and seen is not None and "logits" in said:
            said["logits"] = said["logits"] + self.tip_adapter(seen)
        return said

    def check_count(self, inputs: int) -> None:
        """Refuse another number of inputs than the model reads.

        Raises:
            ModelError: both numbers.
        """
        if inputs != len(self.readers) and not (self.partial and 0 < inputs < len(self.readers)):
            raise ModelError(
                f"{self.kind} reads {len(self.readers)} inputs ({', '.join(self.readers)}), but got {inputs}"
            )

    def prepare(self, name: str, value: Any) -> Any:
        """Return pictures or sounds of an input field as the model's tower takes them."""
        return self._cast(self.images[_key(name)](value))

    def embed(self, name: str, value: Any) -> Tensor:
        """Return the embedding `[B, D]` of one input field as the batch holds it, whatever the other fields are.

        Args:
            name: the field, one of `readers`.
            value: pictures `[B, 3, H, W]` or sounds `[B, 1, S]` as the data set gives them, texts as bytes or ids
                `[B, N]`, or a list of texts.

        Raises:
            ModelError: a value that can't be read.
        """
        if name in self.texts:
            return self.encode_text(*(self._place(part) for part in self.texts[name](value, self._texts_device())))
        return self.encode(self.readers[name], self.prepare(name, value))

    def _cast(self, prepared: Any) -> Any:
        """Bring floating-point inputs to the type of the weights, after they were prepared in float32."""
        if isinstance(prepared, Mapping):
            return {name: self._cast(value) for name, value in prepared.items()}
        prepared = self._place(prepared)
        return prepared.to(next(self.model.parameters()).dtype) if prepared.is_floating_point() else prepared

    def _place(self, prepared: Tensor) -> Tensor:
        """Bring what was prepared on the device of the batch to weights that are a description alone."""
        return prepared.to("meta") if self.device.type == "meta" else prepared

    def _texts_device(self) -> torch.device:
        """Return where texts become ids: with the weights, unless these are a description alone."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    def encode(self, modality: str, value: Any) -> Tensor:
        """Return the embedding `[B, D]` of prepared pictures or sounds."""
        raise NotImplementedError

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the embedding `[B, D]` of texts."""
        raise NotImplementedError

    def scale_and_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the factor and the bias of a contrastive model's cosines, scalars."""
        return None, None

    def contract(self) -> dict[str, dict[str, Any]]:
        """Return in plain values how each input is prepared, by field."""
        found: dict[str, dict[str, Any]] = {}
        for name, modality in self.readers.items():
            reader: Any = self.texts[name] if name in self.texts else self.reader(name)
            found[name] = {"modality": modality} | (reader.contract() if hasattr(reader, "contract") else {})
        return found

    def check_inputs(self, *inputs: Tensor) -> None:
        """Refuse values that can't be what the data set says; called once, on a sample.

        Raises:
            ModelError: pictures that are not in [0, 1] once the data set's normalisation is undone.
        """
        for name, value in zip(self.readers, inputs, strict=False):
            reader = self.reader(name)
            if isinstance(reader, ImageContract):
                reader.check_range(value)

    @property
    def reads_texts(self) -> bool:
        """Whether `embed_texts` works: a text is among the inputs, or classes are named."""
        return self._text_tokens() is not None

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts `[texts, D]`, such as prompts with the names of classes.

        Raises:
            ModelError: the model reads no text.
        """
        tokens = self._text_tokens()
        if tokens is None:
            raise ModelError(f"{self.kind} reads no text; add a text field to 'inputs', or 'zero_shot'")
        return self.encode_text(*(self._place(part) for part in tokens(list(texts), self._texts_device())))

    def _text_tokens(self) -> TextContract | None:
        return next(iter(self.texts.values()), self._prompt_tokens)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def add_zero_shot(
        self,
        options: ZeroShotOptions | None,
        class_names: Sequence[str] | None,
        tokens: TextContract | None,
        token_width: int | None = None,
    ) -> None:
        """Classify by class names; `token_width` is that of a text tower that takes learned tokens.

        Raises:
            ConfigError: the model has no text tower, or reads nothing but texts.
        """
        self._prompt_tokens = tokens
        if options is None:
            return
        if tokens is None:
            raise ConfigError("zero_shot: this model has no text tower that could read class names")
        if set(self.readers.values()) == {"text"}:
            raise ConfigError("zero_shot: the model reads texts alone; add a field that can be classified to 'inputs'")
        self.zero_shot = ZeroShot(options, class_names, token_width)

    def add_tip_adapter(self, options: TipAdapterOptions | None, num_classes: int, width: Callable[[], int]) -> None:
        """Let labelled pictures vote beside the classifier, which has to be there; see `TipAdapter`.

        Args:
            options: number of entries; None: no such thing.
            num_classes: C.
            width: gives D.

        Raises:
            ConfigError: the model gives no logits that votes could be added to.
        """
        if options is None:
            return
        if self.classifier is None and self.zero_shot is None:
            raise ConfigError("tip_adapter: votes are added to logits, which the model does not give; classify as well")
        if self.seen == "text":
            raise ConfigError(
                "tip_adapter: the model reads texts alone; add a field that can be classified to 'inputs'"
            )
        self.tip_adapter = TipAdapter(options, width(), num_classes)

    @property
    def seen(self) -> str:
        """The modality that logits are about."""
        return next((modality for modality in self.readers.values() if modality != "text"), "text")

    def class_vectors(self) -> Tensor | None:
        """Return the vectors of the classes by their names, `[C, D]` of length 1.

        None without `zero_shot`, and while the text tower trains without `in_training`.
        """
        if self.zero_shot is None:
            return None
        tower = self.training and any(p.requires_grad for p in self.text_parameters())
        context = self.zero_shot.training and any(p.requires_grad for p in self.zero_shot.parameters())
        if tower and not self.zero_shot.options.in_training:
            return None
        return self.zero_shot.class_vectors(self.embed_prompts, tower or context)

    def embed_prompts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of the prompts `[texts, D]`, with their learned tokens where there are any."""
        return self.embed_texts(texts)

    def text_parameters(self) -> Sequence[nn.Parameter]:
        """Return the weights that texts go through."""
        return list(self.model.parameters())

    def reader(self, name: str) -> nn.Module | None:
        """Return what prepares the pictures or sounds of an input field; None for texts."""
        key = _key(name)
        return self.images[key] if key in self.images else None  # noqa: SIM401

    def extra_repr(self) -> str:
        """Say what changes the output and is no weight, since fingerprints read it."""
        return ", ".join(f"{name}: {texts.identity()}" for name, texts in self.texts.items())


def _key(name: str) -> str:
    """Return a field's key in a ModuleDict, which allows no dots."""
    return f"field_{name.replace('.', ':')}"
