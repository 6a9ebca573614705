"""What holds for all objectives on embeddings: no gradient into teachers, precision, small batches, routing, processes.

Shapes: B batch, T teachers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from moekd.config import build, validate_component
from moekd.errors import ModelError
from moekd.model import Model
from moekd.objectives import (
    OBJECTIVES,
    AffinityMimicking,
    AugmentedContrastive,
    Contrastive,
    ContrastiveKD,
    EmbeddingContrastive,
    EmbeddingKD,
    EmbeddingObjective,
    GradientKD,
    HardPairKD,
    InteractiveContrastive,
    MaskedStudent,
    Objective,
    PairwiseObjective,
    PartialRanking,
    Ranking,
    RelationalKL,
    RoutedObjective,
    SoftBCE,
    Together,
    reduce,
)
from moekd.objectives.embeddings import LogitScale
from moekd.routers import Dense, Gate, Router, Shapes, TopK
from moekd.signals import Signals
from moekd.step import Models, Step
from moekd.teachers import Teacher, TeacherPool

from ..builders import make_batch, make_pool, make_step
from .towers import make_towers, tower_pool, tower_shapes, tower_step, towers

PAIRWISE: dict[str, Callable[[], PairwiseObjective]] = {
    "contrastive_kd": ContrastiveKD,
    "contrastive_kd_kl": lambda: ContrastiveKD(form="kl", student_scale="model"),
    "affinity": AffinityMimicking,
    "embedding_kd": lambda: EmbeddingKD(modalities=["image", "text"], distances={"cosine": 1.0, "mse": 1.0}),
    "embedding_kd_normalised": lambda: EmbeddingKD(
        distances={"mse": 1.0}, normalise="phi_s", projection="none", shapes=tower_shapes(6, 6)
    ),
    "embedding_kd_heads": lambda: EmbeddingKD(projection="linear", shapes=tower_shapes(6, 6)),
    "interactive_contrastive": InteractiveContrastive,
    "relational_kl": lambda: RelationalKL(modalities=["image", "text"]),
    "soft_bce": lambda: SoftBCE(form="kl"),
    "ranking": lambda: Ranking(top_k=3),
    "gradient_kd": GradientKD,
    "contrastive_kd_same": lambda: ContrastiveKD(form="kl", same="label"),
    "ranking_same": lambda: Ranking(top_k=3, same="label"),
    "soft_bce_same": lambda: SoftBCE(form="kl", same="label"),
    "relational_kl_same": lambda: RelationalKL(modalities=["image", "text"], same="label"),
    "gradient_kd_same": lambda: GradientKD(same="label"),
    "interactive_contrastive_same": lambda: InteractiveContrastive(same="label"),
    "augmented_contrastive": lambda: AugmentedContrastive(shapes=tower_shapes(6, 6)),
    "embedding_contrastive": EmbeddingContrastive,
    "hard_pair_kd": lambda: HardPairKD(k=3),
    "partial_ranking": lambda: PartialRanking(k=3, threshold=None),
    "masked_student": lambda: MaskedStudent(EmbeddingKD(modalities=["image", "text"]), patch=4),
    "together": lambda: Together([EmbeddingKD(), ContrastiveKD(form="kl", student_scale="model")], [0.5, 2.0]),
    "contrastive_kd_mixed": lambda: ContrastiveKD(form="kl", student_scale="model", mix="confidence"),
    "affinity_mixed": lambda: AffinityMimicking(mix="probs"),
    "soft_bce_mixed": lambda: SoftBCE(form="kl", mix="logits"),
    "ranking_mixed": lambda: Ranking(mix="logmeanexp"),
}
#: Those that still pull a student which is the teacher already.
NO_FLOOR = (
    "interactive_contrastive",
    "interactive_contrastive_same",
    "augmented_contrastive",
    "embedding_contrastive",
    "hard_pair_kd",
    "partial_ranking",
)
#: Those whose teachers judge the same pairs together; their own tests say how.
JUDGES = ("hard_pair_kd", "partial_ranking")
EVERY: dict[str, Callable[[], Objective]] = {
    **PAIRWISE,
    "contrastive": Contrastive,
    "contrastive_sigmoid": lambda: Contrastive("sigmoid"),
    "contrastive_same": lambda: Contrastive(same="label"),
}


def seeded(make: Callable[[], Any]) -> Any:
    """Build an objective whose weights are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def loss_of(objective: Objective, step: Step) -> Tensor:
    (loss,) = objective(step).values()
    return loss


