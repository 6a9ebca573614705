"""A small stage for every registered objective and every example router, and its loop without the trainer around it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moekd.registry import Injected
from moekd.routers import example_routers
from moekd.run_state import RunState, load_modules, module_states
from moekd.signals import Signals
from moekd.stages.train import TrainLoop
from moekd.state_codec import flatten, unflatten
from moekd.tracking import RunFolder
from moekd.trainer import Trainer

from ..objectives.towers import TwoTowers
from .tiny import MLP, recipe_of, simple


class TowersAndClasses(nn.Module):
    """Two towers and a classifier on the image's embedding."""

    def __init__(self, num_classes: Injected[int], dim: int = 6) -> None:
        super().__init__()
        self.towers, self.classes = TwoTowers(dim), nn.Linear(dim, num_classes)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Signals:
        said = self.towers(left_BD, right_BD)
        return Signals(self.classes(said.embeddings["image"]), embeddings=said.embeddings, heads=said.heads)


PAIR = {"student_tap": "fc1", "teacher_tap": {"narrow": "fc1", "wide": "fc2"}}
MAPS_PAIR = {"student_tap": "conv1", "teacher_tap": "conv1"}
VECTORS: dict[str, Any] = {
    "student": MLP | {"taps": ["fc1"]},
    "teachers": {
        "narrow": {"kind": "mlp", "inputs": ["right"], "in_features": 10, "hidden": [7], "taps": ["fc1"]},
        "wide": {"kind": "mlp", "inputs": ["left"], "in_features": 8, "hidden": [12, 20], "taps": ["fc2"]},
    },
}
TWINS: dict[str, Any] = {
    "student": VECTORS["student"],
    "teachers": {"narrow": VECTORS["teachers"]["narrow"], "twin": MLP},
}
_CNN = {"kind": "small_cnn", "inputs": ["image"], "in_channels": 1, "taps": ["conv1"], "norm": "none", "hidden": 8}
MAPS: dict[str, Any] = {
    "student": _CNN | {"channels": [4]},
    "teachers": {"narrow": _CNN | {"channels": [6]}, "wide": _CNN | {"channels": [5]}},
}
_TOWERS = {"kind": "two_towers", "inputs": ["left", "right"]}
TOWERS: dict[str, Any] = {
    "student": _TOWERS,
    "teachers": {"narrow": _TOWERS | {"dim": 4}, "wide": _TOWERS | {"dim": 9}},
}
_ENCODER = {"kind": "mlp_encoder", "hidden": [6]}
#: A cross-encoder beside a two-tower student.
JUDGED: dict[str, Any] = {
    "student": _TOWERS,
    "teachers": {
        "judge": {
            "kind": "matcher",
            "inputs": ["left", "right"],
            "image": _ENCODER | {"in_features": 8},
            "text": _ENCODER | {"in_features": 10},
            "width": 6,
            "hidden": 8,
        }
    },
}
ROUTER = {"gate": "instance", "selection": {"kind": "dense"}, "combine": "loss"}
BOTH, ALL = ["student", "router"], ["student", "teachers"]

