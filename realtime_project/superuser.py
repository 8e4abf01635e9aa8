"""A user for the dashboard of the quick start: there is nobody yet who could make one."""

from __future__ import annotations

import secrets

from django.contrib.auth import get_user_model

NAME = "admin"


def make_superuser() -> str | None:
    """Make the user `NAME` with a random password and return that, or `None` if there is a superuser already."""
    users = get_user_model()
    if users.objects.filter(is_superuser=True, is_active=True).exists():
        return None
    password = secrets.token_urlsafe(12)
    users.objects.create_superuser(NAME, password=password)
    return password
