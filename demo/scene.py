"""The demo clip's pictures: a bright hall, the people of the story, a counter in front. Same input, same bytes."""

from math import cos, pi, radians, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from demo.portraits import Cutout, cutout
from demo.story import DURATION_S, FPS, FRAME_WH, STORY, Pose, Walk, pose

Image = NDArray[np.uint8]
COUNTER_TOP_PX = 548  # hides where the busts end
WALL_TOP, WALL_BOTTOM = (196, 190, 178), (226, 222, 214)  # BGR
SIGN = "built-in clip: public-domain portraits of E. Collins (NASA) and G. Hopper (US Navy)"
COUNTER_TOP, COUNTER_BOTTOM = (92, 78, 66), (54, 45, 38)


class Scene:
    """Draws any frame of the story."""

    def __init__(self, story: tuple[Walk, ...] = STORY) -> None:
        self.story = story
        self._wall, self._light, self._counter, self._shade = _wall(), _light(), _counter(), _shade()

    def frame(self, index: int) -> Image:
        """Return one picture of the clip, (720, 1280, 3) uint8 BGR."""
        t_s = index / FPS
        canvas = self._lit(t_s)
        there = [(walk, at) for walk in self.story if (at := pose(walk, t_s)) is not None]
        for walk, at in sorted(there, key=lambda p: p[1].face_h):  # the nearest last
            paste(canvas, cutout(walk.look), at)
        top = COUNTER_TOP_PX
        band = canvas[top - len(self._shade) : top]
        band[:] = cv2.multiply(band, self._shade, scale=1 / 255)
        canvas[top:] = self._counter
        return canvas

    def _lit(self, t_s: float) -> Image:
        """Return the wall with the sunlight that wanders over it, so that the background is never quite still."""
        width = FRAME_WH[0]
        shift = round(width * (0.5 - 0.5 * cos(pi * t_s / DURATION_S)))
        return np.asarray(cv2.add(self._wall, self._light[:, shift : shift + width]), dtype=np.uint8)


def paste(canvas: Image, person: Cutout, at: Pose) -> None:
    """Draw a person over the picture, in place: scaled so that the face has the right height, tilted a little."""
    scale = at.face_h / person.face_h
    level = 0
    while scale < 0.6 and level + 1 < len(person.levels):
        scale, level = scale * 2, level + 1
    source = person.levels[level]
    x0, y0, x1, y1 = (v / 2**level for v in person.face_xyxy)
    a, b = scale * cos(radians(at.tilt_deg)), scale * sin(radians(at.tilt_deg))
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    matrix = np.array([[a, b, at.x_px - a * cx - b * cy], [-b, a, at.y_px + b * cx - a * cy]])
    left, top, right, bottom = _reach(matrix, source.shape[1], source.shape[0], canvas.shape)
    if right <= left or bottom <= top:
        return
    matrix[:, 2] -= (left, top)
    size = (right - left, bottom - top)
    drawn = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0, 0))
    region = canvas[top:bottom, left:right]
    through = cv2.cvtColor(255 - drawn[..., 3], cv2.COLOR_GRAY2BGR)
    region[:] = cv2.add(cv2.multiply(region, through, scale=1 / 255), drawn[..., :3])


def _reach(matrix: NDArray[np.float64], w: int, h: int, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the part of the canvas that a transformed picture can touch: left, top, right, bottom."""
    corners = np.array([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1]]) @ matrix.T
    low, high = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    bottom = min(COUNTER_TOP_PX, int(high[1]))
    return max(0, int(low[0])), max(0, int(low[1])), min(shape[1], int(high[0])), bottom


def _gradient(top: tuple[int, int, int], bottom: tuple[int, int, int], height: int) -> NDArray[np.float32]:
    u = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    column = np.array(top, np.float32) * (1 - u) + np.array(bottom, np.float32) * u
    return np.repeat(column, FRAME_WH[0], axis=1)


def _wall() -> Image:
    """Return the hall: panels with fine joints, a lighter middle, two framed pictures out of focus."""
    width, height = FRAME_WH
    wall = _gradient(WALL_TOP, WALL_BOTTOM, height)
    for x in range(80, width, 224):
        wall[:, x : x + 2] *= 0.94
        wall[:, x + 2 : x + 4] *= 1.03
    for x0, x1, color in ((150, 330, (150, 138, 112)), (930, 1170, (120, 142, 158))):
        cv2.rectangle(wall, (x0 - 9, 61), (x1 + 9, 209), (236, 236, 234), -1)
        cv2.rectangle(wall, (x0, 70), (x1, 200), color, -1)
        cv2.ellipse(wall, ((x0 + x1) // 2, 200), ((x1 - x0) // 3, 70), 0, 180, 360, tuple(c * 0.8 for c in color), -1)
    wall = np.asarray(cv2.GaussianBlur(wall, (0, 0), 3.0), dtype=np.float32)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    return (
        np.asarray(wall * (1.02 - 0.14 * (across * across + 0.6 * down * down)), dtype=np.float32)
        .clip(0, 255)
        .astype(np.uint8)
    )


def _light() -> Image:
    """Return slanted sunlight, two frames wide; added to the wall, and moved from frame to frame."""
    width, height = FRAME_WH
    light = np.zeros((height, 2 * width), np.float32)
    for x in range(260, 2 * width, 640):
        for k in range(3):
            left = x + 74 * k
            corners = np.array([[left, 0], [left + 56, 0], [left - 124, height], [left - 180, height]], np.int32)
            cv2.fillPoly(light, [corners], 20.0)
    light = np.asarray(cv2.GaussianBlur(light, (0, 0), 9.0), dtype=np.float32)
    return np.dstack([light * 0.72, light * 0.92, light]).round().astype(np.uint8)


def _counter() -> Image:
    """Return the counter in front."""
    height = FRAME_WH[1] - COUNTER_TOP_PX
    counter = _gradient(COUNTER_TOP, COUNTER_BOTTOM, height)
    counter[:26] = _gradient((150, 166, 182), (126, 142, 160), 26)  # its wooden top
    counter[26:34] *= np.linspace(0.55, 1, 8, dtype=np.float32)[:, None, None]
    counter[:2] *= 1.12
    for x in range(200, FRAME_WH[0], 296):
        counter[34:, x : x + 2] *= 0.8
        counter[34:, x + 2 : x + 3] *= 1.15
    result = counter.clip(0, 255).round().astype(np.uint8)
    cv2.putText(result, SIGN, (42, height - 26), cv2.FONT_HERSHEY_DUPLEX, 0.62, (168, 158, 146), 1, cv2.LINE_AA)
    return result


def _shade() -> Image:
    """Return what the counter's edge takes from the light above it, as a factor of 255."""
    factor = np.linspace(255, 214, 18)[:, None, None]
    return np.broadcast_to(factor, (18, FRAME_WH[0], 3)).round().astype(np.uint8)
