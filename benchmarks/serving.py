"""What batching across requests is worth: the same student behind servers with and without it, asked in turns.

    python -m moekd.benchmarks.serving --output benchmarks/results/serving.md

Each arm is a server process of its own; all stay up, and rounds go from one to the next, so that what else the machine
does falls on all of them. Beside the answers a second, which other work on the machine lowers, the table has the CPU
time that the server spent on an answer, which it hardly changes. Needs psutil.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..atomic import write_text
from ..export import build_network, export_student
from ..model import Model
from ..networks.adapter import library

ARMS = {"one at a time": (1, 0.0), "batches, no wait": (32, 0.0), "batches, 5 ms": (32, 5.0)}
CLIENTS = (1, 8, 32)
#: Students with new weights by title: kind, options, and side of the picture in pixels.
STUDENTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "small_cnn of the quickstart": ("small_cnn", {"channels": [12, 24, 48, 96], "hidden": 96}, 32),
    "two_tower, preset tiny": ("two_tower", {"preset": "tiny", "classifier": "new"}, 64),
}
BOUNDARY = "picture-boundary"
CLASSES = [f"class {index}" for index in range(98)]


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    process: Any

    def cpu(self) -> float:
        """Return its CPU time so far, in seconds."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@dataclass(frozen=True)
class Measured:
    """One round: answers a second, the median time of an answer and the server's CPU time for it, in milliseconds."""

    rate: float
    milliseconds: float
    cpu: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("serving.md"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round")
    options = parser.parse_args(arguments)
    load, rows = os.getloadavg()[0], []
    for title, (kind, settings, side) in STUDENTS.items():
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            run = write_student(Path(folder), kind, settings, side)
            servers = {arm: stack.enter_context(server(run, *numbers)) for arm, numbers in ARMS.items()}
            found = measure(servers, body(side), options.rounds, options.seconds)
        rows += [(title, clients, arm, found[clients, arm]) for clients in CLIENTS for arm in ARMS]
    write_text(options.output, table(rows, options.rounds, options.seconds, load))
    print(options.output.read_text())


def write_student(folder: Path, kind: str, options: dict[str, Any], side: int) -> Path:
    """Export a student with new weights."""
    fields = {"image": {"shape": [3, side, side], "dtype": "float32", "modality": "image"}}
    description = {"kind": kind, "options": options, "context": {"num_classes": len(CLASSES)}}
    torch.manual_seed(0)
    network = build_network(description, {"inputs": ["image"], "fields": fields, "class_names": CLASSES})
    config = {"title": "student", "network": description, "class_names": CLASSES, "fields": fields}
    return export_student(Model(network, ["image"]), config, folder / "student", program=False)


@contextmanager
def server(run: Path, max_batch: int, max_wait_ms: float) -> Iterator[Server]:
    """Yield a server with one thread of PyTorch, once it is ready."""
    psutil = library("psutil", "psutil", "measuring CPU time", "dev")
    command = [sys.executable, "-m", "moekd", "serve", str(run), "--port", "0", "--threads", "1"]
    command += ["--max-batch", str(max_batch), "--max-wait-ms", str(max_wait_ms)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while not (place := re.search(r"http://127\.0\.0\.1:(\d+)", said)):
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"the server ended: {said}")
            said += line
        deadline = time.monotonic() + 60
        while not _ready(int(place[1])):
            if time.monotonic() > deadline:
                raise RuntimeError("the student did not get ready")
            time.sleep(0.05)
        yield Server(int(place[1]), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def body(side: int) -> bytes:
    """Return a form with one JPEG of noise, twice as large as what the student sees."""
    pixels = np.random.default_rng(0).integers(0, 256, (2 * side, 2 * side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG")
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="pictures"; filename="a.jpg"\r\n\r\n'
    return head.encode() + buffer.getvalue() + f"\r\n--{BOUNDARY}--\r\n".encode()


def measure(
    servers: dict[str, Server], content: bytes, rounds: int, seconds: float
) -> dict[tuple[int, str], list[Measured]]:
    """Return the rounds by number of clients and arm; arms take turns, and a short round before is not counted."""
    found: dict[tuple[int, str], list[Measured]] = {(clients, arm): [] for clients in CLIENTS for arm in servers}
    for number in range(rounds + 1):
        for clients in CLIENTS:
            for arm, one in servers.items():
                measured = ask(one, content, clients, seconds if number else 0.3)
                if number:
                    found[clients, arm].append(measured)
    return found


def ask(server: Server, content: bytes, clients: int, seconds: float) -> Measured:
    """Ask with several clients at a time, each of which waits for its answer before it asks again."""

    def client(index: int) -> list[float]:
        connection, times = http.client.HTTPConnection("127.0.0.1", server.port), []
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        while (before := time.perf_counter()) < end:
            connection.request("POST", "/predict", content, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"the server answered {answer.status}")
            times.append(time.perf_counter() - before)
        connection.close()
        return times

    start, spent = time.perf_counter(), server.cpu()
    end = start + seconds
    with ThreadPoolExecutor(clients) as pool:
        times = [one for own in pool.map(client, range(clients)) for one in own]
    spent = server.cpu() - spent
    rate = len(times) / (time.perf_counter() - start)
    return Measured(rate, 1000 * statistics.median(times), 1000 * spent / len(times))


def table(rows: Sequence[tuple[str, int, str, list[Measured]]], rounds: int, seconds: float, load: float) -> str:
    """Return the page with the table."""
    first = next(iter(ARMS))
    lines = [
        f"Made by `python -m moekd.benchmarks.serving`: {os.cpu_count()} cores ({platform.machine()}), PyTorch "
        f"{torch.__version__}, load {load:.1f} before the start.",
        "",
        "Servers with one thread of PyTorch, clients on the same machine. Medians of "
        f"{rounds} rounds of {seconds:g} s, the arms in turns. The last column is how often the server's CPU time for "
        f"an answer fits into that of `{first}`: the median of the rounds, with the smallest and the largest.",
        "",
        "| student | clients | arm | answers / s | median answer, ms | CPU an answer, ms | less CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    alone = {(title, clients): found for title, clients, arm, found in rows if arm == first}
    for title, clients, arm, found in rows:
        ratios = [base.cpu / one.cpu for one, base in zip(found, alone[title, clients], strict=True)]
        ratio = "" if arm == first else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rate, wait, cpu = (statistics.median(getattr(one, k) for one in found) for k in ("rate", "milliseconds", "cpu"))
        lines.append(f"| {title} | {clients} | {arm} | {rate:.0f} | {wait:.1f} | {cpu:.1f} | {ratio} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
