"""A standby of a `PostgresCluster`, which keeps copies of failover slots and can be promoted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.servers import PostgresCluster

STANDBY_SLOT = "standby"


class StandbyCluster(PostgresCluster):
    """Follows ``primary`` by streaming. PostgreSQL 17 or newer."""

    def __init__(self, bin_dir: Path, primary: PostgresCluster, settings: Mapping[str, str] | None = None) -> None:
        # The sync of slots needs to know a database, any of them.
        conninfo = primary.dsn(gssencmode="disable")
        follows = {
            "primary_conninfo": "'" + conninfo.replace("'", "''") + "'",
            "primary_slot_name": f"'{STANDBY_SLOT}'",
            "hot_standby_feedback": "on",
            "sync_replication_slots": "on",
            "wal_receiver_status_interval": "1s",
            "wal_retrieve_retry_interval": "100ms",
        }
        super().__init__(bin_dir, dict(settings or {}) | follows)
        self._primary, self._conninfo, self._lines = primary, conninfo, dict(settings or {}) | follows
        self._password = str(conninfo_to_dict(conninfo)["password"])

    def promote(self) -> None:
        """Make it a primary, and wait until it is one."""
        if self._run("pg_ctl", "promote", "-w") != 0:
            raise RuntimeError(f"the standby was not promoted:\n{self._output}\n{self.log}")

    def _make(self) -> None:
        with psycopg.connect(self._primary.dsn(), autocommit=True) as connection:
            connection.execute("select pg_create_physical_replication_slot(%s, true)", [STANDBY_SLOT])
        if self._run("pg_basebackup", "-d", self._conninfo, "-c", "fast", "-X", "stream") != 0:
            raise RuntimeError(f"pg_basebackup failed:\n{self._output}")
        with (self.data_dir / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = {value}\n" for name, value in self._lines.items())
        (self.data_dir / "standby.signal").touch()


def dsn_of_both(primary: PostgresCluster, standby: PostgresCluster, database: str) -> str:
    """A connection string to whichever of the two takes writes."""
    return make_conninfo(
        primary.dsn(database),
        host="127.0.0.1,127.0.0.1",
        port=f"{primary.port},{standby.port}",
        target_session_attrs="read-write",
    )
