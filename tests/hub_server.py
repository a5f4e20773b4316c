"""A Hub on loopback: serves folders through the routes the real client asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos: dict[str, Path]
    requests: list[str]

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self._answer(body=True, wanted=wanted)

    def _answer(self, body: bool, wanted: dict[str, Any] | None = None) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.requests.append(f"{self.command} {path}")
        for name, folder in self.repos.items():
            kind, _, repo = name.partition("/")
            prefix = "" if kind == "models" else f"{kind}/"
            if path.startswith(f"api/{name}"):
                rest = path.removeprefix(f"api/{name}").strip("/").split("/")
                return self._json(self._api(folder, repo, rest, wanted), body)
            if path.startswith(f"{prefix}{repo}/resolve/"):
                _, _, file = path.removeprefix(f"{prefix}{repo}/resolve/").partition("/")
                return self._file(folder, folder / file, body)
        self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body)

    def _api(self, folder: Path, repo: str, rest: list[str], wanted: dict[str, Any] | None) -> Any:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        entries = [
            {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": _sha1(f)}
            for f in files
        ]
        if rest[0] == "tree":
            return entries
        if rest[0] == "paths-info":
            return [entry for entry in entries if wanted and entry["path"] in wanted["paths"]]
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]
        return {"id": repo, "sha": _commit(folder), "siblings": siblings, "private": False, "tags": [], "gated": False}

    def _file(self, folder: Path, file: Path, body: bool) -> None:
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _commit(folder)}, body)
        data = file.read_bytes()
        self._send(
            200, data, {"ETag": f'"{_sha1(file)}"', "X-Repo-Commit": _commit(folder), "Accept-Ranges": "bytes"}, body
        )

    def _json(self, value: Any, body: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

    def _send(self, code: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _sha1(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def _commit(folder: Path) -> str:
    return hashlib.sha1(b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())).hexdigest()


@contextmanager
def hub(repos: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve `{"models/ORG/NAME": folder, "datasets/ORG/NAME": folder}`; yields the address and the requests it got."""
    requests: list[str] = []
    handler = type("Hub", (_Hub,), {"repos": repos, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
