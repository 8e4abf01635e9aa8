"""The key that signs sessions, when nobody has set one: random, and kept beside the Django database.

A new key at each start would sign everybody out, and processes with different keys would not know each other's
sessions.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

_NAME = "secret_key"


def kept_secret_key(home: Path) -> str | None:
    """The key in this folder, or `None` if none has been kept there yet, or none that we may read."""
    try:
        return (home / _NAME).read_text().strip() or None
    except OSError:
        return None


def keep_secret_key(home: Path, key: str) -> str:
    """Keep ``key`` in the folder, unless another process has kept one: the key to use is returned.

    A folder that cannot be written to is no reason not to start: the key then lasts as long as the process.
    """
    if kept := kept_secret_key(home):
        return kept
    try:
        home.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, and the first one wins: processes start together.
        descriptor, unfinished = tempfile.mkstemp(prefix=f".{_NAME}-", dir=home)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(key + "\n")
            with suppress(FileExistsError):
                os.link(unfinished, home / _NAME)
        finally:
            os.unlink(unfinished)
    except OSError:
        return key
    return kept_secret_key(home) or key
