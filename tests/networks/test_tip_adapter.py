"""Labelled pictures that vote: the formula, its ends, what trains, what is saved, and the search of its two numbers."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from moekd.errors import ConfigError, ModelError
from moekd.model import Model
from moekd.networks import TipAdapter, TipAdapterOptions, TwoTower, ZeroShotOptions, cache_scores
from moekd.networks.class_vectors import ClassVectorOptions
from moekd.networks.small_cnn import CnnEncoder
from moekd.stages.tip_adapter import ALPHAS, BETAS, count_right, fit_tip_adapter

from .test_two_tower import IMAGE, TEXT

CPU = torch.device("cpu")


def votes(entries: int = 3, alpha: float = 2.0, beta: float = 3.0) -> TipAdapter:
    """Return two entries of class 0 and 1 at right angles, and an empty one."""
    adapter = TipAdapter(TipAdapterOptions(entries, alpha, beta), 2, 2)
    adapter.adopt(torch.tensor([[5.0, 0.0], [0.0, 0.1]]), torch.tensor([0, 1]))
    return adapter


def network(entries: int | None = 4, classes: int = 3, **options) -> TwoTower:
    torch.manual_seed(0)
    made = TwoTower(
        classes,
        tower=CnnEncoder((4, 6)),
        width=5,
        class_vectors=ClassVectorOptions(projector="none"),
        tip_adapter=None if entries is None else TipAdapterOptions(entries, **options),
        fields={"image": IMAGE},
    )
    return made.eval()


def filled(**options) -> TwoTower:
    made = network(**options)
    made.tip_adapter.adopt(torch.randn(3, 5), torch.tensor([2, 0, 2]))
    return made


def test_known_values() -> None:
    f = torch.tensor([[3.0, 4.0]])  # length 5: cosines 0.6 and 0.8 with the keys
    expected = torch.tensor([[2 * math.exp(-3 * 0.4), 2 * math.exp(-3 * 0.2)]])
    torch.testing.assert_close(votes()(f), expected)
    torch.testing.assert_close(expected, torch.tensor([[0.6023884, 1.0976233]]))
    torch.testing.assert_close(votes()(7 * f), expected, msg="the length of an embedding does not matter")


def test_the_formula_by_a_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    keys, f = (F.normalize(torch.randn(n, 6, generator=generator)) for n in (7, 4))
    labels, beta = torch.tensor([0, 2, 2, 1, 0, 2, 2]), 5.5
    found = cache_scores(f @ keys.T, F.one_hot(labels, 3).float(), beta)
    for row in range(4):
        for label in range(3):
            own = [k for k, of in zip(keys, labels.tolist(), strict=True) if of == label]
            expected = sum(math.exp(-(beta - beta * float(f[row] @ k))) for k in own)
            assert float(found[row, label]) == pytest.approx(expected, rel=1e-4)


def test_entries_in_another_order_say_the_same() -> None:
    one, other = network(), network()
    rows, labels, order = torch.randn(4, 5), torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0, 3, 1])
    one.tip_adapter.adopt(rows, labels)
    other.tip_adapter.adopt(rows[order], labels[order])
    x = torch.randn(6, 3, 16, 16)
    torch.testing.assert_close(one(x)["logits"], other(x)["logits"])


def test_logits_are_those_of_the_classes_and_the_votes() -> None:
    made, x = filled(alpha=0.7, beta=2.0), torch.randn(6, 3, 16, 16)
    said = made(x)
    plain = made.classifier(said["embeddings"]["image"], 1 / 0.07)
    torch.testing.assert_close(said["logits"], plain + made.tip_adapter(said["embeddings"]["image"]))
    assert not torch.allclose(said["logits"], plain)


@pytest.mark.parametrize("base", ["class_vectors", "zero_shot", "linear"])
def test_without_weight_or_entries_nothing_is_added(base: str) -> None:
    parts = {
        "class_vectors": {"class_vectors": ClassVectorOptions(projector="none")},
        "zero_shot": {"zero_shot": ZeroShotOptions(), "class_names": ["a", "b", "c"], "text": TEXT},
        "linear": {"classifier": "new"},
    }[base]

    def made(tip_adapter: TipAdapterOptions | None) -> TwoTower:
        torch.manual_seed(1)
        tower = CnnEncoder((4, 6))
        return TwoTower(3, tower=tower, width=5, tip_adapter=tip_adapter, fields={"image": IMAGE}, **parts).eval()

    x = torch.randn(6, 3, 16, 16)
    plain, voting = made(None)(x)["logits"], made(TipAdapterOptions(4))
    assert torch.equal(voting(x)["logits"], plain), "no entry is filled yet"
    voting.tip_adapter.adopt(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    assert not torch.equal(voting(x)["logits"], plain)
    voting.tip_adapter.mix(0, 1)
    assert torch.equal(voting(x)["logits"], plain)


def test_keys_learn_where_they_are_trained_and_empty_entries_never() -> None:
    made, x = filled(), torch.randn(6, 3, 16, 16)
    F.cross_entropy(made(x)["logits"], torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    keys = made.tip_adapter.keys
    assert keys.grad is not None
    assert (keys.grad[:3] != 0).any(dim=1).all()
    assert not keys.grad[3].any()
    assert {name for name, _ in made.tip_adapter.named_parameters()} == {"keys"}
    made.zero_grad()
    made.requires_grad_(False)
    made.model.requires_grad_(True)
    made(x)["logits"].sum().backward()
    assert keys.grad is None
    assert made.model.image_projection.weight.grad is not None


def test_everything_is_in_the_weights() -> None:
    made, copy, x = filled(), network(), torch.randn(4, 3, 16, 16)
    made.tip_adapter.mix(0.4, 6.5)
    copy.load_state_dict(safetensors.torch.load(safetensors.torch.save(made.state_dict())), strict=True)
    assert torch.equal(copy(x)["logits"], made(x)["logits"])
    assert (float(copy.tip_adapter.alpha), float(copy.tip_adapter.beta)) == pytest.approx((0.4, 6.5))


def test_filling_again_leaves_nothing_of_the_old_entries() -> None:
    adapter = votes()
    adapter.adopt(torch.tensor([[0.0, 2.0]]), torch.tensor([0]))
    assert torch.equal(adapter.keys, torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(adapter.values, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_what_does_not_fit_is_refused() -> None:
    adapter = votes()
    with pytest.raises(ModelError, match=r"4 labelled pictures, but place for 3; set tip_adapter\.entries to 4"):
        adapter.adopt(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ModelError, match=r"expected embeddings \[N, 2\] and N labels, found \[2, 3\] and \[2\]"):
        adapter.adopt(torch.randn(2, 3), torch.zeros(2, dtype=torch.int64))
    for wrong in (-1, 2):
        with pytest.raises(ModelError, match=rf"expected labels of 2 classes, found \[{wrong}\]"):
            adapter.adopt(torch.randn(1, 2), torch.tensor([wrong]))
    for options in (TipAdapterOptions(0), TipAdapterOptions(1, alpha=-1), TipAdapterOptions(1, beta=0)):
        with pytest.raises(ConfigError, match="tip_adapter"):
            TipAdapter(options, 2, 2)
    with pytest.raises(ConfigError, match="number of classes"):
        TipAdapter(TipAdapterOptions(1), 2, 0)
    with pytest.raises(ConfigError, match="logits, which the model does not give"):
        TwoTower(3, tower=CnnEncoder((4, 6)), tip_adapter=TipAdapterOptions(1), fields={"image": IMAGE})


def test_the_search_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    base, affinity = torch.randn(30, 3, generator=generator), torch.rand(30, 8, generator=generator) * 2 - 1
    values = F.one_hot(torch.randint(3, (8,), generator=generator), 3).float()
    labels = torch.randint(3, (30,), generator=generator)
    counts = count_right(base, affinity, values, labels, ALPHAS, BETAS)
    assert counts.shape == (len(BETAS), len(ALPHAS))
    for e in (0, 7, 19):
        for a in (0, 1, 20):
            logits = base + ALPHAS[a] * torch.exp(-(BETAS[e] - BETAS[e] * affinity)) @ values
            assert int(counts[e, a]) == int((logits.argmax(1) == labels).sum())


def batches(x: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    return [
        {"image": x[i : i + 4], "label": labels[i : i + 4], "labelled": labels[i : i + 4] >= 0}
        for i in range(0, len(x), 4)
    ]


def test_the_search_finds_a_known_best() -> None:
    """Classes by vectors err, the entries know all rows: votes must be sharp and outweigh the logits."""
    made, x = network(8, 2), torch.randn(8, 3, 16, 16)
    model, labels = Model(made, ["image"]), torch.arange(8) % 2
    with torch.no_grad():
        base = made(x)["logits"]
        made.tip_adapter.adopt(made(x)["embeddings"]["image"], labels)
        gap = float((base[:, 0] - base[:, 1]).abs().max())
    assert not torch.equal(base.argmax(1), labels)
    alphas, betas = [0.0, 1e-6, 2 * gap, 4 * gap], [1e-3, 5000.0]
    hidden = torch.where(torch.arange(8) % 4 == 3, -1, labels)
    assert fit_tip_adapter(model.train(), batches(x, hidden), CPU, alphas, betas) == (2 * gap, 5000.0)
    assert model.training
    assert torch.equal(model.eval()({"image": x}).logits.argmax(1), labels)
    assert fit_tip_adapter(model, batches(x, base.argmax(1)), CPU, alphas, betas) == (0.0, 1e-3), "the first of equals"
    assert torch.equal(model({"image": x}).logits, base)


def test_rows_that_are_entries_do_not_vote_for_themselves() -> None:
    made, x = network(8, 2), torch.randn(8, 3, 16, 16)
    model, labels = Model(made, ["image"]), torch.arange(8) % 2
    right = int((made(x)["logits"].argmax(1) == labels).sum())
    made.tip_adapter.adopt(made(x)["embeddings"]["image"], labels)
    grid = ([0.0, 1e4], [5000.0])  # so sharp that a row sees itself alone
    assert right < 8
    assert fit_tip_adapter(model, batches(x, labels), CPU, *grid) == (1e4, 5000.0)
    assert fit_tip_adapter(model, batches(x, labels), CPU, *grid, leave_own_out=True) == (0.0, 5000.0)


def test_a_search_that_fails_changes_nothing() -> None:
    made, x = filled(alpha=0.5, beta=2.0), torch.randn(4, 3, 16, 16)
    with pytest.raises(ConfigError, match="no row of the split has a label"):
        fit_tip_adapter(Model(made, ["image"]), batches(x, torch.full((4,), -1)), CPU)
    assert (float(made.tip_adapter.alpha), float(made.tip_adapter.beta)) == (0.5, 2.0)
    with pytest.raises(ConfigError, match="has no labelled pictures that could vote"):
        fit_tip_adapter(Model(network(None), ["image"]), batches(x, torch.zeros(4, dtype=torch.int64)), CPU)
