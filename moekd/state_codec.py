"""Training state <-> named tensors and a JSON skeleton, exactly; safetensors and JSON files hold them without pickle.

The skeleton is JSON. What JSON lacks is an object with one key that starts with `$`:

    {"$tensor": key}     a tensor, stored under `key`          {"$array": key}   a NumPy array, stored as a tensor
    {"$tuple": [...]}    a tuple                               {"$int": "0x..."} an integer beyond 2^53
    {"$dict": [[k, v]]}  a dict with keys that are not plain   {"$float": "nan"} nan, inf, -inf
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import CheckpointError

DEEPEST = 64
_EXACT_IN_JSON = 2**53
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    torch.bool,
)


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split nested state into tensors and a JSON skeleton.

    Accepted: dicts (also `OrderedDict`) with str or int keys, lists, tuples, dense tensors and parameters, NumPy arrays
    of numbers, bool, int of any size, float with nan and infinities, str, None. Tensors are detached, copied to
    contiguous CPU memory and never share storage, so the result is a snapshot. A dict comes back as a plain dict and
    a parameter as a tensor; everything else comes back with its own type.

    Returns:
        The tensors by key and the skeleton.

    Raises:
        CheckpointError: any other type, with its path in the state.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encode(state, "", tensors, 0)


def unflatten(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    """Put together what `flatten` split.

    Raises:
        CheckpointError: the skeleton is malformed, or names a tensor that is missing, or leaves one over.
    """
    used: set[str] = set()
    state = _decode(skeleton, "", tensors, used, 0)
    if left := sorted(set(tensors) - used):
        raise CheckpointError(f"tensors without a place in the state: {', '.join(left[:5])}")
    return state


def _encode(value: Any, path: str, tensors: dict[str, Tensor], depth: int) -> Any:
    kind = type(value)
    if depth > DEEPEST:
        raise CheckpointError(f"state '{path[:80]}...' is nested more than {DEEPEST} deep; does it contain itself?")
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if abs(value) <= _EXACT_IN_JSON else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is list:
        return [_encode(item, _join(path, i), tensors, depth + 1) for i, item in enumerate(value)]
    if kind is tuple:
        return {"$tuple": [_encode(item, _join(path, i), tensors, depth + 1) for i, item in enumerate(value)]}
    if kind is dict or kind is OrderedDict:
        return _encode_dict(value, path, tensors, depth)
    if kind in (Tensor, nn.Parameter):
        return {"$tensor": _keep(_snapshot(value, path), path, tensors)}
    if kind is np.ndarray and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        native = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return {"$array": _keep(torch.from_numpy(native), path, tensors)}
    hint = "; convert it with .item()" if isinstance(value, np.generic) else ""
    raise CheckpointError(
        f"state '{path}' is a {kind.__module__}.{kind.__qualname__}, which a checkpoint can't hold{hint}; "
        "allowed are dicts, lists, tuples, tensors, NumPy arrays of numbers, numbers, strings, bools and None"
    )


def _encode_dict(value: dict[Any, Any], path: str, tensors: dict[str, Tensor], depth: int) -> Any:
    for key in value:
        if type(key) not in (str, int):
            raise CheckpointError(f"state '{path}' has the key {key!r:.80} ({type(key).__name__}); keys are str or int")
    items = [(key, _encode(item, _join(path, key), tensors, depth + 1)) for key, item in value.items()]
    if all(type(key) is str and not key.startswith("$") for key, _ in items):
        return dict(items)
    return {"$dict": [[_encode(key, path, tensors, depth + 1), item] for key, item in items]}


def _snapshot(tensor: Tensor, path: str) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in _DTYPES:
        kind = "without data (meta)" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        raise CheckpointError(f"state '{path}' is a tensor {kind}, which a checkpoint can't hold; store a dense one")
    source = tensor.detach()
    copy = torch.empty(source.shape, dtype=source.dtype, device="cpu")
    return copy.copy_(source)


def _keep(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    key = path.encode("utf-8", "backslashreplace").decode() or "value"
    while key in tensors or key == "__metadata__":
        key += "'"
    tensors[key] = tensor
    return key


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _decode(node: Any, path: str, tensors: Mapping[str, Tensor], used: set[str], depth: int) -> Any:
    if depth > 3 * DEEPEST:
        raise CheckpointError(f"state '{path[:80]}...' is nested too deep")
    if isinstance(node, list):
        return [_decode(item, _join(path, i), tensors, used, depth + 1) for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    tag = next(iter(node), "")
    if not tag.startswith("$"):
        return {key: _decode(item, _join(path, key), tensors, used, depth + 1) for key, item in node.items()}
    try:
        ((_, content),) = node.items()
        if tag == "$tensor":
            return _take(content, path, tensors, used)
        if tag == "$array":
            return _take(content, path, tensors, used).numpy()
        if tag == "$int":
            return int(content, 16)
        if tag == "$float":
            return float(content)
        if tag == "$tuple":
            return tuple(_decode(item, _join(path, i), tensors, used, depth + 1) for i, item in enumerate(content))
        if tag == "$dict":
            pairs = [(_decode(key, path, tensors, used, depth + 1), item) for key, item in content]
            return {key: _decode(item, _join(path, key), tensors, used, depth + 1) for key, item in pairs}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state '{path}' is malformed: {tag} with {node[tag]!r:.80}") from error
    raise CheckpointError(f"state '{path}' has the unknown tag {tag!r:.80}")


def _take(key: Any, path: str, tensors: Mapping[str, Tensor], used: set[str]) -> Tensor:
    if not isinstance(key, str) or key not in tensors or key in used:
        raise CheckpointError(f"state '{path}' needs the tensor {key!r:.80}, which is missing or used twice")
    used.add(key)
    return tensors[key]
