"""Outboxes that open again and again, and real brokers for publisher tests, one of each kind that is here."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.publish.clock import MediaClock
from edge.publish.outbox import Outbox
from tests.broker import MOSQUITTO, Amqtt, Mosquitto
from tests.edge.publish.lives import DATABASE, WORDS, Make

KINDS = [("mosquitto", "5"), ("mosquitto", "3.1.1"), ("amqtt", "3.1.1")]


@pytest.fixture(params=KINDS, ids=["-".join(kind) for kind in KINDS])
def wired(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Mosquitto | Amqtt, str]]:
    """Return a running broker and a protocol it speaks."""
    kind, protocol = request.param
    if kind == "mosquitto" and MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    folder = tmp_path / "broker"
    folder.mkdir()
    with (Mosquitto if kind == "mosquitto" else Amqtt)(folder) as broker:
        yield broker, protocol


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto | Amqtt]:
    """Return a running broker: Mosquitto where it is installed, else amqtt."""
    folder = tmp_path / "broker"
    folder.mkdir()
    with (Mosquitto if MOSQUITTO else Amqtt)(folder) as broker:
        yield broker


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return what opens the same outbox again, as the next life of the process."""
    streams = iter(range(101, 200))
    opened: list[Outbox] = []

    def _make(**changes: Any) -> Outbox:
        settings: dict[str, Any] = {
            "stream": next(streams), "vocabulary": WORDS, "clock": MediaClock(1_000_000), "reserve_bytes": 0,
        }  # fmt: skip
        outbox = Outbox(tmp_path / "outbox.db", **(settings | changes))
        outbox.use(DATABASE)
        opened.append(outbox)
        return outbox

    yield _make
    for outbox in opened:
        with contextlib.suppress(sqlite3.Error):
            outbox.close()
