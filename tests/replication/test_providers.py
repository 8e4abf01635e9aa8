"""Managed databases are known by their hosts, and poolers are told apart."""

from __future__ import annotations

import pytest

from replication.providers import PROVIDERS, pooler_of, pooler_port, provider_of


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("mydb.c9akciq32.eu-west-1.rds.amazonaws.com", "Amazon RDS or Aurora"),
        ("mydb.cluster-c9akciq32.eu-west-1.rds.amazonaws.com", "Amazon RDS or Aurora"),
        ("abc.def.europe-west1.sql.goog", "Google Cloud SQL"),
        ("mine.postgres.database.azure.com", "Azure Database for PostgreSQL"),
        ("ep-cool-darkness-123456.us-east-2.aws.neon.tech", "Neon"),
        ("db.abcdefghijklmnopqrst.supabase.co", "Supabase"),
        ("DB.ABCDEFGHIJKLMNOPQRST.SUPABASE.CO.", "Supabase"),
    ],
)
def test_a_provider_is_known_by_its_host(host: str, name: str) -> None:
    provider = provider_of(host)

    assert provider is not None
    assert provider.name == name
    assert pooler_of(host) is None


@pytest.mark.parametrize(
    "host", ["localhost", "10.0.0.1", "db.example.org", "neon.tech.example.org", "", "/run/postgresql"]
)
def test_other_hosts_belong_to_nobody(host: str) -> None:
    assert provider_of(host) is None
    assert pooler_of(host) is None


@pytest.mark.parametrize(
    ("host", "instead"),
    [
        ("mine.proxy-c9akciq32.eu-west-1.rds.amazonaws.com", "the instance's own endpoint"),
        ("ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech", "take -pooler out"),
        ("aws-0-eu-central-1.pooler.supabase.com", "its direct connection"),
    ],
)
def test_a_pooler_is_told_with_what_to_use_instead(host: str, instead: str) -> None:
    what = pooler_of(host)

    assert what is not None
    assert instead in what


def test_ports_of_poolers_are_suspicious() -> None:
    assert pooler_port(5432) is None
    assert pooler_port(6432) is not None
    assert pooler_port(6543) is not None


@pytest.mark.parametrize("provider", PROVIDERS, ids=[provider.name for provider in PROVIDERS])
def test_each_says_what_it_needs(provider: object) -> None:
    hints = provider.hints()  # type: ignore[attr-defined]

    assert len(hints) >= 3
    assert all(hint and not hint.endswith(".") for hint in hints)
