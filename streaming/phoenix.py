"""Phoenix's channel protocol: a frame in, a message out, and back.

Two serializers are spoken side by side, each socket choosing one with the query parameter ``vsn``: 1.0.0 writes
objects, 2.0.0 arrays.

Source: https://hexdocs.pm/phoenix/writing_a_channels_client.html
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn, Protocol, TypeAlias

import orjson

from streaming.errors import InvalidFrame, UnsupportedVersion

PHX_JOIN: Final = "phx_join"
PHX_LEAVE: Final = "phx_leave"
PHX_REPLY: Final = "phx_reply"
PHX_CLOSE: Final = "phx_close"
PHX_ERROR: Final = "phx_error"
HEARTBEAT: Final = "heartbeat"
ACCESS_TOKEN: Final = "access_token"  # noqa: S105 (an event's name)

BROADCAST: Final = "broadcast"
PRESENCE: Final = "presence"
PRESENCE_STATE: Final = "presence_state"
PRESENCE_DIFF: Final = "presence_diff"
SYSTEM: Final = "system"
POSTGRES_CHANGES: Final = "postgres_changes"

PHOENIX_TOPIC: Final = "phoenix"
"""The topic of heartbeats: it belongs to the socket, nobody joins it."""

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


@dataclass(frozen=True, slots=True)
class Verbatim:
    """The payload of a broadcast as its client wrote it: JSON in UTF-8, to be handed on unread."""

    text: bytes


@dataclass(frozen=True, slots=True)
class UserBroadcast:
    """A broadcast whose event and payload are apart: what binary frames of kinds 3 and 4 carry.

    ``data`` is JSON text if ``is_json``, any bytes otherwise.
    """

    event: str
    data: bytes
    is_json: bool


class Message(NamedTuple):
    """One message, its fields in the order of protocol 2.0.0.

    Nothing is promised about the types of what a client sent: refs are echoed, whatever they are. ``payload`` is bytes
    if it came in a binary push. That of a client's event broadcast is `Verbatim`, or `UserBroadcast` if the frame was
    binary.
    """

    join_ref: Json
    ref: Json
    topic: Json
    event: Json
    payload: Json | bytes | Verbatim | UserBroadcast


class Serializer(Protocol):
    """One protocol version, both directions."""

    @property
    def vsn(self) -> str:
        """The version's name, as clients ask for it."""

    def decode(self, frame: str | bytes) -> Message:
        """Read one text (`str`) or binary (`bytes`) frame. Raises `InvalidFrame`, whatever the frame."""

    def encode(self, message: Message) -> bytes:
        """Write the text of one frame, JSON in UTF-8. The payload has to be JSON or `Verbatim`: `TypeError` if not."""

    def push(self, topic: str, event: str) -> tuple[bytes, bytes]:
        """What goes before and after the encoded payload of a push without refs: ``head + payload + tail`` is a frame.

        So a payload that is already encoded goes to every topic without being encoded again.
        """

    def broadcast(self, topic: str, broadcast: Verbatim | UserBroadcast) -> tuple[bytes, bool] | None:
        """Write a broadcast, and tell whether it is a binary message; `None` if this version cannot carry it."""


# orjson reads everything nested up to 1,024 levels and writes up to this many. A message is repeated in part, so what
# could not be written is not read either.
_WRITABLE_LEVELS = 254

# Read exactly by orjson. A float may have been an integer beyond 64 bits, and lists and objects may hold one.
_EXACT = frozenset({str, int, bool, type(None)})


def _read(text: str) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # Without its cause: that one keeps the whole frame.
        raise InvalidFrame(f"it is not JSON ({error})") from None
    if text.count("[") + text.count("{") > _WRITABLE_LEVELS:
        try:
            orjson.dumps(value)
        except TypeError:
            raise InvalidFrame(f"it is nested more than {_WRITABLE_LEVELS} levels deep") from None
    return value


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else dict(reversed(pairs))


def _read_again(text: str) -> Any:
    """Read JSON that orjson has accepted: integers of any size stay exact, and of equal keys the first one counts."""
    return json.loads(text, object_pairs_hook=_first_wins)


_SCANNER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def _after(text: str, end: int) -> int:
    """Where the next token begins."""
    match = _SPACE.match(text, end)
    return end if match is None else match.end()


def _fifth(text: str, *, is_last: bool) -> Verbatim:
    """The fifth element of an array that orjson has accepted, as it is written there."""
    start = text.index("[") + 1
    for _ in range(4):
        _, end = _SCANNER.raw_decode(text, _after(text, start))
        start = _after(text, end) + 1  # behind the comma
    start = _after(text, start)
    end = text.rindex("]") if is_last else _SCANNER.raw_decode(text, start)[1]
    return Verbatim(text[start:end].rstrip(" \t\n\r").encode())


