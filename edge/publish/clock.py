"""When something happened: the process's monotonic clock, or media time, mapped to epoch milliseconds (P31).

Everything on a box is timed on the monotonic clock, so no step of the wall clock can break a track or a dwell. Only
on entering the outbox does an event get a date. On Linux the monotonic clock is slewed with the wall clock, so their
difference is constant but for steps: it is kept until it really moves, and equal monotonic times get equal dates.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edge.wire import Clock

log = logging.getLogger(__name__)

STEP_S = 0.05  # smaller differences between two readings are jitter of the readings
LOOK_S = 10.0  # how often to ask whether the clock is synchronized
SANE_S = 1_704_067_200.0  # 2024-01-01: a wall clock before this has never been set
TIMESYNC = Path("/run/systemd/timesync/synchronized")
STA_UNSYNC = 0x40


class Stamper(Protocol):
    """Whatever dates events."""

    def stamp(self, at_s: float) -> tuple[int, Clock]:
        """Return epoch milliseconds of a moment on the process's timeline, and how far to trust them."""
        ...


class _Timex(ctypes.Structure):
    """The head of Linux's struct timex, with room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def synchronized() -> bool | None:
    """Return whether the kernel calls its clock synchronized; None where it cannot be asked."""
    if TIMESYNC.exists():
        return True
    try:
        timex = _Timex()
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else not timex.status & STA_UNSYNC


class BoxClock:
    """The monotonic clock's mapping to the wall.

    A step of the wall clock moves the dates of what comes after it and nothing else. A clock that is not synchronized
    never dates an event before `floor_s`: a box without a battery starts in 1970, and what it last wrote down is the
    better guess.

    Args:
        floor_s: epoch seconds known to have passed, e.g. when the outbox was last written.
    """

    def __init__(
        self,
        floor_s: float = 0.0,
        *,
        wall: Callable[[], float] = time.time,
        mono: Callable[[], float] = time.monotonic,
        synchronized: Callable[[], bool | None] = synchronized,
    ) -> None:
        self._floor_s = floor_s
        self._wall, self._mono, self._ask = wall, mono, synchronized
        self._lock = threading.Lock()
        self._wall_offset_s: float | None = None
        self._raised_s = 0.0  # what the floor adds to an unset wall clock
        self._looked_s: float | None = None
        self._state = Clock.ESTIMATED

    def raise_floor(self, floor_s: float) -> None:
        """Learn of an epoch time that has passed for certain."""
        with self._lock:
            self._floor_s = max(self._floor_s, floor_s)

    @property
    def state(self) -> Clock:
        """How far dates given now can be trusted."""
        return self.stamp(self._mono())[1]

    def stamp(self, at_s: float) -> tuple[int, Clock]:
        """Return epoch milliseconds of the monotonic moment `at_s`, and how far to trust them."""
        with self._lock:
            wall_s, mono_s = self._wall(), self._mono()
            if self._looked_s is None or mono_s - self._looked_s >= LOOK_S:
                self._looked_s = mono_s
                asked = self._ask()
                trusted = wall_s >= SANE_S and asked is not False
                self._state = Clock.SYNCHRONIZED if trusted else Clock.ESTIMATED
            offset_s = wall_s - mono_s
            if self._wall_offset_s is None or abs(offset_s - self._wall_offset_s) > STEP_S:
                if self._wall_offset_s is not None:
                    log.warning("the wall clock stepped by %+.3f s", offset_s - self._wall_offset_s)
                self._wall_offset_s = offset_s
                self._raised_s = 0.0
            if self._state is Clock.ESTIMATED:
                self._raised_s = max(self._raised_s, self._floor_s - wall_s)
            else:
                self._raised_s = 0.0
            return round((at_s + self._wall_offset_s + self._raised_s) * 1000), self._state


class MediaClock:
    """Replay: media time from a fixed epoch, so that the same clip always yields the same events."""

    state = Clock.MEDIA

    def __init__(self, epoch_ms: int) -> None:
        self._epoch_ms = epoch_ms

    def stamp(self, at_s: float) -> tuple[int, Clock]:
        """Return the epoch plus media time."""
        return self._epoch_ms + round(at_s * 1000), Clock.MEDIA
