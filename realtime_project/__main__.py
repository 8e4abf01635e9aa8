"""Walcast's command line where it is installed as a package: ``walcast realtime``, ``walcast help``."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the management command that the arguments name, as `manage.py` does in a clone."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realtime_project.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
