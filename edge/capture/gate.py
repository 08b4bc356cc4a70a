"""The motion gate: is this frame worth a detection? Pure; media time is handed in.

A small luma picture is compared with the one of the last detection, not with the frame before: slow movement adds up
until it counts, and a person who stops is looked at once more and then left alone.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.capture.frames import Image
from edge.errors import ConfigError

_LUMA_WIDTH = 160
_EARLY_S = 0.002  # timestamps are rounded to a millisecond; a frame that much early is on time


@dataclass(frozen=True, slots=True)
class GateParams:
    """How the gate decides.

    Attributes:
        enabled: False lets every frame through that `fps` lets through.
        fps: at most so many detections a second on average; None means every frame.
        luma_step: change of a pixel's luma (0–255) that counts; turning it up ignores more noise and shadow.
        motion_area: share of the frame that must have changed, 0–1; turning it up misses smaller people.
        linger_s: go on detecting for so long after motion, so that a new track gathers its hits.
        recheck_s: with tracks and no motion, detect this often; turning it up saves work, but a face that turned away
            is noticed later.
        idle_s: without tracks and motion, detect this often, for whoever came in too slowly to be seen.
    """

    enabled: bool = True
    fps: float | None = None
    luma_step: int = 18
    motion_area: float = 0.002
    linger_s: float = 1.0
    recheck_s: float = 1.0
    idle_s: float = 5.0

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"gate: fps is {self.fps}, must be above 0 and at most 1000")
        if not 1 <= self.luma_step <= 254:
            raise ConfigError(f"gate: luma_step is {self.luma_step}, must be 1–254")
        if not 0 < self.motion_area <= 1:
            raise ConfigError(f"gate: motion_area is {self.motion_area}, must be above 0 and at most 1")
        for key in ("linger_s", "recheck_s", "idle_s"):
            if not 0 <= getattr(self, key) <= 3600:
                raise ConfigError(f"gate: {key} is {getattr(self, key)}, must be 0–3600")


class Gate:
    """The gate of one camera.

    Attributes:
        seen: frames asked about.
        detected: frames let through.
        skipped: the others; skipped / seen is the gate ratio.
    """

    def __init__(self, params: GateParams | None = None) -> None:
        self.params = params or GateParams()
        self.seen = self.detected = self.skipped = 0
        self._luma: NDArray[np.uint8] | None = None
        self._asked_s = self._detected_s = self._moved_s = self._due_s = -np.inf

    def decide(self, image: Image, now_s: float, has_tracks: bool) -> bool:
        """Return whether to detect on this frame.

        Args:
            image: (H, W, 3) uint8 BGR, masks painted.
            now_s: media time, seconds. A step back starts afresh.
            has_tracks: somebody is being followed.
        """
        self.seen += 1
        if now_s < self._asked_s:
            self._luma, self._detected_s, self._moved_s, self._due_s = None, -np.inf, -np.inf, -np.inf
        self._asked_s = now_s
        wanted = now_s >= self._due_s - _EARLY_S and self._worth_it(image, now_s, has_tracks)
        if wanted:
            self.detected += 1
            self._detected_s = now_s
            if self.params.fps:
                # On a grid, so that 12 fps out of 30 is 12 and not 10; after a pause the grid starts anew.
                period_s = 1.0 / self.params.fps
                self._due_s = (self._due_s if now_s - self._due_s < period_s else now_s) + period_s
        else:
            self.skipped += 1
        return wanted

    def _worth_it(self, image: Image, now_s: float, has_tracks: bool) -> bool:
        if not self.params.enabled:
            return True
        luma = _small_luma(image)
        if self._moved(luma):
            self._moved_s = now_s
        quiet_s = self.params.recheck_s if has_tracks else self.params.idle_s
        wanted = bool(
            now_s - self._moved_s <= self.params.linger_s + _EARLY_S or now_s - self._detected_s >= quiet_s - _EARLY_S
        )
        if wanted:
            self._luma = luma
        return wanted

    def _moved(self, luma: NDArray[np.uint8]) -> bool:
        if self._luma is None or self._luma.shape != luma.shape:
            return True
        changed = cv2.countNonZero(cv2.threshold(cv2.absdiff(luma, self._luma), self.params.luma_step, 1, 0)[1])
        return changed >= max(1.0, self.params.motion_area * luma.size)


def _small_luma(image: Image) -> NDArray[np.uint8]:
    """Return (h, w) uint8, w about 160: every n-th pixel's green, which is most of luma and costs nothing."""
    step = max(1, image.shape[1] // _LUMA_WIDTH)
    return np.ascontiguousarray(image[step // 2 :: step, step // 2 :: step, 1])
