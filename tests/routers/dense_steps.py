"""Small dense networks, batches and steps for tests of routing by token and pixel.

Shapes: B batch, N tokens, C classes, T teachers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moekd.model import Model
from moekd.objectives import RoutedKD
from moekd.objectives.kd import kd_map
from moekd.routers import Router
from moekd.step import Models, Step
from moekd.teachers import Teacher, TeacherPool

from ..builders import CLASSES, WIDTH, DenseMaps, make_batch, randomise

ROWS, PIXELS, TEACHERS = 3, (8, 8), 3


class Words(nn.Module):
    """Dense logits `[B, C, N]` for sequences `[B, N, 8]`; the tap `hidden` gives `[B, N, 12]`."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(8, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, words_BND: Tensor) -> Tensor:
        logits: Tensor = self.out(self.hidden(words_BND).tanh()).movedim(2, 1)
        return logits


KINDS: dict[str, tuple[type[nn.Module], str, tuple[int, ...], str]] = {
    "pixel": (DenseMaps, "image", PIXELS, "conv"),
    "token": (Words, "words", (5,), "hidden"),
}


def batch_of(kind: str, void: bool = False, labelled: list[bool] | None = None) -> dict[str, Any]:
    """Return images and sequences with one label a position, about a third of them void on demand."""
    rng = torch.Generator().manual_seed(0)
    batch = make_batch(ROWS, labelled=labelled) | {"words": torch.randn(ROWS, 5, 8, generator=rng)}
    label = torch.randint(0, CLASSES, (ROWS, *KINDS[kind][2]), generator=rng)
    if void:
        label = label.where(torch.rand(label.shape, generator=rng) > 0.3, -1)
    return batch | {"label": label}


def step_of(kind: str, router: Router | None = None, batch: dict[str, Any] | None = None, **options: Any) -> Step:
    """Return a step of small dense networks, three different teachers."""
    network, field, _, tap = KINDS[kind]
    pool = TeacherPool({f"t{i}": Teacher(randomise(network(), 20 + i), [field], name=f"t{i}") for i in range(TEACHERS)})
    student = Model(randomise(network(), 1), [field], taps=[tap])
    return Step(batch or batch_of(kind), Models(student, pool, router), **options)


def loss_of(step: Step) -> Tensor:
    """Return the routed distillation loss, `[B]`."""
    return RoutedKD()(step)["routed_kd"]


def maps_of(step: Step) -> Tensor:
    """Return the distillation loss to every teacher at every position, `[B, T, ...]`."""
    student = step.student.require_logits("test")
    return torch.stack([kd_map(student, s.require_logits("test")) for s in step.teachers.values()], dim=1)
