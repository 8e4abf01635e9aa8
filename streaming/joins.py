"""What the payload of a join asks for, read as forgivingly as clients need it."""

from __future__ import annotations

from dataclasses import dataclass

from streaming.bindings import OPTIONS, Binding, ids_of, parse_binding
from streaming.errors import InvalidBinding
from streaming.phoenix import Json


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """The ``config`` of a current join: what is missing or of a wrong type has its default, and the join goes on.

    ``wanted`` are the elements of ``postgres_changes`` as the client wrote them, each with its ``id``: the reply shows
    them. If one of them cannot be read there are no ``bindings``, and ``problem`` is what the client is told.
    ``includes_self`` and ``acknowledges`` are ``broadcast.self`` and ``broadcast.ack``; ``takes_binary`` is
    ``broadcast.binary``, which is ours: without it JSON comes as text. ``presence_key`` is empty if the server is to
    make one; ``oddities`` names the fields that were not what they should be.
    """

    bindings: tuple[Binding, ...] = ()
    wanted: tuple[Json, ...] = ()
    problem: str | None = None
    includes_self: bool = False
    acknowledges: bool = False
    takes_binary: bool = True
    presence_key: Json = ""
    presence_enabled: bool = False
    private: bool = False
    oddities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resume:
    """A join that wants to know positions, and, unless ``since`` is `None`, what came after that one."""

    since: str | None = None


def parse_config(payload: object) -> JoinConfig | None:
    """The config of a current join; `None` for a legacy one, which has no object of that name."""
    config = payload.get("config") if isinstance(payload, dict) else None
    if not isinstance(config, dict):
        return None
    oddities: list[str] = []

    def section(name: str) -> dict[str, Json]:
        value = config.get(name)
        if value is not None and not isinstance(value, dict):
            oddities.append(name)
        return value if isinstance(value, dict) else {}

    def flag(where: dict[str, Json], name: str, path: str) -> bool:
        value = where.get(name)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if value is not None and not isinstance(value, bool):
            oddities.append(path)
        return value is True

    broadcast, presence = section("broadcast"), section("presence")
    # Clients from before the field was there name a key alone, and wait for a state.
    is_asked_for = "enabled" in presence or not isinstance(config.get("presence"), dict)
    changes = config.get("postgres_changes")
    if changes is not None and not isinstance(changes, list):
        oddities.append("postgres_changes")
    bindings, wanted, problem = _parse_bindings(changes if isinstance(changes, list) else [], config.get(OPTIONS))
    return JoinConfig(
        bindings=bindings,
        wanted=wanted,
        problem=problem,
        includes_self=flag(broadcast, "self", "broadcast.self"),
        acknowledges=flag(broadcast, "ack", "broadcast.ack"),
        takes_binary=broadcast.get("binary") is None or flag(broadcast, "binary", "broadcast.binary"),
        presence_key=presence.get("key") or "",
        presence_enabled=flag(presence, "enabled", "presence.enabled") if is_asked_for else True,
        private=flag(config, "private", "private"),
        oddities=tuple(oddities),
    )


def _parse_bindings(changes: list[Json], options: Json) -> tuple[tuple[Binding, ...], tuple[Json, ...], str | None]:
    raws = [raw for raw in changes if raw is not None]
    bindings: list[Binding] = []
    problem: str | None = None
    for raw in raws:
        try:
            bindings.append(parse_binding(raw, options))
        except InvalidBinding as error:
            problem = problem if problem is not None else str(error)
    if problem is not None:
        # Every listener gets an id all the same: a client compares the list with its own.
        return (), tuple(_with_id(raw, number) for number, raw in enumerate(raws, 1)), problem
    return tuple(bindings), tuple(map(_with_id, raws, ids_of(bindings))), None


def _with_id(raw: Json, number: int) -> Json:
    return {**raw, "id": number} if isinstance(raw, dict) else raw


def parse_resume(payload: object) -> Resume | None:
    """What a join says of ``resume``, at the top of its payload or in its config; `None` if it says nothing.

    A position that is none is kept: it holds nowhere, and the client is told so.
    """
    if not isinstance(payload, dict):
        return None
    config = payload.get("config")
    value = payload.get("resume", config.get("resume") if isinstance(config, dict) else None)
    if not isinstance(value, dict):
        return None
    since = value.get("since")
    return Resume(None if since is None else since if isinstance(since, str) else "")
