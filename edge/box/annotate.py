"""Draws what the box understood onto a copy of the picture: for the live page and the demo's video."""

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.pipeline import Seen

# Distinct on skin and on grey, BGR; a track keeps its colour for life.
PALETTE = ((66, 206, 245), (245, 165, 66), (120, 220, 120), (200, 130, 245), (90, 130, 250), (230, 220, 90))
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(
    seen: Seen, *, width: int, blur: bool = False, title: str = "", dwell_s: Mapping[int, float] | None = None
) -> NDArray[np.uint8]:
    """Return a picture of `width` pixels with boxes, ids, labels and a title line; the frame itself is untouched.

    Args:
        seen: One frame with its tracks and votes.
        width: Pixels across; the height follows. Never enlarges.
        blur: Make faces unrecognizable.
        title: A line for the upper left corner.
        dwell_s: Seconds each track has been here, by tracker id.

    Returns:
        (h, w, 3) uint8 BGR.
    """
    image = seen.frame.image
    scale = min(1.0, width / image.shape[1])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    canvas: NDArray[np.uint8] = (
        np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8) if scale < 1 else image.copy()
    )
    boxes = np.rint(seen.tracks.xyxy * scale).astype(int)
    if blur:
        for box in boxes:
            pixelate(canvas, box)
    for track_id, box in zip(seen.tracks.track_id.tolist(), boxes, strict=True):
        lines = [f"#{track_id}"]
        if dwell_s and track_id in dwell_s:
            lines[0] += f"  {dwell_s[track_id]:.0f} s"
        lines += [f"{head} {vote.label}" for head, vote in seen.votes.get(track_id, {}).items() if vote.label]
        _box(canvas, box, PALETTE[track_id % len(PALETTE)], lines)
    if title:
        _text(canvas, title, (10, 22), (255, 255, 255))
    return canvas


def pixelate(image: NDArray[np.uint8], box: NDArray[np.int_], cells: int = 6) -> None:
    """Replace the inside of a box, in place, by a few flat cells: nothing of a face can be read from them."""
    height, width = image.shape[:2]
    x0, y0 = max(int(box[0]), 0), max(int(box[1]), 0)
    x1, y1 = min(int(box[2]), width), min(int(box[3]), height)
    if x1 <= x0 or y1 <= y0:
        return
    small = cv2.resize(image[y0:y1, x0:x1], (cells, cells), interpolation=cv2.INTER_AREA)
    image[y0:y1, x0:x1] = cv2.resize(small, (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)


def _box(canvas: NDArray[np.uint8], box: NDArray[np.int_], color: tuple[int, int, int], lines: list[str]) -> None:
    x0, y0, x1, y1 = (int(v) for v in box)
    cv2.rectangle(canvas, (x0, y0), (x1, y1), color, 2, cv2.LINE_AA)
    below = y0 < 18 * len(lines) + 4  # no room above the box: write under it
    for i, line in enumerate(lines):
        y = y1 + 18 * (i + 1) if below else y0 - 6 - 18 * (len(lines) - 1 - i)
        _text(canvas, line, (max(x0, 2), y), color)


def _text(canvas: NDArray[np.uint8], text: str, at: tuple[int, int], color: tuple[int, int, int]) -> None:
    cv2.putText(canvas, text, at, FONT, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(canvas, text, at, FONT, 0.5, color, 1, cv2.LINE_AA)
