"""Where we answer otherwise than the original server, case by case, and why.

A recorded case that is not listed has to be answered alike, and a listed one has to differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Difference:
    """Why we answer otherwise, and how: those parts of the answer that are not as they were recorded."""

    reason: str
    ours: Mapping[str, Any]


DIFFERENCES: dict[str, Difference] = {}

NOT_RUN: dict[str, str] = {}
