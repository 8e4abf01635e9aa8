"""Managed databases, known by the names of their hosts: which role, parameter and network each needs for replication.

What they have in common: replication takes a direct connection. A pooler speaks PostgreSQL's protocol without its
replication part, and hands the server's connections around.

Sources, each "logical replication" in the provider's own documentation: https://docs.aws.amazon.com/AmazonRDS,
https://cloud.google.com/sql/docs/postgres, https://learn.microsoft.com/azure/postgresql, https://neon.com/docs,
https://supabase.com/docs; read in November 2026.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Provider:
    """A managed database. ``parameter``, ``role`` and ``network`` say what to do; ``remark`` what surprises there."""

    name: str
    hosts: str
    """A regular expression that the whole host name matches."""
    parameter: str
    role: str
    network: str
    remark: str = ""

    def hints(self) -> list[str]:
        """What to do, a sentence each."""
        return [text for text in (self.parameter, self.role, self.network, self.remark) if text]


RDS: Final = Provider(
    "Amazon RDS or Aurora",
    r".+\.rds\.amazonaws\.com(?:\.cn)?",
    "set rds.logical_replication = 1 in the instance's parameter group (Aurora: the cluster's), then reboot",
    "GRANT rds_replication TO the role; it needs no REPLICATION attribute of its own",
    "let Walcast's address into the security group; DB_SSL=verify-full with Amazon's global-bundle.pem as "
    "DB_SSL_ROOT_CERT",
    "connect to the writer's endpoint and not to an RDS Proxy; after a failover of an instance the slot may be gone, "
    "and the gap is told",
)
CLOUD_SQL: Final = Provider(
    "Google Cloud SQL",
    r".+\.sql\.goog",
    "set the flag cloudsql.logical_decoding = on (AlloyDB: alloydb.logical_decoding), which restarts the instance",
    "ALTER ROLE walcast WITH REPLICATION, as the user postgres",
    "use the private address, add Walcast's to the authorized networks, or run the Cloud SQL Auth Proxy beside it and "
    "set DB_HOST=127.0.0.1: it passes replication through",
    "not through its managed connection pooling (port 6432)",
)
AZURE: Final = Provider(
    "Azure Database for PostgreSQL",
    r".+\.postgres\.database\.azure\.com",
    "set the server parameter wal_level = logical, then restart the server",
    "ALTER ROLE walcast WITH REPLICATION, as the administrator",
    "add a firewall rule for Walcast's address, or use the virtual network; TLS is required (DB_SSL=require or above)",
    "port 5432, not 6432, where its PgBouncer listens",
)
NEON: Final = Provider(
    "Neon",
    r".+\.neon\.tech",
    "switch logical replication on in the project's settings; it cannot be switched off again",
    "roles that are made in the console, by its API or CLI, may replicate; those made by SQL may not",
    "DB_SSL=verify-full; use the host name without -pooler",
    "it removes a slot that has not been read for about 40 hours; while Walcast reads, the compute does not scale to "
    "zero",
)
SUPABASE: Final = Provider(
    "Supabase",
    r"db\.[a-z0-9]+\.supabase\.co|.+\.pooler\.supabase\.com",
    "wal_level is logical already",
    "CREATE ROLE walcast LOGIN REPLICATION PASSWORD '...', as postgres",
    "use the direct connection, db.REFERENCE.supabase.co, port 5432; it has an IPv6 address only, unless the project "
    "has the IPv4 add-on",
    "the publication supabase_realtime is there already, and belongs to Supabase's own Realtime: name another one in "
    "PUBLICATIONS to choose tables apart",
)

PROVIDERS: Final = (RDS, CLOUD_SQL, AZURE, NEON, SUPABASE)

_POOLERS: Final = (
    (r".+\.proxy-[a-z0-9]+\.[a-z0-9-]+\.rds\.amazonaws\.com", "an RDS Proxy; use the instance's own endpoint"),
    (r"[^.]+-pooler\..+\.neon\.tech", "Neon's pooler; take -pooler out of the host name"),
    (r".+\.pooler\.supabase\.com", "Supabase's pooler; use db.REFERENCE.supabase.co, its direct connection"),
)
_POOLER_PORTS: Final = {
    6432: "where PgBouncer listens as a rule; use PostgreSQL's own port, 5432 as a rule",
    6543: "where Supabase's pooler listens; use port 5432 of db.REFERENCE.supabase.co",
}


def provider_of(host: str) -> Provider | None:
    """Who runs the database at this host; `None` if its name does not tell."""
    host = host.lower().rstrip(".")
    return next((provider for provider in PROVIDERS if re.fullmatch(provider.hosts, host)), None)


def pooler_of(host: str) -> str | None:
    """What kind of pooler that host name belongs to, and what to use instead; `None` if to none that we know."""
    host = host.lower().rstrip(".")
    return next((what for pattern, what in _POOLERS if re.fullmatch(pattern, host)), None)


def pooler_port(port: int) -> str | None:
    """Why that port looks like a pooler's; `None` if it does not."""
    return _POOLER_PORTS.get(port)
