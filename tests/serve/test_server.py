"""The command: it starts, finishes what has begun when it is told to end, and says why it can't start."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from moekd.errors import ConfigError, MissingDependencyError
from moekd.serve.server import listening, serve

from .conftest import encoded, files


def healthy(client: httpx.Client) -> bool:
    """Tell whether the server is ready."""
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def command(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Run `moekd serve` on a free port; yield the process and a client once it is ready."""
    arguments = [sys.executable, "-m", "moekd", "serve", str(run), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stderr is not None
    reading = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
    reading.start()
    try:
        deadline, place = time.monotonic() + 120, None
        while place is None:
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < deadline, "".join(lines)
            place = re.search(r"http://127\.0\.0\.1:\d+", "".join(lines))
            time.sleep(0.02)
        with httpx.Client(base_url=place[0], timeout=60, trust_env=False) as client:
            while not healthy(client):
                assert time.monotonic() < deadline, "".join(lines)
                time.sleep(0.05)
            yield process, client
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        reading.join(30)


def test_requests_that_have_begun_are_answered_before_the_end(classifier: Path) -> None:
    """SIGTERM comes while three requests wait for their batch: all are answered, and the exit code is 0."""
    options = ("--max-wait-ms", "4000", "--max-batch", "64")
    with command(classifier, *options) as (process, client):
        answers: list[httpx.Response] = []

        def ask(seed: int) -> None:
            answers.append(client.post("/predict", files=files(encoded(seed))))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while "moekd_active_requests 3" not in client.get("/metrics").text:
            assert time.monotonic() < deadline, "the requests never arrived"
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert process.wait(60) == 0
        with pytest.raises(httpx.TransportError):
            client.get("/health")


def test_several_processes_answer_on_one_address(classifier: Path) -> None:
    with command(classifier, "--workers", "2") as (process, client):
        answer = client.post("/predict", files=files(encoded()))
        assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_answers_are_sent_at_once() -> None:
    """Connections do not hold back the body of an answer until its head is acknowledged (Nagle's algorithm)."""
    with listening("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
                assert client.getpeername() == listener.getsockname()


def test_what_can_not_be_served_is_said_before_anything_starts(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no student in"):
        serve(tmp_path, port=0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{port}: .*choose another --host or --port"):
            serve(classifier, port=port)
    with pytest.raises(ConfigError, match="at least one worker"):
        serve(classifier, workers=0)


def test_the_extra_is_named_when_it_is_missing(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'moekd\[serve\]'"):
        serve(classifier)
