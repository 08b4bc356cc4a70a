"""What a source hands to the pipeline: frames, one at a time, and a few facts about its own health."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture and when it was taken.

    Attributes:
        image: (H, W, 3) uint8, BGR. The receiver owns it and may paint on it.
        index: number of the frame in its source, from 0; a gap on a live source is what was dropped.
        media_s: time in the clip, or since the live source was opened, seconds; never goes back.
        captured_at_s: `time.monotonic()` when the frame arrived; for files the media time, so that a replay is
            a function of the clip alone.
    """

    image: Image
    index: int
    media_s: float
    captured_at_s: float


class SourceState(StrEnum):
    """Where a source stands."""

    OPENING = "opening"
    STREAMING = "streaming"
    RECONNECTING = "reconnecting"
    ENDED = "ended"


class Source(Protocol):
    """A camera, a clip or a folder, as the pipeline sees it.

    Attributes:
        live: True where time passes whether or not anybody reads.
        dropped: frames that arrived and were overwritten unread (live only).
        reconnects: times the stream came back after a loss (live only).
        damaged: frames that could not be decoded, as far as they can be counted.
        last_error: what went wrong last, for a person; empty when nothing did; never holds a credential.
        decoder: "software", or the hardware that really decodes.
        duration_s: length of a recording, as its container states or guesses it; None on a live source.
        turned_at_s: `time.monotonic()` when the capture or reconnect loop turned last. On a live source it may be
            ten seconds older than `SourceSpec.silence_s` while a silent camera is waited for; on a recording it is
            when its decoder turned last.
    """

    @property
    def live(self) -> bool: ...
    @property
    def state(self) -> SourceState: ...
    @property
    def dropped(self) -> int: ...
    @property
    def reconnects(self) -> int: ...
    @property
    def damaged(self) -> int: ...
    @property
    def last_error(self) -> str: ...
    @property
    def decoder(self) -> str: ...
    @property
    def duration_s(self) -> float | None: ...
    @property
    def turned_at_s(self) -> float: ...

    def read(self, timeout_s: float) -> Frame | None:
        """Return the next frame.

        Args:
            timeout_s: how long to wait for a frame of a live source, or for one that is decoded ahead (0: until it
                is there).

        Returns:
            File, folder: the next frame in order, None after the last. Live: the newest frame not yet read. None too
            when none came within `timeout_s` (it may come yet: ask `state`).
        """
        ...

    def close(self) -> None:
        """Let go of the camera or file; safe to call twice."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
