"""An integrator's own labelled pictures: a folder per class or a CSV, faces cut as the box cuts them.

Driven by `distill` and `train-student --pictures`. A part of every class is held out, whole people at a time where the
folders or the CSV say who is on a picture, and is never trained on.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from converters.data.attributes import CONTEXT, CONTEXT_PX, Faces, Label, Split
from converters.data.calibration import SUFFIXES, read_picture
from converters.data.face_crops import Box, cut, widen
from converters.errors import ConvertError
from edge.models.bundle import load_bundle, sha256
from edge.models.runtime import load_model
from edge.track.detector import Detector

LEAST = 4  # pictures of a class: three to learn from, one to report on
PAD = 0.25  # of the longer side, on every side: a face that fills the picture is found only with something around it
SURE_ENOUGH = 0.1  # a face nobody would report from a street is still the face in a portrait
SHOWN = 5  # file names in a message

Find = Callable[[NDArray[np.uint8]], Box | None]


@dataclass(frozen=True)
class Picture:
    """One picture of a class; `person` is who is on it, or the file's own name where nobody says."""

    path: Path
    label: str
    person: str
    split: Split | None = None


@dataclass(frozen=True)
class Album:
    """Cut faces with what they are.

    Attributes:
        labels: the classes' names, in the order of the outputs.
        faces: context crops; every one has a split.
        truth: (N,) int64 index of each face's label.
        people: who is on each.
    """

    labels: tuple[str, ...]
    faces: Faces
    truth: NDArray[np.int64]
    people: tuple[str, ...]

    def split(self, split: Split) -> "Album":
        """Return one split."""
        return self.subset([i for i, label in enumerate(self.faces.labels) if label.split == split])

    def subset(self, keep: Sequence[int]) -> "Album":
        """Return only the faces at the indices `keep`."""
        faces = self.faces.subset(keep)
        return Album(self.labels, faces, self.truth[list(keep)], tuple(self.people[i] for i in keep))

    def counts(self) -> str:
        """Return how many faces each class has, for people."""
        found = Counter(self.truth.tolist())
        return ", ".join(f"{found[i]} {label}" for i, label in enumerate(self.labels))


