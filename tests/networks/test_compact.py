"""The compact networks: sizes, names of their layers, any number of inputs, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moekd.errors import ConfigError, ModelError
from moekd.model import Model, find_module, tapped
from moekd.networks import ENCODERS, NETWORKS, CnnEncoder, Encoder, Fusion, Mlp, MlpEncoder, SmallCnn


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "shape", "parameters"),
    [
        (SmallCnn(98, channels=(12, 24, 48, 96)), (3, 32, 32), 67_694),
        (SmallCnn(10, channels=(8, 16, 32, 64, 64), in_channels=1, downsample=2), (1, 112, 112), 66_306),
        (Mlp(98, in_features=384), (384,), 121_378),
    ],
    ids=["emoji image", "spectrogram", "emoji text"],
)
def test_documented_sizes(network, shape, parameters):
    assert count(network) == parameters
    assert network(torch.rand(1, *shape)).shape[0] == 1


def test_taps_of_small_cnn():
    taps = {
        "conv1": (16, 56, 56),
        "conv2": (32, 28, 28),
        "conv3": (64, 14, 14),
        "pool": (64,),
        "fc1": (48,),
        "fc2": (10,),
    }
    model = Model(SmallCnn(10, in_channels=1, downsample=2, hidden=48), ["audio"], list(taps))
    features = model({"audio": torch.rand(2, 1, 112, 112)}).features
    assert {tap: tuple(value.shape[1:]) for tap, value in features.items()} == taps


def test_linear_classifier_of_small_cnn_is_fc1():
    network = SmallCnn(10, hidden=None)
    assert find_module(network, "fc1").out_features == 10
    with pytest.raises(ModelError, match="fc2"):
        find_module(network, "fc2")


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", None)])
def test_norms(norm, kind):
    network: Any = SmallCnn(5, channels=(12, 20), norm=norm)
    found = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)]
    assert all(isinstance(module, kind) for module in found) if kind else not found
    assert (network.conv1.bias is None) == (norm != "none")
    network(torch.rand(3, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_small_cnn_equals_the_usual_order_of_layers(norm):
    network: Any = SmallCnn(7, channels=(8, 16), norm=norm).eval()
    x = expected = torch.rand(4, 3, 20, 17)
    for index in (1, 2):
        expected = find_module(network, f"conv{index}")(expected)
        if norm != "none":
            expected = find_module(network, f"norm{index}")(expected)
        expected = nn.functional.max_pool2d(expected.relu(), 2)
    expected = network.fc2(network.fc1(expected.mean((2, 3))).relu())
    torch.testing.assert_close(network(x), expected)


def test_downsample_averages_the_input():
    network = SmallCnn(7, channels=(8,), downsample=2).eval()
    plain = SmallCnn(7, channels=(8,)).eval()
    plain.load_state_dict(network.state_dict())
    x = torch.rand(2, 3, 12, 12)
    mean = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(network(x), plain(mean))


def test_parameters_stay_contiguous_in_training():
    network = SmallCnn(7, in_channels=1)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(4, 1, 16, 16)).square().sum().backward()
    optimizer.step()
    assert all(tensor.is_contiguous() for tensor in network.state_dict().values())


def test_mlp_names_and_widths():
    model = Model(Mlp(9, in_features=12, hidden=(7, 5)), ["text"], ["fc1", "fc2", "fc3"])
    features = model({"text": torch.rand(2, 12)}).features
    assert {tap: value.shape[1] for tap, value in features.items()} == {"fc1": 7, "fc2": 5, "fc3": 9}
    assert count(Mlp(9, in_features=12, hidden=())) == 12 * 9 + 9


def test_mlp_and_fusion_put_relu_between_their_layers():
    x = torch.randn(4, 12)
    network: Any = Mlp(9, in_features=12, hidden=(7, 5))
    torch.testing.assert_close(network(x), network.fc3(network.fc2(network.fc1(x).relu()).relu()))
    encoder: Any = MlpEncoder(12, hidden=(7, 5))
    torch.testing.assert_close(encoder(x), encoder.fc2(encoder.fc1(x).relu()).relu())
    fusion = Fusion(9, [encoder])
    torch.testing.assert_close(fusion(x), fusion.fc2(fusion.fc1(encoder(x)).relu()))


def test_dropout_acts_in_training_only():
    x = torch.rand(2, 12)
    network = Mlp(9, in_features=12, dropout=0.5)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def three_inputs() -> tuple[Fusion, list[torch.Tensor]]:
    encoders: list[Encoder] = [
        CnnEncoder(channels=(8, 16)),
        CnnEncoder(channels=(8, 12), in_channels=1, downsample=2),
        MlpEncoder(10),
    ]
    network = Fusion(6, encoders, hidden=20)
    return network.eval(), [torch.rand(3, 3, 16, 16), torch.rand(3, 1, 24, 24), torch.rand(3, 10)]


def test_fusion_of_three_inputs():
    network, inputs = three_inputs()
    taps = ["encoders.0.conv1", "encoders.1.pool", "encoders.2", "concat_identity", "fc1", "fc2"]
    model = Model(network, ["a", "b", "c"], taps)
    signals = model(dict(zip("abc", inputs, strict=True)))
    widths = [value.shape[1] for value in signals.features.values()]
    assert signals.logits.shape == (3, 6)
    assert sorted(widths) == sorted([8, 12, 64, 16 + 12 + 64, 20, 6])
    parts = [encoder(x) for encoder, x in zip(network.encoders, inputs, strict=True)]
    torch.testing.assert_close(signals.features["concat_identity"], torch.cat(parts, dim=1))


def test_rows_are_independent():
    network, inputs = three_inputs()
    with torch.no_grad():
        together = network(*inputs)
        alone = torch.cat([network(*(x[row : row + 1] for x in inputs)) for row in range(3)])
        none = network(*(x[:0] for x in inputs))
    torch.testing.assert_close(together, alone)
    assert none.shape == (0, 6)


@pytest.mark.parametrize("tap", ["concat_identity", "fc1"])
def test_rows_may_be_appended_behind_the_fusion(tap):
    network, inputs = three_inputs()
    with tapped(network, [tap], lambda _, output: torch.cat([output, 0 * output, output])):
        logits = network(*inputs)
    torch.testing.assert_close(logits[:3], network(*inputs))
    torch.testing.assert_close(logits[6:], network(*inputs))
    torch.testing.assert_close(logits[3], logits[4])


def test_rows_appended_in_one_encoder_are_refused():
    network, inputs = three_inputs()
    with (
        tapped(network, ["encoders.0.conv1"], lambda _, output: torch.cat([output, output])),
        pytest.raises(ModelError, match="6, 3, 3 rows"),
    ):
        network(*inputs)


def test_fusion_says_which_input_is_wrong():
    network, inputs = three_inputs()
    with pytest.raises(ModelError, match="3 encoders, but got 2 inputs"):
        network(*inputs[:2])
    with pytest.raises(ModelError, match=r"Fusion input 2: CnnEncoder input: expected shape \[B, 1, any, any\]"):
        network(inputs[0], inputs[2], inputs[1])


def test_another_encoder_can_join():
    class Mean(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.out_features = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=1, keepdim=True)

    assert Fusion(4, [Mean(), MlpEncoder(5)])(torch.rand(2, 9), torch.rand(2, 5)).shape == (2, 4)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: SmallCnn(5, channels=()), "channels"),
        (lambda: SmallCnn(5, channels=(8, 0)), "channels"),
        (lambda: SmallCnn(5, in_channels=0), "in_channels"),
        (lambda: SmallCnn(5, downsample=0), "downsample"),
        (lambda: SmallCnn(5, hidden=0), "hidden"),
        (lambda: SmallCnn(5, dropout=1.0), "dropout"),
        (lambda: Mlp(5, in_features=0), "in_features"),
        (lambda: Mlp(5, in_features=4, hidden=(0,)), "hidden"),
        (lambda: MlpEncoder(4, hidden=()), "hidden"),
        (lambda: Fusion(5, []), "encoders"),
        (lambda: Fusion(5, [MlpEncoder(4)], hidden=0), "hidden"),
        (lambda: Fusion(5, [MlpEncoder(4)], dropout=-0.1), "dropout"),
    ],
)
def test_options_out_of_range(make, option):
    with pytest.raises(ConfigError, match=f"^{option}: expected"):
        make()


def test_wrong_inputs():
    network = SmallCnn(5)
    with pytest.raises(ModelError, match="sizes of at least 8"):
        network(torch.rand(2, 3, 32, 7))
    with pytest.raises(ModelError, match=r"floating-point numbers, found torch\.uint8"):
        network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ModelError, match=r"expected a tensor .* found list"):
        network(["a picture"])
    with pytest.raises(ModelError, match=r"expected shape \[B, 384\], found \[384\]"):
        Mlp(5, in_features=384)(torch.rand(384))


def test_small_cnn_exports_with_a_free_batch_size():
    network = SmallCnn(5, channels=(4, 8), in_channels=1, downsample=2).eval()
    x = torch.rand(3, 1, 16, 16)
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
    more = torch.rand(7, 1, 16, 16)
    torch.testing.assert_close(program.module()(more), network(more))


def test_encoders_are_registered():
    assert {"cnn_encoder", "mlp_encoder"} <= set(ENCODERS.names())
    assert ENCODERS.base is Encoder
    assert "encoders" in NETWORKS.parameters("fusion")
