"""Walcast: PostgreSQL changes over websockets."""

__version__ = "0.2.0"
