"""Where public keys come from: a real HTTP server and real files, and a clock that does not stand still."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest

from streaming.errors import InvalidJwks
from streaming.jwks import MAX_BYTES, Jwks
from tests.servers import free_port
from tests.streaming.keys import jwks, public_jwk

FIRST, SECOND = jwks(public_jwk("ES256")), jwks(public_jwk("ES256"), public_jwk("EdDSA"))
LIMIT_S = 10


class Issuer:
    """An HTTP server that publishes keys, and counts who asks."""

    def __init__(self) -> None:
        self.body = FIRST.encode()
        self.status = "200 OK"
        self.requests: list[str] = []
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/jwks.json"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.may_answer.set()
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        self.asked.set()
        await self.may_answer.wait()
        head = f"HTTP/1.1 {self.status}\r\ncontent-length: {len(self.body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + self.body)
        writer.close()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer() as issuer:
        yield issuer


def names(source: Jwks) -> list[str | None]:
    return [key.kid for key in source.keys]


async def test_a_text_is_read_at_once_and_never_again() -> None:
    source = Jwks(f" {FIRST}")
    assert names(source) == ["ES256"]
    await source.renew(missing=True)
    assert names(source) == ["ES256"]


async def test_a_url_is_asked_when_a_key_is_needed(issuer: Issuer) -> None:
    source = Jwks(issuer.url)
    assert names(source) == []
    await source.renew(missing=True)
    assert names(source) == ["ES256"]
    assert issuer.requests[0].startswith("GET /jwks.json HTTP/1.1\r\n")


async def test_a_missing_key_is_fetched_again_but_not_at_any_rate(issuer: Issuer) -> None:
    source = Jwks(issuer.url, min_interval_s=3600)
    await source.renew(missing=True)
    issuer.body = SECOND.encode()
    for _ in range(100):
        await source.renew(missing=True)
    assert (len(issuer.requests), names(source)) == (1, ["ES256"])

    source = Jwks(issuer.url, min_interval_s=0)
    issuer.body = FIRST.encode()
    await source.renew(missing=True)
    issuer.body = SECOND.encode()
    await source.renew(missing=True)
    assert names(source) == ["ES256", "EdDSA"]


async def test_fresh_keys_are_not_fetched_again_while_none_is_missing(issuer: Issuer) -> None:
    source = Jwks(issuer.url, min_interval_s=0)
    await source.renew(missing=True)
    await source.renew(missing=False)
    assert len(issuer.requests) == 1


async def test_all_who_wait_wait_for_one_fetch(issuer: Issuer) -> None:
    source = Jwks(issuer.url)
    issuer.may_answer.clear()
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        waiting = [group.create_task(source.renew(missing=True)) for _ in range(20)]
        await issuer.asked.wait()
        assert not any(task.done() for task in waiting)
        issuer.may_answer.set()
    assert (len(issuer.requests), names(source)) == (1, ["ES256"])


async def test_who_gives_up_does_not_end_the_fetch_of_others(issuer: Issuer) -> None:
    source = Jwks(issuer.url)
    issuer.may_answer.clear()
    async with asyncio.timeout(LIMIT_S):
        hasty = asyncio.create_task(source.renew(missing=True))
        patient = asyncio.create_task(source.renew(missing=True))
        await issuer.asked.wait()
        hasty.cancel()
        issuer.may_answer.set()
        await patient
    assert hasty.cancelled()
    assert names(source) == ["ES256"]


async def test_old_keys_are_renewed_while_nobody_waits(issuer: Issuer) -> None:
    source = Jwks(issuer.url, min_interval_s=0, max_age_s=0)
    await source.renew(missing=True)
    issuer.body = SECOND.encode()
    issuer.may_answer.clear()
    issuer.asked.clear()
    async with asyncio.timeout(LIMIT_S):
        await source.renew(missing=False)
        await issuer.asked.wait()
        assert names(source) == ["ES256"]
        issuer.may_answer.set()
        await source.renew(missing=True)  # joins the fetch that is under way
    assert names(source) == ["ES256", "EdDSA"]
    assert len(issuer.requests) == 2


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        ("500 Oops", FIRST, "HTTP status 500"),
        ("302 Found", FIRST, "HTTP status 302"),
        ("200 OK", "<html>", "not JSON"),
        ("200 OK", '{"keys": []}', "none of its 0 keys"),
        ("200 OK", " " * (MAX_BYTES + 1), "more than"),
        ("not HTTP", "", "cannot be fetched"),
    ],
)
async def test_keys_that_cannot_be_had_leave_the_known_ones_and_a_warning(
    status: str, body: str, reason: str, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    source = Jwks(f"{issuer.url}?key=canary".replace("//", "//user:canary@"), min_interval_s=0)
    await source.renew(missing=True)
    issuer.status, issuer.body = status, body.encode()
    with caplog.at_level(logging.DEBUG, logger="streaming"):
        await source.renew(missing=True)
    assert names(source) == ["ES256"]
    record = caplog.records[-1]
    assert (record.levelname, record.getMessage()) == ("WARNING", "keys not fetched")
    assert reason in record.__dict__["reason"]
    assert record.__dict__["source"] == issuer.url
    assert "canary" not in str([logged.__dict__ for logged in caplog.records])


async def test_a_server_that_does_not_answer_is_given_up(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    source = Jwks(issuer.url, timeout_s=0.1)
    issuer.may_answer.clear()
    async with asyncio.timeout(LIMIT_S):
        await source.renew(missing=True)
    assert "no answer within" in caplog.records[0].__dict__["reason"]


async def test_a_server_that_is_not_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    source = Jwks(f"http://127.0.0.1:{free_port()}/")
    await source.renew(missing=True)
    assert "cannot be fetched" in caplog.records[0].__dict__["reason"]


async def test_a_file_is_read_at_once_and_again_for_a_missing_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(FIRST)
    source = Jwks(str(file), min_interval_s=0)
    assert names(source) == ["ES256"]
    file.write_text(SECOND)
    await source.renew(missing=False)
    assert names(source) == ["ES256"]
    await source.renew(missing=True)
    assert names(source) == ["ES256", "EdDSA"]
    file.unlink()
    await source.renew(missing=True)
    assert names(source) == ["ES256", "EdDSA"]
    assert caplog.records[-1].getMessage() == "keys not fetched"


@pytest.mark.parametrize(
    "source", ["/nowhere/jwks.json", "\0", "{", '{"keys": []}', "http://", "https:///x", "http://h:x"]
)
def test_a_source_that_can_never_work_is_an_error_at_once(source: str) -> None:
    with pytest.raises(InvalidJwks):
        Jwks(source)


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidJwks, match="UTF-8"):
        Jwks(str(tmp_path / "jwks.json"))
