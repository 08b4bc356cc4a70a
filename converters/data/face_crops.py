"""Cutting training faces as a box does: a detector's box, its margin, the very `cut` of `edge.track.crops`."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from converters.errors import ConvertError
from edge.models.manifest import Input
from edge.track import crops

Box = tuple[float, float, float, float]


def widen(box: Box, margin: float) -> Box:
    """Return an xyxy box with `margin` times its width and height added on every side."""
    x0, y0, x1, y1 = box
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    return x0 - dx, y0 - dy, x1 + dx, y1 + dy


def cut(picture: NDArray[np.uint8], box: Box, size_px: int) -> tuple[NDArray[np.uint8], Box]:
    """Cut an xyxy pixel box out of a picture and stretch it to a square; outside, the border is repeated.

    Returns:
        (size, size, 3) uint8 and the xyxy part of it, in [0, 1], that lies inside the picture.
    """
    h, w = picture.shape[:2]
    source = Input(size_px, size_px, fit="stretch")
    x0, y0, x1, y1 = crops.region(np.array(box), 0.0, source)
    square = crops.cut(picture, np.array(box), 0.0, source)
    left, right = max(0, -x0) / (x1 - x0), max(0, x1 - w) / (x1 - x0)
    top, bottom = max(0, -y0) / (y1 - y0), max(0, y1 - h) / (y1 - y0)
    return square, (left, top, 1 - right, 1 - bottom)


class FaceFinder:
    """YuNet on a padded, enlarged picture: the largest face as an xyxy box in the picture's own pixels."""

    def __init__(self, weights: Path, long_side_px: int = 160, pad_px: int = 40) -> None:
        if not weights.is_file():
            raise ConvertError(f"{weights} is missing; the face finder needs YuNet's ONNX file (Apache-2.0)")
        self._net = cv2.FaceDetectorYN.create(str(weights), "", (long_side_px, long_side_px), 0.5, 0.3, 50)
        self._long, self._pad = long_side_px, pad_px

    def find(self, picture: NDArray[np.uint8]) -> Box | None:
        """Return the largest face, or None; the box may reach over the border of a tight picture."""
        scale, pad = self._long / max(picture.shape[:2]), self._pad
        image = cv2.resize(picture, None, fx=scale, fy=scale)
        image = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        self._net.setInputSize((image.shape[1], image.shape[0]))
        found = self._net.detect(image)[1]
        if found is None or not len(found):
            return None
        x, y, w, h = max(found, key=lambda row: float(row[2] * row[3]))[:4].tolist()
        x, y = (x - pad) / scale, (y - pad) / scale
        return x, y, x + w / scale, y + h / scale
