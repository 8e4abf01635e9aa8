"""The doctor on servers with something wrong, each in its own way; and the commands that tell of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command

from replication.doctor import examine
from replication.findings import Finding, Subject
from replication.options import ReplicatorSettings
from streaming.roster import configured_roster
from tests.replication.corridor import MemoryStore, Recorder, streaming, value
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

    secured = await findings(subject_of(database18, max_lag_bytes=1 << 30, secured_for=["service_role"]))
    assert levels(secured) == {"publication pub": "warning"}
    assert "only service_role may hear of public.items" in secured["row security"].message


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
    monkeypatch.setattr("replication.diagnosis.LONG_TRANSACTION_S", 0.05)
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
        self._ways: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        def accept(client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
            self._ways.add(asyncio.create_task(self._carry(client_in, client_out)))

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as listener:
            yield psycopg.conninfo.make_conninfo(self._dsn, port=listener.sockets[0].getsockname()[1])
        await asyncio.gather(*self._ways)

    async def _carry(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        server_in, server_out = await asyncio.open_connection(*self._server)

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    target.write(re.sub(rb"(?s)K\0\0\0\x0c.{8}", b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02", data))
            target.close()
            with suppress(ConnectionError):
                await target.wait_closed()

        await asyncio.gather(carry(client_in, server_out), carry(server_in, client_out))


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


def run(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    """The command as a program."""
    argv = [sys.executable, str(PROJECT / "manage.py"), *args]
    return subprocess.run(argv, env=env, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60)


Call = Callable[..., "tuple[int, str]"]


@pytest.fixture
def call(env: dict[str, str], settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    """The command in this process, which has other settings then: exit code, and what it said."""
    settings.DATABASE_IS_CONFIGURED, settings.STREAM_DSN = True, env["DATABASE_URL"]
    settings.SLOT_NAME = settings.REDIS_PREFIX = env["SLOT_NAME"]
    settings.SECURE_CHANNELS, settings.JWT_SECRET = True, env["JWT_SECRET"]

    def call(*args: str, words: str = "") -> tuple[int, str]:
        configured_roster.cache_clear()
        monkeypatch.setattr("sys.stdin", StringIO(words))
        said = StringIO()
        try:
            call_command(*args, stdout=said)
        except CommandError as error:
            return 1, f"{said.getvalue()}{error}"
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
        return 0, said.getvalue()

    yield call
    configured_roster.cache_clear()


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


def test_doctor_names_settings_and_a_redis_that_is_away_and_no_secret(call: Call, settings: Any) -> None:
    settings.JWT_SECRET = CANARY
    settings.REDIS_URL = [f"redis://:{CANARY}@127.0.0.1:{free_port()}/0"]
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": settings.REDIS_URL},
        }
    }
    code, said = call("doctor", "--json")

    found = {finding["check"]: finding["level"] for finding in json.loads(said)["findings"]}
    assert code == 1
    assert found["redis 1"] == found["channel layer"] == found["replicator"] == "failure"
    assert found["settings (streaming.W001)"] == "warning"
    assert CANARY not in said


def test_doctor_shows_colors_only_where_they_are_wanted(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[32m" in call("doctor")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in call("doctor")[1]


def test_a_slot_is_created_shown_and_dropped_after_a_question(call: Call, env: dict[str, str]) -> None:
    name = env["SLOT_NAME"]
    code, said = call("slot", "create")
    assert (code, f"slot {name} created" in said) == (0, True)

    (slot,) = json.loads(call("slot", "status", name, "--json")[1])
    assert (slot["name"], slot["plugin"], slot["active"], slot["temporary"]) == (name, "pgoutput", False, False)
    assert re.search(rf"{name} +pgoutput .* ours", call("slot", "status")[1])

    code, said = call("slot", "drop", name, words="n\n")
    assert code == 1
    assert "what has not been read from it yet is lost" in said
    assert "nothing was dropped" in said
    assert call("slot", "drop", name)[0] == 1, "no answer is no"
    assert call("slot", "drop", name, words="y\n")[0] == 0
    code, said = call("slot", "drop", name, "--yes")
    assert (code, "there is no replication slot" in said) == (1, True)


async def test_a_slot_that_is_read_is_not_dropped_and_its_reader_is_named(
    call: Call, env: dict[str, str], database18: str
) -> None:
    execute(database18, "create publication pub for all tables")
    wanted = ReplicatorSettings(dsn=database18, publications=("pub",), slot_name=env["SLOT_NAME"])
    async with streaming(wanted, Recorder(), MemoryStore()):
        code, said = await asyncio.to_thread(call, "slot", "drop", env["SLOT_NAME"], "--yes")
        query = "select active_pid from pg_replication_slots where slot_name = %s"
        pid = await value(database18, query, env["SLOT_NAME"])
    assert code == 1
    assert f"server process {pid}" in said


def test_a_bad_name_is_refused_with_what_would_be_right(call: Call) -> None:
    code, said = call("slot", "create", "no spaces")
    assert (code, "1 to 63 characters out of a-z, 0-9 and _" in said) == (1, True)


def test_without_a_database_the_commands_say_what_to_do(call: Call, settings: Any, tmp_path: Path) -> None:
    settings.DATABASE_IS_CONFIGURED, settings.WALCAST_HOME = False, tmp_path
    for command in (("doctor",), ("slot", "status")):
        code, said = call(*command)
        assert (code, "set DATABASE_URL" in " ".join(said.split())) == (1, True)


def test_the_embedded_database_is_found_while_it_runs(
    call: Call, settings: Any, tmp_path: Path, database18: str
) -> None:
    settings.DATABASE_IS_CONFIGURED, settings.WALCAST_HOME, settings.SLOT_NAME = False, tmp_path, ""
    (tmp_path / "dsn").write_text(f"{database18}\n")
    found = {finding["check"]: finding for finding in json.loads(call("doctor", "--json")[1])["findings"]}
    assert found["connection"]["level"] == "ok"
    assert found["slot"]["message"].startswith("walcast")
