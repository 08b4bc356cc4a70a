"""Accuracy of an attribute head on faces it never saw: per class, per set, per artefact, with and without abstaining.

Everything is predicted through the runtimes of a box and the crops of `data.attributes`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from converters.checkpoints.inert_pickle import plain_tensors, read_checkpoint
from converters.data.attributes import HEADS, OTHER_RACE, Faces, Label, load
from converters.data.calibration import picture_files, read_picture
from converters.data.face_crops import cut
from converters.errors import CheckpointError, ConvertError
from converters.evaluation import artefacts, plots
from converters.evaluation.artefacts import Predict
from converters.nets.student import Student
from edge.models.bundle import Bundle
from edge.models.decoders import probabilities
from edge.models.manifest import Manifest, Measurement

Chances = NDArray[np.float32]
LEAST_GROUP = 10  # faces; an error over fewer says nothing


@dataclass(frozen=True)
class Report:
    """One head on one set.

    Attributes:
        dataset: such as "utkface test adults".
        faces: how many had a known answer.
        accuracy: share of right answers when the head may not abstain.
        balanced: mean of the classes' recalls.
        recalls: per class, where the set has any of it.
        answered: share that reached the score threshold.
        answered_accuracy: accuracy among those.
        confusion: rows are truth, columns answers, in the labels' order.
        group_errors: share of wrong answers among the faces of a group (women, 26–45, black, …), where known.
    """

    dataset: str
    faces: int
    accuracy: float
    balanced: float
    recalls: dict[str, float]
    answered: float
    answered_accuracy: float
    confusion: list[list[int]]
    group_errors: dict[str, float] = field(default_factory=dict)


def report(
    dataset: str,
    chances: Chances,
    truths: Sequence[tuple[int, ...]],
    labels: Sequence[str],
    threshold: float,
    groups: Sequence[Sequence[str]] = (),
) -> Report:
    """Score (N, C) probabilities against the right answers of each face (several: any of them is right).

    Args:
        dataset: the set's name.
        chances: (N, C).
        truths: the right classes of each face.
        labels: the classes' names.
        threshold: below it the head abstains.
        groups: the groups that each face belongs to; none where nothing is known of the people.
    """
    answers, sure = chances.argmax(axis=1), chances.max(axis=1) >= threshold
    right = np.array([a in truth for a, truth in zip(answers.tolist(), truths, strict=True)])
    confusion = np.zeros((len(labels), len(labels)), int)
    for answer, truth in zip(answers.tolist(), truths, strict=True):
        confusion[answer if answer in truth else truth[0], answer] += 1
    totals = confusion.sum(axis=1)
    recalls = {label: float(confusion[i, i] / totals[i]) for i, label in enumerate(labels) if totals[i]}
    return Report(
        dataset,
        len(truths),
        float(right.mean()),
        float(np.mean(list(recalls.values()))),
        recalls,
        float(sure.mean()),
        float(right[sure].mean()) if sure.any() else float("nan"),
        confusion.tolist(),
        _group_errors(right, groups),
    )


def _group_errors(right: NDArray[np.bool_], groups: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the share of wrong answers of each group of at least LEAST_GROUP faces."""
    members: dict[str, list[int]] = {}
    for face, names in enumerate(groups):
        for name in names:
            members.setdefault(name, []).append(face)
    return {name: float(1 - right[rows].mean()) for name, rows in sorted(members.items()) if len(rows) >= LEAST_GROUP}


def groups_of(label: Label, head: str) -> list[str]:
    """Return the groups a face belongs to by what is known of it, besides the head's own question."""
    known = []
    for trait in ("gender", "race", "age"):
        right = label.classes(trait)
        if trait != head and len(right) == 1:
            known.append(f"{trait} {HEADS[trait][right[0]]}")
    return known


def reports(predict: Predict, head: str, sets: Mapping[str, Faces], manifest: Manifest) -> list[Report]:
    """Return the reports of a head on every set that has labels for it."""
    found = []
    for name, faces in sets.items():
        known = [i for i, label in enumerate(faces.labels) if label.classes(head)]
        if not known:
            continue
        part = faces.subset(known)
        chances = predict(part.crops(manifest.crop_margin, manifest.input.width))
        truths = [label.classes(head) for label in part.labels]
        groups = [groups_of(label, head) for label in part.labels]
        found.append(report(name, chances, truths, manifest.labels, manifest.score_threshold, groups))
    return found


