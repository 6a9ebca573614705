"""Importing the rooms that register components."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..registry import REGISTRIES, Registry

ROOMS = ("data", "networks", "objectives", "routers", "schedules", "stages", "teachers", "transforms")


def load_rooms() -> Mapping[str, Registry[Any]]:
    """Import all rooms, so that every component is registered, and return the registries by group."""
    for room in ROOMS:
        import_module(f"..{room}", __package__)
    import_module(".torch_optim", __package__)
    return REGISTRIES
