"""Tapped models and one instance of every pairwise objective, for the tests of what all of them promise."""

from __future__ import annotations

from collections.abc import Callable

import torch

from moekd.model import Model
from moekd.objectives import (
    CKA,
    DIST,
    DKD,
    KD,
    NKD,
    RKD,
    AttentionTransfer,
    FitNets,
    MultiLevelLogits,
    OneForAll,
    PairwiseObjective,
    ReviewKD,
    SimilarityPreserving,
)
from moekd.routers import Shapes
from moekd.teachers import Teacher, TeacherPool

from ..builders import CLASSES, WIDTH, Maps, Vectors, randomise

VECTORS = Shapes(
    fields={}, taps={"fc1": (WIDTH,), "fc2": (WIDTH,)}, teachers={f"t{i}": {"fc1": (WIDTH,)} for i in range(3)}
)
MAPS = Shapes(fields={}, taps={"conv2": (WIDTH, 4, 4)}, teachers={f"t{i}": {"conv1": (WIDTH, 8, 8)} for i in range(3)})

ON_LOGITS: dict[str, Callable[[], PairwiseObjective]] = {
    "kd": KD,
    "kd_standardised": lambda: KD(temperature=2.0, standardise=True),
    "dkd": DKD,
    "dist": DIST,
    "nkd": NKD,
    "ofa": lambda: OneForAll(["fc1", "fc2"], num_classes=CLASSES, shapes=VECTORS),
    "mlld": MultiLevelLogits,
}
ON_VECTORS: dict[str, Callable[[], PairwiseObjective]] = {
    "fitnets": lambda: FitNets("fc1", "fc1", shapes=VECTORS),
    "fitnets_thin": lambda: FitNets("fc1", "fc1", regressor="thin", shapes=VECTORS),
    "rkd": lambda: RKD("fc1", "fc1"),
    "rkd_embedded": lambda: RKD("fc1", "fc1", embed_dim=6, block=2, shapes=VECTORS),
    "similarity_preserving": lambda: SimilarityPreserving("fc1", "fc1"),
    "cka": lambda: CKA("fc1", "fc1"),
}
ON_MAPS: dict[str, Callable[[], PairwiseObjective]] = {
    "fitnets_maps": lambda: FitNets("conv2", "conv1", shapes=MAPS),
    "review_kd": lambda: ReviewKD(["conv2"], ["conv1"], shapes=MAPS),
    "attention_transfer": lambda: AttentionTransfer("conv2", "conv1"),
}
ALL = ON_LOGITS | ON_VECTORS | ON_MAPS


def make(name: str, seed: int = 4) -> PairwiseObjective:
    """Return an objective with the same weights in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ALL[name]()


def student_of(name: str, seed: int = 1) -> Model:
    """Return a student with the taps that the objective reads."""
    if name in ON_MAPS:
        return Model(randomise(Maps(), seed), ["image"], ["conv2"]).eval()
    return Model(randomise(Vectors(), seed), ["left"], ["fc1", "fc2"])


def pool_of(name: str, count: int = 3) -> TeacherPool:
    """Return frozen teachers `t0`, `t1`, ... with the taps that the objective reads."""
    teachers = {}
    for i in range(count):
        network, inputs, taps = (Maps(), ["image"], ["conv1"]) if name in ON_MAPS else (Vectors(10), ["right"], ["fc1"])
        teachers[f"t{i}"] = Teacher(randomise(network, 20 + i), inputs, taps, name=f"t{i}")
    return TeacherPool(teachers).requires_grad_(False)
