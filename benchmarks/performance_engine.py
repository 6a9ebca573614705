"""What the performance benchmark runs: made-up data of some shape, networks, and the engine's own training loop.

The data are noise: speed does not depend on them. Everything else is what `moekd distill` runs: loader, step, losses,
checks, optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..cache import CacheSettings, SignalStore
from ..config import Spec, build_optimizer
from ..data.arrays import ArrayField, ArraySplit
from ..data.dataset import FieldSpec
from ..model import Model
from ..networks.audio_cnn import AudioCnn
from ..networks.av_fusion_cnn import AvFusionCnn
from ..networks.lenet import LeNet5
from ..networks.small_cnn import SmallCnn
from ..networks.vit import VitEncoder
from ..objectives import CrossEntropy, KDToStudent, MutualKD, Objective, RoutedKD
from ..progress import Progressbar
from ..routers import InstanceGate, Router, TopK
from ..routers.balances import KLToUniform
from ..stages import RunData, StageContext, StageSettings, TrainStage, WeightedObjective
from ..step import Models
from ..teachers import FactorisedAttentionMask, FeatureAttentionMask, Mask, Teacher, TeacherPool
from .performance_published import AttentionMask, PlainLoop, PlainTeacher, Rows

Cache = Literal["auto", "memory", "disk", "off"]
#: Where the masks of MST-Distill act for an image student of AV-MNIST, and on how many features.
PUBLISHED_TAPS = (
    ("multimodal", "concat_identity", 596),
    ("multimodal", "fc1", 298),
    ("crossmodal", "conv2", 64),
    ("crossmodal", "conv3", 128),
)
#: Far more epochs than any benchmark runs.
ENDLESS = 10**9


@dataclass(frozen=True)
class Shapes:
    """Sizes of a student, its teachers and its data.

    Attributes:
        title: for the table.
        fields: shape of a sample by field.
        classes: number of classes.
        batch: rows of a batch.
        batches: batches of a round.
        student: makes the student's network, which reads the field `image`.
        teacher: makes a teacher's network, which does too.
        taps: where a teacher has masks, with their widths.
        hidden_factor: of the masks.
    """

    title: str
    fields: Mapping[str, tuple[int, ...]]
    classes: int
    batch: int
    batches: int
    student: Callable[[], nn.Module]
    teacher: Callable[[], nn.Module]
    taps: Mapping[str, int]
    hidden_factor: int = 8

    def short(self, batch: int | None = None) -> Shapes:
        """Return the same with rounds of two batches, and with other rows a batch."""
        rows = batch or self.batch
        return replace(self, batch=rows, batches=2, title=self.title.replace(f"{self.batch} rows", f"{rows} rows"))


def small_cnn(channels: Sequence[int], hidden: int) -> Callable[[], nn.Module]:
    """Return a maker of small convolutional networks with 98 classes."""
    return lambda: SmallCnn(98, channels=channels, hidden=hidden)


def vit(width: int, layers: int, heads: int) -> Callable[[], nn.Module]:
    """Return a maker of vision transformers for 1000 classes, with patches of 16 x 16 of 224 x 224 pixels."""

    def make() -> nn.Module:
        network = nn.Sequential()
        network.add_module("encoder", VitEncoder(224, 16, width, layers, heads, pool="cls"))
        network.add_module("fc1", nn.Linear(width, 256))
        network.add_module("fc2", nn.Linear(256, 1000))
        return network

    return make


def av_mnist(batch: int, batches: int) -> Shapes:
    """Return the shapes of AV-MNIST with the published networks; the student sees the image."""
    fields = {"image": (1, 28, 28), "audio": (1, 112, 112)}
    return Shapes("AV-MNIST", fields, 10, batch, batches, lambda: LeNet5(10), lambda: LeNet5(10), {})


def shapes_for(device: str, quick: bool = False) -> dict[str, Shapes]:
    """Return the shapes of the parts on overhead, by name: the smallest ones, and steps that take longer."""
    picture = {"image": (3, 32, 32)}
    few = 4 if quick else 8
    quickstart, wide = small_cnn((12, 24, 48, 96), 96), small_cnn((24, 48, 96, 192), 192)
    taps = {"pool": 96, "fc1": 96}
    found = {
        "smallest": Shapes("student of the quickstart, 64 rows", picture, 98, 64, few, quickstart, quickstart, taps),
        "larger": Shapes(
            "small_cnn, 24 to 192 channels, 96 rows", picture, 98, 96, few // 2, wide, wide, {"pool": 192, "fc1": 192}
        ),
    }
    if device == "cuda":
        large, base, pixels = vit(1024, 24, 16), vit(768, 12, 12), {"image": (3, 224, 224)}
        title = "ViT-B/16 student, ViT-L/16 teachers, 128 rows"
        found["larger"] = Shapes(title, pixels, 1000, 128, few // 2, base, large, {"fc1": 256})
    return found


def make_split(shapes: Shapes, rows: int | None = None) -> ArraySplit:
    """Return noise with labels, as many rows as a round reads."""
    count = rows or shapes.batch * shapes.batches
    rng = np.random.default_rng(0)
    arrays = {
        name: ArrayField(rng.random((count, *shape), dtype=np.float32), FieldSpec(shape, "float32", name))
        for name, shape in shapes.fields.items()
    }
    return ArraySplit("train", np.arange(count), rng.integers(0, shapes.classes, count), arrays)


def make_data(shapes: Shapes, rows: int | None = None) -> RunData:
    """Return a run's data with nothing but a training split."""
    names = [str(index) for index in range(shapes.classes)]
    return RunData({"train": make_split(shapes, rows)}, names, shapes.batch, shapes.batch, 0, 0)


