"""S3: pickled weights are refused by default; converting them is asked for by name, and executes nothing."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from moekd.config import parse_recipe
from moekd.errors import ConfigError, DataError, MoekdError
from moekd.networks.adapter import local_weights
from moekd.networks.pickled import check_archive, convert_weights

from ..cli.conftest import run_moekd
from ..engine.conftest import _tiny_kinds  # noqa: F401
from ..engine.tiny import MLP, simple


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def archive(content: bytes) -> bytes:
    """Return an archive as `torch.save` writes it, with a pickle of one's own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
    return stream.getvalue()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def evil(tmp_path: Path, canary: Path) -> Path:
    file = tmp_path / "evil.pt"
    file.write_bytes(archive(pickle.dumps({"weight": Bomb(canary)})))
    return file


def test_the_bomb_works(evil: Path, canary: Path) -> None:
    torch.load(evil, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".npz", ".npy", ".ckpt"])
def test_configs_name_no_pickles(tmp_path: Path, canary: Path, evil: Path, suffix: str) -> None:
    """S3: a config that names a pickled file of weights is refused before anything is read."""
    file = evil.rename(tmp_path / f"weights{suffix}")
    with pytest.raises(ConfigError, match=r"student\.weights: .*\.safetensors file"):
        parse_recipe(simple(student=MLP | {"weights": str(file)}), "x")
    with pytest.raises(ConfigError, match="other formats are pickles, which can run code"):
        local_weights(str(file), "pretrained")
    assert not canary.exists()


def test_a_pickle_that_is_called_safetensors(tmp_path: Path, canary: Path, evil: Path) -> None:
    """S3: the suffix is not believed."""
    from moekd.checkpoint import read_tensors
    from moekd.errors import CheckpointError

    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        read_tensors(evil.rename(tmp_path / "weights.safetensors"))
    assert not canary.exists()


def test_it_has_to_be_allowed(tmp_path: Path) -> None:
    """S3: without the flag nothing is read."""
    with pytest.raises(ConfigError, match=r"is a pickle, which can run code: .* --allow-pickle"):
        convert_weights(tmp_path / "there_is_no_such.pt", tmp_path / "a.safetensors")


def test_allowed_pickles_run_nothing_either(evil: Path, tmp_path: Path, canary: Path) -> None:
    """S3: `--allow-pickle` accepts tensors and plain containers only."""
    with pytest.raises(DataError, match="can't be read as tensors and plain containers"):
        convert_weights(evil, tmp_path / "a.safetensors", allow_pickle=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pt"]


def test_classes_that_others_allowed_are_refused_too(tmp_path: Path) -> None:
    """S3: what another library told torch to accept does not count here."""
    network = nn.Linear(2, 2)
    torch.save(network, tmp_path / "whole.pt")
    parts = [nn.Linear, torch.nn.parameter.Parameter]
    with torch.serialization.safe_globals(parts):
        with pytest.raises(DataError, match="plain containers"):
            convert_weights(tmp_path / "whole.pt", tmp_path / "a.safetensors", allow_pickle=True)
        assert set(torch.serialization.get_safe_globals()) >= set(parts)


@pytest.mark.parametrize("version", ["2.5.1+cu124", "2.9.1", "unknown"])
def test_old_versions_of_torch_are_refused(
    evil: Path, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """S3: versions with known holes in `weights_only` do not read pickles."""
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ConfigError, match=r"known holes in reading pickles .* use torch 2\.10 or later"):
        convert_weights(evil, tmp_path / "a.safetensors", allow_pickle=True)
    assert not canary.exists()


STATE = OrderedDict(weight=torch.arange(6.0).view(2, 3).t(), bias=torch.zeros(2, dtype=torch.float16))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (STATE, None),
        ({"epoch": 3, "state_dict": STATE}, None),
        ({"model": STATE, "ema": STATE}, "ema"),
        ({"model": {"student": STATE, "args": {"lr": 0.1}}}, "model.student"),
    ],
)
def test_weights_are_converted(tmp_path: Path, content: Any, key: str | None, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(content, tmp_path / "a.pt")
    with caplog.at_level("WARNING"):
        assert convert_weights(tmp_path / "a.pt", tmp_path / "a.safetensors", allow_pickle=True, key=key) == 2
    assert "Convert files only that you trust" in caplog.text
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in STATE.items())


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"model": STATE, "ema": STATE}, None, "name one with --key, of model, ema"),
        ({"model": STATE}, "weights", "has no key 'weights' of 'weights'; keys: model"),
        ([torch.ones(2)], None, "holds list, expected a mapping"),
        ({1: torch.ones(2)}, None, "more than one mapping of tensors or none"),
    ],
)
def test_other_contents_are_named(tmp_path: Path, content: Any, key: str | None, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match=message):
        convert_weights(tmp_path / "a.pt", tmp_path / "a.safetensors", allow_pickle=True, key=key)


def test_archives_with_other_things_are_refused(tmp_path: Path) -> None:
    """S5: compressed entries (the bomb's way), foreign names, and pickles of the time before archives."""
    bomb, foreign, bare = tmp_path / "bomb.pt", tmp_path / "foreign.pt", tmp_path / "bare.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(10**7))
    for name in ("../../canary", "archive/code/evil.py", "/etc/passwd"):
        with zipfile.ZipFile(foreign, "w") as file:
            file.writestr(name, "x")
        with pytest.raises(DataError, match=r"does not belong into a file of torch\.save"):
            check_archive(foreign)
    bare.write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(DataError, match=r"is compressed; torch\.save never does that"):
        check_archive(bomb)
    with pytest.raises(DataError, match=r"no archive of torch\.save"):
        check_archive(bare)


def test_targets_are_checked(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        convert_weights(tmp_path / "a.pt", tmp_path / "b.pt", allow_pickle=True)
    (tmp_path / "b.safetensors").write_bytes(b"mine")
    with pytest.raises(DataError, match="not overwritten"):
        convert_weights(tmp_path / "a.pt", tmp_path / "b.safetensors", allow_pickle=True)


def test_the_command(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    refused = run_moekd("convert", tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert (refused.code, "--allow-pickle" in refused.err) == (2, True)
    done = run_moekd("convert", tmp_path / "a.pt", tmp_path / "a.safetensors", "--allow-pickle")
    assert (done.code, done.out) == (0, f"converted: {tmp_path / 'a.safetensors'} (2 tensors)\n")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_archives(tmp_path: Path, data: st.DataObject) -> None:
    """S3: whatever the bytes are, the answer is an error of moekd or tensors."""
    stream = io.BytesIO()
    torch.save(dict(STATE), stream)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = bytearray(archive(data.draw(st.binary(max_size=40))))
    source, target = tmp_path / "fuzz.pt", tmp_path / "fuzz.safetensors"
    source.write_bytes(bytes(content))
    target.unlink(missing_ok=True)
    try:
        assert convert_weights(source, target, allow_pickle=True) == len(load_file(target))
    except MoekdError:
        assert not target.exists()
