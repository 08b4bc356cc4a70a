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
LARGE_PX = 56  # shorter side of a face that bears enlarging
LARGE_FACED = ("fairface", "portrait", "webcam", "filmed")
Range = tuple[float, float]


@dataclass(frozen=True)
class Rates:
    """How often each augmentation happens, and how the kinds of pictures are mixed.

    `mosaic`, `zoom` and `paste` are shares of the views; what is left shows a picture as a whole. `zoom` cuts around
    one face so that its long side fills 0.25–1.1 of the frame, or into a picture without faces; `paste` sets large
    faces into other pictures, so that the surroundings of a face say nothing; `empty` shows no face at all: a part of a
    picture beside its faces, enlarged, or shapes made up. `backdrop` is how often a picture lies
    on something else than the letterbox's grey; `motion` is how often a view without faces is smeared, `still` the
    share of that for a view with faces.
    """

    mosaic: float = 0.35
    zoom: float = 0.23
    paste: float = 0.10
    empty: float = 0.13
    backdrop: float = 0.25
    flip: float = 0.5
    grey: float = 0.08
    blur: float = 0.08
    motion: float = 0.3
    still: float = 0.2
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
        self._large = [[s for s in samples if s.source == kind and _large(s.boxes).any()] for kind in LARGE_FACED]
        self._large = [group for group in self._large if group]

    def draw(self, rng: np.random.Generator) -> Sample:
        kind = self._kinds[rng.choice(len(self._kinds), p=self._weights)]
        return kind[rng.integers(len(kind))]

    def draw_face(self, rng: np.random.Generator) -> tuple[Sample, Boxes] | None:
        """Return a picture and one of its large faces, (4,) float32 xyxy; None where nobody is large."""
        if not self._large:
            return None
        group = self._large[rng.integers(len(self._large))]
        sample = group[rng.integers(len(group))]
        boxes = sample.boxes[_large(sample.boxes)]
        return sample, boxes[rng.integers(len(boxes))]


def _large(boxes: Boxes) -> NDArray[np.bool_]:
    return (boxes[:, 2:] - boxes[:, :2]).min(1) >= LARGE_PX


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


def backdrop(size: int, rates: Rates, rng: np.random.Generator) -> Image:
    """Return an empty square frame: the letterbox's grey, or now and then a wall of any colour, lit from one side."""
    if rng.random() >= rates.backdrop:
        return np.full((size, size, 3), PADDING, np.uint8)
    colour = rng.uniform(0, 255) + rng.uniform(-20, 20, 3)
    light = np.linspace(-1, 1, size) * rng.uniform(-50, 50)
    wall = np.clip(colour + light[:, None], 0, 255).astype(np.uint8)
    across = np.broadcast_to(wall, (size, size, 3)) if rng.random() < 0.5 else wall[:, None].repeat(size, 1)
    return np.ascontiguousarray(across)


def whole(sample: Sample, canvas: Image, rng: np.random.Generator, scales: Range = (0.5, 1.6)) -> Boxes:
    """Place the picture at a random multiple of its letterboxed scale somewhere in a square frame; return its boxes."""
    size = len(canvas)
    height, width = sample.image.shape[:2]
    scale = size / max(height, width) * float(np.exp(rng.uniform(*np.log(scales))))
    spare = (size - width * scale, size - height * scale)
    x, y = (float(rng.uniform(min(s, 0), max(s, 0))) for s in spare)
    return warp(sample.image, sample.boxes, scale, (x, y), canvas, rng.random() < 0.5)


def zoomed(sample: Sample, canvas: Image, rng: np.random.Generator) -> Boxes:
    """Cut around one face so that it fills 0.25–1.1 of the frame; a picture without a face anywhere, up to fourfold."""
    if not len(sample.boxes):
        return whole(sample, canvas, rng, (1.0, 4.0))
    size = len(canvas)
    sides = (sample.boxes[:, 2:] - sample.boxes[:, :2]).max(1)
    large = np.flatnonzero(sides >= 0.5 * sides.max())
    x0, y0, x1, y1 = sample.boxes[rng.choice(large)]
    # Enlarging more than six times shows the model pixels, not faces.
    scale = min(float(rng.uniform(0.25, 1.1)) * size / max(x1 - x0, y1 - y0), 6.0)
    reach = max(0.5 * size - 0.3 * scale * max(x1 - x0, y1 - y0), 0.08 * size)
    cx, cy = (0.5 * size + float(rng.uniform(-reach, reach)) for _ in range(2))
    shift = (cx - scale * float(x0 + x1) / 2, cy - scale * float(y0 + y1) / 2)
    return warp(sample.image, sample.boxes, scale, shift, canvas, rng.random() < 0.5)


