"""The image: its Dockerfile read by a linter and carried out step by step; the options of the original's image."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict
from websockets.asyncio.client import connect

from streaming.tokens import sign
from tests.system.corridor import LIMIT_S, execute
from tests.system.server import PROJECT, RealtimeServer

SECRET = "the secret of somebody who comes from the original"


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")

    done = subprocess.run([hadolint, PROJECT / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_each_step_of_the_dockerfile_works() -> None:
    script = PROJECT / "tests" / "system" / "check_dockerfile.sh"

    done = subprocess.run([script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

    assert done.returncode == 0, done.stdout


async def test_every_option_of_the_originals_image_works_by_its_name(database18: str, tmp_path: Path) -> None:
    execute(database18, "create table items(id bigint primary key)", "create publication mine for all tables")
    parts = {name: str(value) for name, value in conninfo_to_dict(database18).items()}
    (tmp_path / "configuration.json").write_text(
        json.dumps({"realtime": [{"relation": "*:items", "events": ["INSERT"]}], "webhooks": []})
    )
    options = {
        "DB_HOST": parts["host"],
        "DB_PORT": parts["port"],
        "DB_NAME": parts["dbname"],
        "DB_USER": parts["user"],
        "DB_PASSWORD": parts["password"],
        "DB_SSL": "true",
        "DB_IP_VERSION": "ipv4",
        "PUBLICATIONS": '["mine"]',
        "SLOT_NAME": "from_the_original",
        "MAX_REPLICATION_LAG_MB": "1000",
        "SECURE_CHANNELS": "true",
        "JWT_SECRET": SECRET,
        "JWT_CLAIM_VALIDATORS": '{"iss": "Issuer"}',
        "CONFIGURATION_FILE": str(tmp_path / "configuration.json"),
        "SESSION_SECRET_KEY_BASE": "it signs nothing here",
        "MIX_ENV": "prod",
    }

    with RealtimeServer(options) as server:
        server.wait_for_log(" streaming ")
        token = sign({"iss": "Issuer", "role": "authenticated"}, SECRET)
        async with connect(f"{server.ws_url}?apikey={token}") as client, asyncio.timeout(LIMIT_S):
            join = {"topic": "realtime:public:items", "event": "phx_join", "payload": {}, "ref": "1"}
            await client.send(json.dumps(join))
            await client.recv()
            execute(database18, "insert into items values (1)", "delete from items", "insert into items values (2)")
            first, second = json.loads(await client.recv()), json.loads(await client.recv())

    assert (first["event"], first["payload"]["record"]) == ("INSERT", {"id": "1"})
    assert (second["event"], second["payload"]["record"]) == ("INSERT", {"id": "2"})