def _first_named(text: str, name: str) -> Verbatim:
    """The first value of that name in an object that orjson has accepted, as it is written there."""
    start = text.index("{") + 1
    while True:
        key, end = _SCANNER.raw_decode(text, _after(text, start))
        start = _after(text, _after(text, end) + 1)  # behind the colon
        _, end = _SCANNER.raw_decode(text, start)
        if key == name:
            return Verbatim(text[start:end].encode())
        start = _after(text, end) + 1


_MANY_DIGITS = re.compile(rb"[0-9]{16}")


def read_json(text: bytes) -> Any:
    """Read JSON in UTF-8 with integers of any size. Raises `ValueError`, which quotes nothing."""
    try:
        value = orjson.loads(text)
        return _read_again(text.decode()) if _MANY_DIGITS.search(text) else value
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None


def write_json(value: object) -> bytes:
    """Write what `read_json` has read. Raises `ValueError` if it is nested too deeply."""
    try:
        return _write(value)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("it is nested too deeply") from None


def _write(value: object) -> bytes:
    if type(value) is Verbatim:
        return value.text
    try:
        return orjson.dumps(value)
    except TypeError:
        # Of what `decode` lets through, orjson cannot write one thing: an integer beyond 64 bits.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _text(frame: str | bytes) -> str:
    if isinstance(frame, str):
        return frame
    try:
        return frame.decode()
    except UnicodeDecodeError as error:
        raise InvalidFrame(f"its bytes are not UTF-8 ({error.reason} at byte {error.start})") from None


class _ObjectSerializer:
    """Version 1.0.0: objects. The server's have exactly four keys: some clients break on any other."""

    vsn = "1.0.0"

    def decode(self, frame: str | bytes) -> Message:
        text = _text(frame)
        value = _read(text)
        if not isinstance(value, dict):
            raise InvalidFrame("protocol 1.0.0 wants an object")
        # What is echoed comes back as it came: numbers in full, and of equal keys the first, as the original takes it.
        if (
            type(value.get("ref")) not in _EXACT
            or type(value.get("topic")) not in _EXACT
            or type(value.get("join_ref")) not in _EXACT
            or text.count('"ref"') > 1
            or text.count('"topic"') > 1
        ):
            value = _read_again(text)
        try:
            payload = value["payload"]
            if value["event"] == BROADCAST:
                payload = _first_named(text, "payload")
            return Message(value.get("join_ref"), value["ref"], value["topic"], value["event"], payload)
        except KeyError as missing:
            raise InvalidFrame(f"protocol 1.0.0 wants the key {missing}") from None

    def encode(self, message: Message) -> bytes:
        _, ref, topic, event, payload = message
        return b'{"event":%b,"payload":%b,"ref":%b,"topic":%b}' % (
            _write(event),
            _write(payload),
            _write(ref),
            _write(topic),
        )

    def push(self, topic: str, event: str) -> tuple[bytes, bytes]:
        return b'{"event":%b,"payload":' % _write(event), b',"ref":null,"topic":%b}' % _write(topic)

    def broadcast(self, topic: str, broadcast: Verbatim | UserBroadcast) -> tuple[bytes, bool] | None:
        return _text_broadcast(self, topic, broadcast)


class _ArraySerializer:
    """Version 2.0.0: arrays; binary pushes from the client, and broadcasts both ways."""

    vsn = "2.0.0"

    def decode(self, frame: str | bytes) -> Message:
        if isinstance(frame, bytes):
            return _binary(frame)
        value = _read(frame)
        if not isinstance(value, list) or len(value) < 5:
            raise InvalidFrame("protocol 2.0.0 wants an array of five elements")
        if not all(type(field) in _EXACT for field in value[:3]):
            value = _read_again(frame)
        if value[3] == BROADCAST:
            value[4] = _fifth(frame, is_last=len(value) == 5)
        return Message(*value[:5])

    def encode(self, message: Message) -> bytes:
        return b"[%b]" % b",".join([_write(field) for field in message])

    def push(self, topic: str, event: str) -> tuple[bytes, bytes]:
        return b"[null,null,%b,%b," % (_write(topic), _write(event)), b"]"

    def broadcast(self, topic: str, broadcast: Verbatim | UserBroadcast) -> tuple[bytes, bool] | None:
        if isinstance(broadcast, UserBroadcast) and fits_header(topic, broadcast.event):
            return user_broadcast_frame(topic, broadcast), True
        return _text_broadcast(self, topic, broadcast)


