"""The script that builds the emoji set, without npm: reading packages and packing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks/data/emoji"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("emoji_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    known = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = known
    return module


@pytest.fixture
def modules(tmp_path):
    """A folder of npm modules with two concepts, a component, and two styles."""
    base = tmp_path / "emojibase-data"
    (base / "en").mkdir(parents=True)
    (base / "meta").mkdir()
    entries = [
        {
            "hexcode": "2764-FE0F",
            "emoji": "h",
            "label": "red heart",
            "tags": ["love"],
            "group": 8,
            "subgroup": 5,
            "order": 2,
        },
        {"hexcode": "1F3FB", "emoji": "s", "label": "light skin tone", "group": 2, "subgroup": 9, "order": 1},
        {"hexcode": "1F600", "emoji": "g", "label": "grinning face", "group": 0, "subgroup": 0, "order": 0},
        {"hexcode": "1F1E6", "emoji": "a", "label": "regional indicator A"},
    ]
    (base / "en/data.json").write_text(json.dumps(entries))
    names = {"groups": {"0": "faces", "8": "symbols"}, "subgroups": {"0": "smiling", "5": "heart"}}
    (base / "meta/groups.json").write_text(json.dumps(names))
    icons = {
        "alpha": {
            "icons": {"grin": {"body": "<g/>"}, "heart": {"body": "<h/>", "width": 40}},
            "width": 36,
            "height": 36,
        },
        "beta": {"icons": {"grinning-face": {"body": "<b/>"}}, "aliases": {"heart": {"parent": "grinning-face"}}},
    }
    codes = {"alpha": {"1f600": "grin", "2764-fe0f": "heart"}, "beta": {}}
    for style in icons:
        folder = tmp_path / "@iconify-json" / style
        folder.mkdir(parents=True)
        (folder / "icons.json").write_text(json.dumps(icons[style]))
        (folder / "chars.json").write_text(json.dumps(codes[style]))
    return tmp_path


def test_concepts_are_ordered_and_numbered(build, modules):
    concepts = build.read_concepts(modules)
    assert [(c["hexcode"], c["group"], c["group_id"], c["subgroup_id"]) for c in concepts] == [
        ("1F600", "faces", 0, 0),
        ("2764", "symbols", 1, 1),
    ]


def test_drawings_are_found_by_code_other_styles_and_name(build, modules):
    concepts = build.read_concepts(modules)
    rows, drawings = build.find_drawings(modules, "alpha", concepts)
    assert rows == [0, 1]
    assert 'viewBox="0 -2 40 40"' in drawings[1]
    rows, drawings = build.find_drawings(modules, "beta", concepts)
    assert rows == [0, 1]
    assert all("<b/>" in drawing for drawing in drawings)


def test_names_become_icon_names(build):
    assert build.slug("woman: red hair") == "woman-red-hair"
    assert build.slug("flag: Côte d’Ivoire") == "flag-cote-divoire"  # noqa: RUF001
    assert build.plain_code("2764-fe0f-200d-1f525") == "2764-200D-1F525"


def test_halving_is_the_mean_of_areas(build):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3)).astype(np.uint8)
    expected = images.reshape(3, 2, 2, 3, 2, 3).astype(float).mean(axis=(2, 4))
    assert np.abs(build.halve(images) - expected).max() <= 0.5


def test_the_shipped_manifest_is_what_packing_writes(build, tmp_path):
    concepts = [
        {key: key for key in build.write_pack.__globals__["DESCRIPTION_KEYS"]} | {"version": 1, "row": row}
        for row in range(2)
    ]
    zeros = np.zeros((3, 64, 64, 3), np.uint8)
    build.write_pack(
        tmp_path,
        zeros,
        np.zeros(3, np.uint8),
        np.array([0, 1, 1], np.int16),
        ["a"],
        concepts,
        np.zeros((2, 4), np.float16),
    )
    manifest, shipped = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path, FOLDER))
    assert manifest["images"] == 3
    assert set(manifest["sha256"]) == set(shipped["sha256"])
    with np.load(tmp_path / "emoji32.npz", allow_pickle=False) as pack, np.load(FOLDER / "emoji32.npz") as other:
        assert set(pack.files) == set(other.files)
        assert pack["image"].shape == (3, 32, 32, 3)
