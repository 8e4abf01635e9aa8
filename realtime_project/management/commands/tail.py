"""`manage.py tail`: the inspector of the terminal. Follows a topic of a running server, and shows what comes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from argparse import Action, ArgumentError, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, assert_never

from django.conf import settings
from django.core.management import BaseCommand, CommandError
from rich.console import Console
from rich.text import Text

from realtime_project.client import CHANGES, Client, ClientError, Event, Happening, Joined, Lost, config_of, socket_url
from streaming.errors import UnusableSecret
from streaming.tokens import sign

_EPILOG = """
    manage.py tail                                              every change of every published table
    manage.py tail public.todos                                 those of one table (realtime:public:todos, in full)
    manage.py tail public:todos:id=eq.7                         those of one row
    manage.py tail public.todos --json | jq .payload.record     a line of JSON each, for programs
    manage.py tail --current public.todos --filter done=is.true --event UPDATE
                                                                by the current protocol; --current may be repeated
    manage.py tail room:1 --broadcast --presence                what clients say to each other, and who is there
    manage.py tail public.todos --since POSITION                what came after a position, and then what is new

Each line has the time it arrived, the event, the table, what is in the row (of an update: what changed), and how long
it was on its way from the commit. After a cut it comes back by itself and goes on where it stopped: nothing is missing,
or it says so. Ctrl-C ends it, and says the position to go on from.
"""

_STYLES = {
    "INSERT": "green",
    "UPDATE": "yellow",
    "DELETE": "red",
    "TRUNCATE": "bold red",
    "broadcast": "cyan",
    "presence_state": "cyan",
    "presence_diff": "cyan",
    "system": "magenta",
}
_SHOWN_LENGTH = 60
_MINTED_S = 24 * 3600


class _Binding(Action):
    """``--current``, and what comes after it: each of these says something of the table before it."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        bindings: list[dict[str, Any]] = list(getattr(namespace, "bindings", None) or ())
        if self.dest == "current":
            bindings.append({"event": "*", **values})
        elif bindings:
            bindings[-1] = bindings[-1] | {self.dest: values}
        else:
            raise ArgumentError(self, "it says something of a --current before it, and there is none")
        namespace.bindings = bindings


