"""Proof of a written folder: its library loads it, and what it gives is compared with the student."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import ModelError

TOLERANCE, FLOOR = 1e-5, 0.1
SENTENCES = ("a red apple", "Two umbrellas, in the rain", "it's 42 o'clock!")


def prove(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], format: str) -> dict[str, float]:
    """Compare what a library gives with what the student gives.

    Returns:
        The largest difference by name, relative to the largest value (or 0.1, if that is larger).

    Raises:
        ModelError: one of them is above 1e-5, or has another shape.
    """
    gaps = {}
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise ModelError(
                f"format {format}: {name} comes back as {list(found[name].shape)}, expected {list(value.shape)}; "
                "nothing is exported"
            )
        gap = (found[name].detach().double() - value.detach().double()).abs().amax() / max(
            1.0, float(value.abs().max())
        )
        gaps[name] = float(gap)
        if not gap <= TOLERANCE:
            raise ModelError(
                f"format {format}: {name} comes back different by {gap:.2e} (allowed {TOLERANCE:.0e}); "
                "nothing is exported; use onnx, torch_export or safetensors"
            )
    return gaps


def refuse(format: str, reason: str, instead: str = "onnx, torch_export, safetensors") -> ModelError:
    """Return the error for a student that a format can't express."""
    return ModelError(f"format {format} can't express this student: {reason}; formats that can: {instead}")
