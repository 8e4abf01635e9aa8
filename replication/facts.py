"""What the catalogue adds to a relation of the stream: types taken apart, collations, the primary key, row security.

pgoutput names a column's type and no more. Who renders JSON or judges a filter needs to know what is inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class TypeFacts(NamedTuple):
    """A type, domains resolved to what they are made of.

    ``sql`` is how a cast writes it, without a type modifier. ``category`` is ``pg_type.typcategory``. ``element`` is
    that of an array and ``delimiter`` what stands between its elements; ``attributes`` are a composite's, ``labels`` an
    enum's, in their order.
    """

    name: str
    sql: str
    category: str
    delimiter: str = ","
    element: TypeFacts | None = None
    attributes: tuple[tuple[str, TypeFacts], ...] = ()
    labels: tuple[str, ...] = ()
    is_built_in: bool = True
    """Part of PostgreSQL: a type of that name means what the documentation says, and no extension's type."""


class Collation(NamedTuple):
    """How texts of a column compare. ``sql`` names it after COLLATE; it is empty for the database's own.

    ``orders_bytes``: by the bytes of UTF-8. ``lowers_ascii``: lower() knows ASCII letters only. ``is_deterministic``:
    texts are equal when their bytes are. ``is_utf8`` is the database's encoding.
    """

    sql: str = ""
    orders_bytes: bool = False
    lowers_ascii: bool = False
    is_deterministic: bool = False
    is_utf8: bool = False


UNKNOWN_COLLATION = Collation()
"""Of a column that is no longer there: nothing is taken for granted."""


class ColumnFacts(NamedTuple):
    """``declared`` is the ``typname`` of the column's type, of a domain its own name."""

    declared: str
    type: TypeFacts
    collation: Collation | None = None


class TableFacts(NamedTuple):
    """``columns`` go with those of the relation. ``row_security`` is `None` for a table that is no longer there."""

    columns: tuple[ColumnFacts, ...]
    primary_key: tuple[str, ...] = ()
    row_security: bool | None = None


def unpack_table_facts(packed: Sequence[Any]) -> TableFacts:
    """The facts from the lists or tuples that an envelope carries."""
    columns, primary_key, row_security = packed
    return TableFacts(
        tuple(
            ColumnFacts(declared, _unpack_type(kind), Collation(*collation) if collation is not None else None)
            for declared, kind, collation in columns
        ),
        tuple(primary_key),
        row_security,
    )


def _unpack_type(packed: Sequence[Any]) -> TypeFacts:
    name, sql, category, delimiter, element, attributes, labels, is_built_in = packed
    return TypeFacts(
        name,
        sql,
        category,
        delimiter,
        _unpack_type(element) if element is not None else None,
        tuple((attribute, _unpack_type(kind)) for attribute, kind in attributes),
        tuple(labels),
        is_built_in,
    )


_ARRAY_DELIMITER = {"_box": ";"}


def guessed_facts(type_name: str) -> TypeFacts:
    """What a type's name alone tells: enough for the built-in ones, before anybody has asked the catalogue."""
    if type_name.startswith("_") and type_name[1:]:
        element = guessed_facts(type_name[1:])
        return TypeFacts(type_name, "", "A", _ARRAY_DELIMITER.get(type_name, ","), element)
    return TypeFacts(type_name, "", "")
