"""Who restarts the box's program: systemd on a real box, a process of a test, or nobody at an SD card."""

import subprocess
from typing import Protocol

from edge.errors import FlashError

UNIT = "facefleet-edge.service"
RESTART_S = 300.0  # models compile before a Type=notify unit is up


class Service(Protocol):
    """The program that runs `current`."""

    def restart(self) -> None:
        """Start it anew on what `current` leads to; return once the manager says it is up.

        Raises:
            FlashError: it did not come up.
        """

    def restart_if_running(self) -> None:
        """The same, but without waiting, and not where it does not run: at boot its turn comes by itself."""

    def stop(self) -> None:
        """End it: there is nothing left to run."""


class Systemd:
    """The unit of an installed box.

    Args:
        unit: its name.
        reload: read the units anew first: they come with the program (`edge.install.system`).
    """

    def __init__(self, unit: str = UNIT, *, reload: bool = False) -> None:
        self.unit, self._reload = unit, reload

    def restart(self) -> None:
        """Restart the unit; with Type=notify this returns when it is ready."""
        self._read_units()
        self._systemctl("restart", self.unit)

    def restart_if_running(self) -> None:
        """Queue a restart of a running unit."""
        self._read_units()
        self._systemctl("--no-block", "try-restart", self.unit)

    def stop(self) -> None:
        """Stop the unit."""
        self._systemctl("stop", self.unit)

    def _read_units(self) -> None:
        if self._reload:
            self._systemctl("daemon-reload")

    def _systemctl(self, *words: str) -> None:
        command = ["systemctl", *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=RESTART_S, check=False)
        except FileNotFoundError as error:
            raise FlashError("systemctl is not here, so nothing can be restarted; is this the box?") from error
        except subprocess.TimeoutExpired as error:
            raise FlashError(f"{self.unit} was not up within {RESTART_S:g} s") from error
        if done.returncode:
            said = " ".join(done.stderr.split())[:500]
            raise FlashError(f'"{" ".join(command)}" failed: {said}; see "journalctl -u {self.unit}"')
