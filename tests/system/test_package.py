"""The wheel: everything is in it, and a Django project that has never heard of ours streams its own models with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from psycopg.conninfo import conninfo_to_dict

from tests.servers import PostgresCluster, ValkeyServer, free_port
from tests.system.corridor import LegacyClient
from tests.system.server import PROJECT, ManagedProcess, http_status

README = (PROJECT / "README.md").read_text()
PACKAGES = ("realtime_project", "replication", "streaming")

SECRET = "a secret of the project that is long enough"

MODELS = """
from django.db import models


class Order(models.Model):
    item = models.CharField(max_length=50)
"""

URLS = """
from django.http import HttpResponse
from django.urls import include, path

urlpatterns = [
    path("", lambda request: HttpResponse("the shop's own page")),
    path("", include("realtime_project.urls")),
]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what a source archive has."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for name in (*PACKAGES, "templates"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", target, source, cwd=target)
    (built,) = target.glob("*.whl")
    return built


@dataclass(frozen=True)
class Project:
    """A project ``shop`` with an app ``orders``, in an environment where Walcast is installed from its wheel."""

    folder: Path
    python: Path

    def manage(self, *arguments: str) -> str:
        """What that command of its ``manage.py`` prints."""
        return run(self.python, "manage.py", *arguments, cwd=self.folder)

    def process(self, *arguments: str, port: int | None = None) -> ManagedProcess:
        """A program of its environment, ready when it streams; or, with a ``port``, when it serves the shop's page."""

        def ready(process: ManagedProcess) -> bool:
            return http_status(port) == 200 if port else " streaming " in process.log

        return ManagedProcess([self.python, *arguments], {"PYTHONPATH": ""}, ready, cwd=self.folder)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; what the wheel depends on is borrowed from the tests' own."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path that a .pth file names is searched, but its own .pth files are not read: our editable self stays outside.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    return python


