"""Students that several files of this room export."""

from __future__ import annotations

from pathlib import Path

import pytest

from .students import CLIP, write_student


@pytest.fixture(scope="session")
def clip_run(tmp_path_factory) -> Path:
    """A run whose student is an open_clip model that reads pictures and captions, and classifies by class names."""
    options = {"model": CLIP, "zero_shot": {"templates": ["a {}.", "a drawing of a {}."]}}
    return write_student(tmp_path_factory.mktemp("clip_run"), "open_clip", ["image", "caption"], options)


@pytest.fixture(scope="session")
def timm_run(tmp_path_factory) -> Path:
    """A run whose student is a timm backbone with a new classifier."""
    options = {"model": "test_resnet", "classifier": "new", "image": {"resize": "none"}}
    return write_student(tmp_path_factory.mktemp("timm_run"), "timm", ["image"], options)
