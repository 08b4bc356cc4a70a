"""Says to systemd that the box lives: ready, still turning, stopping. One datagram each; no library is needed.

Fed while every loop turns and no inference is stuck. A dead camera, a missing broker or missing acks are states in
health, never a reason to stop feeding: an outage in the centre must not restart a fleet.
"""

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop that must turn: its name and when it last did, on the monotonic clock."""

    name: str
    turned_at_s: float


def stuck(loops: Iterable[Loop], now_s: float, limit_s: float) -> list[str]:
    """Return the names of the loops that have not turned for `limit_s`."""
    return [loop.name for loop in loops if now_s - loop.turned_at_s > limit_s]


class Notifier:
    """The service manager's notify socket, or nothing where there is none.

    Source: sd_notify(3); the address comes in $NOTIFY_SOCKET, an abstract one begins with @.
    """

    def __init__(self, address: str | None = None) -> None:
        address = address if address is not None else os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @property
    def watchdog_s(self) -> float | None:
        """Return how often systemd wants to hear from this process, None if never."""
        usec = os.environ.get("WATCHDOG_USEC", "")
        pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
        return int(usec) / 1e6 if usec.isdecimal() and pid == str(os.getpid()) else None

    def ready(self, status: str) -> None:
        """Say that start-up is over."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """Show a line in `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for more time while models compile."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def stopping(self) -> None:
        """Say that the process is on its way out."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
            try:
                datagram.sendto(message.encode(), self._address)
            except OSError:
                return  # the manager is gone: there is nobody left to tell
