"""Tiny students, and servers for them on this machine alone."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from pytest_socket import disable_socket, enable_socket, socket_allow_hosts

from moekd.export import export_student
from moekd.inference import Predictor
from moekd.model import Model
from moekd.serve import Settings
from moekd.serve.app import create_app
from moekd.serve.guard import Guard

CLASSES = ["animal", "food, drink", "naïve café", "sky"]
TOWERS = {
    "tower": {"kind": "cnn_encoder", "channels": [4, 8]},
    "text": {"tokenizer": "bytes", "context": 40, "width": 16, "layers": 1, "heads": 2},
    "width": 16,
}
IMAGE = {"shape": [3, 24, 24], "dtype": "float32", "modality": "image", "mean": [0.5] * 3, "std": [0.5] * 3}
CAPTION = {
    "shape": [40],
    "dtype": "int64",
    "modality": "text",
    "tokenizer": {"bytes": True, "lower": False},
}


@pytest.fixture(autouse=True)
def _localhost_only(_no_network: None) -> Iterator[None]:
    enable_socket()
    socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)
    yield
    disable_socket(allow_unix_socket=True)


@dataclass(frozen=True)
class Place:
    """A running server."""

    url: str
    predictor: Predictor
    guard: Guard
    client: httpx.Client

    def post(self, path: str, **options: Any) -> httpx.Response:
        """Send a request."""
        return self.client.post(f"{self.url}{path}", **options)

    def get(self, path: str) -> httpx.Response:
        """Ask for something."""
        return self.client.get(f"{self.url}{path}")


@contextlib.contextmanager
def running(predictor: Predictor, settings: Settings | None = None, wait: bool = True) -> Iterator[Place]:
    """Serve a student on a free port of this machine until the block ends; `wait` until it is warm."""
    guard = create_app(predictor, settings, "# A card")
    server = uvicorn.Server(uvicorn.Config(guard, port=0, log_config=None, access_log=False, server_header=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(timeout=30, trust_env=False) as client:
            place = Place(f"http://127.0.0.1:{port}", predictor, guard, client)
            while wait and place.get("/health").status_code != 200:
                assert time.monotonic() < deadline, "the student did not get ready"
                time.sleep(0.01)
            yield place
    finally:
        server.should_exit = True
        thread.join(30)


def write_student(folder: Path, kind: str, options: dict[str, Any], inputs: dict[str, Any], names: list[str]) -> Path:
    """Export a student with fresh weights."""
    from moekd.export import build_network

    torch.manual_seed(0)
    description = {"kind": kind, "options": options, "context": {"num_classes": len(names)}}
    document = {"inputs": list(inputs), "fields": inputs, "class_names": names}
    network = build_network(description, document)
    config = {"title": f"Tiny {kind}", "network": description, "class_names": names, "fields": inputs}
    return export_student(Model(network, list(inputs)), config, folder, program=False)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that classifies pictures."""
    options = {"channels": [4, 8], "hidden": 8}
    return write_student(tmp_path_factory.mktemp("cnn") / "s", "small_cnn", options, {"image": IMAGE}, CLASSES)


@pytest.fixture(scope="session")
def two_towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a tower for pictures and one for texts."""
    inputs = {"image": IMAGE, "caption": CAPTION}
    return write_student(tmp_path_factory.mktemp("towers") / "s", "two_tower", TOWERS, inputs, CLASSES)


@pytest.fixture(scope="module")
def place(classifier: Path) -> Iterator[Place]:
    """A server of the classifier."""
    enable_socket()
    with running(Predictor(classifier)) as found:
        yield found


@pytest.fixture(scope="module")
def reader(two_towers: Path) -> Iterator[Place]:
    """A server of the student that reads texts."""
    enable_socket()
    with running(Predictor(two_towers)) as found:
        yield found


def encoded(seed: int = 0, size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    """Return a picture of noise, as the bytes of a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Return a function that makes encoded pictures."""
    return encoded


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Return pictures as httpx sends them in a form."""
    return [("pictures", (f"{index}.png", content)) for index, content in enumerate(contents)]
