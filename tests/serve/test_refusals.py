"""What a server refuses: with a status, with what was expected and found, and without a word about its inside."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from moekd.errors import ConfigError, DataError
from moekd.inference import Predictor
from moekd.inference.predictor import Seen
from moekd.serve import Settings, parse_bytes
from moekd.serve.app import create_app

from .conftest import Place, encoded, files, running

GOOD = base64.b64encode(encoded()).decode()


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Check the form of a refusal and return it."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) <= {"code", "message", "expected", "found"}
    assert error["message"]
    for inside in ("Traceback", "/tmp", "/work", "site-packages", ".py", "0x", "BytesIO", "moekd."):
        assert inside not in answer.text
    assert "content-security-policy" in answer.headers
    return dict(error)


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of black pixels that is small as a file."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (width // 8 + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"hello", "found 5 bytes of something else"),
        (b"", "found an empty file"),
        (b"%PDF-1.4 " * 30, "expected a picture (PNG, JPEG, WEBP, GIF, BMP)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of something else"),
        (encoded()[:-400], "damaged or cut off"),
        (bomb(20_000, 20_000), "too many pixels: expected at most 50,000,000"),
        (bomb(8_000, 8_000), "too many pixels: expected at most 50,000,000, found 8000 x 8000 = 64,000,000"),
    ],
)
def test_files_that_are_no_pictures(place: Place, content: bytes, part: str) -> None:
    error = refused(place.post("/predict", files=files(encoded(), content)), 422)
    assert error["message"].startswith("pictures[1]: ")
    assert part in error["message"]


def test_damaged_pictures_never_break_the_server(place: Place) -> None:
    """Bytes of good files are changed at random: each is either read or refused, none is a failure of the server."""
    rng = np.random.default_rng(0)
    exif = io.BytesIO()
    details = Image.Exif()
    details[0x0112] = 6
    Image.open(io.BytesIO(encoded())).save(exif, format="JPEG", exif=details)
    seen = set()
    for content in (encoded(), encoded(form="JPEG"), encoded(form="WEBP"), encoded(form="GIF"), exif.getvalue()):
        damaged = []
        for _ in range(25):
            changed = bytearray(content)
            for place_of in rng.integers(0, min(len(changed), 400), 6):
                changed[place_of] = rng.integers(0, 256)
            damaged.append(bytes(changed))
        for one in damaged:
            answer = place.post("/predict", files=files(one))
            seen.add(answer.status_code)
            if answer.status_code != 200:
                refused(answer, 422)
    assert seen == {200, 422}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"pictures": []}, 422, "missing"),
        ({}, 422, "missing"),
        ({"pictures": ["not base64!"]}, 422, "base64"),
        ({"pictures": [5]}, 422, "type"),
        ({"pictures": GOOD}, 422, "type"),
        ({"pictures": [GOOD], "labels": []}, 422, "labels"),
        ({"pictures": [GOOD], "labels": " , ,"}, 422, "labels"),
        ({"pictures": [GOOD], "labels": ["", "  "]}, 422, "labels"),
        ({"pictures": [GOOD], "labels": [1]}, 422, "type"),
        ({"pictures": [GOOD], "labels": {"a": 1}}, 422, "type"),
        ({"pictures": [GOOD], "labels": ["zebra"]}, 422, "labels"),
        ({"pictures": [GOOD], "labels": ["a" * 501]}, 422, "too_long"),
        ({"pictures": [GOOD], "labels": ["sky"] * 1001}, 422, "too_many"),
        ({"pictures": [GOOD], "templates": ["a {}"]}, 422, "templates"),
        ({"pictures": [GOOD], "top": 0}, 422, "top"),
        ({"pictures": [GOOD], "top": "5"}, 422, "top"),
        ({"pictures": [GOOD], "top": True}, 422, "top"),
        ({"pictures": [GOOD], "label": ["sky"]}, 422, "unknown_key"),
        ({"pictures": [GOOD] * 65}, 422, "too_many"),
        ([], 422, "json"),
        ("text", 422, "json"),
    ],
)
def test_wrong_questions(place: Place, body: Any, status: int, code: str) -> None:
    assert refused(place.post("/predict", json=body), status)["code"] == code


KEYS = st.sampled_from(["pictures", "labels", "templates", "texts", "top"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.just(GOOD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/predict", "/search", "/embed"]), body=st.dictionaries(KEYS | st.text(max_size=8), VALUES)
)
def test_no_question_breaks_the_server(reader: Place, path: str, body: dict[str, Any]) -> None:
    """Whatever JSON comes, it is answered or refused; numbers that JSON does not have (NaN) are sent too."""
    content = json.dumps(body).encode()
    answer = reader.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 422), answer.text
    assert ("error" in answer.json()) == (answer.status_code == 422)


def test_wrong_bodies(place: Place) -> None:
    json_type = {"content-type": "application/json"}
    assert refused(place.post("/predict", content=b"{", headers=json_type), 400)["code"] == "json"
    assert refused(place.post("/predict", content=b"[" * 100_000, headers=json_type), 400)["code"] == "json"
    assert refused(place.post("/predict", content=b"\xff\xfe", headers=json_type), 400)["code"] == "json"
    error = refused(place.post("/predict", content=encoded(), headers={"content-type": "image/png"}), 415)
    assert (error["expected"], error["found"]) == ("multipart/form-data or application/json", "image/png")
    refused(place.post("/predict", content=b"x", headers={"content-type": "multipart/form-data"}), 400)
    refused(place.post("/predict", data={"pictures": "text"}, files={"labels": b"sky"}), 422)
    refused(place.post("/predict", files=files(encoded()), data={"top": "x" * 999}), 422)
    refused(
        place.post("/predict", content=json.dumps({"pictures": [GOOD], "labels": ["\ud800"]}), headers=json_type), 422
    )
    assert refused(place.get("/predict"), 405)["code"] == "http"
    assert refused(place.get("/../../etc/passwd"), 404)["message"] == "Not Found"


def test_questions_for_a_text_tower_that_is_not_there(place: Place) -> None:
    for path, body in (("/embed", {"texts": ["a"]}), ("/search", {"texts": ["a"], "pictures": [GOOD]})):
        error = refused(place.post(path, json=body), 422)
        assert error["code"] == "student"
        assert "no text tower" in error["message"]
    error = refused(place.post("/embed", json={"pictures": [GOOD]}), 422)
    assert "no embeddings" in error["message"]
    message = refused(place.post("/predict", json={"pictures": [GOOD], "labels": ["skyy"]}), 422)["message"]
    assert "no text tower" in message
    assert "did you mean 'sky'" in message


def test_limits_of_a_reader(reader: Place) -> None:
    many = {"pictures": [GOOD], "labels": [f"l{i}" for i in range(1000)], "templates": ["{}", "a {}", "the {}"]}
    assert refused(reader.post("/predict", json=many), 422)["found"] == "3000"
    for templates in (["no place"], ["{} {}"], []):
        refused(reader.post("/predict", json={"pictures": [GOOD], "templates": templates}), 422)
    assert refused(reader.post("/search", json={"pictures": [GOOD], "texts": [" "]}), 422)["code"] == "empty"
    assert refused(reader.post("/embed", json={}), 422)["code"] == "missing"


def test_pages_of_other_sites_may_not_ask(place: Place) -> None:
    answer = place.post("/predict", files=files(encoded()), headers={"sec-fetch-site": "cross-site"})
    assert refused(answer, 403)["code"] == "cross_site"
    same = place.post("/predict", files=files(encoded()), headers={"sec-fetch-site": "same-origin"})
    assert same.status_code == 200


def test_a_request_that_is_too_large(classifier: Path) -> None:
    with running(Predictor(classifier), Settings(max_bytes=20_000)) as small:
        assert small.post("/predict", files=files(encoded())).status_code == 200
        error = refused(small.post("/predict", files=files(encoded(size=(300, 300)))), 413)
        assert error["expected"] == "at most 20000 bytes"

        def stream() -> Any:
            for _ in range(40):
                yield b"x" * 1000

        headers = {"content-type": "application/json"}
        refused(small.post("/predict", content=stream(), headers=headers), 413)
        host, port = small.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as plain:
            head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
            plain.sendall(head.encode())
            assert plain.recv(100).startswith(b"HTTP/1.1 413"), "refused before the body is sent"
        boundary = {"content-type": "multipart/form-data; boundary=b"}
        start = b'--b\r\nContent-Disposition: form-data; name="pictures"; filename="a"\r\n\r\n'
        refused(small.post("/predict", content=iter([start, *[b"x" * 1000] * 40]), headers=boundary), 413)
        assert small.post("/predict", files=files(encoded())).status_code == 200


class Slow(Predictor):
    """A student that waits for `gate` in every batch after the warm-up."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.gate, self.inside = threading.Event(), threading.Event()
        self.gate.set()

    def see(self, batch: torch.Tensor) -> Seen:
        """Wait, then see."""
        self.inside.set()
        assert self.gate.wait(30)
        return super().see(batch)


