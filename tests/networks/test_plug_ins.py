"""Plain torch modules of other packages, found by the entry points of an installed distribution."""

from __future__ import annotations

import sys

import pytest
import torch

from moekd.config import build
from moekd.config.component import validate_component
from moekd.model import Model
from moekd.networks import NETWORKS
from moekd.teachers import Teacher, TeacherPool

MODULE = '''
from torch import nn
from moekd.registry import Injected


class LittleNet(nn.Module):
    """Knows torch alone: it returns named tensors."""

    def __init__(self, num_classes: Injected[int], width: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, image):
        vector = self.body(image)
        return {"logits": self.head(vector), "embeddings": {"image": vector}}
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution on the path, as pip leaves it, with one network."""
    (tmp_path / "their_models.py").write_text(MODULE)
    info = tmp_path / "their_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[moekd.networks]\nlittle_net = their_models:LittleNet\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(NETWORKS, "_members", dict(NETWORKS._members))
    monkeypatch.setattr(NETWORKS, "_plugins_loaded", False)
    yield
    sys.modules.pop("their_models", None)


def test_a_module_of_another_package_is_student_and_teacher(installed):
    problems: list[str] = []
    spec = validate_component(NETWORKS, {"kind": "little_net", "width": 5}, "student", problems)
    assert problems == []
    assert spec is not None
    batch = {"image": torch.randn(4, 3, 2, 2)}
    said = Model(build(spec, NETWORKS, num_classes=3, loading="weights"), ["image"], ["body"])(batch)
    assert said.logits is not None
    assert said.logits.shape == (4, 3)
    assert said.embeddings["image"].shape == said.features["body"].shape == (4, 5)
    pool = TeacherPool({"theirs": Teacher(build(spec, NETWORKS, num_classes=3), ["image"], name="theirs")})
    assert pool(batch)["theirs"].embeddings["image"].shape == (4, 5)
    assert validate_component(NETWORKS, {"kind": "little_net", "widht": 5}, "student", problems) is None
    assert "did you mean 'width'" in problems[0]
