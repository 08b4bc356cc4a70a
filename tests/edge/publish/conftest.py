"""Real brokers for publisher tests, one of each kind that is here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import MOSQUITTO, Amqtt, Mosquitto

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
