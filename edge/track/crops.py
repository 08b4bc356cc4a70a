"""Face crops for the students, and how good a crop promises to be. Training cuts its crops with `cut` too."""

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.models.manifest import Input

Floats = NDArray[np.float32]

# Sharpness is judged at this size, so that it does not grow with the face.
SHARPNESS_PX = 48
# Laplacian variance at which a 48 px face counts as half sharp; in-focus faces of the walking clips have 500–3,000.
HALF_SHARP = 200.0
# Width over height of an upright frontal face box.
FRONTAL_ASPECT = 0.78


def region(xyxy: NDArray[np.floating], margin: float, source: Input) -> tuple[int, int, int, int]:
    """Return the frame region (left, top, right, bottom) a student wants to see, in whole pixels, maybe outside.

    `margin` times the box's size is added on every side. With `fit: letterbox` the shorter side is then widened with
    real pixels to the input's aspect, so that the face is not distorted; with `stretch` it is not.
    """
    x1, y1, x2, y2 = (float(v) for v in xyxy)
    width, height = (x2 - x1) * (1 + 2 * margin), (y2 - y1) * (1 + 2 * margin)
    if source.fit == "letterbox":
        aspect = source.width / source.height
        width, height = max(width, height * aspect), max(height, width / aspect)
    left, top = round((x1 + x2 - width) / 2), round((y1 + y2 - height) / 2)
    return left, top, left + max(1, round(width)), top + max(1, round(height))


def cut(
    frame: NDArray[np.uint8],
    xyxy: NDArray[np.floating],
    margin: float,
    source: Input,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Cut one face out of a frame and resize it to the student's input.

    Args:
        frame: (H, W, 3) uint8 BGR.
        xyxy: (4,) face box in pixels of the frame.
        margin: the manifest's `crop_margin`.
        source: input size and fit.
        out: (height, width, 3) uint8 to write into.

    Returns:
        (height, width, 3) uint8 BGR; beyond the border of the frame its edge pixels are repeated.
    """
    left, top, right, bottom = region(xyxy, margin, source)
    height, width = frame.shape[:2]
    # A box wholly outside still gets the nearest pixels, not an error: SORT may predict a box out of the picture.
    x1, x2 = min(max(left, 0), width - 1), min(max(right, 1), width)
    y1, y2 = min(max(top, 0), height - 1), min(max(bottom, 1), height)
    patch = frame[y1:y2, x1:x2]
    outside = (y1 - top, bottom - y2, x1 - left, right - x2)
    if any(side > 0 for side in outside):
        above, below, before, after = (max(0, side) for side in outside)
        bordered = cv2.copyMakeBorder(patch, above, below, before, after, cv2.BORDER_REPLICATE)
        patch = np.asarray(bordered, np.uint8)
    # Area averaging: a 300 px face shrunk to 64 px bilinearly would alias, and costs the same here.
    shrinks = patch.shape[0] > source.height and patch.shape[1] > source.width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(patch, (source.width, source.height), dst=out, interpolation=how)
    return np.asarray(resized, np.uint8)


def side_px(xyxy: NDArray[np.floating]) -> Floats:
    """Return the side of the square of equal area of each box: (N, 4) to (N,) float32, pixels."""
    size = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)
    return np.asarray(np.sqrt(size[:, 0] * size[:, 1]), np.float32)


def frontality(xyxy: NDArray[np.floating], landmarks: Floats | None) -> Floats:
    """Return how frontal each face looks, (N,) float32 in [0, 1]; 1 looks into the camera.

    With five landmarks (N, 5, 2): the nose between the eyes, seen along the line of the eyes, so that a tilted head
    is no profile. Without, or where they are NaN: how close the box is to an upright face's aspect, which tells a
    profile only roughly.
    """
    size = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1e-3)
    ratio = size[:, 0] / size[:, 1] / FRONTAL_ASPECT
    by_aspect = np.asarray(np.minimum(ratio, 1 / ratio), np.float32)
    if landmarks is None:
        return by_aspect
    right_eye, left_eye, nose = landmarks[:, 0], landmarks[:, 1], landmarks[:, 2]
    between = left_eye - right_eye
    length = np.maximum((between**2).sum(axis=1), 1e-6)
    along = ((nose - right_eye) * between).sum(axis=1) / length  # 0 at one eye, 1 at the other, ½ when frontal
    by_nose = np.clip(1 - 2 * np.abs(along - 0.5), 0, 1)
    return np.where(np.isnan(by_nose), by_aspect, by_nose).astype(np.float32)


def sharpness(frame: NDArray[np.uint8], xyxy: NDArray[np.floating]) -> float:
    """Return the sharpness of a face in [0, 1): Laplacian variance v at 48 px as v / (v + 200)."""
    height, width = frame.shape[:2]
    x1, y1, x2, y2 = (round(float(v)) for v in xyxy)
    patch = frame[max(0, y1) : min(height, y2), max(0, x1) : min(width, x2)]
    if not patch.size:
        return 0.0
    small = cv2.resize(patch, (SHARPNESS_PX, SHARPNESS_PX), interpolation=cv2.INTER_LINEAR)
    luma = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    variance = float(cv2.Laplacian(luma, cv2.CV_32F).var())
    return variance / (variance + HALF_SHARP)
