"""Compact students for pictures and texts: an image tower, a small text transformer, one space for both.

Shapes: B batch, C classes, D width of the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..registry import Injected
from .adapter import Adapter, Fields
from .base import NETWORKS, Encoder
from .class_vectors import ClassVectorOptions, ClassVectors
from .images import ImageContract, ImageOptions, image_settings
from .inherit import InheritOptions
from .inherit_source import take_over
from .layers import check_input
from .loading import Loading, on_meta
from .presets import PRESETS, Preset, preset_tower
from .text_tower import TextOptions, TextTower, Tokens
from .texts import TextContract
from .tip_adapter import TipAdapterOptions
from .zero_shot import ZeroShotOptions


class Towers(nn.Module):
    """The weights of a two-tower model.

    Args:
        image: the image tower.
        text: the text tower; None where texts come as vectors.
        vector_width: width of these vectors; None where there is a text tower or no text.
        width: D; None: that of the text vectors, which then stay as they are.
        sigmoid: whether there is a bias, and the scale begins at 10.
    """

    def __init__(
        self, image: Encoder, text: TextTower | None, vector_width: int | None, width: int | None, sigmoid: bool
    ) -> None:
        super().__init__()
        width = width or vector_width or image.out_features
        self.image, self.text, self.width = image, text, width
        self.image_projection = nn.Linear(image.out_features, width, bias=False)
        nn.init.normal_(self.image_projection.weight, std=image.out_features**-0.5)
        told = text.out_features if text is not None else vector_width
        self.text_projection: nn.Module = nn.Identity()
        if told is not None and (text is not None or told != width):
            self.text_projection = nn.Linear(told, width, bias=False)
            nn.init.normal_(self.text_projection.weight, std=told**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0 if sigmoid else 1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if sigmoid else None


@NETWORKS.register("two_tower")
class TwoTower(Adapter):
    """A compact two-tower student, as the MobileCLIP family (arXiv 2311.17049) is: image and text embeddings of one
    width, a learned scale, and logits by a linear layer or by class names.

    With `text: vectors`, the field of texts holds vectors that a frozen text encoder made, and there is no text tower;
    without a `width` the images then learn the space of these vectors itself. Pictures can be given alone at any time.

    Args:
        num_classes: number of classes of the data set.
        preset: sizes of both towers and D, see `PRESETS`; what is given besides replaces a part.
        tower: the image tower.
        text: the text tower, or `vectors`; None: the preset's.
        width: D; None: the preset's, or that of the text vectors, or of the image tower.
        sigmoid: for sigmoid losses: the scale begins at 10, with a bias that begins at -10 (SigLIP, arXiv 2303.15343);
            else the scale begins at 1 / 0.07.
        max_scale: the scale stays at or below it.
        classifier: `new`: a linear layer on the image's embedding gives logits for the classes of the data set.
        zero_shot: classify by the names of the classes.
        class_vectors: classify by vectors of the classes that a stage takes over from a teacher, see `ClassVectors`.
        tip_adapter: labelled pictures vote beside the classifier, see `TipAdapter`.
        image: replaces parts of the image tower's preparation of pictures; the project's own towers take them in the
            size they have, with mean and std 0.5.
        inherit: take the first weights over from a larger model, see `InheritOptions`.
        class_names, fields: what the data set says about its classes and the fields in `inputs`.
        loading: how much of outside models is made.

    Raises:
        ConfigError: parts that do not fit together, or a field that can't be read.

    Shape:
        inputs image `[B, 3, H, W]` and/or text `[B, N]` or `[B, D']`; embeddings `[B, D]`, logits `[B, C]`, logit_scale
        `[B]`; taps model.image `[B, out_features]`, model.image.blocks.0, model.text.blocks.0, ...
    """

    #: Texts come with a mask of their tokens.
    masked = True

    def __init__(
        self,
        num_classes: Injected[int] = 0,
        preset: Preset | None = None,
        tower: Encoder | None = None,
        text: TextOptions | Literal["vectors"] | None = None,
        width: int | None = None,
        sigmoid: bool = False,
        max_scale: float = 100.0,
        classifier: Literal["none", "new"] = "none",
        zero_shot: ZeroShotOptions | None = None,
        class_vectors: ClassVectorOptions | None = None,
        tip_adapter: TipAdapterOptions | None = None,
        image: ImageOptions | None = None,
        inherit: InheritOptions | None = None,
        class_names: Injected[list[str] | None] = None,
        fields: Injected[Fields | None] = None,
        loading: Injected[Loading] = "weights",
    ) -> None:
        super().__init__("two_tower")
        if preset is not None:
            sizes = PRESETS[preset]
            tower = preset_tower(sizes, loading) if tower is None else tower
            text = sizes.text if text is None else text
            width = sizes.width if width is None and text != "vectors" else width
        if tower is None:
            raise ConfigError("tower: the student needs an image tower; name one, or a 'preset'")
        self.max_scale = max_scale
        self.tokens = Tokens(text) if isinstance(text, TextOptions) else None
        told = _vector_width(fields) if text == "vectors" else None
        with on_meta(loading):
            reader = TextTower(text, self.tokens.vocabulary) if isinstance(text, TextOptions) and self.tokens else None
            self.model = Towers(tower, reader, told, width, sigmoid)
        self.settings = image_settings(_known(tower, fields), image, "this image tower")
        modalities = ("image",) if text is None else ("image", "text")
        self.read_fields(fields, modalities, self._pictures, self._texts if self.tokens else _vectors)
        self.partial = True
        if classifier == "new":
            if num_classes < 1:
                raise ConfigError("classifier: the number of classes is not known here; use 'none'")
            self.classifier = nn.Linear(self.model.width, num_classes)
        if class_vectors is not None:
            self._check_one_classifier(classifier, zero_shot)
            self.classifier = ClassVectors(class_vectors, self.model.width, num_classes)
        prompts = self._texts(None, "class names") if self.tokens else None
        self.add_zero_shot(zero_shot, class_names, prompts, None if reader is None else reader.out_features)
        self.add_tip_adapter(tip_adapter, num_classes, lambda: self.model.width)
        if inherit is not None and loading == "weights":
            take_over(self.model, inherit)

    def encode(self, modality: str, value: Any) -> Tensor:
        """Return the embedding `[B, D]` of prepared pictures, or of text vectors."""
        if modality == "text":
            mapped: Tensor = self.model.text_projection(value)
            return mapped
        embedding: Tensor = self.model.image_projection(self.model.image(value))
        return embedding

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the embedding `[B, D]` of texts."""
        embedding: Tensor = self.model.text_projection(self.model.text(ids, mask))
        return embedding

    def embed_prompts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of the prompts `[texts, D]`, with their learned tokens where there are any."""
        tokens, learned = self._text_tokens(), self.zero_shot.context if self.zero_shot is not None else None
        if tokens is None or learned is None:
            return self.embed_texts(texts)
        ids, mask = (self._place(part) for part in tokens(list(texts), self._texts_device()))
        embedding: Tensor = self.model.text_projection(self.model.text(ids, mask, learned))
        return embedding

    def scale_and_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """Return exp of the learned log-scale, and the bias."""
        top = math.log(self.max_scale)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=top)  # an ordinary clamp would stop its gradient
            return self.model.logit_scale.exp(), self.model.logit_bias
        return self.model.logit_scale.clamp(max=top).exp(), self.model.logit_bias

    def text_parameters(self) -> list[nn.Parameter]:
        """Return the weights that texts go through."""
        return [p for name, p in self.model.named_parameters() if name.startswith("text")]

    def _check_one_classifier(self, classifier: str, zero_shot: ZeroShotOptions | None) -> None:
        if classifier != "none" or zero_shot is not None:
            raise ConfigError("class_vectors: the model has another classifier; leave 'classifier' and 'zero_shot' out")

    def _pictures(self, field: Mapping[str, Any] | None, label: str) -> ImageContract:
        return ImageContract(self.settings, field, label)

    def _texts(self, field: Mapping[str, Any] | None, label: str) -> TextContract:
        assert self.tokens is not None
        return self.tokens.contract(field, label)


class VectorContract(nn.Module):
    """Takes the vectors of texts as they are.

    Args:
        width: of the vectors.
        label: how messages call the input.
    """

    def __init__(self, width: int, label: str) -> None:
        super().__init__()
        self.width, self.label = width, label

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors `[B, width]`.

        Raises:
            ModelError: another shape.
        """
        check_input(self.label, x, (self.width,))
        return x


