"""Bare sockets: what no client library would send, and every byte that comes back."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import NamedTuple, Self

LIMIT_S = 10.0

_TYPES = {0x0: "continuation", 0x1: "text", 0x2: "binary", 0x8: "close", 0x9: "ping", 0xA: "pong"}
_OPCODES = {name: opcode for opcode, name in _TYPES.items()}
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to an HTTP request: names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: str


class Frame(NamedTuple):
    """One websocket frame of the server's."""

    type: str
    fin: bool
    data: bytes

    @property
    def code(self) -> int | None:
        """A close frame's code."""
        return struct.unpack("!H", self.data[:2])[0] if len(self.data) >= 2 else None

    @property
    def reason(self) -> str:
        """A close frame's reason."""
        return self.data[2:].decode()


def upgrade_request(path: str, *headers: str) -> str:
    """A good websocket handshake; ``headers`` are whole lines."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {_KEY}",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""])


def masked(kind: str, data: bytes, *, fin: bool = True) -> bytes:
    """A client's frame, its mask all zeros, so that it can be read."""
    head = bytes([(0x80 if fin else 0) | _OPCODES[kind]])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    else:
        head += struct.pack("!BH", 0x80 | 126, len(data))
    return head + bytes(4) + data


class RawSocket:
    """A TCP connection to a server of 127.0.0.1. Waiting longer than ``limit_s`` for bytes raises `TimeoutError`."""

    def __init__(self, port: int, *, limit_s: float = LIMIT_S, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(limit_s)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self._socket.connect(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes | str) -> None:
        """Send these bytes (text: one byte a character)."""
        self._socket.sendall(data.encode("latin-1") if isinstance(data, str) else data)

    def response(self) -> Response:
        """Read an HTTP response: its head, and as much body as it announces."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._fill():
                raise EOFError(f"the connection ended within a response: {self._buffer!r}")
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", 0))
        while len(self._buffer) < size:
            if not self._fill():
                raise EOFError(f"the connection ended {size - len(self._buffer)} bytes before the end of the body")
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return Response(int(status_line.split(" ")[1]), headers, body.decode())

    def frame(self) -> Frame | None:
        """Read one frame; `None` if the connection has ended."""
        head = self._take(2)
        if head is None:
            return None
        kind, length = _TYPES[head[0] & 0x0F], head[1]
        if length > 125:
            extended = self._take(2 if length == 126 else 8)
            if extended is None:
                return None
            length = int.from_bytes(extended, "big")
        data = self._take(length)
        return None if data is None else Frame(kind, bool(head[0] & 0x80), data)

    @property
    def rest(self) -> bytes:
        """What has been read and is no whole frame yet."""
        return self._buffer

    def tcp_state(self) -> int:
        """The kernel's view of the connection: 1 is established (``TCP_ESTABLISHED`` of linux/tcp_states.h)."""
        return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]

    def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            if not self._fill():
                return None
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _fill(self) -> bool:
        try:
            data = self._socket.recv(65536)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)
