"""Regressors reach the teacher's shape from any of the student's that make sense."""

from __future__ import annotations

import pytest
import torch

from moekd.objectives import make_regressor

VECTOR = [((12,), (12,)), ((12,), (5,)), ((5,), (12,)), ((300,), (84,))]
MAP = [
    ((4, 8, 8), (6, 8, 8)),
    ((4, 8, 8), (6, 4, 4)),
    ((4, 4, 4), (6, 8, 8)),
    ((4, 9, 7), (6, 8, 7)),
    ((4, 5, 5), (6, 14, 14)),
    ((4, 28, 28), (6, 7, 7)),
    ((4, 8, 8), (10,)),
]


@pytest.mark.parametrize("kind", ["full", "thin"])
@pytest.mark.parametrize(("student", "teacher"), [*VECTOR, *MAP])
def test_shapes_fit(student: tuple, teacher: tuple, kind: str) -> None:
    assert make_regressor(student, teacher, kind)(torch.randn(3, *student)).shape == (3, *teacher)


def test_tokens_keep_their_number() -> None:
    assert make_regressor((6, 8), (6, 3))(torch.randn(2, 6, 8)).shape == (2, 6, 3)


def test_the_thin_one_for_vectors_is_a_single_filter() -> None:
    assert sum(p.numel() for p in make_regressor((300,), (84,), "thin").parameters()) == 4


def test_norm_adds_batch_normalisation() -> None:
    assert isinstance(make_regressor((4, 8, 8), (6, 8, 8), norm=True)[1], torch.nn.BatchNorm2d)
