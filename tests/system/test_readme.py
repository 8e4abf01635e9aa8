"""The README tells of what is there, and of all of it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import psycopg
import pytest

from tests.clients.install import NodeClients
from tests.system.server import PROJECT, RealtimeServer

README = (PROJECT / "README.md").read_text()
PACKAGES = ("realtime_project", "replication", "streaming")


def section(title: str) -> str:
    """What stands below a heading of the second level."""
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def code(language: str, *, holding: str) -> str:
    """The code block of that language with that text in it."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if holding in block)


def test_every_setting_is_in_the_table_in_the_order_of_the_settings_file() -> None:
    source = (PROJECT / "realtime_project" / "settings.py").read_text()
    read = re.findall(r'(?:_read|env\.(?:str|list|db_url)|environ\.get)\(\s*"(\w+)"', source)

    assert re.findall(r"^\| `(\w+)` \|", section("Settings"), re.MULTILINE) == list(dict.fromkeys(read))


def test_every_warning_and_error_is_explained() -> None:
    sources = [path.read_text() for package in PACKAGES for path in (PROJECT / package).rglob("*.py")]
    said = {text for source in sources for text in re.findall(r'logger\.(?:warning|error)\(\s*"([^"]+)"', source)}
    rows = re.findall(r"^\|.*", section("Operations"), re.MULTILINE)
    explained = {text for row in rows for text in re.findall(r"`([^`]+)`", row)}

    assert said, "the pattern no longer finds what is logged"
    assert said - explained == set()


def layout() -> Iterator[Path]:
    """The files and folders that the layout names, relative to the project."""
    (block,) = re.findall(r"```text\n(.*?)```", section("Layout"), re.DOTALL)
    folder = Path()
    for line in block.splitlines():
        names = re.split(r" {2,}", line.strip())[0]
        if not line.startswith(" "):
            folder = Path(names) if names.endswith("/") else Path()
            yield from map(Path, names.split(", "))
        elif names:
            yield from (folder / name for name in names.split(", "))


def test_what_the_layout_names_is_there() -> None:
    assert [str(path) for path in layout() if not (PROJECT / path).exists()] == []


def test_the_layout_names_every_module() -> None:
    modules = {
        path.relative_to(PROJECT)
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*.py")
        if path.name != "__init__.py" and path.parent.name != "migrations"
    }

    assert sorted(map(str, modules - set(layout()))) == []


def test_the_layout_names_everything_at_the_top() -> None:
    ignored = [line.rstrip("/") for line in (PROJECT / ".gitignore").read_text().split()]
    there = {
        path.name
        for path in PROJECT.iterdir()
        if path.name != ".git" and not any(fnmatch(path.name, pattern) for pattern in ignored)
    }

    assert sorted(there - {path.parts[0] for path in layout()}) == []


def test_its_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^##+ (.*)", README, re.M)
    }
    links = re.findall(r"\]\(([^)]+)\)", README)

    assert [link for link in links if link.startswith("#") and link[1:] not in anchors] == []
    assert [link for link in links if not re.match("#|https?:", link) and not (PROJECT / link).exists()] == []


def test_the_python_client_prints_a_change(realtime_server: RealtimeServer, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(at(code("python", holding="asyncio.run(main())"), realtime_server))

    lines = asyncio.run(_lines([sys.executable, script], tmp_path, realtime_server, ready="phx_reply"))

    assert lines[-1].startswith("INSERT {")
    assert "Hello from psql" in lines[-1]


@pytest.mark.parametrize(
    ("holding", "package", "installed", "ready", "kind"),
    [
        ("RealtimeClient } = require", "@supabase/realtime-js", "realtime-js-1.7.5", "listening", "commonjs"),
        ("createClient } from", "@supabase/supabase-js", "@supabase/supabase-js", "Subscribed", "module"),
    ],
    ids=["of 2021", "of today"],
)
def test_the_javascript_client_prints_a_change(
    holding: str,
    package: str,
    installed: str,
    ready: str,
    kind: str,
    realtime_server: RealtimeServer,
    node_clients: NodeClients,
) -> None:
    source = at(code("js", holding=holding), realtime_server).replace(f"'{package}'", f"'{installed}'")

    argv: list[str | Path] = [node_clients.node, f"--input-type={kind}", "-e", source]
    lines = asyncio.run(_lines(argv, node_clients.folder, realtime_server, ready=ready))

    assert lines[-1].startswith("INSERT {")


def at(source: str, server: RealtimeServer) -> str:
    """The snippet, sent to the server under test."""
    assert "//localhost:4000/" in source
    return source.replace("//localhost:4000/", f"//127.0.0.1:{server.port}/")


async def _lines(argv: list[str | Path], folder: Path, server: RealtimeServer, *, ready: str) -> list[str]:
    """Run the README's client, change a row when it listens, and return what it printed up to the change."""
    process = await asyncio.create_subprocess_exec(*argv, cwd=folder, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(30):
            while not lines or not lines[-1].startswith("INSERT"):
                lines.append((await process.stdout.readline()).decode())
                if not lines[-1]:
                    pytest.fail(f"the client ended; it had printed {lines}")
                if lines[-1].startswith(ready):
                    statement = re.findall(r'-c "(.*)"', code("sh", holding="psql"))[0]
                    async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
                        await connection.execute(statement)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    return lines
