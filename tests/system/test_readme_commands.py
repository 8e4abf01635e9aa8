"""Every command of the README is run: here, or by the test or script that the table names."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from websockets.asyncio.client import connect

from streaming.tokens import sign
from tests.servers import PostgresCluster, postgres_versions
from tests.system.corridor import LIMIT_S, execute
from tests.system.server import PROJECT, RealtimeServer
from tests.system.test_readme import README, code

HERE = "tests/system/test_readme_commands.py::"
PACKAGE = "tests/system/test_package.py::"
DOCKER = "tests/system/test_deployment_docker.py::"
FILES = "tests/system/test_deployment_files.py::"
PROXIES = "tests/system/test_deployment_proxies.py::"
TOKENS = "tests/system/test_tokens.py::"
TAIL = "tests/system/test_tail.py::"
WORKERS = "tests/system/test_workers.py::"
DOCTOR = "tests/replication/test_doctor.py::"
OWN = HERE + "test_a_database_of_your_own_is_streamed_as_the_readme_says"
SYSTEMD = HERE + "test_the_files_for_systemd_are_put_where_the_units_look_for_them"

# A command as it stands there -> what runs it. What needs Docker's engine or a cluster is checked as far as it goes
# without: the image step by step, the files by tools that know their form.
RUN_BY = {
    "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python manage.py realtime": ".ci/first-steps",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest -n auto "
    "--dist loadfile": ".ci/run",
    "export DATABASE_URL=postgresql://walcast:secret@localhost:5432/app SLOT_NAME=walcast": OWN,
    'export JWT_SECRET=$(python3 -c "import secrets; print(secrets.token_urlsafe(48))")': OWN,
    ".venv/bin/python manage.py realtime": OWN,
    "pip install ./walcast": PACKAGE + "wheel",
    "python manage.py migrate": PACKAGE + "project",
    "python manage.py realtime --create-publication": PACKAGE + "test_a_project_in_one_process_hears_of_its_own_models",
    "python manage.py run_replicator": PACKAGE + "test_a_project_with_several_processes_hears_of_its_own_models",
    "daphne -e tcp:port=4000:interface=127.0.0.1:backlog=4096 shop.asgi:application": PACKAGE
    + "test_a_project_with_several_processes_hears_of_its_own_models",
    'psql "$(cat .walcast/dsn)" -c "INSERT INTO todos (task) VALUES (\'Hello from psql\')"': HERE
    + "test_psql_changes_the_demo",
    ".venv/bin/python manage.py check --deploy": "tests/system/test_checks_deploy.py::"
    + "test_the_example_of_an_environment_is_sound",
    "docker build -t walcast .": DOCKER + "test_each_step_of_the_dockerfile_works",
    "docker run -p 4000:4000 -v walcast:/var/lib/walcast -e DB_HOST=db.example.org -e DB_NAME=app -e DB_USER=walcast "
    "-e DB_PASSWORD=secret -e SLOT_NAME=walcast -e JWT_SECRET=... walcast": DOCKER
    + "test_every_option_of_the_originals_image_works_by_its_name",
    "export REDIS_URL=redis://localhost:6379/0": PROXIES + "installation",
    "manage.py run_replicator": "tests/system/corridor.py::replicator",
    "daphne -e tcp:port=4000:interface=0.0.0.0:backlog=4096 realtime_project.asgi:application": PROXIES
    + "installation",
    "daphne -e tcp:port=4001:interface=0.0.0.0:backlog=4096 realtime_project.asgi:application": PROXIES
    + "installation",
    "export HOST=127.0.0.1 TRUSTED_PROXIES=127.0.0.1 ALLOWED_HOSTS=realtime.example.org HTTPS_ONLY=true": PROXIES
    + "installation",
    "sudo useradd --system --home-dir /var/lib/walcast walcast": SYSTEMD,
    "sudo python3 -m venv /opt/walcast": SYSTEMD,
    "sudo /opt/walcast/bin/pip install --require-hashes --requirement requirements.lock": SYSTEMD,
    "sudo /opt/walcast/bin/pip install --no-deps .": SYSTEMD,
    "sudo install -d -m 750 -g walcast /etc/walcast /etc/walcast/secrets": SYSTEMD,
    "sudo install -m 640 -g walcast .deploy/walcast.env.example /etc/walcast/walcast.env": SYSTEMD,
    "openssl rand -base64 36 | sudo install -m 640 -g walcast /dev/stdin /etc/walcast/secrets/jwt_secret": SYSTEMD,
    "openssl rand -base64 36 | "
    "sudo install -m 640 -g walcast /dev/stdin /etc/walcast/secrets/django_secret_key": SYSTEMD,
    "sudo install -m 644 .deploy/walcast-replicator.service .deploy/walcast@.service /etc/systemd/system": SYSTEMD,
    "sudo systemctl daemon-reload": SYSTEMD,
    "sudo systemctl enable --now walcast-replicator walcast@4000 walcast@4001": SYSTEMD,
    ".deploy/make-secrets": FILES + "test_compose_has_files_for_what_it_mounts",
    "docker compose --file .deploy/compose.yaml up --build": FILES + "test_compose_takes_its_file",
    "kubectl create namespace walcast": FILES + "test_kubernetes_takes_the_manifests",
    "kubectl --namespace walcast apply --filename .deploy/kubernetes.yaml": FILES
    + "test_kubernetes_takes_the_manifests",
    ".venv/bin/python manage.py token secret >> .env": TOKENS
    + "test_a_new_secret_is_made_where_none_is_set_and_can_be_put_into_a_file",
    ".venv/bin/python manage.py token make --role authenticated --sub alice --claim level=5 --expires 1h": HERE
    + "test_a_token_is_made_and_checked",
    ".venv/bin/python manage.py token check eyJ…": HERE + "test_a_token_is_made_and_checked",
    "curl -i localhost:4000/api/broadcast/room:1/events/cursor -H 'Content-Type: application/json' "
    "-d '{\"x\": 1}'": HERE + "test_a_broadcast_by_http_is_accepted",
    "curl -i localhost:4000/api/broadcast -H 'Content-Type: application/json' "
    '-d \'{"messages": [{"topic": "room:1", "event": "cursor", "payload": {"x": 1}}]}\'': HERE
    + "test_a_broadcast_by_http_is_accepted",
    ".venv/bin/python manage.py tail public.todos": TAIL + "test_each_change_is_a_line_that_says_what_happened",
    ".venv/bin/python manage.py tail public.todos --json | jq .payload": TAIL
    + "test_json_lines_are_for_programs_and_hold_the_payload_and_the_position",
    ".venv/bin/python manage.py tail --current public.todos --filter done=is.true --event UPDATE": TAIL
    + "test_the_current_protocol_is_joined_with_its_bindings",
    ".venv/bin/python manage.py tail room:1 --broadcast --presence": TAIL
    + "test_what_clients_say_to_each_other_is_shown",
    ".venv/bin/python manage.py tail --url wss://example.org/socket --token - < token.txt": TAIL
    + "test_a_secured_server_wants_a_token_and_it_can_be_made_on_the_way",
    ".venv/bin/python manage.py createsuperuser": "tests/system/test_dashboard.py::make_user",
    "export REUSE_PORT=true REDIS_URL=redis://localhost:6379/0": WORKERS + "test_two_daphnes_share_a_port_by_hand",
    "manage.py run_replicator &": WORKERS + "test_two_daphnes_share_a_port_by_hand",
    "daphne -e tcp:port=4000:interface=0.0.0.0:backlog=4096 realtime_project.asgi:application &": WORKERS
    + "test_two_daphnes_share_a_port_by_hand",
    ".venv/bin/python manage.py doctor": DOCTOR
    + "test_doctor_tells_programs_and_people_and_its_exit_code_is_the_verdict",
    ".venv/bin/python manage.py doctor --fix": DOCTOR
    + "test_doctor_tells_programs_and_people_and_its_exit_code_is_the_verdict",
    ".venv/bin/python manage.py slot status": DOCTOR + "test_a_slot_is_created_shown_and_dropped_after_a_question",
    ".venv/bin/python manage.py slot drop walcast": DOCTOR
    + "test_a_slot_is_created_shown_and_dropped_after_a_question",
    ".venv/bin/python -m tests.benchmarks": "tests/benchmarks/test_benchmarks.py::"
    + "test_each_scenario_counts_every_message_of_every_client",
}


def commands() -> Iterator[str]:
    """Each command of the README, without comments, its lines joined: of ``sh`` blocks, and of indented ones."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    blocks += re.findall(r"(?m)^ {4}(\S.*)$", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    for block in blocks:
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if command := re.sub(r"(^|\s)#.*$", "", line).strip():
                yield command


