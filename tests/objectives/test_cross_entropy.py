"""Cross-entropy: who learns, which rows and pixels count."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moekd.errors import ModelError
from moekd.model import Model
from moekd.objectives import CrossEntropy, cross_entropy, reduce
from moekd.signals import Signals

from ..builders import CLASSES, DenseMaps, make_batch, make_pool, make_step, make_student, randomise


def test_hand_computed_value() -> None:
    loss = cross_entropy(torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]), torch.tensor([1, 0]))
    torch.testing.assert_close(loss, torch.tensor([math.log(2.0), math.log(4 / 3)]))


def test_label_smoothing_spreads_the_target() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    target = F.one_hot(labels, 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1), -(target * logits.log_softmax(1)).sum(1))


def test_gradient_in_double_precision() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, torch.tensor([0, 3, 1]), 0.1), (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
    loss = cross_entropy(logits, torch.tensor([1]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([2e4]), rtol=0.01, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))
def test_dense_mean_over_counted_pixels_equals_a_loop(rows: int, side: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 3, side, side, generator=rng)
    labels = torch.randint(0, 3, (rows, side, side), generator=rng)
    loss = cross_entropy(logits, labels, ignore_index=0)
    for b in range(rows):
        terms = [
            -logits[b, :, i, j].log_softmax(0)[labels[b, i, j]]
            for i in range(side)
            for j in range(side)
            if labels[b, i, j] != 0
        ]
        expected = torch.stack(terms).mean() if terms else torch.zeros(())
        torch.testing.assert_close(loss[b], expected)


def test_only_labelled_rows_count() -> None:
    step = make_step(make_pool(masked=False), batch=make_batch(4, labelled=[True, False, True, False]))
    loss = reduce(CrossEntropy()(step)["cross_entropy/student"])
    logits, labels = step.student.logits, step.batch["label"]
    torch.testing.assert_close(loss, F.cross_entropy(logits[[0, 2]], labels[[0, 2]]))


def test_objective_smooths_labels() -> None:
    step = make_step(make_pool(masked=False))
    loss = reduce(CrossEntropy(label_smoothing=0.2)(step)["cross_entropy/student"])
    torch.testing.assert_close(loss, F.cross_entropy(step.student.logits, step.batch["label"], label_smoothing=0.2))


def test_labels_of_unlabelled_rows_do_not_matter() -> None:
    batch, losses = make_batch(4, labelled=[True, False, True, False]), []
    for hidden in (-1, 2, -100):
        batch = batch | {"label": batch["label"].where(batch["labelled"], torch.tensor(hidden))}
        losses.append(reduce(CrossEntropy()(make_step(make_pool(masked=False), batch=batch))["cross_entropy/student"]))
    assert losses[0] == losses[1] == losses[2]


def test_batch_without_labels_gives_zero_and_finite_gradients() -> None:
    """N3: no row has a label."""
    student = make_student()
    step = make_step(make_pool(masked=False), batch=make_batch(3, labelled=[False] * 3), student=student)
    loss = reduce(CrossEntropy()(step)["cross_entropy/student"])
    loss.backward()
    assert loss.item() == 0.0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in student.parameters())


def test_without_the_field_all_rows_are_labelled() -> None:
    batch = make_batch()
    del batch["labelled"]
    step = make_step(make_pool(masked=False), batch=batch)
    loss = reduce(CrossEntropy()(step)["cross_entropy/student"])
    torch.testing.assert_close(loss, F.cross_entropy(step.student.logits, batch["label"]))


def test_rows_with_an_ignored_label_leave_the_mean() -> None:
    step = make_step(make_pool(masked=False), batch=make_batch(8) | {"label": torch.tensor([0, 1, 2, 0, 3, 1, 0, 2])})
    loss = reduce(CrossEntropy(ignore_index=0)(step)["cross_entropy/student"])
    torch.testing.assert_close(loss, F.cross_entropy(step.student.logits, step.batch["label"], ignore_index=0))


def test_dense_images_without_labels_or_with_void_alone_do_not_count() -> None:
    student = Model(randomise(DenseMaps(), 1), ["image"])
    label = torch.randint(1, CLASSES, (4, 8, 8))
    label[1] = -1
    label[2] = 0
    label[3, :4] = 0
    batch = make_batch(4) | {"label": label, "labelled": torch.tensor([True, False, True, True])}
    loss = reduce(
        CrossEntropy(ignore_index=0)(make_step(make_pool(masked=False), batch=batch, student=student))[
            "cross_entropy/student"
        ]
    )
    logits = student(batch).logits
    expected = [F.cross_entropy(logits[[b]], label[[b]], ignore_index=0) for b in (0, 3)]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize(
    ("on", "names"),
    [
        ("student", ["student"]),
        ("teachers", ["fusion", "vectors"]),
        ("all", ["student", "fusion", "vectors"]),
        ("fusion", ["fusion"]),
        (["vectors", "student"], ["vectors", "student"]),
        (["student", "all"], ["student", "fusion", "vectors"]),
    ],
)
def test_one_loss_a_model(on: str | list[str], names: list[str]) -> None:
    pool = make_pool("fusion", "vectors")
    objective = CrossEntropy(on=on)
    step = make_step(pool, variants=objective.variants(pool))
    losses = objective(step)
    assert list(losses) == [f"cross_entropy/{name}" for name in names]
    for name in names:
        logits = step.student.logits if name == "student" else pool(step.batch, [name])[name].logits
        torch.testing.assert_close(
            reduce(losses[f"cross_entropy/{name}"]), F.cross_entropy(logits, step.batch["label"])
        )
    assert list(objective.variants(pool)) == [name for name in names if name != "student"]


def test_unknown_model_is_refused() -> None:
    with pytest.raises(ModelError, match="no teacher variant 'vector'; did you mean 'vectors'"):
        CrossEntropy(on="vector")(make_step(make_pool("vectors")))


def test_a_model_without_logits_is_refused() -> None:
    student = Headless(["left"])
    with pytest.raises(ModelError, match="cross_entropy needs logits, but the model gives none"):
        CrossEntropy()(make_step(make_pool(masked=False), student=student))


class Headless(Model):
    """A model that gives an embedding and no logits."""

    def __init__(self, inputs: list[str]) -> None:
        super().__init__(torch.nn.Identity(), inputs)

    def interpret(self, output: torch.Tensor) -> Signals:
        return Signals(embeddings={"left": output})


def test_void_pixels_count_nowhere() -> None:
    logits, labels = torch.randn(3, CLASSES, 4, 4), torch.randint(0, CLASSES, (3, 4, 4))
    labels[0, :2] = -1
    labels[2] = -1
    batch = make_batch(3) | {"label": labels, "labelled": torch.ones(3, dtype=torch.bool)}
    step = make_step(make_pool(), None, batch)
    step.__dict__["student"] = Signals(logits)
    term = CrossEntropy()(step)["cross_entropy/student"]
    assert term.mask.tolist() == [True, True, False]
    expected = torch.nn.functional.cross_entropy(logits[0, :, 2:].flatten(1).T, labels[0, 2:].flatten())
    torch.testing.assert_close(term.values[0], expected)
