"""Is this server ready to stream? Everything is looked at before the stream begins, and what is missing is named.

The replicator goes by it: the first thing that stands in the way is raised. The doctor looks at more, and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from replication.errors import (
    NoFreeReplicationSlot,
    NoFreeWalSender,
    PublicationMissing,
    ReplicationPrivilegeMissing,
    SlotWrongDatabase,
    SlotWrongPlugin,
    UnsupportedServer,
    WalLevelTooLow,
)
from replication.publications import create_publications, missing_publications
from replication.server import DECODES_ON_STANDBY, HAS_PUBLICATIONS, ServerFacts, busy_walsenders, server_facts
from replication.slots import PLUGIN, SlotStatus, all_slots, unread, validate_slot_name


@dataclass(frozen=True, slots=True)
class Preflight:
    """A server that is ready to stream, our slot on it if it exists, and the publications made just now.

    ``slots`` are all of the server.
    """

    facts: ServerFacts
    slot: SlotStatus | None
    created_publications: tuple[str, ...]
    slots: tuple[SlotStatus, ...] = ()


async def preflight(
    conn: AsyncConnection[Any], *, publications: Sequence[str], slot_name: str | None, create_publication: bool
) -> Preflight:
    """Check everything that streaming needs, before it begins.

    ``slot_name`` None means a temporary slot. With ``create_publication``, missing publications are made FOR ALL
    TABLES. Whether our slot is lost or active is not judged here: see `SlotStatus.lost_because` and
    `SlotStatus.active_pid`.

    Raises a `ServerNotReady` that names the cure, or `InvalidSlotName`.
    """
    if slot_name is not None:
        slot_name = validate_slot_name(slot_name)
    facts = await server_facts(conn)
    if facts.version_num < HAS_PUBLICATIONS:
        raise UnsupportedServer(facts.version_num, "has no publications", "use PostgreSQL 10 or newer")
    if facts.in_recovery and facts.version_num < DECODES_ON_STANDBY:
        raise UnsupportedServer(
            facts.version_num, "cannot decode the WAL on a standby", "connect to the primary, or use 16 or newer"
        )
    if facts.wal_level != "logical":
        raise WalLevelTooLow(facts.wal_level)
    if not facts.can_replicate:
        raise ReplicationPrivilegeMissing(facts.role)

    missing = await missing_publications(conn, publications)
    if missing and (facts.in_recovery or not create_publication):
        raise PublicationMissing(missing, facts.database)
    await create_publications(conn, missing)

    slots = await all_slots(conn)
    slot = next((slot for slot in slots if slot.name == slot_name), None)
    if slot is None:
        if len(slots) >= facts.max_replication_slots:
            raise NoFreeReplicationSlot(facts.max_replication_slots, unread(slots))
    elif slot.plugin != PLUGIN:
        raise SlotWrongPlugin(slot.name, slot.plugin)
    elif slot.database != facts.database:
        raise SlotWrongDatabase(slot.name, str(slot.database), facts.database)
    # An active slot already has its walsender, and the one who waits for it inherits that.
    if not (slot and slot.active) and await busy_walsenders(conn) >= facts.max_wal_senders:
        raise NoFreeWalSender(facts.max_wal_senders)
    return Preflight(facts, slot, tuple(missing), tuple(slots))
