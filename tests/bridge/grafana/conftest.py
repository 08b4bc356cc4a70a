"""One seeded fleet for all tests of this folder; they read it as Grafana's role does."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import pytest

from bridge.dashboards.ask import reader
from tests.bridge.grafana import seed
from tests.postgres import create_database


@dataclass(frozen=True, slots=True)
class Fleet:
    """A database with a fleet in it, and the moment up to which the fleet has lived."""

    dsn: str
    now: datetime


@pytest.fixture(scope="session")
def fleet(postgres: str, template: str) -> Fleet:
    now = seed.fresh()
    dsn = create_database(postgres, "seeded_fleet", template)
    seed.seed(dsn, now)
    return Fleet(dsn, now)


@pytest.fixture(scope="session")
def grafana(fleet: Fleet) -> Iterator[psycopg.Connection[Any]]:
    """Return a connection with the rights of the reader."""
    with reader(fleet.dsn) as connection:
        yield connection
