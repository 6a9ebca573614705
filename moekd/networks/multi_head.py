"""Several classifiers on one encoder that learn from different sources, and the mixture of what they say.

Source: "Simple (yet Effective) Semi-supervised Knowledge Distillation from Vision-Language Models via Dual-Head
Optimization", arXiv 2505.07675. Shapes: B batch, C classes, D features, K heads beside the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from ..errors import ConfigError, did_you_mean
from ..registry import Injected
from .adapter import Fields
from .base import NETWORKS, Encoder
from .images import ImageContract, image_settings


def mixed_heads(first: Tensor, others: Sequence[Tensor], alpha: Tensor | float, temperature: Tensor | float) -> Tensor:
    """Return log p, where `p = alpha softmax(first) + (1 - alpha) mean_k softmax(others_k / temperature)`.

    Probabilities are mixed, not logits. A head of weight 0 has no part, also in gradients.

    Shape:
        first: `[B, C]`; others: `[B, C]` each; alpha and temperature: scalars; result: `[B, C]`, float32 at least.
    """
    precision = torch.promote_types(first.dtype, torch.float32)
    parts = [F.log_softmax(first.to(precision), dim=1)]
    parts += [F.log_softmax(other.to(precision) / temperature, dim=1) for other in others]
    stacked = torch.stack(parts)
    share = torch.as_tensor(alpha, dtype=stacked.dtype, device=stacked.device)
    weights = torch.stack([share, *[(1 - share) / len(others)] * len(others)])
    return torch.logsumexp(stacked + weights.log()[:, None, None], dim=0)


@NETWORKS.register("multi_head")
class MultiHead(nn.Module):
    """Linear classifiers that share an encoder: one that learns from labels, and one (or more) from teachers.

    Objectives name the head that they train (`head: labels`, `head: teacher`), so that labels and teachers do not pull
    at the same weights; with several teachers, each may have a head of its own, or all one head through a router. The
    network's logits are the logarithm of the heads' mixed probabilities, `mixed_heads`. `alpha` and `temperature` are
    buffers, which checkpoints hold and stages of the kind `fit_head_mix` choose.

    Args:
        num_classes: C.
        encoder: gives the features.
        heads: names of the heads; the first has the weight `alpha`, the others share the rest equally.
        alpha: weight of the first head.
        temperature: softmax temperature of the other heads in the mixture.
        cosine: the other heads read features of length 1, and their scores are multiplied by `scale`: for students
            that start from a contrastive model, whose teacher gives scaled cosines too.
        scale: see `cosine`.
        fields: what the data set says about the input: pictures are prepared as an encoder with trained weights wants
            them.

    Raises:
        ConfigError: fewer than two heads, or two of one name.

    Shape:
        input as the encoder takes it; `logits` `[B, C]` (log-probabilities) and each head `[B, C]`; taps `encoder`
        `[B, D]`, `heads.labels` and so on.
    """

    alpha: Tensor
    temperature: Tensor

    def __init__(
        self,
        num_classes: Injected[int],
        encoder: Encoder,
        heads: Sequence[str] = ("labels", "teacher"),
        alpha: Annotated[float, Ge(0), Le(1)] = 0.5,
        temperature: Annotated[float, Gt(0)] = 0.5,
        cosine: bool = False,
        scale: Annotated[float, Gt(0)] = 100.0,
        fields: Injected[Fields | None] = None,
    ) -> None:
        super().__init__()
        if len(set(heads)) < max(2, len(heads)) or "logits" in heads:
            raise ConfigError(f"heads: give at least two different names, none of them 'logits'; found {list(heads)}")
        self.encoder, self.cosine, self.scale = encoder, cosine, scale
        self.pictures: ImageContract | None = None
        if encoder.pictures:
            settings = image_settings(encoder.pictures, None, "the encoder of this network")
            field = next((f for f in (fields or {}).values() if f.get("modality") == "image"), None)
            self.pictures = ImageContract(settings, field, "input of multi_head")
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.out_features, num_classes) for name in heads})
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return `logits` and the scores of every head, by name."""
        features = self.encoder(x if self.pictures is None else self.pictures(x))
        named = {name: self._score(number, head, features) for number, (name, head) in enumerate(self.heads.items())}
        return {"logits": self.mixture(named), **named}

    def mixture(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the logarithm of the mixed probabilities of the heads, `[B, C]`."""
        return mixed_heads(*self.split(named), self.alpha, self.temperature)

    def split(self, named: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the scores of the first head and of the others."""
        first, *others = (named[name] for name in self.heads)
        return first, others

    def mix(self, alpha: float, temperature: float) -> None:
        """Set how the heads are mixed."""
        self.alpha.fill_(alpha)
        self.temperature.fill_(temperature)

    def check_start(self, vectors_CD: Tensor, names: Sequence[str] | None = None) -> list[str]:
        """Return the heads that can start from class vectors: those of `names`, by default all.

        Raises:
            ConfigError: no such head, or vectors of another width or number.
        """
        wanted = list(self.heads) if names is None else list(names)
        for name in wanted:
            if name not in self.heads:
                hint = did_you_mean(name, self.heads) or f"; heads: {', '.join(self.heads)}"
                raise ConfigError(f"the student has no head '{name}'{hint}")
            head, found = self.linear(name), list(vectors_CD.shape)
            if found != list(head.weight.shape):
                raise ConfigError(
                    f"a head can't start from class vectors {found}: it has {head.out_features} classes and reads "
                    f"{head.in_features} features; give the student's encoder the width of the class vectors"
                )
        return wanted

    @torch.no_grad()
    def start(self, vectors_CD: Tensor, names: Sequence[str] | None = None) -> None:
        """Start heads from class vectors, as they are, with biases 0 (language-aware initialisation of DHO).

        It is for students whose features are in the space of the vectors, such as those that start from the image tower
        of the same contrastive model; with `cosine` and its `scale` the other heads then begin as its zero-shot logits.

        Args:
            vectors_CD: one a class.
            names: heads that start from them; None: all.

        Raises:
            ConfigError: see `check_start`.
        """
        for name in self.check_start(vectors_CD, names):
            head = self.linear(name)
            head.weight.copy_(vectors_CD)
            head.bias.zero_()

    def linear(self, name: str) -> nn.Linear:
        """Return a head."""
        head = self.heads[name]
        assert isinstance(head, nn.Linear)
        return head

    def _score(self, number: int, head: nn.Module, features: Tensor) -> Tensor:
        scaled = self.cosine and number > 0
        score: Tensor = head(F.normalize(features, dim=1)) * self.scale if scaled else head(features)
        return score
