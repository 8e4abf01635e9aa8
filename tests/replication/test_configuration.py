"""The configuration file: what it allows at which level, what it refuses to be, and what it is warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replication.changes import Column, Relation
from replication.configuration import BROADCAST_EVERYTHING, Configuration, InvalidConfiguration, Webhook, load

EVENTS = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]


def _relation(schema: str = "public", table: str = "users", *columns: str) -> Relation:
    names = columns or ("id", "name")
    return Relation(1, schema, table, "d", tuple(Column(name, "text", 25, -1, False) for name in names))


def _heard(configuration: Configuration, event: str = "INSERT", relation: Relation | None = None) -> set[str]:
    """The levels that are open."""
    table = relation or _relation()
    levels = configuration.levels(event, table)
    wide = {name for name in ("schema", "everything", "table") if getattr(levels, name)}
    return wide | {column.name for column in table.columns if levels.has_column(column.name)}


def _allowing(*relations: str, events: list[str] | None = None) -> Configuration:
    items = [{"relation": relation, "events": events or EVENTS} for relation in relations]
    return Configuration.parse(json.dumps({"realtime": items}))


@pytest.mark.parametrize("event", EVENTS)
def test_without_a_file_everything_is_broadcast(event: str) -> None:
    assert _heard(BROADCAST_EVERYTHING, event) == {"schema", "everything", "table", "id", "name"}
    assert BROADCAST_EVERYTHING.webhooks == ()


@pytest.mark.parametrize("text", ["{}", '{"realtime": []}', '{"webhooks": []}', '{"other": 1}'])
def test_without_realtime_nothing_is_broadcast(text: str) -> None:
    assert _heard(Configuration.parse(text)) == set()


@pytest.mark.parametrize(
    ("relation", "heard"),
    [
        ("*", {"everything", "schema"}),
        ("public", {"schema"}),
        ("auth", set()),
        ("*:*", {"table"}),
        ("*:users", {"table"}),
        ("public:*", {"table"}),
        ("public:users", {"table"}),
        ("public:todos", set()),
        ("auth:*", set()),
        ("*:*:*", {"id", "name"}),
        ("*:*:name", {"name"}),
        ("*:users:*", {"id", "name"}),
        ("*:users:name", {"name"}),
        ("public:*:*", {"id", "name"}),
        ("public:*:id", {"id"}),
        ("public:users:*", {"id", "name"}),
        ("public:users:id", {"id"}),
        ("public:users:other", set()),
        ("public:todos:id", set()),
        ("Public", set()),
        ("", set()),
    ],
)
def test_each_level_has_relations_of_its_own(relation: str, heard: set[str]) -> None:
    assert _heard(_allowing(relation)) == heard


def test_levels_add_up() -> None:
    assert _heard(_allowing("public", "public:users", "*:*:id")) == {"schema", "table", "id"}


def test_only_the_events_of_an_item_are_broadcast() -> None:
    configuration = Configuration.parse(
        json.dumps(
            {
                "realtime": [
                    {"relation": "public", "events": ["INSERT", "UPDATE"]},
                    {"relation": "public:users", "events": ["DELETE"]},
                    {"relation": "*:*:name", "events": ["INSERT"]},
                ]
            }
        )
    )
    assert {event: _heard(configuration, event) for event in EVENTS} == {
        "INSERT": {"schema", "name"},
        "UPDATE": {"schema"},
        "DELETE": {"table"},
        "TRUNCATE": set(),
    }


def test_a_star_is_no_event() -> None:
    configuration = _allowing("*", "*:*", "*:*:*", events=["*"])
    assert all(_heard(configuration, event) == set() for event in EVENTS)
    assert [place for place, _ in configuration.oddities()] == [f"realtime[{number}].events" for number in range(3)]


# Webhooks


@pytest.mark.parametrize(
    ("event", "relation", "matches"),
    [
        ("*", "*", True),
        ("*", "", True),
        ("INSERT", "*", True),
        ("UPDATE", "*", False),
        ("*", "public", True),
        ("*", "auth", False),
        ("*", "public:users", True),
        ("*", "public:todos", False),
        ("*", "public:*", False),
        ("*", "*:users", False),
        ("*", "public:users:id", False),
        ("insert", "*", False),
    ],
)
def test_a_webhook_matches_by_event_and_table(event: str, relation: str, matches: bool) -> None:
    assert Webhook("http://x", event, relation).matches("INSERT", _relation()) is matches


def test_a_webhook_of_two_colons_matches_no_table_whatever_its_name() -> None:
    assert not Webhook("http://x", "*", "public:a:b").matches("INSERT", _relation("public", "a:b"))


def test_a_webhook_is_read_with_its_defaults() -> None:
    text = json.dumps({"webhooks": [{"config": {"endpoint": "https://user:pw@example.org:8443/x?y"}}]})
    assert Configuration.parse(text).webhooks == (Webhook("https://user:pw@example.org:8443/x?y", "*", "*"),)


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ({"relation": "public:users:id"}, "webhooks[0].relation"),
        ({"relation": "public:*"}, "webhooks[0].relation"),
        ({"event": "insert"}, "webhooks[0].event"),
        ({"relation": "public"}, None),
        ({"relation": "*"}, None),
    ],
)
def test_what_matches_nothing_is_told_of(hook: dict[str, Any], place: str | None) -> None:
    text = json.dumps({"webhooks": [hook | {"config": {"endpoint": "http://x"}}]})
    assert [place for place, _ in Configuration.parse(text).oddities()] == ([place] if place else [])


def test_a_relation_without_a_level_is_told_of() -> None:
    assert [place for place, _ in _allowing("a:b:c:d", "a:b:c", "").oddities()] == [
        "realtime[0].relation",
        "realtime[2].relation",
    ]


def test_what_holds_without_a_file_has_no_oddities() -> None:
    assert list(BROADCAST_EVERYTHING.oddities()) == []


# What is refused

_HOOK = {"config": {"endpoint": "http://x"}}


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ([], "the file"),
        (None, "the file"),
        ({"realtime": {}}, "realtime"),
        ({"realtime": None}, "realtime"),
        ({"realtime": ["public"]}, "realtime[0]"),
        ({"realtime": [{"events": ["INSERT"]}]}, "realtime[0].relation"),
        ({"realtime": [{"relation": 1, "events": []}]}, "realtime[0].relation"),
        ({"realtime": [{"relation": "*", "events": []}, {"relation": "*"}]}, "realtime[1].events"),
        ({"realtime": [{"relation": "*", "events": "INSERT"}]}, "realtime[0].events"),
        ({"realtime": [{"relation": "*", "events": [1]}]}, "realtime[0].events"),
        ({"webhooks": {}}, "webhooks"),
        ({"webhooks": [1]}, "webhooks[0]"),
        ({"webhooks": [_HOOK, {}]}, "webhooks[1].config.endpoint"),
        ({"webhooks": [{"config": "http://x"}]}, "webhooks[0].config.endpoint"),
        ({"webhooks": [{"config": {"endpoint": ""}}]}, "webhooks[0].config.endpoint"),
        ({"webhooks": [{"config": {"endpoint": "example.org"}}]}, "webhooks[0].config.endpoint"),
        ({"webhooks": [{"config": {"endpoint": "ftp://x"}}]}, "webhooks[0].config.endpoint"),
        ({"webhooks": [{"config": {"endpoint": "http:///x"}}]}, "webhooks[0].config.endpoint"),
        ({"webhooks": [{"config": {"endpoint": "http://x:port/"}}]}, "webhooks[0].config.endpoint"),
        ({"webhooks": [_HOOK | {"event": ["INSERT"]}]}, "webhooks[0].event"),
        ({"webhooks": [_HOOK | {"relation": None}]}, "webhooks[0].relation"),
    ],
)
def test_a_file_of_another_shape_is_refused_with_the_place(document: Any, place: str) -> None:
    with pytest.raises(InvalidConfiguration, match="has to be") as raised:
        Configuration.parse(json.dumps(document))
    assert raised.value.place == place


@pytest.mark.parametrize("text", ["", "{", "{'realtime': []}", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfiguration, match="is not JSON"):
        Configuration.parse(text)


def test_a_secret_in_an_endpoint_is_not_repeated() -> None:
    with pytest.raises(InvalidConfiguration) as raised:
        Configuration.parse(json.dumps({"webhooks": [{"config": {"endpoint": "htp://x/s3cret"}}]}))
    assert "s3cret" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="No such file"):
        load(str(tmp_path / "nothing.json"))
    (tmp_path / "latin.json").write_bytes(b'{"realtime": "\xff"}')
    with pytest.raises(InvalidConfiguration, match="cannot be read"):
        load(str(tmp_path / "latin.json"))


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('\ufeff{"realtime": []}', "utf-8")
    assert load(str(tmp_path / "file.json")) == Configuration()
