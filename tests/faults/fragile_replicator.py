"""``manage.py run_replicator`` that kills itself (SIGKILL) at one boundary between two stages of its work.

    python -m tests.faults.fragile_replicator STAGE COUNT

dies when it comes to ``STAGE`` for the ``COUNT``-th time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

STAGES = (
    "read, not kept",
    "kept, not published",
    "published, not noted",
    "about to record",
    "recorded, not acknowledged",
    "acknowledged",
)
SLOT_MADE = "slot made, not recorded"


def main(stage: str, times: int) -> None:
    """Run until the boundary is reached."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realtime_project.settings")
    import django

    django.setup()
    _prepare(stage, times)
    from django.core.management import call_command

    call_command("run_replicator")


def _prepare(stage: str, times: int) -> None:
    from replication import slots
    from replication.connection import ReplicationConnection
    from replication.history import History
    from replication.models import DjangoRecordStore
    from replication.publisher import LayerPublisher

    counter = count(1)

    def die() -> None:
        if next(counter) >= times:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def dying(*arguments: Any, **more: Any) -> Any:
            die()
            return function(*arguments, **more)

        setattr(owner, name, dying)

    def after(owner: Any, name: str) -> None:
        function: Callable[..., Coroutine[Any, Any, Any]] = getattr(owner, name)

        async def dying(*arguments: Any, **more: Any) -> Any:
            result = await function(*arguments, **more)
            die()
            return result

        setattr(owner, name, dying)

    match stage:
        case "read, not kept":
            before(History, "keep")
        case "kept, not published":
            before(LayerPublisher, "publish")
        case "published, not noted":
            after(LayerPublisher, "publish")
        case "about to record":
            before(DjangoRecordStore, "save")
        case "recorded, not acknowledged":
            after(DjangoRecordStore, "save")
        case "acknowledged":
            after(ReplicationConnection, "send")
        case _ if stage == SLOT_MADE:
            after(slots, "create_slot")
        case _:
            raise SystemExit(f"{stage!r} is none of {STAGES}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
