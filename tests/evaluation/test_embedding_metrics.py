"""Retrieval among groups, classes by name, probes: by hand and by naive loops."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from moekd.errors import DataError, NonFiniteError
from moekd.evaluation import Collector, Embedded, EmbeddingSettings, retrieval
from moekd.evaluation.embedding_metrics import (
    candidates,
    check_class_names,
    fit_probes,
    flatten_metrics,
    measure_probes,
    measure_retrieval,
    measure_zero_shot,
    modality_pair,
    seen_modality,
    text_class_vectors,
)
from moekd.signals import Signals

EYE = torch.eye(4)


def embedded(
    image: Tensor, text: Tensor | None = None, labels: Tensor | None = None, groups: Tensor | None = None
) -> Embedded:
    """Rows in order, each its own group; texts of one group are equal where their embeddings are."""
    ids = torch.arange(len(image))
    values = {"image": image} | ({} if text is None else {"text": text})
    return Embedded(ids, labels, ids if groups is None else groups, None, values, {"image": ids, "text": ids})


def test_groups_make_every_picture_of_a_concept_right():
    # three pictures (two of concept 7, one of concept 8), a caption for each concept
    image = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    text = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = retrieval(image, text, groups=(torch.tensor([7, 7, 8]), torch.tensor([8, 7])), ks=(1,))
    assert found["image_to_text_r1"] == found["text_to_image_r1"] == 1.0
    swapped = retrieval(image, text, groups=(torch.tensor([7, 7, 8]), torch.tensor([7, 8])), ks=(1, 2, 3))
    assert swapped["image_to_text_r1"] == 0.0
    assert swapped["image_to_text_median_rank"] == 2.0
    # text 0 finds its best picture (row 1) behind row 2; text 1 finds row 2 behind rows 0 and 1
    assert [swapped[f"text_to_image_r{k}"] for k in (1, 2, 3)] == [0.0, 0.5, 1.0]


def test_groups_have_to_fit_and_somebody_has_to_belong_together():
    with pytest.raises(DataError, match="groups need an integer"):
        retrieval(EYE, EYE, groups=(torch.arange(3), torch.arange(4)))
    with pytest.raises(DataError, match="no query has a right answer"):
        retrieval(EYE, EYE, groups=(torch.arange(4), torch.arange(4) + 10))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4))
def test_grouped_retrieval_is_that_of_a_loop(seed: int, rows: int, concepts: int):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(rows, 3, generator=generator), torch.randn(rows, 3, generator=generator)
    groups = torch.randint(0, concepts, (rows,), generator=generator)
    found = retrieval(image, text, groups=(groups, groups), ks=(1, 3))
    cosines = nn.functional.normalize(image, dim=1) @ nn.functional.normalize(text, dim=1).T
    for name, scores in (("image_to_text", cosines), ("text_to_image", cosines.T)):
        ranks = []
        for row in range(rows):
            order = sorted(range(rows), key=lambda j: -float(scores[row, j]))
            ranks.append(1 + next(i for i, j in enumerate(order) if groups[j] == groups[row]))
        # ranks count wrong answers before the first right one
        for k in (1, 3):
            assert found[f"{name}_r{k}"] == pytest.approx(sum(r <= k for r in ranks) / rows)


def test_a_caption_that_pictures_of_a_concept_share_is_one_candidate():
    ids, groups = torch.arange(4), torch.tensor([0, 0, 1, 1])
    same = torch.tensor([5, 5, 6, 6])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    image = torch.tensor([[0.1, 1.0], [1.0, 0.0], [0.0, 1.0], [0.2, 1.0]])
    values = {"image": image, "text": text}
    rows = Embedded(ids, None, groups, None, values, {"image": ids, "text": same})
    assert candidates(rows, "text").tolist() == [0, 2]
    assert candidates(rows, "image").tolist() == [0, 1, 2, 3]
    found = measure_retrieval(rows)
    assert found is not None
    assert (found["n_image"], found["n_text"]) == (4, 2)
    assert found["image_to_text_r1"] == 0.75, "row 0 finds the other caption first; its rank is 2, not 3"
    assert found["image_to_text_r5"] == 1.0
    assert found["text_to_image_r1"] == 1.0
    assert found["retrieval_r1"] == 0.875
    assert flatten_metrics({"retrieval": found})["retrieval_r1"] == 0.875


def test_the_pair_has_two_modalities_of_one_width_with_text_last():
    assert modality_pair(embedded(EYE)) is None
    rows = embedded(EYE, EYE)
    assert modality_pair(rows) == ("image", "text")
    odd = Embedded(rows.ids, None, rows.groups, None, {"text": EYE, "image": torch.ones(4, 3), "audio": EYE})
    assert modality_pair(odd) == ("audio", "text")
    assert seen_modality(odd) == "image"
    assert modality_pair(Embedded(rows.ids, None, rows.groups, None, {"a": EYE, "b": EYE})) == ("a", "b")
    assert measure_retrieval(embedded(EYE)) is None


def test_zero_shot_names_the_nearest_class():
    labels = torch.tensor([0, 1, 2, 0])
    found = measure_zero_shot(embedded(EYE[[0, 1, 2, 1]], labels=labels), EYE[:3])
    assert found is not None
    assert found["accuracy"] == 0.75
    assert found["top5_accuracy"] == 1.0
    assert found["n"] == 4
    assert found["calibration_error"] == pytest.approx(0.25, abs=1e-6), "all four are sure, one is wrong"
    unlabelled = measure_zero_shot(embedded(EYE, labels=torch.tensor([0, -1, 2, -1])), EYE[:3])
    assert unlabelled is not None
    assert unlabelled["n"] == 2
    assert measure_zero_shot(embedded(EYE, labels=torch.full((4,), -1)), EYE) is None
    assert measure_zero_shot(embedded(EYE), EYE) is None
    assert measure_zero_shot(embedded(EYE, labels=labels), torch.eye(3)) is None, "widths differ"


class Words(nn.Module):
    """A text tower that knows one direction a word."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def embed_texts(self, texts: list[str]) -> Tensor:
        self.modes.append(self.training)
        return self.dropout(torch.tensor([[float(text.count(w)) for w in ("cat", "dog")] for text in texts]))


