"""A classifier made of class names: the text tower of a model reads prompts, and their mean vectors are the classes.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv 2103.00020,
section 3.1.4 (prompt ensembling in embedding space).

Shapes: B batch, C classes, P prompts of a class, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError

PLACE = "{}"
PROMPTS_AT_ONCE = 256


@dataclass(frozen=True)
class ZeroShotOptions:
    """How class names become a classifier.

    Attributes:
        templates: prompts; the class name stands at `{}`. Vectors of several prompts are averaged.
        names: what the classes are called in the prompts, in the order of the data set; None takes the data set's.
        in_training: also give logits while the text tower trains, with gradients through it; costs a pass over all
            prompts a step.
        context: learned tokens in front of each prompt, the same for all classes (CoOp: Zhou et al., "Learning to
            Prompt for Vision-Language Models", IJCV 2022, arXiv 2109.01134, there 4 or 16); 0: none. To tune them
            alone, a stage trains `student.zero_shot` or `teachers.NAME.zero_shot`.
        descriptions: a sentence about each class, in the order of the data set, behind each of its prompts.
    """

    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    names: list[str] | None = None
    in_training: bool = True
    context: int = 0
    descriptions: list[str] | None = None


class ZeroShot(nn.Module):
    """Class vectors, and logits of images against them.

        w_c = unit( mean_p unit(text(prompt_p(name_c))) );    logits = scale * unit(image) @ w + bias

    The vectors are computed at first use and kept in a buffer until weights are loaded or training begins. While the
    text tower or the learned tokens of the prompts train they are computed anew each time.

    Args:
        options: prompts and names.
        class_names: names of the data set's classes.
        token_width: width of the text tower's tokens, for learned ones.

    Raises:
        ConfigError: no class names, another number of names or descriptions, a template without `{}`, or a text tower
            that takes no learned tokens.

    Shape:
        image embeddings `[B, D]`; logits `[B, C]`.
    """

    vectors: Tensor | None

    def __init__(
        self, options: ZeroShotOptions, class_names: Sequence[str] | None, token_width: int | None = None
    ) -> None:
        super().__init__()
        names = list(options.names or class_names or ())
        if not names:
            raise ConfigError("zero_shot.names: the data set's class names are not known here; give them")
        if class_names is not None and len(names) != len(class_names):
            raise ConfigError(
                f"zero_shot.names: expected {len(class_names)} names, one a class of the data set; found {len(names)}"
            )
        wrong = [template for template in options.templates if template.count(PLACE) != 1]
        if wrong or not options.templates:
            raise ConfigError(f"zero_shot.templates: expected prompts with one {PLACE} for the name, found {wrong}")
        about = options.descriptions
        if about is not None and len(about) != len(names):
            raise ConfigError(f"zero_shot.descriptions: expected {len(names)}, one a class; found {len(about)}")
        if options.context < 0 or (options.context and token_width is None):
            raise ConfigError(
                f"zero_shot.context: learned tokens need a text tower of the project's own; found {options.context}"
            )
        self.options, self.names = options, names
        ends = [""] * len(names) if about is None else [f" {sentence}" for sentence in about]
        self.prompts = [
            template.replace(PLACE, name) + end
            for name, end in zip(names, ends, strict=True)
            for template in options.templates
        ]
        self.context = nn.Parameter(torch.randn(options.context, token_width or 0) * 0.02) if options.context else None
        self.register_buffer("vectors", None, persistent=False)

    def class_vectors(self, encode: Callable[[list[str]], Tensor], trains: bool) -> Tensor:
        """Return the class vectors `[C, D]`, each of length 1.

        Args:
            encode: texts -> embeddings `[texts, D]`.
            trains: whether the text tower is being trained, so that the vectors need a gradient and can't be kept.
        """
        if trains:
            return self._vectors(encode(self.prompts))
        if self.vectors is None:
            with torch.inference_mode(False), torch.no_grad():
                parts = [
                    encode(self.prompts[i : i + PROMPTS_AT_ONCE]) for i in range(0, len(self.prompts), PROMPTS_AT_ONCE)
                ]
                self.vectors = self._vectors(torch.cat(parts)).clone()
        return self.vectors

    def logits(self, image_BD: Tensor, vectors_CD: Tensor, scale: Tensor | float, bias: Tensor | None) -> Tensor:
        """Return logits `[B, C]`."""
        logits_BC = scale * F.normalize(image_BD, dim=1) @ vectors_CD.T
        return logits_BC if bias is None else logits_BC + bias

    def forget(self) -> None:
        """Compute the class vectors anew at the next use."""
        self.vectors = None

    def _vectors(self, texts: Tensor) -> Tensor:
        per_class_CPD = F.normalize(texts, dim=1).unflatten(0, (len(self.names), -1))
        return F.normalize(per_class_CPD.mean(dim=1), dim=1)

    def train(self, mode: bool = True) -> ZeroShot:
        """Set the mode; training makes the vectors out of date."""
        if mode or self.training:
            self.forget()
        super().train(mode)
        return self

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """Say everything that changes the logits, since fingerprints read it."""
        return f"{len(self.names)} classes, prompts={self.prompts}, context={self.options.context}"


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Run a module without dropout and the like, and set the modes back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
