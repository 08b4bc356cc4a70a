"""The pictures that teach and judge the face detector: read once, shrunk, kept in memory.

Driven by `training.detector` (`training_set`) and `evaluation.detector` (`face_mask`, `mik1i_negatives`, `fairface`).
Boxes of `mik1i` are looser than those of `face_mask`, so YuNet draws them anew; see the README of the data folder.
"""

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from converters.errors import ConvertError

MAX_SIDE_PX = 512
WALKING = ("walking", "one-by-one")  # clips of video/intel that are for reporting only
YUNET = "weights/yunet_apache2/yunet_n_dynamic.onnx"


@dataclass(frozen=True)
class Sample:
    """One picture with its faces.

    Attributes:
        name: `source/file`, unique in a set.
        image: (H, W, 3) uint8 BGR, long side at most 512.
        boxes: (N, 4) float32 xyxy in pixels of `image`.
        source: the kind of picture; `training.detector` draws the kinds at fixed rates.
        sha256: digest of the file the picture was read from.
    """

    name: str
    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    source: str
    sha256: str


def _read(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ConvertError(f"{path}: not a readable picture; remove it or replace it")
    return np.asarray(image, np.uint8)


def _shrink(image: NDArray[np.uint8], boxes: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Bring the long side down to `MAX_SIDE_PX`; never enlarge."""
    ratio = MAX_SIDE_PX / max(image.shape[:2])
    if ratio >= 1:
        return image, boxes
    small = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), boxes * np.float32(ratio)


def _sample(name: str, source: str, path: Path, image: NDArray[np.uint8], boxes: NDArray[np.float32]) -> Sample:
    image, boxes = _shrink(image, boxes)
    return Sample(name, image, boxes.astype(np.float32), source, hashlib.sha256(path.read_bytes()).hexdigest())


def read_yolo_labels(path: Path, width: int, height: int) -> NDArray[np.float32]:
    """Return (N, 4) float32 xyxy pixels from lines `class cx cy w h` in [0, 1]; an empty file has no faces."""
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if any(len(row) != 5 for row in rows):
        raise ConvertError(f"{path}: expected five numbers a line (class cx cy w h); correct the file")
    c = np.array([row[1:] for row in rows], np.float32).reshape(-1, 4) * np.array([width, height] * 2, np.float32)
    return np.concatenate((c[:, :2] - c[:, 2:] / 2, c[:, :2] + c[:, 2:] / 2), 1)


class Teacher:
    """YuNet as a drawer of boxes.

    Args:
        weights: the ONNX file of YuNet (dynamic input).
        score: boxes below are not returned.
    """

    def __init__(self, weights: Path, score: float) -> None:
        if not weights.exists():
            raise ConvertError(f"{weights}: YuNet's weights are missing; they draw the boxes of unlabelled pictures")
        self._net = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), score, 0.3, 5000)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (N, 4) float32 xyxy in pixels of `image`."""
        height, width = image.shape[:2]
        ratio = min(1.0, 640 / max(width, height))
        small = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA) if ratio < 1 else image
        self._net.setInputSize((small.shape[1], small.shape[0]))
        _, found = self._net.detect(small)
        if found is None:
            return np.zeros((0, 4), np.float32)
        xywh = np.asarray(found, np.float32)[:, :4] / np.float32(ratio)
        xyxy = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1)
        return np.clip(xyxy, 0, np.array([width, height] * 2, np.float32)).astype(np.float32)


def held_out(group: str) -> bool:
    """Say whether a capture group of `mik1i` is for reporting only: an eighth, by digest, stable for ever."""
    return hashlib.sha256(group.encode()).hexdigest()[0] in "01"


def face_mask(data: Path, split: str) -> Iterator[Sample]:
    """Read `detection/face_mask`, one of its splits train, val, test."""
    folder = data / "detection/face_mask"
    with (folder / "split.csv").open() as file:
        names = [row["image"] for row in csv.DictReader(file) if row["split"] == split]
    for name in sorted(names):
        path = folder / "images" / name
        image = _read(path)
        labels = folder / "labels" / Path(name).with_suffix(".txt").name
        boxes = read_yolo_labels(labels, image.shape[1], image.shape[0])
        yield _sample(f"face_mask/{name}", "face_mask", path, image, boxes)