def test_class_vectors_come_from_the_text_tower_in_eval_mode():
    network = Words().train()
    vectors = text_class_vectors(network, EmbeddingSettings(["cat", "dog"], templates=["a {}.", "{} {}"]))
    assert vectors is not None
    torch.testing.assert_close(vectors, torch.eye(2))
    assert network.modes == [False]
    assert network.training
    assert text_class_vectors(network, EmbeddingSettings(["cat", "dog"], templates=None)) is None
    assert text_class_vectors(nn.Linear(1, 1), EmbeddingSettings(["cat"])) is None


def test_names_and_templates_are_checked():
    check_class_names(EmbeddingSettings(["a"], templates=None), 2)
    with pytest.raises(DataError, match="expected 2 names"):
        check_class_names(EmbeddingSettings(["a"]), 2)
    with pytest.raises(DataError, match="no place"):
        check_class_names(EmbeddingSettings(["a", "b"], templates=["none"]), 2)


def test_probes_use_labelled_rows_alone():
    labels = torch.tensor([0, 1, 2, -1])
    settings_ = EmbeddingSettings(["a", "b", "c"], knn_k=1)
    probes = fit_probes(embedded(EYE, labels=labels), settings_)
    assert probes is not None
    assert probes.labels.tolist() == [0, 1, 2]
    test = embedded(EYE[[0, 1, 2, 2]], labels=torch.tensor([0, 1, 2, 0]))
    found = measure_probes(probes, test, settings_)
    assert found["knn"] == {"accuracy": 0.75, "k": 1, "n": 4, "train_rows": 3, "modality": "image"}
    assert found["linear_probe"]["accuracy"] == 0.75
    flat = flatten_metrics(found)
    assert flat == {"knn_accuracy": 0.75, "linear_probe_accuracy": 0.75}
    assert fit_probes(embedded(EYE, labels=torch.full((4,), -1)), settings_) is None
    assert fit_probes(embedded(EYE), settings_) is None
    assert measure_probes(probes, embedded(EYE), settings_) == {}
    assert fit_probes(embedded(EYE, labels=labels), EmbeddingSettings(["a"], knn_k=None, linear=False)) is None


