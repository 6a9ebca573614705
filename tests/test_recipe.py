"""A validated config becomes a program whose parts depend on the seed and their own name only."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from moekd.errors import ConfigError, DataError, ModelError, MoekdError
from moekd.recipe import Recipe
from moekd.stages import TrainStage
from moekd.teachers import FeatureAttentionMask

from .engine.conftest import _tiny_kinds  # noqa: F401
from .engine.tiny import FULL, MLP, full, recipe_of, same_weights, simple, weights_of


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_a_program_has_what_the_config_names() -> None:
    program = recipe_of(full()).build()
    assert [phase.name for phase in program.phases] == ["main", "alone"]
    assert [stage.name for stage in program.phases[0].stages] == ["cotrain", "specialise", "distill"]
    assert all(isinstance(stage, TrainStage) for phase in program.phases for stage in phase.stages)
    assert program.pool.names == ["right", "both"]
    assert program.pool.experts == ["right/fc1", "both/concat_identity", "both/fc1"]
    assert isinstance(program.pool.mask("both/fc1"), FeatureAttentionMask)
    assert program.phases[0].router is not None
    assert program.phases[1].router is None, "a baseline without routed objectives needs no router"
    assert program.data.num_classes == 4
    assert (program.data.batch_size, program.seed, program.test_splits) == (16, 3, ["test"])
    assert program.about["student"] == {"kind": "small_cnn", "inputs": ["image"], "parameters": 120}


def test_every_phase_starts_with_the_same_student() -> None:
    main, alone = (phase.student for phase in recipe_of(full()).build().phases)
    assert main is not alone
    assert same_weights(state(main), state(alone)) == []


def test_the_same_config_gives_the_same_weights_in_other_tensors() -> None:
    first, second = recipe_of(full()).build(), recipe_of(full()).build()
    assert same_weights(weights_of(first), weights_of(second)) == []
    with torch.no_grad():
        for parameter in first.phases[0].student.parameters():
            parameter.add_(1)
    assert same_weights(weights_of(first), weights_of(second))


def test_another_seed_gives_other_weights() -> None:
    first, second = weights_of(recipe_of(full()).build()), weights_of(recipe_of(full(seed=4)).build())
    same = {key for key in first if torch.equal(first[key], second[key])}
    assert all(bool((first[key] == first[key].flatten()[0]).all()) for key in same), "only constants are the same"


def test_building_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    recipe_of(full()).build()
    assert torch.equal(torch.get_rng_state(), before)


def reordered() -> Iterator[tuple[str, dict[str, Any]]]:
    raw = full()
    yield "order of the teachers", raw | {"teachers": dict(reversed(raw["teachers"].items()))}
    yield "no baseline", full(baselines={})
    more = full()
    more["teachers"]["third"] = copy.deepcopy(more["teachers"]["right"]) | {"taps": []}
    yield "a teacher more", more
    longer = full()
    longer["stages"][0]["epochs"] = 9
    yield "other stages", longer


@pytest.mark.parametrize(("name", "raw"), list(reordered()))
def test_parts_do_not_depend_on_each_other(name: str, raw: dict[str, Any]) -> None:
    expected, found = recipe_of(full()).build(), recipe_of(raw).build()
    assert same_weights(state(expected.phases[0].student), state(found.phases[0].student)) == []
    for teacher in ("right", "both"):
        assert same_weights(state(expected.pool.teacher(teacher)), state(found.pool.teacher(teacher))) == []
    for variant in expected.pool.experts:
        assert same_weights(state(expected.pool.mask(variant)), state(found.pool.mask(variant))) == []


def test_few_labels_are_drawn_by_the_seed() -> None:
    def labelled(seed: int, labels: float) -> set[int]:
        raw = simple(seed=seed, data={"kind": "tiny", "labels": labels})
        split = recipe_of(raw).build().data.split("train")
        batch = split.__getitems__(list(range(len(split))))
        assert bool((batch["label"][~batch["labelled"]] == -1).all())
        return set(batch["id"][batch["labelled"]].tolist())

    assert len(labelled(0, 12)) == 12
    assert len(labelled(0, 0.5)) == 20
    assert labelled(0, 12) == labelled(0, 12)
    assert labelled(0, 12) != labelled(1, 12)


def test_weights_are_loaded_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    network = recipe_of(simple()).build().phases[0].student.network
    weights = {key: torch.full_like(value, 0.5) for key, value in network.state_dict().items()}
    safetensors.torch.save_file(weights, file)
    raw = simple(student=MLP | {"weights": str(file)})
    loaded = recipe_of(raw).build().phases[0].student.network.state_dict()
    assert all(bool((value == 0.5).all()) for value in loaded.values())

    safetensors.torch.save_file({"fc1.weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, file)
    with pytest.raises(ConfigError) as error:
        recipe_of(raw).build()
    message = str(error.value)
    assert message.startswith(f"student.weights: {file} does not fit Mlp: missing: fc1.bias, fc2.bias, fc2.weight")
    assert "not in the network: extra" in message
    assert "of another shape: fc1.weight" in message
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(MoekdError, match=r"student\.safetensors"):
        recipe_of(raw).build()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": {"kind": "tiny", "empty": "train"}}, DataError, "split 'train' is empty"),
        ({"router": FULL["router"] | {"selection": {"kind": "top_k", "k": 4}}}, ConfigError, "4 teachers chosen of 3"),
        ({"data": {"kind": "tiny", "labels": 99}}, DataError, "99"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """F2, F3: taps, classes and fields that do not fit."""
    with pytest.raises(error, match=message):
        recipe_of(full(**change)).build()


def test_a_mask_that_does_not_fit_names_its_tap() -> None:
    raw = full(masks={"kind": "feature_attention", "hidden_factor": 64, "heads": 3})
    with pytest.raises((ConfigError, ModelError)) as error:
        recipe_of(raw).build()
    assert "masks at teachers.right.taps 'fc1'" in str(error.value)


def test_recipes_come_from_files_and_names(tmp_path: Path) -> None:
    recipe = Recipe.load("quickstart", ["seed=7", "stages.distill.epochs=2"])
    resolved = recipe.to_dict()
    assert (resolved["seed"], resolved["stages"][2]["epochs"]) == (7, 2)
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nseed: 9\n")
    assert Recipe.load(tmp_path / "mine.yaml").config.seed == 9
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        Recipe.load("quickstar")
