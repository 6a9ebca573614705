"""Tiny networks, batches, pools and steps for tests.

Shapes: B batch, T teacher variants, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moekd.model import Model
from moekd.routers import InstanceGate, Router, TopK
from moekd.step import Models, Step
from moekd.teachers import FeatureAttentionMask, Teacher, TeacherPool

CLASSES = 4
WIDTH = 12


class Vectors(nn.Module):
    """Three layers on vectors `[B, D]`; taps `fc1`, `fc2` of width 12."""

    def __init__(self, width: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, classes)

    def forward(self, x_BD: Tensor) -> Tensor:
        logits: Tensor = self.out(self.fc2(self.fc1(x_BD).relu()).relu())
        return logits


class Fusion(nn.Module):
    """Two inputs that meet below the taps `join` (an identity) and `head.first` (a dotted path)."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, WIDTH // 2), nn.Linear(10, WIDTH // 2)
        self.join = nn.Identity()
        self.head = nn.Sequential()
        self.head.add_module("first", nn.Linear(WIDTH, WIDTH))
        self.head.add_module("second", nn.GELU())
        self.head.add_module("out", nn.Linear(WIDTH, CLASSES))

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Tensor:
        joined = self.join(torch.cat([self.left(left_BD).relu(), self.right(right_BD).relu()], dim=1))
        logits: Tensor = self.head(joined)
        return logits


class LateFusion(nn.Module):
    """Two inputs that meet above the tap `left`: rows appended there meet a branch of the old batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, WIDTH), nn.Linear(10, WIDTH)
        self.fc = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, CLASSES)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Tensor:
        logits: Tensor = self.out(self.fc(self.left(left_BD).tanh() * self.right(right_BD).tanh()).relu())
        return logits


class Maps(nn.Module):
    """Two convolutions and batch norms on images `[B, 1, 8, 8]`; taps `conv1`, `conv2` give maps of 12 channels."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.out = nn.Linear(WIDTH, classes)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        maps = self.conv2(self.norm1(self.conv1(image_BCHW)).relu()).relu()
        logits: Tensor = self.out(maps.mean(dim=(2, 3)))
        return logits


class DenseMaps(nn.Module):
    """A segmentation network: logits `[B, C, 8, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.out = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.out(self.conv(image_BCHW).relu())
        return logits


class Ones(FeatureAttentionMask):
    """A mask that changes nothing."""

    def forward(self, activation: Tensor) -> Tensor:
        return torch.ones_like(activation)


def make_batch(rows: int = 6, seed: int = 0, labelled: Sequence[bool] | None = None) -> dict[str, Any]:
    """Return a batch with the fields `left`, `right`, `image`, `id`, `label`, `labelled`."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, dtype=torch.bool) if labelled is None else torch.tensor(labelled)
    label = torch.randint(0, CLASSES, (rows,), generator=rng)
    return {
        "left": torch.randn(rows, 8, generator=rng),
        "right": torch.randn(rows, 10, generator=rng),
        "image": torch.randn(rows, 1, 8, 8, generator=rng),
        "id": torch.arange(rows) + 100 * seed,
        "label": label.where(mask, torch.tensor(-1)),
        "labelled": mask,
    }


def randomise(module: nn.Module, seed: int, scale: float = 0.7) -> nn.Module:
    """Draw all parameters anew and give batch norms statistics of their own."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * scale)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=rng) + 0.5)
            elif name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=rng))
    return module


def make_student(seed: int = 1) -> Model:
    """Return a student that reads the field `left`."""
    return Model(randomise(Vectors(), seed), inputs=["left"])


def make_teacher(kind: str, name: str, seed: int = 2) -> Teacher:
    """Return a frozen teacher: `vectors`, `fusion`, `late`, `maps` or `dense`."""
    network, inputs = {
        "vectors": (Vectors(10), ["right"]),
        "fusion": (Fusion(), ["left", "right"]),
        "late": (LateFusion(), ["left", "right"]),
        "maps": (Maps(), ["image"]),
        "dense": (DenseMaps(), ["image"]),
    }[kind]
    return Teacher(randomise(network, seed), inputs, name=name)


def make_mask(spatial: bool = False, seed: int = 3, kind: type[FeatureAttentionMask] = FeatureAttentionMask) -> Any:
    """Return a mask for 12 features with weights large enough to tell variants apart."""
    return randomise(kind(WIDTH, spatial=spatial), seed, scale=0.5).eval()


TAPS = {"fusion": ("join", "head.first"), "late": ("left", "fc"), "vectors": ("fc1", "fc2"), "maps": ("conv1", "conv2")}


def make_pool(
    *kinds: str, masked: bool = True, mask: type[FeatureAttentionMask] = FeatureAttentionMask, **options: Any
):
    """Return a pool with one teacher of each kind, named after it, and two masked variants each, all frozen."""
    pool = TeacherPool({kind: make_teacher(kind, kind, seed=10 + i) for i, kind in enumerate(kinds)}, **options)
    if masked:
        for i, kind in enumerate(kinds):
            for j, tap in enumerate(TAPS[kind]):
                pool.specialise(kind, tap, make_mask(kind == "maps", seed=100 + 10 * i + j, kind=mask))
    return pool.requires_grad_(False)


def clones(count: int, seed: int = 5) -> TeacherPool:
    """Return a pool of teachers with the same weights."""
    return TeacherPool({f"t{i}": make_teacher("vectors", f"t{i}", seed) for i in range(count)})


def strangers(count: int, order: Sequence[int] | None = None) -> TeacherPool:
    """Return a pool of different teachers, in the given order."""
    return TeacherPool({f"t{i}": make_teacher("vectors", f"t{i}", 20 + i) for i in (order or range(count))})


def make_router(teachers: int, k: int | None = 1, seed: int = 7, gate: dict[str, Any] | None = None, **options: Any):
    """Return a router with an instance gate and top-k selection (`k=None`: dense)."""
    from moekd.routers import Dense

    instance = InstanceGate(CLASSES, teachers, **(gate or {}))
    randomise(instance, seed)
    return Router(instance, Dense() if k is None else TopK(k), **options)


def make_step(
    pool: TeacherPool,
    router: Router | None = None,
    batch: dict[str, Any] | None = None,
    student: Model | None = None,
    **options: Any,
) -> Step:
    """Return a step on a small batch."""
    return Step(batch or make_batch(), Models(student or make_student(), pool, router), **options)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of everything a module holds."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def same_state(module: nn.Module, before: dict[str, Tensor]) -> bool:
    """Tell whether a module's state is bit for bit the one of `before`."""
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in before)


def hook_count(module: nn.Module) -> int:
    """Return the number of hooks anywhere in a module."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def descend(module: nn.Module, rate: float) -> None:
    """Move every parameter by about `rate` against its gradient, and forget the gradients."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad / (parameter.grad.square().mean().sqrt() + 1e-6)
                parameter.grad = None
