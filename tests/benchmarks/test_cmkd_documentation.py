"""What docs/benchmark_cmkd.md says about adding a data set is true: its class and its files make cells that run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moekd import api
from moekd.ablation import make_plan
from moekd.benchmarks.cmkd import Request, ablation_of, choose
from moekd.benchmarks.cmkd_suite import ALONE, Choice, base_of, changes_of, load_suite
from moekd.config import apply_changes, parse_recipe
from moekd.data import DATASETS
from moekd.recipe import Recipe

PAGE = (Path(__file__).parents[2] / "docs/benchmark_cmkd.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
RNG = np.random.default_rng(0)


@pytest.fixture
def signs():
    """Register the class of the page, for one test."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    exec(compile(block, "docs/benchmark_cmkd.md", "exec"), {"__name__": "documentation"})
    yield DATASETS.get("signs")
    del DATASETS._members["signs"]


def plan_of(cell: str, file: Path, overrides: list[str], methods: list[str]):
    """Check every run of a cell, as `--dry-run` does."""
    request = Request(load_suite(file), [cell], methods, 1, overrides, tune=False)
    found = request.suite.data[cell]
    return make_plan(ablation_of(request, cell, found, choose(request, cell, found, Path("nowhere"))))


def test_own_files_need_no_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["image,text_vector,category"]
    for row in range(40):
        Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(f"{row}.png")
        np.save(f"{row}.npy", RNG.normal(size=384).astype(np.float32))
        lines.append(f"{row}.png,{row}.npy,{'cup' if row % 2 else 'plate'}")
    Path("products.csv").write_text("\n".join(lines) + "\n")
    Path("my.yaml").write_text(YAML[0])
    assert load_suite(Path("my.yaml")).methods["kd_cold"].title == "KD, temperature 1"
    plan = plan_of("products", Path("my.yaml"), ["data.batch_size=12"], ["kd", "kd_cold", "crd", "MST-Distill"])
    assert plan.inapplicable == {}
    assert {"KD, temperature 1, routed", "CRD, averaged", "MST-Distill"} <= {job["arm"] for job in plan.jobs}


def test_one_class_and_one_cell_are_a_data_set(signs, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    label = np.arange(150) % 3
    Path("signs").mkdir()
    np.save("signs/label.npy", label)
    for name, width, noise in (("angles", 20, 1.5), ("pressure", 12, 0.5)):
        centres = RNG.normal(size=(3, width))
        np.save(f"signs/{name}.npy", (centres[label] + noise * RNG.normal(size=(150, width))).astype(np.float32))
    Path("my.yaml").write_text(YAML[1])
    plan = plan_of("signs_angles", Path("my.yaml"), [], [])
    assert plan.inapplicable == {}, "every method fits, in all its forms"
    assert len({job["arm"] for job in plan.jobs if job["arm"]}) > 40

    suite = load_suite(Path("my.yaml"))
    cell = suite.data["signs_angles"]
    methods = {m.title: m for m in Request(suite, ["signs_angles"], ["kd", ALONE]).methods_in(cell)}
    base = base_of(suite, cell)
    for title in (ALONE, "KD, routed"):
        changed = apply_changes(base, changes_of(suite, cell, methods[title], Choice()))
        recipe = Recipe(parse_recipe(changed, "my.yaml"), "my.yaml")
        run = api.distill(recipe, name=title.replace(" ", "-"), quiet=True)
        assert run.results["test"]["test"]["student"]["accuracy"] > 0.5, "three classes, far apart"
