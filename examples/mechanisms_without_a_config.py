"""Teacher pool, masks, router and objectives in a training loop of your own, on made-up data.

Two noisy views of a point; the student sees `left`, one teacher sees `right`, one sees both. The teachers are trained
first, then the student learns from labels and from the teacher that the router picks for each row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moekd import Model, Step
from moekd.objectives import RoutedKD, cross_entropy, reduce
from moekd.routers import InstanceGate, Router, TopK
from moekd.routers.balances import KLToUniform
from moekd.step import Models
from moekd.teachers import Teacher, TeacherPool

CLASSES, WIDTH = 3, 8


class Both(nn.Module):
    """Reads two views."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(2 * WIDTH)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return logits `[B, C]`."""
        return self.layers(torch.cat([left, right], dim=1))


def mlp(width: int) -> nn.Sequential:
    """Return a small classifier of vectors."""
    return nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def make_batch(rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return rows of three clouds, seen with noise from two sides."""
    label = torch.randint(CLASSES, (rows,), generator=generator)
    centre = torch.eye(CLASSES).repeat(1, WIDTH // CLASSES + 1)[:, :WIDTH][label]
    views = {name: centre + torch.randn(rows, WIDTH, generator=generator) for name in ("left", "right")}
    return {**views, "label": label}


def fit_teacher(teacher: Teacher, batch: dict[str, Tensor]) -> None:
    """Train a teacher on the labels, then freeze it again."""
    teacher.thaw()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        cross_entropy(teacher(batch).require_logits("example"), batch["label"]).mean().backward()
        optimizer.step()
    teacher.freeze()


def main() -> None:
    """Train and compare."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, test = make_batch(256, generator), make_batch(2000, generator)
    pool = TeacherPool(
        {
            "right": Teacher(mlp(WIDTH), inputs=["right"], name="right"),
            "both": Teacher(Both(), inputs=["left", "right"], name="both"),
        }
    )
    for name in pool.names:
        fit_teacher(pool.teacher(name), train)
    student = Model(mlp(WIDTH), inputs=["left"])
    router = Router(InstanceGate(CLASSES, len(pool.experts)), TopK(k=1), [KLToUniform()])
    optimizer = torch.optim.Adam([*student.parameters(), *router.parameters()], lr=1e-2)
    distil = RoutedKD(temperature=2.0)
    for _ in range(100):
        step = Step(train, Models(student, pool, router))
        loss = cross_entropy(step.student.require_logits("example"), train["label"]).mean()
        loss = loss + reduce(distil(step)["routed_kd"]) + sum(step.routing.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, model in {"student": student, **{name: pool.teacher(name) for name in pool.names}}.items():
        hits = model(test).require_logits("example").argmax(dim=1) == test["label"]
        print(f"{name:8} {100 * hits.float().mean():.1f} % of unseen rows")


if __name__ == "__main__":
    main()
