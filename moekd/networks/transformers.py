"""Models of the library transformers: contrastive ones, and encoders of pictures, texts and sounds.

Shapes: B batch, N tokens, C classes, D width of an embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import Injected
from .adapter import Adapter, Classifier, Fields
from .base import NETWORKS
from .images import ImageContract, ImageOptions
from .loading import Loading, on_meta
from .sounds import SoundContract
from .texts import TextContract, UnknownTokens
from .tip_adapter import TipAdapterOptions
from .transformers_architecture import (
    check_architecture,
    extractor_of,
    folder_for,
    from_config,
    picture_guess,
)
from .transformers_files import PADDED_TEXTS, load_model, pictures, sentence_pooling, texts_of
from .zero_shot import ZeroShotOptions, eval_mode

Pool = Literal["auto", "cls", "mean", "pooler"]
MODALITIES = {"pixel_values": "image", "input_ids": "text", "input_values": "audio", "input_features": "audio"}
AUTO_CLASSIFIERS = {
    "image": "AutoModelForImageClassification",
    "text": "AutoModelForSequenceClassification",
    "audio": "AutoModelForAudioClassification",
}


@NETWORKS.register("transformers")
class Transformers(Adapter):
    """A model of transformers as teacher or student.

    Contrastive models (CLIP, SigLIP, CLAP and others with `get_text_features`) read one field of each of their two
    modalities, or one of them; encoders (ViT, DINO, BERT, sentence encoders, AST, the encoder of Whisper) read one.
    Embeddings are as the model gives them. Remote code is never run, weights are read from safetensors files only.

    Args:
        num_classes: number of classes of the data set.
        model: local folder, name on the Hugging Face Hub, or the config of a model with new weights (`model_type` and
            its options).
        revision: commit on the Hub.
        classifier: `none`: embeddings alone; `new`: a new linear layer for the classes of the data set; `own`: the
            checkpoint's own, whose classes must then be the data set's (logits alone, no embeddings).
        pool: how an encoder's tokens become one vector: the first token, the mean of the tokens (of a picture's
            patches), or the model's pooling layer. `auto`: what a sentence encoder's folder says, else the mean for
            texts and sounds; for pictures the pooling layer if the checkpoint has one, else the first token.
        zero_shot: classify by the names of the classes.
        tip_adapter: labelled pictures (or sounds) vote beside the classifier, see `TipAdapter`.
        image: replaces parts of the model's own preparation of pictures.
        tokenizer: folder of the tokenizer, for a model that is made of a config.
        architecture: config of the model (`model_type` and the options that differ from its defaults). With a folder or
            a name it has to be what the files say, and a dry run of a model that is not here can do with it.
        class_names, fields: what the data set says about its classes and the fields in `inputs`.
        loading: how much of the model is made.

    Raises:
        ConfigError: files that are missing or don't fit, or a field that the model can't read.

    Shape:
        inputs image `[B, 3, H, W]`, text `[B, N]`, audio `[B, 1, S]`; embeddings `[B, D]`, logits `[B, C]`,
        logit_scale `[B]`; taps model.encoder.layer.0, ...
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        num_classes: Injected[int] = 0,
        revision: str | None = None,
        classifier: Classifier = "none",
        pool: Pool = "auto",
        zero_shot: ZeroShotOptions | None = None,
        tip_adapter: TipAdapterOptions | None = None,
        image: ImageOptions | None = None,
        tokenizer: str | None = None,
        architecture: dict[str, Any] | None = None,
        class_names: Injected[list[str] | None] = None,
        fields: Injected[Fields | None] = None,
        loading: Injected[Loading] = "weights",
    ) -> None:
        super().__init__("transformers")
        self.who = f"'{model}'" if isinstance(model, str) else f"this {model.get('model_type')}"
        self.described = loading == "meta"
        self.folder = folder_for(model, revision, architecture, loading)
        self.token_folder = Path(tokenizer).expanduser() if tokenizer is not None else self.folder
        self.model = self._load(model if architecture is None else architecture, loading)
        if architecture is not None:
            check_architecture(self.model.config, architecture, self.who)
        self.modalities = _modalities(self.model, self.who)
        self.dual = len(self.modalities) == 2
        if classifier == "own":
            self._load_own(loading)
        self.logits_only = classifier == "own"
        self.masked, self.image = True, image
        self.fallback = "cls" if "image" in self.modalities else "mean"
        self.read_fields(fields, self.modalities, self._reader, self._text)
        self.pool = self._pooling(pool)
        if classifier == "new":
            self.classifier = self._new_classifier(num_classes)
        if zero_shot is not None and not self.dual:
            raise ConfigError("zero_shot: this model has no text tower that could read class names")
        self.add_zero_shot(zero_shot, class_names, self._text(None, "class names") if zero_shot is not None else None)
        self.add_tip_adapter(tip_adapter, num_classes, self._width)

    def encode(self, modality: str, value: Any) -> Tensor:
        """Return the embedding `[B, D]` of pictures or of a sound's features (logits with the `own` classifier)."""
        given = {"pixel_values": value} if isinstance(value, Tensor) else value
        if self.dual:
            return _vector(getattr(self.model, f"get_{modality}_features")(**given))
        return self._encode(given, None)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the embedding `[B, D]` of texts."""
        allowed = mask.long()
        if ids.is_meta:  # the library would look at the numbers of a mask of two axes
            allowed = mask[:, None, None].expand(-1, 1, ids.shape[1], -1)
        given = {"input_ids": ids} | ({"attention_mask": allowed} if self.masked else {})
        if self.dual:
            return _vector(self.model.get_text_features(**given))
        return self._encode(given, mask)

    def scale_and_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """Return exp of a contrastive model's learned log-scale, and its bias."""
        scale = getattr(self.model, "logit_scale", getattr(self.model, "logit_scale_a", None))
        return None if scale is None else scale.exp(), getattr(self.model, "logit_bias", None)

    def text_parameters(self) -> list[nn.Parameter]:
        """Return the weights outside of the towers for pictures and sounds."""
        others = ("vision_model.", "visual_projection.", "audio_model.", "audio_projection.")
        return [p for name, p in self.model.named_parameters() if not name.startswith(others)]

    def _encode(self, given: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        output = self.model(**given)
        if self.logits_only:
            logits: Tensor = output.logits
            return logits
        tokens: Tensor = output.last_hidden_state
        pooled = getattr(output, "pooler_output", None)
        pool = self.pool if self.pool != "auto" else "pooler" if pooled is not None else self.fallback
        if pool == "pooler":
            if pooled is None:
                raise ConfigError(f"pool: {self.who} has no pooling layer; use cls or mean")
            return pooled.flatten(1)
        if tokens.ndim == 4:
            return tokens.mean(dim=(2, 3))
        if pool == "cls":
            return tokens[:, 0]
        if mask is not None:
            kept = mask.unsqueeze(2).to(tokens.dtype)
            return (tokens * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1.0)
        return tokens[:, -self._patches(given, tokens) :].mean(dim=1)

    def _patches(self, given: Mapping[str, Tensor], tokens: Tensor) -> int:
        """Return how many of a picture's tokens are patches; they are the last ones."""
        side = getattr(self.model.config, "patch_size", None)
        if "pixel_values" not in given or not isinstance(side, int):
            return tokens.shape[1]
        height, width = given["pixel_values"].shape[2:]
        return min(tokens.shape[1], (height // side) * (width // side))

    def _load(self, model: str | dict[str, Any], loading: Loading) -> Any:
        if self.folder is not None and loading == "weights":
            whole: Any = load_model("AutoModel", self.folder, self.who)
        else:
            with on_meta(loading):
                whole = from_config("AutoModel", model if self.folder is None else self.folder)
        return whole.get_encoder() if whole.config.is_encoder_decoder else whole

    def _load_own(self, loading: Loading) -> None:
        if self.dual or self.folder is None:
            raise ConfigError("classifier: 'own' needs the checkpoint of an encoder that classifies; use 'new'")
        auto = AUTO_CLASSIFIERS[self.modalities[0]]
        if loading == "weights":
            self.model = load_model(auto, self.folder, self.who)
            return
        with on_meta(loading):
            self.model = from_config(auto, self.folder)

    def _new_classifier(self, num_classes: int) -> nn.Module:
        if num_classes < 1:
            raise ConfigError("classifier: the number of classes is not known here; use 'none' or 'own'")
        layer = nn.Linear(self._width(), num_classes)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
        return layer

    def _width(self) -> int:
        with eval_mode(self), torch.no_grad():
            return self._example().shape[1]

    def _example(self) -> Tensor:
        """Return the embedding of an empty picture, text or sound, to learn its width."""
        name, modality = next(iter(self.readers.items()))
        if modality == "text":
            return self.embed(name, ["a"])
        reader = self.reader(name)
        if isinstance(reader, SoundContract):
            return self.embed(name, torch.zeros(1, min(reader.rate, reader.limit or reader.rate)))
        assert isinstance(reader, ImageContract)
        return self.encode(modality, self._place(torch.zeros(1, 3, *reader.settings.size)))

    def _pooling(self, pool: Pool) -> str:
        """Return how tokens are pooled; `auto` is left for models that may give a pooled vector of their own."""
        if pool != "auto" or self.dual or self.modalities[0] != "text":
            return pool
        return sentence_pooling(self.folder) or "mean"

    def _reader(self, field: Mapping[str, Any] | None, label: str) -> nn.Module:
        modality = "audio" if "audio" in self.modalities else "image"
        if modality == "image":
            guess = picture_guess(self.model.config) if self.described and self.folder is None else {}
            return ImageContract(pictures(self.folder, self.image, self.who, guess), field, label)
        return SoundContract(extractor_of(self.folder, self.model.config, self.who), field, label)

    def _text(self, field: Mapping[str, Any] | None, label: str) -> TextContract:
        if self.described and self.token_folder is None:
            inner = getattr(self.model.config, "text_config", self.model.config)
            self.masked = inner.model_type not in PADDED_TEXTS
            return UnknownTokens(int(inner.max_position_embeddings) - 2, label)
        contract, self.masked = texts_of(self.token_folder, self.model.config, field, label, self.who)
        return contract


def _modalities(model: nn.Module, who: str) -> tuple[str, ...]:
    """Return what a model reads, the modality that is not text first.

    Raises:
        ConfigError: a model of another sort, or pictures of free size and shape.
    """
    other = next((name for name in ("image", "audio") if hasattr(model, f"get_{name}_features")), None)
    if other is not None and hasattr(model, "get_text_features"):
        entry, found = getattr(model, f"get_{other}_features"), [other, "text"]
    else:
        main = str(getattr(model, "main_input_name", None))
        if other is not None or main not in MODALITIES:
            raise ConfigError(f"model: {who} ({type(model).__name__}) is neither an encoder nor a contrastive model")
        entry, found = model.forward, [MODALITIES[main]]
    if "spatial_shapes" in inspect.signature(entry).parameters:
        raise ConfigError(f"model: {who} takes patches of pictures of any shape (NaFlex), which is not supported")
    return tuple(found)


def _vector(output: Any) -> Tensor:
    """Return the embedding, which newer versions of transformers put into an output object."""
    vector: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return vector