def mosaic(samples: Sequence[Sample], canvas: Image, rng: np.random.Generator) -> Boxes:
    """Set four pictures around a random centre (Bochkovskiy et al. 2020, YOLOv4, section 3.3)."""
    size, found = len(canvas), []
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
    return np.concatenate(found)


def paste(image: Image, face: Boxes, canvas: Image, taken: Boxes, rng: np.random.Generator) -> Boxes:
    """Blend one face into `canvas` (in place) where no other is, 0.1–0.7 of the frame tall.

    Args:
        image: (H, W, 3) uint8, where the face comes from.
        face: (4,) float32 xyxy in `image`.
        canvas: (size, size, 3) uint8.
        taken: (N, 4) float32 xyxy, the faces in `canvas`.

    Returns:
        (1, 4) float32 xyxy in `canvas`, or (0, 4) when there was no room.
    """
    size, (x0, y0, x1, y1) = len(canvas), face.tolist()
    scale = min(float(np.exp(rng.uniform(np.log(0.1), np.log(0.7)))) * size / (y1 - y0), 6.0)
    cx, cy = (float(rng.uniform(0.1, 0.9) * size) for _ in range(2))
    half = np.array([x1 - x0, y1 - y0]) * scale / 2
    box = np.array([[cx - half[0], cy - half[1], cx + half[0], cy + half[1]]], np.float32)
    around = np.array([cx - 1.3 * half[0], cy - 1.3 * half[1], cx + 1.3 * half[0], cy + 1.3 * half[1]])
    if np.any((taken[:, :2] < around[2:]).all(1) & (taken[:, 2:] > around[:2]).all(1)):
        return np.zeros((0, 4), np.float32)
    layer = canvas.copy()
    shift = (cx - scale * (x0 + x1) / 2, cy - scale * (y0 + y1) / 2)
    warp(recoloured(image, rng, 0.25), np.zeros((0, 4), np.float32), scale, shift, layer)
    # An oval a little larger than the box keeps chin, brow and ears; its soft rim leaves no edge to learn.
    y, x = np.ogrid[:size, :size]
    away = np.hypot((x - cx) / (1.25 * half[0]), (y - cy) / (1.25 * half[1]))
    share = np.clip((1.0 - away) / 0.12, 0, 1).astype(np.float32)[..., None]
    canvas[:] = np.rint(canvas + (layer.astype(np.float32) - canvas) * share).astype(np.uint8)
    return visible(box, size, size)


def beside(sample: Sample, canvas: Image, rng: np.random.Generator) -> bool:
    """Fill `canvas` with a part of the picture that shows no face, enlarged; False where no part was found."""
    height, width = sample.image.shape[:2]
    for _ in range(8):
        side = float(rng.uniform(0.15, 0.6)) * min(height, width)
        x, y = float(rng.uniform(0, width - side)), float(rng.uniform(0, height - side))
        margin = 0.3 * (sample.boxes[:, 2:] - sample.boxes[:, :2])  # hair and neck belong to the face
        low, high = sample.boxes[:, :2] - margin, sample.boxes[:, 2:] + margin
        if np.any((low < [x + side, y + side]).all(1) & (high > [x, y]).all(1)):
            continue
        scale = len(canvas) / side
        warp(sample.image, np.zeros((0, 4), np.float32), scale, (-x * scale, -y * scale), canvas, smooth=False)
        return True
    return False


