"""The adapter on a frozen two-tower model: its formula, the three scores, and what reduces them to known models."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moekd.errors import ConfigError, ModelError
from moekd.networks import AdaptedTwoTower, ResidualAdapterOptions, ZeroShotOptions
from moekd.networks.adapted_tower import ResidualAdapter
from moekd.networks.small_cnn import CnnEncoder
from moekd.objectives import softened_cross_entropy

from .test_two_tower import BYTES, IMAGE, TEXT, VECTORS, byte_ids

NAMES = ["cat", "dog", "tall tree"]
PICTURES = torch.rand(5, 3, 16, 16)


def network(**options) -> AdaptedTwoTower:
    torch.manual_seed(0)
    fields = {"image": IMAGE, "text": VECTORS}
    return AdaptedTwoTower(CnnEncoder((8, 12)), 3, text="vectors", width=10, fields=fields, **options).eval()


def test_the_formula_of_the_adapter() -> None:
    torch.manual_seed(0)
    adapter, rows = ResidualAdapter(4, ResidualAdapterOptions(hidden_factor=0.5, alpha=0.3)), torch.randn(6, 4)
    assert adapter.down.weight.shape == (2, 4)
    assert adapter.down.bias is None
    mixed = 0.3 * (rows @ adapter.down.weight.T).clamp_min(0) @ adapter.up.weight.T + 0.7 * rows
    torch.testing.assert_close(adapter(rows), mixed.clamp_min(0))
    adapter(rows).sum().backward()
    assert adapter.alpha.grad is not None
    fixed = ResidualAdapter(4, ResidualAdapterOptions(learn_alpha=False))
    assert not fixed.alpha.requires_grad
    fixed.requires_grad_(True)(rows).sum().backward()
    assert fixed.alpha.grad is None
    with pytest.raises(ConfigError, match="leaves none"):
        ResidualAdapter(4, ResidualAdapterOptions(hidden_factor=0.05))


def test_without_a_share_it_is_the_identity_up_to_the_length() -> None:
    rows = torch.rand(6, 4)
    adapter = ResidualAdapter(4, ResidualAdapterOptions(alpha=0.0))
    torch.testing.assert_close(F.normalize(adapter(rows)), F.normalize(rows))


def test_the_three_scores_and_their_mean() -> None:
    model = network(fusion=(0.3, 0.7))
    said, scale = model(PICTURES), 1 / 0.07
    tokens = model.model.image((PICTURES * 0.25 + 0.5 - 0.5) / 0.5)
    adapted = F.normalize(model.adapter(tokens))
    torch.testing.assert_close(said["embeddings"]["adapted"], adapted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(said["vision"], scale * adapted @ model.prototypes.vectors.T, rtol=1e-4, atol=1e-4)
    image = F.normalize(said["embeddings"]["image"])
    torch.testing.assert_close(said["cross_modal"], scale * image @ model.classifier.vectors.T, rtol=1e-4, atol=1e-4)
    projected = adapted @ model.model.image_projection.weight.T
    torch.testing.assert_close(said["adapted"], scale * projected @ model.classifier.vectors.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said["logits"], 0.3 * said["vision"] + 0.7 * said["cross_modal"])


def test_weights_of_0_and_1_are_the_zero_shot_model() -> None:
    said = network(fusion=(0.0, 1.0))(PICTURES)
    torch.testing.assert_close(said["logits"], said["cross_modal"], rtol=0, atol=0)


def test_an_adapter_that_changes_nothing_is_at_the_floor_of_the_distillation() -> None:
    model = network(adapter=ResidualAdapterOptions(alpha=0.0), unit=True)
    said = model(PICTURES)
    torch.testing.assert_close(said["adapted"], said["cross_modal"], rtol=1e-4, atol=1e-4)
    scores, target = said["cross_modal"].detach().requires_grad_(), said["cross_modal"].detach()
    loss = softened_cross_entropy(scores, target, 5.0)
    p = (target / 5).softmax(dim=1)
    torch.testing.assert_close(loss, -(p * p.log()).sum(dim=1))
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


def test_classes_by_name_with_learned_tokens() -> None:
    torch.manual_seed(0)
    zero_shot = ZeroShotOptions(["{}."], context=2, in_training=False)
    fields = {"image": IMAGE, "caption": BYTES}
    model = AdaptedTwoTower(
        CnnEncoder((8, 12)), 3, text=TEXT, width=10, zero_shot=zero_shot, class_names=NAMES, fields=fields
    )
    captions = byte_ids(["red", "blue", "a", "b", "c"])
    assert "logits" not in model.train()(PICTURES, captions)
    model.requires_grad_(False).eval()
    model.adapter.requires_grad_(True)
    model.zero_shot.requires_grad_(True).train()
    said = model(PICTURES, captions)
    assert said["logits"].shape == said["adapted"].shape == (5, 3)
    said["vision"].sum().backward(retain_graph=True)
    assert model.zero_shot.context.grad is None
    assert model.adapter.up.weight.grad is not None
    said["cross_modal"].sum().backward()
    assert model.zero_shot.context.grad is not None
    assert all(p.grad is None for p in model.model.parameters())


def test_it_needs_a_picture() -> None:
    torch.manual_seed(0)
    fields = {"text": VECTORS, "image": IMAGE}
    model = AdaptedTwoTower(CnnEncoder((8, 12)), 3, text="vectors", width=10, fields=fields)
    model.partial = True
    with pytest.raises(ModelError, match="none is among its 1 inputs"):
        model(torch.randn(2, 12))
