"""Phoenix's channel protocol: a frame in, a message out, and back.

Two serializers are spoken side by side, each socket choosing one with the query parameter ``vsn``: 1.0.0 writes
objects, 2.0.0 arrays.

Source: https://hexdocs.pm/phoenix/writing_a_channels_client.html
"""

from __future__ import annotations

import json
import re
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

PHOENIX_TOPIC: Final = "phoenix"
"""The topic of heartbeats: it belongs to the socket, nobody joins it."""

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


class Message(NamedTuple):
    """One message, its fields in the order of protocol 2.0.0.

    Nothing is promised about the types of what a client sent: refs are echoed, whatever they are. ``payload`` is bytes
    if it came in a binary push.
    """

    join_ref: Json
    ref: Json
    topic: Json
    event: Json
    payload: Json | bytes


class Serializer(Protocol):
    """One protocol version, both directions."""

    @property
    def vsn(self) -> str:
        """The version's name, as clients ask for it."""

    def decode(self, frame: str | bytes) -> Message:
        """Read one text (`str`) or binary (`bytes`) frame. Raises `InvalidFrame`, whatever the frame."""

    def encode(self, message: Message) -> bytes:
        """Write the text of one frame, JSON in UTF-8. The payload has to be JSON: `TypeError` if it is bytes."""

    def push(self, topic: str, event: str) -> tuple[bytes, bytes]:
        """What goes before and after the encoded payload of a push without refs: ``head + payload + tail`` is a frame.

        So a payload that is already encoded goes to every topic without being encoded again.
        """


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


def _write(value: object) -> bytes:
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
            return Message(value.get("join_ref"), value["ref"], value["topic"], value["event"], value["payload"])
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


class _ArraySerializer:
    """Version 2.0.0: arrays, and binary pushes from the client."""

    vsn = "2.0.0"

    def decode(self, frame: str | bytes) -> Message:
        if isinstance(frame, bytes):
            return _binary_push(frame)
        value = _read(frame)
        if not isinstance(value, list) or len(value) < 5:
            raise InvalidFrame("protocol 2.0.0 wants an array of five elements")
        if not all(type(field) in _EXACT for field in value[:3]):
            value = _read_again(frame)
        return Message(*value[:5])

    def encode(self, message: Message) -> bytes:
        return b"[%b]" % b",".join([_write(field) for field in message])

    def push(self, topic: str, event: str) -> tuple[bytes, bytes]:
        return b"[null,null,%b,%b," % (_write(topic), _write(event)), b"]"


def _binary_push(frame: bytes) -> Message:
    """Read kind 0: four lengths of a byte each, then join_ref, ref, topic and event in UTF-8, then the payload."""
    kind = frame[0] if frame else None

    def invalid(reason: str) -> NoReturn:
        raise InvalidFrame(reason, binary_kind=kind) from None

    if kind != 0:
        invalid("it is an empty binary frame" if kind is None else f"binary frames of kind {kind} are not read")
    if len(frame) < 5:
        invalid("the binary push ends in its lengths")
    fields: list[str] = []
    start = 5
    for length in frame[1:5]:
        end = start + length
        if end > len(frame):
            invalid("the binary push ends in its header")
        try:
            fields.append(frame[start:end].decode())
        except UnicodeDecodeError:
            invalid("the header of the binary push is not UTF-8")
        start = end
    join_ref, ref, topic, event = fields
    return Message(join_ref, ref, topic, event, frame[start:])


V1: Final[Serializer] = _ObjectSerializer()
V2: Final[Serializer] = _ArraySerializer()

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