def test_too_many_at_a_time_are_asked_to_come_again(classifier: Path) -> None:
    slow = Slow(classifier)
    with running(slow, Settings(max_queue=2, max_batch=1)) as busy, ThreadPoolExecutor(2) as pool:
        slow.gate.clear()
        taken = [pool.submit(busy.post, "/predict", files=files(encoded())) for _ in range(2)]
        deadline = time.monotonic() + 20
        while busy.guard.active < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        answer = busy.post("/predict", files=files(encoded()))
        assert refused(answer, 503)["code"] == "busy"
        assert answer.headers["retry-after"] == "1"
        assert busy.get("/health").status_code == 200, "health and page are answered all the same"
        slow.gate.set()
        assert [one.result().status_code for one in taken] == [200, 200]
        assert busy.post("/predict", files=files(encoded())).status_code == 200


def test_a_request_that_takes_too_long(classifier: Path) -> None:
    slow = Slow(classifier)
    with running(slow, Settings(timeout=0.4)) as late:
        slow.gate.clear()
        error = refused(late.post("/predict", files=files(encoded())), 504)
        assert error["expected"] == "at most 0.4 seconds"
        slow.gate.set()
        deadline = time.monotonic() + 20
        while late.post("/predict", files=files(encoded())).status_code != 200:
            assert time.monotonic() < deadline, "the server goes on afterwards"


