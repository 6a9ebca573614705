"""Routing of tokens and pixels: known relations to routing of instances, masks, per-position oracles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moekd.errors import ConfigError, DataError, ModelError
from moekd.model import Model
from moekd.objectives import KD, RoutedKD, RoutedObjective, kd_kl
from moekd.objectives.base import PairwiseObjective
from moekd.objectives.kd import kd_map
from moekd.routers import (
    BiasBalanced,
    CosineGate,
    Dense,
    Drop,
    ExpertChoice,
    Hash,
    LinearGate,
    MLPGate,
    NoisyTopK,
    PrototypeGate,
    Random,
    Router,
    Shapes,
    TopK,
    UniformGate,
)
from moekd.routers.balances import Entropy, Importance, KLToUniform, Load, RoutingContrastive, SwitchBalance, ZLoss
from moekd.routers.gates import AgreementGate, EntropyGate, LabelConfidenceGate, OracleGate, StaticGate
from moekd.routers.positions import Rows, by_position, logits_by_row, mean_over_positions, values_by_row
from moekd.signals import PoolSignals
from moekd.step import Models, Step
from moekd.teachers import Teacher, TeacherPool

from ..builders import CLASSES, WIDTH, DenseMaps, make_batch, make_student, randomise, strangers

ROWS, PIXELS, TEACHERS = 3, (8, 8), 3
COMBINES = ["select", "loss", "target"]


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
    return RoutedKD()(step)["routed_kd"]


def maps_of(step: Step) -> Tensor:
    """Return the distillation loss to every teacher at every position, `[B, T, ...]`."""
    student = step.student.require_logits("test")
    return torch.stack([kd_map(student, s.require_logits("test")) for s in step.teachers.values()], dim=1)


def test_rows_come_in_the_order_of_the_positions() -> None:
    values = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    rows = values_by_row(values)
    assert rows.shape == (8, 3)
    assert torch.equal(rows[1 * 4 + 1 * 2 + 0], values[1, :, 1, 0])
    assert torch.equal(by_position(rows, (2, 2)), values)
    logits = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(logits_by_row(logits)[1 * 5 + 2], logits[1, :, :, 2])
    assert torch.equal(logits_by_row(logits[..., 0]), logits[..., 0])


def test_mean_over_positions_that_count() -> None:
    losses = torch.tensor([[[1.0, 2.0], [3.0, torch.nan]], [[5.0, 5.0], [5.0, 5.0]]])
    mask = torch.tensor([True, True, True, False, False, False, False, False])
    assert mean_over_positions(losses, mask).tolist() == [2.0, 0.0]
    assert mean_over_positions(losses[1:], None).tolist() == [5.0]


def test_the_map_of_the_loss_has_the_loss_as_its_mean() -> None:
    first, second = torch.randn(2, CLASSES, 4, 3), torch.randn(2, CLASSES, 4, 3)
    found = kd_map(first, second, 2.0)
    assert found.shape == (2, 4, 3)
    torch.testing.assert_close(found.mean(dim=(1, 2)), kd_kl(first, second, 2.0))
    torch.testing.assert_close(found[1, 2, 1], kd_kl(first[1:, :, 2, 1], second[1:, :, 2, 1], 2.0)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combine", ["select", "loss"])
def test_uniform_is_the_mean_over_teachers(kind: str, combine: str) -> None:
    step = step_of(kind, Router(UniformGate(TEACHERS, granularity=kind), Dense(), combine=combine, signal="none"))
    torch.testing.assert_close(loss_of(step), KD()(step)["kd"])
    assert step.routing.positions == KINDS[kind][2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("k", [1, 2, None])
def test_weights_that_are_the_same_everywhere_are_those_of_instances(kind: str, combine: str, k: int | None) -> None:
    losses = []
    for granularity in ("instance", kind):
        gate = StaticGate(TEACHERS, granularity=granularity)
        with torch.no_grad():
            gate.scores.copy_(torch.tensor([0.3, -1.0, 0.9]))
        router = Router(gate, Dense() if k is None else TopK(k), combine=combine, signal="none")
        losses.append(loss_of(step_of(kind, router)))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_takes_the_best_teacher_of_every_position(kind: str) -> None:
    step = step_of(kind, Router(OracleGate(granularity=kind), TopK(1), combine="loss", signal="none"))
    logits, labels = step.teachers.logits, step.batch["label"]
    best = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.repeat_interleave(TEACHERS, dim=0), reduction="none"
    ).unflatten(0, (ROWS, TEACHERS))
    chosen = best.argmin(dim=1)
    assert len(chosen.unique()) == TEACHERS
    assert torch.equal(step.routing.chosen[:, 0].view(chosen.shape), chosen)
    expected = maps_of(step).gather(1, chosen[:, None])[:, 0].flatten(1).mean(dim=1)
    torch.testing.assert_close(loss_of(step), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combine", ["loss", "target"])
def test_a_learned_gate_equals_a_loop_over_positions(kind: str, combine: str) -> None:
    torch.manual_seed(0)
    gate = randomise(LinearGate(CLASSES, TEACHERS, granularity=kind), 3)
    step = step_of(kind, Router(gate, TopK(2), combine=combine))
    loss = loss_of(step)
    student, teachers = step.student.require_logits("test").detach(), step.teachers.logits
    flat_BCN, flat_BTCN = student.flatten(2), teachers.flatten(3)
    for b in range(ROWS):
        terms = []
        for n in range(flat_BCN.shape[2]):
            x_C = flat_BCN[b, :, n]
            scores = gate.layer(x_C)
            best = scores.topk(2).indices
            weights = scores.softmax(0)[best] / scores.softmax(0)[best].sum()
            says = flat_BTCN[b, best, :, n]
            if combine == "loss":
                terms.append((weights * kd_kl(x_C.expand(2, -1), says)).sum())
            else:
                mixed = 4.0 * (weights[:, None] * (says / 4.0).softmax(1)).sum(0).log()
                terms.append(kd_kl(x_C[None], mixed[None])[0])
        torch.testing.assert_close(loss[b], torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)
    loss.sum().backward()
    assert gate.layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gate", [EntropyGate, AgreementGate, LabelConfidenceGate, OracleGate])
def test_formula_gates_are_those_of_the_positions_taken_as_instances(gate: type) -> None:
    step = step_of("pixel")
    found = gate(granularity="pixel")(step)
    pool = TeacherPool({})

    class Flat(Step):
        expert_signals = type(
            "Said", (), {"detach": lambda self: self, "logits": logits_by_row(step.teachers.logits)}
        )()

    flat = Flat({"label": step.batch["label"].flatten(), "id": torch.arange(192)}, Models(None, pool))  # type: ignore[arg-type]
    torch.testing.assert_close(found, gate()(flat))
    assert found.shape == (192, TEACHERS)


@pytest.mark.parametrize(
    "on", ["teacher_stats", "teacher_logits", "agreement", "logits_and_stats", "stats_and_agreement"]
)
def test_learned_gates_read_the_teachers_at_every_position(on: str) -> None:
    step = step_of("token")
    x = MLPGate(CLASSES, TEACHERS, on=on, granularity="token").input(step)
    assert x.shape[0] == ROWS * 5
    turned = {key: value.flip(1) if key == "words" else value for key, value in step.batch.items()}
    other = MLPGate(CLASSES, TEACHERS, on=on, granularity="token").input(step_of("token", batch=turned))
    torch.testing.assert_close(other.view(ROWS, 5, -1).flip(1), x.view(ROWS, 5, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "field", "width"), [("pixel", "image", 1), ("token", "words", 8)])
@pytest.mark.parametrize("gate", [LinearGate, CosineGate, PrototypeGate])
def test_features_and_inputs_of_every_position(kind: str, field: str, width: int, gate: type) -> None:
    step, tap = step_of(kind), KINDS[kind][3]
    feature = step.student.features[tap]
    shapes = Shapes({field: tuple(step.batch[field].shape[1:])}, {tap: tuple(feature.shape[1:])})
    reads = gate(CLASSES, TEACHERS, on="student_feature", source=tap, granularity=kind, shapes=shapes).input
    assert reads.width == WIDTH
    torch.testing.assert_close(reads(step), values_by_row(feature) if kind == "pixel" else feature.flatten(0, 1))
    reads = gate(CLASSES, TEACHERS, on="input_feature", source=field, granularity=kind, shapes=shapes).input
    assert reads.width == width
    assert reads(step).shape == (ROWS * len(step.batch["label"][0].flatten()), width)


def selections(teachers: int) -> dict[str, Any]:
    return {
        "random": Random(2),
        "hash": Hash(teachers, 2),
        "noisy": NoisyTopK(CLASSES, teachers, 2),
        "bias": BiasBalanced(teachers, 1, rate=0.1),
        "choice": ExpertChoice(1.0, normalise="topk"),
        "drop": Drop(0.5, normalise="all"),
    }


@pytest.mark.parametrize("name", selections(TEACHERS))
def test_positions_are_drawn_on_their_own(name: str) -> None:
    gate = randomise(LinearGate(CLASSES, TEACHERS, granularity="pixel"), 3)
    step = step_of("pixel", Router(gate, selections(TEACHERS)[name], combine="loss", signal="aux_only"))
    weights = step.routing.weights
    assert weights.shape == (192, TEACHERS)
    first = weights.view(ROWS, 64, TEACHERS)[0]
    assert (first != first[:1]).any() == (name != "hash")


@pytest.mark.parametrize("name", ["random", "hash", "noisy", "drop"])
def test_the_first_position_draws_what_the_instance_draws(name: str) -> None:
    logits = torch.randn(ROWS, TEACHERS)
    instance, dense = selections(TEACHERS)[name], selections(TEACHERS)[name]
    alone = instance(logits, logits.softmax(1), step_of("pixel"))
    many = logits.repeat_interleave(64, 0)
    together = dense(many, many.softmax(1), step_of("pixel"))
    assert torch.equal(together[1].view(ROWS, 64, -1)[:, 0], alone[1])


BALANCES = [KLToUniform(), Importance(), Load(), SwitchBalance(), ZLoss(), Entropy(), RoutingContrastive()]


@pytest.mark.parametrize("balance", BALANCES, ids=lambda balance: type(balance).__name__)
def test_void_positions_change_no_loss_of_the_router(balance: nn.Module) -> None:
    gate = randomise(PrototypeGate(CLASSES, TEACHERS, granularity="pixel"), 3, scale=3.0)
    void = batch_of("pixel", void=True)
    mask = (void["label"] >= 0).flatten()
    step = step_of("pixel", Router(gate, NoisyTopK(CLASSES, TEACHERS, 1), [balance], combine="target"), void)
    routing = step.routing
    assert torch.equal(routing.mask, mask)
    kept = type(routing)(
        *(value[mask] for value in (routing.weights, routing.chosen, routing.logits, routing.probs)),
        details={"load": routing.details["load"][mask]}
        | {"input": routing.details["input"][mask], "prototypes": routing.details["prototypes"]},
    )
    expected = balance.weight_at(step.progress) * balance(kept)
    torch.testing.assert_close(routing.losses["balance"], expected)
    torch.testing.assert_close(routing.load, kept.applied_weights.detach().sum(0))
    assert routing.load.sum().item() == pytest.approx(mask.sum().item())


@pytest.mark.parametrize("combine", COMBINES)
def test_void_positions_do_not_take_part_in_distillation(combine: str) -> None:
    void = batch_of("pixel", void=True)
    gate = randomise(LinearGate(CLASSES, TEACHERS, granularity="pixel"), 3)
    losses = [loss_of(step_of("pixel", Router(gate, TopK(1), combine=combine, signal="none"), b)) for b in (void, None)]
    assert not torch.equal(*losses)
    step = step_of("pixel", Router(gate, TopK(1), combine=combine, signal="none"), void)
    chosen = step.routing.chosen[:, 0].view(ROWS, *PIXELS)
    maps = maps_of(step).gather(1, chosen[:, None])[:, 0]
    known = void["label"] >= 0
    expected = torch.stack([maps[b][known[b]].mean() for b in range(ROWS)])
    torch.testing.assert_close(loss_of(step), expected, rtol=1e-4, atol=1e-5)


def test_instances_without_labels_count_everywhere_and_wholly_void_ones_nowhere() -> None:
    batch = batch_of("pixel", labelled=[True, False, True])
    batch["label"][1:] = -1
    step = step_of("pixel", Router(UniformGate(TEACHERS, granularity="pixel"), Dense(), signal="none"), batch)
    assert step.routing.mask.view(ROWS, -1).all(dim=1).tolist() == [True, True, False]
    loss = loss_of(step)
    assert loss[2] == 0
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in step.models.student.parameters())


def test_a_field_tells_which_tokens_are_padding() -> None:
    padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    batch = batch_of("token") | {"attention": padding}
    gate = StaticGate(TEACHERS, granularity="token", mask_field="attention")
    step = step_of("token", Router(gate, TopK(1), combine="loss", signal="aux_only"), batch)
    assert step.routing.load.tolist() == [8.0, 0.0, 0.0]
    first = maps_of(step)[:, 0]
    expected = (first * padding).sum(1) / padding.sum(1)
    torch.testing.assert_close(loss_of(step), expected)


def test_masked_rows_leave_loads_and_choices_of_others_alone() -> None:
    logits = torch.randn(6, TEACHERS)
    mask = torch.tensor([True, False, True, True, False, True])
    other = logits.where(mask[:, None], 9.0)
    step = step_of("pixel", batch={"id": torch.arange(6)})
    for make in (lambda: BiasBalanced(TEACHERS, 1, rate=0.1), lambda: ExpertChoice(1.0), lambda: Drop(normalise="all")):
        results = []
        for scores in (logits, other):
            selection = make()
            found = selection(scores, scores.softmax(1), step, mask)
            selection.after_step()
            results.append((found[0][mask], getattr(selection, "bias", mask)))
        torch.testing.assert_close(results[0], results[1])
    kept = ExpertChoice(1.0)(logits[mask], logits[mask].softmax(1), step)[0]
    assert torch.equal(ExpertChoice(1.0)(logits, logits.softmax(1), step, mask)[0][mask], kept)


@pytest.mark.parametrize("signal", ["task", "oracle"])
def test_labels_of_positions_train_the_gate(signal: str) -> None:
    gate = randomise(LinearGate(CLASSES, TEACHERS, granularity="pixel"), 3)
    step = step_of("pixel", Router(gate, Dense(), combine="target", signal=signal), batch_of("pixel", void=True))
    loss = step.routing.losses[f"router_{signal}"]
    known = (step.batch["label"] >= 0).flatten()
    says = logits_by_row(step.teachers.logits)[known].log_softmax(2)
    right = says.gather(2, step.batch["label"].flatten()[known][:, None, None].expand(-1, TEACHERS, 1))[..., 0]
    scores = gate(step)[known]
    expected = {
        "task": -(scores.log_softmax(1) + right).logsumexp(1).mean(),
        "oracle": nn.functional.cross_entropy(scores, right.argmax(1)),
    }
    torch.testing.assert_close(loss, expected[signal])
    loss.backward()
    assert gate.layer.weight.grad.abs().sum() > 0


def test_a_gate_finds_the_specialist_of_every_pixel() -> None:
    """The first teacher is right where the image is positive, the second elsewhere; the image tells the gate."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(16, 1, 8, 8, generator=rng)
    label = torch.randint(0, CLASSES, (16, 8, 8), generator=rng)
    right = nn.functional.one_hot(label, CLASSES).movedim(-1, 1) * 4.0
    wrong = nn.functional.one_hot((label + 1) % CLASSES, CLASSES).movedim(-1, 1) * 4.0
    said = torch.stack([right.where(image > 0, wrong), wrong.where(image > 0, right)], dim=1)
    gate = LinearGate(CLASSES, 2, "input_feature", "image", 1, granularity="pixel")
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    for _ in range(60):
        step = step_of(
            "pixel", Router(gate, Dense(), combine="target", signal="task"), {"image": image, "label": label}
        )
        step.__dict__["teachers"] = step.__dict__["expert_signals"] = PoolSignals.from_logits(["t0", "t1"], said)
        step.models.router.experts = ["t0", "t1"]
        optimizer.zero_grad()
        step.routing.losses["router_task"].backward()
        optimizer.step()
    chosen = gate(step).argmax(1).view(16, 8, 8)
    assert ((chosen == 0) == (image[:, 0] > 0)).double().mean() > 0.95


