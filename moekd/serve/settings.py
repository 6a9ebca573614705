"""What a server allows, and how it forms batches."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from ..errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Settings:
    """Limits of one server.

    Attributes:
        max_batch: inputs that go through the student at a time.
        max_wait_ms: longest time that an input waits for others while the student is idle.
        max_bytes: largest body of a request.
        max_pixels: largest width * height of a picture.
        max_pictures: pictures in a request.
        max_labels: labels in a request; also the limit for texts.
        max_characters: length of a label, a template or a text.
        max_prompts: labels * templates in a request.
        max_queue: requests that are being worked on; further ones are asked to come again.
        timeout: seconds for a request, from its first byte to the answer.
        device: where the student runs.
    """

    max_batch: int = 32
    max_wait_ms: float = 5.0
    max_bytes: int = 10_000_000
    max_pixels: int = 50_000_000
    max_pictures: int = 64
    max_labels: int = 1000
    max_characters: int = 500
    max_prompts: int = 2000
    max_queue: int = 128
    timeout: float = 30.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        problems = []
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "max_wait_ms" else 1
            if field.name == "timeout" and not value > 0:
                problems.append(f"timeout: expected more than 0 seconds, found {value}")
            elif field.name not in ("device", "timeout") and not value >= least:
                problems.append(f"{field.name}: expected at least {least}, found {value}")
        if problems:
            raise ConfigError(problems)


def parse_bytes(text: str) -> int:
    """Return the bytes that "10MB", "512 KiB" or "1000" name; MB are 10^6 bytes, MiB 2^20.

    Raises:
        ConfigError: another text.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise ConfigError(f"size: expected a number with B, KB, MB, GB, KiB, MiB or GiB, found {text!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])
