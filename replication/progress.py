"""Received, published, kept: and so which LSN may be acknowledged."""

from __future__ import annotations

from replication.copy_both import PrimaryKeepalive, StandbyStatusUpdate
from replication.lsn import BEGINNING

STATUS_INTERVAL_S = 3.0
"""How often the server hears from us: well inside the ``wal_sender_timeout`` that the connection sets."""

REPORT_PAUSE_S = 0.002
"""A busy stream is not told more often than this how far it has been read."""

_SHUTDOWN_QUESTIONS, _SHUTDOWN_WINDOW_S = 3, 1.0


class Progress:
    """What was heard and what was published on one slot; decides what the server may forget.

    Source: https://www.postgresql.org/docs/current/protocol-replication.html
    """

    def __init__(self, *, permanent: bool) -> None:
        self._permanent = permanent
        self.received_lsn = 0
        self.published = BEGINNING
        self._idle_wal_end = 0
        self._complete_end_lsn = 0
        self._flushed_lsn = 0
        self._status_at = self._report_at = float("-inf")
        self._reported_lsn = 0
        self._reply_requested = False
        self._questions: list[float] = []

    @property
    def server_waits_for_us(self) -> bool:
        """The server asks again at once with nothing new to say: it shuts down and waits until all is flushed.

        What the ring keeps is not acknowledged, so it would wait for ever: end the connection, keep the ring.
        """
        return len(self._questions) >= _SHUTDOWN_QUESTIONS

    def received(self, lsn: int) -> None:
        """The stream has come as far as ``lsn``."""
        self.received_lsn = max(self.received_lsn, lsn)

    def heard(self, keepalive: PrimaryKeepalive, *, idle: bool, now: float) -> None:
        """A keepalive came. With no transaction open, everything before its end has been received (``idle``)."""
        if keepalive.reply_requested:
            self._questions = [at for at in self._questions if now - at < _SHUTDOWN_WINDOW_S]
            if keepalive.wal_end != self.received_lsn:
                self._questions.clear()
            self._questions.append(now)
        self.received(keepalive.wal_end)
        if idle:
            self._idle_wal_end = max(self._idle_wal_end, keepalive.wal_end)
        self._reply_requested = self._reply_requested or keepalive.reply_requested

    def transaction_published(self, end_lsn: int) -> None:
        """A transaction that ends at ``end_lsn`` is published whole."""
        self._complete_end_lsn = max(self._complete_end_lsn, end_lsn)

    def acknowledgeable(self, *, oldest_kept: int | None, open_commit_lsn: int | None, unpublished: bool) -> int:
        """The flush LSN: the server sends again what commits at or above it.

        With a permanent slot that is the commit LSN of the oldest transaction still kept or open, so that after a
        crash the server fills the ring again. With nothing kept, open or unpublished it is where the last keepalive
        stood (never where XLogData stood): an idle slot moves on. A temporary slot dies with its connection, so what is
        published is done.
        """
        lsn = self._flushed_lsn
        if not self._permanent:
            lsn = max(lsn, self._complete_end_lsn)
            if open_commit_lsn is None and not unpublished:
                lsn = max(lsn, self._idle_wal_end)
        elif kept := [commit_lsn for commit_lsn in (oldest_kept, open_commit_lsn) if commit_lsn is not None]:
            lsn = max(lsn, min(kept))
        elif not unpublished:
            lsn = max(lsn, self._idle_wal_end)
        self._flushed_lsn = lsn
        return lsn

    def status_due(self, now: float) -> bool:
        """The server asked for an answer, or has not heard from us for `STATUS_INTERVAL_S`."""
        return self._reply_requested or now - self._status_at >= STATUS_INTERVAL_S

    def status(self, flushed_lsn: int, now: float, sent_at: int) -> StandbyStatusUpdate:
        """The answer to send now; ``flushed_lsn`` as `acknowledgeable` gave it, ``sent_at`` on PostgreSQL's clock."""
        # An answer asks nothing back, else the two of us would never stop; any other status update asks for one, and
        # so shows that the server lives, and where its WAL ends.
        asks = not self._reply_requested
        self._status_at, self._reply_requested = now, False
        return StandbyStatusUpdate(max(self.received_lsn, flushed_lsn), flushed_lsn, flushed_lsn, sent_at, asks)

    def report_due(self, now: float) -> bool:
        """More has been received than the server knows, so before the next transaction it would send a keepalive.

        It sends one whenever it has caught up with us and we, as far as it knows, have not: we would be woken for that,
        and on a busy machine the transaction would wait until we have read it.
        """
        return self.received_lsn > self._reported_lsn and now - self._report_at >= REPORT_PAUSE_S

    def report(self, flushed_lsn: int, now: float, sent_at: int) -> StandbyStatusUpdate:
        """How far we have come, with no question; arguments as `status` takes them."""
        self._report_at, self._reported_lsn = now, self.received_lsn
        return StandbyStatusUpdate(max(self.received_lsn, flushed_lsn), flushed_lsn, flushed_lsn, sent_at)

    def reconnected(self) -> None:
        """A new stream begins: an old keepalive's question is void, and the server wants to hear from us soon."""
        self._status_at = self._report_at = float("-inf")
        self._reported_lsn, self._reply_requested = 0, False
        self._questions.clear()
