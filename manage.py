#!/usr/bin/env python3
"""Django's command line for Walcast: `manage.py realtime` is the quick start, `manage.py help` lists the rest."""

import os
import sys


def main() -> None:
    """Run the management command that the arguments name."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realtime_project.settings")
    try:
        from django.core.management import execute_from_command_line
    except ImportError as error:
        sys.exit(f"{error}\nInstall Walcast into the environment first: pip install -e .")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
