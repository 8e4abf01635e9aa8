"""`manage.py tail` as somebody types it: what it prints, how it comes back, how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import psycopg
import pytest
from django.core.management import CommandError, call_command

from streaming.tokens import sign
from tests.servers import free_port
from tests.system.cutting_proxy import CuttingProxy
from tests.system.server import PROJECT, RealtimeServer

LIMIT_S = 30.0
SECRET = "correct horse battery staple, twice over"


@pytest.fixture(scope="module")
def server() -> Iterator[RealtimeServer]:
    with RealtimeServer({"RING_MAX_MB": "4"}) as server:
        server.wait_for_log("replicator streaming")
        yield server


@pytest.fixture(scope="module")
def secured_server() -> Iterator[RealtimeServer]:
    with RealtimeServer({"SECURE_CHANNELS": "true", "JWT_SECRET": SECRET}) as server:
        server.wait_for_log("replicator streaming")
        yield server


class Tail:
    """A running tail: ``out`` and ``words`` are the lines of its stdout and stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.words: list[str] = []
        self._changed = asyncio.Event()
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.out)),
            asyncio.create_task(self._read(process.stderr, self.words)),
        ]

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            lines.append(line.decode().rstrip("\n"))
            self._changed.set()
        asyncio.get_running_loop().call_soon(self._changed.set)

    async def until(self, lines: list[str], text: str, count: int = 1) -> None:
        """Wait until ``text`` stands in ``count`` of the lines."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while sum(text in line for line in lines) < count:
                    self._changed.clear()
                    assert not all(reader.done() for reader in self._readers), f"it ended; it said {self.words}"
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {text!r} within {LIMIT_S} s; it said {self.words} and {self.out[-5:]}") from None

    async def end(self) -> int:
        """Wait for its end, and return its code."""
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code


@asynccontextmanager
async def tail(*arguments: str, port: int, env: Mapping[str, str] | None = None) -> AsyncIterator[Tail]:
    """It, with these arguments."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROJECT / "manage.py"), "tail", *arguments, "--url", f"ws://127.0.0.1:{port}/socket"),
        cwd=PROJECT,
        env={"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"} | dict(env or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=16 * 2**20,
    )
    running = Tail(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await running.end()


def run(*arguments: str, port: int, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """It, run to its end."""
    return subprocess.run(
        [sys.executable, PROJECT / "manage.py", "tail", *arguments, "--url", f"ws://127.0.0.1:{port}/socket"],
        cwd=PROJECT,
        env={"PATH": "/usr/bin:/bin"} | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


async def execute(server: RealtimeServer, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def test_each_change_is_a_line_that_says_what_happened(server: RealtimeServer) -> None:
    async with tail("public.todos", "--count", "3", port=server.port) as running:
        await running.until(running.words, "joined")
        await execute(
            server,
            "INSERT INTO todos (task) VALUES (E'Read\\nthe log')",
            "UPDATE todos SET done = true WHERE task LIKE 'Read%'",
            "DELETE FROM todos WHERE task LIKE 'Read%'",
        )
        assert await running.end() == 0

    inserted, updated, deleted = running.out
    assert "INSERT    public.todos" in inserted
    assert "task=Read\\nthe log  done=f" in inserted
    assert "UPDATE    public.todos" in updated
    assert "done: f → t" in updated
    assert "DELETE    public.todos" in deleted
    assert all(" ms " in line or " s " in line for line in running.out)
    assert not any("\x1b" in line for line in running.out + running.words)
    assert any(line.startswith("go on from here with: --since ") for line in running.words)


async def test_colours_are_for_terminals_or_for_who_forces_them(server: RealtimeServer) -> None:
    arguments = ("public.todos", "--count", "1", "--force-color")
    async with (
        tail(*arguments, port=server.port) as coloured,
        tail(*arguments, port=server.port, env={"NO_COLOR": "1"}) as plain,
    ):
        for running in (coloured, plain):
            await running.until(running.words, "joined")
        await execute(server, "INSERT INTO todos (task) VALUES ('green')")
        assert [await coloured.end(), await plain.end()] == [0, 0]
    assert "\x1b[32mINSERT" in coloured.out[0]
    assert "\x1b[32mINSERT" not in plain.out[0]


async def test_json_lines_are_for_programs_and_hold_the_payload_and_the_position(server: RealtimeServer) -> None:
    async with tail("realtime:public:todos:task=eq.mine", "--json", "--count", "1", port=server.port) as running:
        await running.until(running.words, "joined")
        await execute(server, "INSERT INTO todos (task) VALUES ('not mine'), ('mine')")
        assert await running.end() == 0

    (line,) = running.out
    event = json.loads(line)
    assert list(event) == ["at", "event", "position", "payload"]
    assert event["event"] == event["payload"]["type"] == "INSERT"
    assert event["payload"]["record"]["task"] == "mine"
    assert event["position"] == event["payload"]["position"]


async def test_since_gives_what_came_after_a_position(server: RealtimeServer) -> None:
    async with tail("public.todos", "--json", "--count", "1", port=server.port) as running:
        await running.until(running.words, "joined")
        await execute(server, *(f"INSERT INTO todos (task) VALUES ('since {number}')" for number in range(3)))
        assert await running.end() == 0
    position = json.loads(running.out[0])["position"]

    async with tail("public.todos", "--json", "--count", "2", "--since", position, port=server.port) as running:
        assert await running.end() == 0
    events = [json.loads(line) for line in running.out]
    assert [event["payload"]["record"]["task"] for event in events] == ["since 1", "since 2"]
    assert [event["replayed"] for event in events] == [True, True]
    assert "resumed: 2 missed changes come now" in running.words[0]


async def test_after_a_cut_it_comes_back_and_nothing_is_missing(server: RealtimeServer) -> None:
    async with CuttingProxy(server.port) as proxy, tail("public.todos", "--json", port=proxy.port) as running:
        await running.until(running.words, "joined")
        await execute(server, "INSERT INTO todos (task) VALUES ('cut 0')")
        await running.until(running.out, "cut 0")
        proxy.cut()
        await running.until(running.words, "connection lost: the connection was cut; trying again in 1 s")
        await execute(server, "INSERT INTO todos (task) VALUES ('cut 1')", "INSERT INTO todos (task) VALUES ('cut 2')")
        await running.until(running.out, "cut 2")
        await execute(server, "INSERT INTO todos (task) VALUES ('cut 3')")
        await running.until(running.out, "cut 3")

    assert [json.loads(line)["payload"]["record"]["task"] for line in running.out] == [f"cut {n}" for n in range(4)]
    assert any("resumed: 2 missed changes come now" in line for line in running.words)


async def test_who_was_away_for_too_long_is_told(server: RealtimeServer) -> None:
    async with CuttingProxy(server.port) as proxy, tail("public.todos", "--json", port=proxy.port) as running:
        await running.until(running.words, "joined")
        proxy.is_closed = True
        proxy.cut()
        large = "INSERT INTO todos (task) SELECT repeat(md5(random()::text), 10000) FROM generate_series(1, 4)"
        await execute(server, *[large] * 6)  # about 7.5 MB through a ring of 4 MB
        proxy.is_closed = False
        await running.until(running.words, "changes are missing")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_ends_it_without_a_traceback(server: RealtimeServer, number: signal.Signals) -> None:
    async with tail(port=server.port) as running:
        await running.until(running.words, "joined")
        running.process.send_signal(number)
        assert await running.end() == 0

    assert running.words[0].startswith("realtime:* at ws://127.0.0.1:")
    assert running.words[-1].startswith("go on from here with: --since ")
    assert len(running.words) == 3


async def test_a_reader_that_has_seen_enough_ends_it_quietly(server: RealtimeServer) -> None:
    async with tail("public.todos", "--json", port=server.port) as running:
        await running.until(running.words, "joined")
        assert running.process.stdout is not None
        running.process.stdout._transport.close()  # type: ignore[attr-defined]
        await execute(server, "INSERT INTO todos (task) VALUES ('for nobody')")
        assert await running.end() == 0
    assert not any("Traceback" in line for line in running.words)


async def test_the_current_protocol_is_joined_with_its_bindings(server: RealtimeServer) -> None:
    arguments = ("--current", "public.todos", "--event", "UPDATE", "--filter", "task=eq.current", "--json")
    async with tail(*arguments, "--count", "2", port=server.port) as running:
        await running.until(running.words, "joined")
        await execute(
            server,
            "INSERT INTO todos (task) VALUES ('current')",
            "UPDATE todos SET done = true WHERE task = 'current'",
        )
        assert await running.end() == 0
    system, updated = sorted(map(json.loads, running.out), key=lambda event: str(event["event"] != "system"))
    assert system["payload"]["message"] == "Subscribed to PostgreSQL"
    assert updated["event"] == "UPDATE"
    assert updated["payload"]["data"]["record"]["done"] is True
    assert updated["position"] == updated["payload"]["data"]["position"]


async def test_a_secured_server_wants_a_token_and_it_can_be_made_on_the_way(secured_server: RealtimeServer) -> None:
    port = secured_server.port
    refused, wrong, cannot = await asyncio.gather(
        asyncio.to_thread(run, port=port),
        asyncio.to_thread(run, "--token", "not.a.token", port=port),
        asyncio.to_thread(run, "--mint", port=port),
    )
    assert [refused.returncode, wrong.returncode, cannot.returncode] == [1, 1, 1]
    assert "the server asks for a token, and none was given; pass one with --token, or" in refused.stderr
    assert "the server refused the token" in wrong.stderr
    assert "not.a.token" not in wrong.stderr
    assert "JWT_SECRET is not set here" in cannot.stderr

    token = sign({"role": "authenticated", "exp": int(time.time()) + 600}, SECRET)
    arguments = ("public.todos", "--json", "--count", "1")
    async with (
        tail(*arguments, "--mint", port=port, env={"JWT_SECRET": SECRET}) as minting,
        tail(*arguments, "--token", token, port=port) as bringing,
    ):
        for running in (minting, bringing):
            await running.until(running.words, "joined")
        await execute(secured_server, "INSERT INTO todos (task) VALUES ('secret')")
        assert [await minting.end(), await bringing.end()] == [0, 0]
    assert not any(token in line for line in bringing.out + bringing.words)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--filter", "id=eq.1"), "it says something of a --current before it, and there is none"),
        (("--current", "public."), "names no table; right would be public.todos"),
        (("--count", "0"), "is no number of events"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        call_command("tail", *arguments)


def test_where_nobody_listens_it_says_how_to_start_a_server() -> None:
    result = run(port=free_port())
    assert result.returncode == 1
    assert "no server answers at ws://127.0.0.1:" in result.stderr
    assert "start one with: manage.py realtime" in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_topic_that_is_none_is_refused_with_the_servers_word(server: RealtimeServer) -> None:
    result = await asyncio.to_thread(run, "x" * 20_000, port=server.port)
    assert result.returncode == 1
    assert "TopicTooLong" in result.stderr


async def test_what_clients_say_to_each_other_is_shown(server: RealtimeServer) -> None:
    async with tail("room:1", "--broadcast", "--presence", "--json", port=server.port) as running:
        await running.until(running.words, "joined")
        body = json.dumps({"x": 1}).encode()
        url = f"{server.http_url.rstrip('/')}/api/broadcast/room:1/events/cursor"
        post = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with await asyncio.to_thread(urllib.request.urlopen, post) as answer:
            assert answer.status == 202
        await running.until(running.out, '"cursor"')
    events = [json.loads(line) for line in running.out]
    assert [event["payload"]["payload"] for event in events if event["event"] == "broadcast"] == [{"x": 1}]
