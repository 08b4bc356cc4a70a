"""Fixtures of the demo's tests."""

from tests.postgres import dsn, postgres, template

__all__ = ["dsn", "postgres", "template"]
