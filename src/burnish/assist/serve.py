"""The assistant over HTTP, on this machine only: a page to talk to, and `POST /talk`, which streams what each stage finds.

The body of `POST /talk` is a WAV file (`Content-Type: audio/wav`) or a text (`text/plain`); the answer is JSON, an event a
line, as each stage ends; the bytes of `wav` are base64. Requests of another site's page are refused, and those for another
host, as a page whose name was turned to this address would send them.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from burnish.assist.chain import Chain, Event
from burnish.data.media import Decoders
from burnish.data.sounds import FULL, Sound
from burnish.errors import UserError

#: Bytes of the largest request, seconds of the longest sound and of the longest wait for a client, characters of a text.
_MOST_BYTES, _MOST_SECONDS, _MOST_WAIT, _MOST_CHARACTERS = 8 * 2**20, 60, 20.0, 2_000
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_PAGE = Path(__file__).with_name("page.html")


class Server(ThreadingHTTPServer):
    """Answers on the loopback address; one request talks to the models at a time.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken, or is none.
    """

    daemon_threads = True

    def __init__(self, chain: Chain, port: int):
        self.chain, self.lock = chain, threading.Lock()
        if not 0 <= port < 2**16:
            raise UserError(f"--serve: a port is a number from 0 to {2**16 - 1}, not {port}.")
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(
                f"--serve: port {port} cannot be had ({error.strerror}). Take another, or 0 for any."
            ) from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away; anything else is a bug, which keeps its traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """Where its page is."""
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _MOST_WAIT
    server: Server  # type: ignore  (narrower than in the base)

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", _PAGE.read_bytes())
        elif self.path == "/health":
            self._send(HTTPStatus.OK, "application/json", b'{"ready": true}\n')
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there are GET / and POST /talk")

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        if self.path != "/talk":
            self._refuse(HTTPStatus.NOT_FOUND, "there are GET / and POST /talk")
            return
        size = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", size) or not 0 < int(size) <= _MOST_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"give a body of 1 to {_MOST_BYTES} bytes and its Content-Length"
            )
            return
        body = self.rfile.read(int(size))
        if len(body) < int(size):
            self._refuse(HTTPStatus.BAD_REQUEST, f"the body ended after {len(body)} of its {size} bytes")
            return
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/plain":
            said: Any = body.decode("utf-8", "replace")
            if len(said) > _MOST_CHARACTERS:
                self._refuse(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"give a text of at most {_MOST_CHARACTERS} characters"
                )
                return
        elif kind in ("audio/wav", "audio/x-wav", "audio/flac", "audio/ogg", "audio/mpeg"):
            said = body
        else:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type is to be audio/wav or text/plain")
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with self.server.lock:
            for event in self._events(said):
                self._chunk(json.dumps(shown(event), ensure_ascii=False).encode() + b"\n")
        self._chunk(b"")

    def _events(self, said: str | bytes) -> Iterator[Event]:
        chain = self.server.chain
        return chain.answers([said] if isinstance(said, str) else utterances(chain, Sound("the sound", said)))

    def _is_ours(self) -> bool:
        """Refuse what another site's page asks, or asks in the name of another host."""
        port = str(self.server.server_port)
        hosts = {*_HOSTS, *(f"{name}:{port}" for name in _HOSTS)}
        origin = self.headers.get("Origin")
        if self.headers.get("Host", "") not in hosts or (
            origin is not None and origin.removeprefix("http://") not in hosts
        ):
            self._refuse(HTTPStatus.FORBIDDEN, "this address answers its own page and programs of this machine only")
            return False
        return True

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True
        self._send(status, "application/json", json.dumps({"error": text}).encode() + b"\n")

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep nothing of what is asked."""


def utterances(chain: Chain, sound: Sound) -> Iterator[np.ndarray]:
    """Yield what is said in a sound, float32 samples of one utterance after another; nothing is one too.

    Raises:
        UserError: it cannot be decoded, or the assistant does not hear.
    """
    if not chain.hears:
        raise UserError("listen.model: the assistant has none, so it reads only. Give it text.")
    with Decoders(1, chain.rate, _MOST_SECONDS) as decoders:
        samples = decoders.decode(sound, "sound")
    if isinstance(samples, str):
        raise UserError(f"{sound.name} {samples}.")
    yield from chain.ear().utterances([samples.astype(np.float32) / FULL])


def shown(event: Event) -> dict[str, Any]:
    """Return an event as JSON has it."""
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in event.items()
    }