def test_every_command_is_run_by_something() -> None:
    assert [command for command in commands() if command not in RUN_BY] == [], "say in RUN_BY what runs them"
    assert [command for command in RUN_BY if command not in set(commands())] == [], "no longer in the README"


@pytest.mark.parametrize("runner", sorted(set(RUN_BY.values())))
def test_what_runs_them_is_there(runner: str) -> None:
    file, _, name = runner.partition("::")

    assert (PROJECT / file).exists()
    assert not name or f"def {name}(" in (PROJECT / file).read_text()


def bash(script: str, cwd: Path, **env: str) -> str:
    """What a script prints."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(cwd)} | env
    argv = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_a_database_of_your_own_is_streamed_as_the_readme_says(
    postgres18: PostgresCluster, tmp_path: Path
) -> None:
    dsn = postgres18.create_database()
    sql = code("sql", holding="ALTER SYSTEM SET wal_level")
    statements = [text.strip() for text in re.sub(r"--.*", "", sql).split(";") if text.strip()]
    execute(dsn, *statements, "create table todos(id bigint primary key, task text)")
    try:
        exports, start = code("sh", holding="export DATABASE_URL").rsplit("\n", 2)[:2]
        parts = conninfo_to_dict(dsn)
        url = f"postgresql://walcast:secret@{parts['host']}:{parts['port']}/{parts['dbname']}"
        exports = exports.replace("postgresql://walcast:secret@localhost:5432/app", url)
        assert start == ".venv/bin/python manage.py realtime"
        exported = bash(f'{exports}\nprintf "%s\\n" "$DATABASE_URL" "$SLOT_NAME" "$JWT_SECRET"', tmp_path)
        named = dict(zip(("DATABASE_URL", "SLOT_NAME", "JWT_SECRET"), exported.splitlines(), strict=True))

        with RealtimeServer(named) as server:
            server.wait_for_log(" streaming ")
            token = sign({"role": "authenticated"}, named["JWT_SECRET"])
            async with connect(f"{server.ws_url}?apikey={token}") as client, asyncio.timeout(LIMIT_S):
                join = {"topic": "realtime:public:todos", "event": "phx_join", "payload": {}, "ref": "1"}
                await client.send(json.dumps(join))
                await client.recv()
                execute(dsn, "insert into todos values (1, 'as the README says')")
                message = json.loads(await client.recv())
            with psycopg.connect(dsn) as connection:
                look = code("sql", holding="FROM pg_replication_slots")
                rows = connection.execute(look.encode()).fetchall()
    finally:
        postgres18.drop_database(dsn)
        execute(postgres18.dsn(), "drop role walcast", "alter system reset wal_level")

    assert message["payload"]["record"]["task"] == "as the README says"
    assert [(name, active) for name, active, *_ in rows if name == "walcast"] == [("walcast", True)]


def test_psql_changes_the_demo(realtime_server: RealtimeServer, tmp_path: Path) -> None:
    (tmp_path / ".walcast").mkdir()
    shutil.copy(realtime_server.home / "dsn", tmp_path / ".walcast")
    psql = postgres_versions()[18] / "psql"

    printed = bash(code("sh", holding="psql"), tmp_path, PATH=f"{psql.parent}:{os.environ['PATH']}")

    assert "INSERT 0 1" in printed


def test_a_token_is_made_and_checked(tmp_path: Path) -> None:
    make, check = [line for line in code("sh", holding="token make").splitlines() if "token secret" not in line]
    python, env = "/".join((".venv", "bin", "python")), {"JWT_SECRET": "x" * 40, "WALCAST_HOME": str(tmp_path)}

    def run(line: str) -> str:
        return bash(line.replace(f"{python} manage.py", f"{sys.executable} {PROJECT}/manage.py"), tmp_path, **env)

    token = run(make).strip()
    checked = run(check.replace("eyJ…", token))

    assert "alice" in checked
    assert "level" in checked


def test_the_files_for_systemd_are_put_where_the_units_look_for_them(tmp_path: Path) -> None:
    script = code("sh", holding="sudo useradd")
    for path in ("/etc/", "/opt/"):
        script = script.replace(f" {path}", f" {tmp_path}{path}")
    (group,) = bash("id --group --name", tmp_path).split()
    script = script.replace("-g walcast", f"-g {group}")
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    # What needs the machine, or half a minute, is only written down: the same installation is tried with the image's.
    shims = 'sudo() { case $1 in install) "$@";; *) echo "$@";; esac; }\n'

    said = bash(f"{shims}cd {PROJECT}\n{script}", tmp_path)

    unit = (tmp_path / "etc/systemd/system/walcast@.service").read_text()
    (environment,) = re.findall(r"^EnvironmentFile=(.*)$", unit, re.MULTILINE)
    (program,) = re.findall(r"^ExecStart=(\S+)/bin/daphne ", unit, re.MULTILINE)
    assert (tmp_path / environment.lstrip("/")).read_text().count("/etc/walcast/secrets/") == 3
    secrets = {path.name: len(path.read_text().strip()) for path in (tmp_path / "etc/walcast/secrets").iterdir()}
    assert secrets == {"jwt_secret": 48, "django_secret_key": 48}
    assert f"python3 -m venv {tmp_path}{program}\n" in said
    started = said.splitlines()[-1].split()
    assert started[:3] == ["systemctl", "enable", "--now"]
    assert {f"{name.split('@')[0]}" for name in started[3:]} == {"walcast-replicator", "walcast"}


def test_a_broadcast_by_http_is_accepted(realtime_server: RealtimeServer, tmp_path: Path) -> None:
    posts = [command for command in commands() if command.startswith("curl ")]
    address = realtime_server.http_url.removeprefix("http://").rstrip("/")
    for post in posts:
        assert "HTTP/1.1 202" in bash(post.replace("localhost:4000", address), tmp_path)
    assert len(posts) == 2
