"""Faces with five points for the landmark student: YuNet's own, looked at several times, on pictures that may ship.

Driven by `training.landmarks` and `evaluation.landmarks`. Every face is kept as a context crop: YuNet's box widened by
CONTEXT on every side and stretched to a square, so that training can shift, scale and tilt inside it. Points are
those of the person: right eye, left eye, nose, right and left corner of the mouth.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from converters.data import detection
from converters.data.detection import YUNET, Sample
from converters.data.face_crops import Box, cut, widen
from converters.errors import ConvertError
from edge.geometry import iou
from edge.models.manifest import Input
from edge.track import crops

CONTEXT = 0.6  # of the face box, on every side
CONTEXT_PX = 144  # the face box itself then covers 65 px
MIN_SIDE_PX = 20.0  # below this YuNet's points are guesses
LOOKS_PX = (80, 112)  # height of the face at each further look; every look is taken mirrored too
MIRRORED = [1, 0, 2, 4, 3]
# The clip of somebody who turns his head, kept out of training: landmarks must hold in half profile.
TURNING = "head-pose-face-detection-male"

Floats = NDArray[np.float32]
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class MarkedFaces:
    """Context crops with their points.

    Attributes:
        pictures: (N, CONTEXT_PX, CONTEXT_PX, 3) uint8 BGR.
        points: (N, 5, 2) float32, x and y in [0, 1] of the crop: the mean of several looks.
        glance: the same from one look at the whole picture, what YuNet itself answers in the field.
        boxes: (N, 4) float32, YuNet's box, xyxy in pixels of its picture.
        names: `source/file`, several faces of a picture under one name.
        digests: SHA-256 of each face's file.
    """

    pictures: Images
    points: Floats
    glance: Floats
    boxes: Floats
    names: tuple[str, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> Floats:
        """Return (N, 2) float32 width and height of the boxes in pixels of the picture."""
        return np.asarray(self.boxes[:, 2:] - self.boxes[:, :2], np.float32)

    def subset(self, keep: NDArray[np.intp]) -> "MarkedFaces":
        """Return only the faces at the indices `keep`."""
        names, digests = (tuple(values[i] for i in keep) for values in (self.names, self.digests))
        return MarkedFaces(self.pictures[keep], self.points[keep], self.glance[keep], self.boxes[keep], names, digests)


class PointTeacher:
    """YuNet as a drawer of boxes and points.

    Args:
        weights: the ONNX file of YuNet (dynamic input).
        score: faces below are not returned.
    """

    def __init__(self, weights: Path, score: float = 0.7) -> None:
        if not weights.is_file():
            raise ConvertError(f"{weights}: YuNet's weights are missing; the landmark student learns from its points")
        self._net = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), score, 0.3, 5000)

    def __call__(self, image: Images) -> tuple[Floats, Floats]:
        """Return (N, 4) float32 xyxy and (N, 5, 2) float32 points, both in pixels of the (H, W, 3) uint8 BGR image."""
        self._net.setInputSize((image.shape[1], image.shape[0]))
        found = self._net.detect(image)[1]
        rows = np.zeros((0, 15), np.float32) if found is None else np.asarray(found, np.float32)
        return np.concatenate((rows[:, :2], rows[:, :2] + rows[:, 2:4]), 1), rows[:, 4:14].reshape(-1, 5, 2)

    def look_again(self, image: Images, box: Box) -> tuple[Floats, float] | None:
        """Look at one face enlarged and shrunk, plain and mirrored; one look at a picture wavers by some per cent.

        Returns:
            (5, 2) float32 mean points in pixels of the image and how far the looks differ, in eye distances; None
            where fewer than three looks find the face.
        """
        views = [view for px in LOOKS_PX for mirror in (False, True) if (view := self._view(image, box, px, mirror))]
        if len(views) < 3:
            return None
        mean = np.mean(views, axis=0)
        spread = np.linalg.norm(np.asarray(views) - mean, axis=2).mean()
        return np.asarray(mean, np.float32), float(spread / max(np.linalg.norm(mean[1] - mean[0]), 1e-3))

    def _view(self, image: Images, box: Box, face_px: int, mirror: bool) -> list[list[float]] | None:
        x0, y0, x1, y1 = widen(box, 0.5)
        scale = face_px / (box[3] - box[1])
        width, height = round((x1 - x0) * scale), round((y1 - y0) * scale)
        to_view = np.array([[scale, 0, -x0 * scale], [0, scale, -y0 * scale]], np.float32)
        view = cv2.warpAffine(image, to_view, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        boxes, points = self(np.ascontiguousarray(view[:, ::-1]) if mirror else np.asarray(view, np.uint8))
        if not len(boxes):
            return None
        wanted = (np.array([box]) - np.array([x0, y0, x0, y0])) * scale
        if mirror:
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
            points = np.stack([width - points[:, MIRRORED, 0], points[:, MIRRORED, 1]], 2)
        overlap = iou(boxes.astype(np.float32), wanted.astype(np.float32))[:, 0]
        best = int(overlap.argmax())
        if overlap[best] < 0.5:
            return None
        found: list[list[float]] = (points[best] / scale + np.array([x0, y0])).tolist()
        return found


def marked(samples: Iterable[Sample], weights: Path, max_spread: float) -> MarkedFaces:
    """Return every face of some pictures that YuNet is sure of, with its points.

    Args:
        samples: their boxes are not used: the box must be a detector's.
        weights: YuNet's ONNX file.
        max_spread: faces whose looks differ by more (in eye distances) are left out; infinity keeps all.

    Raises:
        ConvertError: no face at all.
    """
    teacher = PointTeacher(weights)
    rows = [row for sample in samples for row in _faces(teacher, sample, max_spread)]
    if not rows:
        raise ConvertError(f"YuNet found no face of {MIN_SIDE_PX:g} px in these pictures; give pictures of people")
    pictures, points, glance, boxes, names, digests = zip(*rows, strict=True)
    return MarkedFaces(
        np.stack(pictures), np.stack(points), np.stack(glance), np.array(boxes, np.float32), names, digests
    )


Row = tuple[Images, Floats, Floats, Box, str, str]


def _faces(teacher: PointTeacher, sample: Sample, max_spread: float) -> Iterator[Row]:
    for xyxy, glance in zip(*teacher(sample.image), strict=True):
        box: Box = tuple(xyxy.tolist())
        if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE_PX:
            continue
        looked = teacher.look_again(sample.image, box)
        if looked is None or looked[1] > max_spread:
            continue
        crop, _ = cut(sample.image, widen(box, CONTEXT), CONTEXT_PX)
        yield crop, _in_context(looked[0], box), _in_context(glance, box), box, sample.name, sample.sha256


def _in_context(points: Floats, box: Box) -> Floats:
    """Return points in [0, 1] of the context crop, which begins and ends at whole pixels."""
    x0, y0, x1, y1 = crops.region(np.array(widen(box, CONTEXT)), 0.0, Input(CONTEXT_PX, CONTEXT_PX, fit="stretch"))
    return np.asarray((points - np.array([x0, y0])) / np.array([x1 - x0, y1 - y0]), np.float32)


def _fairface(data: Path, testing: bool) -> Iterator[Sample]:
    return (s for s in detection.fairface(data) if detection.held_out(s.name) == testing)


def training(data: Path) -> Iterator[Sample]:
    """Yield the pictures the student learns from; every one may leave with a release (see `detection.PURPOSES`)."""
    yield from detection.face_mask(data, "train")
    yield from detection.mik1i_train(data)
    yield from _fairface(data, testing=False)
    yield from detection.portraits(data)
    yield from detection.talking_heads(data, 40)
    yield from (s for s in detection.filmed(data, 16) if TURNING not in s.name)


# Held-out faces by name: nobody and no capture group of these is among those learnt from.
HELD_OUT: dict[str, Callable[[Path], Iterable[Sample]]] = {
    "face_mask test": lambda data: detection.face_mask(data, "test"),
    "mik1i held-out groups": detection.mik1i_people,
    "fairface, an eighth": lambda data: _fairface(data, testing=True),
    "london": detection.london,
    "turning head": lambda data: (s for s in detection.filmed(data, 40) if TURNING in s.name),
}
TRAINING_SPREAD = 0.1


def load(data: Path, name: str, cache: Path | None = None) -> MarkedFaces:
    """Return a set of faces: `training`, or a key of HELD_OUT.

    Args:
        data: the data folder.
        name: of the set.
        cache: folder in which the crops are kept between runs; None builds them anew.
    """
    kept = cache / f"landmarks {name} {CONTEXT_PX}.npz" if cache else None
    if kept and kept.is_file():
        with np.load(kept) as arrays:
            texts = (tuple(str(text) for text in arrays[key]) for key in ("names", "digests"))
            return MarkedFaces(arrays["pictures"], arrays["points"], arrays["glance"], arrays["boxes"], *texts)
    known = name == "training"
    samples = training(data) if known else HELD_OUT[name](data)
    faces = marked(
        track(samples, f"looking at {name}", transient=True), data / YUNET, TRAINING_SPREAD if known else np.inf
    )
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            kept, pictures=faces.pictures, points=faces.points, glance=faces.glance, boxes=faces.boxes,
            names=np.array(faces.names), digests=np.array(faces.digests),
        )  # fmt: skip
    return faces
