"""The picture a model sees is the one that its own library would have made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from moekd.errors import ConfigError, ModelError
from moekd.networks.images import ImageContract, ImageOptions, ImageSettings, image_settings

MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.25, 0.27)


def settings(**changes):
    return ImageSettings(**{"size": (24, 24), "mean": MEAN, "std": STD} | changes)


def smooth_pixels(height, width):
    """Return uint8 pictures [2, H, W, 3] without hard edges, where rounding is all that differs."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(4 * rows + k) * np.cos(3 * columns * (k + 1)) for k in range(3)]
    picture = np.stack(waves, axis=2) * 100 + 120
    return np.stack([picture, picture[::-1]]).astype(np.uint8)


@pytest.mark.parametrize("size", [(40, 40), (16, 16), (40, 28), (17, 31)])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_equals_the_transform_of_open_clip(size, resize):
    transform = pytest.importorskip("open_clip.transform").image_transform
    theirs = transform(24, is_train=False, mean=MEAN, std=STD, resize_mode=resize)
    pixels = smooth_pixels(*size)
    expected = torch.stack([theirs(Image.fromarray(picture)) for picture in pixels])
    raw = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    found = ImageContract(settings(resize=resize))(raw)
    assert found.shape == (2, 3, 24, 24)
    assert (found - expected).abs().max() < 2.5 / 255 / min(STD)


def test_the_normalisation_of_the_data_set_is_undone():
    raw = torch.rand(2, 3, 24, 24)
    field = {"shape": (3, 24, 24), "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    normalised = (raw - torch.tensor(field["mean"]).view(3, 1, 1)) / torch.tensor(field["std"]).view(3, 1, 1)
    torch.testing.assert_close(ImageContract(settings(), field)(normalised), ImageContract(settings())(raw))


def test_a_picture_of_the_right_size_is_only_normalised():
    raw = torch.rand(2, 3, 24, 24)
    expected = (raw - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(ImageContract(settings())(raw), expected)


def test_grey_pictures_become_three_equal_channels():
    found = ImageContract(settings(mean=(0.5,) * 3, std=(0.5,) * 3))(torch.rand(2, 1, 12, 12))
    assert torch.equal(found[:, 0], found[:, 2])


def test_scale_to_cuts_the_centre():
    raw = torch.arange(32.0).expand(1, 3, 32, 32) / 32
    found = ImageContract(settings(size=(24, 24), mean=(0.0,) * 3, std=(1.0,) * 3, scale_to=32))(raw)
    assert torch.equal(found, raw[:, :, 4:28, 4:28])


def test_bicubic_values_stay_in_range():
    raw = (torch.arange(16) % 2).float().expand(1, 3, 16, 16)
    found = ImageContract(settings(mean=(0.0,) * 3, std=(1.0,) * 3))(raw)
    assert found.min() >= 0
    assert found.max() <= 1


def test_gradients_pass():
    raw = torch.rand(1, 3, 30, 30, requires_grad=True)
    ImageContract(settings())(raw).square().sum().backward()
    assert raw.grad is not None
    assert raw.grad.abs().min() > 0


def test_no_tensor_of_the_contract_is_saved_but_its_settings_are_printed():
    contract = ImageContract(settings(), {"mean": [0.1] * 3, "shape": (3, 8, 8)})
    assert contract.state_dict() == {}
    assert "bicubic" in repr(contract)
    assert repr(contract) != repr(ImageContract(settings()))


def test_pictures_out_of_range_are_refused():
    contract = ImageContract(settings())
    contract.check_range(torch.rand(2, 3, 8, 8))
    with pytest.raises(ModelError, match=r"from -2 to 1"):
        contract.check_range(torch.linspace(-2, 1, 192).reshape(1, 3, 8, 8))
    with pytest.raises(ModelError, match="1 or 3 channels, found 4"):
        contract(torch.rand(1, 4, 8, 8))
    with pytest.raises(ConfigError, match=r"\[3, H, W\] or \[1, H, W\], found \[35\]"):
        ImageContract(settings(), {"shape": (35,)})


def test_what_is_missing_or_impossible_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        image_settings({"interpolation": "lanczos", "resize": "border", "mean": MEAN}, None, "model x")
    assert len(caught.value.problems) == 4
    options = ImageOptions(size=8, std=[0.5] * 3, interpolation="bilinear", resize="squash")
    found = image_settings({"interpolation": "lanczos", "resize": "border", "mean": MEAN}, options, "model x")
    assert found == ImageSettings((8, 8), MEAN, (0.5,) * 3, "bilinear", "squash")


def test_another_size_drops_the_larger_picture_of_the_model():
    known = {"size": 24, "mean": 0.5, "std": 0.5, "resize": "shortest", "scale_to": 28}
    assert image_settings(known, None, "x").scale_to == 28
    assert image_settings(known, ImageOptions(size=16), "x").scale_to is None