def test_a_student_that_can_not_be_warmed_up_never_gets_ready(
    classifier: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Cold(Predictor):
        def see(self, batch: torch.Tensor) -> Seen:
            if len(batch) > 1:
                raise RuntimeError("out of memory")
            return super().see(batch)

    with running(Cold(classifier), wait=False) as found:
        deadline = time.monotonic() + 20
        while "out of memory" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        health = found.get("/health")
        assert (health.status_code, health.headers["retry-after"]) == (503, "1")
        assert refused(found.post("/predict", files=files(encoded())), 503)["code"] == "not_ready"
        assert found.get("/").status_code == 200


def test_a_failure_inside_is_not_shown(classifier: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Slow):
        def see(self, batch: torch.Tensor) -> Seen:
            if self.inside.is_set():
                raise RuntimeError("secret /tmp/place")
            return Predictor.see(self, batch)

    broken = Broken(classifier)
    with running(broken) as found:
        broken.inside.set()
        error = refused(found.post("/predict", files=files(encoded())), 500)
        assert error == {"code": "internal", "message": "the server failed; its log says why"}
    assert "secret" in caplog.text, "the log of the server has the reason"


def test_settings_that_can_not_be(classifier: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(max_batch=0, max_wait_ms=-1, timeout=0)
    assert len(caught.value.problems) == 3
    assert [parse_bytes(text) for text in ("10MB", "512 KiB", "1000", "1.5 kb")] == [10**7, 512 * 1024, 1000, 1500]
    for text in ("", "MB", "-1MB", "10 XB", "1e9"):
        with pytest.raises(ConfigError, match="expected a number with B, KB"):
            parse_bytes(text)


def test_a_student_without_pictures_is_not_served(classifier: Path) -> None:
    predictor = Predictor(classifier)
    predictor.field = {"modality": "vector", "shape": [6]}
    with pytest.raises(DataError, match="students that read pictures"):
        create_app(predictor)
