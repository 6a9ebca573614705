"""Prompts of a vision transformer: where they stand, how deep they go, and what leaves them out."""

from __future__ import annotations

import pytest
import torch

from moekd.errors import ConfigError
from moekd.networks.visual_prompts import VisualPromptOptions, VisualPrompts
from moekd.networks.vit import VitEncoder

PICTURES = torch.rand(2, 3, 16, 16)


def vit(prompts: VisualPromptOptions | None, pool: str = "mean") -> VitEncoder:
    torch.manual_seed(0)
    return VitEncoder(16, 8, width=16, layers=3, heads=2, pool=pool, prompts=prompts).eval()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_first_layers_get_tokens_of_their_own(depth: int) -> None:
    tower, seen = vit(VisualPromptOptions(tokens=2, depth=depth)), []
    for block in tower.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    tower(PICTURES)
    assert [tokens.shape[1] for tokens in seen] == [6, 6, 6]
    own = [torch.equal(seen[layer][:, -2:], tower.prompts.weight[layer].expand(2, -1, -1)) for layer in range(depth)]
    assert all(own)
    if depth < 3:
        assert not torch.equal(seen[depth][0, -2:], tower.prompts.weight[-1])


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_vector_is_that_of_the_pictures_own_tokens(pool: str) -> None:
    tower, seen = vit(VisualPromptOptions(tokens=3, depth=2), pool), []
    tower.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    vector = tower(PICTURES)
    expected = seen[0][:, 0] if pool == "cls" else seen[0][:, :4].mean(dim=1)
    assert torch.equal(vector, expected)


def test_without_prompts_nothing_is_different() -> None:
    plain, prompted = vit(None), vit(VisualPromptOptions(tokens=1, depth=1))
    assert set(prompted.state_dict()) - set(plain.state_dict()) == {"prompts.weight"}
    prompted.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(plain(PICTURES), prompted(PICTURES))


def test_prompts_alone_can_learn() -> None:
    tower = vit(VisualPromptOptions(tokens=2, depth=3)).requires_grad_(False)
    tower.prompts.requires_grad_(True)
    tower(PICTURES).square().sum().backward()
    assert {name for name, p in tower.named_parameters() if p.grad is not None} == {"prompts.weight"}
    assert tower.prompts.weight.grad.abs().sum(dim=(1, 2)).gt(0).all()


@pytest.mark.parametrize(("tokens", "depth"), [(0, 1), (1, 0), (1, 4)])
def test_impossible_numbers_are_refused(tokens: int, depth: int) -> None:
    with pytest.raises(ConfigError, match="depth of 1 to 3"):
        VisualPrompts(VisualPromptOptions(tokens, depth), 16, 3)
