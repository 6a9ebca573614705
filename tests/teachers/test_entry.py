"""Teachers that are entered at a tap: the whole forward's signals and gradients, with nothing run below the tap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moekd.errors import ModelError
from moekd.networks import AudioCnn, AvFusionCnn, MlpI
from moekd.teachers import Teacher
from moekd.teachers.entry import activations_at, enter, without_data

from ..builders import TAPS, make_batch, make_mask, make_pool, make_teacher, same_state, snapshot

ENTERED = [(kind, tap) for kind, taps in TAPS.items() for tap in taps if (kind, tap) != ("late", "left")]


@pytest.mark.parametrize(("kind", "tap"), ENTERED)
def test_signals_and_gradients_are_those_of_the_whole_forward(kind: str, tap: str) -> None:
    pool, batch = make_pool(kind), make_batch()
    teacher, mask = pool.teacher(kind), pool.mask(f"{kind}/{tap}").requires_grad_(True)
    before, modules = snapshot(teacher), dict(teacher.named_parameters())
    activation = activations_at(teacher, [tap], batch)[tap]
    gradients = []
    for logits in (pool(batch)[f"{kind}/{tap}"].logits, enter(teacher, tap, mask.adapt(activation), batch).logits):
        gradients.append([logits, *torch.autograd.grad(logits.square().sum(), mask.parameters())])
    for whole, entered in zip(*gradients, strict=True):
        torch.testing.assert_close(entered, whole, rtol=1e-4, atol=1e-6)
    assert same_state(teacher, before)
    assert all(parameter is modules[name] for name, parameter in teacher.named_parameters())
    assert not activation.requires_grad
    assert not any(module._forward_hooks for module in teacher.modules())


@pytest.mark.parametrize(
    ("network", "inputs", "taps"),
    [
        (lambda: AvFusionCnn(5), {"image": (1, 28, 28), "audio": (1, 112, 112)}, ["concat_identity", "fc1"]),
        (lambda: AudioCnn(5), {"audio": (1, 112, 112)}, ["conv2", "conv3"]),
        (lambda: MlpI(2), {"image": (2048,), "text": (768,)}, ["fc1", "fc2"]),
    ],
    ids=["av_fusion_cnn", "audio_cnn", "mlp_i"],
)
def test_published_networks_can_be_entered(
    network: Callable[[], nn.Module], inputs: dict[str, tuple[int, ...]], taps: list[str]
) -> None:
    torch.manual_seed(0)
    teacher = Teacher(network(), list(inputs), taps)
    batch = {name: torch.randn(2, *shape) for name, shape in inputs.items()}
    with torch.no_grad():
        whole, activations = teacher(batch), activations_at(teacher, taps, batch)
        for tap in taps:
            entered = enter(teacher, tap, activations[tap], batch, record=None)
            torch.testing.assert_close(entered.logits, whole.logits, rtol=1e-5, atol=1e-6)
            assert set(entered.features) == set(taps[taps.index(tap) :])


def test_nothing_below_the_tap_is_computed_and_nothing_above_it_before() -> None:
    teacher, batch, ran = make_teacher("fusion", "t", 3), make_batch(), []

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: ran.append((name, output.is_meta))

    handles = [module.register_forward_hook(note(name)) for name, module in teacher.network.named_modules() if name]
    enter(teacher, "join", torch.zeros(6, 12), batch)
    reached = [name for name, _ in ran].index("join")
    assert reached > 0
    assert all(empty for _, empty in ran[: reached + 1])
    assert not any(empty for _, empty in ran[reached + 1 :])
    ran.clear()
    activations_at(teacher, ["join"], batch)
    assert ran[-1][0] == "join"
    for handle in handles:
        handle.remove()


def test_a_branch_that_passes_the_tap_by_is_refused_and_weights_come_back() -> None:
    teacher, batch = make_teacher("late", "t", 3), make_batch()
    before, activation = teacher(batch).logits, activations_at(teacher, ["left"], batch)["left"]
    with pytest.raises(RuntimeError, match="meta"):
        enter(teacher, "left", activation, batch)
    assert torch.equal(teacher(batch).logits, before)


class Odd(nn.Module):
    """Taps that fire twice, never, or in vain, and a layer that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.vain, self.in_place = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        self.vain(x)
        return self.second(self.second(self.in_place(self.first(x))))


def test_taps_that_can_not_be_entered_are_named() -> None:
    teacher, batch = Teacher(Odd(), ["x"], name="odd"), {"x": torch.randn(3, 4)}
    for tap, message in (
        ("second", "'odd' can't be entered at 'second': it fires twice"),
        ("never", "'odd' says nothing that depends on the tap 'never'"),
    ):
        with pytest.raises(ModelError, match=message):
            enter(teacher, tap, torch.zeros(3, 4), batch)
    with pytest.raises(ModelError, match=r"with shape \(3, 4\) for an activation \(3, 5\)"):
        enter(teacher, "first", torch.zeros(3, 5), batch)
    with pytest.raises(ModelError, match=r"taps \['never'\] of teacher 'odd' take no part"):
        activations_at(teacher, ["first", "never"], batch)


def test_an_activation_is_as_the_tap_gives_it_though_the_next_layer_works_in_place() -> None:
    teacher, batch = Teacher(Odd(), ["x"]), {"x": torch.randn(9, 4)}
    found = activations_at(teacher, ["first", "in_place"], batch)
    assert float(found["first"].min()) < 0
    torch.testing.assert_close(found["first"], teacher.network.first(batch["x"]))
    torch.testing.assert_close(enter(teacher, "first", found["first"], batch).logits, teacher(batch).logits)


def test_weights_come_back_when_a_forward_fails() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="meta"), without_data(network):
        network(torch.zeros(3, 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert isinstance(network[0].weight, nn.Parameter)


def test_a_teacher_of_another_precision() -> None:
    teacher = make_teacher("fusion", "t", 3).to(torch.bfloat16)
    teacher.dtype = torch.bfloat16
    batch, mask = make_batch(), make_mask().requires_grad_(True)
    activation = activations_at(teacher, ["join"], batch)["join"]
    assert activation.dtype == torch.bfloat16
    logits = enter(teacher, "join", mask.adapt(activation), batch).logits
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in mask.parameters())
