"""Rows of plain texts as JSON, put together without being read: one alone, or many in a few strokes.

Most rows are such: every value is a text that JSON has as it is, and of an old row nothing was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from replication.pgoutput import plain_rows, plain_values
from streaming.values import PlainConvert

_SPECIAL = bytes(range(0x20)) + b'"\\'
"""What a JSON string cannot hold as it is."""


class PlainRows:
    """What the objects of one relation's rows have in common.

    ``between`` stands before each value, ``end`` behind the last one; ``converters`` are for some of the columns, the
    first of which is 1.
    """

    def __init__(
        self, between: Sequence[bytes], end: bytes, converters: Sequence[tuple[int, PlainConvert]] = ()
    ) -> None:
        self._between = [*between, end]
        self._width = len(self._between)
        self._parts = [b""] * (2 * self._width)
        self._parts[1::2] = self._between
        self._size = sum(map(len, self._between))
        self._converters = converters

    def one(self, data: bytes, head: bytes) -> tuple[bytes, list[bytes]] | None:
        """``head`` and the object of an INSERT or UPDATE, and the values as it shows them, behind something else.

        ``data`` is the pgoutput message. `None` if the row is not of plain texts.
        """
        values = plain_values(data)
        if values is None or len(values) != self._width or not _are_plain(values):
            return None
        for index, convert in self._converters:
            if (converted := convert(values[index])) is None:
                return None
            values[index] = converted
        values[0] = head
        parts = self._parts.copy()
        parts[::2] = values
        return b"".join(parts), values

    def many(self, rows: Sequence[bytes], heads: Sequence[bytes]) -> list[bytes] | None:
        """The same for each of some messages of one kind, in a third of the time; `None` if one is not plain."""
        values = self.split(rows)
        return None if values is None else self.join(values, heads)

    def split(self, rows: Sequence[bytes]) -> list[bytes] | None:
        """The values of some messages of one kind, each row's behind something else; `None` if one is not plain."""
        width = self._width
        values = plain_rows(rows)
        if values is None or len(values) != width * len(rows) or not _are_plain(values):
            return None
        for index, convert in self._converters:
            converted = [convert(value) for value in values[index::width]]
            if None in converted:
                return None
            values[index::width] = converted  # type: ignore[assignment]  # there is no None any more
        return values

    def join(self, values: list[bytes], heads: Sequence[bytes]) -> list[bytes]:
        """For each row of such values a head and the object. The heads are put into the values."""
        values[:: self._width] = heads
        sizes = map(sum, zip(*[map(len, values)] * self._width, strict=True))
        ends = list(accumulate(map(self._size.__add__, sizes)))
        parts = [b""] * (2 * len(values))
        parts[::2] = values
        parts[1::2] = self._between * len(heads)
        text = b"".join(parts)
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _are_plain(values: Sequence[bytes]) -> bool:
    # The comma keeps them apart: each has to be UTF-8 by itself.
    text = b",".join(values)
    if len(text.translate(None, _SPECIAL)) != len(text):
        return False
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return False
    return True
