"""An HTTP server as somebody runs it who wants to be told: keeps what is posted, and answers as a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.servers import free_port, wait_until


@dataclass(frozen=True, slots=True)
class Received:
    """One request; the names of its headers in lower case, ``at`` of any steady clock."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)

    @property
    def key(self) -> str:
        """Its ``idempotency-key``."""
        return self.headers["idempotency-key"]

    @property
    def ids(self) -> list[int]:
        """The ``id`` of each change."""
        return [int((change.get("record") or change["old_record"])["id"]) for change in self.json["changes"]]


class Receiver:
    """Answers 204, but the next ones as ``answers`` says (status and headers); not at all until ``may_answer``."""

    def __init__(self) -> None:
        self.port = free_port()
        self.received: list[Received] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Received(self.path, headers, body))
                receiver.may_answer.wait()
                status, more = receiver.answers.pop(0) if receiver.answers else (204, {})
                try:
                    self.send_response(status)
                    for name, value in ({"content-length": "0"} | more).items():
                        self.send_header(name, value)
                    self.end_headers()
                except OSError:
                    self.close_connection = True  # who asked did not wait for it

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self.may_answer.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, path: str = "/hook") -> str:
        """An endpoint here."""
        return f"http://127.0.0.1:{self.port}{path}"

    def wait_for(self, count: int, path: str | None = None) -> list[Received]:
        """Wait for so many requests (to one path), and return these."""
        wait_until(lambda: len(self.of(path)) >= count, f"request number {count}", limit_s=20)
        return self.of(path)

    def of(self, path: str | None = None) -> list[Received]:
        """What has come so far (to one path)."""
        return [request for request in list(self.received) if path in (None, request.path)]
