"""What a gate is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from ...model import Batch
from ...registry import Registry
from ...signals import PoolSignals
from ..positions import Rows

if TYPE_CHECKING:
    from ...step import Step


#: Score of a teacher that may not teach a row: its weight is exactly 0.
EXCLUDED = -1e9


class Scores(NamedTuple):
    """What a gate returns when balance losses read more than its scores.

    Attributes:
        logits: `[B, T]`, or `[R, T]` with one row a token or pixel.
        details: goes to `Routing.details`.
    """

    logits: Tensor
    details: dict[str, Tensor]


class Gate(nn.Module):
    """Scores the teachers for every instance: `gate(step) -> logits [B, T]`, or `Scores`.

    A gate whose `rows` are tokens or pixels returns `[R, T]`, one row a position (see `moekd.routers.positions`).
    """

    #: True when the gate reads what the teachers say; otherwise rows can be routed before any teacher runs.
    needs_teachers: bool = False
    #: True when the scores are the logarithms of weights that a formula gives, so that ignoring them is a mistake.
    gives_weights = False
    #: True when the gate reads tapped activations, so that they are recorded.
    reads_features: bool = False
    #: True when the gate reads embeddings of teachers.
    reads_embeddings: bool = False
    #: True when the gate reads the losses of a routed objective to every teacher, so that only one can ask for it.
    reads_losses: bool = False
    #: True when there is one more score than teachers: the last one is the label's.
    scores_label: bool = False
    #: True when the gate trains its parameters itself, in `after_step` and `after_epoch` (signal "policy").
    trains_itself: bool = False
    #: Split on which `fit` measures the teachers before the first step of a stage; None: there is nothing to measure.
    fit_on: Literal["train", "val"] | None = None
    #: False while a gate that has to be fitted is not.
    fitted: bool = True
    #: Most teachers that may teach a row; None: all of them.
    admits: int | None = None
    #: What is routed, whole instances unless the gate says otherwise.
    rows: Rows = Rows()
    #: Keys of a `router` section with which this gate makes sense, where they differ from `examples`' own: the other
    #: parts of the router, and under "gate" options of the gate itself.
    example: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def examples(cls, num_teachers: int) -> dict[str, dict[str, Any]]:
        """Return `router` sections in which this gate makes sense, without its `kind`, by suffix of their name.

        All teachers take part and one target is mixed from what they say. A gate that learns does so from the
        cross-entropy of the mixture; one whose weights a formula gives has nothing to learn.
        """
        signal = "none" if cls.gives_weights else "task"
        usual = {"selection": {"kind": "dense"}, "balance": [], "combine": "target", "signal": signal, "mix": "probs"}
        return {"": usual | dict(cls.example)}

    def forward(self, step: Step) -> Tensor | Scores:
        """Return the scores, `[B, T]`."""
        raise NotImplementedError

    def fit(self, teachers: Callable[[Batch], PoolSignals], batches: Iterable[Batch]) -> None:
        """Measure what the gate needs to know about the teachers; every process calls this with its own batches.

        The result has to lie in buffers, so that checkpoints hold it.

        Args:
            teachers: gives the signals of the router's teachers, in its order, for a batch.
            batches: the whole split `fit_on`, each row once.
        """

    def after_step(self) -> None:
        """Update what no gradient trains; called once after every optimizer step."""

    def after_epoch(self) -> None:
        """Update what is updated once an epoch; called by stages that train the router."""


GATES: Registry[Gate] = Registry("gate", "gates", base=Gate)
