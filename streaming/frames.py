"""Text to websocket frames, encoded once for everyone.

Server frames are not masked, so the same bytes are right for every socket.

Source: https://www.rfc-editor.org/rfc/rfc6455#section-5.2
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

_SHORT, _LONG = Struct("!BBH"), Struct("!BBQ")

TEXT, BINARY, CONTINUATION = 1, 2, 0
_FIN = 0x80

FRAGMENT_BYTES = 1 << 20
"""No frame is larger: the websocket package inside realtime-js 0.x to 2.8 gives up at 1 MiB a frame."""


def _header(opcode: int, size: int, *, fin: bool = True) -> bytes:
    first = opcode | (_FIN if fin else 0)
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return _SHORT.pack(first, 126, size)
    return _LONG.pack(first, 127, size)


_MOST = 2048
_TEXT_HEADERS = [_header(TEXT, size) for size in range(_MOST)]
"""Headers of the sizes that most messages have."""


def text_frames(messages: Sequence[bytes]) -> bytes:
    """The frames of some text messages (UTF-8), one behind the other."""
    return message_frames(messages, TEXT)


def message_frames(messages: Sequence[bytes], opcode: int) -> bytes:
    """The frames of some messages that are all `TEXT` or all `BINARY`, one behind the other."""
    if len(messages) == 1 and (size := len(messages[0])) <= FRAGMENT_BYTES:
        return _header(opcode, size) + messages[0]
    sizes = list(map(len, messages))
    if opcode == TEXT and max(sizes, default=0) < _MOST:
        parts = [b""] * (2 * len(messages))
        parts[::2] = map(_TEXT_HEADERS.__getitem__, sizes)
        parts[1::2] = messages
        return b"".join(parts)
    parts = []
    for message, size in zip(messages, sizes, strict=True):
        if size <= FRAGMENT_BYTES:
            parts.append(_header(opcode, size))
            parts.append(message)
        else:
            for start in range(0, size, FRAGMENT_BYTES):
                piece = message[start : start + FRAGMENT_BYTES]
                fin = start + FRAGMENT_BYTES >= size
                parts.append(_header(CONTINUATION if start else opcode, len(piece), fin=fin))
                parts.append(piece)
    return b"".join(parts)


class Parcel:
    """Messages on their way to several sockets: one by one for any ASGI server, as ready frames for the short way.

    ``opcode`` says what they all are, `TEXT` or `BINARY`.
    """

    frames: bytes
    """All messages as websocket frames, encoded at most once."""

    def __init__(self, messages: Sequence[bytes], opcode: int = TEXT) -> None:
        self.messages, self.opcode, self.count = messages, opcode, len(messages)
        self.size = sum(map(len, messages))

    def __getattr__(self, name: str) -> bytes:
        # Asked for what is not there yet. (A cached_property takes a lock until Python 3.12, and more time than this.)
        if name != "frames":
            raise AttributeError(name)
        self.frames = message_frames(self.messages, self.opcode)
        return self.frames
