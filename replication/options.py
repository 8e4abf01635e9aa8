"""What a replicator is asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicatorSettings:
    """What a replicator needs to know. ``slot_name`` `None` means a temporary slot."""

    dsn: str
    publications: Sequence[str]
    slot_name: str | None
    ip_version: str | None = None
    """``ipv4`` or ``ipv6``: which addresses of the host are used; `None` leaves it to the system."""
    create_publication: bool = False
    time_zone: str = "UTC"
    hidden_tables: frozenset[tuple[str, str]] = frozenset()
    ring_bytes: int = 64 << 20
    ring_age_s: float = 120.0
    ring_wal_bytes: int = 256 << 20
    """So much WAL may the server have to keep for the ring; half of ``max_lag_bytes`` if that is less."""
    exclusive: bool = False
    """With a temporary slot: wait while another replicator reads the same publications for the same hubs."""
    max_lag_bytes: int = 0
    """Over this the slot is made anew; 0 means never."""
    slot_failover: bool = False
    """Let standbys keep a copy of the slot (PostgreSQL 17)."""
    heartbeat_s: float = 0.0
    """How often a word is put into the WAL, so that there is always news; 0 means never."""

    @property
    def ring_max_wal_bytes(self) -> int:
        """The bound of the ring in WAL."""
        return min(self.ring_wal_bytes, self.max_lag_bytes // 2 or self.ring_wal_bytes)

    @property
    def record_name(self) -> str:
        """What the record of this replicator is kept under."""
        return self.slot_name or f"temporary:{','.join(self.publications)}"
