"""The package is the same from a wheel, a source archive, an editable install and a checkout that lost its links."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("benchmarks", "configs", "routers", "teachers")
SOURCES = (*LINKED, "moekd", "pyproject.toml", "LICENSE", "README.md")
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs a source checkout")


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def packages_on_disk() -> dict[str, str]:
    """Package name to folder, for every folder with Python files; scripts beside shipped data are data."""
    found = {}
    for top in ("moekd", *LINKED):
        for init in (ROOT / top).rglob("*.py"):
            folder = init.parent.relative_to(ROOT)
            through_link = len(folder.parts) > 1 and folder.parts[1] in LINKED
            if not through_link and folder.parts[:2] != ("benchmarks", "data"):
                name = ".".join(folder.parts)
                found[name if top == "moekd" else f"moekd.{name}"] = folder.as_posix()
    return found


def copy_sources(target: Path, links: str) -> Path:
    """Copy the sources with the links kept, missing, or turned into text files (as git does where links are off)."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    target.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(source, target / name)
    for name in LINKED:
        link = target / "moekd" / name
        if not link.is_symlink():
            assert not link.is_dir(), f"{link} is a copy, not a link"
            link.unlink(missing_ok=True)
            link.symlink_to(f"../{name}")
        if links != "kept":
            link.unlink()
        if links == "text":
            link.write_text(f"../{name}")
    return target


def build(hook: str, source: Path, output: Path) -> Path:
    """Call a hook of the build backend that pyproject names, as pip does without isolation; return what it built."""
    output.mkdir(parents=True)
    code = f"import sys, setuptools.build_meta as backend; backend.{hook}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(output)], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is absent from the `packages` configuration" not in done.stderr
    (built,) = output.iterdir()
    return built


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def run_isolated(code: str, *site_folders: Path, unpacked: Path | None = None) -> str:
    """Run `code` without this environment's own install of moekd, but with its other packages."""
    lines = ["import site, sys"]
    lines += [f"site.addsitedir({str(folder)!r})" for folder in site_folders]
    if unpacked:
        lines.append(f"sys.path.insert(0, {str(unpacked)!r})")
    lines.append(f"sys.path += {[sysconfig.get_paths()['purelib'], sysconfig.get_paths()['platlib']]!r}")
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", "\n".join([*lines, code])],
        cwd="/",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


IMPORT_ALL = """
import importlib, moekd, moekd.teachers, moekd.routers.gates, moekd.benchmarks, moekd.configs, moekd.cli.main
from importlib.resources import files
assert (files("moekd.configs") / "quickstart.yaml").is_file()
print(moekd.__file__, moekd.routers.__file__, sep="|")
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build("build_wheel", copy_sources(folder / "source", "kept"), folder / "out")


def test_the_package_list_is_true() -> None:
    assert sorted(settings()["packages"]) == sorted(packages_on_disk())


def test_every_package_outside_moekd_is_mapped_to_its_folder() -> None:
    on_disk = packages_on_disk()
    expected = {name: folder for name, folder in on_disk.items() if folder.split("/")[0] in LINKED} | {"moekd": "moekd"}
    assert settings()["package-dir"] == expected


def test_every_package_has_an_init_file() -> None:
    missing = [folder for folder in packages_on_disk().values() if not (ROOT / folder / "__init__.py").is_file()]
    assert not missing


@pytest.mark.parametrize("name", LINKED)
def test_links_are_relative(name: str) -> None:
    link = ROOT / "moekd" / name
    if link.is_symlink():
        assert os.readlink(link) == f"../{name}"
    else:
        assert not link.is_dir(), f"{link} must be a link to ../{name}, not a copy"


def test_the_version_is_written_once_for_each_reader() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'__version__ = "{version}"' in (ROOT / "moekd/__init__.py").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_holds_every_module_and_every_data_file(wheel: Path) -> None:
    names = names_in(wheel)
    expected = set()
    for package, folder in packages_on_disk().items():
        for path in (ROOT / folder).glob("*.py"):
            expected.add(f"{package.replace('.', '/')}/{path.name}")
    for top, pattern in [("configs", "*.yaml"), ("benchmarks/data", "*"), ("benchmarks/results", "*")]:
        for path in (ROOT / top).rglob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"moekd/{path.relative_to(ROOT).as_posix()}")
    for path in [*(ROOT / "moekd/report").rglob("*"), *(ROOT / "moekd/serve").rglob("*")]:
        if path.is_file() and "__pycache__" not in path.parts:
            expected.add(path.relative_to(ROOT).as_posix())
    expected.add("moekd/py.typed")
    assert sorted(expected - names) == []


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"moekd"}
    assert not [name for name in names_in(wheel) if "__pycache__" in name or name.endswith((".pyc", ".npy.tmp"))]
    assert any(name.endswith("licenses/LICENSE") for name in names_in(wheel))


@pytest.mark.parametrize("links", ["text", "missing"])
def test_a_checkout_that_lost_its_links_builds_the_same_wheel(links: str, wheel: Path, tmp_path: Path) -> None:
    built = build("build_wheel", copy_sources(tmp_path / "source", links), tmp_path / "out")
    assert names_in(built) == names_in(wheel)


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = build("build_sdist", copy_sources(tmp_path / "source", "kept"), tmp_path / "out")
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            packed.extract(member, tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert names_in(build("build_wheel", source, tmp_path / "again")) == names_in(wheel)


def test_an_installed_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    first, second = run_isolated(IMPORT_ALL, unpacked=tmp_path / "site").split("|")
    assert Path(first) == tmp_path / "site/moekd/__init__.py"
    assert Path(second) == tmp_path / "site/moekd/routers/__init__.py"


@pytest.mark.parametrize("links", ["kept", "text"])
def test_an_editable_install_imports(links: str, tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source", links)
    built = build("build_editable", source, tmp_path / "out")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "site")
    first, second = run_isolated(IMPORT_ALL, tmp_path / "site").split("|")
    assert Path(first) == source / "moekd/__init__.py"
    assert Path(second).resolve() == source / "routers/__init__.py"


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "moekd"],
        [str(Path(sys.executable).with_name("moekd"))],
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "moekd"],
    ],
    ids=["python -m", "script", "accelerate launch"],
)
def test_each_way_to_start_it_works(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "list", "methods"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()


def test_extras_have_the_names_that_every_pip_takes() -> None:
    # Older versions of pip look an extra up as it is written; package metadata have it in lower case with hyphens.
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in extras)
    wanted = re.search(r"--editable '\.\[([a-z,-]+)\]'", (ROOT / "Makefile").read_text())
    assert wanted is not None
    assert set(wanted[1].split(",")) | {"ray", "deepspeed"} == set(extras)