def shapes(canvas: Image, rng: np.random.Generator) -> None:
    """Fill `canvas` with soft shapes in the colours of skin, wood, walls and lamps: round and bright, yet no face."""
    side = int(rng.choice((64, 128, 224)))
    image = np.full((side, side, 3), colour(rng), np.uint8)
    for _ in range(int(rng.integers(2, 12))):
        layer, centre = image.copy(), tuple(int(v) for v in rng.uniform(0, side, 2))
        axes = tuple(int(v) for v in rng.uniform(0.03, 0.5, 2) * side)
        angle = float(rng.uniform(0, 180))
        if rng.random() < 0.6:
            cv2.ellipse(layer, centre, axes, angle, 0, 360, colour(rng), -1, cv2.LINE_AA)
        else:
            corners = cv2.boxPoints((centre, (2 * axes[0], 2 * axes[1]), angle))
            cv2.fillConvexPoly(layer, corners.astype(np.int32), colour(rng), cv2.LINE_AA)
        lit = np.linspace(rng.uniform(0.5, 1), rng.uniform(0.5, 1), side, dtype=np.float32)[:, None]
        lit = lit[..., None] if rng.random() < 0.5 else lit[None]
        image = np.asarray(layer * lit + image * (1 - lit), np.uint8)
        if rng.random() < 0.4:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 0.04 * side))), np.uint8)
    canvas[:] = cv2.resize(image, (len(canvas), len(canvas)), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        cv2.add(canvas, rng.integers(0, 2 + int(rng.integers(20)), canvas.shape, dtype=np.uint8), dst=canvas)


def colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return BGR, half of the time warm as skin and wood are, and now and then white as a lamp or a mask."""
    kind = rng.random()
    if kind < 0.45:
        hsv = rng.uniform((2, 30, 40), (22, 170, 256))
    elif kind < 0.65:
        hsv = rng.uniform((0, 0, 215), (180, 30, 256))
    else:
        hsv = rng.uniform(0, (180, 200, 256))
    blue, green, red = cv2.cvtColor(np.array([[hsv]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red


def recoloured(image: Image, rng: np.random.Generator, depth: float) -> Image:
    """Change gain, contrast and white balance by up to `depth`."""
    gain = rng.uniform(1 - depth, 1 + depth) * rng.uniform(1 - 0.3 * depth, 1 + 0.3 * depth, 3)
    gamma = float(np.exp(rng.uniform(-depth, depth)))
    ramp = (np.arange(256)[:, None] / 255) ** gamma * 255
    table = np.clip(ramp * gain + rng.uniform(-60 * depth, 60 * depth), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table[None]), np.uint8)


def moved(image: Image, rng: np.random.Generator) -> Image:
    """Smear a picture along a line of up to a twentieth of its side, as a moving camera does."""
    length = max(3, int(rng.uniform(0.005, 0.05) * len(image))) | 1
    line = np.zeros((length, length), np.float32)
    line[length // 2] = 1
    turn = cv2.getRotationMatrix2D((length / 2 - 0.5, length / 2 - 0.5), float(rng.uniform(0, 180)), 1)
    kernel = cv2.warpAffine(line, turn, (length, length))
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)


def weathered(image: Image, faces: bool, rates: Rates, rng: np.random.Generator) -> Image:
    """Change light, colour and sharpness; a picture without faces is smeared more often, for such frames fool more."""
    if rng.random() < rates.grey:
        image = np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), np.uint8)
    image = recoloured(image, rng, 0.4)
    if rng.random() < rates.motion * (rates.still if faces else 1):
        return moved(image, rng)
    if rng.random() < rates.blur:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 1.8 if faces else 6.0))), np.uint8)
    return image


def view(pool: Pool, size: int, rates: Rates, rng: np.random.Generator) -> tuple[Image, Boxes]:
    """Return one training picture, (size, size, 3) uint8 BGR, and its boxes, (N, 4) float32 xyxy."""
    choice = rng.random()
    image = backdrop(size, rates, rng)
    if choice < rates.mosaic:
        boxes = mosaic([pool.draw(rng) for _ in range(4)], image, rng)
    elif choice < rates.mosaic + rates.zoom:
        boxes = zoomed(pool.draw(rng), image, rng)
    elif choice < rates.mosaic + rates.zoom + rates.empty:
        boxes = np.zeros((0, 4), np.float32)
        if rng.random() < 0.4 or not beside(pool.draw(rng), image, rng):
            shapes(image, rng)
    else:
        boxes = whole(pool.draw(rng), image, rng)
    if choice > 1 - rates.paste:
        for _ in range(int(rng.integers(1, 4))):
            if donor := pool.draw_face(rng):
                boxes = np.concatenate((boxes, paste(donor[0].image, donor[1], image, boxes, rng)))
    if rng.random() < rates.flip:
        image = np.ascontiguousarray(image[:, ::-1])
        boxes = np.stack((size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]), 1)
    return weathered(image, len(boxes) > 0, rates, rng), boxes
