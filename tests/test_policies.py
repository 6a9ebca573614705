"""Rules that hold for the whole tree: file sizes, safe loading, names, and the direction of imports."""

from __future__ import annotations

import ast
import inspect
import re
import statistics
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("moekd", "routers", "teachers", "benchmarks", "configs")
SOURCES = sorted(
    path
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if not (room == "moekd" and path.relative_to(ROOT).parts[1] in ROOMS)
)

# The arrows of the architecture: a module may import modules of a lower layer and of its own, never of a higher one.
# The longest matching prefix counts. Modules that stand beside the line have their own entry in BESIDE.
LAYERS = {
    "moekd": 0,
    "moekd.errors": 0,
    "moekd.registry": 0,
    "moekd.atomic": 0,
    "moekd.distributed": 0,
    "moekd.randomness": 0,
    "moekd.allocator": 0,
    "moekd.peak_memory": 0,
    "moekd.progress": 0,
    "moekd.interruption": 0,
    "moekd.state_codec": 0,
    "moekd.manifest": 0,
    "moekd.checkpoint": 0,
    "moekd.tracking": 0,
    "moekd.signals": 1,
    "moekd.model": 2,
    "moekd.teachers": 3,
    "moekd.routers": 4,
    "moekd.schedules": 4,
    "moekd.objectives": 5,
    "moekd.transforms": 5,
    "moekd.cache": 5,
    "moekd.step": 6,
    "moekd.evaluation": 6,
    "moekd.stages": 7,
    "moekd.program": 8,
    "moekd.measure": 8,
    "moekd.measure_embeddings": 8,
    "moekd.measure_models": 8,
    "moekd.examples": 8,
    "moekd.run_state": 8,
    "moekd.run_checkpoints": 8,
    "moekd.take_over": 8,
    "moekd.trainer": 9,
    "moekd.assembly": 10,
    "moekd.recipe": 10,
    "moekd.export": 11,
    "moekd.api": 12,
    "moekd.caching": 12,
    "moekd.check": 12,
    "moekd.outline": 12,
    "moekd.dry_run": 12,
    "moekd.inference": 12,
    "moekd.evaluate_run": 12,
    "moekd.listing": 12,
    "moekd.serve": 13,
    "moekd.ablation": 13,
    "moekd.benchmarks": 13,
    "moekd.cli": 14,
    "moekd.__main__": 15,
}
FOUNDATION = {"moekd", "moekd.errors", "moekd.registry", "moekd.atomic", "moekd.distributed"}
BESIDE = {
    "moekd.networks": FOUNDATION,
    "moekd.data": FOUNDATION,
    "moekd.config": FOUNDATION,
    "moekd.report": FOUNDATION | {"moekd.evaluation"},
    "moekd.configs": set(),
}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "moekd":
        parts.insert(0, "moekd")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def typing_only(tree: ast.AST) -> set[ast.AST]:
    """Return the nodes inside `if TYPE_CHECKING:`, which are never executed."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            inside.update(child for statement in node.body for child in ast.walk(statement))
    return inside


def resolve(name: str, path: Path, node: ast.ImportFrom) -> str:
    """Return the absolute module that a `from ... import` names."""
    if not node.level:
        return node.module or ""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(name: str) -> list[tuple[int, str]]:
    """Return (line, module) for every moekd module that `name` imports when it runs."""
    path = MODULES[name]
    tree = ast.parse(path.read_text())
    skipped = typing_only(tree)
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = resolve(name, path, node)
            found += [
                (node.lineno, f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source)
                for alias in node.names
            ]
    return [(line, module) for line, module in found if module.split(".")[0] == "moekd"]


def longest_prefix(module: str, table: dict) -> str | None:
    names = [prefix for prefix in table if module == prefix or module.startswith(f"{prefix}.")]
    exact = [prefix for prefix in names if prefix != "moekd" or module == "moekd"]
    return max(exact, key=len, default=None)


def upward_imports(module: str) -> list[str]:
    """Return one line for each import of `module` that goes against the arrows."""
    wrong = []
    beside = longest_prefix(module, BESIDE)
    layer = longest_prefix(module, LAYERS)
    for line, target in imports(module):
        allowed = {beside, *BESIDE.get(beside or "", ())} - {"moekd"}
        if beside and target != "moekd" and not longest_prefix(target, dict.fromkeys(allowed)):
            wrong.append(f"{MODULES[module].relative_to(ROOT)}:{line}: {module} must not know {target}")
        other = longest_prefix(target, LAYERS)
        if layer and other and LAYERS[other] > LAYERS[layer]:
            wrong.append(f"{MODULES[module].relative_to(ROOT)}:{line}: {module} imports upwards: {target}")
    return wrong


def test_the_tree_was_found() -> None:
    assert {"moekd.signals", "moekd.routers", "moekd.teachers", "moekd.benchmarks", "moekd.configs"} <= set(MODULES)


def test_no_file_is_longer_than_500_lines_and_the_median_is_at_most_120() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines > 500} == {}
    assert statistics.median(lengths.values()) <= 120


def test_no_function_is_longer_than_60_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert long == []


def unsafe_calls(source: str) -> list[str]:
    """Return what in `source` can execute or unpack something foreign."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            roots = {name.split(".")[0] for name in names}
            found += [
                f"{node.lineno}: import {name}"
                for name in roots & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
            ]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}:
                found.append(f"{node.lineno}: {called}")
            if called.endswith((".extractall", ".unpack_archive")):
                found.append(f"{node.lineno}: {called}")
            for name, value in [
                ("allow_pickle", "True"),
                ("weights_only", "False"),
                ("shell", "True"),
                ("trust_remote_code", "True"),
            ]:
                if keywords.get(name) == value:
                    found.append(f"{node.lineno}: {name}={value}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "exec('1')",
        "import yaml\nyaml.load('')",
        "np.load('x', allow_pickle=True)",
        "archive.extractall('.')",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_the_check_for_unsafe_calls_sees(source: str) -> None:
    assert len(unsafe_calls(source)) == 1


#: The one file that opens pickles, behind `--allow-pickle`.
CONVERTER = ROOT / "moekd/networks/pickled.py"


def test_nothing_in_the_package_can_execute_a_file() -> None:
    """S3: no call that unpickles, evaluates or unpacks; the converter's is restricted to tensors."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        if path != CONVERTER
        for line in unsafe_calls(path.read_text())
    ]
    assert found == []
    loads = [call for call in unsafe_calls(CONVERTER.read_text()) if call.endswith(": torch.load")]
    assert len(unsafe_calls(CONVERTER.read_text())) == len(loads) == 1
    assert 'torch.load(source, map_location="cpu", weights_only=True)' in CONVERTER.read_text()


PAPER_NAMES = re.compile(
    r"^(MST|DHO|DistillDIFT|DMAE|MAKD|VidLanKD|ProCKD|SGVA|CPRD|MulKI|TopKD|DisWOT|MGD|CMKD|TAID|LELP|TGeo|ACAM|DML|CRD|OFA)"
)


def test_no_class_or_module_is_named_after_a_paper() -> None:
    classes = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and PAPER_NAMES.match(node.name)
    ]
    assert classes == []
    assert not [path for path in SOURCES if re.match(r"(mst|dho|cmkd_method|taid)_?", path.stem)]


def test_no_unfinished_work() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|except Exception: *pass|except: *$")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert found == []


def test_every_module_starts_with_what_it_is() -> None:
    missing = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(f"{path.relative_to(ROOT)}: no docstring")
        defines = any(isinstance(node, ast.FunctionDef | ast.AnnAssign) for node in ast.walk(tree))
        if defines and "from __future__ import annotations" not in path.read_text():
            missing.append(f"{path.relative_to(ROOT)}: no postponed annotations")
    assert missing == []


def test_imports_inside_the_package_are_relative() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in ROOMS)
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] in ROOMS for alias in node.names))
    ]
    assert found == []


def test_every_module_has_a_place() -> None:
    placeless = [name for name in MODULES if not (longest_prefix(name, LAYERS) or longest_prefix(name, BESIDE))]
    assert placeless == []


def test_imports_follow_the_arrows() -> None:
    assert [line for name in MODULES for line in upward_imports(name)] == []


def test_every_registered_component_explains_itself() -> None:
    for name in MODULES:
        if name not in {"moekd.__main__"}:
            import_module(name)
    from moekd.registry import REGISTRIES

    silent = [
        f"{registry.noun} '{name}'"
        for registry in REGISTRIES.values()
        for name in registry.names()
        if not (inspect.getdoc(registry.get(name)) or "").strip()
        or "__doc__" not in vars(registry.get(name))
        or not vars(registry.get(name))["__doc__"]
    ]
    assert REGISTRIES
    assert silent == []


def tracked_text() -> list[Path]:
    """Return every text file under version control, or every source where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or SOURCES
    kinds = {".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".jinja", ".css", ".js", ".json", ".csv", ".svg", ""}
    return [path for path in paths if path.is_file() and not path.is_symlink() and path.suffix in kinds]


def test_no_file_names_a_place_on_one_machine() -> None:
    machine = re.compile(r"(?<![\w.])/(?:work|home|root|Users|opt|mnt)/[\w.-]+")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in tracked_text()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if (match := machine.search(line))
    ]
    assert found == []


def test_no_tracked_file_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    assert {name: size for name, size in sizes.items() if size > 12 * 2**20} == {}
