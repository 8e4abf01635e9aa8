"""A PostgreSQL of our own, when none is configured.

The quick start needs a database that can be streamed from (``wal_level=logical``), and asks nobody to install one: this
module makes a cluster with the programs of `postgres_programs`, starts it, and stops it again. What lies in the home
folder:

    walcast.lock         held (flock) by the process of ours that serves this home; its pid inside
    postgres/            the cluster, kept between runs; its log is postgres/server.log
    postgres.password    the superuser's password, mode 0600
    postgres.port        the last port, taken again while it is free, so that a pasted psql command goes on working
    programs-VERSION/    only where the wheel lies in a folder that PostgreSQL's user cannot enter: a copy of it

For root the cluster belongs to the system user ``walcast``, and the home is /var/lib/walcast unless another was asked
for. No folder that we did not create has its owner or mode changed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shlex
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from realtime_project.errors import (
    DataOfAnotherVersion,
    EmbeddedPostgresError,
    HomeInUse,
    HomeNotUsable,
    PasswordMissing,
    ProgramFailed,
)
from realtime_project.postgres_programs import ROOT_HOME, Account, find_programs, postgres_account, tail

SUPERUSER = "postgres"

# Small, because it shares the machine with whatever is being tried out, and with room for replicators and standbys.
# The WAL a slot may hold back is bounded: a slot that nobody reads must not fill the disk.
CLUSTER_SETTINGS = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_slot_wal_keep_size": "4GB",
    "shared_buffers": "32MB",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "log_checkpoints": "off",
}

START_LIMIT_S = 60
STOP_LIMIT_S = 5
LEFTOVER_LIMIT_S = 10
PORT_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running cluster, and how to reach it.

    ``dsn`` is a URL for libpq with user and password; ``psql`` a command line to paste into a shell; ``created`` says
    that this start made the cluster.
    """

    dsn: str
    psql: str
    port: int
    data_dir: Path
    version: str
    created: bool


