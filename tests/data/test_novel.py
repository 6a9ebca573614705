"""Base and novel classes: which rows training sees, which classes are candidates, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moekd.data import novel_classes, with_novel_classes
from moekd.data.arrays import ArrayField, ArraySplit, to_float
from moekd.data.dataset import FieldSpec
from moekd.errors import ConfigError, DataError
from moekd.evaluation.evaluate import among
from moekd.recipe import Recipe

NAMES = ["ant", "bee", "cat", "dog", "elk"]


def split(name: str, labels: list[int], start: int = 0) -> ArraySplit:
    spec = FieldSpec((2,), "float32", "vector")
    values = ArrayField(np.zeros((len(labels), 2)), spec, to_float)
    return ArraySplit(name, np.arange(start, start + len(labels)), np.array(labels), {"x": values})


SPLITS = {
    "train": split("train", [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
    "val": split("val", [0, 1, 2, 3, 4], 10),
    "test": split("test", [4, 3, 2, 1, 0, 0], 20),
}


def test_the_novel_classes_by_name_or_drawn() -> None:
    assert novel_classes(["dog", "bee"], NAMES) == [1, 3]
    drawn = novel_classes(0.4, NAMES, seed=3)
    assert len(drawn) == 2
    assert drawn == novel_classes(0.4, NAMES, seed=3)
    assert len({tuple(novel_classes(0.4, NAMES, seed=s)) for s in range(9)}) > 1
    with pytest.raises(DataError, match="no class 'beee'; did you mean 'bee'"):
        novel_classes(["beee"], NAMES)
    for choice in (0.01, 0.99, NAMES):
        with pytest.raises(DataError, match="both sides need at least one"):
            novel_classes(choice, NAMES)


def test_training_sees_nothing_of_them() -> None:
    found = with_novel_classes(SPLITS, [1, 3], 5, "nothing")
    assert found["train"].labels.tolist() == [0, 2, 4, 0, 2, 4]
    assert found["val"].labels.tolist() == [0, 2, 4]
    assert found["train_all"] is SPLITS["train"]
    assert found["test"] is SPLITS["test"]
    assert (found["test_base"].labels.tolist(), found["test_novel"].labels.tolist()) == ([4, 2, 0, 0], [3, 1])
    assert (found["test_base"].candidates.tolist(), found["test_novel"].candidates.tolist()) == ([0, 2, 4], [1, 3])
    assert found["test"].candidates is None


def test_or_their_rows_without_labels() -> None:
    batch = with_novel_classes(SPLITS, [1, 3], 5, "no_labels")["train"].__getitems__(list(range(10)))
    assert batch["label"].tolist() == [0, -1, 2, -1, 4, 0, -1, 2, -1, 4]
    few = with_novel_classes(SPLITS, [1, 3], 5, "no_labels", 3)["train"].__getitems__(list(range(10)))
    assert sorted(few["label"][few["labelled"]].tolist()) == [0, 2, 4]
    with pytest.raises(DataError, match="give 1 to 6"):
        with_novel_classes(SPLITS, [1, 3], 5, "no_labels", 7)


def test_few_labels_are_drawn_among_the_base_classes() -> None:
    few = with_novel_classes(SPLITS, [1, 3], 5, "nothing", 3)["train"].__getitems__(list(range(6)))
    assert sorted(few["label"][few["labelled"]].tolist()) == [0, 2, 4]


def test_a_side_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="split 'test' has no row for 'test_novel'"):
        with_novel_classes(SPLITS | {"test": split("test", [0, 1])}, [4], 5, "nothing")


def test_candidates_are_the_only_classes_in_question() -> None:
    logits = torch.randn(6, 5)
    found = among(logits, [1, 3])
    assert set(found.argmax(dim=1).tolist()) <= {1, 3}
    torch.testing.assert_close(found.softmax(dim=1)[:, [1, 3]], logits[:, [1, 3]].softmax(dim=1))
    assert not found.softmax(dim=1)[:, [0, 2, 4]].any()
    assert among(logits[:, :, None, None], [1]).shape == (6, 5, 1, 1)


def test_in_a_recipe() -> None:
    overrides = ["data.max_train=300", "data.novel.classes=0.3", "evaluation.splits=[test_base, test_novel]"]
    recipe = Recipe.load("quickstart", overrides)
    data = recipe.run_data(_dataset(recipe))
    novel = set(range(98)) - set(data.base_classes)
    assert len(novel) == 29
    assert not novel & set(data.split("train").labels.tolist())
    assert set(data.split("test_novel").labels.tolist()) <= novel
    assert data.split("test_novel").candidates.tolist() == sorted(novel)
    with pytest.raises(ConfigError, match=r"novel.classes"):
        Recipe.load("quickstart", ["data.novel.classes=1.5"])


def _dataset(recipe: Recipe):
    from moekd.config import build
    from moekd.data import DATASETS

    return build(recipe.config.data.spec, DATASETS, where="data")
