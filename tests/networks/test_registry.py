"""What config files can say about networks, and that the documentation lists all of them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from moekd.networks import ENCODERS, NETWORKS

#: Networks that never classify.
WITHOUT_CLASSES = {"matcher"}
DOCS = Path(__file__).parents[2] / "docs" / "networks.md"


@pytest.mark.parametrize("kind", NETWORKS.names())
def test_the_number_of_classes_is_no_option(kind):
    takes = "num_classes" in inspect.signature(NETWORKS.get(kind).__init__).parameters
    assert takes == (kind not in WITHOUT_CLASSES)
    assert "num_classes" not in NETWORKS.parameters(kind)


def test_documentation_lists_every_kind_and_option():
    text = DOCS.read_text(encoding="utf-8")
    for registry in (NETWORKS, ENCODERS):
        shipped = [kind for kind in registry.names() if registry.get(kind).__module__.startswith("moekd.")]
        assert len(shipped) > 3
        for kind in shipped:
            assert f"`{kind}`" in text, kind
            for option in registry.parameters(kind):
                assert f"`{option}`" in text, f"{kind}: {option}"
