"""A clip for the benchmark, made on the spot: copies of the face a detector was shipped with, on a moving background.

A box has no portraits and no video of its own, but each detector bundle carries a golden picture with a face on it.
"""

from collections.abc import Iterable
from math import pi, sin
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import ModelError
from edge.models.bundle import Bundle
from edge.models.decoders import DECODERS, Detections
from edge.models.golden import load_golden

Image = NDArray[np.uint8]
FPS = 25
SURROUND = 0.45  # of the face's size, cut out with it on every side: detectors want to see hair and chin
FACE_SHARE = 0.16  # height of a face, of the frame's: 173 px at 1080p, so that every head may look at it
CALM_SHARE = 0.08  # of the frame at its top, where no face goes: the benchmark paints its mask there


def surest_face(bundles: Iterable[Bundle]) -> Image:
    """Return the face that its own detector is surest of, in natural colours."""
    return untinted(golden_face(max(bundles, key=lambda bundle: max(_golden_found(bundle).score, default=0.0))))


def untinted(picture: Image) -> Image:
    """Return (h, w, 3) uint8 with every channel stretched to the same range; one that is flat stays as it is.

    Golden pictures are tinted until swapped colours are noticed: on a tinted face detectors are unsure of themselves.
    """
    low, high = np.percentile(picture, (1, 99), axis=(0, 1))
    flat = high - low < 1
    scaled = (picture - low) / np.where(flat, 1.0, high - low) * 235 + 10
    return np.where(flat, picture, np.clip(scaled, 0, 255)).astype(np.uint8)


def golden_face(bundle: Bundle) -> Image:
    """Return the surest face of a detector's golden picture with some surroundings, (h, w, 3) uint8 BGR.

    Raises:
        ModelError: its golden output shows no face.
    """
    manifest, golden, found = bundle.manifest, load_golden(bundle), _golden_found(bundle)
    if not len(found.score):
        raise ModelError(f"{manifest.name}: its golden picture shows no face; give the benchmark a clip with --clip")
    picture = golden.image[0]
    x0, y0, x1, y1 = (float(v) for v in found.xyxy[0])
    dx, dy = SURROUND * (x1 - x0), SURROUND * (y1 - y0)
    left, top = max(0, round(x0 - dx)), max(0, round(y0 - dy))
    return np.ascontiguousarray(picture[top : round(y1 + dy), left : round(x1 + dx)])


def _golden_found(bundle: Bundle) -> Detections:
    manifest = bundle.manifest
    return DECODERS[manifest.decoder](load_golden(bundle).outputs, manifest.input, manifest.score_threshold)


class Scene:
    """Draws any frame: people on curves of their own, before a wall that slides by.

    One more person than `faces` takes part, and one at a time is away, longer than a tracker remembers: so heads and
    visits get new tracks at the pace of a hall where people stay for eight seconds.

    Args:
        face: (h, w, 3) uint8 BGR, one face with its surroundings.
        frame_wh: the picture's size, pixels.
        faces: how many are in the picture at any time.
        period_s: after so long everything is where it was, so that a clip may be played in a circle.
        slides: False for a camera on a wall of its own, that does not move.
    """

    def __init__(
        self, face: Image, frame_wh: tuple[int, int], faces: int = 5, period_s: float = 10.0, *, slides: bool = True
    ) -> None:
        self.frame_wh, self.period_s, self._slides = frame_wh, period_s, slides
        height = frame_wh[1] * FACE_SHARE * (1 + 2 * SURROUND)
        self._people = [_person(face, height * (0.85 + 0.3 * i / faces)) for i in range(faces + 1)]
        self._wall = _wall(frame_wh)

    def frame(self, at_s: float) -> Image:
        """Return the picture at a time, (H, W, 3) uint8 BGR."""
        width, height = self.frame_wh
        turn = 2 * pi * at_s / self.period_s
        canvas = self.wall(turn if self._slides else 0.0)
        away = int(len(self._people) * (at_s % self.period_s) / self.period_s)
        for i, (face, mask) in enumerate(self._people):
            if i == away:
                continue
            # A lane each, so that nobody hides anybody for long; twice across while once up and down.
            lane = width / len(self._people)
            top = CALM_SHARE * height
            cx = lane * (i + 0.5) + 0.25 * lane * sin(2 * turn + i)
            cy = top + (height - top) * (0.5 + 0.22 * sin(turn + 2.3 * i))
            _paste(canvas, face, mask, round(cx - face.shape[1] / 2), round(cy - face.shape[0] / 2))
        return canvas

    def wall(self, turn: float) -> Image:
        """Return the picture without anybody, at an angle of its slide, radians."""
        width, height = self.frame_wh
        slack_x, slack_y = self._wall.shape[1] - width, self._wall.shape[0] - height
        x, y = round(slack_x * (0.5 + 0.5 * sin(turn))), round(slack_y * (0.5 + 0.5 * sin(turn + 1)))
        return self._wall[y : y + height, x : x + width].copy()


def write_clip(path: Path, scene: Scene, seconds: float) -> None:
    """Write a scene as MPEG-4, the one codec OpenCV's wheels encode.

    Raises:
        ModelError: this OpenCV cannot write video.
    """
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, scene.frame_wh)
    if not writer.isOpened():
        raise ModelError(f"OpenCV {cv2.__version__} cannot write {path}; give the benchmark a clip with --clip")
    try:
        for index in range(round(seconds * FPS)):
            writer.write(scene.frame(index / FPS))
    finally:
        writer.release()


def _person(face: Image, height_px: float) -> tuple[Image, NDArray[np.float32]]:
    """Return a face scaled to a height, and the soft oval it is seen through, (h, w, 1) in [0, 1]."""
    height = max(8, round(height_px))
    width = max(8, round(face.shape[1] * height / face.shape[0]))
    scaled = np.asarray(cv2.resize(face, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mask = np.clip((1.0 - (x**4 + y**4)) * 5, 0, 1).astype(np.float32)
    return scaled, mask[..., None]


def _paste(canvas: Image, face: Image, mask: NDArray[np.float32], left: int, top: int) -> None:
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(canvas.shape[1], left + face.shape[1]), min(canvas.shape[0], top + face.shape[0])
    if x1 <= x0 or y1 <= y0:
        return
    part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    region = canvas[y0:y1, x0:x1]
    region[:] = (face[part] * mask[part] + region * (1 - mask[part])).round().astype(np.uint8)


def _wall(frame_wh: tuple[int, int]) -> Image:
    """Return a wall a little larger than the frame: blotches of several sizes and a fine grain, grey-brown."""
    rng = np.random.default_rng(0)
    width, height = round(frame_wh[0] * 1.1), round(frame_wh[1] * 1.1)
    luma = np.full((height, width), 120, np.float32)
    for cells, strength in ((6, 40.0), (24, 22.0), (96, 10.0)):
        coarse = rng.normal(0, strength, (cells * height // width + 1, cells)).astype(np.float32)
        luma += np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    luma += rng.normal(0, 3, luma.shape).astype(np.float32)
    return np.clip(luma[..., None] * np.array([0.9, 0.97, 1.0], np.float32), 0, 255).astype(np.uint8)