def abstained_on_others(predict: Predict, sets: Mapping[str, Faces], manifest: Manifest) -> dict[str, float]:
    """Return per set the share of faces of unlisted groups on which the race head stays silent."""
    shares = {}
    for name, faces in sets.items():
        others = [i for i, label in enumerate(faces.labels) if label.race == OTHER_RACE]
        if others:
            chances = predict(faces.subset(others).crops(manifest.crop_margin, manifest.input.width))
            shares[name] = float((chances.max(axis=1) < manifest.score_threshold).mean())
    return shares


def held_out(root: Path, cache: Path | None) -> dict[str, Faces]:
    """Return the held-out faces by name: tests of the training sets, and sets never trained on."""
    utk, fair = load(root, "utkface", cache).split("test"), load(root, "fairface", cache)
    return {
        "utkface test adults": _where(utk, lambda label: label.adult),
        "utkface test children": _where(utk, lambda label: not label.adult),
        "fer2013 test": load(root, "fer2013", cache).split("test"),
        "fairface adults": _where(fair, lambda label: label.ages[0] >= 20),
        "fairface children": _where(fair, lambda label: label.ages[0] < 20),
        "london": load(root, "london", cache),
    }


def predictors(folder: Path, manifest: Manifest, threads: int = 1) -> dict[str, Predict]:
    """Return a function from crops to probabilities for each artefact: fp32 (the checkpoint), int8_*, fp16_openvino."""
    return artefacts.predictors(
        folder, manifest, load_student, lambda outputs: probabilities(outputs, manifest.decoder), threads=threads
    )


def load_student(checkpoint: Path) -> Student:
    """Rebuild a student from a bundle's checkpoint; its widths are read off the tensors.

    Raises:
        CheckpointError: no state dict of a student, or a pickle that wants to run something.
    """
    saved = plain_tensors(read_checkpoint(checkpoint), str(checkpoint))
    if "classify.weight" not in saved:
        raise CheckpointError(
            f"{checkpoint}: no tensor classify.weight, so this is no student; expected our own checkpoint, or --module "
            "package.module:Class for another network"
        )
    blocks = len({key.split(".")[1] for key in saved if key.startswith("blocks.")})
    try:
        widths = tuple(saved[f"blocks.{i}.conv2.0.weight"].shape[0] for i in range(blocks))
        student = Student(saved["classify.weight"].shape[0], widths)
        student.load_state_dict(saved)
    except (KeyError, RuntimeError) as error:
        told = " ".join(line.strip() for line in str(error).splitlines()[:3])
        raise CheckpointError(f"{checkpoint}: not whole, or another network than our student: {told}") from error
    return student.eval()


def threshold_for(chances: Chances, share: float = 0.85) -> float:
    """Return the score threshold at which `share` of these faces get an answer, rounded to a hundredth."""
    return round(float(np.quantile(chances.max(axis=1), 1 - share)), 2)


def measurements(found: Sequence[Report], artefact: str, command: str) -> list[Measurement]:
    """Return a manifest's accuracy lines."""
    lines = []
    for r in found:
        figures = {
            "accuracy": r.accuracy,
            "balanced_accuracy": r.balanced,
            "answered": r.answered,
            "answered_accuracy": r.answered_accuracy,
            **{f"recall {label}": value for label, value in r.recalls.items()},
        }
        lines += [
            Measurement(
                metric=metric,
                value=round(value, 4),
                artefact=artefact,  # type: ignore[arg-type]
                command=command,
                dataset=r.dataset,
                images=r.faces,
            )
            for metric, value in figures.items()
        ]
    return lines


def head_of(manifest: Manifest) -> str:
    """Return which of our heads a bundle's labels belong to.

    Raises:
        ConvertError: when they are nobody's; the data sets then hold no answers for it.
    """
    for head, labels in HEADS.items():
        if tuple(manifest.labels) == labels:
            return head
    raise ConvertError(f"{manifest.name} has the labels {manifest.labels}; the data sets know {dict(HEADS)}")


