"""Finding config files, `extends`, and overrides from the command line."""

from __future__ import annotations

import pytest

from moekd.config import load as load_module
from moekd.config import load_config, shipped_configs
from moekd.config.overrides import apply_overrides
from moekd.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """A folder with configs by name."""

    def write(**files: str):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.fixture
def shipped(tmp_path_factory, monkeypatch):
    """Two shipped configs."""
    root = tmp_path_factory.mktemp("shipped").resolve()
    (root / "cmkd").mkdir()
    (root / "quickstart.yaml").write_text("title: quick\nseed: 1\n")
    (root / "cmkd" / "avmnist_image.yaml").write_text("extends: ../quickstart.yaml\ntitle: image\n")
    monkeypatch.setattr(load_module, "_shipped_folder", lambda: root)
    return root


def refusal(call) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def test_path_and_shipped_name(folder, shipped):
    path = folder(my="title: mine\n") / "my.yaml"
    assert load_config(str(path)) == ({"title": "mine"}, str(path))
    assert load_config("quickstart") == ({"title": "quick", "seed": 1}, "quickstart")
    assert load_config("cmkd/avmnist_image") == ({"title": "image", "seed": 1}, "cmkd/avmnist_image")
    assert sorted(shipped_configs()) == ["cmkd/avmnist_image", "quickstart"]


def test_shipped_configs_are_found_in_the_package():
    assert all(path.is_file() and path.suffix == ".yaml" for path in shipped_configs().values())


def test_folder_of_the_name_of_a_shipped_config_is_not_in_the_way(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert load_config("quickstart")[0]["title"] == "quick"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quikstart", "is neither a file nor a shipped config; did you mean 'quickstart'?"),
        ("zzz", "shipped configs: cmkd/avmnist_image, quickstart"),
        ("a\0b", "is neither a file nor a shipped config"),
        ("x" * 5000, "is neither a file nor a shipped config"),
        ("", "is neither a file nor a shipped config"),
        ("my\0.yaml", "no such file"),
    ],
)
def test_unknown_name(shipped, name, words):
    assert words in refusal(lambda: load_config(name))


def test_misspelt_file(folder, shipped):
    path = folder(design="a: 1") / "desing.yaml"
    assert f"no such file; did you mean '{path.with_name('design.yaml')}'?" in refusal(lambda: load_config(str(path)))


def test_extends_merges_mappings_and_replaces_the_rest(folder):
    root = folder(
        base="a: {x: 1, y: {z: 2}}\nlist: [1, 2]\ngone: 5\nnet: {kind: mlp, width: 3}\nsame: {kind: mlp, width: 3}\n",
        middle="extends: base.yaml\na: {y: {w: 3}}\nlist: [9]\n",
        top="extends: middle.yaml\ngone: null\nnet: {kind: cnn}\nsame: {depth: 2}\n",
    )
    assert load_config(str(root / "top.yaml"))[0] == {
        "a": {"x": 1, "y": {"z": 2, "w": 3}},
        "list": [9],
        "gone": None,
        "net": {"kind": "cnn"},
        "same": {"kind": "mlp", "width": 3, "depth": 2},
    }


def test_extends_a_shipped_config(folder, shipped):
    root = folder(mine="extends: cmkd/avmnist_image\nseed: 7\n")
    assert load_config(str(root / "mine.yaml"))[0] == {"title": "image", "seed": 7}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("../secret.yaml", "lies outside the folder of the config"),
        ("/etc/secret.yaml", "lies outside the folder of the config"),
        ("sub/../../secret.yaml", "lies outside the folder of the config"),
        ("link.yaml", "lies outside the folder of the config"),
        ("bsae.yaml", "no file 'bsae.yaml'; did you mean 'base.yaml'"),
        ("quikstart", "no shipped config 'quikstart'; did you mean 'quickstart'?"),
        ("[a.yaml]", "expected a file or the name of a shipped config, found ['a.yaml']"),
        ("null", "expected a file or the name of a shipped config, found None"),
        ('"a\\0.yaml"', "is no file name"),
        ("top.yaml", "goes in a circle: top.yaml -> top.yaml"),
        ("round.yaml", "goes in a circle: top.yaml -> round.yaml -> top.yaml"),
        ("broken.yaml", "top.yaml -> broken.yaml: line 1: key 'a' occurs twice"),
    ],
)
def test_refused_extends(folder, shipped, value, words):
    """S6: `extends` can't leave its folder."""
    root = folder(
        sub__base="a: 1",
        base="a: 1",
        top=f"extends: {value}\n",
        round="extends: top.yaml\n",
        broken="{a: 1, a: 2}",
    )
    outside = root.parent / "secret.yaml"
    outside.write_text("a: 1")
    (root / "link.yaml").symlink_to(outside)
    assert words in refusal(lambda: load_config(str(root / "top.yaml")))


