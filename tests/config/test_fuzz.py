"""Whatever is read and parsed gives a valid recipe or a ConfigError, nothing else."""

from __future__ import annotations

from copy import deepcopy

from hypothesis import given, settings
from hypothesis import strategies as st

from moekd.config import RecipeConfig, load_config, parse_recipe, parse_yaml, recipe_dict
from moekd.config.overrides import apply_overrides
from moekd.errors import ConfigError

WORDS = [
    "kind",
    "name",
    "toy",
    "mlp",
    "kd",
    "top_k",
    "train",
    "student",
    "teachers",
    "audio",
    "audio/fc1",
    "inputs",
    "x",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 10**25)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=5)
    | st.just("os.system")
)
KEYS = st.sampled_from(WORDS) | st.text(max_size=4) | st.integers(0, 3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=10
)
SECTIONS = [
    "title", "seed", "paper", "data", "student", "teachers", "masks", "router", "stages", "baselines", "evaluation",
    "trainer", "other",
]  # fmt: skip
YAML_TEXT = st.text(alphabet=st.sampled_from("ab:{}[],-&*!|>'\"#%@?<\n\t \\0.1e\u00e9"), max_size=60) | st.text(
    max_size=60
)


def places(value, path=()):
    """Yield the path of every value inside nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def outcome(call):
    """Return the result of `call` and no problems, or None and the problems of its ConfigError."""
    try:
        return call(), None
    except ConfigError as error:
        return None, error.problems


def check_recipe(raw, kit):
    config, problems = outcome(lambda: parse_recipe(raw, "x.yaml", kit))
    if problems is None:
        assert isinstance(config, RecipeConfig)
        assert recipe_dict(config, True, kit)["stages"]
    else:
        assert problems
        assert all(line.startswith("x.yaml: ") and "\n" not in line for line in problems)


@settings(max_examples=100, deadline=None)
@given(raw=st.dictionaries(st.sampled_from(SECTIONS), VALUES, max_size=8))
def test_any_mapping(kit, raw):
    """F1, S1: any mapping gives a recipe or a ConfigError."""
    check_recipe(raw, kit)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_valid_recipe_with_changes(kit, base_raw, data):
    raw = deepcopy(dict(base_raw))
    for _ in range(data.draw(st.integers(1, 4))):
        spots = list(places(raw))
        *parents, last = data.draw(st.sampled_from(spots or [("data",)]))
        parent = raw
        for step in parents:
            parent = parent[step]
        action = data.draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "delete" and spots:
            del parent[last]
        elif action == "add" and isinstance(parent, dict):
            parent[data.draw(KEYS)] = data.draw(VALUES)
        else:
            parent[last] = data.draw(VALUES)
    check_recipe(raw, kit)


@settings(max_examples=300, deadline=None)
@given(text=YAML_TEXT)
def test_any_text(kit, text):
    """F1, S1: any text."""
    raw, problems = outcome(lambda: parse_yaml(text, "x.yaml"))
    assert problems is None or problems
    if problems is None:
        check_recipe(raw, kit)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=80) | YAML_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_file(tmp_path_factory, content):
    """F1, S1: any bytes."""
    path = tmp_path_factory.mktemp("fuzz") / "a.yaml"
    path.write_bytes(content)
    loaded, problems = outcome(lambda: load_config(str(path)))
    assert problems or (isinstance(loaded[0], dict) and loaded[1] == str(path))


@settings(max_examples=200, deadline=None)
@given(override=st.text(st.sampled_from("stages.012[]=:ab{}' kd_name"), max_size=20) | st.text(max_size=15))
def test_any_override(base_raw, override):
    result, problems = outcome(lambda: apply_overrides(base_raw, [override]))
    assert isinstance(result, dict) if problems is None else problems[0].startswith("override ")


@settings(max_examples=50, deadline=None)
@given(name=st.text(max_size=20))
def test_any_config_name(name):
    loaded, problems = outcome(lambda: load_config(name))
    assert loaded or problems