class BoxFinder:
    """The face in a picture as a box's detector sees it: the largest that it reports, else the one it is surest of.

    Args:
        bundle: folder of a detector bundle.
    """

    def __init__(self, bundle: Path) -> None:
        self._bundle = load_bundle(bundle)
        loaded = load_model(self._bundle, ["CPU"], threads=1, log=lambda _: None)
        self._detector = Detector(loaded, score_threshold=SURE_ENOUGH)

    def __call__(self, picture: NDArray[np.uint8]) -> Box | None:
        """Return an xyxy box in the picture's own pixels, or None."""
        pad = round(PAD * max(picture.shape[:2]))
        framed = cv2.copyMakeBorder(picture, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        found = self._detector(np.asarray(framed, np.uint8))
        if not len(found.score):
            return None
        reported = found.score >= self._bundle.manifest.score_threshold
        areas = (found.xyxy[:, 2:] - found.xyxy[:, :2]).prod(axis=1)
        best = int(np.where(reported, areas, 0).argmax()) if reported.any() else 0  # the best score comes first
        x0, y0, x1, y1 = (float(v) - pad for v in found.xyxy[best])
        return x0, y0, x1, y1


def whole(picture: NDArray[np.uint8]) -> Box:
    """Return the whole picture as the face's box: it was cut already."""
    return 0.0, 0.0, float(picture.shape[1]), float(picture.shape[0])


def listed(source: Path, labels: Sequence[str] = ()) -> tuple[list[Picture], tuple[str, ...]]:
    """Return the pictures of a folder per class, or of a CSV, and the labels in the order of the outputs.

    Args:
        source: a folder with one subfolder per label (a folder below that is one person), or a CSV with the columns
            file, label and, where known, person and split (train, val or test); files are relative to the CSV.
        labels: which labels, in which order; none takes all, in alphabetical order.

    Raises:
        ConvertError: no such source, a column or label that is not there, fewer than two labels.
    """
    pictures = list(_of_folder(source)) if source.is_dir() else list(_of_csv(source))
    found = sorted({picture.label for picture in pictures})
    wanted = tuple(labels) or tuple(found)
    if missing := [label for label in wanted if label not in found]:
        raise ConvertError(f"{source}: no pictures labelled {', '.join(missing)}; found {', '.join(found) or 'none'}")
    if len(wanted) < 2:
        raise ConvertError(
            f"{source}: {len(wanted)} label(s) found ({', '.join(wanted) or 'none'}), expected at least two; "
            "give one subfolder per label, or a CSV with the columns file and label"
        )
    return [picture for picture in pictures if picture.label in wanted], wanted


def _of_folder(source: Path) -> Iterable[Picture]:
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        if not (files := [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]):
            raise ConvertError(f"{folder}: no pictures ({', '.join(SUFFIXES)}); expected those labelled {folder.name}")
        for path in sorted(files):
            inside = path.relative_to(folder).parts
            yield Picture(path, folder.name, f"{folder.name}/{inside[0]}")


def _of_csv(source: Path) -> Iterable[Picture]:
    if not source.is_file():
        raise ConvertError(f"{source}: no such folder or CSV; expected one subfolder of pictures per label")
    try:
        with source.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except UnicodeDecodeError as error:
        raise ConvertError(f"{source}: no CSV: {error}; expected text with the columns file and label") from error
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise ConvertError(
            f"{source}: columns {list(rows[0]) if rows else 'and rows missing'}, expected file, label and perhaps "
            "person and split"
        )
    for number, row in enumerate(rows, 2):
        split = row.get("split") or None
        if split not in (None, "train", "val", "test"):
            raise ConvertError(f"{source}:{number}: split is {split}, expected train, val or test")
        yield Picture(source.parent / row["file"], row["label"], row.get("person") or row["file"], split)  # type: ignore[arg-type]


def with_splits(pictures: Sequence[Picture], share: float, val_share: float = 0.0) -> list[Picture]:
    """Return the pictures with a split each; the CSV's own where it has them, else `share` of every label's people.

    Which people is decided by the SHA-256 of their name, so that it stays when pictures are added. Every label keeps
    at least one person to learn from and one to report on.

    Args:
        pictures: of all labels.
        share: of a label's pictures to report on.
        val_share: of a label's pictures to choose thresholds on.

    Raises:
        ConvertError: all pictures of a label show one person, who cannot be on both sides; or only some have a split.
    """
    given = sum(picture.split is not None for picture in pictures)
    if given == len(pictures):
        return list(pictures)
    if given:
        raise ConvertError(f"{given} of {len(pictures)} pictures have a split; give every row of the CSV one, or none")
    splits: dict[str, Split] = {}
    for label in dict.fromkeys(picture.label for picture in pictures):
        people = Counter(picture.person for picture in pictures if picture.label == label)
        if len(people) < 2:
            raise ConvertError(
                f"{label}: all {people.total()} pictures are of {next(iter(people))}, and people are held out whole; "
                "put the pictures directly into the label's folder to hold out pictures instead"
            )
        order = sorted(people, key=lambda person: hashlib.sha256(person.encode()).hexdigest())
        wanted, taken = max(1, round(share * people.total())), 0
        for person in order[:-1]:
            if taken >= wanted + round(val_share * people.total()):
                break
            splits[person] = "test" if taken < wanted else "val"
            taken += people[person]
    return [replace(picture, split=splits.get(picture.person, "train")) for picture in pictures]


def cut_faces(pictures: Sequence[Picture], labels: tuple[str, ...], find: Find) -> tuple[Album, list[Path]]:
    """Return the faces and the pictures in which none was found.

    Raises:
        ConvertError: an unreadable picture, or a label with fewer than LEAST faces; the message names the files.
    """
    rows, without = [], []
    for picture in track(list(pictures), "finding faces", transient=True, disable=len(pictures) < 50):
        image = read_picture(picture.path)
        box = find(image)
        if box is None:
            without.append(picture)
            continue
        assert picture.split is not None
        crop, inside = cut(image, widen(box, CONTEXT), CONTEXT_PX)
        rows.append((picture, crop, inside))
    for label in labels:
        have = Counter(picture.split for picture, _, _ in rows if picture.label == label)
        if have["train"] < LEAST - 1 or have["test"] < 1:
            lost = [picture.path for picture in without if picture.label == label]
            raise ConvertError(
                f"{label}: {have['train']} faces to learn from and {have['test']} to report on, expected at least "
                f"{LEAST - 1} and 1; {told(lost) if lost else 'add pictures'}"
            )
    faces = Faces(
        np.stack([crop for _, crop, _ in rows]),
        np.array([inside for _, _, inside in rows], np.float32),
        tuple(Label(picture.path.name, picture.split or "train") for picture, _, _ in rows),
        tuple(sha256(picture.path) for picture, _, _ in rows),
    )
    truth = np.array([labels.index(picture.label) for picture, _, _ in rows])
    people = tuple(picture.person for picture, _, _ in rows)
    return Album(labels, faces, truth, people), [picture.path for picture in without]


def told(without: Sequence[Path]) -> str:
    """Name the pictures without a face."""
    more = f" and {len(without) - SHOWN} more" if len(without) > SHOWN else ""
    return f"no face found in {', '.join(str(path) for path in without[:SHOWN])}{more}"
