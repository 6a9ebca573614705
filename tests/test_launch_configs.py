"""The shipped configs of `accelerate launch`: accelerate takes them, and what they ask for is what happens."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from moekd.config import load_config, shipped_configs
from moekd.distributed import launched_as, sharding_asked_for, whole
from moekd.errors import ConfigError, MissingDependencyError

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_they_are_there_and_are_no_recipes() -> None:
    assert [file.stem for file in FILES] == ["ddp", "deepspeed_zero2", "fsdp2"]
    assert not [name for name in shipped_configs() if "accelerate" in name]
    with pytest.raises(ConfigError, match="neither a file nor a shipped config"):
        load_config("accelerate/ddp")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_takes_them(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.num_machines) == (2, 1)
    assert f"--config_file configs/accelerate/{file.name}" in file.read_text()


def test_one_process_shards_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sharding_asked_for()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert not sharding_asked_for()
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="fsdp_version 1 is not supported"):
        sharding_asked_for()


def test_accelerate_does_not_shard_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with launched_as():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config_from_file(str(FOLDER / "deepspeed_zero2.yaml"))
    assert config.deepspeed_config["zero_stage"] == 2
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(MissingDependencyError, match="'deepspeed'"), launched_as():
        pass


def test_a_tree_without_shards_is_as_it_was() -> None:
    tree = {"a": [1, (2, None)], "b": {"c": "x"}}
    assert whole(tree) is tree
