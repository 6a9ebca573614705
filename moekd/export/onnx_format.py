"""ONNX: one file a part, run by onnxruntime right after it was written and compared with PyTorch.

    <folder>/ student.onnx | image_encoder.onnx text_encoder.onnx   config.json   class_vectors.npy   tokenizer/

The first axis is free in every file. Whatever is needed to use a file is in its metadata too: class names, how inputs
are prepared, the scale of a contrastive student.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..atomic import atomic_directory, write_bytes, write_json, write_text
from ..errors import ConfigError, ModelError
from ..manifest import sha256_of
from ..networks.adapter import library
from .cards import format_card, onnx_use
from .parts import Part, class_vectors, parts_of
from .student import load_student
from .tokenizer import write_tokenizer
from .torch_program import free_shapes, portable, samples, title

TOLERANCE, FLOOR = 1e-4, 1e-2
CLASS_VECTORS, CONFIG = "class_vectors.npy", "config.json"
KEPT = ("title", "class_names", "fields", "inputs", "scale", "moekd")
OPSETS = (18, 23)


def write_onnx(
    student: Path, document: Mapping[str, Any], target: Path, opset: int | None = None, int8: bool = False
) -> Path:
    """Write a student's parts as ONNX files into a new folder.

    Args:
        student: folder of the student.
        document: its `config.json`.
        target: folder to write.
        opset: version of the operators, 18 to 23; None takes PyTorch's default.
        int8: also write `<part>.int8.onnx`, whose matrix weights have 8 bits (activations are quantised as they come).

    Raises:
        ConfigError: an opset that is not supported.
        MissingDependencyError: the extra `onnx` is not installed.
        ModelError: a part can't be written, or onnxruntime gives other numbers than PyTorch.
        DataError: `target` exists.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        library(module, module, "format onnx", "onnx")
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise ConfigError(f"opset: expected {OPSETS[0]} to {OPSETS[1]}, found {opset}")
    network = load_student(student)
    vectors = class_vectors(network, document["class_names"])
    known = {key: document[key] for key in KEPT if key in document}
    with atomic_directory(target) as temporary:
        files = {}
        for part in parts_of(network, document["inputs"], document["fields"]):
            file = temporary / f"{part.name}.onnx"
            files[file.name] = write_part(part, file, opset, known)
            if int8:
                small = file.with_suffix(".int8.onnx")
                files[small.name] = quantise(part, file, small)
        if vectors is not None:
            content = io.BytesIO()
            np.save(content, vectors.numpy(), allow_pickle=False)
            write_bytes(temporary / CLASS_VECTORS, content.getvalue())
        tokenizer = write_tokenizer(network, temporary / "tokenizer")
        write_json(temporary / CONFIG, {"format": "moekd-onnx", **known, "files": files, "tokenizer": tokenizer})
        write_text(temporary / "README.md", format_card(student, "onnx", onnx_use(files, vectors is not None)))
    return target


def write_part(part: Part, file: Path, opset: int | None, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Write one part and compare it with PyTorch.

    Returns:
        Its inputs, outputs, operator version, sha256 and largest difference from PyTorch.

    Raises:
        ModelError: see `write_onnx`.
    """
    onnx = library("onnx", "onnx", "format onnx", "onnx")
    module, inputs = portable(part.module), tuple(value.detach().cpu() for value in part.examples.values())
    outputs = list(part.run(inputs))
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                dynamic_shapes=free_shapes(part),
                input_names=list(part.examples),
                output_names=outputs,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{title(part)} can't be written as ONNX: {reason}; other formats: torch_export, safetensors"
        ) from error
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    onnx.checker.check_model(model)
    write_bytes(file, model.SerializeToString())
    difference = compare(part, file)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{title(part)}: onnxruntime differs from PyTorch by {difference:.2e} of the largest output, allowed are "
            f"{TOLERANCE:.0e}; nothing is exported; try another opset, or the format torch_export"
        )
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return {"outputs": outputs, "opset": version, **_description(part, file, difference)}


def compare(part: Part, file: Path) -> float:
    """Return the largest difference between onnxruntime and PyTorch, relative to an output's largest value (or 0.01).

    Raises:
        ModelError: onnxruntime can't run the file.
    """
    runtime = library("onnxruntime", "onnxruntime", "format onnx", "onnx")
    module, worst = Part(part.name, portable(part.module), part.examples, part.free), 0.0
    for batch in samples(part):
        given = {name: value.numpy() for name, value in zip(part.examples, batch, strict=True)}
        try:
            session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            names = {value.name for value in session.get_inputs()}
            results = session.run(None, {name: value for name, value in given.items() if name in names})
        except Exception as error:
            raise ModelError(f"{title(part)}: onnxruntime can't run the file: {error}") from error
        for found, expected in zip(results, module.run(batch).values(), strict=True):
            if list(found.shape) != list(expected.shape):
                raise ModelError(f"{title(part)}: onnxruntime gives {found.shape}, PyTorch {list(expected.shape)}")
            gap = np.abs(found - expected.numpy()).max(initial=0) / np.abs(expected.numpy()).max(initial=FLOOR)
            worst = max(worst, float(gap)) if np.isfinite(gap) else float("nan")
    return worst


def quantise(part: Part, file: Path, small: Path) -> dict[str, Any]:
    """Write a copy whose matrix weights have 8 bits; its difference from PyTorch is told, not limited."""
    quantisation = library("onnxruntime.quantization", "onnxruntime", "int8", "onnx")
    model = library("onnx", "onnx", "int8", "onnx").load(str(file))
    del model.graph.value_info[:]
    with _quiet():
        quantisation.quantize_dynamic(model, str(small), weight_type=quantisation.QuantType.QInt8)
    return _description(part, small, compare(part, small))


def _description(part: Part, file: Path, difference: float) -> dict[str, Any]:
    return {
        "inputs": list(part.examples),
        "max_difference": difference,
        "bytes": file.stat().st_size,
        "sha256": sha256_of(file),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters tell about themselves from the terminal; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
