"""Learned gates of one layer and of two.

Shapes: R rows (instances, tokens or pixels), T teacher variants, D width of the input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Lt
from torch import Tensor, nn

from ...registry import Injected
from ..draws import SampleDraws
from ..positions import Granularity, Rows
from .base import GATES, Gate
from .inputs import GateInput, On, Shapes

if TYPE_CHECKING:
    from ...step import Step

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


@GATES.register("linear")
class LinearGate(Gate):
    """One linear layer, `scores = W x + b`.

    With `zero_init` all teachers start equal (Shazeer et al., "Outrageously Large Neural Networks", ICLR 2017, arXiv
    1701.06538). The jitter of Switch Transformers (JMLR 2022, arXiv 2101.03961) multiplies every input by a random
    number from `[1 - jitter, 1 + jitter)` in training.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        on: what the gate reads; the page on routers says what each is.
        source: tap or embedding of the student, or field of the batch, for the three that have one.
        width: size of the source, found by itself in a config.
        detach_input: cut the gradient from the router's losses into the student.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
        zero_init: start with weights and bias 0.
        jitter: half-width of the random factor, in [0, 1); Switch Transformers uses 0.01.
        seed: of the jitter.
        shapes: sizes of fields and taps.
    """

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        on: On = "student_logits",
        source: str | None = None,
        width: int | None = None,
        detach_input: bool = True,
        granularity: Granularity = "instance",
        mask_field: str | None = None,
        zero_init: bool = False,
        jitter: Annotated[float, Ge(0), Lt(1)] = 0.0,
        seed: int = 0,
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.rows = Rows(granularity, mask_field)
        self.input = GateInput(on, num_classes, num_teachers, source, width, detach_input, self.rows, shapes)
        self.needs_teachers = self.input.needs_teachers
        self.layer = nn.Linear(self.input.width, num_teachers)
        if zero_init:
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)
        self.jitter = jitter
        self.draws = SampleDraws(seed) if jitter else None

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[R, T]`."""
        x_RD = self.input(step)
        if self.draws is not None and step.training:
            x_RD = x_RD * (1 + self.jitter * (2 * self.draws(step, x_RD.shape[1], x_RD.shape[0]) - 1))
        scores: Tensor = self.layer(x_RD)
        return scores


@GATES.register("mlp")
class MLPGate(Gate):
    """Two linear layers with an activation between them.

    Args:
        num_classes: number C of classes.
        num_teachers: number T of teacher variants.
        on: what the gate reads; the page on routers says what each is.
        source: tap or embedding of the student, or field of the batch, for the three that have one.
        width: size of the source, found by itself in a config.
        detach_input: cut the gradient from the router's losses into the student.
        granularity: what is routed: instances, or tokens or pixels of dense logits.
        mask_field: batch field of bool that tells which rows count; by default all that are not void.
        hidden: units of the hidden layer.
        activation: between the layers.
        shapes: sizes of fields and taps.
    """

    def __init__(
        self,
        num_classes: Injected[int],
        num_teachers: Injected[int],
        on: On = "student_logits",
        source: str | None = None,
        width: int | None = None,
        detach_input: bool = True,
        granularity: Granularity = "instance",
        mask_field: str | None = None,
        hidden: Annotated[int, Ge(1)] = 32,
        activation: Literal["relu", "gelu"] = "relu",
        shapes: Injected[Shapes | None] = None,
    ) -> None:
        super().__init__()
        self.rows = Rows(granularity, mask_field)
        self.input = GateInput(on, num_classes, num_teachers, source, width, detach_input, self.rows, shapes)
        self.needs_teachers = self.input.needs_teachers
        self.layers = nn.Sequential(
            nn.Linear(self.input.width, hidden), _ACTIVATIONS[activation](), nn.Linear(hidden, num_teachers)
        )

    def forward(self, step: Step) -> Tensor:
        """Return the scores, `[R, T]`."""
        scores: Tensor = self.layers(self.input(step))
        return scores
