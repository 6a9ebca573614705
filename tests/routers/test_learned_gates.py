"""Learned gates: what they read, sizes, gradients, known scores, refused options."""

from __future__ import annotations

import math

import pytest
import torch

from moekd.errors import ConfigError, DataError, ModelError
from moekd.model import Model
from moekd.routers import GATES, Dense, Router, Shapes, TopK
from moekd.routers.gates.base import Scores
from moekd.routers.gates.cosine import CosineGate, PrototypeGate, cosine_scores
from moekd.routers.gates.inputs import GateInput
from moekd.routers.gates.linear import LinearGate, MLPGate
from moekd.routers.gates.statistics import pairwise_divergences, teacher_statistics
from moekd.step import Step

from ..builders import CLASSES, WIDTH, DenseMaps, Maps, Vectors, make_batch, make_pool, make_step, randomise, strangers

KINDS = {"linear": LinearGate, "mlp": MLPGate, "cosine": CosineGate, "prototype": PrototypeGate}


def student() -> Model:
    return Model(randomise(Vectors(), 1), ["left"], taps=["fc2"])


def step_with(student_model: Model | None = None, **options) -> Step:
    return make_step(strangers(3), student=student_model or student(), **options)


def scores_of(gate, step: Step) -> torch.Tensor:
    found = gate(step)
    return found.logits if isinstance(found, Scores) else found


def read(on: str, step: Step, **options) -> torch.Tensor:
    return GateInput(on, CLASSES, 3, **options)(step)


def test_known_teacher_statistics() -> None:
    logits = torch.tensor([[[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]]).log()
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    expected = torch.tensor([[[0.7, entropy, 0.5], [1 / 3, math.log(3), 0.0]]])
    torch.testing.assert_close(teacher_statistics(logits), expected, atol=1e-6, rtol=0)


def test_teacher_statistics_of_saturated_and_single_classes() -> None:
    sure = teacher_statistics(torch.tensor([[[1e4, -1e4]]]))
    assert torch.equal(sure, torch.tensor([[[1.0, 0.0, 1.0]]]))
    impossible = teacher_statistics(torch.tensor([[[0.0, -torch.inf]]]))
    assert torch.equal(impossible, torch.tensor([[[1.0, 0.0, 1.0]]]))
    assert torch.equal(teacher_statistics(torch.zeros(2, 1, 1)), torch.tensor([1.0, 0.0, 1.0]).expand(2, 1, 3))


def test_inputs() -> None:
    step = step_with()
    torch.testing.assert_close(read("student_logits", step), step.student.logits.detach())
    torch.testing.assert_close(
        read("student_feature", step, source="fc2", width=WIDTH), step.student.features["fc2"].detach()
    )
    stats = read("teacher_stats", step)
    assert torch.equal(stats, teacher_statistics(step.teachers.logits).flatten(1))
    assert torch.equal(read("logits_and_stats", step), torch.cat([step.student.logits.detach(), stats], dim=1))
    assert torch.equal(read("input_feature", step, source="image", width=64), step.batch["image"].flatten(1))


def test_teachers_logits_are_centred() -> None:
    step = step_with()
    said = step.teachers.logits
    found = read("teacher_logits", step)
    torch.testing.assert_close(found, (said - said.mean(2, keepdim=True)).flatten(1))
    log_probs = said.log_softmax(2)
    torch.testing.assert_close(found, (log_probs - log_probs.mean(2, keepdim=True)).flatten(1), rtol=1e-4, atol=1e-5)


def test_known_agreement() -> None:
    """JS((1, 0), (0, 1)) = ln 2; JS((1, 0), (1/2, 1/2)) = H(3/4, 1/4) - ln 2 / 2."""
    probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]])
    half = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - math.log(2) / 2
    expected = torch.tensor([[math.log(2), half, 0.0, half, math.log(2), half]])
    torch.testing.assert_close(pairwise_divergences(probs.log()), expected, atol=1e-6, rtol=0)


def test_agreement_of_teachers() -> None:
    step = step_with()
    said = step.teachers.logits
    agreement = read("agreement", step)
    assert agreement.shape == (6, 3)
    torch.testing.assert_close(agreement[:, 1], pairwise_divergences(said[:, [0, 2]])[:, 0])
    torch.testing.assert_close(pairwise_divergences(said.flip(1)), agreement.flip(1))
    stats = read("teacher_stats", step)
    assert torch.equal(read("stats_and_agreement", step), torch.cat([stats, agreement], dim=1))
    assert torch.equal(pairwise_divergences(said[:, [0, 0]]), torch.zeros(6, 1))
    with pytest.raises(ConfigError, match="compares teachers, but there is one only"):
        LinearGate(CLASSES, 1, on="agreement")


