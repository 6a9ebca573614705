"""The README of an exported student: what it is and how to run it with and without moekd."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

_SAFETENSORS = """\
With moekd (weights from `model.safetensors`, which can't hold code):

```python
import moekd

student = moekd.load_student("{folder}")  # a plain torch.nn.Module in eval mode
{result} = student({arguments})  # {shapes}
```
"""
_PROGRAM = """\
With PyTorch alone (moekd need not be installed):

```python
import torch

{calls}
```

`torch.export.load` can run code that a forged file contains. Load a `.pt2` file only if you trust whoever gave it to
you and its sha256 is the one in `config.json`; otherwise use the weights with moekd.
"""


def default_card(config: Mapping[str, Any], parameters: int) -> str:
    """Return the head of a card from an exported configuration; everything that came from outside is escaped."""
    title = config.get("title") or f"{config['network']['kind']} student"
    names = [str(name) for name in config["class_names"]]
    shown = ", ".join(names[:20]) + (f", ... ({len(names)} classes)" if len(names) > 20 else "")
    lines = [
        f"# {clean(title)}",
        "",
        "A compact model distilled from several teachers with moekd. The teachers are not part of it.",
        "",
        "| | |",
        "|---|---|",
        f"| network | {clean(config['network']['kind'])}, {parameters:,} parameters |",
        f"| inputs | {clean(', '.join(config['inputs']))} |",
        f"| classes | {clean(shown)} |",
    ]
    lines += [f"| {clean(key)} | {clean(value)} |" for key, value in config.get("facts", {}).items()]
    return "\n".join(lines) + "\n"


def usage(config: Mapping[str, Any], folder: str, programs: Sequence[str]) -> str:
    """Return the section with the snippets that load the student; `programs` are the names of its `.pt2` files."""
    described = config.get("programs", {})
    plain = all(described[name]["outputs"] == ["logits"] for name in programs) if programs else True
    values = {
        "folder": clean(folder),
        "arguments": ", ".join(clean(name) for name in config["inputs"]),
        "shapes": ", ".join(_shape(name, config["fields"].get(name, {})) for name in config["inputs"]),
        "result": "logits" if plain else "signals",
    }
    parts = ["## Use\n", _SAFETENSORS.format(**values)]
    if programs:
        calls = [_call(name, described[name], values) for name in programs]
        parts.append(_PROGRAM.format(calls="\n".join(calls)))
    parts.append("Each input must be prepared as `config.json` says under `fields` (size, mean, std).\n")
    return "\n".join(parts)


def _call(program: str, said: Mapping[str, Any], values: Mapping[str, str]) -> str:
    name = program.removesuffix(".pt2")
    inputs, outputs = ", ".join(map(clean, said["inputs"])), ", ".join(map(clean, said["outputs"]))
    result = "logits" if said["outputs"] == ["logits"] else "said"
    about = values["shapes"] if inputs == values["arguments"] else f"gives {outputs}"
    return (
        f'{name} = torch.export.load("{values["folder"]}/{program}").module()\n'
        f"{result} = {name}({inputs})  # any batch size; {about}"
    )


def clean(value: Any) -> str:
    """Escape text for Markdown tables and HTML."""
    return html.escape(" ".join(str(value).split())).replace("|", "&#124;").replace("`", "&#96;")


def _shape(name: str, field: Mapping[str, Any]) -> str:
    shape = ", ".join(["B", *map(str, field["shape"])]) if "shape" in field else "B, ..."
    return clean(f"{name} [{shape}]")
