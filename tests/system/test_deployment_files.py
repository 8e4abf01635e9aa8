"""The example files for systemd, Compose and Kubernetes: tools that know their forms take them, and so does Walcast."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from compose_spec import PyOptions
from psycopg.conninfo import conninfo_to_dict

from realtime_project.settings import env
from tests.servers import PostgresCluster, postgres_versions
from tests.system.corridor import execute
from tests.system.server import PROJECT

DEPLOY = PROJECT / ".deploy"
UNITS = ("walcast-replicator.service", "walcast@.service")


def compose_text() -> str:
    """The file with each ``${NAME:-default}`` as its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / "compose.yaml").read_text())


def compose() -> Any:
    """The file as Compose merges it."""
    return yaml.safe_load(compose_text())


def manifests() -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def manifest(kind: str, name: str) -> Any:
    (found,) = [item for item in manifests() if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def names_of_settings() -> set[str]:
    """What `settings.py` has asked the environment for, and the same from files."""
    return env.texts.asked | {f"{name}_FILE" for name in env.texts.asked}


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed; on Debian: apt-get install systemd")
    for name in UNITS:
        # It looks for the programs as well, and these are not in /opt.
        text = (DEPLOY / name).read_text().replace("/opt/walcast/bin", str(Path(sys.executable).parent))
        (tmp_path / name).write_text(text)
    instance = tmp_path / "walcast@4000.service"
    instance.write_text((tmp_path / "walcast@.service").read_text())

    done = subprocess.run(
        [analyze, "verify", tmp_path / UNITS[0], instance], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_not_root_and_comes_back_after_a_crash(name: str) -> None:
    lines = (DEPLOY / name).read_text().splitlines()

    assert {"User=walcast", "Restart=on-failure", "NoNewPrivileges=yes", "ProtectSystem=strict"} <= set(lines)


def test_the_example_of_an_environment_names_settings_that_there_are() -> None:
    lines = (DEPLOY / "walcast.env.example").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}

    assert names - names_of_settings() == set()


def test_compose_takes_its_file() -> None:
    options = PyOptions()
    options.apply_merge = True

    services = options.from_yaml(compose_text()).service_names()

    assert sorted(services) == [
        "caddy", "daphne-1", "daphne-2", "migrate", "postgres", "replicator", "standby", "valkey",
    ]  # fmt: skip


def test_compose_names_settings_that_there_are_and_secrets_only_as_files() -> None:
    services = compose()["services"]
    names = {name for service in ("replicator", "daphne-1", "migrate") for name in services[service]["environment"]}

    assert names - names_of_settings() == set()
    assert {name for name in names if re.search("SECRET|PASSWORD|_URL", name)} - {"REDIS_URL"} == {
        "DB_PASSWORD_FILE", "JWT_SECRET_FILE", "DJANGO_SECRET_KEY_FILE", "DJANGO_DATABASE_URL_FILE",
    }  # fmt: skip


def test_compose_has_files_for_what_it_mounts(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "make-secrets", tmp_path)
    subprocess.run([tmp_path / "make-secrets"], check=True)
    subprocess.run([tmp_path / "make-secrets"], check=True)  # what is there stays
    file = compose()
    mounted = [v for service in file["services"].values() for v in service.get("volumes", []) if v.startswith("./")]

    assert [path for path in mounted if not (DEPLOY / path.split(":")[0]).exists()] == []
    assert [s["file"] for s in file["secrets"].values() if not (tmp_path / s["file"]).read_text().strip()] == []
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    password = (tmp_path / "secrets/walcast_password").read_text().strip()
    assert f":{password}@" in (tmp_path / "secrets/django_database_url").read_text()


def test_compose_trusts_its_own_network_and_no_other() -> None:
    file = compose()
    (network,) = file["networks"]["walcast"]["ipam"]["config"]

    assert file["services"]["daphne-1"]["environment"]["TRUSTED_PROXIES"] == network["subnet"]
    assert {tuple(service["networks"]) for service in file["services"].values()} == {("walcast",)}


def test_the_database_of_compose_gets_a_role_that_may_replicate(postgres18: PostgresCluster, tmp_path: Path) -> None:
    parts = {name: str(value) for name, value in conninfo_to_dict(postgres18.create_database()).items()}
    (tmp_path / "walcast_password").write_text("it's a secret\n")
    script = (DEPLOY / "postgres-init.sh").read_text().replace("/run/secrets", str(tmp_path))
    env = {
        "PATH": f"{postgres_versions()[18]}:{os.environ['PATH']}",
        "PGHOST": parts["host"],
        "PGPORT": parts["port"],
        "PGPASSWORD": parts["password"],
        "POSTGRES_USER": parts["user"],
        "POSTGRES_DB": parts["dbname"],
    }
    try:
        subprocess.run(["sh", "-c", script], env=env, check=True, capture_output=True)

        with psycopg.connect(postgres18.dsn("walcast", user="walcast", password="it's a secret")) as connection:
            connection.execute("create table record()")  # the database is its own
            (row,) = connection.execute("select rolreplication, rolsuper from pg_roles where rolname = current_user")
        with psycopg.connect(postgres18.dsn(parts["dbname"])) as connection:
            publications = connection.execute("select pubname, puballtables from pg_publication").fetchall()
    finally:
        execute(postgres18.dsn(), "drop database if exists walcast", "drop role if exists walcast")
        postgres18.drop_database(postgres18.dsn(parts["dbname"]))

    assert row == (True, False)
    assert publications == [("supabase_realtime", False)]


def test_kubernetes_takes_the_manifests() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("kubernetes-validate"), "--strict", DEPLOY / "kubernetes.yaml"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_manifests_name_settings_that_there_are_and_secrets_that_they_mount() -> None:
    settings, kept = manifest("ConfigMap", "walcast")["data"], manifest("Secret", "walcast")["stringData"]
    files = [value for name, value in settings.items() if name.endswith("_FILE")]

    assert set(settings) - names_of_settings() == set()
    assert sorted(files) == sorted(f"/run/secrets/walcast/{name}" for name in kept)


def test_services_and_budgets_find_their_pods() -> None:
    pods = [item["spec"]["template"]["metadata"]["labels"] for item in manifests() if item["kind"] == "Deployment"]
    selectors = [item["spec"]["selector"] for item in manifests() if item["kind"] == "Service"]
    selectors += [item["spec"]["selector"]["matchLabels"] for item in manifests() if "PodDisruption" in item["kind"]]

    assert [selector for selector in selectors if selector not in pods] == []


def test_the_probes_ask_for_paths_that_there_are() -> None:
    from django.urls import resolve

    (container,) = manifest("Deployment", "walcast")["spec"]["template"]["spec"]["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}

    assert paths == {"startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready"}
    assert {resolve(path).func.__name__ for path in paths.values()} == {"live", "ready"}


def test_no_container_is_root_or_may_become_it() -> None:
    deployments = [item["spec"]["template"]["spec"] for item in manifests() if item["kind"] == "Deployment"]
    for spec in deployments:
        assert spec["securityContext"]["runAsNonRoot"]
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["readOnlyRootFilesystem"]


def test_versions_are_those_of_the_package() -> None:
    from realtime_project import __version__

    images = re.findall(r"image: walcast:(\S+)", (DEPLOY / "kubernetes.yaml").read_text())

    assert set(images) == {__version__}