def test_one_class_is_always_right():
    settings_ = EmbeddingSettings(["a"], knn_k=2)
    rows = embedded(EYE, labels=torch.zeros(4, dtype=torch.int64))
    probes = fit_probes(rows, settings_)
    assert probes is not None
    assert {part["accuracy"] for part in measure_probes(probes, rows, settings_).values()} == {1.0}


def test_the_worst_teacher_is_a_headline():
    flat = flatten_metrics({"teachers": {"a": {"r2": 0.9}, "b": {"r2": 0.5}, "c": {"r2": math.nan}}})
    assert flat == {"worst_teacher_r2": 0.5, "mean_teacher_r2": 0.7}


def batch(ids: list[int], **more: Tensor) -> dict[str, Tensor]:
    return {"id": torch.tensor(ids), "label": torch.tensor(ids) % 2, **more}


def said(ids: list[int], width: int = 2) -> Signals:
    values = torch.tensor(ids).float()[:, None].expand(-1, width)
    return Signals(values, embeddings={"image": values}, heads={"logit_scale": torch.full((len(ids),), 7.0)})


def test_the_collector_keeps_rows_once_and_in_order():
    collector = Collector(["picture"], {"picture": {"modality": "image"}}, same="concept")
    for ids in ([4, 2], [9, 2, 1]):
        picture = torch.tensor([[float(i // 3)] for i in ids])
        collector.add(batch(ids, picture=picture, concept=torch.tensor(ids)[:, None] + 10), said(ids))
    rows = collector.result()
    assert rows.ids.tolist() == [1, 2, 4, 9]
    assert rows.groups.tolist() == [11, 12, 14, 19]
    assert rows.labels is not None
    assert rows.labels.tolist() == [1, 0, 0, 1]
    assert rows.embeddings["image"][:, 0].tolist() == [1, 2, 4, 9]
    assert rows.scale == 7.0
    assert rows.predicted is not None
    contents = rows.contents["image"].tolist()
    assert contents[0] == contents[1], "rows 1 and 2 hold equal pictures"
    assert len(set(contents)) == 3


def test_the_collector_keeps_what_it_is_asked_for():
    collector = Collector(keep=[2, 9])
    collector.add(batch([1, 2]), said([1, 2]))
    collector.add(batch([5, 7]), said([5, 7]))
    collector.add(batch([9]), said([9]))
    rows = collector.result()
    assert rows.ids.tolist() == [2, 9]
    assert rows.groups.tolist() == [2, 9], "without a field every row is its own"
    assert rows.contents["image"].tolist() == [2, 9], "without a field of the modality every input is its own"


def test_the_collector_refuses_an_empty_split_and_an_unknown_field():
    with pytest.raises(DataError, match="no rows"):
        Collector().result()
    with pytest.raises(DataError, match="no field 'concept'"):
        Collector(same="concept").add(batch([1]), said([1]))


def test_nan_embeddings_are_an_error_that_names_rows():
    rows = embedded(torch.tensor([[1.0, 0.0], [math.nan, 0.0], [math.inf, 0.0]]))
    with pytest.raises(NonFiniteError, match=r"student: 2 of 3 embeddings of modality 'image'.*ids 1, 2"):
        rows.check_finite("student")


SHARE = """
import sys, torch, torch.distributed as dist
from moekd.evaluation import Collector
from moekd.signals import Signals
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
collector = Collector(same="concept")
for ids in ([[0, 1, 2], [6, 7]] if rank == 0 else [[3, 4, 5], [8, 9, 10]]):
    values = torch.tensor(ids).float()[:, None].expand(-1, 3)
    batch = {"id": torch.tensor(ids), "label": torch.tensor(ids) % 2, "concept": torch.tensor(ids)[:, None] // 2}
    collector.add(batch, Signals(embeddings={"image": values}, heads={"logit_scale": torch.ones(len(ids)) * 2}))
rows = collector.result()
torch.save({"ids": rows.ids, "groups": rows.groups, "image": rows.embeddings["image"]}, f"{folder}/{rank}.pt")
assert rows.scale == 2.0
dist.destroy_process_group()
"""


def test_two_processes_have_the_rows_of_the_whole(tmp_path: Path):
    processes = [subprocess.Popen([sys.executable, "-c", SHARE, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["ids"].tolist() == list(range(11))
        assert found["groups"].tolist() == [i // 2 for i in range(11)]
        assert found["image"][:, 2].tolist() == list(range(11))
