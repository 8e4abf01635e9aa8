"""One event a line: as key=value, and as JSON."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from realtime_project.logs import JsonFormatter, KeyValueFormatter, facts_of
from replication.lsn import LSN
from tests.servers import free_port
from tests.system.corridor import replicator
from tests.system.server import ManagedProcess


def record(message: str, **facts: object) -> logging.LogRecord:
    made = logging.getLogger("replication.replicator").makeRecord(
        "replication.replicator", logging.INFO, "file.py", 1, message, (), None, extra=facts
    )
    made.created, made.msecs = 1795632735.25, 250.0
    return made


def test_a_line_has_moment_level_place_message_and_facts() -> None:
    line = KeyValueFormatter().format(record("published", lsn=LSN(0x1596218), changes=3, why='a "b"', nothing=None))
    assert (
        line == '2026-11-25T18:52:15.250Z INFO replication.replicator published lsn=0/1596218 changes=3 why="a \\"b\\""'
    )


def test_as_json_it_is_one_object_that_keeps_numbers() -> None:
    facts = {"lsn": LSN(0x1596218), "changes": 3, "lag_s": 0.5, "ok": True, "why": 'two\nlines and "quotes"', "x": None}
    line = JsonFormatter().format(record("published", **facts))

    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-11-25T18:52:15.250Z",
        "level": "INFO",
        "logger": "replication.replicator",
        "message": "published",
        "lsn": "0/1596218",
        "changes": 3,
        "lag_s": 0.5,
        "ok": True,
        "why": 'two\nlines and "quotes"',
    }


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_does_not_have_are_text(number: float) -> None:
    assert json.loads(JsonFormatter().format(record("x", number=number)))["number"] == str(number)


def test_a_fact_that_is_called_like_something_else_is_not_lost() -> None:
    told = json.loads(JsonFormatter().format(record("published", level="high", time=5)))
    assert (told["level"], told["level_"], told["time_"]) == ("INFO", "high", 5)


def test_a_traceback_stays_in_its_object() -> None:
    try:
        raise ValueError("told")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    told = json.loads(JsonFormatter().format(made))
    assert told["traceback"].startswith("Traceback")
    assert told["traceback"].endswith("ValueError: told")


def test_the_request_which_django_adds_is_no_fact() -> None:
    assert facts_of(record("Not Found", status_code=404, request="GET /?apikey=canary")) == {"status_code": "404"}


def test_a_process_logs_as_its_setting_says_and_shows_no_password(tmp_path: Path) -> None:
    env = {
        "DATABASE_URL": f"postgresql://walcast:canary@127.0.0.1:{free_port()}/app",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "SECURE_CHANNELS": "false",
        "WALCAST_HOME": str(tmp_path),
        "LOG_FORMAT": "json",
    }
    process = replicator(env)
    with ManagedProcess(process.argv, env, lambda process: "not streaming" in process.log) as running:
        lines = [json.loads(line) for line in running.log.splitlines()]
    told = next(line for line in lines if line["message"] == "not streaming")
    assert (told["level"], told["logger"]) == ("WARNING", "replication.replicator")
    assert "Connection refused" in told["reason"]
    assert "canary" not in json.dumps(lines)
