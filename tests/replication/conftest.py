"""What tests of the catalogue's SQL have in common: a connection, a slot's name, a role that may do little."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from tests.replication.connections import PASSWORD, Connection, name_of
from tests.servers import PostgresCluster


@pytest.fixture
async def conn(database: str) -> AsyncIterator[Connection]:
    """An ordinary connection to the database, in autocommit mode."""
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def slot_name(database: str) -> str:
    """As unique as the database: slots are one name space for the whole server."""
    return name_of(database)


@pytest.fixture
def role(postgres: PostgresCluster) -> Iterator[str]:
    """A role that may log in, and no more."""
    name = "ordinary"
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), PASSWORD))
        yield name
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