def _vectors(field: Mapping[str, Any] | None, label: str) -> VectorContract:
    return VectorContract(_width_of(field, label), label)


def _vector_width(fields: Fields | None) -> int:
    """Return the width of the field with text vectors.

    Raises:
        ConfigError: there is no such field.
    """
    for name, field in (fields or {}).items():
        if field.get("modality") == "text":
            return _width_of(field, f"two_tower input '{name}'")
    raise ConfigError("text: 'vectors' needs a field with vectors of texts among the 'inputs'")


def _width_of(field: Mapping[str, Any] | None, label: str) -> int:
    shape, dtype = tuple((field or {}).get("shape", ())), str((field or {}).get("dtype"))
    if len(shape) != 1 or not dtype.startswith("float"):
        raise ConfigError(f"{label}: expected vectors of texts, float32 [D], found {dtype} {list(shape)}")
    return int(shape[0])


def _known(tower: Encoder, fields: Fields | None) -> dict[str, Any]:
    """Return how the tower wants its pictures; the project's own towers take them in the size that they have."""
    if tower.pictures:
        # Whole pictures, as contrastive models see them: the cut that classifiers are tested with would lose the edges.
        return {key: value for key, value in tower.pictures.items() if key != "scale_to"}
    shape = next((f["shape"] for f in (fields or {}).values() if f.get("modality") == "image" and "shape" in f), None)
    size = shape[1:] if shape is not None else getattr(tower, "input_shape", (3, None, None))[1:]
    side = tuple(32 if edge is None else int(edge) for edge in size)
    return {"size": side, "mean": [0.5] * 3, "std": [0.5] * 3, "resize": "none"}
