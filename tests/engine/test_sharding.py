"""Two processes that share the trained weights (FSDP2) give the records and weights of one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moekd.checkpoint import find_latest, load_checkpoint

from .test_distributed import CROSS_ENTROPY, DISTILL, RAW, assert_close, in_two, loaded
from .tiny import Finished, same_weights, simple, train

#: What `accelerate launch` sets for configs/accelerate/fsdp2.yaml.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
#: As for DDP, with a moving average less (it needs whole weights).
SHARED = RAW | {
    "stages": [{key: value for key, value in stage.items() if key != "ema"} for stage in RAW["stages"]],
}


@pytest.fixture(scope="module")
def both(_tiny_kinds: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Finished]:
    """Return the run of one process and the run of two."""
    folder = Path(tmp_path_factory.mktemp("shards"))
    for code, messages in in_two(SHARED, folder / "two", **FSDP):
        assert code == 0, messages
    return train(SHARED, folder / "one"), loaded(SHARED, folder / "two")


def test_the_records_are_the_same(both: tuple[Finished, Finished]) -> None:
    one, two = both
    assert len(one.records()) > 20
    assert_close(two.records(), one.records(), "record", 1e-5)


def test_checkpoints_hold_the_whole_weights(both: tuple[Finished, Finished]) -> None:
    one, two = (finished.weights() for finished in both)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-4, rtol=1e-4, err_msg=name)


def test_checkpoints_in_a_stage_hold_the_whole_memory_of_the_optimizer(both: tuple[Finished, Finished]) -> None:
    one, two = (states_in_stages(finished) for finished in both)
    assert one.keys() == two.keys()
    assert one
    for name, ours in one.items():
        assert_close(plain(two[name]), plain(ours), name, 1e-4)


def states_in_stages(finished: Finished) -> dict[str, Any]:
    """Return the optimizers of the checkpoints that were saved inside of stages."""
    found = {}
    for folder in sorted(finished.run.checkpoints.glob("0*")):
        stage = load_checkpoint(folder)[0]["stage"]
        if stage:
            found[folder.name] = stage["optimizer"]["state"]
    return found


def plain(tree: Any) -> Any:
    """Return tensors as nested lists."""
    if isinstance(tree, dict):
        return {str(key): plain(value) for key, value in tree.items()}
    return tree.tolist() if isinstance(tree, torch.Tensor) else tree


def test_it_resumes_exactly(both: tuple[Finished, Finished], tmp_path: Path) -> None:
    shutil.copytree(both[1].run.path, tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("0*"))
    last_inside = [c for c in checkpoints if load_checkpoint(c)[0]["stage"]][-1]
    for late in checkpoints[checkpoints.index(last_inside) + 1 :]:
        shutil.rmtree(late)
    for code, messages in in_two(SHARED, tmp_path, **FSDP):
        assert code == 0, messages
    two = loaded(SHARED, tmp_path)
    assert same_weights(two.weights(), both[1].weights()) == []
    assert two.records() == both[1].records()


@pytest.mark.parametrize(
    ("version", "stage", "said"),
    [
        ("2", DISTILL | {"trains": ["student"], "objectives": [CROSS_ENTROPY]}, "ema can't be used with FSDP"),
    ],
)
def test_what_needs_whole_weights_is_refused(tmp_path: Path, version: str, stage: dict[str, Any], said: str) -> None:
    for code, messages in in_two(simple(stage), tmp_path, ACCELERATE_USE_FSDP="true", FSDP_VERSION=version):
        assert code == 2, messages
        assert said in messages


def test_the_newest_checkpoint_is_found(both: tuple[Finished, Finished]) -> None:
    newest, skipped = find_latest(both[1].run.checkpoints)
    assert newest is not None
    assert skipped == []
