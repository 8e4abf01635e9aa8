"""How the whole installation is, in one sentence, and what to do about what is not well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

Level = Literal["good", "fair", "bad"]

SILENT_AFTER_S: Final = 8.0
LAGS_AFTER_S: Final = 5.0
SLOW_P99_S: Final = 1.0
STUCK_LOOP_S: Final = 0.5
_RANK: Final = {"good": 0, "fair": 1, "bad": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not well: what, why it matters, what to do; ``section`` of the dashboard shows more."""

    level: Level
    what: str
    why: str
    cure: str
    section: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst level of the findings, a sentence, and the findings, the worst first."""

    level: Level
    sentence: str
    findings: tuple[Finding, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the dashboard."""
        findings = [{key: getattr(finding, key) for key in Finding.__slots__} for finding in self.findings]
        return {"level": self.level, "sentence": self.sentence, "findings": findings}


def judge(state: Mapping[str, Any]) -> Verdict:
    """Judge by what the dashboard shows.

    ``state`` has replicators, processes, slots (lists), our_slot (name), lag (bytes, s), p50 and p99 (seconds or
    `None`), clients, changes_per_s, and errors: ``database_error`` and ``roster_error`` (text or `None`).
    """
    findings = [
        *_of_the_roster(state),
        *_of_replicators(state),
        *_of_the_slot(state),
        *_of_processes(state["processes"]),
        *_of_latency(state),
    ]
    findings.sort(key=lambda finding: -_RANK[finding.level])
    if not findings:
        return Verdict("good", _all_is_well(state))
    worst = findings[0]
    return Verdict(worst.level, worst.what, tuple(findings))


def _all_is_well(state: Mapping[str, Any]) -> str:
    clients, p50 = state["clients"], state["p50"]
    if not clients:
        return "All is well. Nobody is listening yet."
    who = "One client hears" if clients == 1 else f"{clients:,} clients hear"
    if p50 is None:
        return f"All is well. {who} every change; at the moment there are none."
    return f"All is well. {who} of a change {milliseconds(p50)} after its commit."


def milliseconds(seconds: float) -> str:
    """As people say it: 0.8 ms, 12 ms, 1.4 s."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def size(count: float) -> str:
    """Bytes as people say them: 512 bytes, 64 kB, 1.5 GB."""
    unit = "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """As people say it: 40 s, 12 min, 5 h, 3 days."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def _of_the_roster(state: Mapping[str, Any]) -> Sequence[Finding]:
    if not state.get("roster_error"):
        return ()
    why = "Changes travel through it, and so does what processes tell of themselves: this page knows only its own."
    return (Finding("bad", "Redis does not answer.", why, "See that the Redis of REDIS_URL runs.", "processes"),)


def _of_replicators(state: Mapping[str, Any]) -> Sequence[Finding]:
    replicators: Sequence[Mapping[str, Any]] = state["replicators"]
    active = [replicator for replicator in replicators if replicator["role"] == "active"]
    if active:
        silent_s = min(replicator.get("progress_age_s") or 0.0 for replicator in active)
        if silent_s < SILENT_AFTER_S:
            return ()
        why = "The connection stands, but PostgreSQL has said nothing on it: no change can arrive."
        what = f"PostgreSQL has been silent for {duration(silent_s)}."
        return (Finding("bad", what, why, "See that PostgreSQL runs, and look at its log.", "processes"),)
    why = "Nobody reads the write-ahead log: clients hear nothing, and PostgreSQL keeps the log for the slot."
    error = next((replicator["error"] for replicator in replicators if replicator.get("error")), None)
    if error and any(replicator["role"] == "connecting" for replicator in replicators):
        return (Finding("bad", "Nothing is streamed.", str(error["message"]), _cure_of(error), "processes"),)
    if any(replicator["role"] == "connecting" for replicator in replicators):
        return (Finding("fair", "The replicator is connecting.", why, "Wait some seconds.", "processes"),)
    if replicators:
        what = "All replicators are standing by."
        cure = "Somebody else reads the slot: find it in pg_stat_replication, or see the section Slots."
        return (Finding("bad", what, why, cure, "slots"),)
    gone = (
        "No replicator is running." if not state.get("paused_pid") else "The replicator reads the slot and is silent."
    )
    cure = "Start one: manage.py run_replicator. If one runs, see whether it is stopped, and what its log says."
    return (Finding("bad", gone, why, cure, "processes"),)


