"""Exported students: the same logits with moekd, without moekd, in another process; nothing else in the files."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from moekd.errors import CheckpointError, ConfigError, DataError, ModelError, UnknownNameError
from moekd.export import build_network, export, export_student, load_student, read_student
from moekd.export.parts import Part
from moekd.export.torch_program import check_program, write_program
from moekd.model import Model

from ..report.example_run import write_example_run
from .students import CLIP, write_student

FIELDS = {
    "image": {"shape": [1, 28, 28], "dtype": "float32", "modality": "image", "mean": [0.13], "std": [0.31]},
    "vector": {"shape": [12], "dtype": "float32", "modality": "vector"},
}
CASES = {
    "lenet5": ({"kind": "lenet5"}, ["image"]),
    "small_cnn": ({"kind": "small_cnn", "options": {"channels": [4, 8], "in_channels": 1}}, ["image"]),
    "mlp": ({"kind": "mlp", "options": {"in_features": 12, "hidden": [8]}}, ["vector"]),
    "fusion": (
        {
            "kind": "fusion",
            "options": {
                "encoders": [
                    {"kind": "cnn_encoder", "channels": [4, 8], "in_channels": 1},
                    {"kind": "mlp_encoder", "in_features": 12, "hidden": [8]},
                ]
            },
        },
        ["image", "vector"],
    ),
}


def make_student(case: str = "lenet5", classes: int = 7) -> tuple[Model, dict]:
    description, inputs = CASES[case]
    network = build_network({**description, "context": {"num_classes": classes}})
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.05 * torch.rand_like(tensor))
    model = Model(network, inputs, heads={"extra": nn.Linear(classes, 2)})
    config = {"network": description, "class_names": [f"class {i}" for i in range(classes)], "fields": FIELDS}
    return model, config


def make_inputs(inputs: list[str], rows: int) -> list[torch.Tensor]:
    return [torch.randn(rows, *FIELDS[name]["shape"]) for name in inputs]


def part(network: nn.Module, inputs: list[str]) -> Part:
    return Part("student", network, dict(zip(inputs, make_inputs(inputs, 2), strict=True)))


def run_without_moekd(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    blocked = "import sys; sys.modules['moekd'] = None\n" + code
    command = [sys.executable, "-c", blocked, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


PLAIN_PYTORCH = """
import numpy as np, torch
try:
    import moekd
except ImportError:
    pass
else:
    raise SystemExit("moekd can be imported")
student = torch.export.load(sys.argv[1]).module()
data = np.load(sys.argv[2], allow_pickle=False)
rows = sorted({key.split("/")[0] for key in data})
logits = {}
for row in rows:
    inputs = [torch.from_numpy(data[key]) for key in sorted(data) if key.startswith(row + "/")]
    logits[row] = student(*inputs).detach().numpy()
np.savez(sys.argv[3], **logits)
assert not any(name.startswith("moekd.") for name in sys.modules)
"""


class Summing(nn.Module):
    """Takes any number of inputs, drops out while training, and attends over its features."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.vector = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, *inputs):
        tokens = torch.stack([self.image(inputs[0]), self.vector(inputs[1])], dim=1)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)


