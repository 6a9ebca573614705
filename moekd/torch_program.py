"""A network as one file that plain PyTorch runs without moekd: a traced program of `torch.export`.

What is written here holds tensors as raw bytes and the graph as JSON, no pickle, no source paths. Reading is another
matter: `torch.export.load` (checked in torch 2.15) unpickles an entry that says so, loads compiled libraries found in
the archive, and evaluates size expressions as code. A program from somebody else is therefore as dangerous as a
script; `model.safetensors` is not. moekd itself never loads programs.
"""

from __future__ import annotations

import copy
import inspect
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from .atomic import write_bytes
from .errors import DataError, ModelError

_ALLOWED = re.compile(
    r"(archive_format|archive_version|version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|data/sample_inputs/model\.pt)"
)


def write_program(network: nn.Module, examples: Sequence[Tensor], path: Path) -> Path:
    """Trace a network with a free batch size and write it atomically.

    Args:
        network: module in any mode; a copy on the CPU in eval mode is traced.
        examples: one tensor an input, `[B, ...]` with B >= 2; only shapes and types matter.
        path: file to write, by convention `*.pt2`.

    Raises:
        ModelError: the network can't be traced, or the program gives other results than the network.
        DataError: this torch version would write pickled parts.
    """
    network, inputs = _portable(network), tuple(example.detach().cpu() for example in examples)
    try:
        with torch.no_grad():
            program = torch.export.export(network, inputs, dynamic_shapes=_free_batch(network, inputs))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{type(network).__name__} can't be traced by torch.export: {reason}; "
            "export the weights alone (format safetensors), or rewrite data-dependent control flow in forward"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    _compare(network, program.module(), inputs)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    check_program(buffer, str(path))
    return write_bytes(path, buffer.getvalue())


def example_inputs(fields: Mapping[str, Mapping[str, Any]], inputs: Sequence[str]) -> list[Tensor]:
    """Return two rows of zeros for each input, from the shapes and types of the batch fields.

    Raises:
        ModelError: a field does not say its shape.
    """
    examples = []
    for name in inputs:
        field = fields.get(name, {})
        if "shape" not in field:
            raise ModelError(f"the shape of input '{name}' is unknown; give it in fields.{name}.shape")
        dtype = getattr(torch, str(field.get("dtype", "float32")), None)
        if not isinstance(dtype, torch.dtype):
            raise ModelError(f"fields.{name}.dtype {field['dtype']!r} is no tensor type; use float32 or int64, say")
        examples.append(torch.zeros(2, *field["shape"], dtype=dtype))
    return examples


def check_program(file: Path | BinaryIO, name: str | None = None) -> None:
    """Make sure that a program file holds raw tensors and JSON only; `name` is for messages.

    This proves what `write_program` promises about its own files. It is no licence to load a stranger's program.

    Raises:
        DataError: the file is no archive, or has a pickled, compiled or unknown entry; the message names it.
    """
    where = name or str(file)
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                inner = entry.filename.partition("/")[2]
                pickled = inner.endswith(".pt") and entry.file_size > 0
                if not _ALLOWED.fullmatch(inner) or pickled:
                    raise DataError(f"{where}: the entry {entry.filename!r:.100} is pickled, compiled or unknown")
                if inner.endswith("_config.json"):
                    payload = json.loads(archive.read(entry))["config"]
                    if found := [key for key, value in payload.items() if value["use_pickle"] is not False]:
                        raise DataError(f"{where}: {found[0]!r:.80} is pickled; export with a newer torch")
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is no readable program archive: {error}") from error


def _portable(network: nn.Module) -> nn.Module:
    """Copy to the CPU with storage of its own for every tensor, so that nothing else is written along."""
    network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return network


def _free_batch(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """Mark the first axis of every input as the same free size, in the structure of `forward`'s parameters."""
    batch = torch.export.Dim("batch", min=1)
    arguments = inspect.signature(network.forward).bind(*inputs).arguments.values()
    return tuple(tuple({0: batch} for _ in a) if isinstance(a, tuple) else {0: batch} for a in arguments)


def _compare(network: nn.Module, program: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
    """Run both with 1 and 3 rows (the tracing batch had another size) of random values."""
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 3):
        batch = [value[:1].expand(rows, *value.shape[1:]).clone() for value in inputs]
        for value in batch:
            if value.is_floating_point():
                value.normal_(generator=generator)
        try:
            with torch.no_grad():
                torch.testing.assert_close(program(*batch), network(*batch))
        except (AssertionError, RuntimeError) as error:
            reason = str(error).strip()
            raise ModelError(f"the program of {type(network).__name__} fails with {rows} rows: {reason}") from error
