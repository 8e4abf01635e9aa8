"""What this process is made of, for those who tell of it: health checks, metrics, the dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streaming.hub import Hub
from streaming.rooms import Rooms
from streaming.timed import TimedPublisher

if TYPE_CHECKING:
    from streaming.dashboard import Dashboard
    from streaming.observatory import Observatory


@dataclass(slots=True)
class Process:
    """The parts of a process that serves sockets; ``hub`` is there once the application has been made."""

    hub: Hub | None = None
    rooms: Rooms | None = None
    timed: TimedPublisher | None = None
    """What the replicator publishes into, if one is here: it knows how long changes took from their commit."""
    observatory: Observatory | None = None
    dashboard: Dashboard | None = None


this_process = Process()
"""This one."""
