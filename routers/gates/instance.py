"""Learned gates that read the student's logits (MST-Distill, arXiv 2507.07015).

Shapes: B batch, T teacher variants, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from ...errors import ModelError
from ...registry import Injected
from .base import GATES, Gate

if TYPE_CHECKING:
    from ...step import Step

Activation = Literal["none", "relu", "gelu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}
#: How MST-Distill uses its gate.
PUBLISHED: dict[str, Any] = {
    "selection": {"kind": "top_k", "k": 1},
    "balance": [{"kind": "kl_to_uniform"}],
    "combine": "select",
    "signal": "aux_only",
}


@GATES.register("instance")
class InstanceGate(Gate):
    """Two linear layers on the student's logits, one routing decision an instance.

    The released code has no activation between the layers, so the gate is one affine map; that is the default here.

    Args:
        num_classes: width C of the student's logits.
        num_teachers: number T of teacher variants.
        hidden_factor: the hidden layer has `hidden_factor * C` units.
        activation: between the layers: `none` (released code), `relu` or `gelu`.
        detach_input: cut the gradient from the router's losses into the student; the published method lets it flow.
    """

    example: ClassVar[Mapping[str, Any]] = PUBLISHED

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        hidden_factor: int = 2,
        activation: Activation = "none",
        detach_input: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden_factor * num_classes
        self.fc1 = nn.Linear(num_classes, hidden)
        self.activation = _ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, num_teachers)
        self.detach_input = detach_input

    def forward(self, step: Step) -> Tensor:
        """Return the scores of the step's instances, `[B, T]`."""
        logits = step.student.require_logits("the instance gate")
        if logits.dim() != 2:
            raise ModelError(
                f"the gate 'instance' needs one prediction an instance, found {tuple(logits.shape)}; use "
                "'dense_instance' for dense logits"
            )
        return self.score(logits.detach() if self.detach_input else logits)

    def score(self, student_logits: Tensor) -> Tensor:
        """Return the scores for student logits `[B, C]`."""
        return self.fc2(self.activation(self.fc1(student_logits)))


@GATES.register("dense_instance")
class DenseInstanceGate(Gate):
    """A small convolutional gate on dense logits `[B, C, H, W]`, one routing decision an image (not a pixel).

    Args:
        num_classes: width C of the student's logits.
        num_teachers: number T of teacher variants.
        hidden_factor: the hidden maps have `hidden_factor * C` channels.
        detach_input: cut the gradient from the router's losses into the student; the published method lets it flow.
    """

    example: ClassVar[Mapping[str, Any]] = PUBLISHED

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        hidden_factor: int = 2,
        detach_input: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden_factor * num_classes
        self.layers = nn.Sequential(
            nn.Conv2d(num_classes, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, groups=hidden),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(hidden, num_teachers),
        )
        self.detach_input = detach_input

    def forward(self, step: Step) -> Tensor:
        """Return the scores of the step's images, `[B, T]`."""
        logits = step.student.require_logits("the dense instance gate")
        if logits.dim() != 4:
            raise ModelError(
                "the gate 'dense_instance' needs dense student logits [batch, classes, height, width], found "
                f"{tuple(logits.shape)}; use 'instance' for one prediction an instance"
            )
        return self.score(logits.detach() if self.detach_input else logits)

    def score(self, student_logits: Tensor) -> Tensor:
        """Return the scores for dense student logits `[B, C, H, W]`."""
        scores: Tensor = self.layers(student_logits)
        return scores
