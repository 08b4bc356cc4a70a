"""Faces with age, gender, race and emotion for the student heads, cut out as the box cuts them.

Every picture is searched for its face (YuNet, so that the crop is a *detector's* box and not an annotator's chip) and
kept as a context crop: the face box widened by CONTEXT on every side and stretched to a square. Training jitters
inside that context; evaluation takes the box with the manifest's margin out of it.

Splits follow the data folder's README: UTKFace's test is fixed by the SHA-256 of the file name, FER2013 brings its
own; FairFace and London are for reporting only and are never trained on.
"""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from converters.data.face_crops import Box, FaceFinder, cut, widen
from converters.errors import ConvertError

CONTEXT = 0.35  # of the face box, on every side
CONTEXT_PX = 110  # the face box itself then covers 65 px, about what UTKFace has
HEADS: dict[str, tuple[str, ...]] = {
    "age": ("1-6", "7-13", "14-25", "26-45", "46-60", "61-90"),
    "gender": ("female", "male"),
    "race": ("white", "black", "asian"),
    "emotion": ("angry", "fear", "happy", "neutral"),
}
AGE_BANDS = ((1, 6), (7, 13), (14, 25), (26, 45), (46, 60), (61, 90))
FAIRFACE_AGES = {
    "0-2": (0, 2), "3-9": (3, 9), "10-19": (10, 19), "20-29": (20, 29), "30-39": (30, 39),
    "40-49": (40, 49), "50-59": (50, 59), "60-69": (60, 69), "70+": (70, 116),
}  # fmt: skip
LONDON_RACES = {"white": 0, "black": 1, "east_asian": 2}
UNKNOWN = -1
OTHER_RACE = -2  # of a group the head has no class for: it should abstain

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Label:
    """What is known of one face; UNKNOWN where nothing is. `ages` is the range of years it may have."""

    name: str
    split: Split
    ages: tuple[int, int] = (UNKNOWN, UNKNOWN)
    gender: int = UNKNOWN
    race: int = UNKNOWN
    emotion: int = UNKNOWN

    @property
    def adult(self) -> bool:
        """True from 18 years on, by the lower end of the range."""
        return self.ages[0] >= 18

    def bands(self) -> tuple[int, ...]:
        """Return the age bands that overlap `ages`."""
        low, high = self.ages
        return tuple(i for i, (a, b) in enumerate(AGE_BANDS) if low <= b and high >= a)

    def classes(self, head: str) -> tuple[int, ...]:
        """Return the right answers of a head, none where unknown or outside its classes."""
        if head == "age":
            return self.bands()
        value = {"gender": self.gender, "race": self.race, "emotion": self.emotion}[head]
        return (value,) if value >= 0 else ()


@dataclass(frozen=True)
class Faces:
    """Context crops with labels and digests.

    Attributes:
        pictures: (N, CONTEXT_PX, CONTEXT_PX, 3) uint8 BGR.
        inside: (N, 4) float32, the xyxy part of each crop, in [0, 1], that the source picture really covers.
        labels: one per crop.
        digests: SHA-256 of each source (file, or pixels for FER2013's array).
    """

    pictures: NDArray[np.uint8]
    inside: NDArray[np.float32]
    labels: tuple[Label, ...]
    digests: tuple[str, ...]

    def subset(self, keep: Sequence[int]) -> "Faces":
        """Return only the faces at the indices `keep`."""
        return Faces(
            self.pictures[list(keep)],
            self.inside[list(keep)],
            tuple(self.labels[i] for i in keep),
            tuple(self.digests[i] for i in keep),
        )

    def split(self, *splits: Split) -> "Faces":
        """Return the faces of some splits."""
        return self.subset([i for i, label in enumerate(self.labels) if label.split in splits])

    def crops(self, margin: float, size_px: int) -> NDArray[np.uint8]:
        """Return (N, size, size, 3) uint8 BGR: the face box widened by `margin` on every side, stretched."""
        low = (CONTEXT - margin) / (1 + 2 * CONTEXT) * CONTEXT_PX
        box = (low, low, CONTEXT_PX - low, CONTEXT_PX - low)
        return np.stack([cut(picture, box, size_px)[0] for picture in self.pictures])


Sample = tuple[NDArray[np.uint8], str, Label]


def utkface(root: Path) -> Iterator[Sample]:
    """Yield (BGR picture, SHA-256, label) of `research_only/utkface`; an eighth of what is not test is validation."""
    for row in _rows(root / "research_only/utkface/labels.csv"):
        name = row["filename"]
        picture, digest = _read(root / "research_only/utkface/images" / name)
        age, race = int(row["age"]), int(row["race_0white_1black_2asian_3indian_4other"])
        yield picture, digest, Label(
            name=name,
            split=utkface_split(name),
            ages=(age, age),
            gender=1 - int(row["gender_0male_1female"]),
            race=race if race <= 2 else OTHER_RACE,
        )  # fmt: skip


