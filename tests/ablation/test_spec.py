"""What an ablation file may say, and what is told about its mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from moekd.ablation import load_ablation
from moekd.config import shipped_ablations
from moekd.errors import ConfigError

from .small import BASE, QUICK, write_ablation


def mistakes(folder: Path, arms: Any = None, overrides: tuple[str, ...] = (), **keys: Any) -> list[str]:
    """Return what is wrong with a file."""
    path = write_ablation(folder, {"one": {}} if arms is None else arms, QUICK, **keys)
    with pytest.raises(ConfigError) as caught:
        load_ablation(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


def test_everything_that_a_file_says(tmp_path: Path) -> None:
    path = write_ablation(
        tmp_path,
        {"one": {}, "two": {"student.hidden": [3]}},
        QUICK,
        title="Widths",
        changes={"trainer.log_every": 7},
        settings={"few": {"data.labels": 8}, "all": {}},
        grid={"student.dropout": [0.0, 0.5]},
        without=["dropout=0.5"],
        seeds=[4, 2, 4],
        baseline="one",
        metric="loss",
    )
    ablation = load_ablation(path, ["stages.learn.steps=3"])
    assert (ablation.name, ablation.title, ablation.metric, ablation.baseline) == ("small", "Widths", "loss", "one")
    assert ablation.base["trainer"]["log_every"] == 7
    assert ablation.base["stages"][0]["steps"] == 3
    assert list(ablation.settings) == ["few", "all"]
    assert [arm.name for arm in ablation.arms] == ["one", "two", "dropout=0.0"]
    assert ablation.seeds == (4, 2)
    assert QUICK["stages"][0]["steps"] == 2


def test_defaults(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(QUICK))
    path = tmp_path / "my.v2.yaml"
    path.write_text("{base: base.yaml, arms: {one: {}}}")
    ablation = load_ablation(path)
    assert (ablation.name, ablation.title, ablation.seeds) == ("my.v2", "my.v2", (0, 1, 2, 3, 4))
    assert ablation.settings == {"": {}}
    assert (ablation.baseline, ablation.metric, ablation.every) == (None, "accuracy", None)


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    grid = {
        "router.selection.k": [1, 2],
        "router.combine": {"mixture": "target", "sum": "loss"},
        "stages.distill.ema": [None],
    }
    ablation = load_ablation(write_ablation(tmp_path, {}, BASE, grid=grid))
    assert [arm.name for arm in ablation.arms] == [
        "k=1, mixture, ema=none",
        "k=1, sum, ema=none",
        "k=2, mixture, ema=none",
        "k=2, sum, ema=none",
    ]
    assert ablation.arms[2].changes == {
        "router.selection.k": 2,
        "router.combine": "target",
        "stages.distill.ema": None,
    }


def test_paths_with_the_same_end_are_written_out(tmp_path: Path) -> None:
    grid = {"stages.cotrain.epochs": [1], "stages.distill.epochs": [1, 2], "trainer.deterministic": [True]}
    ablation = load_ablation(write_ablation(tmp_path, {}, BASE, grid=grid))
    assert ablation.arms[1].name == "stages.cotrain.epochs=1, stages.distill.epochs=2, deterministic=true"


@pytest.mark.parametrize(
    ("listed", "wanted", "seeds"),
    [(3, None, (0, 1, 2)), (3, 5, (0, 1, 2, 3, 4)), ([7, 5, 9], None, (7, 5, 9)), ([7, 5, 9], 2, (7, 5))],
)
def test_seeds(tmp_path: Path, listed: Any, wanted: int | None, seeds: tuple[int, ...]) -> None:
    path = write_ablation(tmp_path, {"one": {}}, QUICK, seeds=listed)
    assert load_ablation(path, seeds=wanted).seeds == seeds


@pytest.mark.parametrize(("listed", "wanted", "said"), [([7, 5], 3, "lists 2"), (3, 0, "at least 1")])
def test_seeds_that_are_not_there(tmp_path: Path, listed: Any, wanted: int, said: str) -> None:
    path = write_ablation(tmp_path, {"one": {}}, QUICK, seeds=listed)
    with pytest.raises(ConfigError, match=said):
        load_ablation(path, seeds=wanted)


@pytest.mark.parametrize("seeds", [0, -1, [], [-1], True, "three", 1.5, [0, 1.5]])
def test_seeds_that_are_none(tmp_path: Path, seeds: Any) -> None:
    assert any(line.startswith("seeds") for line in mistakes(tmp_path, seeds=seeds))


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        {"one": {}},
        ("trainer.=3",),
        changes={"stages.larn.epochs": 1},
        grid={"student.dropout": [0.1, "0.1"]},
        baseline="on",
        without=["dropout=0.2"],
        seeds=[0, 1],
    )
    assert len(found) == 5
    assert "changes: override 'stages.larn.epochs': stages has no item called 'larn'; did you mean 'learn'?" in found
    assert "override 'trainer.=3'" in found[1]
    assert "the arm 'dropout=0.1' is there twice" in found[2]
    assert found[3] == "baseline: no arm 'on'; did you mean 'one'?"
    assert "without: no arm 'dropout=0.2'; did you mean 'dropout=0.1'" in found[4]


def test_unknown_keys_and_types_at_once(tmp_path: Path) -> None:
    found = mistakes(tmp_path, {"one": None}, sedes=3, metric="acuracy", every="router", settings=["few"])
    assert len(found) == 5
    text = "\n".join(found)
    assert "sedes: unknown key; did you mean 'seeds'?" in text
    for key in ("metric", "every", "settings", "arms.one"):
        assert any(line.startswith(key) for line in found), text


@pytest.mark.parametrize("keys", [{"arms": {}}, {"arms": {}, "grid": {}}, {"arms": {}, "grid": {"seed": []}}])
def test_nothing_to_compare(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert mistakes(tmp_path, **keys) == ["nothing to compare: give arms, grid or every"]


def test_the_base_lies_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_ablation(tmp_path / "here", {"one": {}}, QUICK)
    write_ablation(tmp_path / "there", {"one": {}}, BASE)
    monkeypatch.chdir(tmp_path / "there")
    assert load_ablation(path).base["stages"] == QUICK["stages"]


def test_a_base_that_is_none(tmp_path: Path) -> None:
    assert "did you mean" in mistakes(tmp_path, base="bose.yaml")[0]
    assert "did you mean 'quickstart'" in mistakes(tmp_path, base="quickstert")[0]
    assert "it has no stages" in mistakes(tmp_path, base="small.yaml")[0]


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*did you mean"):
        load_ablation(write_ablation(tmp_path, {"one": {}}, QUICK).with_name("smal.yaml"))
    shipped = list(shipped_ablations())
    with pytest.raises(ConfigError, match="no shipped ablation 'rooters'") as caught:
        load_ablation("rooters")
    assert "the name of a file ends with .yaml" in str(caught.value)
    assert ("did you mean 'routers'" in str(caught.value)) == ("routers" in shipped)


def test_an_override_that_no_arm_would_see_is_refused(tmp_path: Path) -> None:
    settings = {"few": {"data.labels": 8}, "many": {"data.labels": 30, "student": {"kind": "mlp"}}}
    arms = {"one": {"student.dropout": 0.1}, "two": {"student.dropout": 0.2}}
    path = write_ablation(tmp_path, arms, QUICK, settings=settings)
    with pytest.raises(ConfigError) as caught:
        load_ablation(path, ["data.labels=4", "student.dropout=0.3", "trainer.log_every=1"])
    assert caught.value.problems == [
        "override 'data.labels=4' has no effect: every setting sets it; change the file",
        "override 'student.dropout=0.3' has no effect: every arm sets it; change the file",
    ]
    assert load_ablation(path, ["student.hidden=[5]"]).base["student"]["hidden"] == [5]
