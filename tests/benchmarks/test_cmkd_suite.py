"""The cross-modal suite: which methods run in a cell, and what each value of the grid changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moekd.ablation import make_plan
from moekd.benchmarks.cmkd import Request, ablation_of, choose, tuning_of
from moekd.benchmarks.cmkd_suite import ALONE, Choice, base_of, changes_of, left_out, load_suite, methods_of
from moekd.data import prepare
from moekd.errors import ConfigError, UnknownNameError

SUITE = load_suite()
CELL = SUITE.data["emoji_image"]
NOWHERE = Path("nowhere")


def method(title: str, cell: str = "emoji_image"):
    return next(m for m in methods_of(SUITE, SUITE.data[cell]) if m.title == title)


def test_every_method_has_three_forms_and_every_title_is_unique() -> None:
    for cell in SUITE.data.values():
        found = methods_of(SUITE, cell)
        titles = [m.title for m in found]
        assert len(set(titles)) == len(titles)
        assert titles[0] == ALONE
        forms = {name: [m.form for m in found if m.name == name] for name in SUITE.methods}
        assert all(names == ["alone", "averaged", "routed"] for names in forms.values() if names)
    dense_only = {"attention_transfer", "review_kd", "KD, routed by pixel"}
    assert not [m for m in methods_of(SUITE, CELL) if m.name in dense_only]
    assert dense_only <= {m.name for m in methods_of(SUITE, SUITE.data["camvid_rgb"])}
    assert dense_only <= {m.name for m in methods_of(SUITE, SUITE.data["nyu_rgb"])}


def test_methods_without_a_meaning_are_named_with_the_reason() -> None:
    found = Request(SUITE, ["mfeat_fou", "camvid_rgb"], ["kd", "review_kd", "KD, routed by pixel"]).left_out()
    assert list(found.values()) == [["mfeat_fou"], ["mfeat_fou"]]
    assert "review_kd: compares maps of several depths" in next(iter(found))
    assert left_out(SUITE, SUITE.data["camvid_rgb"]) == {}
    with pytest.raises(ConfigError, match="AT, averaged does not apply to the cell 'emoji: picture': compares maps"):
        changes_of(SUITE, CELL, method("AT, averaged", "camvid_rgb"), Choice())


def test_review_reads_taps_that_the_cell_does_not_have() -> None:
    cell = SUITE.data["camvid_rgb"]
    changes = changes_of(SUITE, cell, method("ReviewKD, best single teacher", "camvid_rgb"), Choice(1, "multimodal"))
    assert changes["student.taps"] == ["decoder1", "encoder1", "encoder2", "encoder3"]
    assert changes["teachers.crossmodal.taps"] == ["decoder1", "encoder1", "encoder2", "encoder3"]
    objective = changes["stages.distill.objectives"][1]
    assert objective["student_taps"] == objective["teacher_taps"] == ["encoder1", "encoder2", "encoder3"]
    others = [m for m in methods_of(SUITE, cell) if m.name != "review_kd"]
    assert not any("student.taps" in changes_of(SUITE, cell, m, m.choices[0]) for m in others)


def test_the_published_dense_networks_have_the_taps(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra moekd[datasets])")
    source = tmp_path / "nyu"
    source.mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(source / "nyu.mat", "w") as file:
        file["images"] = rng.integers(0, 256, (5, 3, 640, 480), dtype=np.uint8)
        file["depths"] = rng.uniform(1, 5, (5, 640, 480)).astype(np.float32)
        file["labels40"] = rng.integers(0, 41, (5, 640, 480), dtype=np.uint8)
    root = prepare("nyu_depth_v2", source, tmp_path / "out", progress=False)
    overrides = [f"data.root={root}", "data.stride=8", "data.batch_size=2"]
    overrides += [f"{model}.width=2" for model in ("student", "teachers.multimodal", "teachers.crossmodal")]
    for name in ("nyu_rgb", "nyu_depth"):
        cell = SUITE.data[name]
        request = Request(SUITE, [name], ["review_kd", "attention_transfer"], 1, overrides, tune=False)
        assert make_plan(ablation_of(request, name, cell, choose(request, name, cell, NOWHERE))).inapplicable == {}


def test_one_grid_for_all() -> None:
    weights = SUITE.tuning.weights
    for m in methods_of(SUITE, CELL):
        if m.form == "alone":
            assert {c.teacher for c in m.choices} == set(CELL.config["teachers"])
            assert sorted(c.weight for c in m.choices) == sorted(weights * len(CELL.config["teachers"]))
        elif SUITE.recipes.get(m.name) and SUITE.recipes[m.name].tuned:
            assert [c.weight for c in m.choices] == weights
        else:
            assert m.choices == (Choice(),)


def test_forms_of_an_objective() -> None:
    for m, wanted in (
        ("CRD, best single teacher", {"kind": "crd", "weight": 0.8 * 3, "teacher": "crossmodal"}),
        ("CRD, averaged", {"kind": "crd", "weight": 0.8 * 3}),
    ):
        changes = changes_of(SUITE, CELL, method(m), Choice(3, "crossmodal"))
        first, second = changes["stages.distill.objectives"]
        assert first == "cross_entropy"
        assert {key: second[key] for key in wanted} == pytest.approx(wanted)
        assert second["student_tap"] == second["teacher_tap"] == "fc1"
        assert changes["router"] is None
        assert changes["masks"] is None
    routed = changes_of(SUITE, CELL, method("CRD, routed"), Choice(3))
    assert routed["stages.distill.objectives"][1]["kind"] == "routed"
    assert "weight" not in routed["stages.distill.objectives"][1]["objective"]
    assert "router" not in routed


def test_all_students_see_the_data_equally_often() -> None:
    for m in methods_of(SUITE, CELL):
        if m.name.startswith(("student alone, as", "MST-Distill, published")):
            continue
        changes = changes_of(SUITE, CELL, m, m.choices[0])
        base = {stage["name"]: stage for stage in base_of(SUITE, CELL)["stages"]}
        epochs = changes.get("stages.distill.epochs", base["distill"]["epochs"])
        for stage in ("hint", "cotrain"):
            enabled = changes.get(f"stages.{stage}.enabled", False)
            trains = changes.get(f"stages.{stage}.trains", base[stage]["trains"])
            if enabled and "student" in trains:
                epochs += changes[f"stages.{stage}.epochs"]
        assert epochs == CELL.epochs.student, m.title


def test_the_twin_of_mgdfr_is_the_student() -> None:
    changes = changes_of(SUITE, CELL, method("MGDFR"), Choice(1))
    assert changes["teachers.twin"] == CELL.config["student"]
    assert changes["stages.cotrain.trains"] == ["teachers.crossmodal", "teachers.twin"]


def test_a_pool_with_a_teacher_for_every_subset() -> None:
    cell = SUITE.data["mfeat_subsets"]
    subsets = {frozenset(teacher["inputs"]) for teacher in cell.config["teachers"].values()}
    views = {"fou", "kar", "zer"}
    assert len(subsets) == 7
    assert all(subset and subset <= views for subset in subsets)
    assert len(method("KD, best single teacher", "mfeat_subsets").choices) == 21


def test_untuned_choices() -> None:
    request = Request(SUITE, ["emoji_image"], tune=False)
    found = choose(request, "emoji_image", CELL, NOWHERE)
    assert found["KD, best single teacher"] == Choice(1.0, "multimodal")
    assert found["KD, averaged"] == Choice(1.0)


def test_every_method_passes_the_dry_run() -> None:
    small = ["data.max_train=24", "data.batch_size=12"]
    request = Request(SUITE, ["emoji_image"], seeds=1, overrides=small, tune=False)
    plan = make_plan(ablation_of(request, "emoji_image", CELL, choose(request, "emoji_image", CELL, NOWHERE)))
    assert plan.inapplicable == {}
    shared = [job for job in plan.jobs if job["arm"] is None]
    assert shared, "teachers are trained once for all methods that share them"
    assert len(tuning_of(request, "emoji_image", CELL).arms) > 90


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "pack", "overrides"),
    [
        ("mfeat_subsets", "mfeat_6views", []),
        ("ravdess_face", "ravdess_au_mfcc", []),
        ("camvid_rgb", "camvid", ["data.stride=6"]),
    ],
)
def test_cells_on_the_data_packs(name, pack, overrides, data_root, tmp_path) -> None:
    cell = SUITE.data[name]
    root = prepare(cell.config["data"]["kind"], data_root / pack, tmp_path / "prepared", progress=False)
    chosen = ["kd", "crd", "attention_transfer", "review_kd", "C2KD", "MST-Distill", "KD, routed by pixel"]
    request = Request(SUITE, [name], chosen, 1, [f"data.root={root}", *overrides], tune=False)
    plan = make_plan(ablation_of(request, name, cell, choose(request, name, cell, NOWHERE)))
    assert plan.inapplicable == {}


def test_a_published_cell_on_a_look_alike(tmp_path: Path) -> None:
    source = tmp_path / "features"
    source.mkdir()
    rng = np.random.default_rng(0)
    for name, width in (("image", 2048), ("text", 768)):
        np.save(source / f"{name}_features.npy", rng.normal(size=(20, width)).astype(np.float32))
    np.save(source / "labels.npy", np.arange(20) % 8)
    root = prepare("crisismmd", source, tmp_path / "out", progress=False)
    overrides = [f"data.root={root}", "data.batch_size=8", "masks.hidden_factor=128", "masks.heads=1"]
    request = Request(SUITE, ["crisismmd_image"], ["fitnets", "C2KD", "MGDFR", "MST-Distill"], 1, overrides, tune=False)
    cell = SUITE.data["crisismmd_image"]
    plan = make_plan(ablation_of(request, "crisismmd_image", cell, choose(request, "crisismmd_image", cell, NOWHERE)))
    assert plan.inapplicable == {}


def test_unknown_names_and_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no cell 'mfeat_fuo'; did you mean 'mfeat_fou'"):
        _ = Request(SUITE, ["mfeat_fuo"]).names
    with pytest.raises(UnknownNameError, match="no method 'kdd'"):
        Request(SUITE, methods=["kdd"]).methods_in(CELL)
    file = tmp_path / "my.yaml"
    file.write_text("data:\n  mine: {title: mine, epochs: {teachers: 1, student: 1}, config: {}, crosss: a}\n")
    with pytest.raises(ConfigError, match=r"data\.mine\.crosss"):
        load_suite(file)


def test_a_file_adds_to_the_suite(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("seeds: 3\ndata:\n  mine: {title: mine, epochs: {teachers: 1, student: 3}, config: {}}\n")
    suite = load_suite(file)
    assert suite.seeds == 3
    assert set(suite.data) == {*SUITE.data, "mine"}
