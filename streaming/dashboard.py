"""How the whole installation is, once a second, for those who look.

Nothing is asked while nobody looks. While somebody does, one round a second serves all viewers of the process: what
processes and replicators tell through the roster, and what the database says (`realtime_project.survey`). Lists come
from the processes themselves, as long as one page.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from streaming.cures import cures
from streaming.errors import CommandFailed, ProcessSilent, RosterAway
from streaming.health import REPLICATORS, active_replicator
from streaming.intercom import Intercom
from streaming.latency import quantile, total
from streaming.observatory import CLIENTS, CLOCK, DISCONNECT, HISTORY, HISTORY_S, PROCESSES, TOPICS, Observatory
from streaming.roster import Roster
from streaming.verdict import judge

logger = logging.getLogger(__name__)

ROUND_S: Final = 1.0
CLOCK_EVERY_S: Final = 30.0

_LISTS: Final = {"clients": CLIENTS, "topics": TOPICS}
_MOST_VIEWERS: Final = 50


class DatabaseSurvey(Protocol):
    """What the database says; see `realtime_project.survey.Survey`."""

    async def slots(self) -> dict[str, Any]:
        """The server, its slots, and where its WAL ends; or ``error``."""

    async def tables(self) -> dict[str, Any]:
        """Its tables, and what a subscriber of each would receive; or ``error``."""

    async def drop_slot(self, name: str) -> bool:
        """Drop a slot that nobody reads."""

    async def close(self) -> None:
        """Let go of the connection."""


class Viewer(Protocol):
    """Somebody who looks: ``wanted`` is what they look at."""

    wanted: Mapping[str, Any]

    def show(self, message: Mapping[str, Any]) -> None:
        """Send a message to the page, unless it has not taken the last ones yet."""

    def check(self) -> None:
        """End it if it takes nothing, or its user is no longer staff."""


class Dashboard:
    """What viewers are shown, and what they may do. ``our_slot`` names the slot of the settings, if any."""

    def __init__(
        self,
        observatory: Observatory,
        intercom: Intercom,
        roster: Roster,
        survey: DatabaseSurvey,
        *,
        our_slot: Callable[[], str | None],
    ) -> None:
        self.observatory, self._intercom, self._roster, self._survey = observatory, intercom, roster, survey
        self._our_slot = our_slot
        self._viewers: list[Viewer] = []
        self._task: asyncio.Task[None] | None = None
        self._wal: deque[tuple[float, int]] = deque(maxlen=HISTORY_S)
        self._lags: deque[tuple[int, int | None, float | None]] = deque(maxlen=HISTORY_S)
        self._reached = 0
        self._clock_told_at = float("-inf")
        self._known: Mapping[str, Any] | None = None

    async def run(self) -> None:
        """Be there until cancelled; then nobody is shown anything any more, and the database is let go."""
        try:
            await asyncio.Event().wait()
        finally:
            self._viewers.clear()
            if self._task is not None:
                self._task.cancel()
            await self._survey.close()

    # Viewers

    def add(self, viewer: Viewer) -> bool:
        """Somebody looks; false if too many do."""
        if len(self._viewers) >= _MOST_VIEWERS:
            return False
        self._viewers.append(viewer)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._show(), name="dashboard")
        return True

    def remove(self, viewer: Viewer) -> None:
        """Somebody has gone."""
        if viewer in self._viewers:
            self._viewers.remove(viewer)

    async def _show(self) -> None:
        while self._viewers:
            started = time.monotonic()
            try:
                state = await self.state()
                for viewer in list(self._viewers):
                    viewer.check()
                    viewer.show({"type": "state"} | state)
                    await self.show_section(viewer, state["processes"])
            except Exception:
                logger.exception("dashboard not refreshed")
            await asyncio.sleep(max(0.1, ROUND_S - (time.monotonic() - started)))

    async def show_section(self, viewer: Viewer, processes: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Show the list that the viewer looks at."""
        section = viewer.wanted.get("section")
        if section in _LISTS:
            if processes is None:
                processes = _named(await self._roster.all(PROCESSES))
            viewer.show({"type": section} | await self.lists(_LISTS[section], viewer.wanted, processes))
        elif section == "tables":
            viewer.show({"type": section} | await self._survey.tables())

    # What there is to see

    async def history(self) -> list[list[Any]]:
        """The last minutes, a row a second: `Sample`, and the lag in bytes and in seconds."""
        processes = await self._roster.all(PROCESSES)
        lags = {at: (size, seconds) for at, size, seconds in self._lags}
        merged: dict[int, list[Any]] = {}
        for rows in await self._ask_all(processes, HISTORY, None):
            for at, changes, messages, size, p50, p99, queued, sockets in rows:
                row = merged.setdefault(at, [at, 0.0, 0.0, 0.0, None, None, 0, 0, *lags.get(at, (None, None))])
                row[1] = max(row[1], changes)  # every process sees every change
                row[2] += messages
                row[3] += size
                row[4], row[5] = _larger(row[4], p50), _larger(row[5], p99)
                row[6] += queued
                row[7] += sockets
        return [merged[at] for at in sorted(merged)][-HISTORY_S:]

    async def state(self) -> dict[str, Any]:
        """Everything but the long lists, at this moment."""
        roster_error = None
        try:
            replicators, processes = await self._roster.all(REPLICATORS), await self._roster.all(PROCESSES)
        except RosterAway as error:
            roster_error = str(error)
            replicators, processes = {}, {self._intercom.process: self.observatory.report()}
        database = await self._survey.slots()
        await self._tell_clock(database)
        active = active_replicator(replicators)
        if active is not None:
            self._known = active
        our_slot = (self._known or {}).get("slot_name") or self._our_slot()
        lag = self._lag(active, database)
        serving = [process for process in processes.values() if process.get("serves")]
        sent = total([process["latency"] for process in serving])
        decoded = total([process["decoded"] for process in processes.values() if process.get("decoded")])
        arrived = total([process["arrived"] for process in serving])
        slots = self._slots(database, active, our_slot)
        state: dict[str, Any] = {
            "now": time.time(),
            "database": {key: database.get(key) for key in ("database", "version", "host")},
            "database_error": database.get("error"),
            "roster_error": roster_error,
            "our_slot": our_slot,
            "replicators": sorted(replicators.values(), key=lambda replicator: str(replicator["role"])),
            "processes": _named(processes),
            "slots": slots,
            "lag": lag,
            "p50": quantile(sent, 0.5),
            "p99": quantile(sent, 0.99),
            "clients": sum(process["sockets"] for process in serving),
            "topics": max((process["topics"] for process in serving), default=0),
            "changes_per_s": max((process["changes_per_s"] for process in serving), default=0.0),
            "paused_pid": next(
                (slot["active_pid"] for slot in slots if slot["name"] == our_slot and slot.get("active")), None
            ),
            "problems": _merged_problems(processes),
        }
        state["arrows"] = self._arrows(state, active, serving, decoded, arrived)
        state["sample"] = self._sample(state, serving)
        state["verdict"] = judge(state).as_json()
        for process in state["processes"]:
            process["p50"], process["p99"] = (
                quantile(process.get("latency") or [], fraction) for fraction in (0.5, 0.99)
            )
            for key in ("latency", "decoded", "arrived", "problems", "sample"):
                process.pop(key, None)
        for replicator in state["replicators"]:
            for key in ("slots", "tables"):
                replicator.pop(key, None)
        return state

    async def _tell_clock(self, database: Mapping[str, Any]) -> None:
        """Now and then tell the processes of this machine how far the clock of the database is from ours."""
        now = time.monotonic()
        if "clock_offset_s" not in database or now - self._clock_told_at < CLOCK_EVERY_S:
            return
        self._clock_told_at = now
        measured = {
            "host": socket.gethostname(),
            "offset_s": database["clock_offset_s"],
            "uncertainty_s": database["clock_uncertainty_s"],
        }
        self.observatory.take_clock(measured)
        with suppress(Exception):  # a layer that is away says so elsewhere
            await self._intercom.tell_everybody(CLOCK, measured)

    def _lag(self, active: Mapping[str, Any] | None, database: Mapping[str, Any]) -> dict[str, Any]:
        """How much log lies between the end of the WAL and what has been published, by the database's own word.

        A replicator that is stopped tells nothing; the database still does, and what was published is known.
        """
        if active is not None and active.get("server_wal_end"):
            end = _lsn(active["server_wal_end"])
            self._reached = max(self._reached if self._reached <= end else 0, end - (active.get("lag_bytes") or 0))
        now = time.time()
        if wal_end := database.get("wal_end"):
            if not self._wal or self._wal[-1][0] != database["at"]:
                self._wal.append((database["at"], wal_end))
        elif active is not None:
            return {"bytes": active.get("lag_bytes"), "s": active.get("lag_s")}
        if not self._reached or not wal_end:
            return {"bytes": None, "s": None}
        lag_bytes = max(0, wal_end - self._reached)
        since = next((at for at, end in self._wal if end > self._reached), None)
        return {"bytes": lag_bytes, "s": max(0.0, now - since) if lag_bytes and since else 0.0}

    def _slots(
        self, database: Mapping[str, Any], active: Mapping[str, Any] | None, our_slot: str | None
    ) -> list[dict[str, Any]]:
        slots = database.get("slots") or (active or self._known or {}).get("slots") or []
        wal_per_s = _rate(self._wal)
        shown = []
        for slot in slots:
            headroom = _headroom(slot, database.get("max_slot_wal_keep_bytes"), wal_per_s)
            is_ours = slot["name"] == our_slot
            if is_ours and active is not None and (budgets := active.get("budgets")):
                # The transaction budget is not one of log; the tightest of the others counts.
                of_wal = [budget for budget in budgets if "freeze" not in budget["name"]]
                headroom = max(of_wal, key=lambda budget: budget["share"], default=headroom)
            shown.append(slot | {"is_ours": is_ours, "headroom": headroom})
        shown.sort(key=lambda slot: (not slot["is_ours"], slot["name"]))
        return shown

    def _arrows(
        self,
        state: Mapping[str, Any],
        active: Mapping[str, Any] | None,
        serving: Sequence[Mapping[str, Any]],
        decoded: Sequence[int],
        arrived: Sequence[int],
    ) -> list[dict[str, Any]]:
        """The three ways between PostgreSQL, decode, match and send."""
        rates = (active or {}).get("rates") or {}
        return [
            {
                "changes_per_s": rates.get("changes_per_s", 0.0),
                "wal_per_s": _rate(self._wal) or rates.get("wal_bytes_per_s", 0.0),
                "p50": quantile(decoded, 0.5),
                "p99": quantile(decoded, 0.99),
                "backlog_bytes": state["lag"]["bytes"],
                "backlog_s": state["lag"]["s"],
            },
            {
                "changes_per_s": state["changes_per_s"],
                "p50": quantile(arrived, 0.5),
                "p99": quantile(arrived, 0.99),
                "behind": sum(not process["is_level"] for process in serving),
                "processes": len(serving),
            },
            {
                "messages_per_s": sum(process["messages_per_s"] for process in serving),
                "bytes_per_s": sum(process["bytes_per_s"] for process in serving),
                "p50": state["p50"],
                "p99": state["p99"],
                "backlog_bytes": sum(process["queued_bytes"] for process in serving),
            },
        ]

    def _sample(self, state: Mapping[str, Any], serving: Sequence[Mapping[str, Any]]) -> list[Any]:
        now, lag = int(state["now"]), state["lag"]
        self._lags.append((now, lag["bytes"], lag["s"]))
        newest = [process["sample"] for process in serving if process.get("sample")]
        row: list[Any] = [now, 0.0, 0.0, 0.0, None, None, 0, state["clients"], lag["bytes"], lag["s"]]
        for _, changes, messages, size, p50, p99, queued, _sockets in newest:
            row[1] = max(row[1], changes)
            row[2] += messages
            row[3] += size
            row[4], row[5] = _larger(row[4], p50), _larger(row[5], p99)
            row[6] += queued
        return row

    async def lists(
        self, command: str, wanted: Mapping[str, Any], processes: Iterable[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """One page of the clients or topics of all processes; each client says in which ``process`` it is."""
        limit = max(1, min(int(wanted.get("limit") or 50), 500))
        question = {key: wanted.get(key) for key in ("search", "sort", "descending")} | {"limit": limit}
        names = [process["process"] for process in processes if process.get("serves")]
        rows: list[dict[str, Any]] = []
        by_topic: dict[str, dict[str, Any]] = {}
        counts = {"total": 0, "matching": 0}
        silent = 0
        for name, answer in zip(names, await self._ask_each(names, command, question), strict=True):
            if answer is None:
                silent += 1
                continue
            for key in counts:
                counts[key] += answer[key]
            for row in answer["rows"]:
                if command == TOPICS and (other := by_topic.get(row["topic"])) is not None:
                    other["members"] += row["members"]
                    other["events_per_s"] = max(other["events_per_s"], row["events_per_s"])
                    for key in ("filters", "kinds"):
                        other[key] += [value for value in row[key] if value not in other[key]]
                    counts["total"], counts["matching"] = counts["total"] - 1, counts["matching"] - 1
                    continue
                by_topic[row.get("topic", "")] = row
                rows.append(row | {"process": name} if command == CLIENTS else row)
        if command == CLIENTS:
            rows.sort(key=lambda row: row["order"], reverse=bool(wanted.get("descending")))
        else:
            rows.sort(key=lambda row: (-row["members"], row["topic"]))
        return {"rows": rows[:limit], **counts, "silent": silent}

    async def _ask_each(self, names: Sequence[str], command: str, arguments: Any) -> list[Any]:
        async def ask(name: str) -> Any:
            try:
                return await self._intercom.ask(name, command, arguments, timeout_s=2.0)
            except (ProcessSilent, CommandFailed):
                return None

        return list(await asyncio.gather(*map(ask, names)))

    async def _ask_all(self, processes: Mapping[str, Any], command: str, arguments: Any) -> list[Any]:
        names = [name for name, process in processes.items() if process.get("serves")]
        return [answer for answer in await self._ask_each(names, command, arguments) if answer is not None]

    # What there is to do

    async def disconnect(self, process: str, client: str) -> bool:
        """Close a client's socket, in whichever process it is; false if it was gone.

        Raises `ProcessSilent` or `CommandFailed`.
        """
        return bool(await self._intercom.ask(process, DISCONNECT, {"id": client}))

    async def drop_slot(self, name: str) -> bool:
        """Drop a slot that nobody reads; false if there is none. Raises what `Survey.drop_slot` raises."""
        return await self._survey.drop_slot(name)


def _named(processes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    named = [{"process": name, **process} for name, process in processes.items()]
    return sorted(named, key=lambda process: (not process.get("serves"), process["host"], process["started_at"]))


def _merged_problems(processes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Warnings and errors of all processes by message, the newest first, each with its cure if the README has one."""
    merged: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, process in processes.items():
        for problem in process.get("problems") or ():
            key = problem["level"], problem["logger"], problem["message"]
            where = f"{process['host']} ({process['pid']})"
            if (group := merged.get(key)) is None:
                cure = cures().get(problem["message"])
                merged[key] = problem | {
                    "where": [where],
                    "meaning": cure.meaning if cure else None,
                    "cure": cure.cure if cure else None,
                    "process": name,
                }
                continue
            group["count"] += problem["count"]
            group["where"].append(where)
            group["times"] = sorted(group["times"] + problem["times"])
            if problem["last_at"] > group["last_at"]:
                group["last_at"], group["facts"] = problem["last_at"], problem["facts"]
    return sorted(merged.values(), key=lambda group: -group["last_at"])


def _headroom(slot: Mapping[str, Any], limit: int | None, wal_per_s: float) -> dict[str, Any] | None:
    """How much of max_slot_wal_keep_size a slot has used; `None` where there is no limit, or nothing is kept."""
    retained = slot.get("retained_bytes")
    if limit is None or limit <= 0 or retained is None:
        return None
    safe = slot.get("safe_wal_size")
    used = limit - safe if safe is not None else retained
    left = max(0, limit - used)
    return {
        "name": "max_slot_wal_keep_size",
        "limit": limit,
        "used": max(0, used),
        "share": max(0.0, used / limit),
        "left_s": left / wal_per_s if wal_per_s > 1 else None,
    }


def _rate(wal: deque[tuple[float, int]]) -> float:
    """Bytes of log a second over the last half minute."""
    if len(wal) < 2:
        return 0.0
    newest = wal[-1]
    oldest = next(sample for sample in wal if newest[0] - sample[0] <= 30.0)
    elapsed_s = newest[0] - oldest[0]
    return max(0, newest[1] - oldest[1]) / elapsed_s if elapsed_s > 0 else 0.0


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)


def _larger(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else max(one, other)
