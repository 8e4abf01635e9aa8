"""The garbage collector: what is kept is looked at once, and what becomes garbage later is found all the same."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest

from realtime_project import garbage


class Circle:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def tuned() -> Iterator[None]:
    before, callbacks = gc.get_threshold(), list(gc.callbacks)
    garbage.tune()
    yield
    gc.callbacks[:] = callbacks
    gc.set_threshold(*before)
    gc.unfreeze()


def test_what_is_new_is_looked_at_and_set_aside_by_itself(tuned: None) -> None:
    set_aside = gc.get_freeze_count()
    gone = weakref.ref(Circle())
    kept = [[number] for number in range(3 * garbage.YOUNG)]
    assert gone() is None
    assert gc.get_freeze_count() - set_aside >= 2 * garbage.YOUNG
    assert len(gc.get_objects(generation=2)) < garbage.YOUNG
    del kept


def test_what_was_set_aside_in_use_is_found_when_all_is_looked_at(tuned: None) -> None:
    circle = Circle()
    gone = weakref.ref(circle)
    gc.collect(0)
    del circle
    gc.collect(0)
    assert gone() is not None, "it was set aside: only a look at everything finds it"
    assert garbage.collect() >= 1
    assert gone() is None
    assert gc.get_freeze_count() > 0, "the rest is set aside again"


async def test_all_is_looked_at_now_and_then_in_a_quiet_moment(tuned: None) -> None:
    tending = asyncio.create_task(garbage.tend(look_s=0.01, whole_s=0.02))
    await asyncio.sleep(0)
    circle, gone = Circle(), asyncio.Event()
    watch = weakref.ref(circle, lambda _: gone.set())
    gc.collect(0)
    del circle
    async with asyncio.timeout(10):
        await gone.wait()
    assert watch() is None
    tending.cancel()
    with suppress(asyncio.CancelledError):
        await tending