SHAPES = Shapes(fields={"image": (1, 8, 8), "left": (8,)}, taps={"fc1": (12,), "conv": (5, 4, 4), "words": (7, 9)})


@pytest.mark.parametrize(
    ("on", "source", "width"),
    [
        ("input_feature", "image", 64),
        ("input_feature", "left", 8),
        ("student_feature", "fc1", 12),
        ("student_feature", "conv", 5),
        ("student_feature", "words", 9),
    ],
)
def test_sizes_are_found(on: str, source: str, width: int) -> None:
    assert LinearGate(CLASSES, 2, on, source, shapes=SHAPES).input.width == width
    assert LinearGate(CLASSES, 2, on, source, width, shapes=SHAPES).input.width == width
    with pytest.raises(ConfigError, match=f"width 3: '{source}' has the size {width}; leave 'width' out"):
        LinearGate(CLASSES, 2, on, source, 3, shapes=SHAPES)


def test_unknown_sources_are_refused() -> None:
    with pytest.raises(ConfigError, match="'fc3' is no tap of the student; did you mean 'fc1'"):
        LinearGate(CLASSES, 2, "student_feature", "fc3", shapes=SHAPES)
    with pytest.raises(ConfigError, match="'zzz' is no field of the batch; there are: image, left"):
        LinearGate(CLASSES, 2, "input_feature", "zzz", shapes=SHAPES)


def test_sequences_are_averaged_over_their_tokens() -> None:
    step = step_with()
    words = torch.randn(6, 7, 9)
    step.student.features["words"] = words
    gate = LinearGate(CLASSES, 3, "student_feature", "words", shapes=SHAPES)
    torch.testing.assert_close(gate.input(step), words.mean(1))


def test_only_teacher_statistics_need_teachers() -> None:
    kinds = ["teacher_stats", "logits_and_stats", "teacher_logits", "agreement", "stats_and_agreement"]
    for on, needs in [("student_logits", False), *((kind, True) for kind in kinds)]:
        gate = LinearGate(CLASSES, 3, on=on)
        assert gate.needs_teachers == needs
        assert Router(gate, Dense(), combine="loss").needs_teachers == needs
    assert not LinearGate.needs_teachers


def test_maps_are_averaged() -> None:
    model = Model(randomise(Maps(), 1), ["image"], taps=["conv2"])
    step = step_with(model)
    mean = step.student.features["conv2"].mean(dim=(2, 3)).detach()
    assert torch.equal(read("student_feature", step, source="conv2", width=WIDTH), mean)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_input_can_be_detached_and_teachers_never_get_a_gradient(kind: str, detach: bool) -> None:
    pool, model = strangers(3), student()
    for name in pool.names:
        pool.teacher(name).thaw()
    gate = KINDS[kind](CLASSES, 3, on="logits_and_stats", detach_input=detach)
    scores_of(gate, make_step(pool, student=model)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in gate.named_parameters() if "bias" not in n)
    assert (model.network.fc1.weight.grad is None) == detach
    assert all(p.grad is None for p in pool.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_scored_on_their_own_and_state_comes_back(kind: str) -> None:
    gate, other = (KINDS[kind](CLASSES, 3, on="logits_and_stats") for _ in range(2))
    batch = make_batch(6)
    whole = scores_of(gate, step_with(batch=batch))
    assert whole.shape == (6, 3)
    row = {key: value[2:3] for key, value in batch.items()}
    torch.testing.assert_close(scores_of(gate, step_with(batch=row)), whole[2:3], rtol=1e-4, atol=1e-5)
    other.load_state_dict(gate.state_dict())
    assert torch.equal(scores_of(other, step_with(batch=batch)), whole)


def test_linear_gate_is_one_affine_map() -> None:
    gate, step = LinearGate(CLASSES, 3), step_with()
    expected = step.student.logits @ gate.layer.weight.T + gate.layer.bias
    torch.testing.assert_close(gate(step), expected)
    assert torch.equal(LinearGate(CLASSES, 3, zero_init=True)(step), torch.zeros(6, 3))


@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("gelu", torch.nn.functional.gelu)])
def test_mlp_gate_has_two_layers(activation, function) -> None:
    gate, step = MLPGate(CLASSES, 3, hidden=7, activation=activation), step_with()
    first, _, last = gate.layers
    torch.testing.assert_close(gate(step), last(function(first(step.student.logits.detach()))))
    assert first.out_features == 7