def _cure_of(error: Mapping[str, Any]) -> str:
    return "It needs you: see above." if error.get("needs_somebody") else "Walcast tries again by itself."


def _of_the_slot(state: Mapping[str, Any]) -> Sequence[Finding]:
    findings = []
    if error := state.get("database_error"):
        why = f"What is shown of slots and tables is old, or comes from the replicator. {error}"
        findings.append(Finding("fair", "This page cannot ask the database.", why, "See that it runs.", "slots"))
    lag_bytes, lag_s = state["lag"]["bytes"], state["lag"]["s"]
    if lag_bytes and lag_s and lag_s > LAGS_AFTER_S:
        what = f"Clients are {duration(lag_s)} behind: {size(lag_bytes)} of log are still to be read."
        why = "What is committed now will arrive later by that much."
        cure = "After a large transaction it heals by itself; if it grows, see Processes for who is busy or stopped."
        findings.append(Finding("fair" if lag_s < 60 else "bad", what, why, cure, "slots"))
    for slot in state["slots"]:
        if slot["name"] != state["our_slot"]:
            continue
        if slot.get("lost_because"):
            what = f"The slot {slot['name']} is lost ({slot['lost_because']})."
            why = "What was not read yet is gone: clients are told of a gap when it is made anew."
            findings.append(Finding("bad", what, why, "Raise max_slot_wal_keep_size.", "slots"))
        elif slot.get("headroom") and slot["headroom"]["share"] >= 0.5:
            headroom = slot["headroom"]
            what = f"The slot has used {headroom['share']:.0%} of its room in the log."
            left = f", in about {duration(headroom['left_s'])} at the present rate" if headroom.get("left_s") else ""
            why = f"Over {headroom['name']} it is given up{left}, and clients are told of a gap."
            level: Level = "bad" if headroom["share"] >= 0.8 else "fair"
            findings.append(Finding(level, what, why, f"Find out what is slow, or raise {headroom['name']}.", "slots"))
    return findings


def _of_processes(processes: Sequence[Mapping[str, Any]]) -> Sequence[Finding]:
    findings = []
    if not any(process.get("serves") for process in processes):
        why = "Clients cannot connect."
        findings.append(Finding("bad", "No process serves sockets.", why, "Start a Daphne.", "processes"))
    for process in processes:
        name = f"{process['host']} ({process['pid']})"
        if process.get("serves") and not process.get("is_level"):
            why = "Its clients do not hear yet what others have heard."
            cure = "It heals by itself when the replicator runs; if not, see that Redis runs."
            findings.append(Finding("fair", f"The process {name} is behind.", why, cure, "processes"))
        if process.get("loop_delay_s", 0.0) > STUCK_LOOP_S:
            what = f"The process {name} is busy: its loop is {milliseconds(process['loop_delay_s'])} late."
            why = "Everything in it waits that long, heartbeats too."
            findings.append(Finding("fair", what, why, "Start more Daphnes, or more workers.", "processes"))
    return findings


def _of_latency(state: Mapping[str, Any]) -> Sequence[Finding]:
    p99 = state["p99"]
    if p99 is None or p99 < SLOW_P99_S:
        return ()
    what = f"One change in a hundred needs {milliseconds(p99)} or more."
    why = "A burst does that for a moment; for longer, a process or the network is too slow."
    return (Finding("fair", what, why, "See which arrow it is, and which process is busy.", "processes"),)
