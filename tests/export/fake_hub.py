"""The few calls of the Hugging Face Hub that an upload makes, on 127.0.0.1.

It keeps what was sent: repositories with their files, and the headers of every call.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 1 << 16


class FakeHub:
    """A server with repositories; `url` is its address.

    Attributes:
        repos: "owner/name" -> {path: content}.
        private: the repositories that are.
        commits: subjects, in order.
        calls: method, path and authorization of every call.
        refuse: a status to answer every call that writes with; None: none.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[str] = []
        self.calls: list[tuple[str, str, str | None]] = []
        self.blobs: dict[str, bytes] = {}
        self.refuse: int | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop the server."""
        self.server.shutdown()
        self.server.server_close()

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Answer /api/repos/create."""
        repo = f"{body['organization']}/{body['name']}" if body.get("organization") else str(body["name"])
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.repos[repo] = {}
        if body.get("private") or body.get("visibility") == "private":
            self.private.add(repo)
        return 200, {"url": f"{self.url}/{repo}", "name": repo, "id": repo}

    def preupload(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Answer .../preupload/main: what goes by LFS."""
        return 200, {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in body["files"]
            ]
        }

    def batch(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Answer .git/info/lfs/objects/batch: where large files go."""
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.url}/blobs/{item['oid']}", "header": {}}},
            }
            for item in body["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def put(self, oid: str, content: bytes) -> tuple[int, Any]:
        """Take a large file."""
        if hashlib.sha256(content).hexdigest() != oid:
            return 422, {"error": "sha256 differs"}
        self.blobs[oid] = content
        return 200, {}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        """Answer .../commit/main: NDJSON with a header, small files and references to large ones."""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.blobs[value["oid"]]
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            hub.calls.append((self.command, path, self.headers.get("Authorization")))
            status, said = self.route(path, content)
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def route(self, path: str, content: bytes) -> tuple[int, Any]:
            parts = path.strip("/").split("/")
            if self.command == "GET":
                repo = "/".join(parts[2:4])
                return (200, {"id": repo, "sha": "0" * 40}) if repo in hub.repos else (404, {"error": "not found"})
            if hub.refuse is not None:
                return hub.refuse, {"error": "refused"}
            if self.command == "PUT":
                return hub.put(parts[-1], content)
            if path == "/api/repos/create":
                return hub.create(json.loads(content))
            if path == "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}
            if "preupload" in parts:
                return hub.preupload(json.loads(content))
            if path.endswith("/info/lfs/objects/batch"):
                return hub.batch(json.loads(content))
            if "commit" in parts:
                return hub.commit("/".join(parts[2:4]), [json.loads(line) for line in content.splitlines()])
            return 404, {"error": path}

        do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing on the terminal."""

    return Handler
