"""A teacher is frozen, keeps its own dtype, and is known by its fingerprint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moekd.errors import DataError
from moekd.teachers import Teacher

from ..builders import Fusion, Maps, Vectors, make_batch, make_teacher, randomise


def test_frozen_from_the_start_and_after_train() -> None:
    """N5: frozen, and in eval mode whatever the parent does."""
    teacher = make_teacher("maps", "maps")
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    teacher(make_batch())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_a_parent_in_train_mode_leaves_it_in_eval_mode() -> None:
    parent = nn.ModuleDict({"teacher": make_teacher("maps", "maps"), "student": Vectors()})
    parent.train()
    assert parent["student"].training
    assert not parent["teacher"].network.norm1.training


def test_thaw_and_freeze() -> None:
    teacher = make_teacher("maps", "maps")
    teacher.thaw()
    assert teacher.network.norm1.training
    teacher(make_batch()).logits.sum().backward()
    assert all(p.grad is not None for p in teacher.parameters())
    teacher.eval()
    assert not teacher.network.norm1.training
    teacher.freeze()
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_own_dtype_inside_and_float32_logits_outside() -> None:
    full = make_teacher("fusion", "fusion")
    half = Teacher(randomise(Fusion(), 2), ["left", "right"], dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    logits = half(make_batch()).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, full(make_batch()).logits, rtol=0.1, atol=0.2)


def test_integer_inputs_keep_their_type() -> None:
    network = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    teacher = Teacher(network, ["token"], dtype=torch.bfloat16)
    assert teacher({"token": torch.tensor([[0, 4]])}).logits.shape == (1, 3)


def test_missing_field_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match="reads field 'right', which the data set does not have; did you mean 'rigth'"):
        make_teacher("vectors", "vectors")({"rigth": torch.zeros(1, 10)})


def test_fingerprint_is_a_function_of_the_content() -> None:
    assert make_teacher("maps", "a").fingerprint() == make_teacher("maps", "b").fingerprint()


@pytest.mark.parametrize(
    "key", ["network.conv1.weight", "network.norm1.running_mean", "network.norm1.num_batches_tracked"]
)
def test_fingerprint_changes_with_one_number(key: str) -> None:
    teacher = make_teacher("maps", "maps")
    before = teacher.fingerprint()
    tensor = teacher.state_dict()[key].flatten()
    tensor[0] = tensor[0] + 1 if not tensor.is_floating_point() else torch.nextafter(tensor[0], torch.tensor(9.0))
    assert teacher.fingerprint() != before


def test_fingerprint_changes_with_whatever_changes_the_signals() -> None:
    def stack(activation: nn.Module) -> nn.Module:
        return randomise(nn.Sequential(nn.Linear(8, 8), activation, nn.Linear(8, 3)), 1)

    variants = [
        Teacher(stack(nn.ReLU()), ["left"]),
        Teacher(stack(nn.Tanh()), ["left"]),
        Teacher(stack(nn.LeakyReLU(0.1)), ["left"]),
        Teacher(stack(nn.LeakyReLU(0.2)), ["left"]),
        Teacher(stack(nn.ReLU()), ["right"]),
        Teacher(stack(nn.ReLU()), ["left"], dtype=torch.bfloat16),
        Teacher(stack(nn.ReLU()), ["left"], heads={"x": nn.Identity()}),
        Teacher(stack(nn.ReLU()), ["left"], taps=["0"], heads={"x": nn.Identity()}, head_inputs={"x": "0"}),
    ]
    assert len({teacher.fingerprint() for teacher in variants}) == len(variants)


def test_fingerprint_does_not_see_addresses() -> None:
    class Lambda(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.function = lambda x: x

        def extra_repr(self) -> str:
            return repr(self.function)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.function(x)

    kept = [Lambda(), Lambda()]
    assert repr(kept[0]) != repr(kept[1])
    assert Teacher(kept[0], ["left"]).fingerprint() == Teacher(kept[1], ["left"]).fingerprint()


def test_taps_are_recorded_on_request() -> None:
    teacher = Teacher(randomise(Maps(), 1), ["image"], taps=["conv1"])
    assert list(teacher(make_batch()).features) == ["conv1"]
    assert list(teacher(make_batch(), taps=()).features) == []
    assert list(teacher(make_batch(), taps=["norm1", "conv2"]).features) == ["norm1", "conv2"]
