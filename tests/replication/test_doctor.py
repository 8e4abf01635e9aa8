"""The doctor on servers with something wrong, each in its own way; and the commands that tell of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from replication.doctor import Finding, Subject, examine
from tests.servers import PostgresCluster, ValkeyServer, free_port, postgres_versions
from tests.system.corridor import execute, replicator
from tests.system.server import PROJECT

CANARY = "canary-3f7a91"
"""Stands in every secret; it must never be shown."""


@pytest.fixture(scope="module")
def small() -> Iterator[PostgresCluster]:
    """A server that is set up for anything but logical replication."""
    settings = {"wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1"}
    with PostgresCluster(postgres_versions()[18], settings) as cluster:
        yield cluster


def subject_of(dsn: str, **more: Any) -> Subject:
    name = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
    return Subject(dsn, ("pub",), name, **more)


async def findings(subject: Subject) -> dict[str, Finding]:
    found = await examine(subject)
    by_check = {finding.check: finding for finding in found}
    assert len(by_check) == len(found), "each check has one finding here"
    return by_check


def levels(found: dict[str, Finding]) -> dict[str, str]:
    """What is not well."""
    return {check: finding.level for check, finding in found.items() if finding.level != "ok"}


async def test_a_server_in_order_has_nothing_to_complain_of(database: str) -> None:
    execute(database, "create table items(id bigint primary key)", "create publication pub for table items")

    found = await findings(subject_of(database, max_lag_bytes=1 << 30))

    assert levels(found) == {}
    assert found["publication pub"].message == "1 table"


async def test_what_is_said_to_cure_does_cure(database18: str) -> None:
    execute(database18, "create table items(id bigint primary key)", "create table loose(name text)")
    subject = subject_of(database18, max_lag_bytes=1 << 30)
    found = await findings(subject)
    assert levels(found) == {"publication pub": "failure"}
    execute(database18, *found["publication pub"].sql)

    found = await findings(subject)
    assert levels(found) == {"replica identity": "warning"}
    assert "public.loose" in found["replica identity"].message
    execute(database18, *found["replica identity"].sql)

    assert levels(await findings(subject)) == {}


async def test_a_server_of_low_wal_level_without_room_is_told_of_with_the_settings(small: PostgresCluster) -> None:
    dsn = small.create_database()
    execute(dsn, "create publication pub for all tables", "select pg_create_physical_replication_slot('other')")
    found = await findings(subject_of(dsn, max_lag_bytes=1 << 30))

    assert levels(found) == {
        "wal_level": "failure",
        "max_replication_slots": "failure",
        "publication pub": "warning",
    }
    assert found["wal_level"].sql == ["ALTER SYSTEM SET wal_level = logical;"]
    assert found["max_replication_slots"].sql == ["ALTER SYSTEM SET max_replication_slots = 5;"]
    assert "other" in found["max_replication_slots"].cure
    assert "holds no table" in found["publication pub"].message


async def test_a_role_without_the_privilege_is_told_how_to_get_it(database: str, postgres: PostgresCluster) -> None:
    role = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    execute(database, f"create role {role} login password '{CANARY}'", "create table items(id bigint primary key)")
    execute(database, "create publication pub for table items")
    try:
        subject = replace(
            subject_of(database, max_lag_bytes=1), dsn=postgres.dsn(str(role), user=str(role), password=CANARY)
        )
        found = await findings(subject)
        assert levels(found) == {"privilege": "failure"}
        assert found["privilege"].sql == [f'ALTER ROLE "{role}" REPLICATION;']

        execute(database, *found["privilege"].sql)
        assert levels(await findings(subject)) == {}
    finally:
        execute(database, f"drop role {role}")


async def test_a_server_that_is_away_is_one_finding_that_shows_no_password() -> None:
    dsn = f"postgresql://walcast:{CANARY}@127.0.0.1:{free_port()}/app"
    (finding,) = await examine(Subject(dsn, ("pub",), "walcast"))

    assert (finding.check, finding.level) == ("connection", "failure")
    assert "dbname=app user=walcast" in finding.message
    assert CANARY not in str(finding)


async def test_djangos_tables_are_a_failure_unless_they_are_hidden(database18: str) -> None:
    execute(
        database18,
        "create table auth_user(id bigint primary key)",
        "create table items(id bigint primary key)",
        "create publication pub for table items, auth_user",
    )
    subject = subject_of(database18, max_lag_bytes=1 << 30)
    found = await findings(subject)
    assert levels(found) == {"private tables": "failure"}
    assert found["private tables"].sql == ['ALTER PUBLICATION "pub" DROP TABLE "public"."auth_user";']

    hidden = await findings(replace(subject, hidden_tables=frozenset({("public", "auth_user")})))
    assert levels(hidden) == {}
    assert "public.auth_user" in hidden["private tables"].message

    execute(database18, *found["private tables"].sql)
    assert levels(await findings(subject)) == {}


async def test_columns_that_sound_private_are_named(database: str) -> None:
    execute(
        database,
        "create table people(id bigint primary key, name text, password text)",
        "create publication pub for table people",
    )
    found = await findings(subject_of(database, max_lag_bytes=1 << 30))
    assert levels(found) == {"private tables": "warning"}
    assert "public.people.password" in found["private tables"].message


async def test_a_column_that_is_not_published_is_not_named(database18: str) -> None:
    execute(
        database18,
        "create table people(id bigint primary key, name text, password text)",
        "create publication pub for table people (id, name)",
    )
    assert levels(await findings(subject_of(database18, max_lag_bytes=1 << 30))) == {}


async def test_row_security_and_events_that_are_left_out_are_warned_of(database18: str) -> None:
    execute(
        database18,
        "create table items(id bigint primary key)",
        "alter table items enable row level security",
        "create publication pub for table items with (publish = 'insert')",
    )
    found = await findings(subject_of(database18, max_lag_bytes=1 << 30))
    assert levels(found) == {"row security": "warning", "publication pub": "warning"}
    assert "update, delete, truncate is not published" in found["publication pub"].message


async def test_a_slot_that_is_not_ours_to_read_is_a_failure(database18: str) -> None:
    execute(database18, "create table items(id bigint primary key)", "create publication pub for table items")
    subject = subject_of(database18, max_lag_bytes=1 << 30)
    assert subject.slot_name is not None
    execute(database18, f"select pg_create_physical_replication_slot('{subject.slot_name}')")
    try:
        found = await findings(subject)
        assert levels(found) == {"slot": "failure"}
        assert found["slot"].sql == [f"SELECT pg_drop_replication_slot('{subject.slot_name}');"]
    finally:
        execute(database18, f"select pg_drop_replication_slot('{subject.slot_name}')")


async def test_without_a_slot_name_and_without_a_bound_it_warns(database18: str) -> None:
    execute(database18, "create table items(id bigint primary key)", "create publication pub for table items")
    found = await findings(replace(subject_of(database18), slot_name=None))
    assert levels(found) == {"slot": "warning", "headroom": "warning"}


async def test_a_lag_near_the_limit_is_a_failure(database18: str) -> None:
    execute(database18, "create table items(id bigint primary key)", "create publication pub for table items")
    subject = subject_of(database18, max_lag_bytes=1 << 10)
    execute(
        database18,
        f"select pg_create_logical_replication_slot('{subject.slot_name}', 'pgoutput')",
        "select pg_logical_emit_message(false, 'fill', 'x')",
        "select pg_switch_wal()",
    )
    found = await findings(subject)
    assert levels(found) == {"headroom": "failure"}
    assert "MAX_REPLICATION_LAG_MB" in found["headroom"].message


async def test_a_transaction_that_has_been_open_for_long_is_told_of(
    database18: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replication.doctor.LONG_TRANSACTION_S", 0.05)
    execute(database18, "create table items(id bigint primary key)", "create publication pub for table items")
    async with await psycopg.AsyncConnection.connect(database18) as conn:
        await conn.execute("insert into items values (1)")
        await asyncio.sleep(0.1)
        found = await findings(subject_of(database18, max_lag_bytes=1 << 30))
    assert levels(found) == {"open transactions": "warning"}
    assert "pg_stat_activity" in found["open transactions"].cure


class Pooler:
    """Passes bytes on as a pooler does: with a cancel key of its own in place of the server's."""

    def __init__(self, dsn: str) -> None:
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
        self._server = str(parts["host"]), int(str(parts["port"]))
        self._dsn = dsn

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        async with listener:
            yield psycopg.conninfo.make_conninfo(self._dsn, port=listener.sockets[0].getsockname()[1])

    async def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        server_in, server_out = await asyncio.open_connection(*self._server)

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                target.write(re.sub(rb"(?s)K\0\0\0\x0c.{8}", b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02", data))
            target.close()

        await asyncio.gather(carry(client_in, server_out), carry(server_in, client_out), return_exceptions=True)


async def test_a_pooler_in_between_is_noticed(database18: str) -> None:
    execute(database18, "create table items(id bigint primary key)", "create publication pub for table items")
    async with Pooler(database18).listening() as dsn:
        found = await findings(subject_of(dsn, max_lag_bytes=1 << 30))
    assert levels(found) == {"no pooler": "failure"}


# The commands


@pytest.fixture
def env(database18: str, valkey: ValkeyServer, tmp_path: Path) -> dict[str, str]:
    execute(database18, "create table items(id bigint primary key)")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "VIRTUAL_ENV") if name in os.environ}
    name = str(psycopg.conninfo.conninfo_to_dict(database18)["dbname"])
    return kept | {
        "DATABASE_URL": database18,
        "REDIS_URL": valkey.url,
        "REDIS_PREFIX": name,
        "SLOT_NAME": name,
        "JWT_SECRET": f"{CANARY}-and-some-more-to-make-it-long-enough",
        "MAX_REPLICATION_LAG_MB": "1000",
        "WALCAST_HOME": str(tmp_path),
    }


