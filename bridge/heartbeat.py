"""Tells the service manager that a bridge lives, and in a line how it stands.

A broker or a database that is away is a state and shown as one; only a loop that hangs ends the feeding.
"""

import logging
import time
from typing import Protocol

from bridge.subscriber import Status
from edge.notify import Notifier

log = logging.getLogger(__name__)

STUCK_S = 60.0  # longer than any wait for an answer of the broker
FEED_S = 5.0


class Alive(Protocol):
    """What is looked at: a `bridge.app.Bridge`."""

    @property
    def status(self) -> Status: ...
    @property
    def connected(self) -> bool: ...
    @property
    def turned_at_s(self) -> float: ...


class Heartbeat:
    """Call `beat` in every turn of the bridge's loop."""

    def __init__(self, bridge: Alive, notifier: Notifier) -> None:
        self._bridge, self._notifier = bridge, notifier
        self._said = ""
        self._fed_s = float("-inf")
        self._feed_s = min(FEED_S, (notifier.watchdog_s or 60.0) / 3)

    def beat(self) -> None:
        """Feed the watchdog while both loops turn; say ready once, and the state whenever it changes."""
        broker = "connected" if self._bridge.connected else "away"
        text = f"{self._bridge.status}, broker {broker}"
        if not self._said:
            self._notifier.ready(text)  # at once: boxes and broker may come and go, that is what it is for
        elif text != self._said:
            self._notifier.status(text)
        self._said = text
        now_s = time.monotonic()
        if now_s - self._fed_s < self._feed_s:
            return
        if (still_s := now_s - self._bridge.turned_at_s) > STUCK_S:
            log.error("stuck: the network thread has not turned for %.0f s; the watchdog is no longer fed", still_s)
        else:
            self._notifier.alive()
        self._fed_s = now_s
