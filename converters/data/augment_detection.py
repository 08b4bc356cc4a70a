"""Random views of labelled pictures for the detector's training: from crowds of tiny faces to one that fills the frame.

Pure: every function takes its random generator. Driven by `training.detector`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from converters.data.detection import Sample

Image = NDArray[np.uint8]
Boxes = NDArray[np.float32]

PADDING = 114  # the letterbox's grey
MIN_SIDE_PX = 4.0  # smaller faces cannot be told from noise
MIN_VISIBLE = 0.4  # of a face's area; less is neither a face nor background


@dataclass(frozen=True)
class Rates:
    """How often each augmentation happens, and how the kinds of pictures are mixed.

    `zoom` is the share of views cut around one face so that its long side fills 0.25–1.1 of the frame.
    """

    mosaic: float = 0.45
    zoom: float = 0.27
    flip: float = 0.5
    grey: float = 0.08
    blur: float = 0.08
    sources: tuple[tuple[str, float], ...] = (
        ("face_mask", 0.35),
        ("crowd", 0.14),
        ("negative", 0.16),
        ("fairface", 0.12),
        ("portrait", 0.11),
        ("webcam", 0.07),
        ("filmed", 0.05),
    )


class Pool:
    """Draw samples so that the kinds come at fixed rates, however many pictures each has."""

    def __init__(self, samples: Sequence[Sample], rates: Rates) -> None:
        kinds = {kind: [s for s in samples if s.source == kind] for kind, _ in rates.sources}
        present = [(kinds[kind], rate) for kind, rate in rates.sources if kinds[kind]]
        if not present:
            raise ValueError(f"no sample is of a kind in {[kind for kind, _ in rates.sources]}")
        self._kinds = [kind for kind, _ in present]
        weights = np.array([rate for _, rate in present])
        self._weights = weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> Sample:
        kind = self._kinds[rng.choice(len(self._kinds), p=self._weights)]
        return kind[rng.integers(len(kind))]


def warp(
    image: Image, boxes: Boxes, scale: float, shift: tuple[float, float], canvas: Image, smooth: bool = True
) -> Boxes:
    """Draw a picture scaled and shifted into `canvas` (in place), and return its boxes there.

    Args:
        image: (H, W, 3) uint8.
        boxes: (N, 4) float32 xyxy in `image`.
        scale: canvas pixels per picture pixel.
        shift: where the picture's corner lands, in canvas pixels; may be outside.
        canvas: (h, w, 3) uint8; pixels the picture does not cover stay.
        smooth: average when shrinking; the box's letterbox does not, so the model must know both.

    Returns:
        (M, 4) float32 xyxy in `canvas`, cut to it; faces too small or too hidden are gone.
    """
    height, width = canvas.shape[:2]
    if smooth and scale < 0.6:
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
        source = small
    else:
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)
        source = image
    border = cv2.BORDER_TRANSPARENT
    cv2.warpAffine(source, matrix, (width, height), dst=canvas, flags=cv2.INTER_LINEAR, borderMode=border)
    moved = boxes * np.float32(scale) + np.array(shift * 2, np.float32)
    return visible(moved, width, height)


def visible(boxes: Boxes, width: int, height: int) -> Boxes:
    """Cut boxes to the frame and drop those too small or too hidden."""
    cut = np.clip(boxes, 0, np.array([width, height] * 2, np.float32)).astype(np.float32)
    sides, full = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]
    share = sides.prod(1) / np.maximum(full.prod(1), 1e-6)
    return cut[(sides.min(1) >= MIN_SIDE_PX) & (share >= MIN_VISIBLE)]


def blank(width: int, height: int) -> Image:
    """Return an empty frame."""
    return np.full((height, width, 3), PADDING, np.uint8)


def whole(sample: Sample, size: int, rng: np.random.Generator) -> tuple[Image, Boxes]:
    """Place the picture at 0.5–1.6 of its letterboxed scale somewhere in a square frame."""
    height, width = sample.image.shape[:2]
    scale = size / max(height, width) * float(np.exp(rng.uniform(np.log(0.5), np.log(1.6))))
    spare = (size - width * scale, size - height * scale)
    canvas = blank(size, size)
    x, y = (float(rng.uniform(min(s, 0), max(s, 0))) for s in spare)
    return canvas, warp(sample.image, sample.boxes, scale, (x, y), canvas, rng.random() < 0.5)


def zoomed(sample: Sample, size: int, rng: np.random.Generator) -> tuple[Image, Boxes]:
    """Cut around one face so that it fills 0.25–1.1 of the frame; pictures without a face are placed whole."""
    if not len(sample.boxes):
        return whole(sample, size, rng)
    sides = (sample.boxes[:, 2:] - sample.boxes[:, :2]).max(1)
    large = np.flatnonzero(sides >= 0.5 * sides.max())
    x0, y0, x1, y1 = sample.boxes[rng.choice(large)]
    # Enlarging more than six times shows the model pixels, not faces.
    scale = min(float(rng.uniform(0.25, 1.1)) * size / max(x1 - x0, y1 - y0), 6.0)
    reach = max(0.5 * size - 0.3 * scale * max(x1 - x0, y1 - y0), 0.08 * size)
    cx, cy = (0.5 * size + float(rng.uniform(-reach, reach)) for _ in range(2))
    canvas = blank(size, size)
    shift = (cx - scale * float(x0 + x1) / 2, cy - scale * float(y0 + y1) / 2)
    return canvas, warp(sample.image, sample.boxes, scale, shift, canvas, rng.random() < 0.5)


def mosaic(samples: Sequence[Sample], size: int, rng: np.random.Generator) -> tuple[Image, Boxes]:
    """Set four pictures around a random centre (Bochkovskiy et al. 2020, YOLOv4, section 3.3)."""
    canvas, found = blank(size, size), []
    cx, cy = (int(rng.uniform(0.3, 0.7) * size) for _ in range(2))
    quarters = ((0, 0, cx, cy), (cx, 0, size, cy), (0, cy, cx, size), (cx, cy, size, size))
    for sample, (x0, y0, x1, y1) in zip(samples, quarters, strict=True):
        height, width = sample.image.shape[:2]
        cover = max((x1 - x0) / width, (y1 - y0) / height)
        scale = cover * float(np.exp(rng.uniform(np.log(0.7), np.log(2.0))))
        spare = (x1 - x0 - width * scale, y1 - y0 - height * scale)
        shift = tuple(float(rng.uniform(min(s, 0), max(s, 0))) for s in spare)
        boxes = warp(sample.image, sample.boxes, scale, (shift[0], shift[1]), canvas[y0:y1, x0:x1], rng.random() < 0.5)
        found.append(boxes + np.array([x0, y0, x0, y0], np.float32))
    return canvas, np.concatenate(found)


def recolour(image: Image, rates: Rates, rng: np.random.Generator) -> Image:
    """Change gain, contrast, white balance and sharpness; sometimes take the colour away."""
    if rng.random() < rates.grey:
        image = np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), np.uint8)
    gain = rng.uniform(0.6, 1.4) * rng.uniform(0.88, 1.12, 3)
    offset = rng.uniform(-24, 24)
    gamma = float(np.exp(rng.uniform(-0.3, 0.3)))
    ramp = (np.arange(256)[:, None] / 255) ** gamma * 255
    table = np.clip(ramp * gain + offset, 0, 255).astype(np.uint8)
    image = np.asarray(cv2.LUT(image, table[None]), np.uint8)
    if rng.random() < rates.blur:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 1.8))), np.uint8)
    return image


def view(pool: Pool, size: int, rates: Rates, rng: np.random.Generator) -> tuple[Image, Boxes]:
    """Return one training picture, (size, size, 3) uint8 BGR, and its boxes, (N, 4) float32 xyxy."""
    choice = rng.random()
    if choice < rates.mosaic:
        image, boxes = mosaic([pool.draw(rng) for _ in range(4)], size, rng)
    elif choice < rates.mosaic + rates.zoom:
        image, boxes = zoomed(pool.draw(rng), size, rng)
    else:
        image, boxes = whole(pool.draw(rng), size, rng)
    if rng.random() < rates.flip:
        image = np.ascontiguousarray(image[:, ::-1])
        boxes = np.stack((size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]), 1)
    return recolour(image, rates, rng), boxes
