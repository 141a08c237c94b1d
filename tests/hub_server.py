"""A stand-in for the Hugging Face hub on loopback: it takes commits of small files, and serves them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Keeps the files of repositories in memory.

    Attributes:
        files: repository id -> path -> content.
        requests: "METHOD path" of each request.
        private: the repositories that were created as private.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.private: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *values: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        self.hub.requests.append(f"POST {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[-2:] == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.hub.files.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})
        if "validate-yaml" in self.path:
            return self._json({"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self._json({"files": modes})
        assert parts[4] == "commit", self.path
        for line in body.decode().splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                self.hub.files[name][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
        return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def _get(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            name = "/".join(parts[2:4])
            if name not in self.hub.files:
                return self._answer(404, b"{}", {})
            siblings = [{"rfilename": path} for path in self.hub.files[name]]
            document = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False}
            if parts[4:5] == ["tree"]:
                tree = [
                    {"type": "file", "path": p, "size": len(c), "oid": COMMIT} for p, c in self.hub.files[name].items()
                ]
                return self._json(tree)
            return self._json({**document, "tags": [], "downloads": 0, "likes": 0})
        name, path = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.hub.files.get(name, {}).get(path)
        if parts[2:3] != ["resolve"] or content is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self._answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _json(self, document: Any) -> None:
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