def run(env: dict[str, str], *args: str, words: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(PROJECT / "manage.py"), *args]
    return subprocess.run(
        argv, env=env, cwd=PROJECT, input=words, capture_output=True, text=True, check=False, timeout=60
    )


def test_doctor_tells_programs_and_people_and_its_exit_code_is_the_verdict(
    env: dict[str, str], database18: str
) -> None:
    sick = run(env, "doctor", "--json")
    told = json.loads(sick.stdout)
    assert (sick.returncode, told["verdict"]) == (1, "failure")
    cure = run(env, "doctor", "--fix")
    assert cure.returncode == 1
    statements = [line for line in cure.stdout.splitlines() if line and not line.startswith("--")]
    assert statements == ['CREATE PUBLICATION "supabase_realtime" FOR TABLE public.items;']
    execute(database18, *statements)

    assert run(env, "doctor", "--strict").returncode == 1, "no replicator runs"
    with replicator(env):
        well = run(env, "doctor", "--strict")
    assert well.returncode == 0, well.stdout + well.stderr
    assert "all is well" in well.stdout
    assert re.search(r"replicator +\S+ \(pid \d+\) streams slot", well.stdout)
    for result in (sick, cure, well):
        assert "\x1b" not in result.stdout
        assert CANARY not in result.stdout + result.stderr


