"""A Hugging Face Hub of this machine: what `push` and downloads ask of its API, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_the_stub"
USER = "someone"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a dict of files; ``requests`` are those that came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"POST {path}")
        if path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            head = yaml.safe_load(content.split("---")[1])
            bad = "license" in head and head["license"] not in ("apache-2.0", "mit")
            errors = [{"message": '"license" must be one of [apache-2.0, mit]'}] if bad else []
            if self.headers.get("Accept") == "text/plain":
                text = "".join(f"- Error: {error['message']}\n" for error in errors)
                return self._answer(400 if errors else 200, text.encode())
            return self._answer(400 if errors else 200, {"errors": errors, "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or USER}/{wanted['name']}"
            if not name.startswith(f"{USER}/"):
                return self._answer(403, {"error": f"You don't have the rights to create a model under {name.split('/')[0]}"})
            self.server.private.setdefault(name, wanted.get("private") is True or wanted.get("visibility") == "private")
            is_new = name not in self.server.repos
            self.server.repos.setdefault(name, {})
            return self._answer(200 if is_new else 409, {"url": f"{self.server.url}/{name}"})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self._answer(200, {"files": files})
        if "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.repos[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self._answer(
                200, {"success": True, "commitUrl": f"{self.server.url}/{name}/commit/{_COMMIT}", "commitOid": _COMMIT}
            )
        return self._answer(404, {"error": "not of the stub"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].split("/")
        self.server.requests.append(f"{self.command} {self.path}")
        if parts[1] == "api" and parts[2] == "models":
            name = "/".join(parts[3:5])
            known = name in self.server.repos
            content = {"id": name, "sha": _COMMIT, "siblings": [{"rfilename": file} for file in self.server.repos.get(name, {})]}
            return self._answer(200 if known else 404, content, error="" if known else "RepoNotFound")
        name, revision, file = "/".join(parts[1:3]), parts[4], "/".join(parts[5:])
        if name not in self.server.repos:
            return self._answer(404, {"error": "Repository not found"}, error="RepoNotFound")
        if revision not in ("main", "v1", _COMMIT):
            return self._answer(404, {"error": "Invalid rev id"}, error="RevisionNotFound")
        if file not in self.server.repos[name]:
            return self._answer(404, {"error": "Entry not found"}, error="EntryNotFound")
        return self._answer(200, self.server.repos[name][file])

    def _answer(self, status: int, content: Any, error: str = "") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json")
        self.send_header("X-Repo-Commit", _COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


_COMMIT = "0123456789abcdef0123456789abcdef01234567"
