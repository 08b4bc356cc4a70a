"""Aligned faces for the embedder: what may be learnt from, and pairs of pictures to report on.

Identities are almost absent in our data: most people appear once. So the training part knows a *person* only as one
picture, or as one clip, and says which pictures may show the same people (`circle`), so that those are never held
against each other as strangers. London, Azure and Lisa are for reporting only.
"""

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from converters.data import attributes, detection
from converters.data.attributes import Label
from converters.data.detection import YUNET, Sample
from converters.data.landmarks import PointTeacher
from converters.errors import ConvertError
from edge.models.bundle import sha256
from edge.models.manifest import Input
from edge.track.alignment import align

CONTEXT = 0.125  # of the aligned face's side, on every side
CONTEXT_PX = 140  # 112 without the context
MIN_EYES_PX = 12.0
FRAMES = {"talking": 40, "filmed": 10}  # per clip

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class AlignedFaces:
    """Aligned context crops.

    Attributes:
        pictures: (N, CONTEXT_PX, CONTEXT_PX, 3) uint8 BGR, points on the template of `edge.track.alignment`.
        people: who it is, as far as is known: equal names are one person, different ones probably two.
        circles: pictures of one circle may show the same person under different names.
        labels: age, gender and race where known, and the split.
        digests: SHA-256 of each source file.
    """

    pictures: Images
    people: tuple[str, ...]
    circles: tuple[str, ...]
    labels: tuple[Label, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.people)

    def subset(self, keep: Sequence[int]) -> "AlignedFaces":
        """Return only the faces at the indices `keep`."""
        texts = ([values[i] for i in keep] for values in (self.people, self.circles))
        people, circles = (tuple(values) for values in texts)
        labels, digests = tuple(self.labels[i] for i in keep), tuple(self.digests[i] for i in keep)
        return AlignedFaces(self.pictures[list(keep)], people, circles, labels, digests)


def without_context(pictures: Images) -> Images:
    """Return the aligned faces as a box cuts them, (N, 112, 112, 3) uint8 BGR."""
    edge = round(CONTEXT_PX * CONTEXT / (1 + 2 * CONTEXT))
    return pictures[:, edge : CONTEXT_PX - edge, edge : CONTEXT_PX - edge]


class Aligner:
    """YuNet's points and the aligned context crop of one face in a picture of any size."""

    def __init__(self, weights: Path) -> None:
        self._teacher = PointTeacher(weights, score=0.6)
        self._source = Input(CONTEXT_PX, CONTEXT_PX, fit="stretch")

    def largest(self, picture: Images) -> Images | None:
        """Return the largest face of a tight crop, or None."""
        scale, pad = 112 / max(picture.shape[:2]), 24
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how)
        image = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        boxes, points = self._teacher(np.asarray(image, np.uint8))
        if not len(boxes):
            return None
        best = int(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax())
        return self.cut(picture, np.asarray((points[best] - pad) / scale, np.float32))

    def every(self, picture: Images) -> list[Images]:
        """Return all faces large enough, left to right in no order."""
        _, points = self._teacher(picture)
        return [self.cut(picture, p) for p in points if np.linalg.norm(p[1] - p[0]) >= MIN_EYES_PX]

    def cut(self, picture: Images, points: Floats) -> Images:
        """Return one aligned context crop."""
        return align(picture, points, self._source, CONTEXT)


Row = tuple[Images, str, str, Label, str]


def _portraits(data: Path, aligner: Aligner) -> Iterator[Row]:
    """One picture, one person: UTKFace (research use only) and FairFace, with what their labels say."""
    for name, read in (("utkface", attributes.utkface), ("fairface", attributes.fairface)):
        for picture, digest, label in track(list(read(data)), f"aligning {name}", transient=True):
            face = aligner.largest(picture)
            if face is not None:
                yield face, f"{name}/{label.name}", f"{name}/{label.name}", label, digest


def _scenes(data: Path, aligner: Aligner) -> Iterator[Row]:
    """Faces of the detector's training pictures; in clips and webcam frames the same people come back."""
    samples: list[Sample] = [*detection.face_mask(data, "train"), *detection.mik1i_train(data)]
    for sample in track(samples, "aligning scenes", transient=True):
        for number, face in enumerate(aligner.every(sample.image)):
            name = f"{sample.name}#{number}"
            yield face, name, "mik1i" if sample.source == "webcam" else sample.name, _unlabelled(name), sample.sha256
    for sample in detection.portraits(data):
        for portrait in aligner.every(sample.image)[:1]:
            yield portrait, sample.name, sample.name, _unlabelled(sample.name), sample.sha256


def _clips(data: Path, aligner: Aligner) -> Iterator[Row]:
    """Clips of one person each: the only real pictures of one face with several looks."""
    for sample in itertools.chain(
        detection.talking_heads(data, FRAMES["talking"]), detection.filmed(data, FRAMES["filmed"])
    ):
        if "classroom" in sample.name:
            continue
        clip = sample.name.partition("#")[0]
        faces = aligner.every(sample.image)
        if len(faces) == 1:
            yield faces[0], clip, clip.partition("/")[0], _unlabelled(sample.name), sample.sha256


