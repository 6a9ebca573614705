"""Students in which labelled pictures vote: artefacts and programs say the same, formats without votes refuse them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moekd.errors import ModelError
from moekd.export import export, export_student, load_student
from moekd.export.parts import parts_of
from moekd.model import Model
from moekd.networks import CnnEncoder, TextOptions, TipAdapterOptions, TwoTower, ZeroShotOptions
from moekd.networks.class_vectors import ClassVectorOptions

from .students import FIELDS, NAMES

TEXT = {"context": 12, "width": 8, "layers": 1, "heads": 2}
OPTIONS: dict[str, Any] = {
    "tower": {"kind": "cnn_encoder", "channels": [4, 6]},
    "text": TEXT,
    "width": 5,
    "tip_adapter": {"entries": 4},
}
BASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "class_vectors": (
        {"class_vectors": {"projector": "none"}},
        {"class_vectors": ClassVectorOptions(projector="none")},
    ),
    "zero_shot": ({"zero_shot": {}}, {"zero_shot": ZeroShotOptions(), "class_names": NAMES}),
}


def voting(base: str) -> TwoTower:
    """Return a two-tower student whose entries are filled."""
    torch.manual_seed(0)
    network = TwoTower(
        3,
        tower=CnnEncoder((4, 6)),
        text=TextOptions(**TEXT),
        width=5,
        tip_adapter=TipAdapterOptions(4),
        fields=FIELDS,
        **BASES[base][1],
    )
    network.tip_adapter.adopt(torch.randn(3, 5), torch.tensor([2, 0, 2]))
    network.tip_adapter.mix(0.8, 3.5)
    return network.eval()


def write(base: str, folder: Path) -> Path:
    options = OPTIONS | BASES[base][0]
    config = {"network": {"kind": "two_tower", "options": options}, "class_names": NAMES, "fields": FIELDS}
    return export_student(Model(voting(base), ["image", "caption"]), config, folder / "student", program=False)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 3, 20, 20), torch.randint(1, 200, (4, 40))


@pytest.mark.parametrize("base", BASES)
def test_a_student_comes_back_with_its_votes(base: str, tmp_path: Path) -> None:
    expected, found = voting(base)(*batch()), load_student(write(base, tmp_path))(*batch())
    torch.testing.assert_close(found["logits"], expected["logits"])


@pytest.mark.parametrize("base", BASES)
def test_the_program_of_the_image_tower_classifies_as_the_student_does(base: str) -> None:
    network, (pictures, texts) = voting(base), batch()
    part = next(p for p in parts_of(network, ["image", "caption"], FIELDS) if p.name == "image_encoder")
    with torch.no_grad():
        torch.testing.assert_close(part.module(pictures)["logits"], network(pictures, texts)["logits"])


@pytest.mark.parametrize("format", ["open_clip", "transformers"])
def test_formats_without_votes_refuse_them(format: str, tmp_path: Path) -> None:
    write("zero_shot", tmp_path)
    with pytest.raises(ModelError, match="classifier"):
        export(tmp_path, format, tmp_path / "out")
    assert not (tmp_path / "out").exists()
