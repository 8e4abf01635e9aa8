"""Settings as texts: out of the environment, out of files, out of a project's own settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict

from realtime_project.environment import Environment, Texts, libpq_dsn, of_project, texts_of
from tests.system.server import PROJECT

POSTGRES = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": "shop",
    "USER": "me",
    "PASSWORD": "it's $ecret",
    "HOST": "db",
    "PORT": 5433,
    "OPTIONS": {"sslmode": "require", "pool": True},
}


def printed(name: str, **env: str) -> str:
    """A setting, as a process with that environment has it; or what it says when it does not start."""
    script = f"from realtime_project import settings; print(settings.{name})"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "SECURE_CHANNELS": "false"} | env
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def test_a_secret_can_be_in_a_file_whose_last_line_end_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret with spaces \n")

    assert Texts({"JWT_SECRET_FILE": str(tmp_path / "secret")})["JWT_SECRET"] == "s3cret with spaces "


def test_a_setting_and_its_file_at_once_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")
    texts = Texts({"JWT_SECRET": "another", "JWT_SECRET_FILE": str(tmp_path / "secret")})

    assert texts.get("JWT_SECRET") == "another"
    assert texts.problems == [
        "JWT_SECRET and JWT_SECRET_FILE are both set, and only one of them can be meant; take one away"
    ]


def test_an_empty_name_beside_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")

    assert Texts({"JWT_SECRET": "", "JWT_SECRET_FILE": str(tmp_path / "secret")}).get("JWT_SECRET") == "one"


def test_a_file_that_is_not_there_ends_the_start_and_says_which(tmp_path: Path) -> None:
    said = printed("JWT_SECRET", JWT_SECRET_FILE=str(tmp_path / "nothing"))

    assert "Walcast cannot start:" in said
    assert f"JWT_SECRET_FILE='{tmp_path}/nothing' cannot be read (No such file or directory)" in said


def test_any_setting_can_be_in_a_file_and_the_file_of_the_configuration_is_itself(tmp_path: Path) -> None:
    names = ("JWT_SECRET", "PORT", "DB_PASSWORD", "METRICS_TOKEN")
    (tmp_path / "text").write_text("4711\n")
    (tmp_path / "configuration.json").write_text('{"realtime": []}')
    files = {f"{name}_FILE": str(tmp_path / "text") for name in names}

    said = printed(
        "JWT_SECRET, settings.PORT, settings.STREAM_DSN, settings.METRICS_TOKEN, settings.CONFIGURATION",
        CONFIGURATION_FILE=str(tmp_path / "configuration.json"),
        **files,
    )

    assert said.count("4711") == len(names)
    assert "Configuration(realtime=()" in said


@pytest.mark.parametrize("password", ["$HOME", "$", "a$b", r"a\$b", "$$x"])
def test_a_dollar_sign_is_a_dollar_sign(password: str) -> None:
    assert Environment({"DB_PASSWORD": password}).str("DB_PASSWORD") == password


def test_nothing_reads_the_environment_past_it() -> None:
    source = (PROJECT / "realtime_project" / "settings.py").read_text()

    assert re.findall(r"os\.environ\b(?!\))", source) == []
    assert len(re.findall(r"os\.environ", source)) == 1


def test_values_of_python_are_spelled_as_in_the_environment() -> None:
    values = {
        "SECURE_CHANNELS": True,
        "PORT": 4000,
        "PUBLICATIONS": ["a"],
        "SLOT_NAME": None,
        "WALCAST_HOME": Path("/x"),
    }

    assert texts_of(values) == {
        "SECURE_CHANNELS": "True",
        "PORT": "4000",
        "PUBLICATIONS": '["a"]',
        "SLOT_NAME": "",
        "WALCAST_HOME": "/x",
    }


def test_the_default_database_of_a_project_is_what_is_streamed() -> None:
    project = SimpleNamespace(DEBUG=False, DATABASES={"default": POSTGRES}, BASE_DIR=Path("/srv/shop"))

    texts = of_project(project)

    assert conninfo_to_dict(texts["DATABASE_URL"]) == {
        "dbname": "shop",
        "user": "me",
        "password": "it's $ecret",
        "host": "db",
        "port": "5433",
        "sslmode": "require",
    }
    assert texts["WALCAST_HOME"] == "/srv/shop/.walcast"


@pytest.mark.parametrize(
    "given", [{"DATABASE_URL": "postgresql://other/x"}, {"DB_HOST": "x"}, {"DB_PASSWORD_FILE": "x"}]
)
def test_unless_another_is_named(given: dict[str, str]) -> None:
    project = SimpleNamespace(DEBUG=False, DATABASES={"default": POSTGRES}, WALCAST=given)

    assert of_project(project).get("DATABASE_URL", "") == given.get("DATABASE_URL", "")


def test_a_database_of_another_kind_has_no_log_to_stream() -> None:
    assert libpq_dsn({"ENGINE": "django.db.backends.sqlite3", "NAME": "x"}) is None


@pytest.mark.parametrize("given", [None, ["SLOT_NAME"], {1: "x"}])
def test_settings_of_another_shape_are_told_of(given: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="right would be, for example, WALCAST"):
        of_project(SimpleNamespace(DEBUG=False, DATABASES={}, WALCAST=given))