class _TextArraySerializer(_ArraySerializer):
    """Version 2.0.0 for clients that take no binary frame of kind 4, as Phoenix's own."""

    vsn = "2.0.0, text alone"

    def broadcast(self, topic: str, broadcast: Verbatim | UserBroadcast) -> tuple[bytes, bool] | None:
        return _text_broadcast(self, topic, broadcast)


def _text_broadcast(
    serializer: Serializer, topic: str, broadcast: Verbatim | UserBroadcast
) -> tuple[bytes, bool] | None:
    head, tail = serializer.push(topic, BROADCAST)
    if isinstance(broadcast, Verbatim):
        return head + broadcast.text + tail, False
    return (head + broadcast_payload(broadcast) + tail, False) if broadcast.is_json else None


PUSH_KIND, USER_BROADCAST_PUSH_KIND, USER_BROADCAST_KIND = 0, 3, 4
_JSON_ENCODING, _RAW_ENCODING = 1, 0

LONGEST_FIELD = 255
"""Bytes of a field in the header of a binary frame: its length is one byte."""


def _binary(frame: bytes) -> Message:
    """Read a client's binary frame: kind, lengths of a byte each, the fields they measure in UTF-8, then the payload.

    Kind 0, a push: join_ref, ref, topic, event. Kind 3, a broadcast: join_ref, ref, topic, user event, metadata, and
    behind the lengths a byte that says how the payload is encoded. The metadata is JSON or nothing, and means nothing.
    """
    kind = frame[0] if frame else None

    def invalid(reason: str) -> NoReturn:
        raise InvalidFrame(reason, binary_kind=kind) from None

    if kind not in (PUSH_KIND, USER_BROADCAST_PUSH_KIND):
        invalid("it is an empty binary frame" if kind is None else f"binary frames of kind {kind} are not read")
    lengths_end = 5 if kind == PUSH_KIND else 6
    start = lengths_end if kind == PUSH_KIND else lengths_end + 1
    if len(frame) < start:
        invalid("the binary push ends in its lengths")
    fields: list[str] = []
    for length in frame[1:lengths_end]:
        end = start + length
        if end > len(frame):
            invalid("the binary push ends in its header")
        try:
            fields.append(frame[start:end].decode())
        except UnicodeDecodeError:
            invalid("the header of the binary push is not UTF-8")
        start = end
    if kind == PUSH_KIND:
        join_ref, ref, topic, event = fields
        return Message(join_ref, ref, topic, event, frame[start:])
    join_ref, ref, topic, event, metadata = fields
    is_json = frame[lengths_end] != _RAW_ENCODING
    try:
        if metadata:
            orjson.loads(metadata)
        if is_json:
            orjson.loads(frame[start:])
    except orjson.JSONDecodeError:
        invalid("the broadcast is not the JSON that it says it is")
    return Message(join_ref, ref, topic, BROADCAST, UserBroadcast(event, frame[start:], is_json))


def fits_header(*fields: str) -> bool:
    """Whether these fields can stand in the header of a binary frame."""
    return all(len(field.encode()) <= LONGEST_FIELD for field in fields)


def user_broadcast_frame(topic: str, broadcast: UserBroadcast) -> bytes:
    """Write kind 4, which carries a broadcast to clients of 2.0.0. Raises `ValueError` unless `fits_header`."""
    name, event = topic.encode(), broadcast.event.encode()
    encoding = _JSON_ENCODING if broadcast.is_json else _RAW_ENCODING
    lengths = bytes((USER_BROADCAST_KIND, len(name), len(event), 0, encoding))
    return b"".join((lengths, name, event, broadcast.data))


def broadcast_payload(broadcast: UserBroadcast) -> bytes:
    """The payload of the event broadcast that says in text what the binary frame says; its data has to be JSON."""
    return b'{"event":%b,"payload":%b,"type":"broadcast"}' % (_write(broadcast.event), broadcast.data)


V1: Final[Serializer] = _ObjectSerializer()
V2: Final[Serializer] = _ArraySerializer()
V2_TEXT: Final[Serializer] = _TextArraySerializer()
"""For broadcasts alone: everything else is that of `V2`."""

_SEMVER = re.compile(r"([12])\.0\.(?:0|[1-9][0-9]*)(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?", re.ASCII)


def serializer_for(vsn: str | None) -> Serializer:
    """The serializer a client asks for with ``vsn``: 1.0.x or 2.0.x, written in full; `None` means 1.0.0.

    A build suffix is allowed (2.0.0+x), a pre-release is not. Raises `UnsupportedVersion` for anything else.
    """
    if vsn is None:
        return V1
    if not (match := _SEMVER.fullmatch(vsn)):
        raise UnsupportedVersion(vsn)
    return V1 if match[1] == "1" else V2
