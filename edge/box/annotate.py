"""Draws what the box understood onto a copy of the picture: for the live page and the demo's video."""

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.pipeline import Seen

# Distinct on skin and on grey, BGR; a track keeps its colour for life.
PALETTE = ((66, 206, 245), (245, 165, 66), (120, 220, 120), (200, 130, 245), (90, 130, 250), (230, 220, 90))
FONT = cv2.FONT_HERSHEY_SIMPLEX
TEXT, LINE_PX = 0.6, 22  # at 1280 pixels across; smaller pictures have smaller letters
BLUR_MARGIN = 0.2  # of a box's size on each side: a face moves between two looks
WHITE, PLATE = (255, 255, 255), (38, 30, 24)
Color = tuple[int, int, int]


def draw(
    seen: Seen, *, width: int, blur: bool = False, title: str = "", dwell_s: Mapping[int, float] | None = None
) -> NDArray[np.uint8]:
    """Return a picture of `width` pixels with boxes, ids, labels and a title line; the frame itself is untouched.

    Args:
        seen: One frame with its tracks and votes.
        width: Pixels across; the height follows. Never enlarges.
        blur: Make faces unrecognizable, those that are no visit yet or are out of sight for a moment included.
        title: A line for the upper left corner.
        dwell_s: Seconds each track has been here, by tracker id.

    Returns:
        (h, w, 3) uint8 BGR.
    """
    image = seen.frame.image
    scale = min(1.0, width / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    canvas: NDArray[np.uint8] = (
        np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8) if scale < 1 else image.copy()
    )
    boxes = np.rint(seen.tracks.xyxy * scale).astype(int)
    if blur:
        for box in grown(seen.faces * scale, BLUR_MARGIN):
            pixelate(canvas, box)
    for track_id, box in zip(seen.tracks.track_id.tolist(), boxes, strict=True):
        lines = [f"#{track_id}"]
        if dwell_s and track_id in dwell_s:
            lines[0] += f"  {dwell_s[track_id]:.0f} s"
        lines += [vote.label for vote in seen.votes.get(track_id, {}).values() if vote.label]
        _box(canvas, box, PALETTE[track_id % len(PALETTE)], lines)
    if title:
        _plate(canvas, [title], (0, 0), WHITE)
    return canvas


def grown(xyxy: NDArray[np.float64], margin: float) -> NDArray[np.int_]:
    """Return (N, 4) boxes enlarged on each side by a share of their width and height, whole pixels."""
    by = (xyxy[:, 2:] - xyxy[:, :2]) * margin
    return np.rint(np.hstack([xyxy[:, :2] - by, xyxy[:, 2:] + by])).astype(int)


def pixelate(image: NDArray[np.uint8], box: NDArray[np.int_], cells: int = 6) -> None:
    """Replace the inside of a box, in place, by a few flat cells: nothing of a face can be read from them."""
    height, width = image.shape[:2]
    x0, y0 = max(int(box[0]), 0), max(int(box[1]), 0)
    x1, y1 = min(int(box[2]), width), min(int(box[3]), height)
    if x1 <= x0 or y1 <= y0:
        return
    small = cv2.resize(image[y0:y1, x0:x1], (cells, cells), interpolation=cv2.INTER_AREA)
    image[y0:y1, x0:x1] = cv2.resize(small, (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)


def _box(canvas: NDArray[np.uint8], box: NDArray[np.int_], color: Color, lines: list[str]) -> None:
    unit = canvas.shape[1] / 1280
    x0, y0, x1, y1 = (int(v) for v in box)
    cv2.rectangle(canvas, (x0, y0), (x1, y1), color, max(1, round(2 * unit)), cv2.LINE_AA)
    width, height = _plate_wh(lines, unit)
    right = x1 + round(5 * unit)  # beside the face, so that neither hair nor hat hides the words
    left = right if right + width <= canvas.shape[1] else x0 - round(5 * unit) - width
    left = min(max(left, 0), max(canvas.shape[1] - width, 0))
    top = min(max(y0, 0), max(canvas.shape[0] - height, 0))
    _plate(canvas, lines, (left, top), color)


def _plate_wh(lines: list[str], unit: float) -> tuple[int, int]:
    widest = max(cv2.getTextSize(line, FONT, TEXT * unit, 1)[0][0] for line in lines)
    return widest + round(18 * unit), round((LINE_PX * len(lines) + 10) * unit)


def _plate(canvas: NDArray[np.uint8], lines: list[str], at: tuple[int, int], color: Color) -> None:
    """Write lines on a dark, half-transparent plate with a stripe of the track's colour, inside the canvas."""
    unit = canvas.shape[1] / 1280
    width, height = _plate_wh(lines, unit)
    left, top = at
    plate = canvas[top : top + height, left : left + width]
    plate[:] = cv2.addWeighted(plate, 0.3, np.full_like(plate, PLATE), 0.7, 0)
    plate[:, : max(1, round(4 * unit))] = color
    for i, line in enumerate(lines):
        base = (round(10 * unit), round((LINE_PX * (i + 1) - 2) * unit))
        cv2.putText(plate, line, base, FONT, TEXT * unit, color if i == 0 else WHITE, 1, cv2.LINE_AA)
