"""One seeded fleet for all tests of this folder; they read it as Grafana's role does."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
import pytest

from bridge.dashboards.ask import reader
from bridge.rollout.plan import Bundle, State
from bridge.rollout.records import Records
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
    roll_out(dsn)
    return Fleet(dsn, now)


def roll_out(dsn: str) -> None:
    """Roll a config out to every box: the first takes it, the second does not."""
    with closing(Records(dsn)) as records, psycopg.connect(dsn) as connection:
        names = connection.execute("SELECT site, box FROM report.box_status ORDER BY 1, 2").fetchall()
        bundles = [Bundle(site, box, 7, f"https://centre/{box}.ffbundle", "0" * 64, 1) for site, box in names]
        number = records.start(bundles, [1, 1, len(names) - 2], tolerated=0, patience_s=600)
        outcomes: list[tuple[int, State]] = [(1, "committed"), (2, "rolled_back")]
        for wave, state in outcomes:
            records.open_wave(number, wave)
            box = next(box for box in records.boxes(number) if box.wave == wave)
            records.set_box(number, replace(box, state=state, reason="" if wave == 1 else "the publisher is gone"))
        records.end(number, "stopped", "1 failed")


@pytest.fixture(scope="session")
def grafana(fleet: Fleet) -> Iterator[psycopg.Connection[Any]]:
    """Return a connection with the rights of the reader."""
    with reader(fleet.dsn) as connection:
        yield connection
