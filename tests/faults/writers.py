"""Writers that number their rows and know which of them are committed, whatever happens to the database meanwhile."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import psycopg

TABLE = "items"
CREATE = f"create table {TABLE}(id bigint primary key, writer int not null, note text)"

_PATIENCE_S = 0.05
NUMBERS = 10**15
"""How many rows a writer may have: its rows are numbered from ``writer * NUMBERS``."""
ORDEAL = 10**7
"""How many of them in one ordeal."""


class Writer:
    """Commits numbered rows in a thread of its own, until stopped. Each transaction holds a few, in order."""

    def __init__(self, dsn: str, writer: int, *, seed: int = 0, pause_s: float = 0.01, first: int = 0) -> None:
        self._dsn, self._writer, self._pause_s = dsn, writer, pause_s
        self._dice = random.Random(seed * 1000 + writer)
        self._next = writer * NUMBERS + first
        self.first = self._next
        self.committed: list[int] = []
        """The ids in commit order."""
        self.doubted: list[int] = []
        """Those of which nobody knows whether they were ever committed: they are not there, and not written again."""
        self.committed_at: dict[int, float] = {}
        self.failures = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer {writer}", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, limit_s: float = 60.0) -> None:
        """Write no more; what is committed is known when this returns."""
        self._ending.set()
        self._thread.join(limit_s)
        if self._thread.is_alive():
            raise TimeoutError(f"writer {self._writer} cannot end: the database does not come back")

    def _run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        in_doubt: list[int] = []
        while True:
            try:
                if connection is None or connection.closed:
                    connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=2)
                if in_doubt:
                    # The answer to the COMMIT got lost with the connection: it was committed whole, or not at all.
                    found = connection.execute(f"select 1 from {TABLE} where id = %s", [in_doubt[0]]).fetchone()
                    if found:
                        self._note(in_doubt)
                    else:
                        self.doubted += in_doubt
                        self._next = in_doubt[-1] + 1
                    in_doubt = []
                if self._ending.is_set():
                    break
                ids = list(range(self._next, self._next + self._dice.choice([1, 1, 2, 5])))
                in_doubt = ids
                connection.execute(
                    f"insert into {TABLE}(id, writer, note) select n, %s, repeat('x', (n %% 50)::int) "
                    f"from generate_series(%s::bigint, %s::bigint) n",
                    [self._writer, ids[0], ids[-1]],
                )
                self._note(ids)
                in_doubt = []
            except psycopg.Error:
                self.failures += 1
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(_PATIENCE_S)
                continue
            time.sleep(self._pause_s * self._dice.random() * 2)
        connection.close()

    def _note(self, ids: list[int]) -> None:
        at = time.monotonic()
        self.committed += ids
        self.committed_at |= dict.fromkeys(ids, at)
        self._next = ids[-1] + 1
