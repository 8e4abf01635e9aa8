"""What this process is made of, for those who tell of it: health checks, metrics, the dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streaming.hub import Hub
from streaming.latency import Histogram
from streaming.rooms import Rooms

if TYPE_CHECKING:
    from streaming.dashboard import Dashboard
    from streaming.observatory import Observatory


@dataclass(slots=True)
class Process:
    """The parts of a process that serves sockets; ``hub`` is there once the application has been made."""

    hub: Hub | None = None
    rooms: Rooms | None = None
    decoded: Histogram | None = None
    """From a commit to the replicator, if one is here."""
    observatory: Observatory | None = None
    dashboard: Dashboard | None = None


this_process = Process()
"""This one."""
