"""What the service manager hears of a bridge."""

import time
from dataclasses import dataclass, field

import pytest

from bridge.heartbeat import STUCK_S, Heartbeat
from bridge.subscriber import Status
from edge.notify import Notifier


class Heard(Notifier):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__("")
        self.lines: list[str] = []

    def _send(self, message: str) -> None:
        self.lines += message.splitlines()


@dataclass
class FakeBridge:
    status: Status = "paused"
    connected: bool = False
    turned_at_s: float = field(default_factory=time.monotonic)


def test_a_bridge_is_ready_and_fed_while_broker_and_database_are_away() -> None:
    heard, bridge = Heard(), FakeBridge()
    Heartbeat(bridge, heard).beat()
    assert heard.lines == ["READY=1", "STATUS=paused, broker away", "WATCHDOG=1"]


def test_the_state_is_shown_when_it_changes_and_only_then() -> None:
    heard, bridge = Heard(), FakeBridge()
    heartbeat = Heartbeat(bridge, heard)
    heartbeat.beat()
    heartbeat.beat()
    bridge.status, bridge.connected = "accepting", True
    heartbeat.beat()
    assert heard.lines[3:] == ["STATUS=accepting, broker connected"]


def test_a_network_thread_that_hangs_ends_the_feeding(caplog: pytest.LogCaptureFixture) -> None:
    heard, bridge = Heard(), FakeBridge(turned_at_s=time.monotonic() - STUCK_S - 1)
    Heartbeat(bridge, heard).beat()
    assert "WATCHDOG=1" not in heard.lines
    assert "the network thread has not turned for 61 s" in caplog.text
