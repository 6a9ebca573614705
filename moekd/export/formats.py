"""`moekd export`: a run's student in the format that somebody else reads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import atomic_directory, write_text
from ..errors import ConfigError, DataError, UnknownNameError, did_you_mean
from .onnx_format import write_onnx
from .open_clip_format import write_open_clip
from .parts import parts_of
from .readme import usage
from .student import CARD, CONFIG, load_student, read_student
from .torch_program import write_program
from .transformers_format import write_transformers


@dataclass(frozen=True)
class ExportOptions:
    """What some formats can be asked for.

    Attributes:
        opset: version of the ONNX operators (onnx); None takes what PyTorch writes by default.
        int8: also write weights of 8 bits (onnx).
    """

    opset: int | None = None
    int8: bool = False


PROGRAM_SUFFIX = ".pt2"
Writer = Callable[[Path, Mapping[str, Any], Path, ExportOptions], Path]


def export(
    run: Path | str,
    format: str = "safetensors",
    output: Path | None = None,
    *,
    opset: int | None = None,
    int8: bool = False,
    seeds: Sequence[Path | str] = (),
) -> Path:
    """Export the student of a run; the command line calls this.

    Args:
        run: run folder or student folder.
        format: a key of `FORMATS`.
        output: folder to write (or, for `torch_export` of a student with one program, a file `*.pt2`); by default
            `export/<format>` inside the run.
        opset: version of the ONNX operators (onnx).
        int8: also write weights of 8 bits (onnx).
        seeds: finished runs of the same recipe with other seeds; the model card then tells means and intervals.

    Raises:
        UnknownNameError: unknown format, with the nearest names.
        ConfigError: an option that the format does not have.
        DataError: no student there, or `output` exists.
        ModelError: the format can't express this student, or what was written gives other numbers.
    """
    check_format(format)
    options = ExportOptions(opset, int8)
    if format != "onnx" and options != ExportOptions():
        raise ConfigError(f"format {format}: opset and int8 are options of the format onnx")
    student, document = read_student(Path(run))
    target = Path(output) if output is not None else Path(run) / "export" / format
    if target.exists() or target.is_symlink():
        raise DataError(f"{target} exists already; it is not overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    with with_card(student, document, Path(run), seeds) as source:
        return FORMATS[format](source, document, target, options)


@contextmanager
def with_card(student: Path, document: Mapping[str, Any], run: Path, seeds: Sequence[Path | str]) -> Iterator[Path]:
    """Give the student's folder; with `seeds` a copy of it whose model card tells means and intervals.

    Raises:
        DataError: `run` is no run folder, or `seeds` are no runs of its recipe.
    """
    if not seeds:
        yield student
        return
    from ..report import model_card

    head = model_card(run, use=False, seeds=[Path(seed) for seed in seeds]).rstrip()
    with tempfile.TemporaryDirectory(prefix="moekd-") as temporary:
        copy = Path(temporary) / student.name
        shutil.copytree(student, copy)
        write_text(copy / CARD, f"{head}\n\n{usage(document, student.name, list(document.get('programs', {})))}")
        yield copy


def check_format(format: str) -> None:
    """Refuse an unknown format.

    Raises:
        UnknownNameError: with the nearest names.
    """
    if format not in FORMATS:
        hint = did_you_mean(format, FORMATS) or f"; known: {', '.join(FORMATS)}"
        raise UnknownNameError(f"unknown export format {format!r}{hint}")


def _safetensors(student: Path, document: Mapping[str, Any], target: Path, options: ExportOptions) -> Path:
    with atomic_directory(target) as temporary:
        for name in (*document["files"], CONFIG):
            if Path(name).name == name and (student / name).is_file():
                shutil.copyfile(student / name, temporary / name)
    return target


def _torch_export(student: Path, document: Mapping[str, Any], target: Path, options: ExportOptions) -> Path:
    parts = parts_of(load_student(student), document["inputs"], document["fields"])
    if target.suffix == PROGRAM_SUFFIX:
        if len(parts) > 1:
            names = ", ".join(part.name for part in parts)
            raise ConfigError(f"output: this student has several programs ({names}); name a folder instead of a file")
        return write_program(parts[0], target)
    with atomic_directory(target) as temporary:
        for part in parts:
            write_program(part, temporary / f"{part.name}{PROGRAM_SUFFIX}")
    return target


def _onnx(student: Path, document: Mapping[str, Any], target: Path, options: ExportOptions) -> Path:
    return write_onnx(student, document, target, options.opset, options.int8)


def _open_clip(student: Path, document: Mapping[str, Any], target: Path, options: ExportOptions) -> Path:
    return write_open_clip(student, document, target)


def _transformers(student: Path, document: Mapping[str, Any], target: Path, options: ExportOptions) -> Path:
    return write_transformers(student, document, target)


FORMATS: dict[str, Writer] = {
    "safetensors": _safetensors,
    "torch_export": _torch_export,
    "onnx": _onnx,
    "open_clip": _open_clip,
    "transformers": _transformers,
}
