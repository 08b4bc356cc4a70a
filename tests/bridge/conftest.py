"""Fixtures of the bridge's tests."""

from tests.postgres import dsn, empty_dsn, postgres, template

__all__ = ["dsn", "empty_dsn", "postgres", "template"]
