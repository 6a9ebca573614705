"""Rank agreement against scipy and a plain loop; its ends; queries with few negatives; groups and missing rows."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor

from moekd.errors import DataError
from moekd.evaluation import Embedded
from moekd.evaluation.embedding_metrics import flatten_metrics
from moekd.evaluation.rank_agreement import measure_rank_agreement, rank_agreement


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


def coarse(image: Tensor, text: Tensor) -> Tensor:
    """A match function that is not symmetric, with many ties."""
    return (3 * (image[:, 0] - 2 * text[:, 1])).round()


def loop(student: Tensor, said: Tensor, groups: tuple[Tensor, Tensor], k: int) -> list[float]:
    """Tau of every row of two matrices of scores, from the definition."""
    taus = []
    for row in range(len(student)):
        wrong = [j for j in range(student.shape[1]) if groups[0][row] != groups[1][j]]
        near = sorted(wrong, key=lambda j: -float(student[row, j]))[:k]
        tau = kendalltau(student[row, near].numpy(), said[row, near].numpy()).statistic if len(near) > 1 else math.nan
        constant = len(near) > 1 and len(set(said[row, near].tolist())) == 1
        taus.append(0.0 if constant else float(tau))
    return taus


@pytest.mark.parametrize("k", [2, 5, 50])
@pytest.mark.parametrize("scorer", [None, coarse], ids=["cosine", "ties"])
def test_equals_scipy(k: int, scorer) -> None:
    torch.manual_seed(3)
    student = torch.randn(9, 4), torch.randn(7, 4)
    teacher = torch.randn(9, 6), torch.randn(7, 6)
    groups = torch.arange(9) % 5, torch.arange(7) % 5
    own = unit(student[0]) @ unit(student[1]).T
    said = unit(teacher[0]) @ unit(teacher[1]).T
    if scorer is not None:
        said = torch.stack([scorer(image.expand(7, -1), teacher[1]) for image in teacher[0]])
    found = rank_agreement(student, teacher, groups, k, scorer)
    for tau, scores, judged, both in (
        (found[0], own, said, groups),
        (found[1], own.T, said.T, (groups[1], groups[0])),
    ):
        torch.testing.assert_close(tau, torch.tensor(loop(scores, judged, both, k)), rtol=1e-5, atol=1e-6)


def test_the_same_order_is_one_and_the_reversed_one_minus_one() -> None:
    student = torch.randn(8, 3), torch.randn(8, 3)
    groups = torch.arange(8), torch.arange(8)
    for sign in (1.0, -1.0):
        for tau in rank_agreement(student, (3 * student[0], sign * student[1]), groups, 4):
            assert tau.tolist() == [sign] * 8


def test_right_answers_take_no_part() -> None:
    """A teacher that disagrees on the right answer alone has the same order as the student."""
    image, text = torch.eye(4)[:1], torch.tensor([[9.0, 1, 0, 0], [3, 1, 0, 0], [2, 1, 0, 0], [1, 1, 0, 0]])
    groups = torch.tensor([0]), torch.tensor([0, 1, 2, 3])
    turned = text.clone()
    turned[0, 0] = -9
    assert rank_agreement((image, text), (image, turned), groups, 4)[0].tolist() == [1.0]
    assert rank_agreement((image, text), (image, -text), groups, 4)[0].tolist() == [-1.0]
    assert math.isnan(rank_agreement((image, text), (image, text), groups, 4)[1][0]), "one picture orders nothing"


def test_a_teacher_without_an_opinion_agrees_in_nothing() -> None:
    student, groups = (torch.randn(5, 3), torch.randn(5, 3)), (torch.arange(5), torch.arange(5))
    for tau in rank_agreement(student, student, groups, 3, lambda image, text: torch.zeros(len(image))):
        assert tau.tolist() == [0.0] * 5


@pytest.mark.parametrize(("k", "rows"), [(1, 4), (4, 3)])
def test_mistakes(k: int, rows: int) -> None:
    student, groups = (torch.randn(4, 3), torch.randn(4, 3)), (torch.arange(4), torch.arange(4))
    with pytest.raises(DataError, match="rank agreement needs k"):
        rank_agreement(student, (student[0][:rows], student[1]), groups, k)


def embedded(rows: list[int], width: int, seed: int, groups: list[int] | None = None) -> Embedded:
    table = torch.randn(40, 2, width, generator=torch.Generator().manual_seed(seed))[rows]
    ids, number = torch.tensor(rows), torch.tensor(groups or rows)
    contents = {"image": ids, "text": number}
    return Embedded(ids, None, number, None, {"image": table[:, 0], "text": table[:, 1]}, contents)


def test_means_over_queries_both_ways_on_the_rows_that_both_have() -> None:
    rows = [1, 4, 5, 8, 9, 12]
    student, teacher = embedded(rows, 5, 0), embedded([0, 1, 4, 8, 9, 12, 13], 3, 1)
    found = measure_rank_agreement(student, teacher, 3)
    shared = [1, 4, 8, 9, 12]
    both = [
        tuple(embedded(shared, width, seed).embeddings[m] for m in ("image", "text"))
        for width, seed in ((5, 0), (3, 1))
    ]
    ids = torch.tensor(shared)
    forth, back = (float(tau.mean()) for tau in rank_agreement(*both, (ids, ids), 3))
    assert found == pytest.approx(
        {"tau": (forth + back) / 2, "image_to_text": forth, "text_to_image": back, "k": 3, "n": 10}, abs=1e-6
    )
    assert flatten_metrics({"rank_agreement": {"a": found, "b": found | {"tau": 1.0}}}) == pytest.approx(
        {"rank_agreement": (found["tau"] + 1) / 2}
    )


def test_equal_texts_of_a_group_are_one_candidate() -> None:
    groups = [0, 0, 1, 1, 2, 2]
    found = measure_rank_agreement(embedded([0, 1, 2, 3, 4, 5], 4, 0, groups), embedded([0, 1, 2, 3, 4, 5], 4, 1), 8)
    assert found["n"] == 6 + 3


def test_what_can_not_be_compared_is_left_out() -> None:
    student, teacher = embedded([0, 1, 2, 3], 4, 0), embedded([0, 1, 2, 3], 4, 1)
    lone = Embedded(teacher.ids, None, teacher.groups, None, {"image": teacher.embeddings["image"]}, {})
    assert measure_rank_agreement(student, lone, 2) is None
    assert measure_rank_agreement(lone, teacher, 2) is None
    assert measure_rank_agreement(embedded([0, 1], 4, 0), embedded([0, 1], 4, 1), 2) is None, "one wrong answer each"
    teacher.embeddings["text"] = torch.randn(4, 7)
    assert measure_rank_agreement(student, teacher, 2) is None, "cosines need one width"
    assert measure_rank_agreement(student, teacher, 2, scorer=lambda image, text: text[:, 6]) is not None