def test_shipped_configs_may_not_be_left_either(folder, shipped):
    (shipped.parent / "outside.yaml").write_text("a: 1")
    (shipped / "bad.yaml").write_text("extends: ../outside.yaml\n")
    assert "lies outside" in refusal(lambda: load_config("bad"))


RAW = {
    "router": {"selection": "top_k", "k": 1},
    "seed": 3,
    "stages": [{"name": "cotrain", "epochs": 1}, {"name": "distill", "objectives": ["kd"]}],
}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=5", ["seed"], 5),
        ("router.k=2", ["router", "k"], 2),
        ("router.selection.k=2", ["router", "selection"], {"kind": "top_k", "k": 2}),
        ("stages.distill.epochs=5", ["stages", 1, "epochs"], 5),
        ("stages[1].epochs=5", ["stages", 1, "epochs"], 5),
        ("stages.1.epochs=5", ["stages", 1, "epochs"], 5),
        ("stages[1].objectives[0].temperature=2.5", ["stages", 1, "objectives"], [{"kind": "kd", "temperature": 2.5}]),
        ("stages[0]={name: x}", ["stages", 0], {"name": "x"}),
        ("student.inputs=[image, audio]", ["student"], {"inputs": ["image", "audio"]}),
        ("stages.cotrain.optimizer.lr=1e-4", ["stages", 0, "optimizer"], {"lr": 1e-4}),
        ("title=a = b", ["title"], "a = b"),
        ("title=''", ["title"], ""),
        ("paper=null", ["paper"], None),
        ("trainer.mixed_precision=no", ["trainer", "mixed_precision"], "no"),
    ],
)
def test_override(override, path, value):
    result = apply_overrides(RAW, [override])
    for step in path:
        result = result[step]
    assert result == value


def test_overrides_leave_the_original_alone_and_the_last_wins():
    assert apply_overrides(RAW, ["seed=5", "seed=6", "stages[0].epochs=9"])["seed"] == 6
    assert RAW["seed"] == 3
    assert RAW["stages"][0] == {"name": "cotrain", "epochs": 1}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "write it as key.subkey=value, such as router.selection.k=2"),
        ("=5", "write it as key.subkey=value"),
        (".seed=5", "write it as key.subkey=value"),
        ("a..b=5", "write it as key.subkey=value"),
        ("a b=5", "write it as key.subkey=value"),
        ("--seed 5", "write it as key.subkey=value"),
        ("stages[x].a=5", "write it as key.subkey=value"),
        ("seed=", "no value after '='"),
        ("seed=[1", "expected ',' or ']'"),
        ("seed={a: 1, a: 2}", "key 'a' occurs twice"),
        ("seed=!!python/name:os.system", "is refused"),
        ("stages.distil.epochs=5", "stages has no item called 'distil'; did you mean 'distill'?"),
        ("stages[7].epochs=5", "stages has 2 items, counted from 0; there is no stages[7]"),
        ("seed.deep=5", "seed is 3, which has no keys"),
        ("router[0]=5", "router is a mapping, not a list"),
        ("[0]=5", "write it as key.subkey=value"),
    ],
)
def test_malformed_override(override, words):
    message = refusal(lambda: apply_overrides(RAW, [override]))
    assert words in message
    assert message.startswith("override ")


def test_all_malformed_overrides_are_reported():
    assert len(refusal(lambda: apply_overrides(RAW, ["a", "b", "seed=1"])).splitlines()) == 2