#: Models, what trains, and the options of the objective, by its kind.
EVERY: dict[str, tuple[dict[str, Any], list[str], dict[str, Any]]] = {
    "affinity": (TOWERS, ["student"], {}),
    "attention_transfer": (MAPS, ["student"], MAPS_PAIR),
    "augmented_contrastive": (TOWERS, ["student"], {"same": "label"}),
    "balanced": (VECTORS, ["student"], {"objectives": ["kd", "dkd"], "by": "adaloss"}),
    "by_labelling": (VECTORS, ["student"], {"objective": "kd"}),
    "c2kd": (VECTORS, ["student"], {"teacher": "wide", "student_tap": "fc1", "teacher_tap": "fc2"}),
    "cka": (VECTORS, ["student"], PAIR),
    "contrastive": (TOWERS, ["student"], {}),
    "contrastive_kd": (TOWERS, ["student"], {}),
    "crd": (VECTORS, ["student"], PAIR | {"negatives": 4, "embed_dim": 6}),
    "cross_entropy": (VECTORS, ["student"], {}),
    "dist": (VECTORS, ["student"], {}),
    "dkd": (VECTORS, ["student"], {}),
    "dml": (VECTORS, ALL, {}),
    "embedding_contrastive": (TOWERS, ["student"], {}),
    "embedding_kd": (
        TOWERS,
        ["student"],
        {"modalities": ["image", "text"], "normalise": "phi_s", "refresh_every": 2},
    ),
    "fitnets": (VECTORS, ["student"], PAIR),
    "fused_kd_ce": (VECTORS | {"router": ROUTER | {"gate": "fusion_ratio"}}, BOTH, {}),
    "gradient_kd": (TOWERS, ["student"], {}),
    "hard_contrastive": (TOWERS, ["student"], {"k": 3}),
    "hard_pair_kd": (TOWERS, ["student"], {"k": 3, "prefilter": 8}),
    "interactive_contrastive": (TOWERS, ["student"], {}),
    "kd": (VECTORS, ["student"], {}),
    "kd_to_student": (VECTORS | {"masks": {"kind": "feature_attention", "hidden_factor": 1}}, ["masks"], {}),
    "logit_agreement": (VECTORS, ALL, {"models": ["narrow", "wide"]}),
    "masked_student": (MAPS, ["student"], {"objective": "kd", "patch": 4}),
    "matching": (JUDGED, ["teachers"], {"k": 2}),
    "mgdfr": (TWINS, ["student"], {"teacher": "narrow", "tap": "fc1", "partner": "twin", "rows": 16}),
    "mlld": (VECTORS, ["student"], {}),
    "momentum_contrastive": (
        {"student": _TOWERS, "teachers": {"momentum": {"follows": {"momentum": 0.9}}}},
        ["student"],
        {"teacher": "momentum", "queue": 8},
    ),
    "mutual_kd": (VECTORS, ALL, {}),
    "nkd": (VECTORS, ["student"], {}),
    "ofa": (VECTORS, ["student"], {"student_taps": ["fc1"]}),
    "partial_ranking": (JUDGED, ["student"], {"k": 4, "threshold": None}),
    "prototype_ce": (TOWERS, ["student"], {}),
    "ranking": (TOWERS, ["student"], {"top_k": 3}),
    "relational_kl": (TOWERS, ["student"], {}),
    "review_kd": (MAPS, ["student"], {"student_taps": ["conv1"], "teacher_taps": ["conv1"]}),
    "rkd": (VECTORS, ["student"], PAIR | {"embed_dim": 5}),
    "routed": (VECTORS | {"router": ROUTER}, BOTH, {"objective": "kd"}),
    "routed_kd": (VECTORS | {"router": ROUTER}, BOTH, {}),
    "routing": (VECTORS | {"router": ROUTER | {"signal": "task"}}, ["router"], {}),
    "self_kd": (VECTORS, ["student"], {"target_grad": True}),
    "similarity_preserving": (VECTORS, ["student"], PAIR),
    "soft_bce": (TOWERS, ["student"], {}),
    "together": (VECTORS, ["student"], {"objectives": ["kd", {"kind": "rkd"} | PAIR]}),
    "token_kd": (MAPS, ["student"], MAPS_PAIR),
    "topk_kd": (VECTORS, ["student"], {"k": 2}),
}


def objective(kind: str, data: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the config of a stage with one objective of a kind, with teachers that run in every step."""
    models, trains, options = EVERY[kind]
    stage = {"trains": trains, "objectives": [{"kind": kind} | options | more], "cache": "off"}
    return simple(stage, **models, data={"kind": "tiny", "batch_size": 16} | dict(data or {}))


ROUTERS = example_routers(2)


def routed(name: str) -> dict[str, Any]:
    """Return the config of a stage with one of the example routers."""
    section = copy.deepcopy(ROUTERS[name])
    if section["gate"]["kind"] in ("task", "modality"):
        section["gate"] |= {"field": "two"}
    trains = BOTH if section.get("signal") not in ("none", "bilevel") else ["student"]
    return simple({"trains": trains, "objectives": ["routed_kd"], "cache": "off"}, **VECTORS | {"router": section})


class Session:
    """The loop of the first stage of a config, to be driven batch by batch.

    Args:
        raw: the config.
        folder: an empty folder.
        saved: what `saved` of another session returned.
    """

    def __init__(self, raw: Mapping[str, Any], folder: Path, saved: tuple[Any, Any] | None = None) -> None:
        self.program = recipe_of(raw).build()
        phase = self.program.phases[0]
        trainer = Trainer(self.program, RunFolder(folder.parent, folder.name), quiet=True)
        self.context, stage_state = trainer.context(phase), None
        if saved is not None:
            state = unflatten(*saved)
            load_modules(self.program, state["models"])
            stage_state = state["stage"]
        self.loop = TrainLoop(phase.stages[0].settings, self.context, stage_state)

    def saved(self) -> tuple[Any, Any]:
        """Return what a checkpoint would hold, as it would be written."""
        state = RunState()
        state.note_trained(self.loop.settings.trains, self.program.pool)
        return flatten({"models": module_states(self.program, state), "stage": self.loop.state_dict()})

    def batches(self, epoch: int = 0) -> list[Any]:
        """Return the training batches of an epoch."""
        return [b | {"two": b["label"] % 2} for b in self.context.train_loader("learn", epoch)]

    def train(self, batch: Any, seed: int) -> dict[str, Tensor]:
        """Take one step, with its own random numbers; return its losses and the weights after it."""
        torch.manual_seed(seed)
        self.loop.state.sums, self.loop.state.batch = {}, 0
        self.loop.run_batch(batch)
        weights = {f"weight {i}": value.detach().clone() for i, value in enumerate(self.loop.parameters)}
        return self.loop.state.sums | weights