def test_jitter_only_in_training_new_in_every_step_and_resumed_exactly() -> None:
    gate = LinearGate(CLASSES, 3, jitter=0.5)
    plain = gate(step_with(training=False))
    assert torch.equal(gate(step_with(training=False)), plain)
    first, second = gate(step_with()), gate(step_with())
    assert not torch.equal(first, second)
    again = LinearGate(CLASSES, 3, jitter=0.5)
    again.load_state_dict(gate.state_dict())
    assert torch.equal(again(step_with()), gate(step_with()))
    with torch.no_grad():
        gate.layer.weight.copy_(torch.eye(4)[:3])
        gate.layer.bias.zero_()
    logits = step_with().student.logits[:, :3]
    factor = gate(step_with()) / logits
    assert (factor >= 0.5).all()
    assert (factor < 1.5).all()
    assert factor.std() > 0.1


def test_cosine_scores_known_values() -> None:
    x = torch.tensor([[3.0, 4.0], [-2.0, 0.0], [0.0, 0.0]])
    expected = torch.tensor([[0.6, 0.8], [-1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(cosine_scores(x, torch.tensor([[5.0, 0.0], [0.0, 0.1]])), expected)


def test_cosine_gate_scale_starts_at_two_and_is_clamped() -> None:
    gate, step = CosineGate(CLASSES, 3), step_with()
    cosines = cosine_scores(gate.project(step.student.logits.detach()), gate.directions)
    torch.testing.assert_close(gate(step), 2 * cosines)
    with torch.no_grad():
        gate.log_scale.fill_(9.0)
    torch.testing.assert_close(gate(step), 100 * cosines)
    assert gate.directions.shape == (3, 256)


def test_prototype_gate_gives_what_the_contrast_reads() -> None:
    torch.manual_seed(0)
    gate, step = PrototypeGate(CLASSES, 500, scale=3.0), step_with()
    found = gate(step)
    torch.testing.assert_close(found.logits, 3 * cosine_scores(step.student.logits.detach(), gate.prototypes))
    assert found.details["prototypes"] is gate.prototypes
    assert torch.equal(found.details["input"], step.student.logits.detach())
    assert gate.prototypes.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_the_parameters_permutes_the_scores(kind: str) -> None:
    order = torch.tensor([2, 0, 1])
    gate = KINDS[kind](CLASSES, 3)
    before = scores_of(gate, step_with())
    with torch.no_grad():
        for name, parameter in gate.named_parameters():
            if name in ("layer.weight", "layer.bias", "layers.2.weight", "layers.2.bias", "directions", "prototypes"):
                parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(scores_of(gate, step_with()), before[:, order])


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_router(kind: str) -> None:
    router = Router(KINDS[kind](CLASSES, 3, on="teacher_stats"), TopK(2), combine="loss")
    routing = make_step(strangers(3), router).routing
    torch.testing.assert_close(routing.weights.sum(1), torch.ones(6))


def test_refused_options() -> None:
    with pytest.raises(ConfigError, match="on 'student_feature' needs 'source', a tap of the student, and 'width'"):
        LinearGate(CLASSES, 3, on="student_feature")
    with pytest.raises(ConfigError, match="on 'input_feature' needs 'source', a field of the batch"):
        LinearGate(CLASSES, 3, on="input_feature", source="left")
    with pytest.raises(ConfigError, match="on 'teacher_stats' reads no 'source' and knows its 'width'"):
        LinearGate(CLASSES, 3, on="teacher_stats", width=9)


def test_values_of_another_size_are_refused() -> None:
    step = step_with()
    with pytest.raises(ModelError, match=r"'input_feature' got values \(6, 8\); expected \[batch, 9\] \(its 'width'\)"):
        read("input_feature", step, source="left", width=9)
    with pytest.raises(DataError, match=r"reads field 'lefd'.*left"):
        read("input_feature", step, source="lefd", width=8)
    with pytest.raises(ModelError, match="needs tap 'fc1'"):
        read("student_feature", step, source="fc1", width=WIDTH)


def test_dense_logits_are_refused() -> None:
    model = Model(randomise(DenseMaps(), 1), ["image"])
    step = make_step(make_pool("dense", masked=False), student=model)
    with pytest.raises(ModelError, match=r"a gate on 'student_logits' got values \(6, 4, 8, 8\)"):
        read("student_logits", step)
    with pytest.raises(ModelError, match="teacher statistics need one prediction an instance"):
        read("teacher_stats", step)


def test_registered_without_injected_options() -> None:
    for kind, cls in KINDS.items():
        assert GATES.get(kind) is cls
        assert {"on", "source", "width", "detach_input"} <= set(GATES.parameters(kind))
        assert not {"num_classes", "num_teachers"} & set(GATES.parameters(kind))