@pytest.fixture(scope="module")
def project(
    python: Path, postgres18: PostgresCluster, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """The project, made by Django's own commands, and then what the README says."""
    folder, dsn = tmp_path_factory.mktemp("project"), postgres18.create_database()
    made = Project(folder, python)
    run(python, "-m", "django", "startproject", "shop", ".", cwd=folder)
    made.manage("startapp", "orders")
    (folder / "orders" / "models.py").write_text(MODELS)
    (folder / "shop" / "urls.py").write_text(URLS)
    (folder / "shop" / "asgi.py").write_text(snippet("shop.settings"))
    ours = snippet("INSTALLED_APPS +=").replace("redis://localhost:6379/0", valkey.url)
    ours = ours.replace('os.environ["JWT_SECRET"]', repr(SECRET)).replace(
        '"walcast",', '"walcast", "PORT": 0, "SECURE_CHANNELS": True,'
    )
    with (folder / "shop" / "settings.py").open("a") as settings:
        settings.write(f"\nINSTALLED_APPS += ['orders']\nALLOWED_HOSTS = ['*']\nDATABASES = {django(dsn)}\n{ours}")
    made.manage("makemigrations", "orders")
    made.manage("migrate")
    yield made
    postgres18.drop_database(dsn)


def snippet(holding: str) -> str:
    """The README's Python with that text in it."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if holding in block)


def django(dsn: str) -> dict[str, dict[str, str]]:
    """A connection string as ``DATABASES``."""
    parts = conninfo_to_dict(dsn)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    return {
        "default": {"ENGINE": "django.db.backends.postgresql"} | {ours: str(parts[key]) for ours, key in names.items()}
    }


def run(*argv: str | Path, cwd: Path) -> str:
    """The program's output; what it complains of is shown if it fails."""
    env = {name: value for name, value in os.environ.items() if name not in ("DJANGO_SETTINGS_MODULE", "PYTHONPATH")}
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{[str(part) for part in argv]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = [path for package in PACKAGES for path in (PROJECT / package).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(PROJECT)) for path in files if "__pycache__" not in path.parts}
    pages = {f"streaming/{path.relative_to(PROJECT)}" for path in (PROJECT / "templates").rglob("*") if path.is_file()}

    assert sorted((wanted | pages) - packed) == []


def test_the_version_is_that_of_the_package_and_has_a_place_in_the_changelog(wheel: Path) -> None:
    version = re.findall(r'__version__ = "(.*)"', (PROJECT / "realtime_project" / "__init__.py").read_text())[0]

    assert wheel.name.startswith(f"walcast-{version}-")
    assert f"\n## {version} " in (PROJECT / ".github" / "CHANGELOG.md").read_text()


def test_its_command_line_is_there(python: Path, tmp_path: Path) -> None:
    assert "run_replicator" in run(python.with_name("walcast"), "help", cwd=tmp_path)


async def test_a_project_in_one_process_hears_of_its_own_models(project: Project) -> None:
    with project.process("manage.py", "realtime", "--create-publication") as server:
        port = int(re.findall(r"http://localhost:(\d+)", server.log)[0])
        await hears_of_its_models(project, port)


async def test_a_project_with_several_processes_hears_of_its_own_models(project: Project) -> None:
    port = free_port()
    replicator = project.process("manage.py", "run_replicator", "--create-publication")
    endpoint = f"tcp:port={port}:interface=127.0.0.1:backlog=4096"
    daphne = project.process("-m", "daphne", "-e", endpoint, "shop.asgi:application", port=port)

    with replicator, daphne:
        await hears_of_its_models(project, port)
        assert http_status(port, "/socket/websocket") == 403


async def hears_of_its_models(project: Project, port: int) -> None:
    """A change that the project's own code makes arrives, to whoever has a token."""
    token = project.manage("token", "make", "--role", "authenticated").strip()
    url = f"ws://127.0.0.1:{port}/socket/websocket?apikey={quote(token)}"
    async with LegacyClient(url, "realtime:public:orders_order") as client:
        project.manage("shell", "-c", "from orders.models import Order; Order.objects.create(item='a lamp')")
        message = await client.receive()

    assert message["event"] == "INSERT"
    assert message["payload"]["record"]["item"] == "a lamp"


def test_a_name_that_the_project_uses_itself_is_told_of(project: Project) -> None:
    (project.folder / "shop" / "taken.py").write_text("from shop.settings import *\nREDIS_URL = 'redis://ours'\n")

    with pytest.raises(pytest.fail.Exception, match="settings have REDIS_URL, a name that Walcast needs for itself"):
        project.manage("check", "--settings", "shop.taken")


def test_a_key_that_walcast_does_not_know_is_told_of(project: Project) -> None:
    (project.folder / "shop" / "unknown.py").write_text("from shop.settings import *\nWALCAST['SLOTNAME'] = 'x'\n")

    with pytest.raises(pytest.fail.Exception, match="WALCAST has SLOTNAME, which Walcast does not know"):
        project.manage("check", "--settings", "shop.unknown")


def test_missing_tables_are_told_of_and_not_made_in_somebody_elses_database(project: Project) -> None:
    project.manage("migrate", "replication", "zero")

    try:
        with pytest.raises(pytest.fail.Exception, match="apply them first: manage\\.py migrate"):
            project.manage("realtime")
    finally:
        project.manage("migrate")


@pytest.mark.parametrize("lock", ["requirements.lock", ".ci/test.lock"])
def test_the_lock_pins_each_dependency_to_what_is_wanted_and_names_no_index(lock: str) -> None:
    text = (PROJECT / lock).read_text()
    pinned = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)}
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [*declared["dependencies"], *(declared["optional-dependencies"]["test"] if "test" in lock else [])]
    requirements = [Requirement(line) for line in wanted]
    wrong = [
        str(one) for one in requirements if not one.specifier.contains(pinned.get(canonicalize_name(one.name), "0"))
    ]

    assert wrong == [], "the lock is not up to date; run: .ci/lock"
    assert "://" not in text
    assert text.count("==") <= text.count("--hash=sha256:")


def test_both_locks_pin_the_same_versions() -> None:
    one, other = (
        dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (PROJECT / lock).read_text(), re.M))
        for lock in ("requirements.lock", ".ci/test.lock")
    )

    assert {name: version for name, version in one.items() if other.get(name) != version} == {}


def test_the_bill_of_materials_lists_what_the_lock_does(tmp_path: Path) -> None:
    env_path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run([PROJECT / ".ci" / "sbom", tmp_path / "sbom.json"], env={"PATH": env_path}, check=True)

    components = json.loads((tmp_path / "sbom.json").read_text())["components"]
    pinned = re.findall(r"^([\w.-]+)==", (PROJECT / "requirements.lock").read_text(), re.M)
    assert {component["name"] for component in components} == set(pinned)
