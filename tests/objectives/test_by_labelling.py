"""Means of their own over labelled and unlabelled rows."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError
from moekd.objectives import KD, RKD, ByLabelling, CrossEntropy, reduce

from ..builders import make_batch, make_pool, make_step


def test_both_sets_weigh_the_same_whatever_their_size() -> None:
    pool, batch = make_pool("vectors", masked=False), make_batch()
    rows = len(batch["id"])
    batch["labelled"] = torch.arange(rows) < 1
    step = make_step(pool, batch=batch)
    whole = KD()(step)["kd"]
    terms = ByLabelling(KD())(step)
    assert set(terms) == {"kd/labelled", "kd/unlabelled"}
    torch.testing.assert_close(reduce(terms["kd/labelled"]), whole[0])
    torch.testing.assert_close(reduce(terms["kd/unlabelled"]), whole[1:].mean())


def test_without_hidden_labels_all_rows_are_labelled() -> None:
    batch = make_batch()
    batch.pop("labelled", None)
    step = make_step(make_pool("vectors", masked=False), batch=batch)
    terms = ByLabelling(KD())(step)
    torch.testing.assert_close(reduce(terms["kd/labelled"]), KD()(step)["kd"].mean())
    assert reduce(terms["kd/unlabelled"]) == 0


def test_rows_that_the_objective_leaves_out_stay_out() -> None:
    batch = make_batch()
    rows = len(batch["id"])
    batch["labelled"] = torch.arange(rows) % 2 == 0
    step = make_step(make_pool("vectors", masked=False), batch=batch)
    name = "cross_entropy/student"
    terms = ByLabelling(CrossEntropy())(step)
    torch.testing.assert_close(reduce(terms[f"{name}/labelled"]), reduce(CrossEntropy()(step)[name]))
    assert reduce(terms[f"{name}/unlabelled"]) == 0


def test_it_reads_what_the_objective_reads() -> None:
    inner = KD(teacher="vectors")
    assert ByLabelling(inner).variants(make_pool("vectors")) == ["vectors"]
    assert ByLabelling(inner).reads_logits
    with pytest.raises(ConfigError, match="compares the rows of a batch"):
        ByLabelling(RKD(student_tap="fc1", teacher_tap="fc1"))
