"""Distil a student from Python, look at its results, and use it without the trainer.

The overrides make the run small; drop them for the real thing.
"""

from __future__ import annotations

import torch

import moekd

SMALL = ["data.max_train=512", "stages.cotrain.epochs=2", "stages.specialise.epochs=1", "stages.distill.epochs=2"]


def main() -> None:
    """Run the shipped quickstart config on a part of its data."""
    run = moekd.distill("quickstart", SMALL, name="from_python", baselines=False)
    for split, models in run.results["test"].items():
        row = "  ".join(f"{name} {100 * metrics['accuracy']:.1f} %" for name, metrics in models.items())
        print(f"{split}: {row}")
    student = moekd.load_student(run.path)
    with torch.inference_mode():
        label = student(torch.rand(1, 3, 32, 32)).argmax(dim=1).item()
    print(f"noise looks like: {run.results['class_names'][label]}")
    print(f"report: {run.report}")


if __name__ == "__main__":
    main()