class RowGate(Gate):
    """Sends even rows to the first teacher and odd rows to the second."""

    def forward(self, step: Step) -> Tensor:
        odd_B = (step.batch["id"] % 2).float()
        return torch.stack([1 - odd_B, odd_B], dim=1)


@pytest.mark.parametrize("name", EVERY)
def test_only_the_student_and_the_objective_learn(name: str) -> None:
    pool, student = tower_pool(6, 6), make_towers()
    for teacher in pool.names:
        pool.teacher(teacher).thaw()
    objective = seeded(EVERY[name])
    loss = loss_of(objective, tower_step(pool, student))
    assert loss.shape == (6,)
    reduce(loss).backward()
    assert all(parameter.grad is None for parameter in pool.parameters())
    assert student.network.image.weight.grad.abs().sum() > 0
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters() if parameter.grad is not None)


def test_every_registered_objective_on_embeddings_is_here() -> None:
    here = {type(make()) for make in PAIRWISE.values()}
    known = {kind: OBJECTIVES.get(kind) for kind in OBJECTIVES.names()}
    assert [kind for kind, cls in known.items() if issubclass(cls, EmbeddingObjective) and cls not in here] == []


@pytest.mark.parametrize("name", [name for name in PAIRWISE if not name.endswith("mixed") and name not in JUDGES])
def test_averages_over_teachers_and_takes_one(name: str) -> None:
    pool, objective = tower_pool(6, 6), seeded(PAIRWISE[name]).eval()
    step = tower_step(pool)
    alone = [objective.pair_with(t, step.student, step.signals(t), step.batch) for t in pool.names]
    torch.testing.assert_close(loss_of(objective, step), torch.stack(alone).mean(0))
    (objective.objective if isinstance(objective, MaskedStudent) else objective).teacher = "t1"
    for part in objective.parts if isinstance(objective, Together) else ():
        part.teacher = "t1"
    torch.testing.assert_close(loss_of(objective, tower_step(pool)), alone[1])
    assert objective.variants(pool) == ["t1"]


