"""Several heads on one encoder: who trains which, and how they are mixed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moekd.errors import ConfigError
from moekd.model import Model
from moekd.networks import Encoder, MultiHead, mixed_heads
from moekd.networks.mlp import MlpEncoder
from moekd.objectives import kd_kl
from moekd.stages.fit_head_mix import ALPHAS, TEMPERATURES, count_right, first_best, fit_head_mix

CE, KD = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])


def student(**options) -> MultiHead:
    torch.manual_seed(0)
    return MultiHead(3, MlpEncoder(4, [5]), **options)


def test_known_values_of_the_publication() -> None:
    mixed = mixed_heads(CE, [KD], 0.5, 0.5).exp()
    torch.testing.assert_close(mixed, torch.tensor([[0.3745224, 0.6254776]]))
    loss = kd_kl(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), temperature=2)
    torch.testing.assert_close(loss, torch.tensor([0.4437766]))
    shifted = torch.randn(5, 3)
    torch.testing.assert_close(kd_kl(shifted, shifted + 4, 2), torch.zeros(5))


def test_the_ends_of_the_mixture_are_the_heads() -> None:
    torch.testing.assert_close(mixed_heads(CE, [KD], 1, 3).exp(), CE.softmax(1))
    torch.testing.assert_close(mixed_heads(CE, [KD], 0, 1).exp(), KD.softmax(1))
    three = mixed_heads(CE, [KD, CE], 0.4, 2).exp()
    expected = 0.4 * CE.softmax(1) + 0.3 * (KD / 2).softmax(1) + 0.3 * (CE / 2).softmax(1)
    torch.testing.assert_close(three, expected)
    grown = CE.clone().requires_grad_()
    mixed_heads(grown, [KD], 0, 1)[0, 0].backward()
    assert grown.grad is not None
    assert (grown.grad == 0).all(), "a head of weight 0 has no part, and nothing is NaN"


def test_each_loss_reaches_its_own_head_and_the_encoder() -> None:
    network = student()
    said = network(torch.randn(6, 4))
    assert set(said) == {"logits", "labels", "teacher"}
    torch.testing.assert_close(said["logits"].exp().sum(dim=1), torch.ones(6))
    for loss, own, other in (("labels", "labels", "teacher"), ("teacher", "teacher", "labels")):
        network.zero_grad()
        said[loss].square().sum().backward(retain_graph=True)
        assert network.heads[own].weight.grad.abs().sum() > 0
        assert network.heads[other].weight.grad is None or not network.heads[other].weight.grad.any()
        assert all(p.grad is not None for p in network.encoder.parameters())


def test_cosine_heads_do_not_see_the_length_of_features() -> None:
    class Scaled(MlpEncoder):
        factor = 1.0

        def forward(self, x):
            return super().forward(x) * self.factor

    network = MultiHead(3, Scaled(4, [5]), cosine=True, scale=10)
    x = torch.randn(6, 4)
    before = network(x)
    network.encoder.factor = 7.0
    after = network(x)
    torch.testing.assert_close(after["teacher"], before["teacher"])
    assert not torch.allclose(after["labels"], before["labels"])
    z = nn.functional.normalize(network.encoder(x), dim=1)
    torch.testing.assert_close(after["teacher"], 10 * network.heads["teacher"](z))


class Unchanged(Encoder):
    """Features are the input, as if the student had the image tower of a contrastive model."""

    out_features = 4

    def forward(self, x):
        return x


def test_heads_start_as_the_scores_of_class_vectors() -> None:
    torch.manual_seed(1)
    network, vectors, x = MultiHead(3, Unchanged(), cosine=True, scale=20), torch.randn(3, 4), torch.randn(5, 4)
    network.start(vectors)
    said = network(x)
    zero_shot = 20 * nn.functional.normalize(x, dim=1) @ vectors.T
    torch.testing.assert_close(said["teacher"], zero_shot)
    torch.testing.assert_close(said["labels"], x @ vectors.T)
    vectors.zero_()
    torch.testing.assert_close(network(x)["teacher"], zero_shot, msg="the vectors are copied")
    torch.testing.assert_close(kd_kl(said["teacher"], zero_shot, 2), torch.zeros(5), atol=1e-6, rtol=0)


def test_some_heads_start_and_the_others_stay() -> None:
    network, vectors = student(), torch.randn(3, 5)
    before = network.heads["labels"].weight.clone()
    network.start(vectors, ["teacher"])
    assert torch.equal(network.heads["labels"].weight, before)
    assert torch.equal(network.heads["teacher"].weight, vectors)
    assert not network.heads["teacher"].bias.any()
    assert all(p.requires_grad for p in network.parameters())


def test_heads_that_can_not_start_so_stay_as_they_are() -> None:
    network = student()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError, match=r"class vectors \[3, 7\]: it has 3 classes and reads 5 features"):
        network.start(torch.randn(3, 7))
    with pytest.raises(ConfigError, match=r"class vectors \[4, 5\]"):
        network.start(torch.randn(4, 5))
    with pytest.raises(ConfigError, match="no head 'teachr'; did you mean 'teacher'"):
        network.start(torch.randn(3, 5), ["labels", "teachr"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_two_losses_never_pull_at_the_same_classifier() -> None:
    """One head for both has gradients that can point against each other; with two heads none is shared."""
    network = student()
    x, target = torch.randn(8, 4), torch.randn(8, 3) * 5
    labels = target.argmin(dim=1)  # the teacher disagrees with every label

    def gradients(head: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        found = []
        for name, loss in (("labels", nn.functional.cross_entropy), (head, lambda z, y: kd_kl(z, y, 2).mean())):
            network.zero_grad(set_to_none=True)
            loss(network(x)[name], labels if name == "labels" and not found else target).backward()
            named = network.heads.named_parameters()
            found.append({key: p.grad.clone() for key, p in named if p.grad is not None and p.grad.any()})
        return found[0], found[1]

    ce, kd = gradients("teacher")
    assert (set(ce), set(kd)) == ({"labels.weight", "labels.bias"}, {"teacher.weight", "teacher.bias"})
    ce, kd = gradients("labels")
    assert nn.functional.cosine_similarity(ce["labels.weight"].flatten(), kd["labels.weight"].flatten(), dim=0) < 0


def test_the_mixture_is_part_of_the_weights() -> None:
    network, other = student(), student(heads=["labels", "first", "second"])
    network.mix(0.25, 4)
    copy = student()
    copy.load_state_dict(network.state_dict())
    assert (float(copy.alpha), float(copy.temperature)) == (0.25, 4)
    _, others = other.split(other(torch.randn(2, 4)))
    assert len(others) == 2


@pytest.mark.parametrize("heads", [["labels"], ["a", "a"], ["logits", "b"], []])
def test_heads_need_names(heads) -> None:
    with pytest.raises(ConfigError, match="at least two different names"):
        student(heads=heads)


def test_search_equals_a_loop_and_takes_the_first_of_equals() -> None:
    generator = torch.Generator().manual_seed(1)
    first, other = torch.randn(2, 40, 3, generator=generator).unbind()
    labels = torch.randint(3, (40,), generator=generator)
    counts = count_right(first, [other], labels, ALPHAS, TEMPERATURES)
    best, place = -1, None
    for t, temperature in enumerate(TEMPERATURES):
        for a, alpha in enumerate(ALPHAS):
            p = alpha * first.softmax(1) + (1 - alpha) * (other / temperature).softmax(1)
            right = int((p.argmax(1) == labels).sum())
            assert int(counts[t, a]) == right
            if right > best:
                best, place = right, (alpha, temperature)
    assert first_best(counts, ALPHAS, TEMPERATURES) == place
    assert first_best(torch.tensor([[1, 3], [3, 3]]), [0.0, 1.0], [0.5, 2.0]) == (1.0, 0.5)


def test_fit_sets_the_mixture_by_labelled_rows_alone() -> None:
    model = Model(student(), ["x"])
    x = torch.randn(30, 4)
    said = model({"x": x}).heads
    labels = said["teacher"].argmax(1)
    hidden = torch.where(torch.arange(30) % 2 == 0, labels, -1)
    batches = [{"x": x[i : i + 10], "label": hidden[i : i + 10]} for i in range(0, 30, 10)]
    alpha, temperature = fit_head_mix(model.train(), batches, torch.device("cpu"))
    assert model.training
    assert float(model.network.alpha) == pytest.approx(alpha)
    assert alpha < 0.5
    assert (model({"x": x}).logits.argmax(1) == labels)[::2].all()
    with pytest.raises(ConfigError, match="no row of the split has a label"):
        fit_head_mix(model, [{"x": x, "label": torch.full((30,), -1)}], torch.device("cpu"))
    with pytest.raises(ConfigError, match="Linear, which has no heads to mix: use multi_head"):
        fit_head_mix(Model(nn.Linear(4, 3), ["x"]), batches, torch.device("cpu"))
    assert temperature in TEMPERATURES
