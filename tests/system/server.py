"""Walcast's own programs as subprocesses: started, waited for, and always ended."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

from tests.servers import free_port, wait_until

PROJECT = Path(__file__).resolve().parents[2]

_START_LIMIT_S = 60
_STOP_LIMIT_S = 20

# Nothing else of this shell gets through: a DB_HOST or REDIS_URL of somebody's would change what is tested.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")


class ManagedProcess:
    """A subprocess with its output in a file, ready when ``ready(self)`` says so.

    ``env`` comes on top of a few inherited variables; it runs in the folder ``cwd``. Starting raises `RuntimeError` if
    the process ends before it is ready, and `TimeoutError` if it takes too long; both show its output.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        env: Mapping[str, str],
        ready: Callable[[ManagedProcess], bool] = lambda _: True,
        *,
        cwd: Path = PROJECT,
    ) -> None:
        self.cwd = cwd
        self.argv = [str(part) for part in argv]
        self.env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        self.env |= {"PYTHONUNBUFFERED": "1"} | dict(env)
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder = tempfile.TemporaryDirectory(prefix="walcast-process-")
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.folder.cleanup()

    def start(self) -> None:
        """Start it, and wait until it is ready. Output goes on in the same file."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv,
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for pytest, which then ends this in order
            )
        self._wait(lambda: self._ready(self), "being ready", _START_LIMIT_S)

    @property
    def pid(self) -> int:
        """Of the process as it runs, or ran last."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written so far, to stdout and stderr."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait_for_log(self, text: str, *, limit_s: float = 30, since: int = 0) -> None:
        """Wait until ``text`` stands in the log, after its first ``since`` characters."""
        self._wait(lambda: text in self.log[since:], f"{text!r} in the log", limit_s)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, limit_s: float = _STOP_LIMIT_S) -> int:
        """Wait until it has ended by itself, and return its code (negative: the signal that ended it)."""
        assert self._process is not None
        return self._process.wait(limit_s)

    def stop(self, limit_s: float = _STOP_LIMIT_S) -> int:
        """Interrupt it (SIGINT), kill it if that does not help in time, and return its code."""
        if self._process is None:
            return 0
        if self.running:
            self.send_signal(signal.SIGINT)
        try:
            return self.wait(limit_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it at once (SIGKILL), as a crash would."""
        self.send_signal(signal.SIGKILL)
        return self.wait()

    def restart(self) -> int:
        """Stop it in order and start it again; returns the code it stopped with."""
        code = self.stop()
        self.start()
        return code

    @property
    def _log_path(self) -> Path:
        return Path(self.folder.name) / "log"

    def _wait(self, happened: Callable[[], bool], what: str, limit_s: float) -> None:
        def happened_or_ended() -> bool:
            if happened():
                return True
            if self._process is not None and (code := self._process.poll()) is not None:
                raise RuntimeError(f"{self.argv} ended with {code} before {what}:\n{self.log}")
            return False

        try:
            wait_until(happened_or_ended, what, limit_s=limit_s)
        except TimeoutError as error:
            raise TimeoutError(f"{self.argv}: {error}; it said:\n{self.log}") from None


class RealtimeServer(ManagedProcess):
    """``manage.py realtime`` on its own data folder and port; with an embedded PostgreSQL unless ``env`` names one."""

    def __init__(self, env: Mapping[str, str] | None = None, args: Sequence[str] = ()) -> None:
        self.port = int((env or {}).get("PORT") or free_port())
        super().__init__(
            [sys.executable, PROJECT / "manage.py", "realtime", *args],
            {"PORT": str(self.port)} | dict(env or {}),
            lambda _: self._is_up(),
        )

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
            self._stop_orphaned_postgres()
        finally:
            self.folder.cleanup()

    def start(self) -> None:
        if "WALCAST_HOME" not in self.env:
            home = Path(self.folder.name) / "home"
            home.mkdir()
            # Run by root, PostgreSQL belongs to another user, who has to get there.
            Path(self.folder.name).chmod(0o711)
            home.chmod(0o711)
            self.env["WALCAST_HOME"] = str(home)
        super().start()

    @property
    def home(self) -> Path:
        """Its ``WALCAST_HOME``."""
        return Path(self.env["WALCAST_HOME"])

    @property
    def http_url(self) -> str:
        """Of its pages, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """Of its socket, in full."""
        return f"ws://127.0.0.1:{self.port}/socket/websocket"

    @property
    def dsn(self) -> str:
        """Of its embedded PostgreSQL, for libpq."""
        return (self.home / "dsn").read_text().strip()

    def _is_up(self) -> bool:
        # It listens before its database has been prepared.
        own_database = not any(name == "DATABASE_URL" or name.startswith("DB_") for name in self.env)
        return http_status(self.port) == 200 and (not own_database or (self.home / "dsn").exists())

    def _stop_orphaned_postgres(self) -> None:
        # Only a realtime that was killed leaves its PostgreSQL behind.
        for pid_file in self.home.glob("*/postmaster.pid"):
            with suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text().split("\n", 1)[0]), signal.SIGQUIT)
                wait_until(partial(_is_gone, pid_file), "the end of the embedded PostgreSQL")


def _is_gone(path: Path) -> bool:
    return not path.exists()


def http_status(port: int, path: str = "/") -> int | None:
    """The status of a GET to 127.0.0.1, or None while nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def children(pid: int) -> dict[int, str]:
    """The processes that a process has started: pid to name."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            before, _, rest = path.read_text().rpartition(")")
            if int(rest.split()[1]) == pid:
                found[int(before.split()[0])] = before.partition("(")[2]
    return found


def listeners(port: int) -> set[int]:
    """The processes that listen on a port of 127.0.0.1."""
    wanted = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    }
    found = set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if path.readlink().name.removeprefix("socket:[").rstrip("]") in wanted:
                found.add(int(path.parts[2]))
    return found
