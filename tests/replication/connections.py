"""Ordinary connections to the servers of the tests, as their superuser and as somebody who may do less."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict

from tests.servers import PostgresCluster

Connection = AsyncConnection[Any]

PASSWORD = "only for tests"


def name_of(dsn: str) -> str:
    """The database that a connection string names."""
    return str(conninfo_to_dict(dsn)["dbname"])


@asynccontextmanager
async def connected_as(role: str, postgres: PostgresCluster, database_name: str) -> AsyncIterator[Connection]:
    """A connection of that role to that database, in autocommit mode."""
    dsn = postgres.dsn(database_name, user=role, password=PASSWORD)
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection
