"""Says to systemd that a process lives: ready, still turning, stopping. One datagram each; no library is needed.

Box and bridge share it. Outside a service it does nothing.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

MORE_S = 60.0  # asked for at a time while models compile


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

    @contextmanager
    def taking_long(self, at_most_s: float = 900.0) -> Iterator[None]:
        """Ask for more time again and again while the block runs, but not for ever: a compiler may hang."""
        done, give_up_s = threading.Event(), time.monotonic() + at_most_s

        def ask() -> None:
            while time.monotonic() < give_up_s:
                self.extend_timeout(MORE_S)
                if done.wait(MORE_S / 3):
                    return

        asker = threading.Thread(target=ask, name="notify", daemon=True)
        asker.start()
        try:
            yield
        finally:
            done.set()
            asker.join()

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
