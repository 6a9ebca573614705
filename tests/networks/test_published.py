"""The published networks: parameter counts, shapes, taps, and that rows never meet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from moekd.errors import ModelError
from moekd.model import Model, tapped
from moekd.networks import NETWORKS


@dataclass(frozen=True)
class Case:
    kind: str
    classes: int
    parameters: int
    inputs: tuple[tuple[int, ...], ...]
    taps: dict[str, tuple[int, ...]]
    appending: tuple[str, ...]  # taps at which rows may be appended to the batch
    options: dict[str, int] = field(default_factory=dict)


IMAGE, AUDIO = (1, 28, 28), (1, 112, 112)
HEAD = {"fc1": (320,), "fc2": (160,)}
CASES = [
    Case(
        "lenet5",
        10,
        61_706,
        (IMAGE,),
        {"conv1": (6, 28, 28), "conv2": (16, 10, 10), "conv3": (120, 1, 1), "flatten_identity": (120,), "fc1": (84,)},
        ("conv1", "conv3", "flatten_identity", "fc1"),
    ),
    Case(
        "audio_cnn",
        10,
        343_562,
        (AUDIO,),
        {
            "conv1": (32, 112, 112),
            "conv2": (64, 56, 56),
            "conv3": (128, 28, 28),
            "conv3_maxpool": (128, 14, 14),
            "conv3_maxpool_flatten": (25_088,),
        },
        ("conv2", "conv3", "conv3_maxpool_flatten"),
    ),
    Case(
        "av_fusion_cnn",
        10,
        1_809_752,
        (IMAGE, AUDIO),
        {"concat_identity": (596,), "fc1": (298,), "ImageNet.fc1": (84,), "AudioNet.conv5": (512, 7, 7)},
        ("concat_identity", "fc1"),
    ),
    Case(
        "audio_branch_net", 8, 575_848, ((15, 156),), {"audio_branch": (1_280,), **HEAD}, ("audio_branch.conv2", *HEAD)
    ),
    Case("visual_branch_net", 8, 6_084_420, ((3, 15, 224, 224),), {"visual_branch": (18_816,), **HEAD}, ("fc1", "fc2")),
    Case(
        "dscnn_i",
        8,
        6_607_300,
        ((3, 15, 224, 224), (15, 156)),
        {"concat_identity": (20_096,), **HEAD},
        ("concat_identity", "fc1", "fc2"),
    ),
    Case("audio_branch_net_vggs", 141, 164_797, ((10, 128),), {"audio_branch": (256,), **HEAD}, ("fc1", "fc2")),
    Case(
        "visual_branch_net_vggs", 141, 4_761_549, ((512, 10, 7, 7),), {"visual_branch": (128,), **HEAD}, ("fc1", "fc2")
    ),
    Case(
        "dscnn_vggs_i",
        141,
        4_851_965,
        ((512, 10, 7, 7), (10, 128)),
        {"concat_identity": (384,), **HEAD},
        ("concat_identity", "fc1", "fc2"),
    ),
    Case("mlp_vb", 8, 2_627_080, ((2_048,),), {"fc1": (1_024,), "fc2": (512,)}, ("fc1", "fc2")),
    Case("mlp_tb", 8, 1_316_360, ((768,),), {"fc1": (1_024,), "fc2": (512,)}, ("fc1", "fc2")),
    Case(
        "mlp_i",
        8,
        4_593_416,
        ((2_048,), (768,)),
        {"concat_identity": (1_024,), "fc1": (512,), "fc2": (256,)},
        ("concat_identity", "fc1", "fc2"),
    ),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)


def build(case: Case) -> Any:
    return make(case.kind, case.classes).eval()


def make(kind: str, classes: int) -> Any:
    return NETWORKS.get(kind)(classes)


def inputs_of(case: Case, rows: int) -> list[torch.Tensor]:
    return [torch.rand(rows, *shape) for shape in case.inputs]


@EACH
def test_parameter_count(case):
    assert sum(parameter.numel() for parameter in build(case).parameters()) == case.parameters


@EACH
def test_taps_have_the_documented_shapes(case):
    fields = [f"field{index}" for index in range(len(case.inputs))]
    model = Model(build(case), fields, list(case.taps))
    with torch.no_grad():
        signals = model(dict(zip(fields, inputs_of(case, 1), strict=True)))
    assert signals.logits.shape == (1, case.classes)
    assert {tap: tuple(value.shape[1:]) for tap, value in signals.features.items()} == case.taps


@EACH
def test_rows_are_independent_and_any_batch_size_works(case):
    network, inputs = build(case), inputs_of(case, 3)
    with torch.no_grad():
        together = network(*inputs)
        alone = torch.cat([network(*(x[row : row + 1] for x in inputs)) for row in range(3)])
        none = network(*(x[:0] for x in inputs))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert none.shape == (0, case.classes)


@EACH
def test_rows_may_be_appended_at_a_tap(case):
    network, inputs = build(case), inputs_of(case, 2)
    with torch.no_grad():
        plain = network(*inputs)
        for tap in case.appending:
            with tapped(network, [tap], lambda _, output: torch.cat([output, 0.5 * output, output])):
                logits = network(*inputs)
            assert logits.shape == (6, case.classes)
            torch.testing.assert_close(logits[:2], plain, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(logits[4:], plain, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(logits[2:4], plain, rtol=1e-4, atol=1e-5)


@EACH
def test_wrong_shapes_are_refused_before_a_layer_fails(case):
    network = build(case)
    for index in range(len(case.inputs)):
        inputs = inputs_of(case, 2)
        inputs[index] = inputs[index][..., :-1]
        with pytest.raises(ModelError, match=rf"expected shape \[B, {case.inputs[index][0]}.*found \[2, .*`inputs`"):
            network(*inputs)


@pytest.mark.parametrize("case", [case for case in CASES if len(case.inputs) == 2], ids=lambda case: case.kind)
def test_branches_with_different_rows_are_refused(case):
    first, second = inputs_of(case, 2)
    with pytest.raises(ModelError, match=r"2, 1 rows|1, 2 rows"):
        build(case)(first, second[:1])


def test_lenet_says_what_it_takes():
    message = r"LeNet5 input: expected shape \[B, 1, 28, 28\], found \[4, 1, 32, 32\]"
    with pytest.raises(ModelError, match=message):
        make("lenet5", 10)(torch.rand(4, 1, 32, 32))


def test_lenet_takes_a_squeezed_map_at_conv3():
    network = make("lenet5", 10).eval()
    image = torch.rand(2, 1, 28, 28)
    with tapped(network, ["conv3"], lambda _, output: output.flatten(1)):
        squeezed = network(image)
    torch.testing.assert_close(squeezed, network(image))


def test_av_fusion_has_an_affine_classifier():
    network = make("av_fusion_cnn", 10).eval()
    model = Model(network, ["image", "audio"], ["concat_identity"])
    with torch.no_grad():
        signals = model({"image": torch.rand(2, *IMAGE), "audio": torch.rand(2, *AUDIO)})
        weight = network.fc2.weight @ network.fc1.weight
        bias = network.fc2.weight @ network.fc1.bias + network.fc2.bias
    torch.testing.assert_close(signals.logits, signals.features["concat_identity"] @ weight.T + bias)


def test_audio_features_precede_visual_ones_in_dual_stream():
    network = make("dscnn_vggs_i", 141).eval()
    model = Model(network, ["visual", "audio"], ["audio_branch", "visual_branch", "concat_identity"])
    with torch.no_grad():
        features = model({"visual": torch.rand(1, 512, 10, 7, 7), "audio": torch.rand(1, 10, 128)}).features
    assert torch.equal(features["concat_identity"][:, :256], features["audio_branch"])
    assert torch.equal(features["concat_identity"][:, 256:], features["visual_branch"])


@pytest.mark.parametrize(("kind", "body"), [("mlp_vb", None), ("audio_branch_net", "audio_branch"), ("mlp_i", "join")])
def test_heads_have_relu_between_their_layers(kind, body):
    case = next(case for case in CASES if case.kind == kind)
    network, inputs = build(case), inputs_of(case, 2)
    x = inputs[0]
    if body == "join":
        x = torch.cat([network.VisualNet(inputs[0]), network.TextualNet(inputs[1])], dim=1)
    elif body:
        x = network.get_submodule(body)(x)
    expected = network.fc3(network.fc2(network.fc1(x).relu()).relu())
    torch.testing.assert_close(network(*inputs), expected)


def test_lenet_equals_its_layers_written_out():
    network, f = make("lenet5", 10), nn.functional
    x = torch.rand(2, *IMAGE)
    y = f.avg_pool2d(network.conv1(x).relu(), 2)
    y = f.avg_pool2d(network.conv2(y).relu(), 2)
    y = network.fc1(network.conv3(y).relu().flatten(1)).relu()
    torch.testing.assert_close(network(x), network.fc2(y))


@pytest.mark.parametrize("kind", ["lenet5", "audio_cnn", "av_fusion_cnn", "audio_branch_net", "mlp_i"])
def test_every_parameter_learns(kind):
    case = next(case for case in CASES if case.kind == kind)
    network = build(case).train()
    network(*inputs_of(case, 4)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_audio_cnn_equals_relu_before_pooling():
    network = make("audio_cnn", 10)
    x = expected = torch.rand(2, *AUDIO)
    for conv in (network.conv1, network.conv2, network.conv3):
        expected = nn.functional.max_pool2d(conv(expected).relu(), 2)
    expected = network.fc1(expected.flatten(1))
    torch.testing.assert_close(network(x), expected)
    weights = list(network.parameters())
    wanted = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(torch.autograd.grad(network(x).square().sum(), weights), wanted, rtol=1e-3, atol=1e-5)
