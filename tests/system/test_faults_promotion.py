"""A primary dies under load, and its standby is promoted: positions hold up to there, and what is gone is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from tests.faults.ordeal import HEADER, Corridor, corridor_of, go_through
from tests.faults.standby import STANDBY_SLOT, StandbyCluster, dsn_of_both
from tests.servers import PostgresCluster, postgres_versions, wait_until


def _name_of(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


def _is_kept(standby: PostgresCluster, slot_name: str) -> bool:
    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
        row = connection.execute(
            "select synced and not temporary from pg_replication_slots where slot_name = %s", [slot_name]
        ).fetchone()
    return row == (True,)


@pytest.mark.parametrize("waits", [True, False], ids=["decoding waits for the standby", "decoding does not wait"])
async def test_a_promoted_standby_goes_on_and_who_has_heard_what_never_was_is_told(tmp_path: Path, waits: bool) -> None:
    programs = postgres_versions()[18]
    with PostgresCluster(programs) as primary, StandbyCluster(programs, primary) as standby:
        database = _name_of(primary.create_database())
        dsn = dsn_of_both(primary, standby, database)
        more = {"SLOT_FAILOVER": "true", "RING_MAX_AGE_S": "2"}
        with corridor_of(primary, dsn, tmp_path, more=more) as corridor:
            if waits:
                await corridor.execute(
                    f"alter system set synchronized_standby_slots = '{STANDBY_SLOT}'", "select pg_reload_conf()"
                )

            async def promotion(corridor: Corridor) -> None:
                await asyncio.to_thread(
                    wait_until, lambda: _is_kept(standby, corridor.slot_name), "the copy of the slot"
                )
                if not waits:
                    # The standby gets nothing more: what is committed from here on dies with the primary.
                    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
                        connection.execute("alter system set primary_conninfo = 'host=127.0.0.1 port=1'")
                        connection.execute("select pg_reload_conf()")
                    await asyncio.sleep(0.7)
                await asyncio.to_thread(primary.stop, "immediate")
                await asyncio.to_thread(standby.promote)
                await corridor.slot_is_read()

            report = await go_through(corridor, "standby promoted", promotion)
            print("\n".join(["", HEADER, report.row()]))
            log = corridor.replicator.log
        assert report.problems == []
        assert "another timeline: the history goes on" in log
        assert "a new history begins" not in log
        if waits:
            assert report.undone == report.gaps_to_resumers == report.gaps_to_others == 0
        else:
            assert report.undone > 0
            assert report.gaps_to_resumers >= 3