def evaluate(bundle: Bundle, args: argparse.Namespace) -> dict[str, object]:
    """Measure every artefact of a bundle.

    Args:
        bundle: of a classifier: one of our heads on the data folder, or any on a folder with one subfolder per label.
        args: `data`, `cache`, `threads`, `out` of `facefleet-convert evaluate`.

    Returns:
        What is kept as JSON; a PNG per artefact in `args.out` has the confusions.
    """
    manifest, console = bundle.manifest, Console()
    kept: dict[str, object] = {}
    judged = _judge_crops if all((args.data / label).is_dir() for label in manifest.labels) else _judge_head
    for artefact, (found, more) in judged(bundle, args).items():
        console.print(_table(f"{manifest.name}, {artefact}", found, manifest.labels))
        if any(r.group_errors for r in found):
            console.print(_group_table(f"{manifest.name}, {artefact}: share of wrong answers", found))
        for name, value in more.items():
            console.print(f"{name}: {value}")
        kept |= {artefact: [asdict(r) for r in found]} | {f"{artefact} {name}": value for name, value in more.items()}
        tables = {r.dataset: np.array(r.confusion) for r in found}
        plots.confusions(
            args.out / f"confusion_{artefact}.png", f"{manifest.name}, {artefact}", manifest.labels, tables
        )
    return kept | artefacts.ms_per_face(bundle, load_student, args.threads, console)


Judged = dict[str, tuple[list[Report], dict[str, object]]]


def _judge_head(bundle: Bundle, args: argparse.Namespace) -> Judged:
    """Judge one of our heads on the held-out faces of the data folder."""
    manifest, head = bundle.manifest, head_of(bundle.manifest)
    sets = held_out(args.data, args.cache)
    judged: Judged = {}
    for artefact, predict in predictors(bundle.folder, manifest, args.threads).items():
        others = abstained_on_others(predict, sets, manifest) if head == "race" else {}
        more: dict[str, object] = {"abstained on others": others} if others else {}
        judged[artefact] = reports(predict, head, sets, manifest), more
    return judged


def _judge_crops(bundle: Bundle, args: argparse.Namespace) -> Judged:
    """Judge any classifier on a folder of crops with one subfolder per label."""
    manifest = bundle.manifest
    crops, truth = labelled_crops(args.data, manifest)
    known = [(label,) for label in truth]
    return {
        artefact: ([report(args.data.name, predict(crops), known, manifest.labels, manifest.score_threshold)], {})
        for artefact, predict in predictors(bundle.folder, manifest, args.threads).items()
    }


def labelled_crops(data: Path, manifest: Manifest) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the crops of a folder with one subfolder per label, (N, H, W, 3) uint8 BGR, and their label's number.

    A set may lack a label, but not call one by another name.

    Raises:
        ConvertError: fewer than two of the labels are there, folders that are no labels, or one without pictures.
    """
    found = {path.name for path in data.iterdir() if path.is_dir()} if data.is_dir() else set()
    missing = [label for label in manifest.labels if label not in found]
    if len(manifest.labels) - len(missing) < 2 or (missing and found - set(manifest.labels)):
        raise ConvertError(
            f"{data}: no folder {missing[0]}; expected one per label: {', '.join(manifest.labels)}; found "
            f"{', '.join(sorted(found)) or 'none'}"
        )
    crops, truth = [], []
    for index, label in enumerate(manifest.labels):
        if label in missing:
            continue
        for path in picture_files(data / label):
            image = read_picture(path)
            crops.append(cut(image, (0, 0, image.shape[1], image.shape[0]), manifest.input.width)[0])
            truth.append(index)
    return np.stack(crops), truth


def _table(title: str, found: Sequence[Report], labels: Sequence[str]) -> Table:
    table = Table(title=title)
    for column in ("set", "faces", "accuracy", "balanced", "answered", "accuracy then", *labels):
        table.add_column(column, justify="left" if column == "set" else "right")
    for r in found:
        shares = (r.accuracy, r.balanced, r.answered, r.answered_accuracy)
        recalls = [f"{r.recalls[label]:.2f}" if label in r.recalls else "" for label in labels]
        table.add_row(r.dataset, str(r.faces), *(f"{share:.3f}" for share in shares), *recalls)
    return table


def _group_table(title: str, found: Sequence[Report]) -> Table:
    names = sorted({name for r in found for name in r.group_errors})
    table = Table("set", *names, title=title)
    for r in found:
        if r.group_errors:
            table.add_row(r.dataset, *(f"{r.group_errors[n]:.3f}" if n in r.group_errors else "" for n in names))
    return table


def _where(faces: Faces, keep: Callable[[Label], bool]) -> Faces:
    return faces.subset([i for i, label in enumerate(faces.labels) if keep(label)])
