"""Whether this process can serve: not that it is alive, but that changes come through.

What a replicator tells of itself once a second stands in the roster. Readiness means progress: somebody reads the slot,
PostgreSQL has said something on the stream lately, and what is published has arrived here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

REPLICATORS: Final = "replicator"
"""The kind of the replicators' records in the roster: name to `replication.status.ReplicatorStatus` as JSON, and
``process``, ``host`` and ``pid`` of the process."""

REPORT_S, REPORT_LEASE_S = 1.0, 5.0

REASONS: Final = {
    "roster_away": "Redis does not answer, so neither changes nor word of the replicator arrive; see that it runs",
    "no_replicator": "no replicator has told of itself in the last seconds; start one: manage.py run_replicator",
    "standing_by": "there are replicators, but all of them wait for one another's slot; see pg_replication_slots",
    "not_streaming": "the replicator does not stream; its log, and manage.py doctor, say why",
    "no_progress": "PostgreSQL has said nothing on the stream for too long; see that it runs, and its log",
    "behind": "this process does not get what the replicator publishes; see that Redis runs, and this process's log",
}
"""Why a process is not ready, and what to do. They are public, so they name no hosts and quote no errors."""


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict: ``reason`` is a key of `REASONS`, or `None` when all is well; ``facts`` are for the curious."""

    reason: str | None
    facts: Mapping[str, Any]

    @property
    def is_ready(self) -> bool:
        """Whether changes come through."""
        return self.reason is None

    def as_json(self) -> dict[str, Any]:
        """What a health check reads."""
        status = {"status": "ready"} if self.reason is None else {"status": "unavailable", "reason": self.reason}
        message = {} if self.reason is None else {"message": REASONS[self.reason]}
        return status | message | dict(self.facts)


def active_replicator(replicators: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The one that reads the slot, if there is one; of two that overlap the one that has heard something last."""
    active = [status for status in replicators.values() if status.get("role") == "active"]
    return min(active, key=_silence, default=None)


def judge(
    replicators: Mapping[str, Mapping[str, Any]] | None, *, ready_within_s: float, stuck_s: float = 0.0
) -> Health:
    """Judge by the replicators' records (`None`: the roster is away).

    ``stuck_s``: for how long this process has had nothing new, although something was published.
    """
    if replicators is None:
        return Health("roster_away", {})
    status = active_replicator(replicators)
    if status is None:
        roles = [str(status.get("role")) for status in replicators.values()]
        if not roles:
            return Health("no_replicator", {})
        reason = "standing_by" if all(role == "standby" for role in roles) else "not_streaming"
        kinds = {str(error["kind"]) for status in replicators.values() if (error := status.get("error"))}
        return Health(reason, {"replicators": sorted(roles), "errors": sorted(kinds)})
    silence_s = _silence(status)
    facts = {"progress_age_s": round(silence_s, 3), "lag_s": status.get("lag_s"), "lag_bytes": status.get("lag_bytes")}
    if silence_s > ready_within_s:
        return Health("no_progress", facts)
    if stuck_s > ready_within_s:
        return Health("behind", facts | {"behind_s": round(stuck_s, 3)})
    return Health(None, facts)


def _silence(status: Mapping[str, Any]) -> float:
    age = status.get("progress_age_s")
    return float("inf") if age is None else float(age)


class Standstill:
    """For how long a reader has stood still below what there is to read. Moments are told."""

    def __init__(self) -> None:
        self._at: object = None
        self._since = 0.0

    def seconds(self, at: object, *, is_level: bool, now: float) -> float:
        """``at`` is where the reader stands; level with what there is, it has reason to stand still."""
        if is_level or at != self._at:
            self._at, self._since = at, now
        return now - self._since