@pytest.mark.parametrize(
    "name", [name for name in PAIRWISE if not name.endswith(("heads", "normalised")) and name not in NO_FLOOR]
)
def test_a_student_that_is_the_teacher_is_at_the_floor(name: str) -> None:
    network = towers(5)
    pool = TeacherPool({"t0": Teacher(towers(5), ["left", "right"], name="t0")})
    objective = PAIRWISE[name]()
    if hasattr(objective, "student_scale") and not isinstance(objective, RelationalKL):
        objective.student_scale = LogitScale("model")
    if isinstance(objective, SoftBCE):
        objective.bias = None
    student = Model(network, ["left", "right"])
    reduce(loss_of(objective, tower_step(pool, student))).backward()
    for layer in (network.image, network.text):
        torch.testing.assert_close(layer.weight.grad, torch.zeros_like(layer.weight), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_losses_of_rows_move_with_the_rows(name: str) -> None:
    pool, objective = tower_pool(6, 6), seeded(EVERY[name]).eval()
    batch, order = make_batch(6), torch.tensor([3, 0, 5, 1, 4, 2])
    moved = {key: value[order] for key, value in batch.items()}
    first, second = (loss_of(objective, Step(b, Models(make_towers(), pool))) for b in (batch, moved))
    torch.testing.assert_close(second, first[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_small_batches_are_finite(name: str, rows: int) -> None:
    student, objective = make_towers(), seeded(EVERY[name])
    loss = loss_of(objective, tower_step(tower_pool(6, 6), student, rows=rows))
    assert loss.shape == (rows,)
    reduce(loss).backward()
    assert loss.isfinite().all()
    for parameter in [*student.parameters(), *objective.parameters()]:
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_collapsed_embeddings_are_finite(name: str, value: float) -> None:
    """All rows alike, of no length at all or of a huge one."""
    student, objective = make_towers(), seeded(EVERY[name])
    with torch.no_grad():
        for layer in (student.network.image, student.network.text):
            layer.weight.zero_()
            layer.bias.fill_(value)
    loss = loss_of(objective, tower_step(tower_pool(6, 6), student))
    reduce(loss).backward()
    assert loss.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in student.parameters())


@pytest.mark.parametrize("name", [name for name in EVERY if name != "masked_student"])
def test_half_precision_embeddings_are_compared_in_float32(name: str) -> None:
    pool, objective = tower_pool(6, 6), seeded(EVERY[name]).eval()
    step = tower_step(pool)
    half = {n: step.signals(n).map(lambda x: x.bfloat16()) for n in ("student", *pool.names)}
    exact = {n: s.map(Tensor.float) for n, s in half.items()}
    losses = []
    for signals, autocast in ((half, True), (exact, False)):
        fake = tower_step(pool)
        fake.__dict__.update(student=signals["student"], _planned={n: signals[n] for n in pool.names})
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses.append(loss_of(objective, fake))
    assert losses[0].dtype == torch.float32
    tolerance = 0.05 if name in ("embedding_kd_heads", "augmented_contrastive") else 1e-4
    torch.testing.assert_close(losses[0], losses[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_ten_thousand_are_finite_in_half_precision(name: str, dtype: torch.dtype) -> None:
    pool, student, objective = tower_pool(6, 6), make_towers(), seeded(PAIRWISE[name])
    step = tower_step(pool, student)
    said = {n: step.signals(n).map(lambda x: x.to(dtype)) for n in ("student", *pool.names)}
    for signals in said.values():
        signals.heads["logit_scale"] = torch.full_like(signals.heads["logit_scale"], 1e4)
    fixed = said["student"].embeddings
    for part in objective.modules():
        if isinstance(part, LogitScale):
            part.source, part.log_scale = 1e4, None
    for name_, value in list(fixed.items()):
        fixed[name_] = value.detach().requires_grad_()
    loss = (
        objective.mixed(said["student"], {n: said[n] for n in pool.names}, None, objective.mix, step.batch)
        if (objective.mix)
        else torch.stack([objective.pair_with(n, said["student"], said[n], step.batch) for n in pool.names]).mean(0)
    )
    loss.mean().backward()
    assert loss.isfinite().all()
    if name.startswith("gradient_kd") and dtype == torch.float16:
        return  # the gradient of a gradient with this scale is beyond 65504, which a loss scale has to prevent
    assert all(value.grad is None or value.grad.isfinite().all() for value in fixed.values())


# The weights of `hard_pair_kd` follow from the distances, and take no part in the gradient.
@pytest.mark.parametrize("name", [name for name in PAIRWISE if name != "hard_pair_kd"])
def test_gradients_in_double_precision(name: str) -> None:
    objective, pool = seeded(PAIRWISE[name]).double().eval(), tower_pool(6, 6)
    step = tower_step(pool, rows=4)
    said = {n: step.signals(n).map(lambda x: x.detach().double()) for n in ("student", *pool.names)}
    heads, embeddings = said["student"].heads, said["student"].embeddings

    def loss(image: Tensor, text: Tensor) -> Tensor:
        student = Signals(embeddings={"image": image, "text": text}, heads=heads)
        if objective.mix is not None:
            return objective.mixed(student, {n: said[n] for n in pool.names}, None, objective.mix, step.batch)
        return objective.pair_with("t1", student, said["t1"], step.batch)

    inputs = [embeddings[key].clone().requires_grad_() for key in ("image", "text")]
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("hard", [True, False])
def test_can_be_routed_and_keeps_its_negatives(name: str, hard: bool) -> None:
    """A hard router gives each teacher its rows only; the loss is still the one among all rows of the batch."""
    pool, objective = tower_pool(6, 6), seeded(PAIRWISE[name]).eval()
    router = Router(RowGate(), TopK(1) if hard else Dense(), combine="select" if hard else "loss")
    step = tower_step(pool, router=router, variants=[])
    assert step.routes_rows_first == hard
    loss = loss_of(RoutedObjective(objective), step)
    alone = [objective.pair_with(t, step.student, pool(step.batch, [t])[t], step.batch) for t in pool.names]
    weights_BT = step.routing.applied_weights
    torch.testing.assert_close(loss, (weights_BT * torch.stack(alone, dim=1)).sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PAIRWISE)
def test_kept_logits_of_the_teachers_are_not_enough(name: str) -> None:
    objective = seeded(PAIRWISE[name])
    assert objective.reads_embeddings
    assert RoutedObjective(objective).reads_embeddings
    assert not objective.logits_only


@pytest.mark.parametrize("name", PAIRWISE)
def test_models_without_embeddings_are_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=r"\(student\) needs the embedding 'image'.*embeddings: none"):
        loss_of(seeded(PAIRWISE[name]), make_step(make_pool("vectors", masked=False)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("contrastive", {"form": "sigmoid", "scale": 20}),
        ("contrastive", {"scale": "model"}),
        ("contrastive_kd", {"form": "kl", "student_scale": 30.0, "teacher_scale": {"clip": 70.0, "other": 60}}),
        ("contrastive_kd", {"teacher_scale": 100.0}),
        ("affinity", {"scale": 40.0}),
        (
            "embedding_kd",
            {
                "modalities": ["image", "text"],
                "distances": {"cosine": 0.9, "smooth_l1": 0.1},
                "projection": "mlp",
                "normalise": "phi_s",
            },
        ),
        ("interactive_contrastive", {"teacher": "clip", "projection": "linear"}),
        ("relational_kl", {"modalities": ["text"]}),
        ("soft_bce", {"teacher_scale": 100.0, "teacher_bias": -10.0}),
        ("ranking", {"top_k": None, "same": "concept"}),
        ("contrastive", {"same": "concept"}),
        ("affinity", {"mix": "logmeanexp", "same": "concept"}),
        ("masked_student", {"objective": {"kind": "embedding_kd", "unit": True}, "patch": 8, "fill": "zero"}),
        (
            "routed",
            {
                "objective": {
                    "kind": "together",
                    "objectives": [{"kind": "embedding_kd"}, {"kind": "contrastive_kd", "form": "kl"}],
                    "weights": [0.5, 0.5],
                }
            },
        ),
        ("gradient_kd", {"student_scale": "model"}),
    ],
)
def test_can_be_written_in_a_config(kind: str, options: dict[str, Any]) -> None:
    problems: list[str] = []
    spec = validate_component(OBJECTIVES, {"kind": kind, **options}, "objective", problems)
    assert problems == []
    assert spec is not None
    widths = {"student": 8, "clip": 16, "dino": 12}
    shapes = Shapes(embeddings={name: {"image": dim, "text": dim} for name, dim in widths.items()})
    objective = build(spec, OBJECTIVES, num_classes=3, shapes=shapes)
    assert isinstance(objective, Objective)


class Trained(nn.Module):
    """Student and objective as one module, whose output is the reduced loss."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.student, self.objective = make_towers(), seeded(EVERY[name])
        self.teachers = [tower_pool(6, 6)]

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return reduce(loss_of(self.objective, Step(batch, Models(self.student, self.teachers[0]))))


def loss_and_gradients(module: nn.Module, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    loss = module(batch)
    loss.backward()
    found = {"loss": loss.detach().numpy()}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            found[name.removeprefix("module.")] = parameter.grad.numpy().copy()
    return found


def work(me: int, store: str, out: str) -> None:
    """What each of two processes does, with five and with two rows of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=me, world_size=2)
    part = slice(0, 5) if me == 0 else slice(5, None)
    batch, found = {key: value[part] for key, value in make_batch(7).items()}, {}
    for name in EVERY:
        module = DistributedDataParallel(Trained(name), broadcast_buffers=False, find_unused_parameters=True)
        found |= {f"{name}/{key}": value for key, value in loss_and_gradients(module, batch).items()}
    np.savez(out, **found)
    dist.destroy_process_group()


def test_two_processes_with_gathered_rows_equal_one(tmp_path: Path) -> None:
    root, outs = Path(__file__).resolve().parents[2], [tmp_path / f"{me}.npz" for me in range(2)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    module = "tests.objectives.test_embedding_objectives"
    arguments = [[sys.executable, "-m", module, str(me), str(tmp_path / "store"), str(outs[me])] for me in range(2)]
    processes = [subprocess.Popen(a, env=environment, stderr=subprocess.PIPE, text=True, cwd=root) for a in arguments]
    try:
        errors = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    found = [np.load(out, allow_pickle=False) for out in outs]
    for name in EVERY:
        for key, value in loss_and_gradients(Trained(name), make_batch(7)).items():
            place = f"{name}/{key}"
            if key == "loss":
                together = (found[0][place] + found[1][place]) / 2
                np.testing.assert_allclose(together, value, rtol=1e-4, atol=1e-5, err_msg=place)
            else:
                for one in found:
                    np.testing.assert_allclose(one[place], value, rtol=1e-3, atol=1e-4, err_msg=place)


def test_signals_are_what_the_towers_give() -> None:
    signals = make_towers()(make_batch(3))
    assert isinstance(signals, Signals)
    assert {name: value.shape for name, value in signals.embeddings.items()} == {"image": (3, 6), "text": (3, 6)}


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2], sys.argv[3])