def _unlabelled(name: str) -> Label:
    return Label(name, "train")


def training(data: Path, cache: Path | None = None) -> AlignedFaces:
    """Return every face the embedder may learn from, UTKFace's test part included (ask `labels` for the split).

    Args:
        data: the data folder.
        cache: folder in which the crops are kept between runs; None builds them anew.
    """
    kept = cache / f"identity {CONTEXT_PX}.npz" if cache else None
    if kept and kept.is_file():
        return _load(kept)
    aligner = Aligner(data / YUNET)
    rows = [row for part in (_portraits, _scenes, _clips) for row in part(data, aligner)]
    pictures, people, circles, labels, digests = zip(*rows, strict=True)
    faces = AlignedFaces(np.stack(pictures), people, circles, labels, digests)
    if kept:
        _save(kept, faces)
    return faces


def _save(path: Path, faces: AlignedFaces) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = [(f.name, f.split, *map(str, (*f.ages, f.gender, f.race))) for f in faces.labels]
    names = np.array([faces.people, faces.circles, faces.digests])
    np.savez(path, pictures=faces.pictures, names=names, labels=np.array(table))


def _load(path: Path) -> AlignedFaces:
    with np.load(path) as arrays:
        people, circles, digests = (tuple(str(text) for text in row) for row in arrays["names"])
        labels = tuple(
            Label(str(n), str(s), (int(a), int(b)), int(g), int(r))  # type: ignore[arg-type]
            for n, s, a, b, g, r in arrays["labels"]
        )
        return AlignedFaces(arrays["pictures"], people, circles, labels, digests)


# --- pairs to report on -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Pictures and the pairs among them.

    Attributes:
        files: the pictures.
        pairs: (P, 2) indices into `files`.
        same: (P,) True where both show one person.
        digests: SHA-256 of each file.
    """

    files: tuple[Path, ...]
    pairs: NDArray[np.intp]
    same: NDArray[np.bool_]
    digests: tuple[str, ...]


def london_pairs(data: Path) -> Pairs:
    """Return the pairs that `verification_pairs.csv` lists: neutral against smiling, 80 people."""
    folder = data / "attributes/london"
    with (folder / "verification_pairs.csv").open(newline="") as file:
        return listed_pairs(folder, [(row["a"], row["b"], row["same"]) for row in csv.DictReader(file)])


def listed_pairs(folder: Path, rows: Sequence[tuple[str, str, str]]) -> Pairs:
    """Return pairs given as (picture, picture, "1" for the same person), pictures relative to `folder`."""
    names = sorted({name for row in rows for name in row[:2]})
    index = {name: i for i, name in enumerate(names)}
    pairs = np.array([(index[a], index[b]) for a, b, _ in rows], np.intp)
    files = tuple(folder / name for name in names)
    return Pairs(files, pairs, np.array([same == "1" for _, _, same in rows]), tuple(map(sha256, files)))


def all_pairs(people: dict[Path, str]) -> Pairs:
    """Return every pair of pictures whose people are known."""
    files = tuple(sorted(people))
    pairs = np.array(list(itertools.combinations(range(len(files)), 2)), np.intp).reshape(-1, 2)
    same = np.array([people[files[a]] == people[files[b]] for a, b in pairs], bool)
    return Pairs(files, pairs, same, tuple(map(sha256, files)))


def azure_pairs(data: Path) -> Pairs:
    """Return all pairs of the pictures named `Family1-Dad2.jpg`: the number counts the pictures of a person."""
    files = sorted((data / "verification/azure").glob("Family*-*.jpg"))
    return all_pairs({path: path.stem.rstrip("0123456789") for path in files})


def lisa_pairs(data: Path) -> Pairs:
    """Return all pairs of the pictures named `lisa_lisa1.jpg`, `zoom_15cm.jpg`: the first word is the person."""
    files = sorted((data / "verification/lisa_zoom").glob("*_*.jpg"))
    return all_pairs({path: path.stem.partition("_")[0] for path in files})


PAIR_SETS = {"london": london_pairs, "azure": azure_pairs, "lisa_zoom": lisa_pairs}


def pair_sets(data: Path) -> dict[str, Pairs]:
    """Return the pairs of the data folder, or of any folder with a `pairs.csv` (columns a, b, same).

    Raises:
        ConvertError: neither is there.
    """
    if (data / "pairs.csv").is_file():
        with (data / "pairs.csv").open(newline="") as file:
            rows = [(row["a"], row["b"], row["same"]) for row in csv.DictReader(file)]
        return {data.name: listed_pairs(data, rows)}
    if not (data / "verification").is_dir():
        raise ConvertError(
            f"{data}: neither verification/ nor pairs.csv is here; give the data folder, or a folder with a pairs.csv "
            "of the columns a, b (pictures, relative to it) and same (1 or 0)"
        )
    return {name: read(data) for name, read in PAIR_SETS.items()}