class Command(BaseCommand):
    """Events go to stdout, words about them to stderr: pipes get nothing but events."""

    help = "Follow a topic of a running server, over its websocket: the inspector of the terminal."
    requires_system_checks: list[str] = []  # noqa: RUF012  (Django's); it opens no socket of ours

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """Show the examples as they are written."""
        return super().create_parser(
            prog_name, subcommand, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What can be said on the command line."""
        parser.add_argument(
            "topic",
            nargs="?",
            help="what to listen to: SCHEMA.TABLE, SCHEMA:TABLE:COLUMN=eq.VALUE, SCHEMA, or * (default); "
            "with --current, --broadcast or --presence the name of a channel",
        )
        parser.add_argument(
            "--url",
            type=_url,
            default=f"ws://localhost:{settings.PORT or 4000}/socket",
            help="of the server (default: ws://localhost:PORT/socket); http:// and https:// will do",
        )
        parser.set_defaults(bindings=[])
        current = parser.add_argument_group("by the current protocol")
        current.add_argument(
            "--current",
            action=_Binding,
            type=_table,
            metavar="SCHEMA.TABLE",
            help="the changes of this table; or *",
        )
        current.add_argument(
            "--event", action=_Binding, type=str.upper, choices=("*", "INSERT", "UPDATE", "DELETE"), help="only these"
        )
        current.add_argument("--filter", action=_Binding, metavar="FILTER", help="such as id=gte.5 or status=in.(a,b)")
        current.add_argument(
            "--select", action=_Binding, type=lambda text: text.split(","), metavar="COLUMNS", help="such as id,name"
        )
        current.add_argument("--broadcast", action="store_true", help="what clients send to the channel")
        current.add_argument("--presence", action="store_true", help="who comes and goes there")
        current.add_argument("--private", action="store_true", help="join it as a private channel")
        trust = parser.add_argument_group("where the server asks for a token")
        trust.add_argument("--token", help="a JSON Web Token; - reads it from stdin")
        trust.add_argument("--mint", action="store_true", help="make tokens on the way, signed with JWT_SECRET")
        trust.add_argument("--role", default="authenticated", help="the role of what --mint makes (%(default)s)")
        shown = parser.add_argument_group("what is shown")
        shown.add_argument("--json", action="store_true", help="a line of JSON for each event")
        shown.add_argument("--full", action="store_true", help="the whole payload below each line")
        shown.add_argument("--since", metavar="POSITION", help="first what came after it, if it is still kept")
        shown.add_argument("--count", type=_count, metavar="N", help="end after so many events")
        shown.add_argument("--no-reconnect", action="store_true", help="end when the connection does")

    def handle(self, **options: Any) -> None:
        """Follow until Ctrl-C, SIGTERM, or what was asked for has come."""
        client = self._client(options)
        out, words = (
            Console(
                stderr=stderr,
                no_color=options["no_color"] or None,  # else NO_COLOR decides
                force_terminal=options["force_color"] or None,
                highlight=False,
            )
            for stderr in (False, True)
        )
        printer = _Printer(out, words, is_json=options["json"], is_full=options["full"])
        if not options["json"]:
            words.print(f"[dim]{client.topic} at {client.url}; Ctrl-C ends it[/dim]", soft_wrap=True)
        try:
            asyncio.run(_run(client, printer, options["count"]))
        except ClientError as error:
            raise CommandError(str(error)) from None
        except (asyncio.CancelledError, KeyboardInterrupt):
            pass
        except BrokenPipeError:
            # Whoever read us has seen enough: `tail … | head`. Python would complain of what it could not write.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if client.since is not None and not options["json"]:
            words.print(f"[dim]go on from here with: --since {client.since}[/dim]", soft_wrap=True)

    def _client(self, options: Mapping[str, Any]) -> Client:
        bindings: list[dict[str, Any]] = options["bindings"]
        is_current = bool(bindings) or options["broadcast"] or options["presence"] or options["private"]
        topic = options["topic"]
        return Client(
            url=options["url"] if options["url"].endswith("/websocket") else socket_url(options["url"]),
            topic=_channel(topic or "tail") if is_current else _legacy_topic(topic or "*"),
            config=config_of(bindings, presence=options["presence"], private=options["private"])
            if is_current
            else None,
            token=self._tokens(options),
            since=options["since"],
            is_reconnecting=not options["no_reconnect"],
        )

    def _tokens(self, options: Mapping[str, Any]) -> Callable[[], str | None]:
        if options["mint"]:
            if not settings.JWT_SECRET:
                raise CommandError(
                    "JWT_SECRET is not set here, so --mint has nothing to sign with; set it as the server has it, "
                    "or pass a token with --token"
                )
            return lambda: _mint(options["role"])
        token: str | None = options["token"]
        if token == "-":  # noqa: S105
            token = sys.stdin.read()
        token = (token or "").strip() or None
        return lambda: token


async def _run(client: Client, printer: _Printer, count: int | None) -> None:
    task = asyncio.current_task()
    assert task is not None
    # SIGTERM ends it as Ctrl-C does: between two lines, with the position that was reached.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with aclosing(client.follow()) as happenings:
        async for happening in happenings:
            printer.show(happening)
            if count is not None and printer.events >= count:
                return


class _Printer:
    """Writes what happens: events to ``out``, all else to ``words``."""

    def __init__(self, out: Console, words: Console, *, is_json: bool, is_full: bool) -> None:
        self._out, self._words, self._is_json, self._is_full = out, words, is_json, is_full
        self._was_joined = False
        self.events = 0

    def show(self, happening: Happening) -> None:
        """One of them."""
        match happening:
            case Event():
                self.events += 1
                if self._is_json:
                    self._write(_json(happening))
                else:
                    self._show(happening)
            case Joined():
                self._tell(*_joined(happening, again=self._was_joined))
                self._was_joined = True
            case Lost(reason=reason, retry_s=retry_s):
                again = f"; trying again in {retry_s:.0f} s" if retry_s else ""
                self._tell(f"connection lost: {reason}{again}", "yellow")
            case _:
                assert_never(happening)

    def _tell(self, text: str, style: str) -> None:
        self._words.print(Text(f"{_clock()}  {text}", style=style), soft_wrap=True)

    def _show(self, event: Event) -> None:
        line = _line(event)
        # On a terminal a line is a line; a file or a program gets all of it.
        self._out.print(line, no_wrap=True, overflow="ellipsis", crop=True, soft_wrap=not self._out.is_terminal)
        if self._is_full:
            self._out.print(Text(json.dumps(event.payload, ensure_ascii=False, indent=2), style="dim"), soft_wrap=True)
        self._out.file.flush()

    def _write(self, text: str) -> None:
        self._out.file.write(text + "\n")
        self._out.file.flush()


def _joined(joined: Joined, *, again: bool) -> tuple[str, str]:
    if joined.recovered is False:
        return "changes are missing: the server no longer has all of them; it goes on from here", "bold red"
    if joined.recovered:
        what = f"{joined.replayed} missed changes come now" if joined.replayed else "nothing was missed"
        return f"resumed: {what}", "green"
    return ("joined again" if again else "joined"), "dim"


def _json(event: Event) -> str:
    facts: dict[str, Any] = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event.event}
    if event.position is not None:
        facts["position"] = event.position
    if event.is_replayed:
        facts["replayed"] = True
    return json.dumps(facts | {"payload": event.payload}, ensure_ascii=False, separators=(",", ":"))


def _line(event: Event) -> Text:
    name, payload = event.event, event.payload
    line = Text.assemble((f"{_clock()}  ", "dim"), (f"{name:<9}", _STYLES.get(name, "magenta")), " ")
    if name not in CHANGES:
        return line.append(_shorten(payload, 400))
    data = payload.get("data", payload)
    line.append(f"{data.get('schema')}.{data.get('table')}", "bold")
    late = _lateness(data.get("commit_timestamp"), is_replayed=event.is_replayed)
    if late:
        line.append(f"  {late}", "dim")
    line.append("  ")
    if data.get("errors"):
        line.append(f"{'; '.join(map(str, data['errors']))}  ", "red")
    record, old = data.get("record") or {}, data.get("old_record") or {}
    changed = [key for key in record if key in old and old[key] != record[key]] if name == "UPDATE" else []
    if changed:
        kept = next((key for key in record if key not in changed), None)
        if kept is not None:
            line.append(f"{kept}={_shorten(record[kept])}  ")
        for key in changed:
            line.append(f"{key}: ").append(_shorten(old[key]), "red").append(" → ")
            line.append(_shorten(record[key]), "green").append("  ")
        return line
    row = record or {key: value for key, value in old.items() if value is not None}
    for key, value in row.items():
        line.append(f"{key}=", "dim").append(f"{_shorten(value)}  ")
    return line


def _shorten(value: object, length: int = _SHOWN_LENGTH) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # A row must not be able to move the cursor, or to break the line.
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= length else text[: length - 1] + "…"


def _lateness(committed: object, *, is_replayed: bool) -> str | None:
    if is_replayed:
        return "replayed"
    if not isinstance(committed, str):
        return None
    try:
        late = time.time() - datetime.fromisoformat(committed).timestamp()
    except ValueError:
        return None
    shown = f"{max(late, 0) * 1000:.0f} ms" if late < 10 else f"{late:.1f} s"
    # Legacy payloads have whole seconds: the rest of the second is not known.
    return shown if "." in committed else f"≤ {shown}"


def _clock() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]


def _mint(role: str) -> str:
    now = int(time.time())
    claims = {name: value for name, value in settings.JWT_CLAIM_VALIDATORS.items() if name != "exp"}
    claims |= {"role": role, "sub": "manage.py tail", "iat": now, "exp": now + _MINTED_S}
    try:
        return sign(claims, settings.JWT_SECRET)
    except UnusableSecret as error:
        raise CommandError(str(error)) from None


def _legacy_topic(text: str) -> str:
    if text.startswith("realtime:"):
        return text
    schema, dot, table = text.partition(".")
    # One dot and no colon: a table, as SQL writes it.
    return f"realtime:{schema}:{table}" if dot and ":" not in text and table else f"realtime:{text}"


def _channel(text: str) -> str:
    return text if text.startswith("realtime:") else f"realtime:{text}"


def _table(text: str) -> dict[str, str]:
    if text == "*":
        return {"schema": "*"}
    schema, dot, table = text.partition(".")
    if not schema or (dot and not table):
        raise ArgumentTypeError(f"{text!r} names no table; right would be public.todos, public.* or *")
    return {"schema": schema, "table": table} if dot and table != "*" else {"schema": schema}


def _url(text: str) -> str:
    try:
        return socket_url(text)
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is no address of a server; right would be ws://localhost:4000/socket or https://example.com"
        ) from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is no number of events; right would be 1 or more")
    return int(text)