class EmbeddedPostgres:
    """The cluster of one home folder; one process at a time may serve it.

    ``home`` is used as it is if ``explicit_home`` is true or the process is not root; root by default uses
    /var/lib/walcast, because the user that PostgreSQL needs there seldom reaches a project's folder.

    A lock on ``walcast.lock`` tells a home that is in use from one that was left behind: the kernel lets go of it when
    its process ends, however it ends. If such an end left the PostgreSQL running, `start` stops it and starts it again.
    Adopting it would be quicker by half a second, but then its settings and version would be those of yesterday;
    so every start is the same start, and nobody of ours can be using the old one.
    """

    def __init__(self, home: Path, *, explicit_home: bool = False) -> None:
        self.home = (home if explicit_home or os.geteuid() != 0 else ROOT_HOME).expanduser().resolve()
        self.data_dir = self.home / "postgres"
        self.password_file = self.home / "postgres.password"
        self._port_file = self.home / "postgres.port"
        self._log_file = self.data_dir / "server.log"
        self._account = Account()
        self._bin = Path()
        self._lock: IO[str] | None = None
        self._server: EmbeddedServer | None = None

    def start(self) -> EmbeddedServer:
        """Start the cluster, made first if there is none, and return how to reach it; blocks for about a second.

        A second call returns the same server while it runs. Raises an `EmbeddedPostgresError`, and then nothing of
        ours is left running or locked.
        """
        if self._server is not None:
            pid = self._postmaster_pid()
            if pid is not None and self._serves_this_folder(pid):
                return self._server
        try:
            self._server = self._start()
        except BaseException:
            self._server = None
            if self._lock is not None:  # a Ctrl-C may come once PostgreSQL runs: the folder is ours, so is the server
                with contextlib.suppress(EmbeddedPostgresError, OSError):
                    self._shut_down()
            self._release()
            raise
        return self._server

    def stop(self) -> None:
        """Shut the cluster down if this object started it; blocks, at most some ten seconds, and does not raise.

        A fast shutdown first. It waits for walsenders whose reader has gone astray, so after `STOP_LIMIT_S` an
        immediate one follows: nothing committed is lost, the next start replays the WAL.
        """
        if self._server is None:
            return
        self._server = None
        with contextlib.suppress(EmbeddedPostgresError, OSError):
            self._shut_down()
        self._release()

    # ---------------------------------------------------------------------------------------------- the way up

    def _start(self) -> EmbeddedServer:
        self._account = postgres_account()
        self._open_home()
        self._take_lock()
        programs = find_programs(self._account, self.home)
        self._bin = programs.folder
        created = self._ensure_cluster(programs.major)
        self._clear_leftovers()
        port = self._launch()
        url = f"postgresql://{SUPERUSER}:{self.password_file.read_text().strip()}@127.0.0.1:{port}/postgres"
        psql = "psql" if shutil.which("psql") else shlex.quote(str(self._bin / "psql"))
        return EmbeddedServer(
            dsn=url, psql=f"{psql} {url}", port=port, data_dir=self.data_dir, version=programs.version, created=created
        )

    def _open_home(self) -> None:
        """Create the home if it is missing, and see that PostgreSQL's user can get to it."""
        try:
            for folder in reversed([folder for folder in (self.home, *self.home.parents) if not folder.exists()]):
                folder.mkdir()
                folder.chmod(0o755)  # whatever the umask is; the secrets inside have modes of their own
        except OSError as error:
            raise HomeNotUsable(
                self.home, f"{error.filename} cannot be created ({error.strerror})", "name a folder in WALCAST_HOME"
            ) from error
        if (user := self._account.user) is None:
            return
        for folder in (*reversed(self.home.parents), self.home):
            if self._account.run("test", "-x", folder).returncode != 0:
                raise HomeNotUsable(
                    self.home,
                    f'PostgreSQL refuses to run as root, and the user "{user.pw_name}", whom it runs as, may not enter'
                    f" {folder}",
                    f"choose a home outside it (WALCAST_HOME={ROOT_HOME}), or let others pass through it: "
                    f"chmod o+x {shlex.quote(str(folder))}",
                )

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        path = self.home / "walcast.lock"
        try:
            lock = path.open("a+")
        except OSError as error:
            raise HomeNotUsable(
                self.home,
                f"{path} cannot be written ({error.strerror})",
                "run as the user it belongs to, or name another folder in WALCAST_HOME",
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            pid = lock.read().strip()
            lock.close()
            raise HomeInUse(self.home, int(pid) if pid.isdecimal() else None) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _ensure_cluster(self, major: str) -> bool:
        """Make the cluster if there is none; true if it was made."""
        if self.data_dir.exists():
            uid = self._account.uid
            if self.data_dir.stat().st_uid != uid:
                raise HomeNotUsable(
                    self.home,
                    f"{self.data_dir} belongs to another user (uid {self.data_dir.stat().st_uid}, wanted {uid})",
                    "run as that user, or name another folder in WALCAST_HOME",
                )
            version_file = self.data_dir / "PG_VERSION"
            found = version_file.read_text().strip() if version_file.exists() else "(no PG_VERSION in it)"
            if found != major:
                raise DataOfAnotherVersion(self.data_dir, found, major)
            if not self.password_file.exists():
                raise PasswordMissing(self.password_file, self.data_dir)
            return False
        if not self.password_file.exists():
            self._write_password()
        # Made under another name: a cluster that is there under its own is always complete.
        draft = self.home / "postgres.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        self._account.give(draft)
        settings = [f"--set={name}={value}" for name, value in CLUSTER_SETTINGS.items()]
        answer = self._account.run(
            self._bin / "initdb",
            f"--pgdata={draft}",
            f"--username={SUPERUSER}",
            f"--pwfile={self.password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
            *settings,
        )
        if answer.returncode != 0:
            raise ProgramFailed(
                "initdb", tail(answer.stdout), f"see that there is room for about 100 MB in {self.home}"
            )
        draft.rename(self.data_dir)
        return True

    def _write_password(self) -> None:
        draft = self.password_file.with_name(f"{self.password_file.name}.new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.token_hex(16)}\n")
        self._account.give(draft)  # initdb reads it
        draft.rename(self.password_file)

    def _clear_leftovers(self) -> None:
        """Deal with the postmaster.pid of a run that did not end well: stop its PostgreSQL, or see that it is gone."""
        pid = self._postmaster_pid()
        if pid is None:
            return
        if self._serves_this_folder(pid):
            self._shut_down()
        elif _is_alive(pid):
            # The number was given to another process meanwhile (after a reboot, say), and PostgreSQL would believe
            # that one to be its twin. With no such process it finds out by itself.
            (self.data_dir / "postmaster.pid").unlink()

    def _launch(self) -> int:
        """Run ``pg_ctl start`` and wait until connections are taken; the port.

        pg_ctl makes the server the leader of a session of its own, so a Ctrl-C in the terminal reaches us alone, and
        we shut it down in order.
        """
        port = _free_port(self._last_port())
        deadline = time.monotonic() + LEFTOVER_LIMIT_S
        attempts = 0
        while True:
            seen = self._log_file.stat().st_size if self._log_file.exists() else 0
            answer = self._account.run(
                self._bin / "pg_ctl",
                "start",
                "--wait",
                f"--timeout={START_LIMIT_S}",
                f"--pgdata={self.data_dir}",
                f"--log={self._log_file}",
                f"--options=-h 127.0.0.1 -p {port}",
            )
            if answer.returncode == 0:
                break
            said = self._log_since(seen)
            if "could not bind" in said and attempts < PORT_ATTEMPTS:
                attempts += 1  # somebody took it between our look and PostgreSQL's
                port = _free_port(None)
            elif "still in use" in said and time.monotonic() < deadline:
                time.sleep(0.2)  # children of a postmaster that was killed; they notice and go
            else:
                with contextlib.suppress(EmbeddedPostgresError, OSError):
                    self._shut_down()
                cure = f"what it says tells the cure; the whole log is {self._log_file}"
                raise ProgramFailed("pg_ctl start", tail(said or answer.stdout), cure)
        self._port_file.write_text(f"{port}\n")
        return port

    # ---------------------------------------------------------------------------------------------- the way down

    def _shut_down(self) -> None:
        pid = self._postmaster_pid()
        if pid is None or not self._serves_this_folder(pid):
            return
        for mode in ("fast", "immediate"):
            answer = self._account.run(
                self._bin / "pg_ctl",
                "stop",
                "--wait",
                f"--timeout={STOP_LIMIT_S}",
                f"--mode={mode}",
                f"--pgdata={self.data_dir}",
            )
            if answer.returncode == 0 or not _is_alive(pid):
                return
        raise ProgramFailed("pg_ctl stop", tail(answer.stdout), f"end the process {pid} by hand: kill -QUIT {pid}")

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    # ---------------------------------------------------------------------------------------------- small things

    def _postmaster_pid(self) -> int | None:
        try:
            first_line = (self.data_dir / "postmaster.pid").read_text().partition("\n")[0]
        except FileNotFoundError:
            return None
        return int(first_line) if first_line.isdecimal() else None

    def _serves_this_folder(self, pid: int) -> bool:
        """Tell whether ``pid`` is a PostgreSQL on our data folder: that is where it makes its home in the file system.

        Asked as the cluster's owner: in a container not even root may look at the processes of another user.
        """
        if sys.platform == "linux":
            return self._account.run("readlink", f"/proc/{pid}/cwd").stdout.strip() == str(self.data_dir)
        return (
            f"n{self.data_dir}"
            in self._account.run("lsof", "-a", "-p", str(pid), "-d", "cwd", "-Fn").stdout.splitlines()
        )

    def _last_port(self) -> int | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self._port_file.read_text())
        return None

    def _log_since(self, offset: int) -> str:
        with contextlib.suppress(FileNotFoundError), self._log_file.open(errors="replace") as log:
            log.seek(offset)
            return log.read()
        return ""


def _free_port(wish: int | None) -> int:
    """A TCP port of 127.0.0.1 that nobody listens on: ``wish`` if it is one."""
    for port in (wish, 0):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does: TIME_WAIT is free
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(errno.EADDRINUSE, "no free port on 127.0.0.1")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, but alive
    return True
