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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ..atomic import write_bytes
from ..errors import DataError, ModelError
from .parts import WHOLE, Part

_ALLOWED = re.compile(
    r"(archive_format|archive_version|version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|data/sample_inputs/model\.pt)"
)


def write_program(part: Part, path: Path) -> Path:
    """Trace a part of a student with a free batch size and write it atomically.

    Args:
        part: what to trace; a copy on the CPU in eval mode is traced.
        path: file to write, by convention `*.pt2`.

    Raises:
        ModelError: it can't be traced, or the program gives other results than the network.
        DataError: this torch version would write pickled parts.
    """
    module = portable(part.module)
    inputs = tuple(example.detach().cpu() for example in part.examples.values())
    try:
        with torch.no_grad():
            program = torch.export.export(module, inputs, dynamic_shapes=free_shapes(part))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{title(part)} can't be traced by torch.export: {reason}; "
            "export the weights alone (format safetensors), or rewrite data-dependent control flow in forward"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    _compare(part, module, program.module())
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    check_program(buffer, str(path))
    return write_bytes(path, buffer.getvalue())


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


def portable(network: nn.Module) -> nn.Module:
    """Copy to the CPU with storage of its own for every tensor, so that nothing else is written along."""
    network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return network


def free_shapes(part: Part) -> tuple[Any, ...]:
    """Mark the first axis of every input as the same free size, in the structure of `forward`'s parameters."""
    batch, named = torch.export.Dim("batch", min=1), dict[str, Any]()
    for axes in part.free.values():
        for name, largest in axes.values():
            named.setdefault(name, torch.export.Dim(name, min=1, max=largest))
    shapes = [
        {0: batch} | {axis: named[name] for axis, (name, _) in part.free.get(key, {}).items()} for key in part.examples
    ]
    bound = inspect.signature(part.module.forward).bind(*shapes).arguments.values()
    return tuple(tuple(value) if isinstance(value, tuple) else value for value in bound)


def samples(part: Part) -> Iterator[list[Tensor]]:
    """Yield inputs with 1 and 4 rows (the tracing batch had another size); floats are random, of unit variance.

    Axes of free size are shorter in the second one.
    """
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 4):
        batch = []
        for name, value in part.examples.items():
            chosen = value[torch.arange(rows) % len(value)]
            for axis in part.free.get(name, ()) if rows > 1 else ():
                chosen = chosen.narrow(axis, 0, max(1, chosen.shape[axis] - 1))
            chosen = chosen.clone()
            batch.append(chosen.normal_(generator=generator) if chosen.is_floating_point() else chosen)
        yield batch


def title(part: Part) -> str:
    """Return how messages call a part: the class of its network."""
    network = getattr(part.module, "network", part.module)
    return type(network).__name__ + ("" if part.name == WHOLE else f" ({part.name})")


def _compare(part: Part, network: nn.Module, program: Callable[..., Any]) -> None:
    for batch in samples(part):
        try:
            with torch.no_grad():
                torch.testing.assert_close(program(*batch), network(*batch))
        except (AssertionError, RuntimeError) as error:
            reason = str(error).strip()
            raise ModelError(f"the program of {title(part)} fails with {len(batch[0])} rows: {reason}") from error
