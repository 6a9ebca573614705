"""A stand-in for the Hugging Face Hub on this machine; it serves one folder as the data set `me/birds`.

As a script: `python hub_server.py FOLDER CACHE` reads the data set through the real client, both ways, and prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef" * 2 + "01234567"
API, FILES = "/api/datasets/me/birds", f"/datasets/me/birds/resolve/{COMMIT}/"


class Handler(BaseHTTPRequestHandler):
    """Answers what the client asks for when it lists and downloads a data set."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = unquote(urlsplit(self.path).path)
        files = {str(file.relative_to(self.server.root)): file for file in self.server.root.rglob("*.parquet")}
        content = None
        if path.removeprefix(FILES) in files:
            content = files[path.removeprefix(FILES)].read_bytes()
            self.server.fetched += [path.removeprefix(FILES)] if body else []
        elif path == f"{API}/revision/{COMMIT}":
            listed = [{"rfilename": name} for name in files]
            content = json.dumps({"id": "me/birds", "sha": COMMIT, "siblings": listed}).encode()
        elif path.startswith(f"{API}/tree/{COMMIT}"):
            content = json.dumps(self.tree(path.removeprefix(f"{API}/tree/{COMMIT}").strip("/"), files)).encode()
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", f'"{hashlib.sha1(content or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def tree(self, folder, files):
        inside = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": hashlib.sha1(name.encode()).hexdigest()}
            for name, file in files.items()
            if str(Path(name).parent) == (folder or ".")
        ]
        below = {name.split("/")[0] for name in files if "/" in name} if not folder else ()
        return inside + [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(below)]

    def log_message(self, *args):
        pass


def main(folder: str, cache: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root, server.fetched = Path(folder), []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": f"{cache}/home"}
    os.environ |= {"no_proxy": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}
    from moekd.data.fields.image import ImageField
    from moekd.data.fields.text import TextField
    from moekd.data.hub import Hub

    found = {}
    for streaming, again in ((True, 0), (True, 1), (False, 0)):
        fields = {"image": ImageField(8), "text": TextField()}
        options = {"label": "label", "streaming": streaming, "cache_dir": f"{cache}/{'far' if streaming else 'near'}"}
        before = len(server.fetched)
        data = Hub("me/birds", fields, COMMIT, **options)
        batch = data.splits["train"].__getitems__([0, 11, 23])
        found[f"{'streamed' if streaming else 'mapped'}{again}"] = {
            "rows": {name: len(split) for name, split in data.splits.items()},
            "classes": data.class_names,
            "red": (batch["image"][:, 0, 0, 0] * 255).round().tolist(),
            "label": batch["label"].tolist(),
            "fetched": len(server.fetched) - before,
            "fingerprint": data.fingerprint(),
            "described": data.splits["train"].describe(20),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
