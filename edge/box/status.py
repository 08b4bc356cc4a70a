"""What a running box says about itself on its own disk: `health.json` in the state folder, replaced in one step.

`edge.app` writes it; the flasher reads it to prove a new config, and ends an update over SSH with it. Times are on
CLOCK_BOOTTIME, which all processes of a boot share and no clock step touches.
"""

import logging
import os
import time
from pathlib import Path

import msgspec

from edge.box.facts import boot_id
from edge.wire import Health

log = logging.getLogger(__name__)

FILE = "health.json"
EVERY_S = 5.0  # and on every change of state; not synced, so a card sees a fraction of the writes
MAX_BYTES = 1 << 20


class CameraStatus(msgspec.Struct, frozen=True):
    """One camera: where its source stands, frames since the start, whether a model has looked at one."""

    state: str
    frames: int
    inferred: bool
    error: str | None = None


class BoxStatus(msgspec.Struct, frozen=True):
    """One process of a box.

    `fed_at_s` is when the watchdog was last fed, `health` what was last published, `program` the folder of the program
    that runs (`edge.install.program`).
    """

    pid: int
    boot: str
    at_s: float
    fed_at_s: float
    nonce: str
    config_digest: str
    publisher: str
    cameras: dict[str, CameraStatus]
    health: Health | None = None
    program: str = ""


def boottime_s() -> float:
    """Return the seconds since boot, suspend included; comparable between processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def write_status(state_dir: Path, status: BoxStatus) -> None:
    """Replace the file. A disk that cannot take it is health's to report: the box goes on."""
    aside = state_dir / f".{FILE}.new"
    try:
        aside.write_bytes(msgspec.json.encode(status))
        os.replace(aside, state_dir / FILE)
    except OSError as error:
        log.debug("%s was not written: %s", state_dir / FILE, error)


def read_status(state_dir: Path) -> BoxStatus | None:
    """Return what a box last said in this boot, None where there is nothing: ask `at_s` whether it still holds."""
    try:
        with (state_dir / FILE).open("rb") as file:
            status = msgspec.json.decode(file.read(MAX_BYTES), type=BoxStatus)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return status if status.boot == (boot_id() or "") else None
