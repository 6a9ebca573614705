"""The dense networks for colour and depth, at an eighth of their width where only behaviour counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moekd.errors import ConfigError, ModelError
from moekd.model import Model, tapped
from moekd.networks import NETWORKS

COUNTS = {"fusenet_i": 44_188_649, "fusenet_rgb_branch": 29_466_665, "fusenet_depth_branch": 29_465_513}
FIELDS = {"fusenet_i": ["rgb", "depth"], "fusenet_rgb_branch": ["rgb"], "fusenet_depth_branch": ["depth"]}
TAPS = {
    "fusenet_i": {"after_fusion_identity": (2, 3), "CBR5_RGBD_DEC": (4, 6), "CBR5_RGB_ENC": (4, 6)},
    "fusenet_rgb_branch": {"CBR5_RGB_ENC": (4, 6), "CBR5_RGB_DEC": (4, 6)},
    "fusenet_depth_branch": {"CBR5_DEPTH_ENC": (4, 6), "CBR5_D_DEC": (4, 6)},
}
EACH = pytest.mark.parametrize("kind", list(COUNTS))


def make(kind: str, **options: object) -> Any:
    return NETWORKS.get(kind)(41, **options)


def narrow(kind: str, **options: object) -> Any:
    return make(kind, width=8, **options)


def batch_of(rows: int, height: int = 64, width: int = 96) -> dict[str, torch.Tensor]:
    return {"rgb": torch.rand(rows, 3, height, width), "depth": torch.rand(rows, 1, height, width)}


@EACH
def test_parameter_count(kind):
    with torch.device("meta"):
        network = make(kind)
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[kind]


def test_the_fusion_taps_have_512_maps_at_full_width():
    with torch.device("meta"):
        network = make("fusenet_i")
    assert network.CBR5_RGB_ENC[-3].out_channels == network.CBR5_RGBD_DEC[0].in_channels == 512
    assert network.CBR5_RGBD_DEC[-3].out_channels == 512


@EACH
def test_shapes_taps_and_row_independence(kind):
    model = Model(narrow(kind).eval(), FIELDS[kind], list(TAPS[kind]))
    batch = batch_of(2)
    with torch.no_grad():
        together = model(batch)
        alone = [model({name: value[row : row + 1] for name, value in batch.items()}) for row in range(2)]
        none = model({name: value[:0] for name, value in batch.items()})
    assert together.logits.shape == (2, 41, 64, 96)
    assert {tap: tuple(value.shape[1:]) for tap, value in together.features.items()} == {
        tap: (64, *size) for tap, size in TAPS[kind].items()
    }
    torch.testing.assert_close(together.logits, torch.cat([s.logits for s in alone]), rtol=1e-3, atol=1e-5)
    assert none.logits.shape == (0, 41, 64, 96)


@EACH
def test_sizes_that_do_not_halve_evenly_come_back_whole(kind):
    batch = batch_of(1, 60, 81)
    assert narrow(kind)(*(batch[name] for name in FIELDS[kind])).shape == (1, 41, 60, 81)


@EACH
def test_every_parameter_learns(kind):
    network, batch = narrow(kind, dropout=0.0), batch_of(2)
    network(*(batch[name] for name in FIELDS[kind])).square().sum().backward()
    # a bias in front of batch normalisation has no effect, so its gradient is rounding noise at most
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert unused == []


@pytest.mark.parametrize("tap", ["after_fusion_identity", "CBR5_RGBD_DEC"])
def test_rows_appended_in_front_of_unpooling_are_refused(tap):
    network, batch = narrow("fusenet_i").eval(), batch_of(2)
    with (
        tapped(network, [tap], lambda _, output: torch.cat([output, output])),
        pytest.raises(ModelError, match="repeat the inputs"),
    ):
        network(batch["rgb"], batch["depth"])


def test_rows_appended_in_one_encoder_are_refused_also_for_a_batch_of_one():
    network, batch = narrow("fusenet_i").eval(), batch_of(1)
    with (
        tapped(network, ["CBR2_RGB_ENC"], lambda _, output: torch.cat([output, output])),
        pytest.raises(ModelError, match="after block 2"),
    ):
        network(batch["rgb"], batch["depth"])


def test_swapping_in_equal_encoders_leaves_the_average():
    """With the same weights and a grey picture in both encoders the average is the branch itself."""
    fused, branch = narrow("fusenet_i").eval(), narrow("fusenet_depth_branch").eval()
    grey = torch.rand(1, 1, 64, 64)
    for level in range(1, 6):
        source = branch.get_submodule(f"CBR{level}_DEPTH_ENC").state_dict()
        fused.get_submodule(f"CBR{level}_DEPTH_ENC").load_state_dict(source)
        if level == 1:
            source["0.weight"] = source["0.weight"].expand(-1, 3, -1, -1) / 3
        fused.get_submodule(f"CBR{level}_RGB_ENC").load_state_dict(source)
        fused.get_submodule(f"CBR{level}_RGBD_DEC").load_state_dict(
            branch.get_submodule(f"CBR{level}_D_DEC").state_dict()
        )
    with torch.no_grad():
        torch.testing.assert_close(fused(grey.expand(-1, 3, -1, -1), grey), branch(grey), rtol=1e-3, atol=1e-5)


def test_reinit_draws_the_weights_of_the_released_code():
    torch.manual_seed(0)
    network = make("fusenet_rgb_branch", width=16, reinit=True)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            expected = 0.02 * (2 / (9 * (module.in_channels + module.out_channels))) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert module.bias is not None
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert 0.005 < module.weight.std().item() < 0.04
            assert not module.bias.any()
    plain = make("fusenet_rgb_branch", width=16)
    assert plain.CBR1_RGB_ENC[1].weight.eq(1).all()


def test_clear_errors():
    network = narrow("fusenet_i")
    with pytest.raises(ModelError, match="FuseNetI rgb: expected sizes of at least 32"):
        network(torch.rand(1, 3, 64, 16), torch.rand(1, 1, 64, 16))
    with pytest.raises(ModelError, match=r"FuseNetI depth: expected shape \[B, 1, 64, 64\]"):
        network(torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 32))
    with pytest.raises(ModelError, match=r"found \[1, 1, 64, 64\]"):
        narrow("fusenet_rgb_branch")(torch.rand(1, 1, 64, 64))
    with pytest.raises(ConfigError, match="width"):
        make("fusenet_i", width=0)
    with pytest.raises(ConfigError, match="dropout"):
        make("fusenet_i", width=8, dropout=1.0)