def _mik1i_rows(data: Path, testing: bool) -> list[dict[str, str]]:
    with (data / "detection/mik1i/manifest.csv").open() as file:
        return [row for row in csv.DictReader(file) if held_out(row["capture_group"]) == testing]


def mik1i_negatives(data: Path) -> Iterator[Sample]:
    """Read the pictures without a face of `mik1i`'s held-out capture groups."""
    for row in _mik1i_rows(data, testing=True):
        if row["faces"] == "0":
            path = data / "detection/mik1i/images" / f"{row['name']}.jpg"
            yield _sample(f"mik1i/{path.name}", "negative", path, _read(path), np.zeros((0, 4), np.float32))


def mik1i_people(data: Path) -> Iterator[Sample]:
    """Read the pictures with faces of `mik1i`'s held-out capture groups, boxes by the teacher; for reporting."""
    teacher = Teacher(data / YUNET, 0.6)
    for row in _mik1i_rows(data, testing=True):
        if row["faces"] != "0" and row["overlaps_kaggle_mask"] != "1":
            path = data / "detection/mik1i/images" / f"{row['name']}.jpg"
            image = _read(path)
            yield _sample(f"mik1i/{path.name}", "held out", path, image, teacher(image))


def redraw(
    image: NDArray[np.uint8], loose: NDArray[np.float32], tight: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Replace loose boxes by the teacher's, and blot out faces that only the loose labels know.

    A labelled head without a tight box would teach either a wrong box or a wrong background; grey teaches neither.

    Returns:
        A picture of the same shape and (N, 4) float32 xyxy.
    """
    image = image.copy()
    cx, cy = (tight[:, 0] + tight[:, 2]) / 2, (tight[:, 1] + tight[:, 3]) / 2
    for x0, y0, x1, y1 in loose:
        if not np.any((cx > x0) & (cx < x1) & (cy > y0) & (cy < y1)):
            image[max(int(y0), 0) : int(y1) + 1, max(int(x0), 0) : int(x1) + 1] = 114
    grey = np.all(image[cy.astype(int), cx.astype(int)] == 114, axis=1) if len(tight) else np.zeros(0, bool)
    return image, tight[~grey]


def mik1i_train(data: Path) -> Iterator[Sample]:
    """Read `mik1i` without its held-out groups and without pictures that `face_mask` has too, boxes redrawn."""
    teacher = Teacher(data / YUNET, 0.6)
    for row in _mik1i_rows(data, testing=False):
        if row["overlaps_kaggle_mask"] == "1":
            continue
        path = data / "detection/mik1i/images" / f"{row['name']}.jpg"
        image = _read(path)
        if row["faces"] == "0":
            yield _sample(f"mik1i/{path.name}", "negative", path, image, np.zeros((0, 4), np.float32))
            continue
        labels = data / "detection/mik1i/labels" / f"{row['name']}.txt"
        loose = read_yolo_labels(labels, image.shape[1], image.shape[0])
        source = "crowd" if row["origin"] == "web_photo" else "webcam"
        yield _sample(f"mik1i/{path.name}", source, path, *redraw(image, loose, teacher(image)))


def portraits(data: Path) -> Iterator[Sample]:
    """Read `attributes/canada`, boxes by the teacher."""
    teacher = Teacher(data / YUNET, 0.7)
    for path in sorted((data / "attributes/canada").glob("*.jpg")):
        image, _ = _shrink(_read(path), np.zeros((0, 4), np.float32))
        yield _sample(f"canada/{path.name}", "portrait", path, image, teacher(image))


def talking_heads(data: Path, frames: int = 10) -> Iterator[Sample]:
    """Read evenly spaced frames of `video/liveportrait`, boxes by the teacher."""
    teacher = Teacher(data / YUNET, 0.7)
    for path in sorted((data / "video/liveportrait").glob("*.mp4")):
        for index, image in evenly_spaced(path, frames):
            yield _sample(f"liveportrait/{path.name}#{index}", "portrait", path, image, teacher(image))


def filmed(data: Path, frames: int = 16) -> Iterator[Sample]:
    """Read evenly spaced frames of `video/intel`, boxes by the teacher; the walking clips are kept for reporting.

    What the teacher only suspects is blotted out: neither a face nor background. A frame without any suspicion is a
    picture without faces.
    """
    teacher, suspicious = Teacher(data / YUNET, 0.7), Teacher(data / YUNET, 0.25)
    for path in sorted((data / "video/intel").glob("*.*")):
        if path.suffix not in {".mkv", ".gif", ".mp4"} or any(word in path.name for word in WALKING):
            continue
        for index, frame in evenly_spaced(path, frames):
            image, boxes = redraw(frame, suspicious(frame), teacher(frame))
            yield _sample(f"intel/{path.name}#{index}", "filmed" if len(boxes) else "negative", path, image, boxes)


def evenly_spaced(path: Path, count: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield `count` frames of a clip with their numbers, shrunk."""
    video = cv2.VideoCapture(str(path))
    wanted = set(np.linspace(0, _length(path) - 1, count).astype(int).tolist())
    # Read in order: seeking in a GIF or between key frames lands elsewhere.
    index = 0
    while wanted and video.grab():
        if index in wanted:
            wanted.remove(index)
            _, frame = video.retrieve()
            yield index, _shrink(np.asarray(frame, np.uint8), np.zeros((0, 4), np.float32))[0]
        index += 1
    video.release()


def _length(path: Path) -> int:
    video, count = cv2.VideoCapture(str(path)), 0
    while video.grab():
        count += 1
    video.release()
    return count


def fairface(data: Path) -> Iterator[Sample]:
    """Read FairFace's large bare faces with their pseudo boxes: training, and so no test of a detector."""
    folder = data / "attributes/fairface"
    for path in sorted((folder / "images").glob("*.jpg")):
        image = _read(path)
        boxes = read_yolo_labels(folder / "face_boxes_pseudo" / f"{path.stem}.txt", image.shape[1], image.shape[0])
        yield _sample(f"fairface/{path.name}", "fairface", path, image, boxes)


def london(data: Path) -> Iterator[Sample]:
    """Read the studio portraits of `attributes/london`, boxes by the teacher; for reporting, never trained on."""
    teacher = Teacher(data / YUNET, 0.7)
    for path in sorted((data / "attributes/london").rglob("*.jpg")):
        image, _ = _shrink(_read(path), np.zeros((0, 4), np.float32))
        yield _sample(f"london/{path.name}", "london", path, image, teacher(image))


def yolo_folder(folder: Path) -> Iterator[Sample]:
    """Read any folder with `images/` and `labels/` (YOLO txt); a picture without a label file has no faces."""
    for path in sorted((folder / "images").iterdir()):
        image, labels = _read(path), folder / "labels" / f"{path.stem}.txt"
        found = labels.exists()
        boxes = read_yolo_labels(labels, image.shape[1], image.shape[0]) if found else np.zeros((0, 4), np.float32)
        yield _sample(f"{folder.name}/{path.name}", "folder", path, image, boxes)


TRAINING: tuple[Callable[[Path], Iterable[Sample]], ...] = (
    lambda data: face_mask(data, "train"),
    mik1i_train,
    portraits,
    talking_heads,
    filmed,
    fairface,
)


# What each part of `training_set` is for and under which licence; its samples' names begin with the key.
PURPOSES: dict[str, str] = {
    "face_mask": "training and calibration; CC0 as declared by its uploader (Kaggle andrewmvd/face-mask-detection)",
    "mik1i": "training, boxes redrawn with YuNet; CC BY 4.0, Mohamed Traore and Justin Brady "
    "(Roboflow mohamed-traore-2ekkp/face-detection-mik1i), partly filmed by them, partly pictures from the web",
    "fairface": "training, pseudo boxes; CC BY 4.0, Karkkainen & Joo, WACV 2021",
    "canada": "training, boxes by YuNet; CC BY 4.0, DeBruine & Jones",
    "intel": "training, boxes by YuNet, without the walking clips; CC BY 4.0, Intel (intel-iot-devkit sample-videos)",
    "liveportrait": "training, boxes by YuNet; MIT, examples of the LivePortrait repository",
}


def training_set(data: Path) -> list[Sample]:
    """Return everything the shipped detector learns from, in a stable order."""
    return [sample for part in TRAINING for sample in part(data)]


def digests(samples: Iterable[Sample]) -> dict[str, dict[str, str]]:
    """Return, for each key of `PURPOSES`, the SHA-256 of every file by name: what `data.json` keeps."""
    lists: dict[str, dict[str, str]] = {kind: {} for kind in PURPOSES}
    for sample in samples:
        kind, _, name = sample.name.partition("#")[0].partition("/")
        lists[kind][name] = sample.sha256
    return lists