def make_pool(shapes: Shapes, variants: int) -> TeacherPool:
    """Return teachers with so many variants in all, as many of each as there are taps."""
    taps = list(shapes.taps.items())
    count = -(-variants // len(taps))
    pool = TeacherPool(
        {f"t{i}": Teacher(shapes.teacher(), ["image"], [*shapes.taps], name=f"t{i}") for i in range(count)}
    )
    for index in range(variants):
        tap, width = taps[index % len(taps)]
        pool.specialise(f"t{index // len(taps)}", tap, FeatureAttentionMask(width, shapes.hidden_factor))
    return pool


def plain_teachers(shapes: Shapes, count: int) -> TeacherPool:
    """Return teachers without masks."""
    return TeacherPool({f"t{i}": Teacher(shapes.teacher(), ["image"], name=f"t{i}") for i in range(count)})


def published_pool(factorised: bool = False) -> TeacherPool:
    """Return the teachers and masks of MST-Distill for an image student of AV-MNIST, or cheaper masks."""
    pool = TeacherPool(
        {
            "multimodal": Teacher(AvFusionCnn(10), ["image", "audio"], ["concat_identity", "fc1"], name="multimodal"),
            "crossmodal": Teacher(AudioCnn(10), ["audio"], ["conv2", "conv3"], name="crossmodal"),
        }
    )
    for teacher, tap, width in PUBLISHED_TAPS:
        maps = tap.startswith("conv")
        kind: type[Mask] = FactorisedAttentionMask if factorised else FeatureAttentionMask
        pool.specialise(teacher, tap, kind(width, spatial=maps))
    return pool


def make_router(classes: int, experts: int) -> Router:
    """Return the router of MST-Distill: one teacher an instance, chosen by the student's logits."""
    return Router(InstanceGate(classes, experts), TopK(k=1), [KLToUniform()])


#: Objectives and trained modules of the stages by name.
STAGES: dict[str, tuple[Callable[[], list[Objective]], list[str]]] = {
    "alone": (lambda: [CrossEntropy()], ["student"]),
    "cotrain": (lambda: [CrossEntropy(on="all"), MutualKD()], ["student", "teachers"]),
    "specialise": (lambda: [KDToStudent()], ["masks"]),
    "distill": (lambda: [CrossEntropy(), RoutedKD()], ["student", "router"]),
}


class EngineArm:
    """Epochs of a stage in the engine's own loop.

    Args:
        stage: "alone", "cotrain", "specialise" or "distill".
        student: the student's network.
        pool: teachers.
        data: what is read.
        accelerator: device and precision.
        cache: whether teachers are cached.
        settings: codecs and limits of the cache; signals go to disk only where a folder is set.
    """

    def __init__(
        self,
        stage: str,
        student: nn.Module,
        pool: TeacherPool,
        data: RunData,
        accelerator: Accelerator,
        cache: Cache = "auto",
        settings: CacheSettings | None = None,
    ) -> None:
        objectives, trains = STAGES[stage]
        router = make_router(data.num_classes, len(pool.experts)) if "router" in trains else None
        models = Models(Model(student, ["image"]), pool, router)
        weighted = [WeightedObjective(objective) for objective in objectives()]
        self.stage = TrainStage(StageSettings(stage, trains, weighted, optimizer=_adam, epochs=ENDLESS, cache=cache))
        limits = settings or CacheSettings()
        context = StageContext(
            *(accelerator, models, data, "main", _forget, _forget, Progressbar(enabled=False)),
            cache=limits,
            disk=SignalStore(limits.place, "noise", limits) if limits.folder else None,
        )
        self.loop = self.stage.make_loop(context, None)
        self.models, self.accelerator = models, accelerator

    def __call__(self) -> int:
        """Run an epoch; return the number of steps."""
        self.loop.state.batch = 0
        self.loop.state.epoch += 1
        self.loop.run_epoch()
        return self.loop.batches


def plain_arm(shapes: Shapes, variants: int, device: torch.device, autocast: Any) -> Callable[[], int]:
    """Return epochs of stage 3 in the published loop, with as many variants as `make_pool` makes."""
    loop, rows = plain_loop(shapes, variants, device, autocast), plain_rows(shapes)
    return lambda: loop.epoch("distill", rows, shapes.batch)


def plain_loop(shapes: Shapes, variants: int, device: torch.device, autocast: Any) -> PlainLoop:
    """Return the published loop with as many masked variants as `make_pool` makes."""
    taps = list(shapes.taps.items())
    teachers = []
    for first in range(0, variants, len(taps)):
        own = taps[: min(len(taps), variants - first)]
        masks = {tap: AttentionMask(width, factor=shapes.hidden_factor) for tap, width in own}
        teachers.append(PlainTeacher(shapes.teacher(), ["image"], masks))
    return PlainLoop(shapes.student(), ["image"], teachers, shapes.classes, device, autocast=autocast)


def plain_rows(shapes: Shapes) -> Rows:
    """Return the data of a round as tensors."""
    split = make_split(shapes)
    batch = split.__getitems__(list(range(len(split))))
    return Rows({name: batch[name] for name in (*shapes.fields, "label")})


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return build_optimizer(Spec("adam", {"lr": 1e-4}), parameters)


def _forget(record: Any) -> None:
    """Keep nothing."""