def test_doctor_names_settings_and_a_redis_that_is_away_and_no_secret(env: dict[str, str]) -> None:
    wrong = {"JWT_SECRET": CANARY, "REDIS_URL": f"redis://:{CANARY}@127.0.0.1:{free_port()}/0"}
    result = run(env | wrong, "doctor", "--json")

    found = {finding["check"]: finding["level"] for finding in json.loads(result.stdout)["findings"]}
    assert found["redis 1"] == found["channel layer"] == found["replicator"] == "failure"
    assert found["settings (streaming.W001)"] == "warning"
    assert CANARY not in result.stdout + result.stderr


def test_doctor_shows_colors_only_where_they_are_wanted(env: dict[str, str]) -> None:
    assert "\x1b[" in run(env | {"FORCE_COLOR": "1"}, "doctor").stdout
    assert "\x1b[3" not in run(env | {"FORCE_COLOR": "1", "NO_COLOR": "1"}, "doctor").stdout


def test_a_slot_is_created_shown_and_dropped_after_a_question(env: dict[str, str]) -> None:
    name = env["SLOT_NAME"]
    created = run(env, "slot", "create")
    assert created.returncode == 0, created.stderr
    assert f"slot {name} created" in created.stdout

    (slot,) = json.loads(run(env, "slot", "status", name, "--json").stdout)
    assert (slot["name"], slot["plugin"], slot["active"], slot["temporary"]) == (name, "pgoutput", False, False)
    assert re.search(rf"{name} +pgoutput .* ours", run(env, "slot", "status").stdout)

    asked = run(env, "slot", "drop", name, words="n\n")
    assert (asked.returncode, "drop it?" in asked.stdout, "nothing was dropped" in asked.stderr) == (1, True, True)
    assert run(env, "slot", "drop", name, words="y\n").returncode == 0
    again = run(env, "slot", "drop", name, "--yes")
    assert (again.returncode, "there is no replication slot" in again.stderr) == (1, True)


def test_a_slot_that_is_read_is_not_dropped_and_its_reader_is_named(env: dict[str, str], database18: str) -> None:
    execute(database18, "create publication supabase_realtime for all tables")
    name = env["SLOT_NAME"]
    with replicator(env):
        result = run(env, "slot", "drop", name, "--yes")
        with psycopg.connect(database18) as connection:
            query = sql.SQL("select active_pid from pg_replication_slots where slot_name = {}").format(name)
            row = connection.execute(query).fetchone()
    assert result.returncode == 1
    assert row is not None
    assert f"server process {row[0]}" in result.stderr


def test_a_bad_name_is_refused_with_what_would_be_right(env: dict[str, str]) -> None:
    result = run(env, "slot", "create", "no spaces")
    assert result.returncode == 1
    assert "1 to 63 characters out of a-z, 0-9 and _" in result.stderr