@pytest.mark.parametrize("case", ["lenet5", "several inputs"])
def test_program_gives_the_same_logits_where_moekd_can_not_be_imported(tmp_path, case):
    """C8."""
    folder, inputs = tmp_path / "student", ["image", "vector"]
    if case == "lenet5":
        model, config = make_student(case)
        model.train()
        export_student(model, config, folder)
        inputs = ["image"]
    else:
        folder.mkdir()
        model = Model(Summing().train(), inputs)
        write_program(part(model.network, inputs), folder / "student.pt2")
    assert model.network.training
    model.eval()
    batches = {str(rows): make_inputs(inputs, rows) for rows in (1, 2, 5, 64)}
    np.savez(
        tmp_path / "in.npz", **{f"{rows}/{i}": t.numpy() for rows, ts in batches.items() for i, t in enumerate(ts)}
    )
    result = run_without_moekd(PLAIN_PYTORCH, folder / "student.pt2", tmp_path / "in.npz", tmp_path / "out.npz")
    assert result.returncode == 0, result.stderr
    logits = np.load(tmp_path / "out.npz", allow_pickle=False)
    for rows, batch in batches.items():
        with torch.no_grad():
            expected = model.network(*batch)
        torch.testing.assert_close(torch.from_numpy(logits[rows]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_loaded_student_is_the_plain_network_with_the_same_weights(tmp_path, case):
    model, config = make_student(case)
    export_student(model, config, tmp_path / "student", program=False)
    state = torch.get_rng_state()
    student = load_student(tmp_path / "student")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(student) is type(model.network)
    assert not student.training
    expected = model.network.state_dict()
    assert {name: tensor.dtype for name, tensor in student.state_dict().items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in student.state_dict().items())
    inputs = make_inputs(CASES[case][1], 3)
    assert torch.equal(student(*inputs), model.network.eval()(*inputs))


def test_student_is_found_in_the_run_folder(tmp_path):
    model, config = make_student()
    export_student(model, config, tmp_path / "student", program=False)
    assert torch.equal(load_student(str(tmp_path)).state_dict()["fc1.weight"], model.network.state_dict()["fc1.weight"])


def test_config_says_how_to_use_the_student(tmp_path):
    model, config = make_student()
    document = json.loads((export_student(model, config, tmp_path / "s") / "config.json").read_text())
    assert document["network"] == {"kind": "lenet5", "options": {}, "context": {"num_classes": 7}}
    assert document["inputs"] == ["image"]
    assert document["class_names"] == config["class_names"]
    assert document["fields"]["image"]["mean"] == [0.13]
    assert set(document["files"]) == {"model.safetensors", "student.pt2", "README.md"}
    assert document["moekd"]


def test_only_the_student_is_in_the_files(tmp_path):
    """C8: no weights of teachers."""
    teacher = nn.Linear(50, 50)
    buffer = torch.cat([torch.randn(84 * 7), teacher.weight.detach().flatten()])
    model, config = make_student()
    model.network.fc2.weight.data = buffer[: 84 * 7].view(7, 84)
    folder = export_student(model, config, tmp_path / "student")
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert set(stored) == set(model.network.state_dict())
    needle = teacher.weight.detach().numpy().tobytes()[:400]
    head = model.heads["extra"].weight.detach().numpy().tobytes()
    student = model.network.fc2.weight.detach().contiguous().numpy().tobytes()
    for name in ("model.safetensors", "student.pt2"):
        content = (folder / name).read_bytes()
        assert student in content
        assert needle not in content
        assert head not in content


def test_files_hold_no_local_paths_and_no_environment(tmp_path, monkeypatch):
    """S9: no paths of this machine, no tokens."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    model, config = make_student()
    folder = export_student(model, config, tmp_path / "student")
    home = str(Path(__file__).parents[2]).encode()
    for file in folder.iterdir():
        content = file.read_bytes()
        if file.suffix == ".pt2":
            with zipfile.ZipFile(file) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        assert b"hf_secret_value" not in content
        assert home not in content
        assert str(tmp_path).encode() not in content


def test_program_holds_no_pickle(tmp_path):
    """S3: an exported program holds raw tensors and JSON."""
    model, config = make_student()
    path = export_student(model, config, tmp_path / "student") / "student.pt2"
    check_program(path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert not any(
        content[:1] == b"\x80" or content[:2] == b"PK" for content in contents.values() if len(content) > 4000
    )
    assert all(not content for name, content in contents.items() if name.endswith(".pt"))


@pytest.mark.parametrize(
    "entry",
    ["x/data/sample_inputs/model.pt", "x/data/weights/weight_0.pkl", "x/data/aotinductor/model/a.so", "x/../evil"],
)
def test_foreign_program_entries_are_noticed(tmp_path, entry):
    """S3: pickled, compiled or unknown entries."""
    path = tmp_path / "student.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match="pickled, compiled or unknown"):
        check_program(path)


def test_pickled_weights_in_a_program_are_noticed():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data/weights/model_weights_config.json", '{"config": {"w": {"use_pickle": true}}}')
    with pytest.raises(DataError, match="'w' is pickled"):
        check_program(file, "student.pt2")
    with pytest.raises(DataError, match="no readable program archive"):
        check_program(io.BytesIO(b"text"), "student.pt2")


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, vector):
        return self.linear(vector) if vector.sum() > 0 else -self.linear(vector)


def test_untraceable_network_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"DataDependent can't be traced by torch\.export"):
        write_program(Part("student", DataDependent(), {"vector": torch.zeros(2, 3)}), tmp_path / "x.pt2")
    assert list(tmp_path.iterdir()) == []


def test_weights_are_exported_even_if_the_program_can_not_be(tmp_path, caplog):
    model, config = make_student()
    path = export_student(model, config, tmp_path / "s")
    assert (path / "student.pt2").exists()
    export_student(model, {**config, "fields": {}}, path)
    assert "shape of input 'image' is unknown" in caplog.text
    assert not (path / "student.pt2").exists()
    document = read_student(path)[1]
    assert "shape of input 'image' is unknown" in document["program_missing"]
    assert "student.pt2" not in (path / "README.md").read_text()
    export_student(model, {**config, "fields": {}}, path, example={"image": torch.zeros(4, 1, 28, 28)})
    assert (path / "student.pt2").exists()


def test_damaged_weights_are_refused(tmp_path):
    """C1: of an exported student."""
    model, config = make_student()
    folder = export_student(model, config, tmp_path / "s", program=False)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: sha256 mismatch"):
        load_student(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"lacks the file model\.safetensors"):
        load_student(folder)


def test_every_byte_of_the_description_is_checked_or_harmless(tmp_path):
    """C1: a flipped bit is found, or the document is the same (blanks between its parts, the name of the checksum)."""
    model, config = make_student()
    folder = export_student(model, config, tmp_path / "s", program=False)
    file = folder / "config.json"
    original, weights = file.read_bytes(), load_student(folder).state_dict()
    document = {key: value for key, value in json.loads(original).items() if key != "sha256"}
    refused = 0
    for place in range(0, len(original), 3):
        file.write_bytes(original[:place] + bytes([original[place] ^ (1 << place % 7)]) + original[place + 1 :])
        try:
            found = read_student(folder)[1]
        except (CheckpointError, DataError):
            refused += 1
            continue
        assert {key: value for key, value in found.items() if key in document} == document, place
    assert refused > 0.8 * len(original) / 3
    file.write_bytes(original)
    assert all(torch.equal(value, weights[name]) for name, value in load_student(folder).state_dict().items())
    changed = json.loads(original) | {"class_names": ["x"] * 7}
    file.write_text(json.dumps(changed))
    with pytest.raises(CheckpointError, match=r"config\.json: sha256 mismatch.* take its entry 'sha256' out"):
        read_student(folder)
    del changed["sha256"]
    file.write_text(json.dumps(changed))
    assert read_student(folder)[1]["class_names"] == ["x"] * 7


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", CheckpointError, "is not the description of a student"),
        ("[]", CheckpointError, "is not the description"),
        ("{}", CheckpointError, "is not the description"),
        (
            '{"format": "x", "format_version": 1, "network": {"kind": "a"}, "files": {}}',
            CheckpointError,
            "has the format",
        ),
    ],
)
def test_bad_descriptions_are_refused(tmp_path, content, error, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(error, match=message):
        load_student(tmp_path)


@pytest.mark.parametrize("kind", ["os.system", "lenet6", "../lenet5", ""])
def test_only_registered_networks_are_built(tmp_path, kind):
    """S2: a description names kinds of the registry only."""
    model, config = make_student()
    folder = export_student(model, config, tmp_path / "s", program=False)
    document = json.loads((folder / "config.json").read_text())
    document["network"]["kind"] = kind
    del document["sha256"]
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="network"):
        load_student(folder)


def test_network_that_does_not_take_the_weights_is_an_error_at_export(tmp_path):
    model, config = make_student()
    with pytest.raises(ModelError, match="could not be loaded again"):
        export_student(model, {**config, "class_names": ["one"]}, tmp_path / "s")
    with pytest.raises(ConfigError, match="'fields' is missing"):
        export_student(model, {"network": {"kind": "lenet5"}, "class_names": ["a"]}, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_card_escapes_what_came_from_outside(tmp_path):
    """S9: names in a card can't form markup."""
    model, config = make_student()
    names = ["<script>alert(1)</script>", "a|b", *config["class_names"][2:]]
    config = {**config, "class_names": names, "title": "x\n# y <img>", "facts": {"accuracy": 0.5}}
    card = (export_student(model, config, tmp_path / "s", program=False) / "README.md").read_text()
    assert "<script>" not in card
    assert "<img>" not in card
    assert "a|b" not in card
    assert "| accuracy | 0.5 |" in card
    assert f"| network | lenet5, {sum(p.numel() for p in model.network.parameters()):,} parameters |" in card
    own = (export_student(model, config, tmp_path / "t", card="# Mine") / "README.md").read_text()
    assert own.startswith("# Mine\n")
    assert "torch.export.load" in own


@pytest.mark.parametrize("snippet", [0, 1])
def test_snippets_of_the_card_run(tmp_path, snippet):
    model, config = make_student()
    export_student(model, config, tmp_path / "student")
    code = (tmp_path / "student" / "README.md").read_text().split("```python\n")[1 + snippet].split("```")[0]
    code = f"import torch\nimage = torch.zeros(3, 1, 28, 28)\n{code}\nprint(tuple(logits.shape))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.stdout == "(3, 7)\n", result.stderr


def test_export_command_formats(tmp_path):
    model, config = make_student()
    export_student(model, config, tmp_path / "run" / "student")
    copied = export(tmp_path / "run")
    assert copied == tmp_path / "run" / "export" / "safetensors"
    assert torch.equal(load_student(copied).state_dict()["fc1.bias"], model.network.state_dict()["fc1.bias"])
    program = export(tmp_path / "run", "torch_export", tmp_path / "elsewhere" / "net.pt2")
    image = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(torch.export.load(program).module()(image), model.network.eval()(image))
    for format, output in (("safetensors", copied), ("torch_export", program)):
        with pytest.raises(DataError, match="exists already"):
            export(tmp_path / "run", format, output)
    with pytest.raises(UnknownNameError, match="did you mean 'safetensors'"):
        export(tmp_path / "run", "safetensor")
    with pytest.raises(DataError, match="no student in"):
        export(tmp_path)


def test_first_weights_are_not_needed_again(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": preprocess}))
    first = build_network({"kind": "open_clip", "options": {"model": CLIP}, "context": {"num_classes": 1}})
    safetensors.torch.save_file(first.model.state_dict(), folder / "open_clip_model.safetensors")
    options = {"model": str(folder), "options": {"force_quick_gelu": True}}
    run = write_student(tmp_path / "run", "open_clip", ["image", "caption"], options)
    before = load_student(run)
    image, texts = torch.randn(2, 3, 20, 20), ["a cat", "two dogs"]
    expected = before(image, texts)["embeddings"]
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    again = load_student(run)
    assert again.settings == before.settings
    assert again.settings.mean == (0.1, 0.2, 0.3)
    for modality, value in again(image, texts)["embeddings"].items():
        assert torch.equal(value, expected[modality])
    assert str(tmp_path) not in (run / "student" / "config.json").read_text()


def test_a_student_of_several_programs(tmp_path, clip_run):
    with pytest.raises(ConfigError, match=r"several programs \(image_encoder, text_encoder\); name a folder"):
        export(clip_run, "torch_export", tmp_path / "one.pt2")
    folder = export(clip_run, "torch_export", tmp_path / "programs")
    assert sorted(path.name for path in folder.iterdir()) == ["image_encoder.pt2", "text_encoder.pt2"]
    image, student = torch.randn(5, 3, 20, 20), load_student(clip_run)
    said = torch.export.load(folder / "image_encoder.pt2").module()(image)
    expected = student(image, ["a"] * 5)
    torch.testing.assert_close(said["image_embeds"], expected["embeddings"]["image"])
    torch.testing.assert_close(said["logits"], expected["logits"])


def test_a_card_over_several_seeds_goes_along(tmp_path, timm_run):
    runs = [write_example_run(tmp_path / f"run{seed}", seed=seed) for seed in (0, 1)]
    shutil.copytree(timm_run / "student", runs[0] / "student")
    before = (runs[0] / "student" / "README.md").read_text()
    folder = export(runs[0], "transformers", seeds=runs[1:])
    card = (folder / "README.md").read_text()
    assert "## Over 2 seeds" in card
    assert card.count("## Use\n") == 1
    assert "AutoModelForImageClassification" in card
    assert (runs[0] / "student" / "README.md").read_text() == before
    with pytest.raises(DataError, match="is not a run folder"):
        export(timm_run, "transformers", tmp_path / "x", seeds=runs[1:])