def utkface_split(name: str) -> Split:
    """Return test for a file name whose SHA-256 begins with 0 or 1, else validation by the second digit."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    if digest[0] in "01":
        return "test"
    return "val" if digest[1] in "01" else "train"


def fer2013(root: Path) -> Iterator[Sample]:
    """Yield the four classes of the emotion head from FER2013's array (48×48, grey)."""
    data = np.load(root / "research_only/fer2013/fer2013_48.npz")
    names = [str(name) for name in data["classes"]]
    splits: tuple[Split, ...] = ("train", "val", "test")
    for i, (image, label, split) in enumerate(zip(data["images"], data["labels"], data["split"], strict=True)):
        if names[label] in HEADS["emotion"]:
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            emotion = HEADS["emotion"].index(names[label])
            bgr = np.repeat(image[..., None], 3, axis=2)
            yield bgr, digest, Label(f"fer2013_48.npz:{i}", splits[split], emotion=emotion)


def fairface(root: Path) -> Iterator[Sample]:
    """Yield FairFace's 400 faces; the age is a group, so an answer is right when its band overlaps it."""
    for row in _rows(root / "attributes/fairface/labels.csv"):
        picture, digest = _read(root / "attributes/fairface/images" / row["filename"])
        gender = HEADS["gender"].index(row["gender"].lower())
        yield picture, digest, Label(row["filename"], "test", ages=FAIRFACE_AGES[row["age_group"]], gender=gender)


def london(root: Path) -> Iterator[Sample]:
    """Yield the London portraits, neutral and smiling, with self-reported ethnicity."""
    for row in _rows(root / "attributes/london/london_info.csv"):
        for folder, emotion in (("neutral", "neutral"), ("smiling", "happy")):
            picture, digest = _read(root / f"attributes/london/{folder}/{row['face_id']}.jpg")
            age = UNKNOWN if row["face_age"] in ("", "NA") else int(float(row["face_age"]))
            yield picture, digest, Label(
                name=f"{folder}/{row['face_id']}.jpg",
                split="test",
                ages=(age, age),
                gender=HEADS["gender"].index(row["face_gender"]),
                race=LONDON_RACES.get(row["face_eth"], OTHER_RACE),
                emotion=HEADS["emotion"].index(emotion),
            )  # fmt: skip


# FER2013's faces are cropped already: one in fifteen is too odd for YuNet, and leaving those out would flatter a test.
USUAL_BOX: dict[str, Box] = {"fer2013": (0.11, 0.0, 0.87, 1.0)}
SETS = {"utkface": utkface, "fer2013": fer2013, "fairface": fairface, "london": london}


def load(root: Path, name: str, cache: Path | None = None) -> Faces:
    """Return the faces of a set; where YuNet finds none the picture is left out.

    Args:
        root: the data folder.
        name: a key of SETS.
        cache: folder in which the crops are kept between runs; None builds them anew.
    """
    kept = cache / f"{name}-{CONTEXT_PX}.npz" if cache else None
    if kept and kept.is_file():
        return _load(kept)
    finder = FaceFinder(root / "weights/yunet_apache2/yunet_n_dynamic.onnx")
    usual = USUAL_BOX.get(name)
    samples = track(SETS[name](root), f"finding the faces of {name}", transient=True)
    rows = [row for sample in samples if (row := _context(finder, sample, usual))]
    if not rows:
        raise ConvertError(f"{root}: the set {name!r} has no picture with a face in it")
    faces = Faces(
        np.stack([row[0] for row in rows]),
        np.array([row[1] for row in rows], np.float32),
        tuple(row[3] for row in rows),
        tuple(row[2] for row in rows),
    )
    if kept:
        _save(kept, faces)
    return faces


def _context(finder: FaceFinder, sample: Sample, usual: Box | None) -> tuple[NDArray[np.uint8], Box, str, Label] | None:
    picture, digest, label = sample
    box = finder.find(picture)
    if box is None:
        if usual is None:
            return None
        h, w = picture.shape[:2]
        box = (usual[0] * w, usual[1] * h, usual[2] * w, usual[3] * h)
    crop, inside = cut(picture, widen(box, CONTEXT), CONTEXT_PX)
    return crop, inside, digest, label


def _save(path: Path, faces: Faces) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [(f.name, f.split, *map(str, (*f.ages, f.gender, f.race, f.emotion))) for f in faces.labels]
    with path.open("wb") as file:
        digests = np.array(faces.digests)
        np.savez(file, labels=np.array(table), pictures=faces.pictures, inside=faces.inside, digests=digests)


def _load(path: Path) -> Faces:
    data = np.load(path)
    labels = tuple(
        Label(str(n), str(s), (int(a), int(b)), int(g), int(r), int(e))  # type: ignore[arg-type]
        for n, s, a, b, g, r, e in data["labels"]
    )
    return Faces(data["pictures"], data["inside"], labels, tuple(str(d) for d in data["digests"]))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ConvertError(f"{path} is missing; --data names the folder that has research_only/ and attributes/")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _read(path: Path) -> tuple[NDArray[np.uint8], str]:
    raw = path.read_bytes()
    picture = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ConvertError(f"{path}: {len(raw)} bytes that are no picture; copy the file anew")
    return picture.astype(np.uint8), hashlib.sha256(raw).hexdigest()