def test_every_teacher_has_to_run() -> None:
    assert Router(UniformGate(TEACHERS, granularity="pixel"), Random(1), signal="none").needs_teachers
    assert not Router(UniformGate(TEACHERS), Random(1), signal="none").needs_teachers


def test_refused() -> None:
    with pytest.raises(ModelError, match=r"'pixel' needs student logits \[batch, classes, height, width\], found"):
        Rows("pixel").grid(step_of("token"), "the gate 'x'")
    flat = Step(make_batch(), Models(make_student(), strangers(2), Router(StaticGate(2, "token"), Dense())))
    with pytest.raises(ModelError, match=r"found \(6, 4\); use granularity 'instance'"):
        _ = flat.routing
    with pytest.raises(DataError, match=r"reads field 'maks', which the data set does not have"):
        Rows("pixel", "maks").grid(step_of("pixel"), "the gate 'x'")
    with pytest.raises(DataError, match=r"field 'image' \(3, 1, 8, 8\); expected \[batch, 8, 8\]"):
        Rows("pixel", "image").grid(step_of("pixel"), "the gate 'x'")
    with pytest.raises(ModelError, match=r"needs labels \[batch, 8, 8\], found labels \(3,\)"):
        OracleGate(granularity="pixel")(step_of("pixel", batch=make_batch(ROWS)))
    with pytest.raises(
        ConfigError, match=r"'pixel' reads a field of the batch \[D, height, width\], but 'left' is \[8\]"
    ):
        LinearGate(CLASSES, 2, "input_feature", "left", granularity="pixel", shapes=Shapes({"left": (8,)}))

    class Whole(PairwiseObjective):
        pass

    step = step_of("pixel", Router(UniformGate(TEACHERS, granularity="pixel"), Dense(), signal="none"))
    with pytest.raises(ModelError, match="Whole has one loss an instance"):
        RoutedObjective(Whole())(step)
