"""A frozen two-tower model with a small trainable adapter for pictures, and classes by prototypes and by texts at once.

Peng et al., "SgVA-CLIP: Semantic-guided Visual Adapting of Vision-Language Models for Few-shot Image Classification",
IEEE Transactions on Multimedia 2023, arXiv 2211.16191. Layers, constants and the absence of a norm behind the
projection are those of the released code.

Shapes: B batch, C classes, E width of the tower, D width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..registry import Injected
from .adapter import Fields, Output
from .base import NETWORKS, Encoder
from .class_vectors import ClassVectorOptions, ClassVectors
from .images import ImageOptions
from .inherit import InheritOptions
from .loading import Loading
from .text_tower import TextOptions
from .two_tower import TwoTower
from .zero_shot import ZeroShotOptions


@dataclass(frozen=True)
class ResidualAdapterOptions:
    """A small network on frozen features.

    Attributes:
        hidden_factor: width of the hidden layer over E; 2 in SgVA-CLIP, which tried 1/2 to 8.
        alpha: first share of the adapter against the features themselves.
        learn_alpha: whether the share is learned; nothing holds it in [0, 1].
    """

    hidden_factor: float = 2.0
    alpha: float = 0.5
    learn_alpha: bool = True


class ResidualAdapter(nn.Module):
    """Mixes features with what two layers make of them:

        a = relu( alpha W2 relu(W1 u) + (1 - alpha) u )

    without biases. The outer ReLU is SgVA-CLIP's; CLIP-Adapter (arXiv 2110.04544) mixes behind the second one.

    Args:
        features: E.
        options: sizes and share.
    """

    def __init__(self, features: int, options: ResidualAdapterOptions) -> None:
        super().__init__()
        hidden = round(options.hidden_factor * features)
        if hidden < 1:
            raise ConfigError(f"adapter.hidden_factor: {options.hidden_factor} of {features} features leaves none")
        self.down = nn.Linear(features, hidden, bias=False)
        self.up = nn.Linear(hidden, features, bias=False)
        share = torch.tensor(float(options.alpha))
        self.alpha = nn.Parameter(share, requires_grad=options.learn_alpha)
        self.learn_alpha = options.learn_alpha

    def forward(self, features_BE: Tensor) -> Tensor:
        """Return `[B, E]`, none below 0."""
        alpha = self.alpha if self.learn_alpha else self.alpha.detach()
        return F.relu(alpha * self.up(F.relu(self.down(features_BE))) + (1 - alpha) * features_BE)


@NETWORKS.register("adapted_two_tower")
class AdaptedTwoTower(TwoTower):
    """A two-tower model that classifies by two scores: adapted pictures against prototypes, and pictures against texts.

        a = unit(adapter(u)),    u the picture in front of the projection
        vision      z^v = g a P^T           P: prototypes, the class means of a (stage `class_vectors`)
        cross_modal z^t = g unit(f) T^T     T: vectors of the classes by their texts, f the embedding of the picture
        adapted     z^s = g (a W + b) T^T   W: the tower's projection
        logits      = w_1 z^v + w_2 z^t

    P are the class vectors at `prototypes`, T those at `classifier`, or with `zero_shot` those of the class names, with
    learned tokens. The three scores are heads, so that losses can name them: `prototype_ce` on the embedding `adapted`
    trains the adapter, and `self_kd` softens it towards the cross-modal score, as in SgVA-CLIP. A stage trains
    `student.adapter` (and `student.zero_shot`); everything else stays frozen.

    Args:
        num_classes: number of classes of the data set.
        tower, text, width, max_scale, zero_shot, image, inherit: see `two_tower`.
        adapter: sizes of the adapter.
        fusion: w_1 and w_2.
        unit: bring the projected adapted picture to length 1 before z^s; the released code does not.
        class_names, fields, loading: see `two_tower`.

    Shape:
        as `two_tower`, with the embedding `adapted` `[B, E]` and the heads `vision`, `cross_modal`, `adapted` `[B, C]`.
    """

    def __init__(
        self,
        tower: Encoder,
        num_classes: Injected[int] = 0,
        text: TextOptions | Literal["vectors"] | None = None,
        width: int | None = None,
        max_scale: float = 100.0,
        zero_shot: ZeroShotOptions | None = None,
        adapter: ResidualAdapterOptions = ResidualAdapterOptions(),
        fusion: tuple[float, float] = (0.5, 0.5),
        unit: bool = False,
        image: ImageOptions | None = None,
        inherit: InheritOptions | None = None,
        class_names: Injected[list[str] | None] = None,
        fields: Injected[Fields | None] = None,
        loading: Injected[Loading] = "weights",
    ) -> None:
        super().__init__(
            num_classes,
            tower=tower,
            text=text,
            width=width,
            max_scale=max_scale,
            zero_shot=zero_shot,
            class_vectors=ClassVectorOptions(projector="none") if zero_shot is None else None,
            image=image,
            inherit=inherit,
            class_names=class_names,
            fields=fields,
            loading=loading,
        )
        self.kind = "adapted_two_tower"
        self.fusion, self.unit = fusion, unit
        self.adapter = ResidualAdapter(tower.out_features, adapter)
        self.prototypes = ClassVectors(ClassVectorOptions(projector="none"), tower.out_features, num_classes)

    def forward(self, *inputs: Tensor) -> Output:
        """Return named tensors, see the class.

        Raises:
            ModelError: no picture among the inputs, or another number of inputs.
        """
        self.check_count(len(inputs))
        embeddings: dict[str, Tensor] = {}
        tokens: Tensor | None = None
        for (name, modality), value in zip(self.readers.items(), inputs, strict=False):
            if modality == "text":
                embeddings[modality] = self.embed(name, value)
            else:
                tokens = self.model.image(self.prepare(name, value))
                embeddings[modality] = self.model.image_projection(tokens)
        if tokens is None:
            raise ModelError(f"{self.kind} classifies pictures; none is among its {len(inputs)} inputs")
        scale, _ = self.scale_and_bias()
        assert scale is not None
        adapted = embeddings["adapted"] = F.normalize(self.adapter(tokens), dim=1)
        said: Output = {"embeddings": embeddings, "logit_scale": scale.reshape(1).expand(len(tokens))}
        vectors = self.text_vectors()
        if vectors is None:  # the text tower trains and gives no logits
            return said
        projected = self.model.image_projection(adapted)
        said["vision"] = self.prototypes(adapted, scale)
        said["cross_modal"] = scale * F.normalize(embeddings["image"], dim=1) @ vectors.T
        said["adapted"] = scale * (F.normalize(projected, dim=1) if self.unit else projected) @ vectors.T
        said["logits"] = self.fusion[0] * said["vision"] + self.fusion[1] * said["cross_modal"]
        return said

    def text_vectors(self) -> Tensor | None:
        """Return T, `[C, D]`; None while a text tower trains that gives no logits then."""
        vectors = self.classifier.vectors if isinstance(self.classifier, ClassVectors) else self.class_vectors()
        return vectors if isinstance(vectors, Tensor) else None

    def extra_repr(self) -> str:
        """Say what no weight shows, since fingerprints read it."""
        return f"{super().extra_repr()}, fusion={self.fusion}, unit={self.unit}"
