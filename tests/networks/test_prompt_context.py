"""Learned tokens in front of class names: where they stand, who gets a gradient, and descriptions behind names."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError, ModelError
from moekd.networks import TextOptions, TwoTower, ZeroShotOptions
from moekd.networks.small_cnn import CnnEncoder

from .test_two_tower import IMAGE

NAMES = ["cat", "dog", "tall tree"]
TEXT = TextOptions(context=24, width=16, layers=2, heads=2)


def network(text: TextOptions = TEXT, **options) -> TwoTower:
    torch.manual_seed(0)
    zero_shot = ZeroShotOptions(["{}"], **options)
    return TwoTower(
        3, tower=CnnEncoder((8, 12)), text=text, zero_shot=zero_shot, class_names=NAMES, fields={"image": IMAGE}
    )


def test_learned_tokens_stand_in_front_of_the_bytes() -> None:
    model, seen = network(context=4).eval(), []
    model.model.text.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model.class_vectors()
    tower = model.model.text
    ids = torch.tensor([byte + 1 for byte in b"cat"])
    torch.testing.assert_close(seen[0][0, :4], model.zero_shot.context + tower.positions[:4])
    torch.testing.assert_close(seen[0][0, 4:7], tower.tokens(ids) + tower.positions[4:7])


def test_behind_the_start_token_of_a_tokenizer() -> None:
    pytest.importorskip("open_clip")
    options = TextOptions(tokenizer="clip", context=12, width=16, layers=1, heads=2, causal=True, pool="last")
    model, seen = network(options, context=3).eval(), []
    model.model.text.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    assert model.class_vectors().shape == (3, 12)
    tokens = seen[0] - model.model.text.positions
    torch.testing.assert_close(tokens[:, 0], model.model.text.tokens.weight[[49406] * 3])
    torch.testing.assert_close(tokens[0, 1:4], model.zero_shot.context)


def test_only_the_learned_tokens_get_a_gradient() -> None:
    model = network(context=2, in_training=False).requires_grad_(False).eval()
    before = model.class_vectors()
    assert not before.requires_grad
    model.zero_shot.requires_grad_(True).train()
    said = model(torch.randn(4, 3, 16, 16))
    said["logits"].square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"zero_shot.context"}
    with torch.no_grad():
        model.zero_shot.context.add_(1.0)
    assert not torch.allclose(model.eval().class_vectors(), before)


def test_while_the_whole_text_tower_trains_there_may_be_no_logits() -> None:
    model = network(context=2, in_training=False).train()
    assert "logits" not in model(torch.randn(4, 3, 16, 16))
    assert "logits" in network(context=2).train()(torch.randn(4, 3, 16, 16))


def test_names_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ModelError, match="16 learned tokens and a text of 9 do not fit in a context of 24"):
        network(context=16).eval().class_vectors()


def test_towers_of_other_libraries_take_no_learned_tokens() -> None:
    open_clip = pytest.importorskip("open_clip")
    del open_clip
    from moekd.networks import OpenClip

    architecture = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    with pytest.raises(ConfigError, match="a text tower of the project's own"):
        OpenClip(architecture, zero_shot=ZeroShotOptions(context=2), class_names=NAMES)


def test_descriptions_stand_behind_the_prompts() -> None:
    about = ["it purrs.", "it barks.", "it grows."]
    torch.manual_seed(0)
    options = ZeroShotOptions(["a {}.", "{}."], descriptions=about)
    model = TwoTower(
        3, tower=CnnEncoder((8,)), text=TEXT, zero_shot=options, class_names=NAMES, fields={"image": IMAGE}
    )
    assert model.zero_shot.prompts[:3] == ["a cat. it purrs.", "cat. it purrs.", "a dog. it barks."]
    with pytest.raises(ConfigError, match=r"zero_shot.descriptions: expected 3"):
        network(descriptions=["one"])
