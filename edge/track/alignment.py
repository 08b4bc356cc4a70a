"""Turning a face upright: five points onto the places where an embedder expects them.

Embedders are trained on faces whose eyes, nose and mouth always lie at the same pixels; `converters` aligns its
training faces with this very code. Nothing on a box aligns or embeds a face unless a config asks for it.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.models.manifest import Input

Floats = NDArray[np.float32]

# Right eye, left eye, nose, right and left corner of the mouth in a picture of 112×112, the layout that public face
# recognition networks share since Deng et al. 2019, ArcFace, section 3.1: a foreign embedder expects it as well.
TEMPLATE_PX = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)


def similarity(source: Floats, target: Floats) -> Floats:
    """Return the turn, scale and shift that bring points onto others with the least squared error.

    Args:
        source: (K, 2) float32, K ≥ 2.
        target: (K, 2) float32.

    Returns:
        (2, 3) float32 matrix for column vectors (x, y, 1); never a reflection. All source points in one place give
        scale 0.

    Source: Umeyama 1991, Least-squares estimation of transformation parameters between two point patterns.
    """
    centre_a, centre_b = source.mean(axis=0), target.mean(axis=0)
    a, b = (source - centre_a).astype(np.float64), (target - centre_b).astype(np.float64)
    # In two dimensions the best rotation times scale is one complex division, without a decomposition.
    power = max(float((a**2).sum()), 1e-12)
    cos, sin = float((a * b).sum()) / power, float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / power
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.asarray(np.concatenate([turn, (centre_b - turn @ centre_a)[:, None]], axis=1), np.float32)


def align(frame: NDArray[np.uint8], points: Floats, source: Input, context: float = 0.0) -> NDArray[np.uint8]:
    """Cut a face out upright and scaled, its five points near the template's.

    Args:
        frame: (H, W, 3) uint8 BGR.
        points: (5, 2) float32 in pixels of the frame, right eye first.
        source: the embedder's input, a square; the template is scaled to it.
        context: share of the side added on every side, for training; the picture then shows more, not larger.

    Returns:
        (height, width, 3) uint8 BGR; beyond the border of the frame its edge pixels are repeated.
    """
    inner = source.width / (1 + 2 * context)
    target = TEMPLATE * np.float32(inner / TEMPLATE_PX) + np.float32((source.width - inner) / 2)
    matrix = similarity(points, target)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if 0 < scale < 0.5:
        # Bilinear sampling of a face that shrinks to less than half would alias: average first.
        frame, matrix = _shrunk(frame, matrix, 2 * scale)
    size = (source.width, source.height)
    upright = cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(upright, np.uint8)


def _shrunk(frame: NDArray[np.uint8], matrix: Floats, ratio: float) -> tuple[NDArray[np.uint8], Floats]:
    height, width = frame.shape[:2]
    small_wh = max(1, round(width * ratio)), max(1, round(height * ratio))
    small = np.asarray(cv2.resize(frame, small_wh, interpolation=cv2.INTER_AREA), np.uint8)
    x, y = width / small_wh[0], height / small_wh[1]
    # Pixel centres: a place u in the small picture is (u + ½)·x − ½ in the large one.
    enlarge = np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5], [0, 0, 1]])
    return small, np.asarray(matrix.astype(np.float64) @ enlarge, np.float32)
