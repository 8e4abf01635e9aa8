"""What a warning or an error means and what to do about it: the table of the README, read and not repeated."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

_README = Path(__file__).resolve().parent.parent / "README.md"
_ROW = re.compile(r"^\|(?P<said>.+?)\|(?P<meaning>.+?)\|(?P<cure>.+?)\|\s*$", re.MULTILINE)
_MESSAGE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")


class Cure(NamedTuple):
    """In the words of the README: Markdown with nothing in it but `code` and **bold**."""

    meaning: str
    cure: str


def parse(readme: str) -> dict[str, Cure]:
    """Message to cure, out of the table in the section *Operations*; empty if there is none."""
    section = readme.partition("\n## Operations\n")[2].partition("\n## ")[0]
    cures: dict[str, Cure] = {}
    for row in _ROW.finditer(section):
        meaning, cure = (_LINK.sub(r"\1", row[part].strip()) for part in ("meaning", "cure"))
        for message in _MESSAGE.findall(row["said"]):
            cures.setdefault(message, Cure(meaning, cure))
    return cures


@cache
def cures() -> dict[str, Cure]:
    """Those of this version: from the README beside the code, or out of the installed package's description."""
    try:
        return parse(_README.read_text())
    except OSError:
        pass
    try:
        return parse(str(metadata.metadata("walcast").json["description"]))
    except metadata.PackageNotFoundError:
        return {}
