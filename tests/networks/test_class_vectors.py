"""A classifier by stored class vectors: cosines, projectors, taking over, and fewer classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moekd.errors import ConfigError, ModelError
from moekd.networks.class_vectors import ClassVectorOptions, ClassVectors
from moekd.networks.small_cnn import CnnEncoder
from moekd.networks.two_tower import TwoTower

from .test_two_tower import IMAGE

PLAIN = ClassVectorOptions(projector="none", scale=10.0)


def test_logits_are_scaled_cosines() -> None:
    classifier = ClassVectors(PLAIN, 2, 3)
    classifier.adopt(torch.tensor([[1.0, 0.0], [0.0, 5.0], [-3.0, -3.0]]))
    logits = classifier(torch.tensor([[2.0, 0.0], [3.0, 4.0]]))
    expected = torch.tensor([[10, 0, -10 / math.sqrt(2)], [6, 8, -14 / math.sqrt(2)]])
    torch.testing.assert_close(logits, expected)


def test_the_mean_of_a_class_may_keep_its_length() -> None:
    classifier = ClassVectors(PLAIN, 2, 2)
    classifier.adopt(torch.tensor([[0.5, 0.0], [0.0, 0.0]]), unit=False)
    torch.testing.assert_close(classifier(torch.tensor([[3.0, 0.0]])), torch.tensor([[5.0, 0.0]]))


def test_fewer_classes_are_the_same_as_masked_logits() -> None:
    torch.manual_seed(0)
    whole, few = (ClassVectors(ClassVectorOptions(6), 4, count).eval() for count in (5, 2))
    few.load_state_dict(whole.state_dict() | {"vectors": whole.vectors[[3, 1]]})
    rows = torch.randn(7, 4)
    masked = whole(rows, 20.0)[:, [3, 1]]
    torch.testing.assert_close(few(rows, 20.0), masked)
    assert torch.equal(few(rows, 20.0).argmax(dim=1), masked.argmax(dim=1))


@pytest.mark.parametrize("projector", ["mlp", "linear"])
@pytest.mark.parametrize("width", [3, 9])
def test_any_width_of_the_teacher_can_be_met(projector: str, width: int) -> None:
    classifier = ClassVectors(ClassVectorOptions(width, projector), 4, 5)
    assert classifier(torch.randn(6, 4), 1.0).shape == (6, 5)
    assert "vectors" in classifier.state_dict()
    assert all(name.startswith("projector") for name, _ in classifier.named_parameters())


def test_the_projector_of_promptkd_has_two_layers_and_a_batch_norm() -> None:
    kinds = [type(layer) for layer in ClassVectors(ClassVectorOptions(768), 512, 2).projector]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert nn.BatchNorm1d not in map(type, ClassVectors(ClassVectorOptions(8, norm=False), 4, 2).projector)


def test_the_scale_of_the_model_or_a_number() -> None:
    own, fixed = ClassVectors(ClassVectorOptions(projector="none"), 3, 4), ClassVectors(PLAIN, 3, 4)
    fixed.adopt(own.vectors)
    rows = torch.randn(2, 3)
    torch.testing.assert_close(own(rows, 10.0), fixed(rows, 77.0))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="the embedding has 3 numbers, the class vectors 4"):
        ClassVectors(ClassVectorOptions(4, "none"), 3, 2)
    with pytest.raises(ConfigError, match="number of classes"):
        ClassVectors(PLAIN, 3, 0)
    with pytest.raises(ModelError, match=r"expected \[2, 3\]"):
        ClassVectors(PLAIN, 3, 2).adopt(torch.zeros(2, 4))


def test_a_two_tower_student_classifies_by_them() -> None:
    options = ClassVectorOptions(7, "linear")
    network = TwoTower(5, tower=CnnEncoder((8, 12)), width=6, class_vectors=options, fields={"image": IMAGE}).eval()
    said = network(torch.randn(3, 3, 16, 16))
    torch.testing.assert_close(said["logits"], network.classifier(said["embeddings"]["image"], 1 / 0.07))
    with pytest.raises(ConfigError, match="another classifier"):
        TwoTower(5, tower=CnnEncoder((8, 12)), classifier="new", class_vectors=options, fields={"image": IMAGE})
